"""
The home's day as a mixed-integer linear program, and its answer as a plan in whole Wh.

For every slot t [kWh, ¤]:

    import − export − charge + discharge − curtailed − car − Σ profile · start = load − pv
    soc_t = soc_{t−1} + η_c · charge − discharge / η_d

minimise import and export at their prices, wear of what is discharged, less what the energy stored
at the end is worth (concave, so its parts fill in order). Integer are: which slot a load starts in;
the direction of the battery where energy may be worth less than nothing (otherwise to charge and
discharge at once only loses); whether a battery that begins outside its range is in it again; the
direction of the grid where export pays more than import costs; charging the car or not, where it
has a least power (semi-continuous).

Nothing is infeasible: above a limit, short of the car's need or without a load there is a penalty,
so high that money never outweighs it: limits before the car, the car before loads.

The model is columns in plain lists, as HiGHS takes them; the solver is `hem.controller.highs`.

Source: TMI section V-D, equations 1 to 8; docs/concepts/plan.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from hem.controller.battery import Battery
from hem.controller.plan import Car, Deferrable, Outlook, Plan, Task
from hem.controller.planning import (
    IMPORT_MARGIN_WH,
    Step,
    assemble,
    export_most_wh,
    flexible_wh,
    import_most_wh,
    urgent_car_wh,
)

INFINITY = float("inf")
LEFT_OUT_TIMES = 10
"""A load that is left out costs so many times the dearest price there is; the next two likewise."""
CAR_SHORT_TIMES = 40
OVER_LIMIT_TIMES = 400
CATCH_UP_WH = 2
"""Kept free of the charging rate, to make good what rounding lost."""
WHOLE = 1e-4
"""Of a Wh: less than this is the solver's tolerance, not energy."""


class Kind(IntEnum):
    """What values a column may take, as HiGHS counts it."""

    CONTINUOUS = 0
    INTEGER = 1
    SEMI_CONTINUOUS = 2
    """0, or within its bounds."""


@dataclass(slots=True)
class Model:
    """A program in columns (CSC), and which column is what; minimise."""

    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    kind: list[Kind] = field(default_factory=list)
    column_starts: list[int] = field(default_factory=lambda: [0])
    rows: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    soc: list[int] = field(default_factory=list)
    """Columns by slot; empty without a battery."""
    curtailed: list[int] = field(default_factory=list)
    car: dict[int, int] = field(default_factory=dict)
    """Column by place of the slot."""
    start: dict[str, dict[int, int]] = field(default_factory=dict)
    """Column by load and slot."""

    @property
    def is_lp(self) -> bool:
        """Nothing in it is integer, so that its duals are prices."""
        return not any(self.kind)

    def row(self, lower: float, upper: float) -> int:
        """A new row lower ≤ … ≤ upper."""
        self.row_lower.append(lower)
        self.row_upper.append(upper)
        return len(self.row_lower) - 1

    def column(
        self,
        cost: float,
        upper: float,
        entries: Sequence[tuple[int, float]],
        lower: float = 0.0,
        kind: Kind = Kind.CONTINUOUS,
    ) -> int:
        """A new column with its (row, coefficient)."""
        self.cost.append(cost)
        self.lower.append(lower)
        self.upper.append(upper)
        self.kind.append(kind)
        self.rows.extend(row for row, _ in entries)
        self.values.extend(value for _, value in entries)
        self.column_starts.append(len(self.rows))
        return len(self.cost) - 1


def build(task: Task) -> Model:
    """The program of a task; row t is the balance of its t-th slot."""
    model = Model()
    for each in task.slots:
        need_kwh = (each.load_wh - each.pv_wh) / 1000
        model.row(need_kwh, need_kwh)
    dearest = _dearest(task)
    _add_grid(model, task, dearest)
    if task.battery:
        _add_battery(model, task, task.battery)
    if task.car:
        _add_car(model, task, task.car, dearest)
    for load in task.loads:
        _add_load(model, task, load, dearest)
    return model


