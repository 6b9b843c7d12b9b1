"""
The Store port on SQLite and in memory.

SQLite runs in WAL mode with synchronous=FULL by default: an outbox must survive a power cut.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sortedcontainers import SortedDict

from runtime.ports import Store


class SqliteStore:
    """
    Key-value rows of one SQLite file.

    Args:
        path: the file; its folder must exist
        synchronous: FULL for what cannot be made again, NORMAL for what can
    """

    def __init__(self, path: Path, synchronous: str = "FULL") -> None:
        if synchronous not in ("FULL", "NORMAL", "EXTRA"):
            raise ValueError(f"synchronous={synchronous!r}")
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={synchronous}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS kv"
            " (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
        )

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """One transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        row = self._db.execute("SELECT value FROM kv WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, value: bytes) -> None:
        """Set `key`."""
        self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def delete(self, key: str) -> None:
        """Remove `key`."""
        self._db.execute("DELETE FROM kv WHERE key = ?", (key,))

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Keys with `prefix`, in order."""
        rows = self._db.execute(
            "SELECT key, value FROM kv WHERE key >= ? AND key < ? ORDER BY key",
            (prefix, prefix + "\U0010ffff"),
        ).fetchall()
        yield from rows

    def close(self) -> None:
        """Release the file."""
        self._db.close()


class PartOfStore:
    """
    A part of a store, under a prefix of its own; transactions are those of the whole.

    Args:
        store: the whole
        prefix: what all keys of the part begin with in it
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def atomic(self) -> AbstractContextManager[None]:
        """One transaction of the whole."""
        return self._store.atomic()

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        return self._store.get(self._prefix + key)

    def put(self, key: str, value: bytes) -> None:
        """Set `key`."""
        self._store.put(self._prefix + key, value)

    def delete(self, key: str) -> None:
        """Remove `key`."""
        self._store.delete(self._prefix + key)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Keys with `prefix`, in order."""
        for key, value in self._store.scan(self._prefix + prefix):
            yield key.removeprefix(self._prefix), value

    def close(self) -> None:
        """The whole is closed by whoever opened it."""


class MemoryStore:
    """The same port in memory, for the simulator and for tests."""

    def __init__(self) -> None:
        self._rows: SortedDict[str, bytes] = SortedDict()

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """One transaction."""
        before = self._rows.copy()
        try:
            yield
        except BaseException:
            self._rows = before
            raise

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        value: bytes | None = self._rows.get(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Set `key`."""
        self._rows[key] = value

    def delete(self, key: str) -> None:
        """Remove `key`."""
        self._rows.pop(key, None)

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Keys with `prefix`, in order."""
        for key in list(self._rows.irange(prefix, prefix + "\U0010ffff")):
            yield key, self._rows[key]

    def close(self) -> None:
        """Nothing to release."""
