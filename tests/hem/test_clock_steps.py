"""
Whatever the clock does: no slot is closed twice, none is lost in silence, nothing is bid for again.

Steps of seconds, hours and days in a slot and at its ends, a clock that comes up in 1970, leap
seconds, sleep, and the two days of the year on which local time changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from home_at_hand import Outbox, teach
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metered_home import DSO_BOX, LATE_SLOTS, LOAD_W, METER, START, metered_home, reborn
from structlog.testing import capture_logs
from support.homes import DSO_BOX as SITE_BOX
from support.homes import SLOT_S, Site, log_lines
from support.patience import PATIENCE_S
from test_gateway_service import rig, serving

from hem import service
from hem.config import MarketFacts
from hem.ems.schedule import Phase, Timetable
from hem.gateway.meterbook import MeterBook
from hem.gateway.signer import Registers, SigningRefusedError
from runtime.clock import SystemClock, write_clock
from runtime.store import MemoryStore
from wire.canonical import decode
from wire.keys import to_text
from wire.metering import ZERO_DIGEST, Reading, digest, load_record
from wire.slots import SlotGrid

GRID = SlotGrid(900)
SLOT_LENGTH_S = 900
HOUR_S, DAY_S = 3_600, 86_400
STEPS_S = [5, -5, HOUR_S, -HOUR_S, DAY_S, -DAY_S]
FACTS = MarketFacts(chainId="hg-test", slotLengthS=900, dsoBoxKey=to_text(DSO_BOX.public))
AMSTERDAM = ZoneInfo("Europe/Amsterdam")


# --- a home that lives in true time, with a clock that is wrong at times --------------------------


class Judge(Outbox):
    """An outbox on a ledger that has the right time."""

    def __init__(self):
        super().__init__()
        self.true_ms = START * 900_000

    def add(self, operations, _slot):
        super().add(operations, _slot)
        now = GRID.slot_at(self.true_ms)
        for key, operation in operations:
            if operation["op"] == "receipt":
                slot = operation["receipt"]["slot"]
                code = "FUTURE_DATED" if slot >= now else "EXPIRED" if slot + 96 < now else "OK"
                self.codes.setdefault(key, code)

    @property
    def receipts(self):
        """Slot of every receipt that was sent, as often as it was."""
        return [o["receipt"]["slot"] for o in self.operations.values() if o["op"] == "receipt"]


class Life:
    """A home, its meter and its ledger in true time; the home's clock is `ahead_s` of it."""

    def __init__(self, home):
        self.home = home
        self.true_s = self.ahead_s = 0
        self.begun = START
        self.lines = []

    async def pass_s(self, seconds):
        """Let true time pass, at most some minutes at a time, as ticks come."""
        while seconds > 0:
            step_s = min(seconds, 180)
            seconds -= step_s
            self.true_s += step_s
            await self.look()

    async def step(self, seconds):
        """Somebody sets the home's clock."""
        self.ahead_s += seconds
        await self.look()

    async def look(self):
        """What a timetable does now: a slot's beginning once, else a tick."""
        home = self.home
        home.gateway.true_s = self.true_s
        home.outbox.true_ms = START * 900_000 + self.true_s * 1000
        home.clock.to(START, self.true_s + self.ahead_s)
        slot = GRID.slot_at(home.clock.now_ms())
        with capture_logs() as lines:
            if slot != self.begun:
                self.begun = slot
                await home._begin_slot(slot)
            else:
                await home._tick(slot)
        self.lines += lines

    # --- what must hold ---------------------------------------------------------------------------

    def assert_one_chain(self):
        signed = self.home.gateway.signed
        assert [reading.seq for reading in signed] == list(range(len(signed)))
        assert not signed or signed[0].previous == ZERO_DIGEST
        for before, after in itertools.pairwise(signed):
            assert after.previous == digest(before)
            assert after.slot > before.slot, "no slot twice"
            assert after.time_ms > before.time_ms, "no time before the last"
            assert after.import_wh >= before.import_wh

    def assert_all_accounted_for(self):
        """Every slot up to the present one: read, still listed, or named with a reason."""
        named = set()
        for line in self.lines:
            if line["event"] == "no receipt for a slot":
                assert line["reason"]
                named.add(line["slot"])
            elif line["event"] == "slots ended too long ago to be closed":
                named.update(range(line["first_slot"], line["last_slot"] + 1))
        read = {reading.slot for reading in self.home.gateway.signed}
        listed = {
            int(key.removeprefix("to-close/")) for key, _ in self.home.store.scan("to-close/")
        }
        now = GRID.slot_at(START * 900_000 + self.true_s * 1000)
        lost = set(range(START, min(now, self.begun))) - named - read - listed
        assert not lost, sorted(lost)[:10]

    def assert_no_receipt_counts_twice(self):
        taken = [
            operation["receipt"]["slot"]
            for key, operation in self.home.outbox.operations.items()
            if operation["op"] == "receipt" and self.home.outbox.codes[key] == "OK"
        ]
        assert len(taken) == len(set(taken))

    def assert_sound(self):
        self.assert_one_chain()
        self.assert_all_accounted_for()
        self.assert_no_receipt_counts_twice()


