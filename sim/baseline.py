"""
The same day without a market: what a home would have paid its supplier.

Same profile, same battery with the same equations (`sim.battery_physics`) in its own
self-consumption mode, same meter registers read at the ends of slots, and the same tariff; only
nothing is bought from or sold to anybody else. The demo's report compares each home with this.
"""

from __future__ import annotations

from dataclasses import dataclass

from market.settlement import Tariff, settle
from sim.battery_physics import WMS_PER_WH, HomePhysics
from sim.devices import physics_of
from sim.homes import Home


@dataclass(frozen=True, slots=True)
class Baseline:
    """A home's day with its supplier alone."""

    import_wh: int
    """Σ over the slots of what was taken net."""
    export_wh: int
    """Σ over the slots of what was fed in net."""
    cost_uc: int
    """What the home pays [µ¤]; negative: what it earns."""
    soc_start_permille: int
    """State of charge at the beginning, 0 without a battery."""
    soc_end_permille: int
    """State of charge at the end, 0 without a battery."""


def day_without_market(
    home: Home,
    tariff: Tariff,
    slot_s: int,
    start_ms: int,
    slots: int,
    warm_up_ms: int = 0,
    end_ms: int = 0,
) -> Baseline:
    """
    Run a home for `slots` slots from `start_ms` in self-consumption.

    Each slot's net is settled at the retail or the feed-in price with the rounding of the market.

    Args:
        warm_up_ms: how long before `start_ms` the home began to run, full of what it had then
        end_ms: when its state of charge is read, if later than the last slot's end
    """
    physics = physics_of(home, start_ms - warm_up_ms)
    physics.advance(start_ms)
    soc_start_permille = physics.soc_permille
    import_wh = export_wh = cost_uc = 0
    register_wh = _register_wh(physics)
    for slot in range(1, slots + 1):
        physics.advance(start_ms + slot * slot_s * 1000)
        # The meter shows whole Wh; what it has not shown yet it shows in a later slot.
        now_wh = _register_wh(physics)
        net_wh, register_wh = now_wh - register_wh, now_wh
        import_wh += max(net_wh, 0)
        export_wh += max(-net_wh, 0)
        cost_uc += settle(net_wh, 0, 0, tariff).amount_uc
    physics.advance(max(end_ms, start_ms + slots * slot_s * 1000))
    return Baseline(import_wh, export_wh, cost_uc, soc_start_permille, physics.soc_permille)


def _register_wh(physics: HomePhysics) -> int:
    return physics.import_wms // WMS_PER_WH - physics.export_wms // WMS_PER_WH
