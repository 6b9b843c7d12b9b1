"""
Can this plan be? A judge that knows nothing of how plans are made.

It shares the battery's equations and the words of a task with those who plan, and no code: what is
allowed is worked out here once more, from the task alone. A plan that breaks one rule is never
used and never shown. A published simulation of a home with a battery had a state of charge of
−247 %; that must not happen to anybody.

Where limits leave no room, a plan may be short of something, if it says so in a note and had no
choice: in every slot the grid or the wall box was at its limit.

Source: TMI section V-D, equations 1 to 8; docs/concepts/plan.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from hem.controller.battery import Battery
from hem.controller.plan import Car, Deferrable, Note, Plan, PlanSlot, Task

ROOM_WH = 5
"""So little room below a limit is none: planners keep 3 Wh of margin and round by 2."""


class Fault(StrEnum):
    """What is wrong with a plan."""

    NOT_INTEGER = "NOT_INTEGER"
    EMPTY = "EMPTY"
    OTHER_SLOTS = "OTHER_SLOTS"
    """Not the slots that were asked for."""
    OTHER_OUTLOOK = "OTHER_OUTLOOK"
    """Load, sun or prices are not those of the task."""
    NEGATIVE = "NEGATIVE"
    SOC_PATH = "SOC_PATH"
    """The stored energy does not follow from what goes in and out (eq 6)."""
    SOC_RANGE = "SOC_RANGE"
    """Outside the owner's range (eq 1)."""
    CHARGE_RATE = "CHARGE_RATE"
    DISCHARGE_RATE = "DISCHARGE_RATE"
    BOTH_WAYS = "BOTH_WAYS"
    """Charge and discharge, or import and export, in one slot."""
    NO_BATTERY = "NO_BATTERY"
    BALANCE = "BALANCE"
    CURTAILED = "CURTAILED"
    """More than the sun gives, or the home cannot."""
    IMPORT_LIMIT = "IMPORT_LIMIT"
    EXPORT_LIMIT = "EXPORT_LIMIT"
    NOTE = "NOTE"
    """Says what is not so, or does not say what is."""
    FLEXIBLE = "FLEXIBLE"
    """Not what the started loads and the car take."""
    LOAD_UNKNOWN = "LOAD_UNKNOWN"
    LOAD_WINDOW = "LOAD_WINDOW"
    LOAD_MISSING = "LOAD_MISSING"
    """Not started, though there was room."""
    CAR_AWAY = "CAR_AWAY"
    """Charges where it is not plugged in, or after it must be ready."""
    CAR_RATE = "CAR_RATE"
    CAR_SHORT = "CAR_SHORT"
    """Less than it needs, though there was room."""
    CAR_TOO_MUCH = "CAR_TOO_MUCH"
    CAR_LATE = "CAR_LATE"
    """What does not wait, waits."""
    COST = "COST"


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that a plan breaks."""

    fault: Fault
    slot: int
    """The first slot of the task where it concerns all of them."""
    text: str
    """With the figures."""

    def __str__(self) -> str:
        return f"{self.fault} in slot {self.slot}: {self.text}"


def check_plan(task: Task, plan: Plan) -> list[Violation]:
    """
    Every rule that the plan breaks; empty for one that can be kept.

    A plan of other slots, or with anything but integers in it, is not looked at further.
    """
    found = list(_shape(task, plan))
    if found:
        return found
    found = list(_slots(task, plan))
    found += _stored(task, plan)
    found += _loads(task, plan)
    found += _flexible(task, plan)
    found += _notes(task, plan)
    if task.car:
        found += _car(task, task.car, plan)
    return found + _cost(task, plan)


def _shape(task: Task, plan: Plan) -> Iterator[Violation]:
    first = task.first_slot
    whole = [getattr(slot, name) for slot in plan.slots for name in slot.__struct_fields__]
    whole += [plan.first_slot, plan.cost_uc, *plan.car_wh, *plan.starts.values()]
    whole += [*plan.marginal_uc_per_kwh, *(note.energy_wh for note in plan.notes)]
    odd = [value for value in whole if type(value) is not int]
    if odd:
        yield Violation(Fault.NOT_INTEGER, first, f"{odd[0]!r} and {len(odd) - 1} more")
    elif not plan.slots:
        yield Violation(Fault.EMPTY, first, f"no slots, {len(task.slots)} expected")
    elif plan.first_slot != first or [s.slot for s in plan.slots] != list(_range(task)):
        last = first + len(task.slots) - 1
        yield Violation(
            Fault.OTHER_SLOTS,
            first,
            f"{plan.slots[0].slot}…{plan.slots[-1].slot} ({len(plan.slots)}), "
            f"expected {first}…{last} ({len(task.slots)})",
        )
    elif len(plan.car_wh) != (len(task.slots) if task.car else 0):
        yield Violation(Fault.OTHER_SLOTS, first, f"the car has {len(plan.car_wh)} slots")
    elif len(plan.marginal_uc_per_kwh) not in (0, len(task.slots)):
        yield Violation(
            Fault.OTHER_SLOTS, first, f"{len(plan.marginal_uc_per_kwh)} marginal prices"
        )


def _range(task: Task) -> range:
    return range(task.first_slot, task.first_slot + len(task.slots))


def _slots(task: Task, plan: Plan) -> Iterator[Violation]:
    """What can be seen of each slot alone."""
    for slot, asked in zip(plan.slots, task.slots, strict=True):
        for name in (
            "load_wh",
            "pv_wh",
            "import_price_uc_per_kwh",
            "export_price_uc_per_kwh",
        ):
            got, expected = getattr(slot, name), getattr(asked, name)
            if got != expected:
                text = f"{name} {got}, the task has {expected}"
                yield Violation(Fault.OTHER_OUTLOOK, slot.slot, text)
        yield from _signs(slot)
        most_wh = slot.pv_wh if task.can_curtail else 0
        if slot.curtailed_wh > most_wh:
            text = f"{slot.curtailed_wh} Wh curtailed, at most {most_wh} Wh"
            yield Violation(Fault.CURTAILED, slot.slot, text)
        supplied_wh = slot.import_wh - slot.export_wh
        needed_wh = slot.load_wh + slot.flexible_wh + slot.charge_wh - slot.discharge_wh
        used_wh = slot.pv_wh - slot.curtailed_wh
        if supplied_wh != needed_wh - used_wh:
            text = f"import − export is {supplied_wh} Wh, the home takes {needed_wh - used_wh} Wh"
            yield Violation(Fault.BALANCE, slot.slot, text)
        most_wh = _import_most_wh(task, slot.slot)
        if slot.import_wh > most_wh:
            text = f"import {slot.import_wh} Wh, at most {most_wh} Wh"
            yield Violation(Fault.IMPORT_LIMIT, slot.slot, text)
        unavoidable_wh = 0 if task.can_curtail else asked.pv_wh - asked.load_wh
        most_wh = max(asked.export_limit_wh, unavoidable_wh)
        if slot.export_wh > most_wh:
            text = f"export {slot.export_wh} Wh, at most {most_wh} Wh"
            yield Violation(Fault.EXPORT_LIMIT, slot.slot, text)


def _import_most_wh(task: Task, slot: int) -> int:
    """The limit, or what the home takes whatever is planned."""
    asked = task.slots[slot - task.first_slot]
    return max(asked.import_limit_wh, asked.load_wh - asked.pv_wh)


def _signs(slot: PlanSlot) -> Iterator[Violation]:
    for name in ("flexible_wh", "charge_wh", "discharge_wh", "import_wh", "export_wh",
                 "curtailed_wh"):  # fmt: skip
        if getattr(slot, name) < 0:
            text = f"{name} {getattr(slot, name)}"
            yield Violation(Fault.NEGATIVE, slot.slot, text)
    for one, other in (("charge_wh", "discharge_wh"), ("import_wh", "export_wh")):
        if getattr(slot, one) > 0 and getattr(slot, other) > 0:
            text = f"{one} {getattr(slot, one)} and {other} {getattr(slot, other)}"
            yield Violation(Fault.BOTH_WAYS, slot.slot, text)


def _stored(task: Task, plan: Plan) -> Iterator[Violation]:
    """The battery's equations from slot to slot, from what the plan itself says is stored."""
    before_wh = task.soc_wh
    for slot in plan.slots:
        if task.battery is None:
            if slot.charge_wh or slot.discharge_wh or slot.soc_wh != task.soc_wh:
                yield Violation(Fault.NO_BATTERY, slot.slot, f"stores {slot.soc_wh} Wh")
            continue
        yield from _battery(task.battery, before_wh, slot, task.slot_seconds)
        before_wh = slot.soc_wh


