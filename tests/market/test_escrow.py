"""Nazari's escrow as a rule: every end pays out exactly what was blocked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.escrow import (
    Conduct,
    State,
    Terms,
    commitment,
    deliver,
    fail,
    is_delivered,
    least_guarantee_uc,
    penalised,
    withdraw,
)
from market.settlement import Tariff, settle

terms = st.builds(
    Terms,
    energy_wh=st.integers(1, 10**6),
    price_uc_per_kwh=st.integers(0, 10**6),
    guarantee_uc=st.integers(0, 10**9),
    penalty_permille=st.integers(0, 1000),
    accept_before_ms=st.integers(0, 100),
    deliver_before_ms=st.just(200),
)


@settings(max_examples=2000)
@given(terms, st.data())
def test_every_end_pays_out_what_was_blocked_and_nobody_a_negative_amount(terms, data):
    price_uc = data.draw(st.integers(0, terms.price_uc))
    both_uc = terms.guarantee_uc + terms.price_uc
    ends = [
        (withdraw(terms, data.draw(st.integers(0, 200))), terms.guarantee_uc),
        (deliver(terms, price_uc), both_uc),
        (fail(terms), both_uc),
    ]
    for payout, blocked_uc in ends:
        paid = (payout.buyer_uc, payout.seller_uc, payout.fund_uc)
        assert sum(paid) == blocked_uc
        assert min(paid) >= 0


@given(terms, st.integers(0, 200))
def test_giving_up_costs_the_penalty_before_the_deadline_and_nothing_after(terms, now_ms):
    payout = withdraw(terms, now_ms)
    late = now_ms >= terms.accept_before_ms
    assert payout.state == (State.EXPIRED if late else State.WITHDRAWN)
    assert payout.fund_uc == (0 if late else terms.guarantee_uc * terms.penalty_permille // 1000)
    assert payout.penalties == 0


@given(terms)
def test_failing_gives_the_buyer_all_back_and_counts_once(terms):
    payout = fail(terms)
    assert (payout.buyer_uc, payout.penalties) == (terms.price_uc, 1)
    assert payout.fund_uc == terms.penalty_uc


@given(st.integers(0, 5), st.integers(1, 10), st.lists(st.integers(0, 30), max_size=20))
def test_one_more_than_k_penalties_ban_for_exactly_so_many_slots(k, ban_slots, gaps):
    conduct, slot, counted = Conduct(), 0, 0
    for gap in gaps:
        slot += gap
        before = conduct
        conduct = penalised(conduct, slot, k, ban_slots)
        counted += 1
        if counted > k:
            counted = 0
            assert conduct.is_banned(slot)
            assert conduct.is_banned(slot + ban_slots - 1)
            assert (
                not conduct.is_banned(slot + ban_slots) or before.banned_until >= slot + ban_slots
            )
        assert conduct.count == counted


@given(st.integers(-5000, 5000), st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 3000))
def test_delivered_is_what_leaves_no_shortfall_in_the_settlement(net, bought, sold, energy):
    tariff = Tariff(retail_uc_per_kwh=3, feed_in_uc_per_kwh=1, imbalance_uc_per_kwh=4)
    with_trade = settle(net, bought, sold + energy, tariff)
    assert is_delivered(net, bought, sold, energy) == (with_trade.residual_wh <= 0)


@pytest.mark.parametrize(
    ("price_uc", "permille", "least"), [(0, 100, 0), (1, 1, 1), (999, 100, 100)]
)
def test_the_least_guarantee_is_rounded_up(price_uc, permille, least):
    assert least_guarantee_uc(price_uc, permille) == least


def test_a_commitment_is_good_for_one_offer_and_one_pair_of_amounts():
    made = {
        commitment(offer, energy, price, salt)
        for offer in ("a:1", "a:2") for energy in (1, 2) for price in (1, 2) for salt in "xy"
    }  # fmt: skip
    assert len(made) == 16
    assert all(len(one) == 64 for one in made)
