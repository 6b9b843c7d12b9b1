"""
What the home sees ahead, and what it does with its battery about it.

Between the planner (hem/ems/planner.py), which knows energies, and the home, which knows prices and
limits: the prices of the slots ahead are the owner's tariff where one is written down, else the
market's, drawn towards what energy was traded for in the same slots of the days before, as far as
it was traded. In a slot without a contract the battery follows the value of stored energy; where
that says no more than self-consumption, the device's own way of it is left alone, for it looks at
the meter every second and we do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from hem.controller.battery import Battery
from hem.controller.limits import Caps
from hem.controller.plan import Outlook, Plan, Task
from hem.controller.plan_check import check_plan
from hem.controller.planning import Step, assemble
from hem.controller.policy import Policy
from hem.controller.sections import TariffBand
from hem.controller.value_curve import NO_LIMIT_WH, Terms, ValueCurve, dispatch
from hem.ems.planner import Planned, Planner, Prospect
from hem.ems.starts import Starts
from market.settlement import Tariff
from wire.slots import SlotGrid

TRADE_TRUST_PERMILLE = 500
"""Of the gap between tariff and traded price: who bids is not always served."""
DAYS_BACK = (1, 2)
SAME_W = 30
"""A power so near to self-consumption is no reason to take the battery from it [W]."""
LIMIT_WH = 10**8
"""Of a slot without a limit: more than any home's."""
SLOT_S_MIN = 30.0
"""In shorter slots of real time (a market that runs fast) nobody looks ahead [real s]."""


log = structlog.get_logger(component="hem")


class Home(NamedTuple):
    """What the home tells when it is asked."""

    policy: Callable[[], Policy]
    tariff: Callable[[int], Tariff]
    """The market's, by slot."""
    price: Callable[[int], int | None]
    """What energy was traded for in a slot [µ¤/kWh]."""
    caps: Callable[[int, int], Caps]
    """Limits between two times [ms]."""
    day_s: Callable[[int], int]
    """Seconds since the home's midnight, by slot."""


