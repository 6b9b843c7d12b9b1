"""How often a sender may ask: a bucket of tokens for each, bounded in number."""

from __future__ import annotations

from collections import OrderedDict


class RateLimit:
    """A bucket of tokens per sender, the longest silent forgotten first."""

    def __init__(self, burst: float, per_s: float, capacity: int) -> None:
        self._burst, self._per_s, self._capacity = burst, per_s, capacity
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, sender: str, now_s: float) -> bool:
        """Take a token of `sender`; False when there is none."""
        level, since_s = self._buckets.pop(sender, (self._burst, now_s))
        level = min(self._burst, level + (now_s - since_s) * self._per_s)
        admitted = level >= 1
        self._buckets[sender] = (level - 1 if admitted else level, now_s)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return admitted

    def give_back(self, sender: str) -> None:
        """Return a token that `admit` took for nothing that counts."""
        level, since_s = self._buckets.get(sender, (self._burst, 0.0))
        self._buckets[sender] = (min(self._burst, level + 1), since_s)
