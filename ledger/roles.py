"""What a node is started as, and whether its key fits."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from enum import StrEnum
from pathlib import Path

from ledger.contracts import keys
from ledger.genesis import Genesis
from wire.errors import ConfigError


class Role(StrEnum):
    """What `ledger run` does."""

    VALIDATOR = "validator"
    """Executes every block, and votes whenever its key has a seat."""
    FULL = "full"
    """Executes every block and answers; its key is no validator's, so it never votes."""
    LIGHT = "light"
    """Follows headers."""


def standing(genesis: Genesis, folder: Path, name: str) -> str:
    """
    What the chain in a folder says of a key: a validator's status, or "" when it is none.

    Of a folder without blocks, what the genesis says.

    Raises:
        ConfigError: the file cannot be read.
    """
    from ledger.store import FILE_NAME, LedgerStore  # noqa: PLC0415  (a light client has none)

    if (folder / FILE_NAME).exists():
        try:
            with closing(LedgerStore.in_folder(folder, read_only=True)) as store:
                row = store.state_row(keys.validator(name))
                if row is not None or store.height:
                    return str(row["status"]) if row is not None else ""
        except sqlite3.Error as error:
            raise ConfigError(f"{folder}: {FILE_NAME} cannot be read ({error})") from None
    return "active" if any(one.id == name for one in genesis.validators) else ""


def decide(role: Role | None, status: str, name: str) -> tuple[Role, str]:
    """
    The role to run in, and a warning or "".

    Args:
        role: what was asked for; None: what the key is for
        status: of the key, see `standing`
        name: the key's identity

    Raises:
        ConfigError: `full` was asked for with a validator's key, which would vote.
    """
    if role is None:
        return (Role.VALIDATOR if status else Role.FULL), ""
    if role is Role.FULL and status:
        raise ConfigError(
            f"--role full: {name} is a validator here ({status}) and would vote; "
            "give --role validator, or another key"
        )
    if role is Role.VALIDATOR and not status:
        return role, f"{name} is no validator here: it watches until the chain seats it"
    if role is Role.VALIDATOR and status == "banned":
        return role, f"{name} is banned: it watches until its ban is over"
    return role, ""
