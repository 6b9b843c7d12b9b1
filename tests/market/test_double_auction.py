"""The double auction: rational, conserving, optimal, and the same for every validator."""

import random
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from market import Order, Unmatched, clear


def orders(prefix: str, max_size: int = 12, max_wh: int = 9, max_price: int = 12):
    pair = st.tuples(st.integers(1, max_wh), st.integers(0, max_price))
    return st.lists(pair, max_size=max_size).map(
        lambda rows: [Order(f"{prefix}{i}", e, p, (i,)) for i, (e, p) in enumerate(rows)]
    )


def make(prefix, *rows):
    return [Order(f"{prefix}{i}", e, p, (i,)) for i, (e, p) in enumerate(rows)]


def unit_by_unit(bids, offers):
    """(welfare, volume) of the best match, Wh by Wh: dearest wish to cheapest source."""
    wishes = sorted((b.price_uc_per_kwh for b in bids for _ in range(b.energy_wh)), reverse=True)
    sources = sorted(o.price_uc_per_kwh for o in offers for _ in range(o.energy_wh))
    gains = [w - s for w, s in zip(wishes, sources, strict=False) if w >= s]
    return sum(gains), len(gains)


def exhaustive(bids, offers):
    """The best welfare over every way to take each order in part: no theory used."""
    best = 0
    demand = {}
    for taken in product(*(range(b.energy_wh + 1) for b in bids)):
        value = sum(t * b.price_uc_per_kwh for t, b in zip(taken, bids, strict=True))
        demand[sum(taken)] = max(demand.get(sum(taken), 0), value)
    for taken in product(*(range(o.energy_wh + 1) for o in offers)):
        cost = sum(t * o.price_uc_per_kwh for t, o in zip(taken, offers, strict=True))
        if sum(taken) in demand:
            best = max(best, demand[sum(taken)] - cost)
    return best


@given(orders("b"), orders("o"))
def test_what_is_bought_is_what_is_sold(bids, offers):
    result = clear(bids, offers)
    assert sum(a.energy_wh for a in result.bid_awards) == result.traded_wh
    assert sum(a.energy_wh for a in result.offer_awards) == result.traded_wh


@given(orders("b"), orders("o"))
def test_nobody_pays_more_or_gets_less_than_it_said(bids, offers):
    result = clear(bids, offers)
    limits = {o.address: o.price_uc_per_kwh for o in bids + offers}
    assert all(a.price_uc_per_kwh <= limits[a.address] for a in result.bid_awards)
    assert all(a.price_uc_per_kwh >= limits[a.address] for a in result.offer_awards)
    assert {a.price_uc_per_kwh for a in result.bid_awards + result.offer_awards} <= {
        result.price_uc_per_kwh
    }


@given(orders("b"), orders("o"))
def test_welfare_and_volume_are_the_optimum(bids, offers):
    result = clear(bids, offers)
    assert (result.welfare_milli_uc, result.traded_wh) == unit_by_unit(bids, offers)


@given(orders("b", 3, 3, 6), orders("o", 3, 3, 6))
def test_no_other_allocation_has_more_welfare(bids, offers):
    assert clear(bids, offers).welfare_milli_uc == exhaustive(bids, offers)


@given(orders("b"), orders("o"), st.randoms(use_true_random=False))
def test_a_permutation_of_the_lists_changes_nothing(bids, offers, chance):
    mixed_bids, mixed_offers = bids.copy(), offers.copy()
    chance.shuffle(mixed_bids)
    chance.shuffle(mixed_offers)
    assert clear(mixed_bids, mixed_offers) == clear(bids, offers)


@given(orders("b"), orders("o"))
def test_nobody_left_out_as_a_whole_would_have_wanted_the_price(bids, offers):
    result = clear(bids, offers)
    if not result.traded_wh:
        return
    full = {o.address: o.energy_wh for o in bids + offers}
    for rest in result.rejected_bids:
        if rest.energy_wh == full[rest.address]:
            assert rest.price_uc_per_kwh <= result.price_uc_per_kwh
    for rest in result.rejected_offers:
        if rest.energy_wh == full[rest.address]:
            assert rest.price_uc_per_kwh >= result.price_uc_per_kwh


@given(orders("b"), orders("o"))
def test_every_wh_is_awarded_or_rejected_once(bids, offers):
    result = clear(bids, offers)
    for side, awards, rejected in (
        (bids, result.bid_awards, result.rejected_bids),
        (offers, result.offer_awards, result.rejected_offers),
    ):
        seen = {}
        for part in (*awards, *rejected):
            seen[part.address] = seen.get(part.address, 0) + part.energy_wh
        assert seen == {o.address: o.energy_wh for o in side}
        # at most one order of a side is split
        assert len(awards) + len(rejected) <= len(side) + 1


def test_the_price_is_the_midpoint_of_the_marginal_trade():
    result = clear(make("b", (10, 20)), make("o", (10, 11)))
    assert result.price_uc_per_kwh == 15  # 15.5 rounded down
    assert result.welfare_milli_uc == 90


def test_the_best_bid_left_out_holds_the_price_up():
    """At the midpoint of 30 and 10 the bid at 25 would have wanted in."""
    result = clear(make("b", (10, 30), (10, 25)), make("o", (10, 10)))
    assert result.price_uc_per_kwh == 27
    assert [r.reason for r in result.rejected_bids] == [Unmatched.PRICE_NOT_REACHED]


