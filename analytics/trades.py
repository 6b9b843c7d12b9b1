"""
What finalised events say of trades: one reading for the page, the database and the report.

    kind       market                                    event
    market     the double auction of every slot          cleared
    double     double auctions that were deployed        auction-cleared
    auction    the aggregator's auctions (flexibility)   auction-cleared
    offer      the order book                            offer-accepted
    escrow     escrowed trades                           escrow-ended, delivered
    schedule   forward sessions and their adjustments    session-closed

Every trade carries the money that changed hands, to the last µ¤: where buyers and sellers are
paired, each pair is rounded once (`ledger.contracts.exchange`), so both see the same amounts. Some
events name what they end and not its terms; `Terms` remembers those from the events before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wire.units import cost_uc

Row = dict[str, Any]

MARKETS = {
    "market": "double auction",
    "double": "deployed double auctions",
    "offer": "order book",
    "escrow": "escrowed trades",
    "schedule": "forward schedules",
    "auction": "aggregator's auctions",
}
"""The kinds of trades, and what people call their markets."""
FLEXIBILITY = "auction"
"""Where homes trade with the aggregator, not with each other."""
DELIVERED = "delivered"
PARTY = {"buy": "buyer", "sell": "seller"}


@dataclass(frozen=True, slots=True)
class Trade:
    """One side of a trade in one slot, as a home sees it."""

    slot: int
    number: int
    """Its place in the event: an address may have several."""
    address: str
    side: str
    """"buy" or "sell"."""
    kind: str
    reference: str
    """Which auction, offer or session round; empty for the slot's double auction."""
    energy_wh: int
    price_uc_per_kwh: int
    amount_uc: int
    """What the buyer paid, or the seller gets [µ¤]."""


@dataclass(frozen=True, slots=True)
class Volume:
    """What one clearing, offer or trade moved in one slot."""

    slot: int
    kind: str
    reference: str
    energy_wh: int
    money_uc: int
    local_wh: int
    """Of the energy, what went from one home to another; the rest is the grid supervisor's."""


@dataclass(slots=True)
class Terms:
    """Terms of what is still open: templates of auctions, energy and price of escrowed trades."""

    _templates: dict[str, str] = field(default_factory=dict)
    _escrows: dict[str, tuple[int, int]] = field(default_factory=dict)

    def complete(self, event: Row) -> Row:
        """An event with the terms of what it ends; others are remembered and stay as they are."""
        match event["event"]:
            case "auction-opened":
                self._templates[event["auction"]] = event["template"]
            case "escrow-offered" | "escrow-revealed":
                self._escrows[event["offer"]] = (event["energyWh"], event["priceUcPerKwh"])
            case "auction-cleared":
                template = self._templates.pop(event["auction"], "reverse")
                return {"template": template, **event}
            case "escrow-ended":
                found = self._escrows.pop(event["offer"], None)
                if found is not None:
                    return {"energyWh": found[0], "priceUcPerKwh": found[1], **event}
        return event


def trades_of(event: Row) -> list[Trade]:
    """The trades that a completed event (see `Terms`) made; none of most events."""
    match event["event"]:
        case "cleared":
            return _awards(event["slot"], "market", "", event["awards"])
        case "auction-cleared":
            return _auction(event)
        case "offer-accepted":
            return _offer(event)
        case "escrow-ended":
            return _escrow(event)
        case "session-closed":
            return _session(event)
    return []


def volumes_of(event: Row, trades: Iterable[Trade]) -> list[Volume]:
    """
    Energy and money that changed hands, by slot.

    Where the grid supervisor is the other side, only one side's trades are homes'; in a session it
    makes up what the homes' sides differ by. So the larger side counts, and the smaller is local.
    """
    sums: dict[tuple[int, str, str], dict[str, list[int]]] = {}
    for trade in trades:
        sides = sums.setdefault(
            (trade.slot, trade.kind, trade.reference), {"buy": [0, 0], "sell": [0, 0]}
        )
        sides[trade.side][0] += trade.energy_wh
        sides[trade.side][1] += trade.amount_uc
    if event["event"] == "cleared" and not sums:
        return [Volume(event["slot"], "market", "", event["tradedWh"], 0, event["tradedWh"])]
    return [
        Volume(
            *key,
            energy_wh=max(sides["buy"][0], sides["sell"][0]),
            money_uc=max(sides["buy"][1], sides["sell"][1]),
            local_wh=min(sides["buy"][0], sides["sell"][0]),
        )
        for key, sides in sums.items()
    ]


