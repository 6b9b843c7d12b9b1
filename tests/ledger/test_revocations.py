"""A revocation of the CSM-DB bans an address on the ledger, in every market, and lets it back."""

import dataclasses

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    ISSUER,
    MARKET,
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

from ledger.execution import money_uc
from ledger.genesis import Auctions, write_genesis
from ledger.store import LedgerStore
from ledger.verify import verify_folder
from market.sealed import SealedBid, commitment
from sim.audit_history import read_history
from sim.audit_replay import Replay
from wire import certificates
from wire.certificates import Revocation
from wire.keys import to_text

ANN, BOB, EVE, NEW = key("ann"), key("bob"), key("eve"), key("a fresh address")
SLOT = FIRST_SLOT + 2
NOW = slot_ms(SLOT - 1, 60)
GATE = slot_ms(SLOT, -300)
START = 100_000_000


def revocation(who, number, *, banned=True, issuer=ISSUER, market=MARKET, **changes):
    said = Revocation(
        **{
            "number": number, "address": who.id, "banned": banned, "reason": "ADVISORY",
            "advisory": "a" * 64, "knowledge": "b" * 64, "end_slot": FIRST_SLOT + 400, **changes,
        }
    )  # fmt: skip
    sealed = certificates.dump(certificates.seal(said, issuer, market))
    return {"op": "revoke", "revocation": sealed}


def ban(chain, who, number=1, **how):
    return chain.codes(chain.ledger.time_ms + 1, SUPERVISOR, revocation(who, number, **how))


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(ANN, BOB, EVE)
    return chain


def say(chain, who, *operations):
    return chain.codes(max(NOW, chain.ledger.time_ms + 1), who, *operations)


# --- the markets ----------------------------------------------------------------------------------


def test_the_double_auction_goes_on_without_the_banned_and_the_runner_up_wins(chain):
    assert say(chain, ANN, bid("buy", SLOT, 500, 250_000)) == ["OK"]
    assert say(chain, EVE, bid("sell", SLOT, 500, 100_000)) == ["OK"]
    assert say(chain, BOB, bid("sell", SLOT, 500, 150_000)) == ["OK"]
    assert ban(chain, EVE) == ["OK"]
    (cleared,) = events_of(chain.block(GATE), "cleared")
    sellers = {award["address"] for award in cleared["awards"] if award["side"] == "sell"}
    assert sellers == {BOB.id}


def test_a_banned_buyers_money_is_free_again(chain):
    say(chain, EVE, bid("buy", SLOT, 1000, 250_000))
    assert chain.account(EVE) == (START - 250_000, 250_000)
    assert ban(chain, EVE) == ["OK"]
    assert chain.account(EVE) == (START, 0)
    row = chain.ledger.query(f"position/{SLOT:012d}/{EVE.id}")
    assert (row["orders"], row["bids"], row["buyLockedWh"]) == ([], 0, 0)
    assert not events_of(chain.block(GATE), "cleared")


def test_the_aggregators_auction_goes_on_without_the_banned(chain):
    say(chain, SUPERVISOR, auction("flex", "reverse", SLOT, 100, 200_000, "as-bid"))
    say(chain, EVE, auction_bid("flex", 100, 90_000))
    say(chain, BOB, auction_bid("flex", 100, 95_000))
    assert ban(chain, EVE) == ["OK"]
    (cleared,) = events_of(chain.block(GATE), "auction-cleared")
    assert [award["address"] for award in cleared["awards"]] == [BOB.id]


def test_the_banneds_offers_leave_the_order_book(chain):
    offer = {
        "op": "post-offer", "energyWh": 50, "startSlot": SLOT, "endSlot": SLOT + 3,
        "priceUcPerKwh": 100_000,
    }  # fmt: skip
    assert say(chain, EVE, {**offer, "kind": "production"}) == ["OK"]
    assert say(chain, EVE, {**offer, "kind": "consumption"}) == ["OK"]
    names = [row[0] for row in chain.ledger.query(f"offers/{EVE.id}")]
    assert len(names) == 2 and chain.account(EVE)[1] > 0
    assert ban(chain, EVE) == ["OK"]
    assert chain.account(EVE) == (START, 0) and chain.ledger.query(f"offers/{EVE.id}") is None
    given = [{"energyWh": 50, "startSlot": SLOT, "endSlot": SLOT}]
    taken = {"op": "accept-offer", "offer": names[0], "assets": given}
    assert say(chain, BOB, taken) == ["NOT_FOUND"]


