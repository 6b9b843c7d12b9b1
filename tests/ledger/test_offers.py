"""The order book on the ledger: offers lock, trades settle like any other, refusals do nothing."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    Chain,
    asset,
    bid,
    deposit,
    events_of,
    key,
    receipt,
    register,
    slot_ms,
)

from ledger.contracts import keys, offers
from ledger.execution import OK, Ledger, contract_of, money_uc

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")
SLOT = FIRST_SLOT + 4
NOW = START_MS + 60_000
UNITS_100 = 100_000_000


def post(kind, energy_wh, start, end, price=200_000, **more):
    return {
        "op": "post-offer", "kind": kind, "energyWh": energy_wh, "startSlot": start,
        "endSlot": end, "priceUcPerKwh": price, **more,
    }  # fmt: skip


def accept(name, *assets):
    rows = [{"energyWh": wh, "startSlot": start, "endSlot": end} for wh, start, end in assets]
    return {"op": "accept-offer", "offer": name, "assets": rows}


def rescind(name):
    return {"op": "rescind-offer", "offer": name}


def give_back(kind, energy_wh, start, end):
    return {
        "op": "deposit-energy-asset", "kind": kind, "energyWh": energy_wh, "startSlot": start,
        "endSlot": end,
    }  # fmt: skip


def pay_out(amount_uc):
    return {"op": "deposit-financial-balance", "amountUc": amount_uc}


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(ANN, BOB)
    return chain


def posted(chain, who, *operation, **more):
    """Post an offer; its name."""
    result = chain.block(chain.ledger.time_ms + 1000, chain.tx(who, post(*operation, **more)))
    assert result.receipts[0].codes == (OK,), result.receipts[0]
    return events_of(result, "offer-posted")[0]["offer"]


def do(chain, who, *operations):
    return chain.codes(chain.ledger.time_ms + 1000, who, *operations)


def position(chain, slot, who):
    return chain.ledger.query(f"position/{slot:012d}/{who.id}")


# --- an offer stands ------------------------------------------------------------------------------


def test_an_offer_is_announced_and_named_by_sender_nonce_and_place(chain):
    nonce = chain.ledger.next_nonce(ANN.id)
    result = chain.block(NOW, chain.tx(ANN, pay_out(1), post("production", 300, SLOT, SLOT + 3)))
    assert events_of(result, "offer-posted") == [
        {
            "event": "offer-posted", "offer": f"{ANN.id}-{nonce}-1", "address": ANN.id,
            "kind": "production", "energyWh": 300, "startSlot": SLOT, "endSlot": SLOT + 3,
            "priceUcPerKwh": 200_000, "untilMs": slot_ms(SLOT + 3, -300),
        }
    ]  # fmt: skip
    assert contract_of("offer-posted") == "market"


def test_a_standing_offer_locks_money_and_asset_but_opens_no_slot(chain):
    before = len(chain.ledger.state)
    posted(chain, ANN, "consumption", 3000, SLOT, SLOT + 2)
    assert chain.account(ANN) == (UNITS_100 - 1_800_000, 1_800_000)
    assert len(chain.ledger.state) == before + 3
    assert do(chain, ANN, bid("buy", SLOT + 1, 2001, 1)) == ["QUANTITY_OUT_OF_RANGE"]
    assert do(chain, ANN, bid("buy", SLOT + 1, 2000, 1)) == [OK]
    assert do(chain, ANN, bid("buy", SLOT + 3, 5000, 1)) == [OK]


def test_a_bid_of_the_auction_locks_against_the_order_book(chain):
    assert do(chain, ANN, bid("sell", SLOT + 1, 4000, 1)) == [OK]
    late = post("production", 1001, SLOT, SLOT + 3)
    assert do(chain, ANN, late) == ["QUANTITY_OUT_OF_RANGE"]
    assert do(chain, ANN, post("production", 600, SLOT, SLOT + 3)) == [OK]
    codes = do(
        chain, ANN, post("production", 401, SLOT + 1, SLOT + 1), bid("sell", SLOT + 1, 401, 1),
        bid("sell", SLOT + 1, 400, 1),
    )  # fmt: skip
    assert codes == ["QUANTITY_OUT_OF_RANGE", "QUANTITY_OUT_OF_RANGE", OK]


def test_an_asset_smaller_than_the_grant_is_spent_once_over_overlapping_intervals():
    chain = Chain()
    chain.block(START_MS + 1, chain.tx(EVE, register(EVE)))
    do(chain, SUPERVISOR, asset(EVE, "production", 500, SLOT, SLOT + 9))
    codes = do(
        chain, EVE,
        post("production", 300, SLOT, SLOT + 4), post("production", 300, SLOT + 4, SLOT + 6),
        post("production", 300, SLOT + 5, SLOT + 9), post("production", 1, SLOT, SLOT + 10),
    )  # fmt: skip
    assert codes == [OK, "INSUFFICIENT_ASSET", OK, "INSUFFICIENT_ASSET"]


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (post("production", 0, SLOT, SLOT), "QUANTITY_OUT_OF_RANGE"),
        (post("production", -1, SLOT, SLOT), "QUANTITY_OUT_OF_RANGE"),
        (post("production", 2**53 - 1, SLOT, SLOT), "QUANTITY_OUT_OF_RANGE"),
        (post("production", 5001, SLOT, SLOT), "QUANTITY_OUT_OF_RANGE"),
        (post("production", 1, SLOT, SLOT - 1), "MALFORMED"),
        (post("production", 1, -1, SLOT), "MALFORMED"),
        (post("production", 1, FIRST_SLOT, SLOT), "SLOT_CLOSED"),
        (post("production", 1, SLOT, FIRST_SLOT + 97), "SLOT_TOO_FAR"),
        (post("production", 1, SLOT, 2**53 - 1), "SLOT_TOO_FAR"),
        (post("production", 1, SLOT, SLOT, -1), "PRICE_OUT_OF_RANGE"),
        (post("production", 1, SLOT, SLOT, 2**53 - 1), "PRICE_OUT_OF_RANGE"),
        (post("production", 1, SLOT, SLOT, untilMs=NOW), "EXPIRED"),
        (post("consumption", 5000, SLOT, SLOT, 10**9), "INSUFFICIENT_FUNDS"),
        (post("heat", 1, SLOT, SLOT), "MALFORMED"),
        (rescind("nothing"), "NOT_FOUND"),
        (accept("nothing", (1, SLOT, SLOT)), "NOT_FOUND"),
        (accept("nothing"), "NOT_FOUND"),
    ],
)
def test_a_refused_operation_changes_the_nonce_only(chain, operation, code):
    before = dict(chain.ledger.state.scan(""))
    account = before[f"account/{ANN.id}"]
    totals = before["totals"]
    assert chain.codes(NOW, ANN, operation) == [code]
    after = {
        **before,
        f"account/{ANN.id}": {**account, "nonce": account["nonce"] + 1},
        "totals": {**totals, "operations": totals["operations"] + 1},
    }
    assert dict(chain.ledger.state.scan("")) == after


def test_only_a_lawful_trader_posts_and_accepts(chain):
    consumer = key("consumer")
    chain.block(NOW, chain.tx(consumer, register(consumer, can_sell=False)))
    assert do(chain, consumer, post("production", 1, SLOT, SLOT)) == ["NOT_ALLOWED"]
    assert do(chain, SUPERVISOR, post("production", 1, SLOT, SLOT)) == ["UNKNOWN_SENDER"]
    name = posted(chain, ANN, "consumption", 10, SLOT, SLOT)
    assert do(chain, consumer, accept(name, (1, SLOT, SLOT))) == ["NOT_ALLOWED"]
    do(chain, ANN, {"op": "set-participation", "mode": "RE"})
    assert do(chain, ANN, post("production", 1, SLOT, SLOT)) == ["REWARDS_ONLY"]


def test_a_banned_address_neither_posts_nor_accepts_nor_is_its_offer_accepted(chain):
    mine = posted(chain, ANN, "production", 10, SLOT, SLOT)
    theirs = posted(chain, BOB, "production", 10, SLOT, SLOT)
    ban = {"count": 9, "bannedUntil": SLOT + 9}
    chain.ledger.state.put(keys.penalty(ANN.id), ban)
    assert do(chain, ANN, post("production", 1, SLOT, SLOT)) == ["BANNED"]
    assert do(chain, ANN, accept(theirs, (1, SLOT, SLOT))) == ["BANNED"]
    assert do(chain, BOB, accept(mine, (1, SLOT, SLOT))) == ["BANNED"]
    assert do(chain, ANN, rescind(mine)) == [OK]


def test_an_address_has_a_bounded_number_of_offers(chain):
    many = [post("production", 1, SLOT, SLOT)] * (offers.MAX_OFFERS + 1)
    assert do(chain, ANN, *many) == [OK] * offers.MAX_OFFERS + ["RATE_LIMITED"]


# --- rescind and expire ---------------------------------------------------------------------------


def test_only_the_owner_rescinds_and_the_state_is_as_before(chain):
    before = {k: v for k, v in chain.ledger.state.scan("") if not k.startswith("account/")}
    name = posted(chain, ANN, "consumption", 3000, SLOT, SLOT + 2)
    assert do(chain, BOB, rescind(name)) == ["NOT_ALLOWED"]
    assert do(chain, ANN, rescind(name)) == [OK]
    assert chain.account(ANN) == (UNITS_100, 0)
    after = {k: v for k, v in chain.ledger.state.scan("") if not k.startswith("account/")}
    assert {**after, "totals": None} == {**before, "totals": None}


def test_an_offer_expires_by_itself_in_the_first_block_at_its_time(chain):
    name = posted(chain, ANN, "consumption", 100, SLOT, SLOT, untilMs=NOW + 5000)
    assert chain.ledger.next_due_ms() == NOW + 5000
    chain.block(NOW + 4999)
    assert chain.ledger.query(f"offer/{name}") is not None
    result = chain.block(NOW + 5000, chain.tx(BOB, accept(name, (1, SLOT, SLOT))))
    assert result.receipts[0].codes == ("NOT_FOUND",)
    assert events_of(result, "offer-expired") == [
        {"event": "offer-expired", "offer": name, "address": ANN.id}
    ]
    assert chain.account(ANN) == (UNITS_100, 0)
    assert chain.ledger.next_due_ms() is None


def test_an_offer_ends_when_its_last_slot_closes_whatever_it_says(chain):
    name = posted(chain, ANN, "production", 100, SLOT, SLOT + 1, untilMs=2**53 - 1)
    chain.block(slot_ms(SLOT + 1, -300) - 1)
    assert chain.ledger.query(f"offer/{name}") is not None
    result = chain.block(slot_ms(SLOT + 1, -300))
    assert len(events_of(result, "offer-expired")) == 1


# --- accept ---------------------------------------------------------------------------------------


def test_a_partial_trade_books_the_overlap_and_returns_the_rest(chain):
    """A partial trade in PETra's sense: 300 Wh over four slots meet 100 Wh over the middle two."""
    name = posted(chain, ANN, "production", 300, SLOT, SLOT + 3)
    result = chain.block(
        chain.ledger.time_ms + 1, chain.tx(BOB, accept(name, (100, SLOT + 1, SLOT + 2)))
    )
    assert events_of(result, "offer-accepted") == [
        {
            "event": "offer-accepted", "offer": name, "address": ANN.id, "acceptedBy": BOB.id,
            "seller": ANN.id, "buyer": BOB.id, "priceUcPerKwh": 200_000, "energyWh": 200,
            "amountUc": 40_000,
            "traded": [{"energyWh": 100, "startSlot": SLOT + 1, "endSlot": SLOT + 2}],
            "offerRest": [
                {"energyWh": 300, "startSlot": SLOT, "endSlot": SLOT},
                {"energyWh": 200, "startSlot": SLOT + 1, "endSlot": SLOT + 2},
                {"energyWh": 300, "startSlot": SLOT + 3, "endSlot": SLOT + 3},
            ],
            "assetsRest": [],
        }
    ]  # fmt: skip
    assert chain.account(BOB) == (UNITS_100 - 40_000, 0)
    assert position(chain, SLOT, ANN) is None
    for slot in (SLOT + 1, SLOT + 2):
        seller, buyer = position(chain, slot, ANN), position(chain, slot, BOB)
        assert (seller["soldWh"], seller["receivableUc"], seller["sellLockedWh"]) == (
            100, 20_000, 100,
        )  # fmt: skip
        assert (buyer["boughtWh"], buyer["buyLockedWh"]) == (100, 100)
        assert chain.ledger.query(f"slot/{slot:012d}")["escrowUc"] == 20_000
    # The rest is free again: all that the grant allows but what was sold.
    assert do(chain, ANN, post("production", 5000, SLOT, SLOT)) == [OK]
    assert do(chain, ANN, post("production", 4901, SLOT + 1, SLOT + 1)) == ["QUANTITY_OUT_OF_RANGE"]
    assert do(chain, ANN, post("production", 4900, SLOT + 1, SLOT + 1)) == [OK]