def _battery(
    battery: Battery, before_wh: int, slot: PlanSlot, slot_seconds: int
) -> Iterator[Violation]:
    after_wh = battery.after(before_wh, slot.charge_wh, slot.discharge_wh)
    if slot.soc_wh != after_wh:
        text = f"{slot.soc_wh} Wh stored, {after_wh} Wh follow from {before_wh} Wh"
        yield Violation(Fault.SOC_PATH, slot.slot, text)
    # A battery may begin outside its range; it must not go further out.
    least_wh = min(battery.floor_wh, before_wh)
    most_wh = max(battery.ceiling_wh, before_wh)
    if not least_wh <= slot.soc_wh <= most_wh or slot.soc_wh < 0:
        percent = slot.soc_wh * 100 // battery.capacity_wh
        text = f"{slot.soc_wh} Wh ({percent} %), expected {least_wh}…{most_wh} Wh"
        yield Violation(Fault.SOC_RANGE, slot.slot, text)
    for fault, energy_wh, limit_wh in (
        (Fault.CHARGE_RATE, slot.charge_wh, battery.charge_limit_wh(before_wh, slot_seconds)),
        (
            Fault.DISCHARGE_RATE,
            slot.discharge_wh,
            battery.discharge_limit_wh(before_wh, slot_seconds),
        ),
    ):
        if energy_wh > limit_wh:
            text = f"{energy_wh} Wh, at most {limit_wh} Wh with {before_wh} Wh stored"
            yield Violation(fault, slot.slot, text)


