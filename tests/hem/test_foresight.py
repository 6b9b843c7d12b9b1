"""Prices of the slots ahead, and what the battery does in a slot without a contract."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import msgspec
import pytest
from structlog.testing import capture_logs

from hem.controller.battery import Battery
from hem.controller.limits import FREE, Caps, Limit
from hem.controller.policy import parse_policy
from hem.ems.planner import Planner
from hem.ems.solver import Solver
from hem.ems.starts import Starts
from hem.ems.value_worker import Question, answer
from hem.foresight import Foresight, Home
from market.settlement import Tariff
from runtime.child import ChildError
from runtime.store import MemoryStore
from wire.slots import SlotGrid

SLOT_S = 900
PER_DAY = 96
FIRST = 1_900_032
"""A midnight."""
BATTERY = Battery(8_000, 4_000, 4_000, soc_min_permille=100)
TARIFF = Tariff(300_000, 80_000, 300_000)
EVENINGS = """
[[tariff]]
from = "17:00"
to = "21:00"
import_price = "50 cent/kWh"
"""
QUIET_SUN = """
[[tariff]]
import_price = "0.20 ¤/kWh"
export_price = "0.05 ¤/kWh"
"""


async def in_process(question):
    return msgspec.json.encode(answer(msgspec.json.decode(question, type=Question)))


def foresight(text="", *, days=4, prices=None, caps=FREE, speed=1.0):
    """A home that uses 150 Wh a slot, 500 in the evening, and has no sun."""
    planner = Planner(MemoryStore(), PER_DAY, SLOT_S, in_process)
    for slot in range(FIRST - PER_DAY * days, FIRST):
        planner.observe(slot, 500 if 68 <= slot % PER_DAY < 84 else 150, 0)
    home = Home(
        policy=lambda: parse_policy(text, "policy.toml"),
        tariff=lambda _slot: TARIFF,
        price=(prices or {}).get,
        caps=lambda _start_ms, _end_ms: caps,
        day_s=lambda slot: slot % PER_DAY * SLOT_S,
    )
    grid = SlotGrid(SLOT_S)
    starts = Starts(MemoryStore(), grid, Solver().plan, UTC)
    return Foresight(planner, starts, grid, home, speed)


def test_without_a_tariff_of_its_own_a_home_has_the_market_s():
    assert foresight().prices(FIRST) == (300_000, 80_000)


def test_the_owner_s_tariff_holds_in_its_hours():
    ours = foresight(EVENINGS)
    assert ours.prices(FIRST + 67) == (300_000, 80_000)
    assert ours.prices(FIRST + 68) == (500_000, 80_000)
    assert ours.prices(FIRST + 84) == (300_000, 80_000)
    assert foresight(QUIET_SUN).prices(FIRST) == (200_000, 50_000)


def test_prices_are_drawn_to_what_was_traded_for_at_this_time():
    both = {FIRST + 40 - PER_DAY: 200_000, FIRST + 40 - 2 * PER_DAY: 220_000}
    assert foresight(prices=both).prices(FIRST + 40) == (255_000, 145_000)
    once = {FIRST + 40 - PER_DAY: 200_000}
    assert foresight(prices=once).prices(FIRST + 40) == (275_000, 110_000)
    strange = {FIRST + 40 - PER_DAY: 900_000}
    assert foresight(prices=strange).prices(FIRST + 40) == (300_000, 80_000)


async def test_before_a_dear_evening_the_battery_is_charged_from_the_grid():
    ours = foresight(EVENINGS)
    await ours.look(FIRST + 60, BATTERY, 800)
    power_w = ours.steer_w(FIRST + 60, 600, 0, 800, BATTERY, SLOT_S)
    assert power_w is not None
    assert power_w < -1_000
    assert ours.steer_w(FIRST + 60, 600, 0, BATTERY.ceiling_wh, BATTERY, SLOT_S) == 0


async def test_where_nothing_is_gained_the_device_is_left_to_itself():
    ours = foresight()
    await ours.look(FIRST, BATTERY, 4_000)
    assert ours.steer_w(FIRST, 600, 0, 4_000, BATTERY, SLOT_S) is None
    assert ours.steer_w(FIRST, 600, 2_000, 4_000, BATTERY, SLOT_S) is None


async def test_a_cap_on_imports_is_kept_by_the_battery():
    caps = Caps(import_limit=Limit("import", 4_200, "dso"))
    ours = foresight(EVENINGS, caps=caps)
    await ours.look(FIRST + 60, BATTERY, 800)
    charging_w = ours.steer_w(FIRST + 60, 3_000, 0, 800, BATTERY, SLOT_S)
    assert charging_w is not None
    assert 3_000 - charging_w <= 4_200
    covering_w = ours.steer_w(FIRST + 60, 6_000, 0, 7_000, BATTERY, SLOT_S)
    assert covering_w is not None
    assert 6_000 - covering_w <= 4_204


@pytest.mark.parametrize("reason", ["young", "fast"])
async def test_who_cannot_look_ahead_leaves_the_battery_to_itself(reason):
    ours = foresight(EVENINGS, days=1) if reason == "young" else foresight(EVENINGS, speed=60.0)
    await ours.look(FIRST + 60, BATTERY, 800)
    assert ours.value_after(FIRST + 60) is None
    assert ours.steer_w(FIRST + 60, 600, 0, 800, BATTERY, SLOT_S) is None
    assert ours.plan is None


async def test_the_plan_is_two_days_long_and_starts_from_what_is_stored():
    ours = foresight(EVENINGS)
    await ours.look(FIRST, BATTERY, 3_000)
    assert ours.plan is not None
    rows = ours.plan.slots
    assert [row.slot for row in rows] == list(range(FIRST, FIRST + 2 * PER_DAY))
    evening = [row for row in rows if row.slot in range(FIRST + 68, FIRST + 84)]
    assert sum(row.discharge_wh for row in evening) > 4_000
    assert {row.import_price_uc_per_kwh for row in evening} == {500_000}


async def test_nobody_acts_on_a_plan_that_cannot_be(monkeypatch):
    ours = foresight(EVENINGS)
    right = ours._planner.path

    def wrong(soc_wh):
        return [replace(row, battery_wh=9_999) for row in right(soc_wh)]

    monkeypatch.setattr(ours._planner, "path", wrong)
    with capture_logs() as logs:
        await ours.look(FIRST, BATTERY, 3_000)
    assert [line["event"] for line in logs] == ["impossible plan, by the state of charge"]
    assert ours.plan is None
    assert ours.value_after(FIRST) is None
    assert ours.steer_w(FIRST + 60, 600, 0, 800, BATTERY, SLOT_S) is None


WASHING = """
[[tariff]]
from = "06:00"
to = "22:00"
import_price = "50 cent/kWh"

