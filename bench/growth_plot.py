"""The growth benchmark's picture: time of a transaction over rows in the state, as an SVG."""

from __future__ import annotations

import math

WIDTH, HEIGHT, MARGIN = 640, 320, 56


def draw(rows: list[dict[str, float]]) -> str:
    """
    Points over a logarithmic axis, from zero up; a logarithmic cost is a straight line.

    Args:
        rows: each with `rows` and `tx_us`
    """
    low = math.floor(math.log10(rows[0]["rows"]))
    high = math.ceil(math.log10(rows[-1]["rows"]))
    top_us = max(row["tx_us"] for row in rows) * 1.2
    points = [
        (
            MARGIN + (math.log10(row["rows"]) - low) / max(1, high - low) * (WIDTH - 2 * MARGIN),
            HEIGHT - MARGIN - row["tx_us"] / top_us * (HEIGHT - 2 * MARGIN),
            row,
        )
        for row in rows
    ]
    base = HEIGHT - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{base}H{WIDTH - MARGIN}" fill="none" stroke="#555"/>',
        f'<text x="{MARGIN}" y="{MARGIN - 16}">µs to execute and store a transaction</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">rows in the state</text>',
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0a6" stroke-width="2"/>')
    for x, y, row in points:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#0a6"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">{row["tx_us"]:.0f}</text>'
        )
        parts.append(
            f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{row["rows"]:,.0f}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
