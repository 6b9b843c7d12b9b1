"""Orders of a home: what it may promise, at which price."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.battery import Battery
from hem.controller.bidding import Situation, answer_auction, decide
from hem.controller.forecast import Forecast
from hem.controller.forward import Early
from hem.controller.policy import Policy
from hem.controller.value_curve import ValueCurve

RETAIL, FEED_IN = 300_000, 80_000
BATTERY = Battery(8_000, 4_000, 4_000, soc_min_permille=0)
NIGHT = (100,) * 40
SUN = (-800,) * 20


value_curves = st.lists(st.integers(0, 500_000), min_size=10, max_size=10).map(
    lambda values: ValueCurve(0, 800, tuple(sorted(values, reverse=True)))
)


def situation(load=0, pv=0, spread=0, soc=None, ahead=(), **changes):
    facts = {
        "slot": 7,
        "slot_seconds": 900,
        "forecast": Forecast(load, pv, spread, ahead),
        "soc_wh": soc,
        "battery": None if soc is None else BATTERY,
        "retail": RETAIL,
        "feed_in": FEED_IN,
        "imbalance": RETAIL,
        "prices": (),
        "can_buy": True,
        "can_sell": True,
        "max_buy_wh": 3_000,
        "max_sell_wh": 3_000,
    }
    return Situation(**(facts | changes))


def sides(decision):
    return [(order.side, order.energy_wh) for order in decision.orders]


def test_a_consumer_bids_for_what_it_surely_needs():
    assert sides(decide(situation(load=1_000), Policy())) == [("buy", 900)]
    assert sides(decide(situation(load=1_000, spread=200), Policy()))[0][1] <= 900


def test_a_pv_home_offers_a_low_quantile_of_its_surplus():
    cautious = decide(situation(pv=1_000, spread=300, prices=(113_000,)), Policy())
    sure = decide(situation(pv=1_000, spread=0, prices=(113_000,)), Policy())
    assert cautious.orders[0].side == sure.orders[0].side == "sell"
    assert cautious.orders[0].energy_wh < sure.orders[0].energy_wh <= 1_000


def test_who_is_unsure_asks_more_and_bids_less():
    def price(**facts):
        return decide(situation(**facts), Policy()).orders[0].price_uc_per_kwh

    assert price(pv=1_000, spread=200) > price(pv=1_000)
    assert price(load=1_000, spread=200) < price(load=1_000)


def test_a_surplus_that_the_battery_needs_is_not_sold():
    decision = decide(situation(pv=600, soc=1_000, ahead=NIGHT), Policy())
    assert "sell" not in {order.side for order in decision.orders}


def test_a_surplus_that_would_spill_anyway_is_sold():
    orders = decide(situation(pv=600, soc=6_000, ahead=SUN + NIGHT), Policy()).orders
    assert ("sell", 540) in [(order.side, order.energy_wh) for order in orders]


def test_in_the_evening_only_what_the_night_will_not_need_is_offered():
    full = decide(situation(load=100, soc=7_900, ahead=NIGHT + SUN), Policy())
    low = decide(situation(load=100, soc=4_400, ahead=NIGHT + SUN), Policy())
    assert full.orders[0].side == "sell"
    assert low.orders == ()


def test_stored_energy_is_never_sold_below_wear_and_its_later_value():
    policy = Policy(battery_cost_uc=10**9, lifetime_throughput_wh=10**7)
    for soc in (6_000, 7_000, 8_000):
        for order in decide(situation(load=100, soc=soc, ahead=NIGHT + SUN), policy).orders:
            assert order.price_uc_per_kwh >= 10**5 + FEED_IN


def test_a_home_that_has_not_seen_a_whole_day_buys_nothing_for_later():
    for soc in (500, 3_000):
        facts = situation(soc=soc)
        guess = Forecast(300, 0, 0, (300,) * 60, day_seen=False)
        assert decide(replace(facts, forecast=guess), Policy()).orders == ()


def test_what_an_empty_battery_cannot_give_is_bought_whatever_is_known():
    for forecast in (Forecast(300, 0, 0, day_seen=False), Forecast(300, 0, 0, (300,) * 60)):
        orders = decide(replace(situation(soc=0), forecast=forecast), Policy()).orders
        assert ("buy", 300) in [(order.side, order.energy_wh) for order in orders]


def test_stored_energy_costs_more_the_likelier_it_will_be_missed():
    def ask(night):
        facts = situation(load=100, soc=7_900, ahead=(night,) * 40 + SUN)
        return decide(facts, Policy()).orders[0].price_uc_per_kwh

    assert ask(60) < ask(120)


def test_without_a_battery_nothing_is_promised_when_sun_or_load_may_win():
    assert decide(situation(load=300, pv=200, spread=150), Policy()).orders == ()
    assert decide(situation(load=200, pv=300, spread=150), Policy()).orders == ()


def test_a_battery_that_will_run_empty_buys():
    orders = decide(situation(load=300, soc=500, ahead=(300,) * 60), Policy()).orders
    assert orders
    assert {order.side for order in orders} == {"buy"}


def test_charging_pays_after_losses_and_wear():
    policy = Policy()
    orders = decide(situation(load=0, soc=500, ahead=(300,) * 60), policy).orders
    assert orders
    for order in orders:
        paid = order.price_uc_per_kwh * 1000 * 1000 // (949 * 949)
        assert paid + policy.degradation_uc_per_kwh < RETAIL


def test_the_owners_caps_hold():
    policy = Policy(buy_price_max=150_000, sell_price_min=250_000)
    assert decide(situation(load=1_000), policy).orders[0].price_uc_per_kwh == 150_000
    assert decide(situation(pv=1_000), policy).orders[0].price_uc_per_kwh == 250_000


def test_rewards_only_means_no_orders():
    policy = Policy(participation="RE")
    assert decide(situation(load=1_000), policy).orders == ()
    assert answer_auction(evening(), policy, "reverse", 500, RETAIL, 0) is None


def test_without_a_gap_there_is_nothing_to_trade():
    assert decide(situation(load=1_000, feed_in=RETAIL), Policy()).orders == ()


def test_only_what_the_grant_allows():
    assert decide(situation(load=1_000, can_buy=False), Policy()).orders == ()
    assert sides(decide(situation(pv=1_000, max_sell_wh=200), Policy())) == [("sell", 200)]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 3_000), st.integers(0, 3_000), st.integers(0, 2_000),
    st.none() | st.integers(0, 8_000),
    st.lists(st.integers(-1_500, 1_500), max_size=95).map(tuple),
    st.lists(st.integers(0, 400_000), max_size=6).map(tuple),
    st.integers(0, 2_000), st.integers(0, 2_000), st.none() | value_curves,
)  # fmt: skip
def test_orders_are_gains_within_the_grants_and_what_the_home_can_keep(
    load, pv, spread, soc, ahead, prices, max_buy, max_sell, curve
):
    facts = situation(
        load, pv, spread, soc, ahead, prices=prices, max_buy_wh=max_buy, max_sell_wh=max_sell,
        curve=curve,
    )  # fmt: skip
    decision = decide(facts, Policy())
    bought = sum(o.energy_wh for o in decision.orders if o.side == "buy")
    sold = sum(o.energy_wh for o in decision.orders if o.side == "sell")
    assert bought <= max_buy
    assert sold <= max_sell
    assert not (bought and sold)
    for order in decision.orders:
        assert order.energy_wh >= 10
        assert FEED_IN < order.price_uc_per_kwh < RETAIL
    give = BATTERY.discharge_limit_wh(soc, 900) if soc is not None else 0
    take = BATTERY.charge_limit_wh(soc, 900) if soc is not None else 0
    assert sold <= max(pv - load, 0) + give
    assert bought <= max(load - pv, 0) + take
    assert -take <= decision.battery_wh <= give
    assert decision.reason
    if sold > max(pv - load, 0):  # some of it is stored
        dearest = max(order.price_uc_per_kwh for order in decision.orders)
        assert dearest >= Policy().degradation_uc_per_kwh


DEAR_TONIGHT = ValueCurve(0, 800, (320_000,) * 5 + (60_000,) * 5)
"""Four of eight kWh are worth more tonight than anybody pays now."""


def test_what_is_worth_more_tonight_is_not_sold_and_the_rest_in_steps():
    facts = situation(load=100, soc=7_600, curve=DEAR_TONIGHT)
    sold = decide(facts, Policy()).orders
    assert {order.side for order in sold} == {"sell"}
    assert 0 < sum(order.energy_wh for order in sold) <= 7_600 - 4_000
    assert all(order.price_uc_per_kwh >= Policy().degradation_uc_per_kwh for order in sold)
    low = situation(load=100, soc=3_900, curve=DEAR_TONIGHT)
    assert all(order.side == "buy" for order in decide(low, Policy()).orders)


def test_asks_rise_with_what_is_given_up():
    falling = ValueCurve(0, 200, tuple(range(280_000, 40_000, -6_000)))
    sold = decide(situation(load=0, soc=7_900, curve=falling), Policy()).orders
    asks = [order.price_uc_per_kwh for order in sold]
    assert len(asks) > 1
    assert asks == sorted(asks)


def test_a_battery_whose_charge_will_be_dear_is_charged_by_bids_that_fall():
    falling = ValueCurve(0, 200, tuple(range(400_000, 160_000, -6_000)))
    bought = decide(situation(load=0, soc=800, curve=falling), Policy()).orders
    assert {order.side for order in bought} == {"buy"}
    prices = [order.price_uc_per_kwh for order in bought]
    assert prices == sorted(prices, reverse=True)
    assert max(prices) < RETAIL


def test_what_is_promised_for_later_slots_is_not_sold_now_as_well():
    """The curve knows the home's need, not its promises: 2 kWh at 19:00 are sold once."""
    curve = ValueCurve(0, 800, (90_000,) * 10)
    free = situation(soc=2_400, ahead=NIGHT, curve=curve)
    early = Early({}, {12: 2_000}, {}, lambda _slot: Forecast(100, 0, 0, NIGHT))
    owing = replace(free, owed_wh=early.owed_wh(free.slot))
    assert owing.owed_wh == 2_000
    sold_wh, left_wh = (
        sum(order.energy_wh for order in decide(one, Policy(reserve_permille=0)).orders)
        for one in (free, owing)
    )
    kept_wh = BATTERY.after(2_400, 0, left_wh)
    assert sold_wh > left_wh
    assert BATTERY.discharge_limit_wh(kept_wh, 10**9) >= 2_000


