"""
Backup and restore of a CSM-DB, whatever its storage: one SQLite file of mode 0600.

It holds every table as it was at one moment, the keys, and a digest over all of it. **Who has it
can certify meters**: it has the issuing key. Keep it as safe as the CSM-DB's own folder.

A running CSM-DB is copied from one snapshot of its database; writers are not held up. A restore
goes into a new folder and leaves no half of one. What happened after the backup was made is not in
it: an erasure has to be done again, and so has a ban.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csmdb.audit import AuditBrokenError
from csmdb.config import open_storage, write_config
from csmdb.files import write_private
from csmdb.repository import SqlRepository
from csmdb.schema import MIGRATIONS, TABLES
from csmdb.setup import BOX_KEY, CERTIFICATE, FACTS, ISSUING_KEY, CsmDb, check_empty
from csmdb.sqlite import SqliteStorage
from csmdb.storage import Storage, insert
from csmdb.tls import CA_CERTIFICATE, CA_KEY, has_authority
from runtime.keyfiles import read_key
from wire.errors import ConfigError

FORMAT = 1
FILES = (FACTS, CERTIFICATE, BOX_KEY, ISSUING_KEY)
"""What of the folder is in a backup, beside the database."""
TLS_FILES = (CA_KEY, CA_CERTIFICATE)
"""These too where there is an authority."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    rows: int
    made_ms: int
    """When the backup was made."""


def back_up(csmdb: CsmDb, target: Path) -> int:
    """
    Write a backup, also of a CSM-DB that runs.

    Returns:
        How many rows are in it.

    Raises:
        ConfigError: the target is there already, or cannot be written.
    """
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise ConfigError(f"{target}: is there already; give another name") from None
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror})") from None
    try:
        count = _write(csmdb, target)
    except BaseException as error:
        for path in _with_logs(target):
            path.unlink(missing_ok=True)  # half a backup is none
        if isinstance(error, (OSError, sqlite3.Error)):
            raise ConfigError(f"{target}: cannot be written ({error})") from None
        raise
    return count


def restore(source: Path, folder: Path, storage_url: str = "") -> Restored:
    """
    Bring a CSM-DB back into a new (or empty) folder.

    Args:
        storage_url: of an empty database, to which the rows go; without, SQLite in the folder

    Raises:
        ConfigError: not a whole backup, or folder or database hold something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: holds something; restore into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".restore-") as scratch:
        copy, fresh = Path(scratch) / "backup", Path(scratch) / "csmdb"
        fresh.mkdir(mode=0o700)
        if storage_url:
            write_config(fresh, storage_url)
        try:
            shutil.copyfile(source, copy)
            manifest, files = _read(source, copy)
            for name, content in files.items():
                write_private(fresh / name, content)
            restored = Restored(_restore_rows(source, copy, fresh), int(manifest["made_ms"]))
        except (OSError, sqlite3.Error, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{source}: not a backup of a CSM-DB ({error})") from None
        fresh.rename(folder)
    _sync(folder.parent)
    return restored


# --- Writing -------------------------------------------------------------------------------------


def _write(csmdb: CsmDb, target: Path) -> int:
    tls = TLS_FILES if has_authority(csmdb.folder) else ()
    files = {name: (csmdb.folder / name).read_text(encoding="ascii") for name in (*FILES, *tls)}
    copy = SqliteStorage(target)
    try:
        with copy.atomic():
            copy.execute("CREATE TABLE backup (manifest TEXT NOT NULL)")
            copy.execute("CREATE TABLE files (name TEXT PRIMARY KEY, content TEXT NOT NULL)")
            for name, content in files.items():
                insert(copy, "files", {"name": name, "content": content})
            with csmdb.repository.db.snapshot():
                count = copy_rows(csmdb.repository.db, copy)
        with closing(sqlite3.connect(target)) as written:
            digest = _digest(written)
        manifest = {"format": FORMAT, "made_ms": csmdb.clock.now_ms(), "digest": digest}
        copy.execute("INSERT INTO backup VALUES (?)", [json.dumps(manifest)])
        copy.scrub()
    finally:
        copy.close()
    return count


def copy_rows(source: Storage, target: Storage) -> int:
    """Copy every table into an empty database; gives how many rows there were."""
    count = 0
    for table, key in TABLES.items():
        for row in source.query(f"SELECT * FROM {table} ORDER BY {key}"):  # noqa: S608
            insert(target, table, row)
            count += 1
    return count


# --- Reading -------------------------------------------------------------------------------------


def _read(source: Path, copy: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest and the small files of a backup that is whole."""
    with closing(sqlite3.connect(copy)) as db:
        manifest = json.loads(db.execute("SELECT manifest FROM backup").fetchone()[0])
        if manifest["format"] != FORMAT:
            raise ConfigError(f"{source}: a backup of another format; use the release that made it")
        known = {migration.name for migration in MIGRATIONS}
        if {name for (name,) in db.execute("SELECT name FROM _sqlite_migrations")} - known:
            raise ConfigError(f"{source}: made by a later release; use that one")
        if _digest(db) != manifest["digest"]:
            raise ConfigError(f"{source}: is damaged; use another backup")
        files = dict(db.execute("SELECT name, content FROM files"))
    if set(files) not in (set(FILES), {*FILES, *TLS_FILES}):
        raise ConfigError(f"{source}: its list of files is not a CSM-DB's")
    return manifest, files


def _restore_rows(source: Path, copy: Path, fresh: Path) -> int:
    """Rows whose log is whole into the new database, by way of the present schema."""
    with closing(SqliteStorage(copy)) as rows:
        try:
            SqlRepository(rows, read_key(fresh / ISSUING_KEY)).check_audit()
        except AuditBrokenError as error:
            raise ConfigError(f"{source}: {error}; use another backup") from None
        with closing(open_storage(fresh)) as target, target.atomic():
            check_empty(target, str(fresh))
            return copy_rows(rows, target)


def _digest(db: sqlite3.Connection) -> str:
    """SHA-256 over all that is in a backup but the manifest."""
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    digest = hashlib.sha256()
    for table, row in _everything(db, there):
        digest.update(json.dumps([table, *row]).encode() + b"\n")
    return digest.hexdigest()


def _everything(db: sqlite3.Connection, there: set[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for table, key in {**TABLES, "files": "name"}.items():
        if table in there:  # an older backup has fewer
            for row in db.execute(f"SELECT * FROM {table} ORDER BY {key}"):  # noqa: S608
                yield table, row


# --- Files ---------------------------------------------------------------------------------------


def _with_logs(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
