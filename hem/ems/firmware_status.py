"""
What `hem firmware` and the running home tell each other: two small files in the data folder.

    firmware/status.json   written by the home: what is installed, what waits, what was refused
    firmware/wish.json     written by `hem firmware install`: the home does so and removes it
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from wire.errors import ConfigError

FOLDER, STATUS, WISH, LOCK = "firmware", "status.json", "wish.json", "lock"


class FirmwareView(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How it stands with the meter's firmware."""

    state: str = "unknown"
    """`current`, `available` (waits for `install`), `installing`, `installed`, `refused`, `away`
    (meter, gateway or repository), `unknown`."""
    installed: str = ""
    """The version on the plate."""
    attested: str = ""
    """The version in our certificate."""
    available: str = ""
    """The highest version that fits."""
    file: str = ""
    """Its name in the repository."""
    refusal: str = ""
    """Name of the refusal, of `refused`."""
    detail: str = ""
    checked_ms: int = 0


class Wish(msgspec.Struct, frozen=True):
    """What the household asked for."""

    name: str = ""
    """A file of the repository; empty: what fits best."""


def read_view(data_dir: Path) -> FirmwareView:
    """
    What the home wrote last.

    Raises:
        ConfigError: the file is not readable.
    """
    path = data_dir / FOLDER / STATUS
    try:
        return msgspec.json.decode(path.read_bytes(), type=FirmwareView)
    except FileNotFoundError:
        return FirmwareView()
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: not readable ({error}); remove it") from None


def write_view(data_dir: Path, view: FirmwareView) -> None:
    """Replace what was written before."""
    _write(data_dir, STATUS, msgspec.json.encode(view))


def write_wish(data_dir: Path, wish: Wish) -> None:
    """
    Ask the running home to install.

    Raises:
        ConfigError: the folder is not writable.
    """
    try:
        _write(data_dir, WISH, msgspec.json.encode(wish))
    except OSError as error:
        raise ConfigError(
            f"{data_dir}: cannot be written ({error.strerror}); run the home once, then try again"
        ) from None


def take_wish(data_dir: Path) -> Wish | None:
    """The wish, which is forgotten with this; None where there is none."""
    path = data_dir / FOLDER / WISH
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    path.unlink(missing_ok=True)
    try:
        return msgspec.json.decode(raw, type=Wish)
    except msgspec.DecodeError:
        return Wish()


def _write(data_dir: Path, name: str, content: bytes) -> None:
    folder = data_dir / FOLDER
    folder.mkdir(exist_ok=True, mode=0o700)
    draft = folder / f"{name}.new"
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / name)
