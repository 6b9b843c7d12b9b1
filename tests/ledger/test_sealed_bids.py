"""Sealed bids on the ledger: nothing shows before the reveal; not revealing gains nothing."""

import hashlib
import random

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    Chain,
    auction,
    auction_bid,
    bid,
    events_of,
    key,
    make_genesis,
    register,
    slot_ms,
)

from ledger.execution import money_uc
from ledger.genesis import Auctions
from market.sealed import SealedBid, commitment
from wire.keys import to_text

ANN, BOB, EVE = key("ann"), key("bob"), key("eve")
SLOT = FIRST_SLOT + 2
GATE = slot_ms(SLOT, -300)
COMMIT = GATE - 300_000
REVEAL = GATE - 120_000
DEPOSIT_UC = 50_000


def sealed_genesis():
    return make_genesis(auctions=Auctions(sealed=True, reveal_s=120, bid_deposit_uc=DEPOSIT_UC))


@pytest.fixture
def chain():
    chain = Chain(genesis=sealed_genesis())
    chain.settle_in(ANN, BOB)
    return chain


def sealed_bid(who, side, energy_wh, price, name="", salt=None, slot=SLOT):
    """(commit, reveal) operations."""
    secret = salt or hashlib.sha256(f"{who.id}{side}{energy_wh}{price}".encode()).digest()
    said = SealedBid(
        address=who.id, slot=slot, auction=name, side=side, energy_wh=energy_wh,
        price_uc_per_kwh=price,
    )  # fmt: skip
    commit = {
        "op": "commit-bid", "slot": slot, "auction": name,
        "commitment": to_text(commitment(secret, said)),
    }  # fmt: skip
    reveal = {
        "op": "reveal-bid", "slot": slot, "auction": name, "side": side, "energyWh": energy_wh,
        "priceUcPerKwh": price, "salt": to_text(secret),
    }  # fmt: skip
    return commit, reveal


def state_of(chain):
    """All rows but the nonces."""
    rows = {}
    for name, value in chain.ledger.state.scan(""):
        if name != "totals":
            rows[name] = {**value, "nonce": 0} if name.startswith("account/") else value
    return rows


def test_a_committed_and_revealed_bid_is_traded_as_an_open_one(chain):
    buy, show_buy = sealed_bid(ANN, "buy", 1000, 250_000)
    sell, show_sell = sealed_bid(BOB, "sell", 700, 100_000)
    chain.block(COMMIT, chain.tx(ANN, buy), chain.tx(BOB, sell))
    assert chain.account(ANN) == (100_000_000 - DEPOSIT_UC, DEPOSIT_UC)
    chain.block(REVEAL, chain.tx(ANN, show_buy), chain.tx(BOB, show_sell))
    assert chain.account(ANN) == (100_000_000 - 250_000, 250_000)
    assert chain.account(BOB) == (100_000_000, 0)
    (cleared,) = events_of(chain.block(GATE), "cleared")
    assert (cleared["tradedWh"], cleared["priceUcPerKwh"]) == (700, 175_000)
    assert cleared["optimalWh"] == 700 and cleared["welfareUc"] == cleared["optimalWelfareUc"]
    assert [(r["address"], r["energyWh"], r["reason"]) for r in cleared["rejected"]] == [
        (ANN.id, 300, "QUANTITY_EXHAUSTED")
    ]


def test_a_commitment_says_nothing_of_side_energy_or_price(chain):
    buy, _ = sealed_bid(ANN, "buy", 1, 1)
    sell, _ = sealed_bid(ANN, "sell", 5000, 999_999)
    for one in (buy, sell):
        assert set(one) == {"op", "slot", "auction", "commitment"} and len(one["commitment"]) == 43
    result = chain.block(COMMIT, chain.tx(ANN, buy, sell))
    for event in events_of(result, "bid-committed"):
        assert set(event) == {"event", "address", "slot", "auction", "commitment"}
    assert chain.account(ANN)[1] == 2 * DEPOSIT_UC


def test_an_open_bid_is_refused_where_bids_are_sealed_and_a_sealed_one_where_they_are_open(chain):
    assert chain.codes(COMMIT, ANN, bid("buy", SLOT, 10, 10)) == ["SEALED_BIDS_ONLY"]
    other = Chain()
    other.settle_in(ANN)
    commit, _ = sealed_bid(ANN, "buy", 10, 10)
    assert other.codes(COMMIT, ANN, commit) == ["NOT_ALLOWED"]


def test_an_unrevealed_commitment_loses_its_deposit_to_the_supervisor(chain):
    commit, _ = sealed_bid(ANN, "buy", 1000, 250_000)
    chain.block(COMMIT, chain.tx(ANN, commit))
    had_uc = chain.account(SUPERVISOR)[0]
    (lost,) = events_of(chain.block(GATE), "bid-forfeited")
    assert (lost["address"], lost["bids"], lost["amountUc"]) == (ANN.id, 1, DEPOSIT_UC)
    assert chain.account(ANN) == (100_000_000 - DEPOSIT_UC, 0)
    assert chain.account(SUPERVISOR)[0] == had_uc + DEPOSIT_UC
    assert not list(chain.ledger.state.scan("sealed-bid/"))


