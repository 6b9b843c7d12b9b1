"""
Bans: who failed to deliver too often neither sells nor buys for a while (Nazari's scenario 5).

Every contract that lets somebody trade asks here. A ban is an address': the DSO, who knows whose
it is, gives its owner no other one meanwhile.
"""

from __future__ import annotations

from ledger.contracts import keys
from ledger.contracts.context import Context
from ledger.genesis import Escrow
from market.escrow import Conduct, penalised


def is_banned(ctx: Context, address: str) -> bool:
    """May an address neither sell nor buy now?"""
    return conduct(ctx, address).is_banned(ctx.slot)


def conduct(ctx: Context, address: str) -> Conduct:
    """The record of an address; a clean one when it has none."""
    row = ctx.state.get(keys.penalty(address))
    return Conduct() if row is None else Conduct(row["count"], row["bannedUntil"])


def penalise(ctx: Context, address: str, rules: Escrow) -> None:
    """Count a penalty."""
    before = conduct(ctx, address)
    after = penalised(before, ctx.slot, rules.max_penalties, rules.ban_slots)
    ctx.state.put(keys.penalty(address), {"count": after.count, "bannedUntil": after.banned_until})
    if after.banned_until > before.banned_until:
        ctx.emit("banned", address=address, untilSlot=after.banned_until)
