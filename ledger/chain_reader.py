"""
What a chain folder says, for people: the answers of the HTTP API that need no running node.

Each function reads from a store that is open for reading only, in one snapshot (`reading`), so a
node may go on writing. Nothing here executes or verifies; `ledger verify` and the proofs do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ledger import types
from ledger.api_models import (
    Account,
    Block,
    BlockDetail,
    BlockPage,
    BlockTransaction,
    EpochFacts,
    EvidenceItem,
    EvidenceList,
    FinalityFacts,
    NodeFacts,
    OperationFacts,
    Signer,
    Status,
    TransactionDetail,
    Validator,
    ValidatorList,
    VoteFacts,
)
from ledger.contracts import keys
from ledger.genesis import CPF_STALE_SLOTS, Genesis
from ledger.schedule import Running, running_epoch
from ledger.store import LedgerStore, StoredBlock
from wire.envelope import date_text
from wire.transactions import parse_transaction

MAX_ITEMS = 100
"""Transactions in one answer about a block."""
MAX_EVENTS = 200
MAX_EVIDENCE = 200
MAX_HEADERS = 2000
"""Read to count who led in the running epoch."""


@contextmanager
def reading(folder: Path) -> Iterator[LedgerStore]:
    """
    A folder's store as it is at this moment.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    with closing(LedgerStore.in_folder(folder, read_only=True)) as store:
        store.snapshot()
        yield store


# --- The chain ------------------------------------------------------------------------------------


