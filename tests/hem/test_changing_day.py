"""Homes trade under an address for each period, in every market, over the real contracts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    asset,
    deposit,
    grant_for,
    key,
    receipt,
    register,
)
from test_trading_day import HARMLESS, neighbours
from trading_day import TradingDay, TradingHome

from hem.ems.decisions import DecisionLog
from hem.ems.wallet import Wallet
from hem.trader import Parts, Trader
from ledger.contracts import slots as slot_rows
from ledger.genesis import Privacy
from runtime.rng import SystemRng
from wire.certificates import AddressGrant, parse

PERIOD = 3
SLOTS = 10


@dataclass
class Book:
    """A key and a grant for each period of the day, made without a CSM-DB."""

    name: str
    rule: Any
    keys: dict[int, Any] = field(default_factory=dict)
    grants: dict[int, AddressGrant] = field(default_factory=dict)

    def __post_init__(self):
        for slot in range(FIRST_SLOT, FIRST_SLOT + SLOTS + 12):
            period = self.rule.period(slot)
            self.keys[period] = key(f"{self.name} {period}")
            self.grants[period] = parse(
                AddressGrant, grant_for(self.keys[period], **self.window(period))
            )

    def window(self, period):
        return {
            "start_slot": self.rule.first_slot(period), "end_slot": self.rule.last_slot(period),
        }  # fmt: skip

    def grant_of(self, slot):
        return self.grants.get(self.rule.period(slot))

    def key_of(self, slot):
        return self.keys[self.rule.period(slot)]

    def __contains__(self, address):
        return address in {grant.address for grant in self.grants.values()}

    def is_over(self, _slot):
        return False


class ChangingDay(TradingDay):
    """The same day; what a home leaves for a slot goes out under its address of that slot."""

    def __init__(self, homes: list[TradingHome]) -> None:
        self.books: dict[str, Book] = {}
        super().__init__(homes, privacy=Privacy(address_slots=PERIOD, ahead_slots=8))
        grants = []
        for book in self.books.values():
            keys = list(book.keys.items())
            self.chain.block(
                self.chain.ledger.time_ms + 1,
                *(self.chain.tx(one, register(one, **book.window(p))) for p, one in keys),
            )
            for period, one in keys:
                window = book.window(period).values()
                grants += [
                    asset(one, kind, 5_000, *window) for kind in ("production", "consumption")
                ]
                grants.append(deposit(one, 100_000_000))
        for first in range(0, len(grants), 60):
            self.chain.block(
                self.chain.ledger.time_ms + 1,
                self.chain.tx(SUPERVISOR, *grants[first : first + 60]),
            )

    def start(self, home):
        super().start(home)
        old = home.trader._parts
        book = self.books.setdefault(home.key.id, Book(home.key.id, self.chain.genesis.rotation))
        home.slots = {}
        add = home.outbox.add

        def noting(operations, slot=0):
            for name, _ in operations:
                home.slots.setdefault(name, slot)
            return add(operations, slot)

        home.outbox.add = noting
        wallet = Wallet(home.store, book.key_of(FIRST_SLOT).id, book)
        home.trader = Trader(
            Parts(
                genesis=old.genesis, addresses=book, policy=old.policy, wallet=wallet,
                outbox=home.outbox, decisions=DecisionLog(home.store), forecaster=old.forecaster,
                store=home.store, clock=self.clock, rng=SystemRng(), state=home.state,
            )
        )  # fmt: skip

    async def registered(self):
        for home in self.homes:
            for one in self.books[home.key.id].keys.values():
                event = {"event": "address-registered", "address": one.id}
                await home.wallet.take_event(1, event)

    async def block(self, *extra):
        bundles: dict[tuple[int, Any], list[str]] = defaultdict(list)
        for number, home in enumerate(self.homes):
            for name in home.outbox.waiting[:64]:
                bundles[number, self.books[home.key.id].key_of(home.slots[name])].append(name)
            del home.outbox.waiting[:64]
        txs = [
            self.chain.tx(sender, *(self.homes[number].outbox.sent[name] for name in names))
            for (number, sender), names in bundles.items()
        ]
        if extra:
            txs.append(self.chain.tx(SUPERVISOR, *extra))
        result = self.chain.block(max(self.clock.market_ms, self.chain.ledger.time_ms + 1), *txs)
        self.events += result.events
        for event in result.events:
            for home in self.homes:
                await home.wallet.take_event(self.chain.ledger.executed_height, event)
                await home.trader.take_event(self.chain.ledger.executed_height, event)
        for ((number, sender), names), done in zip(bundles.items(), result.receipts, strict=False):
            home = self.homes[number]
            for name, code in zip(names, done.codes, strict=True):
                home.outbox.states[name] = code
                home.trader.operation_done(name, home.outbox.sent[name], code)
                if code != "OK":
                    self.refused.append((sender.id, name, code))

    def _receipts(self, ended):
        if ended < FIRST_SLOT:
            return
        for home in self.homes:
            sender = self.books[home.key.id].key_of(ended)
            said = receipt(sender, ended, home.net_wh(ended), self.chain.chain_id)
            home.outbox.add([(f"receipt/{ended}", said)], ended)


def named_addresses(value, known):
    """All addresses in what was said."""
    if isinstance(value, dict):
        return set().union(*(named_addresses(one, known) for one in value.values()), set())
    if isinstance(value, list):
        return set().union(*(named_addresses(one, known) for one in value), set())
    return {value.partition(":")[0]} & known if isinstance(value, str) else set()


def check_messages(day):
    """No message names two addresses of one home."""
    for home in day.homes:
        book = day.books[home.key.id]
        known = {one.id for one in book.keys.values()}
        for name, operation in home.outbox.sent.items():
            sender = book.key_of(home.slots[name]).id
            assert named_addresses(operation, known) <= {sender}, operation


def check_blocks(day, used):
    """Blocks of the order book end with their address."""
    period, posted = day.chain.genesis.rotation.period, day.of("offer-posted")
    assert all(period(event["startSlot"]) == period(event["endSlot"]) for event in posted)
    assert used == any(event["endSlot"] > event["startSlot"] for event in posted)
    assert used == bool(day.of("offer-accepted"))


@pytest.mark.parametrize(
    "markets",
    [
        ("double-auction", "order-book"), ("escrow",),
        ("double-auction", "order-book", "escrow", "schedules"),
    ],
    ids="+".join,
)  # fmt: skip
async def test_every_market_works_under_addresses_that_change(markets):
    day = ChangingDay(neighbours(*markets))
    await day.run(SLOTS)
    assert {code for _, _, code in day.refused} <= HARMLESS, day.refused
    traded_slots = set()
    for one in day.homes:
        book = day.books[one.key.id]
        for slot in range(FIRST_SLOT, FIRST_SLOT + SLOTS):
            held = slot_rows.position(day.state, slot, book.key_of(slot).id)
            position = one.wallet.position(slot)
            sources = one.wallet.contracted(slot)
            if position is not None and not any(name.startswith("escrow/") for name in sources):
                assert (position.bought_wh, position.sold_wh) == (held["boughtWh"], held["soldWh"])
                traded_slots.add(slot)
            for period, address in book.keys.items():
                if period != book.rule.period(slot):
                    other = slot_rows.position(day.state, slot, address.id)
                    assert not other["boughtWh"] and not other["soldWh"] and "netWh" not in other
    check_messages(day)
    check_blocks(day, "order-book" in markets)
    settled = day.of("settled")
    assert len(settled) >= SLOTS - 3
    used = {one.id for book in day.books.values() for one in book.keys.values()}
    assert not any(used.intersection(event["missing"]) for event in settled)
    if "escrow" not in markets or len(markets) > 1:
        assert len({day.chain.genesis.rotation.period(slot) for slot in traded_slots}) >= 3
    else:
        assert [e["state"] for e in day.of("escrow-ended")].count("delivered") >= 3
