"""A PostgreSQL server in a temporary folder, on a Unix socket, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from support.patience import PATIENCE_S

PLAIN_USER = "postgres" if Path("/etc/postgresql-common").exists() else "nobody"
"""Whom the server runs as when the tests are root's: it refuses to be root."""


class NoServerError(Exception):
    """It cannot be started here; says why."""


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._databases = 0

    def url(self, database: str) -> str:
        return f"postgresql://tester@/{database}?host={self.folder}"

    def fresh(self) -> str:
        """URL of a new, empty database."""
        self._databases += 1
        name = f"csmdb_{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def drop_databases(self) -> None:
        """Those of earlier tests: their files would be found in ours."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as admin:
            for number in range(1, self._databases + 1):
                admin.execute(f"DROP DATABASE IF EXISTS csmdb_{number} WITH (FORCE)".encode())

    def drop_connections(self) -> None:
        """As a server's restart does."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'csmdb'"
            )

    def files(self) -> list[Path]:
        """All files of the cluster but the write-ahead log, all of memory written to them."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as admin:
            admin.execute("CHECKPOINT")
        found = [path for path in (self.folder / "data").rglob("*") if path.is_file()]
        return [path for path in found if "pg_wal" not in path.parts]


@contextmanager
def running_postgres() -> Iterator[Server]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        raise NoServerError("no PostgreSQL under /usr/lib/postgresql")
    bin_dir = binaries[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="hg-pg-"))
    how: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True}
    if os.geteuid() == 0:
        shutil.chown(folder, PLAIN_USER)
        how["user"] = PLAIN_USER
    data = folder / "data"
    try:
        _run([bin_dir / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-N", "-E", "UTF8"],
             how)  # fmt: skip
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=40"
        start = [bin_dir / "pg_ctl", "-D", data, "-w", "-t", str(int(PATIENCE_S)), "-l",
                 folder / "log", "-o", options, "start"]  # fmt: skip
        # its output would be the server's, which stays
        _run(start, {**how, "capture_output": False, "stdout": subprocess.DEVNULL})
        try:
            yield Server(folder)
        finally:
            _run([bin_dir / "pg_ctl", "-D", data, "-m", "immediate", "stop"], how)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(words: list[Any], how: dict[str, Any]) -> None:
    try:
        subprocess.run([str(word) for word in words], check=True, **how)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoServerError(f"{words[0]}: {getattr(error, 'stderr', '') or error}") from None
