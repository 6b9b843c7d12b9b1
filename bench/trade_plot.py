"""Histogram of closing times, as text and as an SVG, after PETra's Figure 4."""

from __future__ import annotations

import math

WIDTH, HEIGHT, MARGIN = 640, 320, 56
BARS = 20
FULL = 50
"""Characters of the longest bar."""
STEPS_MS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1_000, 2_000, 5_000, 10_000)


def bins(times_ms: list[float]) -> list[tuple[int, int, int]]:
    """From, to [ms] and how many, in at most `BARS` equal steps of a round width from zero on."""
    if not times_ms:
        return []
    most = max(times_ms)
    width = next((step for step in STEPS_MS if most < step * BARS), math.ceil(most / BARS))
    counts = [0] * (int(most // width) + 1)
    for each in times_ms:
        counts[int(each // width)] += 1
    return [(n * width, (n + 1) * width, count) for n, count in enumerate(counts)]


def text(times_ms: list[float]) -> str:
    """One line for each step."""
    rows = bins(times_ms)
    most = max((count for _, _, count in rows), default=1)
    return "\n".join(
        f"{low:>6,} – {high:>6,}  {count:>5}  {'█' * math.ceil(FULL * count / most)}".rstrip()
        for low, high, count in rows
    )


def draw(times_ms: list[float], marks_ms: dict[str, float]) -> str:
    """
    Bars over time.

    Args:
        times_ms: what is counted
        marks_ms: named times, drawn as lines
    """
    rows = bins(times_ms) or [(0, 1, 0)]
    end_ms = rows[-1][1]
    most = max(1, *(count for _, _, count in rows))
    base, span = HEIGHT - MARGIN, WIDTH - 2 * MARGIN

    def x_of(time_ms: float) -> float:
        return MARGIN + span * min(1.0, time_ms / end_ms)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{base}H{WIDTH - MARGIN}" fill="none" stroke="#555"/>',
        f'<text x="{MARGIN}" y="{MARGIN - 32}">trades (PETra: mean 11,790 ms, 90 % within '
        "23,000 ms)</text>",
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        "ms from an offer to its final acceptance</text>",
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{most}</text>',
    ]
    for low, high, count in rows:
        height = (base - MARGIN) * count / most
        parts.append(
            f'<rect x="{x_of(low) + 1:.1f}" y="{base - height:.1f}" '
            f'width="{x_of(high) - x_of(low) - 2:.1f}" height="{height:.1f}" fill="#0a6"/>'
        )
    every = max(1, len(rows) // 5)
    for low, _, _ in rows[::every]:
        parts.append(
            f'<text x="{x_of(low):.1f}" y="{base + 16}" text-anchor="middle">{low:,}</text>'
        )
    for number, (name, time_ms) in enumerate(marks_ms.items()):
        x = x_of(time_ms)
        parts.append(f'<path d="M{x:.1f} {MARGIN}V{base}" stroke="#b2432f" stroke-width="1"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{MARGIN - 4 - 12 * (number % 2)}" text-anchor="middle">'
            f"{name}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
