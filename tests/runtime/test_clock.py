"""Clocks: market time is agreed through a file and never steps back; seeds repeat."""

import asyncio
import time

import pytest

from runtime.clock import ScaledClock, SystemClock, clock_from_environment, write_clock
from runtime.rng import SeededRng, SystemRng

MARKET_MS = 1_780_315_200_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clock.json"


def test_real_time_is_utc_and_monotonic_time_never_goes_back():
    clock = SystemClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 1_000
    assert abs(clock.wall_ms() - clock.now_ms()) < 1_000
    assert clock.monotonic_s() <= clock.monotonic_s()
    assert clock.real_seconds_until(clock.now_ms() - 5_000) == 0.0


def test_market_time_runs_at_the_speed_of_its_segment(path):
    now_s = time.time()
    write_clock(path, [(now_s - 2.0, MARKET_MS, 600.0)])
    clock = ScaledClock(path)
    passed_ms = clock.now_ms() - MARKET_MS
    assert 1_200_000 <= passed_ms < 1_200_000 + 600_000
    assert clock.speed == 600.0
    assert abs(clock.wall_ms() - now_s * 1000) < 2_000


def test_the_last_segment_whose_time_has_come_counts(path):
    now_s = time.time()
    write_clock(path, [
        (now_s - 100, MARKET_MS, 1.0), (now_s - 10, MARKET_MS + 90_000, 0.001),
        (now_s + 3_600, MARKET_MS + 99_000, 600.0),
    ])  # fmt: skip
    assert MARKET_MS + 90_000 <= ScaledClock(path).now_ms() < MARKET_MS + 90_100


def test_processes_that_read_the_same_file_agree(path):
    write_clock(path, [(time.time() - 50, MARKET_MS, 600.0)])
    one, other = ScaledClock(path), ScaledClock(path)
    assert abs(one.now_ms() - other.now_ms()) < 600 * 100


def test_a_segment_that_is_added_later_is_noticed_and_time_does_not_step_back(path):
    now_s = time.time()
    first = (now_s, MARKET_MS, 1.0)
    write_clock(path, [first])
    clock = ScaledClock(path)
    before_ms = clock.now_ms()
    write_clock(path, [first, (time.time(), clock.now_ms(), 1_000.0)])
    time.sleep(0.05)
    readings = [clock.now_ms() for _ in range(200)]
    assert readings == sorted(readings)
    assert readings[0] >= before_ms + 20_000
    assert clock.speed == 1_000.0


def test_waiting_is_in_real_seconds_of_the_present_speed(path):
    write_clock(path, [(time.time(), MARKET_MS, 600.0)])
    clock = ScaledClock(path)
    assert clock.real_seconds_until(MARKET_MS + 900_000) == pytest.approx(1.5, abs=0.2)
    assert clock.real_seconds_until(MARKET_MS - 1) == 0.0


async def test_sleep_ends_when_market_time_has_come(path):
    write_clock(path, [(time.time(), MARKET_MS, 600.0)])
    clock = ScaledClock(path)
    await clock.sleep_until(MARKET_MS + 60_000)
    assert clock.now_ms() >= MARKET_MS + 60_000


async def test_sleep_notices_that_time_was_sped_up(path):
    """An hour at speed 1 becomes a moment when the demo lets time run."""
    write_clock(path, [(time.time(), MARKET_MS, 1.0)])
    clock = ScaledClock(path)
    sleeper = asyncio.create_task(clock.sleep_until(MARKET_MS + 3_600_000))
    await asyncio.sleep(0.05)
    assert not sleeper.done()
    segments = [(time.time() - 1, MARKET_MS, 1.0), (time.time(), MARKET_MS + 1_000, 1_000_000.0)]
    write_clock(path, segments)
    async with asyncio.timeout(2):
        await sleeper


def test_a_clock_file_is_replaced_in_one_step(path):
    write_clock(path, [(0.0, 0, 1.0)])
    write_clock(path, [(0.0, 5, 1.0)])
    assert [entry.name for entry in path.parent.iterdir()] == ["clock.json"]


def test_the_environment_names_the_clock(path, monkeypatch):
    monkeypatch.delenv("HEARTHGRID_CLOCK", raising=False)
    assert not isinstance(clock_from_environment(), ScaledClock)
    write_clock(path, [(time.time(), MARKET_MS, 1.0)])
    monkeypatch.setenv("HEARTHGRID_CLOCK", str(path))
    clock = clock_from_environment()
    assert isinstance(clock, ScaledClock)
    assert abs(clock.now_ms() - MARKET_MS) < 2_000


def test_a_seed_repeats_and_the_systems_randomness_does_not():
    one, other = SeededRng(7), SeededRng(7)
    assert one.bytes(16) == other.bytes(16)
    assert one.uniform(0, 1) == other.uniform(0, 1)
    assert SeededRng(8).bytes(16) != SeededRng(7).bytes(16)
    assert SystemRng().bytes(16) != SystemRng().bytes(16)
    assert all(2 <= rng.uniform(2, 3) <= 3 for rng in (SystemRng(), one))
