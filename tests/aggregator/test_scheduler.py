"""The schedule at work: made in time, asked for until it is approved, compared with meters."""

import asyncio

import msgspec
import pytest
import sqlite_utils
from structlog.testing import capture_logs
from support.brokers import make_key
from support.patience import PATIENCE_S

from aggregator.auditor import Auditor
from aggregator.grid_limits import GridPolicy, approve
from aggregator.scheduler import SchedulePolicy, Scheduler
from aggregator.store import AggregatorStore, migrations
from ledger.genesis import Poe
from runtime.csmdb_client import CsmDbRefusedError
from wire.day_ahead import ScheduleAnswer
from wire.keys import BoxKey
from wire.slots import SlotGrid

GRID, PER_DAY = SlotGrid(), 96
TODAY = 20_000 * PER_DAY
TOMORROW = TODAY + PER_DAY
STANDING = [100] * PER_DAY


class Clock:
    """Market time at the start of a slot."""

    slot = TODAY

    def now_ms(self):
        return GRID.start_ms(self.slot)


class Dso:
    """Approves by the real rule; refuses or is silent when told to."""

    def __init__(self, limits=None):
        self.limits, self.asked = limits or GridPolicy(), []
        self.troubles = []

    async def approve_schedule(self, slots):
        self.asked.append(slots)
        if self.troubles:
            raise self.troubles.pop()
        answer = approve(slots, {}, self.limits, GRID.length_s)
        return ScheduleAnswer(answer.slots, answer.changes)


@pytest.fixture
def store(tmp_path):
    opened = AggregatorStore(tmp_path / "aggregator.sqlite")
    yield opened
    opened.close()


def scheduler(store, dso=None, clock=None, **policy):
    auditor = Auditor(store, BoxKey(make_key("box").seed), "hg-test-0", GRID, Poe())
    auditor.refreshed(0)
    return Scheduler(
        store, auditor, dso or Dso(), GRID, clock or Clock(),
        SchedulePolicy(**{"standing_wh": STANDING, **policy}),
    )  # fmt: skip


def report(store, meter, slot, net_wh):
    """A reading, as far as the schedule looks at it."""
    store.db.execute(
        "INSERT INTO readings (meter, seq, slot, digest, document, net_wh)"
        " VALUES (?, ?, ?, '', '', ?)",
        [meter, slot, slot, net_wh],
    )


def slots_of(store):
    return [row["slot"] for row in store.schedule(0, 10**9)]


def test_tomorrow_is_made_twelve_hours_before_and_today_when_we_were_down(store):
    work = scheduler(store)
    work.on_slot(TODAY + 10)
    assert slots_of(store) == list(range(TODAY + 10, TOMORROW))
    work.on_slot(TOMORROW - 49)
    assert max(slots_of(store)) == TOMORROW - 1
    work.on_slot(TOMORROW - 48)
    assert max(slots_of(store)) == TOMORROW + PER_DAY - 1


def test_what_had_no_history_ahead_of_the_day_is_looked_at_again_when_it_begins(store):
    work = scheduler(store, standing_wh=[])
    report(store, "a", TODAY + 8, 300)
    work.on_slot(TOMORROW - 48)
    assert slots_of(store) == [TOMORROW + 8]
    report(store, "a", TODAY + 9, 400)
    report(store, "a", TODAY - PER_DAY + 8, 500)
    work.on_slot(TOMORROW - 47)
    assert slots_of(store) == [TOMORROW + 8]
    work.on_slot(TOMORROW)
    asked = {row["slot"]: row["net_wh"] for row in store.schedule(TOMORROW, TOMORROW + 95)}
    assert asked == {TOMORROW + 8: 300, TOMORROW + 9: 400}  # what was asked for is not moved
    assert store.home_schedule(TOMORROW + 9) == {"a": 400}


def test_the_history_is_that_of_the_same_slot_of_the_last_days_only(store):
    """Neither older days, nor the day itself, nor readings without a net energy."""
    for slot, net_wh in ((-3, 9_000), (-2, 100), (-1, 301), (0, 9_000), (1, 9_000)):
        report(store, "a", TODAY + slot * PER_DAY + 7, net_wh)
    report(store, "a", TODAY - PER_DAY + 8, None)
    work = scheduler(store, standing_wh=[], history_days=2)
    work.on_slot(TODAY)
    assert {row["slot"]: row["net_wh"] for row in store.schedule(0, 10**9)} == {TODAY + 7: 200}


async def test_the_schedule_counts_when_it_is_approved_and_as_it_is_approved(store):
    dso = Dso(GridPolicy(rating_import_w=200))  # 50 Wh
    work = scheduler(store, dso)
    work.on_slot(TODAY)
    assert store.approved(TODAY) is None
    assert await work.ask_once()
    assert dso.asked == [[(slot, 100) for slot in range(TODAY, TOMORROW)]]
    [first, *_] = store.schedule(TODAY, TODAY)
    assert first == {"slot": TODAY, "net_wh": 100, "approved_wh": 50, "reason": "IMPORT_RATING"}
    assert store.approved(TOMORROW - 1) == 50
    assert not await work.ask_once()
    assert len(dso.asked) == 1


