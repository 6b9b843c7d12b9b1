"""
Validators on chain: joining, leaving, and the sets of the epochs.

A validator joins with a licence of the CSM-DB (identity, key, controller) and waits as a candidate;
it leaves by saying so, when its licence ends, or by a ban (`evidence`). At the seal of epoch e the
set of e + 2 is made (`ledger.membership`) and kept under `validators/<e+2>`; the sets of epochs 0
and 1 are the genesis'. So the set that begins with a seal is known one epoch ahead, and a header
can name it. Sets of the last `evidenceEpochs` epochs are kept, to judge votes given in them.

A validator's row: `status`; `sinceEpoch`, the first epoch of its service (of a candidate: when it
asked); `untilEpoch`, of one who leaves the first epoch without it, of a banned one that of its
pardon, else 0; `notAfterMs` of its licence, 0 for founders. Its seeds: `seed`; its `payee`:
`rewards`.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import keys
from ledger.contracts.context import Context
from ledger.contracts.operations import JoinValidator, LeaveValidator
from ledger.genesis import Genesis
from ledger.membership import Standing, Status, next_members
from ledger.state import State
from wire import certificates
from wire.certificates import ValidatorLicence
from wire.errors import CertificateError, MalformedError, Refusal
from wire.keys import KEY_BYTES, from_text

MAX_KNOWN = 1024
"""Validators with a row; each has a licence of the CSM-DB."""
MAX_CONTROLLER_CHARS = 64
NEVER = -2
"""An epoch so early that whatever has to wait for two epochs need not wait."""

Members = list[list[str]]
"""[id, key, controller] of each, by index."""


def genesis_rows(genesis: Genesis) -> dict[str, Any]:
    """The rows of the founders, and the sets of epochs 0 and 1."""
    members = [[one.id, one.key, one.controller] for one in genesis.validators]
    founders = {
        keys.validator(one.id): {
            **_new_row(one.key, one.controller, Status.ACTIVE, 0),
            "founder": True,
            "tip": one.onion,
            "tipEpoch": NEVER,
        }
        for one in genesis.validators
    }
    return {**founders, keys.validator_set(0): members, keys.validator_set(1): members}


def members(state: State, epoch: int) -> Members | None:
    """The set of an epoch; None when it is not known yet, or not any more."""
    found: Members | None = state.get(keys.validator_set(epoch))
    return found


def load_licence(genesis: Genesis, value: Any) -> ValidatorLicence:
    """
    Read a licence and check that the CSM-DB issued it, for the key its identity is made of.

    Raises:
        WireError: by name.
    """
    licence = certificates.load(ValidatorLicence, value, genesis.issuer, genesis.market)
    if not 1 <= len(licence.controller) <= MAX_CONTROLLER_CHARS:
        raise MalformedError("a controller has a short name")
    if licence.validator == genesis.supervisor.address:
        raise CertificateError("the supervisor does not validate")
    return licence


def join(ctx: Context, op: JoinValidator) -> Refusal | None:
    """Let the sender wait for a seat; a member renews its licence with a later one."""
    licence = load_licence(ctx.genesis, op.licence)
    if licence.validator != ctx.sender:
        return Refusal.NOT_ALLOWED
    certificates.check_validity(licence, ctx.time_ms)
    if op.tip:
        from_text(op.tip, KEY_BYTES)
    before = ctx.state.get(keys.validator(ctx.sender))
    if before is not None:
        return _renew(ctx, before, licence)
    if sum(1 for _ in ctx.state.scan(keys.VALIDATOR)) >= MAX_KNOWN:
        return Refusal.RATE_LIMITED
    row = _new_row(licence.key, licence.controller, Status.CANDIDATE, ctx.epoch)
    row.update(notAfterMs=licence.not_after_ms, tip=op.tip, tipEpoch=ctx.epoch)
    _put(ctx, ctx.sender, row)
    return None


def leave(ctx: Context, op: LeaveValidator) -> Refusal | None:
    """A candidate goes at once, a member as soon as the churn lets it."""
    row = ctx.state.get(keys.validator(ctx.sender))
    if row is None:
        return Refusal.NOT_FOUND
    if row["status"] == Status.BANNED:
        return Refusal.BANNED
    if row["status"] == Status.LEAVING:
        return Refusal.DUPLICATE
    _end(ctx, ctx.sender, row)
    return None


def ban(ctx: Context, member: list[str]) -> None:
    """Ban somebody who is, or was, a member."""
    name, key, controller = member
    row = ctx.state.get(keys.validator(name))
    if row is None:
        row = _new_row(key, controller, Status.BANNED, ctx.epoch)
    until = ctx.epoch + ctx.genesis.membership.ban_epochs + 1
    _put(ctx, name, {**row, "status": Status.BANNED.value, "untilEpoch": until})


def banned(state: State, name: str) -> bool:
    """True while a validator may not lead."""
    row = state.get(keys.validator(name))
    return row is not None and row["status"] == Status.BANNED


def at_seal(ctx: Context) -> None:
    """Make the set of the epoch after next, and forget who and what is past."""
    coming = members(ctx.state, ctx.epoch + 1)
    assert coming is not None, "the next set is made one epoch ahead"
    known = {key.removeprefix(keys.VALIDATOR): row for key, row in ctx.state.scan(keys.VALIDATOR)}
    _end_licences(ctx, known)
    chosen = next_members(
        [name for name, _, _ in coming],
        {name: _standing(row) for name, row in known.items()},
        bytes.fromhex(ctx.state.get(keys.SEED) or ""),
        ctx.genesis.membership.max_validators,
    )
    epoch = ctx.epoch + 2
    by_name = {one[0]: one for one in coming}
    ctx.state.put(
        keys.validator_set(epoch),
        [
            by_name.get(name) or [name, known[name]["key"], known[name]["controller"]]
            for name in chosen
        ],
    )
    _move(ctx, known, set(by_name), set(chosen), epoch)
    ctx.state.delete(keys.validator_set(ctx.epoch + 1 - ctx.genesis.membership.evidence_epochs))
    if coming != members(ctx.state, ctx.epoch):
        ctx.emit(
            "validators",
            epoch=ctx.epoch + 1,
            validators=[
                {"id": name, "key": key, "controller": controller}
                for name, key, controller in coming
            ],
        )


def _move(
    ctx: Context, known: dict[str, Any], before: set[str], chosen: set[str], epoch: int
) -> None:
    """Give everybody the status that the new set makes of it; forget who is gone."""
    for name, row in known.items():
        status, seated = row["status"], name in chosen
        if status == Status.CANDIDATE and seated:
            _put(ctx, name, {**row, "status": Status.ACTIVE.value, "sinceEpoch": epoch})
        elif status == Status.ACTIVE and not seated and name in before:
            _put(ctx, name, {**row, "status": Status.CANDIDATE.value, "sinceEpoch": ctx.epoch})
        elif status == Status.LEAVING and not seated and row["untilEpoch"] == 0:
            ctx.state.put(keys.validator(name), {**row, "untilEpoch": epoch})
        elif _gone(row, ctx.epoch + 1) and name not in before | chosen:
            ctx.state.delete(keys.validator(name))
            ctx.state.delete(keys.cpf(name))


def _gone(row: dict[str, Any], epoch: int) -> bool:
    """Nothing is left to be known of it from this epoch on."""
    over = row["status"] in (Status.LEAVING, Status.BANNED)
    return over and 0 < row["untilEpoch"] <= epoch


def _end_licences(ctx: Context, known: dict[str, Any]) -> None:
    for name, row in list(known.items()):
        over = 0 < row["notAfterMs"] <= ctx.time_ms
        if over and row["status"] in (Status.ACTIVE, Status.CANDIDATE):
            after = _end(ctx, name, row)
            if after is None:
                del known[name]
            else:
                known[name] = after


def _end(ctx: Context, name: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """Begin to leave; a candidate, in no set to come, is forgotten."""
    seated = any(
        name == one[0]
        for epoch in (ctx.epoch, ctx.epoch + 1)
        for one in members(ctx.state, epoch) or ()
    )
    if not seated:
        ctx.state.delete(keys.validator(name))
        ctx.state.delete(keys.cpf(name))
        ctx.emit("validator", validator=name, controller=row["controller"], status="left")
        return None
    after = {**row, "status": Status.LEAVING.value, "untilEpoch": 0}
    _put(ctx, name, after)
    return after


def _renew(ctx: Context, row: dict[str, Any], licence: ValidatorLicence) -> Refusal | None:
    if row["status"] == Status.BANNED:
        return Refusal.BANNED
    renewable = row["status"] in (Status.CANDIDATE, Status.ACTIVE) and row["notAfterMs"] > 0
    if not renewable or licence.not_after_ms <= row["notAfterMs"]:
        return Refusal.DUPLICATE
    if licence.controller != row["controller"]:
        return Refusal.NOT_ALLOWED
    ctx.state.put(keys.validator(ctx.sender), {**row, "notAfterMs": licence.not_after_ms})
    return None


def _new_row(key: str, controller: str, status: Status, epoch: int) -> dict[str, Any]:
    return {
        "key": key, "controller": controller, "status": status.value, "sinceEpoch": epoch,
        "untilEpoch": 0, "notAfterMs": 0, "founder": False, "tip": "", "tipEpoch": epoch,
        "revealEpoch": NEVER, "payee": "",
    }  # fmt: skip


def _standing(row: dict[str, Any]) -> Standing:
    return Standing(row["controller"], row["status"], row["sinceEpoch"], row["founder"])


def _put(ctx: Context, name: str, row: dict[str, Any]) -> None:
    ctx.state.put(keys.validator(name), row)
    ctx.emit("validator", validator=name, controller=row["controller"], status=row["status"])
