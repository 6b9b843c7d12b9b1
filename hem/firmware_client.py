"""
Asking a firmware repository, in a process of its own (`hem.firmware_worker`).

EMS and gateway ask the same questions: the EMS over HTTP, the gateway the files that the EMS handed
over. Each has its own trusted state, so the gateway believes nothing because the EMS does. The
child takes 40 MB for a second; neither of us keeps that. What it answers is checked here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtime.child import ChildError, ask_child
from wire.errors import FirmwareRefusedError, HearthgridError, MalformedError, Refusal
from wire.firmware import Plate, Target, check_fits, is_file_name, read_target, version_of

DEADLINE_S = 600.0
"""From the question to the last byte of the file [real s]."""
METADATA, IMAGES = "metadata", "images"
"""Folders of a trusted state: metadata as it was verified last, and files."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask of a repository."""

    root: str
    """File with the root metadata that is trusted from the beginning."""
    state: str
    """Folder of the trusted state."""
    url: str = ""
    """Of the repository; empty: the files in `inbox`."""
    inbox: str = ""
    wanted: str = ""
    """Name of a file to fetch and verify; empty: none."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the repository, as its metadata says."""

    name: str
    length: int
    sha256: str
    custom: Any = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a question."""

    files: list[File] = []
    refusal: Refusal | None = None
    detail: str = ""
    away: bool = False
    """The repository was not reached: the same may work later."""


class RepositoryAwayError(HearthgridError):
    """The repository cannot be reached now."""


async def consult(question: Question, deadline_s: float = DEADLINE_S) -> list[File]:
    """
    The files of a repository whose metadata was verified; the wanted one is fetched.

    Raises:
        FirmwareRefusedError: by name, what was not believed.
        RepositoryAwayError: no answer; ask again later.
    """
    command = [sys.executable, "-m", "hem.firmware_worker"]
    try:
        raw = await ask_child(command, msgspec.json.encode(question), deadline_s)
        answer = msgspec.json.decode(raw, type=Answer)
    except (ChildError, msgspec.DecodeError) as error:
        raise RepositoryAwayError(f"asking the repository failed: {error}") from None
    return taken(answer)


def taken(answer: Answer) -> list[File]:
    """
    The files of an answer.

    Raises:
        FirmwareRefusedError, RepositoryAwayError.
    """
    if answer.refusal is not None:
        raise FirmwareRefusedError(answer.refusal, answer.detail)
    if answer.away:
        raise RepositoryAwayError(answer.detail)
    return answer.files


def choose(files: Sequence[File], plate: Plate) -> tuple[File, Target] | None:
    """The file with the highest version that fits a device; None where none does."""
    fitting = []
    for file in files:
        try:
            target = target_of(file)
            check_fits(target, plate)
        except (FirmwareRefusedError, MalformedError):
            continue  # others' devices, and versions from before
        fitting.append((version_of(target.version), file, target))
    best = max(fitting, key=lambda one: one[0], default=None)
    return best[1:] if best is not None else None


def find(files: Sequence[File], name: str) -> tuple[File, Target]:
    """
    The file of a name.

    Raises:
        FirmwareRefusedError: NOT_FOUND, or MALFORMED metadata.
    """
    for file in files:
        if file.name == name:
            try:
                return file, target_of(file)
            except MalformedError as error:
                raise FirmwareRefusedError(Refusal.MALFORMED, str(error)) from None
    raise FirmwareRefusedError(Refusal.NOT_FOUND, f"the repository has no {name[:100]!r}")


def target_of(file: File) -> Target:
    """
    What a file is for.

    Raises:
        MalformedError: its metadata does not say so, or its name is none.
    """
    if not is_file_name(file.name):
        raise MalformedError("not a file's name", name=file.name[:100])
    return read_target(file.custom)


def image_path(state: Path, name: str) -> Path:
    """Where a fetched file lies."""
    return state / IMAGES / name


def metadata_files(state: Path) -> list[Path]:
    """The verified metadata of a state, every root from the first on: all that a verifier needs."""
    folder = state / METADATA
    roots = sorted((folder / "root_history").glob("*.root.json"))
    rest = [folder / f"{role}.json" for role in ("timestamp", "snapshot", "targets")]
    return [*roots, *(path for path in rest if path.exists())]
