"""A node's process: key, certificate, lane, node."""

from __future__ import annotations

from pathlib import Path

from ledger.genesis import load_genesis
from ledger.node import Node
from runtime.bus import lane
from runtime.clock import clock_from_environment
from runtime.keyfiles import read_key
from runtime.log import configure
from runtime.process import run_until_stopped
from runtime.rng import SystemRng
from runtime.tls import client_context
from wire.certificates import Certificate, parse
from wire.errors import ConfigError, WireError


def run_node(
    folder: Path,
    key_file: Path,
    certificate_file: Path,
    host: str,
    port: int,
    block_interval_s: float,
    tls_folder: Path | None = None,
) -> None:
    """
    Run a node until SIGTERM or SIGINT; `tls_folder`: see `runtime.tls`.

    Raises:
        ConfigError: a file is missing or wrong.
    """
    log = configure("ledger")
    genesis = load_genesis(folder / "genesis.json")
    key = read_key(key_file)
    certificate = read_certificate(certificate_file)
    tls = client_context(tls_folder) if tls_folder is not None else None
    validator = any(v.id == key.id for v in genesis.validators)
    log.info("starting", id=key.id, chain=genesis.chain_id, validator=validator)

    async def main() -> None:
        clock = clock_from_environment()
        bus = lane(key, genesis.market, certificate, host, port, clock, SystemRng(), tls=tls)
        node = Node(genesis, folder, key, bus, clock, block_interval_s)
        await node.run()

    run_until_stopped(main)


def read_certificate(path: Path) -> Certificate:
    """
    A certificate from its file.

    Raises:
        ConfigError: missing or not a certificate.
    """
    try:
        return parse(Certificate, path.read_text().strip())
    except (OSError, UnicodeDecodeError, WireError) as error:
        raise ConfigError(f"{path}: not a certificate ({error})") from None
