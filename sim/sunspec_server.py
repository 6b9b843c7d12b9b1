"""
SunSpec devices on a Modbus TCP server, their values computed when they are read.

Registers are encoded by pysunspec2's own models (the gateway decodes with its own reader, so the
two check each other). A home is one server: the meter answers as device 1, the inverter as 2, the
battery as 3. Before every read the home's physics is advanced to market time; a write to the
storage model changes the battery's window, and the reversion timer InOutWRte_RvrtTms runs in real
seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from sunspec2 import device as sunspec

from runtime.ports import Clock
from sim.battery_physics import WMS_PER_WH, Flows, HomePhysics, Window

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # errors are raised; no second voice

BASE = 40_000
METER_ID, INVERTER_ID, BATTERY_ID = 1, 2, 3
PHASE_V = 230
WRITES = (6, 16)
INT16_MAX = 32_767
ACC32 = 2**32
RATE_SCALE = -2
FULL_RATE = 10_000
"""100 % in InWRte and OutWRte."""


class Image:
    """The registers of one SunSpec device: marker, models, end."""

    def __init__(self, models: Mapping[int, Mapping[str, Any]]) -> None:
        self.registers: list[int] = [0x5375, 0x6E53]
        self._models: dict[int, tuple[int, sunspec.Model]] = {}
        for number, values in models.items():
            model = sunspec.Model(number)
            for name, value in values.items():
                model.points[name].value = value
            data: bytes = model.get_mb()
            self._models[number] = len(self.registers), model
            self.registers += _registers(data)
        self.registers += [0xFFFF, 0]

    def set(self, model: int, **values: Any) -> None:
        """Set raw values of points; None is "not available"."""
        start, points = self._points(model)
        for name, value in values.items():
            point = points[name]
            point.value = value
            part = _registers(point.get_mb())
            self.registers[start + point.offset : start + point.offset + point.len] = part

    def get(self, model: int, name: str) -> int:
        """A point's raw value as it stands in the registers."""
        start, points = self._points(model)
        point = points[name]
        part = self.registers[start + point.offset : start + point.offset + point.len]
        value: int = point.info.data_to(b"".join(r.to_bytes(2, "big") for r in part))
        return value

    def writable(self, offset: int) -> bool:
        """True for a register of a point with access RW."""
        for start, model in self._models.values():
            for point in model.points.values():
                if 0 <= offset - start - point.offset < point.len:
                    return bool(point.pdef.get("access") == "RW")
        return False

    def _points(self, model: int) -> tuple[int, Mapping[str, Any]]:
        start, found = self._models[model]
        return start, found.points


@dataclass(frozen=True, slots=True)
class Nameplate:
    """What model 1 says."""

    model: str
    serial: str
    vendor: str = "Simulated"
    firmware: str = "1.0"

    def values(self) -> dict[str, Any]:
        """Points of model 1."""
        return {"Mn": self.vendor, "Md": self.model, "Vr": self.firmware, "SN": self.serial}


