"""The CSM-DB's process: lane, service, signals."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from csmdb.service import CsmDbService
from csmdb.setup import CsmDb, open_csmdb
from runtime.bus import lane
from runtime.log import configure


def run_service(folder: Path, host: str, port: int) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the folder is not a CSM-DB's.
    """
    log = configure("csmdb")
    with open_csmdb(folder) as csmdb:
        log.info("starting", id=csmdb.id, market=csmdb.market, host=host, port=port)
        asyncio.run(_serve(csmdb, host, port))


async def _serve(csmdb: CsmDb, host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    bus = lane(
        csmdb.issuing_key, csmdb.market, csmdb.certificate, host, port, csmdb.clock, csmdb.rng
    )
    CsmDbService.on(csmdb, bus).start()
    await bus.start()
    await stopped.wait()
    await bus.stop()
