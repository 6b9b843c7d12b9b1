"""What the HEM does at each phase of a slot, with a gateway, an outbox and a clock at hand."""

from __future__ import annotations

import asyncio

import pytest
from home_at_hand import SLOT, award, begin, opened, register, sunny, teach
from support.patience import PATIENCE_S

from hem.controller.battery import Battery
from hem.trader import after_pledge
from wire.canonical import encode


async def test_a_slots_end_makes_a_reading_and_a_receipt(home):
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    assert home.gateway.signed == [SLOT - 1, SLOT]
    assert home.readings.waiting == 2
    assert home.outbox.keys("receipt") == [f"receipt/{SLOT}"], "the first has no reading before it"


async def test_closing_a_slot_twice_sends_one_receipt(home):
    for _ in range(2):
        await begin(home, SLOT)
        await begin(home, SLOT + 1)
    assert home.outbox.keys("receipt") == [f"receipt/{SLOT}"]


async def test_a_meter_that_is_away_for_a_moment_costs_no_reading(home):
    home.gateway.away = 3
    await begin(home, SLOT)
    assert home.gateway.signed == [SLOT - 1]


async def test_a_meter_that_stays_away_is_given_up_after_a_quarter_of_a_slot(home):
    home.gateway.away = 10**9
    task = asyncio.create_task(home._close_slot(SLOT))
    await asyncio.sleep(0.02)
    assert not task.done()
    home.clock.to(SLOT, 226)
    await asyncio.wait_for(task, PATIENCE_S)
    assert home.readings.waiting == 0


async def test_a_refusal_of_the_meter_is_final(home):
    home.gateway.refuses = "BACKWARDS"
    await asyncio.wait_for(begin(home, SLOT), PATIENCE_S)
    assert (home.gateway.asked, home.readings.waiting) == (1, 0)


async def test_a_gap_in_the_readings_is_not_taken_for_one_slots_generation(home, monkeypatch):
    learned = []
    monkeypatch.setattr(home.forecaster, "observe", lambda *row: learned.append(row))
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    home.gateway.away = 1
    home.clock.to(SLOT + 2, 300)
    await home._close_slot(SLOT + 2)
    await begin(home, SLOT + 3)
    await begin(home, SLOT + 4)
    assert [(slot - SLOT, pv_wh) for slot, _, pv_wh in learned] == [(0, 200), (3, 200)]


async def test_the_first_setpoint_of_a_slot_counts_that_slots_energy_only(home):
    await award(home, SLOT, "sell", 250)
    home.gateway.registers = {"import_wh": 10_000, "export_wh": 0}
    await begin(home, SLOT)
    # 250 Wh over 900 s are 1 kW to the grid, beside the load of 2 kW
    assert [power for power, _ in home.gateway.orders] == [3_000]


async def test_without_that_slots_reading_the_battery_is_left_alone(home):
    await begin(home, SLOT)
    await award(home, SLOT + 1, "sell", 250)
    home.clock.to(SLOT + 1, 400)
    home.gateway.away = 1
    await home._close_slot(SLOT + 1)
    await home._steer(SLOT + 1)
    assert home.gateway.orders == []


async def test_after_a_contracted_slot_the_battery_serves_the_home_again(home):
    await award(home, SLOT, "sell", 250)
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    await begin(home, SLOT + 2)
    assert home.gateway.released == 1


async def test_a_deficit_is_bid_for_and_the_reason_is_kept(home):
    await register(home)
    home.gateway.soc_permille = -1
    teach(home, 500, 0)
    home.clock.to(SLOT, 120)
    await home.trader.bid(SLOT)
    (key,) = home.outbox.keys("bid")
    assert key == f"bid/{SLOT + 1}/0"
    assert home.outbox.operations[key]["side"] == "buy"
    assert "deficit" in home.decisions.get(SLOT + 1)["reason"]


