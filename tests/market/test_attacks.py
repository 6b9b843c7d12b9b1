"""
Attacks on the markets, each tried on the ledger that runs them.

Front-running, bids that are not revealed, an asset sold twice, selling beyond a grant, trading
while banned, numbers that overflow, and what comes at the very boundary of a slot. Every refusal
has its name and changes nothing but the nonce.
"""

import hashlib

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    Chain,
    asset,
    auction,
    auction_bid,
    bid,
    deposit,
    events_of,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)

from ledger.contracts import keys
from ledger.contracts.accounts import DEPOSITS_MAX_UC
from ledger.contracts.grants import CONNECTION_MAX_WH
from ledger.execution import money_uc
from ledger.genesis import MAX_PRICE_UC_PER_KWH, Auctions
from market.sealed import SealedBid, commitment
from wire.errors import MalformedError
from wire.keys import to_text
from wire.units import MAX_SAFE_INT

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")
SLOT = FIRST_SLOT + 3
GATE = slot_ms(SLOT, -300)
REVEAL = GATE - 120_000
COMMIT = REVEAL - 60_000
DEPOSIT_UC = 50_000
UNITS_100 = 100_000_000


def start(sealed=False, homes=(ANN, BOB, EVE)):
    rules = Auctions(sealed=sealed, reveal_s=120, bid_deposit_uc=DEPOSIT_UC)
    chain = Chain(genesis=make_genesis(auctions=rules))
    chain.settle_in(*homes)
    return chain


def sealed(who, side, energy_wh, price, name=""):
    """(commit, reveal) of a bid."""
    salt = hashlib.sha256(f"{who.id} {side} {energy_wh} {price}".encode()).digest()
    said = SealedBid(
        address=who.id, slot=SLOT, auction=name, side=side, energy_wh=energy_wh,
        price_uc_per_kwh=price,
    )  # fmt: skip
    commit = {
        "op": "commit-bid", "slot": SLOT, "auction": name,
        "commitment": to_text(commitment(salt, said)),
    }  # fmt: skip
    reveal = {
        "op": "reveal-bid", "slot": SLOT, "auction": name, "side": side, "energyWh": energy_wh,
        "priceUcPerKwh": price, "salt": to_text(salt),
    }  # fmt: skip
    return commit, reveal


def post(energy_wh, start_slot=SLOT, end_slot=SLOT, price=200_000, kind="production", **more):
    return {
        "op": "post-offer", "kind": kind, "energyWh": energy_wh, "startSlot": start_slot,
        "endSlot": end_slot, "priceUcPerKwh": price, **more,
    }  # fmt: skip


def accept(name, energy_wh, start_slot=SLOT, end_slot=SLOT):
    given = {"energyWh": energy_wh, "startSlot": start_slot, "endSlot": end_slot}
    return {"op": "accept-offer", "offer": name, "assets": [given]}


def rescind(name):
    return {"op": "rescind-offer", "offer": name}


def make_offer(who, energy_wh, slot=SLOT, price=200_000, name="o", **more):
    return {
        "op": "make-offer", "offer": f"{who.id}:{name}", "slot": slot, "energyWh": energy_wh,
        "priceUcPerKwh": price, "guaranteeUc": energy_wh * price // 10_000 + 1,
        "acceptBeforeMs": slot_ms(slot, -300), "deliverBeforeMs": slot_ms(slot + 2), **more,
    }  # fmt: skip


def accept_escrow(who, energy_wh, price=200_000, name="o"):
    return {
        "op": "accept-escrow", "offer": f"{who.id}:{name}", "energyWh": energy_wh,
        "priceUcPerKwh": price,
    }  # fmt: skip


def schedule(side, energy_wh, price=200_000, slot=SLOT):
    return {
        "op": "submit-schedule", "side": side, "slot": slot, "energyWh": energy_wh,
        "priceUcPerKwh": price,
    }  # fmt: skip


