"""The contracts: every rule of admission by its name, money and energy where they belong."""

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    SUPERVISOR_UC,
    VALIDATORS,
    Chain,
    asset,
    auction,
    auction_bid,
    bid,
    cpf,
    deposit,
    events_of,
    grant_for,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)

from ledger.genesis import Supervisor
from wire.keys import to_text

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")
SLOT = FIRST_SLOT + 2
BEFORE_GATE = slot_ms(SLOT - 1, 120)
AT_GATE = slot_ms(SLOT, -300)
UNITS_100 = 100_000_000


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(ANN, BOB)
    return chain


def trade(chain: Chain, buy=(1000, 250_000), sell=(700, 100_000)) -> None:
    """Ann buys, Bob sells, the gate closes."""
    chain.block(
        BEFORE_GATE,
        chain.tx(ANN, bid("buy", SLOT, *buy)),
        chain.tx(BOB, bid("sell", SLOT, *sell)),
    )
    chain.block(AT_GATE)


# --- registration, deposits, assets ---------------------------------------------------------------


def test_a_grant_of_another_issuer_or_for_another_address_registers_nobody(chain):
    forged = {**grant_for(EVE), "max_buy_wh": 10**6}
    for grant in (forged, grant_for(BOB), {}, {**grant_for(EVE), "signature": ""}):
        result = chain.block(
            chain.ledger.time_ms + 1,
            chain.tx(EVE, {"op": "register-address", "grant": grant}, nonce=0),
        )
        assert result.receipts[0].code == "UNKNOWN_SENDER"
        assert chain.ledger.query(f"account/{EVE.id}") is None


def test_registration_is_announced_with_its_limits(chain):
    result = chain.block(BEFORE_GATE, chain.tx(EVE, register(EVE, can_sell=False)))
    assert events_of(result, "address-registered") == [
        {
            "event": "address-registered", "address": EVE.id, "canBuy": True, "canSell": False,
            "maxBuyWh": 5000, "maxSellWh": 5000, "startSlot": FIRST_SLOT,
            "endSlot": FIRST_SLOT + 400,
        }
    ]  # fmt: skip


def test_a_grant_counts_once_and_can_be_renewed(chain):
    assert chain.codes(BEFORE_GATE, ANN, register(ANN)) == ["DUPLICATE"]
    longer = register(ANN, end_slot=FIRST_SLOT + 500, max_buy_wh=1)
    assert chain.codes(BEFORE_GATE + 1, ANN, longer) == ["OK"]
    assert chain.ledger.query(f"grant/{ANN.id}")["maxBuyWh"] == 1
    past = register(ANN, start_slot=0, end_slot=FIRST_SLOT - 1)
    assert chain.codes(BEFORE_GATE + 2, ANN, past) == ["EXPIRED"]


def test_only_the_supervisor_gives_assets_and_balances_and_opens_auctions(chain):
    ops = [
        deposit(ANN, 1),
        asset(ANN, "production", 1, SLOT, SLOT),
        auction("a", "reverse", SLOT, 1, 1, "as-bid"),
    ]
    assert chain.codes(BEFORE_GATE, ANN, *ops) == ["NOT_ALLOWED"] * 3
    assert chain.codes(BEFORE_GATE + 1, SUPERVISOR, *ops) == ["OK"] * 3


def test_deposits_and_assets_need_a_registered_address_and_sane_numbers(chain):
    assert chain.codes(
        BEFORE_GATE,
        SUPERVISOR,
        deposit(EVE, 1),
        asset(EVE, "production", 1, SLOT, SLOT),
        deposit(ANN, 0),
        deposit(ANN, 2**53 - 1),
        asset(ANN, "production", 0, SLOT, SLOT),
        asset(ANN, "production", 1, SLOT, SLOT - 1),
        asset(ANN, "production", 1, 0, FIRST_SLOT - 1),
        asset(ANN, "wind", 1, SLOT, SLOT),
    ) == [
        "NOT_FOUND", "NOT_FOUND", "QUANTITY_OUT_OF_RANGE", "QUANTITY_OUT_OF_RANGE",
        "QUANTITY_OUT_OF_RANGE", "MALFORMED", "EXPIRED", "MALFORMED",
    ]  # fmt: skip
    assert chain.account(ANN) == (UNITS_100, 0)


