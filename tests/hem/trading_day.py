"""
Homes that trade for some hours in all markets, over the real contracts and without a network.

Each home is the `Trader` of the product with wallet, promises and decisions of its own; what it
leaves in its outbox goes into the next block of one ledger, whose events come back to everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from home_at_hand import StepClock
from support.chain_builder import (
    FIRST_SLOT,
    SLOT_MS,
    SUPERVISOR,
    Chain,
    grant_for,
    make_genesis,
    receipt,
)  # fmt: skip

from hem.controller.forecast import Forecaster
from hem.controller.policy import Policy
from hem.ems.addresses import OneAddress
from hem.ems.decisions import DecisionLog
from hem.ems.wallet import Wallet
from hem.trader import Parts, Trader
from ledger.state import State
from runtime.rng import SystemRng
from runtime.store import MemoryStore
from wire.certificates import AddressGrant, parse
from wire.keys import SigningKey

ALL_MARKETS = ("double-auction", "auctions", "order-book", "escrow", "schedules")
LENGTH_S = SLOT_MS // 1000


class QueueOutbox:
    """Operations under keys, each once; the codes they became final with."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.waiting: list[str] = []

    def add(self, operations: list[tuple[str, dict[str, Any]]], slot: int = 0) -> int:
        fresh = [(key, op) for key, op in operations if key not in self.states]
        for key, op in fresh:
            self.states[key], self.sent[key] = "waiting", op
            self.waiting.append(key)
        return len(fresh)

    def state_of(self, key: str) -> str:
        return self.states.get(key, "")

    def codes(self, kind: str) -> list[str]:
        return [code for key, code in self.states.items() if key.startswith(kind + "/")]


@dataclass
class TradingHome:
    """A home with constant load and sun."""

    key: SigningKey
    load_wh: int
    pv_wh: int
    policy: Policy
    soc_permille: int = -1
    store: MemoryStore = field(default_factory=MemoryStore)
    outbox: QueueOutbox = field(default_factory=QueueOutbox)
    trader: Trader = field(init=False)

    @property
    def wallet(self) -> Wallet:
        return self.trader._wallet

    def net_wh(self, slot: int) -> int:
        """What its meter sees: with a battery whatever it contracted, else load − PV."""
        position = self.wallet.position(slot)
        if self.soc_permille >= 0 and position is not None:
            return position.net_wh
        return self.load_wh - self.pv_wh

    async def state(self) -> dict[str, Any]:
        facts = {"capacity_wh": 10_000, "max_charge_w": 4_000, "max_discharge_w": 4_000}
        return {"battery": facts, "soc_permille": self.soc_permille}


class TradingDay:
    """A ledger and the homes that trade on it."""

    def __init__(self, homes: list[TradingHome], **genesis: Any) -> None:
        self.chain = Chain(genesis=make_genesis(**genesis))
        self.clock = StepClock(FIRST_SLOT)
        self.homes = homes
        self.events: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, Any]]] = []
        """What every home has heard, with heights."""
        self.refused: list[tuple[str, str, str]] = []
        """(address, key, code) of each operation that the ledger did not take."""
        for home in homes:
            self.start(home)
        self.chain.settle_in(*(home.key for home in homes))
        self.deliver_since = 0

    def start(self, home: TradingHome) -> None:
        """Make a home's trader, also anew after a crash."""
        forecaster = Forecaster(96)
        for slot in range(FIRST_SLOT - 98, FIRST_SLOT - 1):
            forecaster.observe(slot, home.load_wh, home.pv_wh)
        home.trader = Trader(
            Parts(
                genesis=self.chain.genesis,
                addresses=OneAddress(parse(AddressGrant, grant_for(home.key))),
                policy=home.policy, wallet=Wallet(home.store, home.key.id), outbox=home.outbox,
                decisions=DecisionLog(home.store), forecaster=forecaster, store=home.store,
                clock=self.clock, rng=SystemRng(), state=home.state,
            )
        )  # fmt: skip

    @property
    def state(self) -> State:
        return self.chain.ledger.state

    async def registered(self) -> None:
        for home in self.homes:
            event = {"event": "address-registered", "address": home.key.id}
            await home.wallet.take_event(1, event)

    async def block(self, *extra: dict[str, Any]) -> None:
        """One block with all that waits, the supervisor's `extra`; everybody hears of it."""
        bundles = [(home, keys) for home in self.homes if (keys := home.outbox.waiting[:64])]
        txs = [
            self.chain.tx(home.key, *(home.outbox.sent[key] for key in keys))
            for home, keys in bundles
        ]
        if extra:
            txs.append(self.chain.tx(SUPERVISOR, *extra))
        time_ms = max(self.clock.market_ms, self.chain.ledger.time_ms + 1)
        result = self.chain.block(time_ms, *txs)
        self.events += result.events
        height = self.chain.ledger.executed_height
        for event in result.events:
            self.told.append((height, event))
            for home in self.homes:
                await home.wallet.take_event(height, event)
                await home.trader.take_event(height, event)
        for (home, keys), done in zip(bundles, result.receipts, strict=False):
            del home.outbox.waiting[:64]
            for key, code in zip(keys, done.codes, strict=True):
                home.outbox.states[key] = code
                home.trader.operation_done(key, home.outbox.sent[key], code)
                if code != "OK":
                    self.refused.append((home.key.id, key, code))

    async def at(self, slot: int, offset_s: int, *extra: dict[str, Any]) -> None:
        """Move the time; blocks until nothing waits any more."""
        self.clock.to(slot, offset_s)
        await self.block(*extra)
        while any(home.outbox.waiting for home in self.homes):
            self.clock.market_ms += 1_000
            await self.block()

    async def run(self, slots: int) -> None:
        """Trade through some slots from the first on."""
        await self.registered()
        for slot in range(FIRST_SLOT, FIRST_SLOT + slots):
            await self.at(slot, 1, *self._supervisors_word(slot))
            self._receipts(slot - 1)
            await self.at(slot, 2)
            self.clock.to(slot, 60)
            for home in self.homes:
                await home.trader.trade_ahead(slot)
            await self.at(slot, 62)
            self.clock.to(slot, 120)
            for home in self.homes:
                await home.trader.bid(slot)
            await self.at(slot, 122)
            await self._reveals(slot + 1)
            await self.at(slot, LENGTH_S - 10)
            for home in self.homes:
                home.trader.forget_before(slot)

    def _supervisors_word(self, slot: int) -> list[dict[str, Any]]:
        """Overridden by tests: what the supervisor sends at a slot's beginning."""
        return []

    def _receipts(self, ended: int) -> None:
        if ended >= FIRST_SLOT:
            for home in self.homes:
                said = receipt(home.key, ended, home.net_wh(ended), self.chain.chain_id)
                home.outbox.add([(f"receipt/{ended}", said)])

    async def _reveals(self, target: int) -> None:
        """The reveal windows before the gate of a slot and of those that are further ahead."""
        rules = self.homes[0].trader.rules
        begins_ms, ends_ms = rules.reveal_ms(target), rules.gate_ms(target)
        for part in (2, 5):
            self.clock.market_ms = begins_ms + (ends_ms - begins_ms) * part // 10
            for home in self.homes:
                home.trader.reveal_due()
            await self.block()

    def of(self, name: str) -> list[dict[str, Any]]:
        """Events of a name."""
        return [event for event in self.events if event["event"] == name]