@pytest.fixture
async def life(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "READ_AGAIN_S", 0.001)
    home = await metered_home(tmp_path)
    home.outbox = Judge()
    home.take_up_trade()
    made = Life(home)
    await made.pass_s(3 * SLOT_LENGTH_S)
    yield made
    made.home.store.close()


@pytest.mark.parametrize("into_s", [0, 1, 450, 898], ids=["at-its-start", "1s", "middle", "end"])
@pytest.mark.parametrize("step_s", STEPS_S)
async def test_a_step_and_its_correction_lose_no_slot_and_sign_none_twice(life, step_s, into_s):
    await life.pass_s(into_s)
    await life.step(step_s)
    await life.pass_s(3 * SLOT_LENGTH_S)
    life.assert_sound()
    await life.step(-step_s)
    await life.pass_s(3 * SLOT_LENGTH_S)
    life.assert_sound()
    # after a clock that ran ahead the meter waits until its last reading is in the past; and what
    # flowed in that day may not have flowed in minutes
    await life.pass_s(max(step_s, 0) + 10 * SLOT_LENGTH_S)
    life.assert_sound()
    last = life.home.gateway.signed[-1]
    now = GRID.slot_at(life.home.clock.now_ms())
    assert last.slot == now - 1, "it reads every slot again"
    # the reading was taken at the slot's end, a tick later at the latest: no energy is lost
    missing_wh = 10_000 + LOAD_W * life.true_s // 3600 - last.import_wh
    assert missing_wh <= LOAD_W * (SLOT_LENGTH_S + 180) // 3600


@pytest.mark.parametrize("step_s", [5, -5, -HOUR_S, -DAY_S])
async def test_a_clock_that_is_put_right_at_once_costs_no_reading(life, step_s):
    """The first three slots, and everything from the correction on, are read."""
    await life.pass_s(450)
    await life.step(step_s)
    await life.step(-step_s)
    await life.pass_s(3 * SLOT_LENGTH_S)
    slots = [reading.slot for reading in life.home.gateway.signed]
    assert slots == list(range(slots[0], START + 6))
    life.assert_sound()


async def test_a_receipt_for_a_slot_that_is_not_over_is_not_sent_again_and_again(life):
    """The clock stood a day ahead; the ledger refuses what it signed until that day has come."""
    await life.step(DAY_S)
    await life.step(-DAY_S)
    ahead = [slot for slot in life.home.outbox.receipts if slot > START + 10]
    assert len(ahead) == LATE_SLOTS - 1, "the first after the gap has none"
    await life.pass_s(20 * SLOT_LENGTH_S)
    again = [slot for slot in life.home.outbox.receipts if slot > START + 30]
    assert len(again) <= 2 * len(ahead)
    await life.pass_s(DAY_S)
    newest = GRID.slot_at(life.home.clock.now_ms()) - 1
    assert life.home.to_close.waiting() in ([], [newest]), "in its time the ledger takes it"
    life.assert_sound()


@pytest.mark.parametrize("away_slots", [90, 96, 97, 98, 300])
async def test_slots_that_are_over_for_too_long_are_named(life, away_slots):
    """Suspended, or a clock that was behind: the time in between is told, not passed over."""
    life.true_s += away_slots * SLOT_LENGTH_S
    await life.look()
    life.assert_sound()
    ranges = [e for e in life.lines if e["event"] == "slots ended too long ago to be closed"]
    assert len(ranges) == (1 if away_slots > 97 else 0)
    assert [r.slot for r in life.home.gateway.signed][-LATE_SLOTS:] == [
        START + 3 + away_slots - n for n in range(LATE_SLOTS, 0, -1)
    ]


