"""
Parameters: the rules of the market that the parties may change together, slot by slot.

The genesis says what holds first. A change that was approved (`ledger.contracts.governance`) is
kept as [activation slot, value] under its path, and **the parameters of a slot** are, for each
path, the value with the latest activation slot that is not after it. A slot is always cleared,
delivered and settled by its own parameters, however late that happens.

    path                                value
    prices.retailUcPerKwh, prices.feedInUcPerKwh, prices.imbalanceUcPerKwh    µ¤/kWh
    gateLeadS                           seconds before a slot
    auctions.sealed, auctions.revealS, auctions.bidDepositUc    see `ledger.contracts.sealed`
    escrow.feeUc, escrow.guaranteePermille, escrow.penaltyPermille, escrow.maxPenalties,
    escrow.banSlots                     see `market.escrow`
    feeder.ratingW, feeder.congestion, feeder.zones.<name>    see `market.congestion`
    template.<name>                     false: the contract takes no new operations
    code.version                        which version of the contracts' code executes the slot

A program that does not know the version in force stops, and says so: it cannot guess new rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from ledger.contracts import keys
from ledger.genesis import (
    MAX_BAN_SLOTS,
    MAX_DEPOSIT_UC,
    MAX_FEE_UC,
    MAX_PRICE_UC_PER_KWH,
    NO_LIMIT_W,
    Auctions,
    Escrow,
    Feeder,
    Genesis,
    Prices,
    Zone,
    max_reward_uc,
)
from ledger.state import State
from market.settlement import Tariff

Value: TypeAlias = int | bool | str
History: TypeAlias = dict[str, list[list[Any]]]
"""[activation slot, value] of each path that was ever changed, in order of activation."""

CODE_VERSION = 1
"""The version of `ledger.contracts` and `market` in this program."""
TEMPLATES = ("auctions", "double-auction", "escrow", "order-book", "schedules")
"""Contracts that the parties may switch on and off."""
TEMPLATE_OF = {
    "bid-offer": "double-auction",
    "deploy-auction": "auctions", "auction-bid": "auctions",
    "post-offer": "order-book", "accept-offer": "order-book",
    "make-offer": "escrow", "accept-escrow": "escrow",
    "submit-schedule": "schedules", "open-adjustment": "schedules",
}  # fmt: skip
"""Operations that begin something, by the template they belong to; what ends it is always taken."""
_LEAD, _VERSION = "gateLeadS", "code.version"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What holds in one slot."""

    tariff: Tariff
    gate_lead_s: int
    auctions: Auctions
    escrow: Escrow
    feeder: Feeder
    templates: frozenset[str]
    """Those that are switched on."""
    code_version: int


def template_of(operation: dict[str, Any]) -> str | None:
    """The contract in which an operation begins something; None when it begins nothing."""
    name = operation["op"]
    if name != "commit-bid":
        return TEMPLATE_OF.get(name)
    auction = str(operation.get("auction", ""))
    return {"": "double-auction", "@session": "schedules"}.get(auction, "auctions")


def genesis_values(genesis: Genesis) -> dict[str, Value]:
    """Every path that may be changed, with its first value."""
    feeder = genesis.feeder_rules
    return {
        **_section("prices", genesis.prices),
        **_section("escrow", genesis.escrow_rules),
        _LEAD: genesis.gate_lead_s,
        **_section("auctions", genesis.auction_rules),
        "feeder.ratingW": feeder.rating_w,
        "feeder.congestion": feeder.congestion,
        **{f"feeder.zones.{zone.name}": zone.rating_w for zone in feeder.zones},
        **{f"template.{name}": True for name in TEMPLATES},
        _VERSION: CODE_VERSION,
    }


def values(changed: History, genesis: Genesis, slot: int) -> dict[str, Value]:
    """Every path with its value in a slot."""
    found = genesis_values(genesis)
    for path, changes in changed.items():
        for activation_slot, value in changes:
            if activation_slot <= slot:
                found[path] = value
    return found


def in_force(state: State, genesis: Genesis, slot: int) -> Parameters:
    """The parameters of a slot."""
    return parameters_of(genesis, values(history(state), genesis, slot))


