"""
The market's rules as a participant knows them: the genesis, and every change that became a rule.

A change is told by its event (`change-approved`) long before it holds, and is folded in here, once
however often it is told. What holds in a slot then follows as it does on the chain
(`ledger.contracts.parameters`), so homes, aggregator and analytics reckon with the prices and gates
by which they will be settled.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ledger.contracts import parameters
from ledger.contracts.parameters import History, Parameters
from ledger.genesis import Genesis
from market.settlement import Tariff

KEEP_SLOTS = 400
"""How far back rules are asked for: beyond the latest true-up of a receipt [slots]."""


class RuleBook:
    """
    The rules of one market.

    Args:
        genesis: what holds first
        history: as `to_json` gave it; None: nothing was changed yet
    """

    def __init__(self, genesis: Genesis, history: History | None = None) -> None:
        self._genesis = genesis
        self._history: History = history or {}
        self._known: dict[int, Parameters] = {}

    @classmethod
    def kept(cls, genesis: Genesis, row: dict[str, Any]) -> RuleBook:
        """
        The rules as they were kept; an empty row: those of the genesis.

        Raises:
            msgspec.ValidationError: not what `to_json` makes.
        """
        return cls(genesis, msgspec.convert(row, dict[str, list[list[int | bool | str]]]))

    def to_json(self) -> History:
        """What was changed, for keeping."""
        return self._history

    def take_event(self, event: dict[str, Any]) -> bool:
        """Fold an event in; True when a rule will change by it."""
        if event["event"] != "change-approved":
            return False
        path, change = event["path"], [event["activationSlot"], event["value"]]
        before = self._history.get(path, [])
        if change in before:
            return False
        self._history = {**self._history, path: sorted([*before, change], key=_slot_of)}
        self._known.clear()
        return True

    def forget_before(self, slot: int) -> None:
        """Drop changes that later ones have replaced before any slot that is still asked for."""
        oldest = slot - KEEP_SLOTS
        self._history = {
            path: [
                change
                for change, after in zip(changes, [*changes[1:], None], strict=True)
                if after is None or _slot_of(after) > oldest
            ]
            for path, changes in self._history.items()
        }
        self._known = {known: rules for known, rules in self._known.items() if known >= oldest}

    def of_slot(self, slot: int) -> Parameters:
        """The rules that hold in a slot, as far as they were approved until now."""
        found = self._known.get(slot)
        if found is None:
            values = parameters.values(self._history, self._genesis, slot)
            found = self._known[slot] = parameters.parameters_of(self._genesis, values)
        return found

    def tariff(self, slot: int) -> Tariff:
        """The supervisor's prices in a slot."""
        return self.of_slot(slot).tariff

    def gate_ms(self, slot: int) -> int:
        """Market time from which orders for a slot are refused."""
        return self._genesis.grid.start_ms(slot) - self.of_slot(slot).gate_lead_s * 1000

    def reveal_ms(self, slot: int) -> int:
        """Market time from which sealed bids for a slot are revealed."""
        return self.gate_ms(slot) - self.of_slot(slot).auctions.reveal_s * 1000


def _slot_of(change: list[Any]) -> int:
    return int(change[0])
