"""A battery with SunSpec's 700 models is read, held by model 704 and given back (real sockets)."""

import asyncio
import math
import time
from contextlib import asynccontextmanager

import pytest
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from sunspec2 import device as sunspec
from support.patience import PATIENCE_S

from hem.config import Device
from hem.gateway.devices import Site
from hem.gateway.links import Connection, link_for
from hem.gateway.modbus import DeviceLostError, DeviceRefusedError
from hem.gateway.sunspec_device import SunSpecSource

BASE = 40_000
OWN_W = -1_500
"""Of the battery in its own mode, + discharge."""
COMMON = {"Mn": "Simulated", "Md": "HG-DER", "Vr": "2.0", "SN": "der-1"}
METERED = {"W_SF": 0, "TotWhInj": 4_321, "TotWhAbs": 0, "TotWh_SF": 0}
RATED = {"WMaxRtg": 60, "WChaRteMaxRtg": 50, "WDisChaRteMaxRtg": 40, "W_SF": 2}
STORED = {"WHRtg": 100, "SoC": 735, "WH_SF": 2, "Pct_SF": -1}
CONTROLS = {
    "WSetEna": 0, "WSetMod": 0, "WSet": 0, "WSetPct": 0, "WSetEnaRvrt": 0, "WSetRvrtTms": 0,
    "WSetRvrtRem": 0, "WSet_SF": 1, "WSetPct_SF": -2,
}  # fmt: skip
OTHERS = 64_001
"""A vendor's own model."""


