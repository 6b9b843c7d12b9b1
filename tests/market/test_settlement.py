"""Settlement: each home on its own meter, nothing created or lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market import Tariff, assumed_net_wh, settle, totals, true_up
from wire.units import cost_uc

TARIFF = Tariff(retail_uc_per_kwh=300_000, feed_in_uc_per_kwh=80_000, imbalance_uc_per_kwh=350_000)
NET = st.integers(-20_000, 20_000)
POSITION = st.integers(0, 20_000)
PRICE = st.integers(0, 500_000)
TARIFFS = st.builds(Tariff, PRICE, PRICE, PRICE)


def test_delivered_as_contracted_costs_nothing():
    assert settle(500, 500, 0, TARIFF).amount_uc == 0
    assert settle(-500, 0, 500, TARIFF).amount_uc == 0


def test_energy_without_a_contract_is_at_retail_and_feed_in():
    assert settle(1000, 0, 0, TARIFF).amount_uc == 300_000
    assert settle(-1000, 0, 0, TARIFF).amount_uc == -80_000


def test_a_sellers_shortfall_is_bought_at_the_imbalance_price():
    result = settle(-200, 0, 500, TARIFF)
    assert (result.residual_wh, result.shortfall_wh) == (300, 300)
    assert result.amount_uc == cost_uc(300, 350_000)


def test_what_a_seller_consumes_beyond_its_sale_is_at_retail():
    result = settle(100, 0, 500, TARIFF)
    assert (result.residual_wh, result.shortfall_wh) == (600, 500)
    assert result.amount_uc == cost_uc(500, 350_000) + cost_uc(100, 300_000)


def test_a_buyer_that_took_less_sells_the_rest_back_at_feed_in():
    result = settle(200, 500, 0, TARIFF)
    assert (result.residual_wh, result.amount_uc) == (-300, -cost_uc(300, 80_000))


def test_a_seller_is_not_fined_because_its_buyer_took_less():
    seller = settle(-500, 0, 500, TARIFF)
    buyer = settle(0, 500, 0, TARIFF)
    assert seller.amount_uc == 0
    assert buyer.amount_uc == -40_000


def test_a_missing_receipt_is_a_shortage_of_the_seller_and_consumption_of_all_it_can():
    assumed_wh = assumed_net_wh(4000, 3000, 0)
    result = settle(assumed_wh, 0, 500, TARIFF)
    assert (result.residual_wh, result.shortfall_wh) == (4500, 500)
    assert result.amount_uc == cost_uc(500, 350_000) + cost_uc(4000, 300_000)


def test_a_home_that_may_only_sell_is_not_taken_to_consume_nothing():
    assert assumed_net_wh(0, 3000, 0) == 3000


def test_what_was_bought_under_an_earlier_grant_may_have_flowed():
    assert assumed_net_wh(100, 100, 700) == 700


def test_a_negative_position_is_our_own_mistake():
    with pytest.raises(ValueError, match="negative position"):
        settle(0, -1, 0, TARIFF)


@given(NET, POSITION, POSITION, TARIFFS, NET)
def test_a_late_receipt_ends_where_a_timely_one_would(net, bought, sold, tariff, assumed):
    first = settle(assumed, bought, sold, tariff).amount_uc
    late = first + true_up(net, bought, sold, tariff, assumed)
    assert late == settle(net, bought, sold, tariff).amount_uc


@given(POSITION, POSITION, POSITION, POSITION, TARIFFS, st.data())
def test_withholding_a_receipt_never_pays(max_buy, max_sell, bought, sold, tariff, data):
    """Whatever flowed through the connection, the truth costs no more than silence."""
    assumed = assumed_net_wh(max_buy, max_sell, bought)
    net = data.draw(st.integers(-max_sell, assumed))
    truth, silence = settle(net, bought, sold, tariff), settle(assumed, bought, sold, tariff)
    assert truth.amount_uc <= silence.amount_uc


@given(st.lists(st.tuples(NET, POSITION, POSITION), max_size=8), TARIFFS)
def test_energy_and_money_of_a_slot_balance(rows, tariff):
    result = totals(rows, tariff)
    assert result.net_wh == result.residual_wh + result.contracted_wh
    assert result.supervisor_uc == sum(settle(*row, tariff).amount_uc for row in rows)


@given(NET, POSITION, POSITION, TARIFFS)
def test_the_shortfall_is_never_more_than_was_sold_or_missing(net, bought, sold, tariff):
    result = settle(net, bought, sold, tariff)
    assert 0 <= result.shortfall_wh <= sold
    assert result.shortfall_wh <= max(result.residual_wh, 0)


@given(NET, POSITION, POSITION)
def test_taking_more_never_pays(net, bought, sold):
    """With feed-in ≤ retail ≤ imbalance, each Wh more from the grid costs, or earns less."""
    one, more = settle(net, bought, sold, TARIFF), settle(net + 1, bought, sold, TARIFF)
    # Two rounded parts may each drop less than one µ¤.
    assert more.amount_uc >= one.amount_uc - 1