def give_back(energy_wh, start_slot=SLOT, end_slot=SLOT):
    return {
        "op": "deposit-energy-asset", "kind": "production", "energyWh": energy_wh,
        "startSlot": start_slot, "endSlot": end_slot,
    }  # fmt: skip


def deploy(chain, name="flex", template="reverse", **more):
    """An auction that the supervisor opens for SLOT."""
    amounts = (0, 0) if template == "double" else (4000, 300_000)
    opened = {**auction(name, template, SLOT, *amounts, "uniform"), **more}
    assert chain.codes(chain.ledger.time_ms + 1, SUPERVISOR, opened) == ["OK"]


def posted(chain, who, operation):
    """Post an offer; its name."""
    result = chain.block(chain.ledger.time_ms + 1, chain.tx(who, operation))
    return events_of(result, "offer-posted")[0]["offer"]


def refused(chain, who, operation, at_ms=None):
    """Send an operation that is refused: its code, once it is seen to have left no trace."""
    before = dict(chain.ledger.state.scan(""))
    (code,) = chain.codes(at_ms or chain.ledger.time_ms + 1, who, operation)
    account, totals = before[f"account/{who.id}"], before["totals"]
    assert dict(chain.ledger.state.scan("")) == {
        **before,
        f"account/{who.id}": {**account, "nonce": account["nonce"] + 1},
        "totals": {**totals, "operations": totals["operations"] + 1},
    }, code
    return code


# --- front-running --------------------------------------------------------------------------------


def cleared_with(*others):
    """Ann buys and Bob sells, sealed; `others` (commit, reveal) are Eve's, ahead of both."""
    chain = start(sealed=True)
    (buy, show_buy), (sell, show_sell) = (
        sealed(ANN, "buy", 1000, 250_000), sealed(BOB, "sell", 1000, 100_000),
    )  # fmt: skip
    first = [chain.tx(EVE, commit) for commit, _ in others if commit]
    chain.block(COMMIT, *first, chain.tx(ANN, buy), chain.tx(BOB, sell))
    shown = [chain.tx(EVE, reveal) for _, reveal in others if reveal]
    result = chain.block(REVEAL, *shown, chain.tx(ANN, show_buy), chain.tx(BOB, show_sell))
    codes = [one.codes[0] for one in result.receipts]
    (cleared,) = events_of(chain.block(GATE), "cleared")
    return chain, codes, cleared


def test_a_sealed_bid_that_is_copied_ahead_of_its_owner_gains_nothing():
    """Eve sees Ann's commitment and then her reveal, and has both go before Ann's."""
    copied = sealed(ANN, "buy", 1000, 250_000)
    chain, codes, cleared = cleared_with(copied)
    _, _, alone = cleared_with()
    assert codes == ["BAD_PREIMAGE", "OK", "OK"]
    assert cleared == alone
    assert chain.account(EVE) == (UNITS_100 - DEPOSIT_UC, 0), "it cost her the deposit"


def test_once_bids_show_nobody_can_bid_against_them():
    """Neither a new bid nor another opening of an old one: what was committed to stands."""
    late, show_late = sealed(EVE, "buy", 1000, 250_001)
    chain, codes, cleared = cleared_with((None, late), (None, show_late))
    assert codes[:2] == ["SLOT_CLOSED", "BAD_PREIMAGE"]
    assert [one["address"] for one in cleared["awards"]] == [ANN.id, BOB.id]
    assert chain.account(EVE) == (UNITS_100, 0)


def test_an_offer_cannot_be_made_dearer_under_a_buyers_hands():
    """Bob sees Ann accept, and has his rescinding and a dearer offer go before her transaction."""
    chain = start()
    name = posted(chain, BOB, post(1000, price=200_000))
    result = chain.block(
        chain.ledger.time_ms + 1, chain.tx(BOB, rescind(name), post(1000, price=900_000)),
        chain.tx(ANN, accept(name, 1000)),
    )  # fmt: skip
    assert [one.codes for one in result.receipts] == [("OK", "OK"), ("NOT_FOUND",)]
    assert chain.account(ANN) == (UNITS_100, 0)


