"""Baggio's forward session on the ledger: balance, ratings, deviations, supervisor, adjustment."""

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    SUPERVISOR_UC,
    Chain,
    bid,
    deposit,
    events_of,
    key,
    make_genesis,
    receipt,
    slot_ms,
)

from ledger.genesis import Auctions, Feeder, Prices, Zone
from market.sealed import SealedBid, commitment
from wire.keys import to_text

HOUSE_1, HOUSE_2, CAR, PV_1, PV_2 = (key(f"node {i}") for i in range(5))
"""Baggio's transactive nodes beside the grid supervisor."""
NODES = (HOUSE_1, HOUSE_2, CAR, PV_1, PV_2)
SLOT = FIRST_SLOT + 2
NOW = slot_ms(SLOT - 1, 60)
AT_GATE = slot_ms(SLOT, -300)
PRICES = Prices(retail_uc_per_kwh=300_000, feed_in_uc_per_kwh=80_000, imbalance_uc_per_kwh=400_000)
FIXED = 190
"""(retail + feed-in) / 2, in µ¤ per Wh."""
START = 100_000_000


def start(zones=(), **feeder):
    rules = Feeder(zones=tuple(Zone(name=n, rating_w=w) for n, w in zones), **feeder)
    chain = Chain(genesis=make_genesis(feeder=rules, prices=PRICES))
    chain.settle_in(*NODES)
    return chain


def schedule(side, energy_wh, price=None, slot=SLOT):
    taker = 300_000 if side == "buy" else 80_000
    return {
        "op": "submit-schedule", "side": side, "slot": slot, "energyWh": energy_wh,
        "priceUcPerKwh": taker if price is None else price,
    }  # fmt: skip


def submit(chain, *rows):
    """(node, side, energy, price) each."""
    for node, *row in rows:
        assert chain.codes(max(NOW, chain.ledger.time_ms + 1), node, schedule(*row)) == ["OK"]


def gate(chain, at_ms=AT_GATE):
    (closed,) = events_of(chain.block(at_ms), "session-closed")
    return closed


def position(chain, node, slot=SLOT):
    row = chain.ledger.query(f"position/{slot:012d}/{node.id}")
    return row["boughtWh"], row["soldWh"]


def settle(chain, nets, slot=SLOT):
    txs = [chain.tx(node, receipt(node, slot, net, chain.chain_id)) for node, net in nets.items()]
    chain.block(slot_ms(slot + 1, 5), *txs)
    (settled,) = events_of(chain.block(slot_ms(slot + 2)), "settled")
    return {row["address"]: row for row in settled["rows"]}


SIX = (
    (HOUSE_1, "buy", 900), (HOUSE_2, "buy", 600), (CAR, "buy", 2500),
    (PV_1, "sell", 1200), (PV_2, "sell", 1800),
)  # fmt: skip


def test_six_nodes_schedule_and_the_supervisor_takes_the_residual():
    chain = start()
    submit(chain, *SIX)
    closed = gate(chain)
    assert (closed["demandWh"], closed["productionWh"], closed["netWh"]) == (4000, 3000, 1000)
    assert closed["exportWh"] == -1000
    assert {share["energyWh"] for share in closed["shares"]} == {900, 600, 2500, 1200, 1800}
    assert position(chain, SUPERVISOR) == (0, 1000)
    nets = {HOUSE_1: 900, HOUSE_2: 800, CAR: 2000, PV_1: -1200, PV_2: -1500}
    rows = settle(chain, nets)
    assert [rows[node.id]["residualWh"] for node in NODES] == [0, 200, -500, 0, 300]
    paid = {node: START - chain.account(node)[0] for node in NODES}
    assert paid == {
        HOUSE_1: 900 * FIXED,
        HOUSE_2: 600 * FIXED + 200 * 400,
        CAR: 2500 * FIXED - 500 * 80,
        PV_1: -1200 * FIXED,
        PV_2: -1800 * FIXED + 300 * 400,
    }
    assert chain.account(SUPERVISOR) == (SUPERVISOR_UC + sum(paid.values()), 0)
    assert all(chain.account(node)[1] == 0 for node in NODES)


