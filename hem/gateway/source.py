"""
What a device of any make gives and takes: engineering values in, leased setpoints out.

A driver (SunSpec, template, P1 port, MQTT) is a `Source`; one that can hold a battery's power is a
`Storage` too. What it does not know is None, never a number that could be taken for one. Signs:
grid + import, battery + discharge; energies are the device's own counters.

Source: the roles of TMI's home area devices (section V-B); SunSpec's sign conventions are turned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a device."""

    grid_w: int | None = None
    """+ import [W], as are the powers below in their own directions."""
    import_wh: int | None = None
    export_wh: int | None = None
    pv_w: int | None = None
    generation_wh: int | None = None
    battery_w: int | None = None
    """+ discharge."""
    soc_permille: int | None = None
    capacity_wh: int | None = None
    max_charge_w: int | None = None
    max_discharge_w: int | None = None
    load_w: int | None = None
    """Of a device that uses energy (heat pump, car charger)."""
    details: dict[str, str] = field(default_factory=dict)
    """Vendor, model, firmware, serial; whatever else a person may want to see."""


class Source(Protocol):
    """A device that can be read."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Of `grid`, `pv`, `battery`, `load`."""
        ...

    async def read(self) -> Sample:
        """
        Look at the device now.

        Raises:
            DeviceLostError: no answer in time. DeviceRefusedError: it answers nonsense, or lacks a
                value that its capability needs.
        """
        ...

    def close(self) -> None:
        """Give up connections of its own."""
        ...


class Storage(Protocol):
    """A battery whose power can be held for a while."""

    async def hold(self, power_w: int, lease_s: int) -> int:
        """
        Hold the battery's power; the device, or who watches it, ends the lease.

        Returns:
            The power that will flow, within the limits [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs.
        """
        ...

    async def restore_neutral(self) -> None:
        """
        Give the device back to its own mode. Writes only where that is not so yet.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...

    async def is_neutral(self) -> bool:
        """
        Is it in its own mode?

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...