def escrow_offer(name):
    return {
        "op": "make-offer", "offer": f"{EVE.id}:{name}", "slot": SLOT, "energyWh": 1000,
        "priceUcPerKwh": 150_000, "guaranteeUc": 50_000, "acceptBeforeMs": GATE,
        "deliverBeforeMs": slot_ms(SLOT + 2),
    }  # fmt: skip


def accept_escrow(name):
    return {
        "op": "accept-escrow", "offer": f"{EVE.id}:{name}", "energyWh": 1000,
        "priceUcPerKwh": 150_000,
    }  # fmt: skip


def test_an_accepted_escrow_is_settled_and_an_open_one_ends_with_its_guarantee(chain):
    assert say(chain, EVE, escrow_offer("sold"), escrow_offer("open")) == ["OK", "OK"]
    assert say(chain, ANN, accept_escrow("sold")) == ["OK"]
    free_uc, locked_uc = chain.account(EVE)
    assert ban(chain, EVE) == ["OK"]
    assert chain.account(EVE) == (free_uc + 50_000, locked_uc - 50_000), "no penalty for the open"
    assert say(chain, BOB, accept_escrow("open"))[0] != "OK"
    said = [chain.tx(who, receipt(who, SLOT, net_wh, chain.chain_id))
            for who, net_wh in ((EVE, -1000), (ANN, 1000))]  # fmt: skip
    done = chain.block(slot_ms(SLOT + 1, 5), *said)
    assert [one.codes for one in done.receipts] == [("OK",), ("OK",)], "receipts are taken"
    assert [one["state"] for one in events_of(done, "escrow-ended")] == ["delivered"]
    assert chain.account(EVE) == (free_uc + 100_000 + 150_000, 0)


def test_a_forward_session_is_cleared_without_the_banned(chain):
    for who, side in ((ANN, "buy"), (EVE, "sell"), (BOB, "sell")):
        schedule = {
            "op": "submit-schedule", "side": side, "slot": SLOT, "energyWh": 300,
            "priceUcPerKwh": 300_000 if side == "buy" else 80_000,
        }  # fmt: skip
        assert say(chain, who, schedule) == ["OK"]
    assert ban(chain, EVE) == ["OK"]
    (closed,) = events_of(chain.block(GATE), "session-closed")
    assert {share["address"] for share in closed["shares"]} == {ANN.id, BOB.id}
    assert "scheduled" not in chain.ledger.query(f"position/{SLOT:012d}/{EVE.id}")


def hidden(slot, name, side, energy_wh):
    return SealedBid(
        address=EVE.id, slot=slot, auction=name, side=side, energy_wh=energy_wh,
        price_uc_per_kwh=90_000,
    )  # fmt: skip


def test_a_commitment_is_taken_back_with_its_deposit():
    rules = Auctions(sealed=True, reveal_s=120, bid_deposit_uc=50_000)
    chain = Chain(genesis=make_genesis(auctions=rules))
    chain.settle_in(EVE)
    said = hidden(SLOT, "", "sell", 100)
    secret = bytes(32)
    commit = {
        "op": "commit-bid", "slot": SLOT, "auction": "",
        "commitment": to_text(commitment(secret, said)),
    }  # fmt: skip
    assert say(chain, EVE, commit) == ["OK"]
    assert ban(chain, EVE) == ["OK"]
    assert chain.account(EVE) == (START, 0)
    reveal = {
        "op": "reveal-bid", "slot": SLOT, "auction": "", "side": "sell", "energyWh": 100,
        "priceUcPerKwh": 90_000, "salt": to_text(secret),
    }  # fmt: skip
    assert chain.codes(GATE - 60_000, EVE, reveal) == ["BANNED"]
    assert not events_of(chain.block(GATE), "bid-forfeited")


# --- what a banned address may do -----------------------------------------------------------------