def test_the_windows_are_kept_to_the_millisecond(chain):
    one, show_one = sealed_bid(ANN, "buy", 100, 200_000)
    two, show_two = sealed_bid(ANN, "buy", 101, 200_000)
    late, _ = sealed_bid(ANN, "buy", 102, 200_000)
    assert chain.codes(REVEAL - 1, ANN, one, two, show_one) == ["OK", "OK", "TOO_SOON"]
    assert chain.codes(REVEAL, ANN, late, show_one) == ["SLOT_CLOSED", "OK"]
    assert chain.codes(GATE, ANN, show_two) == ["SLOT_CLOSED"]
    assert chain.account(ANN)[0] == 100_000_000 - DEPOSIT_UC


def test_what_was_not_committed_to_does_not_open(chain):
    """Neither another price, nor a commitment copied from somebody, nor one opened twice."""
    commit, reveal = sealed_bid(ANN, "buy", 100, 200_000)
    chain.block(COMMIT, chain.tx(ANN, commit), chain.tx(BOB, commit))
    assert chain.codes(REVEAL, BOB, reveal) == ["BAD_PREIMAGE"]
    changed = {**reveal, "priceUcPerKwh": 200_001}
    assert chain.codes(REVEAL + 1, ANN, changed, reveal, reveal) == [
        "BAD_PREIMAGE", "OK", "BAD_PREIMAGE",
    ]  # fmt: skip
    assert chain.codes(REVEAL + 2, ANN, {**reveal, "salt": "AA"}) == ["MALFORMED"]


def test_a_commitment_for_one_auction_does_not_open_in_another(chain):
    chain.block(COMMIT - 1, chain.tx(SUPERVISOR, deploy("flex", "double", 0, 0)))
    commit, reveal = sealed_bid(ANN, "buy", 100, 200_000)
    chain.block(COMMIT, chain.tx(ANN, commit))
    assert chain.codes(REVEAL, ANN, {**reveal, "auction": "flex"}) == ["BAD_PREIMAGE"]


def test_commitments_count_as_orders_and_need_their_deposit(chain):
    commits = [sealed_bid(ANN, "buy", n, 1)[0] for n in range(1, 11)]
    codes = chain.codes(COMMIT, ANN, commits[0], *commits)
    assert codes == ["OK", "DUPLICATE", *["OK"] * 7, "RATE_LIMITED", "RATE_LIMITED"]
    chain.block(COMMIT + 1, chain.tx(EVE, register(EVE)))
    commit, _ = sealed_bid(EVE, "buy", 1, 1)
    assert chain.codes(COMMIT + 2, EVE, commit) == ["INSUFFICIENT_FUNDS"]
    assert chain.codes(COMMIT + 3, ANN, {**commits[9], "commitment": "AA"}) == ["MALFORMED"]


def test_a_reveal_that_cannot_be_paid_is_refused_and_its_deposit_lost(chain):
    commit, reveal = sealed_bid(ANN, "buy", 5000, 900_000_000)
    chain.block(COMMIT, chain.tx(ANN, commit))
    before = state_of(chain)
    assert chain.codes(REVEAL, ANN, reveal) == ["INSUFFICIENT_FUNDS"]
    assert state_of(chain) == before
    chain.block(GATE)
    assert chain.account(ANN) == (100_000_000 - DEPOSIT_UC, 0)


def test_who_reveals_when_changes_nothing():
    """Equal prices go to the earlier commitment, whatever the order of the reveals."""
    outcomes = set()
    homes = [key(f"home {n}") for n in range(6)]
    pairs = {
        home.id: [
            sealed_bid(home, "buy" if n % 2 else "sell", 100 + 50 * n + k, 150_000 + 10_000 * k)
            for k in range(3)
        ]
        for n, home in enumerate(homes)
    }
    for seed in range(6):
        chain = Chain(genesis=sealed_genesis())
        chain.settle_in(*homes)
        commits = [chain.tx(home, *[c for c, _ in pairs[home.id]]) for home in homes]
        chain.block(COMMIT, *commits)
        chance = random.Random(seed)
        reveals = [(home, reveal) for home in homes for _, reveal in pairs[home.id]]
        chance.shuffle(reveals)
        half = len(reveals) // 2
        for number, part in enumerate((reveals[:half], reveals[half:])):
            chain.block(REVEAL + number, *(chain.tx(home, reveal) for home, reveal in part))
        (cleared,) = events_of(chain.block(GATE), "cleared")
        rows = {k: v for k, v in state_of(chain).items() if not k.startswith("poe/")}
        outcomes.add(repr((cleared, sorted(rows.items()))))
    assert len(outcomes) == 1


