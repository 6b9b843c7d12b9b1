"""
A power cut at any write: after the restart nothing is lost and nothing is done twice.

Each test lives a life with a cut before its first write, its second, … and each commit, until one
life passes without a cut. What had returned before the cut was durable.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from support.brokers import make_key
from support.chain_builder import FIRST_SLOT, grant_for, key, make_genesis
from support.crashes import FragileStore, PowerCut

from hem.controller.policy import WalletPolicy
from hem.ems.addresses import OneAddress
from hem.ems.closing import SlotsToClose
from hem.ems.funds import Funds
from hem.ems.pledges import Pledge, Pledges
from hem.ems.readings import ReadingOutbox
from hem.ems.sealed_bids import SealedBids
from hem.ems.wallet import Wallet
from ledger.rulebook import RuleBook
from market.sealed import SealedBid
from runtime.outbox import OperationOutbox
from runtime.ports import BusDownError
from runtime.rng import SystemRng
from wire.certificates import AddressGrant, parse
from wire.slots import SlotGrid
from wire.transactions import parse_transaction

HOME = key("home")
SLOT = FIRST_SLOT
SLOT_MS = 900_000


class Cuts:
    """Stores on fresh files, each with one moment more to live."""

    def __init__(self, folder):
        self._folder, self.lives, self.opened = folder, 0, []

    def store(self, *, whole=False):
        path = self._folder / f"{self.lives}.sqlite"
        made = FragileStore(path) if whole else FragileStore(path, self.lives)
        self.opened.append(made)
        return made

    def restart(self):
        """The store as the next start finds it."""
        self.opened[-1].close()
        return self.store(whole=True)

    def next(self):
        self.opened[-1].close()
        self.lives += 1


@pytest.fixture
def cuts(tmp_path):
    made = Cuts(tmp_path)
    yield made
    for store in made.opened:
        store.close()


# --- Pledges -------------------------------------------------------------------------------------


def pledge(number):
    return Pledge(
        start_slot=SLOT, end_slot=SLOT + number, energy_wh=100 + number, source="forecast",
        operation={"op": "post-offer", "n": number},
    )  # fmt: skip


def live_with_pledges(pledges, done):
    """A home's evening; each step may be made again."""
    steps = [
        lambda: pledges.find("a") or pledges.add("a", pledge(1)),
        lambda: pledges.find("b") or pledges.add("b", pledge(2)),
        lambda: pledges.find("b/1") or pledges.add("b/1", pledge(3)),
        lambda: pledges.name("a", "ledger-a"),
        lambda: pledges.release("b"),
        lambda: pledges.find("c") or pledges.add("c", pledge(4)),
        lambda: pledges.forget_before(SLOT + 2),
    ]
    for number, step in enumerate(steps):
        step()
        done.add(number)


def standing(pledges):
    return {key: (one.energy_wh, one.name) for key, one in pledges.kept()}


def test_promises_survive_a_power_cut_at_any_write(cuts):
    whole = {"b": (0, ""), "b/1": (0, ""), "c": (104, "")}
    while True:
        done = set()
        try:
            live_with_pledges(Pledges(cuts.store()), done)
            break
        except PowerCut:
            pledges = Pledges(cuts.restart())
        found = standing(pledges)
        if 0 in done and 6 not in done and "a" not in found:
            # only while the last step was under way may the first promise be gone
            assert done == set(range(6))
        assert (1 not in done) or "b" in found
        assert (4 not in done) or found["b"][0] == 0
        live_with_pledges(pledges, set())
        after = standing(pledges)
        after.pop("a", None)
        assert after == whole
        cuts.next()
    assert cuts.lives >= 14


# --- Sealed bids ---------------------------------------------------------------------------------


def sealed(number):
    return SealedBid(
        address=HOME.id, slot=SLOT + number, auction="", side="sell", energy_wh=500,
        price_uc_per_kwh=150_000,
    )  # fmt: skip


def test_what_was_committed_can_be_opened_after_a_power_cut_at_any_write(cuts):
    rules = RuleBook(make_genesis())
    keys = [f"bid/{SLOT + n}/0" for n in range(3)]
    while True:
        sent = {}
        try:
            bids = SealedBids(cuts.store(), SystemRng())
            for number, name in enumerate(keys):
                sent[name] = bids.commit(name, sealed(number))
            bids.too_soon(f"reveal/{keys[0]}/0")
            break
        except PowerCut:
            bids = SealedBids(cuts.restart(), SystemRng())
        for number, name in enumerate(keys):
            again = bids.commit(name, sealed(number))
            assert again == sent.get(name, again), "one bid, one commitment"
        for number, name in enumerate(keys):
            now_ms = rules.gate_ms(SLOT + number) - 1
            due = dict(
                bids.due(now_ms, rules, lambda key: "OK" if key.startswith("commit") else "")
            )
            opened = [op for key, op in due.items() if key.startswith(f"reveal/{name}/")]
            assert len(opened) == 1
            assert opened[0]["energyWh"] == 500
        cuts.next()
    assert cuts.lives >= 8


# --- Funds ---------------------------------------------------------------------------------------


class Dso:
    """Gives each withdrawal once, by its name."""

    def __init__(self):
        self.given = {}

    async def withdraw_assets(self, withdrawal, address, amount_uc=0, assets=None):
        request = (amount_uc, tuple((a["startSlot"], a["endSlot"]) for a in assets or []))
        assert self.given.setdefault(withdrawal, request) == request, "one name, one withdrawal"
        return "sent"

    async def show_account(self):
        return {"balanceUc": 10**12}

    @property
    def money_uc(self):
        return sum(amount_uc for amount_uc, _ in self.given.values())

    def spans(self):
        return sorted({spans[0] for _, spans in self.given.values() if spans})


