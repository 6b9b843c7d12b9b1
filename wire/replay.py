"""The replay guard: remembers each (sender, reqId) until its message would have expired anyway."""

from __future__ import annotations

from collections import OrderedDict


class ReplayGuard:
    """
    Bounded memory of seen messages.

    `keep_ms` must be at least as long as the receiver takes a message for fresh: `max_age_ms +
    max_ahead_ms` and the second that dates leave out. When `capacity` is reached new messages are
    refused, rather than old ones forgotten: forgetting would let a flood reopen the door.
    """

    def __init__(self, keep_ms: int, capacity: int = 100_000) -> None:
        self.keep_ms = keep_ms
        self._capacity = capacity
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()

    def admit(self, sender: str, req_id: str, now_ms: int) -> bool:
        """Remember a message; False when it was seen before or the guard is full."""
        horizon = now_ms - self.keep_ms
        while self._seen:
            oldest, seen_ms = next(iter(self._seen.items()))
            if seen_ms >= horizon:
                break
            del self._seen[oldest]
        key = (sender, req_id)
        if key in self._seen or len(self._seen) >= self._capacity:
            return False
        self._seen[key] = now_ms
        return True
