"""The timetable: every phase of every slot, in market time, whatever the clock does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from pathlib import Path

import pytest
from support.patience import PATIENCE_S

from hem.ems.schedule import Phase, SlotTrigger, Timetable
from runtime.clock import ScaledClock, write_clock
from wire.slots import SlotGrid

GRID = SlotGrid(900)
START_MS = 1_780_272_000_000  # a slot's beginning
FIRST = GRID.slot_at(START_MS)


class Diary:
    """Writes down which phase fired for which slot, and when in market time."""

    def __init__(self, clock: ScaledClock) -> None:
        self._clock = clock
        self.rows: list[tuple[str, int, int]] = []

    def phase(self, name: str, offset_s: int) -> Phase:
        async def job(slot: int) -> None:
            self.rows.append((name, slot - FIRST, self._clock.now_ms() - START_MS))

        return Phase(name, offset_s, job)

    def slots(self, name: str) -> list[int]:
        return [slot for each, slot, _ in self.rows if each == name]


def clock_at(path: Path, speed: float, market_ms: int = START_MS - 450_000) -> ScaledClock:
    write_clock(path, [(time.time(), market_ms, speed)])
    return ScaledClock(path)


@contextlib.asynccontextmanager
async def running(clock, *phases):
    task = asyncio.create_task(Timetable(clock, GRID, list(phases)).run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_each_phase_fires_once_in_every_slot(tmp_path):
    clock = clock_at(tmp_path / "clock.json", 2_000.0)
    diary = Diary(clock)
    async with running(clock, diary.phase("close", 0), diary.phase("bid", 120)):
        await clock.sleep_until(START_MS + 3 * 900_000 + 450_000)
    assert diary.slots("close") == diary.slots("bid") == [0, 1, 2, 3]


async def test_a_phase_fires_at_its_offset_and_not_before(tmp_path):
    clock = clock_at(tmp_path / "clock.json", 1_000.0)
    diary = Diary(clock)
    async with running(clock, diary.phase("bid", 120)):
        await clock.sleep_until(START_MS + 900_000 + 450_000)
    assert len(diary.rows) == 2
    for _, slot, at_ms in diary.rows:
        late_ms = at_ms - slot * 900_000 - 120_000
        assert 0 <= late_ms < 225_000, f"slot {slot}: {late_ms} ms late"


async def test_a_change_of_speed_moves_jobs_that_wait_already(tmp_path):
    path = tmp_path / "clock.json"
    clock = clock_at(path, 1.0)
    diary = Diary(clock)
    async with running(clock, diary.phase("close", 0)):
        await asyncio.sleep(0.15)
        now_s, now_ms = time.time(), clock.now_ms()
        write_clock(path, [(now_s - 1, now_ms - 1_000, 1.0), (now_s, now_ms, 2_000.0)])
        await asyncio.sleep(0.05)
        await asyncio.wait_for(clock.sleep_until(START_MS + 2 * 900_000 + 450_000), PATIENCE_S)
    assert diary.slots("close") == [0, 1, 2]


async def test_a_jump_of_market_time_at_the_same_speed_is_noticed(tmp_path):
    path = tmp_path / "clock.json"
    clock = clock_at(path, 100.0)
    diary = Diary(clock)
    async with running(clock, diary.phase("close", 0)):
        await asyncio.sleep(0.15)
        write_clock(path, [(time.time(), START_MS + 9 * 900_000 + 885_000, 100.0)])
        await asyncio.sleep(0.6)
    assert diary.slots("close") == [10]


async def test_a_slow_job_does_not_hold_up_the_other_phases(tmp_path):
    clock = clock_at(tmp_path / "clock.json", 2_000.0)
    diary = Diary(clock)

    async def slow(_slot: int) -> None:
        await asyncio.sleep(60)

    async with running(clock, Phase("slow", 0, slow), diary.phase("bid", 120)):
        await clock.sleep_until(START_MS + 2 * 900_000 + 450_000)
    assert diary.slots("bid") == [0, 1, 2]


async def test_a_failing_job_fires_again_in_the_next_slot(tmp_path):
    clock = clock_at(tmp_path / "clock.json", 2_000.0)
    tries: Counter[int] = Counter()

    async def broken(slot: int) -> None:
        tries[slot - FIRST] += 1
        raise RuntimeError("no luck")

    async with running(clock, Phase("broken", 60, broken)):
        await clock.sleep_until(START_MS + 900_000 + 450_000)
    assert tries == {0: 1, 1: 1}


@pytest.mark.parametrize("offset_s", [0, 120, 780])
def test_the_trigger_answers_the_same_however_often_it_is_asked(tmp_path, offset_s):
    trigger = SlotTrigger(clock_at(tmp_path / "clock.json", 1.0), GRID, offset_s)
    answers = [trigger.get_next_fire_time(None, None).timestamp() for _ in range(5)]
    assert max(answers) - min(answers) < 0.1


async def test_a_timer_that_ends_early_waits_and_fires_once(tmp_path):
    """At 600 times real time a timer that ends 2 ms early is 1.2 s of market time early."""
    clock = clock_at(tmp_path / "clock.json", 100.0, START_MS + 900_000 - 5_000)
    diary = Diary(clock)
    phase = diary.phase("close", 0)
    timetable = Timetable(clock, GRID, [phase])
    await timetable._fire(phase)
    await timetable._fire(phase)
    ((_, slot, at_ms),) = diary.rows
    assert slot == 1
    assert at_ms >= 900_000
