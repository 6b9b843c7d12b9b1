"""
A plan by rules, for when there is no solver or it cannot be believed.

The car's urgent part is first, as soon as limits allow; each load that may wait starts where it is
cheapest, surplus of the sun counted at what it would bring; the rest of the car goes into the
cheapest slots before it must be ready; the battery is run in self-consumption. What found no place
under the limits is tried once more when it is known what the battery gives.

Source: TMI section V-D (self-consumption); docs/concepts/plan.md.
"""

from __future__ import annotations

from hem.controller.bidding import self_consumption
from hem.controller.plan import Car, Deferrable, Plan, Task
from hem.controller.planning import (
    IMPORT_MARGIN_WH,
    Step,
    assemble,
    export_most_wh,
    flexible_wh,
    urgent_car_wh,
)
from wire.units import cost_uc


def plan_by_rules(task: Task) -> Plan:
    """A plan that can be kept; rarely the cheapest."""
    grid_wh = [each.load_wh - each.pv_wh for each in task.slots]
    day = _Day(task, grid_wh)
    day.charge_urgently()
    day.place()
    steps = _battery_steps(task, day.grid_wh)
    for at, step in enumerate(steps):
        day.grid_wh[at] += step.charge_wh - step.discharge_wh
    day.place()
    car_wh = tuple(day.car_wh) if task.car else ()
    needs = flexible_wh(task, day.starts, car_wh)
    return assemble(task, day.starts, car_wh, _curtailed(task, needs, steps), "rules")


class _Day:
    """What is placed so far, and what the grid carries with it."""

    def __init__(self, task: Task, grid_wh: list[int]) -> None:
        self.task = task
        self.grid_wh = grid_wh
        self.starts: dict[str, int] = {}
        self.car_wh = [0] * len(grid_wh)
        self._most_wh = [each.import_limit_wh - IMPORT_MARGIN_WH for each in task.slots]

    def charge_urgently(self) -> None:
        """The part of the car's need that does not wait."""
        for at, energy_wh in enumerate(urgent_car_wh(self.task)):
            self._charge(at, energy_wh)

    def place(self) -> None:
        """What has no place yet: the loads, then the rest of the car."""
        for load in self.task.loads:
            if load.name not in self.starts:
                self._place_load(load)
        if self.task.car:
            self._place_car(self.task.car)

    def _place_load(self, load: Deferrable) -> None:
        found = [
            (self._cost_of(slot, load), slot)
            for slot in load.starts(self.task.first_slot, len(self.grid_wh))
            if self._fits(slot, load)
        ]
        if not found:
            return
        self.starts[load.name] = min(found)[1]
        for at, energy_wh in self._parts(self.starts[load.name], load):
            self.grid_wh[at] += energy_wh

    def _parts(self, slot: int, load: Deferrable) -> list[tuple[int, int]]:
        return list(enumerate(load.profile_wh, slot - self.task.first_slot))

    def _fits(self, slot: int, load: Deferrable) -> bool:
        return all(
            energy_wh == 0 or self.grid_wh[at] + energy_wh <= self._most_wh[at]
            for at, energy_wh in self._parts(slot, load)
        )

    def _cost_of(self, slot: int, load: Deferrable) -> int:
        return sum(self._cost(at, energy_wh) for at, energy_wh in self._parts(slot, load))

    def _cost(self, at: int, energy_wh: int) -> int:
        """Of so much more in a slot [µ¤]: export forgone first, then import."""
        each = self.task.slots[at]
        surplus_wh = min(max(-self.grid_wh[at], 0), energy_wh)
        forgone_uc = cost_uc(surplus_wh, each.export_price_uc_per_kwh)
        return forgone_uc + cost_uc(energy_wh - surplus_wh, each.import_price_uc_per_kwh)

    def _place_car(self, car: Car) -> None:
        places = [
            slot - self.task.first_slot
            for slot in car.charging_slots
            if 0 <= slot - self.task.first_slot < len(self.grid_wh)
        ]
        most_wh = max(car.max_charge_wh, 1)
        for at in sorted(places, key=lambda at: (self._cost(at, most_wh), at)):
            missing_wh = car.need_ac_wh - sum(self.car_wh)
            if missing_wh <= 0:
                return
            room_wh = min(car.max_charge_wh - self.car_wh[at], self._most_wh[at] - self.grid_wh[at])
            least_wh = max(car.min_charge_wh - self.car_wh[at], 0)
            energy_wh = min(max(missing_wh, least_wh), room_wh)
            if energy_wh >= max(least_wh, 1):
                self._charge(at, energy_wh)

    def _charge(self, at: int, energy_wh: int) -> None:
        self.car_wh[at] += energy_wh
        self.grid_wh[at] += energy_wh


def _battery_steps(task: Task, grid_wh: list[int]) -> list[Step]:
    """Self-consumption: the surplus is stored, what is missing is taken from it."""
    if task.battery is None:
        return [Step() for _ in grid_wh]
    steps = []
    soc_wh = task.soc_wh
    for need_wh in grid_wh:
        soc_wh, carried_wh = self_consumption(task.battery, soc_wh, need_wh, task.slot_seconds)
        steps.append(Step(max(carried_wh - need_wh, 0), max(need_wh - carried_wh, 0)))
    return steps


def _curtailed(task: Task, needs_wh: list[int], steps: list[Step]) -> list[Step]:
    """The same, with so much of the sun unused as the limit wants or as would cost to export."""
    if not task.can_curtail:
        return steps
    curtailed = []
    most_wh = export_most_wh(task)
    for each, need_wh, step, limit_wh in zip(task.slots, needs_wh, steps, most_wh, strict=True):
        net_wh = each.load_wh + need_wh + step.charge_wh - step.discharge_wh - each.pv_wh
        allowed_wh = 0 if each.export_price_uc_per_kwh < 0 else limit_wh
        unused_wh = min(max(-net_wh - allowed_wh, 0), each.pv_wh)
        curtailed.append(Step(step.charge_wh, step.discharge_wh, unused_wh))
    return curtailed
