"""
The double auction of one slot: at one price for all (pay-as-clear), or pay-as-bid.

Bids in falling and offers in rising price are matched while the bid is at least the offer: the
crossing of the demand and supply curves, which is the largest welfare and, since trades without
surplus (bid = offer) are made too, the largest volume at that welfare. The last order taken on one
side may be filled in part. Who trades how much does not depend on the pricing.

**Cost.** The crossing is found by halving the range of prices, which needs no sorting; only what is
taken is put in merit order. So clearing grows as n log n, with n the orders taken.

**Uniform price.** Let b and o be the last prices taken, b' the best bid and o' the best offer of
which nothing was taken. Every price in [max(o, b'), min(b, o')] suits all orders that were taken or
left as a whole: nobody pays more or gets less than they said, and nobody left out would have wanted
in. The interval is never empty, because b' and o' do not cross. The price is its midpoint, rounded
down, so the two sides share the gain of the marginal trade. An order that was filled in part may
have liked more at this price; it is rationed.

**Pay-as-bid.** Both sides are paired in merit order, dearest bid with cheapest offer, and each
piece changes hands at the price that its buyer named. It is never below what the seller asked,
because the pieces end where the curves cross; and what the buyers pay is what the sellers get, so
nothing is left over for whoever runs the auction.

Source: the textbook call auction; TMI section V-C for the selection by price.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from market.orders import (
    Award,
    Order,
    Pricing,
    Rejection,
    Unmatched,
    by_arrival,
    cheapest_first,
    dearest_first,
    energy_of,
    price_of,
    reject,
    reject_all,
    seq_of,
    without_empty,
)


class Clearing(msgspec.Struct, frozen=True):
    """The result for one slot; awards in merit order, rejections by arrival."""

    price_uc_per_kwh: int
    """The one price of all awards; pay-as-bid, what it would have been. 0: nothing was traded."""
    traded_wh: int
    bid_awards: tuple[Award, ...]
    offer_awards: tuple[Award, ...]
    """Pay-as-bid, one for each piece: an offer that several buyers share has several prices."""
    welfare_milli_uc: int
    """Σ bid price · energy − Σ offer price · energy over the awards, exact [µ¤/1000]."""
    rejected_bids: tuple[Rejection, ...]
    """What was not bought, with its reason; a bid filled in part appears with its rest."""
    rejected_offers: tuple[Rejection, ...]
    pricing: Pricing = Pricing.UNIFORM

    @property
    def welfare_uc(self) -> int:
        """Welfare in whole µ¤, rounded down (it is never negative)."""
        return self.welfare_milli_uc // 1000


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Energy that one order sells to another."""

    buyer: str
    seller: str
    energy_wh: int
    price_uc_per_kwh: int


class Crossing(msgspec.Struct, frozen=True):
    """Where the demand and the supply curve cross."""

    price_uc_per_kwh: int
    """p: the least price at which as much is offered as is wanted."""
    demand_wh: int
    """What is wanted at p or more; all of it is bought."""
    supply_wh: int
    """What is offered below p; all of it is sold."""

    @property
    def traded_wh(self) -> int:
        """The greatest energy that can be traded at prices that suit both sides."""
        return max(self.demand_wh, self.supply_wh)


class _Side(msgspec.Struct, frozen=True):
    """One side's orders, divided."""

    taken: list[Order]
    """In merit order; all in full but perhaps the last."""
    last_wh: int
    """What was taken of the last."""
    left: list[Order]
    """Of these nothing was taken; by arrival."""
    value_milli_uc: int
    """Σ own price · energy taken."""


def clear(
    bids: Sequence[Order], offers: Sequence[Order], pricing: Pricing | str = Pricing.UNIFORM
) -> Clearing:
    """
    Clear one slot as a double auction.

    Orders of equal price are taken by `seq`, so every validator agrees whatever the order of the
    lists. An order without energy is rejected by name.

    Args:
        bids: demand for the slot [Wh, µ¤/kWh]
        offers: supply for the slot [Wh, µ¤/kWh]
        pricing: "uniform" or "as-bid"

    Returns:
        Price, awards (energy bought equals energy sold) and rejections with their reasons.

    Raises:
        ValueError: another pricing.
    """
    pricing = Pricing(pricing)
    bids, empty_bids = without_empty(bids)
    offers, empty_offers = without_empty(offers)
    at = crossing(bids, offers)
    demand, supply = _demand(bids, at), _supply(offers, at)
    price = _price(demand, supply)
    uniform = price if pricing is Pricing.UNIFORM else None
    bid_awards, offer_awards = _awards(demand, uniform), _awards(supply, uniform)
    welfare = demand.value_milli_uc - supply.value_milli_uc
    if pricing is Pricing.AS_BID:
        offer_awards = _at_the_buyers_price(bid_awards, offer_awards)
    return Clearing(
        price_uc_per_kwh=price,
        traded_wh=at.traded_wh,
        bid_awards=tuple(bid_awards),
        offer_awards=tuple(offer_awards),
        welfare_milli_uc=welfare,
        rejected_bids=(*_rejections(demand, bool(offers), price), *empty_bids),
        rejected_offers=(*_rejections(supply, bool(bids), price), *empty_offers),
        pricing=pricing,
    )


