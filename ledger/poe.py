"""
Proof of Energy: who leads, from how well homes use their own energy.

TMI (Siano et al. 2019) elects the next block's generator by its consumption-production function,
eq. 9: CPF = 1 / e^|P − C|, the validator with the CPF closest to 1 leading. Taken literally, on
watt-hours, it does not elect anybody: exp(−2000) is below every float, so all homes tie at zero,
and a vacant house (P = C = 0) has CPF 1 and leads almost always. Therefore, over a window of slots,

    net = import − export = C − P,   I = Σ|net|,   E = Σ max(P, C, 0)
    CPF_q16 = ⌊65536 · exp(−κ · I / E)⌋

Dividing by the energy turned over makes the exponent a ratio: the unit no longer matters, a large
home and a small one compare, and κ says how steep the punishment is. Eligibility asks for a least
turnover and a least production, which a vacant house does not have (`wire.cpf` computes both).

TMI lets the best home lead and trusts hardware against forks. Here CPF only orders the leaders; a
quorum of votes makes blocks final (`ledger.simplex`). Mode `smooth` is weighted round robin over
weight = base + CPF_q16: the first leader of an epoch is TMI's, the later turns are shared in
proportion. Mode `strict` orders by CPF alone.

One controller's validators together get at most a quarter of the turns, or twice an equal share
where a quarter is less than that: among four controllers a quarter each would leave nothing for the
CPF to decide.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ledger.genesis import Poe
from ledger.types import schedule_hash as schedule_root
from wire.cpf import Q16, cpf_q16, turnover

__all__ = [
    "Q16",
    "Candidate",
    "Eligibility",
    "Ineligible",
    "Window",
    "build_schedule",
    "cpf_q16",
    "leader_order",
    "limit_controllers",
    "schedule_root",
    "schedule_seed",
    "smooth_order",
]

_SEED_LABEL = b"hearthgrid-lots-v1\0"
TURNS_PER_VALIDATOR = 4
"""Least length of a smooth schedule, per validator."""
MAX_TURNS_PER_VALIDATOR = 64
CONTROLLER_SHARE = (1, 4)
"""Numerator and denominator of the turns one controller may have."""


class Ineligible(StrEnum):
    """Why a home's CPF does not count."""

    GAP = "GAP"
    """A reading of the window is missing."""
    TOO_LITTLE_ENERGY = "TOO_LITTLE_ENERGY"
    TOO_LITTLE_PRODUCTION = "TOO_LITTLE_PRODUCTION"
    BANNED = "BANNED"


@dataclass(frozen=True, slots=True)
class Window:
    """A home's closed slots, one number per slot, None where a reading is missing."""

    nets_wh: Sequence[int | None]
    """Import − export [Wh]."""
    generations_wh: Sequence[int | None]
    """Generation [Wh]."""