def test_an_offer_to_buy_pays_from_its_lock_and_gets_the_rest_back(chain):
    name = posted(chain, ANN, "consumption", 1000, SLOT, SLOT + 3)
    assert chain.account(ANN)[1] == 800_000
    assert do(chain, BOB, accept(name, (400, SLOT + 3, SLOT + 9))) == [OK]
    assert chain.account(ANN) == (UNITS_100 - 80_000, 0)
    assert position(chain, SLOT + 3, BOB)["receivableUc"] == 80_000


@pytest.mark.parametrize(
    ("who", "assets", "code"),
    [
        (ANN, [(1, SLOT, SLOT)], "NOT_ALLOWED"),
        (BOB, [], "MALFORMED"),
        (BOB, [(1, SLOT, SLOT)] * 9, "MALFORMED"),
        (BOB, [(1, SLOT + 4, SLOT + 5)], "NO_OVERLAP"),
        (BOB, [(0, SLOT, SLOT)], "QUANTITY_OUT_OF_RANGE"),
        (BOB, [(1, SLOT, SLOT - 1)], "MALFORMED"),
        (BOB, [(1, SLOT, FIRST_SLOT + 500)], "SLOT_TOO_FAR"),
        (BOB, [(5001, SLOT, SLOT)], "QUANTITY_OUT_OF_RANGE"),
        (BOB, [(2600, SLOT, SLOT), (2600, SLOT, SLOT)], "QUANTITY_OUT_OF_RANGE"),
        (BOB, [(2**53 - 1, SLOT, SLOT)], "QUANTITY_OUT_OF_RANGE"),
        (BOB, [(3000, SLOT, SLOT + 3)], "INSUFFICIENT_FUNDS"),
    ],
)
def test_a_refused_acceptance_changes_the_nonce_only(chain, who, assets, code):
    name = posted(chain, ANN, "production", 3000, SLOT, SLOT + 3, 10_000_000)
    before = dict(chain.ledger.state.scan(""))
    assert do(chain, who, accept(name, *assets)) == [code]
    after = dict(chain.ledger.state.scan(""))
    changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    assert changed == {f"account/{who.id}", "totals"}
    assert after[f"account/{who.id}"]["nonce"] == before[f"account/{who.id}"]["nonce"] + 1


