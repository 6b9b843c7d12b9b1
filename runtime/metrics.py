"""Metrics: what every service counts, under names that Prometheus and our pages share."""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import Counter

from wire.errors import Refusal

REFUSALS = Counter(
    "hearthgrid_refusals_total",
    "Messages refused, by component and reason",
    ["component", "reason"],
)
_tally: Tally[tuple[str, str]] = Tally()


def count_refusal(component: str, reason: Refusal) -> None:
    """Count one refused message."""
    REFUSALS.labels(component, reason.value).inc()
    _tally[component, reason.value] += 1


def refusals(component: str) -> dict[str, int]:
    """What this process has refused so far, by reason."""
    return {reason: n for (part, reason), n in sorted(_tally.items()) if part == component}