def _loads(task: Task, plan: Plan) -> Iterator[Violation]:
    known = {load.name: load for load in task.loads}
    for name, slot in plan.starts.items():
        if name not in known:
            yield Violation(Fault.LOAD_UNKNOWN, slot, f"{name!r} is not to be planned")
    for load in task.loads:
        start = plan.starts.get(load.name)
        if start is None:
            yield from _left_out(task, load, plan)
            continue
        end = start + len(load.profile_wh)
        window = _window(task, load)
        if start < window.start or end > window.stop:
            text = (
                f"{load.name!r} runs {start}…{end - 1}, expected {window.start}…{window.stop - 1}"
            )
            yield Violation(Fault.LOAD_WINDOW, start, text)


def _window(task: Task, load: Deferrable) -> range:
    slots = _range(task)
    return range(max(load.earliest_slot, slots.start), min(load.end_slot, slots.stop))


def _left_out(task: Task, load: Deferrable, plan: Plan) -> Iterator[Violation]:
    window = _window(task, load)
    for start in range(window.start, window.stop - len(load.profile_wh) + 1):
        if all(
            energy_wh == 0 or energy_wh + ROOM_WH < _room_wh(task, plan, start + part)
            for part, energy_wh in enumerate(load.profile_wh)
        ):
            text = f"{load.name!r} never starts, though there was room in slot {start}"
            yield Violation(Fault.LOAD_MISSING, start, text)
            return


def _room_wh(task: Task, plan: Plan, slot: int) -> int:
    """What the grid could still give in a slot; none where it is over its limit already."""
    at = slot - task.first_slot
    planned = plan.slots[at]
    return task.slots[at].import_limit_wh - planned.import_wh + planned.export_wh


def _flexible(task: Task, plan: Plan) -> Iterator[Violation]:
    expected_wh = dict.fromkeys(_range(task), 0)
    for at, energy_wh in enumerate(plan.car_wh):
        expected_wh[task.first_slot + at] += energy_wh
    for load in task.loads:
        if load.name in plan.starts:
            for slot, energy_wh in enumerate(load.profile_wh, plan.starts[load.name]):
                expected_wh[slot] = expected_wh.get(slot, 0) + energy_wh
    for planned in plan.slots:
        if planned.flexible_wh != expected_wh[planned.slot]:
            text = f"{planned.flexible_wh} Wh, loads and car take {expected_wh[planned.slot]} Wh"
            yield Violation(Fault.FLEXIBLE, planned.slot, text)


def _notes(task: Task, plan: Plan) -> Iterator[Violation]:
    """Exactly what is missing must be said."""
    expected: list[Note] = []
    for slot, asked in zip(plan.slots, task.slots, strict=True):
        over_wh = slot.import_wh - asked.import_limit_wh
        if over_wh > 0:
            expected.append(Note(kind="import-limit", slot=slot.slot, energy_wh=over_wh))
        over_wh = slot.export_wh - asked.export_limit_wh
        if over_wh > 0:
            expected.append(Note(kind="export-limit", slot=slot.slot, energy_wh=over_wh))
    if task.car:
        short_wh = task.car.need_wh - sum(plan.car_wh) * task.car.charge_permille // 1000
        if short_wh > 0:
            slot_number = task.car.ready_slot
            expected.append(Note(kind="car-short", slot=slot_number, energy_wh=short_wh))
    for load in task.loads:
        if load.name not in plan.starts:
            kind: Any = "load-left-out"
            total_wh = sum(load.profile_wh)
            expected.append(
                Note(kind=kind, slot=load.earliest_slot, energy_wh=total_wh, name=load.name)
            )
    told, due = (sorted(map(msgspec.json.encode, notes)) for notes in (plan.notes, expected))
    if told != due:
        odd = [note for note in plan.notes if note not in expected]
        unsaid = [note for note in expected if note not in plan.notes]
        text = f"said without cause: {odd[:2]}; not said: {unsaid[:2]}"
        yield Violation(Fault.NOTE, task.first_slot, text)