def read_plan(
    task: Task, model: Model, values: Sequence[float], balance_duals: Sequence[float] = ()
) -> Plan:
    """
    The plan that the solver's answer means.

    Starts and the car are rounded first; the battery then follows the stored energy that the model
    has, in whole Wh and within its own limits and the grid's.

    Args:
        values: of the columns
        balance_duals: of the balance rows [¤/kWh]; empty where the program was not linear
    """
    starts = _starts(model, values)
    car_wh = _car_wh(task, model, values)
    steps = _steps(task, model, values, flexible_wh(task, starts, car_wh))
    marginal = [round(dual * 1e6) for dual in balance_duals]
    return assemble(task, starts, car_wh, steps, "solver", marginal)


def _dearest(task: Task) -> float:
    """The largest price in the task [¤/kWh]: what penalties are measured by."""
    prices = [task.degradation_uc_per_kwh, 10_000]
    prices += [part.price_uc_per_kwh for part in task.worth]
    for each in task.slots:
        prices += [abs(each.import_price_uc_per_kwh), abs(each.export_price_uc_per_kwh)]
    return max(prices) / 1e6


def _add_grid(model: Model, task: Task, dearest: float) -> None:
    import_most = import_most_wh(task, IMPORT_MARGIN_WH)
    export_most = export_most_wh(task)
    for at, each in enumerate(task.slots):
        buy, sell = each.import_price_uc_per_kwh / 1e6, each.export_price_uc_per_kwh / 1e6
        penalty = OVER_LIMIT_TIMES * dearest
        switch = _grid_switch(model, task, at) if sell > buy else None
        takes = [(at, 1.0)] + ([(switch[0], 1.0)] if switch else [])
        gives = [(at, -1.0)] + ([(switch[1], 1.0)] if switch else [])
        inside_wh = min(each.import_limit_wh, import_most[at])
        model.column(buy, inside_wh / 1000, takes)
        if import_most[at] > inside_wh:
            model.column(buy + penalty, (import_most[at] - inside_wh) / 1000, takes)
        inside_wh = min(each.export_limit_wh, export_most[at])
        model.column(-sell, inside_wh / 1000, gives)
        if export_most[at] > inside_wh:
            model.column(penalty - sell, (export_most[at] - inside_wh) / 1000, gives)
        if task.can_curtail:
            model.curtailed.append(model.column(0.0, each.pv_wh / 1000, [(at, -1.0)]))


def _grid_switch(model: Model, task: Task, at: int) -> tuple[int, int]:
    """Rows by which the grid carries one direction only: import ≤ M·z, export ≤ M·(1 − z)."""
    most_kwh = _throughput_wh(task, at) / 1000
    rows = model.row(-INFINITY, 0.0), model.row(-INFINITY, most_kwh)
    model.column(0.0, 1.0, [(rows[0], -most_kwh), (rows[1], most_kwh)], kind=Kind.INTEGER)
    return rows


def _throughput_wh(task: Task, at: int) -> int:
    """More than the grid can carry in a slot, either way [Wh]."""
    each = task.slots[at]
    loads_wh = sum(max(load.profile_wh) for load in task.loads)
    car_wh = task.car.max_charge_wh if task.car else 0
    rates_w = max(task.battery.max_charge_w, task.battery.max_discharge_w) if task.battery else 0
    return each.load_wh + each.pv_wh + loads_wh + car_wh + rates_w * task.slot_seconds // 3600 + 1


