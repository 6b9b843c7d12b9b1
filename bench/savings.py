"""
What a home saves with a battery, by who controls it.

    python -m bench.savings [--data DIR] [--short] [--json] [--chart FILE.svg]

Measured homes, three tariffs, five ways to run the same battery:

    none         no battery
    rule         self-consumption: store surplus, cover need
    curves       TMI's curves over the state of charge against the day's prices, else the rule
    expected     the planner's arithmetic for one expected day instead of many possible ones
    planner      ours: the value of stored energy over scenarios, planned anew every hour
    perfect      the least cost there is, everything known beforehand (an LP over the whole time)

Wear counts in all of them. Nobody but `perfect` sees anything before it is measured: forecasts come
from the home's own past, day-ahead prices are known when they are published. Within a slot the
battery follows the meter, so the slot's own load and PV are known to all. The first two days run by
the rule, and what is left in the battery at the end is worth nothing to anybody.

The table gives money a year and the share of the perfect saving; homes marked * were looked at when
constants were chosen, and the totals are of those that were not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.forecast_data import FOLDER
from bench.report import progress
from bench.savings_data import House, Tariff, houses, tariffs
from hem.controller.battery import Battery
from hem.controller.curves import bid_price, bid_quantity_wh, offer_price, offer_quantity_wh
from hem.controller.history import History
from hem.controller.policy import Policy
from hem.controller.scenarios import WEIGHT_SUM, scenarios
from hem.controller.value_curve import Terms, ValueCurve, dispatch
from hem.controller.worth import Outlook, value_curves
from wire.errors import ConfigError

HORIZON_S = 48 * 3_600
WARM_DAYS = 2
REPLAN_S = 3_600
MONTH_DAYS = 30
YEAR_DAYS = 365
AIM_PERMILLE = 850
WAYS = ("none", "rule", "curves", "expected", "planner", "planner, no anti-flap", "perfect")

Act = Callable[[int, int, int], int]
"""(slot, load − PV [Wh], charge [Wh]) to what the battery does [Wh, + discharge]."""


@dataclass(frozen=True, slots=True)
class Run:
    """One home, one tariff, one way."""

    cost_uc: int
    months_uc: list[int]
    """By 30 days."""
    switches_per_day: float
    """Changes between charging, resting and discharging."""


@dataclass(frozen=True, slots=True)
class Case:
    """One home under one tariff."""

    house: str
    source: str
    looked_at: bool
    tariff: str
    days: float
    runs: dict[str, Run]

    def saving_uc(self, way: str) -> int:
        """Against no battery."""
        return self.runs["none"].cost_uc - self.runs[way].cost_uc

    def worst_month_uc(self, way: str) -> int:
        """The least gain over the rule in 30 days, or in all where they are fewer."""
        rule, ours = self.runs["rule"], self.runs[way]
        pairs = zip(rule.months_uc, ours.months_uc, strict=True)
        return min((rule_uc - uc for rule_uc, uc in pairs), default=rule.cost_uc - ours.cost_uc)


def self_consumption(battery: Battery, net_wh: int, soc_wh: int, seconds: int) -> int:
    """Store surplus, cover need."""
    if net_wh < 0:
        return -min(-net_wh, battery.charge_limit_wh(soc_wh, seconds))
    return min(net_wh, battery.discharge_limit_wh(soc_wh, seconds))


def by_curves(house: House, tariff: Tariff, wear: int) -> Act:
    """TMI's curves (Figs 4 and 5) against the prices of the last day."""

    def act(slot: int, net_wh: int, soc_wh: int) -> int:
        battery, seconds = house.battery, house.slot_s
        rule_wh = self_consumption(battery, net_wh, soc_wh, seconds)
        day = slice(max(slot - house.per_day + 1, 0), slot + 1)
        low, high = int(tariff.imports[day].min()), int(tariff.imports[day].max())
        price, export = int(tariff.imports[slot]), int(tariff.exports[slot])
        soc_permille = battery.soc_permille(soc_wh)
        if low <= price < min(bid_price(soc_permille, low, high), high):
            limit_wh = battery.charge_limit_wh(soc_wh, seconds)
            return min(-bid_quantity_wh(soc_permille, limit_wh), rule_wh)
        if export >= offer_price(soc_permille, low, high, wear) and export > low:
            limit_wh = battery.discharge_limit_wh(soc_wh, seconds)
            return max(offer_quantity_wh(soc_permille, limit_wh), rule_wh)
        return rule_wh

    return act


