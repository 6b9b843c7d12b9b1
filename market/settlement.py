"""
Settlement of a home in one slot against the supervisor, who is everybody's counterparty.

    residual = net − (bought − sold)          net = import − export, metered [Wh]

A home with residual > 0 took more, or delivered less, than it had contracted: what a seller failed
to deliver, min(residual, sold), is bought for it at the imbalance price, the rest at the retail
price. A home with residual < 0 sells the difference at the feed-in price: a buyer that took less
pays for its position and sells the rest back. Each side is settled on its own meter, so nobody pays
for what the other side of a trade did.

A home whose meter says nothing is settled with `assumed_net_wh`, the most its connection lets in: a
home's payment never falls when its net energy rises, so silence is never cheaper than the truth.
When the receipt comes, `true_up` is what is still due.

Source: PETra (residual energy at the tariff), Baggio (deviations at the imbalance price); ADR 0004.
Rounding: `wire.units.cost_uc`, toward zero on every amount, the remainder with the payer. The
supervisor gets exactly what the homes pay, so rounding creates no money.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from wire.units import cost_uc


class Tariff(msgspec.Struct, frozen=True):
    """The supervisor's prices [µ¤/kWh]."""

    retail_uc_per_kwh: int
    """For energy without a contract."""
    feed_in_uc_per_kwh: int
    """For energy given without a contract."""
    imbalance_uc_per_kwh: int
    """For energy sold and not delivered."""


class Settlement(msgspec.Struct, frozen=True):
    """A home's residual in one slot."""

    residual_wh: int
    """net − (bought − sold) [Wh]; positive: taken from the supervisor."""
    shortfall_wh: int
    """The part of a positive residual that had been sold and was not delivered."""
    amount_uc: int
    """What the home pays the supervisor [µ¤]; negative: what it gets."""


class Totals(msgspec.Struct, frozen=True):
    """Sums over the homes of one slot."""

    net_wh: int
    """What the feeder took, Σ import − export."""
    contracted_wh: int
    """Σ bought − sold: what the supervisor sold (+) or bought (−) in contracts."""
    residual_wh: int
    supervisor_uc: int
    """What the supervisor gets from the settlements."""


def settle(net_wh: int, bought_wh: int, sold_wh: int, tariff: Tariff) -> Settlement:
    """
    Settle one home's slot.

    Args:
        net_wh: metered import − export, or `assumed_net_wh` where the receipt is missing
        bought_wh: Σ awards as a buyer
        sold_wh: Σ awards as a seller, to homes and to the supervisor
        tariff: the supervisor's prices

    Returns:
        The residual and what the home pays for it.

    Raises:
        ValueError: a negative position (our own mistake).
    """
    if bought_wh < 0 or sold_wh < 0:
        raise ValueError(f"negative position: bought {bought_wh} Wh, sold {sold_wh} Wh")
    residual_wh = net_wh - (bought_wh - sold_wh)
    if residual_wh < 0:
        return Settlement(residual_wh, 0, cost_uc(residual_wh, tariff.feed_in_uc_per_kwh))
    shortfall_wh = min(residual_wh, sold_wh)
    amount_uc = cost_uc(shortfall_wh, tariff.imbalance_uc_per_kwh) + cost_uc(
        residual_wh - shortfall_wh, tariff.retail_uc_per_kwh
    )
    return Settlement(residual_wh, shortfall_wh, amount_uc)


def assumed_net_wh(max_buy_wh: int, max_sell_wh: int, bought_wh: int) -> int:
    """
    The net energy [Wh] with which a home without a receipt is settled: as much as may have flowed.

    Args:
        max_buy_wh, max_sell_wh: limits of its grant, which are what its connection carries in a
            slot; a home that may only sell consumes too, so the larger of the two counts
        bought_wh: Σ awards as a buyer, which a later grant's limits may lie below
    """
    return max(max_buy_wh, max_sell_wh, bought_wh)


def true_up(net_wh: int, bought_wh: int, sold_wh: int, tariff: Tariff, assumed_wh: int = 0) -> int:
    """
    What a home still pays [µ¤] (negative: gets) when its receipt comes after the settlement.

    Args:
        net_wh: what the receipt says
        bought_wh, sold_wh, tariff: as in `settle`
        assumed_wh: the net energy that the slot was settled with; 0 for a home without a position
            of which no receipt was expected: settling nothing costs nothing
    """
    late = settle(net_wh, bought_wh, sold_wh, tariff)
    assumed = settle(assumed_wh, bought_wh, sold_wh, tariff)
    return late.amount_uc - assumed.amount_uc


def totals(rows: Iterable[tuple[int, int, int]], tariff: Tariff) -> Totals:
    """
    Sum a slot over its homes, for reports and audits.

    Args:
        rows: (net_wh, bought_wh, sold_wh) of each home
        tariff: the supervisor's prices

    Returns:
        Totals in which net = residual + contracted holds: the energy balance of the slot.
    """
    net_wh = contracted_wh = residual_wh = supervisor_uc = 0
    for net, bought, sold in rows:
        settlement = settle(net, bought, sold, tariff)
        net_wh += net
        contracted_wh += bought - sold
        residual_wh += settlement.residual_wh
        supervisor_uc += settlement.amount_uc
    assert net_wh == residual_wh + contracted_wh
    return Totals(net_wh, contracted_wh, residual_wh, supervisor_uc)
