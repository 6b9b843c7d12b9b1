"""
Orders and awards: what goes into an auction and what comes out.

An order carries no side and no slot; the list it stands in gives both. `seq` is its place in the
ledger (height, transaction, operation), unique within an auction: it decides between orders of the
same price, so that a permutation of a batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from operator import attrgetter

import msgspec

Seq = tuple[int, ...]
"""Place of arrival; the smaller is the earlier."""


class Unmatched(StrEnum):
    """Why an order, or a part of it, was not taken."""

    NO_COUNTERPARTY = "NO_COUNTERPARTY"
    """Nobody stood on the other side."""
    PRICE_NOT_REACHED = "PRICE_NOT_REACHED"
    """A bid below, or an offer above, the price; without a trade, the other side's best price."""
    QUANTITY_EXHAUSTED = "QUANTITY_EXHAUSTED"
    """The price was good enough, but better or earlier orders had taken what there was."""
    QUANTITY_OUT_OF_RANGE = "QUANTITY_OUT_OF_RANGE"
    """An order for nothing, or for less than nothing."""


class Pricing(StrEnum):
    """What the orders taken are paid."""

    AS_BID = "as-bid"
    """What the orders named; in a double auction the buyer's word is the price of both."""
    UNIFORM = "uniform"
    """One price for all."""


class Order(msgspec.Struct, frozen=True, gc=False):
    """A bid (most it pays) or an offer (least it takes)."""

    address: str
    energy_wh: int
    """Positive."""
    price_uc_per_kwh: int
    seq: Seq


class Award(msgspec.Struct, frozen=True, gc=False):
    """What an order got: `energy_wh` of it, at `price_uc_per_kwh`."""

    address: str
    energy_wh: int
    price_uc_per_kwh: int
    seq: Seq


class Rejection(msgspec.Struct, frozen=True, gc=False):
    """What an order did not get: `energy_wh` of it, and why."""

    address: str
    energy_wh: int
    price_uc_per_kwh: int
    """The price that it named."""
    seq: Seq
    reason: Unmatched


price_of = attrgetter("price_uc_per_kwh")
energy_of = attrgetter("energy_wh")
seq_of = attrgetter("seq")


def by_arrival(orders: Iterable[Order]) -> list[Order]:
    """Orders as they came; one pass where they already stand so."""
    return sorted(orders, key=seq_of)


def cheapest_first(orders: Iterable[Order]) -> list[Order]:
    """The merit order of offers: by rising price, then by arrival."""
    # Two stable sorts on plain keys; one on (price, seq) would build a tuple for each order. What
    # comes from the ledger is in order of arrival already, which the first sort finds in one pass.
    ordered = by_arrival(orders)
    ordered.sort(key=price_of)
    return ordered


def dearest_first(orders: Iterable[Order]) -> list[Order]:
    """The merit order of bids: by falling price, then by arrival."""
    ordered = by_arrival(orders)
    ordered.sort(key=price_of, reverse=True)  # reverse keeps the order of equals
    return ordered


def without_empty(orders: Sequence[Order]) -> tuple[Sequence[Order], list[Rejection]]:
    """Set aside orders whose energy is not positive: they would break conservation."""
    if min(map(energy_of, orders), default=1) > 0:
        return orders, []
    empty = [
        reject(order, order.energy_wh, Unmatched.QUANTITY_OUT_OF_RANGE)
        for order in orders
        if order.energy_wh <= 0
    ]
    return [order for order in orders if order.energy_wh > 0], empty


def reject(order: Order, energy_wh: int, reason: Unmatched) -> Rejection:
    """Reject `energy_wh` of an order."""
    return Rejection(order.address, energy_wh, order.price_uc_per_kwh, order.seq, reason)


def reject_all(orders: Iterable[Order], reason: Unmatched) -> list[Rejection]:
    """Reject orders as a whole for one reason."""
    return [
        Rejection(one.address, one.energy_wh, one.price_uc_per_kwh, one.seq, reason)
        for one in orders
    ]
