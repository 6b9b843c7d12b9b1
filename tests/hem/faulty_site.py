"""
A home whose lines and devices fail on command, before a real gateway process.

    async with site_of(tmp_path, [line, …]) as site:
        async with site.gateway() as gateway:       # `hem gateway`, with its log
            await FAULTS["mute"].strike(line)

A healthy meter and inverter, whose registers rise by several Wh a second, are always there. Each
`Line` is a device behind a cable of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

from modbus_rig import TcpCable, honest
from register_server import Registers, devices_of, fixture, served
from support.patience import PATIENCE_S
from test_gateway_service import provision

from hem.gateway.client import GatewayClient
from hem.gateway.leases import BOOK, watchdog_file
from hem.gateway.template import load_template
from runtime.clock import SystemClock
from sim.battery_physics import WMS_PER_WH, BatteryFacts, HomePhysics
from sim.sunspec_server import BASE, BATTERY_ID, HomeDevices, Image

ROOT = Path(__file__).parents[2]
LOAD_W, PV_W = 30_000, 20_000
"""So much that the healthy devices' registers rise with every second."""
NOISE = random.Random(7).randbytes(300)


# --- Faults --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What happens to a line, and how it ends."""

    strike: Callable[[TcpCable], None]
    mend: Callable[[TcpCable], Awaitable[None]]


def _answering(change):
    """A device that answers something else."""

    def strike(cable):
        cable.pass_on = lambda data: [(0.0, change(data))] if change(data) else []

    async def mend(cable):
        cable.pass_on = honest

    return Fault(strike, mend)


def _byte(place, change):
    """Another byte in the frame (Modbus TCP: 6 is the unit, 7 the function)."""
    return lambda data: data[:place] + bytes([change(data[place]) & 0xFF]) + data[place + 1 :]


FAULTS = {
    "unplugged": Fault(lambda cable: cable.unplug(), lambda cable: cable.plug_in()),
    "vanished": Fault(lambda cable: cable.vanish(), lambda cable: cable.reappear()),
    "mute": _answering(lambda data: b""),
    "noise": _answering(lambda data: NOISE),
    "wrong function": _answering(_byte(7, lambda function: 3 if function == 4 else 4)),
    "wrong unit": _answering(_byte(6, lambda unit: unit + 1)),
    "truncated": _answering(lambda data: data[:-3]),
}


# --- Devices -------------------------------------------------------------------------------------


@dataclass
class Line:
    """A device behind a cable."""

    name: str
    cable: TcpCable
    facts: dict[str, object]
    """Its section of the provisioning file, without name and port."""
    registers: Registers | None = None

    @property
    def section(self):
        keys = {"name": self.name, "port": self.cable.port, **self.facts}
        return "[[devices]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())


@asynccontextmanager
async def cable_to(port):
    cable = TcpCable(port)
    await cable.plug_in()
    try:
        yield cable
    finally:
        with suppress(OSError):
            cable.unplug()
        for one in (*cable.fillers, *([cable.hole] if cable.hole else [])):
            one.close()


@asynccontextmanager
async def template_line(name, identity, use, registers=None):
    """A device of a template, as its fixture says; its registers may be of another kind."""
    template = load_template(identity)
    found = registers or devices_of(template)[template.device_id]
    async with served({template.device_id: found}) as port, cable_to(port) as cable:
        facts = {"kind": "template", "template": identity, "use": [use]}
        facts |= fixture(identity).get("parameters", {})
        yield Line(name, cable, facts, found)


@asynccontextmanager
async def sunspec_line(name, kind, models):
    """A SunSpec device with these values, which stay as they are."""
    registers, image = (
        Registers(),
        Image({1: {"Mn": "A", "Md": "B", "Vr": "1", "SN": "2"}} | models),
    )
    for i, word in enumerate(image.registers):
        registers.tables["holding"][BASE + i] = word
    async with served({1: registers}) as port, cable_to(port) as cable:
        yield Line(name, cable, {"kind": f"sunspec-{kind}"}, registers)


PV = {103: {"W": 1_000, "W_SF": 0, "WH": 5_000, "WH_SF": 0}}
"""Model 103 of an inverter."""
METER = {203: {"W": 20, "W_SF": 2, "TotWhImp": 5_000, "TotWhExp": 0, "TotWh_SF": 0}}
"""Model 203 of a meter that counts in 100 W."""
METER_AT = BASE + 2 + 68
"""Where it begins: after the marker and model 1."""


class Battery(Line):
    """A battery on a line; `neutral()` looks into the device itself."""

    def neutral(self):
        rows = fixture(self.facts["template"])["neutral"]["registers"]
        return all(
            self.registers.get(row["address"], len(row["words"].split())) == row["words"]
            for row in rows
        )