def test_who_is_overtaken_in_accepting_an_offer_loses_nothing():
    chain = start()
    name = posted(chain, BOB, post(1000))
    result = chain.block(
        chain.ledger.time_ms + 1, chain.tx(EVE, accept(name, 1)), chain.tx(ANN, accept(name, 1000))
    )
    assert [one.codes for one in result.receipts] == [("OK",), ("NOT_FOUND",)]
    assert chain.account(ANN) == (UNITS_100, 0)
    assert chain.ledger.query(f"position/{SLOT:012d}/{ANN.id}") is None


# --- bids that are not revealed -------------------------------------------------------------------


def test_a_bid_that_is_withheld_costs_its_deposit_and_changes_nothing_for_the_others():
    """Eve waits until the others have shown their bids and keeps hers back: it is not free."""
    chain, _, cleared = cleared_with((sealed(EVE, "buy", 1000, 300_000)[0], None))
    _, _, alone = cleared_with()
    assert cleared == alone
    assert chain.account(EVE) == (UNITS_100 - DEPOSIT_UC, 0)
    assert chain.ledger.query(f"position/{SLOT:012d}/{EVE.id}")["boughtWh"] == 0
    assert not list(chain.ledger.state.scan("sealed-bid/"))
    chain.block(slot_ms(SLOT + 2))
    assert money_uc(chain.ledger.state) == chain.ledger.query("totals")["depositsUc"]


# --- an asset sold twice, and beyond a grant ------------------------------------------------------

SELLING = {
    "order book": lambda wh: post(wh, SLOT - 1, SLOT + 1),
    "double auction": lambda wh: bid("sell", SLOT, wh, 200_000),
    "aggregator's auction": lambda wh: auction_bid("flex", wh, 200_000),
    "session": lambda wh: schedule("sell", wh),
    "escrow": lambda wh: make_offer(EVE, wh),
}


def seller(asset_wh, limit_wh=5000, **grant):
    """A chain on which Eve has an asset around SLOT, in two parts that overlap in SLOT only."""
    chain = start(homes=(ANN, BOB))
    chain.block(
        chain.ledger.time_ms + 1, chain.tx(EVE, register(EVE, max_sell_wh=limit_wh, **grant))
    )
    half = asset_wh // 2
    given = [
        asset(EVE, "production", half, SLOT - 1, SLOT),
        asset(EVE, "production", asset_wh - half, SLOT, SLOT + 1),
        asset(EVE, "production", half, SLOT + 1, SLOT + 1),
        asset(EVE, "production", asset_wh - half, SLOT - 1, SLOT - 1), deposit(EVE, UNITS_100),
    ]  # fmt: skip
    chain.block(chain.ledger.time_ms + 1, chain.tx(SUPERVISOR, *given))
    deploy(chain)
    return chain


@pytest.mark.parametrize("first", SELLING)
def test_an_asset_is_sold_once_over_overlapping_intervals_in_whatever_market(first):
    """600 of 1000 Wh are promised in one market: 401 cannot be in any, nor go back; 400 can."""
    chain = seller(1000)
    assert chain.codes(chain.ledger.time_ms + 1, EVE, SELLING[first](600)) == ["OK"]
    for second, sell in SELLING.items():
        if second != first or first in ("order book", "double auction"):
            code = refused(chain, EVE, sell(401))
            assert code in ("INSUFFICIENT_ASSET", "DUPLICATE"), second
    assert refused(chain, EVE, give_back(401, SLOT - 1, SLOT + 1)) == "ASSET_LOCKED"
    assert refused(chain, EVE, post(401, SLOT, SLOT)) == "INSUFFICIENT_ASSET"
    assert chain.codes(chain.ledger.time_ms + 1, EVE, post(400, SLOT, SLOT)) == ["OK"]
    assert refused(chain, EVE, bid("sell", SLOT, 1, 1)) == "INSUFFICIENT_ASSET"