class Values:
    """The value of stored energy, by slot: from scenarios of the home's own past, every hour."""

    def __init__(self, house: House, tariff: Tariff, wear: int, *, expected: bool) -> None:
        self._house, self._tariff, self._wear, self._expected = house, tariff, wear, expected
        self._history = History(house.per_day)
        self._curves: dict[int, ValueCurve] = {}

    def after(self, slot: int) -> ValueCurve:
        """At the end of a slot; they are asked for in their order, and again as often as wanted."""
        if slot not in self._curves:
            self._plan(slot)
        return self._curves[slot]

    def _plan(self, slot: int) -> None:
        house, every = self._house, REPLAN_S // self._house.slot_s
        for past in range(max(slot - max(every, WARM_DAYS * house.per_day), 0), slot + 1):
            load_wh, pv_wh = int(house.load_wh[past]), int(house.pv_wh[past])
            self._history.observe(house.first_slot + past, load_wh, pv_wh)
        count = HORIZON_S // house.slot_s
        ahead = scenarios(self._history, house.first_slot + slot + 1, count)
        net_wh, weight = ahead.load_wh - ahead.pv_wh, ahead.weight / WEIGHT_SUM
        if self._expected:
            net_wh, weight = (weight @ net_wh)[None], np.ones(1)
        imports, exports = self._tariff.known(slot + 1, count, house.per_day)
        outlook = Outlook(net_wh=net_wh, import_price=imports, export_price=exports, weight=weight)
        curves = value_curves(outlook, house.battery, self._wear, house.slot_s, every)
        self._curves.update(zip(range(slot, slot + every), curves, strict=True))


def by_value(house: House, tariff: Tariff, wear: int, values: Values, reluctance: int) -> Act:
    """The planner: what `dispatch` does with these values."""

    def act(slot: int, net_wh: int, soc_wh: int) -> int:
        if slot < WARM_DAYS * house.per_day:
            return self_consumption(house.battery, net_wh, soc_wh, house.slot_s)
        terms = Terms(
            import_price=int(tariff.imports[slot]),
            export_price=int(tariff.exports[slot]),
            wear=wear,
            reluctance=reluctance,
        )
        return dispatch(net_wh, soc_wh, values.after(slot), house.battery, terms, house.slot_s)

    return act


def run(house: House, tariff: Tariff, wear: int, act: Act) -> Run:
    """Run the battery through all slots."""
    battery, soc_wh, switches, before = house.battery, 0, 0, 0
    costs = np.zeros(len(house.load_wh))
    for slot, net_wh in enumerate((house.load_wh - house.pv_wh).tolist()):
        out_wh = act(slot, net_wh, soc_wh)
        grid_wh = net_wh - out_wh
        price = tariff.imports[slot] if grid_wh > 0 else tariff.exports[slot]
        costs[slot] = grid_wh * int(price) + max(out_wh, 0) * wear
        soc_wh = battery.after(soc_wh, max(-out_wh, 0), max(out_wh, 0))
        if not 0 <= soc_wh <= battery.capacity_wh:
            raise AssertionError(f"{house.name}, slot {slot}: {soc_wh} Wh stored")
        does = (out_wh > 0) - (out_wh < 0)
        switches += does != before
        before = does
    return _run(house, costs, switches)


def perfect(house: House, tariff: Tariff, wear: int) -> Run:
    """The least cost: an LP over the whole time, solved by HiGHS."""
    from scipy import sparse  # type: ignore[import-untyped]  # noqa: PLC0415  (slow, and only here)
    from scipy.optimize import linprog  # type: ignore[import-untyped]  # noqa: PLC0415

    net_wh = house.load_wh - house.pv_wh
    count, battery = len(net_wh), house.battery
    into, out = battery.charge_permille / 1000, battery.discharge_permille / 1000
    rate_wh = battery.max_charge_w * house.slot_s / 3600
    eye = sparse.identity(count)
    stored = eye - sparse.diags([np.ones(count - 1)], [-1], (count, count))
    # Charge, discharge, import, export, stored; import − export = net + charge − discharge.
    rows = sparse.bmat([[-eye, eye, eye, -eye, None], [-into * eye, eye / out, None, None, stored]])
    cost = np.concatenate(
        [np.zeros(count), np.full(count, wear), tariff.imports, -tariff.exports, np.zeros(count)]
    )
    bounds = [(0, rate_wh)] * (2 * count) + [(0, None)] * (2 * count)
    bounds += [(battery.floor_wh, battery.ceiling_wh)] * count
    right = np.concatenate([net_wh, np.zeros(count)])
    found = linprog(cost, A_eq=rows.tocsc(), b_eq=right, bounds=bounds, method="highs")
    if found.status != 0:
        raise AssertionError(f"{house.name}, {tariff.name}: no optimum ({found.message})")
    charge_wh, discharge_wh, import_wh, export_wh, _ = np.split(found.x, 5)
    costs = import_wh * tariff.imports - export_wh * tariff.exports + discharge_wh * wear
    does = np.sign(np.round(discharge_wh - charge_wh))
    return _run(house, costs, int(np.count_nonzero(np.diff(does))))