async def test_slots_that_have_passed_are_not_asked_for_and_no_request_is_long(store):
    clock, dso = Clock(), Dso()
    work = scheduler(store, dso, clock, lead_hours=24)
    work.on_slot(TODAY)
    clock.slot = TODAY + 5
    while await work.ask_once():
        pass
    assert [len(rows) for rows in dso.asked] == [96, 91]
    assert dso.asked[0][0][0] == TODAY + 5
    assert store.approved(TODAY + 4) is None


@pytest.mark.parametrize(
    ("trouble", "text"),
    [(TimeoutError(), "does not answer"), (CsmDbRefusedError("BANNED", ""), "refuses")],
)
async def test_a_silent_dso_is_asked_again_and_the_log_says_so_once(
    store, trouble, text, monkeypatch
):
    monkeypatch.setattr("aggregator.scheduler.PAUSE_S", 0.001)
    monkeypatch.setattr("aggregator.scheduler.LOOK_S", 0.001)
    dso = Dso()
    dso.troubles = [trouble] * 3
    work = scheduler(store, dso)
    work.on_slot(TODAY)
    with capture_logs() as logs:
        task = asyncio.create_task(work.run())
        async with asyncio.timeout(PATIENCE_S):
            while store.approved(TODAY) is None:
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(dso.asked) == 4
    assert len([line for line in logs if text in line["event"]]) == 1
    assert len([line for line in logs if "again" in line["event"]]) == 1


async def test_nothing_deviates_before_the_approval_and_the_log_says_so_once(store):
    work = scheduler(store)
    work.on_slot(TODAY)
    for slot in range(TODAY, TODAY + 3):
        report(store, "a", slot, 1_000)
    with capture_logs() as logs:
        assert work.deviation_wh(TODAY + 3) == 0
        assert work.deviation_wh(TODAY + 3) == 0
    assert len([line for line in logs if "not approved" in line["event"]]) == 1
    await work.ask_once()
    assert work.deviation_wh(TODAY + 3) == 900


async def test_a_home_that_is_silent_counts_as_its_schedule_had_it(store):
    """Else a gateway that is down for a day would look like a surplus, and be sold."""
    for meter, net_wh in (("a", 200), ("b", 300), ("c", 0), ("d", 0), ("e", -50)):
        report(store, meter, TODAY - PER_DAY, net_wh)
    work = scheduler(store)
    work.on_slot(TODAY)
    await work.ask_once()
    assert store.approved(TODAY) == 450
    for meter, net_wh in (("a", 210), ("c", 0), ("d", 0), ("e", -50)):
        report(store, meter, TODAY, net_wh)
    assert store.measured(TODAY, TODAY, 4) == [(TODAY, 460)]
    assert store.measured(TODAY, TODAY, 5) == []
    assert work.deviation_wh(TODAY + 1) == 10
    report(store, "b", TODAY, 500)
    assert store.measured(TODAY, TODAY, 5) == [(TODAY, 660)]


async def test_nothing_deviates_before_anybody_said_how_many_meters_there_are(store):
    """A restart while readings come in: those of few homes are not the feeder's."""
    report(store, "a", TODAY, 210)
    work = scheduler(store)
    work.on_slot(TODAY)
    await work.ask_once()
    assert work.deviation_wh(TODAY + 1) != 0
    work._auditor.listed = False
    assert work.deviation_wh(TODAY + 1) == 0


def test_which_sessions_were_cleared_outlives_a_restart(store):
    assert store.rounds() == {}
    with store.atomic():
        store.put_rounds({TODAY: 0, TODAY + 1: 2})
    assert store.rounds() == {TODAY: 0, TODAY + 1: 2}


def test_a_schedule_of_an_earlier_release_was_approved_by_nobody(tmp_path):
    path = tmp_path / "aggregator.sqlite"
    old = sqlite_utils.Database(path)
    migrations.apply(old, stop_before="schedules_of_homes_and_their_approval")
    old.execute("INSERT INTO schedule VALUES (?, ?)", [TODAY, 70])
    old.conn.commit()
    old.close()
    store = AggregatorStore(path)
    assert store.approved(TODAY) is None
    assert store.unapproved(TODAY, 9) == [(TODAY, 70)]
    assert store.home_schedule(TODAY) == {}
    store.close()


def test_rules_are_kept(store):
    changed = {"gateLeadS": [[TODAY, 600]]}
    assert store.rules() == {}
    with store.atomic():
        store.put_rules(changed)
    assert store.rules() == changed
    assert msgspec.convert(store.rules(), dict[str, list[list[int | bool | str]]])
