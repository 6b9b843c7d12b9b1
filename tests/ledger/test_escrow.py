"""Nazari's five scenarios on the ledger, with every balance before and after."""

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    Chain,
    bid,
    events_of,
    key,
    make_genesis,
    receipt,
    slot_ms,
)

from ledger.genesis import Escrow
from market.escrow import commitment

SELLER, BUYER, EVE = key("seller"), key("buyer"), key("eve")
SLOT = FIRST_SLOT + 2
NOW = slot_ms(SLOT - 1, 60)
ACCEPT_BY = slot_ms(SLOT, -300)
DELIVER_BY = slot_ms(SLOT + 2)
RETAIL, FEED_IN = 300_000, 80_000
ENERGY, PRICE, GUARANTEE = 1000, 150_000, 50_000
COST = 150_000
FEE, PENALTY = 1_000, 15_000
"""Genesis defaults: 30 % of the guarantee."""
START = 100_000_000
SALT = "0123456789abcdef"


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(SELLER, BUYER, EVE)
    return chain


def offer(name="o1", slot=SLOT, **changes):
    return {
        "op": "make-offer", "offer": f"{SELLER.id}:{name}", "slot": slot, "energyWh": ENERGY,
        "priceUcPerKwh": PRICE, "guaranteeUc": GUARANTEE,
        "acceptBeforeMs": slot_ms(slot, -300), "deliverBeforeMs": slot_ms(slot + 2), **changes,
    }  # fmt: skip


def acceptance(name="o1", **changes):
    return {
        "op": "accept-escrow", "offer": f"{SELLER.id}:{name}", "energyWh": ENERGY,
        "priceUcPerKwh": PRICE, **changes,
    }  # fmt: skip


def give_up(name="o1"):
    return {"op": "give-up", "offer": f"{SELLER.id}:{name}"}


def reveal(name="o1", energy_wh=ENERGY, price=PRICE, salt=SALT):
    return {
        "op": "reveal-escrow", "offer": f"{SELLER.id}:{name}", "energyWh": energy_wh,
        "priceUcPerKwh": price, "salt": salt,
    }  # fmt: skip


def state_of(chain, name="o1"):
    return chain.ledger.query(f"escrow/{SELLER.id}:{name}")["state"]


def traded(chain, name="o1", slot=SLOT, now=NOW, **changes):
    """Offered and accepted."""
    assert chain.codes(now, SELLER, offer(name, slot, **changes)) == ["OK"]
    assert chain.codes(now + 1, BUYER, acceptance(name)) == ["OK"]


def say(chain, home, net_wh, slot=SLOT):
    return chain.codes(
        max(slot_ms(slot + 1, 5), chain.ledger.time_ms + 1), home,
        receipt(home, slot, net_wh, chain.chain_id),
    )  # fmt: skip


# --- the five scenarios ---------------------------------------------------------------------------


def test_scenario_1_delivered(chain):
    supervisor_uc, _ = chain.account(SUPERVISOR)
    assert chain.account(SELLER) == chain.account(BUYER) == (START, 0)
    assert chain.codes(NOW, SELLER, offer()) == ["OK"]
    assert chain.account(SELLER) == (START - FEE - GUARANTEE, GUARANTEE)
    assert chain.codes(NOW + 1, BUYER, acceptance()) == ["OK"]
    assert chain.account(BUYER) == (START - FEE - COST, COST)
    assert say(chain, SELLER, -ENERGY) == ["OK"]
    assert state_of(chain) == "accepted", "one meter alone releases nothing before the deadline"
    assert say(chain, BUYER, ENERGY) == ["OK"]
    assert state_of(chain) == "delivered"
    assert chain.account(SELLER) == (START - FEE + COST, 0)
    assert chain.account(BUYER) == (START - FEE - COST, 0)
    (settled,) = events_of(chain.block(slot_ms(SLOT + 2)), "settled")
    assert [row["residualWh"] for row in settled["rows"]] == [0, 0]
    assert chain.account(SELLER) == (START - FEE + COST, 0)
    assert chain.account(BUYER) == (START - FEE - COST, 0)
    assert chain.account(SUPERVISOR) == (supervisor_uc + 2 * FEE, 0)


