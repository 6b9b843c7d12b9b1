"""
The targets of fuzzing: one for every decoder of bytes from network, file or device.

A target takes any bytes and returns. What it promises: the bytes are a value, which encodes to the
same bytes where there is one canonical form, or they are refused by name (`WireError` with its
`Refusal`, `ConfigError`, or the package's own named error). Anything else that is raised is a find.

The same targets serve hypothesis (`test_decoders.py`) and the coverage-guided fuzzer (`run.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from fuzz import outer, seeds, services
from support import chain_builder as cb

from broker import packets
from broker.access import Trust, identify
from csmdb.csaf import read_advisory
from csmdb.product_names import is_product
from csmdb.versions import read_exact, read_range
from ledger import merkle, proofs, smt, types
from ledger.checkpoint import checkpoint_from_json, checkpoint_json, read_checkpoint
from ledger.client import Validators
from ledger.contracts.operations import read_operation
from ledger.event_chain import EventChain
from ledger.genesis import genesis_bytes, load_genesis, read_genesis_bytes
from ledger.protocol import decode_record, encode_record
from ledger.statements import (
    EventPart,
    join_parts,
    read_message,
    read_own_words,
    read_part,
    sign_message,
)
from ledger.wal import frame, read_entries
from sim.scenarios.vulnerable_meter import made_up
from wire import canonical, topics
from wire.certificates import (
    AddressGrant,
    Certificate,
    Token,
    ValidatorGrant,
    ValidatorLicence,
    check_validity,
    dump_text,
    load,
    parse,
)
from wire.enrolment import read_answer
from wire.envelope import parse_envelope
from wire.errors import ConfigError, Refusal, WireError
from wire.keys import from_text, seal_to, to_text
from wire.metering import CpfAttestation, Reading, Receipt, check_record, digest, load_record
from wire.tmi import bid_offer_operation
from wire.transactions import parse_transaction


@dataclass(frozen=True)
class Target:
    """Something that reads bytes."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    stateful: bool = False
    """Keeps state between runs, as the service behind it does."""


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """
    What `call` returns; None when it refuses by name.

    Raises:
        Exception: whatever is not a named refusal.
    """
    try:
        return call(*arguments)
    except WireError as error:
        assert type(error.refusal) is Refusal, error
        assert str(error).startswith(error.refusal.value)
        return None
    except ConfigError as error:
        assert str(error)
        return None


class Content:
    """Stands for a file with that content."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_bytes(self) -> bytes:
        return self._data

    def __str__(self) -> str:
        return "a-file"


def _file(data: bytes) -> Path:
    return cast(Path, Content(data))


# --- wire -----------------------------------------------------------------------------------------


def run_canonical(data: bytes) -> None:
    value = attempt(canonical.decode, data)
    if value is not None:
        assert canonical.encode(value) == data


def run_envelope(data: bytes) -> None:
    found = attempt(parse_envelope, data)
    if found is not None:
        envelope, signed = found
        again = {**envelope.unsigned(), "signature": envelope.signature}
        assert canonical.encode(again) == data and canonical.encode(envelope.unsigned()) == signed


def run_transaction(data: bytes) -> None:
    tx = attempt(parse_transaction, data)
    if tx is not None:
        assert tx.raw == data and 1 <= len(tx.operations) <= 64
        for operation in tx.operations:
            attempt(read_operation, operation)
            attempt(bid_offer_operation, operation, 1)


def run_operation(data: bytes) -> None:
    """Operations, the paper's spelling of a bid, and text with units."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        attempt(read_operation, value)
        attempt(bid_offer_operation, value, 1)


_KINDS = (Certificate, AddressGrant, ValidatorGrant, ValidatorLicence, Token)


def run_certificate(data: bytes) -> None:
    value = attempt(canonical.decode, data)
    text = data.decode(errors="surrogateescape")
    for kind in _KINDS:
        record = attempt(parse, kind, value)
        if record is not None:
            if isinstance(record, Certificate | ValidatorLicence):
                attempt(check_validity, record, seeds.NOW_MS)
            attempt(load, kind, value, cb.ISSUER.public, cb.MARKET)
        if attempt(parse, kind, text) is not None:
            assert dump_text(attempt(parse, kind, text)).encode() == data or "signature" not in text


