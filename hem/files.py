"""Files of the home: made once for their owner's eyes only, and watched for changes."""

from __future__ import annotations

import os
from pathlib import Path

from wire.errors import ConfigError


def open_new(target: Path) -> int:
    """
    A descriptor of a new file that only its owner can read.

    Raises:
        ConfigError: it is there already, or cannot be written.
    """
    try:
        return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{target}: is there already; give another name") from None
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror})") from None


def mark_of(path: Path) -> tuple[int, int, int]:
    """What changes when the file does: time [ns], size [bytes], inode; zeros when there is none."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
