"""
A plan of the home's day: what was asked, what was answered, in integers.

A `Task` says everything a plan depends on: prices, limits and the expected load and sun of each
slot, the battery, what stored energy is worth at the end, loads that may wait, the car. A `Plan` is
what the solver (`hem.controller.milp`) or the rules (`hem.controller.fallback`) make of it, and
`hem.controller.plan_check` says whether it can be. Both cross a process boundary as JSON: decoding
is strict, bounded, and refuses what is not an integer.

What comes first: the limits of the grid, then the car, then loads that may wait, then money. Where
not all of it can be had, a `Note` says what is missing.

Source: TMI section V-D; docs/concepts/plan.md.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from hem.controller.battery import Battery
from wire.errors import MalformedError, OversizedError
from wire.units import cost_uc

BYTES_MAX = 1_000_000
"""Of a task or a plan as JSON: more than the longest horizon with every field at its largest."""
SLOTS_MAX = 960
"""Two days of three-minute slots."""
LOADS_MAX = 16

Energy = Annotated[int, Meta(ge=0, le=10**8)]
Price = Annotated[int, Meta(ge=-(10**9), le=10**9)]
SlotNumber = Annotated[int, Meta(ge=0, le=10**12)]
Money = Annotated[int, Meta(ge=-(10**15), le=10**15)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base: a field that we do not know is a mistake."""


class Outlook(_Record, frozen=True, kw_only=True):
    """What is expected of one slot."""

    load_wh: Energy
    """What cannot wait [Wh]."""
    pv_wh: Energy
    import_price_uc_per_kwh: Price
    export_price_uc_per_kwh: Price
    import_limit_wh: Energy = 10**8
    """Most that the grid may give [Wh]."""
    export_limit_wh: Energy = 10**8
    """Most that it may take [Wh]."""


class Deferrable(_Record, frozen=True, kw_only=True):
    """A load that may wait and, once started, runs through."""

    name: Name
    profile_wh: Annotated[tuple[Energy, ...], Meta(min_length=1, max_length=96)]
    """What it takes in each of its slots [Wh]."""
    earliest_slot: SlotNumber
    """It starts in this slot or later."""
    end_slot: SlotNumber
    """It has ended when this slot begins."""

    def starts(self, first_slot: int, slots: int) -> range:
        """Slots in which it may start; empty where its window does not hold it."""
        last = min(self.end_slot, first_slot + slots) - len(self.profile_wh)
        return range(max(self.earliest_slot, first_slot), last + 1)


