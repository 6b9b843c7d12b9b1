"""The process of a light client: key, certificate, lane, follower, checkpoint file."""

from __future__ import annotations

from pathlib import Path

from ledger.checkpoint import CHECKPOINT_FILE, genesis_checkpoint, read_checkpoint
from ledger.genesis import load_genesis
from ledger.light import ConflictError, TrustExpiredError
from ledger.light_sync import LightFollower, keep_evidence
from ledger.node_tls import node_tls, static_tls
from runtime.bus import lane
from runtime.clock import clock_from_environment
from runtime.keyfiles import read_certificate, read_key
from runtime.lane_tls import certified
from runtime.log import configure
from runtime.process import run_service
from runtime.rng import SystemRng
from wire.errors import ConfigError


def run_light(
    folder: Path,
    key_file: Path,
    certificate_file: Path,
    host: str,
    port: int,
    tls_folder: Path | None = None,
    door: str = "",
) -> None:
    """
    Follow headers until SIGTERM or SIGINT; go on from `checkpoint.json`, else from the genesis.

    Raises:
        ConfigError: a file is missing or wrong, or of another chain; offline for too long; or two
            validators showed what excludes each other.
    """
    log = configure("ledger")
    genesis = load_genesis(folder / "genesis.json")
    file = folder / CHECKPOINT_FILE
    trust = read_checkpoint(file) if file.exists() else genesis_checkpoint(genesis)
    if trust.chain_id != genesis.chain_id:
        raise ConfigError(f"{file}: of chain {trust.chain_id}; remove it to start at the genesis")
    key = read_key(key_file)
    certificate = read_certificate(certificate_file)
    own = node_tls(tls_folder, door, key, genesis)
    tls = own.context_for(key.id) if own is not None else static_tls(tls_folder)
    log.info("starting", id=key.id, chain=genesis.chain_id, light=True, height=trust.height)

    async def main() -> None:
        clock = clock_from_environment()
        bus = lane(key, genesis.market, certificate, host, port, clock, SystemRng(), tls=tls)
        follower = LightFollower(bus, genesis, clock, key.id, trust=trust)
        async with certified(own, key.id):
            await follower.start()
            await bus.start()
            try:
                await bus.wait_connected()
                await follower.run(file)
            finally:
                await bus.stop()

    try:
        run_service(main)
    except TrustExpiredError as error:
        raise ConfigError(
            f"{file}: {error}; put a newer one there, made by somebody you trust"
            " with `ledger checkpoint`"
        ) from None
    except ConflictError as error:
        evidence = keep_evidence(folder, error.conflict)
        guilty = ", ".join(error.conflict.guilty) or "in the votes of these views"
        raise ConfigError(
            f"two blocks are final that exclude each other (guilty: {guilty}); believe nobody"
            f" before this is cleared up; evidence: {evidence}"
        ) from None
