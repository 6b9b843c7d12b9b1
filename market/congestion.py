"""
Clearing of forward schedules under the ratings of a feeder and of its zones.

The grid model is a star: zones, each behind an interconnection of its own, at a root that exchanges
energy with the grid above through the feeder. Nodes that are in no zone are at the root. The limits
are what each interconnection and the feeder may still carry, either way.

**Curtail.** All trade at one fixed price, as in Baggio's prototype. What a zone would carry out
beyond its limit is cut from its production in proportion, what it would carry in from its demand;
then what the feeder would, from all zones that can spare it without overloading the other way.

**Split** (Baggio's outlook: one price, and "split markets' zones … and recalculate local prices
while avoiding lines overloading"). In a star that has an exact solution. Put a zone's orders in the
order of their prices: with every step of the price either another offer is sold or another bid is
left unserved, so its export grows from −(all its demand) to all its production. Its interconnection
lets a window of these steps through; what lies before the window is decided inside the zone (offers
sold, bids unserved), what lies after it too (offers unsold, bids served). The windows of all zones,
with the supervisor's limited orders at retail and feed-in price, are cleared by one uniform-price
double auction. A zone whose window was used up is congested: it gets a price of its own, from its
own double auction with the fixed transit. All others share the root's price.

The supervisor is the carrier and the counterparty: it buys in a zone with a surplus and sells at
the root, which is dearer, and it keeps the difference (or pays the rounding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from market.double_auction import clear
from market.orders import Order, Seq
from market.scheduling import session_price
from market.settlement import Tariff

ROOT = ""
"""The zone of nodes that are in none."""
BUY, SELL = "buy", "sell"
_FIRST: Seq = (-1,)
"""Transit comes before all orders of the same price."""
_LAST: Seq = (1 << 62,)
"""The grid above serves who is left: it comes after them."""


class Congestion(StrEnum):
    """What is done when a rating would be exceeded."""

    CURTAIL = "curtail"
    SPLIT = "split"


class Limit(msgspec.Struct, frozen=True):
    """What may still flow [Wh]; together not negative."""

    in_wh: int
    """Into the zone, or from the grid above. Negative: as much has to flow out."""
    out_wh: int


class Schedule(msgspec.Struct, frozen=True):
    """One node's order in a session."""

    side: str
    zone: str
    order: Order


class Share(msgspec.Struct, frozen=True):
    """What became of a schedule."""

    side: str
    zone: str
    address: str
    energy_wh: int
    """At most what was scheduled."""
    price_uc_per_kwh: int
    seq: Seq


class Outcome(msgspec.Struct, frozen=True):
    """What became of a session."""

    shares: tuple[Share, ...]
    """By order of arrival; without those that got nothing."""
    prices: dict[str, int]
    """Of the root and of every zone [µ¤/kWh]."""
    flows_wh: dict[str, int]
    """Out of every zone (the root's own nodes included as a zone)."""
    congested: tuple[str, ...]
    """Zones whose limit was binding; the root when the feeder's was."""

    @property
    def export_wh(self) -> int:
        """To the grid above; negative: from it."""
        return sum(self.flows_wh.values())


def clear_session(
    schedules: Sequence[Schedule],
    limits: Mapping[str, Limit],
    feeder: Limit,
    tariff: Tariff,
    congestion: Congestion | str,
) -> Outcome:
    """
    Clear the schedules of one slot.

    Args:
        schedules: demand and production, in any order
        limits: of zones; a zone without one is not limited
        feeder: what may be exchanged with the grid above
        tariff: the supervisor's prices
        congestion: "curtail" or "split"

    Returns:
        Shares in which no limit is exceeded that the schedules can keep.

    Raises:
        ValueError: another way to meet congestion.
    """
    zones = {ROOT: Limit(1 << 60, 1 << 60), **{name: limits[name] for name in sorted(limits)}}
    known = [one for one in schedules if one.order.energy_wh > 0]
    assert all(one.zone in zones for one in known), "a schedule is in a zone without a limit"
    if Congestion(congestion) is Congestion.CURTAIL:
        return _curtail(known, zones, feeder, session_price(tariff))
    return _split(known, zones, feeder, tariff)


