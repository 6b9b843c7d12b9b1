"""
Auctions that are deployed for one slot, from a template and parameters that are on the ledger
before the first bid; who bids agrees to them.

- **reverse**, **forward**: the aggregator buys or sells (`market.aggregator_auction`). The grid
  supervisor is the other side of every award.
- **double**: homes trade with each other, at one price or pay-as-bid (`market.double_auction`).

Bids are open, or sealed (`ledger.contracts.sealed`). The money works as in `exchange`: the buyer's
worst case is locked, moves to the slot's escrow at the deadline (the slot's gate closure), and to
the seller at settlement.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, NamedTuple

from ledger.contracts import accounts, keys, orders, slots
from ledger.contracts.clearing_facts import against_the_optimum, awards_of, rejected_of
from ledger.contracts.context import Context
from ledger.contracts.grants import LIMIT_MAX_WH
from ledger.contracts.operations import AuctionBid, DeployAuction
from market.aggregator_auction import forward, reverse
from market.clearing_check import check_clearing, check_forward, check_reverse
from market.double_auction import Piece, clear, pieces
from market.efficiency import NO_SEQ, as_order
from market.orders import Award, Order
from wire.errors import Refusal
from wire.units import cost_uc

HOME_SIDE = {"reverse": "sell", "forward": "buy"}
"""The side that homes take where the supervisor is the other."""
MAX_AUCTIONS = 16
"""Auctions of one slot."""
_NAME = re.compile(r"[a-z0-9-]{1,64}")
SIDE, ENERGY, PRICE, LOCK, SEQ = 0, 1, 2, 3, 4
"""Places in a bid's row."""


def deploy_auction(ctx: Context, op: DeployAuction) -> Refusal | None:
    """Open an auction; the supervisor's to do. Its worst case is locked when it buys."""
    refusal = _check_deploy(ctx, op)
    if refusal is not None:
        return refusal
    row = slots.open_slot(ctx, op.slot)
    if len(row["auctions"]) >= MAX_AUCTIONS:
        return Refusal.RATE_LIMITED
    buys = op.template == "reverse"
    lock_uc: int = cost_uc(op.energy_wh, op.price_uc_per_kwh) if buys else 0
    refusal = accounts.lock(ctx.state, ctx.sender, lock_uc)
    if refusal is not None:
        return refusal
    ctx.state.put(keys.slot(op.slot), {**row, "auctions": [*row["auctions"], op.auction]})
    ctx.state.put(
        keys.auction(op.auction),
        {
            "template": op.template,
            "slot": op.slot,
            "energyWh": op.energy_wh,
            "priceUcPerKwh": op.price_uc_per_kwh,
            "pricing": op.pricing,
            "lockUc": lock_uc,
            "open": True,
            "sealed": op.sealed,
        },
    )
    ctx.emit(
        "auction-opened",
        auction=op.auction,
        template=op.template,
        slot=op.slot,
        energyWh=op.energy_wh,
        priceUcPerKwh=op.price_uc_per_kwh,
        pricing=op.pricing,
        sealed=op.sealed,
        deadlineMs=ctx.gate_ms(op.slot),
    )
    return None


def _check_deploy(ctx: Context, op: DeployAuction) -> Refusal | None:
    if not ctx.is_supervisor:
        return Refusal.NOT_ALLOWED
    if not _NAME.fullmatch(op.auction):
        return Refusal.MALFORMED
    if ctx.state.get(keys.auction(op.auction)) is not None:
        return Refusal.DUPLICATE
    refusal = orders.check_slot(ctx, op.slot)
    if refusal is not None:
        return refusal
    reveal_ms = ctx.gate_ms(op.slot) - ctx.parameters(op.slot).auctions.reveal_s * 1000
    if op.sealed and ctx.time_ms >= reveal_ms:
        return Refusal.SLOT_CLOSED
    if op.template == "double":
        return None if op.energy_wh == op.price_uc_per_kwh == 0 else Refusal.MALFORMED
    if not 1 <= op.energy_wh <= LIMIT_MAX_WH:
        return Refusal.QUANTITY_OUT_OF_RANGE
    return orders.check_price(op.price_uc_per_kwh)


def auction_bid(ctx: Context, op: AuctionBid) -> Refusal | None:
    """Take a home's open order: an offer in a reverse, a bid in a forward auction."""
    auction = find(ctx, op.auction)
    if auction is None:
        return Refusal.NOT_FOUND if _NAME.fullmatch(op.auction) else Refusal.MALFORMED
    if auction["sealed"]:
        return Refusal.SEALED_BIDS_ONLY
    side = op.side or HOME_SIDE.get(auction["template"])
    if side is None:
        return Refusal.MALFORMED
    return add_bid(ctx, op.auction, side, op.energy_wh, op.price_uc_per_kwh)


def find(ctx: Context, name: str) -> dict[str, Any] | None:
    """An auction's row; None when there is none of this name."""
    if not _NAME.fullmatch(name):
        return None
    found: dict[str, Any] | None = ctx.state.get(keys.auction(name))
    return found


def add_bid(
    ctx: Context,
    name: str,
    side: str,
    energy_wh: int,
    price_uc_per_kwh: int,
    committed: list[int] | None = None,
) -> Refusal | None:
    """
    Admit an order of the sender and put it in an auction's book.

    Args:
        name: of the auction
        side, energy_wh, price_uc_per_kwh: the order [Wh, µ¤/kWh]
        committed: of a sealed bid, the place at which it was committed
    """
    auction = find(ctx, name)
    if auction is None:
        return Refusal.NOT_FOUND
    if side != HOME_SIDE.get(auction["template"], side):
        return Refusal.NOT_ALLOWED
    admitted = orders.admit(
        ctx, side, auction["slot"], energy_wh, price_uc_per_kwh, committed is not None
    )
    if isinstance(admitted, Refusal):
        return admitted
    key = keys.auction_bids(name) + ctx.sender
    before = ctx.state.get(key) or []
    bid = [side, energy_wh, price_uc_per_kwh, admitted, *(committed or ctx.seq)]
    ctx.state.put(key, [*before, bid])
    return None


