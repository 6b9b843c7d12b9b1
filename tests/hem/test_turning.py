"""Addresses come and go by the rule: each funded once, emptied at its end, and never two in one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from home_at_hand import StepClock
from support.chain_builder import FIRST_SLOT, SLOT_MS, make_genesis
from test_addresses import granted

from hem.ems.addresses import AddressBook
from hem.ems.closing import SlotsToClose
from hem.ems.funds import AddressFunds
from hem.ems.keyring import Keyring
from hem.ems.lanes import Lanes
from hem.ems.turning import Parts, Turning
from hem.ems.wallet import Wallet
from ledger.genesis import Privacy
from runtime.csmdb_client import CsmDbRefusedError
from runtime.rng import SystemRng
from runtime.store import MemoryStore

RETAIL_UC = 300_000
STEP_S = 150


class Bus:
    connected = True

    async def start(self):
        return

    async def stop(self):
        return


class Scene:
    """A home's addresses with a ledger and a DSO that do at once what they are asked."""

    def __init__(self, folder, *, ahead_slots=2):
        privacy = Privacy(address_slots=4, ahead_slots=ahead_slots)
        self.genesis = make_genesis(privacy=privacy)
        self.rule = self.genesis.rotation
        self.keyring = Keyring(folder, SystemRng())
        self.store, self.queue = MemoryStore(), MemoryStore()
        self.clock = StepClock(FIRST_SLOT)
        self.done: list[tuple[int, str, str]] = []
        """(when, address, what)."""
        self.opened, self.closed, self.turned = [], [], []
        self.away = self.poor = self.offline = False
        self.start()

    def start(self):
        self.book = AddressBook(self.store, self.keyring, self.genesis.chain_id, self.rule)
        first = self.book.key(self.rule.period(FIRST_SLOT)).id
        self.wallet = Wallet(self.store, first, self.book)
        self.lanes = Lanes(self.book, self.lane, self.queue)
        self.to_close = SlotsToClose(self.store)
        self.turning = Turning(
            Parts(
                genesis=self.genesis, book=self.book, lanes=self.lanes, wallet=self.wallet,
                funds=AddressFunds(self.store, self), to_close=self.to_close, clock=self.clock,
                rng=SystemRng(), caught_up=lambda: not self.offline, ask=self.ask,
                turned=self.turn,
            )
        )  # fmt: skip

    def lane(self, grant):
        self.opened.append(grant.address)
        outbox = SimpleNamespace(
            run=self.rest, waiting=0, abandon=lambda code: self.closed.append((grant, code)),
            add=lambda operations, spread_s=0.0: self.leave(grant, operations),
        )  # fmt: skip
        return SimpleNamespace(bus=Bus(), outbox=outbox, sending=None)

    async def rest(self):
        return

    def leave(self, grant, operations):
        for key, operation in operations:
            if self.offline or self.queue.get("key/" + key) is not None:
                continue
            self.queue.put("key/" + key, b"OK")
            self.done.append((self.clock.now_ms(), grant.address, operation["op"]))
            if operation["op"] == "deposit-financial-balance":
                self.balance(grant.address, 0, self.wallet.balance_of(grant.address)["lockedUc"])
            elif grant.end_slot >= self.clock.now_ms() // SLOT_MS:
                self.tell({"event": "address-registered", "address": grant.address})

    def tell(self, event):
        work = self.wallet.take_event(len(self.done) + 1, event)
        with pytest.raises(StopIteration):
            work.send(None)  # it never waits

    def balance(self, address, free_uc, locked_uc=0):
        event = {"event": "balance", "balanceUc": free_uc, "lockedUc": locked_uc}
        self.tell({**event, "address": address})

    async def ask(self):
        if self.away or self.offline:
            raise TimeoutError
        slot = self.clock.now_ms() // SLOT_MS
        self.book.keep({p: granted(self.book, p, slot) for p in self.book.missing(slot)})

    async def withdraw_assets(self, withdrawal, address, amount_uc=0, assets=None):
        if self.offline:
            raise TimeoutError
        if self.poor and amount_uc > 1_000_000:
            raise CsmDbRefusedError("INSUFFICIENT_FUNDS", "")
        slot = self.clock.now_ms() // SLOT_MS
        assert all(one["startSlot"] > slot for one in assets)
        self.done.append((self.clock.now_ms(), address, f"withdraw {amount_uc}"))
        self.balance(address, amount_uc)
        return "sent"

    async def turn(self, address):
        self.turned.append((self.clock.now_ms() // SLOT_MS, address))

    async def live(self, slots, *, restart_every=0):
        """Look after the addresses for some slots."""
        for step in range(slots * 900 // STEP_S):
            if restart_every and step % restart_every == restart_every - 1:
                await self.lanes.stop()
                self.start()
            self.turning._asked_s = float("-inf")
            await self.turning.look()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.clock.market_ms += STEP_S * 1000

    def of(self, address, what):
        return [ms for ms, one, done in self.done if one == address and done.startswith(what)]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "keys")


@pytest.mark.parametrize("restart_every", [0, 7, 1])
async def test_each_address_is_registered_funded_and_emptied_once_in_its_time(scene, restart_every):
    await scene.live(48, restart_every=restart_every)
    rule, tick_ms = scene.rule, STEP_S * 1000
    periods = range(rule.period(FIRST_SLOT) + 2, rule.period(FIRST_SLOT + 48) - 4)
    assert len(periods) > 5
    for period in periods:
        address, first = scene.book.key(period).id, rule.first_slot(period)
        (registered_ms,), (funded_ms,) = scene.of(address, "register"), scene.of(address, "with")
        (emptied_ms,) = scene.of(address, "deposit")
        earliest_ms = (first - rule.ahead_slots - rule.address_slots) * SLOT_MS
        assert earliest_ms <= registered_ms <= (first - rule.ahead_slots) * SLOT_MS + tick_ms
        assert registered_ms <= funded_ms < (first - 1) * SLOT_MS
        settled_ms = (rule.last_slot(period) + 1 + scene.genesis.grace_slots) * SLOT_MS
        assert settled_ms < emptied_ms <= settled_ms + (1 + rule.address_slots) * SLOT_MS + tick_ms
        assert scene.book.is_over(first)
        assert scene.wallet.balance_of(address) == {"balanceUc": 0, "lockedUc": 0}
    assert len({ms % SLOT_MS for ms, _, op in scene.done if op.startswith("register")}) > 3
    amounts = {what for _, _, what in scene.done if what.startswith("withdraw")}
    assert len(amounts) == 1, "every address gets the same"
    assert len(scene.lanes._open) <= 5
    assert dict(scene.turned).keys() >= {rule.first_slot(period) for period in periods[1:]}


async def test_there_is_a_lane_for_every_slot_that_is_traded(scene):
    await scene.live(1)
    for slot in range(FIRST_SLOT + 1, FIRST_SLOT + 24):
        await scene.live(1)
        assert scene.lanes.of(slot) is not None
        if slot > FIRST_SLOT + 8:
            assert scene.wallet.is_registered(scene.book.grant_of(slot + 2).address)


async def test_a_home_that_starts_does_not_make_up_for_all_moments_at_once(tmp_path):
    """Else whoever watches knows that the addresses which came at one moment are one home's."""
    together = 0
    for number in range(8):
        scene = Scene(tmp_path / str(number), ahead_slots=8)
        await scene.live(6)
        moments = [ms for ms, _, op in scene.done if op == "register-address"]
        assert len(moments) >= 3
        together += len(moments) - len(set(moments)) > 1
    assert together <= 2


async def test_a_csmdb_that_is_away_for_hours_costs_nothing(scene):
    await scene.live(12)
    scene.away = True
    await scene.live(36)
    for slot in range(FIRST_SLOT + 1, FIRST_SLOT + 48):
        assert scene.book.grant_of(slot) is not None
    assert scene.lanes.of(FIRST_SLOT + 47) is not None


async def test_a_home_that_was_cut_off_goes_on_with_the_period_that_runs(scene):
    await scene.live(12)
    scene.offline = True
    await scene.live(24)
    scene.offline = False
    await scene.live(1)
    slot = scene.clock.now_ms() // SLOT_MS - 1
    assert scene.wallet.is_registered(scene.book.grant_of(slot).address)
    await scene.live(16)
    assert len(scene.lanes._open) <= 5
    never = [grant for grant, code in scene.closed if code == "NOT_REGISTERED"]
    assert never and all(not scene.wallet.is_registered(grant.address) for grant in never)


async def test_an_account_that_holds_less_gives_a_half_a_quarter_of_it(scene):
    scene.poor = True
    await scene.live(20)
    amounts = {what for _, _, what in scene.done if what.startswith("withdraw")}
    full_uc = scene.rule.float_uc(scene.book.live()[0][1], RETAIL_UC)
    assert amounts == {f"withdraw {full_uc >> 2}"}


async def test_money_that_is_still_locked_keeps_an_address_until_it_is_free(scene):
    await scene.live(10)
    address = scene.book.grant_of(FIRST_SLOT + 9).address
    scene.balance(address, 500, locked_uc=70)
    await scene.live(16)
    assert scene.of(address, "deposit") and not scene.book.is_over(FIRST_SLOT + 9)
    scene.balance(address, 70)
    await scene.live(1)
    assert len(scene.of(address, "deposit")) == 2
    assert scene.book.is_over(FIRST_SLOT + 9)


async def test_an_address_with_a_slot_to_close_waits_for_its_receipt(scene):
    await scene.live(10)
    slot = FIRST_SLOT + 9
    scene.to_close.reach(slot)
    for one in scene.to_close.waiting():
        if one != slot:
            scene.to_close.done(one)
    await scene.live(16)
    address = scene.book.grant_of(slot).address
    assert not scene.of(address, "deposit")
    scene.to_close.done(slot)
    await scene.live(1)
    assert scene.of(address, "deposit")
