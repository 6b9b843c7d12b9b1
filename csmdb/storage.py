"""
The port under the repository: one database that understands our small share of SQL.

`csmdb.sqlite` is the default. Statements are written once, with `?` for values, in what the
databases behind this port have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from wire.errors import HearthgridError


class StorageDownError(HearthgridError):
    """The database cannot be reached or is busy; the same may work later."""


class Storage(Protocol):
    """A database at the present schema."""

    @property
    def applied(self) -> Sequence[str]:
        """Migrations that were applied when it was opened."""
        ...

    def atomic(self) -> AbstractContextManager[object]:
        """
        One transaction; inside another it is a part of that one.

        Only one runs at a time, whoever begins it: what is read inside is still so when it commits.
        """
        ...

    def snapshot(self) -> AbstractContextManager[object]:
        """What is read inside is of one moment; nobody who writes is held up."""
        ...

    def query(self, sql: str, values: Sequence[object] = ()) -> Iterator[dict[str, Any]]:
        """The rows of a SELECT, by name of the column."""
        ...

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Do a statement; gives how many rows it touched."""
        ...

    def scrub(self) -> None:
        """
        Overwrite or give back the room of what was deleted.

        Raises:
            StorageDownError: somebody reads; it is not done yet.
        """
        ...

    def close(self) -> None:
        """Release it."""
        ...


def insert(db: Storage, table: str, row: Mapping[str, object], then: str = "") -> None:
    """
    Put a row into a table.

    Args:
        table, row: names are our own, never from outside
        then: what follows, like ON CONFLICT
    """
    places = ", ".join("?" for _ in row)
    sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places}) {then}"  # noqa: S608
    db.execute(sql, list(row.values()))