def test_a_schedule_and_a_trade_of_one_slot_are_settled_once():
    chain = start()
    submit(chain, (HOUSE_1, "buy", 900))
    chain.block(
        NOW + 100, chain.tx(HOUSE_1, bid("buy", SLOT, 500, 200_000)),
        chain.tx(PV_1, bid("sell", SLOT, 500, 100_000)),
    )  # fmt: skip
    gate(chain)
    assert position(chain, HOUSE_1) == (1400, 0)
    rows = settle(chain, {HOUSE_1: 1400, PV_1: -500})
    assert [rows[node.id]["residualWh"] for node in (HOUSE_1, PV_1)] == [0, 0]


def test_only_who_scheduled_pays_the_imbalance_price_for_a_deviation():
    chain = start()
    submit(chain, (HOUSE_1, "buy", 900))
    gate(chain)
    settle(chain, {HOUSE_1: 1000, HOUSE_2: 100})
    assert chain.account(HOUSE_1)[0] == START - 900 * FIXED - 100 * 400
    assert chain.account(HOUSE_2)[0] == START - 100 * 300


def test_a_late_receipt_of_a_schedule_ends_in_the_same_balance():
    balances = []
    for late in (False, True):
        chain = start()
        submit(chain, (HOUSE_1, "buy", 900), (PV_1, "sell", 900))
        gate(chain)
        settle(chain, {PV_1: -900} if late else {PV_1: -900, HOUSE_1: 1000})
        if late:
            said = receipt(HOUSE_1, SLOT, 1000, chain.chain_id)
            assert chain.codes(chain.ledger.time_ms + 1, HOUSE_1, said) == ["OK"]
        balances.append(chain.account(HOUSE_1))
    assert balances[0] == balances[1]


# --- ratings --------------------------------------------------------------------------------------


def test_an_overloaded_feeder_is_cut_in_proportion():
    chain = start(rating_w=4_000)
    submit(chain, (PV_1, "sell", 3000), (PV_2, "sell", 1500), (HOUSE_1, "buy", 500))
    closed = gate(chain)
    assert closed["exportWh"] == 1000, "4 kW over a quarter of an hour"
    assert position(chain, PV_1) == (0, 1000)
    assert position(chain, PV_2) == (0, 500)
    assert position(chain, HOUSE_1) == (500, 0)
    rows = settle(chain, {PV_1: -1000, PV_2: -500, HOUSE_1: 500})
    assert {rows[node.id]["residualWh"] for node in (PV_1, PV_2, HOUSE_1)} == {0}


@pytest.fixture
def split():
    """Two photovoltaic nodes in the north, behind 4 kW."""
    chain = start([("north", 4_000)], congestion="split")
    zones = [{"op": "assign-zone", "address": n.id, "zone": "north"} for n in (PV_1, PV_2)]
    assert chain.codes(NOW - 1, SUPERVISOR, *zones) == ["OK", "OK"]
    submit(
        chain, (PV_1, "sell", 1200, 90_000), (PV_2, "sell", 1200, 120_000),
        (HOUSE_1, "buy", 2500, 320_000), (HOUSE_2, "sell", 1000, 200_000),
    )  # fmt: skip
    return chain


def test_a_congested_zone_gets_a_price_of_its_own_and_the_supervisor_the_rent(split):
    before, _ = split.account(SUPERVISOR)
    closed = gate(split)
    prices = {zone["zone"]: zone["priceUcPerKwh"] for zone in closed["zones"]}
    assert prices["north"] < prices[""]
    assert {zone["zone"]: zone["outWh"] for zone in closed["zones"]}["north"] == 1000
    assert position(split, PV_1) == (0, 1000), "the cheaper one"
    assert position(split, PV_2) == (0, 0)
    settle(split, {PV_1: -1000, PV_2: 0, HOUSE_1: 2500, HOUSE_2: -1000})
    money = sum(split.account(node)[0] for node in NODES)
    after, _ = split.account(SUPERVISOR)
    assert after - before == len(NODES) * START - money
    assert after > before


