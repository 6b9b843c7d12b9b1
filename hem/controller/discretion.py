"""
Orders that tell little of who makes them: prices and amounts in steps that all homes use.

A forecast's exact value and the price that is made of it are as good as a signature: they follow
from what the meter saw under the address before. So where addresses change
(docs/concepts/privacy.md) orders leave in coarse steps. Prices give way, bids down and asks up, so
that no owner's limit is broken; amounts are rounded by lot, so that nothing is lost in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hem.controller.bidding import OrderIntent

PRICE_STEP_UC_PER_KWH = 20_000
ENERGY_STEP_WH = 50
Orders = tuple[OrderIntent, ...]


def discreet(
    orders: Sequence[OrderIntent], draw: Callable[[], float], allowed: Callable[[Orders], bool]
) -> Orders:
    """
    The orders for one slot in coarse steps; those of which no step is left are dropped.

    Args:
        orders: that may leave as they are
        draw: uniform in [0, 1), anew for each order
        allowed: may these leave together? Amounts that were rounded up may be too much; then all
            are rounded down, which breaks no limit.
    """
    coarse = _in_steps([(order, draw()) for order in orders])
    return coarse if allowed(coarse) else _in_steps([(order, 1.0) for order in orders])


def _in_steps(drawn: Sequence[tuple[OrderIntent, float]]) -> Orders:
    rounded = (_in_step(order, chance) for order, chance in drawn)
    return tuple(order for order in rounded if order.energy_wh)


def _in_step(order: OrderIntent, chance: float) -> OrderIntent:
    steps, rest_wh = divmod(order.energy_wh, ENERGY_STEP_WH)
    energy_wh = (steps + (chance * ENERGY_STEP_WH < rest_wh)) * ENERGY_STEP_WH
    price, step = order.price_uc_per_kwh, PRICE_STEP_UC_PER_KWH
    price = price // step * step if order.side == "buy" else -(-price // step) * step
    return replace(order, energy_wh=energy_wh, price_uc_per_kwh=price)
