"""
The state's keys, in one place. Numbers are padded so that key order is number order.

    account/<address>           {balanceUc, lockedUc, nonce}; nonce is the next one
    grant/<address>             {key, meterKey, canBuy, canSell, maxBuyWh, maxSellWh, startSlot,
                                endSlot}
    asset/<address>             {production: [[energyWh, startSlot, endSlot], …], consumption: […]}
    slot/<slot>                 {auctions: [id, …], cleared, settled, priceUcPerKwh, tradedWh,
                                escrowUc}
    position/<slot>/<address>   {bids, buyLockedWh, sellLockedWh, boughtWh, soldWh, receivableUc,
                                orders: [[side, energyWh, priceUcPerKwh, lockUc, height, tx, op],
                                …]}, netWh once a receipt came, and assumedNetWh where the
                                slot was settled before it came
    auction/<id>                {template, slot, energyWh, priceUcPerKwh, pricing, lockUc, open}
    auction-bid/<id>/<address>  [[energyWh, priceUcPerKwh, lockUc, height, tx, op], …]
    cpf/<validator>             {startSlot, endSlot, cpfQ16, eligible}
    validator/<id>              {key, controller, status, sinceEpoch, untilEpoch, notAfterMs,
                                founder, tip, tipEpoch, revealEpoch, payee}; see `validators`
    validators/<epoch>          [[id, key, controller], …] in the order of their indexes; from some
                                past epochs to the one after the running
    poe/seed                    hex: what the lots are drawn from
    poe/turns                   {validator: [cpfQ16, blocks led in the running epoch]}; only where
                                rewards are paid
    participation/<address>     "RE" or "RE+TE"; none: "TE"
    pool                        {rewardsUc}
    due/<ms>/<work>/<slot>      true: a gate closure or a settlement to come
    drop/<ms>/<key>             true: a slot or a grant to forget
    totals                      {depositsUc, withdrawalsUc, tradedWh, residualWh, operations}
"""

from __future__ import annotations

ACCOUNT = "account/"
SLOT = "slot/"
DUE = "due/"
DROP = "drop/"
CPF = "cpf/"
GRANT = "grant/"
TOTALS = "totals"
VALIDATOR = "validator/"
POOL = "pool"
SEED = "poe/seed"
TURNS = "poe/turns"
GATE = "gate"
SETTLE = "settle"
"""Sorts after `gate`: of two works due at one time the gate closes first."""


def account(address: str) -> str:
    """Money and nonce of an address."""
    return ACCOUNT + address


def grant(address: str) -> str:
    """What an address may do, and its keys."""
    return GRANT + address


def asset(address: str) -> str:
    """Energy that an address may trade."""
    return "asset/" + address


def slot(number: int) -> str:
    """What happened in the market of a slot."""
    return f"{SLOT}{number:012d}"


def positions(number: int) -> str:
    """Prefix of all positions of a slot."""
    return f"position/{number:012d}/"


def position(number: int, address: str) -> str:
    """What an address ordered, got and delivered in a slot."""
    return positions(number) + address


def auction(name: str) -> str:
    """A flexibility auction."""
    return "auction/" + name


def auction_bids(name: str) -> str:
    """Prefix of the bids of an auction."""
    return f"auction-bid/{name}/"


def cpf(validator: str) -> str:
    """A validator's last attestation."""
    return CPF + validator


def validator(name: str) -> str:
    """A validator: member, candidate, leaving or banned."""
    return VALIDATOR + name


def validator_set(epoch: int) -> str:
    """The validators of an epoch."""
    return f"validators/{epoch:012d}"


def participation(address: str) -> str:
    """In which of TMI's modes an address takes part."""
    return "participation/" + address


def due(time_ms: int, work: str, number: int) -> str:
    """Work for the first block at or after a time."""
    return f"{DUE}{time_ms:020d}/{work}/{number:012d}"


def drop(time_ms: int, what: str) -> str:
    """Something to forget at a time: `slot/<slot>` or `grant/<address>`."""
    return f"{DROP}{time_ms:020d}/{what}"