async def test_a_pi_that_wakes_in_1970_signs_nothing_until_it_knows_the_time(life, tmp_path):
    before = list(life.home.gateway.signed)
    life.home = reborn(life.home, tmp_path)
    life.home.outbox = Judge()
    life.home.take_up_trade()
    life.true_s += 10
    life.ahead_s = 30 - START * SLOT_LENGTH_S - life.true_s
    await life.look()
    assert life.home.clock.now_ms() == 30_000
    await life.pass_s(2 * SLOT_LENGTH_S)
    assert life.home.gateway.signed == before
    await life.step(-life.ahead_s)
    await life.pass_s(2 * SLOT_LENGTH_S)
    signed = life.home.gateway.signed
    assert [r.slot for r in signed] == list(range(signed[0].slot, START + 7))
    life.assert_sound()


STORY = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 4 * SLOT_LENGTH_S)),
        st.tuples(st.just("step"), st.sampled_from([*STEPS_S, 1, -1, 899, -901, 97 * 900])),
        st.tuples(st.just("away"), st.booleans()),
        st.tuples(st.just("power cut"), st.none()),
    ),
    max_size=14,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(story=STORY)
def test_whatever_happens_to_the_clock_the_chain_is_one_and_no_slot_is_lost(
    tmp_path_factory, monkeypatch, story
):
    """Steps, a meter that is away, power cuts: in any order."""
    monkeypatch.setattr(service, "READ_AGAIN_S", 0.0)
    folder = tmp_path_factory.mktemp("life")

    async def live():
        home = await metered_home(folder)
        home.outbox = Judge()
        home.take_up_trade()
        life = Life(home)
        try:
            await life.pass_s(SLOT_LENGTH_S)
            for what, how in story:
                if what == "pass":
                    await life.pass_s(how)
                elif what == "step":
                    await life.step(how)
                elif what == "away":
                    life.home.gateway.away = how
                    _patient(life)
                else:
                    outbox, away = life.home.outbox, life.home.gateway.away
                    life.home = reborn(life.home, folder)
                    life.home.outbox, life.home.gateway.away = outbox, away
                    life.home.take_up_trade()
                life.assert_sound()
        finally:
            life.home.store.close()

    asyncio.run(live())


def _patient(life):
    """A meter that is away is asked for a quarter of a slot: let that pass while it is asked."""
    clock, sign = life.home.clock, type(life.home.gateway).sign_reading

    async def slow(slot):
        if life.home.gateway.away:
            clock.market_ms += 60_000
        return await sign(life.home.gateway, slot)

    life.home.gateway.sign_reading = slow


@given(
    st.lists(
        st.tuples(st.sampled_from([*STEPS_S, 0, 1, 900, 1_800]), st.integers(-3, 2)), max_size=20
    )
)
def test_the_meter_signs_no_slot_twice_and_no_time_before_the_last_whoever_asks(asked):
    """The clock is set as it likes, and slots are asked for in any order."""
    book = MeterBook(METER, MemoryStore(), FACTS, 40_000, LATE_SLOTS)
    now_ms, signed = START * 900_000, []
    for step_s, ahead in asked:
        now_ms += step_s * 1000
        slot = GRID.slot_at(now_ms) - 1 + ahead
        fresh = book.signed(slot) is None
        with contextlib.suppress(SigningRefusedError):
            row = book.sign_reading(slot, now_ms, Registers(5, 0, 0))
            if fresh:
                signed.append(load_record(Reading, row["reading"]))
    for before, after in itertools.pairwise(signed):
        assert (after.seq, after.previous) == (before.seq + 1, digest(before))
        assert after.slot > before.slot
        assert after.time_ms > before.time_ms


# --- bids -----------------------------------------------------------------------------------------


async def test_a_step_back_does_not_bid_for_a_slot_again(life):
    """A bid is left once for a slot; lived twice, the same hour brings no second one."""
    teach(life.home, 500, 0)
    trader, home = life.home.trader, life.home
    clock = WallClock(START * 900_000 + 30_000, speed=1_000.0)
    bid = Phase("bid", 120, lambda slot: trader.bid(GRID.slot_at(clock.now_ms())))
    home.trader._clock = clock
    async with running(clock, bid):
        await reached(clock, (START + 4) * 900_000 + 200_000)
        first = dict(home.outbox.operations)
        assert len([key for key in first if key.startswith("bid/")]) == 5
        clock.step(-HOUR_S)
        teach(home, 3_000, 0)  # what it would bid now is another thing
        await reached(clock, (START + 4) * 900_000 + 300_000)
    assert {k: o for k, o in home.outbox.operations.items() if k in first} == first
    assert len(home.outbox.operations) == len(first)


