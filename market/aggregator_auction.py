"""
The aggregator's auctions: one buyer or one seller, many homes.

- **reverse**: an aggregator short of its schedule asks for a quantity under a price cap. Offers at
  or below the cap are taken in rising price until the quantity is met.
- **forward**: the mirror image for a surplus: bids at or above a floor, in falling price.

Equal prices are taken by arrival, the last order in part. Pricing is agreed when the auction is
deployed: "as-bid" (each gets what it named) or "uniform" (all get the price of the last one taken).

Source: TMI section V-C (the aggregator's bid takes the offers cheaper than its price, cheapest
first); ETSE's example (n1 asks for 12 Ah, n3 at 45 wins over n5 at 50).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from market.orders import (
    Award,
    Order,
    Rejection,
    Unmatched,
    cheapest_first,
    dearest_first,
    reject,
    without_empty,
)


class Pricing(StrEnum):
    """What the orders taken are paid."""

    AS_BID = "as-bid"
    UNIFORM = "uniform"


class AuctionResult(msgspec.Struct, frozen=True):
    """What the aggregator got; awards in merit order."""

    awards: tuple[Award, ...]
    awarded_wh: int
    """At most the quantity asked for."""
    last_price_uc_per_kwh: int
    """The price of the last order taken; 0 when there was none."""
    rejected: tuple[Rejection, ...]


def reverse(
    quantity_wh: int, cap_uc_per_kwh: int, offers: Sequence[Order], pricing: Pricing | str
) -> AuctionResult:
    """
    Buy up to `quantity_wh` at no more than `cap_uc_per_kwh`.

    Args:
        quantity_wh: what the aggregator lacks [Wh]
        cap_uc_per_kwh: the most it pays [µ¤/kWh]; the cap itself is good enough
        offers: from the homes [Wh, µ¤/kWh]
        pricing: "as-bid" or "uniform"

    Raises:
        ValueError: another pricing.
    """
    offers, empty = without_empty(offers)
    ordered = cheapest_first(offers)
    eligible = [order for order in ordered if order.price_uc_per_kwh <= cap_uc_per_kwh]
    return _take(quantity_wh, ordered, len(eligible), Pricing(pricing), empty)


def forward(
    quantity_wh: int, floor_uc_per_kwh: int, bids: Sequence[Order], pricing: Pricing | str
) -> AuctionResult:
    """
    Sell up to `quantity_wh` at no less than `floor_uc_per_kwh`.

    Args:
        quantity_wh: what the aggregator has too much [Wh]
        floor_uc_per_kwh: the least it takes [µ¤/kWh]; the floor itself is good enough
        bids: from the homes [Wh, µ¤/kWh]
        pricing: "as-bid" or "uniform"

    Raises:
        ValueError: another pricing.
    """
    bids, empty = without_empty(bids)
    ordered = dearest_first(bids)
    eligible = [order for order in ordered if order.price_uc_per_kwh >= floor_uc_per_kwh]
    return _take(quantity_wh, ordered, len(eligible), Pricing(pricing), empty)


def _take(
    quantity_wh: int,
    ordered: list[Order],
    eligible: int,
    pricing: Pricing,
    empty: list[Rejection],
) -> AuctionResult:
    """Take from the first `eligible` orders of a merit order until the quantity is met."""
    taken: list[tuple[Order, int]] = []
    rejected: list[Rejection] = []
    left_wh = max(quantity_wh, 0)
    for order in ordered[:eligible]:
        take_wh = min(order.energy_wh, left_wh)
        left_wh -= take_wh
        if take_wh:
            taken.append((order, take_wh))
        if take_wh < order.energy_wh:
            rest_wh = order.energy_wh - take_wh
            rejected.append(reject(order, rest_wh, Unmatched.QUANTITY_EXHAUSTED))
    rejected += [
        reject(order, order.energy_wh, Unmatched.PRICE_NOT_REACHED) for order in ordered[eligible:]
    ]
    last_price = taken[-1][0].price_uc_per_kwh if taken else 0
    awards = tuple(
        Award(
            order.address,
            take_wh,
            last_price if pricing is Pricing.UNIFORM else order.price_uc_per_kwh,
            order.seq,
        )
        for order, take_wh in taken
    )
    return AuctionResult(
        awards=awards,
        awarded_wh=sum(take_wh for _, take_wh in taken),
        last_price_uc_per_kwh=last_price,
        rejected=(*rejected, *empty),
    )