async def test_a_new_home_bids_for_what_it_needs_now_less_its_doubt_and_nothing_later(home):
    """A whole slot of readings would cost up to half an hour of trading."""
    await register(home)
    home.gateway.soc_permille = -1
    home.clock.to(SLOT, 120)
    await home.trader.bid(SLOT)
    (key,) = home.outbox.keys("bid")
    operation = home.outbox.operations[key]
    assert operation["side"] == "buy"
    assert 250 <= operation["energyWh"] <= 500, "2 kW are 500 Wh, give or take a half"
    situation = await home.trader._later(SLOT + 3)
    assert situation.forecast.net_wh == 0


async def test_a_new_home_with_more_sun_than_load_offers_no_more_than_it_has_now(home):
    await register(home)
    home.gateway.soc_permille, home.gateway.load_w, home.gateway.pv_w = -1, 400, 4_000
    home.clock.to(SLOT, 120)
    await home.trader.bid(SLOT)
    (key,) = home.outbox.keys("bid")
    operation = home.outbox.operations[key]
    assert operation["side"] == "sell"
    assert 0 < operation["energyWh"] <= 900


@pytest.mark.parametrize("why", ["late", "not registered", "grant ended"])
async def test_no_bid_is_sent_that_cannot_count(home, why):
    teach(home, 500, 0)
    home.gateway.soc_permille = -1
    slot = SLOT + 50 if why == "grant ended" else SLOT
    if why != "not registered":
        await register(home)
    home.clock.to(slot, 601 if why == "late" else 120)
    await home.trader.bid(slot)
    assert home.outbox.keys("bid") == []


def sell_orders(home):
    auctions = [o["energyWh"] for k, o in home.outbox.operations.items() if k.startswith("auction")]
    offers = [
        o["energyWh"]
        for k, o in home.outbox.operations.items()
        if k.startswith("bid/") and o["side"] == "sell"
    ]
    return auctions, offers


@pytest.mark.parametrize("first", ["auction", "bid"])
async def test_auction_and_market_do_not_sell_the_same_stored_energy(home, first):
    await register(home)
    sunny(home)
    home.gateway.soc_permille, home.gateway.discharge_w = 1_000, 1_600
    home.clock.to(SLOT, 120)
    steps = [lambda: home.trader.take_event(5, opened(SLOT + 1)), lambda: home.trader.bid(SLOT)]
    sold_wh = []
    for step in steps if first == "auction" else reversed(steps):
        await step()
        auctions, offers = sell_orders(home)
        sold_wh.append(sum(auctions) + sum(offers))
    alone_wh, both_wh = sold_wh
    assert alone_wh > 0
    assert both_wh < 2 * alone_wh, "the second knows of the first"
    assert both_wh <= 1_600 * 900 // 3600 - home.forecaster.forecast(SLOT + 1).net_wh


async def test_an_auction_that_is_over_gets_no_answer(home):
    await register(home)
    sunny(home)
    home.clock.to(SLOT, 601)
    await home.trader.take_event(5, opened(SLOT + 1))
    assert sell_orders(home) == ([], [])


async def test_what_was_learned_survives_a_restart_and_nonsense_does_not_stop_it(home):
    teach(home, 500, 0)
    with home.store.atomic():
        home.store.put("forecaster", encode(home.forecaster.to_json()))
    assert home._restored_forecaster().forecast(SLOT).load_wh == 500
    with home.store.atomic():
        home.store.put("forecaster", encode({"history": "?"}))
    assert home._restored_forecaster().forecast(SLOT).load_wh == 0


def test_a_pledge_takes_energy_and_power_from_the_battery():
    battery = Battery(10_000, 4_000, 4_000, 1_000, 1_000)
    rest, soc_wh = after_pledge(battery, 5_000, 250, 900)
    assert (rest.max_discharge_w, rest.max_charge_w, soc_wh) == (3_000, 4_000, 4_750)
    rest, soc_wh = after_pledge(battery, 5_000, -250, 900)
    assert (rest.max_discharge_w, rest.max_charge_w, soc_wh) == (4_000, 3_000, 5_250)
    rest, soc_wh = after_pledge(battery, 100, 5_000, 900)
    assert (rest.max_discharge_w, soc_wh) == (0, 0)
