"""
The ground that all parts of the audit's replay stand on: rules, books, time, and what was found.

A fact that an event announces otherwise than it follows is a fault, of energy or of money by the
ending of its name:

    energy  awards, trades, positions, receipts, what flowed
    money   amounts, balances, deposits, guarantees, fees, rewards
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from ledger.genesis import Genesis
from ledger.rulebook import RuleBook
from market.congestion import BUY
from sim.audit_book import Book
from sim.audit_clearing import Bid
from sim.audit_history import Event, Step
from wire.envelope import date_text
from wire.units import cost_uc

MONEY_FACTS = ("Uc", "UcPerKwh", "Permille")
"""Endings of the names of facts about money; others are about energy."""
Handlers: TypeAlias = dict[str, Callable[[Event, Step], None]]
"""What a part does with the events that it knows."""


class Ground:
    """
    What holds, who holds what, and what does not agree.

    Args:
        genesis: where the market begins
    """

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.rules = RuleBook(genesis)
        self.book = Book(genesis.supervisor.address)
        self.book.deposit(self.book.supervisor, genesis.supervisor.balance_uc)
        self.energy: list[str] = []
        self.money: list[str] = []
        self.height = self.time_ms = 0

    def bid(self, address: str, side: str, said: Mapping[str, Any], place: tuple[int, ...]) -> Bid:
        """An order, its money locked."""
        energy_wh, price = said["energyWh"], said["priceUcPerKwh"]
        bid = Bid(
            address, side, energy_wh, price, cost_uc(energy_wh, price) if side == BUY else 0, place
        )
        self.book.lock(address, bid.lock_uc)
        return bid

    def unlock(self, bids: Iterable[Bid]) -> None:
        """Free what was locked behind orders."""
        for bid in bids:
            self.book.lock(bid.address, -bid.lock_uc)

    def expect(
        self, event: Event, facts: Mapping[str, Any], row: Event | None = None, of: str = ""
    ) -> None:
        """Note each fact that an event (or a row of it) announces otherwise."""
        said = event if row is None else row
        for name, wanted in facts.items():
            if name in said and said[name] == wanted:
                continue
            found = said.get(name, "nothing")
            fault = f"{self.at(event)}: {of + ' ' if of else ''}{name} {_first(found, wanted)}"
            (self.money if name.endswith(MONEY_FACTS) else self.energy).append(fault)

    def at(self, event: Event) -> str:
        """Which event, for a line."""
        name = event.get("offer") or event.get("auction") or ""
        slot = event.get("slot")
        time = "" if slot is None else f" of slot {date_text(self.genesis.grid.start_ms(slot))}"
        return f"block {self.height}, {event['event']}{' ' + name if name else ''}{time}"


class Part:
    """A part of the market, on common ground."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.genesis = ground, ground.genesis
        self.book, self.rules = ground.book, ground.rules


def _first(found: Any, wanted: Any) -> str:
    """What differs; of lists the first rows that do."""
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = (pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1])
        found, wanted = next(pairs)
    return f"is {found}, {wanted} follows"
