"""The CSM-DB's process: lane and service."""

from __future__ import annotations

import asyncio
from pathlib import Path

from csmdb.service import CsmDbService
from csmdb.setup import open_csmdb
from runtime.bus import lane
from runtime.log import configure
from runtime.process import run_until_stopped


def run_service(folder: Path, host: str, port: int) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the folder is not a CSM-DB's.
    """
    log = configure("csmdb")
    with open_csmdb(folder) as csmdb:
        log.info("starting", id=csmdb.id, market=csmdb.market, host=host, port=port)

        async def main() -> None:
            bus = lane(
                csmdb.issuing_key, csmdb.market, csmdb.certificate, host, port, csmdb.clock,
                csmdb.rng,
            )  # fmt: skip
            CsmDbService.on(csmdb, bus).start()
            await bus.start()
            try:
                await asyncio.Event().wait()
            finally:
                await bus.stop()

        run_until_stopped(main)
