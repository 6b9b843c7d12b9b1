"""
Checking a clearing in one pass over its orders, whoever computed it.

A clearing carries its own proof: awards in merit order, a price, and a reason for everything that
was left out. From these a checker sees, without sorting and without clearing again:

- **order**: awards stand in merit order, only the last of a side is filled in part, and nobody left
  out had the better claim (price, then arrival);
- **conservation**: every Wh of every order is awarded or rejected once, and what is bought is sold;
- **rationality**: nobody pays more or gets less than they said, and pay-as-bid every piece costs
  what its buyer named;
- **optimum**: the best that was left of one side does not cross the best that was left of the
  other, so no allocation has more welfare;
- **price**: it is the midpoint of the prices that support the awards.

It uses nothing of `market.double_auction` but the structure it checks.

Source: market rules in docs/concepts/auctions.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise
from operator import eq

from market.aggregator_auction import AuctionResult
from market.double_auction import Clearing
from market.orders import Award, Order, Pricing, Rejection, Seq, Unmatched


class Fault(StrEnum):
    """What is wrong with a clearing."""

    UNKNOWN_ORDER = "UNKNOWN_ORDER"
    """Something names an order that was not given, or another address than the order's."""
    NOT_CONSERVED = "NOT_CONSERVED"
    """Energy was counted twice, forgotten, or bought and not sold."""
    WRONG_ORDER = "WRONG_ORDER"
    """A better claim was passed over."""
    NOT_RATIONAL = "NOT_RATIONAL"
    """Somebody pays more or gets less than they said."""
    WRONG_PRICE = "WRONG_PRICE"
    NOT_OPTIMAL = "NOT_OPTIMAL"
    """Two orders that were left would have suited each other, or a quantity was not met."""
    WRONG_REASON = "WRONG_REASON"
    """A rejection gives a reason that is not so."""
    WRONG_SUM = "WRONG_SUM"
    """The stated volume or welfare is not that of the awards."""


class _Fault(Exception):  # noqa: N818 - it carries a fault to the caller, who gets a value
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


def check_clearing(
    bids: Sequence[Order], offers: Sequence[Order], clearing: Clearing
) -> Fault | None:
    """
    Check a double auction's clearing against its orders, in O(n).

    Args:
        bids, offers: all orders of the slot, in any order; `seq` unique in each list
        clearing: as claimed by somebody

    Returns:
        The first fault found, or None: `market.double_auction.clear` gives these awards, this
        price and these reasons.
    """
    try:
        demand = _Side(bids, clearing.bid_awards, clearing.rejected_bids, sign=-1)
        supply = _Side(offers, clearing.offer_awards, clearing.rejected_offers, sign=1)
        _want(demand.awarded_wh == supply.awarded_wh, Fault.NOT_CONSERVED)
        _want(clearing.traded_wh == demand.awarded_wh, Fault.WRONG_SUM)
        _want(clearing.welfare_milli_uc == demand.value - supply.value, Fault.WRONG_SUM)
        _want(not _crosses(demand.best_left, supply.best_left), Fault.NOT_OPTIMAL)
        _want(clearing.price_uc_per_kwh == _midpoint(demand, supply), Fault.WRONG_PRICE)
        if clearing.pricing is Pricing.AS_BID:
            _check_as_bid(clearing, demand)
        else:
            for award in (*clearing.bid_awards, *clearing.offer_awards):
                _want(award.price_uc_per_kwh == clearing.price_uc_per_kwh, Fault.WRONG_PRICE)
        demand.check_rational()
        supply.check_rational()
        demand.check_reasons(clearing.price_uc_per_kwh, bool(supply.orders))
        supply.check_reasons(clearing.price_uc_per_kwh, bool(demand.orders))
    except _Fault as found:
        return found.fault
    return None


