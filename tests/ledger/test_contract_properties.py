"""Whatever homes send and whenever: money and energy are conserved, and a refusal leaves no trace.

Operations are applied to the state directly, without blocks and signatures of transactions, so that
thousands of interleavings of escrow, schedules, bids, receipts and time can be tried.
"""

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from support.chain_builder import FIRST_SLOT, SUPERVISOR, key, make_genesis, receipt, slot_ms

from ledger.contracts import keys
from ledger.contracts.context import make_context
from ledger.execution import _apply_operation, begin_block, genesis_rows, money_uc
from ledger.genesis import Escrow, Feeder, Zone
from ledger.state import State
from market.escrow import State as Trade
from market.escrow import commitment
from wire.keys import to_text

HOMES = [key(f"property {i}") for i in range(3)]
SLOTS = (FIRST_SLOT + 1, FIRST_SLOT + 2)
START_UC = 10**9
SALT = "0123456789abcdef"
GENESIS = {
    mode: make_genesis(
        escrow=Escrow(max_penalties=0, ban_slots=2),
        feeder=Feeder(rating_w=6_000, congestion=mode, zones=(Zone(name="north", rating_w=2_000),)),
    )
    for mode in ("curtail", "split")
}
_TX = SimpleNamespace(txid=b"")


def market(mode):
    """Three homes with money and assets, one of them in the north."""
    state = State(genesis_rows(GENESIS[mode]).items())
    for number, home in enumerate(HOMES):
        meter = home.derive("meter")
        state.put(keys.account(home.id), {"balanceUc": START_UC, "lockedUc": 0, "nonce": 1})
        state.put(
            keys.grant(home.id),
            {
                "key": to_text(home.public), "meterKey": to_text(meter.public), "canBuy": True,
                "canSell": True, "maxBuyWh": 3000, "maxSellWh": 3000, "startSlot": FIRST_SLOT,
                "endSlot": FIRST_SLOT + 50,
            },
        )  # fmt: skip
        owned = [[2500, FIRST_SLOT, FIRST_SLOT + 50]]
        state.put(keys.asset(home.id), {"production": owned, "consumption": owned})
        if number == 0:
            state.put(keys.zone(home.id), "north")
    totals = state.get(keys.TOTALS)
    state.put(keys.TOTALS, {**totals, "depositsUc": totals["depositsUc"] + START_UC * len(HOMES)})
    return state


home = st.integers(0, 2)
slot = st.sampled_from(SLOTS)
energy = st.integers(0, 2700)
price = st.integers(0, 400_000)
name = st.sampled_from(["a", "b"])
act = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 60, 300, 600, 900])),
    st.tuples(st.just("offer"), home, name, slot, energy, price, st.booleans()),
    st.tuples(st.just("accept"), home, home, name),
    st.tuples(st.just("give-up"), home, home, name),
    st.tuples(st.just("reveal"), home, home, name),
    st.tuples(st.just("schedule"), home, slot, st.sampled_from(["buy", "sell"]), energy, price),
    st.tuples(st.just("bid"), home, slot, st.sampled_from(["buy", "sell"]), energy, price),
    st.tuples(st.just("receipt"), home, slot, st.integers(-3000, 3000)),
    st.tuples(st.just("adjust"), slot),
    st.tuples(st.just("close"), slot),
)


