"""
A device added to the provisioning file: what was there stays byte for byte, and comes first.

The new file is written beside the old one and loaded as a home would load it; only then does it
take the old one's place, which is kept as `.bak`. A power cut leaves the old file or the new one.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from hem.config import load_provisioning
from hem.gateway.form import Entry, toml_of
from wire.errors import ConfigError

BACKUP = ".bak"
DRAFT = ".new"


def add_device(path: Path, entry: Entry) -> Path:
    """
    Append a `[[devices]]` entry.

    Returns:
        Where the file as it was is kept.

    Raises:
        ConfigError: the file would not load with it, was changed meanwhile, or cannot be written.
    """
    path = path.resolve()  # a link stays a link
    draft, backup = path.with_name(path.name + DRAFT), path.with_name(path.name + BACKUP)
    try:
        before = path.read_bytes()
        gap = b"" if before.endswith(b"\n") or not before else b"\n"
        _write(draft, before + gap + b"\n" + toml_of(entry).encode(), path)
        try:
            _check(draft, path)
            _write(backup, before, path)
            if path.read_bytes() != before:
                raise ConfigError(f"{path}: was changed meanwhile; look at it and try again")
            draft.replace(path)
            _flush(path.parent)
        finally:
            with suppress(FileNotFoundError):
                draft.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be written ({reason}); check its folder") from None
    return backup


def _check(draft: Path, path: Path) -> None:
    try:
        load_provisioning(draft)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(draft), str(path))) from None


def _write(path: Path, data: bytes, like: Path) -> None:
    """A file as private as another from its first byte on, on the disk when this returns."""
    with suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    shutil.copymode(like, path)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
