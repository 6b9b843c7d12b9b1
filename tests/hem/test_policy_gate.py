"""
No order leaves a home that its owner's policy forbids: traders in all markets, on a real ledger.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.chain_builder import FIRST_SLOT
from test_rules import policy
from test_trading_day import check, home
from trading_day import ALL_MARKETS, LENGTH_S, TradingDay

from hem import trader as trader_module
from hem.controller.limits import Caps, Limit
from hem.controller.rules import Forbidden

ORDERS = {
    "bid-offer", "auction-bid", "submit-schedule", "commit-bid", "post-offer", "accept-offer",
    "make-offer", "accept-escrow",
}  # fmt: skip


def neighbours(text="", markets=ALL_MARKETS):
    """Two with sun, two without, one with a battery that is nearly full; all of one mind."""
    owner = policy(f"markets = {list(markets)}\n{text}")
    found = [
        home("sun 1", 100, 700), home("sun 2", 80, 420), home("load 1", 300, 0),
        home("load 2", 350, 0), home("battery", 120, 600, soc_permille=950),
    ]  # fmt: skip
    for one in found:
        one.policy = owner
    return found


def orders(day):
    """(operation, first slot, side, price) of every order that left."""
    found = []
    for one in day.homes:
        for operation in one.outbox.sent.values():
            if operation["op"] not in ORDERS:
                continue
            side = operation.get("side")
            if side is None:
                side = "buy" if operation["op"].startswith("accept") else "sell"
            slot = operation.get("slot", operation.get("startSlot"))
            found.append((operation["op"], slot, side, operation.get("priceUcPerKwh")))
    return found


async def traded(text="", markets=ALL_MARKETS, slots=6):
    day = TradingDay(neighbours(text, markets))
    await day.run(slots)
    check(day)
    return orders(day)


async def test_without_limits_every_market_is_used():
    """What the tests below find nothing of is there when nobody forbids it."""
    found = await traded()
    assert {"bid-offer", "submit-schedule", "post-offer", "make-offer"} <= {row[0] for row in found}
    assert {"buy", "sell"} <= {row[2] for row in found}


@pytest.mark.parametrize("market", ["double-auction", "order-book", "escrow", "schedules"])
async def test_an_order_passes_the_gate_in_every_market(market, monkeypatch):
    """A gate that refuses everything lets nothing out, so there is no way around it."""
    monkeypatch.setattr(trader_module, "permitted", lambda *_: Forbidden.LIMIT)
    monkeypatch.setattr(trader_module, "permitted_together", lambda *_: ((), (Forbidden.LIMIT,)))
    assert await traded(markets=[market], slots=4) == []


async def test_in_a_never_sell_window_nothing_is_sold_in_any_market():
    found = await traded("[[never_sell]]")
    assert "sell" not in {row[2] for row in found}
    assert "buy" in {row[2] for row in found}


async def test_a_window_closes_the_slots_that_it_overlaps_and_no_others():
    start_s = FIRST_SLOT * LENGTH_S % 86_400 + 5 * LENGTH_S
    hours = [f"{at // 3600:02}:{at % 3600 // 60:02}" for at in (start_s, start_s + 2 * LENGTH_S)]
    found = await traded(f'[[never_sell]]\nfrom = "{hours[0]}"\nto = "{hours[1]}"\n', slots=8)
    sold = {row[1] - FIRST_SLOT for row in found if row[2] == "sell"}
    assert sold and not sold & {5, 6}


async def test_prices_are_within_the_caps_in_every_market():
    found = await traded('[[price_cap]]\nbuy_max = "12 cent/kWh"\nsell_min = "11 cent/kWh"\n')
    assert found
    assert all(price <= 120_000 for _, _, side, price in found if side == "buy" and price)
    assert all(price >= 110_000 for _, _, side, price in found if side == "sell" and price)


async def test_nothing_is_bought_or_sold_above_a_limit_of_the_grid():
    caps = Caps(Limit("import", 400, "dso"), Limit("export", 200, "dso"))
    day = TradingDay(neighbours())
    for one in day.homes:
        one.trader._parts = replace(one.trader._parts, caps=lambda *_: caps)
    await day.run(6)
    check(day)
    for one in day.homes:
        for net_wh in one.wallet.net_wh().values():
            assert -200 * LENGTH_S // 3600 <= net_wh <= 400 * LENGTH_S // 3600
    assert orders(day)


async def test_a_promise_from_before_a_new_policy_is_not_sent_after_it():
    """A crash kept it from the outbox; meanwhile the owner has thought better of it."""
    day = TradingDay(neighbours(markets=["order-book"]))
    await day.registered()
    sun = day.homes[0]
    day.clock.to(FIRST_SLOT, 60)
    await sun.trader.trade_ahead(FIRST_SLOT)
    (key,) = [key for key in sun.outbox.sent if key.startswith("offer/")]
    for kept in (sun.outbox.sent, sun.outbox.states):
        del kept[key]
    sun.trader.renew_policy(policy('markets = ["order-book"]\n[[never_sell]]'))
    await sun.trader.trade_ahead(FIRST_SLOT)
    assert key not in sun.outbox.sent
    sun.trader.renew_policy(sun.policy)
    await sun.trader.trade_ahead(FIRST_SLOT)
    assert key in sun.outbox.sent


RULE = (
    '[[rule]]\nevery = "1 min"\nwhen = "battery < 50 %"\nbuy_to = "60 %"\n'
    'price_max = "15 cent/kWh"\n'
)


async def test_a_rule_bids_in_its_own_minute_once():
    day = TradingDay([home("battery", 100, 0, soc_permille=480)])
    one = day.homes[0]
    one.trader.renew_policy(policy(RULE))
    await day.registered()
    day.clock.to(FIRST_SLOT, 240)
    for _ in range(2):
        await one.trader.watch(FIRST_SLOT)
    (operation,) = one.outbox.sent.values()
    assert (operation["side"], operation["priceUcPerKwh"]) == ("buy", 150_000)
    assert operation["energyWh"] == 4_000 * LENGTH_S // 3600, "what the battery takes in a slot"
    record = one.trader._parts.decisions.get(FIRST_SLOT + 1)["record"]
    assert (record["cause"], record["rule"]) == ("rule", "battery < 50 %: buy to 60 %")


async def test_a_minute_without_a_rule_that_fires_orders_nothing():
    day = TradingDay([home("battery", 500, 0, soc_permille=510)])
    one = day.homes[0]
    one.trader.renew_policy(policy(RULE))
    await day.registered()
    day.clock.to(FIRST_SLOT, 240)
    await one.trader.watch(FIRST_SLOT)
    assert one.outbox.sent == {}