def test_of_two_who_accept_in_one_block_the_first_gets_it(chain):
    chain.settle_in(EVE, at_ms=NOW)
    name = posted(chain, ANN, "production", 300, SLOT, SLOT)
    take = accept(name, (300, SLOT, SLOT))
    result = chain.block(chain.ledger.time_ms + 1, chain.tx(BOB, take), chain.tx(EVE, take))
    assert [one.codes for one in result.receipts] == [(OK,), ("NOT_FOUND",)]


def test_at_the_gate_a_slot_of_an_offer_is_closed_and_the_others_are_not(chain):
    name = posted(chain, ANN, "production", 300, SLOT, SLOT + 2)
    at_gate = slot_ms(SLOT, -300)
    assert chain.codes(at_gate, BOB, accept(name, (10, SLOT, SLOT))) == ["SLOT_CLOSED"]
    result = chain.block(at_gate + 1, chain.tx(BOB, accept(name, (10, SLOT, SLOT + 1))))
    (event,) = events_of(result, "offer-accepted")
    assert event["traded"] == [{"energyWh": 10, "startSlot": SLOT + 1, "endSlot": SLOT + 1}]
    assert position(chain, SLOT, BOB) is None


def test_a_millisecond_before_the_gate_the_slot_is_open(chain):
    name = posted(chain, ANN, "production", 300, SLOT, SLOT)
    assert chain.codes(slot_ms(SLOT, -300) - 1, BOB, accept(name, (10, SLOT, SLOT))) == [OK]


