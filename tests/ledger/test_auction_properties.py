"""Auctions on the ledger under random operations: conserved, never negative, refusals inert."""

from hypothesis import given, settings
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

SIDES = st.sampled_from(["buy", "sell"])
ENERGY = st.sampled_from([-5, 0, 1, 300, 2_500, 5_001, 2**53 - 1])
PRICE = st.sampled_from([-1, 0, 100_000, 150_000, 300_000, 40_000_000, 10**9, 10**9 + 1, 2**53 - 1])
NAMES = st.sampled_from(["", "r", "f", "d", "s", "nowhere", "no/where"])
SLOTS = st.sampled_from([SLOT, SLOT + 1, FIRST_SLOT, -1, FIRST_SLOT + 4_000])
OPERATION = st.one_of(
    st.builds(bid, SIDES, SLOTS, ENERGY, PRICE),
    st.builds(auction_bid, NAMES, ENERGY, PRICE),
    st.builds(lambda b, s: {**b, "side": s}, st.builds(auction_bid, NAMES, ENERGY, PRICE), SIDES),
    st.tuples(st.just("commit"), SLOTS, NAMES, SIDES, ENERGY, PRICE),
    st.tuples(st.just("reveal"), SLOTS, NAMES, SIDES, ENERGY, PRICE),
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
        elif name != "totals" and not name.startswith("poe/"):
            found[name] = value
    return found


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2), OPERATION), min_size=5, max_size=14),
    st.integers(0, 14),
)
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
    for number, (home, drawn) in enumerate(steps):
        time_ms = max(time_ms + 1, REVEAL if number >= revealing_from else 0)
        before, who = rows(chain), HOMES[home]
        operation = drawn
        kind = "" if isinstance(drawn, dict) else drawn[0]
        if kind == "reveal" and committed[who.id]:
            operation = ("reveal", *committed[who.id].pop()[1:])
        (code,) = chain.codes(time_ms, who, written_out(who, operation))
        if code != "OK":
            assert rows(chain) == before, (code, operation)
        elif kind == "commit":
            committed[who.id].append(operation)
    chain.block(GATE)
    chain.block(slot_ms(SLOT + 1, -300))  # orders for the next slot are locked until then
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
