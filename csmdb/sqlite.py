"""The storage port on one SQLite file (sqlite-utils)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from csmdb.schema import MIGRATIONS, Migration
from csmdb.storage import StorageDownError

WAIT_S = 10
"""How long a writer waits for another one."""


class SqliteStorage:
    """
    All of the CSM-DB in one file.

    WAL with synchronous=FULL: a certificate that was handed out must survive a power cut.
    What is deleted is overwritten with zeros (secure_delete), as it may be somebody's name.
    """

    def __init__(self, path: Path) -> None:
        connection = sqlite3.connect(path, check_same_thread=False, timeout=WAIT_S)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA secure_delete=ON")
        self._db = Database(connection, execute_plugins=False)
        self.applied = _migrate(self._db)

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """One transaction; inside another it is a part of that one."""
        if self._db.conn.in_transaction:
            with self._db.atomic():
                yield
            return
        try:
            self._db.conn.execute("BEGIN IMMEDIATE")  # a reader that turns writer may be too late
        except sqlite3.OperationalError as error:
            raise StorageDownError(f"the file is busy ({error}); do it again") from None
        try:
            yield
            self._db.conn.execute("COMMIT")
        except BaseException:
            self._db.rollback()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment; nobody who writes is held up."""
        if self._db.conn.in_transaction:  # which is of one moment already
            yield
            return
        self._db.conn.execute("BEGIN")
        try:
            yield
        finally:
            self._db.rollback()

    def query(self, sql: str, values: Sequence[object] = ()) -> Iterator[dict[str, Any]]:
        """The rows of a SELECT, by name of the column."""
        return self._db.query(sql, list(values))

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Do a statement; gives how many rows it touched."""
        return int(self._db.execute(sql, list(values)).rowcount)

    def scrub(self) -> None:
        """
        Write the file anew without free pages, and empty the write-ahead log into it.

        Raises:
            StorageDownError: somebody reads; it is not done yet.
        """
        try:
            self._db.conn.execute("VACUUM")
            busy = self._db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise StorageDownError(f"the file is busy ({error}); do it again") from None
        if busy:
            raise StorageDownError("the file is busy; do it again")

    def close(self) -> None:
        """Release the file."""
        self._db.close()


def _migrate(db: Database) -> list[str]:
    """Bring a file to the present schema; its table of versions is sqlite-utils' own."""
    migrations = Migrations("csmdb")
    applied: list[str] = []
    for migration in MIGRATIONS:
        migrations(name=migration.name)(_step(migration, applied))
    migrations.apply(db)
    return applied


def _step(migration: Migration, applied: list[str]) -> Any:
    def apply(db: Database) -> None:
        for statement in (*migration.statements, *migration.sqlite):
            db.execute(statement)
        applied.append(migration.name)

    return apply