def test_the_best_offer_left_out_holds_the_price_down():
    result = clear(make("b", (10, 30)), make("o", (10, 10), (10, 14)))
    assert result.price_uc_per_kwh == 12


def test_equal_prices_go_to_the_earlier_order():
    late = Order("late", 5, 10, (7, 2))
    early = Order("early", 5, 10, (7, 1))
    for bids in ([late, early], [early, late]):
        result = clear(bids, [Order("o", 5, 10, (7, 0))])
        assert [a.address for a in result.bid_awards] == ["early"]
        (rest,) = result.rejected_bids
        assert (rest.address, rest.reason) == ("late", Unmatched.QUANTITY_EXHAUSTED)


def test_arrival_is_by_height_before_transaction():
    older = Order("older", 5, 10, (6, 90))
    newer = Order("newer", 5, 10, (7, 0))
    result = clear([newer, older], make("o", (5, 10)))
    assert result.bid_awards[0].address == "older"


def test_a_bid_that_equals_the_offer_is_traded():
    result = clear(make("b", (10, 15)), make("o", (10, 15)))
    assert (result.traded_wh, result.price_uc_per_kwh, result.welfare_uc) == (10, 15, 0)


def test_the_marginal_order_is_filled_in_part():
    result = clear(make("b", (10, 20)), make("o", (4, 5), (4, 6), (4, 7)))
    assert [a.energy_wh for a in result.offer_awards] == [4, 4, 2]
    (rest,) = result.rejected_offers
    assert (rest.energy_wh, rest.reason) == (2, Unmatched.QUANTITY_EXHAUSTED)


def test_without_a_crossing_nothing_is_traded_and_both_are_told():
    result = clear(make("b", (10, 5)), make("o", (10, 6)))
    assert (result.traded_wh, result.price_uc_per_kwh) == (0, 0)
    assert result.rejected_bids[0].reason is Unmatched.PRICE_NOT_REACHED
    assert result.rejected_offers[0].reason is Unmatched.PRICE_NOT_REACHED


def test_without_the_other_side_an_order_is_told_so():
    assert clear(make("b", (1, 1)), []).rejected_bids[0].reason is Unmatched.NO_COUNTERPARTY
    assert clear([], make("o", (1, 1))).rejected_offers[0].reason is Unmatched.NO_COUNTERPARTY
    assert clear([], []).traded_wh == 0


def test_an_order_for_nothing_is_rejected_by_name():
    """A negative energy would otherwise let one side sell what the other never bought."""
    result = clear(make("b", (10, 20), (-4, 30)), make("o", (10, 5), (0, 1)))
    assert result.traded_wh == 10
    assert result.rejected_bids[0].reason is Unmatched.QUANTITY_OUT_OF_RANGE
    assert result.rejected_offers[0].reason is Unmatched.QUANTITY_OUT_OF_RANGE


def test_huge_energies_clear_exactly():
    """Energies of the widest integers, many of them: sums beyond 64 bits stay exact."""
    wide = 2**53 - 1
    bids = make("b", *[(wide, 9)] * 2000)
    offers = make("o", *[(wide, 8)] * 1999)
    assert clear(bids, offers).traded_wh == 1999 * wide


def test_dearest_offers_are_not_paired_with_dearest_bids():
    """That pairing trades four units here, for a tenth of the welfare; equilibrium trades two."""
    bids = make("b", (1, 40), (1, 30), (1, 20), (1, 10))
    offers = make("o", (1, 39), (1, 29), (1, 19), (1, 9))
    result = clear(bids, offers)
    assert (result.traded_wh, result.welfare_milli_uc) == (2, 42)


def test_a_bids_energy_is_counted_once():
    """Twelve Wh are asked for: sixteen cannot be traded."""
    result = clear(make("b", (8, 20), (4, 18)), make("o", (8, 5), (8, 6)))
    assert result.traded_wh == 12


def test_a_posted_order_that_suits_is_taken():
    """An order book whose bid nobody can accept is not a market."""
    result = clear(make("b", (5, 10)), make("o", (50, 10)))
    assert result.bid_awards[0].energy_wh == 5


def test_ten_thousand_orders_match_the_two_pointer_reference():
    chance = random.Random(7)
    bids = make("b", *[(chance.randint(1, 3000), chance.randint(80, 300)) for _ in range(5000)])
    offers = make("o", *[(chance.randint(1, 3000), chance.randint(80, 300)) for _ in range(5000)])
    result = clear(bids, offers)
    assert (result.traded_wh, result.welfare_milli_uc) == two_pointer(bids, offers)


def two_pointer(bids, offers):
    demand = sorted(([b.price_uc_per_kwh, b.energy_wh] for b in bids), reverse=True)
    supply = sorted([o.price_uc_per_kwh, o.energy_wh] for o in offers)
    i = j = traded = welfare = 0
    while i < len(demand) and j < len(supply) and demand[i][0] >= supply[j][0]:
        take = min(demand[i][1], supply[j][1])
        traded += take
        welfare += take * (demand[i][0] - supply[j][0])
        demand[i][1] -= take
        supply[j][1] -= take
        i += demand[i][1] == 0
        j += supply[j][1] == 0
    return traded, welfare
