"""
What would cost a household money or energy: each case was found by trying, and must not come back.

Traders of the product on the real contracts, as in `test_trading_day`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.chain_builder import FIRST_SLOT, auction, deposit, key, slot_ms
from trading_day import TradingDay, TradingHome

from hem.controller.bidding import OrderIntent
from hem.controller.forecast import Forecaster
from hem.controller.forward import StandingOffer, choose_lot, lots
from hem.controller.policy import EscrowPolicy, OrderBookPolicy, Policy
from hem.controller.setpoint import setpoint_w
from hem.ems.pledges import by_slot
from hem.trader import battery_of
from ledger.contracts import assets
from ledger.genesis import Auctions, Escrow, Feeder, Prices

EVENING = FIRST_SLOT + 72
CAPACITY_WH, GIVES_WH = 1_000, 949
"""Of the small battery: what it holds, and what of it reaches the grid."""


def home(name, load_wh, pv_wh, *markets, soc_permille=-1, **policy):
    owner = Policy(markets=markets or ("double-auction",), **policy)
    return TradingHome(key(name), load_wh, pv_wh, owner, soc_permille)


class SmallBattery(TradingHome):
    async def state(self):
        facts = {"capacity_wh": CAPACITY_WH, "max_charge_w": 4_000, "max_discharge_w": 4_000}
        return {"battery": facts, "soc_permille": self.soc_permille}


def small(*markets, soc_permille=1_000, load_wh=2, **policy):
    owner = Policy(markets=markets, battery_cost_uc=0, **policy)
    return SmallBattery(key("small"), load_wh, 0, owner, soc_permille)


def sunny_days(one):
    """It knows that the battery will be filled by the sun tomorrow: all of it may be sold."""
    forecaster = Forecaster(96)
    for slot in range(EVENING - 98, EVENING - 1):
        forecaster.observe(slot, 2, 900 if 36 <= slot % 96 < 60 else 0)
    one.trader._parts = replace(one.trader._parts, forecaster=forecaster)


async def play(day, slot):
    """One slot, as `TradingDay.run` does it."""
    await day.at(slot, 1)
    day._receipts(slot - 1)
    await day.at(slot, 2)
    day.clock.to(slot, 60)
    for one in day.homes:
        await one.trader.trade_ahead(slot)
    await day.at(slot, 62)
    day.clock.to(slot, 120)
    for one in day.homes:
        await one.trader.bid(slot)
    await day.at(slot, 122)
    await day._reveals(slot + 1)
    await day.at(slot, 890)
    for one in day.homes:
        one.trader.forget_before(slot)


async def started(*homes, **genesis):
    day = TradingDay(list(homes), **genesis)
    await day.registered()
    return day


def promised_wh(day, one, slot):
    return by_slot(one.trader.pledges.standing("forecast", day.clock.now_ms())).get(slot, 0)


# --- The same energy in several slots -------------------------------------------------------------


async def test_auctions_of_several_slots_do_not_get_the_same_stored_energy():
    one = small("auctions", "double-auction")
    day = await started(one)
    sunny_days(one)
    asked = [
        auction(f"flex-{EVENING + n}", "reverse", EVENING + n, 800, 299_000, "uniform")
        for n in range(2, 8)
    ]
    await day.at(EVENING, 1, *asked)
    for slot in range(EVENING, EVENING + 7):
        await day.at(slot, 890)
    sold_wh = -sum(one.wallet.net_wh().values())
    assert 0 < sold_wh <= GIVES_WH


async def test_a_block_of_many_slots_offers_no_more_than_the_battery_holds():
    one = small("order-book", order_book=OrderBookPolicy(block_slots=8), reserve_permille=200)
    day = await started(one)
    sunny_days(one)
    await day.at(EVENING, 1)
    day.clock.to(EVENING, 60)
    await one.trader.trade_ahead(EVENING)
    await day.at(EVENING, 62)
    (offer,) = day.of("offer-posted")
    slots = offer["endSlot"] - offer["startSlot"] + 1
    assert 0 < offer["energyWh"] * slots <= 749, "what is above the reserve"


async def test_one_acceptance_does_not_fill_the_same_battery_in_every_slot():
    one = small("order-book", soc_permille=0, load_wh=100)
    seller = home("seller", 0, 0, "schedules")
    day = await started(one, seller)
    offer = {
        "op": "post-offer", "kind": "production", "energyWh": 2_000, "startSlot": FIRST_SLOT + 2,
        "endSlot": FIRST_SLOT + 9, "priceUcPerKwh": 200_000, "untilMs": slot_ms(FIRST_SLOT + 9),
    }  # fmt: skip
    seller.outbox.add([("post", offer)])
    await day.at(FIRST_SLOT, 1)
    day.clock.to(FIRST_SLOT, 60)
    await one.trader.trade_ahead(FIRST_SLOT)
    await day.at(FIRST_SLOT, 62)
    net_wh = one.wallet.net_wh()
    room_wh = CAPACITY_WH * 1000 // 949 + 100 * len(net_wh)
    assert 0 < sum(net_wh.values()) <= room_wh


async def test_a_double_auction_deployed_after_our_bid_gets_nothing_of_it():
    sun = home("sun", 100, 700, "double-auction", "auctions")
    loads = home("load", 700, 0), home("load b", 700, 0, "auctions")
    day = await started(sun, *loads)
    await day.at(FIRST_SLOT, 1)
    day.clock.to(FIRST_SLOT, 120)
    for one in day.homes:
        await one.trader.bid(FIRST_SLOT)
    await day.at(FIRST_SLOT, 122)
    await day.at(FIRST_SLOT, 200, auction("all", "double", FIRST_SLOT + 1, 0, 0, "uniform"))
    await day.at(FIRST_SLOT, 890)
    assert 0 < -sun.wallet.net_wh()[FIRST_SLOT + 1] <= 600


# --- Promises and what became of them -------------------------------------------------------------


async def test_a_refused_acceptance_is_not_promised_again_when_it_is_forgotten():
    buyer = home("load 1", 300, 0, "order-book", "double-auction")
    seller = home("seller", 0, 0, "schedules")
    day = await started(buyer, seller)
    drained = {"op": "deposit-financial-balance", "amountUc": 100_000_000}
    buyer.outbox.add([("drain", drained)])
    offer = {
        "op": "post-offer", "kind": "production", "energyWh": 300, "startSlot": FIRST_SLOT + 2,
        "endSlot": FIRST_SLOT + 40, "priceUcPerKwh": 100_000, "untilMs": slot_ms(FIRST_SLOT + 40),
    }  # fmt: skip
    seller.outbox.add([("post", offer)])
    await play(day, FIRST_SLOT)
    assert buyer.outbox.codes("accept") == ["INSUFFICIENT_FUNDS"]
    await day.at(FIRST_SLOT + 1, 0, deposit(buyer.key, 100_000_000))
    for slot in range(FIRST_SLOT + 1, FIRST_SLOT + 9):
        await play(day, slot)
        assert promised_wh(day, buyer, slot + 3) == 0
        assert buyer.outbox.sent[f"bid/{slot + 1}/0"]["energyWh"] == 270


def test_one_refused_part_of_an_answer_releases_the_others_not():
    one = home("x", 100, 700, "auctions")
    day = TradingDay([one])
    orders = OrderIntent("sell", 400, 120_000), OrderIntent("sell", 150, 130_000)
    event = {"auction": "all", "slot": FIRST_SLOT + 3, "sealed": False}
    one.trader._bid_in("auction/all", event, orders, "forecast")
    one.trader.operation_done("auction/all", {"op": "auction-bid"}, "QUANTITY_OUT_OF_RANGE")
    assert promised_wh(day, one, FIRST_SLOT + 3) == 150


@pytest.mark.parametrize("market", ["order-book", "escrow"])
async def test_a_shorter_lead_after_a_restart_does_not_forget_what_stands(market):
    def policy(lead_slots, lot_wh):
        return {
            "order_book": OrderBookPolicy(lead_slots=lead_slots, block_slots=1),
            "escrow": EscrowPolicy(lead_slots=lead_slots, lot_wh=lot_wh, lots=4),
        }

    sun = home("sun", 100, 700, market, "double-auction", **policy(4, 100))
    day = await started(sun)
    await play(day, FIRST_SLOT)
    target = FIRST_SLOT + 4

    def locked_wh():
        return assets.locked_wh(day.state, sun.key.id, "sell", target)

    assert promised_wh(day, sun, target) == locked_wh() > 0
    sun.policy = sun.policy.model_copy(update=policy(3, 50))
    day.start(sun)
    await play(day, FIRST_SLOT + 1)
    assert promised_wh(day, sun, target) >= locked_wh() > 0


async def test_a_crash_between_promise_and_outbox_loses_no_schedule():
    one = home("load 1", 300, 0, "schedules", "double-auction")
    day = await started(one)
    await day.at(FIRST_SLOT, 1)
    day.clock.to(FIRST_SLOT, 60)
    add = one.outbox.add

    def power_cut(_, slot):
        raise OSError("power cut")

    one.outbox.add = power_cut
    with pytest.raises(OSError, match="power cut"):
        await one.trader.trade_ahead(FIRST_SLOT)
    one.outbox.add = add
    day.start(one)
    await play(day, FIRST_SLOT + 1)
    assert one.outbox.state_of(f"schedule/{FIRST_SLOT + 4}") == "OK"


async def test_who_does_not_know_what_is_final_sells_nothing():
    sun = home("sun", 100, 700, "order-book", "double-auction")
    day = await started(sun)
    await day.at(FIRST_SLOT, 1)
    sun.trader._parts = replace(sun.trader._parts, caught_up=lambda: False)
    day.clock.to(FIRST_SLOT, 115)
    await sun.trader.trade_ahead(FIRST_SLOT)
    day.clock.to(FIRST_SLOT, 590)
    waits = sun.trader._know

    async def impatient(_):
        return await waits(0)

    sun.trader._know = impatient
    await sun.trader.bid(FIRST_SLOT)
    assert sun.outbox.sent == {}


# --- Escrow ---------------------------------------------------------------------------------------


def lot(energy_wh, price, slot=FIRST_SLOT + 3):
    return StandingOffer(
        market="escrow", name="o", seller="s", energy_wh=energy_wh, start_slot=slot,
        end_slot=slot, price_uc_per_kwh=price, until_ms=2**50,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("energy_wh", "price", "fee_uc", "taken"),
    [
        (100, 150_000, 1_000, True),
        (9, 150_000, 0, False),  # dust
        (301, 150_000, 0, False),  # more than we need
        (100, 79_999, 1_000, False),  # bait: below the feed-in price
        (100, 80_000, 1_000, True),
        (100, 257_000, 1_000, False),  # gains no more than the fee
        (100, 150_000, 1_001, False),  # above the owner's most
    ],
)
def test_a_lot_is_taken_when_it_saves_more_than_its_fee(energy_wh, price, fee_uc, taken):
    wishes = {FIRST_SLOT + 3: OrderIntent("buy", 300, 267_000)}
    chosen = choose_lot([lot(energy_wh, price)], wishes, Policy(), lambda _: (fee_uc, 80_000))
    assert (chosen is not None) == taken


def test_lots_that_gain_less_than_the_fee_are_not_offered():
    wish, policy = OrderIntent("sell", 300, 113_000), Policy()
    assert lots(wish, policy, 1_000, 80_000) == [100]
    assert lots(wish, policy, 3_301, 80_000) == []
    assert lots(OrderIntent("sell", 300, 89_999), policy, 1_000, 80_000) == []


async def test_dust_does_not_take_the_orders_of_our_own_bid():
    victim = home(
        "load 1", 600, 0, "escrow", "double-auction", escrow=EscrowPolicy(lots=4, lead_slots=4)
    )
    bad = home("bad", 0, 0, "schedules")
    day = await started(victim, bad)
    target = FIRST_SLOT + 4
    dust = [
        (f"m{n}", {
            "op": "make-offer", "offer": f"{bad.key.id}:b{n}", "slot": target, "energyWh": 1,
            "priceUcPerKwh": 100_000, "guaranteeUc": 100, "acceptBeforeMs": slot_ms(target - 1),
            "deliverBeforeMs": day.chain.genesis.settle_ms(target),
        })
        for n in range(8)
    ]  # fmt: skip
    bad.outbox.add(dust)
    for slot in range(FIRST_SLOT, FIRST_SLOT + 4):
        await play(day, slot)
    assert bad.outbox.codes("m0") == bad.outbox.codes("take") == []
    assert victim.outbox.codes("take") == []
    assert victim.outbox.state_of(f"bid/{target}/0") == "OK"


async def test_the_fee_of_each_offers_own_slot_counts():
    one = home("load", 600, 0, "escrow", escrow=EscrowPolicy(lead_slots=5))
    day = await started(one, escrow=Escrow(fee_uc=50_000))
    cheaper = {
        "event": "change-approved", "change": "c", "path": "escrow.feeUc", "value": 500,
        "activationSlot": FIRST_SLOT + 5,
    }  # fmt: skip
    await one.trader.take_event(1, cheaper)
    offered = {
        "event": "escrow-offered", "offer": "s:x", "seller": "s", "slot": FIRST_SLOT + 3,
        "energyWh": 100, "priceUcPerKwh": 100_000, "acceptBeforeMs": slot_ms(FIRST_SLOT + 2),
        "commitment": "",
    }  # fmt: skip
    await one.trader.take_event(1, offered)
    day.clock.to(FIRST_SLOT, 60)
    await one.trader.trade_ahead(FIRST_SLOT)
    assert [name for name in one.outbox.sent if name.startswith("take/")] == []


# --- Gates, clocks, prices ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules",
    [
        {"gate_lead_s": 780},
        {"gate_lead_s": 2_000},
        {"gate_lead_s": 660, "auctions": Auctions(sealed=True)},
    ],
)
async def test_with_any_gate_that_the_rules_allow_homes_bid_for_a_slot_that_is_open(rules):
    day = await started(home("sun", 100, 700), home("load", 300, 0), **rules)
    for slot in range(FIRST_SLOT, FIRST_SLOT + 5):
        day.clock.to(slot, 120)
        for one in day.homes:
            await one.trader.bid(slot)
        for offset_s in (130, 150, 200, 400, 500, 600, 700, 890):
            day.clock.to(slot, offset_s)
            for one in day.homes:
                one.trader.reveal_due()
            await day.block()
    assert any(event["tradedWh"] for event in day.of("cleared"))
    assert {code for _, _, code in day.refused} <= {"TOO_SOON"}


async def test_a_clock_ahead_of_the_blocks_loses_no_deposit():
    one = home("load", 300, 0)
    day = await started(one, auctions=Auctions(sealed=True))
    await day.at(FIRST_SLOT, 1)
    day.clock.to(FIRST_SLOT, 120)
    await one.trader.bid(FIRST_SLOT)
    await day.at(FIRST_SLOT, 122)
    rules = one.trader.rules
    gate_ms = rules.gate_ms(FIRST_SLOT + 1)
    for true_ms in range(rules.reveal_ms(FIRST_SLOT + 1) - 60_000, gate_ms + 5_000, 2_000):
        day.clock.market_ms = true_ms + 45_000
        one.trader.reveal_due()
        day.clock.market_ms = true_ms
        await day.block()
    assert "TOO_SOON" in one.outbox.codes("reveal")
    assert day.of("bid-revealed") and not day.of("bid-forfeited")


async def test_nobody_schedules_consumption_where_deviations_are_dearer_than_the_tariff():
    costs = []
    for markets in (("double-auction",), ("double-auction", "schedules")):
        homes = [home("load", 300, 0, *markets), home("load 2", 300, 0, *markets)]
        prices, feeder = Prices(imbalance_uc_per_kwh=450_000), Feeder(congestion="split")
        day = TradingDay(homes, prices=prices, feeder=feeder)
        await day.run(7)
        costs.append(sum(day.chain.account(homes[0].key)))
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("load_w", "soc_permille", "power_w"),
    [(0, 300, 0), (700, 300, 700), (0, 301, 36), (700, 900, 2_700)],
)
def test_the_reserve_is_for_the_home(load_w, soc_permille, power_w):
    """Sold 500 Wh of sun, and a cloud came."""
    facts = {"capacity_wh": 10_000, "max_charge_w": 4_000, "max_discharge_w": 4_000}
    battery, soc_wh = battery_of({"battery": facts, "soc_permille": soc_permille}, Policy())
    assert setpoint_w(-500, 0, 900, load_w, 0, soc_wh, battery, True, 3_000) == power_w
