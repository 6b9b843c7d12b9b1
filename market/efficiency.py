"""
What an auction achieved, beside the best that was possible with its orders.

The optimum is computed by itself, by walking both merit orders once, and not by the rule under
test: a rule that trades too much, or the wrong orders, shows.

An aggregator's auction is a double auction in which one side is a single order, its quantity at its
cap or floor; `as_order` makes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from market.orders import Award, Order, Seq, cheapest_first, dearest_first, without_empty

NO_SEQ: Seq = ()
"""The place of an aggregator's order, which competes with nobody."""


class Efficiency(msgspec.Struct, frozen=True):
    """Volume and welfare against the optimum; money in µ¤/1000, which is exact."""

    traded_wh: int
    optimal_wh: int
    """The greatest volume among the allocations of the greatest welfare."""
    welfare_milli_uc: int
    optimal_welfare_milli_uc: int
    budget_milli_uc: int
    """What the buyers pay less what the sellers get, before rounding; 0: nobody pays for it."""

    @property
    def optimal(self) -> bool:
        """Nothing was left to gain, and nobody outside pays for it."""
        return (self.traded_wh, self.welfare_milli_uc, self.budget_milli_uc) == (
            self.optimal_wh,
            self.optimal_welfare_milli_uc,
            0,
        )


def as_order(name: str, quantity_wh: int, price_uc_per_kwh: int) -> Order:
    """The one order that an aggregator's auction stands for."""
    return Order(name, quantity_wh, price_uc_per_kwh, NO_SEQ)


def efficiency(
    bids: Sequence[Order],
    offers: Sequence[Order],
    bought: Iterable[Award],
    sold: Iterable[Award],
) -> Efficiency:
    """
    Compare awards with the best that was possible.

    Args:
        bids, offers: all orders of the auction
        bought, sold: awards of each side, in any order

    Returns:
        Volume, welfare and budget; awards of unknown orders count with a value of 0.
    """
    bids, _ = without_empty(bids)
    offers, _ = without_empty(offers)
    bought, sold = list(bought), list(sold)
    worth, cost = ({one.seq: one.price_uc_per_kwh for one in side} for side in (bids, offers))
    value = sum(worth.get(a.seq, 0) * a.energy_wh for a in bought)
    spent = sum(cost.get(a.seq, 0) * a.energy_wh for a in sold)
    optimal_wh, optimal_welfare = optimum(bids, offers)
    return Efficiency(
        traded_wh=sum(award.energy_wh for award in bought),
        optimal_wh=optimal_wh,
        welfare_milli_uc=value - spent,
        optimal_welfare_milli_uc=optimal_welfare,
        budget_milli_uc=_money(bought) - _money(sold),
    )


def optimum(bids: Sequence[Order], offers: Sequence[Order]) -> tuple[int, int]:
    """The greatest welfare [µ¤/1000] and the greatest volume at it [Wh], as (volume, welfare)."""
    supply = iter(cheapest_first(offers))
    traded_wh = welfare = left_wh = asked = 0
    for bid in dearest_first(bids):
        wanted_wh = bid.energy_wh
        while wanted_wh:
            if not left_wh:
                offer = next(supply, None)
                if offer is None:
                    return traded_wh, welfare
                left_wh, asked = offer.energy_wh, offer.price_uc_per_kwh
            gain = bid.price_uc_per_kwh - asked
            if gain < 0:
                return traded_wh, welfare
            take_wh = min(wanted_wh, left_wh)
            traded_wh += take_wh
            welfare += take_wh * gain
            wanted_wh -= take_wh
            left_wh -= take_wh
    return traded_wh, welfare


def _money(awards: Iterable[Award]) -> int:
    return sum(award.energy_wh * award.price_uc_per_kwh for award in awards)