def test_every_market_refuses_the_banned_by_name_and_gives_back_what_it_holds(chain):
    ban(chain, EVE)
    offer = {
        "op": "post-offer", "kind": "production", "energyWh": 5, "startSlot": SLOT,
        "endSlot": SLOT, "priceUcPerKwh": 1,
    }  # fmt: skip
    refused = [
        bid("sell", SLOT, 1, 1), bid("buy", SLOT, 1, 1), auction_bid("flex", 1, 1), offer,
        escrow_offer("x"), accept_escrow("x"), {"op": "give-up", "offer": f"{EVE.id}:x"},
        {"op": "submit-schedule", "side": "buy", "slot": SLOT, "energyWh": 1, "priceUcPerKwh": 1},
        {"op": "set-participation", "mode": "RE"}, register(EVE, end_slot=FIRST_SLOT + 401),
    ]  # fmt: skip
    assert say(chain, EVE, *refused) == ["BANNED"] * len(refused)
    back = {"kind": "production", "energyWh": 10, "startSlot": SLOT, "endSlot": SLOT}
    given = [
        {"op": "deposit-energy-asset", **back},
        {"op": "deposit-financial-balance", "amountUc": START},
    ]
    assert say(chain, EVE, *given) == ["OK", "OK"]
    assert chain.account(EVE) == (0, 0)


def test_an_address_that_has_not_registered_is_banned_as_well(chain):
    assert ban(chain, NEW) == ["OK"]
    assert say(chain, NEW, register(NEW), bid("sell", SLOT, 1, 1)) == ["BANNED", "BANNED"]
    assert chain.ledger.query(f"grant/{NEW.id}") is None
    assert ban(chain, NEW, 2, banned=False) == ["OK"]
    assert say(chain, NEW, register(NEW)) == ["OK"]


def test_who_is_reinstated_trades_again(chain):
    result = chain.block(NOW, chain.tx(SUPERVISOR, revocation(EVE, 7)))
    (banned,) = events_of(result, "banned")
    assert (banned["address"], banned["number"]) == (EVE.id, 7)
    assert say(chain, EVE, bid("sell", SLOT, 1, 1)) == ["BANNED"]
    again = revocation(EVE, 8, banned=False, reason="OPERATOR", advisory="")
    result = chain.block(chain.ledger.time_ms + 1, chain.tx(SUPERVISOR, again))
    (reinstated,) = events_of(result, "reinstated")
    assert (reinstated["address"], reinstated["number"]) == (EVE.id, 8)
    assert say(chain, EVE, bid("sell", SLOT, 1, 1)) == ["OK"]


# --- who says so ----------------------------------------------------------------------------------


def test_a_replayed_revocation_is_refused_by_its_number(chain):
    first, second = revocation(EVE, 4), revocation(EVE, 5, banned=False)
    assert say(chain, SUPERVISOR, first, first, second) == ["OK", "REPLAYED", "OK"]
    assert say(chain, SUPERVISOR, first, second) == ["REPLAYED", "REPLAYED"]
    assert say(chain, EVE, bid("sell", SLOT, 1, 1)) == ["OK"]


def test_only_supervisor_and_dso_bring_what_only_the_issuer_signs(chain):
    assert say(chain, BOB, revocation(EVE, 1)) == ["NOT_ALLOWED"]
    forged = [
        revocation(EVE, 1, issuer=SUPERVISOR),
        revocation(EVE, 1, market="another-market"),
        {"op": "revoke", "revocation": {**revocation(EVE, 1)["revocation"], "number": 2}},
    ]
    assert say(chain, SUPERVISOR, *forged) == ["BAD_SIGNATURE"] * 3
    odd = [
        revocation(EVE, 0), revocation(EVE, 1, reason="WHIM"), revocation(EVE, 1, knowledge="x"),
        revocation(EVE, 1, advisory="x"), revocation(EVE, 1, end_slot=-1),
        revocation(EVE, 1, address="hg1x"),
    ]  # fmt: skip
    assert say(chain, SUPERVISOR, *odd) == ["MALFORMED"] * 6
    assert say(chain, SUPERVISOR, revocation(SUPERVISOR, 1)) == ["BAD_CERTIFICATE"]
    assert say(chain, SUPERVISOR, revocation(EVE, 1, end_slot=FIRST_SLOT)) == ["EXPIRED"]
    assert say(chain, EVE, bid("sell", SLOT, 1, 1)) == ["OK"], "none of these was believed"


def test_a_grant_for_a_revocation_and_a_revocation_for_a_grant_are_no_signatures(chain):
    swapped = {"op": "revoke", "revocation": register(EVE)["grant"]}
    assert say(chain, SUPERVISOR, swapped) == ["MALFORMED"]


