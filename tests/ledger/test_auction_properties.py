"""Auctions on the ledger under random operations: conserved, never negative, refusals inert."""

from collections import defaultdict

from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    Chain,
    auction,
    auction_bid,
    bid,
    key,
    make_genesis,
    slot_ms,
)

from ledger.execution import money_uc
from ledger.genesis import Auctions
from market.sealed import SealedBid, commitment
from wire.keys import to_text

HOMES = [key(f"home {n}") for n in range(3)]
SLOT = FIRST_SLOT + 2
GATE = slot_ms(SLOT, -300)
REVEAL = GATE - 120_000
SALT = bytes(32)


def mostly(usual, odd):
    """One of the usual values nine times of ten."""
    return st.integers(0, 9).flatmap(lambda n: st.sampled_from(usual if n else odd))


SIDES = st.sampled_from(["buy", "sell"])
ENERGY = mostly([1, 299, 300, 700, 2_500], [-5, 0, 5_001, 2**53 - 1])
PRICE = mostly(
    [0, 50_000, 100_000, 150_000, 200_000, 300_000], [-1, 40_000_000, 10**9, 10**9 + 1, 2**53 - 1]
)
NAMES = mostly(["", "r", "f", "d", "s"], ["nowhere", "no/where"])
SEALED_NAMES = mostly(["", "s", "@session"], ["r", "nowhere", "no/where"])
SLOTS = mostly([SLOT, SLOT, SLOT, SLOT + 1], [FIRST_SLOT, -1, FIRST_SLOT + 4_000])
OPERATION = st.one_of(
    st.builds(bid, SIDES, SLOTS, ENERGY, PRICE),
    st.builds(auction_bid, NAMES, ENERGY, PRICE),
    st.builds(lambda b, s: {**b, "side": s}, st.builds(auction_bid, NAMES, ENERGY, PRICE), SIDES),
    st.tuples(st.just("commit"), SLOTS, SEALED_NAMES, SIDES, ENERGY, PRICE),
    st.tuples(st.just("reveal"), SLOTS, SEALED_NAMES, SIDES, ENERGY, PRICE),
)


def written_out(who, operation):
    """A sealed operation needs to know its sender."""
    if isinstance(operation, dict):
        return operation
    kind, slot, name, side, energy_wh, price = operation
    if kind == "reveal":
        return {
            "op": "reveal-bid", "slot": slot, "auction": name, "side": side,
            "energyWh": energy_wh, "priceUcPerKwh": price, "salt": to_text(SALT),
        }  # fmt: skip
    said = SealedBid(
        address=who.id, slot=slot, auction=name, side=side, energy_wh=energy_wh,
        price_uc_per_kwh=price,
    )  # fmt: skip
    return {
        "op": "commit-bid", "slot": slot, "auction": name,
        "commitment": to_text(commitment(SALT, said)),
    }  # fmt: skip


def rows(chain):
    """The market's state without what counts transactions."""
    found = {}
    for name, value in chain.ledger.state.scan(""):
        if name.startswith("account/"):
            found[name] = {**value, "nonce": 0}
        elif name == "totals":
            found[name] = {**value, "operations": 0}
        elif not name.startswith("poe/"):
            found[name] = value
    return found


def nobody_pays_more_or_gets_less_than_it_said(admitted, result):
    """Every award is of an order of its address and side, at its price or a better one."""
    for cleared in result.events:
        if cleared["event"] not in ("cleared", "auction-cleared"):
            continue
        where = cleared["slot"], cleared.get("auction", "")
        for award in cleared["awards"]:
            if award["address"] == SUPERVISOR.id:
                continue
            named = admitted[(*where, award["address"], award["side"])]
            price = award["priceUcPerKwh"]
            event(f"awarded in {where[1] or 'the double auction'}")
            assert max(named) >= price if award["side"] == "buy" else min(named) <= price


