"""The aggregator's decisions (aggregator.core)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core import (
    MIN_AHEAD_SLOTS,
    FlexibilityPolicy,
    FundingPolicy,
    book,
    book_true_up,
    day_ahead,
    flexibility,
    forecast_deviation,
    fund,
)
from market.settlement import Tariff, settle, true_up

FUNDING = FundingPolicy(100_000_000, 5_000, 5_000, 192)
PER_DAY = 96
TARIFF = Tariff(300_000, 80_000, 300_000)


def policy(**changes):
    fields = {
        "band_wh": 500,
        "cap_uc_per_kwh": 280_000,
        "floor_uc_per_kwh": 100_000,
        "ahead_slots": 4,
        "max_energy_wh": 10_000,
        "pricing": "uniform",
        "known_wh": {},
    }
    return FlexibilityPolicy(**{**fields, **changes})


def registration(**changes):
    fields = {
        "event": "address-registered",
        "address": "hg1a",
        "canBuy": True,
        "canSell": True,
        "maxBuyWh": 2_500,
        "maxSellWh": 1_500,
        "startSlot": 10,
        "endSlot": 202,
    }
    return {**fields, **changes}


def test_an_address_gets_what_its_registration_allows():
    operations = dict(fund(registration(), 10, FUNDING))
    assert list(operations) == ["fund/hg1a/production", "fund/hg1a/consumption", "fund/hg1a/money"]
    assert operations["fund/hg1a/production"] == {
        "op": "add-energy-asset",
        "address": "hg1a",
        "kind": "production",
        "energyWh": 1_500,
        "startSlot": 10,
        "endSlot": 202,
    }
    assert operations["fund/hg1a/consumption"]["energyWh"] == 2_500
    assert operations["fund/hg1a/money"]["amountUc"] == 100_000_000


def test_who_may_not_sell_gets_no_production():
    event = registration(canSell=False, maxSellWh=0)
    assert "fund/hg1a/production" not in dict(fund(event, 10, FUNDING))


def test_a_registration_without_limits_gets_the_configured_ones():
    bare = {"event": "address-registered", "address": "hg1a"}
    asset = dict(fund(bare, 10, FUNDING))["fund/hg1a/production"]
    assert (asset["energyWh"], asset["startSlot"], asset["endSlot"]) == (5_000, 10, 202)


def test_the_schedule_is_the_mean_of_the_same_slot_on_other_days():
    first = 10 * PER_DAY
    history = [(first - PER_DAY + 3, 100), (first - 2 * PER_DAY + 3, 300), (first + 3, 9_999)]
    expected = day_ahead(history, first, 900, days=7)
    assert expected[3] == 200
    assert expected[4] is None
    assert len(expected) == PER_DAY


def test_a_standing_schedule_fills_what_history_does_not_know():
    first = 10 * PER_DAY
    expected = day_ahead([(first - 1, 50)], first, 900, 7, list(range(PER_DAY)))
    assert expected[:2] == [0, 1]
    assert expected[95] == 50


def test_old_days_are_forgotten():
    first = 10 * PER_DAY
    assert day_ahead([(first - 3 * PER_DAY, 50)], first, 900, days=2)[0] is None


def test_what_was_not_scheduled_does_not_deviate():
    assert forecast_deviation([(900, None), (500, 200), (100, 0)]) == 200
    assert forecast_deviation([(900, None)]) == 0
    assert forecast_deviation([]) == 0


def test_a_shortage_beyond_the_band_is_bought_below_the_cap():
    [(key, operation)] = flexibility(100, 900, 1_500, policy())
    assert key == "auction/flex-104"
    assert operation == {
        "op": "deploy-auction",
        "auction": "flex-104",
        "template": "reverse",
        "slot": 104,
        "energyWh": 1_500,
        "priceUcPerKwh": 280_000,
        "pricing": "uniform",
    }


def test_a_surplus_beyond_the_band_is_sold_above_the_floor():
    [(_, operation)] = flexibility(100, 900, -700, policy())
    assert (operation["template"], operation["energyWh"]) == ("forward", 700)
    assert operation["priceUcPerKwh"] == 100_000


@pytest.mark.parametrize("deviation_wh", [0, 500, -500])
def test_within_the_band_nothing_is_asked_for(deviation_wh):
    assert flexibility(100, 900, deviation_wh, policy()) == []


def test_a_known_deviation_is_asked_for_from_four_to_two_slots_ahead_and_never_later():
    known = policy(known_wh={78: 1_500})
    asked = [now for now in range(PER_DAY) if flexibility(now, 900, 0, known)]
    assert asked == [74, 75, 76]
    keys = {key for now in asked for key, _ in flexibility(now, 900, 0, known)}
    assert keys == {"auction/flex-78"}


@given(
    st.integers(0, 10**6),
    st.integers(-(10**6), 10**6),
    st.dictionaries(st.integers(0, 95), st.integers(-(10**6), 10**6), max_size=5),
)
def test_every_auction_leaves_homes_time_and_asks_for_a_bounded_amount(now, forecast_wh, known):
    for _, operation in flexibility(now, 900, forecast_wh, policy(known_wh=known)):
        assert MIN_AHEAD_SLOTS <= operation["slot"] - now <= 4
        assert 500 < operation["energyWh"] <= 10_000


flows = st.integers(-5_000, 5_000)
positions = st.integers(0, 3_000)


def row(net_wh, bought_wh, sold_wh):
    result = settle(net_wh, bought_wh, sold_wh, TARIFF)
    return {
        "address": "hg1a",
        "netWh": net_wh,
        "boughtWh": bought_wh,
        "soldWh": sold_wh,
        "residualWh": result.residual_wh,
        "amountUc": -result.amount_uc,
    }


@given(flows, positions, positions, flows, st.booleans())
def test_books_after_a_late_receipt_are_those_of_one_in_time(
    net_wh, bought_wh, sold_wh, assumed_wh, idle
):
    """Settled without a receipt, then trued up, adds up to settled with it."""
    if idle:  # nothing was expected of it, so it had not been settled at all
        bought_wh = sold_wh = assumed_wh = 0
    missed = {
        "rows": [] if idle else [row(assumed_wh, bought_wh, sold_wh)],
        "missing": [] if idle else ["hg1a"],
    }
    late = {
        "rows": [row(net_wh, bought_wh, sold_wh)],
        "amountUc": -true_up(net_wh, bought_wh, sold_wh, TARIFF, assumed_wh),
        **({} if idle else {"assumedNetWh": assumed_wh}),
    }
    in_time = book({"rows": [row(net_wh, bought_wh, sold_wh)], "missing": []})
    first, second = book(missed), book_true_up(late)
    for name in type(in_time).__slots__:
        assert getattr(first, name) + getattr(second, name) == getattr(in_time, name), name