def test_an_address_holds_a_bounded_number_of_intervals(chain):
    ops = [asset(ANN, "production", 1, SLOT, SLOT) for _ in range(64)]
    assert chain.codes(BEFORE_GATE, SUPERVISOR, *ops) == ["OK"] * 63 + ["RATE_LIMITED"]


# --- orders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (bid("buy", SLOT, 1000, 250_000), "OK"),
        (bid("sell", SLOT, 5000, 0), "OK"),
        (bid("buy", FIRST_SLOT, 1, 1), "SLOT_CLOSED"),
        (bid("buy", -1, 1, 1), "SLOT_CLOSED"),
        (bid("buy", SLOT - 1 + 96, 1, 1), "OK"),
        (bid("buy", SLOT - 1 + 97, 1, 1), "SLOT_TOO_FAR"),
        (bid("buy", SLOT, 0, 1), "QUANTITY_OUT_OF_RANGE"),
        (bid("buy", SLOT, -5, 1), "QUANTITY_OUT_OF_RANGE"),
        (bid("sell", SLOT, 5001, 1), "QUANTITY_OUT_OF_RANGE"),
        (bid("sell", SLOT, 1, -1), "PRICE_OUT_OF_RANGE"),
        (bid("sell", SLOT, 1, 10**9), "OK"),
        (bid("sell", SLOT, 1, 10**9 + 1), "PRICE_OUT_OF_RANGE"),
        (bid("buy", SLOT, 1000, 100_000_001), "INSUFFICIENT_FUNDS"),
        ({**bid("buy", SLOT, 1, 1), "more": 1}, "MALFORMED"),
        ({**bid("buy", SLOT, 1, 1), "side": "hold"}, "MALFORMED"),
        ({**bid("buy", SLOT, 1, 1), "slot": "1"}, "MALFORMED"),
        ({**bid("buy", SLOT, 1, 1), "energyWh": True}, "MALFORMED"),
        ({"op": "bid-offer"}, "MALFORMED"),
        ({"op": "mint"}, "UNKNOWN_OPERATION"),
    ],
)
def test_each_refusal_of_an_order_has_its_name_and_changes_nothing(chain, order, code):
    before = chain.account(ANN)
    assert chain.codes(BEFORE_GATE, ANN, order) == [code]
    if code != "OK":
        assert chain.account(ANN) == before
        assert chain.ledger.next_due_ms() is None


def test_an_order_says_what_became_of_it(chain):
    tx = chain.tx(ANN, bid("buy", SLOT, 1, 1), bid("buy", SLOT, 0, 1))
    result = chain.block(BEFORE_GATE, tx)
    facts = {"address": ANN.id, "slot": SLOT, "txid": tx.txid.hex()}
    assert [e for e in result.events if e["event"].startswith("bid-")] == [
        {"event": "bid-accepted", "code": "OK", **facts},
    ]
    assert [e["codes"] for e in result.events if e["event"] == "tx"] == [
        ["OK", "QUANTITY_OUT_OF_RANGE"]
    ], "a refused one costs everybody no event of its own"


def test_the_gate_closes_at_its_millisecond(chain):
    assert chain.codes(AT_GATE - 1, ANN, bid("buy", SLOT, 1, 1)) == ["OK"]
    assert chain.codes(AT_GATE, ANN, bid("buy", SLOT, 1, 1)) == ["SLOT_CLOSED"]


def test_eight_orders_per_address_and_slot(chain):
    orders = [bid("buy", SLOT, 1, 1)] * 9 + [bid("buy", SLOT + 1, 1, 1)]
    assert chain.codes(BEFORE_GATE, ANN, *orders) == ["OK"] * 8 + ["RATE_LIMITED", "OK"]


def test_capabilities_and_validity_of_the_grant_bind(chain):
    chain.block(BEFORE_GATE, chain.tx(EVE, register(EVE, can_buy=False, end_slot=SLOT)))
    assert chain.codes(
        BEFORE_GATE + 1,
        EVE,
        bid("buy", SLOT, 1, 1),
        bid("sell", SLOT + 1, 1, 1),
        bid("sell", SLOT, 1, 1),
    ) == ["NOT_ALLOWED", "NOT_ALLOWED", "INSUFFICIENT_ASSET"]


