"""
A SunSpec battery held by model 704, AC controls of devices after IEEE 1547-2018.

WSet fixes the AC power of the whole device, + out of it; so PV on its DC side is added to the
battery's power, as much as there was when we last looked. WSetRvrtTms is the device's own lease:
when it has run out WSetEna becomes WSetEnaRvrt, which we set to disabled. Timer and setpoint are
written before they are enabled, and are renewed without being disabled in between. A device without
that timer is not held, nor one that shows that it does not run: there are some whose timer is
writable and does nothing.

References:
    SunSpec DER Information Model Specification V1.2; the definition of model 704.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal

from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.sunspec import Snapshot
from hem.gateway.sunspec_hold import (
    Bounds,
    HoldModel,
    Standing,
    Wire,
    Words,
    first_positive,
    scale_of,
)

PERCENT, WATTS = 0, 1
"""WSetMod."""
NO_ENUM, NO_UINT32 = 0xFFFF, 0xFFFF_FFFF
"""Not implemented."""
TIMER_LOOKS = 5
TIMER_LOOK_S = 0.4
"""A timer is looked for so often, with such a pause: some show it a moment late [real s]."""


class PowerControl(HoldModel):
    """Model 704: the AC power of the device, in watts or in percent of the most there may be."""

    model, switch, last, end, off = 704, "WSetEna", "WSetRvrtRem", "WSetPct_SF", (0, NO_ENUM)

    def __init__(self, link: Wire, device_id: int) -> None:
        super().__init__(link, device_id)
        self._max_w = 0
        self._scale = 0
        self._unit: int | None = None
        self._has_timer = False

    def see(self, snapshot: Snapshot) -> Standing:
        """The unit and scale of setpoints, whether there is a timer, and whose power is held."""
        self._max_w = first_positive(snapshot, "702:WMax", "702:WMaxRtg")
        self._has_timer = None not in (
            snapshot.number("704:WSetRvrtTms"),
            snapshot.number("704:WSetEnaRvrt"),
        )
        if snapshot.number("704:WSet") is not None:
            self._unit, self._scale = WATTS, scale_of(snapshot, "704:WSet_SF")
        elif snapshot.number("704:WSetPct") is not None and self._max_w > 0:
            self._unit, self._scale = PERCENT, scale_of(snapshot, "704:WSetPct_SF")
        else:
            self._unit = None
        return self.stands(snapshot.registers(self.model))

    async def hold(self, power_w: int, lease_s: int, bounds: Bounds) -> int:
        """
        Fix the battery's power for `lease_s` real seconds.

        Returns:
            The power that will flow (within the bounds and the device's own) [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: there is no setpoint or timer, the timer
                does not run, or the read-back differs; the device is back in its own mode then.
        """
        if self._unit is None:
            raise DeviceRefusedError("model 704 of the device has neither WSet nor WSetPct")
        if not self._has_timer:
            raise DeviceRefusedError("model 704 of the device has no reversion timer")
        ac_w = bounds.within(power_w) + bounds.pv_w
        if self._max_w > 0:
            ac_w = max(-self._max_w, min(self._max_w, ac_w))
        setpoint = self._setpoint(ac_w)
        timer = {"WSetEnaRvrt": [0, *_uint32(lease_s)]}  # WSetRvrtTms lies beside it
        async with self.commanding():
            for name, values in (timer | setpoint | {"WSetEna": [1]}).items():
                await self.write(name, values)
            await self._confirm(timer | setpoint | {"WSetEna": [1]}, lease_s)
        self.commanded = setpoint
        return ac_w - bounds.pv_w

    def _setpoint(self, ac_w: int) -> dict[str, list[int]]:
        """
        WSetMod and what it chooses.

        Raises:
            DeviceRefusedError: it does not fit the registers with the device's scale.
        """
        step = Decimal(1).scaleb(self._scale)
        if self._unit == WATTS:
            steps, bits = round(ac_w / step), 32
        else:
            steps, bits = round(Decimal(ac_w * 100) / self._max_w / step), 16
        if abs(steps) >= 1 << (bits - 1):
            raise DeviceRefusedError(f"{ac_w} W do not fit the scale of the device's setpoint")
        if self._unit == WATTS:
            return {"WSetMod": [WATTS, *_uint32(steps)]}  # WSet lies beside it
        return {"WSetMod": [PERCENT], "WSetPct": [steps & 0xFFFF]}

    async def _confirm(self, wanted: Words, lease_s: int) -> None:
        """
        The device took it, and its timer runs.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        for _ in range(TIMER_LOOKS):
            words = await self.look()
            if not self.shows(words, wanted):
                raise DeviceRefusedError("the battery did not take the setpoint")
            high, low = self.at(words, "WSetRvrtRem", 2)
            left_s = high << 16 | low
            if left_s == NO_UINT32 or 0 < left_s <= lease_s:
                return
            await asyncio.sleep(TIMER_LOOK_S)
        raise DeviceRefusedError("the battery's reversion timer does not run")


def _uint32(value: int) -> list[int]:
    return [value >> 16 & 0xFFFF, value & 0xFFFF]