# --- settlement -----------------------------------------------------------------------------------


def test_a_trade_of_the_order_book_is_delivered_and_settled_like_one_of_the_auction(chain):
    name = posted(chain, ANN, "production", 500, SLOT, SLOT)
    assert do(chain, BOB, accept(name, (500, SLOT, SLOT))) == [OK]
    chain.codes(slot_ms(SLOT - 1, 200), ANN, bid("sell", SLOT, 200, 100_000))
    chain.codes(slot_ms(SLOT - 1, 201), BOB, bid("buy", SLOT, 200, 100_000))
    chain.block(slot_ms(SLOT, -300))
    after_end = slot_ms(SLOT + 1, 10)
    chain.codes(after_end, ANN, receipt(ANN, SLOT, -700, chain.chain_id))
    chain.codes(after_end + 1, BOB, receipt(BOB, SLOT, 700, chain.chain_id))
    result = chain.block(slot_ms(SLOT + 2))
    (settled,) = [e for e in events_of(result, "settled") if e["slot"] == SLOT]
    rows = {row["address"]: row for row in settled["rows"]}
    assert (rows[ANN.id]["soldWh"], rows[ANN.id]["residualWh"]) == (700, 0)
    assert (rows[BOB.id]["boughtWh"], rows[BOB.id]["residualWh"]) == (700, 0)
    paid_uc = 100_000 + 20_000
    assert chain.account(ANN) == (UNITS_100 + paid_uc, 0)
    assert chain.account(BOB) == (UNITS_100 - paid_uc, 0)
    assert chain.ledger.query("totals")["tradedWh"] == 700
    assert chain.ledger.query(f"slot/{SLOT:012d}")["escrowUc"] == 0


