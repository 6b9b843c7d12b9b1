"""
Energy assets (PETra): how much an address may sell (production) or buy (consumption) in a slot.

The DSO gives them for intervals of slots; where intervals overlap they add up. Orders lock them per
slot, and locks of the double auction and of flexibility auctions count together, so nobody can sell
the same watt-hour twice.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import keys
from ledger.contracts.context import Context
from ledger.contracts.grants import LIMIT_MAX_WH, SLOT_MAX
from ledger.contracts.operations import AddEnergyAsset
from ledger.state import State
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


def granted_wh(state: State, address: str, kind: str, slot: int) -> int:
    """What an address holds of a kind in a slot, before locks [Wh]."""
    held: dict[str, Any] = state.get(keys.asset(address)) or {}
    return sum(energy for energy, start, end in held.get(kind, ()) if start <= slot <= end)
