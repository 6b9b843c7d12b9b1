"""
The seed of the lots: folded from what validators committed to before they could know its use.

Each validator may open one layer of its hash onion (`ledger.onion`) per epoch; the seed becomes
H(seed ‖ layer). It decides ties of the schedule and who gets a free seat. The hash of the last
block, which was used before, can be tried out by whoever makes that block.

What is left to choose is *whether* a layer is opened: a validator may keep its own back, a leader
may leave others' out of its blocks. A new commitment waits for two epochs, so that no layer is made
when the seed it joins is known. Who opens nothing loses nothing but its say.
"""

from __future__ import annotations

import hashlib
from typing import Any

from ledger.contracts import keys
from ledger.contracts.context import Context
from ledger.contracts.operations import CommitSeed, RevealSeed
from ledger.genesis import Genesis
from ledger.membership import Status
from ledger.onion import wrap
from wire.errors import Refusal
from wire.keys import KEY_BYTES, from_text

COMMIT_EPOCHS = 2
"""Epochs between a commitment and its first layer."""
_LABEL = b"hearthgrid-seed-v1\0"


def genesis_rows(genesis: Genesis) -> dict[str, Any]:
    """The first seed."""
    return {keys.SEED: fold(b"", genesis.chain_id.encode()).hex()}


def fold(seed: bytes, layer: bytes) -> bytes:
    """The seed after a layer."""
    return hashlib.sha256(_LABEL + seed + layer).digest()


def commit(ctx: Context, op: CommitSeed) -> Refusal | None:
    """Begin another onion; the rest of the one before is void."""
    row = _member(ctx)
    if isinstance(row, Refusal):
        return row
    from_text(op.tip, KEY_BYTES)
    ctx.state.put(keys.validator(ctx.sender), {**row, "tip": op.tip, "tipEpoch": ctx.epoch})
    return None


def reveal(ctx: Context, op: RevealSeed) -> Refusal | None:
    """Open the sender's next layer, once per epoch."""
    row = _member(ctx)
    if isinstance(row, Refusal):
        return row
    if not row["tip"]:
        return Refusal.NOT_FOUND
    if ctx.epoch < row["tipEpoch"] + COMMIT_EPOCHS:
        return Refusal.TOO_SOON
    if row["revealEpoch"] >= ctx.epoch:
        return Refusal.RATE_LIMITED
    layer = from_text(op.preimage, KEY_BYTES)
    if wrap(layer) != from_text(row["tip"], KEY_BYTES):
        return Refusal.BAD_PREIMAGE
    ctx.state.put(keys.validator(ctx.sender), {**row, "tip": op.preimage, "revealEpoch": ctx.epoch})
    seed = bytes.fromhex(ctx.state.get(keys.SEED) or "")
    ctx.state.put(keys.SEED, fold(seed, layer).hex())
    ctx.emit("seed", validator=ctx.sender)
    return None


def _member(ctx: Context) -> dict[str, Any] | Refusal:
    """The sender's row, if it has a seat."""
    row: dict[str, Any] | None = ctx.state.get(keys.validator(ctx.sender))
    if row is None or row["status"] == Status.CANDIDATE:
        return Refusal.NOT_ALLOWED
    return Refusal.BANNED if row["status"] == Status.BANNED else row
