"""One program per home at a time: two would trade under one address with one nonce."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wire.errors import ConfigError

LOCK_FILE = "hem.lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """
    Hold a home's folder while the block runs.

    Raises:
        ConfigError: the home runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{folder}: this home is running already; stop that one") from None
    try:
        yield
    finally:
        os.close(descriptor)