def test_assets_lock_across_orders_and_auctions(chain):
    """The same watt-hour cannot be sold to a neighbour and to the aggregator."""
    chain.block(BEFORE_GATE, chain.tx(EVE, register(EVE)))
    chain.codes(
        BEFORE_GATE + 1,
        SUPERVISOR,
        asset(EVE, "production", 300, SLOT, SLOT),
        asset(EVE, "production", 200, SLOT - 5, SLOT + 5),
        auction("flex", "reverse", SLOT, 1000, 200_000, "as-bid"),
    )
    assert chain.codes(
        BEFORE_GATE + 2,
        EVE,
        bid("sell", SLOT, 400, 1),
        auction_bid("flex", 101, 1),
        auction_bid("flex", 100, 1),
        bid("sell", SLOT, 1, 1),
        bid("sell", SLOT + 1, 200, 1),
        bid("buy", SLOT, 1, 1),
    ) == ["OK", "INSUFFICIENT_ASSET", "OK", "INSUFFICIENT_ASSET", "OK", "INSUFFICIENT_ASSET"]


def test_funds_are_locked_at_the_bid_and_only_once(chain):
    more = bid("buy", SLOT, 5, 10**9)
    assert chain.codes(BEFORE_GATE, ANN, bid("buy", SLOT, 100, 10**9), more) == [
        "OK",
        "INSUFFICIENT_FUNDS",
    ]
    assert chain.account(ANN) == (0, UNITS_100)


# --- clearing and settlement ----------------------------------------------------------------------


def test_clearing_moves_the_cost_to_escrow_and_frees_the_rest(chain):
    trade(chain)
    # 700 Wh at (100000 + 250000) / 2 µ¤/kWh
    assert chain.account(ANN) == (UNITS_100 - 122_500, 0)
    assert chain.account(BOB) == (UNITS_100, 0)
    assert chain.ledger.query(f"slot/{SLOT:012d}")["escrowUc"] == 122_500


def test_delivered_as_contracted_pays_the_seller_and_no_residual(chain):
    trade(chain)
    chain.block(
        slot_ms(SLOT + 1, 2),
        chain.tx(ANN, receipt(ANN, SLOT, 700, chain.chain_id)),
        chain.tx(BOB, receipt(BOB, SLOT, -700, chain.chain_id)),
    )
    result = chain.block(slot_ms(SLOT + 2))
    (settled,) = events_of(result, "settled")
    assert settled["missing"] == []
    assert {row["residualWh"] for row in settled["rows"]} == {0}
    assert chain.account(ANN) == (UNITS_100 - 122_500, 0)
    assert chain.account(BOB) == (UNITS_100 + 122_500, 0)
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC, 0)


def test_residuals_are_settled_with_the_supervisor(chain):
    trade(chain)
    chain.block(
        slot_ms(SLOT + 1, 2),
        chain.tx(ANN, receipt(ANN, SLOT, 900, chain.chain_id)),
        chain.tx(BOB, receipt(BOB, SLOT, -800, chain.chain_id)),
    )
    chain.block(slot_ms(SLOT + 2))
    # Ann took 200 Wh more at 300000, Bob gave 100 Wh more at 80000
    assert chain.account(ANN) == (UNITS_100 - 122_500 - 60_000, 0)
    assert chain.account(BOB) == (UNITS_100 + 122_500 + 8_000, 0)
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC + 52_000, 0)


@pytest.mark.parametrize(("ann_wh", "bob_wh"), [(900, -800), (0, 0), (-50, 300), (700, -700)])
def test_a_late_receipt_ends_where_a_timely_one_would(ann_wh, bob_wh):
    ends = []
    for late in (False, True):
        chain = Chain()
        chain.settle_in(ANN, BOB)
        trade(chain)
        receipts = [
            chain.tx(ANN, receipt(ANN, SLOT, ann_wh, chain.chain_id)),
            chain.tx(BOB, receipt(BOB, SLOT, bob_wh, chain.chain_id)),
        ]
        if late:
            result = chain.block(slot_ms(SLOT + 2))
            assert events_of(result, "settled")[0]["missing"] == sorted([ANN.id, BOB.id])
            result = chain.block(slot_ms(SLOT + 2, 1), *receipts)
            assert len(events_of(result, "trued-up")) == 2
        else:
            chain.block(slot_ms(SLOT + 1, 1), *receipts)
            chain.block(slot_ms(SLOT + 2))
        ends.append([chain.account(who) for who in (ANN, BOB, SUPERVISOR)])
    assert ends[0] == ends[1]