def test_of_two_sales_in_one_block_and_in_one_transaction_the_first_counts():
    chain = seller(1000)
    result = chain.block(
        chain.ledger.time_ms + 1,
        chain.tx(EVE, post(600, SLOT - 1, SLOT), post(600, SLOT, SLOT + 1)),
        chain.tx(EVE, bid("sell", SLOT, 600, 1)),
    )  # fmt: skip
    assert [one.codes for one in result.receipts] == [
        ("OK", "INSUFFICIENT_ASSET"), ("INSUFFICIENT_ASSET",),
    ]  # fmt: skip


def test_what_was_sold_cannot_be_sold_again_after_the_trade():
    """An accepted offer is gone from the book; its energy stays promised."""
    chain = seller(1000)
    name = posted(chain, EVE, post(1000, SLOT - 1, SLOT + 1))
    assert chain.codes(chain.ledger.time_ms + 1, ANN, accept(name, 1000, SLOT, SLOT)) == ["OK"]
    for sell in SELLING.values():
        assert refused(chain, EVE, sell(1)) == "INSUFFICIENT_ASSET"
    assert chain.codes(chain.ledger.time_ms + 1, EVE, post(1000, SLOT + 1, SLOT + 1)) == ["OK"]


@pytest.mark.parametrize("market", SELLING)
def test_nobody_sells_beyond_its_grant(market):
    """Neither more than it allows, whatever the assets, nor what is not held, nor at all."""
    sell = SELLING[market]
    assert refused(seller(1000, limit_wh=800), EVE, sell(801)) == "QUANTITY_OUT_OF_RANGE"
    assert refused(seller(500, limit_wh=800), EVE, sell(501)) == "INSUFFICIENT_ASSET"
    assert refused(seller(1000, can_sell=False), EVE, sell(1)) == "NOT_ALLOWED"
    assert refused(seller(1000, end_slot=SLOT - 1), EVE, sell(1)) == "NOT_ALLOWED"
    assert refused(seller(1000, start_slot=SLOT + 1), EVE, sell(1)) == "NOT_ALLOWED"
    chain = seller(1000, limit_wh=800)
    assert chain.codes(chain.ledger.time_ms + 1, EVE, bid("sell", SLOT, 500, 1)) == ["OK"]
    assert refused(chain, EVE, sell(301)) == "QUANTITY_OUT_OF_RANGE", "together with the order"


# --- trading while banned -------------------------------------------------------------------------


def test_who_is_banned_trades_in_no_market_and_may_only_withdraw():
    chain = start()
    deploy(chain)
    deploy(chain, "covered", "double", sealed=True)
    mine = posted(chain, EVE, post(10))
    assert chain.codes(chain.ledger.time_ms + 1, BOB, make_offer(BOB, 10, SLOT)) == ["OK"]
    theirs = posted(chain, BOB, post(10, SLOT + 1, SLOT + 1))
    assert chain.codes(chain.ledger.time_ms + 1, EVE, make_offer(EVE, 10, SLOT + 1)) == ["OK"]
    commit, reveal = sealed(EVE, "buy", 10, 200_000, "covered")
    assert chain.codes(COMMIT, EVE, commit) == ["OK"]
    chain.ledger.state.put(keys.penalty(EVE.id), {"count": 0, "bannedUntil": SLOT + 9})
    trades = [
        bid("buy", SLOT, 1, 1), bid("sell", SLOT, 1, 1), auction_bid("flex", 1, 1),
        sealed(EVE, "buy", 1, 1, "covered")[0], post(1), post(1, kind="consumption"),
        accept(theirs, 1, SLOT + 1, SLOT + 1), make_offer(EVE, 1, name="p"),
        accept_escrow(BOB, 10), schedule("buy", 1), schedule("sell", 1),
    ]  # fmt: skip
    assert [refused(chain, EVE, one) for one in trades] == ["BANNED"] * len(trades)
    assert refused(chain, ANN, accept(mine, 1)) == "BANNED"
    assert refused(chain, ANN, accept_escrow(EVE, 10)) == "BANNED"
    assert refused(chain, EVE, reveal, REVEAL) == "BANNED"
    back = [rescind(mine), {"op": "give-up", "offer": f"{EVE.id}:o"}]
    assert chain.codes(chain.ledger.time_ms + 1, EVE, *back) == ["OK", "OK"]


