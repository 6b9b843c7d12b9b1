"""
A whole home for tests: devices, provisioning, and `hem run` as a real process.

    site = await Site.open(tmp_path)          # broker, CSM-DB, genesis with 4 s slots
    home = await site.home("home-01", load_w=30_000)
    home.start() … home.process … await home.stop()
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from support.brokers import Authority, make_key, running_broker
from support.feeders import VALIDATORS, RunningLedger, make_genesis
from support.patience import PATIENCE_S

from csmdb.service import CsmDbService
from csmdb.setup import create
from ledger.genesis import Genesis, genesis_bytes
from runtime.bus import MqttBus
from runtime.clock import SystemClock
from runtime.ports import Message
from sim.battery_physics import WMS_PER_WH, BatteryFacts, HomePhysics
from sim.sunspec_server import HomeDevices
from wire import topics
from wire.canonical import decode
from wire.keys import BoxKey, to_text

REPOSITORY = Path(__file__).resolve().parents[2]
MARKET = "test"
SLOT_S = 4
DSO_BOX = BoxKey(bytes(range(32)))
CONNECTION_W = 40_000


@dataclass
class Home:
    """One home's folder, devices and process."""

    name: str
    folder: Path
    devices: HomeDevices
    log: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def file(self) -> Path:
        return self.folder / "provisioning.toml"

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """`hem run`, its log in a file."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hem.cli", "run", str(self.file), *arguments,
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
        return self.process

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and return its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    def children(self) -> list[int]:
        """Process ids of the children: the gateway."""
        assert self.process is not None
        file = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in file.read_text().split()]


@dataclass
class Site:
    """Broker, CSM-DB and genesis of a market with 4 s slots in real time."""

    folder: Path
    stack: AsyncExitStack
    authority: Authority
    genesis: Genesis
    port: int
    csmdb: Any
    states: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    readings: dict[str, list[bytes]] = field(default_factory=dict)
    homes: list[Home] = field(default_factory=list)

    @classmethod
    async def open(cls, folder: Path) -> Site:
        csmdb = create(folder / "csmdb", MARKET, slot_length_s=SLOT_S)
        authority = Authority(MARKET, csmdb.issuing_key)
        stack = AsyncExitStack()
        broker = await stack.enter_async_context(running_broker(authority))
        genesis = make_genesis(
            authority, slot_length_s=SLOT_S, gate_lead_s=1, dso_box_key=to_text(DSO_BOX.public)
        )
        (folder / "genesis.json").write_bytes(genesis_bytes(genesis))
        site = cls(folder, stack, authority, genesis, broker.port, csmdb)
        own = await site.lane(csmdb.issuing_key, credential=csmdb.certificate)
        CsmDbService.on(csmdb, own).start()
        desk = await site.lane(make_key("desk"), roles={"dso", "aggregator"})
        desk.subscribe(topics.build(MARKET, topics.STATE, "+"), site._take_state)
        desk.subscribe(topics.build(MARKET, topics.READING, "+"), site._take_reading)
        return site

    async def lane(self, key: Any, **how: Any) -> MqttBus:
        bus = self.authority.bus(self.port, key, **how)
        await bus.start()
        await bus.wait_connected(PATIENCE_S)
        self.stack.push_async_callback(bus.stop)
        return bus

    async def ledger(self) -> RunningLedger:
        """Four validators, in this process."""
        chain = RunningLedger(self.authority, self.genesis, self.port, self.folder)
        for number in range(len(VALIDATORS)):
            chain.start_node(number)

        async def stop() -> None:
            for actor in chain.actors:
                await actor.client.stop()
                await actor.bus.stop()
            for number in list(chain.tasks):
                await chain.stop_node(number)

        self.stack.push_async_callback(stop)
        return chain

    async def home(
        self, name: str, load_w: int, pv_w: int = 0, soc_wh: int | None = None, code: str = ""
    ) -> Home:
        clock = SystemClock()
        now_ms = clock.now_ms()
        battery = None if soc_wh is None else BatteryFacts(10_000, 5_000, 5_000)
        physics = HomePhysics(
            now_ms, 60_000, lambda _: load_w, lambda _: pv_w, battery,
            Fraction((soc_wh or 0) * WMS_PER_WH), origin_ms=now_ms,
        )  # fmt: skip
        devices = HomeDevices(name, physics, clock, has_pv=pv_w > 0)
        device_port = await devices.start("127.0.0.1", 0)
        self.stack.push_async_callback(devices.stop)
        folder = Path(tempfile.mkdtemp(prefix="hg"))  # short: a Unix socket's path has 107 bytes
        self.stack.callback(shutil.rmtree, folder, True)
        code = code or self.csmdb.add_claim(["prosumer"], CONNECTION_W, CONNECTION_W, "feeder-1")
        units = [(1, "meter", "meter")]
        units += [(2, "pv", "inverter")] if pv_w else []
        units += [(3, "battery", "battery")] if battery else []
        tables = "".join(
            f'[[devices]]\nname = "{n}"\nkind = "sunspec-{kind}"\nport = {device_port}\n'
            f"device_id = {unit}\n"
            for unit, n, kind in units
        )
        (folder / "provisioning.toml").write_text(f"""
[home]
name = "{name}"
claim_code = "{code}"
data_dir = "data"
[broker]
port = {self.port}
[market]
name = "{MARKET}"
genesis = "{self.folder / "genesis.json"}"
csmdb = "{self.csmdb.id}"
csmdb_key = "{to_text(self.csmdb.issuing_key.public)}"
csmdb_box = "{to_text(self.csmdb.box.public)}"
[gateway]
socket = "gw.sock"
cache_s = 0.05
{tables}
""")
        home = Home(name, folder, devices, self.folder / f"{name}.log")
        self.homes.append(home)
        return home

    def named(self, name: str) -> list[dict[str, Any]]:
        """States a home has told, found by its meter's serial: they do not say its name."""
        own = {
            row["id"]
            for row in self.csmdb.repository.list_participants()
            if row["meter_serial"] == f"{name}-m"
        }
        return [state for who in own for state in self.states.get(who, [])]

    async def close(self) -> None:
        for home in self.homes:
            if home.process is not None and home.process.returncode is None:
                home.process.kill()
                await home.process.wait()
        await self.stack.aclose()
        self.csmdb.close()

    async def _take_state(self, message: Message) -> None:
        leaf = topics.parse(message.topic).leaf
        self.states.setdefault(leaf, []).append(decode(message.payload)["parameters"])

    async def _take_reading(self, message: Message) -> None:
        self.readings.setdefault(topics.parse(message.topic).leaf, []).append(message.payload)


def log_lines(home: Home) -> list[dict[str, Any]]:
    """What a home has logged."""
    if not home.log.exists():
        return []
    lines = home.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]
