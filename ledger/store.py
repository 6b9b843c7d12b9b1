"""
The ledger on disk: one SQLite file with blocks, bodies, receipts, events and the present state.

A block is written in one transaction, with everything that its execution changed, so the file is
always at a block boundary. WAL with synchronous=NORMAL: a power cut may lose the last blocks, never
tear one, and a lost block is executed again from the network. Bodies of blocks that are still being
voted on must survive (`keep_bodies` waits for the disk): a validator vouches for having them.

Blocks up to `LedgerStore.floor` are not here: they were dropped (`ledger.pruning`), or the folder
began with a snapshot (`ledger.joining`). Of their seals, header and finality stay, for light
clients.

Tables: blocks, bodies, receipts, events, state, pending, meta, evidence, seals, used_nonces.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlite_utils import Database, Migrations

from ledger import types
from wire.canonical import decode, encode, encode_checked
from wire.transactions import parse_transaction

FILE_NAME = "ledger.sqlite"
GENESIS = "genesis"
HISTORY = "history"
MAX_ROW_BYTES = 64 * 1024 * 1024
_HASH = 32
_ACCOUNT = "account/"
_LAST = "\U0010ffff"
"""Sorts after every character of a key."""
_BLOCK_COLUMNS = (
    "SELECT height, hash, header, certificate, txids, state_root, receipts_root FROM blocks"
)
_AUDIT = {
    "blocks": "SELECT * FROM blocks {where} ORDER BY height",
    "bodies": "SELECT * FROM bodies {where} ORDER BY height, position",
    "receipts": "SELECT * FROM receipts {where} ORDER BY height",
    "events": "SELECT * FROM events {where} ORDER BY height, contract",
    "state": "SELECT * FROM state {where} ORDER BY key",
    "pending": "SELECT * FROM pending {where} ORDER BY txid",
    "meta": "SELECT * FROM meta {where} ORDER BY key",
}
_SCHEMA = Migrations("hearthgrid-ledger")


@_SCHEMA()
def tables(db: Database) -> None:
    """The first schema."""
    for statement in (
        "CREATE TABLE blocks (height INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,"
        " header BLOB NOT NULL, certificate BLOB NOT NULL, txids BLOB NOT NULL,"
        " state_root BLOB NOT NULL, receipts_root BLOB NOT NULL)",
        "CREATE TABLE bodies (txid BLOB PRIMARY KEY, height INTEGER NOT NULL,"
        " position INTEGER NOT NULL, raw BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE receipts (height INTEGER PRIMARY KEY, receipts BLOB NOT NULL)",
        "CREATE TABLE events (contract TEXT, height INTEGER, events BLOB NOT NULL,"
        " PRIMARY KEY (contract, height)) WITHOUT ROWID",
        "CREATE INDEX events_height ON events (height)",
        "CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE pending (txid BLOB PRIMARY KEY, raw BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    ):
        db.execute(statement)


@_SCHEMA()
def evidence(db: Database) -> None:
    """What this node found out about others."""
    db.execute(
        "CREATE TABLE evidence (epoch INTEGER, validator INTEGER, first BLOB NOT NULL,"
        " second BLOB NOT NULL, judged INTEGER NOT NULL DEFAULT 0,"
        " PRIMARY KEY (epoch, validator)) WITHOUT ROWID"
    )


@_SCHEMA()
def history(db: Database) -> None:
    """What stays of blocks that are not here."""
    db.execute(
        "CREATE TABLE seals (height INTEGER PRIMARY KEY, header BLOB NOT NULL,"
        " certificate BLOB NOT NULL, validators BLOB NOT NULL, next_validators BLOB NOT NULL,"
        " keys BLOB NOT NULL)"
    )
    db.execute(
        "CREATE TABLE used_nonces (address TEXT PRIMARY KEY, nonce INTEGER NOT NULL) WITHOUT ROWID"
    )


@_SCHEMA()
def bodies_in_order(db: Database) -> None:
    """
    Bodies lie in the order of the chain, and only their ids in the order of the ids.

    By id, every body of a block went to a page of its own, and a block's bodies were found by
    reading all.
    """
    for statement in (
        "CREATE TABLE ordered (txid BLOB NOT NULL, height INTEGER NOT NULL,"
        " position INTEGER NOT NULL, raw BLOB NOT NULL, PRIMARY KEY (height, position))"
        " WITHOUT ROWID",
        "INSERT INTO ordered SELECT * FROM bodies ORDER BY height, position",
        "DROP TABLE bodies",
        "ALTER TABLE ordered RENAME TO bodies",
        "CREATE UNIQUE INDEX bodies_txid ON bodies (txid)",
    ):
        db.execute(statement)


@dataclass(frozen=True, slots=True)
class OldSeal:
    """A seal block that is not here any more, as far as light clients need it."""

    header: types.Header
    finality: types.Finality
    keys: tuple[bytes, ...] = ()
    """Of the validators it brings in, by index; empty when it changes none."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """An executed block as it lies on disk."""

    height: int
    hash: bytes
    header_bytes: bytes
    certificate: bytes
    """Its encoded `Finality`; empty when a later block's finality covers it."""
    txids: tuple[bytes, ...]
    state_root: bytes
    """After executing this block."""
    receipts_root: bytes

    @property
    def header(self) -> types.Header:
        """The decoded header."""
        return types.decode(types.Header, self.header_bytes)


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What one executed block writes."""

    block: StoredBlock
    bodies: Sequence[tuple[bytes, bytes]]
    """(txid, raw) in block order."""
    receipts: list[dict[str, Any]]
    events: Mapping[str, list[dict[str, Any]]]
    """By contract."""
    writes: Mapping[str, bytes | None]
    """State rows in canonical form; None removes."""


class LedgerStore:
    """
    The file of a chain folder.

    Args:
        path: the file, or ":memory:"
        read_only: open an existing file without changing it
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path = None if str(path) == ":memory:" else Path(path)
        """None in memory."""
        self._known_history: dict[str, Any] | None = None
        if read_only:
            uri = f"{Path(path).absolute().as_uri()}?mode=ro"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            return
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of use in a new file only
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA busy_timeout=5000")
        _SCHEMA.apply(Database(self._db))

    @classmethod
    def in_folder(cls, folder: Path, *, read_only: bool = False) -> LedgerStore:
        """The store of a chain folder."""
        return cls(folder / FILE_NAME, read_only=read_only)

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    # --- blocks -----------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """Height of the last executed block; 0 before the first."""
        row = self._db.execute("SELECT max(height) FROM blocks").fetchone()
        return int(row[0] or 0)

    @property
    def tip(self) -> StoredBlock | None:
        """The last executed block."""
        return self.get_block(self.height)

    def get_block(self, height: int) -> StoredBlock | None:
        """The block of a height."""
        return self._block(_BLOCK_COLUMNS + " WHERE height = ?", height)

    def block_by_hash(self, block_hash: bytes) -> StoredBlock | None:
        """The block of a hash."""
        return self._block(_BLOCK_COLUMNS + " WHERE hash = ?", block_hash)

    def get_body(self, txid: bytes) -> bytes | None:
        """The raw transaction of an executed or kept txid."""
        for table in ("bodies", "pending"):
            row = self._db.execute(
                f"SELECT raw FROM {table} WHERE txid = ?",  # noqa: S608 - a literal
                (txid,),
            ).fetchone()
            if row is not None:
                return bytes(row[0])
        return None

    def executed_at(self, txid: bytes) -> int | None:
        """Height at which a transaction was executed."""
        row = self._db.execute("SELECT height FROM bodies WHERE txid = ?", (txid,)).fetchone()
        return None if row is None else int(row[0])

    def receipts(self, height: int) -> list[dict[str, Any]]:
        """The receipts of a block, in transaction order."""
        row = self._db.execute(
            "SELECT receipts FROM receipts WHERE height = ?", (height,)
        ).fetchone()
        return [] if row is None else _read(row[0])

    def receipt(self, txid: bytes) -> tuple[int, dict[str, Any]] | None:
        """Height and receipt of an executed transaction."""
        height = self.executed_at(txid)
        if height is None:
            return None
        name = txid.hex()
        return height, next(r for r in self.receipts(height) if r["txid"] == name)

    def last_blocks(self, height: int, limit: int) -> list[StoredBlock]:
        """Up to `limit` blocks from `height` down, the newest first."""
        rows = self._db.execute(
            _BLOCK_COLUMNS + " WHERE height <= ? ORDER BY height DESC LIMIT ?", (height, limit)
        )
        return [stored_block(row) for row in rows]

    # --- events -----------------------------------------------------------------------------------

    def events(self, height: int, contract: str | None = None) -> list[dict[str, Any]]:
        """The events of a block, of one contract or of all (in contract order)."""
        rows = self._db.execute(
            "SELECT events FROM events WHERE height = ?1 AND (?2 IS NULL OR contract = ?2)"
            " ORDER BY contract",
            (height, contract),
        )
        return [event for row in rows for event in _read(row[0])]

    def event_bytes(self, height: int, contract: str) -> bytes:
        """The canonical bytes of the list of a contract's events in a block."""
        row = self._db.execute(
            "SELECT events FROM events WHERE height = ? AND contract = ?", (height, contract)
        ).fetchone()
        return b"[]" if row is None else bytes(row[0])

    def previous_event_height(self, contract: str, height: int) -> int:
        """The last height below `height` with events of a contract; 0 if there is none."""
        row = self._db.execute(
            "SELECT max(height) FROM events WHERE contract = ? AND height < ?", (contract, height)
        ).fetchone()
        return int(row[0] or self._event_heads().get(contract, 0))

    def event_heights(self, contract: str, above: int, limit: int) -> list[int]:
        """
        Up to `limit` heights above `above` with events of a contract, ascending.

        Nothing when the next one is not here any more: who follows without gaps must ask a node
        that keeps everything.
        """
        if above < self._event_heads().get(contract, 0):
            return []
        rows = self._db.execute(
            "SELECT height FROM events WHERE contract = ? AND height > ? ORDER BY height LIMIT ?",
            (contract, above, limit),
        )
        return [int(row[0]) for row in rows]

    # --- state ------------------------------------------------------------------------------------

    def state_rows(self) -> Iterator[tuple[str, Any]]:
        """All rows of the state, in key order."""
        for key, value in self._db.execute("SELECT key, value FROM state ORDER BY key"):
            yield key, _read(value)

    def state_row(self, key: str) -> Any | None:
        """One row of the state, or None."""
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else _read(row[0])

    def meta(self, key: str) -> bytes | None:
        """A fact about the file."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    # --- history that is not here -----------------------------------------------------------------

    @property
    def floor(self) -> int:
        """Blocks up to this height are not here in full; 0 when all are."""
        return int(self._history().get("floor", 0))

    @property
    def joined_at(self) -> dict[str, Any] | None:
        """The checkpoint (as JSON) that was trusted when the folder began with a snapshot."""
        return self._history().get("trust")

    def used_nonce(self, address: str) -> int:
        """Nonces of an address below this one were used up in blocks that are not here."""
        row = self._db.execute(
            "SELECT nonce FROM used_nonces WHERE address = ?", (address,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def old_seals(self) -> Iterator[OldSeal]:
        """What is kept of seals that are not here, ascending."""
        query = "SELECT header, certificate, keys FROM seals ORDER BY height"
        return (_old_seal(row) for row in self._db.execute(query))

    def old_seal(self, height: int) -> OldSeal | None:
        """The kept seal of a height."""
        row = self._db.execute(
            "SELECT header, certificate, keys FROM seals WHERE height = ?", (height,)
        ).fetchone()
        return None if row is None else _old_seal(row)

    def old_change(self, height: int, validators_hash: bytes) -> OldSeal | None:
        """The first kept seal from a height on that ends a set of validators."""
        row = self._db.execute(
            "SELECT header, certificate, keys FROM seals WHERE height >= ? AND validators = ?"
            " AND next_validators != validators ORDER BY height LIMIT 1",
            (height, validators_hash),
        ).fetchone()
        return None if row is None else _old_seal(row)

    def _history(self) -> dict[str, Any]:
        if self._known_history is None:
            raw = self.meta(HISTORY)
            self._known_history = {} if raw is None else decode(raw, MAX_ROW_BYTES)
        return self._known_history

    def _event_heads(self) -> dict[str, int]:
        heads: dict[str, int] = self._history().get("eventHeads", {})
        return heads

    def _put_history(self, history: dict[str, Any]) -> None:
        self._known_history = None
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (HISTORY, encode(history)))

    # --- writing ----------------------------------------------------------------------------------

    def write_genesis(self, genesis: bytes, writes: Mapping[str, bytes]) -> None:
        """Begin a chain: its genesis and the rows of height 0."""
        with self._atomic():
            self._db.execute("INSERT INTO meta VALUES (?, ?)", (GENESIS, genesis))
            self._put_state(writes)

    def write_block(self, record: BlockRecord) -> None:
        """Append an executed block; all of it or nothing."""
        block, height = record.block, record.block.height
        with self._atomic():
            self._insert_block(block)
            self._db.executemany(
                # a body that is here already must not stop the chain, whoever let it in twice
                "INSERT OR IGNORE INTO bodies VALUES (?, ?, ?, ?)",
                [(txid, height, i, raw) for i, (txid, raw) in enumerate(record.bodies)],
            )
            self._db.executemany(
                "DELETE FROM pending WHERE txid = ?", [(txid,) for txid, _ in record.bodies]
            )
            self._db.execute(
                "INSERT INTO receipts VALUES (?, ?)", (height, encode_checked(record.receipts))
            )
            self._db.executemany(
                "INSERT INTO events VALUES (?, ?, ?)",
                [(name, height, encode(events)) for name, events in record.events.items()],
            )
            self._put_state(record.writes)

    def write_snapshot(
        self,
        genesis: bytes,
        rows: Iterable[tuple[str, bytes]],
        tip: StoredBlock,
        receipts: Mapping[int, list[dict[str, Any]]],
        *,
        event_heads: Mapping[str, int],
        trust: dict[str, Any],
        seals: Iterable[OldSeal],
    ) -> int:
        """
        Begin in the middle of a chain, in an empty file; all of it or nothing.

        Args:
            rows: the state after `tip`, canonical values
            receipts: by height, those that no header up to `tip` answers for
            event_heads: by contract, the last height with events
            trust: the checkpoint (as JSON) from which the way to `tip` was checked
            seals: on that way

        Returns:
            The number of rows.
        """
        with self._atomic():
            self._db.execute("INSERT INTO meta VALUES (?, ?)", (GENESIS, genesis))
            self._put_history(
                {"floor": tip.height, "eventHeads": dict(event_heads), "trust": trust}
            )
            self._insert_block(tip)
            self._db.executemany(
                "INSERT INTO receipts VALUES (?, ?)",
                [(height, encode(found)) for height, found in receipts.items()],
            )
            count = self._db.executemany("INSERT INTO state VALUES (?, ?)", rows).rowcount
            self._db.execute(
                "INSERT INTO used_nonces SELECT substr(key, length(:under) + 1),"
                " json_extract(CAST(value AS TEXT), '$.nonce') FROM state"
                " WHERE key >= :under AND key < :under || :last",
                {"under": _ACCOUNT, "last": _LAST},
            )
            for seal in seals:
                self._put_seal(seal)
            return max(count, 0)

    def drop_blocks(
        self, up_to: int, keys_of: Callable[[int], tuple[bytes, ...]], contracts: Iterable[str]
    ) -> None:
        """
        Drop blocks up to a height with all that hangs on them; that height is the new floor.

        Headers and finality of seals stay. One transaction: keep the step small.

        Args:
            keys_of: the keys of the validators that the seal of a height brings in, if it does
            contracts: whose events there are
        """
        floor, heads = self.floor, dict(self._event_heads())
        for contract in contracts:
            heads[contract] = self.previous_event_height(contract, up_to + 1)
        blocks = self.last_blocks(up_to, max(0, up_to - floor))
        with self._atomic():
            for block in reversed(blocks):
                if block.header.seal and block.height > floor:
                    finality = types.decode(types.Finality, block.certificate)
                    self._put_seal(OldSeal(block.header, finality, keys_of(block.height)))
                self._use_nonces(block.txids)
                self._db.executemany(
                    "DELETE FROM bodies WHERE txid = ?", [(txid,) for txid in block.txids]
                )
            for table in ("blocks", "receipts", "events"):
                self._db.execute(f"DELETE FROM {table} WHERE height <= ?", (up_to,))  # noqa: S608
            self._put_history({**self._history(), "floor": up_to, "eventHeads": heads})

    def shrink(self, pages: int) -> int:
        """Give up to `pages` free pages of the file back to the disk; how many are still free."""
        self._db.execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()
        if self._db.execute("PRAGMA auto_vacuum").fetchone()[0] == 0:
            return 0  # an older file: free pages are used again, but stay
        return int(self._db.execute("PRAGMA freelist_count").fetchone()[0])

    def checkpoint(self) -> None:
        """Bring everything from the write-ahead log into the file itself."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def keep_bodies(self, bodies: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep (txid, raw) of transactions in blocks that are voted on; on disk when it returns."""
        rows = list(bodies)
        if not rows:
            return
        with self._durable():
            self._db.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?)", rows)

    def kept_bodies(self) -> list[bytes]:
        """Raw transactions kept and not executed yet, to fill a mempool after a restart."""
        return [bytes(row[0]) for row in self._db.execute("SELECT raw FROM pending ORDER BY txid")]

    def forget_bodies(self, txids: Iterable[bytes]) -> None:
        """Drop kept bodies that can never be executed."""
        with self._atomic():
            self._db.executemany("DELETE FROM pending WHERE txid = ?", [(t,) for t in txids])

    def keep_evidence(self, first: types.Vote, second: types.Vote) -> bool:
        """
        Keep two votes that exclude each other: the first such pair of a validator and epoch.

        Returns:
            True when there was none before.
        """
        row = (first.epoch, first.validator, types.encode(first), types.encode(second))
        with self._durable():
            cursor = self._db.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?, 0)", row)
            return cursor.rowcount == 1

    def evidence(self, *, judged: bool | None = None) -> list[tuple[types.Vote, types.Vote, bool]]:
        """Pairs of votes, and whether the chain has judged them; all, or those that (not) are."""
        rows = self._db.execute(
            "SELECT first, second, judged FROM evidence WHERE judged = coalesce(?, judged)"
            " ORDER BY epoch, validator",
            (judged,),
        )
        return [
            (types.decode(types.Vote, first), types.decode(types.Vote, second), bool(done))
            for first, second, done in rows
        ]

    def evidence_judged(self, epoch: int, validator: int) -> None:
        """The chain has decided about this validator's votes."""
        with self._atomic():
            self._db.execute(
                "UPDATE evidence SET judged = 1 WHERE epoch = ? AND validator = ?",
                (epoch, validator),
            )

    def put_meta(self, key: str, value: bytes) -> None:
        """Set a fact about the file; it and every block before it are on disk when this returns."""
        with self._durable():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # --- audit ------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Read everything from now on as it is at this moment, while a node may go on writing."""
        self._db.execute("BEGIN")
        self._db.execute("SELECT 1 FROM meta").fetchone()

    def raw_rows(
        self,
        table: str,
        height: int | None = None,
        *,
        above: int | None = None,
        up_to: int | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of a table as they lie on disk, in key order; of some heights where it has them."""
        query = _AUDIT[table]
        for value, where in (
            (height, "WHERE height = ?"), (above, "WHERE height > ?"), (up_to, "WHERE height <= ?"),
        ):  # fmt: skip
            if value is not None:
                return iter(self._db.execute(query.format(where=where), (value,)))
        return iter(self._db.execute(query.format(where="")))

    def file_damage(self) -> str | None:
        """What SQLite finds wrong with the file itself, or None."""
        found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        return None if found == "ok" else str(found)

    def _insert_block(self, block: StoredBlock) -> None:
        self._db.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                block.height, block.hash, block.header_bytes, block.certificate,
                b"".join(block.txids), block.state_root, block.receipts_root,
            ),
        )  # fmt: skip

    def _put_seal(self, seal: OldSeal) -> None:
        header = seal.header
        self._db.execute(
            "INSERT OR REPLACE INTO seals VALUES (?, ?, ?, ?, ?, ?)",
            (
                header.height, types.encode(header), types.encode(seal.finality),
                header.validators_hash, header.next_validators_hash, b"".join(seal.keys),
            ),
        )  # fmt: skip

    def _use_nonces(self, txids: Iterable[bytes]) -> None:
        """Remember which nonces the bodies that go have used."""
        for txid in txids:
            row = self._db.execute("SELECT raw FROM bodies WHERE txid = ?", (txid,)).fetchone()
            if row is None:
                continue
            tx = parse_transaction(bytes(row[0]))
            self._db.execute(
                "INSERT INTO used_nonces VALUES (?, ?)"
                " ON CONFLICT (address) DO UPDATE SET nonce = max(nonce, excluded.nonce)",
                (tx.sender, tx.nonce + 1),
            )

    def _put_state(self, writes: Mapping[str, bytes | None]) -> None:
        gone = [(key,) for key, value in writes.items() if value is None]
        kept = [(key, value) for key, value in writes.items() if value is not None]
        self._db.executemany("DELETE FROM state WHERE key = ?", gone)
        self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", kept)

    def _block(self, query: str, value: int | bytes) -> StoredBlock | None:
        row = self._db.execute(query, (value,)).fetchone()
        return None if row is None else stored_block(row)

    @contextmanager
    def _durable(self) -> Iterator[None]:
        """One transaction, waited for until it and all before it are on the disk."""
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            with self._atomic():
                yield
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")

    @contextmanager
    def _atomic(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def stored_block(row: Sequence[Any]) -> StoredBlock:
    """A block from its row."""
    txids = bytes(row[4])
    return StoredBlock(
        height=int(row[0]),
        hash=bytes(row[1]),
        header_bytes=bytes(row[2]),
        certificate=bytes(row[3]),
        txids=tuple(txids[i : i + _HASH] for i in range(0, len(txids), _HASH)),
        state_root=bytes(row[5]),
        receipts_root=bytes(row[6]),
    )


def _old_seal(row: Sequence[Any]) -> OldSeal:
    keys = bytes(row[2])
    return OldSeal(
        types.decode(types.Header, bytes(row[0])),
        types.decode(types.Finality, bytes(row[1])),
        tuple(keys[i : i + _HASH] for i in range(0, len(keys), _HASH)),
    )


def _read(raw: bytes) -> Any:
    return decode(bytes(raw), MAX_ROW_BYTES)
