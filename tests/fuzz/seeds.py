"""Valid messages of every kind, made from real objects; nothing here is random."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from support import chain_builder as cb

from ledger import fetch, proofs, types
from ledger.checkpoint import Checkpoint, checkpoint_at, checkpoint_json
from ledger.genesis import genesis_bytes
from ledger.protocol import (
    BornRecord,
    CertificateRecord,
    MarkRecord,
    ProposalRecord,
    VoteRecord,
    encode_record,
)
from ledger.prover import Prover
from ledger.statements import EventHead, event_message, sign_message
from ledger.wal import frame
from wire.canonical import encode
from wire.certificates import Certificate, Meter, ValidatorGrant, dump, make_token, seal
from wire.keys import BoxKey, to_text
from wire.metering import ZERO_DIGEST, CpfAttestation, Reading, Receipt, record_json, sign_record

HOME, OTHER_HOME = cb.key("fuzz home"), cb.key("other fuzz home")
METER = cb.key("fuzz meter")
BOX = BoxKey(bytes(range(32)))
NOW_MS = cb.START_MS + 1000


@cache
def chain() -> cb.Chain:
    """A short chain with two homes and a round of trading."""
    built = cb.Chain()
    built.settle_in(HOME, OTHER_HOME)
    slot = cb.FIRST_SLOT + 2
    built.block(
        built.ledger.time_ms + 1,
        built.tx(HOME, cb.bid("buy", slot, 1000, 200_000)),
        built.tx(OTHER_HOME, cb.bid("sell", slot, 1000, 150_000)),
    )
    built.block(built.ledger.time_ms + 1, built.tx(cb.SUPERVISOR, cb.deposit(HOME, 1)))
    return built


@cache
def operations() -> tuple[dict[str, Any], ...]:
    """One of each kind."""
    chain_id, slot = chain().chain_id, cb.FIRST_SLOT + 2
    votes = [
        types.make_vote(cb.VALIDATORS[0], chain_id, 0, 0, 1, types.VoteKind.NOTARIZE, block)
        for block in (b"\1" * 32, b"\2" * 32)
    ]
    text = to_text(b"\3" * 32)
    return (
        cb.register(cb.key("new fuzz home")),
        cb.bid("buy", slot, 1000, 200_000),
        cb.receipt(HOME, cb.FIRST_SLOT, 500, chain_id),
        cb.cpf(cb.VALIDATORS[0], cb.FIRST_SLOT + 8, 30_000, chain_id),
        cb.auction("flex-1", "reverse", slot, 500, 300_000, "as-bid"),
        cb.auction_bid("flex-1", 300, 100_000),
        cb.asset(HOME, "production", 500, slot, slot + 4),
        cb.deposit(HOME, 500),
        cb.join(cb.OTHERS[0], b"\3" * 32),
        {"op": "leave-validator"},
        {"op": "evidence", **dict(zip(("first", "second"),
                                      (to_text(types.encode(v)) for v in votes), strict=True))},
        {"op": "commit-seed", "tip": text},
        {"op": "reveal-seed", "preimage": text},
        {"op": "fund-rewards", "amountUc": 5},
        {"op": "set-participation", "mode": "RE+TE"},
        {"op": "set-payee", "address": HOME.id},
    )  # fmt: skip


@cache
def transactions() -> tuple[bytes, ...]:
    built = cb.Chain(genesis=chain().genesis)
    return tuple(built.tx(HOME, one).raw for one in operations())


@cache
def certificate() -> Certificate:
    meter = Meter(
        type="smart", serial="S1", vendor="V", model="M", firmware="1",
        meter_key=to_text(METER.public),
    )  # fmt: skip
    unsigned = Certificate(
        subject=HOME.id, key=to_text(HOME.public), roles=["prosumer"], feeder="east",
        max_import_w=11_000, max_export_w=8_000, not_before_ms=0, not_after_ms=2 * NOW_MS,
        serial_no=1, meter=[meter],
    )  # fmt: skip
    return seal(unsigned, cb.ISSUER, cb.MARKET)


@cache
def signed_records() -> tuple[bytes, ...]:
    """Certificates, grants and licences."""
    grant = ValidatorGrant(
        validator=HOME.id, meter_key=to_text(METER.public), start_slot=1, end_slot=9
    )
    records: list[Any] = [
        dump(certificate()),
        cb.grant_for(HOME),
        cb.licence_for(HOME),
        dump(seal(grant, cb.ISSUER, cb.MARKET)),
    ]
    return tuple(encode(one) for one in records)


@cache
def tokens() -> tuple[bytes, ...]:
    return tuple(
        make_token(HOME, cb.MARKET, NOW_MS, "n" * 16, credential).encode()
        for credential in (None, certificate())
    )


@cache
def meter_records() -> tuple[bytes, ...]:
    """Readings, receipts and attestations."""
    chain_id, slot = chain().chain_id, cb.FIRST_SLOT
    reading = Reading(
        meter=METER.id, seq=0, slot=slot, time_ms=cb.slot_ms(slot + 1), import_wh=10,
        export_wh=0, generation_wh=5, previous=ZERO_DIGEST,
    )  # fmt: skip
    receipt = Receipt(address=HOME.id, slot=slot, net_wh=-5, reading=ZERO_DIGEST)
    cpf = CpfAttestation(
        validator=HOME.id, start_slot=slot, end_slot=slot + 7, cpf_q16=65_536, eligible=True
    )
    return tuple(encode(record_json(sign_record(one, METER, chain_id)))
                 for one in (reading, receipt, cpf))  # fmt: skip


@cache
def objects() -> tuple[tuple[type[Any], bytes], ...]:
    """Consensus objects by kind."""
    built = chain()
    stored = built.store.get_block(2)
    assert stored is not None
    header = stored.header
    finality = types.decode(types.Finality, stored.certificate)
    certificate = finality.certificate
    nullify = types.make_certificate(
        [types.make_vote(key, built.chain_id, number, 0, 1, types.VoteKind.NULLIFY)
         for number, key in enumerate(cb.VALIDATORS[:3])]
    )  # fmt: skip
    vote = types.make_vote(
        cb.VALIDATORS[1], built.chain_id, 1, 0, 3, types.VoteKind.NOTARIZE, b"\7" * 32
    )
    justify = types.Justify(certificate, (nullify,))
    proposal = types.Proposal(header, stored.txids, justify, vote.signature)
    long_finality = types.Finality(certificate, (header, header))
    values = (header, vote, certificate, justify, proposal, finality, nullify, long_finality)
    return tuple((type(one), types.encode(one)) for one in values)


@cache
def proof_bytes() -> tuple[bytes, ...]:
    built = chain()
    prover = Prover(built.store)
    anchor = prover.anchor(built.ledger.executed_height)
    txid = built.store.get_block(1).txids[0]  # type: ignore[union-attr]
    values = (
        prover.row(built.ledger, f"account/{HOME.id}"),
        prover.row(built.ledger, "account/nobody"),
        prover.receipt(txid),
        prover.inclusion(txid),
        anchor,
        proofs.Evidence(anchor, prover.anchor(1)),
        proofs.Step(anchor, built.epoch.validators.keys),
    )
    return tuple(proofs.encode(one) for one in values)


@cache
def log_entries() -> tuple[bytes, ...]:
    """Payloads of the vote log."""
    found = {kind: types.decode(kind, raw) for kind, raw in objects()}
    records = (
        BornRecord(5, True),
        VoteRecord(found[types.Vote]),
        ProposalRecord(found[types.Proposal]),
        CertificateRecord(found[types.Certificate]),
        MarkRecord(0, 7),
    )
    return tuple(encode_record(one) for one in records)


@cache
def logs() -> tuple[bytes, ...]:
    return (b"".join(frame(one) for one in log_entries()),)


@cache
def event_words() -> tuple[dict[str, Any], ...]:
    """What validators say, before they sign it."""
    chain_id = chain().chain_id
    head = EventHead(chain_id, "market", 5, 3, NOW_MS)
    short = encode([{"event": "cleared", "slot": 5}])
    long = encode([{"event": "tx", "text": "x" * 60_000}] * 2)
    own = {"chainId": chain_id, "contract": "block", "height": 2, "events": [{"event": "block"}]}
    answer = {"reqId": "r", "kind": "account", "value": {"balanceUc": 5}}
    missed = {
        "reqId": "r",
        "kind": "events",
        "value": {"messages": [event_message(head, short, 0)]},
    }
    return (
        event_message(head, short, 0), event_message(head, long, 0), event_message(head, long, 1),
        own, answer, missed,
    )  # fmt: skip


@cache
def statements() -> tuple[bytes, ...]:
    chain_id = chain().chain_id
    return tuple(sign_message(words, cb.VALIDATORS[0], chain_id) for words in event_words())


@cache
def checkpoint() -> Checkpoint:
    stored = chain().store.get_block(2)
    assert stored is not None
    return checkpoint_at(stored.header, chain().epoch.validators)


@cache
def checkpoints() -> tuple[bytes, ...]:
    return (encode(checkpoint_json(checkpoint())),)


@cache
def geneses() -> tuple[bytes, ...]:
    return (genesis_bytes(chain().genesis),)


@cache
def answers() -> tuple[bytes, ...]:
    """What nodes answer to nodes."""
    store = chain().store
    proposal = next(raw for kind, raw in objects() if kind is types.Proposal)
    certificates = [raw for kind, raw in objects() if kind is types.Certificate]
    blocks = fetch.answer_blocks(store, "0")
    pack = msgspec.msgpack.encode
    found = (
        blocks, pack(["proposal", proposal]), pack(["certificates", certificates]),
        pack(["bodies", list(transactions()[:3])]),
    )  # fmt: skip
    return tuple(one for one in found if one is not None)


@cache
def questions() -> tuple[bytes, ...]:
    txid = chain().store.get_block(1).txids[0].hex()  # type: ignore[union-attr]
    keys = {
        "blocks": "0", "bodies": f"{txid},{txid}", "proposal": txid, "nullified": "0/1/9",
        "events": "market/0/0", "account": HOME.id, "tx": f"{txid}/{HOME.id}/0", "tip": "",
        "proof": f"account/{HOME.id}", "anchor": f"next/0/{chain().epoch.validators.hash.hex()}",
    }  # fmt: skip
    more = {"proof": f"receipt-of/{txid}", "anchor": "at/1"}
    pairs = [*keys.items(), *more.items(), ("proof", f"inclusion-of/{txid}")]
    return tuple(encode({"reqId": "r", "kind": kind, "key": key}) for kind, key in pairs)


@cache
def csmdb_requests() -> tuple[bytes, ...]:
    """Operation and parameters, not yet signed and sealed."""
    box = to_text(BOX.public)
    meter = msgspec.to_builtins(certificate())["meter"][0]
    asked: Any = (
        ("enroll", {"claimCode": "c", "key": to_text(HOME.public), "boxKey": box, "meter": meter}),
        ("grant-addresses", {"addresses": [{"key": to_text(OTHER_HOME.public),
                                            "meterKey": to_text(METER.public)}],
                             "startSlot": 5, "endSlot": 9, "boxKey": box}),
        ("grant-validator", {"validator": HOME.id, "meterKey": to_text(METER.public)}),
        ("list-meters", {"after": ""}),
    )  # fmt: skip
    return tuple(encode({"operation": name, "parameters": given}) for name, given in asked)
