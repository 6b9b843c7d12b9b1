"""
Store-and-forward for sealed readings: kept until the broker has taken them, sent in order.

A reading enters durably before anything else is done with it, leaves when the broker acknowledged
it, and may be sent twice (the DSO knows a reading by its meter and sequence number).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from runtime.ports import Bus, BusDownError, Store

RETRY_S = 1.0
IDLE_S = 30.0


class ReadingOutbox:
    """
    Sealed readings on their way to the DSO.

    Args:
        store: kept between starts (synchronous=FULL)
        bus: the participant's lane
        topic: `hem/<id>/reading`
        beat: called whenever the sending loop comes round
    """

    def __init__(
        self, store: Store, bus: Bus, topic: str, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._store, self._bus, self._topic, self._beat = store, bus, topic, beat
        self._changed = asyncio.Event()

    def add(self, slot: int, sealed: bytes) -> None:
        """Take in the reading at the end of a slot; durable when this returns."""
        with self._store.atomic():
            self._store.put(f"reading/{slot:012d}", sealed)
        self._changed.set()

    @property
    def waiting(self) -> int:
        """Readings that the broker does not have yet."""
        return sum(1 for _ in self._store.scan("reading/"))

    async def run(self) -> None:
        """Send for ever, oldest first; cancel to stop."""
        while True:
            self._changed.clear()
            self._beat()
            for key, sealed in list(self._store.scan("reading/")):
                self._beat()
                try:
                    await self._bus.publish(self._topic, sealed)
                except BusDownError:
                    await asyncio.sleep(RETRY_S)
                    self._changed.set()
                    break
                with self._store.atomic():
                    self._store.delete(key)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._changed.wait()
