"""
Receipts that are expected of an address which takes the place of another (`wire.rotation`).

A home whose meter has spoken is expected to go on (`ledger.contracts.delivery`). Where addresses
change nobody can tell whose place a new one takes, so one that is registered ahead counts as if its
meter had spoken just before its first slot: else the first slot of every period could be had for
nothing by silence. An address that comes when its slots are about to run, or do, may not have been
metered at their beginning; it is expected once it has spoken.
"""

from __future__ import annotations

from ledger.contracts import keys, slots
from ledger.contracts.context import Context

EXPECTED = "expected"
EXPECTED_SLOTS = 4
"""As many slots as one is expected that has fallen silent."""
AHEAD_SLOTS = 2
"""Registered so long before a slot, a home has seen its beginning."""


def expect(ctx: Context, address: str, start_slot: int, end_slot: int) -> None:
    """Expect receipts of an address that was just registered, where addresses change."""
    if ctx.genesis.rotation is None:
        return
    first = max(start_slot, ctx.slot + AHEAD_SLOTS)
    for slot in range(first, min(end_slot, start_slot + EXPECTED_SLOTS - 1) + 1):
        slots.open_slot(ctx, slot)
        held = slots.position(ctx.state, slot, address)
        ctx.state.put(keys.position(slot, address), {**held, EXPECTED: True})