def run_token(data: bytes) -> None:
    trust = Trust(cb.MARKET, cb.ISSUER.public)
    name = seeds.HOME.id
    text = data.decode(errors="surrogateescape")
    attempt(identify, name, name, text, trust, seeds.NOW_MS, seeds.NOW_MS)
    attempt(identify, text, text, text, trust, seeds.NOW_MS, seeds.NOW_MS)


def run_meter_record(data: bytes) -> None:
    value = attempt(canonical.decode, data)
    for kind in (Reading, Receipt, CpfAttestation):
        record = attempt(load_record, kind, value)
        if record is not None:
            attempt(check_record, record, seeds.METER.public, seeds.chain().chain_id)
            if isinstance(record, Reading):
                attempt(digest, record)


def run_text(data: bytes) -> None:
    """Topics, and base64url."""
    text = data.decode(errors="surrogateescape")
    topic = attempt(topics.parse, text)
    peer = topics.Peer(seeds.HOME.id, frozenset({"validator", "address"}))
    topics.may_publish(peer, text, cb.MARKET)
    topics.may_subscribe(peer, text, cb.MARKET)
    if topic is not None:
        assert topics.build(topic.market, topic.kind, topic.leaf) == text
    found = attempt(from_text, text)
    assert found is None or to_text(found) == text


def run_enrolment_answer(data: bytes) -> None:
    attempt(read_answer, data, seeds.BOX, cb.MARKET, cb.ISSUER.public)
    sealed = seal_to(seeds.BOX.public, data)
    attempt(read_answer, sealed, seeds.BOX, cb.MARKET, cb.ISSUER.public)


# --- ledger ---------------------------------------------------------------------------------------

_OBJECTS = (
    types.Header, types.Vote, types.Certificate, types.Justify, types.Proposal, types.Finality,
)  # fmt: skip


def run_types(data: bytes) -> None:
    validators, chain_id = seeds.chain().epoch.validators, seeds.chain().chain_id
    for kind in _OBJECTS:
        value = attempt(types.decode, kind, data)
        if value is None:
            continue
        assert types.encode(value) == data
        match value:
            case types.Header():
                types.header_hash(value)
            case types.Vote():
                types.verify_vote(value, validators, chain_id)
            case types.Certificate():
                types.signers(value)
                types.verify_certificate(value, validators, chain_id)
            case types.Justify():
                types.justify_hash(value)
            case types.Proposal():
                types.verify_vote(types.proposal_vote(value, 0), validators, chain_id)
                merkle.root(value.txids)
            case types.Finality():
                types.verify_finality(b"\0" * 32, value, validators, chain_id)


def run_proof(data: bytes) -> None:
    trust = seeds.checkpoint()
    proof = attempt(proofs.decode_proof, data)
    if proof is not None:
        assert proofs.encode(proof) == data
        fact = attempt(proofs.verify, proof, trust)
        if fact is not None:
            fact.to_json()
        if isinstance(proof, proofs.StateProof) and len(proof.siblings) % 32 == 0:
            path = smt.Proof(
                tuple(proof.siblings[i : i + 32] for i in range(0, len(proof.siblings), 32)),
                proof.other_path, proof.other_value_hash,
            )  # fmt: skip
            smt.verify(proof.header.state_root, smt.path_of(proof.key), b"\0" * 32, path)
        if isinstance(proof, proofs.InclusionProof):
            attempt(proofs._verify_inclusion, proof)
        if isinstance(proof, proofs.ReceiptProof):
            attempt(proofs._verify_receipt, proof)
        if isinstance(proof, proofs.StateProof):
            attempt(proofs._verify_row, proof)
    for kind in (proofs.Anchor, proofs.Evidence, proofs.Step):
        value: Any = attempt(proofs.decode, kind, data)
        if isinstance(value, proofs.Anchor):
            attempt(proofs.verify_anchor, value, trust)
        if isinstance(value, proofs.Step):
            attempt(value.following)
            attempt(proofs.verify_anchor, value.anchor, trust)