@dataclass(frozen=True, slots=True)
class Eligibility:
    """The conditions under which a CPF counts."""

    min_energy_wh: int
    """Least E = Σ max(P, C, 0) over the window."""
    min_production_wh: int
    """Least ΣP over the window."""

    def refusal(self, window: Window, *, banned: bool = False) -> Ineligible | None:
        """Why this home may not count, or None."""
        if banned:
            return Ineligible.BANNED
        nets_wh = [net for net in window.nets_wh if net is not None]
        generations_wh = [made for made in window.generations_wh if made is not None]
        if not len(window.nets_wh) == len(nets_wh) == len(generations_wh) or not nets_wh:
            return Ineligible.GAP
        if turnover(nets_wh, generations_wh) < self.min_energy_wh:
            return Ineligible.TOO_LITTLE_ENERGY
        if sum(generations_wh) < self.min_production_wh:
            return Ineligible.TOO_LITTLE_PRODUCTION
        return None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A validator as the schedule sees it."""

    id: str
    controller: str
    cpf_q16: int
    """0 when it is not eligible."""
    banned: bool = False
    """It votes until it has left the set, but it does not lead."""


def schedule_seed(seed: bytes, base_height: int) -> bytes:
    """The seed of an epoch's lots, from the chain's (`ledger.contracts.seed`)."""
    return hashlib.sha256(_SEED_LABEL + seed + base_height.to_bytes(8, "big")).digest()


def build_schedule(poe: Poe, candidates: Sequence[Candidate], seed: bytes) -> tuple[int, ...]:
    """
    The order of leaders for an epoch.

    Args:
        poe: the rules of the genesis
        candidates: the epoch's validators in the order of their indexes
        seed: breaks ties; see `schedule_seed`

    Returns:
        Indexes of validators; everyone who is not banned has a turn.
    """
    return leader_order(candidates, poe.base, poe.mode, seed)


def leader_order(
    candidates: Sequence[Candidate], base: int, mode: str, seed: bytes
) -> tuple[int, ...]:
    """
    As `build_schedule`, from the rules' parts. Were all banned, all would lead: somebody has to.

    Args:
        candidates: the validators in the order of their indexes
        base: weight everybody has beside the CPF
        mode: "smooth" or "strict"
        seed: breaks ties by the smallest H(seed ‖ identity)
    """
    leading = [i for i, one in enumerate(candidates) if not one.banned]
    leading = leading or list(range(len(candidates)))
    order = _order([candidates[i] for i in leading], base, mode, seed)
    assert set(order) == set(range(len(leading))), "every validator gets a turn"
    return tuple(leading[i] for i in order)


def _order(candidates: Sequence[Candidate], base: int, mode: str, seed: bytes) -> tuple[int, ...]:
    lots = [hashlib.sha256(seed + one.id.encode()).digest() for one in candidates]
    if mode == "strict":
        return tuple(
            sorted(range(len(candidates)), key=lambda i: (-candidates[i].cpf_q16, lots[i]))
        )
    weights = [base + one.cpf_q16 for one in candidates]
    weights = limit_controllers(weights, [one.controller for one in candidates])
    return smooth_order(weights, lots)


def smooth_order(weights: Sequence[int], lots: Sequence[bytes]) -> tuple[int, ...]:
    """
    Smooth weighted round robin, started at A = w.

    The largest A takes the turn and pays the sum of all weights; then everybody gains its weight.
    It goes on until everybody had a turn. Whoever is too light to have one in reasonable time has
    it at the end.

    Args:
        weights: one for each validator, positive
        lots: the smaller one wins a tie
    """
    n, total = len(weights), sum(weights)
    credit = list(weights)
    order: list[int] = []
    waiting = set(range(n))
    while len(order) < TURNS_PER_VALIDATOR * n or (
        waiting and len(order) < MAX_TURNS_PER_VALIDATOR * n
    ):
        turn = min(range(n), key=lambda i: (-credit[i], lots[i]))
        order.append(turn)
        waiting.discard(turn)
        credit[turn] -= total
        credit = [one + weight for one, weight in zip(credit, weights, strict=True)]
    return (*order, *sorted(waiting, key=lambda i: (-weights[i], lots[i])))


def limit_controllers(weights: Sequence[int], controllers: Sequence[str]) -> list[int]:
    """
    Scale down the validators of controllers that have too large a share.

    Args:
        weights: one for each validator
        controllers: who runs it

    Returns:
        Weights of at least 1, in the same order.
    """
    scaled = [max(1, weight) for weight in weights]
    members: dict[str, list[int]] = defaultdict(list)
    for index, controller in enumerate(controllers):
        members[controller].append(index)
    top, bottom = CONTROLLER_SHARE
    if 2 * bottom > top * len(members):
        top, bottom = 2, len(members)
    if top >= bottom:
        return scaled
    # Scaling one down raises the share of the others, so once round is not enough; each round
    # settles at least one controller.
    for _ in members:
        for group in members.values():
            weight = sum(scaled[index] for index in group)
            rest = sum(scaled) - weight
            allowed = rest * top // (bottom - top)
            if weight > allowed:
                for index in group:
                    scaled[index] = max(1, scaled[index] * allowed // weight)
    return scaled
