"""
The devices of a site as engineering values: grid + import, battery + discharge.

Each device is polled on its own: one that is lost, mute or of an unknown kind never stops the
others. A loss is logged once when it happens and once when it is over; in between the device is
asked again every few seconds only, so that a mute one costs little.

A battery obeys SunSpec model 124: InWRte and OutWRte limit charging and discharging; a negative
limit turns into the least power of the other direction, so the pair (−p, p) fixes the power at p.
InOutWRte_RvrtTms is the device's own lease: when it runs out the device is back in its own
self-consumption mode, whatever became of us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Protocol

from hem.config import Device as DeviceConfig
from hem.gateway.modbus import DeviceError, DeviceRefusedError, ModbusLink
from hem.gateway.sunspec import (
    ADDRESS_MAX,
    SCALE_MAX,
    Block,
    Snapshot,
    discover,
    model_points,
    read,
)

RETRY_S = 3.0
"""Pause before a lost device is asked again [real s]."""
COMMON = 1
METERS = (203, 213, 202, 212, 201, 211, 204, 214)
INVERTERS = (103, 113, 102, 112, 101, 111, 701)
INVERTER_ENERGY = (*(f"{model}:WH" for model in INVERTERS[:-1]), "701:TotWhInj")
"""Model 701 is IEEE 1547-2018's; it names its register of energy injected differently."""
STORAGE = 124
STORE_CONTROL_BOTH = 3
"""StorCtl_Mod with both limits active (bit 0 charge, bit 1 discharge)."""


class Log(Protocol):
    """The two lines a device writes."""

    def info(self, event: str, **facts: Any) -> Any:
        """Something is well again."""
        ...

    def warning(self, event: str, **facts: Any) -> Any:
        """Something is lost."""
        ...


class SunSpecDevice:
    """A device that is discovered when first reached and again after a loss."""

    models: ClassVar[tuple[int, ...]] = ()

    def __init__(self, config: DeviceConfig, link: ModbusLink, log: Log) -> None:
        self.name = config.name
        self.status = "lost"
        self.nameplate: dict[str, str] = {}
        self._address = f"{config.host}:{config.port}/{config.device_id}"
        self._device_id = config.device_id
        self._link = link
        self._log = log
        self._chain: list[Block] = []
        self._reported = False
        self._retry_at_s = 0.0

    @property
    def ok(self) -> bool:
        """True when the last poll succeeded."""
        return self.status == "ok"

    async def poll(self, now_s: float) -> None:
        """Read the device unless it is lost and its pause is not over. Never raises."""
        if not self.ok and now_s < self._retry_at_s:
            return
        try:
            self.take(await self._snapshot())
        except Exception as error:  # whatever nonsense it sent, the others go on
            self._lose(error, now_s)
        else:
            self._find()

    async def arrive(self) -> None:
        """Done once after every (re)discovery, before the first values are taken."""

    def take(self, snapshot: Snapshot) -> None:
        """
        Turn registers into values.

        Raises:
            DeviceRefusedError: a value we cannot do without is not available.
        """
        raise NotImplementedError

    def lose(self) -> None:
        """Forget the last values that are not registers."""

    async def _snapshot(self) -> Snapshot:
        if not self._chain:
            chain = await discover(self._link, self._device_id)
            common = await read(self._link, self._device_id, chain, (COMMON,))
            self.nameplate = {
                "vendor": common.text("1:Mn"),
                "model": common.text("1:Md"),
                "firmware": common.text("1:Vr"),
                "serial": common.text("1:SN"),
            }
            self._chain = chain
            await self.arrive()
        return await read(self._link, self._device_id, self._chain, self.models)

    def _lose(self, error: Exception, now_s: float) -> None:
        self._retry_at_s = now_s + RETRY_S
        self._chain = []
        self.status = "lost"
        self.lose()
        if not self._reported:
            self._reported = True
            self._log.warning(
                "device lost",
                device=self.name,
                address=self._address,
                why=str(error) or repr(error),
            )

    def _find(self) -> None:
        if self._reported:
            self._log.info("device back", device=self.name, address=self._address)
        self._reported = False
        self.status = "ok"