def test_who_is_banned_between_gate_and_start_cannot_give_its_schedule_back():
    chain = start()
    assert chain.codes(GATE - 1, EVE, schedule("sell", 100, 100_000)) == ["OK"]
    chain.block(GATE)
    reopened = {"op": "open-adjustment", "slot": SLOT, "deadlineMs": slot_ms(SLOT)}
    assert chain.codes(GATE + 1, SUPERVISOR, reopened) == ["OK"]
    chain.ledger.state.put(keys.penalty(EVE.id), {"count": 0, "bannedUntil": SLOT + 9})
    assert refused(chain, EVE, schedule("buy", 1, 100_000)) == "BANNED"
    chain.ledger.state.delete(keys.penalty(EVE.id))
    assert chain.codes(GATE + 3, EVE, schedule("buy", 1, 100_000)) == ["OK"]


def test_a_ban_ends_with_its_last_slot():
    chain = start()
    chain.ledger.state.put(keys.penalty(EVE.id), {"count": 0, "bannedUntil": SLOT - 2})
    wanted = bid("sell", SLOT + 5, 1, 1)
    chain.block(slot_ms(SLOT - 1) - 2)
    assert refused(chain, EVE, wanted, slot_ms(SLOT - 1) - 1) == "BANNED"
    assert chain.codes(slot_ms(SLOT - 1), EVE, wanted) == ["OK"]


# --- numbers that overflow ------------------------------------------------------------------------

OPERATIONS = [
    bid("buy", SLOT, 10, 10), bid("sell", SLOT, 10, 10), auction_bid("flex", 10, 10),
    sealed(EVE, "buy", 10, 10)[0], sealed(EVE, "buy", 10, 10)[1], post(10),
    post(10, kind="consumption", untilMs=GATE), accept("{theirs}", 10), make_offer(EVE, 10),
    accept_escrow(BOB, 10), schedule("buy", 10), give_back(10),
    {"op": "deposit-financial-balance", "amountUc": 1},
    {"op": "reveal-escrow", "offer": f"{BOB.id}:o", "energyWh": 1, "priceUcPerKwh": 1,
     "salt": "0" * 16},
]  # fmt: skip
HUGE = (MAX_SAFE_INT, -MAX_SAFE_INT, MAX_SAFE_INT - 1, 2**31, 2**32, -1)


def changed(operation, field, value):
    """An operation with one of its integers replaced."""
    if field == "assets":
        return {**operation, "assets": [{**operation["assets"][0], "energyWh": value}]}
    return {**operation, field: value}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation["op"])
def test_a_number_at_the_end_of_the_range_is_refused_or_counts_exactly(operation):
    """No field of any operation breaks a block, makes money, or leaves a trace when refused."""
    chain = start()
    deploy(chain)
    theirs = posted(chain, BOB, post(10))
    assert chain.codes(chain.ledger.time_ms + 1, BOB, make_offer(BOB, 10, SLOT)) == ["OK"]
    if operation.get("offer") == "{theirs}":
        operation = {**operation, "offer": theirs}
    fields = [name for name, value in operation.items() if type(value) is int or name == "assets"]
    for field in fields:
        for value in HUGE:
            one = changed(operation, field, value)
            before = dict(chain.ledger.state.scan(""))
            (code,) = chain.codes(chain.ledger.time_ms + 1, EVE, one)
            after = dict(chain.ledger.state.scan(""))
            if code != "OK":
                touched = {k for k in before | after if before.get(k) != after.get(k)}
                assert touched == {f"account/{EVE.id}", "totals"}, (field, value, code)
            else:  # a price, a time or a payment that is large and lawful
                lawful = ("untilMs", "priceUcPerKwh", "amountUc")
                assert value > 0 and field in lawful, (field, value)
            totals = after["totals"]
            held_uc = totals["depositsUc"] - totals["withdrawalsUc"]
            assert money_uc(chain.ledger.state) == held_uc
        for value in (2**53, -(2**53), 2**63, 2**64, 10**30):
            with pytest.raises(MalformedError):
                chain.tx(EVE, changed(operation, field, value), nonce=1)