def take_out(ctx: Context, name: str, address: str) -> int:
    """Take the orders of an address out of an open auction; gives how many there were."""
    auction = ctx.state.get(keys.auction(name))
    assert auction is not None, f"the slot of {name} lists it"
    key = keys.auction_bids(name) + address
    rows = ctx.state.get(key) or []
    for row in rows:
        orders.release(ctx, auction["slot"], address, row)
    ctx.state.delete(key)
    return len(rows)


def close(ctx: Context, slot: int) -> None:
    """Close the auctions of a slot at its gate closure, in the order they were opened."""
    row = ctx.state.get(keys.slot(slot))
    assert row is not None
    for name in row["auctions"]:
        _close_one(ctx, name)


def _close_one(ctx: Context, name: str) -> None:
    auction = ctx.state.get(keys.auction(name))
    assert auction is not None
    rows = list(ctx.state.scan(keys.auction_bids(name)))
    bids, offers = _orders(rows, "buy"), _orders(rows, "sell")
    result = _clear(ctx.genesis.supervisor.address, auction, bids, offers)
    _unlock(ctx, auction, rows)
    paid_uc: dict[str, int] = defaultdict(int)
    slot = auction["slot"]
    escrow_uc = 0
    for piece in result.pieces:
        amount_uc = cost_uc(piece.energy_wh, piece.price_uc_per_kwh)
        paid_uc[piece.buyer] += amount_uc
        escrow_uc += amount_uc
        slots.add_to_position(ctx.state, slot, piece.buyer, boughtWh=piece.energy_wh)
        slots.add_to_position(
            ctx.state, slot, piece.seller, soldWh=piece.energy_wh, receivableUc=amount_uc
        )
    for address, total_uc in sorted(paid_uc.items()):
        accounts.move(ctx.state, address, -total_uc)
    row = ctx.state.get(keys.slot(slot))
    assert row is not None
    ctx.state.put(keys.slot(slot), {**row, "escrowUc": row["escrowUc"] + escrow_uc})
    ctx.state.put(keys.auction(name), {**auction, "lockUc": 0, "open": False})
    traded_wh = sum(piece.energy_wh for piece in result.pieces)
    accounts.count(ctx.state, tradedWh=traded_wh)
    ctx.emit("auction-cleared", auction=name, slot=slot, boughtWh=traded_wh, **result.facts)


class _Result(NamedTuple):
    """What came of an auction."""

    pieces: list[Piece]
    facts: dict[str, Any]
    """Of its event."""


def _clear(
    supervisor: str, auction: dict[str, Any], bids: list[Order], offers: list[Order]
) -> _Result:
    """Clear by the auction's template; the bids of the side that it does not take are none."""
    quantity_wh, limit, pricing = auction["energyWh"], auction["priceUcPerKwh"], auction["pricing"]
    match auction["template"]:
        case "double":
            return _clear_double(bids, offers, pricing)
        case "reverse":
            result = reverse(quantity_wh, limit, offers, pricing)
            assert check_reverse(quantity_wh, limit, offers, pricing, result) is None
            bids, home = [as_order(supervisor, quantity_wh, limit)], "sell"
        case _:
            result = forward(quantity_wh, limit, bids, pricing)
            assert check_forward(quantity_wh, limit, bids, pricing, result) is None
            offers, home = [as_order(supervisor, quantity_wh, limit)], "buy"
    mirror = [Award(supervisor, a.energy_wh, a.price_uc_per_kwh, NO_SEQ) for a in result.awards]
    bought, sold = (mirror, result.awards) if home == "sell" else (result.awards, mirror)
    return _Result(
        pieces=[
            Piece(buy.address, sell.address, buy.energy_wh, buy.price_uc_per_kwh)
            for buy, sell in zip(bought, sold, strict=True)
        ],
        facts={
            "awards": awards_of(home, result.awards),
            "rejected": rejected_of(home, result.rejected),
            **against_the_optimum(bids, offers, bought, sold),
        },
    )


def _clear_double(bids: list[Order], offers: list[Order], pricing: str) -> _Result:
    clearing = clear(bids, offers, pricing)
    assert check_clearing(bids, offers, clearing) is None
    return _Result(
        pieces=pieces(clearing),
        facts={
            "awards": [
                *awards_of("buy", clearing.bid_awards),
                *awards_of("sell", clearing.offer_awards),
            ],
            "rejected": [
                *rejected_of("buy", clearing.rejected_bids),
                *rejected_of("sell", clearing.rejected_offers),
            ],
            **against_the_optimum(bids, offers, clearing.bid_awards, clearing.offer_awards),
        },
    )


def _unlock(ctx: Context, auction: dict[str, Any], bids: list[tuple[str, list[list[Any]]]]) -> None:
    """Free all money locked behind the auction and forget its bids; payments come after."""
    accounts.move(ctx.state, ctx.genesis.supervisor.address, auction["lockUc"], -auction["lockUc"])
    for key, rows in bids:
        lock_uc = sum(row[LOCK] for row in rows)
        accounts.move(ctx.state, slots.address_of(key), lock_uc, -lock_uc)
        ctx.state.delete(key)


def _orders(bids: list[tuple[str, list[list[Any]]]], side: str) -> list[Order]:
    return [
        Order(slots.address_of(key), row[ENERGY], row[PRICE], tuple(row[SEQ:]))
        for key, rows in bids
        for row in rows
        if row[SIDE] == side
    ]
