"""Chain folders, as commands find them."""

from __future__ import annotations

from pathlib import Path

from ledger.genesis import Genesis, load_genesis
from ledger.store import FILE_NAME
from wire.errors import ConfigError


def opened_chain(folder: Path) -> Genesis:
    """
    The genesis of a folder that holds a chain.

    Raises:
        ConfigError: it does not.
    """
    genesis = load_genesis(folder / "genesis.json")
    if not (folder / FILE_NAME).exists():
        raise ConfigError(f"{folder}: no chain here yet; give the folder of a node that has run")
    return genesis
