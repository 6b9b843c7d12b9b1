"""
The attack: score who may be whom, assign, go on with what was believed.

A score is a weighted sum of clues; the weights of each attack are learned on a month of another
seed whose truth is known (`learn`), which is the strongest attacker that an outsider can be. Two
questions are asked of every attack:

- `foretell`: the attacker knows the truth up to a boundary and links the next period (a neighbour
  who knows one home's address today: does it still know tomorrow?);
- `follow`: it knows nothing and makes chains of addresses over the whole month by itself.

A market of N homes has one address a home and period, so linking is an assignment (Kuhn, 1955).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import (  # type: ignore[import-untyped]
    linear_sum_assignment,
    minimize,
)

from sim import linkage_clues, linkage_cpf
from sim.linkage_past import Past
from sim.linkage_tracks import COLUMNS, Batch, Floats, Reading, batches

CPF_WINDOW = 8
RIDGE = 1e-3
KINDS = ("amounts", "contracts", "timing", "orders", "money", "grant", "cpf", "address")
ATTACKS: Mapping[str, tuple[str, ...]] = {
    "amounts": ("amounts",),
    "settled": ("amounts", "contracts"),
    "market": ("amounts", "contracts", "orders"),
    "timing": ("timing",),
    "orders": ("orders",),
    "money": ("money",),
    "grant": ("grant",),
    "cpf": ("cpf",),
    "combined": KINDS,
}
"""Each attack's kinds of clues; the first three are baselines (docs/concepts/privacy.md)."""
Belief = dict[int, int]
"""Home (or cluster) → segment of a period."""


@dataclass(frozen=True, slots=True)
class Step:
    """A period as the attacker sees it: distances of each kind, and the cpf's roughness."""

    batch: Batch
    clues: dict[str, Floats]
    """By kind: (homes, segments, clues)."""
    rough: Floats


@dataclass(slots=True)
class Weights:
    """What was learned: by attack, a weight for each clue of its kinds."""

    period: int
    of: dict[str, Floats] = field(default_factory=dict)


def learn(
    reading: Reading, owner: Mapping[str, str], period: int, attacks: Sequence[str]
) -> Weights:
    """
    Learn the weights of some attacks from a month whose truth is known.

    Softmax regression over the segments that a home might have gone on with, and over the homes
    that a segment might be of.

    Args:
        owner: address → home
        period: slots
    """
    past = _known_past(reading, owner, period, _kinds(attacks))
    steps = [(step, known) for step, known in past if len(known) > 1]
    weights = Weights(period)
    for attack in attacks:
        cases = [_case(_matrix(step, attack), known) for step, known in steps[1:]]
        weights.of[attack] = _fit([case for case in cases if case is not None])
    return weights


def foretell(
    reading: Reading, owner: Mapping[str, str], weights: Weights, every: int = 1
) -> dict[str, list[tuple[int, float]]]:
    """
    Link each period to a past that is known.

    Args:
        every: only the periods that begin at a multiple of so many slots

    Returns:
        By attack: (first slot, share of homes rightly linked) of each period but the first.
    """
    found: dict[str, list[tuple[int, float]]] = {attack: [] for attack in weights.of}
    steps = _known_past(reading, owner, weights.period, _kinds(weights.of))
    for number, (step, known) in enumerate(steps):
        if number == 0 or not known or step.batch.first_slot % every:
            continue
        for attack, weight in weights.of.items():
            belief = _assign(_matrix(step, attack) @ weight)
            right = sum(belief.get(home) == segment for home, segment in known.items())
            found[attack].append((step.batch.first_slot, right / len(known)))
    return found


def follow(reading: Reading, weights: Weights, attack: str) -> Iterator[tuple[Batch, Belief]]:
    """
    Chain addresses into clusters from the first period on, with nothing known.

    Yields:
        Each period's segments, and which cluster each is put into.
    """
    every = list(batches(reading, weights.period))
    # homes may come later: there is a cluster for each that was ever there at once
    past = Past(max((len(one.addresses) for one in every), default=0), len(reading.cpf_q16))
    for batch in every:
        step = look(past, batch, reading, ATTACKS[attack])
        belief = _assign(_matrix(step, attack) @ weights.of[attack])
        past.take(batch, belief, step.rough)
        yield batch, belief