class Foresight:
    """
    The home's outlook, and what follows from it.

    Args:
        planner: forecasts and values
        starts: when loads that may wait should start
        speed: market seconds in a real one
    """

    def __init__(
        self, planner: Planner, starts: Starts, grid: SlotGrid, home: Home, speed: float = 1.0
    ) -> None:
        self._planner, self._starts, self._grid, self._home = planner, starts, grid, home
        self._too_fast = grid.length_s / speed < SLOT_S_MIN
        self._slot = -1
        self._soc_wh: int | None = None
        self._plan: Plan | None = None
        self._impossible = False

    async def look(self, slot: int, battery: Battery | None, soc_wh: int | None) -> None:
        """At a slot's beginning: what comes, and what stored energy is worth."""
        if self._too_fast:
            return
        policy, count = self._home.policy(), self._planner.count()
        prices = [self.prices(ahead) for ahead in range(slot, slot + count)]
        limits = [self._limits_wh(ahead) for ahead in range(slot, slot + count)]
        limited = any(limit != (NO_LIMIT_WH, NO_LIMIT_WH) for limit in limits)
        self._slot, self._soc_wh = slot, soc_wh
        prospect = Prospect(
            first_slot=slot,
            import_price=tuple(paid for paid, _ in prices),
            export_price=tuple(got for _, got in prices),
            import_max_wh=tuple(most for most, _ in limits) if limited else None,
            export_max_wh=tuple(most for _, most in limits) if limited else None,
            battery=battery,
            wear=policy.degradation_uc_per_kwh,
            reluctance=policy.reluctance_uc_per_kwh,
            keep_wh=battery.capacity_wh * policy.reserve_permille // 1000 if battery else 0,
        )
        await self._planner.look(prospect)
        self._plan = self._judged(prospect)
        if policy.deferrable and self._plan is not None:
            path = self._planner.path(soc_wh)
            task = _task(prospect, path, soc_wh, self._grid.length_s)
            last = self._planner.value_after(slot + count - 1, slot)
            self._plan = await self._starts.plan(task, policy.deferrable, last) or self._plan

    def value_after(self, slot: int) -> ValueCurve | None:
        """
        What stored energy is worth when a slot has ended.

        None where nobody knows, or where what follows from it could not be: an impossible plan is
        acted on by nobody.
        """
        return None if self._impossible else self._planner.value_after(slot, self._slot)

    def prices(self, slot: int) -> tuple[int, int]:
        """What energy costs and brings in a slot, as far as one can tell [µ¤/kWh]."""
        paid, got = self.bare_prices(slot)
        per_day = 86_400 // self._grid.length_s
        seen = [self._home.price(slot - per_day * days) for days in DAYS_BACK]
        traded = [price for price in seen if price is not None and got < price < paid]
        if not traded:
            return paid, min(got, paid)
        middle, trust = sum(traded) // len(traded), TRADE_TRUST_PERMILLE * len(traded) // len(seen)
        return (
            paid - (paid - middle) * trust // 1000,
            min(got + (middle - got) * trust // 1000, paid),
        )

    def bare_prices(self, slot: int) -> tuple[int, int]:
        """What energy costs and brings in a slot if nothing is traded for it [µ¤/kWh]."""
        tariff, policy = self._home.tariff(slot), self._home.policy()
        paid, got = tariff.retail_uc_per_kwh, tariff.feed_in_uc_per_kwh
        band = self._band(slot)
        if band is not None and band.import_price is not None:
            paid = int(policy.price_uc(band.import_price))
        if band is not None and band.export_price is not None:
            got = int(policy.price_uc(band.export_price))
        return paid, got

    def steer_w(
        self,
        slot: int,
        load_w: int,
        pv_w: int,
        soc_wh: int,
        battery: Battery,
        seconds_left: int,
        reserve_wh: int = 0,
    ) -> int | None:
        """
        The battery's power in a slot without a contract [W, + discharge].

        Args:
            slot: that runs; nothing was traded for it, so what flows costs and brings the tariff
            reserve_wh: kept for the home: beyond its own need only what is above it is discharged

        Returns:
            None where the battery is to be left to itself.
        """
        curve = self.value_after(slot)
        if curve is None or seconds_left <= 0:
            return None
        policy = self._home.policy()
        paid, got = self.bare_prices(slot)
        import_max_wh, export_max_wh = self._limits_wh(slot)
        terms = Terms(
            import_price=paid,
            export_price=got,
            wear=policy.degradation_uc_per_kwh,
            reluctance=policy.reluctance_uc_per_kwh,
            import_max_wh=import_max_wh * seconds_left // self._grid.length_s,
            export_max_wh=export_max_wh * seconds_left // self._grid.length_s,
            keep_wh=reserve_wh if self._may_sell(slot, got) else battery.capacity_wh,
        )
        net_wh = (load_w - pv_w) * seconds_left // 3600
        out_wh = dispatch(net_wh, soc_wh, curve, battery, terms, seconds_left)
        alone_wh = max(
            min(net_wh, battery.discharge_limit_wh(soc_wh, seconds_left)),
            -battery.charge_limit_wh(soc_wh, seconds_left),
        )
        power_w = out_wh * 3600 // seconds_left
        return None if abs(power_w - alone_wh * 3600 // seconds_left) <= SAME_W else power_w

    def _may_sell(self, slot: int, price: int) -> bool:
        """Does the owner let stored energy go to the grid in a slot, for this price?"""
        policy, begin_s = self._home.policy(), self._home.day_s(slot)
        least = policy.sell_price_min
        closed = any(one.overlaps(begin_s, self._grid.length_s) for one in policy.never_sell)
        return not closed and (least is None or price >= least)

    @property
    def plan(self) -> Plan | None:
        """What the home will do if all comes as expected; None where nobody knows."""
        return self._plan

    def _judged(self, prospect: Prospect) -> Plan | None:
        """The plan that follows, if it can be (hem/controller/plan_check.py)."""
        path = self._planner.path(self._soc_wh)
        if not path or path[0].slot != prospect.first_slot:
            return None  # the outlook is still the last one, and so is what was found of it
        task = _task(prospect, path, self._soc_wh, self._grid.length_s)
        steps = [Step(max(-one.battery_wh, 0), max(one.battery_wh, 0)) for one in path]
        plan = assemble(task, {}, (), steps, "values")
        faults = check_plan(task, plan)
        self._impossible = bool(faults)
        if faults:
            log.error(
                "impossible plan, by the state of charge", faults=[str(f) for f in faults[:3]]
            )
            return None
        return plan

    def _band(self, slot: int) -> TariffBand | None:
        begin_s = self._home.day_s(slot)
        for band in self._home.policy().tariff:
            if band.overlaps(begin_s, 1):
                return band
        return None

    def _limits_wh(self, slot: int) -> tuple[int, int]:
        caps = self._home.caps(self._grid.start_ms(slot), self._grid.end_ms(slot))
        sides = (caps.import_w, caps.export_w)
        most_in, most_out = (
            NO_LIMIT_WH if power_w is None else power_w * self._grid.length_s // 3600
            for power_w in sides
        )
        return most_in, most_out


def _task(prospect: Prospect, path: Sequence[Planned], soc_wh: int | None, slot_s: int) -> Task:
    """What the plan was made for, for its judge."""
    most_in, most_out = prospect.import_max_wh, prospect.export_max_wh
    slots = tuple(
        Outlook(
            load_wh=one.load_wh,
            pv_wh=one.pv_wh,
            import_price_uc_per_kwh=one.import_price,
            export_price_uc_per_kwh=one.export_price,
            import_limit_wh=LIMIT_WH if most_in is None else min(most_in[at], LIMIT_WH),
            export_limit_wh=LIMIT_WH if most_out is None else min(most_out[at], LIMIT_WH),
        )
        for at, one in enumerate(path)
    )
    battery = prospect.battery if soc_wh is not None else None
    return Task(
        first_slot=prospect.first_slot,
        slot_seconds=slot_s,
        slots=slots,
        battery=battery,
        soc_wh=soc_wh or 0 if battery is not None else 0,
        degradation_uc_per_kwh=prospect.wear,
    )
