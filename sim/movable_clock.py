"""Market time that is moved at will, for a market that is played rather than lived through."""

from __future__ import annotations

import asyncio
import time

LONGEST_SLEEP_S = 0.05
"""Whoever waits for a market time looks again so soon: it may be moved there at any moment."""


class MovableClock:
    """
    Real time from a market time on, until it is moved.

    Args:
        market_ms: what it is now
    """

    speed = 1.0

    def __init__(self, market_ms: int) -> None:
        self._ahead_ms = 0
        self.move_to(market_ms)

    def now_ms(self) -> int:
        """Market time."""
        return self.wall_ms() + self._ahead_ms

    def move_to(self, market_ms: int) -> None:
        """Make it `market_ms` now."""
        self._ahead_ms = market_ms - self.wall_ms()

    def wall_ms(self) -> int:
        """UTC milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def real_seconds_until(self, market_ms: int) -> float:
        """How long to sleep before looking again."""
        return min(LONGEST_SLEEP_S, max(0.0, (market_ms - self.now_ms()) / 1000))

    async def sleep_until(self, market_ms: int) -> None:
        """Wait until it is `market_ms`, however it comes to be."""
        while (left_s := self.real_seconds_until(market_ms)) > 0:
            await asyncio.sleep(left_s)
