"""
The linkage attack from end to end: months, attackers, measures, baselines.

An attacker reads the whole chain and all public topics of a simulated month (`sim.month`) and tries
to tell which addresses are one home's. Two baselines say what no choice of addresses can hide:

- **chance**: one in N;
- **content**: the same machinery with nothing but what the market is about. The metered amounts,
  slot by slot without labels (`multiset`): what is left when every slot has its own address. The
  same by period (`amounts`): when an address is for several slots. With what was bought and sold
  (`settled`): all that settlement publishes. With orders, too (`market`): all that a double auction
  publishes whose clearing everybody can check.

What an attack gets beyond `market` comes through a channel that need not be there: moments, clocks,
amounts of money, grants, CPFs. What orders add to `amounts` is the price of orders in the open.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from sim import linkage_attack
from sim.linkage_attack import ATTACKS, Weights, follow, foretell, guess, learn
from sim.linkage_measures import Recovery, Share, by_day, recover
from sim.linkage_tracks import Reading, read
from sim.month import Truth, run_month
from sim.month_habits import Habits
from sim.observation import Observation

CHANCE, MULTISET = "chance", "multiset"
BASELINES = (MULTISET, "amounts", "settled", "market")
FOLLOWED = ("amounts", "market", "combined")
"""Attacks that are also followed through the whole month."""
STUDY_SLOTS = (1, 2, 4, 8, 16, 48, 96)


@dataclass(frozen=True, slots=True)
class Month:
    """A month as the attacker reads it, and its truth."""

    reading: Reading
    truth: Truth

    @classmethod
    def of(cls, observation: Observation, truth: Truth) -> Month:
        """Read an observation."""
        return cls(read(observation), truth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A month to run."""

    homes: int
    days: int
    seed: int
    habits: Habits
    slots: int | None = None

    def run(self) -> tuple[Observation, Truth]:
        """Run it."""
        return run_month(self.homes, self.days, self.seed, self.habits, self.slots)


@dataclass(frozen=True, slots=True)
class Result:
    """How the attacks did on one kind of month."""

    linked: dict[str, Share]
    """By attack, and `multiset`: homes rightly linked over a boundary, by who knows the past."""
    followed: dict[str, Recovery]
    """By attack, and by lot (`chance`): what chains made from nothing told."""

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return {
            "linked": {name: one.to_json() for name, one in self.linked.items()},
            "followed": {
                name: {
                    "attributed": one.attributed.to_json(),
                    "dailyError": one.daily_error.to_json(),
                    "profileCorrelation": one.correlation.to_json(),
                    "loadCorrelation": one.load_correlation.to_json(),
                }
                for name, one in self.followed.items()
            },
        }


def run_all(tasks: Sequence[Task], jobs: int) -> list[tuple[Observation, Truth]]:
    """Run months, `jobs` at a time, each in a process of its own where there are several."""
    if jobs == 1:
        return [task.run() for task in tasks]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(Task.run, tasks))


def attack(
    train: Month, tests: Sequence[Month], period: int, attacks: Iterable[str] = ATTACKS
) -> Result:
    """
    Learn on one month, attack others.

    Args:
        period: slots of an address; where addresses are fixed, the periods to cut them into
        attacks: of `ATTACKS`; those of `FOLLOWED` are followed, too
    """
    chosen = list(attacks)
    weights = learn(train.reading, train.truth.home_of, period, chosen)
    linked = _linked(tests, weights, period)
    single = learn(train.reading, train.truth.home_of, 1, ["amounts"])
    linked[MULTISET] = _linked(tests, single, period)["amounts"]
    followed = {
        name: _joined([recover(follow(one.reading, weights, name), one.truth) for one in tests])
        for name in FOLLOWED
        if name in chosen
    }
    followed = {
        CHANCE: _joined([recover(guess(one.reading, period), one.truth) for one in tests]),
        **followed,
    }
    return Result(linked, followed)


def study(
    train: Month, tests: Sequence[Month], homes: Sequence[int], lengths: Sequence[int] = STUDY_SLOTS
) -> list[dict[str, Any]]:
    """
    How much the amounts alone give, by number of homes and slots of an address.

    Args:
        train, tests: months under fixed addresses: they are cut into periods here
    """
    rows = []
    for count in homes:
        part, parts = restrict(train, count), [restrict(one, count) for one in tests]
        for length in lengths:
            weights = learn(part.reading, part.truth.home_of, length, ["amounts"])
            shares = _linked(parts, weights, length)["amounts"]
            chains = _joined(
                [recover(follow(one.reading, weights, "amounts"), one.truth) for one in parts]
            )
            rows.append(
                {
                    "homes": count, "addressSlots": length, "chance": round(1 / count, 4),
                    "linked": shares.to_json(), "attributed": chains.attributed.to_json(),
                }
            )  # fmt: skip
    return rows


def restrict(month: Month, homes: int) -> Month:
    """A month of only the first so many homes."""
    names = set(sorted(month.truth.nets_wh)[:homes])
    reading, truth = month.reading, month.truth
    tracks = {a: t for a, t in reading.tracks.items() if truth.home_of.get(a) in names}
    said = {v: c for v, c in reading.cpf_q16.items() if truth.hosts.get(v) in names}
    return Month(
        replace(reading, tracks=tracks, cpf_q16=said),
        replace(
            truth,
            nets_wh={name: truth.nets_wh[name] for name in names},
            loads_wh={name: truth.loads_wh[name] for name in names},
        ),
    )


def clusters(reading: Reading, weights: Weights, name: str = "combined") -> list[list[str]]:
    """What an attacker without any truth believes: addresses of one home each, in their order."""
    found: dict[int, list[str]] = {}
    for batch, belief in linkage_attack.follow(reading, weights, name):
        for cluster, segment in belief.items():
            address = batch.addresses[segment]
            chain = found.setdefault(cluster, [])
            if address not in chain:
                chain.append(address)
    return [found[cluster] for cluster in sorted(found)]


def _linked(tests: Sequence[Month], weights: Weights, every: int) -> dict[str, Share]:
    """Days of several months are so many days: each month's are moved behind the last's."""
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in weights.of}
    for number, month in enumerate(tests):
        shift = number * 100_000 * 96
        told = foretell(month.reading, month.truth.home_of, weights, every)
        for name, rows in told.items():
            values[name] += [(slot + shift, value) for slot, value in rows]
    return {name: by_day(rows) for name, rows in values.items()}


def _joined(parts: Sequence[Recovery]) -> Recovery:
    """Means over months; margins as of independent ones."""

    def mean(name: str) -> Share:
        shares = [getattr(one, name) for one in parts]
        count = len(shares)
        margin = sum(one.margin**2 for one in shares) ** 0.5 / count
        return Share(sum(one.mean for one in shares) / count, margin)

    return Recovery(
        mean("attributed"), mean("daily_error"), mean("correlation"), mean("load_correlation")
    )