def test_a_seller_of_the_order_book_who_does_not_deliver_pays_the_shortfall(chain):
    name = posted(chain, ANN, "production", 500, SLOT, SLOT)
    do(chain, BOB, accept(name, (500, SLOT, SLOT)))
    chain.block(slot_ms(SLOT, -300))
    after_end = slot_ms(SLOT + 1, 10)
    chain.codes(after_end, ANN, receipt(ANN, SLOT, 0, chain.chain_id))
    chain.codes(after_end + 1, BOB, receipt(BOB, SLOT, 500, chain.chain_id))
    chain.block(slot_ms(SLOT + 2))
    imbalance = chain.genesis.prices.imbalance_uc_per_kwh
    assert chain.account(ANN) == (UNITS_100 + 100_000 - 500 * imbalance // 1000, 0)
    assert chain.account(BOB) == (UNITS_100 - 100_000, 0)


# --- deposits with the DSO ------------------------------------------------------------------------


def test_energy_given_back_leaves_the_chain_and_is_announced(chain):
    result = chain.block(NOW, chain.tx(ANN, give_back("production", 4000, SLOT, SLOT + 1)))
    assert events_of(result, "asset-deposited") == [
        {
            "event": "asset-deposited", "address": ANN.id, "kind": "production",
            "energyWh": 4000, "startSlot": SLOT, "endSlot": SLOT + 1,
        }
    ]  # fmt: skip
    assert chain.ledger.query(f"asset/{ANN.id}")["production"] == [
        [5000, FIRST_SLOT, SLOT - 1], [1000, SLOT, SLOT + 1], [5000, SLOT + 2, FIRST_SLOT + 400],
    ]  # fmt: skip
    assert do(chain, ANN, post("production", 1001, SLOT, SLOT)) == ["INSUFFICIENT_ASSET"]


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (give_back("production", 0, SLOT, SLOT), "QUANTITY_OUT_OF_RANGE"),
        (give_back("production", 5001, SLOT, SLOT), "INSUFFICIENT_ASSET"),
        (give_back("production", 1, SLOT, FIRST_SLOT + 401), "INSUFFICIENT_ASSET"),
        (give_back("production", 1, SLOT, SLOT - 1), "MALFORMED"),
        (give_back("production", 1, FIRST_SLOT, SLOT), "SLOT_CLOSED"),
        (give_back("production", 2001, SLOT, SLOT + 9), "ASSET_LOCKED"),
        (give_back("production", 4001, SLOT + 9, SLOT + 9), "ASSET_LOCKED"),
        (pay_out(0), "QUANTITY_OUT_OF_RANGE"),
        (pay_out(2**53 - 1), "QUANTITY_OUT_OF_RANGE"),
        (pay_out(UNITS_100 + 1), "INSUFFICIENT_FUNDS"),
    ],
)
def test_a_refused_deposit_changes_the_nonce_only(chain, operation, code):
    """In this market 3000 Wh are offered in SLOT and 1000 Wh are bid in SLOT + 9."""
    posted(chain, ANN, "production", 3000, SLOT, SLOT)
    do(chain, ANN, bid("sell", SLOT + 9, 1000, 1))
    before = dict(chain.ledger.state.scan(""))
    assert do(chain, ANN, operation) == [code]
    after = dict(chain.ledger.state.scan(""))
    changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
    assert changed == {f"account/{ANN.id}", "totals"}


