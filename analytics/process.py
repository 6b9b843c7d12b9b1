"""The analytics process: files, lane, service and console, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from analytics.config import AnalyticsConfig, read_certificate, read_password
from analytics.facts import facts_of
from analytics.report import DATABASE, build_report
from analytics.service import AnalyticsService
from analytics.web import build_app
from ledger.genesis import Genesis, load_genesis
from runtime.bus import lane
from runtime.clock import clock_from_environment
from runtime.http import MAX_CONNECTIONS
from runtime.http_protocol import BoundedProtocol
from runtime.keyfiles import read_key
from runtime.lane_tls import certified, service_tls
from runtime.log import configure
from runtime.process import run_service
from runtime.rng import SystemRng
from wire.errors import ConfigError

REPORT_AGE_S = 5.0


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the process has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


def run_analytics(config: AnalyticsConfig, port_file: Path | None, *, as_json: bool) -> None:
    """
    Run until stopped.

    Args:
        port_file: where to write the console's port once it listens
        as_json: say where the console is as JSON on standard output

    Raises:
        ConfigError: a file is missing or wrong, or the port is taken.
    """
    log = configure("analytics")
    genesis = load_genesis(config.market.genesis)
    key = read_key(config.service.key)
    certificate = read_certificate(config.service.certificate, key)
    password = read_password(config.web)
    listener = _listen(config.web.host, config.web.port)
    host, port = listener.getsockname()[:2]
    clock, rng = clock_from_environment(), SystemRng()

    async def main() -> None:
        broker = config.broker
        own = service_tls(
            broker.ca, broker.door, config.service.data_dir / "tls", key, genesis.market,
            genesis.issuer, clock, rng,
        )  # fmt: skip
        bus = lane(
            key, genesis.market, certificate, broker.host, broker.port, clock, rng,
            tls=own.context_for(key.id) if own is not None else None,
        )  # fmt: skip
        async with certified(own, key.id):
            service = AnalyticsService(
                facts_of(genesis), genesis, bus, clock, rng, config.service.data_dir, key.id,
                currency=config.market.currency, retain_days=config.keep.days,
            )  # fmt: skip
            await service.start()
            await bus.start()
            reports = _Reports(config, genesis)
            app = build_app(
                service.view,
                service.situation,
                reports.get,
                password=password,
                hosts=config.web.hosts,
            )
            server = _Server(
                uvicorn.Config(
                    app,
                    log_level="warning",
                    access_log=False,
                    lifespan="off",
                    http=BoundedProtocol,
                    limit_concurrency=MAX_CONNECTIONS,
                )
            )
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            _say(host, port, port_file, as_json=as_json)
            log.info("console", url=f"http://{host}:{port}/", chain=genesis.chain_id)
            try:
                await serving
            finally:
                server.should_exit = True
                server.force_exit = True
                await asyncio.wait([serving], timeout=2)
                await bus.stop()
                await service.stop()

    try:
        run_service(main)
    finally:
        listener.close()


class _Reports:
    """Reports for the page, made at most every few seconds: folding a database costs time."""

    def __init__(self, config: AnalyticsConfig, genesis: Genesis) -> None:
        self._path = config.service.data_dir / DATABASE
        self._genesis = genesis
        self._currency = config.market.currency
        self._clock = clock_from_environment()
        self._made: tuple[float, dict[str, Any]] | None = None

    def get(self) -> dict[str, Any]:
        """The report so far."""
        now_s = self._clock.monotonic_s()
        if self._made is None or now_s - self._made[0] > REPORT_AGE_S:
            report = build_report(self._path, self._genesis, currency=self._currency)
            self._made = (self._clock.monotonic_s(), report)
        return self._made[1]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(f"web: cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _say(host: str, port: int, port_file: Path | None, *, as_json: bool) -> None:
    """Tell where the console is: the port file appears whole or not at all."""
    if port_file is not None:
        port_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = port_file.with_suffix(".tmp")
        temporary.write_text(f"{port}\n", encoding="ascii")
        temporary.replace(port_file)
    url = f"http://{host}:{port}/"
    print(json.dumps({"url": url, "port": port}) if as_json else f"Console: {url}", flush=True)  # noqa: T201