def test_the_rent_of_a_session_that_exchanges_nothing_is_the_supervisors_too():
    chain = start([("north", 4_000)], congestion="split", rating_w=0)
    chain.codes(NOW - 1, SUPERVISOR, {"op": "assign-zone", "address": PV_1.id, "zone": "north"})
    submit(
        chain, (PV_1, "sell", 1200, 90_000), (HOUSE_1, "buy", 2000, 250_000),
        (HOUSE_2, "sell", 1000, 200_000),
    )  # fmt: skip
    assert gate(chain)["exportWh"] == 0
    assert position(chain, SUPERVISOR) == (0, 0)
    settle(chain, {PV_1: -1000, HOUSE_1: 2000, HOUSE_2: -1000})
    money = sum(chain.account(node)[0] for node in NODES)
    assert chain.account(SUPERVISOR)[0] - SUPERVISOR_UC == len(NODES) * START - money > 0


def test_a_closed_interconnection_and_an_adjustment_take_it_back(split):
    assert gate(split)["exportWh"] == -500
    closing = {
        "op": "close-interconnection", "zone": "north", "startSlot": SLOT, "endSlot": SLOT,
    }  # fmt: skip
    deadline = slot_ms(SLOT, -60)
    opening = {"op": "open-adjustment", "slot": SLOT, "deadlineMs": deadline}
    assert split.codes(AT_GATE + 1, SUPERVISOR, closing, opening) == ["OK", "OK"]
    (opened,) = [
        event for event in split.store.events(split.ledger.executed_height, "market")
        if event["event"] == "adjustment-opened"
    ]  # fmt: skip
    assert opened["zones"] == [{"zone": "north", "inWh": 1000, "outWh": -1000}]
    assert split.codes(AT_GATE + 2, PV_1, schedule("buy", 1001, 90_000)) == ["INSUFFICIENT_ASSET"]
    assert split.codes(AT_GATE + 3, PV_1, schedule("buy", 1000, 90_000)) == ["OK"]
    assert split.codes(AT_GATE + 4, CAR, schedule("sell", 1, 90_000)) == ["NOT_ALLOWED"]
    again = gate(split, deadline)
    assert again["round"] == 1
    flows = {zone["zone"]: zone["outWh"] for zone in again["zones"]}
    assert flows["north"] == 0
    assert position(split, PV_1) == (1000, 1000)
    rows = settle(split, {PV_1: 0, PV_2: 0, HOUSE_1: 2500, HOUSE_2: -1000})
    assert {rows[n.id]["residualWh"] for n in (PV_1, PV_2, HOUSE_1, HOUSE_2)} == {0}


def test_before_the_gate_a_closed_interconnection_is_an_island(split):
    closing = {
        "op": "close-interconnection", "zone": "north", "startSlot": SLOT, "endSlot": SLOT,
    }  # fmt: skip
    assert split.codes(NOW + 100, SUPERVISOR, closing) == ["OK"]
    gate(split)
    assert position(split, PV_1) == position(split, PV_2) == (0, 0)
    assert position(split, HOUSE_1) == (2500, 0)


# --- admission ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (schedule("buy", 5001), "QUANTITY_OUT_OF_RANGE"),
        (schedule("buy", 0), "QUANTITY_OUT_OF_RANGE"),
        (schedule("buy", 1, 10**10), "PRICE_OUT_OF_RANGE"),
        (schedule("buy", 1, slot=SLOT - 1), "SLOT_CLOSED"),
        (schedule("buy", 1, slot=SLOT + 200), "SLOT_TOO_FAR"),
        ({"op": "assign-zone", "address": CAR.id, "zone": ""}, "NOT_ALLOWED"),
        ({"op": "open-adjustment", "slot": SLOT, "deadlineMs": AT_GATE}, "NOT_ALLOWED"),
        (
            {"op": "close-interconnection", "zone": "north", "startSlot": SLOT, "endSlot": SLOT},
            "NOT_ALLOWED",
        ),
    ],
)
def test_what_a_node_may_not_do_changes_nothing_but_its_nonce(operation, code):
    chain = start([("north", 1000)])
    chain.block(NOW - 1)
    before = dict(chain.ledger.state.scan(""))
    assert chain.codes(NOW, CAR, operation) == [code]
    after = dict(chain.ledger.state.scan(""))
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {f"account/{CAR.id}", "totals"}
    assert chain.account(CAR) == (START, 0)