class Timed(Registers):
    """
    A battery that gives itself back when nothing was written for a while.

    Args:
        identity: of its template
        seconds_at: the register that says for how long, or
        revert_s: how long
    """

    def __init__(self, identity, seconds_at=0, revert_s=0.0):
        template = load_template(identity)
        super().__init__(**vars(devices_of(template)[template.device_id]))
        self.neutral = fixture(identity)["neutral"]["registers"]
        self.seconds_at, self.revert_s, self.timer = seconds_at, revert_s, None

    async def act(self, function, start, address, count, words, values):
        code = await super().act(function, start, address, count, words, values)
        if code is None and function in (6, 16):
            if self.timer is not None:
                self.timer.cancel()
            seconds = self.revert_s or self.tables["holding"][self.seconds_at]
            self.timer = asyncio.get_running_loop().call_later(seconds, self._revert)
        return code

    def _revert(self):
        for row in self.neutral:
            self.put("holding", row["address"], row["words"])


@asynccontextmanager
async def template_battery(identity, **timer):
    """A battery of a template; its own timer, where it has one, is ours to play."""
    registers = Timed(identity, **timer) if timer else None
    async with template_line("battery", identity, "battery", registers) as line:
        yield Battery(line.name, line.cable, line.facts, line.registers)


@asynccontextmanager
async def sunspec_battery():
    """A simulated battery with model 124 and its reversion timer."""
    async with home_devices(battery=True) as (devices, port), cable_to(port) as cable:
        made = Battery("battery", cable, {"kind": "sunspec-battery", "device_id": BATTERY_ID})
        made.neutral = lambda: devices.images[BATTERY_ID].get(124, "StorCtl_Mod") == 0
        yield made


@asynccontextmanager
async def home_devices(battery=False):
    clock = SystemClock()
    facts = BatteryFacts(10_000, 5_000, 5_000) if battery else None
    physics = HomePhysics(
        clock.now_ms(), 60_000, lambda _: LOAD_W, lambda _: PV_W, facts,
        Fraction(5_000 * WMS_PER_WH),
    )  # fmt: skip
    devices = HomeDevices("home-01", physics, clock, has_pv=True)
    port = await devices.start("127.0.0.1", 0)
    try:
        yield devices, port
    finally:
        await devices.stop()


# --- The site ------------------------------------------------------------------------------------


@dataclass
class Site:
    """The provisioning file, and whatever runs on it."""

    folder: Path
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    @property
    def log(self):
        return self.folder / "log"

    def lines(self, event=None):
        """What was logged: (event, device), watchdog and all."""
        text = self.log.read_text() if self.log.exists() else ""
        said = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [one for one in said if event in (None, one["event"])]

    def told(self, event, device):
        """How often an event was logged of a device."""
        return sum(one.get("device") == device for one in self.lines(event))

    async def start(self):
        """`hem gateway` as a process; returns when it answers."""
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hem.cli", "gateway", str(self.folder / "provisioning.toml"),
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.started.append(process)
        client = GatewayClient(self.folder / "gw.sock", PATIENCE_S)
        await client.wait_ready(PATIENCE_S)
        return SimpleNamespace(process=process, client=client)

    async def close(self):
        for process in self.started:
            if process.returncode is not None:
                continue
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        end_watchdog(self.folder / "data/gateway")


@asynccontextmanager
async def site_of(lines, healthy=("meter", "inverter"), extra=""):
    """A site with these devices besides the healthy ones."""
    folder = Path(tempfile.mkdtemp(prefix="hg"))  # short: a Unix socket's path has 107 bytes
    site = Site(folder)
    async with home_devices() as (_devices, port):
        provision(folder, port, extra)
        file = folder / "provisioning.toml"
        head, *sections = file.read_text().split("[[devices]]\n")
        kept = [one for one in sections if any(f"sunspec-{kind}" in one for kind in healthy)]
        file.write_text(head + "".join("[[devices]]\n" + one for one in kept))
        with file.open("a") as out:
            out.writelines(line.section for line in lines)
        try:
            yield site
        finally:
            await site.close()
            shutil.rmtree(folder, ignore_errors=True)


async def until(condition, told=lambda: ""):
    """Wait until `condition()` is true; returns how long that took [s]."""
    began_s = time.monotonic()
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return time.monotonic() - began_s
        assert time.monotonic() < began_s + PATIENCE_S, told()
        await asyncio.sleep(0.05)


def end_watchdog(folder):
    """The watchdog of a gateway's folder, where there is one: it is nobody's child."""
    with suppress(OSError, ValueError):
        os.kill(int(watchdog_file(folder / BOOK).read_text()), signal.SIGTERM)


def end(process, number=signal.SIGKILL):
    """As a crash does it."""
    process.send_signal(number)
    return process.wait()
