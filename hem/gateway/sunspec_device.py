"""
A SunSpec device: no template, its models say what it is.

Grid power comes from models 201–204 and 211–214, PV from 101–103, 111–113 and 701, a battery from
802 or 713 with 124. Where the device shows both inverter and battery, the inverter's AC power
carries the battery's too, and PV is what remains.

A battery obeys SunSpec model 124: InWRte and OutWRte limit charging and discharging; a negative
limit turns into the least power of the other direction, so the pair (−p, p) fixes the power at p.
InOutWRte_RvrtTms is the device's own lease: when it runs out the device is back in its own
self-consumption mode, whatever became of us.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal, Protocol

from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.source import Sample
from hem.gateway.sunspec import (
    ADDRESS_MAX,
    SCALE_MAX,
    Block,
    Snapshot,
    discover,
    model_points,
    read,
)

COMMON = 1
METERS = (203, 213, 202, 212, 201, 211, 204, 214)
INVERTERS = (103, 113, 102, 112, 101, 111, 701)
INVERTER_ENERGY = (*(f"{model}:WH" for model in INVERTERS[:-1]), "701:TotWhInj")
"""Model 701 is IEEE 1547-2018's; it names its register of energy injected differently."""
STORAGE = 124
BATTERIES = (802, 713, STORAGE)
CAPABILITIES: dict[str, tuple[int, ...]] = {
    "grid": METERS,
    "pv": INVERTERS,
    "battery": BATTERIES,
}
STORE_CONTROL_BOTH = 3
"""StorCtl_Mod with both limits active (bit 0 charge, bit 1 discharge)."""


class Wire(Protocol):
    """Holding registers of a connection."""

    async def read(self, device_id: int, address: int, count: int) -> list[int]:
        """Read them."""
        ...

    async def write(self, device_id: int, address: int, values: list[int]) -> None:
        """Write them in one request."""
        ...


@dataclass(frozen=True, slots=True)
class Control:
    """Model 124 as it stands in the registers."""

    mode: int
    out_rate: int
    in_rate: int