def pro_rata(amounts: Sequence[int], cut: int) -> list[int]:
    """
    Divide a cut over amounts in proportion, in whole units.

    Each share is rounded down; what is then missing is taken one by one where the fraction lost was
    greatest, the first of equals first.

    Args:
        amounts: not negative
        cut: at most their sum
    """
    total = sum(amounts)
    assert 0 <= cut <= total
    if cut == 0:
        return [0] * len(amounts)
    shares = [amount * cut // total for amount in amounts]
    by_fraction = sorted(range(len(amounts)), key=lambda i: (-(amounts[i] * cut % total), i))
    for i in by_fraction[: cut - sum(shares)]:
        shares[i] += 1
    return shares


# --- curtail --------------------------------------------------------------------------------------


def _curtail(
    schedules: Sequence[Schedule], zones: Mapping[str, Limit], feeder: Limit, price: int
) -> Outcome:
    willing = sorted(
        (one for one in schedules if _accepts(one, price)), key=lambda one: one.order.seq
    )
    kept = {one.order.seq: one.order.energy_wh for one in willing}
    places = {(zone, side): [one for one in willing if (one.zone, one.side) == (zone, side)]
              for zone in zones for side in (BUY, SELL)}  # fmt: skip
    congested: list[str] = []

    def energy_wh(zone: str, side: str) -> int:
        return sum(kept[one.order.seq] for one in places[zone, side])

    def cut(zone: str, side: str, cut_wh: int) -> None:
        nodes = places[zone, side]
        shares = pro_rata([kept[one.order.seq] for one in nodes], cut_wh)
        for one, share_wh in zip(nodes, shares, strict=True):
            kept[one.order.seq] -= share_wh

    def out_wh(zone: str) -> int:
        return energy_wh(zone, SELL) - energy_wh(zone, BUY)

    for zone, limit in zones.items():
        for side, excess_wh in (
            (SELL, out_wh(zone) - limit.out_wh), (BUY, -out_wh(zone) - limit.in_wh),
        ):  # fmt: skip
            if excess_wh > 0:
                cut(zone, side, min(excess_wh, energy_wh(zone, side)))
                congested.append(zone)
    export_wh = sum(out_wh(zone) for zone in zones)
    for side, excess_wh in ((SELL, export_wh - feeder.out_wh), (BUY, -export_wh - feeder.in_wh)):
        if excess_wh > 0:
            spare_wh = [
                max(0, min(energy_wh(zone, side), _spare_wh(side, out_wh(zone), limit)))
                for zone, limit in zones.items()
            ]
            shares = pro_rata(spare_wh, min(excess_wh, sum(spare_wh)))
            for zone, share_wh in zip(zones, shares, strict=True):
                cut(zone, side, share_wh)
            congested.append(ROOT)
    shares_of = tuple(
        Share(one.side, one.zone, one.order.address, kept[one.order.seq], price, one.order.seq)
        for one in willing
        if kept[one.order.seq]
    )
    return Outcome(
        shares=shares_of,
        prices=dict.fromkeys(zones, price),
        flows_wh={zone: out_wh(zone) for zone in zones},
        congested=tuple(sorted(set(congested))),
    )


def _spare_wh(side: str, out_wh: int, limit: Limit) -> int:
    """How much of a side may be cut in a zone before the other direction is overloaded."""
    return out_wh + limit.in_wh if side == SELL else limit.out_wh - out_wh


def _accepts(one: Schedule, price: int) -> bool:
    limit = one.order.price_uc_per_kwh
    return limit >= price if one.side == BUY else limit <= price


# --- split ----------------------------------------------------------------------------------------


class _Window(msgspec.Struct):
    """A zone's orders, divided by what its interconnection lets through."""

    bids: list[Order]
    offers: list[Order]
    """Those that the root decides on."""
    served: list[Order]
    """Bids that are served whatever the root's price is."""
    sold: list[Order]
    """Offers that are."""
    cut_in: bool
    """Steps were cut off because not more could flow in; `cut_out`: out."""
    cut_out: bool


def _split(
    schedules: Sequence[Schedule], zones: Mapping[str, Limit], feeder: Limit, tariff: Tariff
) -> Outcome:
    windows = {
        zone: _window([one for one in schedules if one.zone == zone], limit)
        for zone, limit in zones.items()
    }
    prices_named = [one.order.price_uc_per_kwh for one in schedules]
    top = max([tariff.retail_uc_per_kwh, tariff.feed_in_uc_per_kwh, *prices_named])
    bids = [order for window in windows.values() for order in window.bids]
    offers = [order for window in windows.values() for order in window.offers]
    fixed_wh = sum(_energy(window.served) - _energy(window.sold) for window in windows.values())
    grid_offer = Order("", max(0, feeder.in_wh), tariff.retail_uc_per_kwh, _LAST)
    grid_bid = Order("", max(0, feeder.out_wh), tariff.feed_in_uc_per_kwh, _LAST)
    fixed_bid = Order("", max(0, fixed_wh), top, _FIRST)
    fixed_offer = Order("", max(0, -fixed_wh), 0, _FIRST)
    root = clear([fixed_bid, *bids, grid_bid], [fixed_offer, *offers, grid_offer])
    middle = root.price_uc_per_kwh if root.traded_wh else session_price(tariff)
    bought = {award.seq: award.energy_wh for award in root.bid_awards}
    sold = {award.seq: award.energy_wh for award in root.offer_awards}
    congested = [
        ROOT
        for award, whole in ((bought, grid_bid.energy_wh), (sold, grid_offer.energy_wh))
        if whole and award.get(_LAST, 0) == whole
    ]
    amounts: dict[tuple[str, Seq], int] = {}
    flows_wh: dict[str, int] = {}
    for zone, window in windows.items():
        got_wh = {BUY: _got(window.bids, bought), SELL: _got(window.offers, sold)}
        for side, orders in ((BUY, window.served), (SELL, window.sold)):
            for order in orders:
                got_wh[side][order.seq] = got_wh[side].get(order.seq, 0) + order.energy_wh
        for side, by_seq in got_wh.items():
            amounts.update({(side, seq): energy_wh for seq, energy_wh in by_seq.items()})
        flows_wh[zone] = sum(got_wh[SELL].values()) - sum(got_wh[BUY].values())
    binding = [zone for zone in zones if _is_binding(zones[zone], windows[zone], flows_wh[zone])]
    price = _root_price(middle, [windows[zone] for zone in zones if zone not in binding])
    prices = dict.fromkeys(zones, price)
    for zone in binding:
        own = [one for one in schedules if one.zone == zone]
        prices[zone] = _local_price(own, flows_wh[zone], price)
    shares = tuple(
        Share(one.side, one.zone, one.order.address, energy_wh, prices[one.zone], one.order.seq)
        for one in sorted(schedules, key=lambda one: one.order.seq)
        if (energy_wh := amounts.get((one.side, one.order.seq), 0))
    )
    return Outcome(shares, prices, flows_wh, tuple(sorted({*congested, *binding})))


def _window(schedules: Sequence[Schedule], limit: Limit) -> _Window:
    """Divide a zone's steps; those of equal price in the order in which the auction takes them."""
    # Rising price. At one price an offer is sold before a bid is left, and among bids the later
    # one is left first: trades without surplus are made, and the earlier order is served.
    steps = sorted(
        schedules,
        key=lambda one: (
            one.order.price_uc_per_kwh,
            one.side == BUY,
            one.order.seq if one.side == SELL else tuple(-place for place in one.order.seq),
        ),
    )
    demand_wh = sum(one.order.energy_wh for one in schedules if one.side == BUY)
    production_wh = sum(one.order.energy_wh for one in schedules if one.side == SELL)
    last_wh = demand_wh + production_wh
    low_wh = min(max(0, demand_wh - limit.in_wh), last_wh)
    high_wh = min(max(low_wh, demand_wh + limit.out_wh), last_wh)
    window = _Window([], [], [], [], cut_in=low_wh > 0, cut_out=high_wh < last_wh)
    start_wh = 0
    for one in steps:
        end_wh = start_wh + one.order.energy_wh
        before_wh = max(0, min(end_wh, low_wh) - start_wh)
        after_wh = max(0, end_wh - max(start_wh, high_wh))
        within_wh = one.order.energy_wh - before_wh - after_wh
        if one.side == SELL:
            _add(window.sold, one.order, before_wh)
            _add(window.offers, one.order, within_wh)
        else:
            _add(window.bids, one.order, within_wh)
            _add(window.served, one.order, after_wh)
        start_wh = end_wh
    return window


def _is_binding(limit: Limit, window: _Window, flow_wh: int) -> bool:
    """Did steps that were cut off lie right behind what was used?"""
    return (window.cut_out and flow_wh >= limit.out_wh) or (
        window.cut_in and flow_wh <= -limit.in_wh
    )


def _root_price(middle: int, windows: Sequence[_Window]) -> int:
    """The root's price, moved so that it suits what zones without congestion decided inside."""
    sold = [one.price_uc_per_kwh for window in windows for one in window.sold]
    served = [one.price_uc_per_kwh for window in windows for one in window.served]
    return max([min([middle, *served]), *sold])


def _local_price(schedules: Sequence[Schedule], flow_wh: int, root_price: int) -> int:
    """The price of a congested zone: its own auction, with the transit at the root's price."""
    bids = [one.order for one in schedules if one.side == BUY]
    offers = [one.order for one in schedules if one.side == SELL]
    if flow_wh > 0:
        bids.append(Order("", flow_wh, root_price, _FIRST))
    elif flow_wh < 0:
        offers.append(Order("", -flow_wh, root_price, _FIRST))
    local = clear(bids, offers)
    return local.price_uc_per_kwh if local.traded_wh else root_price


def _got(orders: Sequence[Order], by_seq: Mapping[Seq, int]) -> dict[Seq, int]:
    return {order.seq: by_seq[order.seq] for order in orders if order.seq in by_seq}


def _add(orders: list[Order], order: Order, energy_wh: int) -> None:
    if energy_wh > 0:
        orders.append(msgspec.structs.replace(order, energy_wh=energy_wh))


def _energy(orders: Sequence[Order]) -> int:
    return sum(order.energy_wh for order in orders)
