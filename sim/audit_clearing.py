"""
Clearings, made again from the orders: what each market's event has to say.

Every function returns the facts that the chain's event must announce and, where energy changes
hands, who sells how much to whom. The rules are `market`'s; orders are the audit's own record of
what was signed, and nothing is taken from the event that is being checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ledger.contracts.clearing_facts import against_the_optimum, awards_of, rejected_of
from market.aggregator_auction import forward, reverse
from market.assets import EnergyAsset, Holding, Kind, exchange, merge
from market.congestion import BUY, SELL, Limit, Outcome, Schedule
from market.double_auction import Clearing, Piece, clear, pieces
from market.efficiency import NO_SEQ, as_order
from market.order_book import cost_of
from market.orders import Award, Order
from market.scheduling import balance

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bid:
    """An order, in whatever auction."""

    address: str
    side: str
    energy_wh: int
    price_uc_per_kwh: int
    lock_uc: int
    """What is locked behind it."""
    seq: tuple[int, ...]

    @property
    def order(self) -> Order:
        """As the market takes it."""
        return Order(self.address, self.energy_wh, self.price_uc_per_kwh, self.seq)


def orders(bids: Sequence[Bid], side: str) -> list[Order]:
    """One side of a book."""
    return [bid.order for bid in bids if bid.side == side]


def double_auction(bids: Sequence[Bid], pricing: str = "uniform") -> tuple[Facts, Clearing]:
    """A double auction between homes."""
    wanted, offered = orders(bids, BUY), orders(bids, SELL)
    result = clear(wanted, offered, pricing)
    facts = {
        "awards": [*awards_of(BUY, result.bid_awards), *awards_of(SELL, result.offer_awards)],
        "rejected": [
            *rejected_of(BUY, result.rejected_bids), *rejected_of(SELL, result.rejected_offers),
        ],
        **against_the_optimum(wanted, offered, result.bid_awards, result.offer_awards),
    }  # fmt: skip
    return facts, result


def slot_auction(bids: Sequence[Bid]) -> tuple[Facts, list[Piece]]:
    """The double auction of a slot: what its `cleared` says."""
    facts, result = double_auction(bids)
    sides = [bid.side for bid in bids]
    head = {
        "priceUcPerKwh": result.price_uc_per_kwh, "tradedWh": result.traded_wh,
        "bids": sides.count(BUY), "offers": sides.count(SELL),
    }  # fmt: skip
    return {**head, **facts}, pieces(result)


def deployed_auction(
    supervisor: str, opened: Mapping[str, Any], bids: Sequence[Bid]
) -> tuple[Facts, list[Piece]]:
    """An auction that was deployed: what its `auction-cleared` says."""
    quantity_wh, limit, pricing = opened["energyWh"], opened["priceUcPerKwh"], opened["pricing"]
    if opened["template"] == "double":
        facts, result = double_auction(bids, pricing)
        traded = pieces(result)
    else:
        facts, traded = _with_supervisor(
            supervisor, opened["template"], quantity_wh, limit, pricing, bids
        )
    return {"boughtWh": sum(piece.energy_wh for piece in traded), **facts}, traded


def _with_supervisor(
    supervisor: str, template: str, quantity_wh: int, limit: int, pricing: str, bids: Sequence[Bid]
) -> tuple[Facts, list[Piece]]:
    wanted, offered = orders(bids, BUY), orders(bids, SELL)
    own = [as_order(supervisor, quantity_wh, limit)]
    buys = template == "reverse"
    if buys:
        result, wanted, home = reverse(quantity_wh, limit, offered, pricing), own, SELL
    else:
        result, offered, home = forward(quantity_wh, limit, wanted, pricing), own, BUY
    mirror = [Award(supervisor, a.energy_wh, a.price_uc_per_kwh, NO_SEQ) for a in result.awards]
    bought, sold = (mirror, result.awards) if buys else (result.awards, mirror)
    facts = {
        "awards": awards_of(home, result.awards),
        "rejected": rejected_of(home, result.rejected),
        **against_the_optimum(wanted, offered, bought, sold),
    }
    traded = [
        Piece(buy.address, sell.address, buy.energy_wh, buy.price_uc_per_kwh)
        for buy, sell in zip(bought, sold, strict=True)
    ]
    return facts, traded


def accepted_offer(
    posted: Mapping[str, Any], given: Sequence[Mapping[str, int]], first_slot: int
) -> tuple[Facts, Holding]:
    """
    An offer of the order book that was accepted: what its `offer-accepted` says.

    Args:
        posted: the offer's `offer-posted`
        given: the assets that the acceptance named
        first_slot: the first slot whose gate was open
    """
    kind = Kind(posted["kind"])
    asset = EnergyAsset(kind, posted["energyWh"], posted["startSlot"], posted["endSlot"])
    open_part = asset.within(first_slot, asset.end_slot)
    others = merge(
        EnergyAsset(kind.opposite, row["energyWh"], row["startSlot"], row["endSlot"])
        for row in given
    )
    if open_part is None:
        return {"traded": [], "energyWh": 0, "amountUc": 0}, ()
    result = exchange(open_part, others)
    price = posted["priceUcPerKwh"]
    facts = {
        "priceUcPerKwh": price,
        "energyWh": sum(one.total_wh for one in result.traded),
        "amountUc": sum(cost_of(one, price) for one in result.traded),
        "traded": _rows(result.traded),
        "offerRest": _rows(result.first_rest),
        "assetsRest": _rows(result.second_rest),
    }
    return facts, result.traded


def session(
    number: int, schedules: Sequence[Schedule], outcome: Outcome, flows: Mapping[str, int]
) -> Facts:
    """
    A round of a forward session: what its `session-closed` says.

    Args:
        number: of the round
        schedules: in the order of addresses
        outcome: what `market.congestion` makes of them
        flows: out of every zone, with this round's
    """
    expected = balance(
        [one.order for one in schedules if one.side == BUY],
        [one.order for one in schedules if one.side == SELL],
    )
    got = {share.address: share.energy_wh for share in outcome.shares}
    return {
        "round": number,
        "demandWh": expected.demand_wh,
        "productionWh": expected.production_wh,
        "netWh": expected.net_wh,
        "exportWh": sum(flows.values()),
        "zones": [
            {
                "zone": zone, "priceUcPerKwh": outcome.prices[zone], "outWh": flows[zone],
                "congested": zone in outcome.congested,
            }
            for zone in sorted(outcome.prices)
        ],
        "shares": [
            {
                "address": one.order.address, "side": one.side,
                "scheduledWh": one.order.energy_wh, "energyWh": got.get(one.order.address, 0),
                "priceUcPerKwh": outcome.prices[one.zone],
            }
            for one in schedules
        ],
    }  # fmt: skip


def adjustment(limits: Mapping[str, Limit], feeder: Limit) -> Facts:
    """What `adjustment-opened` says of what may still flow."""
    return {
        "feeder": {"inWh": feeder.in_wh, "outWh": feeder.out_wh},
        "zones": [
            {"zone": zone, "inWh": limit.in_wh, "outWh": limit.out_wh}
            for zone, limit in sorted(limits.items())
        ],
    }


def _rows(holding: Holding) -> list[dict[str, int]]:
    return [
        {"energyWh": one.energy_wh, "startSlot": one.start_slot, "endSlot": one.end_slot}
        for one in holding
    ]
