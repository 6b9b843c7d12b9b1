"""
Energy assets (PETra): how much an address may sell (production) or buy (consumption) in a slot.

The DSO gives them for intervals of slots; where intervals overlap they add up. Orders lock them per
slot, and locks of the double auction, of flexibility auctions and of the order book count together,
so nobody can sell the same watt-hour twice. What is not locked can be given back to the DSO.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import keys, slots
from ledger.contracts.context import SLOTS_AHEAD_MAX, Context
from ledger.contracts.grants import LIMIT_MAX_WH, SLOT_MAX
from ledger.contracts.operations import AddEnergyAsset, DepositEnergyAsset
from ledger.state import State
from market.assets import EnergyAsset, Kind, subtract
from wire.errors import Refusal

MAX_INTERVALS = 64
"""Intervals of one kind that an address may hold at a time."""
KIND_OF_SIDE = {"sell": "production", "buy": "consumption"}


def add_energy_asset(ctx: Context, op: AddEnergyAsset) -> Refusal | None:
    """Give an address energy to trade; the supervisor's to say."""
    if not ctx.is_supervisor:
        return Refusal.NOT_ALLOWED
    if ctx.state.get(keys.grant(op.address)) is None:
        return Refusal.NOT_FOUND
    if not 1 <= op.energy_wh <= LIMIT_MAX_WH:
        return Refusal.QUANTITY_OUT_OF_RANGE
    if not 0 <= op.start_slot <= op.end_slot <= SLOT_MAX:
        return Refusal.MALFORMED
    if op.end_slot < ctx.slot:
        return Refusal.EXPIRED
    held: dict[str, Any] = ctx.state.get(keys.asset(op.address)) or {}
    live = [row for row in held.get(op.kind, ()) if row[2] >= ctx.slot]
    if len(live) >= MAX_INTERVALS:
        return Refusal.RATE_LIMITED
    live.append([op.energy_wh, op.start_slot, op.end_slot])
    ctx.state.put(keys.asset(op.address), {**held, op.kind: live})
    ctx.emit(
        "asset-added",
        address=op.address,
        kind=op.kind,
        energyWh=op.energy_wh,
        startSlot=op.start_slot,
        endSlot=op.end_slot,
    )
    return None


def deposit_energy_asset(ctx: Context, op: DepositEnergyAsset) -> Refusal | None:
    """Take energy off the sender, for slots that are still open; the DSO credits its owner."""
    if not 1 <= op.energy_wh <= LIMIT_MAX_WH:
        return Refusal.QUANTITY_OUT_OF_RANGE
    if not 0 <= op.start_slot <= op.end_slot <= SLOT_MAX:
        return Refusal.MALFORMED
    if slots.is_closed(ctx, op.start_slot):
        return Refusal.SLOT_CLOSED
    kind = Kind(op.kind)
    held: dict[str, Any] = ctx.state.get(keys.asset(ctx.sender)) or {}
    live = [EnergyAsset(kind, *row) for row in held.get(op.kind, ()) if row[2] >= ctx.slot]
    try:
        rest = subtract(live, [EnergyAsset(kind, op.energy_wh, op.start_slot, op.end_slot)])
    except ValueError:
        return Refusal.INSUFFICIENT_ASSET
    if len(rest) > MAX_INTERVALS:
        return Refusal.RATE_LIMITED
    rows = [[one.energy_wh, one.start_slot, one.end_slot] for one in rest]
    ctx.state.put(keys.asset(ctx.sender), {**held, op.kind: rows})
    side = "sell" if kind is Kind.PRODUCTION else "buy"
    # Nothing is locked beyond the slots for which orders are taken.
    for slot in range(op.start_slot, min(op.end_slot, ctx.slot + SLOTS_AHEAD_MAX) + 1):
        left_wh = granted_wh(ctx.state, ctx.sender, op.kind, slot)
        if locked_wh(ctx.state, ctx.sender, side, slot) > left_wh:
            return Refusal.ASSET_LOCKED
    ctx.emit(
        "asset-deposited",
        address=ctx.sender,
        kind=op.kind,
        energyWh=op.energy_wh,
        startSlot=op.start_slot,
        endSlot=op.end_slot,
    )
    return None


def locked_wh(state: State, address: str, side: str, slot: int) -> int:
    """What stands behind an address' orders, offers and trades of a side in a slot [Wh]."""
    locked = "buyLockedWh" if side == "buy" else "sellLockedWh"
    standing: int = slots.position(state, slot, address)[locked]
    return standing + offered_wh(state, address, KIND_OF_SIDE[side], slot)


def offered_wh(state: State, address: str, kind: str, slot: int) -> int:
    """What stands in an address' offers of the order book in a slot [Wh]."""
    return sum(
        energy
        for _, offered, energy, start, end in state.get(keys.offers_of(address)) or ()
        if offered == kind and start <= slot <= end
    )


def granted_wh(state: State, address: str, kind: str, slot: int) -> int:
    """What an address holds of a kind in a slot, before locks [Wh]."""
    held: dict[str, Any] = state.get(keys.asset(address)) or {}
    return sum(energy for energy, start, end in held.get(kind, ()) if start <= slot <= end)
