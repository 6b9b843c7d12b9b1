"""How often somebody may ask: a token bucket for each asker."""

from __future__ import annotations

from collections import OrderedDict

MAX_ASKERS = 4096


class Allowance:
    """
    Token buckets by name.

    Args:
        per_s: tokens that come back in a second
        burst: tokens of a full bucket
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, asker: str, cost: float, now_s: float) -> float:
        """
        Take `cost` tokens at time `now_s` [s, never going back].

        Returns:
            0 when they were there, else the seconds after which they will be.
        """
        left = self._fill(asker, now_s)
        granted = left >= cost
        if granted:
            self._left[asker] = (left - cost, now_s)
        return 0.0 if granted else (cost - left) / self._per_s

    def owe(self, asker: str, cost: float, now_s: float) -> None:
        """Take what turned out to be the cost, below zero if need be."""
        self._left[asker] = (self._fill(asker, now_s) - cost, now_s)

    def owed_s(self, asker: str, now_s: float) -> float:
        """Seconds until there is no debt; 0 without one."""
        return max(0.0, -self._fill(asker, now_s) / self._per_s)

    def _fill(self, asker: str, now_s: float) -> float:
        """Let come back what has; tokens that are there."""
        left, since_s = self._left.pop(asker, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since_s) * self._per_s)
        self._left[asker] = (left, now_s)
        if len(self._left) > MAX_ASKERS:
            self._left.popitem(last=False)
        return left