def test_locked_money_cannot_be_paid_out_and_free_money_counts_as_withdrawn(chain):
    posted(chain, ANN, "consumption", 1000, SLOT, SLOT)
    assert do(chain, ANN, pay_out(UNITS_100 - 199_999)) == ["INSUFFICIENT_FUNDS"]
    result = chain.block(chain.ledger.time_ms + 1, chain.tx(ANN, pay_out(UNITS_100 - 200_000)))
    assert events_of(result, "financial-deposited") == [
        {"event": "financial-deposited", "address": ANN.id, "amountUc": UNITS_100 - 200_000}
    ]
    assert chain.account(ANN) == (0, 200_000)
    totals = chain.ledger.query("totals")
    assert totals["withdrawalsUc"] == UNITS_100 - 200_000
    assert money_uc(chain.ledger.state) == totals["depositsUc"] - totals["withdrawalsUc"]
    assert Ledger.open(chain.genesis, chain.store).state_root(result.height) == result.state_root


def test_the_supervisor_has_no_account_at_the_dso(chain):
    assert do(chain, SUPERVISOR, pay_out(1)) == ["NOT_ALLOWED"]


# --- any interleaving -----------------------------------------------------------------------------

slots_ = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)
kinds = st.sampled_from(["production", "consumption"])
energies = st.sampled_from([0, 1, 700, 700, 1200, 1200, 2500, 2500, 4000, 6000])
actions = st.one_of(
    st.tuples(st.just("post"), kinds, energies, slots_, st.sampled_from([0, 999, 10**6, 10**8])),
    st.tuples(st.just("post"), kinds, energies, slots_, st.sampled_from([0, 999, 10**6])),
    st.tuples(st.just("accept"), st.integers(0, 9), energies, slots_),
    st.tuples(st.just("accept"), st.integers(0, 9), energies, slots_),
    st.tuples(st.just("rescind"), st.integers(0, 9)),
    st.tuples(st.just("bid"), st.sampled_from(["buy", "sell"]), energies, st.integers(0, 8)),
    st.tuples(st.just("back"), kinds, energies, slots_),
    st.tuples(st.just("pay"), st.sampled_from([0, 10**6, 10**7, 10**8])),
    st.tuples(st.just("wait"), st.sampled_from([1, 200_000, 900_000])),
)


@settings(
    max_examples=max(120, settings().max_examples),
    suppress_health_check=[HealthCheck.too_slow],
)
@example(
    [
        (BOB, ("post", "production", 1, [1, 1], 0)),
        (ANN, ("accept", 0, 1, [0, 1])),
        (BOB, ("pay", 10**8)),
        *[(ANN, ("wait", 900_000))] * 3,
    ]
)
@given(st.lists(st.tuples(st.sampled_from([ANN, BOB, EVE]), actions), min_size=8, max_size=25))
def test_any_interleaving_conserves_money_and_energy_and_refusals_leave_no_trace(steps):
    """`Ledger.execute` counts the money of each block; here the locks and positions are counted."""
    chain = Chain()
    chain.settle_in(ANN, BOB, EVE)
    for who, action in steps:
        _until_nothing_is_due(chain)
        before = dict(chain.ledger.state.scan(""))
        operation = _operation(chain, action)
        if operation is None:
            chain.block(chain.ledger.time_ms + action[1])
        else:
            (code,) = chain.codes(chain.ledger.time_ms + 1, who, operation)
            event(f"{operation['op']}: {code}")
            if code != OK:
                _changes_the_nonce_only(chain, before, who)
        _check_locks(chain)
        _check_debts(before, dict(chain.ledger.state.scan("")), may_settle=operation is None)


