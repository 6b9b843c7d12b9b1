"""
Backup and restore of a home's data folder: keys, databases and wishes in one tar file of mode 0600.

Who holds a backup is the home: it has the meter key. Keep it where you keep your passport.

**A consistent copy of a running home.** Each database is copied by SQLite's own backup, in an order
in which a power cut could have left them: the outbox, then what led to its contents, then the
meter's book, which is never older than what the EMS knows of it.

**An old backup is history; the world went on.** A restored home must not do again what it did after
the backup was made:

- operations that waited are not sent again, as nobody knows which of them were; but for those that
  the ledger takes once (registration, receipts, attestations). The nonce is asked of the ledger.
- the meter's numbers never go back: the book is moved on by two numbers for every slot since, more
  than it can have signed, so the next reading follows a gap and is never a second one under a
  number that the DSO has. The slot in which the home comes back has no receipt.
- addresses that change come from the home's keys and the period (`hem.ems.addresses`): a restored
  home has those that it had, also of the time since, and the CSM-DB grants them again.
- the wallet is read on from the ledger; positions, prices and settlements come back from there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hem.ems.lanes import SENDERS
from hem.ems.limit_book import LIMITS_FILE
from hem.ems.policy_file import GOOD_FILE
from hem.files import open_new
from hem.locks import only_one
from ledger.checkpoint import CHECKPOINT_FILE
from runtime.outbox import EARLIER
from runtime.ports import Store
from runtime.store import PartOfStore, SqliteStore
from wire.canonical import decode, encode
from wire.errors import ConfigError, WireError
from wire.metering import Reading, load_record, record_json
from wire.slots import SlotGrid

FORMAT = 1
MANIFEST = "manifest.json"
OUTBOX, EMS, REGISTERS = "outbox.sqlite", "ems.sqlite", "gateway/registers.sqlite"
DATABASES = (OUTBOX, EMS, REGISTERS)
"""In the order in which they are copied."""
SECRETS = ("keys/*.key", "gateway/*.key")
PLAIN = ("identity.json", CHECKPOINT_FILE, GOOD_FILE, LIMITS_FILE)
KEY_FILE = re.compile(r"(keys|gateway)/[a-z0-9][a-z0-9.-]*\.key")
TAKEN_ONCE = frozenset({"register-address", "receipt", "cpf"})
"""Operations that the ledger takes once, however often they are sent."""
RESTORED = "RESTORED"
"""What became of an operation that waited when an old backup was made: nobody knows."""
MAX_FILE_BYTES = 4 * 2**30
MAX_FILES = 2_000
MAX_MANIFEST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    files: int
    made_ms: int
    """When the backup was made (market time)."""
    dropped: int
    """Operations that are not sent again."""


def back_up(data_dir: Path, target: Path, home: str, now_ms: int) -> int:
    """
    Write a backup, also of a home that runs.

    Returns:
        How many files are in it.

    Raises:
        ConfigError: nothing to back up, or the target is there already.
    """
    if not (data_dir / EMS).exists():
        raise ConfigError(f"{data_dir}: this home has not run yet; there is nothing to back up")
    descriptor = open_new(target)
    try:
        with os.fdopen(descriptor, "wb") as file:
            count = _write(data_dir, file, home, now_ms)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        target.unlink(missing_ok=True)  # half a backup is none
        if isinstance(error, (OSError, sqlite3.Error)):
            raise ConfigError(f"{target}: cannot be written ({error})") from None
        raise
    return count


def restore(source: Path, data_dir: Path, grid: SlotGrid, now_ms: int) -> Restored:
    """
    Bring a home back into an empty folder, moved on to today.

    Args:
        now_ms: market time

    Raises:
        ConfigError: not a whole backup, or the folder holds a home.
    """
    with only_one(data_dir):
        there = [p for p in (*DATABASES, "keys", "gateway") if (data_dir / p).exists()]
        if there:
            raise ConfigError(
                f"{data_dir}: holds a home ({there[0]}); a home never goes back in time:"
                " move that folder away first"
            )
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".restore-") as scratch:
            manifest = _unpack(source, Path(scratch))
            try:
                dropped = _move_on(Path(scratch), grid, now_ms)
            except (sqlite3.Error, WireError, KeyError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{source}: its databases cannot be read ({error!r}); use another backup"
                ) from None
            for path in sorted(Path(scratch).iterdir()):
                path.rename(data_dir / path.name)
        _sync_folder(data_dir)
    return Restored(len(manifest["files"]), manifest["madeMs"], dropped)


# --- Writing -------------------------------------------------------------------------------------


def _write(data_dir: Path, file: Any, home: str, now_ms: int) -> int:
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".backup-") as scratch:
        contents = dict(_contents(data_dir, Path(scratch)))
        manifest = {
            "format": FORMAT,
            "home": home,
            "madeMs": now_ms,
            "files": {name: _digest(path) for name, path in contents.items()},
        }
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            _add_bytes(archive, MANIFEST, json.dumps(manifest, indent=1).encode())
            for name, path in contents.items():
                with path.open("rb") as content:
                    entry = _entry(name, path.stat().st_size)
                    archive.addfile(entry, content)
    return len(contents)


def _contents(data_dir: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """(name, where it can be read) of everything that belongs to a backup."""
    for number, name in enumerate(DATABASES):
        if (data_dir / name).exists():
            copy = scratch / f"{number}.sqlite"
            _copy_database(data_dir / name, copy)
            yield name, copy
    for name in PLAIN:
        if (data_dir / name).exists():  # a running home may write it anew at any time
            yield name, Path(shutil.copyfile(data_dir / name, scratch / name))
    for pattern in SECRETS:
        for path in sorted(data_dir.glob(pattern)):
            yield path.relative_to(data_dir).as_posix(), path


def _copy_database(source: Path, target: Path) -> None:
    """SQLite's online backup: one moment of the database, whoever writes meanwhile."""
    origin, copy = sqlite3.connect(source), sqlite3.connect(target)
    try:
        os.chmod(target, 0o600)  # noqa: PTH101
        origin.backup(copy)
    finally:
        copy.close()
        origin.close()


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    archive.addfile(_entry(name, len(content)), io.BytesIO(content))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Reading -------------------------------------------------------------------------------------