[[deferrable]]
name = "dishwasher"
power_w = 1200
minutes = 60
earliest = "20:00"
latest = "06:00"
"""


async def test_a_load_that_may_wait_starts_when_energy_is_cheap_and_keeps_its_slot():
    ours = foresight(WASHING)
    await ours.look(FIRST + 70, BATTERY, 800)
    assert ours.plan is not None
    (name, at) = min(ours.plan.starts.items(), key=lambda item: item[1])
    assert name.startswith("dishwasher ")
    assert FIRST + 88 <= at <= FIRST + PER_DAY + 20
    assert ours._starts.chosen[name] == at
    await ours.look(at + 1, BATTERY, 800)
    assert ours._starts.chosen[name] == at
    assert ours.plan is not None
    assert name not in ours.plan.starts


async def test_in_a_slot_without_a_contract_energy_costs_the_tariff_whatever_was_traded():
    """Neighbours' prices of other days are no reason to buy at retail what is in the battery."""
    traded = {FIRST + at - PER_DAY * days: 250_000 for at in range(PER_DAY) for days in (1, 2)}
    ours = foresight(prices=traded)
    await ours.look(FIRST + 40, BATTERY, 7_500)
    assert ours.prices(FIRST + 40) == (275_000, 165_000)
    assert ours.bare_prices(FIRST + 40) == (300_000, 80_000)
    assert ours.steer_w(FIRST + 40, 600, 0, 7_500, BATTERY, SLOT_S) is None


