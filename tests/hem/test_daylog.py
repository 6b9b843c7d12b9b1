"""The day log and the standings: what was measured of a slot, and who matches best."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hem.controller.forecast import Forecast
from hem.ems.daylog import KEEP_SLOTS, DayLog
from hem.ems.standing import FORGET_SLOTS, STALE_SLOTS, Standings
from runtime.store import MemoryStore

SLOT = 1_978_130
EXPECTED = Forecast(400, 100, 20)
energies = st.integers(0, 10_000)


@given(energies, energies, energies, st.lists(st.integers(-9_000, 9_000), max_size=6))
def test_a_row_balances(import_wh, export_wh, pv_wh, battery_w):
    log = DayLog(MemoryStore())
    for power_w in battery_w:
        log.sample(power_w, 500)
    log.close(SLOT, 900, (import_wh, export_wh, pv_wh), EXPECTED, None)
    (row,) = log.rows(SLOT - 1, SLOT + 1)
    assert row.load_wh == max(0, pv_wh + import_wh - export_wh + row.battery_wh)
    mean_w = sum(battery_w) / max(len(battery_w), 1)
    assert abs(row.battery_wh - mean_w / 4) <= 1
    assert (row.expected_load_wh, row.expected_pv_wh) == (400, 100)
    assert row.price_uc_per_kwh == -1
    assert row.soc_permille == (500 if battery_w else -1)


def test_samples_belong_to_one_slot():
    log = DayLog(MemoryStore())
    log.sample(4_000, 500)
    log.skip()
    log.close(SLOT, 900, (0, 0, 0), EXPECTED, 150_000)
    log.sample(-400, 510)
    log.close(SLOT + 1, 900, (0, 0, 300), EXPECTED, None)
    first, second = log.rows(SLOT, SLOT + 1)
    assert (first.battery_wh, first.price_uc_per_kwh) == (0, 150_000)
    assert (second.battery_wh, second.load_wh) == (-100, 200)


def test_old_rows_are_dropped():
    log = DayLog(MemoryStore())
    for slot in (SLOT - KEEP_SLOTS - 1, SLOT - KEEP_SLOTS, SLOT):
        log.close(slot, 900, (0, 0, 0), EXPECTED, None)
    log.forget_before(SLOT)
    assert [row.slot for row in log.rows(SLOT - KEEP_SLOTS - 1, SLOT)] == [SLOT - KEEP_SLOTS, SLOT]


async def test_the_best_match_is_first_and_a_stale_one_is_not_ranked():
    standings = Standings(MemoryStore())

    async def say(validator, cpf_q16, end_slot):
        event = {"validator": validator, "cpfQ16": cpf_q16, "endSlot": end_slot}
        await standings.take_event(1, {"event": "cpf", "eligible": True, **event})

    await say("a", 9_000, SLOT)
    await say("b", 60_000, SLOT - 1)
    await say("c", 65_000, SLOT - STALE_SLOTS - 1)
    await say("b", 50_000, SLOT)
    await standings.take_event(1, {"event": "cleared", "slot": SLOT})
    assert [(row.validator, row.cpf_q16) for row in standings.ranked()] == [
        ("b", 50_000), ("a", 9_000),
    ]  # fmt: skip
    standings.forget_before(SLOT + FORGET_SLOTS + 1)
    assert standings.ranked() == []
