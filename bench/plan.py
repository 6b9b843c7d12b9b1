"""
How long it takes to plan two days of a home.

    python -m bench.plan [--repeats 20] [--json]

A horizon of 48 h in slots of 15 minutes. Each case is a battery with more to decide beside it.
Every repeat has another sun, load and price. In-process is building the model, solving and reading
the plan; the child is what the HEM does: a process started, its answer checked. Each plan is
checked, and one that cannot be ends the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

from hem.controller.battery import Battery
from hem.controller.fallback import plan_by_rules
from hem.controller.highs import Outcome, solve
from hem.controller.milp import build, read_plan
from hem.controller.plan import Car, Deferrable, Outlook, Plan, Task, Worth
from hem.controller.plan_check import check_plan
from hem.ems.solver import Solver

SLOTS = 192
SECONDS = 900
FIRST = 1_000
AIM_S = 0.2
TIME_LIMIT_S = 60.0
TIGHT_WH = 900
"""A limit each way that an hour of the car or of noon's sun reaches."""
CASES: dict[str, dict[str, Any]] = {
    "battery": {},
    "battery, no way out for the sun": {"tight": True},
    "with a car": {"car": True},
    "with three loads": {"loads": 3},
    "with car and loads": {"car": True, "loads": 3},
    "with car, loads and tight limits": {"car": True, "loads": 3, "tight": True},
}


def outlooks(rng: random.Random, tight: bool) -> tuple[Outlook, ...]:
    """Two days of June: sun behind clouds, breakfast and evening, prices dear from 17 to 21 h."""
    made = []
    for slot in range(SLOTS):
        hour = slot / 4 % 24
        sun = max(math.sin(math.pi * (hour - 6) / 12), 0) * rng.uniform(0.4, 1)
        load = (80 + 120 * (17 < hour < 22) + 60 * (6 < hour < 9)) * rng.uniform(0.7, 1.6)
        price = 250_000 + 100_000 * (17 < hour < 21) - 80_000 * (hour < 5)
        limits = {"import_limit_wh": TIGHT_WH, "export_limit_wh": TIGHT_WH} if tight else {}
        made.append(
            Outlook(
                load_wh=int(load),
                pv_wh=int(1_500 * sun),
                import_price_uc_per_kwh=price + rng.randrange(-20_000, 20_000),
                export_price_uc_per_kwh=80_000,
                **limits,
            )
        )
    return tuple(made)


def make_task(seed: int, loads: int = 0, car: bool = False, tight: bool = False) -> Task:
    """A home with a battery of 10 kWh."""
    profile = (500, 500, 200, 100, 300, 100)
    return Task(
        first_slot=FIRST,
        slot_seconds=SECONDS,
        slots=outlooks(random.Random(seed), tight),
        battery=Battery(10_000, 5_000, 5_000),
        soc_wh=3_000,
        degradation_uc_per_kwh=60_000,
        worth=tuple(
            Worth(energy_wh=1_000, price_uc_per_kwh=230_000 - 15_000 * part) for part in range(10)
        ),
        loads=tuple(
            Deferrable(
                name=f"load {number}",
                profile_wh=profile,
                earliest_slot=FIRST + 40 + 50 * number,
                end_slot=FIRST + 88 + 50 * number,
            )
            for number in range(loads)
        ),
        car=Car(
            plugged_slots=tuple(range(FIRST + 70, FIRST + 124)),
            ready_slot=FIRST + 124,
            need_wh=12_000,
            soon_wh=2_000,
            min_charge_wh=345,
            max_charge_wh=2_750,
        )
        if car
        else None,
    )


def plan_here(task: Task) -> Plan:
    """Build, solve and read in this process."""
    model = build(task)
    solution = solve(model, TIME_LIMIT_S, len(task.slots))
    assert solution.outcome is Outcome.OPTIMAL, solution.outcome
    return read_plan(task, model, solution.values, solution.balance_duals)


def plan_in_child(task: Task) -> Plan:
    """As the HEM does."""
    solver = Solver(2 * TIME_LIMIT_S)
    plan = asyncio.run(solver.plan(task))
    assert plan is not None
    assert not solver.why_not, solver.why_not
    return plan


def timed(plan: Callable[[Task], Plan], task: Task) -> tuple[float, float, Plan]:
    """Wall seconds, CPU seconds with those of children that ended, and the plan, checked."""
    cpu_s, began_s = cpu_seconds(), time.perf_counter()
    made = plan(task)
    wall_s = time.perf_counter() - began_s
    spent_s = cpu_seconds() - cpu_s
    faults = check_plan(task, made)
    assert not faults, [str(fault) for fault in faults[:3]]
    return wall_s, spent_s, made


def cpu_seconds() -> float:
    """Of this process and its children that ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """One case, another task each time."""
    tasks = [make_task(seed, **CASES[name]) for seed in range(repeats)]
    here = [timed(plan_here, task) for task in tasks]
    child = [timed(plan_in_child, task) for task in tasks]
    rules = [plan_by_rules(task) for task in tasks]
    saved = [other.cost_uc - one[2].cost_uc for one, other in zip(here, rules, strict=True)]
    return {
        "case": name,
        "here_ms": _figures([wall_s for wall_s, _, _ in here]),
        "here_cpu_ms": _figures([cpu_s for _, cpu_s, _ in here]),
        "child_ms": _figures([wall_s for wall_s, _, _ in child]),
        "child_cpu_ms": _figures([cpu_s for _, cpu_s, _ in child]),
        "saved_uc": round(statistics.mean(saved)),
        "within_aim": sum(cpu_s <= AIM_S for _, cpu_s, _ in here),
        "repeats": repeats,
    }


def _figures(seconds: list[float]) -> dict[str, int]:
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    return {"mean": round(statistics.mean(seconds) * 1000), "p95": round(p95 * 1000)}


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan_here(make_task(0))  # what numpy and HiGHS take to be loaded is part of the child only
    rows = [measure(name, max(options.repeats, 2)) for name in CASES]
    child_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    if options.json:
        print(json.dumps({"aim_s": AIM_S, "child_mb_max": round(child_mb), "cases": rows}))
        return
    print(f"mean/p95 ms; in-process CPU within {AIM_S} s; a child takes up to {child_mb:.0f} MB")
    for row in rows:
        print(
            f"{row['case']:34}",
            *(
                f"{name} {row[f'{name}_ms']['mean']}/{row[f'{name}_ms']['p95']}"
                for name in ("here", "here_cpu", "child", "child_cpu")
            ),
            f"within aim {row['within_aim']}/{row['repeats']}",
            f"{row['saved_uc'] / 1e6:.2f} ¤ cheaper than the rules",
            sep="  ",
        )


if __name__ == "__main__":
    main()
