"""`hearthgrid congestion`: a feeder's overload, and the same day under the congestion contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wire.errors import ConfigError

WIDTH_PX, HEIGHT_PX, LEFT_PX, TOP_PX = 720, 300, 60, 40
COLOURS = {"without": "#c05020", "with": "#1a7f72"}


def congestion(
    feeder: Annotated[
        Path | None, typer.Option(help="Folder with a SimBench feeder; else a village of ours.")
    ] = None,
    day: Annotated[str, typer.Option(help="YYYY-MM-DD; else the day with the most export.")] = "",
    chart: Annotated[Path | None, typer.Option(help="Write a plot (SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """
    Show a feeder's day without and with the congestion contract.

    Exit code 0: within its rating with the contract. 1: above it. 2: something given is wrong.
    """
    from sim import congestion_day  # noqa: PLC0415  (help should not wait for the imports)

    found = (
        congestion_day.made_up() if feeder is None else congestion_day.load_simbench(feeder, day)
    )
    results = congestion_day.play(found)
    facts = summary(found, results)
    if chart is not None:
        try:
            chart.write_text(svg(found, results), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{chart}: cannot be written: {error.strerror}") from None
    if as_json:
        print(json.dumps(facts))
    else:
        _tell(facts, chart)
    raise typer.Exit(0 if facts["slotsOverWith"] == 0 else 1)


def summary(feeder: Any, results: list[Any]) -> dict[str, Any]:
    """The day in numbers [W, Wh]."""
    return {
        "feeder": feeder.name,
        "day": feeder.day,
        "ratingW": feeder.rating_w,
        "plants": len(feeder.plants_w),
        "loads": len(feeder.loads_w),
        "peakWithoutW": max(one.without_w for one in results),
        "peakWithW": max(one.with_w for one in results),
        "slotsOverWithout": sum(abs(one.without_w) > feeder.rating_w for one in results),
        "slotsOverWith": sum(abs(one.with_w) > feeder.rating_w for one in results),
        "curtailedWh": sum(one.curtailed_w for one in results) // 4,
        "madeWh": sum(sum(plant) for plant in feeder.plants_w) // 4,
    }


def _tell(facts: dict[str, Any], chart: Path | None) -> None:
    kilo = {name: facts[name] / 1000 for name in facts if name.endswith(("W", "Wh"))}
    print(f"{facts['feeder']}, {facts['day']}: {facts['plants']} plants, {facts['loads']} loads")
    print(f"rating            {kilo['ratingW']:8.1f} kW")
    print(
        f"without contract  {kilo['peakWithoutW']:8.1f} kW at most,"
        f" above the rating in {facts['slotsOverWithout']} slots"
    )
    print(
        f"with it           {kilo['peakWithW']:8.1f} kW at most,"
        f" above the rating in {facts['slotsOverWith']} slots"
    )
    print(f"curtailed         {kilo['curtailedWh']:8.1f} kWh of {kilo['madeWh']:.1f} kWh")
    if chart is not None:
        print(f"plot: {chart}")


def svg(feeder: Any, results: list[Any]) -> str:
    """The feeder's export over the day: two lines between the two ratings."""
    values = [w for one in results for w in (one.without_w, one.with_w)]
    high = max(*values, feeder.rating_w) * 11 // 10
    low = min(*values, -feeder.rating_w) * 11 // 10

    def y(power_w: int) -> float:
        return float(TOP_PX + HEIGHT_PX * (high - power_w) / (high - low))

    def x(slot: int) -> float:
        return float(LEFT_PX + WIDTH_PX * slot / (len(results) - 1))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT_PX + WIDTH_PX + 90}" '
        f'height="{TOP_PX + HEIGHT_PX + 40}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT_PX}" y="20">Export of {feeder.name}, {feeder.day} [kW]</text>',
    ]
    for power_w, dash in ((feeder.rating_w, "6 3"), (-feeder.rating_w, "6 3"), (0, "")):
        parts.append(
            f'<line x1="{LEFT_PX}" x2="{LEFT_PX + WIDTH_PX}" y1="{y(power_w):.1f}" '
            f'y2="{y(power_w):.1f}" stroke="#666" stroke-dasharray="{dash}"/>'
            f'<text x="{LEFT_PX - 6}" y="{y(power_w) + 4:.1f}" text-anchor="end">'
            f"{power_w / 1000:g}</text>"
        )
    for name, powers in (
        ("without", [one.without_w for one in results]),
        ("with", [one.with_w for one in results]),
    ):
        points = " ".join(f"{x(n):.1f},{y(w):.1f}" for n, w in enumerate(powers))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>'
        )
    for number, name in enumerate(COLOURS):
        parts.append(
            f'<text x="{LEFT_PX + WIDTH_PX + 8}" y="{TOP_PX + 16 + 18 * number}" '
            f'fill="{COLOURS[name]}">{name}</text>'
        )
    for hour in range(0, 25, 6):
        parts.append(
            f'<text x="{LEFT_PX + WIDTH_PX * hour / 24:.0f}" y="{TOP_PX + HEIGHT_PX + 20}" '
            f'text-anchor="middle">{hour:02}:00</text>'
        )
    return "\n".join([*parts, "</svg>\n"])
