"""
The home's timetable on APScheduler: jobs at fixed phases of every slot, in market time.

`SlotTrigger` maps market time to real time through the clock. When market time does not run as it
did when the jobs were planned (a sped-up run begins, somebody sets the clock), they are planned
anew. Where the clock was set back a slot is lived twice, and a job fires in it once: what was bid
for is not bid for again.
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
"""APScheduler drops jobs that are 1 s late unless told otherwise; each job knows its deadline."""
WATCH_S = 0.1
JOB_MIN_S = 120.0
"""No job is called hung before it has run so long [real s]."""
STEP_S = 0.5
"""Real seconds by which market time may stray from plan before the jobs are planned anew."""
FIRED_KEPT = 400
"""How many firings of a phase are remembered: four days of quarter hours."""

Job = Callable[[int], Awaitable[None]]
"""Called with the slot in which it fires."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A job and when it fires: so many seconds of market time after each slot's start."""

    name: str
    offset_s: int
    job: Job
    again: bool = False
    """It fires again in a slot that is lived twice, because the clock was set back."""


class SlotTrigger(BaseTrigger):  # type: ignore[misc]
    """
    Fires once per slot, `offset_s` after its start; a slot that was missed is not made up.

    APScheduler asks twice for each firing, so the answer must not depend on how often it asks.
    """

    def __init__(self, clock: Clock, grid: SlotGrid, offset_s: int) -> None:
        self._clock, self._grid, self._offset_ms = clock, grid, offset_s * 1000

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The real time of the next firing."""
        slot = self._grid.slot_at(self._clock.now_ms() - self._offset_ms) + 1
        due_ms = self._grid.start_ms(slot) + self._offset_ms
        return datetime.now(UTC) + timedelta(seconds=self._clock.real_seconds_until(due_ms))


class Timetable:
    """
    Runs phases until stopped.

    Args:
        beat: called again and again, unless a job runs for longer than any should
    """

    def __init__(
        self,
        clock: Clock,
        grid: SlotGrid,
        phases: list[Phase],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock, self._grid, self._phases = clock, grid, phases
        self._beat = beat
        self._running: dict[int, float] = {}
        self._number = 0
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._fired: dict[str, dict[int, None]] = {}
        """The slots in which a phase fired, the latest firing last."""

    async def run(self) -> None:
        """Keep the timetable right; cancel to stop."""
        self._scheduler.start()
        clock = self._clock
        try:
            while True:
                self._plan()
                speed, planned_ms, planned_s = clock.speed, clock.now_ms(), clock.monotonic_s()
                while clock.speed == speed:
                    expected_ms = planned_ms + (clock.monotonic_s() - planned_s) * speed * 1000
                    if abs(clock.now_ms() - expected_ms) > STEP_S * speed * 1000:
                        break
                    if not self._overdue():
                        self._beat()
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
        # a quarter of a slot of tolerance: a timer may end a little early
        tolerance_ms = self._grid.length_s * 250
        slot = self._grid.slot_at(self._clock.now_ms() - phase.offset_s * 1000 + tolerance_ms)
        if not self._is_new(phase, slot):
            return
        # the meter refuses to close a slot that lacks a millisecond
        await self._clock.sleep_until(self._grid.start_ms(slot) + phase.offset_s * 1000)
        number = self._number = self._number + 1
        self._running[number] = self._clock.monotonic_s()
        try:
            await phase.job(slot)
        finally:
            del self._running[number]

    def _is_new(self, phase: Phase, slot: int) -> bool:
        """Whether a phase may fire in a slot; notes that it did."""
        fired = self._fired.setdefault(phase.name, {})
        if next(reversed(fired), None) == slot:
            return False  # the timer ended early and was set again for the same moment
        if slot in fired:
            if not phase.again:
                return False
            del fired[slot]
        fired[slot] = None
        if len(fired) > FIRED_KEPT:
            del fired[next(iter(fired))]
        return True

    def _overdue(self) -> bool:
        """A job has run for longer than two slots: it hangs."""
        longest_s = max(JOB_MIN_S, 2 * self._grid.length_s / self._clock.speed)
        now_s = self._clock.monotonic_s()
        return any(now_s - began_s > longest_s for began_s in self._running.values())
