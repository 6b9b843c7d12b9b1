"""Reverse and forward auctions of the aggregator."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market import Order, Pricing, Unmatched, forward, reverse

ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=10)


def make(rows):
    return [Order(f"n{i}", e, p, (i,)) for i, (e, p) in enumerate(rows)]


def test_the_cheaper_offer_wins():
    """ETSE: n1 lacks 12, pays at most 60; n3 offers at 45, n5 at 50."""
    result = reverse(12, 60, [Order("n5", 12, 50, (0,)), Order("n3", 12, 45, (1,))], "as-bid")
    assert [(a.address, a.energy_wh, a.price_uc_per_kwh) for a in result.awards] == [("n3", 12, 45)]
    assert [(r.address, r.reason) for r in result.rejected] == [
        ("n5", Unmatched.QUANTITY_EXHAUSTED)
    ]


def test_without_the_winner_the_next_one_is_taken():
    """ETSE: n3's meter is banned, so its offer does not reach the auction and n5 wins."""
    result = reverse(12, 60, [Order("n5", 12, 50, (0,))], "as-bid")
    assert result.awards[0].address == "n5"


def test_an_offer_above_the_cap_is_refused_and_one_at_the_cap_taken():
    result = reverse(100, 10, make([(5, 10), (5, 11)]), "as-bid")
    assert [a.address for a in result.awards] == ["n0"]
    assert result.rejected[0].reason is Unmatched.PRICE_NOT_REACHED


def test_a_bid_below_the_floor_is_refused_and_one_at_the_floor_taken():
    result = forward(100, 10, make([(5, 10), (5, 9)]), "as-bid")
    assert [a.address for a in result.awards] == ["n0"]
    assert result.rejected[0].reason is Unmatched.PRICE_NOT_REACHED


def test_uniform_pays_everybody_the_last_price_taken():
    result = reverse(8, 10, make([(5, 3), (5, 7), (5, 9)]), Pricing.UNIFORM)
    assert {a.price_uc_per_kwh for a in result.awards} == {7}
    result = forward(8, 1, make([(5, 3), (5, 7), (5, 9)]), Pricing.UNIFORM)
    assert {a.price_uc_per_kwh for a in result.awards} == {7}
    assert [a.energy_wh for a in result.awards] == [5, 3]


def test_equal_prices_go_to_the_earlier_order_in_both():
    late, early = Order("late", 5, 4, (9,)), Order("early", 5, 4, (1,))
    assert reverse(5, 9, [late, early], "as-bid").awards[0].address == "early"
    assert forward(5, 1, [late, early], "as-bid").awards[0].address == "early"


def test_an_unknown_pricing_is_refused():
    with pytest.raises(ValueError, match="vickrey"):
        reverse(1, 1, [], "vickrey")


def test_an_order_for_nothing_is_rejected_by_name():
    result = reverse(5, 9, make([(-3, 1), (5, 2)]), "as-bid")
    assert result.awarded_wh == 5
    assert result.rejected[0].reason is Unmatched.QUANTITY_OUT_OF_RANGE


def test_a_quantity_of_nothing_takes_nothing():
    assert reverse(0, 9, make([(5, 2)]), "as-bid").awards == ()
    assert forward(-5, 0, make([(5, 2)]), "uniform").awards == ()


@given(st.integers(0, 60), st.integers(0, 12), ROWS, st.sampled_from(list(Pricing)))
def test_as_much_as_the_cap_allows_at_the_least_cost(quantity, cap, rows, pricing):
    result = reverse(quantity, cap, make(rows), pricing)
    units = sorted(p for e, p in rows for _ in range(e) if p <= cap)[:quantity]
    assert result.awarded_wh == len(units)
    named = {f"n{i}": p for i, (_, p) in enumerate(rows)}
    assert sum(named[a.address] * a.energy_wh for a in result.awards) == sum(units)
    assert all(named[a.address] <= a.price_uc_per_kwh <= cap for a in result.awards)


@given(st.integers(0, 60), st.integers(0, 12), ROWS, st.sampled_from(list(Pricing)))
def test_forward_mirrors_reverse(quantity, floor, rows, pricing):
    """Selling at p is buying at −p."""
    mirrored = [Order(o.address, o.energy_wh, -o.price_uc_per_kwh, o.seq) for o in make(rows)]
    one = forward(quantity, floor, make(rows), pricing)
    other = reverse(quantity, -floor, mirrored, pricing)
    assert [(a.address, a.energy_wh, a.price_uc_per_kwh) for a in one.awards] == [
        (a.address, a.energy_wh, -a.price_uc_per_kwh) for a in other.awards
    ]


@given(st.integers(0, 60), st.integers(0, 12), ROWS)
def test_every_wh_is_awarded_or_rejected_once(quantity, cap, rows):
    result = reverse(quantity, cap, make(rows), "as-bid")
    seen = sum(p.energy_wh for p in (*result.awards, *result.rejected))
    assert seen == sum(e for e, _ in rows)