DEAR_HOUR = """
reserve_permille = 500
[[tariff]]
from = "10:00"
to = "11:00"
import_price = "0.50 ¤/kWh"
export_price = "0.45 ¤/kWh"
[[tariff]]
from = "11:00"
to = "10:00"
import_price = "0.10 ¤/kWh"
export_price = "0.05 ¤/kWh"
"""


async def test_what_the_owner_keeps_is_never_sold_and_still_serves_the_home():
    ours = foresight(DEAR_HOUR)
    await ours.look(FIRST + 40, BATTERY, 6_000)
    reserve_wh = BATTERY.capacity_wh // 2
    assert ours.steer_w(FIRST + 40, 600, 0, 6_000, BATTERY, SLOT_S, reserve_wh) > 600
    assert ours.steer_w(FIRST + 40, 600, 0, 4_500, BATTERY, SLOT_S, reserve_wh) is None
    assert ours.plan is not None
    kept_wh = BATTERY.floor_wh + reserve_wh
    sold = [slot for slot in ours.plan.slots if slot.discharge_wh > slot.load_wh]
    assert sold
    assert all(slot.soc_wh >= kept_wh - slot.load_wh for slot in sold)


async def test_an_impossible_outlook_stays_so_while_there_is_no_other(monkeypatch):
    ours = foresight(EVENINGS)
    right = ours._planner.path

    def wrong(soc_wh):
        return [replace(row, battery_wh=9_999) for row in right(soc_wh)]

    async def failing(_question):
        raise ChildError("late")

    monkeypatch.setattr(ours._planner, "path", wrong)
    await ours.look(FIRST, BATTERY, 3_000)
    monkeypatch.setattr(ours._planner, "_ask", failing)
    await ours.look(FIRST + 1, BATTERY, 3_000)
    assert ours.value_after(FIRST + 1) is None


async def test_above_the_owner_s_range_stored_energy_is_not_thrown_away():
    """A ceiling that was lowered: what is above it waits for the evening, as what is below does."""
    lowered = replace(BATTERY, soc_max_permille=600)
    ours = foresight(EVENINGS)
    await ours.look(FIRST + 60, lowered, 7_500)
    assert ours.steer_w(FIRST + 68, 600, 0, 7_500, lowered, SLOT_S) in (None, 600)
    assert all(row.export_wh == 0 for row in ours.plan.slots)


DEAR_FEED_IN = """
[[tariff]]
from = "12:00"
to = "14:00"
import_price = "60 cent/kWh"
export_price = "58 cent/kWh"
"""


@pytest.mark.parametrize(
    ("wish", "sells"),
    [
        ("", True),
        ("[[never_sell]]", False),
        ('[[never_sell]]\nfrom = "10:00"\nto = "18:00"', False),
        ('[[never_sell]]\nfrom = "20:00"\nto = "21:00"', True),
    ],
)
async def test_in_hours_in_which_nothing_is_sold_the_grid_gets_nothing_either(wish, sells):
    """A full battery in an hour in which the grid pays twice what it takes later."""
    ours = foresight(DEAR_FEED_IN + wish)
    await ours.look(FIRST + 50, BATTERY, 8_000)
    power_w = ours.steer_w(FIRST + 50, 200, 0, 8_000, BATTERY, SLOT_S)
    assert (power_w is not None and power_w > 300) == sells


async def test_below_the_owner_s_least_price_the_grid_gets_nothing():
    ours = foresight("sell_price_min = 590000\n" + DEAR_FEED_IN)
    await ours.look(FIRST + 50, BATTERY, 8_000)
    assert ours.steer_w(FIRST + 50, 200, 0, 8_000, BATTERY, SLOT_S) in (None, 200)


def test_broken_starts_in_the_store_are_lost_and_no_more():
    store = MemoryStore()
    with store.atomic():
        store.put("starts", b"\xff")
    with capture_logs() as logs:
        assert Starts(store, SlotGrid(SLOT_S), Solver().plan, UTC).chosen == {}
    assert [line["event"] for line in logs] == ["chosen starts lost"]