class Meter(SunSpecDevice):
    """The meter at the connection point."""

    models = METERS

    def __init__(self, config: DeviceConfig, link: ModbusLink, log: Log) -> None:
        super().__init__(config, link, log)
        self.grid_w = 0
        self.import_wh: int | None = None
        self.export_wh: int | None = None

    def take(self, snapshot: Snapshot) -> None:
        """Power and both registers, or the meter is of no use."""
        power_w = snapshot.number(*(f"{model}:W" for model in METERS))
        import_wh = snapshot.number(*(f"{model}:TotWhImp" for model in METERS))
        export_wh = snapshot.number(*(f"{model}:TotWhExp" for model in METERS))
        if power_w is None or import_wh is None or export_wh is None:
            raise DeviceRefusedError("power, TotWhImp or TotWhExp is not available")
        self.grid_w, self.import_wh, self.export_wh = round(power_w), int(import_wh), int(export_wh)

    def lose(self) -> None:
        """Power is unknown; the registers stay where they were."""
        self.grid_w = 0


class Inverter(SunSpecDevice):
    """A PV inverter. At night it may sleep, be unreachable, or know no power."""

    models = INVERTERS

    def __init__(self, config: DeviceConfig, link: ModbusLink, log: Log) -> None:
        super().__init__(config, link, log)
        self.pv_w = 0
        self.generation_wh: int | None = None

    def take(self, snapshot: Snapshot) -> None:
        """Power (0 while asleep) and the energy register (the last one while asleep)."""
        power_w = snapshot.number(*(f"{model}:W" for model in INVERTERS))
        energy_wh = snapshot.number(*INVERTER_ENERGY)
        self.pv_w = round(power_w) if power_w is not None else 0
        if energy_wh is not None:
            self.generation_wh = int(energy_wh)
        elif self.generation_wh is None:
            raise DeviceRefusedError("the energy register WH is not available")

    def lose(self) -> None:
        """Nothing is known to flow."""
        self.pv_w = 0


@dataclass(frozen=True, slots=True)
class BatteryLimits:
    """What the battery can do."""

    capacity_wh: int
    max_charge_w: int
    max_discharge_w: int