def run_log(data: bytes) -> None:
    """The vote log as a file, and each entry as a record."""
    end = 0
    for payload, end in read_entries(data):
        assert data[end - len(payload) - 8 : end] == frame(payload)
        attempt(decode_record, payload)
    assert end <= len(data)


def run_log_record(data: bytes) -> None:
    record = attempt(decode_record, data)
    if record is not None:
        encode_record(record)


def run_statement(data: bytes) -> None:
    """What anybody says, and the same words when a validator signs them."""
    chain_id = seeds.chain().chain_id
    keys = {one.id: one.public for one in cb.VALIDATORS}
    attempt(read_message, data, keys, chain_id)
    said = attempt(canonical.decode, data, 127 * 1024)
    attempt(read_part, said, chain_id)
    if isinstance(said, dict):
        said.pop("validator", None)
        said.pop("signature", None)
        raw = attempt(sign_message, said, cb.VALIDATORS[0], chain_id)
        found = attempt(read_message, raw, keys, chain_id) if raw else None
        if found is not None:
            part = attempt(read_part, found[2], chain_id)
            if part is not None:
                attempt(join_parts, [part.slice], part.digest)
            attempt(read_own_words, found[2], chain_id)
        attempt(Validators.from_json, said)


def run_event_chain(data: bytes) -> None:
    """Three bytes are one statement of one of four validators, two of which must agree."""
    counted = EventChain(None if len(data) % 2 else 0)
    for at in range(0, min(len(data), 3 * 2000) - 2, 3):
        who, place, shape = data[at : at + 3]
        height = place >> 3 & 15
        part = EventPart(
            contract="market", height=height + 1, previous=max(0, height - (place & 7)),
            part=min(shape & 3, shape >> 2 & 3), parts=(shape >> 2 & 3) + 1,
            digest="ab" if shape & 16 else "",
            slice=b"[]" if shape & 32 else b"x" * (shape & 127),
        )  # fmt: skip
        said = bytes((place, shape))
        attempt(counted.count, f"v{who & 3}", said, part, 2)
        attempt(counted.take)
        counted.missing()
        assert all(number <= 2048 for number in counted.pending.values())


def run_checkpoint(data: bytes) -> None:
    found = attempt(checkpoint_from_json, data)
    if found is not None:
        attempt(checkpoint_json, found)
    attempt(read_checkpoint, _file(data))


def run_genesis(data: bytes) -> None:
    found = attempt(load_genesis, _file(data))
    if found is not None:
        assert attempt(read_genesis_bytes, genesis_bytes(found)) == found
    attempt(read_genesis_bytes, data)


# --- csmdb ----------------------------------------------------------------------------------------


def run_advisory(data: bytes) -> None:
    """A CSAF document, and the versions it names."""
    found = attempt(read_advisory, data)
    if found is None:
        return
    assert attempt(read_advisory, found.text.encode()) == found
    for weakness in found.vulnerabilities:
        for product in (*weakness.affected, *weakness.fixed, *weakness.not_affected):
            is_product("Made up", "M1", product, ())
            assert product.versions.holds("1.0") in (True, False, None)


def run_version(data: bytes) -> None:
    """A range of versions, and a firmware."""
    text, _, firmware = data.decode(errors="surrogateescape").partition("\0")
    for read in (read_range, read_exact):
        found = attempt(read, text)
        assert found is None or found.holds(firmware) in (True, False, None)


_VERSIONS = (
    "< 3.03 BN 830", "<= 1.6", "vers:all/*", "D7.0.88", "vers:generic/>=1.0|<2.0|3.1",
    "prior to 4.0", "1.6 and earlier",
)  # fmt: skip


# --- broker ---------------------------------------------------------------------------------------