# --- deployed auctions ----------------------------------------------------------------------------


def deploy(name, template, energy_wh, price, pricing="as-bid", sealed=True):
    return {**auction(name, template, SLOT, energy_wh, price, pricing), "sealed": sealed}


def test_a_sealed_reverse_auction_takes_the_cheapest_revealed_offer(chain):
    chain.block(COMMIT - 1, chain.tx(SUPERVISOR, deploy("flex", "reverse", 500, 200_000)))
    cheap, show_cheap = sealed_bid(ANN, "sell", 500, 120_000, "flex")
    dear, show_dear = sealed_bid(BOB, "sell", 500, 150_000, "flex")
    assert chain.codes(COMMIT, ANN, auction_bid("flex", 1, 1)) == ["SEALED_BIDS_ONLY"]
    chain.block(COMMIT + 1, chain.tx(ANN, cheap), chain.tx(BOB, dear))
    chain.block(REVEAL, chain.tx(ANN, show_cheap), chain.tx(BOB, show_dear))
    (cleared,) = events_of(chain.block(GATE), "auction-cleared")
    assert [(a["address"], a["priceUcPerKwh"]) for a in cleared["awards"]] == [(ANN.id, 120_000)]
    assert cleared["rejected"] == [
        {"address": BOB.id, "side": "sell", "energyWh": 500, "priceUcPerKwh": 150_000,
         "reason": "QUANTITY_EXHAUSTED"}
    ]  # fmt: skip
    assert (cleared["optimalWh"], cleared["budgetUc"]) == (500, 0)


def test_a_side_that_the_template_does_not_take_is_refused_at_the_reveal(chain):
    chain.block(COMMIT - 1, chain.tx(SUPERVISOR, deploy("flex", "reverse", 500, 200_000)))
    commit, reveal = sealed_bid(ANN, "buy", 500, 120_000, "flex")
    assert chain.codes(COMMIT, ANN, commit) == ["OK"]
    assert chain.codes(REVEAL, ANN, reveal) == ["NOT_ALLOWED"]


def test_a_deployed_double_auction_pays_as_bid_and_settles():
    chain = Chain()
    chain.settle_in(ANN, BOB)
    chain.block(
        COMMIT, chain.tx(SUPERVISOR, deploy("local", "double", 0, 0, "as-bid", sealed=False))
    )
    chain.block(
        COMMIT + 1,
        chain.tx(ANN, {**auction_bid("local", 400, 250_000), "side": "buy"},
                 {**auction_bid("local", 400, 150_000), "side": "buy"}),
        chain.tx(BOB, {**auction_bid("local", 600, 100_000), "side": "sell"}),
    )  # fmt: skip
    assert chain.codes(COMMIT + 2, BOB, auction_bid("local", 1, 1)) == ["MALFORMED"]
    (cleared,) = events_of(chain.block(GATE), "auction-cleared")
    assert [(a["side"], a["energyWh"], a["priceUcPerKwh"]) for a in cleared["awards"]] == [
        ("buy", 400, 250_000), ("buy", 200, 150_000), ("sell", 400, 250_000),
        ("sell", 200, 150_000),
    ]  # fmt: skip
    assert cleared["boughtWh"] == cleared["optimalWh"] == 600 and cleared["budgetUc"] == 0
    assert chain.account(ANN) == (100_000_000 - 130_000, 0)
    chain.block(slot_ms(SLOT + 2))
    assert money_uc(chain.ledger.state) == chain.ledger.query("totals")["depositsUc"]
    assert chain.ledger.query(f"slot/{SLOT:012d}")["escrowUc"] == 0


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (deploy("a", "double", 1, 0), "MALFORMED"),
        (deploy("a", "double", 0, 1), "MALFORMED"),
        (deploy("a", "reverse", 0, 1), "QUANTITY_OUT_OF_RANGE"),
        ({**deploy("a", "double", 0, 0), "sealed": 1}, "MALFORMED"),
        ({**deploy("a", "vickrey", 0, 0)}, "MALFORMED"),
    ],
)
def test_a_deployment_that_makes_no_sense_is_refused(chain, operation, code):
    assert chain.codes(COMMIT, SUPERVISOR, operation) == [code]


def test_a_sealed_auction_is_not_opened_when_nobody_can_commit_any_more(chain):
    assert chain.codes(REVEAL, SUPERVISOR, deploy("a", "double", 0, 0)) == ["SLOT_CLOSED"]
    assert chain.codes(REVEAL + 1, SUPERVISOR, deploy("b", "double", 0, 0, sealed=False)) == ["OK"]


def test_a_commitment_to_an_auction_that_is_not_there_is_refused(chain):
    commit, _ = sealed_bid(ANN, "buy", 1, 1, "nowhere")
    assert chain.codes(COMMIT, ANN, commit) == ["NOT_FOUND"]
    assert chain.codes(COMMIT + 1, ANN, {**commit, "auction": "no/where"}) == ["NOT_FOUND"]