def test_a_home_that_did_not_trade_is_settled_by_its_meter(chain):
    chain.block(slot_ms(SLOT + 1), chain.tx(ANN, receipt(ANN, SLOT, 1000, chain.chain_id)))
    result = chain.block(slot_ms(SLOT + 2))
    assert len(events_of(result, "settled")[0]["rows"]) == 1
    assert chain.account(ANN) == (UNITS_100 - 300_000, 0)
    assert chain.codes(slot_ms(SLOT + 2, 1), BOB, receipt(BOB, SLOT, -1000, chain.chain_id)) == [
        "OK"
    ]
    assert chain.account(BOB) == (UNITS_100 + 80_000, 0)


def test_refused_receipts_by_name(chain):
    now_ms = slot_ms(SLOT + 120)
    good = receipt(ANN, SLOT + 100, 1, chain.chain_id)
    changed = {"op": "receipt", "receipt": {**good["receipt"], "net_wh": 2}}
    assert chain.codes(
        now_ms,
        ANN,
        receipt(BOB, SLOT + 100, 1, chain.chain_id),
        receipt(ANN, SLOT + 120, 1, chain.chain_id),
        receipt(ANN, SLOT + 23, 1, chain.chain_id),
        receipt(ANN, FIRST_SLOT - 1, 1, chain.chain_id),
        receipt(ANN, SLOT + 100, 10**7 + 1, chain.chain_id),
        receipt(ANN, SLOT + 100, 1, "another chain"),
        changed,
        {"op": "receipt", "receipt": {}},
        good,
        good,
        receipt(ANN, SLOT + 24, 1, chain.chain_id),
    ) == [
        "NOT_ALLOWED", "FUTURE_DATED", "EXPIRED", "NOT_ALLOWED", "QUANTITY_OUT_OF_RANGE",
        "BAD_SIGNATURE", "BAD_SIGNATURE", "MALFORMED", "OK", "DUPLICATE", "OK",
    ]  # fmt: skip


def test_what_buyers_pay_is_what_sellers_get_to_the_last_unit():
    """Three buyers and two sellers of odd amounts: rounding happens once for each pair."""
    homes = [key(f"odd {i}") for i in range(5)]
    chain = Chain()
    chain.settle_in(*homes)
    orders = [
        bid("buy", SLOT, 333, 123_457), bid("buy", SLOT, 1, 123_459),
        bid("buy", SLOT, 777, 123_461),
        bid("sell", SLOT, 500, 99_991), bid("sell", SLOT, 611, 99_989),
    ]  # fmt: skip
    chain.block(BEFORE_GATE, *(chain.tx(h, o) for h, o in zip(homes, orders, strict=True)))
    chain.block(AT_GATE)
    row = chain.ledger.query(f"slot/{SLOT:012d}")
    assert row["tradedWh"] == 1111
    owed = [value["receivableUc"] for _, value in chain.ledger.state.scan("position/")]
    assert sum(owed) == row["escrowUc"] == 5 * UNITS_100 - sum(chain.account(h)[0] for h in homes)


def test_a_supervisor_short_of_money_deposits_what_it_lacks():
    genesis = make_genesis(
        supervisor=Supervisor(address=SUPERVISOR.id, key=to_text(SUPERVISOR.public), balance_uc=5)
    )
    chain = Chain(genesis=genesis)
    chain.settle_in(ANN)
    chain.block(slot_ms(SLOT + 1), chain.tx(ANN, receipt(ANN, SLOT, -1000, chain.chain_id)))
    chain.block(slot_ms(SLOT + 2))
    assert chain.account(SUPERVISOR) == (0, 0)
    assert chain.account(ANN) == (UNITS_100 + 80_000, 0)
    assert chain.ledger.query("totals")["depositsUc"] == UNITS_100 + 80_000