class Car(_Record, frozen=True, kw_only=True):
    """The car as a load that may wait and be interrupted; it gives nothing back."""

    plugged_slots: Annotated[tuple[SlotNumber, ...], Meta(max_length=SLOTS_MAX)]
    """Rising."""
    ready_slot: SlotNumber
    """What it needs is in it when this slot begins."""
    need_wh: Energy
    """To be stored in it by then [Wh]."""
    soon_wh: Energy = 0
    """The part of it that does not wait: stored as soon as power and limits allow [Wh]."""
    min_charge_wh: Energy = 0
    """Least of a slot in which it charges, AC [Wh]: a wall box gives 6 A or nothing."""
    max_charge_wh: Energy
    """Most of a slot, AC [Wh]."""
    charge_permille: Annotated[int, Meta(ge=1, le=1000)] = 900
    """Stored of what it takes."""

    def __post_init__(self) -> None:
        if self.min_charge_wh > self.max_charge_wh or self.soon_wh > self.need_wh:
            raise ValueError("expected min_charge_wh ≤ max_charge_wh and soon_wh ≤ need_wh")
        if any(after <= before for before, after in pairwise(self.plugged_slots)):
            raise ValueError("plugged_slots must rise")

    @property
    def need_ac_wh(self) -> int:
        """What it takes to store what it needs, rounded up [Wh]."""
        return -(-self.need_wh * 1000 // self.charge_permille)

    @property
    def charging_slots(self) -> tuple[int, ...]:
        """Slots in which charging serves: plugged in, and before it must be ready."""
        return tuple(slot for slot in self.plugged_slots if slot < self.ready_slot)


class Worth(_Record, frozen=True, kw_only=True):
    """A part of the battery and what each kWh stored in it is worth after the last slot."""

    energy_wh: Energy
    price_uc_per_kwh: Annotated[int, Meta(ge=0, le=10**9)]


class Task(_Record, frozen=True, kw_only=True):
    """Everything a plan depends on."""

    first_slot: SlotNumber
    slot_seconds: Annotated[int, Meta(ge=1, le=86_400)]
    slots: Annotated[tuple[Outlook, ...], Meta(min_length=1, max_length=SLOTS_MAX)]
    battery: Battery | None = None
    soc_wh: Energy = 0
    """Stored when the first slot begins [Wh]."""
    degradation_uc_per_kwh: Annotated[int, Meta(ge=0, le=10**9)] = 0
    """Wear for each kWh discharged."""
    worth: Annotated[tuple[Worth, ...], Meta(max_length=200)] = ()
    """Stored energy from the battery's floor upward, its price falling; nothing above the parts."""
    loads: Annotated[tuple[Deferrable, ...], Meta(max_length=LOADS_MAX)] = ()
    car: Car | None = None
    can_curtail: bool = False
    """Can the home produce less than the sun allows?"""

    def __post_init__(self) -> None:
        if any(b.price_uc_per_kwh > a.price_uc_per_kwh for a, b in pairwise(self.worth)):
            raise ValueError("worth: the price of stored energy must not rise with the SoC")
        if len({load.name for load in self.loads}) != len(self.loads):
            raise ValueError("loads: two of the same name")


class PlanSlot(_Record, frozen=True, kw_only=True):
    """What is planned for one slot; all energies are AC but the stored one."""

    slot: SlotNumber
    load_wh: Energy
    pv_wh: Energy
    """What the sun gives; what is used of it is less what is curtailed [Wh]."""
    flexible_wh: Energy
    """Loads that could wait, and the car [Wh]."""
    charge_wh: Energy
    discharge_wh: Energy
    import_wh: Energy
    export_wh: Energy
    curtailed_wh: Energy = 0
    soc_wh: Energy
    """Stored at its end [Wh]."""
    import_price_uc_per_kwh: Price
    export_price_uc_per_kwh: Price


MadeBy = Literal["solver", "rules", "values"]
"""By HiGHS, by rules, or by the value of stored energy."""

NoteKind = Literal["import-limit", "export-limit", "car-short", "load-left-out"]


class Note(_Record, frozen=True, kw_only=True):
    """What could not be had."""

    kind: NoteKind
    slot: SlotNumber
    """Where: of a limit its slot, of the car its ready-by slot, of a load its earliest slot."""
    energy_wh: Energy
    """Above the limit; not stored in the car; of the load [Wh]."""
    name: str = ""
    """Of the load."""


class Plan(_Record, frozen=True, kw_only=True):
    """What the home will do, if all comes as expected."""

    first_slot: SlotNumber
    slots: Annotated[tuple[PlanSlot, ...], Meta(max_length=SLOTS_MAX)]
    starts: dict[Name, SlotNumber] = {}
    """By name of the load: the slot it starts in."""
    car_wh: Annotated[tuple[Energy, ...], Meta(max_length=SLOTS_MAX)] = ()
    """AC, one for each slot; empty without a car [Wh]."""
    cost_uc: Money
    """Import − export + wear − worth of what is stored at the end [µ¤]."""
    made_by: MadeBy
    notes: Annotated[tuple[Note, ...], Meta(max_length=3 * SLOTS_MAX)] = ()
    marginal_uc_per_kwh: Annotated[tuple[Price, ...], Meta(max_length=SLOTS_MAX)] = ()
    """What one more kWh of need in a slot would cost; empty where nothing was priced."""


_R = TypeVar("_R", Task, Plan)
_TASK = msgspec.json.Decoder(Task)
_PLAN = msgspec.json.Decoder(Plan)


def to_json(record: Task | Plan) -> bytes:
    """A task or a plan as JSON."""
    return msgspec.json.encode(record)


def task_from_json(data: bytes) -> Task:
    """
    Read a task.

    Raises:
        OversizedError: longer than `BYTES_MAX`.
        MalformedError: not JSON, or not a task; names the place.
    """
    return _decode(_TASK, data, "task")


def plan_from_json(data: bytes) -> Plan:
    """
    Read a plan; whether it can be is for `hem.controller.plan_check` to say.

    Raises:
        OversizedError: longer than `BYTES_MAX`.
        MalformedError: not JSON, or not a plan; names the place.
    """
    return _decode(_PLAN, data, "plan")


def plan_cost_uc(task: Task, slots: tuple[PlanSlot, ...]) -> int:
    """Import − export + wear − worth of what is stored at the end [µ¤]."""
    bill_uc = sum(
        cost_uc(slot.import_wh, slot.import_price_uc_per_kwh)
        - cost_uc(slot.export_wh, slot.export_price_uc_per_kwh)
        + cost_uc(slot.discharge_wh, task.degradation_uc_per_kwh)
        for slot in slots
    )
    return bill_uc - (worth_uc(task, slots[-1].soc_wh) if task.battery else 0)


def worth_uc(task: Task, soc_wh: int) -> int:
    """What stored energy is worth after the last slot [µ¤]; nothing below the battery's floor."""
    left_wh = max(soc_wh - (task.battery.floor_wh if task.battery else 0), 0)
    total_uc = 0
    for part in task.worth:
        total_uc += cost_uc(min(part.energy_wh, left_wh), part.price_uc_per_kwh)
        left_wh -= min(part.energy_wh, left_wh)
    return total_uc


def _decode(decoder: msgspec.json.Decoder[_R], data: bytes, what: str) -> _R:
    if len(data) > BYTES_MAX:
        raise OversizedError(f"{what} too long", length=len(data), most=BYTES_MAX)
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise MalformedError(f"not a {what}: {error}") from None
