"""
Admission of orders: the one list of checks for the double auction and for flexibility auctions.

An order that is admitted locks what it may come to need: energy of the address for the slot, and a
buyer's worst-case cost. It is never refused later for lack of either.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import accounts, assets, bans, keys, slots
from ledger.contracts.context import SLOTS_AHEAD_MAX, Context
from ledger.genesis import MAX_PRICE_UC_PER_KWH
from wire.errors import Refusal
from wire.units import cost_uc

MAX_ORDERS = 8
"""Orders of one address for one slot, in all auctions together."""


def check_slot(ctx: Context, slot: int) -> Refusal | None:
    """May orders for this slot be given now?"""
    if slot < 0 or slots.is_closed(ctx, slot):
        return Refusal.SLOT_CLOSED
    if slot > ctx.slot + SLOTS_AHEAD_MAX:
        return Refusal.SLOT_TOO_FAR
    return None


def check_price(price_uc_per_kwh: int) -> Refusal | None:
    """Is the price one that an order may name?"""
    if 0 <= price_uc_per_kwh <= MAX_PRICE_UC_PER_KWH:
        return None
    return Refusal.PRICE_OUT_OF_RANGE


def admit(
    ctx: Context, side: str, slot: int, energy_wh: int, price: int, committed: bool = False
) -> int | Refusal:
    """
    Check an order of the sender and lock what it needs.

    Args:
        side: "buy" or "sell"
        slot: delivery
        energy_wh: quantity [Wh]
        price: limit [µ¤/kWh]
        committed: it was counted when it was committed (`ledger.contracts.sealed`)

    Returns:
        The money locked behind it [µ¤], or why it is refused.
    """
    refusal = _check(ctx, side, slot, energy_wh, price, committed)
    if refusal is not None:
        return refusal
    lock_uc = cost_uc(energy_wh, price) if side == "buy" else 0
    refusal = accounts.lock(ctx.state, ctx.sender, lock_uc)
    if refusal is not None:
        return refusal
    slots.open_slot(ctx, slot)
    locked = "buyLockedWh" if side == "buy" else "sellLockedWh"
    slots.add_to_position(
        ctx.state, slot, ctx.sender, **{locked: energy_wh, "bids": 0 if committed else 1}
    )
    return lock_uc


def release(ctx: Context, slot: int, address: str, row: list[Any]) -> None:
    """
    Free what an admitted order locked; the row itself is the caller's to delete.

    Args:
        row: [side, energy [Wh], price [µ¤/kWh], lock [µ¤], …], as every contract keeps an order
    """
    side, energy_wh, _, lock_uc, *_ = row
    accounts.move(ctx.state, address, lock_uc, -lock_uc)
    locked = "buyLockedWh" if side == "buy" else "sellLockedWh"
    slots.add_to_position(ctx.state, slot, address, **{locked: -energy_wh, "bids": -1})


def check_trader(ctx: Context, side: str) -> Refusal | None:
    """May the sender buy (or sell) at all?"""
    grant = ctx.state.get(keys.grant(ctx.sender))
    if grant is None:
        return Refusal.UNKNOWN_SENDER
    if ctx.state.get(keys.participation(ctx.sender)) == "RE":
        return Refusal.REWARDS_ONLY
    if bans.is_banned(ctx, ctx.sender):
        return Refusal.BANNED
    return None if grant["canBuy" if side == "buy" else "canSell"] else Refusal.NOT_ALLOWED


def _check(
    ctx: Context, side: str, slot: int, energy_wh: int, price: int, committed: bool
) -> Refusal | None:
    refusal = check_trader(ctx, side) or check_slot(ctx, slot)
    if refusal is not None:
        return refusal
    grant = ctx.state.get(keys.grant(ctx.sender))
    assert grant is not None
    if not grant["startSlot"] <= slot <= grant["endSlot"]:
        return Refusal.NOT_ALLOWED
    held = slots.position(ctx.state, slot, ctx.sender)
    locked_wh = assets.locked_wh(ctx.state, ctx.sender, side, slot)
    limit_wh = grant["maxBuyWh" if side == "buy" else "maxSellWh"]
    if energy_wh < 1 or locked_wh + energy_wh > limit_wh:
        return Refusal.QUANTITY_OUT_OF_RANGE
    refusal = check_price(price)
    if refusal is not None:
        return refusal
    if not committed and held["bids"] >= MAX_ORDERS:
        return Refusal.RATE_LIMITED
    kind = assets.KIND_OF_SIDE[side]
    if locked_wh + energy_wh > assets.granted_wh(ctx.state, ctx.sender, kind, slot):
        return Refusal.INSUFFICIENT_ASSET
    return None