def run_packets(data: bytes) -> None:
    """A byte stream cut anywhere, and the packets in it."""
    splitter, whole = packets.Splitter(), packets.Splitter()
    cut = max(data[0] + 1, len(data) // 64) if data else 1
    pieces: list[tuple[int, bytes]] = []

    def feed_pieces() -> bool:
        for at in range(1, len(data), cut):
            pieces.extend(splitter.feed(data[at : at + cut]))
        return True

    fed = attempt(feed_pieces)
    found = attempt(lambda: list(whole.feed(data[1:])))
    assert (fed is None) == (found is None)
    assert found is None or found == pieces
    for first_byte, body in pieces[:64]:
        publish = attempt(packets.parse_publish, first_byte, body)
        if publish is not None and (first_byte >> 4) == packets.PUBLISH:
            head = packets.publish_head(
                publish.topic, len(publish.payload), publish.qos, publish.retain, False
            )
            number = publish.packet_id.to_bytes(2, "big") if publish.qos else b""
            assert next(packets.Splitter().feed(head + number + publish.payload))[1] == body
        for kind in (ConnectPacket, SubscribePacket, UnsubscribePacket):
            attempt(packets.decode_with, kind, first_byte, body)


def _packet_seeds() -> list[bytes]:
    return [b"\x03" + one for one in services.streams()]


def _objects() -> list[bytes]:
    return [raw for _, raw in seeds.objects()]


def _operation_seeds() -> list[bytes]:
    paper = {"bid": {"type": "buy", "energy": {"unit": "kWh", "value": "1.5"},
                     "price": {"unit": "cents", "value": "8.2"}}}  # fmt: skip
    return [msgspec.json.encode(one) for one in (*seeds.operations(), paper)]


def _text_seeds() -> list[bytes]:
    name = seeds.HOME.id
    found = [topics.build(cb.MARKET, kind, name if "<id>" in kind else "") for kind in topics.KINDS]
    return [one.encode() for one in (*found, to_text(b"\1" * 32), "hg/v1/test/tx/+")]


TARGETS = {
    target.name: target
    for target in (
        Target(
            "canonical", run_canonical, lambda: (*seeds.transactions(), *seeds.signed_records())
        ),
        Target("envelope", run_envelope, seeds.transactions),
        Target("transaction", run_transaction, seeds.transactions),
        Target("operation", run_operation, _operation_seeds),
        Target("certificate", run_certificate, seeds.signed_records),
        Target("token", run_token, seeds.tokens),
        Target("meter_record", run_meter_record, seeds.meter_records),
        Target("text", run_text, _text_seeds),
        Target("enrolment_answer", run_enrolment_answer, services.enrolment_answers),
        Target("types", run_types, _objects),
        Target("proof", run_proof, seeds.proof_bytes),
        Target("log", run_log, seeds.logs),
        Target("log_record", run_log_record, seeds.log_entries),
        Target(
            "statement",
            run_statement,
            lambda: (*seeds.statements(), *map(canonical.encode, seeds.event_words())),
        ),
        Target("event_chain", run_event_chain, lambda: [bytes(range(99)), b"\x00\x08\x20" * 9]),
        Target("checkpoint", run_checkpoint, seeds.checkpoints),
        Target("genesis", run_genesis, seeds.geneses),
        Target("advisory", run_advisory, lambda: [made_up()]),
        Target("version", run_version, lambda: [f"{one}\0v1.0".encode() for one in _VERSIONS]),
        Target("packets", run_packets, _packet_seeds),
        Target("gateway_rpc", services.run_gateway_rpc, services.rpc_lines),
        Target("provisioning", services.run_provisioning, services.provisionings),
        Target("profiles", services.run_profiles, services.profiles),
        Target("sunspec", services.run_sunspec, services.register_images),
        Target("modbus", services.run_modbus, services.modbus_answers, stateful=True),
        Target("client", services.run_client, services.client_messages, stateful=True),
        Target("node", services.run_node, services.node_messages, stateful=True),
        Target("execution", services.run_execution, services.blocks, stateful=True),
        Target("broker", services.run_broker, services.streams, stateful=True),
        Target("link", services.run_link, services.broker_streams, stateful=True),
        Target("csmdb", services.run_csmdb, seeds.csmdb_requests, stateful=True),
        Target("reading", services.run_reading, seeds.meter_records, stateful=True),
        *(Target(*row) for row in outer.ROWS),
    )
}
