"""`hem plan`: what the home expects of the next day, and when loads that may wait should start."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import msgspec

from hem.controller.plan import Plan, plan_from_json
from hem.ems.planner import PLAN
from hem.ems.starts import STARTS
from hem.summary import EMS_FILE, opened
from wire.canonical import decode
from wire.slots import SlotGrid

DAY_S = 86_400


def plan_of(folder: Path, slot: int) -> tuple[Plan | None, dict[str, int]]:
    """The plan that a home keeps, if it reaches beyond a slot, and the starts chosen from it on."""
    with opened(folder, EMS_FILE) as store:
        raw, chosen = store.get(PLAN), store.get(STARTS)
    plan = None if raw is None else plan_from_json(raw)
    starts = {} if chosen is None else dict(decode(chosen))
    if plan is not None and plan.first_slot + len(plan.slots) <= slot:
        plan = None
    return plan, {name: at for name, at in starts.items() if at >= slot}


def plan_facts(plan: Plan | None, starts: dict[str, int]) -> dict[str, Any]:
    """For machines."""
    return {"plan": None if plan is None else msgspec.to_builtins(plan), "starts": starts}


def plan_text(
    plan: Plan | None, starts: dict[str, int], slot: int, grid: SlotGrid, zone: tzinfo
) -> Iterator[str]:
    """For people: starts first, then a line an hour, for a day."""
    for name, at in sorted(starts.items(), key=lambda item: item[1]):
        yield f"start {name.rpartition(' ')[0] or name} at {_clock(at, grid, zone)}"
    if plan is None:
        yield "no plan yet: a home plans once it has seen two days"
        return
    yield "from     used     sun   battery      grid   stored   [kWh; + gives, + taken from it]"
    per_hour = max(3_600 // grid.length_s, 1)
    ahead = [one for one in plan.slots if slot <= one.slot < slot + DAY_S // grid.length_s]
    for begin in range(0, len(ahead), per_hour):
        hour = ahead[begin : begin + per_hour]
        used = sum(one.load_wh + one.flexible_wh for one in hour)
        sun = sum(one.pv_wh for one in hour)
        battery = sum(one.discharge_wh - one.charge_wh for one in hour)
        taken = sum(one.import_wh - one.export_wh for one in hour)
        yield (
            f"{_clock(hour[0].slot, grid, zone)} {_kwh(used)} {_kwh(sun)} {_kwh(battery, 9)}"
            f" {_kwh(taken, 9)} {_kwh(hour[-1].soc_wh, 8)}"
        )


def _clock(slot: int, grid: SlotGrid, zone: tzinfo) -> str:
    return datetime.fromtimestamp(grid.start_ms(slot) / 1000, zone).strftime("%H:%M")


def _kwh(energy_wh: int, width: int = 7) -> str:
    return f"{energy_wh / 1000:{width}.2f}"
