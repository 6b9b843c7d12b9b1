"""What a clearing says of itself in its event: how good it was, and to each rejected bidder why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from market.efficiency import efficiency
from market.orders import Award, Order, Rejection


def awards_of(side: str, awards: Iterable[Award]) -> list[dict[str, Any]]:
    """Awards in an event."""
    return [
        {
            "address": award.address,
            "side": side,
            "energyWh": award.energy_wh,
            "priceUcPerKwh": award.price_uc_per_kwh,
        }
        for award in awards
    ]


def rejected_of(side: str, rejections: Iterable[Rejection]) -> list[dict[str, Any]]:
    """Rejections in an event; an order filled in part is named with its rest."""
    return [
        {
            "address": one.address,
            "side": side,
            "energyWh": one.energy_wh,
            "priceUcPerKwh": one.price_uc_per_kwh,
            "reason": one.reason.value,
        }
        for one in rejections
    ]


def against_the_optimum(
    bids: Sequence[Order],
    offers: Sequence[Order],
    bought: Iterable[Award],
    sold: Iterable[Award],
) -> dict[str, Any]:
    """Welfare and volume beside the best possible, and the budget; money in whole µ¤, downward."""
    found = efficiency(bids, offers, bought, sold)
    return {
        "welfareUc": found.welfare_milli_uc // 1000,
        "optimalWelfareUc": found.optimal_welfare_milli_uc // 1000,
        "optimalWh": found.optimal_wh,
        "budgetUc": found.budget_milli_uc // 1000,
    }
