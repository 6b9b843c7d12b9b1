"""
Flexibility auctions: the aggregator buys (reverse) or sells (forward) energy of one slot.

The grid supervisor is the other side of every award. The rule is `market.aggregator_auction`; the
money works as in `exchange`: the buyer's worst case is locked, moves to the slot's escrow at the
deadline (the slot's gate closure), and to the seller at settlement.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from ledger.contracts import accounts, keys, orders, slots
from ledger.contracts.context import Context
from ledger.contracts.grants import LIMIT_MAX_WH
from ledger.contracts.operations import AuctionBid, DeployAuction
from market.aggregator_auction import forward, reverse
from market.orders import Order
from wire.errors import Refusal
from wire.units import cost_uc

MAX_AUCTIONS = 16
"""Auctions of one slot."""
_NAME = re.compile(r"[a-z0-9-]{1,64}")
ENERGY, PRICE, LOCK, SEQ = 0, 1, 2, 3
"""Places in a bid's row."""


def deploy_auction(ctx: Context, op: DeployAuction) -> Refusal | None:
    """Open an auction; the supervisor's to do. Its worst case is locked when it buys."""
    if not ctx.is_supervisor:
        return Refusal.NOT_ALLOWED
    if not _NAME.fullmatch(op.auction):
        return Refusal.MALFORMED
    if ctx.state.get(keys.auction(op.auction)) is not None:
        return Refusal.DUPLICATE
    refusal = orders.check_slot(ctx, op.slot)
    if refusal is not None:
        return refusal
    if not 1 <= op.energy_wh <= LIMIT_MAX_WH:
        return Refusal.QUANTITY_OUT_OF_RANGE
    refusal = orders.check_price(op.price_uc_per_kwh)
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
        },
    )
    ctx.emit(
        "auction-opened",
        auction=op.auction,
        template=op.template,
        slot=op.slot,
        energyWh=op.energy_wh,
        priceUcPerKwh=op.price_uc_per_kwh,
        deadlineMs=ctx.gate_ms(op.slot),
    )
    return None


def auction_bid(ctx: Context, op: AuctionBid) -> Refusal | None:
    """Take a home's order in an auction: an offer in a reverse, a bid in a forward one."""
    if not _NAME.fullmatch(op.auction):
        return Refusal.MALFORMED
    auction = ctx.state.get(keys.auction(op.auction))
    if auction is None:
        return Refusal.NOT_FOUND
    side = "sell" if auction["template"] == "reverse" else "buy"
    admitted = orders.admit(ctx, side, auction["slot"], op.energy_wh, op.price_uc_per_kwh)
    if isinstance(admitted, Refusal):
        return admitted
    key = keys.auction_bids(op.auction) + ctx.sender
    before = ctx.state.get(key) or []
    bid = [op.energy_wh, op.price_uc_per_kwh, admitted, *ctx.seq]
    ctx.state.put(key, [*before, bid])
    return None


def close(ctx: Context, slot: int) -> None:
    """Close the auctions of a slot at its gate closure, in the order they were opened."""
    row = ctx.state.get(keys.slot(slot))
    assert row is not None
    for name in row["auctions"]:
        _close_one(ctx, name)


def _close_one(ctx: Context, name: str) -> None:
    auction = ctx.state.get(keys.auction(name))
    assert auction is not None
    bids = list(ctx.state.scan(keys.auction_bids(name)))
    rule = reverse if auction["template"] == "reverse" else forward
    result = rule(auction["energyWh"], auction["priceUcPerKwh"], _orders(bids), auction["pricing"])
    _unlock(ctx, auction, bids)
    paid_uc: dict[str, int] = defaultdict(int)
    home_sells = auction["template"] == "reverse"
    slot, supervisor = auction["slot"], ctx.genesis.supervisor.address
    escrow_uc = 0
    for award in result.awards:
        amount_uc = cost_uc(award.energy_wh, award.price_uc_per_kwh)
        buyer, seller = (supervisor, award.address) if home_sells else (award.address, supervisor)
        paid_uc[buyer] += amount_uc
        escrow_uc += amount_uc
        slots.add_to_position(ctx.state, slot, buyer, boughtWh=award.energy_wh)
        slots.add_to_position(
            ctx.state, slot, seller, soldWh=award.energy_wh, receivableUc=amount_uc
        )
    for address, total_uc in sorted(paid_uc.items()):
        accounts.move(ctx.state, address, -total_uc)
    row = ctx.state.get(keys.slot(slot))
    assert row is not None
    ctx.state.put(keys.slot(slot), {**row, "escrowUc": row["escrowUc"] + escrow_uc})
    ctx.state.put(keys.auction(name), {**auction, "lockUc": 0, "open": False})
    accounts.count(ctx.state, tradedWh=result.awarded_wh)
    ctx.emit(
        "auction-cleared",
        auction=name,
        slot=slot,
        awards=[
            {
                "address": award.address,
                "energyWh": award.energy_wh,
                "priceUcPerKwh": award.price_uc_per_kwh,
            }
            for award in result.awards
        ],
        boughtWh=result.awarded_wh,
    )


def _unlock(ctx: Context, auction: dict[str, Any], bids: list[tuple[str, list[list[int]]]]) -> None:
    """Free all money locked behind the auction and forget its bids; payments come after."""
    accounts.move(ctx.state, ctx.genesis.supervisor.address, auction["lockUc"], -auction["lockUc"])
    for key, rows in bids:
        lock_uc = sum(row[LOCK] for row in rows)
        accounts.move(ctx.state, slots.address_of(key), lock_uc, -lock_uc)
        ctx.state.delete(key)


def _orders(bids: list[tuple[str, list[list[int]]]]) -> list[Order]:
    return [
        Order(slots.address_of(key), row[ENERGY], row[PRICE], tuple(row[SEQ:]))
        for key, rows in bids
        for row in rows
    ]