class Battery(SunSpecDevice):
    """A battery that measures by model 802 (or 713) and obeys by model 124."""

    models = (802, 713, STORAGE)

    def __init__(self, config: DeviceConfig, link: ModbusLink, log: Log) -> None:
        super().__init__(config, link, log)
        self.battery_w = 0
        self.soc_permille = -1
        self.limits: BatteryLimits | None = None
        self._commanded: tuple[int, int, int] | None = None
        self._meddled = False
        self._scale = 0
        self._charge_base_w = 0

    async def arrive(self) -> None:
        """A setpoint that is not ours outlived whoever wrote it: restore neutral."""
        if all(block.model != STORAGE for block in self._chain):
            return
        control = await self._control()
        if control[0] != 0 and control != self._commanded:
            await self._write_mode(0)

    def take(self, snapshot: Snapshot) -> None:
        """Power, state of charge and limits."""
        power_w = snapshot.number("802:W")
        soc_percent = snapshot.number("802:SoC", "713:SoC", "124:ChaState")
        max_charge_w = snapshot.number("802:WChaRteMax", "124:WChaMax")
        max_discharge_w = snapshot.number("802:WDisChaRteMax", "124:WChaMax")
        charge_base_w = snapshot.number("124:WChaMax", "802:WChaRteMax")
        capacity_wh = snapshot.number("802:WHRtg", "713:WHRtg")
        rated = [int(one or 0) for one in (capacity_wh, max_charge_w, max_discharge_w)]
        base_w = int(charge_base_w or 0)
        if min(*rated, base_w) <= 0:  # we divide by them
            raise DeviceRefusedError("WHRtg, WChaRteMax, WDisChaRteMax or WChaMax not available")
        self.battery_w = round(power_w) if power_w is not None else 0
        self.soc_permille = round(soc_percent * 10) if soc_percent is not None else -1
        self.limits = BatteryLimits(*rated)
        self._charge_base_w = base_w
        scale = snapshot.number("124:InOutWRte_SF")
        self._scale = int(scale) if scale is not None and abs(scale) <= SCALE_MAX else 0
        self._watch(snapshot)

    def lose(self) -> None:
        """Nothing is known."""
        self.battery_w, self.soc_permille = 0, -1

    async def command(self, power_w: int, lease_s: int, now_s: float) -> int:
        """
        Fix the battery's power for `lease_s` real seconds; the device itself ends the lease.

        Returns:
            The power that will flow (within the limits) [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs.
        """
        if self.limits is None or not self.ok:
            raise DeviceRefusedError("the battery has not been reached yet")
        power_w = max(-self.limits.max_charge_w, min(self.limits.max_discharge_w, power_w))
        full = 100 * 10**-self._scale  # 100 % in register units
        out_rate = _int16(round(power_w * full / self.limits.max_discharge_w))
        in_rate = _int16(round(-power_w * full / self._charge_base_w))
        try:
            await self._write_rates(out_rate, in_rate, lease_s)
            await self._write_mode(STORE_CONTROL_BOTH)
            if await self._control() != (STORE_CONTROL_BOTH, out_rate, in_rate):
                raise DeviceRefusedError("the battery did not take the setpoint")
        except DeviceError as error:
            self._commanded = None
            self._settle(error, now_s)
            raise
        self._commanded = (STORE_CONTROL_BOTH, out_rate, in_rate)
        self._meddled = False
        return power_w

    async def restore_neutral(self, now_s: float) -> None:
        """
        End the lease: the device is back in its own mode. Writes only where that is not so yet.

        Raises:
            DeviceError: the device does not answer (its own reversion timer is then what counts).
        """
        self._commanded = None
        try:
            if (await self._control())[0] != 0:
                await self._write_mode(0)
        except DeviceError as error:
            self._settle(error, now_s)
            raise

    def _settle(self, error: DeviceError, now_s: float) -> None:
        if not isinstance(error, DeviceRefusedError):
            self._lose(error, now_s)

    def _watch(self, snapshot: Snapshot) -> None:
        if self._commanded is None or self._meddled:
            return
        seen = snapshot.number("124:StorCtl_Mod")
        rates = snapshot.number("124:OutWRte"), snapshot.number("124:InWRte")
        mode, out_rate, in_rate = self._commanded
        mine = (Decimal(out_rate).scaleb(self._scale), Decimal(in_rate).scaleb(self._scale))
        if seen != 0 and (seen != mode or rates != mine):  # 0: the lease ran out
            self._meddled = True
            self._log.warning("battery setpoint changed by someone else", device=self.name)

    def _storage(self) -> Block:
        for block in self._chain:
            if block.model == STORAGE and block.address + block.size <= ADDRESS_MAX:
                return block
        raise DeviceRefusedError("the device has no SunSpec model 124 to command it by")

    async def _control(self) -> tuple[int, int, int]:
        block, points = self._storage(), model_points(STORAGE)
        first, last = points["StorCtl_Mod"].offset, points["InWRte"].offset
        registers = await self._link.read(self._device_id, block.address + first, last - first + 1)
        out_rate = registers[points["OutWRte"].offset - first]
        return registers[0], _signed(out_rate), _signed(registers[-1])

    async def _write_rates(self, out_rate: int, in_rate: int, lease_s: int) -> None:
        address = self._storage().address + model_points(STORAGE)["OutWRte"].offset
        # OutWRte, InWRte, WinTms (act at once) and RvrtTms lie side by side: one request.
        values = [out_rate & 0xFFFF, in_rate & 0xFFFF, 0, lease_s]
        await self._link.write(self._device_id, address, values)

    async def _write_mode(self, mode: int) -> None:
        address = self._storage().address + model_points(STORAGE)["StorCtl_Mod"].offset
        await self._link.write(self._device_id, address, [mode])


