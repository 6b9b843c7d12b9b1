"""A node's TLS: files that are there, or certificates that it gets by itself."""

from __future__ import annotations

import ssl
from pathlib import Path

from ledger.genesis import Genesis
from runtime.clock import clock_from_environment
from runtime.lane_tls import LaneTls, service_tls
from runtime.rng import SystemRng
from runtime.tls import CA_FILE, client_context
from wire.errors import ConfigError
from wire.keys import SigningKey


def node_tls(folder: Path | None, door: str, key: SigningKey, genesis: Genesis) -> LaneTls | None:
    """
    TLS of a node that asks for its certificates; None where it does not.

    Raises:
        ConfigError: a door without a folder, or no ca.crt in it.
    """
    if not door:
        return None
    if folder is None:
        raise ConfigError("--door: give the folder of ca.crt with --tls")
    return service_tls(
        folder / CA_FILE, door, folder, key, genesis.market, genesis.issuer,
        clock_from_environment(), SystemRng(),
    )  # fmt: skip


def static_tls(folder: Path | None) -> ssl.SSLContext | None:
    """The context of files that somebody put there; None without a folder."""
    return client_context(folder) if folder is not None else None