def test_scenario_2_given_up_before_the_deadline_costs_the_penalty(chain):
    supervisor_uc, _ = chain.account(SUPERVISOR)
    chain.codes(NOW, SELLER, offer())
    assert chain.codes(NOW + 1, SELLER, give_up()) == ["OK"]
    assert chain.account(SELLER) == (START - FEE - PENALTY, 0)
    assert chain.account(SUPERVISOR) == (supervisor_uc + FEE + PENALTY, 0)
    position = chain.ledger.query(f"position/{SLOT:012d}/{SELLER.id}")
    assert (position["sellLockedWh"], position["bids"]) == (0, 0)
    assert chain.codes(NOW + 2, BUYER, acceptance()) == ["NOT_FOUND"]


def test_scenario_2_after_the_deadline_all_of_the_guarantee_is_back(chain):
    chain.codes(NOW, SELLER, offer())
    assert chain.codes(ACCEPT_BY, SELLER, give_up()) == ["EXPIRED"]
    assert state_of(chain) == "expired"
    assert chain.account(SELLER) == (START - FEE, 0)


def test_scenario_3_accepted_too_late_is_refused_and_both_are_whole(chain):
    chain.codes(NOW, SELLER, offer(acceptBeforeMs=NOW + 60_000))
    assert chain.codes(NOW + 60_000, BUYER, acceptance()) == ["EXPIRED"]
    assert chain.account(SELLER) == (START - FEE, 0), "whole but for the offer's fee"
    assert chain.account(BUYER) == (START, 0)


def test_scenario_4_delivered_too_late(chain):
    supervisor_uc, _ = chain.account(SUPERVISOR)
    traded(chain)
    assert say(chain, BUYER, ENERGY) == ["OK"]
    chain.block(DELIVER_BY)
    assert state_of(chain) == "failed"
    assert chain.ledger.query(f"penalty/{SELLER.id}") == {"count": 1, "bannedUntil": -1}
    retail_uc = ENERGY * RETAIL // 1000
    assert chain.account(BUYER) == (START - FEE - retail_uc, 0), "refunded; it consumed at retail"
    assert say(chain, SELLER, -ENERGY) == ["OK"]
    feed_in_uc = ENERGY * FEED_IN // 1000
    assert chain.account(SELLER) == (START - FEE - PENALTY + feed_in_uc, 0)
    assert chain.account(SUPERVISOR)[0] == (
        supervisor_uc + 2 * FEE + PENALTY + retail_uc - feed_in_uc
    )


def test_scenario_4_less_than_all_is_not_delivered(chain):
    traded(chain)
    say(chain, SELLER, -ENERGY + 1)
    say(chain, BUYER, ENERGY)
    assert state_of(chain) == "accepted"
    chain.block(DELIVER_BY)
    assert state_of(chain) == "failed"


def test_scenario_5_too_many_penalties_ban_from_selling_and_buying():
    chain = Chain(genesis=make_genesis(escrow=Escrow(max_penalties=1, ban_slots=3)))
    chain.settle_in(SELLER, BUYER, EVE)
    for number in (0, 1):
        traded(chain, f"o{number}", SLOT + number, slot_ms(SLOT + number - 1, 60 + number))
    first = chain.block(slot_ms(SLOT + 2))
    assert events_of(first, "banned") == []
    second = chain.block(slot_ms(SLOT + 3))
    until = SLOT + 5
    assert events_of(second, "banned") == [
        {"event": "banned", "address": SELLER.id, "untilSlot": until}
    ]
    for slot in (SLOT + 4, until + 1):
        wanted = [
            offer("late", slot), bid("sell", slot, 100, PRICE), bid("buy", slot, 100, PRICE),
        ]  # fmt: skip
        assert chain.codes(chain.ledger.time_ms + 1, SELLER, *wanted) == ["BANNED"] * 3
    for slot in (until, until + 1):
        chain.block(slot_ms(slot, 1))
    assert chain.codes(slot_ms(until + 1, 2), SELLER, bid("sell", until + 2, 100, PRICE)) == ["OK"]


def test_an_offer_of_a_seller_who_is_banned_is_not_accepted():
    chain = Chain(genesis=make_genesis(escrow=Escrow(max_penalties=0, ban_slots=3)))
    chain.settle_in(SELLER, BUYER)
    traded(chain)
    chain.codes(slot_ms(SLOT + 1, 60), SELLER, offer("o2", SLOT + 3))
    chain.block(DELIVER_BY)
    assert chain.codes(DELIVER_BY + 1, BUYER, acceptance("o2")) == ["BANNED"]


# --- whose word counts ----------------------------------------------------------------------------


