"""
Who paid what, from the events alone: double entry, so all that was paid adds up to zero.

The grid supervisor is the other side of every entry. In a market between homes its part cancels out
(what buyers paid is what sellers got); what is left is its own: residuals and flexibility, what a
forward session left over, fees, guarantees and deposits that were lost, rewards (which it funds).

    reason    entries
    trades    every market's (`analytics.trades`), when they are made
    settled   residuals, and what late receipts changed in them
    fees      of escrowed trades: the price in force in their slot; no event states it
    lost      guarantees of escrowed trades that failed or were withdrawn, bids not revealed
    rewards   paid to validators' homes
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from analytics.trades import Trade
from ledger.rulebook import RuleBook

REASONS = ("trades", "settled", "fees", "lost", "rewards")


class MoneyBook:
    """
    What addresses paid.

    Args:
        supervisor: the grid supervisor's address
    """

    def __init__(self, supervisor: str) -> None:
        self._supervisor = supervisor
        self._paid: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(REASONS, 0))
        self.withdrawn_uc: dict[str, int] = defaultdict(int)
        """
        What each address has taken off the chain: not paid, but not there either. Below zero: what
        the DSO paid for it when it ended in debt.
        """

    def take(self, event: dict[str, Any], trades: Sequence[Trade], rules: RuleBook) -> None:
        """
        Enter what an event moved.

        Args:
            event: finalised, with its terms (`analytics.trades.Terms`)
            trades: those that it made
            rules: prices in force by slot
        """
        for trade in trades:
            sign = 1 if trade.side == "buy" else -1
            self._enter(trade.address, "trades", sign * trade.amount_uc)
        match event["event"]:
            case "settled":
                for row in event["rows"]:
                    self._enter(row["address"], "settled", -row["amountUc"])
            case "trued-up":
                for row in event["rows"]:
                    self._enter(row["address"], "settled", -event["amountUc"])
            case "escrow-offered":
                self._enter(event["seller"], "fees", _fee_uc(event, rules))
            case "escrow-accepted":
                self._enter(event["buyer"], "fees", _fee_uc(event, rules))
            case "escrow-ended":
                self._enter(event["seller"], "lost", event["fundUc"])
            case "bid-forfeited":
                self._enter(event["address"], "lost", event["amountUc"])
            case "rewards":
                for row in event["rows"]:
                    self._enter(row["address"], "rewards", -row["amountUc"])
            case "financial-deposited" | "account-closed":
                self.withdrawn_uc[event["address"]] += event["amountUc"]

    def paid_uc(self, address: str) -> int:
        """All that an address paid, less what it got [µ¤]."""
        return sum(self.of(address).values())

    def of(self, address: str) -> dict[str, int]:
        """What an address paid, by reason [µ¤]; negative: what it got."""
        found = self._paid.get(address)
        return dict.fromkeys(REASONS, 0) if found is None else dict(found)

    def addresses(self) -> list[str]:
        """Everybody who paid or got something."""
        return sorted(self._paid)

    def _enter(self, address: str, reason: str, amount_uc: int) -> None:
        self._paid[address][reason] += amount_uc
        self._paid[self._supervisor][reason] -= amount_uc


def _fee_uc(event: dict[str, Any], rules: RuleBook) -> int:
    return rules.of_slot(event["slot"]).escrow.fee_uc
