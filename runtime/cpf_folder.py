"""
How a home hands its validator the CPF attestation: one file a window in the node's folder.

    <node's folder>/cpf/<endSlot>.json    {"grant": …, "attestation": …}, as in operation `cpf`

Sent from a trading address an attestation would tell whose address that is, so the validator says
it under its own name. HEM and node are two processes, often two users, that share nothing but this
folder: the HEM writes a file under another name and renames it, the node reads what it finds as
something from outside. Whoever may write here can make the node say what its meter attested, and
nothing else.

References:
    ADR 0013 (ended addresses).
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from pathlib import Path
from typing import Any

from wire.canonical import encode
from wire.errors import MalformedError, OversizedError

CPF_FOLDER = "cpf"
FOLDER_MODE = 0o2770
"""Files take the folder's group, which home and node have in common, not the home's own."""
FILE_MODE = 0o640
"""Read by the node besides us, and by nobody else."""
MAX_FILE_BYTES = 8 * 1024
MAX_FILES = 64
"""Looked at in one round, whatever their names; the rest waits for the next."""
_NAME = re.compile(r"([0-9]{1,10})\.json")


def put_attestation(
    node_folder: Path, end_slot: int, grant: dict[str, Any], attestation: dict[str, Any]
) -> None:
    """
    Hand an attestation to the node whose folder this is; another for the same window replaces it.

    Args:
        node_folder: where the node keeps its chain
        end_slot: last slot of the window
        grant: the validator grant, as JSON
        attestation: what the meter signed, as JSON

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = node_folder / CPF_FOLDER
    if not folder.is_dir():
        folder.mkdir(mode=0o770)
        folder.chmod(FOLDER_MODE)  # whatever our umask is
    fresh = folder / f".{end_slot}.{os.getpid()}"
    fresh.unlink(missing_ok=True)
    # the node may write here too: what it might have put in our way is not followed
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(encode({"grant": grant, "attestation": attestation}))
        os.fchmod(descriptor, FILE_MODE)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(folder / f"{end_slot}.json")


def waiting_slots(node_folder: Path) -> list[int]:
    """End slots of the files that wait, the newest first; other names are left alone."""
    found: list[int] = []
    try:
        with os.scandir(node_folder / CPF_FOLDER) as entries:
            for entry in itertools.islice(entries, MAX_FILES):
                match = _NAME.fullmatch(entry.name)
                if match is not None:
                    found.append(int(match[1]))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(set(found), reverse=True)


def read_waiting(node_folder: Path, end_slot: int) -> bytes:
    """
    What a file holds. It is from outside: not followed if it is a link, not waited for if a pipe.

    Raises:
        MalformedError: not a plain file. OversizedError. OSError: it cannot be read.
    """
    path = node_folder / CPF_FOLDER / f"{end_slot}.json"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise MalformedError("a link", file=path.name) from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise MalformedError("not a plain file", file=path.name)
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise OversizedError("not an attestation", file=path.name)
    return raw


def drop_waiting(node_folder: Path, end_slots: list[int]) -> None:
    """
    Take files away that are done with.

    Raises:
        OSError: the folder cannot be written to.
    """
    for slot in end_slots:
        (node_folder / CPF_FOLDER / f"{slot}.json").unlink(missing_ok=True)