def _car(task: Task, car: Car, plan: Plan) -> Iterator[Violation]:
    usable = {slot for slot in car.plugged_slots if slot < car.ready_slot}
    for slot, energy_wh in zip(_range(task), plan.car_wh, strict=True):
        if energy_wh and slot not in usable:
            yield Violation(Fault.CAR_AWAY, slot, f"charges {energy_wh} Wh")
        if energy_wh and not car.min_charge_wh <= energy_wh <= car.max_charge_wh:
            text = f"{energy_wh} Wh, expected {car.min_charge_wh}…{car.max_charge_wh} Wh or none"
            yield Violation(Fault.CAR_RATE, slot, text)
    yield from _car_energy(task, car, plan)
    yield from _car_soon(task, car, plan)


def _car_energy(task: Task, car: Car, plan: Plan) -> Iterator[Violation]:
    taken_wh = sum(plan.car_wh)
    stored_wh = taken_wh * car.charge_permille // 1000
    enough_wh = -(-car.need_wh * 1000 // car.charge_permille)
    soon_wh = -(-car.soon_wh * 1000 // car.charge_permille)
    most_wh = max(enough_wh, soon_wh + car.min_charge_wh) + car.min_charge_wh
    if taken_wh > most_wh:
        text = f"takes {taken_wh} Wh, needs {enough_wh} Wh"
        yield Violation(Fault.CAR_TOO_MUCH, task.first_slot, text)
    if stored_wh >= car.need_wh:
        return
    for slot in car.plugged_slots:
        if slot >= car.ready_slot or slot not in _range(task):
            continue
        taken_wh = plan.car_wh[slot - task.first_slot]
        step_wh = 1 if taken_wh else max(car.min_charge_wh, 1)
        if taken_wh + step_wh <= car.max_charge_wh and (
            _room_wh(task, plan, slot) > step_wh + ROOM_WH
        ):
            text = f"stores {stored_wh} of {car.need_wh} Wh, though there was room"
            yield Violation(Fault.CAR_SHORT, slot, text)
            return


def _car_soon(task: Task, car: Car, plan: Plan) -> Iterator[Violation]:
    """What does not wait is taken as fast as wall box and limit allow, the battery's help aside."""
    missing_wh = -(-car.soon_wh * 1000 // car.charge_permille)
    for slot in car.plugged_slots:
        if missing_wh <= 0 or slot >= car.ready_slot:
            return
        if slot not in _range(task):
            continue
        asked = task.slots[slot - task.first_slot]
        free_wh = _import_most_wh(task, slot) + asked.pv_wh - asked.load_wh - ROOM_WH
        due_wh = min(car.max_charge_wh, max(missing_wh, car.min_charge_wh), free_wh)
        taken_wh = plan.car_wh[slot - task.first_slot]
        if due_wh >= max(car.min_charge_wh, 1) and taken_wh < due_wh:
            text = f"takes {taken_wh} Wh, {missing_wh} Wh do not wait and {due_wh} Wh would go"
            yield Violation(Fault.CAR_LATE, slot, text)
        missing_wh -= taken_wh


def _cost(task: Task, plan: Plan) -> list[Violation]:
    total = 0
    for slot in plan.slots:
        for energy_wh, price in (
            (slot.import_wh, slot.import_price_uc_per_kwh),
            (-slot.export_wh, slot.export_price_uc_per_kwh),
            (slot.discharge_wh, task.degradation_uc_per_kwh),
        ):
            total += _toward_zero(energy_wh * price)
    if task.battery:
        above_wh = max(plan.slots[-1].soc_wh - task.battery.floor_wh, 0)
        for part in task.worth:
            total -= _toward_zero(min(above_wh, part.energy_wh) * part.price_uc_per_kwh)
            above_wh = max(above_wh - part.energy_wh, 0)
    if plan.cost_uc == total:
        return []
    text = f"{plan.cost_uc} µ¤, the slots cost {total} µ¤"
    return [Violation(Fault.COST, task.first_slot, text)]


def _toward_zero(milli_uc: int) -> int:
    return milli_uc // 1000 if milli_uc >= 0 else -(-milli_uc // 1000)
