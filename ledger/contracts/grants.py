"""
Registration: an address becomes a lawful trader by showing the grant its CSM-DB issued (PETra's
anonymous address, Nazari's certificate of existence). The chain learns keys and limits, no name.

A later grant for the same address (same key) replaces the one before, so a home can renew it.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET

from ledger.contracts import accounts, keys
from ledger.contracts.context import TRUE_UP_SLOTS, Context
from ledger.contracts.expectation import expect
from ledger.contracts.operations import RegisterAddress
from ledger.genesis import Genesis
from ledger.state import State
from wire import certificates
from wire.certificates import AddressGrant
from wire.errors import CertificateError, MalformedError, Refusal
from wire.keys import KEY_BYTES, from_text
from wire.rotation import Rotation

CONNECTION_MAX_WH = 10_000_000
"""More than any one connection point moves in a slot [Wh]; bounds the money of a settlement."""
LIMIT_MAX_WH = 1_000_000_000
SLOT_MAX = 10**9


def load_grant(genesis: Genesis, value: Any) -> AddressGrant:
    """
    Read a grant and check that the CSM-DB issued it, for the key its address is made of.

    Raises:
        WireError: by name.
    """
    grant = certificates.load(AddressGrant, value, genesis.issuer, genesis.market)
    from_text(grant.meter_key, KEY_BYTES)
    limits = (grant.max_buy_wh, grant.max_sell_wh)
    if not all(0 <= limit <= CONNECTION_MAX_WH for limit in limits):
        raise MalformedError("limits out of range", limits=limits)
    if not 0 <= grant.start_slot <= grant.end_slot <= SLOT_MAX:
        raise MalformedError("slots out of range", start=grant.start_slot, end=grant.end_slot)
    if grant.address in (genesis.supervisor.address, genesis.dso_address):
        raise CertificateError("the supervisor's and the DSO's address are the genesis' to grant")
    return grant


def register_address(ctx: Context, op: RegisterAddress) -> Refusal | None:
    """Store the sender's grant."""
    first = ctx.registration if ctx.op_index == 0 else None
    grant = first or load_grant(ctx.genesis, op.grant)
    if grant.address != ctx.sender:
        return Refusal.NOT_ALLOWED
    if grant.end_slot < ctx.slot:
        return Refusal.EXPIRED
    before = ctx.state.get(keys.grant(grant.address))
    if before is not None and grant.end_slot <= before["endSlot"]:
        return Refusal.DUPLICATE
    facts = {
        "canBuy": grant.can_buy,
        "canSell": grant.can_sell,
        "maxBuyWh": grant.max_buy_wh,
        "maxSellWh": grant.max_sell_wh,
        "startSlot": grant.start_slot,
        "endSlot": grant.end_slot,
    }
    ctx.state.put(
        keys.grant(grant.address), {"key": grant.key, "meterKey": grant.meter_key, **facts}
    )
    over_slot = _over_slot(ctx.genesis, grant.start_slot, grant.end_slot)
    drop_slot = over_slot + TRUE_UP_SLOTS + ctx.genesis.grace_slots + 2
    ctx.state.put(keys.drop(ctx.genesis.grid.start_ms(drop_slot), keys.grant(grant.address)), True)
    ctx.emit("address-registered", address=grant.address, **facts)
    expect(ctx, grant.address, grant.start_slot, grant.end_slot)
    return None


def introduces(genesis: Genesis, grant: AddressGrant, slot: int) -> bool:
    """
    Does a grant make an address known in this slot that the ledger does not know?

    Of an address that was forgotten (`drop_grant`) the nonces are forgotten too. It cannot come
    back with another grant of the same first slot: it is too late for that before it is forgotten.
    """
    if grant.end_slot < slot:
        return False
    rotation = genesis.rotation
    return rotation is None or slot <= _period_end(rotation, grant.start_slot) + TRUE_UP_SLOTS


def drop_grant(ctx: Context, address: str) -> None:
    """Forget an ended grant and its assets; of a fresh address its account, too."""
    grant = ctx.state.get(keys.grant(address))
    if grant is None:
        return
    if _over_slot(ctx.genesis, grant["startSlot"], grant["endSlot"]) + TRUE_UP_SLOTS >= ctx.slot:
        return  # renewed meanwhile
    if ctx.genesis.fresh_addresses:
        if accounts.read(ctx.state, address)["lockedUc"]:
            # an offer or a trade has yet to end: what it gives back is its owner's too
            again_ms = ctx.genesis.grid.start_ms(ctx.slot + 1)
            ctx.state.put(keys.drop(again_ms, keys.grant(address)), True)
            return
        accounts.close(ctx, address)
    ctx.state.delete(keys.grant(address))
    ctx.state.delete(keys.asset(address))
    ctx.state.delete(keys.participation(address))
    ctx.state.delete(keys.penalty(address))
    ctx.state.delete(keys.zone(address))
    if ctx.genesis.fresh_addresses and not is_known(ctx.state, ctx.genesis, address):
        ctx.state.delete(keys.account(address))


def _over_slot(genesis: Genesis, start_slot: int, end_slot: int) -> int:
    """The last slot of a grant; of a fresh address not before its period's."""
    rotation = genesis.rotation
    return end_slot if rotation is None else max(end_slot, _period_end(rotation, start_slot))


def _period_end(rotation: Rotation, slot: int) -> int:
    return rotation.last_slot(rotation.period(slot))


def is_known(state: State, genesis: Genesis, address: str) -> bool:
    """True for whom `sender_key` has a key."""
    return (
        state.get(keys.grant(address)) is not None
        or state.get(keys.validator(address)) is not None
        or address in (genesis.supervisor.address, genesis.dso_address)
    )


def sender_key(state: State, genesis: Genesis, address: str) -> bytes | None:
    """The public key of a registered address or a known validator, or None."""
    if address == genesis.supervisor.address:
        return from_text(genesis.supervisor.key)
    if genesis.dso is not UNSET and address == genesis.dso.address:
        return from_text(genesis.dso.key)
    known = state.get(keys.grant(address)) or state.get(keys.validator(address))
    return None if known is None else from_text(known["key"])
