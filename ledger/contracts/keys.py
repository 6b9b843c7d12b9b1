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
    offer/<name>                {address, kind, energyWh, startSlot, endSlot, priceUcPerKwh,
                                untilMs}: it stands in the order book
    offers/<address>            [[name, kind, energyWh, startSlot, endSlot], …]: its standing offers
    auction/<id>                {template, slot, energyWh, priceUcPerKwh, pricing, lockUc, open,
                                sealed}
    auction-bid/<id>/<address>  [[side, energyWh, priceUcPerKwh, lockUc, height, tx, op], …]
    sealed-bid/<slot>/<auction>/<address>
                                [[commitment, depositUc, height, tx, op], …] not yet revealed;
                                auction "_": the double auction of the slot
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
    parameters                  {path: [[activationSlot, value], …]}; see `parameters`
    change/<id>                 {path, value, activationSlot, proposer, voters, approvals:
                                {dso, aggregator, validators: [id, …], participants}}
    change-vote/<id>/<address>  whether an address that may approve a change did
    escrow/<offer>              an escrowed trade; see `escrow`
    escrow-slot/<slot>/<address>   {side, offers: [offer, …]}: its escrowed trades of a slot
    ban/<address>               {number, banned, endSlot}: the last revocation of the CSM-DB
    penalty/<address>           {count, bannedUntil}: the last slot of a ban, or -1
    session/<slot>              {rounds, adjustUntilMs, flows: {zone: Wh out}}; see `scheduling`
    schedule/<slot>/<address>   [side, energyWh, priceUcPerKwh, lockUc, height, tx, op], until the
                                session is cleared; its position then has `scheduled`
    zone/<address>              the zone of the feeder that an address is in
    link/<zone>                 [[startSlot, endSlot], …] in which its interconnection is closed
    due/<ms>/<work>/<slot>      true: a gate closure or a settlement to come
    due/<ms>/offer/<name>       true: an offer that expires
    due/<ms>/escrow/<offer>     true: a deadline of an escrowed trade
    due/<ms>/adjust/<slot>      true: the end of an adjustment session
    drop/<ms>/<key>             true: a slot, a grant, a ban, an escrowed trade or a change to
                                forget
    totals                      {depositsUc, withdrawalsUc, tradedWh, residualWh, operations}
"""

from __future__ import annotations

ACCOUNT = "account/"
SLOT = "slot/"
DUE = "due/"
DROP = "drop/"
CPF = "cpf/"
GRANT = "grant/"
BAN = "ban/"
TOTALS = "totals"
VALIDATOR = "validator/"
POOL = "pool"
SEED = "poe/seed"
TURNS = "poe/turns"
PARAMETERS = "parameters"
CHANGE = "change/"
ESCROW = "escrow/"
LINK = "link/"
ADJUST = "adjust"
TRADE = "escrow"
"""Of two works due at one time a deadline of an escrowed trade comes before the gate."""
GATE = "gate"
EXPIRE = "offer"
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


def offer(name: str) -> str:
    """An offer that stands in the order book."""
    return "offer/" + name


def offers_of(address: str) -> str:
    """What an address has standing in the order book."""
    return "offers/" + address


def auction(name: str) -> str:
    """A flexibility auction."""
    return "auction/" + name


def auction_bids(name: str) -> str:
    """Prefix of the bids of an auction."""
    return f"auction-bid/{name}/"


def sealed_bids(number: int) -> str:
    """Prefix of the commitments for a slot that were not yet revealed."""
    return f"sealed-bid/{number:012d}/"


def sealed_bid(number: int, auction: str, address: str) -> str:
    """The commitments of an address in an auction; an empty name is the double auction's."""
    return f"{sealed_bids(number)}{auction or '_'}/{address}"


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


def change(name: str) -> str:
    """A proposed change of a parameter."""
    return CHANGE + name


def change_votes(name: str) -> str:
    """Prefix of the participants who may approve a change."""
    return f"change-vote/{name}/"


def escrow(offer: str) -> str:
    """An escrowed trade."""
    return ESCROW + offer


def escrow_side(number: int, address: str) -> str:
    """An address' escrowed trades of a slot."""
    return f"escrow-slot/{number:012d}/{address}"


def penalty(address: str) -> str:
    """How often an address failed, and until when it is banned."""
    return "penalty/" + address


def ban(address: str) -> str:
    """Whether the CSM-DB has banned an address."""
    return BAN + address


def session(number: int) -> str:
    """The forward session of a slot."""
    return f"session/{number:012d}"


def schedules(number: int) -> str:
    """Prefix of the schedules of a slot's session."""
    return f"schedule/{number:012d}/"


def zone(address: str) -> str:
    """The zone that an address is in."""
    return "zone/" + address


def link(name: str) -> str:
    """When the interconnection of a zone is closed."""
    return LINK + name


def due(time_ms: int, work: str, number: int) -> str:
    """Work for the first block at or after a time."""
    return f"{DUE}{time_ms:020d}/{work}/{number:012d}"


def due_trade(time_ms: int, offer: str) -> str:
    """A deadline of an escrowed trade."""
    return f"{DUE}{time_ms:020d}/{TRADE}/{offer}"


def due_expiry(time_ms: int, name: str) -> str:
    """The end of an offer of the order book."""
    return f"{DUE}{time_ms:020d}/{EXPIRE}/{name}"


def drop(time_ms: int, what: str) -> str:
    """Something to forget at a time: `slot/<slot>` or `grant/<address>`."""
    return f"{DROP}{time_ms:020d}/{what}"
