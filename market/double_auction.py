"""
The uniform-price double auction (pay-as-clear) of one slot.

Bids in falling and offers in rising price are matched while the bid is at least the offer: the
crossing of the demand and supply curves, which is the largest welfare and, since trades without
surplus (bid = offer) are made too, the largest volume at that welfare. The last order taken on one
side may be filled in part.

**Price.** Let b and o be the last prices taken, b' the best bid and o' the best offer of which
nothing was taken. Every price in [max(o, b'), min(b, o')] suits all orders that were taken or left
as a whole: nobody pays more or gets less than they said, and nobody left out would have wanted in.
The interval is never empty, because b' and o' do not cross. The price is its midpoint, rounded
down, so the two sides share the gain of the marginal trade. An order that was filled in part may
have liked more at this price; it is rationed.

Source: the textbook call auction; TMI section V-C for the selection by price.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, islice

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


class Clearing(msgspec.Struct, frozen=True):
    """The result for one slot; awards in merit order."""

    price_uc_per_kwh: int
    """The one price of all awards; 0 when nothing was traded."""
    traded_wh: int
    bid_awards: tuple[Award, ...]
    offer_awards: tuple[Award, ...]
    welfare_milli_uc: int
    """Σ bid price · energy − Σ offer price · energy over the awards, exact [µ¤/1000]."""
    rejected_bids: tuple[Rejection, ...]
    """What was not bought, with its reason; a bid filled in part appears with its rest."""
    rejected_offers: tuple[Rejection, ...]

    @property
    def welfare_uc(self) -> int:
        """Welfare in whole µ¤, rounded down (it is never negative)."""
        return self.welfare_milli_uc // 1000


class _Match(msgspec.Struct, frozen=True):
    """How far the two merit orders were matched."""

    traded_wh: int
    bids: int
    """How many bids were taken in full."""
    offers: int
    bid_part_wh: int
    """What was taken of the bid after those (0: nothing)."""
    offer_part_wh: int


def clear(bids: Sequence[Order], offers: Sequence[Order]) -> Clearing:
    """
    Clear one slot as a uniform-price double auction.

    Orders of equal price are taken by `seq`, so every validator agrees whatever the order of the
    lists. An order without energy is rejected by name.

    Args:
        bids: demand for the slot [Wh, µ¤/kWh]
        offers: supply for the slot [Wh, µ¤/kWh]

    Returns:
        Price, awards (energy bought equals energy sold) and rejections with their reasons.
    """
    bids, empty_bids = without_empty(bids)
    offers, empty_offers = without_empty(offers)
    demand, supply = dearest_first(bids), cheapest_first(offers)
    match = _match(demand, supply)
    price = _price(demand, supply, match)
    bid_awards = _awards(demand, match.bids, match.bid_part_wh, price)
    offer_awards = _awards(supply, match.offers, match.offer_part_wh, price)
    return Clearing(
        price_uc_per_kwh=price,
        traded_wh=match.traded_wh,
        bid_awards=bid_awards,
        offer_awards=offer_awards,
        welfare_milli_uc=_value(demand, bid_awards) - _value(supply, offer_awards),
        rejected_bids=(
            *_rejections(demand, match.bids, match.bid_part_wh, supply, price),
            *empty_bids,
        ),
        rejected_offers=(
            *_rejections(supply, match.offers, match.offer_part_wh, demand, price),
            *empty_offers,
        ),
    )


def _match(demand: list[Order], supply: list[Order]) -> _Match:
    """
    Find where the demand and supply curves cross.

    The price bid for the q-th Wh falls with q and the price asked for it rises, so the last q where
    they agree is found by bisection over the running sums.
    """
    demand_wh = list(accumulate(order.energy_wh for order in demand))
    supply_wh = list(accumulate(order.energy_wh for order in supply))

    traded_wh = 0
    most_wh = min(demand_wh[-1], supply_wh[-1]) if demand and supply else 0
    while traded_wh < most_wh:
        q = (traded_wh + most_wh + 1) // 2
        bid = demand[bisect_left(demand_wh, q)]
        offer = supply[bisect_left(supply_wh, q)]
        if bid.price_uc_per_kwh >= offer.price_uc_per_kwh:
            traded_wh = q
        else:
            most_wh = q - 1
    bids, bid_part_wh = _taken(demand_wh, traded_wh)
    offers, offer_part_wh = _taken(supply_wh, traded_wh)
    return _Match(traded_wh, bids, offers, bid_part_wh, offer_part_wh)


def _taken(running_wh: list[int], traded_wh: int) -> tuple[int, int]:
    """How many orders fit in `traded_wh` as a whole, and what is taken of the next."""
    whole = bisect_right(running_wh, traded_wh)
    return whole, traded_wh - (running_wh[whole - 1] if whole else 0)


def _price(demand: list[Order], supply: list[Order], match: _Match) -> int:
    """The midpoint of the prices that support the match, rounded down; 0 without a trade."""
    if match.traded_wh == 0:
        return 0
    next_bid = match.bids + (match.bid_part_wh > 0)
    next_offer = match.offers + (match.offer_part_wh > 0)
    low = supply[next_offer - 1].price_uc_per_kwh
    high = demand[next_bid - 1].price_uc_per_kwh
    if next_bid < len(demand):
        low = max(low, demand[next_bid].price_uc_per_kwh)
    if next_offer < len(supply):
        high = min(high, supply[next_offer].price_uc_per_kwh)
    assert low <= high
    return (low + high) // 2


def _awards(side: list[Order], whole: int, part_wh: int, price: int) -> tuple[Award, ...]:
    awards = [Award(o.address, o.energy_wh, price, o.seq) for o in islice(side, whole)]
    if part_wh:
        last = side[whole]
        awards.append(Award(last.address, part_wh, price, last.seq))
    return tuple(awards)


def _value(side: list[Order], awards: tuple[Award, ...]) -> int:
    """Σ own price · energy taken [µ¤/1000]; awards stand in the order of their side."""
    return sum(
        order.price_uc_per_kwh * award.energy_wh
        for order, award in zip(side, awards, strict=False)  # awards are a prefix
    )


def _rejections(
    side: list[Order], whole: int, part_wh: int, others: list[Order], price: int
) -> list[Rejection]:
    rejected = []
    first = whole
    if part_wh:
        rest_wh = side[whole].energy_wh - part_wh
        rejected.append(reject(side[whole], rest_wh, Unmatched.QUANTITY_EXHAUSTED))
        first += 1
    below = Unmatched.PRICE_NOT_REACHED if others else Unmatched.NO_COUNTERPARTY
    for order in islice(side, first, None):
        # No order left out is better than the price, and one that equals it came too late.
        late = first > 0 and order.price_uc_per_kwh == price
        reason = Unmatched.QUANTITY_EXHAUSTED if late else below
        rejected.append(reject(order, order.energy_wh, reason))
    return rejected
