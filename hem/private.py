"""
What a home writes is its owner's alone: folders of mode 0700, files of mode 0600.

Registers, money and decisions tell who is at home and when. The umask is set for the whole process,
so that it holds for what libraries write, too (SQLite), and for the processes that are started.
A folder that is there already keeps its mode: whoever made it may share it with a second user, as
where gateway and EMS are two (`gateway.ems_uid`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wire.errors import ConfigError


@contextmanager
def private_files() -> Iterator[None]:
    """What this process makes while the block runs is for its user only (umask(2))."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def make_data_folder(folder: Path) -> None:
    """
    Make a home's data folder, where it is not there.

    Raises:
        ConfigError: not possible there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{folder}: cannot be made ({reason}); check home.data_dir") from None