def _add_battery(model: Model, task: Task, battery: Battery) -> None:
    into, out = battery.charge_permille / 1000, 1000 / battery.discharge_permille
    charge_wh = battery.max_charge_w * task.slot_seconds // 3600
    if battery.charge_permille < 1000 or battery.discharge_permille < 1000:
        charge_wh = max(charge_wh - CATCH_UP_WH, 0)
    charge_kwh = charge_wh / 1000
    discharge_kwh = battery.max_discharge_w * task.slot_seconds // 3600 / 1000
    soc_row = [model.row(0.0, 0.0) for _ in task.slots]
    model.row_lower[soc_row[0]] = model.row_upper[soc_row[0]] = task.soc_wh / 1000
    # A battery that begins outside its range is not in it by the first slot.
    least_kwh = min(battery.floor_wh, task.soc_wh) / 1000
    most_kwh = max(battery.ceiling_wh, task.soc_wh) / 1000
    worth_row = _add_worth(model, task, battery)
    for at, (row, next_row) in enumerate(pairwise([*soc_row, worth_row])):
        takes, gives = [(at, -1.0), (row, -into)], [(at, 1.0), (row, out)]
        if _may_burn(task, at):
            one_way = model.row(-INFINITY, 0.0), model.row(-INFINITY, discharge_kwh)
            entries = [(one_way[0], -charge_kwh), (one_way[1], discharge_kwh)]
            model.column(0.0, 1.0, entries, kind=Kind.INTEGER)
            takes.append((one_way[0], 1.0))
            gives.append((one_way[1], 1.0))
        stored = [(row, 1.0), (next_row, -1.0)]
        if task.soc_wh < battery.floor_wh:
            gate, edge = _gate(model, discharge_kwh, least_kwh, battery.floor_wh / 1000)
            gives.append((gate, 1.0))
            stored.append((edge, 1.0))
        if task.soc_wh > battery.ceiling_wh:
            gate, edge = _gate(model, charge_kwh, -most_kwh, -battery.ceiling_wh / 1000)
            takes.append((gate, 1.0))
            stored.append((edge, -1.0))
        model.column(0.0, charge_kwh, takes)
        model.column(task.degradation_uc_per_kwh / 1e6, discharge_kwh, gives)
        model.soc.append(model.column(0.0, most_kwh, stored, least_kwh))


def _gate(model: Model, rate_kwh: float, least_kwh: float, edge_kwh: float) -> tuple[int, int]:
    """
    Rows that let energy flow out of the range only when that ends within it.

    flow ≤ rate · z and soc ≥ least + (edge − least) · z; for the ceiling with both sides negated.
    """
    rows = model.row(-INFINITY, 0.0), model.row(least_kwh, INFINITY)
    entries = [(rows[0], -rate_kwh), (rows[1], least_kwh - edge_kwh)]
    model.column(0.0, 1.0, entries, kind=Kind.INTEGER)
    return rows


def _may_burn(task: Task, at: int) -> bool:
    """Could it pay, in this slot, to lose energy by charging and discharging at once?"""
    each = task.slots[at]
    stuck = not task.can_curtail and each.pv_wh - each.load_wh > each.export_limit_wh
    return stuck or min(each.import_price_uc_per_kwh, each.export_price_uc_per_kwh) < 0


def _add_worth(model: Model, task: Task, battery: Battery) -> int:
    """What is stored at the end: Σ parts − soc ≤ −floor; the row, for the last column of soc."""
    row = model.row(-INFINITY, -battery.floor_wh / 1000)
    for part in task.worth:
        model.column(-part.price_uc_per_kwh / 1e6, part.energy_wh / 1000, [(row, 1.0)])
    below_kwh = max(battery.floor_wh - task.soc_wh, 0) / 1000
    dearest_uc = max((part.price_uc_per_kwh for part in task.worth), default=0)
    model.column(dearest_uc / 1e6, below_kwh, [(row, -1.0)])
    return row


def _add_car(model: Model, task: Task, car: Car, dearest: float) -> None:
    need_kwh = car.need_ac_wh / 1000
    row = model.row(need_kwh, need_kwh)
    urgent_wh = urgent_car_wh(task)
    for slot in car.charging_slots:
        at = slot - task.first_slot
        if not 0 <= at < len(task.slots):
            continue
        least_wh = urgent_wh[at] or car.min_charge_wh
        waits = least_wh > 0 and not urgent_wh[at]
        model.car[at] = model.column(
            0.0,
            car.max_charge_wh / 1000,
            [(at, -1.0), (row, 1.0)],
            least_wh / 1000,
            Kind.SEMI_CONTINUOUS if waits else Kind.CONTINUOUS,
        )
    model.column(CAR_SHORT_TIMES * dearest, need_kwh, [(row, 1.0)])
    model.column(0.0, _over_wh(task, car) / 1000, [(row, -1.0)])


def _over_wh(task: Task, car: Car) -> int:
    """More than it needs: a slot at its least power, or what could not wait rounded up to that."""
    return max(car.min_charge_wh, sum(urgent_car_wh(task)) - car.need_ac_wh)


