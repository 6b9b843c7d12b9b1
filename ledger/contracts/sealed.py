"""
Sealed bids: committed until the reveal window opens, revealed until the gate closes.

    … commit-bid …  |  reveal window (auctions.revealS)  |  gate closure: clearing
                         … reveal-bid …

A commitment locks a deposit and one of the address' orders for the slot, nothing else: what a bid
needs shows when it is revealed, and then it is admitted as an open one is. A revealed bid stands in
the book at the place of its commitment, so the order of reveals decides nothing. What is not
revealed by the gate loses its deposit to the supervisor, who cannot keep anybody's reveal from a
block; were it the validators', they would gain by leaving reveals out.

Whether bids are sealed is a rule of the genesis for the double auctions and the forward sessions of
all slots (`auctions.sealed`), and of its parameters for an auction that was deployed.

Source: `market.sealed`.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import accounts, exchange, flexibility, keys, orders, scheduling, slots
from ledger.contracts.context import Context
from ledger.contracts.operations import CommitBid, RevealBid
from market.sealed import COMMITMENT_BYTES, SALT_BYTES, SealedBid, commitment
from wire.errors import Refusal
from wire.keys import from_text, to_text

COMMITMENT, DEPOSIT, SEQ = 0, 1, 2
"""Places in a commitment's row."""


def commit_bid(ctx: Context, op: CommitBid) -> Refusal | None:
    """Take a commitment; its deposit is locked."""
    refusal = _check_commit(ctx, op)
    if refusal is not None:
        return refusal
    said = to_text(from_text(op.commitment, COMMITMENT_BYTES))
    key = keys.sealed_bid(op.slot, op.auction, ctx.sender)
    rows: list[list[Any]] = ctx.state.get(key) or []
    if any(row[COMMITMENT] == said for row in rows):
        return Refusal.DUPLICATE
    if slots.position(ctx.state, op.slot, ctx.sender)["bids"] >= orders.MAX_ORDERS:
        return Refusal.RATE_LIMITED
    deposit_uc = ctx.parameters(op.slot).auctions.bid_deposit_uc
    refusal = accounts.lock(ctx.state, ctx.sender, deposit_uc)
    if refusal is not None:
        return refusal
    slots.open_slot(ctx, op.slot)
    slots.add_to_position(ctx.state, op.slot, ctx.sender, bids=1)
    ctx.state.put(key, [*rows, [said, deposit_uc, *ctx.seq]])
    ctx.emit("bid-committed", address=ctx.sender, slot=op.slot, auction=op.auction, commitment=said)
    return None


def reveal_bid(ctx: Context, op: RevealBid) -> Refusal | None:
    """Open one of the sender's commitments: its deposit is free, its order is admitted."""
    refusal = orders.check_slot(ctx, op.slot)
    if refusal is not None:
        return refusal
    if ctx.time_ms < reveal_ms(ctx, op.slot):
        return Refusal.TOO_SOON
    bid = SealedBid(
        address=ctx.sender,
        slot=op.slot,
        auction=op.auction,
        side=op.side,
        energy_wh=op.energy_wh,
        price_uc_per_kwh=op.price_uc_per_kwh,
    )
    said = to_text(commitment(from_text(op.salt, SALT_BYTES), bid))
    key = keys.sealed_bid(op.slot, op.auction, ctx.sender)
    rows: list[list[Any]] = ctx.state.get(key) or []
    found = next((row for row in rows if row[COMMITMENT] == said), None)
    if found is None:
        return Refusal.BAD_PREIMAGE
    left = [row for row in rows if row is not found]
    if left:
        ctx.state.put(key, left)
    else:
        ctx.state.delete(key)
    accounts.move(ctx.state, ctx.sender, found[DEPOSIT], -found[DEPOSIT])
    place = found[SEQ:]
    if op.auction == scheduling.SESSION:
        refusal = scheduling.add(ctx, op.slot, op.side, op.energy_wh, op.price_uc_per_kwh, place)
    elif op.auction:
        refusal = flexibility.add_bid(
            ctx, op.auction, op.side, op.energy_wh, op.price_uc_per_kwh, place
        )
    else:
        refusal = exchange.add_order(
            ctx, op.slot, op.side, op.energy_wh, op.price_uc_per_kwh, place
        )
    if refusal is None:
        ctx.emit(
            "bid-revealed", address=ctx.sender, slot=op.slot, auction=op.auction, side=op.side,
            energyWh=op.energy_wh, priceUcPerKwh=op.price_uc_per_kwh, commitment=said,
        )  # fmt: skip
    return refusal


def take_out(ctx: Context, slot: int, auction: str, address: str) -> int:
    """Take commitments of an address back, their deposits with them; gives how many there were."""
    key = keys.sealed_bid(slot, auction, address)
    rows: list[list[Any]] = ctx.state.get(key) or []
    deposit_uc = sum(row[DEPOSIT] for row in rows)
    accounts.move(ctx.state, address, deposit_uc, -deposit_uc)
    if rows:
        slots.add_to_position(ctx.state, slot, address, bids=-len(rows))
    ctx.state.delete(key)
    return len(rows)


def forfeit(ctx: Context, slot: int) -> None:
    """At gate closure, before clearing: deposits of what was not revealed go to the supervisor."""
    supervisor = ctx.genesis.supervisor.address
    for key, rows in list(ctx.state.scan(keys.sealed_bids(slot))):
        *_, auction, address = key.split("/")
        lost_uc = sum(row[DEPOSIT] for row in rows)
        accounts.move(ctx.state, address, 0, -lost_uc)
        accounts.move(ctx.state, supervisor, lost_uc)
        ctx.state.delete(key)
        ctx.emit(
            "bid-forfeited", address=address, slot=slot, auction="" if auction == "_" else auction,
            bids=len(rows), amountUc=lost_uc,
        )  # fmt: skip


def reveal_ms(ctx: Context, slot: int) -> int:
    """When the reveal window of a slot opens; commitments are taken before."""
    return ctx.gate_ms(slot) - ctx.parameters(slot).auctions.reveal_s * 1000


def _check_commit(ctx: Context, op: CommitBid) -> Refusal | None:
    """May the sender commit to a bid there, now?"""
    refusal = orders.check_slot(ctx, op.slot)
    if refusal is not None:
        return refusal
    # Which side it is stays hidden; the reveal is refused where the address may not take it.
    refusal = orders.check_trader(ctx, "buy")
    if refusal is Refusal.NOT_ALLOWED:
        refusal = orders.check_trader(ctx, "sell")
    if refusal is not None:
        return refusal
    grant = ctx.state.get(keys.grant(ctx.sender))
    assert grant is not None
    if not grant["startSlot"] <= op.slot <= grant["endSlot"]:
        return Refusal.NOT_ALLOWED
    if op.auction not in ("", scheduling.SESSION):
        auction = flexibility.find(ctx, op.auction)
        if auction is None or auction["slot"] != op.slot:
            return Refusal.NOT_FOUND
        is_sealed = auction["sealed"]
    else:
        is_sealed = ctx.parameters(op.slot).auctions.sealed
    if not is_sealed:
        return Refusal.NOT_ALLOWED
    return Refusal.SLOT_CLOSED if ctx.time_ms >= reveal_ms(ctx, op.slot) else None