async def live_with_funds(store, dso, first, last):
    """Slots in which the ledger tells at once what was given."""
    wallet = Wallet(store, HOME.id)
    await wallet.take_event(1, {"event": "address-registered", "address": HOME.id})
    policy = WalletPolicy(withdraw=True, least_uc=100, target_uc=900)
    grant = parse(AddressGrant, grant_for(HOME, start_slot=SLOT, end_slot=SLOT + 300))
    funds = Funds(policy, wallet, OneAddress(grant), store, dso)
    for slot in range(first, last):
        event = {"address": HOME.id, "balanceUc": dso.money_uc, "lockedUc": 0}
        await wallet.take_event(2, {"event": "balance", **event})
        await funds.tend(slot)


@pytest.mark.parametrize("later_slots", [0, 1, 5])
async def test_nothing_is_withdrawn_twice_after_a_power_cut_at_any_write(cuts, later_slots):
    while True:
        dso = Dso()
        try:
            await live_with_funds(cuts.store(), dso, SLOT, SLOT + 3)
            break
        except PowerCut:
            store = cuts.restart()
        await live_with_funds(store, dso, SLOT + later_slots, SLOT + later_slots + 5)
        assert dso.money_uc == 900
        spans = dso.spans()
        assert len(spans) == 1, f"cut after {cuts.lives} moments: {spans}"
        assert all(after[0] > before[1] for before, after in pairwise(spans))
        cuts.next()
    assert cuts.lives >= 6


# --- Outbox --------------------------------------------------------------------------------------


class Ledger:
    """Executes transactions in the order of their nonces, once each; asks nothing."""

    def __init__(self):
        self.nonce, self.executed, self.events, self.fates = 0, [], [], {}

    async def publish(self, topic, payload, *, qos=1, retain=False):
        tx = parse_transaction(payload)
        if tx.nonce != self.nonce:
            return
        self.nonce += 1
        self.executed += [op["n"] for op in tx.operations]
        codes = ["OK" for _ in tx.operations]
        self.fates[tx.txid] = {"code": "OK", "codes": codes}
        self.events.append({"event": "tx", "txid": tx.txid.hex(), "code": "OK", "codes": codes})

    async def next_nonce(self):
        return self.nonce

    async def receipt(self, tx):
        never = {"code": "WRONG_NONCE", "codes": []}
        return self.fates.get(tx.txid) or (never if self.nonce > tx.nonce else {})


class Clock:
    def now_ms(self):
        return SLOT * SLOT_MS

    wall_ms = now_ms


async def live_with_outbox(store, ledger, added):
    """Leave five operations in two lots; run until all are final."""
    outbox = OperationOutbox(
        store, make_key("sender"), "test", "hg-test-0", SlotGrid(), ledger, Clock(), SystemRng(),
        ledger.next_nonce, ledger.receipt,
    )  # fmt: skip
    task = asyncio.create_task(outbox.run())
    try:
        for lot in ((1, 2, 3), (4, 5)):
            outbox.add([(f"key/{n}", {"op": "x", "n": n}) for n in lot])
            added.update(lot)
            for _ in range(2_000):
                await asyncio.sleep(0.001)
                while ledger.events:
                    await outbox.take_event(1, ledger.events.pop(0))
                if task.done() or not outbox.waiting:
                    break
            if task.done():
                break
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, PowerCut):
        raise ended
    return outbox


async def test_every_operation_is_executed_once_after_a_power_cut_at_any_write(cuts, monkeypatch):
    monkeypatch.setattr("runtime.outbox.RESEND_S", 0.01)
    while True:
        ledger, added = Ledger(), set()
        try:
            await live_with_outbox(cuts.store(), ledger, added)
            break
        except PowerCut:
            store = cuts.restart()
        kept = {int(row.removeprefix("key/key/")) for row, _ in store.scan("key/")}
        assert added <= kept, "what was taken in is never lost"
        outbox = await live_with_outbox(store, ledger, set())
        assert sorted(ledger.executed) == [1, 2, 3, 4, 5], f"cut after {cuts.lives} moments"
        assert outbox.waiting == 0
        assert {outbox.state_of(f"key/{n}") for n in range(1, 6)} == {"OK"}
        cuts.next()
    assert sorted(ledger.executed) == [1, 2, 3, 4, 5]
    assert cuts.lives >= 20


# --- Readings and the slots to close -------------------------------------------------------------


class Broker:
    def __init__(self):
        self.heard = []

    async def publish(self, topic, payload, **_):
        self.heard.append(payload)
        if len(self.heard) == 2:
            raise BusDownError("lost before the acknowledgement")


async def live_with_readings(store, broker, added):
    outbox, slots = ReadingOutbox(store, broker, "t"), SlotsToClose(store)
    for slot in range(SLOT, SLOT + 3):
        slots.reach(slot)
    for slot in slots.waiting():
        outbox.add(slot, str(slot).encode())
        added.add(str(slot).encode())
        slots.done(slot)
    task = asyncio.create_task(outbox.run())
    for _ in range(2_000):
        await asyncio.sleep(0.001)
        if task.done() or not outbox.waiting:
            break
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, PowerCut):
        raise ended


async def test_every_reading_reaches_the_broker_after_a_power_cut_at_any_write(cuts, monkeypatch):
    monkeypatch.setattr("hem.ems.readings.RETRY_S", 0.001)
    whole = {str(slot).encode() for slot in range(SLOT, SLOT + 3)}
    while True:
        broker, added = Broker(), set()
        try:
            await live_with_readings(cuts.store(), broker, added)
            break
        except PowerCut:
            store = cuts.restart()
        await live_with_readings(store, broker, added)
        assert set(broker.heard) == whole, f"cut after {cuts.lives} moments"
        cuts.next()
    assert cuts.lives >= 20
