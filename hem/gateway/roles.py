"""
What a device is to the site: its meter, one of its inverters, its battery, a load.

A role takes what concerns it of what the device says. One device may play several: a hybrid is
inverter and battery over one connection.

A power that a battery holds when we meet it, and that is not ours, outlived whoever wrote it: it is
given back to its own mode. A power that is changed while we hold it is reported once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, cast

from hem.config import Device as DeviceConfig
from hem.gateway.connected import Connected, Log
from hem.gateway.modbus import DeviceError, DeviceRefusedError
from hem.gateway.source import Sample, Source, Storage
from hem.gateway.sunspec_device import SunSpecSource
from hem.gateway.sunspec_hold import Wire


class Role(ABC):
    """What a device is to the site. A link in the place of a source is a SunSpec device's."""

    capability: ClassVar[str]

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        if not isinstance(source, Connected):
            source = Connected(config, _as_source(source, config, self.capability), log)
        self.device = source
        self.device.roles.append(self)
        self._log = log

    @property
    def name(self) -> str:
        """Of the device."""
        return self.device.name

    @property
    def ok(self) -> bool:
        """True when the last poll succeeded."""
        return self.device.ok

    @property
    def status(self) -> str:
        """`ok` or `lost`."""
        return self.device.status

    @property
    def nameplate(self) -> dict[str, str]:
        """Vendor, model, firmware, serial."""
        return self.device.nameplate

    async def poll(self, now_s: float) -> None:
        """Read the device. Never raises."""
        await self.device.poll(now_s)

    async def arrive(self) -> None:  # noqa: B027  (most have nothing to do)
        """Done once after every (re)discovery, before the first values are taken."""

    @abstractmethod
    def take(self, sample: Sample) -> None:
        """
        Keep what concerns this role.

        Raises:
            DeviceRefusedError: a value we cannot do without is not available.
        """

    def lose(self) -> None:  # noqa: B027
        """Forget the last values that are not registers."""


class Meter(Role):
    """The meter at the connection point."""

    capability = "grid"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.grid_w = 0
        self.import_wh: int | None = None
        self.export_wh: int | None = None

    def take(self, sample: Sample) -> None:
        """Power and both registers, or the meter is of no use."""
        if sample.grid_w is None or sample.import_wh is None or sample.export_wh is None:
            raise DeviceRefusedError("power, or a register of import or export, is not available")
        self.grid_w, self.import_wh, self.export_wh = (
            sample.grid_w,
            sample.import_wh,
            sample.export_wh,
        )

    def lose(self) -> None:
        """Power is unknown; the registers stay where they were."""
        self.grid_w = 0


class Inverter(Role):
    """A PV inverter. At night it may sleep, be unreachable, or know no power."""

    capability = "pv"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.pv_w = 0
        self.generation_wh: int | None = None

    def take(self, sample: Sample) -> None:
        """Power (0 while asleep) and the energy register (the last one while asleep)."""
        self.pv_w = sample.pv_w if sample.pv_w is not None else 0
        if sample.generation_wh is not None:
            self.generation_wh = sample.generation_wh
        elif self.generation_wh is None:
            raise DeviceRefusedError("the register of generated energy is not available")

    def lose(self) -> None:
        """Nothing is known to flow."""
        self.pv_w = 0


@dataclass(frozen=True, slots=True)
class BatteryLimits:
    """What the battery can do."""

    capacity_wh: int
    max_charge_w: int
    max_discharge_w: int


class Battery(Role):
    """A battery, and where its source is a `Storage` the power it holds for us."""

    capability = "battery"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.battery_w = 0
        self.soc_permille = -1
        self.limits: BatteryLimits | None = None
        self._commanded = False
        self._meddled = False
        self._held_until_s = 0.0

    async def arrive(self) -> None:
        """A setpoint that is not ours outlived whoever wrote it: restore neutral."""
        if self._standing() == "foreign":
            await self._storage().restore_neutral()
            self._commanded = False

    def take(self, sample: Sample) -> None:
        """Power, state of charge and limits."""
        rated = [sample.capacity_wh, sample.max_charge_w, sample.max_discharge_w]
        known = [one for one in rated if one is not None and one > 0]
        if len(known) < len(rated):
            raise DeviceRefusedError("capacity or most power of the battery is not available")
        self.battery_w = sample.battery_w if sample.battery_w is not None else 0
        self.soc_permille = sample.soc_permille if sample.soc_permille is not None else -1
        self.limits = BatteryLimits(*known)
        self._watch()

    def lose(self) -> None:
        """Nothing is known."""
        self.battery_w, self.soc_permille = 0, -1

    async def command(self, power_w: int, lease_s: int, now_s: float) -> int:
        """
        Fix the battery's power for `lease_s` real seconds; the device itself ends the lease where
        it can.

        Returns:
            The power that will flow (within the limits) [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs.
        """
        if self.limits is None or not self.ok:
            raise DeviceRefusedError("the battery has not been reached yet")
        self._held_until_s = now_s + lease_s  # from the first of several writes on
        async with self.device.turn:
            try:
                power_w = await self._storage().hold(power_w, lease_s)
            except DeviceError as error:
                self._commanded = False
                self._settle(error, now_s)
                raise
            self._commanded, self._meddled = True, False
        return power_w

    async def restore_neutral(self, now_s: float) -> None:
        """
        End the lease: the device is back in its own mode. Writes only where that is not so yet.

        Raises:
            DeviceError: the device does not answer (its own reversion timer is then what counts).
        """
        async with self.device.turn:
            self._commanded = False
            try:
                await self._storage().restore_neutral()
            except DeviceError as error:
                self._settle(error, now_s)
                raise
            self._held_until_s = 0.0

    def holds(self, now_s: float) -> bool:
        """Does a lease of ours run? It does until it ends or neutral was restored."""
        return now_s < self._held_until_s

    def _settle(self, error: DeviceError, now_s: float) -> None:
        if not isinstance(error, DeviceRefusedError):
            self.device.lose(error, now_s)

    def _watch(self) -> None:
        if self._commanded and not self._meddled and self._standing() == "foreign":
            self._meddled = True
            self._log.warning("battery setpoint changed by someone else", device=self.name)

    def _standing(self) -> str:
        """Whose power the battery holds; `neutral` where the source does not know."""
        return getattr(self.device.source, "standing", "neutral")

    def _storage(self) -> Storage:
        if self.device.storage is None:
            raise DeviceRefusedError("this battery can be read, but not commanded")
        return self.device.storage


class Load(Role):
    """A device that uses energy and says how much."""

    capability = "load"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.load_w: int | None = None

    def take(self, sample: Sample) -> None:
        """Power."""
        self.load_w = sample.load_w

    def lose(self) -> None:
        """Nothing is known."""
        self.load_w = None


def _as_source(source: Source | Wire, config: DeviceConfig, capability: str) -> Source:
    if hasattr(source, "capabilities"):
        return cast(Source, source)
    return SunSpecSource(source, config.device_id, (capability,))
