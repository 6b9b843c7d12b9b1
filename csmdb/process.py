"""The CSM-DB's process: lane, service; the operators' HTTP API and the door where configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from csmdb.advisory_watch import AdvisoryWatch
from csmdb.api import build_app
from csmdb.config import CONFIG, load_config
from csmdb.door import CERTIFICATE, KEY, build_door, write_door_certificate
from csmdb.service import CsmDbService
from csmdb.setup import CsmDb, open_csmdb
from csmdb.tls import write_own
from runtime import process
from runtime.bus import lane
from runtime.http import listen, serving
from runtime.log import configure
from runtime.tls import client_context
from wire.errors import ConfigError

HOST = "127.0.0.1"
URL_FILE, FIRMWARE_URL_FILE, DOOR_URL_FILE = "http.url", "firmware.url", "door.url"


def run_service(folder: Path, host: str, port: int, *, tls: bool = False) -> None:
    """
    Serve until SIGTERM or SIGINT.

    Args:
        tls: connect to the broker with a certificate of our own authority

    Raises:
        ConfigError: the folder is not a CSM-DB's.
    """
    log = configure("csmdb")
    with open_csmdb(folder) as csmdb:
        log.info("starting", id=csmdb.id, market=csmdb.market, host=host, port=port)

        context = client_context(write_own(csmdb)) if tls else None

        async def main() -> None:
            bus = lane(
                csmdb.issuing_key, csmdb.market, csmdb.certificate, host, port, csmdb.clock,
                csmdb.rng, tls=context,
            )  # fmt: skip
            service = CsmDbService.on(csmdb, bus)
            service.start()
            await bus.start()
            try:
                watch = AdvisoryWatch.of(csmdb)
                async with _http(csmdb), _firmware(csmdb), _door(service), watch.running():
                    await asyncio.Event().wait()
            finally:
                await bus.stop()

        process.run_service(main)


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


def _door(service: CsmDbService) -> AbstractAsyncContextManager[object]:
    """The door while the block runs, or nothing where none is configured."""
    csmdb, config = service.csmdb, load_config(service.csmdb.folder).door
    if config.port is None:
        return nullcontext()
    where = f"{csmdb.folder / CONFIG}: door"
    write_door_certificate(csmdb, config.names)
    listener = listen(config.host, config.port, f"{where}.port", f"{where}.host")
    files = csmdb.folder / CERTIFICATE, csmdb.folder / KEY
    return serving(build_door(service), listener, csmdb.folder / DOOR_URL_FILE, files)
