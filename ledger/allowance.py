"""How often somebody may ask: a token bucket for each asker."""

from __future__ import annotations

from collections import OrderedDict

MAX_ASKERS = 1024


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
        left, since_s = self._left.pop(asker, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since_s) * self._per_s)
        granted = left >= cost
        self._left[asker] = (left - cost if granted else left, now_s)
        if len(self._left) > MAX_ASKERS:
            self._left.popitem(last=False)
        return 0.0 if granted else (cost - left) / self._per_s