def test_a_home_in_debt_pays_and_cannot_buy(chain):
    chain.block(slot_ms(SLOT + 1), chain.tx(ANN, receipt(ANN, SLOT, 10**6, chain.chain_id)))
    chain.block(slot_ms(SLOT + 2))
    assert chain.account(ANN) == (UNITS_100 - 300_000_000, 0)
    later = bid("buy", SLOT + 5, 1, 1000)
    assert chain.codes(slot_ms(SLOT + 2, 1), ANN, later) == ["INSUFFICIENT_FUNDS"]


# --- flexibility auctions -------------------------------------------------------------------------


def test_a_reverse_auction_buys_the_cheapest_and_pays_at_settlement(chain):
    opened = chain.block(
        BEFORE_GATE,
        chain.tx(SUPERVISOR, auction("flex", "reverse", SLOT, 1000, 200_000, "as-bid")),
    )
    assert events_of(opened, "auction-opened")[0]["deadlineMs"] == AT_GATE
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC - 200_000, 200_000)
    chain.block(
        BEFORE_GATE + 1,
        chain.tx(ANN, auction_bid("flex", 800, 150_000)),
        chain.tx(BOB, auction_bid("flex", 500, 100_000), auction_bid("flex", 500, 200_001)),
    )
    (cleared,) = events_of(chain.block(AT_GATE), "auction-cleared")
    assert cleared["boughtWh"] == 1000
    assert cleared["awards"] == [
        {"address": BOB.id, "side": "sell", "energyWh": 500, "priceUcPerKwh": 100_000},
        {"address": ANN.id, "side": "sell", "energyWh": 500, "priceUcPerKwh": 150_000},
    ]
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC - 125_000, 0)
    chain.block(
        slot_ms(SLOT + 1, 1),
        chain.tx(ANN, receipt(ANN, SLOT, -500, chain.chain_id)),
        chain.tx(BOB, receipt(BOB, SLOT, -400, chain.chain_id)),
    )
    chain.block(slot_ms(SLOT + 2))
    assert chain.account(ANN) == (UNITS_100 + 75_000, 0)
    assert chain.account(BOB) == (UNITS_100 + 50_000 - 30_000, 0)
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC - 125_000 + 30_000, 0)


def test_a_forward_auction_sells_to_the_dearest(chain):
    chain.codes(BEFORE_GATE, SUPERVISOR, auction("sun", "forward", SLOT, 600, 50_000, "uniform"))
    chain.block(
        BEFORE_GATE + 1,
        chain.tx(ANN, auction_bid("sun", 400, 90_000)),
        chain.tx(BOB, auction_bid("sun", 400, 70_000)),
    )
    assert chain.account(ANN) == (UNITS_100 - 36_000, 36_000)
    chain.block(AT_GATE)
    # both pay the last price taken
    assert chain.account(ANN) == (UNITS_100 - 28_000, 0)
    assert chain.account(BOB) == (UNITS_100 - 14_000, 0)
    chain.block(
        slot_ms(SLOT + 1, 1),
        chain.tx(ANN, receipt(ANN, SLOT, 400, chain.chain_id)),
        chain.tx(BOB, receipt(BOB, SLOT, 200, chain.chain_id)),
    )
    chain.block(slot_ms(SLOT + 2))
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC + 42_000, 0)


def test_a_home_may_sell_to_neighbours_and_to_the_aggregator_in_one_slot(chain):
    chain.codes(BEFORE_GATE, SUPERVISOR, auction("flex", "reverse", SLOT, 300, 200_000, "as-bid"))
    chain.block(
        BEFORE_GATE + 1,
        chain.tx(ANN, bid("buy", SLOT, 700, 100_000)),
        chain.tx(BOB, bid("sell", SLOT, 700, 100_000), auction_bid("flex", 300, 200_000)),
    )
    chain.block(AT_GATE)
    chain.block(
        slot_ms(SLOT + 1, 1),
        chain.tx(ANN, receipt(ANN, SLOT, 700, chain.chain_id)),
        chain.tx(BOB, receipt(BOB, SLOT, -1000, chain.chain_id)),
    )
    (settled,) = events_of(chain.block(slot_ms(SLOT + 2)), "settled")
    assert {row["residualWh"] for row in settled["rows"]} == {0}
    assert {row["address"] for row in settled["rows"]} == {ANN.id, BOB.id}
    assert chain.account(BOB) == (UNITS_100 + 70_000 + 60_000, 0)


