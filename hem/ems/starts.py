"""
When loads that may wait should start: asked anew at each slot, kept once the time has come.

The household writes its loads into the policy (`[[deferrable]]`); HiGHS, or the rules where there
is none, choose the slot in which each costs least beside sun, battery and prices. A load whose slot
has come keeps it: whoever was told to start the dishwasher now is not told otherwise later.
Starting it is the household's, or its automation's; we say when.

Source: TMI section V-D (flexible loads); docs/concepts/plan.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta, tzinfo

import msgspec
import structlog

from hem.controller.flexible import DeferrablePolicy
from hem.controller.plan import Deferrable, Plan, Task, Worth
from hem.controller.value_curve import ValueCurve
from runtime.ports import Store
from wire.canonical import decode, encode
from wire.errors import WireError
from wire.slots import SlotGrid

STARTS = "starts"
KEEP_SLOTS = 192
DAYS = 3
"""Windows that begin yesterday, today or tomorrow may lie ahead."""

log = structlog.get_logger(component="hem")

MakePlan = Callable[[Task], Awaitable[Plan | None]]


class Starts:
    """
    The chosen slots, by name of the load and its day.

    Args:
        store: where they are kept
        make: a plan for a task (`hem.ems.solver.Solver.plan`)
        zone: of the household's clock
    """

    def __init__(self, store: Store, grid: SlotGrid, make: MakePlan, zone: tzinfo) -> None:
        self._store, self._grid, self._make, self._zone = store, grid, make, zone
        self.chosen = self._kept()

    async def plan(
        self, task: Task, loads: Sequence[DeferrablePolicy], last: ValueCurve | None
    ) -> Plan | None:
        """
        The plan with the loads in it; None where there are none, or no plan was found.

        Args:
            task: without loads; its first slot is the one that begins
            last: what stored energy is worth after the last slot
        """
        waiting = self._waiting(task, loads)
        if not waiting:
            return None
        worth = _parts(last) if task.battery is not None else ()
        plan = await self._make(msgspec.structs.replace(task, loads=tuple(waiting), worth=worth))
        if plan is not None:
            self._choose(plan, task.first_slot)
        return plan

    def _waiting(self, task: Task, loads: Sequence[DeferrablePolicy]) -> list[Deferrable]:
        """Loads whose window lies ahead and whose slot has not come yet."""
        first, count = task.first_slot, len(task.slots)
        today = datetime.fromtimestamp(self._grid.start_ms(first) / 1000, self._zone).date()
        found = []
        for load in loads:
            for day in range(-1, DAYS - 1):
                one = load.on_day(today + timedelta(days=day), self._slot_at, self._grid.length_s)
                if one is None or self.chosen.get(one.name, first) < first:
                    continue
                if one.starts(first, count):
                    found.append(one)
        return found

    def _slot_at(self, local: datetime) -> int:
        return self._grid.slot_at(round(local.replace(tzinfo=self._zone).timestamp() * 1000))

    def _choose(self, plan: Plan, first_slot: int) -> None:
        come = {name: slot for name, slot in self.chosen.items() if slot < first_slot}
        kept = {name: slot for name, slot in come.items() if slot >= first_slot - KEEP_SLOTS}
        self.chosen = {**kept, **plan.starts}
        with self._store.atomic():
            self._store.put(STARTS, encode(self.chosen))

    def _kept(self) -> dict[str, int]:
        raw = self._store.get(STARTS)
        try:
            return {} if raw is None else dict(decode(raw))
        except (WireError, TypeError, ValueError) as error:
            log.warning("chosen starts lost", why=str(error))
            return {}


def _parts(curve: ValueCurve | None) -> tuple[Worth, ...]:
    """A value curve in the words of a task: from the floor upward, nothing below zero."""
    if curve is None:
        return ()
    return tuple(
        Worth(energy_wh=curve.step_wh, price_uc_per_kwh=max(value, 0)) for value in curve.marginals
    )
