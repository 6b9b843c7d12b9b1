"""The checker accepts what the rules make, and names what is wrong with anything else."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from market import (
    Award,
    Fault,
    Order,
    Pricing,
    Unmatched,
    check_clearing,
    check_forward,
    check_reverse,
    clear,
    efficiency,
    forward,
    reverse,
)
from market.efficiency import as_order

PRICINGS = st.sampled_from(list(Pricing))
MANY = settings(max_examples=max(300, settings().max_examples))


def orders(prefix, least_wh=1):
    row = st.tuples(st.integers(least_wh, 9), st.integers(0, 12), st.integers(0, 2))
    return st.lists(row, max_size=12).map(
        lambda rows: [Order(f"{prefix}{i}", e, p, (h, i)) for i, (e, p, h) in enumerate(rows)]
    )


def make(prefix, *rows):
    return [Order(f"{prefix}{i}", e, p, (i,)) for i, (e, p) in enumerate(rows)]


BIDS = make("b", (10, 30), (10, 25), (10, 15), (5, 25))
OFFERS = make("o", (12, 10), (10, 20), (10, 28))
GOOD = clear(BIDS, OFFERS)


@MANY
@given(orders("b", -1), orders("o", -1), PRICINGS)
def test_every_clearing_of_the_rule_passes(bids, offers, pricing):
    assert check_clearing(bids, offers, clear(bids, offers, pricing)) is None


@MANY
@given(st.integers(-1, 60), st.integers(0, 12), orders("n", -1), PRICINGS)
def test_every_result_of_the_aggregators_auctions_passes(quantity, limit, rows, pricing):
    bought = reverse(quantity, limit, rows, pricing)
    sold = forward(quantity, limit, rows, pricing)
    assert check_reverse(quantity, limit, rows, pricing, bought) is None
    assert check_forward(quantity, limit, rows, pricing, sold) is None


@MANY
@given(orders("b"), orders("o"), orders("b"), orders("o"), PRICINGS)
def test_a_clearing_of_other_orders_never_passes(bids, offers, other_bids, other_offers, pricing):
    claimed = clear(other_bids, other_offers, pricing)
    if check_clearing(bids, offers, claimed) is None:
        assert claimed == clear(bids, offers, pricing)


def test_the_clearing_that_is_broken_below_is_good():
    assert check_clearing(BIDS, OFFERS, GOOD) is None and GOOD.traded_wh == 22


def test_dearest_offers_paired_with_dearest_bids_are_not_optimal():
    """A peer's matching: twice the volume for a tenth of the welfare."""
    bids = make("b", (1, 40), (1, 30), (1, 20), (1, 10))
    offers = make("o", (1, 39), (1, 29), (1, 19), (1, 9))
    everybody = replace(
        clear(bids, offers),
        traded_wh=4,
        welfare_milli_uc=4,
        bid_awards=tuple(Award(b.address, 1, b.price_uc_per_kwh, b.seq) for b in bids),
        offer_awards=tuple(
            Award(o.address, 1, b.price_uc_per_kwh, o.seq)
            for b, o in zip(bids, offers, strict=True)
        ),
        rejected_bids=(),
        rejected_offers=(),
        pricing=Pricing.AS_BID,
    )
    assert check_clearing(bids, offers, everybody) is not None
    found = efficiency(bids, offers, everybody.bid_awards, everybody.offer_awards)
    assert (found.traded_wh, found.optimal_wh) == (4, 2)
    assert found.welfare_milli_uc * 10 < found.optimal_welfare_milli_uc
    assert not found.optimal


def test_a_bids_energy_counted_twice_is_not_conserved():
    bids, offers = make("b", (8, 20), (4, 18)), make("o", (8, 5), (8, 6))
    good = clear(bids, offers)
    twice = replace(
        good,
        traded_wh=16,
        bid_awards=(*good.bid_awards, replace(good.bid_awards[1], energy_wh=4)),
        offer_awards=(good.offer_awards[0], replace(good.offer_awards[1], energy_wh=8)),
        rejected_offers=(),
    )
    assert check_clearing(bids, offers, twice) is Fault.NOT_CONSERVED


def test_an_earlier_order_passed_over_is_named():
    bids, offers = make("b", (5, 10), (5, 10)), make("o", (5, 10))
    good = clear(bids, offers)
    late = bids[1]
    swapped = replace(
        good,
        bid_awards=(replace(good.bid_awards[0], address=late.address, seq=late.seq),),
        rejected_bids=(replace(good.rejected_bids[0], address="b0", seq=(0,)),),
    )
    assert check_clearing(bids, offers, swapped) is Fault.WRONG_ORDER