def check_reverse(
    quantity_wh: int,
    cap_uc_per_kwh: int,
    offers: Sequence[Order],
    pricing: Pricing | str,
    result: AuctionResult,
) -> Fault | None:
    """Check a reverse auction's result against its offers, in O(n); as `check_clearing`."""
    return _check_one_sided(quantity_wh, cap_uc_per_kwh, offers, Pricing(pricing), result, 1)


def check_forward(
    quantity_wh: int,
    floor_uc_per_kwh: int,
    bids: Sequence[Order],
    pricing: Pricing | str,
    result: AuctionResult,
) -> Fault | None:
    """Check a forward auction's result against its bids, in O(n); as `check_clearing`."""
    return _check_one_sided(quantity_wh, floor_uc_per_kwh, bids, Pricing(pricing), result, -1)


class _Side:
    """One side of a claimed clearing, its arithmetic checked while it is read."""

    def __init__(
        self,
        orders: Sequence[Order],
        awards: Sequence[Award],
        rejected: Sequence[Rejection],
        sign: int,
    ) -> None:
        """`sign` makes a smaller price the better one: 1 for offers, −1 for bids."""
        self.sign = sign
        self.awards = awards
        self.rejected = rejected
        self.by_seq = {order.seq: order for order in orders}
        _want(len(self.by_seq) == len(orders), Fault.UNKNOWN_ORDER)
        self.orders = [order for order in orders if order.energy_wh > 0]
        self.taken_wh = _sums(awards, self.by_seq)
        _want(all(award.energy_wh > 0 for award in awards), Fault.NOT_CONSERVED)
        self._check_conservation()
        taken = [self.by_seq[seq] for seq in self.taken_wh]  # a dict keeps the awards' order
        claims = map(self._claim, taken)
        _want(all(better < worse for better, worse in pairwise(claims)), Fault.WRONG_ORDER)
        in_full = (self.taken_wh[order.seq] == order.energy_wh for order in taken[:-1])
        _want(all(in_full), Fault.WRONG_ORDER)
        self.last = taken[-1] if taken else None
        untouched = [order for order in self.orders if order.seq not in self.taken_wh]
        self.best_untouched = min(untouched, key=self._claim, default=None)
        if self.last is not None and self.best_untouched is not None:
            _want(self._claim(self.last) < self._claim(self.best_untouched), Fault.WRONG_ORDER)
        rest = self.last is not None and self.taken_wh[self.last.seq] < self.last.energy_wh
        self.best_left = self.last if rest else self.best_untouched
        self.awarded_wh = sum(self.taken_wh.values())
        self.value = sum(
            self.by_seq[seq].price_uc_per_kwh * energy_wh
            for seq, energy_wh in self.taken_wh.items()
        )

    def _claim(self, order: Order) -> tuple[int, Seq]:
        return self.sign * order.price_uc_per_kwh, order.seq

    def _check_conservation(self) -> None:
        left_wh = _sums(self.rejected, self.by_seq)
        _want(len(left_wh) == len(self.rejected), Fault.NOT_CONSERVED)
        named = (self.by_seq[one.seq].price_uc_per_kwh for one in self.rejected)
        told = (one.price_uc_per_kwh for one in self.rejected)
        _want(all(map(eq, told, named)), Fault.UNKNOWN_ORDER)
        taken_wh = self.taken_wh
        for seq, order in self.by_seq.items():
            total_wh = taken_wh.get(seq, 0) + left_wh.get(seq, 0)
            if total_wh != order.energy_wh or (total_wh <= 0 and seq in taken_wh):
                raise _Fault(Fault.NOT_CONSERVED)

    def check_rational(self) -> None:
        sign, by_seq = self.sign, self.by_seq
        for award in self.awards:
            if sign * award.price_uc_per_kwh < sign * by_seq[award.seq].price_uc_per_kwh:
                raise _Fault(Fault.NOT_RATIONAL)

    def check_reasons(self, price: int, others: bool) -> None:
        for one in self.rejected:
            if one.energy_wh <= 0:
                wanted = Unmatched.QUANTITY_OUT_OF_RANGE
            elif one.seq in self.taken_wh or (self.awards and one.price_uc_per_kwh == price):
                wanted = Unmatched.QUANTITY_EXHAUSTED
            else:
                wanted = Unmatched.PRICE_NOT_REACHED if others else Unmatched.NO_COUNTERPARTY
            _want(one.reason is wanted, Fault.WRONG_REASON)