def by_kind(volumes: Iterable[Volume]) -> dict[str, dict[str, int]]:
    """Energy and money by market, in the order of `MARKETS`; without markets that were not used."""
    sums: dict[str, dict[str, int]] = defaultdict(
        lambda: {"energyWh": 0, "moneyUc": 0, "localWh": 0}
    )
    for volume in volumes:
        sums[volume.kind]["energyWh"] += volume.energy_wh
        sums[volume.kind]["moneyUc"] += volume.money_uc
        sums[volume.kind]["localWh"] += volume.local_wh
    return {kind: sums[kind] for kind in MARKETS if kind in sums and sums[kind]["energyWh"]}


def _auction(event: Row) -> list[Trade]:
    slot, name, awards = event["slot"], event["auction"], event["awards"]
    if event.get("template") == "double":
        return _awards(slot, "double", name, awards)
    side = "buy" if event.get("template") == "forward" else "sell"
    return [
        Trade(
            slot, number, a["address"], side, FLEXIBILITY, name, a["energyWh"], a["priceUcPerKwh"],
            cost_uc(a["energyWh"], a["priceUcPerKwh"]),
        )
        for number, a in enumerate(awards)
    ]  # fmt: skip


def _awards(slot: int, kind: str, reference: str, awards: Sequence[Row]) -> list[Trade]:
    amounts = _paired(awards)
    return [
        Trade(
            slot, number, a["address"], a["side"], kind, reference, a["energyWh"],
            a["priceUcPerKwh"], amount_uc,
        )
        for number, (a, amount_uc) in enumerate(zip(awards, amounts, strict=True))
    ]  # fmt: skip


def _paired(awards: Sequence[Row]) -> list[int]:
    """Amounts of a double auction's awards: both sides paired in merit order, at buyers' prices."""
    amounts = [0] * len(awards)
    left_wh = [award["energyWh"] for award in awards]
    sells = [number for number, award in enumerate(awards) if award["side"] == "sell"]
    for number, award in enumerate(awards):
        if award["side"] != "buy":
            continue
        for sell in sells:
            piece_wh = min(left_wh[number], left_wh[sell])
            amount_uc = cost_uc(piece_wh, award["priceUcPerKwh"])
            for place in (number, sell):
                amounts[place] += amount_uc
                left_wh[place] -= piece_wh
            if not left_wh[number]:
                break
        sells = [sell for sell in sells if left_wh[sell]]
    return amounts


def _offer(event: Row) -> list[Trade]:
    """In each slot one trade of the buyer and one of the seller."""
    price, found = event["priceUcPerKwh"], list[Trade]()
    for asset in event["traded"]:
        amount_uc = cost_uc(asset["energyWh"], price)
        for slot in range(asset["startSlot"], asset["endSlot"] + 1):
            for side, party in PARTY.items():
                found.append(
                    Trade(
                        slot, len(found), event[party], side, "offer", event["offer"],
                        asset["energyWh"], price, amount_uc,
                    )
                )  # fmt: skip
    return found


def _escrow(event: Row) -> list[Trade]:
    if event["state"] != DELIVERED or "energyWh" not in event:
        return []
    energy_wh, price = event["energyWh"], event["priceUcPerKwh"]
    return [
        Trade(
            event["slot"], number, event[party], side, "escrow", event["offer"], energy_wh, price,
            cost_uc(energy_wh, price),
        )
        for number, (side, party) in enumerate(PARTY.items())
    ]  # fmt: skip


def _session(event: Row) -> list[Trade]:
    """The shares of a session's round; who got nothing has no trade."""
    return [
        Trade(
            event["slot"], number, share["address"], share["side"], "schedule",
            f"round {event['round']}", share["energyWh"], share["priceUcPerKwh"],
            cost_uc(share["energyWh"], share["priceUcPerKwh"]),
        )
        for number, share in enumerate(event["shares"])
        if share["energyWh"]
    ]  # fmt: skip