def test_a_ban_is_forgotten_when_its_grant_can_be_shown_no_longer(chain):
    ban(chain, EVE, end_slot=FIRST_SLOT + 5)
    chain.block(slot_ms(FIRST_SLOT + 100))
    assert chain.ledger.query(f"ban/{EVE.id}")["banned"]
    chain.block(slot_ms(FIRST_SLOT + 120))
    assert chain.ledger.query(f"ban/{EVE.id}") is None
    assert ban(chain, EVE, end_slot=FIRST_SLOT + 5) == ["EXPIRED"], "and cannot be brought back"


# --- the whole chain ------------------------------------------------------------------------------


def used_everywhere(folder):
    """A chain in which Eve is banned with something standing in every market, and comes back."""
    folder.mkdir()
    write_genesis(make_genesis(), folder / "genesis.json")
    chain = Chain(LedgerStore.in_folder(folder))
    chain.settle_in(ANN, BOB, EVE)
    say(
        chain, SUPERVISOR, auction("flex", "reverse", SLOT, 100, 200_000, "as-bid"),
        {**auction("dark", "double", SLOT + 3, 0, 0, "as-bid"), "sealed": True},
    )  # fmt: skip
    said = commitment(bytes(32), hidden(SLOT + 3, "dark", "buy", 10))
    offer = {
        "op": "post-offer", "kind": "consumption", "energyWh": 50, "startSlot": SLOT + 1,
        "endSlot": SLOT + 3, "priceUcPerKwh": 100_000,
    }  # fmt: skip
    schedule = {
        "op": "submit-schedule", "side": "buy", "slot": SLOT + 3, "energyWh": 30,
        "priceUcPerKwh": 300_000,
    }  # fmt: skip
    commit = {
        "op": "commit-bid", "slot": SLOT + 3, "auction": "dark", "commitment": to_text(said),
    }  # fmt: skip
    standing = [
        bid("sell", SLOT, 50, 100_000), auction_bid("flex", 10, 90_000), escrow_offer("sold"),
        escrow_offer("open"), offer, schedule, commit, bid("buy", SLOT + 2, 7, 100_000),
    ]  # fmt: skip
    assert set(say(chain, EVE, *standing)) == {"OK"}
    assert say(chain, ANN, accept_escrow("sold"), bid("buy", SLOT, 40, 200_000)) == ["OK", "OK"]
    assert say(chain, BOB, bid("sell", SLOT, 40, 120_000)) == ["OK"]
    before_uc = money_uc(chain.ledger.state)
    assert ban(chain, EVE) == ["OK"]
    assert money_uc(chain.ledger.state) == before_uc
    assert chain.account(EVE)[1] == 50_000, "only the guarantee of what is sold stays locked"
    chain.block(GATE)
    said = [chain.tx(who, receipt(who, SLOT, net_wh, chain.chain_id))
            for who, net_wh in ((EVE, -1000), (ANN, 1040), (BOB, -40))]  # fmt: skip
    chain.block(slot_ms(SLOT + 1, 5), *said)
    assert ban(chain, EVE, 2, banned=False) == ["OK"]
    assert say(chain, EVE, bid("sell", SLOT + 4, 5, 100_000)) == ["OK"]
    chain.block(slot_ms(SLOT + 6, 5))
    return chain


def test_a_chain_with_bans_verifies_and_the_audits_own_books_agree(tmp_path):
    chain = used_everywhere(tmp_path / "chain")
    replay, faults = Replay(chain.genesis), []
    for block in read_history(chain.store):
        faults += block.faults
        replay.take(block)
    assert [*faults, *replay.energy, *replay.money] == []
    chain.store.close()
    assert verify_folder(tmp_path / "chain").height > 0


def test_a_revocation_that_is_altered_on_the_chain_is_a_fault_of_the_audit(tmp_path):
    chain = used_everywhere(tmp_path / "chain")
    found = []
    for block in read_history(chain.store):
        for step in block.steps:
            for event in step.events:
                if event["event"] == "bid-withdrawn":
                    event["bids"] += 1
        replayed = dataclasses.replace(block)
        found.append(replayed)
    replay = Replay(chain.genesis)
    for block in found:
        replay.take(block)
    assert any("bid-withdrawn" in line for line in replay.energy)


def test_money_and_assets_given_to_a_banned_address_stay_its_own(chain):
    ban(chain, EVE)
    given = [deposit(EVE, 5), asset(EVE, "production", 1, SLOT, SLOT)]
    assert say(chain, SUPERVISOR, *given) == ["OK", "OK"]
    assert chain.account(EVE) == (START + 5, 0)
