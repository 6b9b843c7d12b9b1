"""`hearthgrid poe`: a table, JSON and a chart of who leads under TMI's rule and under ours."""

from __future__ import annotations

import json
import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

BAR_PX, ROW_PX, LEFT_PX, FULL_PX = 9, 14, 190, 480
COLOURS = ("#b2432f", "#e0a96d", "#9fb8ad", "#5b8a72", "#1f4e3d")


def proof_of_energy(
    days: Annotated[int, typer.Option(min=1, max=366, help="Days to simulate.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of load, sunshine and lots.")] = 1,
    chart: Annotated[Path | None, typer.Option(help="Write a chart (SVG) to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """
    Who leads how often: TMI's raw rule and ours, with homes that cheat.

    First each kind of home alone among eight honest neighbours without a battery, then twenty homes
    together. Percent of all blocks.
    """
    started_s = time.monotonic()
    found = measure(days, seed)
    if chart is not None:
        chart.write_text(svg(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console  # noqa: PLC0415  (help should not wait for the imports)

    console = Console()
    console.print(_table("Alone among eight honest neighbours", found["rules"], found["alone"]))
    console.print(_table("All together", found["rules"], found["together"]))
    wasted = ", ".join(f"{role} {kwh} kWh" for role, kwh in found["wastedKwhPerDay"].items())
    console.print(f"{days} days, seed {seed}, {time.monotonic() - started_s:.1f} s.")
    console.print(f"Energy wasted a day: {wasted}.")


def measure(days: int, seed: int) -> dict[str, Any]:
    """All numbers: percent of the blocks by role and rule, alone and together."""
    from ledger.genesis import Poe  # noqa: PLC0415  (help should not wait for the imports)
    from sim import poe_days  # noqa: PLC0415

    rules = Poe()
    alone = []
    for role in poe_days.ALONE:
        homes = poe_days.SYBILS if role is poe_days.Role.SYBIL else 1
        led = poe_days.try_alone(role, days, rules, seed)
        alone.append(_row(role, homes, homes + len(poe_days.NEIGHBOURS), list(led.values())))
    every = poe_days.make_homes(seed, days)
    played = poe_days.play(every, rules, seed)
    shares = [poe_days.shares(every, one) for one in played]
    together = []
    for role in dict.fromkeys(home.role for home in every):
        count = sum(home.role is role for home in every)
        together.append(_row(role, count, len(every), [one[role] for one in shares]))
    return {
        "days": days,
        "seed": seed,
        "rules": [one.rule for one in played],
        "alone": alone,
        "together": together,
        "ties": {one.rule: one.ties for one in played},
        "underflows": {one.rule: one.underflows for one in played},
        "wastedKwhPerDay": {
            home.role: round(home.wasted_wh / 1000 / days, 1) for home in every if home.wasted_wh
        },
    }


def _row(role: str, homes: int, of: int, percent: list[float]) -> dict[str, Any]:
    return {
        "role": str(role),
        "homes": homes,
        "equalPercent": round(100 * homes / of, 1),
        "percent": [round(one, 1) for one in percent],
    }


def _table(title: str, rules: list[str], rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"{title}: % of blocks led")
    table.add_column("home", no_wrap=True)
    for name in ("homes", "equal", *rules):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = [f"{one:.1f}" for one in (row["equalPercent"], *row["percent"])]
        table.add_row(row["role"], str(row["homes"]), *numbers)
    return table


def svg(found: dict[str, Any]) -> str:
    """Horizontal bars: one group for each kind of home alone, one bar for each rule."""
    rules, rows = found["rules"], found["alone"]
    group_px = ROW_PX * len(rules) + 14
    height = 60 + group_px * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT_PX + FULL_PX + 70}" '
        f'height="{height}" font-family="sans-serif" font-size="11">',
        f"<title>Blocks led by one home among eight honest ones, {found['days']} days</title>",
    ]
    for number, rule in enumerate(rules):
        x = LEFT_PX + 95 * number
        parts.append(f'<rect x="{x}" y="14" width="10" height="10" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 15}" y="23">{escape(rule)}</text>')
    for index, row in enumerate(rows):
        top = 44 + index * group_px
        parts.append(
            f'<text x="{LEFT_PX - 8}" y="{top + group_px / 2 - 4}" text-anchor="end">'
            f"{escape(row['role'])}</text>"
        )
        for number, percent in enumerate(row["percent"]):
            y, width = top + number * ROW_PX, FULL_PX * percent / 100
            parts.append(
                f'<rect x="{LEFT_PX}" y="{y}" width="{max(width, 1):.1f}" height="{BAR_PX}" '
                f'fill="{COLOURS[number]}"/>'
                f'<text x="{LEFT_PX + width + 5:.1f}" y="{y + 9}">{percent:.1f} %</text>'
            )
        equal = LEFT_PX + FULL_PX * row["equalPercent"] / 100
        parts.append(
            f'<line x1="{equal:.1f}" x2="{equal:.1f}" y1="{top - 3}" '
            f'y2="{top + group_px - 14}" stroke="#444" stroke-dasharray="2 2"/>'
        )
    return "\n".join([*parts, "</svg>\n"])
