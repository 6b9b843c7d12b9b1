"""
`hearthgrid demo`: one feeder, one day, every part real.

Starts broker, CSM-DB, four validators, aggregator, analytics, the homes' Modbus devices and one HEM
(with its gateway) per home, each in a process of its own; lets market time run; then stops them,
has a separate process audit the chain from genesis, and writes the report.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger.store import LedgerStore
from runtime.clock import ScaledClock, write_clock
from sim.feeder import DEFAULT_TRADE, SLOT_S, WARM_UP_SLOTS, Feeder, Trade, build_feeder
from sim.processes import Processes, wait_for
from wire.errors import ConfigError

WARM_UP_SPEED = 1.0
READY_TIMEOUT_S = 120.0
QUIET_TIMEOUT_S = 5.0
PERIOD_S = 0.5
SETTLE_SLOTS = 2
"""Slots after the last one until it is settled (grace period, then the seal)."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a person chose on the command line."""

    out: Path
    homes: int = 10
    speed: float = 600.0
    seed: int = 1
    slots: int = 96
    profiles: Path | None = None
    page_port: int = 0
    start_hour: int = 0
    trade: Trade = DEFAULT_TRADE


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: for a progress bar, a log line or a test."""

    stage: str
    done: float
    """0…1 within the stage."""
    live: dict[str, Any]
    """The console's summary, when it answers."""


Report = Callable[[Progress], None]


class Demo:
    """
    A run that can be started, watched, disturbed (by tests) and finished.

    Raises:
        ConfigError: an option cannot be used.
    """

    def __init__(self, options: DemoOptions) -> None:
        self.options = options
        _check_port(options.page_port)
        self.feeder: Feeder = build_feeder(
            options.out,
            options.homes,
            options.seed,
            options.slots,
            options.profiles,
            options.start_hour,
            options.trade,
        )
        self.clock_path = options.out / "clock.json"
        self._segments: list[tuple[float, int, float]] = [
            (time.time(), self.feeder.start_ms - WARM_UP_SLOTS * SLOT_S * 1000, WARM_UP_SPEED)
        ]
        write_clock(self.clock_path, self._segments)
        self.clock = ScaledClock(self.clock_path)
        self.processes = Processes(
            logs=options.out / "logs",
            environment={
                "HEARTHGRID_CLOCK": str(self.clock_path.resolve()),
                "PYTHONUNBUFFERED": "1",
            },
        )
        self.broker_port = 0
        self.page_port = 0
        self.home_states: dict[str, dict[str, Any]] = {}
        """Per home, its state right after the last slot."""

    @property
    def end_ms(self) -> int:
        """Market time at which the last slot has been settled."""
        return self.feeder.end_ms + SETTLE_SLOTS * SLOT_S * 1000 + 120_000

    @property
    def page_url(self) -> str:
        """Where the live page is."""
        return f"http://127.0.0.1:{self.page_port}/"

    def start(self) -> Iterator[Progress]:
        """Start every process; yields until all homes are enrolled and may trade."""
        feeder, processes = self.feeder, self.processes
        port_file = feeder.out / "broker" / "port"
        processes.start("broker", "broker.cli", *feeder.broker_arguments(port_file))
        yield from self._wait("broker", port_file.exists)
        self.broker_port = int(port_file.read_text())
        ports_file = feeder.out / "devices.json"
        processes.start("devices", "sim.devices", *feeder.device_arguments(ports_file))
        processes.start("csmdb", "csmdb.cli", *feeder.csmdb_arguments(self.broker_port))
        for index in range(len(feeder.validators)):
            name = f"ledger-{index + 1}"
            processes.start(name, "ledger.cli", *feeder.ledger_arguments(index, self.broker_port))
        page_file = feeder.out / "analytics" / "port"
        processes.start(
            "analytics",
            "analytics.cli",
            *feeder.analytics_arguments(self.broker_port, self.options.page_port, page_file),
        )
        processes.start(
            "aggregator", "aggregator.cli", *feeder.aggregator_arguments(self.broker_port)
        )
        yield from self._wait("devices", ports_file.exists)
        feeder.write_provisioning(self.broker_port, json.loads(ports_file.read_text()))
        for home in feeder.homes:
            processes.start(
                home.name, "hem.cli", "run", feeder.home_folder(home) / "provisioning.toml"
            )
        yield from self._wait("console", page_file.exists)
        self.page_port = int(page_file.read_text())
        yield from self._wait("homes", self._all_funded)

    def go(self) -> None:
        """Let market time run at the chosen speed from now on."""
        now_ms = self.clock.now_ms()
        self._segments.append((time.time(), now_ms, self.options.speed))
        write_clock(self.clock_path, self._segments)

    def restart_broker(self) -> None:
        """Start the broker again, on the port it had."""
        port_file = self.feeder.out / "broker" / "port"
        self.processes.start(
            "broker", "broker.cli", *self.feeder.broker_arguments(port_file, self.broker_port)
        )

    def run(self) -> Iterator[Progress]:
        """Yield progress until the day is over and settled."""
        start_ms = self.clock.now_ms()
        while (now_ms := self.clock.now_ms()) < self.end_ms:
            self.processes.check()
            yield Progress("day", (now_ms - start_ms) / (self.end_ms - start_ms), self.live())
            if now_ms < self.feeder.end_ms or len(self.home_states) == len(self.feeder.homes):
                time.sleep(PERIOD_S)
            else:
                self._read_states()
                time.sleep(PERIOD_S / 10)

    def live(self) -> dict[str, Any]:
        """The console's summary, or nothing while it does not answer."""
        return self._get("api/summary")

    def _read_states(self) -> None:
        """Keep what each home's gateway says first after the last slot (from the console)."""
        feeder = self.feeder
        names = {feeder.identity(home)["participant"]: home.name for home in feeder.homes}
        for row in self._get("api/live").get("homes", []):
            if row["id"] in names and row["timeMs"] >= self.feeder.end_ms:
                self.home_states.setdefault(names[row["id"]], row)

    def settle_down(self) -> None:
        """Stop the homes, let every node execute what is final, then stop the rest."""
        homes = [home.name for home in self.feeder.homes]
        self.processes.stop(homes)
        deadline_s = time.monotonic() + QUIET_TIMEOUT_S
        while time.monotonic() < deadline_s and len(set(self._heights())) > 1:
            time.sleep(0.2)
        self.processes.stop()

    def _heights(self) -> list[int]:
        heights = []
        for index in range(len(self.feeder.validators)):
            store = LedgerStore.in_folder(self.feeder.ledger_folder(index), read_only=True)
            heights.append(store.height)
            store.close()
        return heights

    def _get(self, path: str) -> dict[str, Any]:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.page_port, timeout=2)
            connection.request("GET", "/" + path)
            found: dict[str, Any] = json.load(connection.getresponse())
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        return found

    def stop(self) -> None:
        """Stop every process."""
        self.processes.stop()

    def _wait(self, what: str, condition: Callable[[], bool]) -> Iterator[Progress]:
        started_s = time.monotonic()
        for _ in wait_for(what, condition, READY_TIMEOUT_S, self.processes.check):
            yield Progress(f"starting: {what}", min(1.0, (time.monotonic() - started_s) / 30), {})

    def _all_funded(self) -> bool:
        return int(self.live().get("funded", 0)) >= len(self.feeder.homes)


def _check_port(port: int) -> None:
    """Say so before anything starts when the page's port is taken."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"--page-port {port}: cannot be used ({error.strerror}); choose another, or 0"
            ) from None