def _add_load(model: Model, task: Task, load: Deferrable, dearest: float) -> None:
    once = model.row(1.0, 1.0)
    model.start[load.name] = {}
    for slot in load.starts(task.first_slot, len(task.slots)):
        at = slot - task.first_slot
        entries = [(once, 1.0)]
        entries += [(at + part, -wh / 1000) for part, wh in enumerate(load.profile_wh) if wh]
        model.start[load.name][slot] = model.column(0.0, 1.0, entries, kind=Kind.INTEGER)
    energy_kwh = max(sum(load.profile_wh), 10) / 1000
    model.column(LEFT_OUT_TIMES * dearest * energy_kwh, 1.0, [(once, 1.0)])


def _starts(model: Model, values: Sequence[float]) -> dict[str, int]:
    return {
        name: slot
        for name, columns in model.start.items()
        for slot, column in columns.items()
        if values[column] > 1 / 2
    }


def _car_wh(task: Task, model: Model, values: Sequence[float]) -> tuple[int, ...]:
    """Rounded up, and what that is too much taken off again."""
    car = task.car
    if car is None:
        return ()
    car_wh = [0] * len(task.slots)
    for at, column in model.car.items():
        car_wh[at] = max(-int(-(values[column] * 1000 - WHOLE) // 1), 0)
    urgent_wh = urgent_car_wh(task)
    spare_wh = sum(car_wh) - car.need_ac_wh
    for at in reversed(model.car):
        least_wh = max(car.min_charge_wh, urgent_wh[at])
        less_wh = min(max(car_wh[at] - least_wh, 0), max(spare_wh, 0), 1)
        car_wh[at] -= less_wh
        spare_wh -= less_wh
    return tuple(car_wh)


def _steps(
    task: Task, model: Model, values: Sequence[float], flexible: Sequence[int]
) -> list[Step]:
    steps = []
    soc_wh = task.soc_wh
    modelled_wh = float(soc_wh)
    import_most, export_most = import_most_wh(task), export_most_wh(task)
    for at, each in enumerate(task.slots):
        grid_wh = each.load_wh + flexible[at] - each.pv_wh
        power_wh = 0
        if task.battery:
            target_wh = values[model.soc[at]] * 1000
            power_wh = _follow(task.battery, soc_wh, target_wh, target_wh - modelled_wh)
            modelled_wh = target_wh
            least_wh, most_wh = -export_most[at] - grid_wh, import_most[at] - grid_wh
            power_wh = min(max(power_wh, min(least_wh, 0)), most_wh)
            power_wh = _within(task.battery, soc_wh, power_wh, task.slot_seconds)
            soc_wh = task.battery.after(soc_wh, max(power_wh, 0), max(-power_wh, 0))
        curtailed_wh = 0
        if task.can_curtail:
            wanted_wh = round(values[model.curtailed[at]] * 1000)
            curtailed_wh = _curtailed(each, wanted_wh, grid_wh + power_wh, export_most[at])
        steps.append(Step(max(power_wh, 0), max(-power_wh, 0), curtailed_wh))
    return steps


def _curtailed(each: Outlook, wanted_wh: int, grid_wh: int, export_most_wh: int) -> int:
    """What of the sun is not used: never bought back at a price, never too little for the limit."""
    if each.import_price_uc_per_kwh >= 0:
        wanted_wh = min(wanted_wh, max(-grid_wh, 0))
    wanted_wh = max(wanted_wh, -grid_wh - export_most_wh)
    return max(min(wanted_wh, each.pv_wh, each.import_limit_wh - grid_wh), 0)


def _follow(battery: Battery, soc_wh: int, target_wh: float, change_wh: float) -> int:
    """AC energy, + charge, in whole Wh, by which what is stored follows the model."""
    if change_wh > WHOLE:
        return max(round((target_wh - soc_wh) * 1000 / battery.charge_permille), 0)
    if change_wh < -WHOLE:
        return -max(round((soc_wh - target_wh) * battery.discharge_permille / 1000), 0)
    return 0


def _within(battery: Battery, soc_wh: int, power_wh: int, seconds: int) -> int:
    if power_wh >= 0:
        return min(power_wh, battery.charge_limit_wh(soc_wh, seconds))
    return -min(-power_wh, battery.discharge_limit_wh(soc_wh, seconds))