def _until_nothing_is_due(chain):
    """Blocks without transactions, so that the next one does what its transaction says only."""
    while (chain.ledger.next_due_ms() or chain.ledger.time_ms + 2) <= chain.ledger.time_ms + 1:
        chain.block(chain.ledger.time_ms + 1)


def _changes_the_nonce_only(chain, before, who):
    after = dict(chain.ledger.state.scan(""))
    account, totals = before[f"account/{who.id}"], before["totals"]
    assert after == {
        **before,
        f"account/{who.id}": {**account, "nonce": account["nonce"] + 1},
        "totals": {**totals, "operations": totals["operations"] + 1},
    }


def _operation(chain, action):
    standing = [key.removeprefix("offer/") for key, _ in chain.ledger.state.scan("offer/")]
    match action:
        case ("post", kind, energy_wh, (start, end), price):
            return post(kind, energy_wh, FIRST_SLOT + start, FIRST_SLOT + end, price)
        case ("accept", pick, energy_wh, (start, end)):
            name = standing[pick % len(standing)] if standing else "none"
            return accept(name, (energy_wh, FIRST_SLOT + start, FIRST_SLOT + end))
        case ("rescind", pick):
            return rescind(standing[pick % len(standing)] if standing else "none")
        case ("bid", side, energy_wh, slot):
            return bid(side, FIRST_SLOT + slot, energy_wh, 100)
        case ("back", kind, energy_wh, (start, end)):
            return give_back(kind, energy_wh, FIRST_SLOT + start, FIRST_SLOT + end)
        case ("pay", amount_uc):
            return pay_out(amount_uc)
    return None


def _check_locks(chain):
    state = chain.ledger.state
    locked_uc, listed, promised = {}, [], Counter()
    for name, row in state.scan("offer/"):
        listed.append(name.removeprefix("offer/"))
        slots = row["endSlot"] - row["startSlot"] + 1
        cost = row["energyWh"] * row["priceUcPerKwh"] // 1000 * slots
        behind = cost if row["kind"] == "consumption" else 0
        for slot in range(row["startSlot"], row["endSlot"] + 1):
            promised[slot, row["address"], row["kind"]] += row["energyWh"]
        locked_uc[row["address"]] = locked_uc.get(row["address"], 0) + behind
        assert state.get(f"due/{row['untilMs']:020d}/offer/{name.removeprefix('offer/')}")
    assert sorted(e[0] for _, row in state.scan("offers/") for e in row) == sorted(listed)
    bought = {}
    for name, held in state.scan("position/"):
        slot, address = name.split("/")[1:]
        bought[slot] = bought.get(slot, 0) + held["boughtWh"] - held["soldWh"]
        lock_uc = sum(order[3] for order in held["orders"])
        locked_uc[address] = locked_uc.get(address, 0) + lock_uc
        promised[int(slot), address, "consumption"] += held["buyLockedWh"]
        promised[int(slot), address, "production"] += held["sellLockedWh"]
    for (slot, address, kind), promised_wh in promised.items():
        rows = state.get(f"asset/{address}")[kind]
        assert promised_wh <= sum(wh for wh, first, last in rows if first <= slot <= last) <= 5000
    assert set(bought.values()) <= {0}
    for name, account in state.scan("account/"):
        assert account["lockedUc"] == locked_uc.get(name.removeprefix("account/"), 0)


def _check_debts(before, after, may_settle):
    """Only a settlement makes a debt: no operation spends what is not there (ADR 0004)."""
    for name, account in after.items():
        if name.startswith("account/"):
            owed_uc = min(before.get(name, account)["balanceUc"], 0)
            assert account["lockedUc"] >= 0
            assert account["balanceUc"] >= owed_uc or may_settle, name
    assert after[f"account/{SUPERVISOR.id}"]["balanceUc"] >= 0


def test_a_deposit_may_come_back_after_it_was_paid_out(chain):
    assert do(chain, ANN, pay_out(UNITS_100)) == [OK]
    assert do(chain, SUPERVISOR, deposit(ANN, 5)) == [OK]
    assert chain.account(ANN) == (5, 0)
