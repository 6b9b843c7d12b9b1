"""
Changes of the rules while the market runs: proposed by one, approved by several, active later.

Baggio asks that the approval of contracts be "a multi-party procedure". A change is one parameter
(`ledger.contracts.parameters`), its value and the slot from which it holds; a contract that is
switched on or off, or another version of the contracts' code, is such a parameter too. It is named
by the hash of these three, so who approves a name approves exactly its content. It needs

- the **DSO** and the **aggregator** (one address where the genesis names no DSO of its own),
- a **quorum of the validators** of the running epoch, who will have to execute it, and
- the **participants**: of the addresses for which a meter signed a receipt of one reference slot,
  the last that was settled when the change was proposed, the share that the genesis asks for. A
  meter signs each slot for one address only, so this is one voice for each connection point,
  whoever's it is and however many addresses it has (ADR 0006).

**Notice.** A change must be approved while its activation slot is further ahead than orders are
taken; otherwise it lapses. So it never touches a slot in which anybody could have a position, and
all slots before it are cleared and settled as agreed when their orders were given.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ledger.contracts import keys, parameters, validators
from ledger.contracts.context import SLOTS_AHEAD_MAX, TRUE_UP_SLOTS, Context
from ledger.contracts.operations import ApproveChange, ProposeChange
from ledger.contracts.parameters import Value
from ledger.contracts.slots import address_of
from wire.canonical import encode
from wire.errors import Refusal

MAX_OPEN = 4
"""Changes that one party may have proposed at a time."""
LATEST_SLOTS = 3_000
"""How far ahead a change may become active: about a month of quarter hours."""
_PERMILLE = 1000


def change_id(path: str, value: Value, activation_slot: int) -> str:
    """The name of a change: 32 hex digits of the SHA-256 of its canonical content."""
    content = {"path": path, "value": value, "activationSlot": activation_slot}
    return hashlib.sha256(encode(content)).hexdigest()[:32]


def propose(ctx: Context, op: ProposeChange) -> Refusal | None:
    """Propose a change, and approve it in the sender's own roles."""
    if not (ctx.is_dso or ctx.is_supervisor or ctx.sender in _members(ctx)):
        return Refusal.NOT_ALLOWED
    if op.path not in parameters.genesis_values(ctx.genesis):
        return Refusal.NOT_FOUND
    if not parameters.is_valid(ctx.genesis, op.path, op.value):
        return Refusal.QUANTITY_OUT_OF_RANGE
    if op.activation_slot <= ctx.slot + SLOTS_AHEAD_MAX:
        return Refusal.TOO_SOON
    if op.activation_slot > ctx.slot + LATEST_SLOTS:
        return Refusal.SLOT_TOO_FAR
    name = change_id(op.path, op.value, op.activation_slot)
    if ctx.state.get(keys.change(name)) is not None or _is_taken(ctx, op.path, op.activation_slot):
        return Refusal.DUPLICATE
    standing = [row for _, row in ctx.state.scan(keys.CHANGE) if row["proposer"] == ctx.sender]
    if len(standing) >= MAX_OPEN:
        return Refusal.RATE_LIMITED
    voters = _connection_points(ctx)
    row = {
        "path": op.path,
        "value": op.value,
        "activationSlot": op.activation_slot,
        "proposer": ctx.sender,
        "voters": len(voters),
        "approvals": {"dso": False, "aggregator": False, "validators": [], "participants": 0},
    }
    ctx.state.put(keys.change(name), row)
    for address in voters:
        ctx.state.put(keys.change_votes(name) + address, False)
    lapses_ms = ctx.genesis.grid.start_ms(op.activation_slot - SLOTS_AHEAD_MAX)
    ctx.state.put(keys.drop(lapses_ms, keys.change(name)), True)
    ctx.emit(
        "change-proposed", change=name, path=op.path, value=op.value,
        activationSlot=op.activation_slot, proposer=ctx.sender, voters=len(voters),
    )  # fmt: skip
    return approve(ctx, ApproveChange(change=name))


