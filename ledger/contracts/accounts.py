"""
Accounts: integer money and the transaction counter of an address.

Money is in one of four places: an account's `balanceUc` (free), its `lockedUc` (behind open
orders and offers), a slot's `escrowUc` (between clearing and settlement), or the reward pool.
Deposits and withdrawals are counted; the sum of the four places always equals deposits −
withdrawals.

A home's balance may fall below zero in a settlement only: energy that was taken has to be paid, and
a home in debt cannot buy. The supervisor's never does: what it lacks is counted as a deposit it
makes.

Accounts are kept when their grant ends: the nonce guards against replays, and the money is theirs.
In a market of fresh addresses the account of an ended one is closed: what is left goes to its
owner's private account with the DSO, and so does what it owes. Its row goes with its grant, as
there would be thousands a year of every home; `grants.introduces` guards against replays then
(ADR 0013).
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import keys
from ledger.contracts.context import Context
from ledger.contracts.operations import AddFinancialBalance, DepositFinancialBalance
from ledger.state import State
from wire.errors import Refusal
from wire.units import MAX_SAFE_INT

DEPOSITS_MAX_UC = MAX_SAFE_INT // 4
"""Bound on all money of a market, so that no balance leaves the wire's integers [µ¤]."""
NEW_ACCOUNT = {"balanceUc": 0, "lockedUc": 0, "nonce": 0}
NEW_TOTALS = {
    "depositsUc": 0, "withdrawalsUc": 0, "tradedWh": 0, "residualWh": 0, "operations": 0,
}  # fmt: skip


def read(state: State, address: str) -> dict[str, Any]:
    """The account of an address; a new one when it has none."""
    found: dict[str, Any] | None = state.get(keys.account(address))
    return NEW_ACCOUNT if found is None else found


def move(state: State, address: str, balance_uc: int, locked_uc: int = 0) -> None:
    """Change free and locked money; the caller owns the other side of the entry."""
    if balance_uc == 0 and locked_uc == 0:
        return
    before = read(state, address)
    after_locked_uc = before["lockedUc"] + locked_uc
    assert after_locked_uc >= 0, f"{address} unlocks more than it locked"
    state.put(
        keys.account(address),
        {
            "balanceUc": before["balanceUc"] + balance_uc,
            "lockedUc": after_locked_uc,
            "nonce": before["nonce"],
        },
    )


def lock(state: State, address: str, amount_uc: int) -> Refusal | None:
    """Move free money behind an order."""
    if read(state, address)["balanceUc"] < amount_uc:
        return Refusal.INSUFFICIENT_FUNDS
    move(state, address, -amount_uc, amount_uc)
    return None


def use_nonce(state: State, address: str) -> None:
    """Count one transaction."""
    before = read(state, address)
    state.put(keys.account(address), {**before, "nonce": before["nonce"] + 1})


def count(state: State, **amounts: int) -> None:
    """Add to the market's totals."""
    if not any(amounts.values()):
        return
    before = state.get(keys.TOTALS) or NEW_TOTALS
    changed = {name: before[name] + amount for name, amount in amounts.items()}
    state.put(keys.TOTALS, {**before, **changed})


def cover_supervisor(ctx: Context) -> None:
    """Let the supervisor deposit what its balance lacks."""
    address = ctx.genesis.supervisor.address
    lacking_uc = -read(ctx.state, address)["balanceUc"]
    if lacking_uc > 0:
        move(ctx.state, address, lacking_uc)
        count(ctx.state, depositsUc=lacking_uc)


def add_financial_balance(ctx: Context, op: AddFinancialBalance) -> Refusal | None:
    """Credit a deposit to a registered address; the supervisor's to say."""
    if not ctx.is_supervisor:
        return Refusal.NOT_ALLOWED
    if ctx.state.get(keys.grant(op.address)) is None:
        return Refusal.NOT_FOUND
    deposits_uc = ctx.state.get(keys.TOTALS)["depositsUc"]  # type: ignore[index]
    if not 1 <= op.amount_uc <= DEPOSITS_MAX_UC - deposits_uc:
        return Refusal.QUANTITY_OUT_OF_RANGE
    move(ctx.state, op.address, op.amount_uc)
    count(ctx.state, depositsUc=op.amount_uc)
    return None


def deposit_financial_balance(ctx: Context, op: DepositFinancialBalance) -> Refusal | None:
    """Take free money of the sender off the chain; the DSO credits its owner (PETra's deposit)."""
    if ctx.state.get(keys.grant(ctx.sender)) is None:
        return Refusal.NOT_ALLOWED
    if not 1 <= op.amount_uc <= DEPOSITS_MAX_UC:
        return Refusal.QUANTITY_OUT_OF_RANGE
    if read(ctx.state, ctx.sender)["balanceUc"] < op.amount_uc:
        return Refusal.INSUFFICIENT_FUNDS
    move(ctx.state, ctx.sender, -op.amount_uc)
    count(ctx.state, withdrawalsUc=op.amount_uc)
    ctx.emit("financial-deposited", address=ctx.sender, amountUc=op.amount_uc)
    return None


def close(ctx: Context, address: str) -> None:
    """
    Hand the money of an address whose grant has ended to the DSO, or its debt.

    A debt is deposited in the owner's name: the supervisor has had the money since the settlement.
    """
    amount_uc = read(ctx.state, address)["balanceUc"]
    if amount_uc == 0:
        return
    move(ctx.state, address, -amount_uc)
    count(ctx.state, withdrawalsUc=max(amount_uc, 0), depositsUc=max(-amount_uc, 0))
    ctx.emit("account-closed", address=address, amountUc=amount_uc)


def money_in(key: str, value: Any | None) -> int:
    """The money that a state row holds [µ¤]."""
    if value is None:
        return 0
    if key.startswith(keys.ACCOUNT):
        return int(value["balanceUc"] + value["lockedUc"])
    if key.startswith(keys.SLOT):
        return int(value["escrowUc"])
    if key == keys.POOL:
        return int(value["rewardsUc"])
    return 0