def test_the_supervisor_cannot_ask_for_what_is_not_there():
    chain = start([("north", 1000)])
    submit(chain, (HOUSE_1, "buy", 100))
    closing = {"op": "close-interconnection", "startSlot": SLOT, "endSlot": SLOT + 1}
    wanted = [
        ({"op": "assign-zone", "address": CAR.id, "zone": "west"}, "NOT_FOUND"),
        ({"op": "assign-zone", "address": SUPERVISOR.id, "zone": "north"}, "NOT_FOUND"),
        ({**closing, "zone": "west"}, "NOT_FOUND"),
        ({**closing, "zone": "north", "endSlot": SLOT - 1}, "MALFORMED"),
        ({**closing, "zone": "north", "endSlot": 1, "startSlot": 0}, "EXPIRED"),
        ({"op": "open-adjustment", "slot": SLOT, "deadlineMs": AT_GATE}, "TOO_SOON"),
        ({"op": "open-adjustment", "slot": SLOT + 1, "deadlineMs": AT_GATE}, "NOT_FOUND"),
    ]
    codes = chain.codes(NOW + 100, SUPERVISOR, *(operation for operation, _ in wanted))
    assert codes == [code for _, code in wanted]
    gate(chain)
    late = {"op": "open-adjustment", "slot": SLOT, "deadlineMs": slot_ms(SLOT) + 1}
    good = {**late, "deadlineMs": slot_ms(SLOT)}
    codes = chain.codes(AT_GATE + 1, SUPERVISOR, late, good, good)
    assert codes == ["SLOT_CLOSED", "OK", "DUPLICATE"]


def test_one_schedule_for_each_node_and_slot():
    chain = start()
    submit(chain, (HOUSE_1, "buy", 100))
    assert chain.codes(NOW + 9, HOUSE_1, schedule("buy", 100)) == ["DUPLICATE"]


def test_a_sealed_session_takes_commitments_and_what_is_revealed_of_them():
    chain = Chain(genesis=make_genesis(prices=PRICES, auctions=Auctions(sealed=True)))
    chain.settle_in(*NODES)
    assert chain.codes(NOW, HOUSE_1, schedule("buy", 900)) == ["SEALED_BIDS_ONLY"]
    salt = bytes(32)
    said = SealedBid(
        address=HOUSE_1.id, slot=SLOT, auction="@session", side="buy", energy_wh=900,
        price_uc_per_kwh=300_000,
    )  # fmt: skip
    commit = {
        "op": "commit-bid", "slot": SLOT, "auction": "@session",
        "commitment": to_text(commitment(salt, said)),
    }  # fmt: skip
    reveal = {
        "op": "reveal-bid", "slot": SLOT, "auction": "@session", "side": "buy", "energyWh": 900,
        "priceUcPerKwh": 300_000, "salt": to_text(salt),
    }  # fmt: skip
    assert chain.codes(NOW + 1, HOUSE_1, commit) == ["OK"]
    assert chain.codes(AT_GATE - 60_000, HOUSE_1, reveal) == ["OK"]
    assert gate(chain)["demandWh"] == 900
    assert position(chain, HOUSE_1) == (900, 0)


def test_nothing_of_a_session_stays_for_ever():
    chain = start([("north", 1000)])
    submit(chain, *SIX)
    gate(chain)
    chain.codes(AT_GATE + 1, SUPERVISOR, deposit(CAR, 1))
    for slot in range(SLOT + 2, SLOT + 103, 10):
        chain.block(slot_ms(slot))
    left = [name for name, _ in chain.ledger.state.scan("") if name.startswith(("sess", "sched"))]
    assert left == []
