"""
What analytics needs to know of a market, read from its genesis.

Only names and times, and the tariff with which the market began: the prices of a slot come from
`ledger.rulebook.RuleBook`, the genesis itself (keys, thresholds) belongs to `ledger.genesis`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.genesis import Genesis
from market.settlement import Tariff
from wire.slots import SlotGrid

DAY_MS = 86_400_000
LEAD_MS = 3_600_000
"""A chain that begins up to an hour before midnight begins with the next day."""
TAIL_SLOTS = 4
"""A day is shown until its last slots are settled."""


@dataclass(frozen=True, slots=True)
class MarketFacts:
    """Name, slots, validators and genesis of one market."""

    market: str
    chain_id: str
    grid: SlotGrid
    start_ms: int
    """Market time of the chain's beginning; days are counted from here."""
    validators: dict[str, str]
    """Validator id to its controller (the home or company behind it)."""
    supervisor: str
    """Address of the grid supervisor."""
    genesis: Genesis
    """What the rules of every slot begin with."""

    @property
    def tariff(self) -> Tariff:
        """The supervisor's prices at the market's beginning; of a slot: `Rollup.rules`."""
        prices = self.genesis.prices
        return Tariff(
            retail_uc_per_kwh=prices.retail_uc_per_kwh,
            feed_in_uc_per_kwh=prices.feed_in_uc_per_kwh,
            imbalance_uc_per_kwh=prices.imbalance_uc_per_kwh,
        )

    def day_start_ms(self, now_ms: int) -> int:
        """Start of the UTC day that is shown at `now_ms`: the present one, or the first."""
        shown_ms = now_ms - TAIL_SLOTS * self.grid.length_s * 1000
        return max(self.first_day_ms, shown_ms // DAY_MS * DAY_MS)

    @property
    def first_day_ms(self) -> int:
        """Midnight with which the market's first day begins."""
        return (self.start_ms + LEAD_MS) // DAY_MS * DAY_MS

    @property
    def slots_per_day(self) -> int:
        """Slots in 24 hours."""
        return 86_400 // self.grid.length_s


def facts_of(genesis: Genesis) -> MarketFacts:
    """Facts of a genesis that has been checked."""
    return MarketFacts(
        market=genesis.market,
        chain_id=genesis.chain_id,
        grid=genesis.grid,
        start_ms=genesis.start_ms,
        validators={v.id: v.controller for v in genesis.validators},
        supervisor=genesis.supervisor.address,
        genesis=genesis,
    )
