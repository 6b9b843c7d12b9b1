"""
The market's calendar: which slots have anything to clear, settle or forget.

A slot gets a row, and entries in the index of due work, when the first order, auction or receipt
for it comes. Slots without any cost nothing, and a chain that slept over several slots finds all
that is due by reading the index from its beginning.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import keys
from ledger.contracts.context import TRUE_UP_SLOTS, Context
from ledger.genesis import Genesis
from ledger.state import State

NEW_SLOT: dict[str, Any] = {
    "auctions": [], "cleared": False, "settled": False, "priceUcPerKwh": 0, "tradedWh": 0,
    "escrowUc": 0,
}  # fmt: skip
NEW_POSITION: dict[str, Any] = {
    "bids": 0, "buyLockedWh": 0, "sellLockedWh": 0, "boughtWh": 0, "soldWh": 0, "receivableUc": 0,
    "orders": [],
}  # fmt: skip


def is_closed(ctx: Context, slot: int) -> bool:
    """True when the gate of a slot has closed: orders are no longer taken."""
    return ctx.gate_ms(slot) <= ctx.time_ms


def is_settled(ctx: Context, slot: int) -> bool:
    """True when the time of a slot's settlement has come (begin-block work precedes all else)."""
    return ctx.genesis.settle_ms(slot) <= ctx.time_ms


def open_slot(ctx: Context, slot: int) -> dict[str, Any]:
    """The row of a slot; made, with its due work, when it is the first to be heard of it."""
    found: dict[str, Any] | None = ctx.state.get(keys.slot(slot))
    if found is not None:
        return found
    row = {**NEW_SLOT, "cleared": is_closed(ctx, slot), "settled": is_settled(ctx, slot)}
    ctx.state.put(keys.slot(slot), row)
    if not row["cleared"]:
        ctx.state.put(keys.due(ctx.gate_ms(slot), keys.GATE, slot), True)
    if not row["settled"]:
        ctx.state.put(keys.due(ctx.genesis.settle_ms(slot), keys.SETTLE, slot), True)
    ctx.state.put(keys.drop(drop_ms(ctx.genesis, slot), keys.slot(slot)), True)
    return row


def drop_ms(genesis: Genesis, slot: int) -> int:
    """When nothing can happen to a slot any more: late receipts are refused, settlement is past."""
    return genesis.grid.start_ms(slot + TRUE_UP_SLOTS + genesis.grace_slots + 2)


def drop_slot(ctx: Context, slot: int) -> None:
    """Forget a slot: its positions, its auctions with their bids, itself."""
    row = ctx.state.get(keys.slot(slot))
    if row is None:
        return
    assert row["settled"], f"slot {slot} would be forgotten before its settlement"
    assert row["escrowUc"] == 0, f"slot {slot} would be forgotten with money in escrow"
    for name in row["auctions"]:
        ctx.state.delete(keys.auction(name))
    for key, _ in ctx.state.scan(keys.positions(slot)):
        ctx.state.delete(key)
    ctx.state.delete(keys.session(slot))
    ctx.state.delete(keys.slot(slot))


def position(state: State, slot: int, address: str) -> dict[str, Any]:
    """What an address has in a slot; an empty position when it has nothing."""
    found: dict[str, Any] | None = state.get(keys.position(slot, address))
    return NEW_POSITION if found is None else found


def add_to_position(state: State, slot: int, address: str, **amounts: int) -> None:
    """Add to the numbers of a position."""
    before = position(state, slot, address)
    changed = {name: before[name] + amount for name, amount in amounts.items()}
    state.put(keys.position(slot, address), {**before, **changed})


def address_of(position_key: str) -> str:
    """The address in a position's (or an auction bid's) key."""
    return position_key.rsplit("/", 1)[1]