def crossing(bids: Sequence[Order], offers: Sequence[Order]) -> Crossing:
    """
    Find where the curves cross, without sorting.

    What is wanted at a price or more falls with the price, and what is offered at it or less rises.
    The range of prices is halved until one is left, and only orders whose price is still in the
    range are looked at again: about two passes over the orders, thirty at the very worst.

    Args:
        bids, offers: each of positive energy
    """
    low = min(map(price_of, offers), default=0)
    high = max(map(price_of, bids), default=-1) + 1
    demand_wh = 0  # wanted at `high` or more
    supply_wh = 0  # offered below `low`
    while low < high:
        middle = (low + high) // 2
        dear = [one for one in bids if one.price_uc_per_kwh >= middle]
        cheap = [one for one in offers if one.price_uc_per_kwh <= middle]
        wanted_wh = demand_wh + sum(map(energy_of, dear))
        offered_wh = supply_wh + sum(map(energy_of, cheap))
        if offered_wh >= wanted_wh:
            high, demand_wh = middle, wanted_wh
            bids, offers = [one for one in bids if one.price_uc_per_kwh < middle], cheap
        else:
            low, supply_wh = middle + 1, offered_wh
            bids, offers = dear, [one for one in offers if one.price_uc_per_kwh > middle]
    return Crossing(low, demand_wh, supply_wh)


def pieces(clearing: Clearing) -> list[Piece]:
    """Who sells how much to whom: both sides of a clearing paired in merit order."""
    return [
        Piece(buy.address, sell.address, energy_wh, buy.price_uc_per_kwh)
        for buy, sell, energy_wh in _pair(clearing.bid_awards, clearing.offer_awards)
    ]


def _pair(buys: Sequence[Award], sells: Sequence[Award]) -> Iterator[tuple[Award, Award, int]]:
    """Cut two lists of the same energy at each other's edges."""
    selling = iter(sells)
    sell: Award | None = None
    left_wh = 0
    for buy in buys:
        wanted_wh = buy.energy_wh
        while wanted_wh:
            if sell is None or not left_wh:
                sell = next(selling)
                left_wh = sell.energy_wh
            piece_wh = min(wanted_wh, left_wh)
            yield buy, sell, piece_wh
            wanted_wh -= piece_wh
            left_wh -= piece_wh


def _at_the_buyers_price(buys: Sequence[Award], sells: Sequence[Award]) -> list[Award]:
    return [
        Award(sell.address, energy_wh, buy.price_uc_per_kwh, sell.seq)
        for buy, sell, energy_wh in _pair(buys, sells)
    ]


def _demand(bids: Sequence[Order], at: Crossing) -> _Side:
    """All bids of the crossing's price or more, and of those just below it what is still there."""
    price = at.price_uc_per_kwh
    taken = [one for one in bids if one.price_uc_per_kwh >= price]
    left = [one for one in bids if one.price_uc_per_kwh < price]
    value = _value(taken)
    return _with_marginal(
        dearest_first(taken), by_arrival(left), value, price - 1, at.traded_wh - at.demand_wh
    )


def _supply(offers: Sequence[Order], at: Crossing) -> _Side:
    """All offers below the crossing's price, and of those at it what is still wanted."""
    price = at.price_uc_per_kwh
    taken = [one for one in offers if one.price_uc_per_kwh < price]
    left = [one for one in offers if one.price_uc_per_kwh >= price]
    value = _value(taken)
    return _with_marginal(
        cheapest_first(taken), by_arrival(left), value, price, at.traded_wh - at.supply_wh
    )


def _value(orders: list[Order]) -> int:
    return sum([one.price_uc_per_kwh * one.energy_wh for one in orders])


def _with_marginal(
    taken: list[Order], left: list[Order], value: int, price: int, rest_wh: int
) -> _Side:
    """Take `rest_wh` more from the orders of one price, by arrival."""
    last_wh = taken[-1].energy_wh if taken else 0
    if not rest_wh:
        return _Side(taken, last_wh, left, value)
    value += rest_wh * price
    marginal = [one for one in left if one.price_uc_per_kwh == price]
    count = 0
    while rest_wh:
        last_wh = min(marginal[count].energy_wh, rest_wh)
        rest_wh -= last_wh
        count += 1
    gone = set(map(seq_of, marginal[:count]))
    return _Side(
        taken + marginal[:count], last_wh, [one for one in left if one.seq not in gone], value
    )


def _price(demand: _Side, supply: _Side) -> int:
    """The midpoint of the prices that support the match, rounded down; 0 without a trade."""
    if not demand.taken:
        return 0
    low, high = supply.taken[-1].price_uc_per_kwh, demand.taken[-1].price_uc_per_kwh
    low = max(low, max(map(price_of, demand.left), default=low))
    high = min(high, min(map(price_of, supply.left), default=high))
    assert low <= high
    return (low + high) // 2


def _awards(side: _Side, uniform: int | None) -> list[Award]:
    """What was taken of a side, at one price or (None) each at its own."""
    if uniform is None:
        awards = [Award(o.address, o.energy_wh, o.price_uc_per_kwh, o.seq) for o in side.taken]
    else:
        awards = [Award(o.address, o.energy_wh, uniform, o.seq) for o in side.taken]
    if awards:
        awards[-1] = msgspec.structs.replace(awards[-1], energy_wh=side.last_wh)
    return awards


def _rejections(side: _Side, others: bool, price: int) -> list[Rejection]:
    rejected = []
    if side.taken and (rest_wh := side.taken[-1].energy_wh - side.last_wh):
        rejected.append(reject(side.taken[-1], rest_wh, Unmatched.QUANTITY_EXHAUSTED))
    if not side.taken:
        below = Unmatched.PRICE_NOT_REACHED if others else Unmatched.NO_COUNTERPARTY
        return reject_all(side.left, below)
    # No order left out is better than the price, and one that equals it came too late.
    late, below = Unmatched.QUANTITY_EXHAUSTED, Unmatched.PRICE_NOT_REACHED
    rejected += [
        Rejection(
            one.address, one.energy_wh, one.price_uc_per_kwh, one.seq,
            late if one.price_uc_per_kwh == price else below,
        )
        for one in side.left
    ]  # fmt: skip
    return rejected
