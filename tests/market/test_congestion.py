"""Schedules under ratings: conservation, limits, whose price, and the optimum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from market.congestion import (
    BUY,
    ROOT,
    SELL,
    Congestion,
    Limit,
    Schedule,
    clear_session,
    pro_rata,
)
from market.double_auction import clear
from market.orders import Order
from market.scheduling import balance, deviation_tariff, session_price
from market.settlement import Tariff, settle

TARIFF = Tariff(retail_uc_per_kwh=30, feed_in_uc_per_kwh=8, imbalance_uc_per_kwh=40)
FREE = Limit(10**9, 10**9)
ZONES = ("north", "south")
MANY = settings(max_examples=max(400, settings().max_examples))


def schedule(seq, side, energy_wh, price, zone=ROOT):
    return Schedule(side, zone, Order(f"home {seq}", energy_wh, price, (1, seq, 0)))


@st.composite
def sessions(draw, least=0):
    """Schedules, limits of the zones and of the feeder."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([BUY, SELL]), st.integers(1, 60), st.integers(0, 45),
                st.sampled_from([ROOT, *ZONES]),
            ),
            max_size=14,
        )
    )  # fmt: skip
    limit = st.builds(Limit, st.integers(least, 80), st.integers(0, 80))
    schedules = [schedule(seq, *row) for seq, row in enumerate(rows)]
    return schedules, {zone: draw(limit) for zone in ZONES}, draw(limit)


def flows(outcome):
    found = dict.fromkeys([ROOT, *ZONES], 0)
    for share in outcome.shares:
        found[share.zone] += share.energy_wh if share.side == SELL else -share.energy_wh
    return found


@pytest.mark.parametrize("congestion", Congestion)
@MANY
@given(case=sessions())
def test_energy_is_conserved_and_no_rating_is_exceeded(congestion, case):
    schedules, limits, feeder = case
    outcome = clear_session(schedules, limits, feeder, TARIFF, congestion)
    assert flows(outcome) == outcome.flows_wh
    for zone in ZONES:
        assert -limits[zone].in_wh <= outcome.flows_wh[zone] <= limits[zone].out_wh
    assert -feeder.in_wh <= outcome.export_wh <= feeder.out_wh
    by_seq = {one.order.seq: one for one in schedules}
    assert len({share.seq for share in outcome.shares}) == len(outcome.shares)
    for share in outcome.shares:
        one = by_seq[share.seq]
        assert (share.side, share.zone) == (one.side, one.zone)
        assert 0 < share.energy_wh <= one.order.energy_wh


@pytest.mark.parametrize("congestion", Congestion)
@MANY
@given(case=sessions())
def test_nobody_pays_more_or_gets_less_than_it_said(congestion, case):
    schedules, limits, feeder = case
    outcome = clear_session(schedules, limits, feeder, TARIFF, congestion)
    said = {one.order.seq: one.order.price_uc_per_kwh for one in schedules}
    for share in outcome.shares:
        assert share.price_uc_per_kwh == outcome.prices[share.zone]
        if share.side == BUY:
            assert share.price_uc_per_kwh <= said[share.seq]
        else:
            assert share.price_uc_per_kwh >= said[share.seq]


@pytest.mark.parametrize("congestion", Congestion)
@given(case=sessions(), order=st.randoms())
def test_a_permutation_of_the_schedules_changes_nothing(congestion, case, order):
    schedules, limits, feeder = case
    shuffled = order.sample(schedules, len(schedules))
    outcome = clear_session(schedules, limits, feeder, TARIFF, congestion)
    assert clear_session(shuffled, limits, feeder, TARIFF, congestion) == outcome


@MANY
@given(case=sessions())
def test_zone_prices_make_the_greatest_surplus_that_the_ratings_allow(case):
    schedules, limits, feeder = case
    outcome = clear_session(schedules, limits, feeder, TARIFF, "split")
    got = {share.seq: share.energy_wh for share in outcome.shares}
    surplus = sum(
        (1 if one.side == BUY else -1) * one.order.price_uc_per_kwh * got.get(one.order.seq, 0)
        for one in schedules
    )
    export_wh = outcome.export_wh
    surplus += export_wh * (
        TARIFF.feed_in_uc_per_kwh if export_wh > 0 else TARIFF.retail_uc_per_kwh
    )
    assert surplus == pytest.approx(greatest_surplus(schedules, limits, feeder), abs=1e-6)


def greatest_surplus(schedules, limits, feeder):
    """The same as a linear programme: schedules, then import and export of the feeder."""
    sign = [1 if one.side == SELL else -1 for one in schedules]
    cost = [s * one.order.price_uc_per_kwh for s, one in zip(sign, schedules, strict=True)]
    cost += [TARIFF.retail_uc_per_kwh, -TARIFF.feed_in_uc_per_kwh]
    bounds = [(0, one.order.energy_wh) for one in schedules]
    bounds += [(0, feeder.in_wh), (0, feeder.out_wh)]
    rows, most = [], []
    for zone in ZONES:
        out = [s * (one.zone == zone) for s, one in zip(sign, schedules, strict=True)] + [0, 0]
        rows += [out, [-x for x in out]]
        most += [limits[zone].out_wh, limits[zone].in_wh]
    equal = np.array([[*sign, 1, -1]])
    found = linprog(cost, np.array(rows), most, equal, [0], bounds)
    assert found.status == 0
    return -found.fun


