"""
A decision in words for the household: what was done and why, and what became of it. Pure.

No word of the trade: energy in kWh, prices in ct/kWh, times by the home's clock. A record
(`Record`) is written when a slot is decided; what became of it is known later (`Fate`). Both are
plain facts, so the same record reads the same whenever and wherever it is asked for.

`ct` is a hundredth of the market's currency.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from hem.controller.bidding import Decision, Situation
from hem.controller.policy import Policy


class Cause(StrEnum):
    """Why a slot was decided as it was."""

    REWARDS_ONLY = "rewards-only"
    FLAT = "flat"
    RULE = "rule"
    SURPLUS_SOLD = "surplus-sold"
    STORE_SOLD = "store-sold"
    NEED_BOUGHT = "need-bought"
    BOUGHT_AHEAD = "bought-ahead"
    SURPLUS_KEPT = "surplus-kept"
    NOTHING = "nothing"
    BOUND = "bound"
    """Something would have been ordered if a limit did not forbid it."""
    DEVICE_LOST = "device-lost"
    """Nobody knows what the home uses or stores."""
    LEDGER_UNKNOWN = "ledger-unknown"
    """Nobody knows yet what was traded before."""


class RunnerUp(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The next best action."""

    action: str
    """In words: `keep it`, `sell 0.40 kWh`."""
    cost_uc: int
    """What it would have cost beside the best [µ¤]."""


