"""
Rewards: TMI's incentive for the block generator, and the modes in which a home takes part.

- **TE** (default): the address trades; it takes no rewards. **RE**: it takes rewards and its orders
  are refused. **RE+TE**: both.
- A validator names the address its rewards go to (`set-payee`), and that address has to be in a
  mode with RE. Naming it links the two for everybody: an address used for nothing else keeps a
  home's trades apart from its validator. In a market of fresh addresses it has to be one: RE+TE is
  not allowed there, and an address that takes rewards never trades.
- Paid at the seal, for the blocks with transactions that it led in the epoch, up to `maxBlocks`:
  perBlockUc · blocks · CPF, with the CPF that its turns were dealt by. Who was not eligible, or is
  banned at the seal, gets nothing.
- From the pool only, which the supervisor funds from its own balance; what the pool lacks, all lack
  in proportion. Nothing is minted.

`ledger.genesis.max_reward_uc` says why faking a CPF for it does not pay.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import accounts, attestation, keys, validators
from ledger.contracts.context import Context
from ledger.contracts.operations import FundRewards, SetParticipation, SetPayee
from wire.cpf import Q16
from wire.errors import Refusal

TRADES_ONLY, REWARDS_ONLY, BOTH = "TE", "RE", "RE+TE"


def fund(ctx: Context, op: FundRewards) -> Refusal | None:
    """Move the supervisor's money into the pool."""
    if not ctx.is_supervisor:
        return Refusal.NOT_ALLOWED
    if ctx.genesis.rewards.per_block_uc == 0:
        return Refusal.NOT_FOUND
    if op.amount_uc < 1:
        return Refusal.QUANTITY_OUT_OF_RANGE
    if accounts.read(ctx.state, ctx.sender)["balanceUc"] < op.amount_uc:
        return Refusal.INSUFFICIENT_FUNDS
    accounts.move(ctx.state, ctx.sender, -op.amount_uc)
    _put_pool(ctx, pool_uc(ctx) + op.amount_uc)
    return None


def set_participation(ctx: Context, op: SetParticipation) -> Refusal | None:
    """Choose the sender's mode, for orders and rewards to come."""
    if ctx.state.get(keys.grant(ctx.sender)) is None:
        return Refusal.UNKNOWN_SENDER
    takes_rewards = ctx.state.get(keys.participation(ctx.sender)) is not None
    if ctx.genesis.fresh_addresses and (op.mode == BOTH or takes_rewards):
        return Refusal.NOT_ALLOWED
    if op.mode == TRADES_ONLY:
        ctx.state.delete(keys.participation(ctx.sender))
    else:
        ctx.state.put(keys.participation(ctx.sender), op.mode)
    ctx.emit("participation", address=ctx.sender, mode=op.mode)
    return None


def set_payee(ctx: Context, op: SetPayee) -> Refusal | None:
    """Choose where the rewards of the validator that sends this go."""
    row = ctx.state.get(keys.validator(ctx.sender))
    if row is None:
        return Refusal.NOT_ALLOWED
    if ctx.state.get(keys.grant(op.address)) is None:
        return Refusal.NOT_FOUND
    ctx.state.put(keys.validator(ctx.sender), {**row, "payee": op.address})
    return None


def count_block(ctx: Context, proposer: str, n_tx: int) -> None:
    """Count a block of the running epoch for who led it."""
    turns: dict[str, list[int]] = ctx.state.get(keys.TURNS) or {}
    if n_tx == 0 or proposer not in turns:
        return
    cpf_q16, blocks = turns[proposer]
    if blocks < ctx.genesis.rewards.max_blocks:
        ctx.state.put(keys.TURNS, {**turns, proposer: [cpf_q16, blocks + 1]})


def at_seal(ctx: Context) -> None:
    """Pay the epoch that ends; note who may earn in the one that begins, and by which CPF."""
    if ctx.genesis.rewards.per_block_uc == 0:
        return
    _pay(ctx)
    coming = validators.members(ctx.state, ctx.epoch + 1) or []
    inputs = attestation.schedule_inputs(ctx.state, [one[0] for one in coming], ctx.slot)
    ctx.state.put(
        keys.TURNS,
        {name: [cpf_q16, 0] for name, (cpf_q16, eligible) in inputs.items() if eligible},
    )


def pool_uc(ctx: Context) -> int:
    """Money in the reward pool [µ¤]."""
    row = ctx.state.get(keys.POOL)
    return 0 if row is None else int(row["rewardsUc"])


def _pay(ctx: Context) -> None:
    earned = _earned(ctx)
    total_uc, held_uc = sum(amount for _, _, _, amount in earned), pool_uc(ctx)
    rows: list[dict[str, Any]] = []
    for name, address, blocks, amount_uc in earned:
        paid_uc = amount_uc if total_uc <= held_uc else amount_uc * held_uc // total_uc
        if paid_uc == 0:
            continue
        accounts.move(ctx.state, address, paid_uc)
        rows.append({"validator": name, "address": address, "blocks": blocks, "amountUc": paid_uc})
    if not rows:
        return
    left_uc = held_uc - sum(row["amountUc"] for row in rows)
    assert left_uc >= 0, "more was paid than the pool held"
    _put_pool(ctx, left_uc)
    ctx.emit("rewards", epoch=ctx.epoch, rows=rows, poolUc=left_uc)


def _earned(ctx: Context) -> list[tuple[str, str, int, int]]:
    """Validator, address, blocks led and reward [µ¤] of all who are to be paid."""
    turns: dict[str, list[int]] = ctx.state.get(keys.TURNS) or {}
    earned = []
    for name, (cpf_q16, blocks) in sorted(turns.items()):
        row = ctx.state.get(keys.validator(name))
        if row is None or validators.banned(ctx.state, name):
            continue
        if ctx.state.get(keys.participation(row["payee"])) not in (REWARDS_ONLY, BOTH):
            continue
        amount_uc = ctx.genesis.rewards.per_block_uc * blocks * cpf_q16 // Q16
        earned.append((name, row["payee"], blocks, amount_uc))
    return earned


def _put_pool(ctx: Context, amount_uc: int) -> None:
    ctx.state.put(keys.POOL, {"rewardsUc": amount_uc})
