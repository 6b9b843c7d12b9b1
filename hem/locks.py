"""
Locks that end with their process, however it ends (flock).

One program per home at a time: two would trade under one address with one nonce, and two gateways
would fork the chain of readings.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hem.private import make_data_folder
from wire.errors import ConfigError

LOCK_FILE = "hem.lock"


def lock(path: Path, *, exclusive: bool = True) -> int | None:
    """
    Lock a file without waiting: its descriptor, or None where somebody has it.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def lock_within(path: Path, wait_s: float) -> int | None:
    """The same, tried for a while: who has it may be about to end."""
    deadline_s = time.monotonic() + wait_s
    while (descriptor := lock(path)) is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return descriptor


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """
    Hold a home's folder while the block runs.

    Raises:
        ConfigError: the home runs, or the folder cannot be made.
    """
    make_data_folder(folder)
    descriptor = lock(folder / LOCK_FILE)
    if descriptor is None:
        raise ConfigError(f"{folder}: this home is running already; stop that one")
    try:
        yield
    finally:
        os.close(descriptor)
