"""What holds of every auction, whatever the orders; the optimum comes from a linear program."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from market import Order, Pricing, Unmatched, clear, efficiency, forward, pieces, reverse

PRICINGS = st.sampled_from(list(Pricing))
MANY = settings(max_examples=max(300, settings().max_examples))


def orders(prefix, max_size=10, max_wh=50, max_price=30):
    row = st.tuples(st.integers(1, max_wh), st.integers(0, max_price), st.integers(0, 2))
    return st.lists(row, max_size=max_size).map(
        lambda rows: [Order(f"{prefix}{i}", e, p, (h, i)) for i, (e, p, h) in enumerate(rows)]
    )


BOOK = (orders("b"), orders("o"), PRICINGS)


def linear_program(bids, offers):
    """The greatest welfare of any balanced allocation: HiGHS knows nothing of merit orders."""
    if not bids or not offers:
        return 0
    gain = [-b.price_uc_per_kwh for b in bids] + [o.price_uc_per_kwh for o in offers]
    balance = [[1] * len(bids) + [-1] * len(offers)]
    bounds = [(0, one.energy_wh) for one in (*bids, *offers)]
    found = linprog(gain, A_eq=np.array(balance), b_eq=[0], bounds=bounds, method="highs")
    assert found.success
    return round(-found.fun)


@settings(max_examples=max(500, settings().max_examples))
@given(*BOOK)
def test_no_allocation_has_more_welfare_than_the_clearing(bids, offers, pricing):
    """What was awarded is worth as much as the program finds, and as much as the clearing says."""
    result = clear(bids, offers, pricing)
    named = {one.address: one.price_uc_per_kwh for one in (*bids, *offers)}
    worth = sum(named[a.address] * a.energy_wh for a in result.bid_awards)
    worth -= sum(named[a.address] * a.energy_wh for a in result.offer_awards)
    assert worth == result.welfare_milli_uc == linear_program(bids, offers)


@settings(max_examples=max(150, settings().max_examples))
@given(st.integers(1, 200), st.integers(0, 30), orders("n"))
def test_no_allocation_has_more_welfare_than_the_aggregators_auction(quantity, cap, rows):
    result = reverse(quantity, cap, rows, "as-bid")
    worth = sum((cap - a.price_uc_per_kwh) * a.energy_wh for a in result.awards)
    assert worth == linear_program([Order("aggregator", quantity, cap, ())], rows)


@MANY
@given(*BOOK)
def test_energy_and_money_are_conserved(bids, offers, pricing):
    result = clear(bids, offers, pricing)
    bought = sum(a.energy_wh for a in result.bid_awards)
    sold = sum(a.energy_wh for a in result.offer_awards)
    assert bought == sold == result.traded_wh
    paid = sum(a.energy_wh * a.price_uc_per_kwh for a in result.bid_awards)
    assert paid == sum(a.energy_wh * a.price_uc_per_kwh for a in result.offer_awards)
    parts = pieces(result)
    assert sum(p.energy_wh for p in parts) == bought and all(p.energy_wh > 0 for p in parts)
    assert sum(p.energy_wh * p.price_uc_per_kwh for p in parts) == paid
    assert len(parts) <= len(bids) + len(offers)


@MANY
@given(*BOOK)
def test_nobody_pays_more_or_gets_less_than_they_said(bids, offers, pricing):
    result = clear(bids, offers, pricing)
    named = {o.address: o.price_uc_per_kwh for o in (*bids, *offers)}
    assert all(a.price_uc_per_kwh <= named[a.address] for a in result.bid_awards)
    assert all(a.price_uc_per_kwh >= named[a.address] for a in result.offer_awards)
    if pricing is Pricing.AS_BID:
        assert all(a.price_uc_per_kwh == named[a.address] for a in result.bid_awards)
    for piece in pieces(result):
        assert named[piece.seller] <= piece.price_uc_per_kwh <= named[piece.buyer]


@MANY
@given(*BOOK, st.randoms(use_true_random=False))
def test_a_permutation_of_a_sealed_batch_changes_nothing(bids, offers, pricing, chance):
    mixed = bids.copy(), offers.copy()
    for side in mixed:
        chance.shuffle(side)
    assert clear(*mixed, pricing) == clear(bids, offers, pricing)
    for rule in (reverse, forward):
        assert rule(60, 15, mixed[0], pricing) == rule(60, 15, bids, pricing)


@MANY
@given(*BOOK)
def test_who_gets_how_much_does_not_depend_on_the_pricing(bids, offers, _pricing):
    one, other = clear(bids, offers, "uniform"), clear(bids, offers, "as-bid")
    for side in ("bid_awards", "offer_awards"):
        shares = [Counter(), Counter()]
        for share, result in zip(shares, (one, other), strict=True):
            for award in getattr(result, side):
                share[award.seq] += award.energy_wh
        assert shares[0] == shares[1]
    assert (one.rejected_bids, one.rejected_offers) == (other.rejected_bids, other.rejected_offers)


@MANY
@given(*BOOK)
def test_every_rejected_bidder_is_told_a_reason_that_is_so(bids, offers, pricing):
    result = clear(bids, offers, pricing)
    for one in result.rejected_bids:
        match one.reason:
            case Unmatched.NO_COUNTERPARTY:
                assert not offers
            case Unmatched.PRICE_NOT_REACHED:
                asked = min(o.price_uc_per_kwh for o in offers)
                traded = result.traded_wh
                assert one.price_uc_per_kwh < (result.price_uc_per_kwh if traded else asked)
            case Unmatched.QUANTITY_EXHAUSTED:
                assert one.price_uc_per_kwh >= result.price_uc_per_kwh and result.traded_wh
            case _:
                pytest.fail(one.reason)


@MANY
@given(*BOOK)
def test_never_more_is_traded_than_the_optimum(bids, offers, pricing):
    result = clear(bids, offers, pricing)
    found = efficiency(bids, offers, result.bid_awards, result.offer_awards)
    assert found.traded_wh <= found.optimal_wh and found.optimal


def test_pay_as_bid_pairs_the_dearest_bid_with_the_cheapest_offer():
    bids = [Order("b0", 4, 30, (0,)), Order("b1", 4, 20, (1,))]
    offers = [Order("o0", 6, 10, (2,)), Order("o1", 6, 19, (3,))]
    result = clear(bids, offers, "as-bid")
    assert [(p.buyer, p.seller, p.energy_wh, p.price_uc_per_kwh) for p in pieces(result)] == [
        ("b0", "o0", 4, 30), ("b1", "o0", 2, 20), ("b1", "o1", 2, 20),
    ]  # fmt: skip
    assert result.price_uc_per_kwh == 19  # what a uniform price would have been


def test_an_unknown_pricing_of_a_double_auction_is_refused():
    with pytest.raises(ValueError, match="vickrey"):
        clear([], [], "vickrey")


def test_prices_at_both_ends_of_the_range_clear():
    """Halving the range of prices ends where it is one price wide, and where it is widest."""
    top = 10**9
    for bid, offer, traded in ((0, 0, 5), (top, top, 5), (top, 0, 5), (0, top, 0)):
        result = clear([Order("b", 5, bid, (0,))], [Order("o", 5, offer, (1,))])
        assert result.traded_wh == traded