class Der:
    """
    Inverter and battery behind it, with the registers that pysunspec2 makes of the values.

    Args:
        pv_w: of the PV port; None for no such port
        timer: `runs`, `late` (shown after a moment), `cosmetic` (writable, never runs), or none
        missing: points of model 704 that it does not have
        deaf: points of model 704 that take a write and keep what they had
        ports: whether it has model 714
    """

    def __init__(self, pv_w=None, timer="runs", missing=(), deaf=(), ports=True):
        self.pv_w, self.timer, self.deaf = pv_w, timer, deaf
        gone = {*missing, *(() if timer else ("WSetEnaRvrt", "WSetRvrtTms", "WSetRvrtRem"))}
        controls = {name: value for name, value in CONTROLS.items() if name not in gone}
        self.data = {1: COMMON, 701: METERED, 702: RATED, 704: controls, 713: STORED}
        if ports:
            kinds = [1] if pv_w is None else [0, 1]
            self.data[714] = {"NPrt": len(kinds), "Prt": [{"PrtTyp": kind} for kind in kinds]}
            self.data[714] |= {"DCW_SF": 1}
        self.models, self.starts, self.registers = {}, {}, [0x5375, 0x6E53]
        for number, values in self.data.items():
            self.models[number] = sunspec.Model(number, data={"ID": number, **values})
            self.starts[number] = len(self.registers)
            self.registers += self._words(self.models[number])
        self.registers += [0xFFFF, 0]
        self.ends_at_s = math.inf
        self.writes = []

    @staticmethod
    def _words(thing):
        data = thing.get_mb()
        return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]

    def address(self, name, model=704):
        return BASE + self.starts[model] + self.models[model].points[name].offset

    def get(self, name, model=704):
        point = self.models[model].points[name]
        start = self.address(name, model) - BASE
        part = self.registers[start : start + point.len]
        return point.info.data_to(b"".join(word.to_bytes(2, "big") for word in part))

    def set(self, model, place, value):
        """A point, also of a port, as pysunspec2 lays it out."""
        place.value = value
        start = self.starts[model] + place.offset
        self.registers[start : start + place.len] = self._words(place)

    def put(self, name, value, model=704):
        self.set(model, self.models[model].points[name], value)

    @property
    def battery_w(self):
        """What flows."""
        self.refresh()
        if self.get("WSetEna") != 1:
            return OWN_W
        if self.get("WSetMod") == 1:
            ac_w = self.get("WSet") * 10
        else:
            ac_w = self.get("WSetPct") * 6_000 // 10_000
        return ac_w - (self.pv_w or 0)

    def refresh(self):
        now_s = asyncio.get_running_loop().time()
        if now_s >= self.ends_at_s:
            self.ends_at_s = math.inf
            self.put("WSetEna", self.get("WSetEnaRvrt"))
        if self.timer in ("runs", "late"):
            left_s = self.ends_at_s - now_s
            total_s = self.get("WSetRvrtTms")
            hidden = self.timer == "late" and left_s > total_s - 0.3
            running = math.isfinite(left_s) and not hidden
            self.put("WSetRvrtRem", math.ceil(left_s) if running else 0)

    def show(self):
        """The measurements into the registers."""
        battery_w = self.battery_w
        self.put("W", battery_w + (self.pv_w or 0), 701)
        if 714 in self.models:
            for port in self.models[714].groups["Prt"]:
                watts = battery_w if port.points["PrtTyp"].value == 1 else self.pv_w
                self.set(714, port.points["DCW"], watts // 10)

    async def action(self, function, start, address, count, registers, values):
        self.refresh()
        if function in (6, 16):
            self.writes.append((address, list(values)))
            deaf = {self.address(name) + i for name in self.deaf for i in (0, 1)}
            for place, value in enumerate(values, address):
                if place not in deaf:
                    self.registers[place - BASE] = value
            touched = range(address, address + count)
            winds = {self.address("WSetEna"), self.address("WSetRvrtTms")} & set(touched)
            if not self.timer and self.address("WSetRvrtTms") in touched:
                return ExcCodes.ILLEGAL_ADDRESS
            if winds and self.timer in ("runs", "late"):
                seconds, enabled = self.get("WSetRvrtTms"), self.get("WSetEna") == 1
                now_s = asyncio.get_running_loop().time()
                self.ends_at_s = now_s + seconds if enabled and seconds else math.inf
        self.show()
        registers[: len(self.registers)] = self.registers
        return None


class Notes:
    """A log that remembers."""

    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append((event, facts.get("device")))

    warning = info


@asynccontextmanager
async def served(**facts):
    """The device, and its port."""
    der = Der(**facts)
    block = [SimData(BASE, values=list(der.registers), datatype=DataType.REGISTERS)]
    server = ModbusTcpServer([SimDevice(1, block, action=der.action)], address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    try:
        yield der, server.transport.sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


@asynccontextmanager
async def reached(**facts):
    """The device, and a site that has met it."""
    kind = facts.pop("kind", "sunspec")
    async with served(**facts) as (der, port):
        site = Site([Device(name="der", kind=kind, port=port)], 20.0, Notes())
        await site.poll(0.0)
        try:
            yield der, site
        finally:
            site.close()


async def until(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


async def test_capacity_limits_charge_and_power_are_read_from_the_700_models():
    async with reached() as (_der, site):
        state = await site.poll(0.0)
        assert state.devices == {"der": "ok"}
        battery = state.battery
        assert (battery.capacity_wh, battery.max_charge_w, battery.max_discharge_w) == (
            10_000, 5_000, 4_000,
        )  # fmt: skip
        assert (state.battery_w, state.soc_permille) == (OWN_W, 735)
        assert site.inverters == [], "its own inverter is no PV"


@pytest.mark.parametrize("facts", [{"ports": False}, {}], ids=["AC power", "storage port"])
async def test_a_setpoint_is_held_read_back_and_given_back(facts):
    async with reached(**facts) as (der, site):
        assert await site.battery.command(3_330, 60, 0.0) == 3_330
        assert (await site.poll(0.0)).battery_w == der.battery_w == 3_330
        assert (der.get("WSetMod"), der.get("WSet"), der.get("WSetRvrtTms")) == (1, 333, 60)
        assert der.get("WSetEnaRvrt") == 0
        assert der.writes[-1] == (der.address("WSetEna"), [1]), "enabled last"
        assert await site.battery.command(-99_999, 60, 0.0) == -5_000
        assert der.battery_w == -5_000
        assert (await site.poll(0.0)).battery_w == -5_000
        assert site.battery.device.source.standing == "ours"
        await site.battery.restore_neutral(0.0)
        assert der.battery_w == OWN_W
        count = len(der.writes)
        await site.battery.restore_neutral(0.0)
        assert len(der.writes) == count, "it is there already: nothing is written"


async def test_the_device_ends_the_lease_by_itself_and_a_renewed_one_goes_on():
    async with reached() as (der, site):
        source = site.battery.device.source
        await site.battery.command(2_000, 2, 0.0)
        await asyncio.sleep(1.2)
        await site.battery.command(2_000, 60, 0.0)
        await asyncio.sleep(1.2)
        assert der.battery_w == 2_000
        assert not await source.is_neutral()
        await site.battery.command(2_000, 1, 0.0)
        site.close()  # nobody is left to restore it
        await until(lambda: der.battery_w == OWN_W)


async def test_a_renewal_never_disables_between():
    async with reached() as (der, site):
        await site.battery.command(2_000, 60, 0.0)
        der.writes.clear()
        await site.battery.command(1_000, 60, 0.0)
        assert (der.address("WSetEna"), [0]) not in der.writes


async def test_pv_on_the_same_inverter_is_added_to_the_setpoint_and_stays_pv():
    async with reached(pv_w=1_200) as (der, site):
        state = await site.poll(0.0)
        assert (state.pv_w, state.battery_w, state.generation_wh) == (1_200, OWN_W, 4_321)
        assert await site.battery.command(1_000, 60, 0.0) == 1_000
        assert der.get("WSet") == 220
        state = await site.poll(0.0)
        assert (state.pv_w, state.battery_w) == (1_200, 1_000)


async def test_no_more_is_asked_than_the_inverter_can_give():
    async with reached(pv_w=3_000) as (der, site):
        assert await site.battery.command(4_000, 60, 0.0) == 3_000, "6 kW in all"
        assert der.get("WSet") == 600


async def test_a_device_without_watts_is_held_by_percent():
    async with reached(missing=("WSet",)) as (der, site):
        assert await site.battery.command(1_500, 60, 0.0) == 1_500
        assert (der.get("WSetMod"), der.get("WSetPct")) == (0, 2_500)
        assert (await site.poll(0.0)).battery_w == 1_500
        assert site.battery.device.source.standing == "ours"


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"timer": ""}, "has no reversion timer"),
        ({"missing": ("WSetEnaRvrt",)}, "has no reversion timer"),
        ({"timer": "cosmetic"}, "reversion timer does not run"),
        ({"missing": ("WSet", "WSetPct")}, "has neither WSet nor WSetPct"),
        ({"deaf": ("WSetEna",)}, "did not take the setpoint"),
        ({"deaf": ("WSet",)}, "did not take the setpoint"),
    ],
)
async def test_a_battery_that_would_not_come_back_is_not_held(facts, why):
    async with reached(**facts) as (der, site):
        with pytest.raises(DeviceRefusedError, match=why):
            await site.battery.command(2_000, 60, 0.0)
        assert der.battery_w == OWN_W
        assert (await site.poll(0.0)).devices == {"der": "ok"}, "it is read all the same"


