"""The replay guard: remembers each (sender, reqId) until its message would have expired anyway."""

from __future__ import annotations

from collections import Counter, OrderedDict


class ReplayGuard:
    """
    Bounded memory of seen messages.

    `keep_ms` must be at least as long as the receiver takes a message for fresh: `max_age_ms +
    max_ahead_ms` and the second that dates leave out. When `capacity` is reached new messages are
    refused, rather than old ones forgotten: forgetting would let a flood reopen the door. So that
    no sender takes the others' room, each has `per_sender` of it at most.
    """

    def __init__(
        self, keep_ms: int, capacity: int = 100_000, per_sender: int | None = None
    ) -> None:
        self.keep_ms = keep_ms
        self._capacity = capacity
        self._per_sender = capacity if per_sender is None else per_sender
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._held: Counter[str] = Counter()

    def admit(self, sender: str, req_id: str, now_ms: int) -> bool:
        """Remember a message; False when it was seen before or there is no room for it."""
        self._forget(now_ms - self.keep_ms)
        key = (sender, req_id)
        if key in self._seen or len(self._seen) >= self._capacity:
            return False
        if self._held.get(sender, 0) >= self._per_sender:
            return False
        self._seen[key] = now_ms
        self._held[sender] += 1
        return True

    def has_room(self, sender: str, now_ms: int) -> bool:
        """Whether a new message of this sender could be remembered."""
        self._forget(now_ms - self.keep_ms)
        return len(self._seen) < self._capacity and self._held.get(sender, 0) < self._per_sender

    def _forget(self, horizon_ms: int) -> None:
        while self._seen:
            oldest, seen_ms = next(iter(self._seen.items()))
            if seen_ms >= horizon_ms:
                break
            del self._seen[oldest]
            self._held[oldest[0]] -= 1
            if not self._held[oldest[0]]:
                del self._held[oldest[0]]
