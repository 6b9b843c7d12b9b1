"""
A SunSpec battery held by model 124, basic storage controls.

InWRte and OutWRte limit charging and discharging; a negative limit turns into the least power of
the other direction, so the pair (−p, p) fixes the power at p. InOutWRte_RvrtTms is the device's own
lease: when it runs out the device is back in its own self-consumption mode, whatever became of us.
The timer is optional in the model: a device that does not keep what is written to it is not held.
"""

from __future__ import annotations

from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.sunspec import Snapshot
from hem.gateway.sunspec_hold import Bounds, HoldModel, Standing, Wire, scale_of

STORE_CONTROL_BOTH = 3
"""StorCtl_Mod with both limits active (bit 0 charge, bit 1 discharge)."""


class StorageControl(HoldModel):
    """Model 124: limits of charging and discharging, as shares of the most there may be."""

    model, switch, last, end = 124, "StorCtl_Mod", "InOutWRte_RvrtTms", "InOutWRte_SF"
    off = (0,)

    def __init__(self, link: Wire, device_id: int) -> None:
        super().__init__(link, device_id)
        self._scale = 0
        self._charge_base_w = 0

    def see(self, snapshot: Snapshot) -> Standing:
        """
        The scale of the rates, what InWRte is a share of, and whose power is held.

        Raises:
            DeviceRefusedError: WChaMax is not available.
        """
        base_w = snapshot.number("124:WChaMax", "802:WChaRteMax")
        if base_w is None or int(base_w) <= 0:  # we divide by it
            raise DeviceRefusedError("124:WChaMax is not available")
        self._charge_base_w = int(base_w)
        self._scale = scale_of(snapshot, "124:InOutWRte_SF")
        return self.stands(snapshot.registers(self.model))

    async def hold(self, power_w: int, lease_s: int, bounds: Bounds) -> int:
        """
        Fix the battery's power for `lease_s` real seconds.

        Returns:
            The power that will flow (within the bounds) [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs, or the timer is
                not there; the device is back in its own mode then.
        """
        power_w = bounds.within(power_w)
        full = 100 * 10**-self._scale  # 100 % in register units
        rates = [
            _int16(round(power_w * full / bounds.max_discharge_w)),
            _int16(round(-power_w * full / self._charge_base_w)),
        ]
        wanted = {"OutWRte": rates, "StorCtl_Mod": [STORE_CONTROL_BOTH]}
        async with self.commanding():
            # OutWRte, InWRte, WinTms (act at once) and RvrtTms lie side by side: one request.
            await self.write("OutWRte", [*rates, 0, lease_s])
            await self.write("StorCtl_Mod", [STORE_CONTROL_BOTH])
            words = await self.look()
            if not self.shows(words, wanted):
                raise DeviceRefusedError("the battery did not take the setpoint")
            (left_s,) = self.at(words, "InOutWRte_RvrtTms")  # some count it down
            if not 0 < left_s <= lease_s:
                raise DeviceRefusedError("model 124 of the device has no reversion timer")
        self.commanded = wanted
        return power_w


def _int16(value: int) -> int:
    """As a register; −0x8000 would say "not available"."""
    return max(-0x7FFF, min(0x7FFF, value)) & 0xFFFF
