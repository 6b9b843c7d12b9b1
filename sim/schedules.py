"""
Which schedule belongs to a seed, and running many of them on several processes.

A seed names one combination of network and machine faults (`MIXES`) with one kind of Byzantine
validator (`ACTORS`): with 9 mixes and 10 actors, any 90 seeds in a row are every combination once.
The seed also decides which validators are Byzantine, and everything that happens in the run. In
every other 90 a justify carries one nullification only and the rest must be fetched, as it happens
in life after hundreds of failed views.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from random import Random

from ledger.types import ValidatorSet
from sim.byzantine import Equivocator, FalseCpf, Forker, Lazy, Repeater, Silent, TwoFaced
from sim.consensus import CALM, Faults, Node, Plan, Result, World

SIZES = (4, 7)
"""Numbers of validators; f is 1 and 2."""
PROCESSES = max(2, os.cpu_count() or 2)
CHUNK_SEEDS = 4

MIXES: dict[str, Faults] = {
    "calm": CALM,
    "usual": Faults(),
    "loss": Faults(drop=0.35, partitions=0, crashes=0),
    "repeats": Faults(drop=0.0, duplicate=0.6, partitions=0, crashes=0),
    "disorder": Faults(drop=0.05, delay_s=(0.001, 0.5), partitions=0, crashes=0),
    "partitions": Faults(drop=0.02, partitions=6, crashes=0),
    "crashes": Faults(drop=0.02, partitions=0, crashes=25, lost_blocks_max=3),
    "split-broker": Faults(
        drop=0.05, delay_s=(0.001, 0.25), partitions=0, crashes=2, moods=8, hide=0.4
    ),
    "rough": Faults(drop=0.25, duplicate=0.15, delay_s=(0.001, 0.25), partitions=3, crashes=10),
}
ACTORS: dict[str, tuple[type[Node], ...]] = {
    "nobody": (),
    "silent": (Silent, Silent),
    "lazy": (Lazy, Silent),
    "equivocator": (Equivocator, Equivocator),
    "twins": (),
    "two-faced": (TwoFaced, TwoFaced),
    "forker": (Forker, Equivocator),
    "forkers": (Forker, Forker),
    "repeater": (Repeater, Equivocator),
    "false-cpf": (FalseCpf, Equivocator),
}
"""Kinds of the up to f Byzantine validators, the first ones where f is smaller."""


COMBINATIONS = len(MIXES) * len(ACTORS)


class ShortJustify(ValidatorSet):
    """Validators whose justify leaves out all nullifications but the last."""

    @property
    def inline_views(self) -> int:
        """As few as possible."""
        return 1


@dataclass(frozen=True)
class Outcome:
    """One run, small enough to be sent between processes."""

    seed: int
    validators: int
    mix: str
    actor: str
    violations: tuple[str, ...]
    views: int
    blocks: int
    evidence: int
    """Validators caught."""
    log_hash: str
    seconds: float
    """Processor time."""


Play = Callable[[int, int], Outcome]
"""Runs a seed among n validators."""


def combination(seed: int) -> tuple[str, str]:
    """The fault mix and the actor of a seed."""
    mixes, actors = tuple(MIXES), tuple(ACTORS)
    return mixes[seed % len(mixes)], actors[seed // len(mixes) % len(actors)]


def plan_of(seed: int, n: int) -> Plan:
    """The schedule that a seed is, among n validators."""
    mix, actor = combination(seed)
    places = Random(f"{seed}/{n}").sample(range(n), (n - 1) // 3)
    return Plan(
        seed=seed,
        n=n,
        faults=MIXES[mix],
        byzantine=dict(zip(places, ACTORS[actor], strict=False)),
        twins=frozenset(places) if actor == "twins" else frozenset(),
        validator_set=ShortJustify if seed // COMBINATIONS % 2 else ValidatorSet,
    )


def play(seed: int, n: int) -> Outcome:
    """Run one schedule; an error in the code under test is a violation too."""
    started_s = time.process_time()
    mix, actor = combination(seed)
    try:
        result = World(plan_of(seed, n)).run()
    except Exception as error:
        result = Result([f"{type(error).__name__}: {error}"], {}, 0, 0, 0, set(), 0, 0, "")
    return Outcome(
        seed=seed,
        validators=n,
        mix=mix,
        actor=actor,
        violations=tuple(result.violations),
        views=result.views,
        blocks=max(result.heights.values(), default=0),
        evidence=len(result.evidence),
        log_hash=result.log_hash,
        seconds=time.process_time() - started_s,
    )


def play_all(
    seeds: range,
    processes: int = PROCESSES,
    play_one: Play = play,
    sizes: Sequence[int] = SIZES,
) -> Iterator[list[Outcome]]:
    """
    Run every seed with every number of validators.

    Args:
        play_one: runs one; a function of a module, because it is sent to other processes

    Yields:
        The outcomes of a few seeds at a time, in the order in which they are done.
    """
    chunks = [seeds[start : start + CHUNK_SEEDS] for start in range(0, len(seeds), CHUNK_SEEDS)]
    with ProcessPoolExecutor(processes) as pool:
        waiting = [pool.submit(_play_some, chunk, play_one, sizes) for chunk in chunks]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _play_some(seeds: range, play_one: Play, sizes: Sequence[int]) -> list[Outcome]:
    return [play_one(seed, n) for seed in seeds for n in sizes]
