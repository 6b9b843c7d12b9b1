"""
Revocations: the CSM-DB bans an address, or lets it trade again (ETSE's security layer).

The CSM-DB signs (`wire.certificates.Revocation`), the supervisor or the DSO puts it on the ledger.
A banned address' operations are refused BANNED, but for its receipts and for giving back what it
holds (`bans.SETTLING`): energy that was traded is settled. What it has standing is taken out of
every market, and what that locked is free again, so an auction goes on without it and the next one
wins. An address that has not registered yet is banned just as well.

Numbers only go up: an earlier revocation is refused REPLAYED, so nobody brings a ban back, or ends
one, with what was signed before. The row stays until the address' grant can be shown no longer.
"""

from __future__ import annotations

import re
from typing import Any

from ledger.contracts import escrow, exchange, flexibility, keys, offers, scheduling, sealed
from ledger.contracts.context import SLOTS_AHEAD_MAX, TRUE_UP_SLOTS, Context
from ledger.contracts.grants import SLOT_MAX
from ledger.contracts.operations import Revoke
from ledger.genesis import Genesis
from wire import certificates
from wire.certificates import Revocation
from wire.errors import CertificateError, MalformedError, Refusal
from wire.keys import is_id

REASONS = ("ADVISORY", "OPERATOR", "KEY")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def load_revocation(genesis: Genesis, value: Any) -> Revocation:
    """
    Read a revocation and check that the market's CSM-DB signed it.

    Raises:
        WireError: by name.
    """
    found = certificates.load(Revocation, value, genesis.issuer, genesis.market)
    if not (found.number > 0 and 0 <= found.end_slot <= SLOT_MAX and is_id(found.address)):
        raise MalformedError("number, slot or address out of range", number=found.number)
    if found.reason not in REASONS or not _DIGEST.fullmatch(found.knowledge):
        raise MalformedError("not a reason and a digest")
    if found.advisory and not _DIGEST.fullmatch(found.advisory):
        raise MalformedError("not a digest")
    if found.address in (genesis.supervisor.address, genesis.dso_address):
        raise CertificateError("the supervisor's and the DSO's address are the genesis' to grant")
    return found


def revoke(ctx: Context, op: Revoke) -> Refusal | None:
    """Ban an address, or end its ban; the supervisor's or the DSO's to say."""
    if not (ctx.is_supervisor or ctx.is_dso):
        return Refusal.NOT_ALLOWED
    said = load_revocation(ctx.genesis, op.revocation)
    if said.end_slot < ctx.slot:
        return Refusal.EXPIRED
    before = ctx.state.get(keys.ban(said.address)) or {"number": 0, "banned": False, "endSlot": -1}
    if said.number <= before["number"]:
        return Refusal.REPLAYED
    end_slot = max(said.end_slot, before["endSlot"])
    row = {"number": said.number, "banned": said.banned, "endSlot": end_slot}
    ctx.state.put(keys.ban(said.address), row)
    drop_ms = ctx.genesis.grid.start_ms(end_slot + TRUE_UP_SLOTS + ctx.genesis.grace_slots + 2)
    ctx.state.put(keys.drop(drop_ms, keys.ban(said.address)), True)
    facts = {
        "address": said.address, "number": said.number, "reason": said.reason,
        "advisory": said.advisory, "knowledge": said.knowledge,
    }  # fmt: skip
    if said.banned:
        ctx.emit("banned", untilSlot=end_slot, **facts)
        take_out(ctx, said.address)
    else:
        ctx.emit("reinstated", **facts)
    return None


def take_out(ctx: Context, address: str) -> None:
    """Take everything that an address has standing out of the markets."""
    offers.take_out(ctx, address)
    escrow.take_out(ctx, address)
    for slot in range(ctx.slot, ctx.slot + SLOTS_AHEAD_MAX + 1):
        row = ctx.state.get(keys.slot(slot))
        if row is not None:
            _take_out_of_slot(ctx, slot, address, row["auctions"])


def drop(ctx: Context, address: str) -> None:
    """Forget a ban whose grant is long over."""
    row = ctx.state.get(keys.ban(address))
    if row is not None and row["endSlot"] + TRUE_UP_SLOTS < ctx.slot:
        ctx.state.delete(keys.ban(address))


def _take_out_of_slot(ctx: Context, slot: int, address: str, auctions: list[str]) -> None:
    taken = {
        "": exchange.take_out(ctx, slot, address) + sealed.take_out(ctx, slot, "", address),
        scheduling.SESSION: scheduling.take_out(ctx, slot, address)
        + sealed.take_out(ctx, slot, scheduling.SESSION, address),
    }
    for name in auctions:
        taken[name] = flexibility.take_out(ctx, name, address)
        taken[name] += sealed.take_out(ctx, slot, name, address)
    for name, bids in taken.items():
        if bids:
            ctx.emit("bid-withdrawn", address=address, slot=slot, auction=name, bids=bids)
