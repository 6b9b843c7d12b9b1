"""Quantity and price curves over the state of charge: TMI Figs 4 and 5."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.curves import bid_price, bid_quantity_wh, offer_price, offer_quantity_wh

socs = st.integers(0, 1000)


@st.composite
def curves(draw, rising):
    xs = draw(st.lists(socs, min_size=1, max_size=6, unique=True))
    ys = draw(st.lists(socs, min_size=len(xs), max_size=len(xs)))
    return tuple(zip(sorted(xs), sorted(ys, reverse=not rising), strict=True))


@settings(max_examples=40, deadline=None)
@given(curves(True), socs, socs, st.integers(0, 10_000))
def test_the_offered_quantity_rises_with_the_soc_and_stays_below_the_limit(curve, a, b, limit):
    low, high = sorted((a, b))
    assert 0 <= offer_quantity_wh(low, limit, curve) <= offer_quantity_wh(high, limit, curve)
    assert offer_quantity_wh(high, limit, curve) <= limit


@settings(max_examples=40, deadline=None)
@given(curves(False), socs, socs, st.integers(0, 10_000))
def test_the_bid_quantity_falls_with_the_soc_and_stays_below_the_limit(curve, a, b, limit):
    low, high = sorted((a, b))
    assert limit >= bid_quantity_wh(low, limit, curve) >= bid_quantity_wh(high, limit, curve) >= 0


@settings(max_examples=40, deadline=None)
@given(
    curves(False),
    socs,
    socs,
    st.integers(0, 500_000),
    st.integers(0, 500_000),
    st.integers(0, 500_000),
)
def test_the_offer_price_falls_with_the_soc_and_covers_the_wear(curve, a, b, low, high, wear):
    poor, rich = sorted((a, b))
    assert offer_price(poor, low, high, wear, curve) >= offer_price(rich, low, high, wear, curve)
    assert offer_price(rich, low, high, wear, curve) >= wear


@settings(max_examples=40, deadline=None)
@given(socs, socs, st.integers(0, 500_000), st.integers(0, 500_000))
def test_the_bid_price_falls_with_the_soc_between_its_ends(a, b, x, y):
    poor, rich = sorted((a, b))
    low, high = sorted((x, y))
    assert high >= bid_price(poor, low, high) >= bid_price(rich, low, high) >= low


def test_between_two_points_the_curve_is_a_straight_line():
    assert offer_quantity_wh(500, 1_000, ((200, 0), (800, 1000))) == 500
    assert offer_quantity_wh(350, 1_000, ((200, 0), (800, 1000))) == 250


@pytest.mark.parametrize("curve", [(), ((0, 1001),), ((5, 1), (5, 2)), ((0, 9), (9, 0))])
def test_a_curve_that_is_none_is_refused(curve):
    with pytest.raises(ValueError):
        offer_quantity_wh(500, 1_000, curve)