def test_the_largest_amounts_that_are_lawful_clear_and_settle_exactly():
    """Ten megawatt-hours at the highest price: the lock is below all money there may be."""
    chain = Chain()
    wide = {"max_buy_wh": CONNECTION_MAX_WH, "max_sell_wh": CONNECTION_MAX_WH}
    chain.block(START_MS + 1, *(chain.tx(who, register(who, **wide)) for who in (ANN, BOB)))
    given = [
        asset(who, kind, CONNECTION_MAX_WH, SLOT, SLOT)
        for who in (ANN, BOB) for kind in ("production", "consumption")
    ]  # fmt: skip
    chain.block(START_MS + 2, chain.tx(SUPERVISOR, *given))
    most_uc = DEPOSITS_MAX_UC - chain.ledger.query("totals")["depositsUc"]
    assert refused(chain, SUPERVISOR, deposit(ANN, most_uc + 1)) == "QUANTITY_OUT_OF_RANGE"
    assert chain.codes(chain.ledger.time_ms + 1, SUPERVISOR, deposit(ANN, most_uc)) == ["OK"]
    cost_uc = CONNECTION_MAX_WH * MAX_PRICE_UC_PER_KWH // 1000
    whole = bid("buy", SLOT, CONNECTION_MAX_WH, MAX_PRICE_UC_PER_KWH)
    assert chain.codes(chain.ledger.time_ms + 1, ANN, whole) == ["OK"]
    assert chain.account(ANN) == (most_uc - cost_uc, cost_uc)
    dear = bid("sell", SLOT, CONNECTION_MAX_WH, MAX_PRICE_UC_PER_KWH)
    assert chain.codes(chain.ledger.time_ms + 1, BOB, dear) == ["OK"]
    (cleared,) = events_of(chain.block(GATE), "cleared")
    assert cleared["tradedWh"] == CONNECTION_MAX_WH
    assert cleared["priceUcPerKwh"] == MAX_PRICE_UC_PER_KWH
    for who, net_wh in ((ANN, CONNECTION_MAX_WH), (BOB, -CONNECTION_MAX_WH)):
        said = receipt(who, SLOT, net_wh, chain.chain_id)
        assert chain.codes(max(chain.ledger.time_ms, slot_ms(SLOT + 1)) + 1, who, said) == ["OK"]
    chain.block(slot_ms(SLOT + 2))
    assert chain.account(ANN) == (most_uc - cost_uc, 0)
    assert chain.account(BOB) == (cost_uc, 0)
    assert money_uc(chain.ledger.state) == chain.ledger.query("totals")["depositsUc"]


# --- the boundary of a slot -----------------------------------------------------------------------


