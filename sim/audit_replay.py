"""
The market, replayed by the audit: from signed operations to the balances that must come of them.

Every event is compared with what follows from the operations and events before it, at the prices,
fees and deposits in force in its slot (`ledger.rulebook`); then the audit's books move by what
follows, not by what was announced. At the end of each block every announced balance must be the
books'. What differs is a fault (`sim.audit_ground`).

One part for each market: `audit_auctions`, `audit_offers`, `audit_escrows`, `audit_sessions`; they
all end in positions, which `audit_settlement` settles. Nothing of the ledger's execution is used
but how a clearing words its facts.
"""

from __future__ import annotations

from ledger.genesis import Genesis
from sim.audit_auctions import Auctions
from sim.audit_escrows import Escrows
from sim.audit_ground import Ground, Handlers, Part
from sim.audit_history import Event, History, Step
from sim.audit_offers import Offers
from sim.audit_sessions import Sessions
from sim.audit_settlement import Delivery


class Replay:
    """
    The books of a market, block by block.

    Args:
        genesis: where it begins
    """

    def __init__(self, genesis: Genesis) -> None:
        self.ground = Ground(genesis)
        self.book, self.rules = self.ground.book, self.ground.rules
        self.energy, self.money = self.ground.energy, self.ground.money
        """Faults, one line each."""
        sessions = Sessions(self.ground)
        self._auctions, self._account = Auctions(self.ground, sessions), Account(self.ground)
        self._handlers: Handlers = {
            **self._auctions.handlers(), **sessions.handlers(), **self._account.handlers(),
            **Offers(self.ground).handlers(), **Escrows(self.ground).handlers(),
            **Delivery(self.ground).handlers(),
        }  # fmt: skip

    def take(self, block: History) -> None:
        """Replay a block."""
        self.ground.height, self.ground.time_ms = block.height, block.time_ms
        for step in block.steps:
            self._account.operate(step)
            self._auctions.operate(step)
            for event in step.events:
                self._handle(event, step)
        for event in block.closing:
            self._handle(event, block.steps[0])

    def locked_uc(self) -> dict[str, int]:
        """What is still behind open orders, offers, guarantees and bids' deposits."""
        return {who: uc for who, uc in self.book.locked_uc.items() if uc}

    def _handle(self, event: Event, step: Step) -> None:
        handler = self._handlers.get(event["event"])
        if handler is not None:
            handler(event, step)


class Account(Part):
    """Money beside the markets, changes of the rules, and the balances that blocks announce."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._proposed: dict[str, Event] = {}

    def handlers(self) -> Handlers:
        """What this part does with the events that it knows."""
        return {
            "financial-deposited": self._withdrawn,
            "account-closed": self._withdrawn,
            "change-proposed": self._proposed_change,
            "change-approved": self._changed,
            "rewards": self._rewarded,
            "balance": self._balance,
        }

    def operate(self, step: Step) -> None:
        """Deposits and the pool's funding: no event tells of them."""
        operation = step.operation or {}
        if operation.get("op") == "add-financial-balance":
            self.book.deposit(operation["address"], operation["amountUc"])
        elif operation.get("op") == "fund-rewards":
            self.book.fund(step.sender, operation["amountUc"])

    def _withdrawn(self, event: Event, _step: Step) -> None:
        self.book.deposit(event["address"], -event["amountUc"])

    def _proposed_change(self, event: Event, _step: Step) -> None:
        self._proposed[event["change"]] = event

    def _changed(self, event: Event, _step: Step) -> None:
        proposed = self._proposed[event["change"]]
        self.ground.expect(
            event, {name: proposed[name] for name in ("path", "value", "activationSlot")}
        )
        self.rules.take_event(event)

    def _rewarded(self, event: Event, _step: Step) -> None:
        for row in event["rows"]:
            self.book.fund(row["address"], -row["amountUc"])
        self.ground.expect(event, {"poolUc": self.book.pool_uc})

    def _balance(self, event: Event, _step: Step) -> None:
        address = event["address"]
        self.ground.expect(
            event,
            {
                "balanceUc": self.book.free_uc.get(address, 0),
                "lockedUc": self.book.locked_uc.get(address, 0),
            },
            event,
            address,
        )