def status(genesis: Genesis, store: LedgerStore, node: NodeFacts | None = None) -> Status:
    """Where the chain stands."""
    tip = store.tip
    header = tip.header if tip is not None else None
    time_ms = header.time_ms if header is not None else genesis.start_ms
    epoch = _running(genesis, store).epoch
    members = _members(store, epoch)
    n = len(members) or len(genesis.validators)
    return Status(
        chain_id=genesis.chain_id,
        market=genesis.market,
        height=header.height if header is not None else 0,
        oldest=store.floor + 1,
        block_hash=(tip.hash if tip is not None else types.genesis_hash(genesis.chain_id)).hex(),
        epoch=epoch,
        time_ms=time_ms,
        time=date_text(time_ms),
        slot=genesis.grid.slot_at(time_ms),
        proposer=header.proposer if header is not None else "",
        state_root=tip.state_root.hex() if tip is not None else "",
        validators=n,
        quorum=(n + (n - 1) // 3) // 2 + 1,
        node=node,
    )


def blocks(store: LedgerStore, start: int | None, limit: int) -> BlockPage:
    """Up to `limit` blocks from `start` (by default the tip) down."""
    tip = store.height
    found = store.last_blocks(tip if start is None else start, limit)
    lowest = found[-1].height if found else 0
    return BlockPage(
        tip=tip,
        blocks=[Block(**_summary(one)) for one in found],
        next=lowest - 1 if lowest > store.floor + 1 else None,
    )


def block(store: LedgerStore, height: int, offset: int = 0) -> BlockDetail | None:
    """A block, with its transactions from `offset` on."""
    found = store.get_block(height)
    if found is None:
        return None
    header, events = found.header, store.events(height)
    page = slice(offset, offset + MAX_ITEMS)
    return BlockDetail(
        **_summary(found),
        parent_hash=header.parent_hash.hex(),
        tx_root=header.tx_root.hex(),
        exec_height=header.exec_height,
        header_state_root=header.state_root.hex(),
        header_receipts_root=header.receipts_root.hex(),
        state_root=found.state_root.hex(),
        validators_hash=header.validators_hash.hex(),
        schedule_root=header.schedule_root.hex(),
        finality=_finality(store, found),
        items=[_item(store, receipt) for receipt in store.receipts(height)[page]],
        events=events[:MAX_EVENTS],
        event_count=len(events),
    )


def transaction(store: LedgerStore, txid: bytes) -> TransactionDetail | None:
    """A transaction and what became of it."""
    raw = store.get_body(txid)
    if raw is None:
        return None
    tx = parse_transaction(raw)
    found = store.receipt(txid)
    height, receipt = found if found is not None else (None, None)
    holder = store.get_block(height) if height is not None else None
    codes = receipt["codes"] if receipt is not None else []
    return TransactionDetail(
        txid=txid.hex(),
        state="pending" if height is None else "final",
        height=height,
        time_ms=holder.header.time_ms if holder is not None else None,
        index=holder.txids.index(txid) if holder is not None else None,
        sender=tx.sender,
        nonce=tx.nonce,
        expires_slot=tx.expires_slot,
        dated=date_text(tx.envelope.date_ms),
        code=receipt["code"] if receipt is not None else None,
        operations=[
            OperationFacts(
                op=one["op"],
                code=codes[index] if index < len(codes) else None,
                fields={name: value for name, value in one.items() if name != "op"},
            )
            for index, one in enumerate(tx.operations)
        ],
        size_bytes=len(raw),
    )


def account(store: LedgerStore, address: str) -> Account:
    """What the chain knows of an address."""
    money = store.state_row(keys.account(address))
    grant = store.state_row(keys.grant(address))
    validator = store.state_row(keys.validator(address))
    row = money or {}
    return Account(
        address=address,
        known=any(one is not None for one in (money, grant, validator)),
        balance_uc=row.get("balanceUc", 0),
        locked_uc=row.get("lockedUc", 0),
        nonce=row.get("nonce", 0),
        participation=store.state_row(keys.participation(address)) or "TE",
        grant=grant,
        assets=store.state_row(keys.asset(address)),
        validator=validator,
    )


# --- Validators -----------------------------------------------------------------------------------


def validators(genesis: Genesis, store: LedgerStore) -> ValidatorList:
    """The validators of the running epoch, their CPF and their share in the schedule."""
    running = _running(genesis, store)
    turns, length = Counter(running.schedule), len(running.schedule)
    tip = store.tip
    slot = genesis.grid.slot_at(tip.header.time_ms if tip is not None else genesis.start_ms)
    led: Counter[str] = Counter()
    last: dict[str, int] = {}
    for one in store.last_blocks(store.height, MAX_HEADERS):
        if one.height <= running.base_height:
            break
        proposer = one.header.proposer
        led[proposer] += 1
        last.setdefault(proposer, one.height)
    found = []
    for index, (name, key, controller) in enumerate(_members(store, running.epoch)):
        row = store.state_row(keys.validator(name)) or {}
        said = store.state_row(keys.cpf(name))
        found.append(
            Validator(
                index=index,
                id=name,
                key=key,
                controller=controller,
                status=row.get("status", "leaving"),
                since_epoch=row.get("sinceEpoch"),
                until_epoch=row.get("untilEpoch") or None,
                founder=bool(row.get("founder", False)),
                cpf_q16=said["cpfQ16"] if said else None,
                cpf_window=[said["startSlot"], said["endSlot"]] if said else None,
                eligible=bool(
                    said and said["eligible"] and said["endSlot"] + CPF_STALE_SLOTS >= slot
                ),
                turns=turns[index],
                share_permille=turns[index] * 1000 // length if length else 0,
                blocks=led[name],
                last_led=last.get(name),
            )
        )
    return ValidatorList(epoch=running.epoch, schedule_length=length, validators=found)


def validator_ids(genesis: Genesis, store: LedgerStore) -> list[str]:
    """Identities of the running epoch's validators, by index."""
    return [name for name, _, _ in _members(store, _running(genesis, store).epoch)]


def epoch(genesis: Genesis, store: LedgerStore) -> EpochFacts:
    """The running epoch."""
    running = _running(genesis, store)
    return EpochFacts(
        epoch=running.epoch,
        base_height=running.base_height,
        base_time_ms=running.base_time_ms,
        base_time=date_text(running.base_time_ms),
        mode=genesis.poe.mode,
        schedule=list(running.schedule),
        validators=[name for name, _, _ in _members(store, running.epoch)],
        next_validators=[name for name, _, _ in _members(store, running.epoch + 1)],
        seed=store.state_row(keys.SEED) or "",
    )


def evidence(store: LedgerStore, *, judged: bool | None = None) -> EvidenceList:
    """Pairs of votes that exclude each other, as this node found them; the newest first."""
    pairs = store.evidence(judged=judged)
    found = []
    for first, second, done in reversed(pairs[-MAX_EVIDENCE:]):
        members = _members(store, first.epoch)
        known = first.validator < len(members)
        found.append(
            EvidenceItem(
                epoch=first.epoch,
                view=first.view,
                index=first.validator,
                validator=members[first.validator][0] if known else None,
                first=_vote(first),
                second=_vote(second),
                judged=done,
            )
        )
    return EvidenceList(evidence=found, total=len(pairs))


# --- Parts ----------------------------------------------------------------------------------------


def _summary(found: StoredBlock) -> dict[str, Any]:
    header = found.header
    return {
        "height": found.height,
        "hash": found.hash.hex(),
        "epoch": header.epoch,
        "view": header.view,
        "time_ms": header.time_ms,
        "time": date_text(header.time_ms),
        "proposer": header.proposer,
        "transactions": header.n_tx,
        "seal": header.seal,
    }


def _item(store: LedgerStore, receipt: dict[str, Any]) -> BlockTransaction:
    raw = store.get_body(bytes.fromhex(receipt["txid"]))
    operations = parse_transaction(raw).operations if raw is not None else ()
    return BlockTransaction(
        txid=receipt["txid"],
        sender=receipt["sender"],
        code=receipt["code"],
        operations=[one["op"] for one in operations],
        codes=receipt["codes"],
    )


def _finality(store: LedgerStore, found: StoredBlock) -> FinalityFacts | None:
    later: StoredBlock | None = found
    for _ in range(types.MAX_PATH):
        if later is None or later.certificate:
            break
        later = store.get_block(later.height + 1)
    if later is None or not later.certificate:
        return None
    finality = types.decode(types.Finality, later.certificate)
    members = _members(store, finality.certificate.epoch)
    return FinalityFacts(
        height=finality.path[-1].height if finality.path else later.height,
        view=finality.certificate.view,
        signers=[
            Signer(index=index, id=members[index][0] if index < len(members) else None)
            for index in types.signers(finality.certificate)
        ],
    )


def _vote(vote: types.Vote) -> VoteFacts:
    return VoteFacts(
        kind=vote.kind.name.lower(),
        block_hash=vote.block_hash.hex(),
        signature=vote.signature.hex(),
    )


def _running(genesis: Genesis, store: LedgerStore) -> Running:
    """The epoch a node of this folder works in; without one yet, that of the tip."""
    found = running_epoch(store)
    if found is not None:
        return found
    tip = store.tip
    number = tip.header.epoch + tip.header.seal if tip is not None else 0
    return Running(number, (), 0, genesis.start_ms)


def _members(store: LedgerStore, number: int) -> list[list[str]]:
    """[id, key, controller] of an epoch's validators; nothing when they are not known."""
    return store.state_row(keys.validator_set(number)) or []