async def test_a_timer_that_is_shown_a_moment_late_is_waited_for():
    async with reached(timer="late") as (der, site):
        assert await site.battery.command(2_000, 60, 0.0) == 2_000
        assert der.battery_w == 2_000


async def test_a_setpoint_left_by_another_is_undone_on_arrival_but_ours_is_kept():
    async with served() as (der, port):
        device = Device(name="der", kind="sunspec-battery", port=port)
        first, second = Site([device], 20.0, Notes()), Site([device], 20.0, Notes())
        await first.poll(0.0)
        await first.battery.command(2_000, 60, 0.0)
        first.battery.device.lose(DeviceLostError("a blink"), 0.0)
        assert (await first.poll(99.0)).battery_w == 2_000
        await second.poll(0.0)
        assert der.battery_w == OWN_W
        first.close()
        second.close()


async def test_a_setpoint_changed_by_someone_else_is_noticed_once():
    async with served() as (der, port):
        notes = Notes()
        site = Site([Device(name="der", kind="sunspec", port=port)], 20.0, notes)
        await site.poll(0.0)
        await site.battery.command(2_000, 60, 0.0)
        intruder = link_for(Connection(host="127.0.0.1", port=port), 20.0)
        await intruder.write(1, der.address("WSet"), [0, 7])
        await site.poll(0.0)
        await site.poll(0.0)
        assert notes.lines == [("battery setpoint changed by someone else", "der")]
        intruder.close()
        site.close()


async def test_without_a_model_to_hold_it_by_a_battery_is_read_only():
    async with served() as (der, port):
        der.registers[der.starts[704]] = OTHERS
        link = link_for(Connection(host="127.0.0.1", port=port), 20.0)
        source = SunSpecSource(link, 1)
        assert (await source.read()).capacity_wh == 10_000
        with pytest.raises(DeviceRefusedError, match="no SunSpec model 124 or 704"):
            await source.hold(1_000, 60)
        link.close()