def _check_one_sided(
    quantity_wh: int,
    limit: int,
    orders: Sequence[Order],
    pricing: Pricing,
    result: AuctionResult,
    sign: int,
) -> Fault | None:
    try:
        side = _Side(orders, result.awards, result.rejected, sign)
        _want(result.awarded_wh == side.awarded_wh <= max(quantity_wh, 0), Fault.WRONG_SUM)
        if side.last is not None:
            _want(sign * side.last.price_uc_per_kwh <= sign * limit, Fault.NOT_RATIONAL)
        left = side.best_left
        met = left is None or sign * left.price_uc_per_kwh > sign * limit
        _want(met or side.awarded_wh == max(quantity_wh, 0), Fault.NOT_OPTIMAL)
        last_price = 0 if side.last is None else side.last.price_uc_per_kwh
        _want(result.last_price_uc_per_kwh == last_price, Fault.WRONG_PRICE)
        for award in result.awards:
            named = side.by_seq[award.seq].price_uc_per_kwh
            price = last_price if pricing is Pricing.UNIFORM else named
            _want(award.price_uc_per_kwh == price, Fault.WRONG_PRICE)
        for one in result.rejected:
            if one.energy_wh <= 0:
                wanted = Unmatched.QUANTITY_OUT_OF_RANGE
            elif sign * one.price_uc_per_kwh <= sign * limit:
                wanted = Unmatched.QUANTITY_EXHAUSTED
            else:
                wanted = Unmatched.PRICE_NOT_REACHED
            _want(one.reason is wanted, Fault.WRONG_REASON)
    except _Fault as found:
        return found.fault
    return None


def _check_as_bid(clearing: Clearing, demand: _Side) -> None:
    """Every buyer pays its word; the sellers' pieces in their order cost what the buyers' do."""
    for award in clearing.bid_awards:
        named = demand.by_seq[award.seq].price_uc_per_kwh
        _want(award.price_uc_per_kwh == named, Fault.WRONG_PRICE)
    buys = iter(clearing.bid_awards)
    price = left_wh = 0
    for piece in clearing.offer_awards:
        if not left_wh:
            buy = next(buys)
            price, left_wh = buy.price_uc_per_kwh, buy.energy_wh
        _want(piece.price_uc_per_kwh == price, Fault.WRONG_PRICE)
        _want(piece.energy_wh <= left_wh, Fault.WRONG_PRICE)
        left_wh -= piece.energy_wh


def _midpoint(demand: _Side, supply: _Side) -> int:
    if demand.last is None or supply.last is None:
        return 0
    low, high = supply.last.price_uc_per_kwh, demand.last.price_uc_per_kwh
    if demand.best_untouched is not None:
        low = max(low, demand.best_untouched.price_uc_per_kwh)
    if supply.best_untouched is not None:
        high = min(high, supply.best_untouched.price_uc_per_kwh)
    return (low + high) // 2


def _crosses(bid: Order | None, offer: Order | None) -> bool:
    return bid is not None and offer is not None and bid.price_uc_per_kwh >= offer.price_uc_per_kwh


def _sums(parts: Iterable[Award] | Iterable[Rejection], by_seq: dict[Seq, Order]) -> dict[Seq, int]:
    """Energy by order, of orders that exist."""
    found: dict[Seq, int] = {}
    for part in parts:
        order = by_seq.get(part.seq)
        if order is None or order.address != part.address:
            raise _Fault(Fault.UNKNOWN_ORDER)
        found[part.seq] = found.get(part.seq, 0) + part.energy_wh
    return found


def _want(holds: bool, fault: Fault) -> None:
    if not holds:
        raise _Fault(fault)
