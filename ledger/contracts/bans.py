"""
Bans: who failed to deliver too often neither sells nor buys for a while (Nazari's scenario 5), and
whom the CSM-DB has banned does nothing at all (ETSE; `ledger.contracts.revocations`).

Every contract that lets somebody trade asks here. A ban is an address': the DSO, who knows whose
it is, gives its owner no other one meanwhile.
"""

from __future__ import annotations

from ledger.contracts import keys
from ledger.contracts.context import Context
from ledger.contracts.operations import (
    DeliveryReceipt,
    DepositEnergyAsset,
    DepositFinancialBalance,
    Operation,
    RevealEscrow,
)
from ledger.genesis import Escrow
from market.escrow import Conduct, penalised
from wire.errors import Refusal

SETTLING = (DeliveryReceipt, RevealEscrow, DepositEnergyAsset, DepositFinancialBalance)
"""What a revoked address may still do: prove what it delivered, and give back what it holds."""


def is_banned(ctx: Context, address: str) -> bool:
    """May an address neither sell nor buy now?"""
    return is_revoked(ctx, address) or conduct(ctx, address).is_banned(ctx.slot)


def is_revoked(ctx: Context, address: str) -> bool:
    """Has the CSM-DB banned an address?"""
    row = ctx.state.get(keys.ban(address))
    return row is not None and row["banned"]


def check_operation(ctx: Context, operation: Operation) -> Refusal | None:
    """May the sender do this, as far as revocations go?"""
    if isinstance(operation, SETTLING) or not is_revoked(ctx, ctx.sender):
        return None
    return Refusal.BANNED


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