def test_a_buyer_whose_meter_is_silent_does_not_keep_its_money(chain):
    traded(chain)
    say(chain, SELLER, -ENERGY)
    chain.block(DELIVER_BY)
    assert state_of(chain) == "delivered"
    assert chain.account(SELLER) == (START - FEE + COST, 0)


def test_a_buyer_who_took_less_pays_and_sells_the_rest_back(chain):
    traded(chain)
    say(chain, SELLER, -ENERGY)
    say(chain, BUYER, 400)
    chain.block(DELIVER_BY)
    assert chain.account(BUYER) == (START - FEE - COST + 600 * FEED_IN // 1000, 0)
    assert chain.account(SELLER) == (START - FEE + COST, 0)


def test_what_was_sold_elsewhere_does_not_count_as_delivered(chain):
    traded(chain)
    chain.block(
        NOW + 2, chain.tx(SELLER, bid("sell", SLOT, 500, 100_000)),
        chain.tx(EVE, bid("buy", SLOT, 500, 200_000)),
    )  # fmt: skip
    chain.block(ACCEPT_BY)
    say(chain, SELLER, -ENERGY - 499)
    say(chain, BUYER, ENERGY)
    assert state_of(chain) == "accepted"
    chain.block(DELIVER_BY)
    assert state_of(chain) == "failed"


def test_of_two_sales_the_one_accepted_first_is_served_first(chain):
    chain.codes(NOW, SELLER, offer("o1"), offer("o2"))
    chain.codes(NOW + 1, EVE, acceptance("o2"))
    chain.codes(NOW + 2, BUYER, acceptance("o1"))
    say(chain, SELLER, -ENERGY)
    say(chain, BUYER, ENERGY)
    assert (state_of(chain, "o1"), state_of(chain, "o2")) == ("accepted", "accepted")
    chain.block(DELIVER_BY)
    assert (state_of(chain, "o1"), state_of(chain, "o2")) == ("failed", "delivered")


# --- admission ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"offer": "someone:o1"}, "NOT_ALLOWED"),
        ({"offer": f"{SELLER.id}:Not a name"}, "MALFORMED"),
        ({"commitment": "x"}, "MALFORMED"),
        ({"acceptBeforeMs": NOW}, "EXPIRED"),
        ({"acceptBeforeMs": ACCEPT_BY + 1}, "SLOT_CLOSED"),
        ({"deliverBeforeMs": slot_ms(SLOT + 1)}, "SLOT_CLOSED"),
        ({"deliverBeforeMs": DELIVER_BY + 1}, "SLOT_CLOSED"),
        ({"guaranteeUc": COST // 10 - 1}, "QUANTITY_OUT_OF_RANGE"),
        ({"guaranteeUc": 2**53 - 1}, "QUANTITY_OUT_OF_RANGE"),
        ({"guaranteeUc": START}, "INSUFFICIENT_FUNDS"),
        ({"energyWh": 5001}, "QUANTITY_OUT_OF_RANGE"),
        ({"priceUcPerKwh": -1}, "PRICE_OUT_OF_RANGE"),
        ({"slot": SLOT + 500}, "SLOT_TOO_FAR"),
        ({"slot": SLOT - 1}, "SLOT_CLOSED"),
        ({"slot": -5}, "SLOT_CLOSED"),
    ],
)
def test_an_offer_that_cannot_work_is_refused_and_changes_nothing_but_the_nonce(
    chain, changes, code
):
    chain.block(NOW - 1)
    before = dict(chain.ledger.state.scan(""))
    assert chain.codes(NOW, SELLER, {**offer(), **changes}) == [code]
    after = dict(chain.ledger.state.scan(""))
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {f"account/{SELLER.id}", "totals"}
    assert after["totals"]["operations"] == before["totals"]["operations"] + 1
    assert chain.account(SELLER) == (START, 0)


@pytest.mark.parametrize(
    "changes", [{"energyWh": ENERGY - 1}, {"priceUcPerKwh": PRICE - 1}, {"commitment": "0" * 64}]
)
def test_a_buyer_accepts_what_was_offered_and_nothing_else(chain, changes):
    chain.codes(NOW, SELLER, offer())
    assert chain.codes(NOW + 1, BUYER, acceptance(**changes)) == ["TERMS_DIFFER"]
    assert chain.account(BUYER) == (START, 0)


def test_a_name_is_used_once_and_a_trade_belongs_to_its_parties(chain):
    chain.codes(NOW, SELLER, offer())
    assert chain.codes(NOW + 1, SELLER, offer()) == ["DUPLICATE"]
    assert chain.codes(NOW + 2, EVE, give_up()) == ["NOT_ALLOWED"]
    assert chain.codes(NOW + 3, SELLER, acceptance()) == ["NOT_ALLOWED"], "not with oneself"
    assert chain.codes(NOW + 4, BUYER, acceptance()) == ["OK"]
    assert chain.codes(NOW + 5, EVE, acceptance()) == ["DUPLICATE"]
    assert chain.codes(NOW + 6, SELLER, give_up()) == ["NOT_ALLOWED"], "it is bound"
    selling = {**offer("b1"), "offer": f"{BUYER.id}:b1"}
    assert chain.codes(NOW + 7, BUYER, selling) == ["NOT_ALLOWED"], "it buys in this slot"
    assert chain.codes(NOW + 8, EVE, acceptance("none"), give_up("none")) == ["NOT_FOUND"] * 2


def test_energy_behind_an_offer_cannot_be_sold_again(chain):
    chain.codes(NOW, SELLER, offer(energyWh=5000, guaranteeUc=COST))
    assert chain.codes(NOW + 1, SELLER, bid("sell", SLOT, 1, PRICE)) == ["QUANTITY_OUT_OF_RANGE"]
    chain.codes(NOW + 2, SELLER, give_up())
    assert chain.codes(NOW + 3, SELLER, bid("sell", SLOT, 5000, PRICE)) == ["OK"]


# --- hidden amounts -------------------------------------------------------------------------------


@pytest.fixture
def hidden(chain):
    """A trade whose true amounts, 700 Wh at 120,000, only the parties know."""
    name = f"{SELLER.id}:o1"
    said = commitment(name, 700, 120_000, SALT)
    chain.codes(NOW, SELLER, offer(commitment=said))
    assert chain.codes(NOW + 1, BUYER, acceptance()) == ["TERMS_DIFFER"]
    assert chain.codes(NOW + 2, BUYER, acceptance(commitment=said)) == ["OK"]
    return chain


def test_hidden_amounts_are_paid_as_revealed(hidden):
    assert hidden.account(BUYER) == (START - FEE - COST, COST), "the bound is blocked"
    say(hidden, SELLER, -700)
    say(hidden, BUYER, 700)
    assert state_of(hidden) == "accepted"
    now = hidden.ledger.time_ms
    assert hidden.codes(now + 1, EVE, reveal(energy_wh=700, price=120_000)) == ["NOT_ALLOWED"]
    assert hidden.codes(now + 2, BUYER, reveal(energy_wh=699, price=120_000)) == ["BAD_PREIMAGE"]
    assert hidden.codes(now + 3, BUYER, reveal(salt="short")) == ["MALFORMED"]
    assert hidden.codes(now + 4, BUYER, reveal(energy_wh=700, price=120_000)) == ["OK"]
    assert state_of(hidden) == "delivered"
    assert hidden.account(SELLER) == (START - FEE + 84_000, 0)
    assert hidden.account(BUYER) == (START - FEE - 84_000, 0)
    (settled,) = events_of(hidden.block(DELIVER_BY), "settled")
    assert [row["residualWh"] for row in settled["rows"]] == [0, 0]


def test_a_trade_that_nobody_reveals_has_failed(hidden):
    say(hidden, SELLER, -ENERGY)
    say(hidden, BUYER, ENERGY)
    hidden.block(DELIVER_BY)
    assert state_of(hidden) == "failed"
    assert hidden.account(SELLER)[0] == START - FEE - PENALTY + ENERGY * FEED_IN // 1000


def test_true_amounts_beyond_the_bounds_cannot_be_revealed(chain):
    name = f"{SELLER.id}:o1"
    said = commitment(name, ENERGY + 1, PRICE, SALT)
    chain.codes(NOW, SELLER, offer(commitment=said))
    chain.codes(NOW + 1, BUYER, acceptance(commitment=said))
    assert chain.codes(NOW + 2, SELLER, reveal(energy_wh=ENERGY + 1)) == ["QUANTITY_OUT_OF_RANGE"]


def test_nothing_of_a_trade_stays_for_ever(chain):
    traded(chain)
    say(chain, SELLER, -ENERGY)
    say(chain, BUYER, ENERGY)
    for slot in range(SLOT + 2, SLOT + 103, 10):
        chain.block(slot_ms(slot))
    left = [name for name, _ in chain.ledger.state.scan("") if name.startswith("escrow")]
    assert left == []
