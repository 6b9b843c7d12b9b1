"""The aggregator's decisions (aggregator.core)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chain_builder import make_genesis

from aggregator.core import (
    MIN_AHEAD_SLOTS,
    AdjustmentPolicy,
    FlexibilityPolicy,
    FundingPolicy,
    adjustments,
    approval,
    book,
    book_true_up,
    flexibility,
    fund,
    propose,
)
from ledger.approvals import Approval
from ledger.rulebook import RuleBook
from market.settlement import Tariff, settle, true_up
from wire.slots import SlotGrid

FUNDING = FundingPolicy(100_000_000, 5_000, 5_000, 192)
PER_DAY = 96
GRID = SlotGrid()
GENESIS = make_genesis()
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


def auctions(now, forecast_wh, *, now_ms=None, rules=None, **changes):
    """What `flexibility` opens at the start of a slot."""
    at_ms = GRID.start_ms(now) if now_ms is None else now_ms
    return flexibility(at_ms, rules or RuleBook(GENESIS), GRID, forecast_wh, policy(**changes))


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


def test_where_participants_withdraw_nothing_is_given():
    assert fund(registration(), 10, replace(FUNDING, automatic=False)) == []


def test_a_registration_without_limits_gets_the_configured_ones():
    bare = {"event": "address-registered", "address": "hg1a"}
    asset = dict(fund(bare, 10, FUNDING))["fund/hg1a/production"]
    assert (asset["energyWh"], asset["startSlot"], asset["endSlot"]) == (5_000, 10, 202)


def test_a_shortage_beyond_the_band_is_bought_below_the_cap():
    [(key, operation)] = auctions(100, 1_500)
    assert key == "auction/flex-104"
    assert operation == {
        "op": "deploy-auction",
        "auction": "flex-104",
        "template": "reverse",
        "slot": 104,
        "energyWh": 1_500,
        "priceUcPerKwh": 280_000,
        "pricing": "uniform",
        "sealed": False,
    }


def test_a_surplus_beyond_the_band_is_sold_above_the_floor():
    [(_, operation)] = auctions(100, -700)
    assert (operation["template"], operation["energyWh"]) == ("forward", 700)
    assert operation["priceUcPerKwh"] == 100_000


@pytest.mark.parametrize("deviation_wh", [0, 500, -500])
def test_within_the_band_nothing_is_asked_for(deviation_wh):
    assert auctions(100, deviation_wh) == []


def test_a_known_deviation_is_asked_for_from_four_to_two_slots_ahead_and_never_later():
    known = {"known_wh": {78: 1_500}}
    asked = [now for now in range(PER_DAY) if auctions(now, 0, **known)]
    assert asked == [74, 75, 76]
    keys = {key for now in asked for key, _ in auctions(now, 0, **known)}
    assert keys == {"auction/flex-78"}


@given(
    st.integers(0, 10**6),
    st.integers(-(10**6), 10**6),
    st.dictionaries(st.integers(0, 95), st.integers(-(10**6), 10**6), max_size=5),
)
def test_every_auction_leaves_homes_time_and_asks_for_a_bounded_amount(now, forecast_wh, known):
    for _, operation in auctions(now, forecast_wh, known_wh=known):
        assert MIN_AHEAD_SLOTS <= operation["slot"] - now <= 4
        assert 500 < operation["energyWh"] <= 10_000


def approved(path, value, slot=0):
    return {"event": "change-approved", "path": path, "value": value, "activationSlot": slot}


def test_an_auction_with_sealed_bids_says_so():
    [(_, operation)] = auctions(100, 1_500, sealed=True)
    assert operation["sealed"] is True


@pytest.mark.parametrize(("sealed", "reveal_s"), [(False, 0), (True, 120)])
def test_an_auction_is_opened_only_while_its_gate_and_its_reveal_window_are_ahead(sealed, reveal_s):
    """By the rules in force, not those of the genesis: the gate is half an hour ahead now."""
    assert (GENESIS.gate_lead_s, GENESIS.auction_rules.reveal_s) == (300, 120)
    known = {"known_wh": {12: 1_500}, "sealed": sealed}
    rules = RuleBook(GENESIS)
    rules.take_event(approved("gateLeadS", 1_800))
    closes_ms = GRID.start_ms(12) - (1_800 + reveal_s) * 1000
    assert auctions(0, 0, now_ms=closes_ms - 1, rules=rules, **known)
    assert not auctions(0, 0, now_ms=closes_ms, rules=rules, **known)
    assert auctions(0, 0, now_ms=closes_ms, **known)


def test_prices_keep_within_the_tariff_of_the_auctions_own_slot():
    rules = RuleBook(GENESIS)
    rules.take_event(approved("prices.retailUcPerKwh", 250_000, 105))
    rules.take_event(approved("prices.feedInUcPerKwh", 120_000, 105))

    def price(now, deviation_wh):
        [(_, operation)] = auctions(now, deviation_wh, rules=rules)
        return operation["priceUcPerKwh"]

    assert (price(100, 1_500), price(100, -1_500)) == (280_000, 100_000)
    assert (price(101, 1_500), price(101, -1_500)) == (250_000, 120_000)


def test_where_auctions_are_switched_off_none_is_opened():
    rules = RuleBook(GENESIS)
    rules.take_event(approved("template.auctions", False, 104))
    assert auctions(99, 1_500, rules=rules)
    assert not auctions(100, 1_500, rules=rules)


# --- adjustments ----------------------------------------------------------------------------------

ADJUST = AdjustmentPolicy(automatic=True, margin_s=60)


def session_closed(slot, number=0, congested=True):
    zones = [{"zone": "", "congested": False}, {"zone": "west", "congested": congested}]
    return {"event": "session-closed", "slot": slot, "round": number, "zones": zones}


def line_cut(start, end):
    return {"event": "interconnection-closed", "zone": "west", "startSlot": start, "endSlot": end}


def reopened(event, rounds, now_ms=0, policy=ADJUST):
    return [op["slot"] for _, op in adjustments(event, rounds, now_ms, GRID, policy)]


def test_a_congested_session_is_reopened_once_until_shortly_before_its_slot():
    now_ms = GRID.start_ms(100) - 200_000
    [(key, operation)] = adjustments(session_closed(100), {100: 0}, now_ms, GRID, ADJUST)
    assert key == "adjust/100/0"
    deadline_ms = GRID.start_ms(100) - 60_000
    assert operation == {"op": "open-adjustment", "slot": 100, "deadlineMs": deadline_ms}
    assert reopened(session_closed(100, congested=False), {100: 0}) == []
    assert reopened(session_closed(100, number=1), {100: 1}) == []
    assert reopened(session_closed(100), {100: 0}, deadline_ms - 1) == [100]
    assert reopened(session_closed(100), {100: 0}, deadline_ms) == []


def test_a_cut_line_reopens_the_sessions_that_were_cleared_before():
    rounds = {99: 0, 100: 2, 101: 0}
    assert reopened(line_cut(100, 200), rounds) == [100, 101]
    [first, _] = adjustments(line_cut(100, 200), rounds, 0, GRID, ADJUST)
    assert first[0] == "adjust/100/2"
    assert reopened(line_cut(102, 200), rounds) == []


def test_nothing_is_reopened_unless_configured():
    policy = AdjustmentPolicy()
    assert reopened(session_closed(100), {100: 0}, policy=policy) == []
    assert reopened(line_cut(100, 200), {100: 0}, policy=policy) == []


# --- changes of the rules -------------------------------------------------------------------------

CHANGE = {
    "event": "change-proposed", "change": "ab" * 16, "path": "prices.retailUcPerKwh",
    "value": 310_000, "activationSlot": 500, "proposer": "hg1dso", "voters": 3,
}  # fmt: skip


def test_a_change_that_the_operator_agreed_with_beforehand_is_approved():
    rules = [Approval(path="prices.*", most=320_000)]
    expected = {"op": "approve-change", "change": "ab" * 16}
    assert approval(CHANGE, "hg1me", rules) == (f"approve/{'ab' * 16}", expected)


@pytest.mark.parametrize(
    ("event", "rules"),
    [
        (CHANGE, []),
        (CHANGE, [Approval(path="prices.*", most=300_000)]),
        ({**CHANGE, "proposer": "hg1me"}, [Approval(path="*")]),
        ({**CHANGE, "event": "change-approved"}, [Approval(path="*")]),
    ],
)
def test_other_changes_our_own_and_approved_ones_are_left_alone(event, rules):
    assert approval(event, "hg1me", rules) is None


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


@pytest.mark.parametrize(("offset_ms", "slot"), [(0, 8), (1, 9), (900_000 - 1, 9)])
def test_a_proposal_holds_from_the_first_slot_that_begins_then_or_later(offset_ms, slot):
    key, operation = propose("gateLeadS", 240, 8 * 900_000 + offset_ms, GRID)
    assert operation == {
        "op": "propose-change", "path": "gateLeadS", "value": 240, "activationSlot": slot,
    }  # fmt: skip
    assert key == f"propose/gateLeadS/240/{slot}"
