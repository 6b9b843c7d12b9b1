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

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice

import msgspec

from market.orders import (
    Award,
    Order,
    Pricing,
    Rejection,
    Unmatched,
    cheapest_first,
    dearest_first,
    price_of,
    reject,
    reject_all,
    without_empty,
)


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
    eligible = bisect_right(ordered, cap_uc_per_kwh, key=price_of)
    return _take(quantity_wh, ordered, eligible, Pricing(pricing), empty)


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
    eligible = bisect_right(ordered, -floor_uc_per_kwh, key=lambda one: -one.price_uc_per_kwh)
    return _take(quantity_wh, ordered, eligible, Pricing(pricing), empty)


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
    for order in islice(ordered, eligible):
        if not left_wh:
            break
        take_wh = min(order.energy_wh, left_wh)
        left_wh -= take_wh
        taken.append((order, take_wh))
        if take_wh < order.energy_wh:
            rest_wh = order.energy_wh - take_wh
            rejected.append(reject(order, rest_wh, Unmatched.QUANTITY_EXHAUSTED))
    rejected += reject_all(islice(ordered, len(taken), eligible), Unmatched.QUANTITY_EXHAUSTED)
    rejected += reject_all(islice(ordered, eligible, None), Unmatched.PRICE_NOT_REACHED)
    last_price = taken[-1][0].price_uc_per_kwh if taken else 0
    uniform = pricing is Pricing.UNIFORM
    return AuctionResult(
        awards=tuple(
            Award(one.address, wh, last_price if uniform else one.price_uc_per_kwh, one.seq)
            for one, wh in taken
        ),
        awarded_wh=sum(wh for _, wh in taken),
        last_price_uc_per_kwh=last_price,
        rejected=(*rejected, *empty),
    )