@dataclass(slots=True)
class SiteState:
    """The site at one moment."""

    grid_w: int = 0
    pv_w: int = 0
    battery_w: int = 0
    soc_permille: int = -1
    import_wh: int | None = None
    export_wh: int | None = None
    generation_wh: int | None = None
    """None while a generator has never been reached."""
    battery: BatteryLimits | None = None
    devices: dict[str, str] = field(default_factory=dict)

    @property
    def load_w(self) -> int:
        """What the house uses: everything that flows in."""
        return self.grid_w + self.pv_w + self.battery_w


class Site:
    """All devices of a home."""

    def __init__(self, configs: Sequence[DeviceConfig], timeout_s: float, log: Log) -> None:
        self._links: dict[tuple[str, int], ModbusLink] = {}
        self._disabled: dict[str, str] = {}
        self.meter: Meter | None = None
        self.battery: Battery | None = None
        self.inverters: list[Inverter] = []
        for config in configs:
            self._add(config, timeout_s, log)

    def _add(self, config: DeviceConfig, timeout_s: float, log: Log) -> None:
        match config.kind:
            case "sunspec-meter" if self.meter is None:
                self.meter = Meter(config, self._link(config, timeout_s), log)
            case "sunspec-battery" if self.battery is None:
                self.battery = Battery(config, self._link(config, timeout_s), log)
            case "sunspec-inverter":
                self.inverters.append(Inverter(config, self._link(config, timeout_s), log))
            case "sunspec-meter" | "sunspec-battery":
                self._disable(config, f"the site already has a {config.kind}", log)
            case _:
                self._disable(config, f"unknown kind {config.kind!r}", log)

    def _link(self, config: DeviceConfig, timeout_s: float) -> ModbusLink:
        key = (config.host, config.port)
        if key not in self._links:
            self._links[key] = ModbusLink(config.host, config.port, timeout_s)
        return self._links[key]

    def _disable(self, config: DeviceConfig, why: str, log: Log) -> None:
        self._disabled[config.name] = f"disabled: {why}"
        log.warning("device disabled", device=config.name, why=why)

    @property
    def devices(self) -> list[SunSpecDevice]:
        """The devices that are polled."""
        found: list[SunSpecDevice] = list(self.inverters)
        if self.meter is not None:
            found.insert(0, self.meter)
        if self.battery is not None:
            found.append(self.battery)
        return found

    async def poll(self, now_s: float) -> SiteState:
        """Read every device side by side, and say what is known."""
        await asyncio.gather(*(device.poll(now_s) for device in self.devices))
        return self.state()

    def state(self) -> SiteState:
        """What is known from the last poll; a lost device adds no power."""
        meter, battery = self.meter, self.battery
        generations = [inverter.generation_wh for inverter in self.inverters]
        known = [wh for wh in generations if wh is not None]
        return SiteState(
            grid_w=meter.grid_w if meter else 0,
            pv_w=sum(inverter.pv_w for inverter in self.inverters),
            battery_w=battery.battery_w if battery else 0,
            soc_permille=battery.soc_permille if battery else -1,
            import_wh=meter.import_wh if meter else None,
            export_wh=meter.export_wh if meter else None,
            generation_wh=sum(known) if len(known) == len(generations) else None,
            battery=battery.limits if battery else None,
            devices={d.name: d.status for d in self.devices} | self._disabled,
        )

    def close(self) -> None:
        """Drop all connections."""
        for link in self._links.values():
            link.close()


def _int16(value: int) -> int:
    return max(-0x7FFF, min(0x7FFF, value))  # -0x8000 would say "not available"


def _signed(register: int) -> int:
    return register - 0x10000 if register & 0x8000 else register