def _run(house: House, costs: Any, switches: int) -> Run:
    """Costs come as prices of a kWh times Wh."""
    month = MONTH_DAYS * house.per_day
    months = [costs[start : start + month] for start in range(0, len(costs), month)]
    whole = [part for part in months if len(part) == month]
    return Run(
        round(costs.sum() / 1000),
        [round(part.sum() / 1000) for part in whole],
        switches * house.per_day / len(costs),
    )


def measure(house: House, tariff: Tariff) -> Case:
    """All ways of one home under one tariff."""
    policy = Policy()
    wear, reluctance = policy.degradation_uc_per_kwh, policy.reluctance_uc_per_kwh
    values = Values(house, tariff, wear, expected=False)
    expected = Values(house, tariff, wear, expected=True)

    def rule(_: int, net_wh: int, soc_wh: int) -> int:
        return self_consumption(house.battery, net_wh, soc_wh, house.slot_s)

    acts: dict[str, Act] = {
        "none": lambda _slot, _net_wh, _soc_wh: 0,
        "rule": rule,
        "curves": by_curves(house, tariff, wear),
        "expected": by_value(house, tariff, wear, expected, reluctance),
        "planner": by_value(house, tariff, wear, values, reluctance),
        "planner, no anti-flap": by_value(house, tariff, wear, values, 0),
    }
    runs = {way: run(house, tariff, wear, act) for way, act in acts.items()}
    runs["perfect"] = perfect(house, tariff, wear)
    days = len(house.load_wh) / house.per_day
    return Case(house.name, house.source, house.looked_at, tariff.name, days, runs)


def cut(house: House, days: int) -> House:
    """The first days of a home."""
    slots = slice(0, days * house.per_day)
    facts = {name: getattr(house, name) for name in House.__slots__}
    return House(**facts | {"load_wh": house.load_wh[slots], "pv_wh": house.pv_wh[slots]})


def cut_tariff(tariff: Tariff, slots: int) -> Tariff:
    """The same prices, no longer than the home."""
    imports, exports = tariff.imports[:slots], tariff.exports[:slots]
    return Tariff(tariff.name, imports, exports, tariff.day_ahead, tariff.phase)


def _measure_one(data: Path, name: str, days: int | None) -> list[Case]:
    """In a process of its own."""
    house = next(one for one in houses(data) if one.name == name)
    prices = tariffs(data, house)
    if days is not None:
        house = cut(house, days)
    return [measure(house, cut_tariff(tariff, len(house.load_wh))) for tariff in prices]


def measure_all(
    data: Path, names: Iterable[str], days: int | None, jobs: int, tell: Callable[[str], None]
) -> list[Case]:
    """Every home, several at a time."""
    names = list(names)
    found: dict[str, list[Case]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_measure_one, data, name, days): name for name in names}
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            tell(f"{len(found)} of {len(names)} homes, {waiting[done]} last")
    return [case for name in names for case in found[name]]


@dataclass(frozen=True, slots=True)
class Total:
    """Homes of one set under one tariff that were not looked at."""

    source: str
    tariff: str
    homes: int
    saving_uc: dict[str, int]
    worst_month_uc: int
    """Of the planner against the rule, over all homes that were not looked at."""

    def share_permille(self, way: str) -> int:
        """Of the perfect saving."""
        return self.saving_uc[way] * 1000 // max(self.saving_uc["perfect"], 1)


