"""
From decisions to a plan: what the solver's plans and those by rule have in common.

Whoever plans decides when loads start, what the car takes and what the battery does. Grid, stored
energy, notes and cost follow from that, by the battery's own equations in integers.

Source: TMI section V-D, equations 1 to 8; docs/concepts/plan.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hem.controller.plan import MadeBy, Note, Plan, PlanSlot, Task, plan_cost_uc

IMPORT_MARGIN_WH = 3
"""Kept free below the limit of import for rounding to whole Wh: the car's 1, the battery's 2."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the battery does in a slot, and what of the sun is not used [Wh]."""

    charge_wh: int = 0
    discharge_wh: int = 0
    curtailed_wh: int = 0


def import_most_wh(task: Task, margin_wh: int = 0) -> tuple[int, ...]:
    """By slot: the grid's limit, or what the home needs in any case where that is more [Wh]."""
    return tuple(
        max(each.import_limit_wh - margin_wh, each.load_wh - each.pv_wh, 0) for each in task.slots
    )


def export_most_wh(task: Task) -> tuple[int, ...]:
    """By slot: the grid's limit, or what the home cannot help giving where that is more [Wh]."""
    return tuple(
        each.export_limit_wh
        if task.can_curtail
        else max(each.export_limit_wh, each.pv_wh - each.load_wh)
        for each in task.slots
    )


def urgent_car_wh(task: Task) -> tuple[int, ...]:
    """
    By slot: the least that the car takes for what does not wait, as power and limits allow [Wh].

    The battery's help is not counted on.
    """
    urgent_wh = [0] * len(task.slots)
    car = task.car
    if car is None:
        return tuple(urgent_wh)
    missing_wh = -(-car.soon_wh * 1000 // car.charge_permille)
    most_wh = import_most_wh(task, IMPORT_MARGIN_WH)
    for slot in car.charging_slots:
        at = slot - task.first_slot
        if missing_wh <= 0 or not 0 <= at < len(task.slots):
            continue
        room_wh = most_wh[at] + task.slots[at].pv_wh - task.slots[at].load_wh
        energy_wh = min(car.max_charge_wh, max(missing_wh, car.min_charge_wh), room_wh)
        if energy_wh >= max(car.min_charge_wh, 1):
            urgent_wh[at] = energy_wh
            missing_wh -= energy_wh
    return tuple(urgent_wh)


def flexible_wh(task: Task, starts: Mapping[str, int], car_wh: Sequence[int]) -> list[int]:
    """By slot: loads that could wait, and the car [Wh]."""
    total_wh = list(car_wh) or [0] * len(task.slots)
    for load in task.loads:
        if load.name in starts:
            at = starts[load.name] - task.first_slot
            for part, energy_wh in enumerate(load.profile_wh):
                total_wh[at + part] += energy_wh
    return total_wh


def assemble(
    task: Task,
    starts: Mapping[str, int],
    car_wh: Sequence[int],
    steps: Sequence[Step],
    made_by: MadeBy,
    marginal_uc_per_kwh: Sequence[int] = (),
) -> Plan:
    """
    The plan that follows from the decisions.

    Args:
        starts: by name of the load; those left out are missing
        car_wh: AC, one for each slot; empty without a car
        steps: one for each slot, within the battery's limits
        marginal_uc_per_kwh: one for each slot, or empty
    """
    slots = tuple(_slots(task, flexible_wh(task, starts, car_wh), steps))
    return Plan(
        first_slot=task.first_slot,
        slots=slots,
        starts=dict(starts),
        car_wh=tuple(car_wh),
        cost_uc=plan_cost_uc(task, slots),
        made_by=made_by,
        notes=tuple(_notes(task, slots, starts, car_wh)),
        marginal_uc_per_kwh=tuple(marginal_uc_per_kwh),
    )


def shortcomings(plan: Plan) -> tuple[int, int, int, int]:
    """What a plan is measured by, less is better: limits, the car, loads [Wh], money [µ¤]."""
    missing = {"limit": 0, "car-short": 0, "load-left-out": 0}
    for note in plan.notes:
        missing["limit" if note.kind.endswith("limit") else note.kind] += note.energy_wh
    return missing["limit"], missing["car-short"], missing["load-left-out"], plan.cost_uc


def _slots(task: Task, flexible: Sequence[int], steps: Sequence[Step]) -> Iterator[PlanSlot]:
    soc_wh = task.soc_wh
    for at, (each, step) in enumerate(zip(task.slots, steps, strict=True)):
        if task.battery:
            soc_wh = task.battery.after(soc_wh, step.charge_wh, step.discharge_wh)
        needed_wh = each.load_wh + flexible[at] + step.charge_wh
        grid_wh = needed_wh - step.discharge_wh - each.pv_wh + step.curtailed_wh
        yield PlanSlot(
            slot=task.first_slot + at,
            load_wh=each.load_wh,
            pv_wh=each.pv_wh,
            flexible_wh=flexible[at],
            charge_wh=step.charge_wh,
            discharge_wh=step.discharge_wh,
            import_wh=max(grid_wh, 0),
            export_wh=max(-grid_wh, 0),
            curtailed_wh=step.curtailed_wh,
            soc_wh=soc_wh,
            import_price_uc_per_kwh=each.import_price_uc_per_kwh,
            export_price_uc_per_kwh=each.export_price_uc_per_kwh,
        )


def _notes(
    task: Task, slots: Sequence[PlanSlot], starts: Mapping[str, int], car_wh: Sequence[int]
) -> Iterator[Note]:
    for slot, each in zip(slots, task.slots, strict=True):
        if slot.import_wh > each.import_limit_wh:
            over_wh = slot.import_wh - each.import_limit_wh
            yield Note(kind="import-limit", slot=slot.slot, energy_wh=over_wh)
        if slot.export_wh > each.export_limit_wh:
            over_wh = slot.export_wh - each.export_limit_wh
            yield Note(kind="export-limit", slot=slot.slot, energy_wh=over_wh)
    if task.car:
        short_wh = task.car.need_wh - sum(car_wh) * task.car.charge_permille // 1000
        if short_wh > 0:
            yield Note(kind="car-short", slot=task.car.ready_slot, energy_wh=short_wh)
    for load in task.loads:
        if load.name not in starts:
            yield Note(
                kind="load-left-out",
                slot=load.earliest_slot,
                energy_wh=sum(load.profile_wh),
                name=load.name,
            )
