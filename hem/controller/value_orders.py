"""
Orders for stored energy, step by step, from what it will be worth.

A battery sells its first kWh for less than its last, and pays more for the first it takes: the
steps of `value_curve.bid_steps`, without the home's own need, become a few orders with rising asks
or falling bids. An ask is never below wear plus the value that is given up.

Source: TMI section V-D (offers above the cost of degradation); ADR 0009.
"""

from __future__ import annotations

from collections.abc import Sequence

from hem.controller.battery import Battery
from hem.controller.value_curve import Terms, ValueCurve, bid_steps

STEPS_MAX = 3
"""Orders for one side: an address has eight in a slot, in all markets together."""

Step = tuple[int, int]
"""(price [µ¤/kWh], energy [Wh])."""


def offers(
    curve: ValueCurve, battery: Battery, soc_wh: int, limit_wh: int, terms: Terms, seconds: int
) -> list[Step]:
    """
    What to sell of what is stored, cheapest first: asks from `export_price` up to `import_price`.

    Args:
        limit_wh: most to sell
    """
    steps = bid_steps(0, soc_wh, curve, battery, terms, seconds)
    found, sold_wh = [], 0
    for price, demand_wh in steps:
        more_wh = min(-demand_wh, limit_wh) - sold_wh
        if more_wh > 0:
            found.append((max(price, terms.wear), more_wh))
            sold_wh += more_wh
    return _few(found)


def bids(
    curve: ValueCurve, battery: Battery, soc_wh: int, limit_wh: int, terms: Terms, seconds: int
) -> list[Step]:
    """
    What to buy for the battery, dearest first: bids from `import_price` down to `export_price`.

    Args:
        limit_wh: most to buy
    """
    steps = bid_steps(0, soc_wh, curve, battery, terms, seconds)
    ends = [price - 1 for price, _ in steps[1:]] + [terms.import_price - 1]
    found, bought_wh = [], 0
    for (_, demand_wh), most in zip(reversed(steps), reversed(ends), strict=True):
        more_wh = min(demand_wh, limit_wh) - bought_wh
        if more_wh > 0:
            found.append((most, more_wh))
            bought_wh += more_wh
    return _few(found)


def lost_otherwise_uc(
    curve: ValueCurve,
    battery: Battery,
    soc_wh: int,
    orders: Sequence[tuple[str, int, int]],
    wear: int,
) -> int:
    """
    What these orders bring beside doing nothing, if they are filled at their own prices [µ¤].

    Args:
        orders: side, energy [Wh] and price [µ¤/kWh] of each
    """
    kept, gain = curve.marginal(soc_wh), 0
    for side, energy_wh, price in orders:
        if side == "sell":
            gain += energy_wh * (price - kept * battery.discharge_permille // 1000 - wear)
        else:
            gain += energy_wh * (kept * battery.charge_permille // 1000 - price)
    return max(gain, 0) // 1000


def _few(steps: Sequence[Step]) -> list[Step]:
    """
    At most `STEPS_MAX` of them, about as large as each other.

    Those that become one take the price of the last: the least that all of them agree to.
    """
    total_wh = sum(energy_wh for _, energy_wh in steps)
    few: list[Step] = []
    gathered_wh = 0
    for at, (price, energy_wh) in enumerate(steps):
        gathered_wh += energy_wh
        full = gathered_wh * STEPS_MAX >= total_wh
        if full or at == len(steps) - 1:
            few.append((price, gathered_wh))
            gathered_wh = 0
    return few