class LimitNote(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A limit from outside that held in the slot."""

    side: str
    """`import` or `export`."""
    power_w: int
    origin: str
    """`connection`, `dso` or `household`."""
    until: str = ""
    """By the home's clock; empty: it has no end."""


class Record(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What was known and decided; everything that an explanation needs."""

    cause: Cause
    net_wh: int = 0
    """Load − PV that was expected [Wh]."""
    stored_permille: int = -1
    """Expected when the slot begins; −1: no battery, or unknown."""
    retail_uc_per_kwh: int = 0
    feed_in_uc_per_kwh: int = 0
    rule: str = ""
    """Of the owner's, that decided."""
    bounds: tuple[str, ...] = ()
    """Limits without which it would have been another decision (`rules.binding`)."""
    buy_max_uc_per_kwh: int = -1
    """The owner's, in this slot; −1: none."""
    sell_min_uc_per_kwh: int = -1
    never_sell: str = ""
    """The hours; empty: selling was allowed."""
    keep_wh: int = 0
    """Stored energy that is kept."""
    limits: tuple[LimitNote, ...] = ()
    refused: tuple[str, ...] = ()
    """Orders that the gate held back (`rules.Forbidden`)."""
    mode: str = "rules"
    """`plan`, `rules`, or `fall-back`: a plan was wanted and came too late."""
    policy_error: str = ""
    """The owner's file is broken: the last good one held."""
    lost: tuple[str, ...] = ()
    """Devices that did not answer."""
    worth_uc_per_kwh: int | None = None
    """Of one kWh more in the battery."""
    runner_up: RunnerUp | None = None


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a decision."""

    bought_wh: int = 0
    sold_wh: int = 0
    refused: int = 0
    """Orders that the market did not take."""
    cleared: bool = False
    """Is it known what was traded?"""
    metered_net_wh: int | None = None
    """Import − export that the meter saw; None: not settled yet."""


Order = dict[str, Any]
"""`side`, `energyWh`, `priceUcPerKwh`, as the decision log keeps it."""


def cause_of(
    situation: Situation, policy: Policy, decision: Decision, bounds: Sequence[str]
) -> Cause:
    """
    Why a decision is what it is, in one word.

    Args:
        bounds: limits that shaped it (`rules.binding`)
    """
    if not policy.trades:
        return Cause.REWARDS_ONLY
    if decision.rule:
        return Cause.RULE
    if situation.retail - situation.feed_in < 2:
        return Cause.FLAT
    net_wh = situation.forecast.net_wh
    sold_wh = sum(order.energy_wh for order in decision.orders if order.side == "sell")
    bought_wh = sum(order.energy_wh for order in decision.orders if order.side == "buy")
    if sold_wh:
        return Cause.SURPLUS_SOLD if sold_wh <= -net_wh else Cause.STORE_SOLD
    if bought_wh:
        return Cause.BOUGHT_AHEAD if bought_wh > max(net_wh, 0) else Cause.NEED_BOUGHT
    if bounds:
        return Cause.BOUND
    return Cause.SURPLUS_KEPT if net_wh < 0 and situation.battery is not None else Cause.NOTHING


def explain(record: Record, orders: Sequence[Order], fate: Fate) -> str:
    """
    A slot in a few sentences.

    Args:
        orders: what was ordered
        fate: what became of it
    """
    said = [
        _what(record, orders),
        *_held_back(record),
        *_outside(record),
        *_outcome(record, orders, fate),
        *_circumstances(record),
        *_alternatives(record),
    ]
    return " ".join(sentence for sentence in said if sentence)


def energy_text(energy_wh: int) -> str:
    """`0.42 kWh`."""
    return f"{energy_wh / 1000:.2f} kWh"


def price_text(price_uc_per_kwh: int) -> str:
    """`12.0 ct/kWh`."""
    return f"{price_uc_per_kwh / 10_000:.1f} ct/kWh"


def _what(record: Record, orders: Sequence[Order]) -> str:
    order_text = _orders_text(orders)
    match record.cause:
        case Cause.REWARDS_ONLY:
            return (
                "The home did not trade: you chose to take part in the rewards for using your own"
                " energy only."
            )
        case Cause.FLAT:
            return (
                "The home did not trade: electricity costs as much to buy"
                f" ({price_text(record.retail_uc_per_kwh)}) as it earns"
                f" ({price_text(record.feed_in_uc_per_kwh)}), so there was nothing to gain."
            )
        case Cause.DEVICE_LOST:
            return (
                "The home did not trade, because it did not know what it uses and stores: a trade"
                " that it cannot keep costs money."
            )
        case Cause.LEDGER_UNKNOWN:
            return (
                "The home did not trade, because it did not know yet what it had traded before;"
                " nothing is sold twice."
            )
        case Cause.RULE:
            return f"{order_text}, because your rule says so ({record.rule})."
        case Cause.SURPLUS_SOLD:
            return (
                f"{order_text}: the sun was expected to give {energy_text(-record.net_wh)} more"
                " than the home uses, and the battery did not need it."
            )
        case Cause.STORE_SOLD:
            return f"{order_text}: the battery held more than the home will need itself."
        case Cause.NEED_BOUGHT:
            return (
                f"{order_text}: the home was expected to use {energy_text(record.net_wh)} more"
                " than it makes, and neighbours are cheaper than the supplier"
                f" ({price_text(record.retail_uc_per_kwh)})."
            )
        case Cause.BOUGHT_AHEAD:
            return (
                f"{order_text}: the battery was going to run empty, and what is bought cheap now"
                " is used later instead of the supplier's"
                f" ({price_text(record.retail_uc_per_kwh)})."
            )
        case Cause.SURPLUS_KEPT:
            return (
                f"The home kept its surplus of {energy_text(-record.net_wh)} in the battery: it"
                " is worth more later today than what it would earn now."
            )
        case Cause.NOTHING:
            return "The home did not trade: it needed nothing and had nothing to spare."
        case Cause.BOUND:
            return "The home did not trade."


def _orders_text(orders: Sequence[Order]) -> str:
    parts = []
    for side, verb, word in (("sell", "offered", "at least"), ("buy", "asked for", "at most")):
        mine = [order for order in orders if order["side"] == side]
        if mine:
            prices = [order["priceUcPerKwh"] for order in mine]
            price = min(prices) if side == "sell" else max(prices)
            energy_wh = sum(order["energyWh"] for order in mine)
            parts.append(f"{verb} {energy_text(energy_wh)} for {word} {price_text(price)}")
    return f"The home {' and '.join(parts)}" if parts else "The home ordered nothing"


def _held_back(record: Record) -> list[str]:
    """The owner's limits that shaped the decision."""
    said = []
    if "never-sell" in record.bounds:
        said.append(f"You want nothing to be sold {_hours(record.never_sell)}.")
    if "price-max" in record.bounds:
        said.append(f"You pay no more than {price_text(record.buy_max_uc_per_kwh)}.")
    if "price-min" in record.bounds:
        said.append(f"You take no less than {price_text(record.sell_min_uc_per_kwh)}.")
    if "reserve" in record.bounds:
        said.append(
            f"The last {energy_text(record.keep_wh)} in the battery are kept for the home, as you"
            " wish."
        )
    if record.refused:
        said.append(
            f"{_count(len(record.refused), 'order')} would have broken what you allow and"
            f" {'was' if len(record.refused) == 1 else 'were'} not sent."
        )
    return said


def _outside(record: Record) -> list[str]:
    """Limits of the grid."""
    said = []
    for limit in record.limits:
        way = "from" if limit.side == "import" else "into"
        who = {
            "dso": "The grid operator allows",
            "household": "A limit set at home allows",
        }.get(limit.origin, "The connection allows")
        # what the connection carries is news only where it mattered
        if limit.origin == "connection" and "grid" not in record.bounds:
            continue
        until = f" until {limit.until}" if limit.until else ""
        kept = " The home traded less for that." if "grid" in record.bounds else ""
        said.append(
            f"{who} no more than {limit.power_w / 1000:.1f} kW {way} the grid{until}, and the home"
            f" keeps to it.{kept}"
        )
    return said


def _outcome(record: Record, orders: Sequence[Order], fate: Fate) -> list[str]:
    said = []
    if fate.bought_wh or fate.sold_wh:
        parts = [("bought", fate.bought_wh), ("sold", fate.sold_wh)]
        done = " and ".join(f"{what} {energy_text(wh)}" for what, wh in parts if wh)
        said.append(f"It {done}.")
    elif orders and fate.refused == len(orders):
        said.append("The market did not take the order, so nothing was traded.")
    elif orders and fate.cleared:
        said.append(_not_accepted(record, orders))
    if fate.metered_net_wh is not None:
        said += _delivery(fate)
    return said


def _not_accepted(record: Record, orders: Sequence[Order]) -> str:
    if all(order["side"] == "buy" for order in orders):
        if "price-max" in record.bounds:
            return "Nobody sold at your limit, so nothing was bought."
        return "Nobody sold for that price, so nothing was bought."
    return "Nobody bought at that price, so nothing was sold."


def _delivery(fate: Fate) -> list[str]:
    """Where the meter saw less than was promised, or more than was bought."""
    assert fate.metered_net_wh is not None
    given_wh = max(-fate.metered_net_wh, 0)
    owed_wh = max(fate.sold_wh - fate.bought_wh, 0)
    if owed_wh > given_wh:
        return [
            f"It delivered {energy_text(given_wh)}, {energy_text(owed_wh - given_wh)} less than it"
            " sold; what was missing had to be paid for."
        ]
    return []


def _circumstances(record: Record) -> list[str]:
    said = []
    if record.lost:
        names = " and ".join(record.lost)
        said.append(f"No answer came from {names}.")
    if record.mode == "fall-back":
        said.append("The plan for the day was not ready in time; the home decided by the hour.")
    if record.policy_error:
        said.append(
            f"Your policy file has a mistake ({record.policy_error}); the last good one holds until"
            " it is corrected."
        )
    return said


def _alternatives(record: Record) -> list[str]:
    said = []
    if record.worth_uc_per_kwh is not None:
        said.append(
            f"One kWh more in the battery was worth {record.worth_uc_per_kwh / 1e4:.1f} ct."
        )
    if record.runner_up is not None:
        said.append(
            f"The next best would have been to {record.runner_up.action}, at a loss of"
            f" {record.runner_up.cost_uc / 1e4:.1f} ct."
        )
    return said


def _hours(hours: str) -> str:
    first, dash, last = hours.partition("–")
    return f"between {first} and {last}" if dash else "at any time"


def _count(number: int, what: str) -> str:
    return f"One {what}" if number == 1 else f"{number} {what}s"