def totals(cases: list[Case]) -> list[Total]:
    """By set and tariff."""
    keys = list(dict.fromkeys((case.source, case.tariff) for case in cases))
    found = []
    for source, tariff in keys:
        some = [c for c in cases if (c.source, c.tariff) == (source, tariff) and not c.looked_at]
        if some:
            saving = {way: sum(case.saving_uc(way) for case in some) for way in WAYS}
            worst = min(case.worst_month_uc("planner") for case in some)
            found.append(Total(source, tariff, len(some), saving, worst))
    return found


def show(cases: list[Case], console: Console) -> None:
    """One table of homes, one of totals, one of switches."""
    table = Table(title="Cost of a year [¤], and share of the perfect saving [%]")
    for column in ("home", "tariff", *WAYS[:4], "planner", "perfect", "worst month"):
        table.add_column(column, justify="left" if column in ("home", "tariff") else "right")
    for case in cases:
        year = YEAR_DAYS / case.days
        best = max(case.saving_uc("perfect"), 1)
        cells = [f"{case.runs['none'].cost_uc * year / 1e6:.0f}"]
        for way in ("rule", "curves", "expected", "planner"):
            cost = case.runs[way].cost_uc * year / 1e6
            cells.append(f"{cost:.0f} ({100 * case.saving_uc(way) / best:.1f})")
        cells.append(f"{case.runs['perfect'].cost_uc * year / 1e6:.0f}")
        cells.append(f"{case.worst_month_uc('planner') / 1e6:+.2f}")
        table.add_row(case.house + "*" * case.looked_at, case.tariff, *cells)
    console.print(table)
    table = Table(title="Homes that were not looked at: share of the perfect saving [%]")
    for column in ("set", "tariff", "homes", *WAYS[1:6], "least gain over the rule in 30 days [¤]"):
        table.add_column(column, justify="left" if column in ("set", "tariff") else "right")
    for total in totals(cases):
        shares = [f"{total.share_permille(way) / 10:.1f}" for way in WAYS[1:6]]
        worst = f"{total.worst_month_uc / 1e6:+.2f}"
        table.add_row(total.source, total.tariff, str(total.homes), *shares, worst)
    console.print(table)
    console.print(_switches(cases))


def _switches(cases: list[Case]) -> Table:
    table = Table(title="Changes of what the battery does, a day, and what they bring, all homes")
    for column in (
        "set",
        "tariff",
        "rule",
        "planner",
        "without the anti-flap price",
        "the anti-flap price brings",
    ):
        table.add_column(column, justify="left" if column in ("set", "tariff") else "right")
    for source, tariff in dict.fromkeys((case.source, case.tariff) for case in cases):
        some = [case for case in cases if (case.source, case.tariff) == (source, tariff)]
        counts = [
            f"{sum(case.runs[way].switches_per_day for case in some) / len(some):.2f}"
            for way in ("rule", "planner", "planner, no anti-flap")
        ]
        years = [
            (case.saving_uc("planner") - case.saving_uc("planner, no anti-flap"))
            * YEAR_DAYS
            / case.days
            for case in some
        ]
        brings = f"{sum(years) / len(some) / 1e6:+.2f} ¤ a home and year"
        table.add_row(source, tariff, *counts, brings)
    return table


def main(
    data: Annotated[Path, typer.Option(help="Folder with the measured homes.")] = FOLDER,
    homes: Annotated[str, typer.Option(help="Only these, by comma.")] = "",
    days: Annotated[int | None, typer.Option(help="Only so many first days.", min=4)] = None,
    short: Annotated[bool, typer.Option("--short", help="Four homes, 40 days.")] = False,
    jobs: Annotated[int, typer.Option(help="Homes at a time.", min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What a home saves with a battery, by who controls it."""
    known = [house.name for house in houses(data)]
    chosen = [name for name in homes.split(",") if name] or known
    strange = sorted(set(chosen) - set(known))
    if strange:
        raise ConfigError(f"--homes: no home {strange[0]!r}; there are {', '.join(known)}")
    if short:
        chosen, days = ["Building_4", "Building_12", "hh_3055_0", "hh_3296_0"], 40
    with progress(as_json) as tell:
        cases = measure_all(data, chosen, days, jobs, tell)
    if as_json:
        rows = [asdict(case) for case in cases]
        print(json.dumps({"cases": rows, "totals": [asdict(total) for total in totals(cases)]}))
        return
    console = Console()
    show(cases, console if console.is_terminal else Console(width=150))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except ConfigError as problem:
        print(f"bench-savings: {problem}", file=sys.stderr)
        sys.exit(2)