class HomeDevices:
    """
    The devices of one home.

    Args:
        name: of the home, part of the serial numbers
        physics: the home's electricity
        clock: market time for the physics, real time for the reversion timer
        has_pv: whether there is an inverter
        on_change: called after the battery's window changed (to save state)
    """

    def __init__(
        self,
        name: str,
        physics: HomePhysics,
        clock: Clock,
        *,
        has_pv: bool,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.physics = physics
        self._clock = clock
        self._on_change = on_change
        self._timer: asyncio.TimerHandle | None = None
        self._reverts_at_s = 0.0
        self._server: ModbusTcpServer | None = None
        self.images = {METER_ID: _meter_image(Nameplate("HG-METER-3P", f"{name}-m"))}
        if has_pv:
            self.images[INVERTER_ID] = _inverter_image(Nameplate("HG-PV-3P", f"{name}-i"))
        if physics.battery is not None:
            self.images[BATTERY_ID] = _battery_image(Nameplate("HG-BATTERY", f"{name}-b"), physics)

    async def start(self, host: str, port: int) -> int:
        """
        Serve.

        Returns:
            The port, chosen by the system where `port` is 0.

        Raises:
            OSError: the port is taken.
        """
        devices = [
            SimDevice(
                device_id,
                [SimData(BASE, values=list(image.registers), datatype=DataType.REGISTERS)],
                action=self._action(device_id),
            )
            for device_id, image in self.images.items()
        ]
        server = ModbusTcpServer(devices, address=(host, port))
        try:
            await server.serve_forever(background=True)
        except RuntimeError:
            raise OSError(f"{host}:{port} is taken") from None
        self._server = server
        bound: int = cast(Any, server.transport).sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop serving."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Let time pass, then put the present values into the registers."""
        if self._reverts_at_s and self._clock.monotonic_s() >= self._reverts_at_s:
            self._revert()
        self.physics.advance(self._clock.now_ms())
        flows = self.physics.flows()
        _show_meter(self.images[METER_ID], self.physics, flows)
        if INVERTER_ID in self.images:
            _show_inverter(self.images[INVERTER_ID], self.physics, flows)
        if BATTERY_ID in self.images:
            _show_battery(self.images[BATTERY_ID], self.physics, flows)

    def _action(self, device_id: int) -> Any:
        image = self.images[device_id]

        async def action(
            function: int, start: int, address: int, count: int, registers: list[int], values: Any
        ) -> ExcCodes | None:
            self.refresh()
            if function in WRITES:
                offsets = range(address - start, address - start + count)
                if not all(image.writable(offset) for offset in offsets):
                    return ExcCodes.ILLEGAL_ADDRESS
                image.registers[offsets.start : offsets.stop] = values
                if device_id == BATTERY_ID:
                    self._commanded()
            registers[: len(image.registers)] = image.registers
            return None

        return action

    def _commanded(self) -> None:
        """A setpoint was written: take it over and wind the timer up."""
        image, physics = self.images[BATTERY_ID], self.physics
        physics.window = _window(image, physics)
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._reverts_at_s = None, 0.0
        seconds = image.get(124, "InOutWRte_RvrtTms")
        if physics.window is not None and seconds:
            self._reverts_at_s = self._clock.monotonic_s() + seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, self._revert)
        self._on_change()

    def _revert(self) -> None:
        """The lease is over: back to self-consumption."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._reverts_at_s = None, 0.0
        self.physics.advance(self._clock.now_ms())
        self.physics.window = None
        self.images[BATTERY_ID].set(
            124, StorCtl_Mod=0, OutWRte=FULL_RATE, InWRte=FULL_RATE, InOutWRte_RvrtTms=0
        )
        self._on_change()


def _window(image: Image, physics: HomePhysics) -> Window | None:
    """What StorCtl_Mod, OutWRte and InWRte allow; None when neither limit is active."""
    assert physics.battery is not None
    mode = image.get(124, "StorCtl_Mod")
    if mode & 3 == 0:
        return None
    low_w, high_w = -physics.battery.max_charge_w, physics.battery.max_discharge_w
    if mode & 1:
        low_w = round(-image.get(124, "InWRte") * physics.battery.max_charge_w / FULL_RATE)
    if mode & 2:
        high_w = round(image.get(124, "OutWRte") * physics.battery.max_discharge_w / FULL_RATE)
    return Window(min(low_w, high_w), high_w)


def _meter_image(nameplate: Nameplate) -> Image:
    scales = {"A_SF": -2, "V_SF": -1, "Hz_SF": -2, "W_SF": 0, "PF_SF": -2, "TotWh_SF": 0}
    steady = dict.fromkeys(("PhV", "PhVphA", "PhVphB", "PhVphC"), PHASE_V * 10)
    lines = dict.fromkeys(("PPV", "PhVphAB", "PhVphBC", "PhVphCA"), 4000)
    return Image({1: nameplate.values(), 203: {**scales, **steady, **lines, "Hz": 5_000, "Evt": 0}})


def _inverter_image(nameplate: Nameplate) -> Image:
    scales = {"A_SF": -2, "V_SF": -1, "Hz_SF": -2, "W_SF": 0, "WH_SF": 0, "Tmp_SF": -1}
    steady = dict.fromkeys(("PhVphA", "PhVphB", "PhVphC"), PHASE_V * 10)
    more = {"Hz": 5_000, "TmpCab": 350, "Evt1": 0, "Evt2": 0}
    return Image({1: nameplate.values(), 103: {**scales, **steady, **more}})


def _battery_image(nameplate: Nameplate, physics: HomePhysics) -> Image:
    facts = physics.battery
    assert facts is not None
    base = {
        "WHRtg_SF": 0 if facts.capacity_wh < 65_000 else 2,
        "WChaDisChaMax_SF": 0,
        "SoC_SF": -1,
        "AHRtg_SF": 0,
        "V_SF": -1,
        "CellV_SF": -3,
        "A_SF": -1,
        "AMax_SF": -1,
        "W_SF": 0,
        "AHRtg": facts.capacity_wh // 400,
        "WHRtg": facts.capacity_wh if facts.capacity_wh < 65_000 else facts.capacity_wh // 100,
        "WChaRteMax": facts.max_charge_w,
        "WDisChaRteMax": facts.max_discharge_w,
        "SoCMax": facts.max_soc_permille,
        "SoCMin": facts.min_soc_permille,
        "LocRemCtl": 0,
        "AlmRst": 0,
        "Typ": 4,  # lithium-ion
        "State": 3,  # connected
        "Evt1": 0,
        "Evt2": 0,
        "EvtVnd1": 0,
        "EvtVnd2": 0,
        "V": 4_000,
        "SetOp": 1,
        "SetInvState": 3,
    }
    storage = {
        "WChaMax": facts.max_charge_w,
        "WChaGra": 100,
        "WDisChaGra": 100,
        "StorCtl_Mod": 0,
        "OutWRte": FULL_RATE,
        "InWRte": FULL_RATE,
        "InOutWRte_WinTms": 0,
        "InOutWRte_RvrtTms": 0,
        "InOutWRte_RmpTms": 0,
        "ChaGriSet": 1,
        "WChaMax_SF": 0,
        "WChaDisChaGra_SF": 0,
        "ChaState_SF": -1,
        "InOutWRte_SF": RATE_SCALE,
    }
    return Image({1: nameplate.values(), 802: base, 124: storage})


def _show_meter(image: Image, physics: HomePhysics, flows: Flows) -> None:
    power_w = _int16(flows.grid_w)
    phase_w = power_w // 3
    amps = _int16(flows.grid_w * 100 // PHASE_V)
    image.set(
        203,
        W=power_w,
        WphA=phase_w,
        WphB=phase_w,
        WphC=power_w - 2 * phase_w,
        A=amps,
        AphA=amps // 3,
        AphB=amps // 3,
        AphC=amps // 3,
        TotWhImp=physics.import_wms // WMS_PER_WH % ACC32,
        TotWhExp=physics.export_wms // WMS_PER_WH % ACC32,
    )


def _show_inverter(image: Image, physics: HomePhysics, flows: Flows) -> None:
    amps = flows.pv_w * 100 // PHASE_V // 3
    image.set(
        103,
        W=_int16(flows.pv_w),
        A=3 * amps,
        AphA=amps,
        AphB=amps,
        AphC=amps,
        WH=physics.generation_wms // WMS_PER_WH % ACC32,
        St=4 if flows.pv_w else 2,  # MPPT or sleeping
    )


def _show_battery(image: Image, physics: HomePhysics, flows: Flows) -> None:
    soc = physics.soc_permille
    charging = 6 if flows.battery_w == 0 else 3 if flows.battery_w > 0 else 4
    image.set(802, SoC=soc, W=_int16(flows.battery_w), A=_int16(flows.battery_w // 40))
    image.set(802, ChaSt=charging)
    image.set(124, ChaState=soc, ChaSt=charging)


def _int16(value: int) -> int:
    return max(-INT16_MAX, min(INT16_MAX, value))


def _registers(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