# --- the timetable --------------------------------------------------------------------------------


class WallClock(SystemClock):
    """A wall clock that is set; seconds that never go back pass beside it."""

    def __init__(self, market_ms, speed=1.0):
        self._speed = speed
        self._from = time.monotonic(), market_ms

    @property
    def speed(self):
        return self._speed

    def now_ms(self):
        began_s, market_ms = self._from
        return market_ms + int((time.monotonic() - began_s) * self._speed * 1000)

    def real_seconds_until(self, market_ms):
        return max(0.0, (market_ms - self.now_ms()) / 1000 / self._speed)

    async def sleep_until(self, market_ms):
        while (left_s := self.real_seconds_until(market_ms)) > 0:
            await asyncio.sleep(min(left_s, 0.05))

    def step(self, seconds):
        began_s, market_ms = self._from
        self._from = began_s, market_ms + int(seconds * 1000)


class Diary:
    """The slots in which a phase fired, and when by the clock."""

    def __init__(self, clock):
        self._clock = clock
        self.rows = []

    def phase(self, name, offset_s, *, again=False):
        async def job(slot):
            self.rows.append((name, slot, self._clock.now_ms()))

        return Phase(name, offset_s, job, again)

    def slots(self, name):
        return [slot for each, slot, _ in self.rows if each == name]


