"""
What a contract gets to see: the state, the block's time and height, the sender.

A contract never sees a clock, a random number or a file. It writes to the state, appends events,
and returns a `Refusal` or None. What it wrote before a refusal is rolled back by
`ledger.execution`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ledger.contracts import parameters
from ledger.contracts.parameters import Parameters
from ledger.genesis import Genesis
from ledger.state import State
from market.settlement import Tariff
from wire.certificates import AddressGrant

SLOTS_AHEAD_MAX = 96
"""How far ahead orders are taken [slots]."""
TRUE_UP_SLOTS = 96
"""How late a delivery receipt may be [slots]."""


@dataclass(slots=True)
class Context:
    """One block's execution; `sender` and below belong to the present transaction."""

    genesis: Genesis
    state: State
    height: int
    time_ms: int
    slot: int
    """The slot that contains `time_ms`."""
    epoch: int
    """The epoch the block belongs to."""
    events: list[dict[str, Any]] = field(default_factory=list)
    sender: str = ""
    tx_index: int = 0
    op_index: int = 0
    registration: AddressGrant | None = None
    """The grant that makes the sender of a first transaction known."""
    known_parameters: dict[int, Parameters] = field(default_factory=dict)
    """Of slots that the block asked for; they cannot change in it (`governance`)."""
    parameters_since: dict[int, Parameters] = field(default_factory=dict)
    """By the slot from which they hold."""

    @property
    def seq(self) -> list[int]:
        """The operation's place in the ledger, which decides between equal orders."""
        return [self.height, self.tx_index, self.op_index]

    @property
    def is_supervisor(self) -> bool:
        """True when the sender is the grid supervisor."""
        return self.sender == self.genesis.supervisor.address

    @property
    def is_dso(self) -> bool:
        """True when the sender speaks as the DSO."""
        return self.sender == self.genesis.dso_address

    def parameters(self, slot: int) -> Parameters:
        """The parameters in force in a slot."""
        found = self.known_parameters.get(slot)
        if found is None:
            found = self.known_parameters[slot] = self._parameters_of(slot)
        return found

    def _parameters_of(self, slot: int) -> Parameters:
        since_slot = parameters.last_change(self.state, slot)
        found = self.parameters_since.get(since_slot)
        if found is None:
            found = parameters.in_force(self.state, self.genesis, slot)
            self.parameters_since[since_slot] = found
        return found

    def tariff(self, slot: int) -> Tariff:
        """The supervisor's prices in a slot."""
        return self.parameters(slot).tariff

    def gate_ms(self, slot: int) -> int:
        """Orders for a slot are taken in blocks before this time."""
        return self.genesis.grid.start_ms(slot) - self.parameters(slot).gate_lead_s * 1000

    def emit(self, name: str, **facts: Any) -> None:
        """Append an event."""
        self.events.append({"event": name, **facts})


def make_context(
    genesis: Genesis, state: State, height: int, time_ms: int, epoch: int = 0
) -> Context:
    """The context of a block."""
    return Context(
        genesis=genesis,
        state=state,
        height=height,
        time_ms=time_ms,
        slot=genesis.grid.slot_at(time_ms),
        epoch=epoch,
    )