def wealth(chain, home):
    """Free and locked money of a home."""
    row = chain.ledger.query(f"account/{home.id}")
    return row["balanceUc"] + row["lockedUc"]


@settings(max_examples=max(150, settings().max_examples))
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2), OPERATION), min_size=6, max_size=20),
    st.integers(0, 12),
)
@example(is_sealed=False, steps=[(0, bid("buy", SLOT + 1, 300, 100_000))], revealing_from=0)
def test_random_operations_conserve_and_a_refused_one_changes_only_the_nonce(
    is_sealed, steps, revealing_from
):
    chain = Chain(genesis=make_genesis(auctions=Auctions(sealed=is_sealed)))
    chain.settle_in(*HOMES)
    deployed = [
        auction("r", "reverse", SLOT, 900, 200_000, "uniform"),
        auction("f", "forward", SLOT, 900, 50_000, "as-bid"),
        auction("d", "double", SLOT, 0, 0, "as-bid"),
        {**auction("s", "double", SLOT, 0, 0, "uniform"), "sealed": True},
    ]
    time_ms = slot_ms(SLOT - 1, 1)
    chain.block(time_ms, chain.tx(SUPERVISOR, *deployed))
    committed = {home.id: [] for home in HOMES}
    admitted = defaultdict(list)
    for number, (home, drawn) in enumerate(steps):
        time_ms = max(time_ms + 1, REVEAL if number >= revealing_from else 0)
        before, who = rows(chain), HOMES[home]
        operation = drawn
        kind = "" if isinstance(drawn, dict) else drawn[0]
        if kind == "reveal" and committed[who.id]:
            operation = ("reveal", *committed[who.id][-1][1:])
        (code,) = chain.codes(time_ms, who, written_out(who, operation))
        event(f"{written_out(who, operation)['op']}: {code}")
        if code != "OK":
            assert rows(chain) == before, (code, operation)
        elif kind == "commit":
            committed[who.id].append(operation)
        else:
            if kind == "reveal":
                committed[who.id].remove(("commit", *operation[1:]))
            sent = written_out(who, operation)
            name = sent.get("auction", "")
            side = sent.get("side") or ("buy" if name == "f" else "sell")
            key_of = (sent.get("slot", SLOT), name, who.id, side)
            admitted[key_of].append(sent["priceUcPerKwh"])
        assert all(row["balanceUc"] >= 0 for _, row in chain.ledger.state.scan("account/"))
    had_uc = [wealth(chain, home) for home in HOMES]
    locked_uc = [chain.account(home)[1] for home in HOMES]
    nobody_pays_more_or_gets_less_than_it_said(admitted, chain.block(GATE))
    for home, before_uc, behind_uc in zip(HOMES, had_uc, locked_uc, strict=True):
        assert before_uc - behind_uc <= wealth(chain, home) <= before_uc
    # An order for the next slot stays locked until the gate of that slot.
    nobody_pays_more_or_gets_less_than_it_said(admitted, chain.block(slot_ms(SLOT + 1, -300)))
    accounts = [v for k, v in chain.ledger.state.scan("account/")]
    assert all(row["balanceUc"] >= 0 and row["lockedUc"] == 0 for row in accounts)
    held = list(chain.ledger.state.scan(f"position/{SLOT:012d}/"))
    assert sum(row["boughtWh"] - row["soldWh"] for _, row in held) == 0
    for _, row in held:
        assert not row["orders"]
    for home in HOMES:
        row = chain.ledger.query(f"position/{SLOT:012d}/{home.id}")
        if row is not None:
            assert 0 <= row["boughtWh"] <= row["buyLockedWh"] <= 5_000
            assert 0 <= row["soldWh"] <= row["sellLockedWh"] <= 5_000
    assert not list(chain.ledger.state.scan("sealed-bid/"))
    chain.block(slot_ms(SLOT + 2))
    assert money_uc(chain.ledger.state) == chain.ledger.query("totals")["depositsUc"]