@contextlib.asynccontextmanager
async def running(clock, *phases, grid=GRID):
    task = asyncio.create_task(Timetable(clock, grid, list(phases)).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def reached(clock, market_ms):
    await asyncio.wait_for(clock.sleep_until(market_ms), PATIENCE_S)


async def fired(diary, name, slot):
    async with asyncio.timeout(PATIENCE_S):
        while slot not in diary.slots(name):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("step_s", [HOUR_S + 600, DAY_S + 600, START * SLOT_LENGTH_S + 600])
async def test_after_a_step_forward_the_next_slot_begins_on_time(step_s):
    """Also the greatest one: NTP answers on a computer that woke up in 1970."""
    clock = WallClock(60_000 if step_s > 10**9 else START * 900_000 + 60_000, speed=400.0)
    diary = Diary(clock)
    async with running(clock, diary.phase("close", 0), diary.phase("bid", 120)):
        await asyncio.sleep(0.3)
        clock.step(step_s)
        now = GRID.slot_at(clock.now_ms())
        await fired(diary, "bid", now + 2)
    assert diary.slots("close")[-2:] == diary.slots("bid")[-2:] == [now + 1, now + 2]
    assert max(slot for slot in diary.slots("close") if slot > now) == now + 2
    for name, slot, at_ms in diary.rows[-4:]:
        offset_ms = 0 if name == "close" else 120_000
        assert 0 <= at_ms - slot * 900_000 - offset_ms < 450_000


@pytest.mark.parametrize("step_s", [-1_000, -HOUR_S])
async def test_after_a_step_back_a_slot_that_is_lived_twice_has_each_job_once(step_s):
    clock = WallClock((START + 4) * 900_000 - 60_000, speed=800.0)
    diary = Diary(clock)
    bid, tick = diary.phase("bid", 120), diary.phase("tick", 180, again=True)
    async with running(clock, bid, tick):
        await reached(clock, (START + 5) * 900_000 + 300_000)
        clock.step(step_s)
        await fired(diary, "bid", START + 6)
    assert diary.slots("bid")[:2] == [START + 4, START + 5]
    assert len(set(diary.slots("bid"))) == len(diary.slots("bid"))
    if step_s == -HOUR_S:
        assert diary.slots("tick").count(START + 4) == 2, "what may come again does"


@pytest.mark.parametrize("step_s", [-5, -1, 5])
async def test_a_step_of_seconds_at_a_slots_boundary_begins_it_once(step_s):
    """A repeated second is a step back by one, as the kernel does it; the others are NTP's."""
    grid = SlotGrid(SLOT_S)
    clock = WallClock(START * 900_000 + 3_500)
    first = grid.slot_at(clock.now_ms())
    diary = Diary(clock)
    async with running(clock, diary.phase("begin", 0), diary.phase("bid", 1), grid=grid):
        await fired(diary, "begin", first + 2)
        clock.step(step_s)
        await fired(diary, "bid", first + 4)
    for name in ("begin", "bid"):
        slots = diary.slots(name)
        assert sorted(set(slots)) == slots, "in order, and each once"
        assert slots[-1] == first + 4
        if step_s < 0:
            assert slots == [first + 1, first + 2, first + 3, first + 4]


async def test_a_smeared_second_moves_no_slot():
    """A second in a few (a smear takes a day for it): slots stay where the clock says they are."""
    clock = WallClock(START * 900_000 - 30_000, speed=400.0)
    diary = Diary(clock)
    async with running(clock, diary.phase("begin", 0)):
        for _ in range(100):
            clock.step(-0.01)
            await asyncio.sleep(0.02)
        await fired(diary, "begin", START + 1)
    assert diary.slots("begin") == list(range(START, diary.slots("begin")[-1] + 1))


# --- local time -----------------------------------------------------------------------------------


@pytest.fixture
def in_zone(monkeypatch):
    """Put this process into a time zone."""

    def put(zone):
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield put
    monkeypatch.undo()
    time.tzset()


def zone_that_changes(in_s, by_hours):
    """A POSIX time zone whose clocks are put forward or back so soon from now."""
    at = datetime.now(UTC) + timedelta(seconds=in_s)
    if by_hours > 0:  # standard time is UTC, summer begins
        begin, end = at, at + timedelta(days=100)
    else:  # summer has been, its local time is an hour ahead when it ends
        begin, end = at - timedelta(days=100), at + timedelta(hours=1)

    def rule(moment):
        day = moment.timetuple().tm_yday - 1
        return f"{day}/{moment:%H:%M:%S}"

    return f"AAA0BBB-1,{rule(begin)},{rule(end)}"


@pytest.mark.parametrize(
    ("day", "slots"), [((2026, 3, 29), 92), ((2026, 10, 25), 100), ((2026, 6, 1), 96)]
)
def test_a_local_day_of_23_or_25_hours_has_as_many_slots_and_none_is_missing(in_zone, day, slots):
    midnight = datetime(*day, tzinfo=AMSTERDAM)
    end = datetime.combine(midnight.date() + timedelta(days=1), datetime.min.time(), AMSTERDAM)
    first_ms, end_ms = (int(moment.timestamp() * 1000) for moment in (midnight, end))
    found = {}
    for zone in ("UTC", "Europe/Amsterdam"):
        in_zone(zone)
        found[zone] = [GRID.slot_at(ms) for ms in range(first_ms, end_ms, 60_000)]
    assert found["UTC"] == found["Europe/Amsterdam"]
    numbers = sorted(set(found["UTC"]))
    assert numbers == list(range(numbers[0], numbers[0] + slots))
    assert all(found["UTC"].count(number) == 15 for number in numbers), "a quarter hour each"
    assert GRID.start_ms(numbers[0]) == first_ms
    assert GRID.end_ms(numbers[-1]) == end_ms


def test_a_leap_second_moves_no_slot():
    """Unix time has no 23:59:60: the second is lived twice, in the last slot of the old year."""
    new_year_ms = int(datetime(2017, 1, 1, tzinfo=UTC).timestamp() * 1000)
    lived = [-2_000, -1_000, -500, -1_000, -500, 0]  # 23:59:58, :59, :59.5, :60, :60.5, 0:00:00
    slots = [GRID.slot_at(new_year_ms + ms) for ms in lived]
    assert slots == [slots[0]] * 5 + [slots[0] + 1]
    assert GRID.start_ms(slots[-1]) == new_year_ms


@pytest.mark.parametrize("by_hours", [1, -1], ids=["spring", "autumn"])
async def test_the_timetable_does_not_see_local_time_change(in_zone, by_hours):
    """While it runs the local clocks are put forward, or back."""
    in_zone(zone_that_changes(5, by_hours))
    offset_s = time.localtime().tm_gmtoff
    grid, clock = SlotGrid(SLOT_S), SystemClock()
    first = grid.slot_at(clock.now_ms())
    diary = Diary(clock)
    async with running(clock, diary.phase("begin", 0), diary.phase("bid", 2), grid=grid):
        await fired(diary, "bid", first + 3)
    assert time.localtime().tm_gmtoff - offset_s == by_hours * HOUR_S, "it did change"
    for name, offset in (("begin", 0), ("bid", 2)):
        assert diary.slots(name)[-3:] == [first + 1, first + 2, first + 3]
        rows = [row for row in diary.rows if row[0] == name]
        assert all(0 <= at_ms - slot * 4_000 - offset * 1_000 < 2_000 for _, slot, at_ms in rows)


# --- leases ---------------------------------------------------------------------------------------


class StandingClock(SystemClock):
    """Market time that is set; real seconds are real."""

    def __init__(self, market_ms):
        self.market_ms = market_ms

    def now_ms(self):
        return self.market_ms


@pytest.mark.parametrize("step_s", STEPS_S)
async def test_a_setpoint_ends_with_its_lease_whatever_the_clock_says(step_s):
    async with rig(extra="device_lease_s = 2") as home:
        gateways_clock = StandingClock(home.clock.market_ms)
        home.clock, devices_clock = gateways_clock, home.clock
        assert devices_clock.market_ms == gateways_clock.market_ms
        async with serving(home) as gateway:
            began_s = time.monotonic()
            await gateway.set_battery(2_000, 4)
            gateways_clock.market_ms += step_s * 1000
            await asyncio.sleep(2.7)
            if time.monotonic() - began_s < 3.5:
                assert home.battery_w() == 2_000, "not cut short"
            async with asyncio.timeout(PATIENCE_S):
                while home.battery_w() == 2_000:
                    await asyncio.sleep(0.05)
            assert home.battery_w() == -2_500


# --- end to end -----------------------------------------------------------------------------------


class ClockFile:
    """The clock of a home's processes: real time, set by a file."""

    def __init__(self, path):
        self.path = path
        self.ahead_s = 0.0
        self.set(0.0)

    def set(self, ahead_s):
        self.ahead_s = ahead_s
        now_s = time.time()
        write_clock(self.path, [(now_s, int((now_s + ahead_s) * 1000), 1.0)])


@pytest.fixture
async def site(tmp_path):
    opened = await Site.open(tmp_path)
    yield opened
    await opened.close()


@pytest.mark.long
async def test_a_running_home_keeps_its_chain_through_steps_sleep_dst_and_1970(
    site, tmp_path, monkeypatch
):
    """`hem run` with its gateway: every slot is read or named, in one chain, in order."""
    clock = ClockFile(tmp_path / "clock.json")
    monkeypatch.setenv("HEARTHGRID_CLOCK", str(clock.path))
    monkeypatch.setenv("TZ", zone_that_changes(15, -1))
    ledger = await site.ledger()
    desk = await ledger.supervisor()
    home = await site.home("home-01", load_w=20_000, soc_wh=5_000)

    def read():
        sealed = dict.fromkeys(itertools.chain(*site.readings.values()))
        return [load_record(Reading, decode(SITE_BOX.open(one))) for one in sealed]

    async def more(count=1):
        """Until so many further slots were read."""
        known = len(read())
        async with asyncio.timeout(PATIENCE_S):
            while len(read()) < known + count:
                assert home.process.returncode is None, home.log.read_text()[-2000:]
                await asyncio.sleep(0.05)

    await home.start()
    await more(3)
    for ahead_s in (5, 0, 3 * SLOT_S + 1, 0, -HOUR_S, 0):
        clock.set(ahead_s)
        if ahead_s < 0:
            await asyncio.sleep(2 * SLOT_S)  # it reads nothing: its last reading is in the future
        else:
            await more()
    (gateway,) = home.children()
    for pid in (home.process.pid, gateway):
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(2.5 * SLOT_S)
    for pid in (home.process.pid, gateway):
        os.kill(pid, signal.SIGCONT)
    await more()
    await home.stop(signal.SIGKILL)
    clock.set(-time.time() + 40)
    await home.start()
    await asyncio.sleep(SLOT_S)
    clock.set(0)
    await more()
    await home.stop()

    readings = read()
    assert [r.seq for r in readings] == list(range(len(readings))), "once each, in order"
    for before, after in itertools.pairwise(readings):
        assert after.previous == digest(before)
        assert after.slot > before.slot
        assert after.time_ms > before.time_ms
        assert after.import_wh >= before.import_wh
        assert after.time_ms >= (after.slot + 1) * SLOT_S * 1000
    named = set()
    for line in log_lines(home):
        assert line.get("level") != "error", line
        if line["event"] == "no receipt for a slot":
            named.add(line["slot"])
        elif line["event"] == "slots ended too long ago to be closed":
            named.update(range(line["first_slot"], line["last_slot"] + 1))
    slots = {r.slot for r in readings}
    lost = set(range(min(slots), max(slots))) - slots - named
    assert not lost, f"{len(lost)} slots without a word: {sorted(lost)[:5]}"
    receipts = [event["slot"] for _, event in desk.events if event["event"] == "receipt"]
    assert len(receipts) == len(set(receipts)) >= 5
