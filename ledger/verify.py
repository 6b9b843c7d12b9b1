"""
The audit: believe nothing in a chain folder but its genesis, and do everything again.

Every stored block is checked (links, leader, finality, transaction root, every signature) and
executed again from the genesis in memory. What that gives has to be, row by row and byte by byte,
what the folder holds: blocks, bodies, receipts, events, state. The second execution passes the
invariants of money and energy of `ledger.execution` again.

One changed byte anywhere in them makes it fail with the height of the block it belongs to.

A folder that does not hold the whole chain (`ledger.pruning`, `ledger.joining`) is executed from
its oldest snapshot on, and the report says so (`ledger.verify_base`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ledger import types
from ledger.contracts import keys
from ledger.execution import ChainError, Ledger, money_uc
from ledger.genesis import Genesis, load_genesis
from ledger.protocol import Epoch
from ledger.schedule import META_KEY, Epochs
from ledger.store import FILE_NAME, GENESIS, HISTORY, LedgerStore, StoredBlock, stored_block
from ledger.verify_base import base_of
from wire.envelope import check_signature
from wire.errors import ConfigError, WireError
from wire.keys import Domain
from wire.transactions import Transaction, parse_transaction

__all__ = ["ChainError", "Report", "verify_folder"]

_PER_BLOCK = ("blocks", "bodies", "receipts", "events")


@dataclass(frozen=True, slots=True)
class Report:
    """What a valid chain holds."""

    chain_id: str
    height: int
    epochs: int
    txs: int
    operations: int
    """Of executed bundles, refused ones included."""
    signatures: int
    """Of transactions and finalizations, all verified."""
    balances_uc: int
    """Σ balances + locks + escrow + pool [µ¤]; equals the deposits."""
    deposits_uc: int
    energy_traded_wh: int
    """In double auctions and flexibility auctions."""
    residual_wh: int
    """Settled with the supervisor: what homes took beyond their contracts, less what they gave."""
    state_root: str
    executed_from: int = 0
    """Executed again from the state after this block on: 0 is the genesis, else a snapshot. Numbers
    of transactions, operations (but for the totals of the state) and signatures are of what was."""
    trusted: str = "genesis"
    """What the way to that state was checked from."""
    not_here: int = 0
    """Blocks up to this one are not in the folder."""


def verify_folder(path: Path, *, from_genesis: bool = False) -> Report:
    """
    Audit the chain in a folder (`genesis.json`, `ledger.sqlite`).

    Args:
        from_genesis: refuse a folder that does not hold the whole chain

    Raises:
        ChainError: names the height and what is wrong there.
        ConfigError: there is no chain in the folder, or not the whole one.
    """
    if not (path / FILE_NAME).exists():
        raise ConfigError(f"{path}: has no {FILE_NAME}; give the folder of a chain")
    genesis = load_genesis(path / "genesis.json")
    with _blame(0):
        stored = LedgerStore.in_folder(path, read_only=True)
    try:
        with _blame(0):
            floor = stored.floor
        if from_genesis and floor:
            raise ConfigError(
                f"{path}: blocks up to {floor} are not here. Verify without --from-genesis (from "
                "the oldest snapshot), or the folder of a node that keeps everything (--keep all)"
            )
        return _Audit(genesis, stored, floor).run()
    finally:
        stored.close()


class _Audit:
    """One pass over a chain."""

    def __init__(self, genesis: Genesis, stored: LedgerStore, floor: int) -> None:
        self._genesis = genesis
        self._stored = stored
        self._floor = floor
        self._replay = LedgerStore(":memory:")
        self._trusted = "genesis"
        self._last: types.Header | None = None
        if floor:
            with _blame(floor):
                base = base_of(genesis, stored, self._replay)
            self._ledger, self._last, self._trusted = base.ledger, base.seal, base.trusted
        else:
            self._ledger = Ledger.open(genesis, self._replay)
        self._base = self._ledger.executed_height
        self._epochs = Epochs(genesis, self._ledger, self._replay)
        self._epoch: Epoch = self._epochs.current()
        self._epoch_rows = [self._replay.meta(META_KEY)]
        """The kept epoch of the replay, and the one before it."""
        self._keys: dict[str, bytes] = {}
        self._unproven: int | None = None
        self._txs = self._signatures = 0

    def run(self) -> Report:
        """Check all blocks in order, then what must be left at the end."""
        with _blame(0):
            self._stored.snapshot()
            if (damage := self._stored.file_damage()) is not None:
                raise ChainError(0, f"the database file is damaged: {damage}")
            self._check_meta()
        height = self._base
        for height in self._heights():
            with _blame(height):
                self._check_block(height)
        if self._unproven is not None:
            raise ChainError(self._unproven, "nothing proves it final")
        with _blame(height):
            self._check_end(height)
        self._replay.close()
        return self._report(height)

    def _heights(self) -> Iterator[int]:
        with _blame(0):
            rows = self._stored.raw_rows("blocks", above=self._base)
            heights = [row[0] for row in rows]
        for expected, height in enumerate(heights, start=self._base + 1):
            if height != expected:
                raise ChainError(expected, "it is missing")
            yield expected

    # --- one block --------------------------------------------------------------------------------

    def _check_block(self, height: int) -> None:
        rows = list(self._stored.raw_rows("blocks", height))
        block = stored_block(rows[0])
        header = types.decode(types.Header, block.header_bytes)
        if header.height != height:
            raise ChainError(height, f"its header is of height {header.height}")
        self._check_leader(header)
        self._check_finality(header, block)
        txs = self._transactions(block)
        self._ledger.execute(header, txs, block.certificate)
        for table in _PER_BLOCK:
            self._compare(height, table, height)
        self._txs += len(txs)
        self._last = header
        if header.seal:
            finality = types.decode(types.Finality, block.certificate)
            self._epoch = self._epochs.after_seal(header, finality)
            self._epoch_rows = [self._replay.meta(META_KEY), self._epoch_rows[0]]

    def _check_leader(self, header: types.Header) -> None:
        epoch, height = self._epoch, header.height
        validators = epoch.validators
        if header.epoch != epoch.epoch:
            raise ChainError(height, f"it is of epoch {header.epoch}, not {epoch.epoch}")
        if header.validators_hash != validators.hash:
            raise ChainError(height, "its validators are not the epoch's")
        if header.schedule_root != epoch.schedule_root:
            raise ChainError(height, "its schedule is not what the CPFs make of the epoch")
        last = self._last
        same_epoch = last is not None and last.epoch == header.epoch
        if header.view <= (last.view if last is not None and same_epoch else 0):
            raise ChainError(height, "its view is not after its parent's")
        if header.proposer != validators.ids[epoch.leader(header.view)]:
            raise ChainError(height, "its proposer does not lead its view")
        grid = self._genesis.grid
        seal = grid.slot_at(header.time_ms) > grid.slot_at(epoch.base_time_ms)
        if header.seal != seal:
            raise ChainError(height, "its seal flag is wrong")
        following = self._epochs.next_validators(epoch.epoch)
        if header.next_validators_hash != (following.hash if seal else b""):
            raise ChainError(height, "its next validators are wrong")

    def _check_finality(self, header: types.Header, block: StoredBlock) -> None:
        height, validators = header.height, self._epoch.validators
        if not block.certificate:
            if header.seal:
                raise ChainError(height, "a seal needs its own finalization")
            self._unproven = height if self._unproven is None else self._unproven
            return
        finality = types.decode(types.Finality, block.certificate)
        certificate = finality.certificate
        block_hash = types.header_hash(header)
        last = finality.path[-1] if finality.path else header
        proven = types.verify_finality(block_hash, finality, validators, self._genesis.chain_id)
        if not proven or (certificate.epoch, certificate.view) != (last.epoch, last.view):
            raise ChainError(height, "its finalization does not prove it final")
        if certificate.epoch != header.epoch:
            raise ChainError(height, "its finalization is of another epoch")
        self._signatures += len(certificate.signatures)
        self._unproven = None

    def _transactions(self, block: StoredBlock) -> list[Transaction]:
        rows = list(self._stored.raw_rows("bodies", block.height))
        if [bytes(row[0]) for row in rows] != list(block.txids):
            raise ChainError(block.height, "the stored bodies are not those of its transactions")
        return [self._transaction(block.height, bytes(row[0]), bytes(row[3])) for row in rows]

    def _transaction(self, height: int, txid: bytes, raw: bytes) -> Transaction:
        tx = parse_transaction(raw)
        if tx.txid != txid:
            raise ChainError(height, f"body {txid.hex()[:16]} is of another transaction")
        public = self._ledger.sender_key(tx) or self._keys.get(tx.sender)
        if public is None:
            raise ChainError(height, f"transaction {txid.hex()[:16]} is of an unknown sender")
        check_signature(tx.envelope, tx.signed, public, Domain.TX, self._genesis.chain_id)
        self._keys[tx.sender] = public
        self._signatures += 1
        return tx

    # --- the end ----------------------------------------------------------------------------------

    def _check_end(self, height: int) -> None:
        for table in (*_PER_BLOCK, "state"):
            self._compare(height, table)
        for table in ("blocks", "receipts", "events") if self._floor else ():
            self._check_nothing_below(table)
        self._check_meta(end=True)
        for txid, raw in self._stored.raw_rows("pending"):
            if parse_transaction(bytes(raw)).txid != bytes(txid):
                raise ChainError(height + 1, "a kept body is of another transaction")

    def _check_nothing_below(self, table: str) -> None:
        """Nothing is left of blocks that are said not to be here."""
        up_to = self._floor
        if self._stored.joined_at is not None:
            up_to -= 1  # the first block itself is here, without bodies,
            if table == "receipts":
                return  # and what its next header answers for
        rows = self._stored.raw_rows(table, up_to=up_to)
        if next(rows, None) is not None:
            raise ChainError(self._floor, f"{table}: rows are left that should not be here")

    def _check_meta(self, *, end: bool = False) -> None:
        """The genesis in the file is the folder's; nothing is kept that we do not know."""
        rows = dict(self._stored.raw_rows("meta"))
        if rows.pop(GENESIS, None) != self._replay.meta(GENESIS):
            raise ChainError(0, "the store belongs to another genesis")
        if not end:
            return
        height = self._ledger.executed_height
        if self._floor:
            rows.pop(HISTORY, None)
        if META_KEY in rows and rows.pop(META_KEY) not in self._allowed_epochs():
            raise ChainError(height, "the kept epoch is not the chain's")
        if rows:
            raise ChainError(height, f"unknown facts are kept: {sorted(rows)[:4]}")

    def _allowed_epochs(self) -> list[bytes | None]:
        """A node that stopped right after a seal has not kept the next epoch yet."""
        at_seal = self._last is not None and self._last.seal
        return self._epoch_rows if at_seal else self._epoch_rows[:1]

    def _compare(self, height: int, table: str, only: int | None = None) -> None:
        above = self._base if only is None and table != "state" else None
        pairs = zip_longest(
            self._stored.raw_rows(table, only, above=above),
            self._replay.raw_rows(table, only, above=above),
        )
        for found, expected in pairs:
            if found != expected:
                raise ChainError(height, _difference(table, found, expected))

    def _report(self, height: int) -> Report:
        state = self._ledger.state
        totals: dict[str, Any] = state.get(keys.TOTALS) or {}
        balances_uc = money_uc(state)
        deposits_uc = totals["depositsUc"] - totals["withdrawalsUc"]
        if balances_uc != deposits_uc:
            raise ChainError(height, f"money: {balances_uc} µ¤ held, {deposits_uc} deposited")
        return Report(
            chain_id=self._genesis.chain_id,
            height=height,
            epochs=self._epoch.epoch + 1,
            txs=self._txs,
            operations=totals["operations"],
            signatures=self._signatures,
            balances_uc=balances_uc,
            deposits_uc=deposits_uc,
            energy_traded_wh=totals["tradedWh"],
            residual_wh=totals["residualWh"],
            state_root=self._ledger.state_root(height).hex(),
            executed_from=self._base,
            trusted=self._trusted,
            not_here=self._floor,
        )


@contextmanager
def _blame(height: int) -> Iterator[None]:
    """Turn whatever untrusted rows make our code raise into an error that names the block."""
    try:
        yield
    except ChainError:
        raise
    except WireError as error:
        raise ChainError(height, str(error)) from error
    except (sqlite3.Error, OSError) as error:
        raise ChainError(height, f"the database cannot be read: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AssertionError) as error:
        raise ChainError(height, f"a row has no valid form: {error!r}") from error


def _difference(table: str, found: tuple[Any, ...] | None, expected: tuple[Any, ...] | None) -> str:
    if found is None and expected is not None:
        return f"{table}: row {_name(expected)} is missing"
    if expected is None and found is not None:
        return f"{table}: row {_name(found)} should not be there"
    assert found is not None and expected is not None
    if table == "state" and found[0] != expected[0]:
        return f"state: keys differ at {_name(min(found, expected, key=lambda row: str(row[0])))}"
    return f"{table}: row {_name(expected)} differs from what execution gives"


def _name(row: tuple[Any, ...]) -> str:
    first = row[0]
    return first.hex()[:16] if isinstance(first, bytes) else repr(first)