def test_what_the_sun_gives_in_its_own_slot_is_not_owed_by_the_battery():
    early = Early({20: 500}, {12: 700, 5: 900}, {14: 300}, lambda _slot: Forecast(0, 800, 0, ()))
    assert early.owed_wh(7) == 0
    dark = Early({20: 500}, {12: 700, 5: 900}, {14: 300}, lambda _slot: Forecast(100, 0, 0, ()))
    assert dark.owed_wh(7) == 1_000


def test_an_auction_gets_only_the_steps_below_its_cap():
    falling = ValueCurve(0, 200, tuple(range(280_000, 40_000, -6_000)))
    facts = situation(load=0, soc=7_900, curve=falling)
    least = min(order.price_uc_per_kwh for order in decide(facts, Policy()).orders)
    assert answer_auction(facts, Policy(), "reverse", 10_000, least - 1, 0) is None
    some = answer_auction(facts, Policy(), "reverse", 10_000, least, 0)
    all_of_it = answer_auction(facts, Policy(), "reverse", 10_000, RETAIL - 1, 0)
    assert some is not None and all_of_it is not None
    assert some.energy_wh < all_of_it.energy_wh
    assert some.price_uc_per_kwh <= least


def evening(**changes):
    return situation(load=100, soc=7_900, ahead=NIGHT + SUN, **changes)


