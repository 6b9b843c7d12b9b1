"""The owner's policy file as the page edits it: only what is valid is saved, all of it or none."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from hem.controller.policy import parse_policy
from wire.errors import ConfigError


def read_policy_text(path: Path) -> str:
    """
    The file's text; empty when there is none, which means the defaults.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read ({error})") from None


def stamp_of(text: str) -> str:
    """By which a form knows the text that it was made from."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_policy_text(path: Path, text: str) -> None:
    """
    Check a text as the policy of that file.

    Raises:
        ConfigError: with line, key and remedy.
    """
    parse_policy(text, path.name)


def save_policy_text(path: Path, text: str, stamp: str) -> None:
    """
    Put a valid text in the file's place; the one before stays beside it as `….bak`.

    Args:
        stamp: of the text that was edited

    Raises:
        ConfigError: not valid, changed by somebody else meanwhile, or it cannot be written.
    """
    check_policy_text(path, text)
    before = read_policy_text(path)
    if stamp_of(before) != stamp:
        raise ConfigError(
            f"{path.name}: was changed by somebody else meanwhile; open the page anew, then edit"
        )
    try:
        if path.exists():
            _replace(path.with_name(path.name + ".bak"), before)
        _replace(path, text)
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be written ({error.strerror})") from None


def _replace(path: Path, text: str) -> None:
    """Write a file beside, then move it there: after a power cut there is the one or the other."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
