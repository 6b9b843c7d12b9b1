"""The CSM-DB's process: lane, service, and the operators' HTTP API where it is configured."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from csmdb.api import build_app
from csmdb.config import CONFIG, load_config
from csmdb.service import CsmDbService
from csmdb.setup import CsmDb, open_csmdb
from runtime.bus import lane
from runtime.http import listen, serving
from runtime.log import configure
from runtime.process import run_until_stopped

HOST = "127.0.0.1"
URL_FILE = "http.url"


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
                async with _http(csmdb):
                    await asyncio.Event().wait()
            finally:
                await bus.stop()

        run_until_stopped(main)


def _http(csmdb: CsmDb) -> AbstractAsyncContextManager[object]:
    """The HTTP API while the block runs, or nothing where none is configured."""
    config = load_config(csmdb.folder).http
    if config.port is None:
        return nullcontext()
    listener = listen(HOST, config.port, f"{csmdb.folder / CONFIG}: http.port")
    return serving(build_app(csmdb, config.names), listener, csmdb.folder / URL_FILE)