def guess(reading: Reading, period: int, seed: int = 1) -> Iterator[tuple[Batch, Belief]]:
    """Chains by lot, as `follow` yields them: the chance that clusters match homes by luck."""
    rng = np.random.default_rng(seed)
    for batch in batches(reading, period):
        lots = rng.permutation(len(batch.addresses)).tolist()
        yield batch, dict(enumerate(lots))


def look(past: Past, batch: Batch, reading: Reading, kinds: Sequence[str]) -> Step:
    """All clues of some kinds about a period."""
    rough = (
        linkage_cpf.roughness(past, batch, reading, CPF_WINDOW)
        if "cpf" in kinds
        else np.zeros((len(past.last), len(batch.addresses), len(reading.cpf_q16)))
    )
    place = COLUMNS.index("validator")
    named = (past.last[:, place][:, None] != batch.columns[:, place][None, :]).astype(float)
    makers: dict[str, Callable[[], list[Floats]]] = {
        "amounts": lambda: linkage_clues.amounts(past, batch),
        "contracts": lambda: linkage_clues.contracts(past, batch),
        "timing": lambda: linkage_clues.timing(past, batch),
        "orders": lambda: linkage_clues.orders(past, batch),
        "money": lambda: linkage_clues.money(past, batch),
        "grant": lambda: linkage_clues.grant(past, batch),
        "address": lambda: linkage_clues.address(past, batch),
        "cpf": lambda: linkage_cpf.clues(past, rough, named),
    }
    clues = {kind: np.stack(makers[kind](), axis=2) for kind in kinds}
    return Step(batch, clues, rough)


def _known_past(
    reading: Reading, owner: Mapping[str, str], period: int, kinds: Sequence[str]
) -> Iterator[tuple[Step, Belief]]:
    """Each period's clues against the true past, and the truth of it: home → segment."""
    homes = sorted({owner[address] for address in reading.tracks if address in owner})
    numbers = {home: number for number, home in enumerate(homes)}
    past = Past(len(homes), len(reading.cpf_q16))
    for batch in batches(reading, period):
        known = {
            numbers[owner[address]]: segment
            for segment, address in enumerate(batch.addresses)
            if address in owner
        }
        step = look(past, batch, reading, kinds)
        yield step, known
        past.take(batch, known, step.rough)


def _kinds(attacks: Iterable[str]) -> tuple[str, ...]:
    """Of clues that some attacks need."""
    return tuple(kind for kind in KINDS if any(kind in ATTACKS[name] for name in attacks))


def _matrix(step: Step, attack: str) -> Floats:
    """(homes, segments, clues) of an attack."""
    return np.concatenate([step.clues[kind] for kind in ATTACKS[attack]], axis=2)


def _assign(costs: Floats) -> Belief:
    """The assignment of least cost."""
    homes, segments = linear_sum_assignment(costs)
    return dict(zip(homes.tolist(), segments.tolist(), strict=True))


def _case(clues: Floats, known: Belief) -> Floats | None:
    """The clues with homes and segments in the order in which they belong together."""
    homes, segments = list(known), list(known.values())
    return clues[np.ix_(homes, segments)]


def _fit(cases: list[Floats]) -> Floats:
    count = cases[0].shape[2]

    def loss(weight: Floats) -> tuple[float, Floats]:
        total, slope, rows = 0.0, np.zeros(count), 0
        for clues in cases:
            scores = -(clues @ weight)
            right = clues[np.arange(len(clues)), np.arange(len(clues))]
            for axis in (0, 1):
                shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
                share = shifted / shifted.sum(axis=axis, keepdims=True)
                total -= float(np.log(np.maximum(np.diag(share), 1e-300)).sum())
                slope += right.sum(axis=0) - (share[:, :, None] * clues).sum(axis=(0, 1))
            rows += 2 * len(clues)
        return (
            total / rows + RIDGE * float(weight @ weight),
            slope / rows + 2 * RIDGE * weight,
        )

    fitted: Floats = minimize(loss, np.full(count, 0.1), jac=True, method="L-BFGS-B").x
    return fitted