@given(case=sessions())
def test_without_limits_there_is_one_price_the_double_auctions(case):
    schedules, _, _ = case
    limits = dict.fromkeys(ZONES, FREE)
    outcome = clear_session(schedules, limits, Limit(0, 0), TARIFF, "split")
    alone = clear(
        [one.order for one in schedules if one.side == BUY],
        [one.order for one in schedules if one.side == SELL],
    )
    assert len(set(outcome.prices.values())) == 1
    if alone.traded_wh:
        assert outcome.prices[ROOT] == alone.price_uc_per_kwh
    awards = {a.seq: a.energy_wh for a in (*alone.bid_awards, *alone.offer_awards)}
    assert {share.seq: share.energy_wh for share in outcome.shares} == awards


def test_a_zone_with_too_much_sun_gets_a_lower_price():
    schedules = [
        schedule(0, SELL, 100, 10, "north"), schedule(1, BUY, 20, 25, "north"),
        schedule(2, BUY, 90, 28), schedule(3, SELL, 40, 24),
    ]  # fmt: skip
    limits = {"north": Limit(50, 50)}
    outcome = clear_session(schedules, limits, Limit(0, 0), TARIFF, "split")
    assert outcome.flows_wh == {ROOT: -50, "north": 50}
    assert outcome.congested == ("north",)
    assert {share.seq[1]: share.energy_wh for share in outcome.shares} == {
        0: 70, 1: 20, 2: 90, 3: 40,
    }  # fmt: skip
    assert outcome.prices["north"] < outcome.prices[ROOT]
    assert 24 <= outcome.prices[ROOT] <= 28


def test_a_feeder_full_of_sun_is_cut_in_proportion():
    """467 kWp behind 160 kVA, a quarter of an hour, hardly any demand."""
    schedules = [schedule(i, SELL, 15_567 if i < 5 else 7_783, 8) for i in range(10)]
    schedules.append(schedule(10, BUY, 6_750, 30))
    rating = Limit(40_000, 40_000)
    outcome = clear_session(schedules, {}, rating, TARIFF, "curtail")
    assert outcome.export_wh == 40_000
    assert outcome.congested == (ROOT,)
    wanted = 46_750 / 116_750
    for share in outcome.shares[:10]:
        full = 15_567 if share.seq[1] < 5 else 7_783
        assert abs(share.energy_wh - full * wanted) <= 1
    free = clear_session(schedules, {}, FREE, TARIFF, "curtail")
    assert free.export_wh == 110_000


def test_a_closed_interconnection_makes_an_island():
    schedules = [
        schedule(0, SELL, 100, 10, "north"), schedule(1, BUY, 30, 25, "north"),
        schedule(2, BUY, 50, 31),
    ]  # fmt: skip
    for congestion in Congestion:
        outcome = clear_session(schedules, {"north": Limit(0, 0)}, FREE, TARIFF, congestion)
        assert outcome.flows_wh["north"] == 0
        assert {share.seq[1]: share.energy_wh for share in outcome.shares}[2] == 50


@given(case=sessions(least=-60), congestion=st.sampled_from(Congestion))
def test_what_has_to_flow_back_flows_as_far_as_orders_go(case, congestion):
    """After a closure: a zone has to send out what it was to take in, if anybody lets it."""
    schedules, limits, feeder = case
    limits = {zone: Limit(one.in_wh, max(one.out_wh, -one.in_wh)) for zone, one in limits.items()}
    outcome = clear_session(schedules, limits, feeder, TARIFF, congestion)
    assert flows(outcome) == outcome.flows_wh
    for zone in ZONES:
        sells = [one.order.energy_wh for one in schedules if (one.side, one.zone) == (SELL, zone)]
        least = min(-limits[zone].in_wh, sum(sells))
        assert outcome.flows_wh[zone] <= limits[zone].out_wh
        if congestion is Congestion.SPLIT:
            assert outcome.flows_wh[zone] >= least


@given(st.lists(st.integers(0, 10**6), max_size=20), st.data())
def test_a_cut_is_divided_to_the_last_unit_and_in_proportion(amounts, data):
    cut = data.draw(st.integers(0, sum(amounts)))
    shares = pro_rata(amounts, cut)
    assert sum(shares) == cut
    for amount, share in zip(amounts, shares, strict=True):
        assert 0 <= share <= amount
        assert abs(share * sum(amounts) - amount * cut) < max(1, sum(amounts))


def test_balance_and_fixed_price_are_what_they_say():
    demand, production = [Order("a", 5, 30, (1,))], [Order("b", 7, 8, (2,)), Order("c", 1, 8, (3,))]
    found = balance(demand, production)
    assert (found.demand_wh, found.production_wh, found.net_wh) == (5, 8, -3)
    assert session_price(TARIFF) == 19


@pytest.mark.parametrize(
    ("net_wh", "bought_wh", "sold_wh", "pays"),
    [(1000, 1000, 0, 0), (1500, 1000, 0, 20), (500, 1000, 0, -4), (-700, 0, 1000, 12)],
)
def test_deviations_of_who_scheduled_cost_the_imbalance_price(net_wh, bought_wh, sold_wh, pays):
    assert settle(net_wh, bought_wh, sold_wh, deviation_tariff(TARIFF)).amount_uc == pays
