"""
Forward schedules: what nodes expect to take or give in a slot, and what their deviations cost.

Each transactive node says before the gate closes what it expects: demand with the most it pays, or
production with the least it takes. The sums are the expected balance, which the grid supervisor
sees. The supervisor is the counterparty: it sells at the retail and buys at the feed-in price what
the nodes do not settle among themselves, as far as the feeder carries it (`market.congestion`).

A schedule that was taken is a **position** like any other, and the slot is settled once, by
`market.settlement` (ADR 0004). Only the tariff differs: a node that scheduled pays the imbalance
price, not the retail price, for what it takes beyond its schedule or gives less; what it takes less
or gives more is bought at the feed-in price. The supervisor takes or gives the residual.

Source: Baggio and Grimaccia (2020), sections IV and V: forward section, metered profiles, the grid
supervisor that buys or sells the imbalance.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from market.orders import Order
from market.settlement import Tariff


class Balance(msgspec.Struct, frozen=True):
    """What a session expects of a slot."""

    demand_wh: int
    production_wh: int

    @property
    def net_wh(self) -> int:
        """What would have to come from the grid above; negative: go there."""
        return self.demand_wh - self.production_wh


def balance(demand: Sequence[Order], production: Sequence[Order]) -> Balance:
    """Add up schedules."""
    return Balance(
        demand_wh=sum(order.energy_wh for order in demand),
        production_wh=sum(order.energy_wh for order in production),
    )


def deviation_tariff(tariff: Tariff) -> Tariff:
    """The tariff by which a node that scheduled is settled: deviations at the imbalance price."""
    return msgspec.structs.replace(tariff, retail_uc_per_kwh=tariff.imbalance_uc_per_kwh)


def session_price(tariff: Tariff) -> int:
    """The fixed price of a session whose congestion is met by curtailment: the middle [µ¤/kWh]."""
    return (tariff.retail_uc_per_kwh + tariff.feed_in_uc_per_kwh) // 2
