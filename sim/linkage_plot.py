"""The plot of `hearthgrid linkage`: what each attack links under fixed and fresh addresses."""

from __future__ import annotations

from html import escape
from typing import Any

LEFT_PX, FULL_PX, BAR_PX, ROW_PX, TOP_PX = 120, 460, 12, 44, 60
COLOURS = {"fixed": "#b2432f", "fresh": "#1f4e3d"}
BASELINES = (("chance", "2 3"), ("multiset", "4 3"), ("amounts", "8 3"), ("market", "1 0"))


def svg(found: dict[str, Any]) -> str:
    """
    Horizontal bars with 95 % intervals; vertical lines are the baselines of fresh addresses.

    Args:
        found: of `sim.linkage_cli.measure`
    """
    attacks = list(found["modes"]["fresh"]["linked"])
    height = TOP_PX + ROW_PX * len(attacks) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT_PX + FULL_PX + 70}" '
        f'height="{height}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f"<title>Addresses linked over a boundary, {found['homes']} homes</title>",
    ]
    for number, (mode, colour) in enumerate(COLOURS.items()):
        x = LEFT_PX + 90 * number
        parts.append(f'<rect x="{x}" y="14" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="23">{mode}</text>')
    for index, attack in enumerate(attacks):
        top = TOP_PX + index * ROW_PX
        parts.append(
            f'<text x="{LEFT_PX - 8}" y="{top + 18}" text-anchor="end">{escape(attack)}</text>'
        )
        for number, (mode, colour) in enumerate(COLOURS.items()):
            bar = found["modes"][mode]["linked"][attack]
            parts.append(_bar(bar["mean"], bar["margin"], top + number * (BAR_PX + 3), colour))
    fresh = found["modes"]["fresh"]["linked"]
    lines = {"chance": found["chance"], **{name: fresh[name]["mean"] for name in fresh}}
    for number, (name, dash) in enumerate(BASELINES):
        x = LEFT_PX + FULL_PX * lines[name]
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP_PX - 6}" y2="{height - 34}" '
            f'stroke="#444" stroke-dasharray="{dash}"/>'
            f'<text x="{x:.1f}" y="{height - 22 + 9 * (number % 2)}" text-anchor="middle">'
            f"{name}</text>"
        )
    return "\n".join([*parts, "</svg>\n"])


def _bar(mean: float, margin: float, y: float, colour: str) -> str:
    width, middle = FULL_PX * mean, y + BAR_PX / 2
    low, high = (LEFT_PX + FULL_PX * min(max(mean + s * margin, 0), 1) for s in (-1, 1))
    return (
        f'<rect x="{LEFT_PX}" y="{y}" width="{max(width, 1):.1f}" height="{BAR_PX}" '
        f'fill="{colour}"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="black"/>'
        f'<text x="{high + 5:.1f}" y="{y + 10}">{100 * mean:.0f} %</text>'
    )
