"""Key files: one seed, base64url, readable by its owner only."""

from __future__ import annotations

import os
from pathlib import Path

from wire.certificates import Certificate, parse
from wire.errors import ConfigError, MalformedError, WireError
from wire.keys import KEY_BYTES, SigningKey, from_text, to_text


def write_secret(path: Path, seed: bytes) -> None:
    """
    Write a new key file (mode 0600), on disk when this returns.

    It appears whole or not at all: a power cut leaves no half key behind.

    Raises:
        FileExistsError: a key is never overwritten.
    """
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(to_text(seed) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.link(fresh, path)  # unlike a rename, refuses to replace a key that is there
    fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_secret(path: Path) -> bytes:
    """
    A key's seed from its file.

    Raises:
        ConfigError: missing, damaged, or open to others.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read this key; chmod 600 it")
        return from_text(path.read_text(encoding="ascii").strip(), KEY_BYTES)
    except (OSError, UnicodeDecodeError, MalformedError) as error:
        raise ConfigError(f"{path}: not a key file ({error}); restore it from the backup") from None


def read_key(path: Path) -> SigningKey:
    """
    A signing key from its file.

    Raises:
        ConfigError: as `read_secret`.
    """
    return SigningKey(read_secret(path))


def read_certificate(path: Path) -> Certificate:
    """
    A certificate from its file.

    Raises:
        ConfigError: missing or not a certificate.
    """
    try:
        return parse(Certificate, path.read_text().strip())
    except (OSError, UnicodeDecodeError, WireError) as error:
        raise ConfigError(f"{path}: not a certificate ({error})") from None