def parameters_of(genesis: Genesis, found: dict[str, Value]) -> Parameters:
    """The values in their places."""
    prices = _read("prices", Prices, found)
    return Parameters(
        tariff=Tariff(
            retail_uc_per_kwh=prices.retail_uc_per_kwh,
            feed_in_uc_per_kwh=prices.feed_in_uc_per_kwh,
            imbalance_uc_per_kwh=prices.imbalance_uc_per_kwh,
        ),
        gate_lead_s=int(found[_LEAD]),
        auctions=_read("auctions", Auctions, found),
        escrow=_read("escrow", Escrow, found),
        feeder=msgspec.structs.replace(
            genesis.feeder_rules,
            rating_w=int(found["feeder.ratingW"]),
            congestion=found["feeder.congestion"],
            zones=tuple(
                Zone(name=zone.name, rating_w=int(found[f"feeder.zones.{zone.name}"]))
                for zone in genesis.feeder_rules.zones
            ),
        ),
        templates=frozenset(name for name in TEMPLATES if found[f"template.{name}"]),
        code_version=int(found[_VERSION]),
    )


def last_change(state: State, slot: int) -> int:
    """The newest activation slot up to `slot`, -1 when nothing was changed yet."""
    return max(
        (
            int(activation_slot)
            for changes in history(state).values()
            for activation_slot, _ in changes
            if activation_slot <= slot
        ),
        default=-1,
    )


def history(state: State) -> History:
    """What was changed so far."""
    found: History | None = state.get(keys.PARAMETERS)
    return found or {}


def is_valid(genesis: Genesis, path: str, value: Value) -> bool:
    """May a path have this value?"""
    first = genesis_values(genesis).get(path)
    if first is None or type(value) is not type(first):
        return False
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        return value in ("curtail", "split")
    low, high = _bounds(genesis, path)
    return low <= value <= high


def add(state: State, path: str, activation_slot: int, value: Value, keep_slot: int) -> None:
    """
    Note an approved change.

    Args:
        keep_slot: no slot before it will be asked for again; what only those need is forgotten
    """
    found = history(state)
    kept = [*found.get(path, []), [activation_slot, value]]
    kept.sort(key=lambda change: int(change[0]))
    while len(kept) > 1 and kept[1][0] <= keep_slot:
        del kept[0]
    state.put(keys.PARAMETERS, {**found, path: kept})


def _bounds(genesis: Genesis, path: str) -> tuple[int, int]:
    """The least and the most of an integer."""
    if path == "prices.feedInUcPerKwh":
        return _least_feed_in_uc(genesis), MAX_PRICE_UC_PER_KWH
    if path.startswith("prices."):
        return 0, MAX_PRICE_UC_PER_KWH
    if path.startswith("feeder."):
        return 0, NO_LIMIT_W
    return {
        _LEAD: (0, 86_400),
        _VERSION: (1, 10**6),
        "auctions.revealS": (1, 86_400),
        "auctions.bidDepositUc": (0, MAX_DEPOSIT_UC),
        "escrow.feeUc": (0, MAX_FEE_UC),
        "escrow.guaranteePermille": (0, 10_000),
        "escrow.penaltyPermille": (0, 1000),
        "escrow.maxPenalties": (0, 1000),
        "escrow.banSlots": (1, MAX_BAN_SLOTS),
    }[path]


def _least_feed_in_uc(genesis: Genesis) -> int:
    """Below this feed-in price burning energy for a reward would pay (`max_reward_uc`)."""
    promised_uc = genesis.rewards.per_block_uc * genesis.rewards.max_blocks
    worth_uc = max_reward_uc(genesis)
    return (
        0 if promised_uc == 0 else -(-genesis.prices.feed_in_uc_per_kwh * promised_uc // worth_uc)
    )


def _section(name: str, section: Any) -> dict[str, Value]:
    return {f"{name}.{field}": value for field, value in msgspec.to_builtins(section).items()}


def _read(name: str, kind: Any, found: dict[str, Value]) -> Any:
    prefix = name + "."
    fields = {path.removeprefix(prefix): v for path, v in found.items() if path.startswith(prefix)}
    return msgspec.convert(fields, kind, strict=True)