def approve(ctx: Context, op: ApproveChange) -> Refusal | None:
    """Approve in every role that the sender has; the last approval needed makes it a rule."""
    row = ctx.state.get(keys.change(op.change))
    if row is None:
        return Refusal.NOT_FOUND
    vote = keys.change_votes(op.change) + ctx.sender
    is_member, may_vote = ctx.sender in _members(ctx), ctx.state.get(vote) is not None
    if not (ctx.is_dso or ctx.is_supervisor or is_member or may_vote):
        return Refusal.NOT_ALLOWED
    before = row["approvals"]
    approvals = {
        "dso": before["dso"] or ctx.is_dso,
        "aggregator": before["aggregator"] or ctx.is_supervisor,
        "validators": sorted({*before["validators"], *([ctx.sender] if is_member else [])}),
        "participants": before["participants"] + (ctx.state.get(vote) is False),
    }
    if approvals == before:
        return Refusal.DUPLICATE
    if may_vote:
        ctx.state.put(vote, True)
    row = {**row, "approvals": approvals}
    ctx.state.put(keys.change(op.change), row)
    ctx.emit("change-supported", change=op.change, address=ctx.sender, **_tally(ctx, row))
    return _enact(ctx, op.change, row) if _is_approved(ctx, row) else None


def lapse(ctx: Context, name: str) -> None:
    """Forget a change that was not approved in time."""
    if ctx.state.get(keys.change(name)) is not None:
        _forget(ctx, name)
        ctx.emit("change-lapsed", change=name)


def _enact(ctx: Context, name: str, row: dict[str, Any]) -> Refusal | None:
    path, activation_slot = row["path"], row["activationSlot"]
    assert activation_slot > ctx.slot + SLOTS_AHEAD_MAX, f"change {name} outlived its notice"
    if _is_taken(ctx, path, activation_slot):
        return Refusal.DUPLICATE
    keep_slot = ctx.slot - TRUE_UP_SLOTS - ctx.genesis.grace_slots - 2
    parameters.add(ctx.state, path, activation_slot, row["value"], keep_slot)
    _forget(ctx, name)
    ctx.emit(
        "change-approved", change=name, path=path, value=row["value"],
        activationSlot=activation_slot,
    )  # fmt: skip
    return None


def _is_approved(ctx: Context, row: dict[str, Any]) -> bool:
    approvals = row["approvals"]
    members = _members(ctx)
    willing = sum(name in members for name in approvals["validators"])
    asked = ctx.genesis.governance_rules.participants_permille * row["voters"]
    return (
        approvals["dso"]
        and approvals["aggregator"]
        and willing >= _quorum(len(members))
        and approvals["participants"] * _PERMILLE >= asked
    )


def _quorum(n: int) -> int:
    """As many validators as finalize a block: more than two thirds (`ledger.types`)."""
    return (n + (n - 1) // 3) // 2 + 1


def _tally(ctx: Context, row: dict[str, Any]) -> dict[str, Any]:
    """How far a change is, for an event."""
    approvals = row["approvals"]
    return {**approvals, "validators": len(approvals["validators"]), "voters": row["voters"]}


def _is_taken(ctx: Context, path: str, activation_slot: int) -> bool:
    """Was another value of the path approved for this very slot?"""
    changes = parameters.history(ctx.state).get(path, [])
    return any(slot == activation_slot for slot, _ in changes)


def _forget(ctx: Context, name: str) -> None:
    for key, _ in list(ctx.state.scan(keys.change_votes(name))):
        ctx.state.delete(key)
    ctx.state.delete(keys.change(name))


def _members(ctx: Context) -> set[str]:
    """The validators of the running epoch."""
    return {name for name, _, _ in validators.members(ctx.state, ctx.epoch) or ()}


def _connection_points(ctx: Context) -> list[str]:
    """The addresses for which a meter signed a receipt of the last settled slot."""
    reference_slot = ctx.slot - ctx.genesis.grace_slots - 1
    held = ctx.state.scan(keys.positions(reference_slot))
    return [address_of(key) for key, row in held if "netWh" in row]
