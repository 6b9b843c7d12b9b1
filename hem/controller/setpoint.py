"""
The battery's power within a slot, so that the slot's metered net meets the contract.

Only the net of the whole slot is settled, so what went wrong early in the slot is made good later
in it. Without a contract the battery serves the home alone.
"""

from __future__ import annotations

from hem.controller.battery import Battery
from hem.controller.limits import FREE, Caps

COVER_S = 180
"""What is imported above a limit is covered as far as the battery lasts until we look again [s]."""
LOOK_AHEAD_S = 30
"""An error near the end of a slot is corrected as if this much time were left: no wild swings."""
_ANY_TIME_S = 10**9
"""So long that rates do not limit: what is left is what is stored."""


def setpoint_w(
    position_net_wh: int,
    net_so_far_wh: int,
    seconds_left: int,
    load_w: int,
    pv_w: int,
    soc_wh: int | None,
    battery: Battery | None,
    slot_has_position: bool,
    reserve_wh: int = 0,
    caps: Caps = FREE,
) -> int:
    """
    Battery power to set now [W, + discharge].

        battery = load − pv − grid,   grid = (contracted net − net so far) / time left

    Without a position grid = 0: self-consumption, where the battery never exports. With one it
    exports what the position still needs and no more, and nothing of what is kept in reserve. A
    bought surplus is stored.

    Args:
        position_net_wh: bought − sold [Wh]
        net_so_far_wh: import − export since the slot began [Wh]
        seconds_left: of the slot
        soc_wh: stored energy; None without a battery
        reserve_wh: kept for the home: beyond its own load only what is above it is discharged
        caps: limits of the grid that hold now

    Returns:
        Power within the battery's rates and what its state of charge allows; 0 without a battery.
    """
    if battery is None or soc_wh is None:
        return 0
    horizon_s = max(seconds_left, LOOK_AHEAD_S)
    grid_w = 0
    if slot_has_position:
        missing_wh = position_net_wh - net_so_far_wh
        # Toward zero: never a watt more on the grid than the position needs.
        grid_w = abs(missing_wh) * 3600 // horizon_s * (1 if missing_wh >= 0 else -1)
    wanted_w = load_w - pv_w - grid_w
    # What is stored must last for the time left; the rates are limits of their own.
    stored_wh = battery.discharge_limit_wh(soc_wh, _ANY_TIME_S)
    room_wh = battery.charge_limit_wh(soc_wh, _ANY_TIME_S)
    most_charge_w = min(battery.max_charge_w, room_wh * 3600 // horizon_s)
    if wanted_w >= 0:
        spare_wh = battery.discharge_limit_wh(soc_wh - reserve_wh, _ANY_TIME_S)
        power_w = min(
            wanted_w,
            battery.max_discharge_w,
            stored_wh * 3600 // horizon_s,
            max(load_w - pv_w, spare_wh * 3600 // horizon_s, 0),
        )
    else:
        power_w = -min(-wanted_w, most_charge_w)
    cover_wh = stored_wh * 3600 // min(max(seconds_left, LOOK_AHEAD_S), COVER_S)
    most_w = max(power_w, min(battery.max_discharge_w, cover_wh))
    return min(max(caps.within(power_w, load_w, pv_w), min(power_w, -most_charge_w)), most_w)
