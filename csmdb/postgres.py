"""
The storage port on PostgreSQL (psycopg 3), for where one machine is outgrown.

Writers take turns by an advisory lock, as on SQLite: certificates are numbered and the audit log is
chained without gaps. Text sorts by bytes, as on SQLite. No statistics are kept of columns that name
people: they would keep the names.

`VACUUM FULL` writes tables anew without what was erased. The server's write-ahead log and its own
backups and replicas are beyond us: they have it until they are recycled.

References:
    PostgreSQL manual, "Explicit Locking" (13.3.5), "Monitoring statistics" (ALTER TABLE … SET
    STATISTICS).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from csmdb.schema import APPEND_ONLY, MIGRATIONS
from csmdb.storage import StorageDownError
from wire.errors import ConfigError

CONNECT_S = 10
WAIT_MS = 10_000
"""How long a writer waits for another one."""
LOCK = 0x6873_6D64_6200
"""Number of the advisory lock, whose holder writes."""
PERSONAL = {
    "persons": ("name", "contact", "address", "meter_location"),
    "meters": ("type", "serial", "vendor", "model", "firmware"),
    "participants": ("name", "banned"),
    "bans": ("reason",),
    "certificates": ("document",),
    "audit_personal": ("salt", "document"),
}
"""Columns that may name people."""
_FORBID = f"""CREATE FUNCTION audit_forbid() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN RAISE EXCEPTION ''{APPEND_ONLY}''; END'"""
_TRIGGER = """CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_forbid()"""
_VERSIONS = """CREATE TABLE IF NOT EXISTS schema_migrations (
    name TEXT PRIMARY KEY, applied_at TIMESTAMPTZ NOT NULL DEFAULT now())"""

Connection = psycopg.Connection[dict[str, Any]]


class PostgresStorage:
    """
    All of the CSM-DB in one database of a server.

    Args:
        url: `postgresql://…`
        where: file and key it comes from, for errors; the URL may hold a password

    Raises:
        ConfigError: no such server or database, or it does not let us in.
    """

    def __init__(self, url: str, where: str) -> None:
        self._url = url
        try:
            self._db = self._connect()
        except psycopg.OperationalError as error:
            raise ConfigError(f"{where}: {_first_line(error)}") from None
        except psycopg.Error:  # its words would quote the URL
            raise ConfigError(f"{where}: expected postgresql://USER@HOST/DATABASE") from None
        try:
            self.applied = self._migrate()
        except psycopg.Error as error:
            self._db.close()
            raise ConfigError(
                f"{where}: its tables cannot be made ({_first_line(error)});"
                " give a database that this user owns"
            ) from None

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """One transaction; inside another it is a part of that one."""
        if self._in_transaction():
            with self._db.transaction():
                yield
            return
        self._come_back()
        try:
            with self._db.transaction():
                self._db.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
                yield
        except psycopg.OperationalError as error:
            raise StorageDownError(f"PostgreSQL: {_first_line(error)}") from None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment; nobody who writes is held up."""
        if self._in_transaction():  # whoever writes is the only one
            yield
            return
        self._come_back()
        with self._db.transaction():
            self._db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield

    def query(self, sql: str, values: Sequence[object] = ()) -> Iterator[dict[str, Any]]:
        """The rows of a SELECT, by name of the column."""
        if not self._in_transaction():
            self._come_back()
        return iter(self._run(sql, values).fetchall())

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Do a statement; gives how many rows it touched."""
        if not self._in_transaction():
            self._come_back()
        return self._run(sql, values).rowcount

    def scrub(self) -> None:
        """
        Write the tables anew that may name people.

        Raises:
            StorageDownError: somebody reads; it is not done yet.
        """
        try:
            for table in PERSONAL:
                self._run(f"VACUUM FULL {table}")
        except psycopg.OperationalError as error:
            raise StorageDownError(
                f"the database is busy ({_first_line(error)}); do it again"
            ) from None

    def close(self) -> None:
        """Release the connection."""
        self._db.close()

    # --- helpers --------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        return psycopg.connect(
            self._url, autocommit=True, row_factory=dict_row, connect_timeout=CONNECT_S,
            options=f"-c lock_timeout={WAIT_MS}", application_name="csmdb",
        )  # fmt: skip

    def _come_back(self) -> None:
        """A new connection when the server let go of the one we had."""
        try:
            self._db.execute("SELECT 1")
        except psycopg.OperationalError:
            self._db.close()
            try:
                self._db = self._connect()
            except psycopg.OperationalError as error:
                raise StorageDownError(f"PostgreSQL: {_first_line(error)}") from None

    def _in_transaction(self) -> bool:
        return self._db.info.transaction_status in (
            TransactionStatus.INTRANS,
            TransactionStatus.INERROR,
        )

    def _run(self, sql: str, values: Sequence[object] = ()) -> psycopg.Cursor[dict[str, Any]]:
        assert "%" not in sql, "a statement of ours has ? for values and no literal %"
        return self._db.execute(sql.replace("?", "%s").encode(), list(values) or None)

    def _migrate(self) -> list[str]:
        """Bring a database to the present schema; `schema_migrations` says what was done."""
        with self._db.transaction():
            self._db.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            self._db.execute(_VERSIONS)
            done = {row["name"] for row in self._db.execute("SELECT name FROM schema_migrations")}
            pending = [migration for migration in MIGRATIONS if migration.name not in done]
            for migration in pending:
                for statement in (*migration.statements, *_OWN.get(migration.name, ())):
                    self._run(_by_bytes(statement))
                self._db.execute("INSERT INTO schema_migrations VALUES (%s)", [migration.name])
        return [migration.name for migration in pending]


def _without_statistics(*tables: str) -> tuple[str, ...]:
    return tuple(
        f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0"
        for table in tables
        for column in PERSONAL[table]
    )


_OWN = {
    "first_tables": (
        _FORBID, _TRIGGER, *_without_statistics("meters", "participants", "certificates"),
    ),
    "audit_of_subjects": _without_statistics("audit_personal"),
    "persons": _without_statistics("persons"),
    "advisories": _without_statistics("bans"),
}  # fmt: skip
"""Statements in PostgreSQL's own words, after the common ones of a migration."""


def _by_bytes(statement: str) -> str:
    """A CREATE or ALTER TABLE whose texts sort by bytes."""
    return statement.replace(" TEXT", ' TEXT COLLATE "C"')


def _first_line(error: psycopg.Error) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