def test_refused_auctions_and_bids_by_name(chain):
    names = [
        auction("Bad Name", "reverse", SLOT, 1, 1, "as-bid"),
        auction("ok", "sideways", SLOT, 1, 1, "as-bid"),
        auction("ok", "reverse", FIRST_SLOT, 1, 1, "as-bid"),
        auction("ok", "reverse", SLOT + 200, 1, 1, "as-bid"),
        auction("ok", "reverse", SLOT, 0, 1, "as-bid"),
        auction("ok", "reverse", SLOT, 1, 10**9 + 1, "as-bid"),
        auction("ok", "reverse", SLOT, 10**9, 10**9, "as-bid"),
        auction("ok", "reverse", SLOT, 1000, 1000, "as-bid"),
        auction("ok", "reverse", SLOT, 1000, 1000, "as-bid"),
    ]
    assert chain.codes(BEFORE_GATE, SUPERVISOR, *names) == [
        "MALFORMED", "MALFORMED", "SLOT_CLOSED", "SLOT_TOO_FAR", "QUANTITY_OUT_OF_RANGE",
        "PRICE_OUT_OF_RANGE", "INSUFFICIENT_FUNDS", "OK", "DUPLICATE",
    ]  # fmt: skip
    many = [auction(f"n{i}", "forward", SLOT, 1, 1, "uniform") for i in range(16)]
    assert chain.codes(BEFORE_GATE + 1, SUPERVISOR, *many) == ["OK"] * 15 + ["RATE_LIMITED"]
    assert chain.codes(
        BEFORE_GATE + 2,
        ANN,
        auction_bid("none", 1, 1),
        auction_bid("../x", 1, 1),
        auction_bid("ok", 0, 1),
        auction_bid("ok", 1, 1),
    ) == ["NOT_FOUND", "MALFORMED", "QUANTITY_OUT_OF_RANGE", "OK"]
    assert chain.codes(AT_GATE, ANN, auction_bid("ok", 1, 1)) == ["SLOT_CLOSED"]


# --- Proof of Energy ------------------------------------------------------------------------------


def test_attestations_are_checked_and_the_newest_counts(chain):
    zero, one = VALIDATORS[:2]
    now_ms = slot_ms(FIRST_SLOT + 20)
    stranger = key("not a validator")
    good = cpf(zero, FIRST_SLOT + 19, 60_000, chain.chain_id)
    assert chain.codes(
        now_ms,
        ANN,
        cpf(stranger, FIRST_SLOT + 19, 1, chain.chain_id),
        cpf(zero, FIRST_SLOT + 20, 1, chain.chain_id),
        cpf(zero, FIRST_SLOT + 19, 65_537, chain.chain_id),
        cpf(zero, FIRST_SLOT + 19, 1, "another chain"),
        cpf(zero, FIRST_SLOT + 19, 1, chain.chain_id, start_slot=FIRST_SLOT + 13),
        {**good, "attestation": cpf(one, FIRST_SLOT + 19, 1, chain.chain_id)["attestation"]},
        {**good, "grant": {**good["grant"], "end_slot": 1}},
        good,
        good,
        cpf(zero, FIRST_SLOT + 18, 1, chain.chain_id),
        cpf(one, FIRST_SLOT + 19, 40_000, chain.chain_id, eligible=False),
    ) == [
        "NOT_FOUND", "FUTURE_DATED", "QUANTITY_OUT_OF_RANGE", "BAD_SIGNATURE", "MALFORMED",
        "NOT_ALLOWED", "BAD_SIGNATURE", "OK", "DUPLICATE", "DUPLICATE", "OK",
    ]  # fmt: skip
    inputs = chain.ledger.schedule_inputs()
    assert list(inputs) == [v.id for v in chain.genesis.validators]
    assert inputs[zero.id] == (60_000, True)
    assert inputs[one.id] == (40_000, False)
    assert inputs[VALIDATORS[2].id] == (0, False)


def test_a_stale_attestation_does_not_make_eligible(chain):
    zero = VALIDATORS[0]
    end = FIRST_SLOT + 19
    chain.codes(slot_ms(end + 1), ANN, cpf(zero, end, 60_000, chain.chain_id))
    assert chain.ledger.schedule_inputs(end + 4)[zero.id] == (60_000, True)
    assert chain.ledger.schedule_inputs(end + 5)[zero.id] == (60_000, False)