def at_the_gate(chain):
    """What may be done for SLOT until its gate closes: (operation, its code at the gate)."""
    name = posted(chain, BOB, post(500, SLOT, SLOT))
    mine = posted(chain, EVE, post(500, SLOT, SLOT))
    deploy(chain)
    offered = make_offer(BOB, 10)
    assert chain.codes(chain.ledger.time_ms + 1, BOB, offered) == ["OK"]
    return [
        (bid("buy", SLOT, 1, 100_000), "SLOT_CLOSED"),
        (bid("sell", SLOT, 1, 100_000), "SLOT_CLOSED"),
        (auction_bid("flex", 1, 100_000), "SLOT_CLOSED"),
        (schedule("sell", 1), "SLOT_CLOSED"),
        (give_back(1), "SLOT_CLOSED"),
        (accept(name, 1), "NOT_FOUND"),  # it has expired with its last slot
        (rescind(mine), "NOT_FOUND"),
        (accept_escrow(BOB, 10), "EXPIRED"),
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_comes_at_the_gate_is_late_and_a_millisecond_before_it_is_not(number):
    early, late = start(), start()
    operation, _ = at_the_gate(early)[number]
    assert early.codes(GATE - 1, EVE, operation) == ["OK"]
    operation, code = at_the_gate(late)[number]
    assert late.codes(GATE, EVE, operation) == [code]


def test_new_offers_for_a_slot_end_at_its_gate():
    chain = start()
    chain.block(GATE - 1)
    assert refused(chain, EVE, post(1, SLOT, SLOT), GATE) == "SLOT_CLOSED"
    assert refused(chain, EVE, make_offer(EVE, 1), GATE + 1) == "SLOT_CLOSED"
    assert chain.codes(GATE + 2, EVE, post(1, SLOT + 1, SLOT + 1)) == ["OK"]


def test_a_block_that_comes_late_clears_what_was_due_before_it_takes_anything():
    """Nobody proposed for two slots: orders in the next block are too late for all of them."""
    chain = start()
    chain.block(
        GATE - 1, chain.tx(ANN, bid("buy", SLOT, 100, 200_000)),
        chain.tx(BOB, bid("sell", SLOT, 100, 100_000)),
        chain.tx(BOB, bid("sell", SLOT + 1, 100, 100_000)),
    )  # fmt: skip
    late = slot_ms(SLOT + 1, -300) + 5
    result = chain.block(
        late, chain.tx(EVE, bid("buy", SLOT, 100, 900_000), bid("buy", SLOT + 1, 100, 900_000))
    )
    assert result.receipts[0].codes == ("SLOT_CLOSED", "SLOT_CLOSED")
    first, second = events_of(result, "cleared")
    assert (first["slot"], first["tradedWh"], first["priceUcPerKwh"]) == (SLOT, 100, 150_000)
    assert (second["slot"], second["tradedWh"]) == (SLOT + 1, 0)


def test_a_sealed_bid_is_in_time_to_the_millisecond_at_both_ends_of_its_windows():
    chain = start(sealed=True)
    kept, show_kept = sealed(EVE, "buy", 10, 200_000)
    lost, show_lost = sealed(EVE, "buy", 11, 200_000)
    assert chain.codes(REVEAL - 1, EVE, kept, lost, show_kept) == ["OK", "OK", "TOO_SOON"]
    assert refused(chain, EVE, sealed(EVE, "buy", 12, 1)[0], REVEAL) == "SLOT_CLOSED"
    assert chain.codes(GATE - 1, EVE, show_kept) == ["OK"]
    assert chain.codes(GATE, EVE, show_lost) == ["SLOT_CLOSED"]
    assert chain.account(EVE) == (UNITS_100 - DEPOSIT_UC, 0)


def test_an_offer_over_several_slots_loses_each_at_its_gate():
    chain = start()
    name = posted(chain, BOB, post(500, SLOT, SLOT + 1))
    chain.block(GATE - 1)
    assert refused(chain, EVE, accept(name, 1, SLOT, SLOT), GATE) == "SLOT_CLOSED"
    assert chain.codes(GATE + 1, EVE, accept(name, 1, SLOT, SLOT + 1)) == ["OK"]
    assert chain.ledger.query(f"position/{SLOT:012d}/{EVE.id}") is None
    assert chain.ledger.query(f"position/{SLOT + 1:012d}/{EVE.id}")["boughtWh"] == 1
