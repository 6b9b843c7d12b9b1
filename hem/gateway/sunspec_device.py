"""
A SunSpec device: no template, its models say what it is.

Grid power comes from models 201–204 and 211–214, PV from 101–103, 111–113 and 701, a battery from
802 or 713, held by 124 or else by 704 (hem/gateway/sunspec_hold.py), its power from 802, else from
the storage ports of 714, else it is the AC power of 701. Where the device shows both inverter and
battery, the inverter's AC power carries the battery's too, and PV is what remains.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from decimal import Decimal

from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.source import Sample
from hem.gateway.sunspec import GROUPS_MAX, Block, Snapshot, discover, read
from hem.gateway.sunspec_hold import Bounds, Control, Standing, Wire, first_positive
from hem.gateway.sunspec_power import PowerControl
from hem.gateway.sunspec_storage import StorageControl

COMMON = 1
METERS = (203, 213, 202, 212, 201, 211, 204, 214)
INVERTERS = (103, 113, 102, 112, 101, 111, 701)
INVERTER_ENERGY = (*(f"{model}:WH" for model in INVERTERS[:-1]), "701:TotWhInj")
"""Model 701 is IEEE 1547-2018's; it names its register of energy injected differently."""
BATTERIES = (802, 713, 124)
"""What a battery is known by; it needs a capacity, too."""
BATTERY_MODELS = (*BATTERIES, 701, 702, 704, 714)
"""What is read of a battery; the 700s belong together (IEEE 1547-2018)."""
CAPABILITIES: dict[str, tuple[int, ...]] = {
    "grid": METERS,
    "pv": INVERTERS,
    "battery": BATTERIES,
}
PV_PORT, STORAGE_PORT = 0, 1
"""PrtTyp of model 714."""


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
        self._controls: tuple[Control, ...] = (
            StorageControl(link, device_id),
            PowerControl(link, device_id),
        )
        self._control: Control | None = None
        self._standing: Standing = "neutral"
        self._bounds: Bounds | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        """What is wanted of it, or what it was found to have."""
        return self._capabilities

    @property
    def standing(self) -> Standing:
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
        if self._bounds is None:
            raise DeviceRefusedError("the battery has not been reached yet")
        return await self._held_by().hold(power_w, lease_s, self._bounds)

    async def restore_neutral(self) -> None:
        """
        End the lease: the device is back in its own mode. Writes only where that is not so yet.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        await self._held_by().restore_neutral()

    async def is_neutral(self) -> bool:
        """
        Is it in its own mode?

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        return await self._held_by().is_neutral()

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
            self._control = next((one for one in self._controls if one.find(chain)), None)
            if not self._chosen:
                self._capabilities = await self._found(chain)
        used = [model for one in self._capabilities for model in CAPABILITIES.get(one, ())]
        if "battery" in self._capabilities:
            used += BATTERY_MODELS
        return self._sample(await read(self._link, self._device_id, self._chain, used))

    async def _found(self, chain: list[Block]) -> frozenset[str]:
        """
        What the models show. Model 124 alone is no battery, nor is one without a capacity: many
        inverters carry them for a battery that could be added. Model 701 alone is no PV where there
        is a battery and no PV port: it is the battery's own inverter.
        """
        models = {block.model for block in chain}
        found = {one for one, wanted in CAPABILITIES.items() if models & set(wanted)}
        if "battery" in found:
            snapshot = await read(self._link, self._device_id, chain, BATTERY_MODELS)
            if min(_rated(snapshot)) <= 0:
                found.discard("battery")
            elif models & set(INVERTERS) == {701} and not _ports(snapshot, PV_PORT):
                found.discard("pv")
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
        capacity_wh, max_charge_w, max_discharge_w = _rated(snapshot)
        if min(capacity_wh, max_charge_w, max_discharge_w) <= 0:  # we divide by them
            raise DeviceRefusedError("WHRtg, or the most power to charge or discharge with, is 0")
        pv_w = _ports_w(snapshot, PV_PORT) or 0
        self._bounds = Bounds(max_charge_w, max_discharge_w, max(0, pv_w))
        self._standing = self._control.see(snapshot) if self._control is not None else "neutral"
        soc_percent = snapshot.number("802:SoC", "713:SoC", "124:ChaState")
        return replace(
            sample,
            battery_w=_battery_w(snapshot),
            soc_permille=round(soc_percent * 10) if soc_percent is not None else None,
            capacity_wh=capacity_wh,
            max_charge_w=max_charge_w,
            max_discharge_w=max_discharge_w,
        )

    def _held_by(self) -> Control:
        if self._control is None:
            raise DeviceRefusedError("the device has no SunSpec model 124 or 704 to command it by")
        return self._control


def _rated(snapshot: Snapshot) -> tuple[int, int, int]:
    """Capacity, most charge and discharge; 0 where not known."""
    charge = ("802:WChaRteMax", "124:WChaMax", "702:WChaRteMax", "702:WChaRteMaxRtg")
    discharge = ("802:WDisChaRteMax", "124:WChaMax", "702:WDisChaRteMax", "702:WDisChaRteMaxRtg")
    return (
        first_positive(snapshot, "802:WHRtg", "713:WHRtg"),
        first_positive(snapshot, *charge, "702:WMaxRtg"),
        first_positive(snapshot, *discharge, "702:WMaxRtg"),
    )


def _battery_w(snapshot: Snapshot) -> int | None:
    """+ discharge."""
    power_w = _whole(snapshot.number("802:W"))
    if power_w is None:
        power_w = _ports_w(snapshot, STORAGE_PORT)
    if power_w is None and not _ports(snapshot, PV_PORT):
        power_w = _whole(snapshot.number("701:W"))
    return power_w


def _ports_w(snapshot: Snapshot, kind: int) -> int | None:
    """DC power of a kind's ports, + into the inverter; None where none says."""
    powers = [snapshot.number(f"{port}.DCW") for port in _ports(snapshot, kind)]
    known = [power for power in powers if power is not None]
    return round(sum(known)) if known else None


def _ports(snapshot: Snapshot, kind: int) -> list[str]:
    """The names of a kind's DC ports."""
    names = [f"714:Prt.{number}" for number in range(GROUPS_MAX)]
    return [name for name in names if snapshot.number(f"{name}.PrtTyp") == kind]


def _whole(value: Decimal | None) -> int | None:
    return round(value) if value is not None else None


def _counter(value: Decimal | None) -> int | None:
    return int(value) if value is not None else None
