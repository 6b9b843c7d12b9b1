"""
Who validates next: a pure function of who does, who wants to, and a lot.

The set of epoch e + 2 is made at the seal of epoch e from the set of epoch e + 1, by a bounded
number of steps (Σ joins + removals ≤ max(1, ⌊(n−1)/3⌋), "churn"), in this order:

1. **removals**: the banned, then those who leave, then joined validators of a controller that has
   more votes than f since others left. A set of four or more never falls below four, where f is
   still 1; a smaller one never below one. Who cannot be removed yet waits (a banned one does not
   lead meanwhile, `ledger.poe`).
2. **joins**: candidates, who has waited longest first, while there is room and their controller
   stays within f votes (one at least).
3. **rotation**: a full set with candidates waiting gives one seat to the next of them, that of the
   member who has served longest.

Between equals the lot decides, H(seed ‖ identity). Slow change keeps most of a quorum known to
whoever knew the set before, and leaves time to see an attack by joining. Source: ledger.md §4.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

SAFE_SIZE = 4
"""The least number of validators of which one may be Byzantine."""


class Status(StrEnum):
    """What a validator is or wants to be."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    LEAVING = "leaving"
    BANNED = "banned"


@dataclass(frozen=True, slots=True)
class Standing:
    """A known validator."""

    controller: str
    status: str
    since_epoch: int
    """First epoch of its present service; of a candidate, since when it waits."""
    founder: bool = False
    """Named in the genesis: not subject to the limit of votes per controller."""


def faults(n: int) -> int:
    """f: how many of n may be Byzantine."""
    return (n - 1) // 3


def churn_limit(n: int) -> int:
    """Joins and removals together in one step; sets too small to have an f change one by one."""
    return max(1, faults(n))


def least_size(n: int) -> int:
    """What a set of n is never reduced below."""
    return SAFE_SIZE if n >= SAFE_SIZE else 1


def votes_allowed(n: int) -> int:
    """Votes of one controller that may join a set, which then has n members."""
    return max(1, faults(n))


def lot(seed: bytes, validator: str) -> bytes:
    """Smallest first."""
    return hashlib.sha256(seed + validator.encode()).digest()


def next_members(
    current: Sequence[str], known: Mapping[str, Standing], seed: bytes, max_validators: int
) -> tuple[str, ...]:
    """
    The next set.

    Args:
        current: identities of the set before, in the order of their indexes
        known: everybody; a member that is not in it is taken for leaving
        seed: of the lots
        max_validators: size of a full set

    Returns:
        Identities; who stays keeps its place, who joins comes last.
    """
    return _Step(current, known, seed, max_validators).run()


class _Step:
    """One step, with the changes that are left to make."""

    def __init__(
        self, current: Sequence[str], known: Mapping[str, Standing], seed: bytes, most: int
    ) -> None:
        self._members = list(current)
        self._known = known
        self._seed = seed
        self._most = most
        self._least = least_size(len(current))
        self._left = churn_limit(len(current))
        self._waiting = sorted(
            (
                name
                for name, one in known.items()
                if one.status == Status.CANDIDATE and name not in self._members
            ),
            key=self._age,
        )

    def run(self) -> tuple[str, ...]:
        for status in (Status.BANNED, Status.LEAVING):
            for name in sorted(self._with(status), key=self._lot):
                self._remove(name)
        while (crowded := self._crowded()) is not None and self._remove(crowded):
            pass
        while len(self._members) < self._most and self._left and self._join():
            pass
        if len(self._members) >= self._most and self._left >= 2:
            self._rotate()
        return tuple(self._members)

    def _remove(self, name: str) -> bool:
        if self._left < 1 or len(self._members) <= self._least:
            return False
        self._members.remove(name)
        self._left -= 1
        return True

    def _join(self) -> bool:
        """Seat the first candidate whose controller has room for another vote."""
        votes = self._votes()
        allowed = votes_allowed(len(self._members) + 1)
        for name in self._waiting:
            if votes[self._known[name].controller] < allowed:
                self._waiting.remove(name)
                self._members.append(name)
                self._left -= 1
                return True
        return False

    def _rotate(self) -> None:
        serving = [name for name in self._members if self._status(name) == Status.ACTIVE]
        if not serving:
            return
        longest = min(serving, key=self._age)
        place = self._members.index(longest)
        self._members.remove(longest)
        if self._join():
            self._left -= 1
        else:
            self._members.insert(place, longest)

    def _crowded(self) -> str | None:
        """The newest joined member of a controller with more votes than are allowed now."""
        votes, allowed = self._votes(), votes_allowed(len(self._members))
        crowded = [
            name
            for name in self._members
            if self._status(name) == Status.ACTIVE
            and not self._known[name].founder
            and votes[self._known[name].controller] > allowed
        ]
        return max(crowded, key=self._age, default=None)

    def _with(self, status: Status) -> list[str]:
        return [name for name in self._members if self._status(name) == status]

    def _status(self, name: str) -> str:
        one = self._known.get(name)
        return Status.LEAVING if one is None else one.status

    def _votes(self) -> Counter[str]:
        return Counter(
            self._known[name].controller for name in self._members if name in self._known
        )

    def _age(self, name: str) -> tuple[int, bytes]:
        """The oldest first; between equals the lot."""
        return self._known[name].since_epoch, self._lot(name)

    def _lot(self, name: str) -> bytes:
        return lot(self._seed, name)
