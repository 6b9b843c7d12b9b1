"""
The uniform-price auction over demand curves instead of orders.

Each agent says, for every step of a price grid, what it would take at that price: positive is
demand, negative is supply. A curve never rises with the price. The curves are added up, and the
price is the step nearest to where the sum, drawn as a line, crosses zero; where energy is wanting
at every step it is the highest, where there is too much at every step the lowest. Everybody then
takes what its own curve says there. What the steps cannot express is left as an imbalance, the sum
at that price, for the supervisor.

`to_orders` turns a curve into the orders it is made of; cleared by `market.double_auction` they
leave no imbalance, because the last one is filled in part.

Malformed curves are refused by name and the rest is cleared without them.

Source: Kok, "The PowerMatcher: Smart Coordination for the Smart Electricity Grid" (2013), chapter 8
on market-based control with bid curves.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise
from operator import neg

import msgspec

from market.orders import Order, Seq


class CurveFault(StrEnum):
    """Why a curve does not take part."""

    WRONG_LENGTH = "WRONG_LENGTH"
    """It does not have one value for each price step."""
    ASCENDING = "ASCENDING"
    """It takes more at a higher price."""


class PriceGrid(msgspec.Struct, frozen=True):
    """Equally spaced prices, the lowest and the highest included."""

    steps: int
    """At least 2."""
    low_uc_per_kwh: int
    high_uc_per_kwh: int
    """Above the lowest."""

    def price(self, step: int) -> int:
        """The price of a step, rounded down [µ¤/kWh]."""
        span = self.high_uc_per_kwh - self.low_uc_per_kwh
        return self.low_uc_per_kwh + span * step // (self.steps - 1)


class Curve(msgspec.Struct, frozen=True):
    """What an agent takes at each step of the grid [Wh]; negative: gives."""

    address: str
    demand_wh: tuple[int, ...]
    seq: Seq


class CurveClearing(msgspec.Struct, frozen=True):
    """The result; allocations in the order of the curves."""

    step: int
    price_uc_per_kwh: int
    total_wh: tuple[int, ...]
    """The sum of the accepted curves at each step."""
    imbalance_wh: int
    """That sum at the price: what is wanting (+) or left over (−)."""
    allocations: tuple[tuple[str, int], ...]
    """Address and energy taken (+) or given (−), of each accepted curve."""
    refused: tuple[tuple[str, CurveFault], ...]


def clear_curves(grid: PriceGrid, curves: Sequence[Curve]) -> CurveClearing:
    """
    Clear demand curves at one price.

    Args:
        grid: the price steps that the curves speak of
        curves: one for each agent

    Returns:
        Price, allocations, imbalance and the curves refused. Of two steps equally near to balance
        the lower one is taken; without curves it is the lowest.

    Raises:
        ValueError: a grid without two steps or without a range.
    """
    if grid.steps < 2 or grid.low_uc_per_kwh >= grid.high_uc_per_kwh:
        raise ValueError("a price grid has two steps or more, from a lower to a higher price")
    faults = [(curve, fault_of(grid, curve)) for curve in curves]
    accepted = [curve for curve, fault in faults if fault is None]
    total = [0] * grid.steps
    for curve in accepted:
        for step, wh in enumerate(curve.demand_wh):
            total[step] += wh
    step = _balanced_step(total) if accepted else 0
    return CurveClearing(
        step=step,
        price_uc_per_kwh=grid.price(step),
        total_wh=tuple(total),
        imbalance_wh=total[step],
        allocations=tuple((curve.address, curve.demand_wh[step]) for curve in accepted),
        refused=tuple((curve.address, fault) for curve, fault in faults if fault is not None),
    )


def fault_of(grid: PriceGrid, curve: Curve) -> CurveFault | None:
    """What is wrong with a curve; None when it takes part."""
    if len(curve.demand_wh) != grid.steps:
        return CurveFault.WRONG_LENGTH
    if any(now < later for now, later in pairwise(curve.demand_wh)):
        return CurveFault.ASCENDING
    return None


def to_orders(grid: PriceGrid, curves: Iterable[Curve]) -> tuple[list[Order], list[Order]]:
    """
    The bids and offers that curves are made of.

    A fall from d to d' between two steps is a bid for what of it is demand, at the lower step's
    price, and an offer of what of it is supply, at the higher step's price. What is taken at the
    highest price is a bid there, and what is given at the lowest an offer there.

    Args:
        grid: the price steps
        curves: without a fault

    Returns:
        Bids and offers; their `seq` is the curve's, followed by the step.
    """
    bids: list[Order] = []
    offers: list[Order] = []
    for curve in curves:
        values = curve.demand_wh
        for step in range(grid.steps):
            here = values[step]
            later = values[step + 1] if step + 1 < grid.steps else min(here, 0)
            before = values[step - 1] if step else max(here, 0)
            price, seq = grid.price(step), (*curve.seq, step)
            wanted_wh = max(here, 0) - max(later, 0)
            given_wh = max(-here, 0) - max(-before, 0)
            if wanted_wh:
                bids.append(Order(curve.address, wanted_wh, price, seq))
            if given_wh:
                offers.append(Order(curve.address, given_wh, price, seq))
    return bids, offers


def _balanced_step(total: Sequence[int]) -> int:
    """
    The step nearest to where the line through the sums crosses zero.

    The sums fall, so the steps of no imbalance stand together; of several the middle one is taken,
    as of a range of prices in the auction of orders. The ends where the sums do not cross zero.
    """
    if total[-1] > 0:
        return len(total) - 1
    if total[0] < 0:
        return 0
    short = bisect_left(total, 0, key=neg)  # first step without a shortage
    over = bisect_right(total, 0, key=neg)  # first step with a surplus
    if short < over:
        return (short + over - 1) // 2
    return short - 1 if total[short - 1] <= -total[short] else short
