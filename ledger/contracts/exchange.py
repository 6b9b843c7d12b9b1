"""
The double auction of a slot between homes: orders until gate closure, then one uniform price.

The rule itself is `market.double_auction`; here orders become rows of the state, and awards become
positions and money. At clearing every buyer's lock ends: what it bought costs, at the clearing
price, moves to the slot's escrow, the rest is free again. Sellers get it at settlement.

Rounding: buyers and sellers are paired in merit order and each pair's cost is rounded down once, so
what the buyers pay is what the sellers get.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ledger.contracts import accounts, keys, orders, slots
from ledger.contracts.context import Context
from ledger.contracts.operations import BidOffer
from market.double_auction import Clearing, clear
from market.orders import Award, Order
from wire.errors import Refusal
from wire.units import cost_uc

SIDE, ENERGY, PRICE, LOCK, SEQ = 0, 1, 2, 3, 4
"""Places in an order's row."""


def bid_offer(ctx: Context, op: BidOffer) -> Refusal | None:
    """Take an order for a slot."""
    admitted = orders.admit(ctx, op.side, op.slot, op.energy_wh, op.price_uc_per_kwh)
    if isinstance(admitted, Refusal):
        return admitted
    held = slots.position(ctx.state, op.slot, ctx.sender)
    order = [op.side, op.energy_wh, op.price_uc_per_kwh, admitted, *ctx.seq]
    ctx.state.put(keys.position(op.slot, ctx.sender), {**held, "orders": [*held["orders"], order]})
    return None


def close(ctx: Context, slot: int) -> None:
    """Clear a slot at its gate closure."""
    held = list(ctx.state.scan(keys.positions(slot)))
    book = _Book(held)
    clearing = clear(book.side("buy"), book.side("sell"))
    bought, sold, paid_uc, earned_uc = _tally(clearing)
    assert sum(bought.values()) == sum(sold.values()) == clearing.traded_wh
    for key, before in held:
        if not before["orders"]:
            continue
        address = slots.address_of(key)
        lock_uc = sum(order[LOCK] for order in before["orders"])
        accounts.move(ctx.state, address, lock_uc - paid_uc[address], -lock_uc)
        after = {
            **before,
            "orders": [],
            "boughtWh": before["boughtWh"] + bought[address],
            "soldWh": before["soldWh"] + sold[address],
            "receivableUc": before["receivableUc"] + earned_uc[address],
        }
        ctx.state.put(key, after)
    row = ctx.state.get(keys.slot(slot))
    assert row is not None
    ctx.state.put(
        keys.slot(slot),
        {
            **row,
            "cleared": True,
            "priceUcPerKwh": clearing.price_uc_per_kwh,
            "tradedWh": clearing.traded_wh,
            "escrowUc": row["escrowUc"] + sum(paid_uc.values()),
        },
    )
    accounts.count(ctx.state, tradedWh=clearing.traded_wh)
    if book.size:
        _announce(ctx, slot, clearing, book)


class _Book:
    """The orders of a slot, out of its positions."""

    def __init__(self, held: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self._rows = [
            (slots.address_of(key), row) for key, position in held for row in position["orders"]
        ]
        self.size = len(self._rows)

    def side(self, side: str) -> list[Order]:
        """The orders of one side."""
        return [
            Order(address, row[ENERGY], row[PRICE], tuple(row[SEQ:]))
            for address, row in self._rows
            if row[SIDE] == side
        ]


def _tally(
    clearing: Clearing,
) -> tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, int]]:
    """Energy bought and sold, money paid and earned, by address."""
    bought: dict[str, int] = defaultdict(int)
    sold: dict[str, int] = defaultdict(int)
    paid_uc: dict[str, int] = defaultdict(int)
    earned_uc: dict[str, int] = defaultdict(int)
    for buyer, seller, energy_wh in pair(clearing.bid_awards, clearing.offer_awards):
        amount_uc = cost_uc(energy_wh, clearing.price_uc_per_kwh)
        bought[buyer] += energy_wh
        sold[seller] += energy_wh
        paid_uc[buyer] += amount_uc
        earned_uc[seller] += amount_uc
    return bought, sold, paid_uc, earned_uc


def pair(buys: Sequence[Award], sells: Sequence[Award]) -> list[tuple[str, str, int]]:
    """Buyer, seller and energy of each bilateral piece, both sides in their given order."""
    pieces: list[tuple[str, str, int]] = []
    selling = iter(sells)
    seller, left_wh = "", 0
    for award in buys:
        wanted_wh = award.energy_wh
        while wanted_wh:
            if not left_wh:
                offer = next(selling)
                seller, left_wh = offer.address, offer.energy_wh
            piece_wh = min(wanted_wh, left_wh)
            pieces.append((award.address, seller, piece_wh))
            wanted_wh -= piece_wh
            left_wh -= piece_wh
    return pieces


def _announce(ctx: Context, slot: int, clearing: Clearing, book: _Book) -> None:
    ctx.emit(
        "cleared",
        slot=slot,
        priceUcPerKwh=clearing.price_uc_per_kwh,
        tradedWh=clearing.traded_wh,
        bids=len(book.side("buy")),
        offers=len(book.side("sell")),
        welfareUc=clearing.welfare_uc,
        awards=[
            {
                "address": award.address,
                "side": side,
                "energyWh": award.energy_wh,
                "priceUcPerKwh": award.price_uc_per_kwh,
            }
            for side, awards in (("buy", clearing.bid_awards), ("sell", clearing.offer_awards))
            for award in awards
        ],
    )
