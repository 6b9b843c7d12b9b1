"""
The home's timetable on APScheduler: jobs at fixed phases of every slot, in market time.

`SlotTrigger` maps market time to real time through the clock. When the clock's speed changes (a
sped-up run begins) the jobs are put on the timetable anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from runtime.ports import Clock
from wire.slots import SlotGrid

MISFIRE_GRACE_S = 30
WATCH_S = 0.1

Job = Callable[[int], Awaitable[None]]
"""Called with the slot in which it fires."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A job and when it fires: so many seconds of market time after each slot's start."""

    name: str
    offset_s: int
    job: Job


class SlotTrigger(BaseTrigger):  # type: ignore[misc]
    """Fires once per slot, `offset_s` after its start; a slot that was missed is not made up."""

    def __init__(self, clock: Clock, grid: SlotGrid, offset_s: int) -> None:
        self._clock, self._grid, self._offset_ms = clock, grid, offset_s * 1000
        self._last_slot = -1

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The real time of the next firing."""
        slot = self._grid.slot_at(self._clock.now_ms() - self._offset_ms) + 1
        # a timer that ended a little early must not fire again for the same slot
        self._last_slot = max(slot, self._last_slot + 1)
        due_ms = self._grid.start_ms(self._last_slot) + self._offset_ms
        return datetime.now(UTC) + timedelta(seconds=self._clock.real_seconds_until(due_ms))


class Timetable:
    """Runs phases until stopped."""

    def __init__(self, clock: Clock, grid: SlotGrid, phases: list[Phase]) -> None:
        self._clock, self._grid, self._phases = clock, grid, phases
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    async def run(self) -> None:
        """Keep the timetable right; cancel to stop."""
        self._scheduler.start()
        speed = 0.0
        try:
            while True:
                if self._clock.speed != speed:
                    speed = self._clock.speed
                    self._plan()
                await asyncio.sleep(WATCH_S)
        finally:
            self._scheduler.shutdown(wait=False)

    def _plan(self) -> None:
        for phase in self._phases:
            trigger = SlotTrigger(self._clock, self._grid, phase.offset_s)
            self._scheduler.add_job(
                self._fire,
                trigger,
                args=(phase,),
                id=phase.name,
                replace_existing=True,
                misfire_grace_time=MISFIRE_GRACE_S,
                coalesce=True,
                max_instances=2,
            )

    async def _fire(self, phase: Phase) -> None:
        # a quarter of a slot of tolerance: a timer may end a little early, and then is still right
        tolerance_ms = self._grid.length_s * 250
        slot = self._grid.slot_at(self._clock.now_ms() - phase.offset_s * 1000 + tolerance_ms)
        await phase.job(slot)