class Run:
    """A market, its clock, and what must always hold."""

    def __init__(self, mode):
        self.genesis, self.state = GENESIS[mode], market(mode)
        self.time_ms, self.height = slot_ms(FIRST_SLOT), 0

    def do(self, what, *facts):
        if what == "wait":
            self.block(facts[0] * 1000)
            return
        sender, operation = getattr(self, "_" + what.replace("-", "_"))(*facts)
        if operation is not None:
            self.send(sender, operation)

    def block(self, after_ms, sender="", operation=None):
        """A block later; with one operation: its code."""
        self.time_ms += after_ms
        self.height += 1
        ctx = make_context(self.genesis, self.state, self.height, self.time_ms)
        self.state.begin()
        begin_block(ctx)
        self.state.commit()
        if operation is None:
            return
        ctx.sender = sender
        before = dict(self.state.scan(""))
        code = _apply_operation(ctx, _TX, operation)
        if code != "OK":
            assert dict(self.state.scan("")) == before, f"{operation['op']}: {code} left a trace"

    def send(self, sender, operation):
        self.block(1, sender, operation)
        self.check()

    def check(self):
        totals = self.state.get(keys.TOTALS)
        assert money_uc(self.state) == totals["depositsUc"] - totals["withdrawalsUc"]
        for _, row in self.state.scan(keys.ACCOUNT):
            assert row["lockedUc"] >= 0
        for number in SLOTS:
            rows = [row for _, row in self.state.scan(keys.positions(number))]
            assert sum(row["boughtWh"] for row in rows) == sum(row["soldWh"] for row in rows)
            for row in rows:
                assert min(row["bids"], row["buyLockedWh"], row["sellLockedWh"]) >= 0
                assert max(row["buyLockedWh"], row["sellLockedWh"]) <= 2500
        assert self.state.get(keys.account(SUPERVISOR.id))["balanceUc"] >= 0

    def _offer(self, seller, name, slot, energy, price, hidden):
        offer = f"{HOMES[seller].id}:{name}"
        said = commitment(offer, max(1, energy // 2), price // 2, SALT) if hidden else ""
        return HOMES[seller].id, {
            "op": "make-offer", "offer": offer, "slot": slot, "energyWh": energy,
            "priceUcPerKwh": price, "guaranteeUc": energy * price // 1000 // 10 + 1,
            "acceptBeforeMs": slot_ms(slot, -300), "deliverBeforeMs": slot_ms(slot + 2),
            "commitment": said,
        }  # fmt: skip

    def _accept(self, buyer, seller, name):
        row = self.state.get(keys.escrow(f"{HOMES[seller].id}:{name}"))
        if row is None:
            return "", None
        return HOMES[buyer].id, {
            "op": "accept-escrow", "offer": f"{HOMES[seller].id}:{name}",
            "energyWh": row["energyWh"], "priceUcPerKwh": row["priceUcPerKwh"],
            "commitment": row["commitment"],
        }  # fmt: skip

    def _give_up(self, sender, seller, name):
        return HOMES[sender].id, {"op": "give-up", "offer": f"{HOMES[seller].id}:{name}"}

    def _reveal(self, sender, seller, name):
        row = self.state.get(keys.escrow(f"{HOMES[seller].id}:{name}"))
        if row is None:
            return "", None
        return HOMES[sender].id, {
            "op": "reveal-escrow", "offer": f"{HOMES[seller].id}:{name}", "salt": SALT,
            "energyWh": max(1, row["energyWh"] // 2), "priceUcPerKwh": row["priceUcPerKwh"] // 2,
        }  # fmt: skip

    def _order(self, op, who, slot, side, energy, price):
        return HOMES[who].id, {
            "op": op, "side": side, "slot": slot, "energyWh": energy, "priceUcPerKwh": price,
        }  # fmt: skip

    def _schedule(self, *facts):
        return self._order("submit-schedule", *facts)

    def _bid(self, *facts):
        return self._order("bid-offer", *facts)

    def _receipt(self, who, slot, net):
        return HOMES[who].id, receipt(HOMES[who], slot, net, self.genesis.chain_id)

    def _adjust(self, slot):
        opening = {"op": "open-adjustment", "slot": slot, "deadlineMs": slot_ms(slot)}
        return SUPERVISOR.id, opening

    def _close(self, slot):
        closing = {"op": "close-interconnection", "zone": "north"}
        return SUPERVISOR.id, {**closing, "startSlot": slot, "endSlot": slot}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["curtail", "split"]), st.lists(act, max_size=40))
def test_any_interleaving_conserves_money_and_energy_and_ends_with_nothing_blocked(mode, acts):
    run = Run(mode)
    for one in acts:
        run.do(*one)
        run.check()
    for _ in range(6):
        run.block(900_000)
        run.check()
    assert all(row["lockedUc"] == 0 for _, row in run.state.scan(keys.ACCOUNT))
    assert all(row["escrowUc"] == 0 for _, row in run.state.scan(keys.SLOT))
    over = {Trade.DELIVERED, Trade.WITHDRAWN, Trade.EXPIRED, Trade.FAILED}
    assert {row["state"] for _, row in run.state.scan(keys.ESCROW)} <= over


def test_the_interleavings_reach_what_they_are_about():
    """A scripted run through the same harness: delivered, failed, banned, adjusted."""
    run = Run("split")
    first, second = SLOTS
    for one in (
        ("offer", 1, "a", first, 1000, 150_000, False), ("accept", 2, 1, "a"),
        ("offer", 1, "b", second, 1000, 150_000, True), ("accept", 2, 1, "b"),
        ("schedule", 0, first, "sell", 900, 80_000), ("schedule", 2, first, "buy", 900, 390_000),
        ("wait", 600), ("adjust", first), ("close", first),
        ("schedule", 0, first, "buy", 400, 300_000), ("wait", 300), ("wait", 900),
        ("receipt", 1, first, -1000), ("receipt", 2, first, 1900), ("wait", 900), ("wait", 900),
        ("wait", 300),
    ):  # fmt: skip
        run.do(*one)
        run.check()
    states = {name.rsplit(":", 1)[1]: row["state"] for name, row in run.state.scan(keys.ESCROW)}
    assert states == {"a": "delivered", "b": "failed"}
    assert run.state.get(keys.penalty(HOMES[1].id))["bannedUntil"] > 0
    assert run.state.get(keys.session(first))["rounds"] == 2
    position = run.state.get(keys.position(first, HOMES[0].id))
    assert (position["soldWh"], position["boughtWh"]) == (500, 400)