def test_the_aggregators_reverse_auction_gets_spare_battery_energy_below_its_cap():
    order = answer_auction(evening(), Policy(), "reverse", 500, 250_000, 0)
    assert order is not None
    assert order.side == "sell"
    assert 0 < order.energy_wh <= 500
    assert Policy().degradation_uc_per_kwh + FEED_IN < order.price_uc_per_kwh <= 250_000


def test_a_cap_below_wear_and_value_gets_no_answer():
    assert answer_auction(evening(), Policy(), "reverse", 500, 100_000, 0) is None


def test_energy_already_committed_is_not_sold_twice():
    free = answer_auction(evening(), Policy(), "reverse", 10_000, 250_000, 0)
    assert free is not None
    assert answer_auction(evening(), Policy(), "reverse", 10_000, 250_000, free.energy_wh) is None


def test_the_aggregators_surplus_is_bought_by_a_battery_that_will_run_empty():
    facts = situation(load=0, soc=500, ahead=(300,) * 60)
    order = answer_auction(facts, Policy(), "forward", 400, 90_000, 0)
    assert order is not None
    assert (order.side, order.energy_wh) == ("buy", 400)


@pytest.mark.parametrize("template", ["reverse", "forward", "unheard-of"])
def test_without_a_battery_an_auction_gets_no_answer(template):
    assert answer_auction(situation(pv=900), Policy(), template, 500, 250_000, 0) is None
