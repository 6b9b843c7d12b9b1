"""
Devices that are heard in the background: one task talks on one connection after another, and a read
hands out the newest that came while it is young.

The first read begins it. When a connection ends, for whatever reason, the next begins after a pause
that doubles until something came again.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

RECONNECT_MIN_S = 0.5
RECONNECT_MAX_S = 10.0

T = TypeVar("T")


class BackgroundReader(ABC, Generic[T]):
    """
    Keeps the newest of what a device says.

    Args:
        age_s_max: what is older is not handed out [s]
        wait_s: how long a read waits when there is nothing young [s]
        monotonic_s: process time, for ages
    """

    def __init__(self, age_s_max: float, wait_s: float, monotonic_s: Callable[[], float]) -> None:
        self._age_s_max, self._wait_s = age_s_max, wait_s
        self._monotonic_s = monotonic_s
        self._task: asyncio.Task[None] | None = None
        self._came = asyncio.Event()
        self._newest: T | None = None
        self._newest_at_s = 0.0

    @abstractmethod
    async def _talk(self) -> None:
        """Hear one connection to its end; whatever it raises goes to `_lose`."""

    @abstractmethod
    def _lose(self, error: Exception) -> None:
        """Remember why a connection ended."""

    def close(self) -> None:
        """Stop hearing."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _begin(self) -> None:
        """Hear from now on, if that has not begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _wait(self) -> None:
        """A moment for something to come."""
        self._came.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                await self._came.wait()

    def _keep(self, newest: T) -> None:
        self._newest, self._newest_at_s = newest, self._monotonic_s()

    def _is_young(self) -> bool:
        age_s = self._monotonic_s() - self._newest_at_s
        return self._newest is not None and age_s <= self._age_s_max

    async def _run(self) -> None:
        pause_s = RECONNECT_MIN_S
        while True:
            newest = self._newest
            try:
                await self._talk()
            except Exception as error:  # whatever the line does, the reader comes back
                self._lose(error)
            if self._newest is not newest:
                pause_s = RECONNECT_MIN_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)
