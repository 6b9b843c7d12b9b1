"""
How well an attack did: addresses attributed to the right home, loads recovered, with intervals.

Clusters have no names, so they are matched to homes as favourably to the attacker as can be.
Intervals are ±1.96 standard errors of the days' means: the periods of a day are not independent of
each other, its days nearly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from sim.linkage_attack import Belief
from sim.linkage_tracks import Batch, Floats
from sim.month import Truth

SLOTS_PER_DAY = 96


@dataclass(frozen=True, slots=True)
class Share:
    """A mean with its interval."""

    mean: float
    margin: float
    """Half the width of the 95 % interval."""

    def to_json(self) -> dict[str, float]:
        """Rounded."""
        return {"mean": round(self.mean, 4), "margin": round(self.margin, 4)}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What chains of addresses told of the homes."""

    attributed: Share
    """Of the addresses (segments), put into the right home's cluster."""
    daily_error: Share
    """|energy of a day as found − true| / true, of the homes' metered exchange."""
    correlation: Share
    """Of the 15-minute profile as found with the true one, over the month, by home."""
    load_correlation: Share
    """The same with what was used in the home, which PV and battery hide."""


def by_day(values: Iterable[tuple[int, float]]) -> Share:
    """The mean of values of slots, with an interval from the means of days."""
    days: dict[int, list[float]] = defaultdict(list)
    for slot, value in values:
        days[slot // SLOTS_PER_DAY].append(value)
    return share([sum(day) / len(day) for day in days.values()])


def share(values: Sequence[float]) -> Share:
    """The mean of independent values."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Share(float("nan"), float("nan"))
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")
    return Share(sum(known) / len(known), 1.96 * spread / math.sqrt(len(known)))


def recover(chains: Iterable[tuple[Batch, Belief]], truth: Truth) -> Recovery:
    """
    Compare chains of addresses with the truth.

    Args:
        chains: of `linkage_attack.follow`
    """
    homes = sorted(truth.nets_wh)
    place = {home: number for number, home in enumerate(homes)}
    steps = list(chains)
    clusters = 1 + max((max(belief) for _, belief in steps), default=0)
    votes = np.zeros((clusters, len(homes)))
    for batch, belief in steps:
        for cluster, segment in belief.items():
            home = truth.home_of.get(batch.addresses[segment])
            if home is not None:
                votes[cluster, place[home]] += 1
    rows, columns = linear_sum_assignment(-votes)
    named = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    hits = []
    found = np.full((len(homes), len(truth.nets_wh[homes[0]])), np.nan)
    for batch, belief in steps:
        right = [
            homes[named[cluster]] == truth.home_of.get(batch.addresses[segment])
            for cluster, segment in belief.items()
            if cluster in named
        ]
        hits.append((batch.first_slot, sum(right) / max(len(right), 1)))
        _write(found, batch, belief, named, truth.first_slot)
    return _compare(by_day(hits), found, truth, homes)


def _write(
    found: Floats, batch: Batch, belief: Belief, named: Mapping[int, int], first_slot: int
) -> None:
    """Put a period's amounts where the attacker believes they belong."""
    begin = batch.first_slot - first_slot
    for cluster, segment in belief.items():
        nets = batch.nets_wh[segment]
        if cluster in named and begin >= 0:
            stretch = found[named[cluster], begin : begin + len(nets)]
            stretch[:] = nets[: len(stretch)]


def _compare(attributed: Share, found: Floats, truth: Truth, homes: list[str]) -> Recovery:
    slots = min(found.shape[1], *(len(loads) for loads in truth.loads_wh.values()))
    errors, close, loads = [], [], []
    for number, home in enumerate(homes):
        guess = found[number, :slots]
        # the warm-up is not part of the month
        true = np.array(truth.nets_wh[home][:slots], dtype=float)
        load = np.array(truth.loads_wh[home][:slots], dtype=float)
        known = ~np.isnan(guess)
        close.append(_correlation(guess[known], true[known]))
        loads.append(_correlation(guess[known], load[known]))
        for day in range(slots // SLOTS_PER_DAY):
            part = slice(day * SLOTS_PER_DAY, (day + 1) * SLOTS_PER_DAY)
            if known[part].all() and (total := np.abs(true[part]).sum()) > 0:
                errors.append(float(abs(guess[part].sum() - true[part].sum()) / total))
    return Recovery(attributed, share(errors), share(close), share(loads))


def _correlation(one: Floats, other: Floats) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
