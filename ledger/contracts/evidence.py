"""
Evidence: two votes that no honest validator signs both, and the ban they bring.

The two are of one validator, epoch and view; they notarize, or finalize, different blocks, or one
finalizes what the other nullifies (`ledger.protocol.conflict`). Both signatures are checked under
the key that the validator had in that epoch's set, so nobody can be accused without having signed.
A leader that publishes two proposals has signed two NOTARIZE votes (`ledger.types.proposal_vote`).

Pure: no peer is asked. Evidence is taken while its epoch's set is kept. A ban acts from the next
seal: whoever is banned does not lead in the epoch that begins there, and is out of the set after
that as soon as the churn allows.
"""

from __future__ import annotations

from ledger import types
from ledger.contracts import validators
from ledger.contracts.context import Context
from ledger.contracts.operations import Accuse
from ledger.protocol import conflict
from wire.errors import Refusal
from wire.keys import KEY_BYTES, from_text, to_text

MAX_VOTE_BYTES = 256


def evidence_operation(first: types.Vote, second: types.Vote) -> dict[str, str]:
    """The operation that accuses the signer of two votes."""
    return {
        "op": "evidence",
        "first": to_text(types.encode(first)),
        "second": to_text(types.encode(second)),
    }


def accuse(ctx: Context, op: Accuse) -> Refusal | None:
    """
    Ban the signer of two conflicting votes.

    NO_CONFLICT: not of one voter and view, or an honest one may sign both. FUTURE_DATED, EXPIRED:
    of an epoch to come, or too far back. NOT_FOUND: the set has no such index. DUPLICATE: banned
    already. BAD_SIGNATURE.
    """
    first, second = _vote(op.first), _vote(op.second)
    of_one = (first.validator, first.epoch, first.view)
    if of_one != (second.validator, second.epoch, second.view) or not conflict(first, second):
        return Refusal.NO_CONFLICT
    if first.epoch > ctx.epoch:
        return Refusal.FUTURE_DATED
    members = validators.members(ctx.state, first.epoch)
    if members is None:
        return Refusal.EXPIRED
    if first.validator >= len(members):
        return Refusal.NOT_FOUND
    accused = members[first.validator]
    if validators.banned(ctx.state, accused[0]):
        return Refusal.DUPLICATE
    voters = types.ValidatorSet(
        tuple(name for name, _, _ in members),
        tuple(from_text(key, KEY_BYTES) for _, key, _ in members),
    )
    chain_id = ctx.genesis.chain_id
    if not all(types.verify_vote(vote, voters, chain_id) for vote in (first, second)):
        return Refusal.BAD_SIGNATURE
    validators.ban(ctx, accused)
    ctx.emit("evidence", validator=accused[0], epoch=first.epoch, view=first.view)
    return None


def _vote(text: str) -> types.Vote:
    return types.decode(types.Vote, from_text(text), MAX_VOTE_BYTES)
