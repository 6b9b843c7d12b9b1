"""
Bidding and offering curves over the state of charge: TMI Figs 4 and 5.

A full battery offers much and cheaply, an empty one bids for much and pays well; in between,
straight lines between the owner's points. A quantity curve gives the share of the limit (permille),
a price curve the share of the way from the lowest to the highest price (permille). Integers,
rounded down, and monotone whatever the points, because points that break the rule are refused.

Source: TMI section V-D, Figs 4 and 5.
"""

from __future__ import annotations

from itertools import pairwise

Curve = tuple[tuple[int, int], ...]
"""Points (SoC permille, share permille), SoC rising."""

OFFER_QUANTITY: Curve = ((300, 0), (1000, 1000))
"""Fig 4: nothing below 30 %, the whole limit when full."""
BID_QUANTITY: Curve = ((0, 1000), (700, 0))
"""Fig 5: the whole limit when empty, nothing above 70 %."""
OFFER_PRICE: Curve = ((300, 1000), (1000, 0))
BID_PRICE: Curve = ((0, 1000), (700, 0))


def check_curve(curve: Curve, rising: bool) -> None:
    """
    Make sure that a curve is one, and monotone.

    Raises:
        ValueError: no points, out of 0…1000, SoC not rising, or shares not monotone.
    """
    if not curve or any(not 0 <= value <= 1000 for point in curve for value in point):
        raise ValueError("a curve needs points (SoC, share) within 0…1000 permille")
    for (soc, share), (next_soc, next_share) in pairwise(curve):
        if next_soc <= soc:
            raise ValueError("the SoC of the points must rise")
        if (next_share < share) if rising else (next_share > share):
            raise ValueError(f"the shares must {'rise' if rising else 'fall'} with the SoC")


def share_permille(soc_permille: int, curve: Curve) -> int:
    """The curve's value: constant before the first and after the last point, rounded down."""
    first_soc, first_share = curve[0]
    if soc_permille <= first_soc:
        return first_share
    for (soc, share), (next_soc, next_share) in pairwise(curve):
        if soc_permille <= next_soc:
            return share + (next_share - share) * (soc_permille - soc) // (next_soc - soc)
    return curve[-1][1]


def offer_quantity_wh(soc_permille: int, limit_wh: int, curve: Curve = OFFER_QUANTITY) -> int:
    """Energy to offer [Wh], rising with the SoC, never above the limit (Fig 4)."""
    check_curve(curve, rising=True)
    return max(limit_wh, 0) * share_permille(soc_permille, curve) // 1000


def bid_quantity_wh(soc_permille: int, limit_wh: int, curve: Curve = BID_QUANTITY) -> int:
    """Energy to bid for [Wh], falling with the SoC, never above the limit (Fig 5)."""
    check_curve(curve, rising=False)
    return max(limit_wh, 0) * share_permille(soc_permille, curve) // 1000


def offer_price(
    soc_permille: int,
    low_uc_per_kwh: int,
    high_uc_per_kwh: int,
    degradation_uc_per_kwh: int,
    curve: Curve = OFFER_PRICE,
) -> int:
    """Price to ask [µ¤/kWh], falling with the SoC, never below the degradation cost."""
    check_curve(curve, rising=False)
    price = _between(soc_permille, low_uc_per_kwh, high_uc_per_kwh, curve)
    return max(price, degradation_uc_per_kwh)


def bid_price(
    soc_permille: int,
    low_uc_per_kwh: int,
    high_uc_per_kwh: int,
    curve: Curve = BID_PRICE,
) -> int:
    """Price to bid [µ¤/kWh], falling with the SoC, from high (empty) to low."""
    check_curve(curve, rising=False)
    return _between(soc_permille, low_uc_per_kwh, high_uc_per_kwh, curve)


def _between(soc_permille: int, low: int, high: int, curve: Curve) -> int:
    width = max(high - low, 0)
    return low + width * share_permille(soc_permille, curve) // 1000
