"""The CSM-DB's process: lane, service, and the operators' HTTP API where it is configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from csmdb.advisory_watch import AdvisoryWatch
from csmdb.api import build_app
from csmdb.config import CONFIG, load_config
from csmdb.service import CsmDbService
from csmdb.setup import CsmDb, open_csmdb
from runtime.bus import lane
from runtime.http import listen, serving
from runtime.log import configure
from runtime.process import run_until_stopped
from wire.errors import ConfigError

HOST = "127.0.0.1"
URL_FILE = "http.url"
FIRMWARE_URL_FILE = "firmware.url"


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
                watch = AdvisoryWatch.of(csmdb)
                async with _http(csmdb), _firmware(csmdb), watch.running():
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


@asynccontextmanager
async def _firmware(csmdb: CsmDb) -> AsyncIterator[None]:
    """The firmware repository while the block runs, or nothing where none is configured."""
    config = load_config(csmdb.folder).firmware
    if config.port is None:
        yield
        return
    from csmdb import firmware_http  # noqa: PLC0415  (python-tuf only where it is used)
    from csmdb.firmware_repository import FirmwareRepository  # noqa: PLC0415

    where = f"{csmdb.folder / CONFIG}: firmware"
    repository = FirmwareRepository(csmdb.folder, datetime.now(UTC))
    if not repository.exists:
        raise ConfigError(f"{where}: no repository yet; make one with `csmdb firmware init`")
    listener = listen(config.host, config.port, f"{where}.port", f"{where}.host")
    app = firmware_http.build_app(repository, csmdb.clock.monotonic_s)
    signing = asyncio.create_task(firmware_http.keep_signed(csmdb.folder))
    try:
        async with serving(app, listener, csmdb.folder / FIRMWARE_URL_FILE):
            yield
    finally:
        signing.cancel()