@pytest.mark.parametrize("price", [GOOD.price_uc_per_kwh + d for d in (-1, 1, 100, -100)])
def test_another_price_is_named(price):
    moved = [
        tuple(replace(a, price_uc_per_kwh=price) for a in side)
        for side in (GOOD.bid_awards, GOOD.offer_awards)
    ]
    claimed = replace(GOOD, price_uc_per_kwh=price, bid_awards=moved[0], offer_awards=moved[1])
    assert check_clearing(BIDS, OFFERS, claimed) is Fault.WRONG_PRICE


def test_one_award_at_another_price_is_named():
    dear = replace(GOOD.bid_awards[0], price_uc_per_kwh=99)
    claimed = replace(GOOD, bid_awards=(dear, *GOOD.bid_awards[1:]))
    assert check_clearing(BIDS, OFFERS, claimed) is Fault.WRONG_PRICE


def test_stopping_early_is_not_optimal():
    nothing = replace(clear(BIDS, []), rejected_offers=clear([], OFFERS).rejected_offers)
    assert check_clearing(BIDS, OFFERS, nothing) is Fault.NOT_OPTIMAL
    result = reverse(5, 30, OFFERS, "as-bid")
    assert check_reverse(15, 30, OFFERS, "as-bid", result) is Fault.NOT_OPTIMAL


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"traded_wh": 23}, Fault.WRONG_SUM),
        ({"welfare_milli_uc": GOOD.welfare_milli_uc + 1}, Fault.WRONG_SUM),
        ({"bid_awards": GOOD.bid_awards[:-1]}, Fault.NOT_CONSERVED),
        ({"bid_awards": GOOD.bid_awards[::-1]}, Fault.WRONG_ORDER),
        ({"rejected_bids": ()}, Fault.NOT_CONSERVED),
        ({"rejected_offers": GOOD.rejected_offers * 2}, Fault.NOT_CONSERVED),
        ({"bid_awards": (Award("x", 1, 1, (99,)),)}, Fault.UNKNOWN_ORDER),
        ({"bid_awards": (replace(GOOD.bid_awards[0], address="eve"),)}, Fault.UNKNOWN_ORDER),
    ],
)
def test_a_changed_clearing_is_refused_with_its_fault(change, fault):
    assert check_clearing(BIDS, OFFERS, replace(GOOD, **change)) is fault


def test_a_wrong_reason_is_named():
    lied = [replace(r, reason=Unmatched.NO_COUNTERPARTY) for r in GOOD.rejected_offers]
    claimed = replace(GOOD, rejected_offers=tuple(lied))
    assert check_clearing(BIDS, OFFERS, claimed) is Fault.WRONG_REASON


def test_a_rejection_that_names_another_price_than_its_order_is_named():
    lied = [replace(r, price_uc_per_kwh=r.price_uc_per_kwh + 1) for r in GOOD.rejected_offers]
    claimed = replace(GOOD, rejected_offers=tuple(lied))
    assert check_clearing(BIDS, OFFERS, claimed) is Fault.UNKNOWN_ORDER


def test_negative_awards_are_not_conserved():
    """What one sells too much another would have to buy back."""
    bids, offers = make("b", (4, 9)), make("o", (4, 1))
    good = clear(bids, offers)
    claimed = replace(
        good,
        bid_awards=(replace(good.bid_awards[0], energy_wh=8),
                    replace(good.bid_awards[0], energy_wh=-4)),
    )  # fmt: skip
    assert check_clearing(bids, offers, claimed) is Fault.NOT_CONSERVED


def test_every_single_change_of_an_as_bid_clearing_is_noticed():
    good = clear(BIDS, OFFERS, "as-bid")
    assert check_clearing(BIDS, OFFERS, good) is None
    for side, field, step in product(
        ("bid_awards", "offer_awards"), ("energy_wh", "price_uc_per_kwh"), (-1, 1)
    ):
        for place, award in enumerate(getattr(good, side)):
            changed = list(getattr(good, side))
            changed[place] = replace(award, **{field: getattr(award, field) + step})
            assert check_clearing(BIDS, OFFERS, replace(good, **{side: tuple(changed)}))


@MANY
@given(orders("b"), orders("o"), PRICINGS)
def test_every_clearing_is_the_optimum_and_its_budget_balances(bids, offers, pricing):
    result = clear(bids, offers, pricing)
    assert efficiency(bids, offers, result.bid_awards, result.offer_awards).optimal


@MANY
@given(st.integers(0, 60), st.integers(0, 12), orders("n"), PRICINGS)
def test_an_aggregators_auction_is_the_optimum_too(quantity, cap, rows, pricing):
    result = reverse(quantity, cap, rows, pricing)
    aggregator = as_order("aggregator", quantity, cap)
    mirror = [Award("aggregator", a.energy_wh, a.price_uc_per_kwh, ()) for a in result.awards]
    assert efficiency([aggregator], rows, mirror, result.awards).optimal