def _unpack(source: Path, folder: Path) -> dict[str, Any]:
    """Write the files of a backup into a folder; only those that one has, whole and unchanged."""
    try:
        with tarfile.open(source, mode="r:") as archive:
            manifest = _manifest(archive, source)
            for name, digest in manifest["files"].items():
                _unpack_one(archive, source, folder, name, digest)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{source}: not a backup of a home ({error})") from None
    return manifest


def _manifest(archive: tarfile.TarFile, source: Path) -> dict[str, Any]:
    first = archive.next()
    raw = archive.extractfile(first) if first is not None and first.isreg() else None
    if first is None or raw is None or first.name != MANIFEST or first.size > MAX_MANIFEST_BYTES:
        raise ConfigError(f"{source}: not a backup of a home; give a file of `hem backup`")
    try:
        found: dict[str, Any] = json.loads(raw.read())
        form, made_ms, files = found["format"], found["madeMs"], found["files"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{source}: not a backup of a home ({error!r})") from None
    if form != FORMAT:
        raise ConfigError(f"{source}: a backup of format {form}; use the release that made it")
    if not isinstance(files, dict) or not 0 < len(files) <= MAX_FILES or type(made_ms) is not int:
        raise ConfigError(f"{source}: not a backup of a home; its list of files is broken")
    return found


def _unpack_one(
    archive: tarfile.TarFile, source: Path, folder: Path, name: str, digest: str
) -> None:
    if name not in (*DATABASES, *PLAIN) and KEY_FILE.fullmatch(name) is None:
        raise ConfigError(f"{source}: {name[:80]!r} is no file of a home")
    try:
        entry = archive.getmember(name)
    except KeyError:
        raise ConfigError(f"{source}: {name} is missing; the backup is not whole") from None
    content = archive.extractfile(entry) if entry.isreg() else None
    if content is None or entry.size > MAX_FILE_BYTES:
        raise ConfigError(f"{source}: {name} is no plain file")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(1 << 20):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if _digest(path) != digest:
        raise ConfigError(f"{source}: {name} is damaged; use another backup")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Moving on -----------------------------------------------------------------------------------


def _move_on(folder: Path, grid: SlotGrid, now_ms: int) -> int:
    """Make history of what was the present; returns how many operations are dropped."""
    dropped = 0
    if (folder / OUTBOX).exists():
        with _opened(folder / OUTBOX) as store:
            dropped = _drop_waiting(store)
    if (folder / REGISTERS).exists():
        with _opened(folder / REGISTERS) as store:
            _skip_numbers(store, grid.slot_at(now_ms))
    return dropped


@contextmanager
def _opened(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    try:
        yield store
    finally:
        store.close()


def _drop_waiting(store: SqliteStore) -> int:
    """Forget the flight and the nonce, and all operations that must not be done twice."""
    senders = {"/".join(key.split("/")[:2]) + "/" for key, _ in store.scan(SENDERS)}
    with store.atomic():
        return sum(_drop_of(store, PartOfStore(store, part)) for part in ("", *sorted(senders)))


def _drop_of(store: Store, part: Store) -> int:
    """The same of one sender; what was sent under which key is remembered for all together."""
    dropped = 0
    for key in ("flight/raw", "flight/keys", "nonce"):
        part.delete(key)
    for key, _ in list(part.scan(EARLIER)):
        part.delete(key)
    for row, raw in list(part.scan("wait/")):
        kept = decode(raw)
        if kept["operation"].get("op") not in TAKEN_ONCE:
            part.delete(row)
            store.put("key/" + kept["key"], RESTORED.encode())
            dropped += 1
    return dropped


def _skip_numbers(store: SqliteStore, slot: int) -> None:
    """
    Move the meter's book on to the beginning of `slot`, the one that runs.

    What it knows last is put under a row that no slot has, with a later number and slot: the next
    reading follows it, but no receipt can be made from it, as no slot's beginning is there.
    """
    last = store.get("last")
    row = None if last is None else store.get(_reading_row(int(last)))
    if row is None:
        return
    known = load_record(Reading, decode(row)["reading"])
    slots = max(slot - known.slot, 1)
    # twice: were this backup restored before, its numbers then began beyond those of that time
    moved = msgspec.structs.replace(
        known, seq=known.seq + 2 * slots, slot=max(slot - 1, known.slot), signature=""
    )
    with store.atomic():
        store.put(_reading_row(0), encode({"reading": record_json(moved), "sealed": ""}))
        store.put("last", b"0")


def _reading_row(slot: int) -> str:
    """As `hem.gateway.meterbook` names it."""
    return f"reading/{slot:015d}"