class SunSpecSource:
    """
    A device that is discovered when first reached and again after a loss.

    Args:
        link: the connection
        device_id: the unit id on it
        use: the capabilities wanted; what the models show where none is named
    """

    def __init__(self, link: Wire, device_id: int, use: Collection[str] = ()) -> None:
        self._link = link
        self._device_id = device_id
        self._chosen = bool(use)
        self._capabilities = frozenset(use)
        self._chain: list[Block] = []
        self._nameplate: dict[str, str] = {}
        self._commanded: Control | None = None
        self._standing: Literal["neutral", "ours", "foreign"] = "neutral"
        self._scale = 0
        self._charge_base_w = 0
        self._limits_w: tuple[int, int] | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        """What is wanted of it, or what it was found to have."""
        return self._capabilities

    @property
    def standing(self) -> Literal["neutral", "ours", "foreign"]:
        """Whose power the battery held when it was last read."""
        return self._standing

    async def read(self) -> Sample:
        """
        Look at the device now.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: no SunSpec device, or a battery that
                does not say what it can do.
        """
        try:
            return await self._read()
        except Exception:
            self._chain = []
            raise

    def close(self) -> None:
        """Nothing of our own: the connection is shared."""

    async def hold(self, power_w: int, lease_s: int) -> int:
        """
        Fix the battery's power for `lease_s` real seconds; the device itself ends the lease.

        Returns:
            The power that will flow (within the limits) [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs.
        """
        if self._limits_w is None:
            raise DeviceRefusedError("the battery has not been reached yet")
        max_charge_w, max_discharge_w = self._limits_w
        power_w = max(-max_charge_w, min(max_discharge_w, power_w))
        full = 100 * 10**-self._scale  # 100 % in register units
        out_rate = _int16(round(power_w * full / max_discharge_w))
        in_rate = _int16(round(-power_w * full / self._charge_base_w))
        wanted = Control(STORE_CONTROL_BOTH, out_rate, in_rate)
        self._commanded = None
        await self._write_rates(out_rate, in_rate, lease_s)
        await self._write_mode(STORE_CONTROL_BOTH)
        if await self._control() != wanted:
            raise DeviceRefusedError("the battery did not take the setpoint")
        self._commanded = wanted
        return power_w

    async def restore_neutral(self) -> None:
        """
        End the lease: the device is back in its own mode. Writes only where that is not so yet.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        self._commanded = None
        if not await self.is_neutral():
            await self._write_mode(0)

    async def is_neutral(self) -> bool:
        """
        Is it in its own mode?

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        return (await self._control()).mode == 0

    async def _read(self) -> Sample:
        if not self._chain:
            chain = await discover(self._link, self._device_id)
            common = await read(self._link, self._device_id, chain, (COMMON,))
            self._nameplate = {
                "vendor": common.text("1:Mn"),
                "model": common.text("1:Md"),
                "firmware": common.text("1:Vr"),
                "serial": common.text("1:SN"),
            }
            self._chain = chain
            if not self._chosen:
                self._capabilities = await self._found(chain)
        used = [model for one in self._capabilities for model in CAPABILITIES.get(one, ())]
        return self._sample(await read(self._link, self._device_id, self._chain, used))

    async def _found(self, chain: list[Block]) -> frozenset[str]:
        """
        What the models show. Model 124 alone is no battery, nor is one without a capacity: many
        inverters carry them for a battery that could be added.
        """
        models = {block.model for block in chain}
        found = {one for one, wanted in CAPABILITIES.items() if models & set(wanted)}
        if "battery" in found:
            snapshot = await read(self._link, self._device_id, chain, BATTERIES)
            if min(_rated(snapshot)) <= 0:
                found.discard("battery")
        return frozenset(found)

    def _sample(self, snapshot: Snapshot) -> Sample:
        sample = Sample(details=self._nameplate)
        if "grid" in self._capabilities:
            sample = replace(
                sample,
                grid_w=_whole(snapshot.number(*(f"{model}:W" for model in METERS))),
                import_wh=_counter(snapshot.number(*(f"{model}:TotWhImp" for model in METERS))),
                export_wh=_counter(snapshot.number(*(f"{model}:TotWhExp" for model in METERS))),
            )
        if "battery" in self._capabilities:
            sample = self._battery(sample, snapshot)
        if "pv" in self._capabilities:
            pv_w = _whole(snapshot.number(*(f"{model}:W" for model in INVERTERS)))
            if pv_w is not None and sample.battery_w is not None:
                pv_w = max(0, pv_w - sample.battery_w)
            energy_wh = _counter(snapshot.number(*INVERTER_ENERGY))
            sample = replace(sample, pv_w=pv_w, generation_wh=energy_wh)
        return sample

    def _battery(self, sample: Sample, snapshot: Snapshot) -> Sample:
        capacity_wh, max_charge_w, max_discharge_w, base_w = _rated(snapshot)
        if min(capacity_wh, max_charge_w, max_discharge_w, base_w) <= 0:  # we divide by them
            raise DeviceRefusedError("WHRtg, WChaRteMax, WDisChaRteMax or WChaMax not available")
        self._limits_w, self._charge_base_w = (max_charge_w, max_discharge_w), base_w
        scale = snapshot.number("124:InOutWRte_SF")
        self._scale = int(scale) if scale is not None and abs(scale) <= SCALE_MAX else 0
        self._standing = self._stands(snapshot)
        soc_percent = snapshot.number("802:SoC", "713:SoC", "124:ChaState")
        return replace(
            sample,
            battery_w=_whole(snapshot.number("802:W")),
            soc_permille=round(soc_percent * 10) if soc_percent is not None else None,
            capacity_wh=capacity_wh,
            max_charge_w=max_charge_w,
            max_discharge_w=max_discharge_w,
        )

    def _stands(self, snapshot: Snapshot) -> Literal["neutral", "ours", "foreign"]:
        mode = snapshot.number("124:StorCtl_Mod")
        if mode == 0 or all(block.model != STORAGE for block in self._chain):
            return "neutral"
        mine = self._commanded
        if mine is None:
            return "foreign"
        rates = snapshot.number("124:OutWRte"), snapshot.number("124:InWRte")
        wanted = (
            Decimal(mine.out_rate).scaleb(self._scale),
            Decimal(mine.in_rate).scaleb(self._scale),
        )
        return "ours" if mode == mine.mode and rates == wanted else "foreign"

    def _storage(self) -> Block:
        for block in self._chain:
            if block.model == STORAGE and block.address + block.size <= ADDRESS_MAX:
                return block
        raise DeviceRefusedError("the device has no SunSpec model 124 to command it by")

    async def _control(self) -> Control:
        block, points = self._storage(), model_points(STORAGE)
        first, last = points["StorCtl_Mod"].offset, points["InWRte"].offset
        registers = await self._link.read(self._device_id, block.address + first, last - first + 1)
        out_rate = registers[points["OutWRte"].offset - first]
        return Control(registers[0], _signed(out_rate), _signed(registers[-1]))

    async def _write_rates(self, out_rate: int, in_rate: int, lease_s: int) -> None:
        address = self._storage().address + model_points(STORAGE)["OutWRte"].offset
        # OutWRte, InWRte, WinTms (act at once) and RvrtTms lie side by side: one request.
        values = [out_rate & 0xFFFF, in_rate & 0xFFFF, 0, lease_s]
        await self._link.write(self._device_id, address, values)

    async def _write_mode(self, mode: int) -> None:
        address = self._storage().address + model_points(STORAGE)["StorCtl_Mod"].offset
        await self._link.write(self._device_id, address, [mode])


def _rated(snapshot: Snapshot) -> tuple[int, int, int, int]:
    """Capacity, most charge and discharge, and what InWRte is a share of; 0 where not known."""
    values = (
        snapshot.number("802:WHRtg", "713:WHRtg"),
        snapshot.number("802:WChaRteMax", "124:WChaMax"),
        snapshot.number("802:WDisChaRteMax", "124:WChaMax"),
        snapshot.number("124:WChaMax", "802:WChaRteMax"),
    )
    capacity_wh, max_charge_w, max_discharge_w, base_w = (int(one or 0) for one in values)
    return capacity_wh, max_charge_w, max_discharge_w, base_w


def _whole(value: Decimal | None) -> int | None:
    return round(value) if value is not None else None


def _counter(value: Decimal | None) -> int | None:
    return int(value) if value is not None else None


def _int16(value: int) -> int:
    return max(-0x7FFF, min(0x7FFF, value))  # -0x8000 would say "not available"


def _signed(register: int) -> int:
    return register - 0x10000 if register & 0x8000 else register
