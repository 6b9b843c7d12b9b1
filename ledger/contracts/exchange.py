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
from ledger.contracts.clearing_facts import against_the_optimum, awards_of, rejected_of
from ledger.contracts.context import Context
from ledger.contracts.operations import BidOffer
from market.clearing_check import check_clearing
from market.double_auction import Clearing, clear, pieces
from market.orders import Order
from wire.errors import Refusal
from wire.units import cost_uc

SIDE, ENERGY, PRICE, LOCK, SEQ = 0, 1, 2, 3, 4
"""Places in an order's row."""


def bid_offer(ctx: Context, op: BidOffer) -> Refusal | None:
    """Take an open order for a slot."""
    if ctx.parameters(op.slot).auctions.sealed:
        return Refusal.SEALED_BIDS_ONLY
    return add_order(ctx, op.slot, op.side, op.energy_wh, op.price_uc_per_kwh)


def add_order(
    ctx: Context,
    slot: int,
    side: str,
    energy_wh: int,
    price_uc_per_kwh: int,
    committed: list[int] | None = None,
) -> Refusal | None:
    """
    Admit an order of the sender and put it in the slot's book.

    Args:
        slot, side, energy_wh, price_uc_per_kwh: the order [Wh, µ¤/kWh]
        committed: of a sealed bid, the place at which it was committed
    """
    admitted = orders.admit(ctx, side, slot, energy_wh, price_uc_per_kwh, committed is not None)
    if isinstance(admitted, Refusal):
        return admitted
    held = slots.position(ctx.state, slot, ctx.sender)
    order = [side, energy_wh, price_uc_per_kwh, admitted, *(committed or ctx.seq)]
    ctx.state.put(keys.position(slot, ctx.sender), {**held, "orders": [*held["orders"], order]})
    return None


def take_out(ctx: Context, slot: int, address: str) -> int:
    """Take the orders of an address out of a slot's book; gives how many there were."""
    held = slots.position(ctx.state, slot, address)
    for order in held["orders"]:
        orders.release(ctx, slot, address, order)
    if held["orders"]:
        left = slots.position(ctx.state, slot, address)
        ctx.state.put(keys.position(slot, address), {**left, "orders": []})
    return len(held["orders"])


def close(ctx: Context, slot: int) -> None:
    """Clear a slot at its gate closure."""
    held = list(ctx.state.scan(keys.positions(slot)))
    book = _Book(held)
    bids, offers = book.side("buy"), book.side("sell")
    clearing = clear(bids, offers)
    assert check_clearing(bids, offers, clearing) is None
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
        _announce(ctx, slot, clearing, bids, offers)


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
    for piece in pieces(clearing):
        amount_uc = cost_uc(piece.energy_wh, piece.price_uc_per_kwh)
        bought[piece.buyer] += piece.energy_wh
        sold[piece.seller] += piece.energy_wh
        paid_uc[piece.buyer] += amount_uc
        earned_uc[piece.seller] += amount_uc
    return bought, sold, paid_uc, earned_uc


def _announce(
    ctx: Context, slot: int, clearing: Clearing, bids: list[Order], offers: list[Order]
) -> None:
    ctx.emit(
        "cleared",
        slot=slot,
        priceUcPerKwh=clearing.price_uc_per_kwh,
        tradedWh=clearing.traded_wh,
        bids=len(bids),
        offers=len(offers),
        awards=[
            *awards_of("buy", clearing.bid_awards),
            *awards_of("sell", clearing.offer_awards),
        ],
        rejected=[
            *rejected_of("buy", clearing.rejected_bids),
            *rejected_of("sell", clearing.rejected_offers),
        ],
        **against_the_optimum(bids, offers, clearing.bid_awards, clearing.offer_awards),
    )
