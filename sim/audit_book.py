"""
The audit's own books: money and positions, kept by double entry and by nothing but their rules.

Money of an address is free or locked; what buyers paid for a slot waits in the receivables of its
sellers until the slot is settled. `total_uc` is the same before and after every entry but a
deposit or a withdrawal, so an entry with one side cannot be made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Position:
    """An address in a slot."""

    bought_wh: int = 0
    sold_wh: int = 0
    receivable_uc: int = 0
    """Paid by buyers, and its own when the slot is settled [µ¤]."""
    scheduled: bool = False
    """It took part in the slot's forward session."""
    net_wh: int | None = None
    """What its meter said."""
    assumed_wh: int | None = None
    """What it was settled with instead."""


@dataclass(slots=True)
class Book:
    """Accounts and positions of a market."""

    supervisor: str
    free_uc: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    locked_uc: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    deposited_uc: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Deposits less withdrawals."""
    pool_uc: int = 0
    """Of the rewards."""
    positions: dict[int, dict[str, Position]] = field(default_factory=dict)

    @property
    def waiting_uc(self) -> int:
        """Receivables of slots that are not settled."""
        return sum(p.receivable_uc for held in self.positions.values() for p in held.values())

    def total_uc(self) -> int:
        """All money there is; what was deposited less what was withdrawn."""
        accounts = sum(self.free_uc.values()) + sum(self.locked_uc.values())
        return accounts + self.waiting_uc + self.pool_uc

    def held_uc(self, address: str) -> int:
        """Free and locked money of an address."""
        return self.free_uc.get(address, 0) + self.locked_uc.get(address, 0)

    def bill_uc(self, address: str) -> int:
        """What an address paid in the market: deposits less what it holds."""
        return self.deposited_uc.get(address, 0) - self.held_uc(address)

    def deposit(self, address: str, amount_uc: int) -> None:
        """Money comes onto the chain; negative: leaves it."""
        self.free_uc[address] += amount_uc
        self.deposited_uc[address] += amount_uc

    def lock(self, address: str, amount_uc: int) -> None:
        """Free money is put behind an order; negative: freed again."""
        self.free_uc[address] -= amount_uc
        self.locked_uc[address] += amount_uc

    def pay(self, payer: str, payee: str, amount_uc: int) -> None:
        """Free money changes hands."""
        self.free_uc[payer] -= amount_uc
        self.free_uc[payee] += amount_uc

    def fund(self, address: str, amount_uc: int) -> None:
        """An address pays into the pool of rewards; negative: gets out of it."""
        self.free_uc[address] -= amount_uc
        self.pool_uc += amount_uc

    def position(self, slot: int, address: str) -> Position:
        """What an address has in a slot."""
        return self.positions.setdefault(slot, {}).setdefault(address, Position())

    def trade(self, slot: int, buyer: str, seller: str, energy_wh: int, amount_uc: int) -> None:
        """Energy changes hands on paper; the buyer's money waits for the settlement."""
        self.position(slot, buyer).bought_wh += energy_wh
        self.free_uc[buyer] -= amount_uc
        sale = self.position(slot, seller)
        sale.sold_wh += energy_wh
        sale.receivable_uc += amount_uc

    def release(self, slot: int, address: str) -> None:
        """A seller gets what waited for it."""
        held = self.position(slot, address)
        self.free_uc[address] += held.receivable_uc
        held.receivable_uc = 0

    def cover(self) -> None:
        """The supervisor deposits what its balance lacks."""
        lacking_uc = -self.free_uc[self.supervisor]
        if lacking_uc > 0:
            self.deposit(self.supervisor, lacking_uc)
