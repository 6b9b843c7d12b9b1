"""The decision log: what, why, and what became of it; in words for `hem why`."""

from __future__ import annotations

import pytest

from hem.controller.bidding import Decision, OrderIntent
from hem.ems.decisions import KEEP_SLOTS, DecisionLog
from hem.summary import decisions_of
from runtime.store import MemoryStore, SqliteStore
from wire.errors import ConfigError
from wire.slots import SlotGrid

GRID = SlotGrid(900)
MIDNIGHT = GRID.slot_at(1_780_272_000_000)  # 2026-06-01T00:00Z
BUY = Decision((OrderIntent("buy", 420, 250_000),), 0, "expected deficit 500 Wh")
NOTHING = Decision((), 0, "nothing to gain")


@pytest.fixture
def folder(tmp_path):
    """A home's folder with decisions for 00:00, 00:15 and 18:00 of a day, and 18:00 of the next."""
    store = SqliteStore(tmp_path / "ems.sqlite")
    log = DecisionLog(store)
    for slot in (0, 1, 72, 96 + 72):
        log.add(MIDNIGHT + slot, 0, NOTHING if slot == 1 else BUY)
    store.close()
    return tmp_path


def slots(rows):
    return [row["slot"] - MIDNIGHT for row in rows]


def test_an_outcome_is_told_beside_its_order():
    log = DecisionLog(MemoryStore())
    log.add(MIDNIGHT, 5, BUY)
    log.outcome(f"bid/{MIDNIGHT}/0", "INSUFFICIENT_FUNDS")
    row = log.get(MIDNIGHT)
    assert row["codes"] == {"0": "INSUFFICIENT_FUNDS"}
    assert row["orders"] == [{"side": "buy", "energyWh": 420, "priceUcPerKwh": 250_000}]


@pytest.mark.parametrize("key", ["receipt/7", "register/hg1x", f"bid/{MIDNIGHT + 1}/0", "x"])
def test_outcomes_of_other_operations_are_not_decisions(key):
    log = DecisionLog(MemoryStore())
    log.add(MIDNIGHT, 5, BUY)
    log.outcome(key, "OK")
    assert log.get(MIDNIGHT)["codes"] == {}
    assert log.get(MIDNIGHT + 1) is None


def test_two_days_are_kept():
    log = DecisionLog(MemoryStore())
    for slot in range(MIDNIGHT, MIDNIGHT + 3):
        log.add(slot, 5, BUY)
    log.forget_before(MIDNIGHT + KEEP_SLOTS + 1)
    assert log.get(MIDNIGHT) is None
    assert slots(log.latest(10)) == [2, 1]


def test_why_tells_the_last_decisions_newest_first(folder):
    rows = decisions_of(folder, "", GRID)
    assert slots(rows) == [96 + 72, 72, 1, 0]
    assert rows[0]["text"] == (
        f"18:00 (slot {MIDNIGHT + 168}): buy 420 Wh at 0.250 ¤/kWh. expected deficit 500 Wh"
    )
    assert "no order. nothing to gain" in rows[2]["text"]


@pytest.mark.parametrize(("when", "slot"), [("18:00", 168), ("18:14", 168), ("0:15", 1)])
def test_why_at_a_time_of_day_tells_the_newest_slot_around_it(folder, when, slot):
    assert slots(decisions_of(folder, when, GRID)) == [slot]


def test_why_of_a_slot_number_tells_that_slot(folder):
    assert slots(decisions_of(folder, str(MIDNIGHT + 72), GRID)) == [72]
    assert decisions_of(folder, "17:00", GRID) == decisions_of(folder, "12", GRID) == []


def test_a_time_of_day_is_right_for_short_slots(tmp_path):
    minute = SlotGrid(60)
    store = SqliteStore(tmp_path / "ems.sqlite")
    start = minute.slot_at(1_780_272_000_000)
    DecisionLog(store).add(start + 18 * 60 + 7, 0, BUY)
    store.close()
    (row,) = decisions_of(tmp_path, "18:07", minute)
    assert row["text"].startswith("18:07 ")
    assert decisions_of(tmp_path, "18:08", minute) == []


@pytest.mark.parametrize("when", ["noon", "25:00", "12:60", ":", "-1"])
def test_why_of_nonsense_is_refused_with_an_example(folder, when):
    with pytest.raises(ConfigError, match="18:00"):
        decisions_of(folder, when, GRID)


def test_a_home_that_never_ran_says_so(tmp_path):
    with pytest.raises(ConfigError, match="has not run yet"):
        decisions_of(tmp_path, "", GRID)
