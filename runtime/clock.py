"""
Clocks.

`SystemClock` is real time. `ScaledClock` follows a clock file that one process (the demo) writes
and all others read, so that every process of a run agrees on market time:

    {"segments": [[wall_s, market_ms, speed], …]}       speed: market seconds per real second

Market time is that of the last segment whose wall time has come. Appending a segment changes the
speed from then on and never makes market time step back.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

POLL_S = 0.02


class SystemClock:
    """Real time."""

    def now_ms(self) -> int:
        """UTC milliseconds."""
        return time.time_ns() // 1_000_000

    def wall_ms(self) -> int:
        """UTC milliseconds."""
        return time.time_ns() // 1_000_000

    @property
    def speed(self) -> float:
        """Real time passes at its own speed."""
        return 1.0

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def real_seconds_until(self, market_ms: int) -> float:
        """Seconds until `market_ms`."""
        return max(0.0, (market_ms - self.now_ms()) / 1000)

    async def sleep_until(self, market_ms: int) -> None:
        """Sleep in steps of a minute at most, so that a clock step is noticed."""
        while (left := self.real_seconds_until(market_ms)) > 0:
            await asyncio.sleep(min(left, 60.0))


class ScaledClock(SystemClock):
    """Market time as told by a clock file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = (0, 0)
        self._segments: list[tuple[float, int, float]] = []
        self._checked_s = 0.0
        self._reload()

    def now_ms(self) -> int:
        """Market time."""
        self._reload_if_due()
        wall_s = time.time()
        start_s, market_ms, speed = self._segment(wall_s)
        return market_ms + int((wall_s - start_s) * speed * 1000)

    @property
    def speed(self) -> float:
        """Market seconds per real second, now."""
        self._reload_if_due()
        return self._segment(time.time())[2]

    def real_seconds_until(self, market_ms: int) -> float:
        """Real seconds at the present speed."""
        return max(0.0, (market_ms - self.now_ms()) / 1000 / self.speed)

    async def sleep_until(self, market_ms: int) -> None:
        """Sleep in short steps, because the speed may change meanwhile."""
        while (left := self.real_seconds_until(market_ms)) > 0:
            await asyncio.sleep(min(left, 0.25))

    def _segment(self, wall_s: float) -> tuple[float, int, float]:
        current = self._segments[0]
        for segment in self._segments:
            if segment[0] <= wall_s:
                current = segment
        return current

    def _reload_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self._checked_s > POLL_S:
            self._checked_s = now_s
            self._reload()

    def _reload(self) -> None:
        info = self._path.stat()
        stamp = (info.st_mtime_ns, info.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            rows = json.loads(self._path.read_text())["segments"]
            self._segments = [(float(a), int(b), float(c)) for a, b, c in rows]


def write_clock(path: Path, segments: list[tuple[float, int, float]]) -> None:
    """Write a clock file in one step, so that no reader sees half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"segments": segments}))
    temporary.replace(path)


def clock_from_environment() -> SystemClock:
    """The clock named by HEARTHGRID_CLOCK (a clock file), else real time."""
    path = os.environ.get("HEARTHGRID_CLOCK")
    return ScaledClock(Path(path)) if path else SystemClock()
