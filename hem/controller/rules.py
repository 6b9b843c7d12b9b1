"""
The owner's rules at work: rules × situation → what may be ordered, and what is wished for. Pure.

    bounded      a situation and a policy as they hold in one slot: the caps, reserves and windows
                 of its hours folded into the plain limits that every decision keeps anyway
    due          the rules that are to be looked at now
    decide_by    the decision of `hem.controller.bidding`, or that of the first rule that fires
    permitted    the gate: every order passes it on its way out, whoever made it

The gate believes nobody. It looks at an order, the slot's hours and the battery, and says which
limit of the owner would be broken; so a mistake anywhere before it costs a trade, not the owner's
trust.

A rule's request is what the owner wrote: from 48 Ah to 60 Ah are 12 Ah, whatever is lost on the
way into the battery; what is missing then is asked for when the rule is looked at again.

Source: ETSE section IV (PML and its illustrative scenario).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from math import ceil, floor
from typing import Any

from hem.controller.battery import Battery
from hem.controller.bidding import (
    Decision,
    OrderIntent,
    Situation,
    battery_wh,
    best_ask,
    best_bid,
    capped_ask,
    capped_bid,
    decide,
    usable_battery,
)
from hem.controller.policy import Market, Policy
from hem.controller.quantities import Level
from hem.controller.sections import Rule

_ANY_TIME_S = 10**9
"""So long that rates do not limit."""


class Forbidden(StrEnum):
    """Why an order does not leave."""

    PARTICIPATION = "PARTICIPATION"
    """The owner takes part in rewards only."""
    MARKET = "MARKET"
    """Not a market that the owner named."""
    NEVER_SELL = "NEVER_SELL"
    PRICE_ABOVE_MAX = "PRICE_ABOVE_MAX"
    PRICE_BELOW_MIN = "PRICE_BELOW_MIN"
    RESERVE = "RESERVE"
    """It would sell what is kept for the home."""
    LIMIT = "LIMIT"
    """More than grant, connection or a limit from outside allows."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the owner allows in one slot."""

    buy_max: int | None
    """[µ¤/kWh], rounded down."""
    sell_min: int | None
    """[µ¤/kWh], rounded up."""
    never_sell: str
    """The hours in which nothing is sold, `all day`; empty: it may be."""
    keep_wh: int
    """Stored energy below which nothing is sold [Wh], rounded up; 0 without a battery."""


def bounds_of(situation: Situation, policy: Policy) -> Bounds:
    """The owner's limits that hold in any moment of the situation's slot."""
    when = situation.day_s, situation.slot_seconds
    caps = [cap for cap in policy.price_cap if cap.overlaps(*when)]
    buys = [floor(policy.price_uc(cap.buy_max)) for cap in caps if cap.buy_max is not None]
    sells = [ceil(policy.price_uc(cap.sell_min)) for cap in caps if cap.sell_min is not None]
    if policy.buy_price_max is not None:
        buys.append(policy.buy_price_max)
    if policy.sell_price_min is not None:
        sells.append(policy.sell_price_min)
    closed = [one.hours or "all day" for one in policy.never_sell if one.overlaps(*when)]
    return Bounds(
        min(buys, default=None), max(sells, default=None), closed[0] if closed else "",
        _keep_wh(situation, policy),
    )  # fmt: skip


def bounded(situation: Situation, policy: Policy) -> tuple[Situation, Policy]:
    """
    A situation and a policy that say in plain limits what holds in this slot.

    What decides and knows nothing of hours then keeps to them: `buy_price_max`, `sell_price_min`,
    `reserve_permille` of the policy, `can_sell` of the situation.
    """
    bounds = bounds_of(situation, policy)
    update = {
        "buy_price_max": bounds.buy_max,
        "sell_price_min": bounds.sell_min,
        "reserve_permille": reserve_permille(situation, policy),
    }
    may_sell = situation.can_sell and not bounds.never_sell
    return replace(situation, can_sell=may_sell), policy.model_copy(update=update)


def reserve_permille(situation: Situation, policy: Policy) -> int:
    """Of the capacity: what is kept above the least state of charge, rounded up."""
    battery = situation.battery
    if battery is None or situation.soc_wh is None:
        return policy.reserve_permille
    over_wh = _keep_wh(situation, policy) - usable_battery(battery, policy).floor_wh
    return min(max(policy.reserve_permille, -(-over_wh * 1000 // battery.capacity_wh)), 1000)


def due(policy: Policy, since_ms: int, now_ms: int) -> tuple[Rule, ...]:
    """The rules whose time to be looked at came after `since_ms`, and by now at the latest."""
    return tuple(
        rule
        for rule in policy.rule
        if now_ms // (rule.every * 1000) != since_ms // (rule.every * 1000)
    )


def decide_by(situation: Situation, policy: Policy, rules: Sequence[Rule]) -> Decision:
    """
    Orders of a home for one slot, within the owner's limits.

    Of the rules that are due the first that fires and may trade decides alone: the home buys or
    sells toward the rule's target and orders nothing else. Otherwise `bidding.decide` does.
    """
    within, limits = bounded(situation, policy)
    if limits.trades:
        for rule in rules:
            order = _wish(rule, within, limits)
            if order is not None:
                text = f"{rule.when}: {order.side} to {rule.buy_to or rule.sell_to}"
                position_wh = order.energy_wh if order.side == "buy" else -order.energy_wh
                stored_wh = battery_wh(within, limits, position_wh)
                return Decision((order,), stored_wh, f"rule: {text}", text)
    return decide(within, limits)


def binding(
    situation: Situation, free: Situation, policy: Policy, rules: Sequence[Rule], made: Decision
) -> tuple[str, ...]:
    """
    Which limits shaped a decision: those without which it would have been another.

    Args:
        situation, policy, rules: what `decide_by` was given
        free: the situation without limits of the grid
        made: the decision

    Returns:
        Of `never-sell`, `price-max`, `price-min`, `reserve`, `grid`.
    """
    bounds = bounds_of(situation, policy)
    # each look costs a whole decision, so only at what the owner has asked for and holds now
    asked = {
        "never-sell": bool(bounds.never_sell),
        "price-max": bounds.buy_max is not None,
        "price-min": bounds.sell_min is not None,
        "reserve": bool(policy.reserve)
        or any(rule.keep is not None for rule in policy.rule)
        or "reserve_permille" in policy.model_fields_set,
    }
    uncapped = tuple(cap.model_copy(update={"buy_max": None}) for cap in policy.price_cap)
    unfloored = tuple(cap.model_copy(update={"sell_min": None}) for cap in policy.price_cap)
    loose: dict[str, dict[str, Any]] = {
        "never-sell": {"never_sell": ()},
        "price-max": {"buy_price_max": None, "price_cap": uncapped},
        "price-min": {"sell_price_min": None, "price_cap": unfloored},
        "reserve": {"reserve_permille": 0, "reserve": (), "rule": ()},
    }
    found = [
        name
        for name, update in loose.items()
        if asked[name]
        and decide_by(situation, policy.model_copy(update=update), rules).orders != made.orders
    ]
    if free != situation and decide_by(free, policy, rules).orders != made.orders:
        found.append("grid")
    return tuple(found)


def permitted(
    order: OrderIntent, market: Market, situation: Situation, policy: Policy
) -> OrderIntent | Forbidden:
    """
    The gate that every order passes before it leaves.

    Args:
        order: for the situation's slot
        market: where it is to go
        situation: of the slot; what was ordered before is no part of it any more
        policy: the owner's, as it is written

    Returns:
        The order as it is, or the first of the owner's limits that it breaks.
    """
    if not policy.trades:
        return Forbidden.PARTICIPATION
    if market not in policy.markets:
        return Forbidden.MARKET
    bounds = bounds_of(situation, policy)
    if order.side == "buy":
        if bounds.buy_max is not None and order.price_uc_per_kwh > bounds.buy_max:
            return Forbidden.PRICE_ABOVE_MAX
        most_wh = situation.max_buy_wh if situation.can_buy else 0
        return order if order.energy_wh <= most_wh else Forbidden.LIMIT
    if bounds.never_sell:
        return Forbidden.NEVER_SELL
    if bounds.sell_min is not None and order.price_uc_per_kwh < bounds.sell_min:
        return Forbidden.PRICE_BELOW_MIN
    if order.energy_wh > (situation.max_sell_wh if situation.can_sell else 0):
        return Forbidden.LIMIT
    return order if order.energy_wh <= _spare_wh(situation, policy) else Forbidden.RESERVE


def permitted_together(
    orders: Sequence[OrderIntent], market: Market, situation: Situation, policy: Policy
) -> tuple[tuple[OrderIntent, ...], tuple[Forbidden, ...]]:
    """The orders for one slot that may leave together, in their order; why the others may not."""
    allowed: list[OrderIntent] = []
    refused: list[Forbidden] = []
    for order in orders:
        verdict = permitted(order, market, situation, policy)
        if isinstance(verdict, Forbidden):
            refused.append(verdict)
        else:
            allowed.append(order)
            situation = _after(order, situation)
    return tuple(allowed), tuple(refused)


def _after(order: OrderIntent, situation: Situation) -> Situation:
    """What is left for other orders of the same slot."""
    if order.side == "buy":
        return replace(situation, max_buy_wh=situation.max_buy_wh - order.energy_wh)
    forecast = situation.forecast
    return replace(
        situation,
        max_sell_wh=situation.max_sell_wh - order.energy_wh,
        forecast=replace(forecast, load_wh=forecast.load_wh + order.energy_wh),
    )


def _spare_wh(situation: Situation, policy: Policy) -> int:
    """What may be sold in the slot: its surplus, and what is stored above what is kept [Wh]."""
    net_wh = situation.forecast.net_wh
    battery, soc_wh = situation.battery, situation.soc_wh
    if battery is None or soc_wh is None:
        return max(-net_wh, 0)
    permille = reserve_permille(situation, policy)
    reserve_wh = battery.capacity_wh * permille // 1000
    usable = usable_battery(battery, policy)
    return max(usable.discharge_limit_wh(soc_wh - reserve_wh, _ANY_TIME_S) - net_wh, -net_wh, 0)


def _keep_wh(situation: Situation, policy: Policy) -> int:
    """The largest of the reserves that hold in the slot, as an energy in the battery [Wh]."""
    battery = situation.battery
    if battery is None or situation.soc_wh is None:
        return 0
    when = situation.day_s, situation.slot_seconds
    kept = [one.keep for one in policy.reserve if one.overlaps(*when)]
    kept += [
        rule.keep
        for rule in policy.rule
        if rule.keep is not None and _fires(rule, situation, policy, battery)
    ]
    floor_wh = usable_battery(battery, policy).floor_wh
    always_wh = floor_wh + battery.capacity_wh * policy.reserve_permille // 1000
    levels = [ceil(policy.level_wh(level, battery.capacity_wh)) for level in kept]
    return max(always_wh, *levels) if levels else always_wh


def _fires(rule: Rule, situation: Situation, policy: Policy, battery: Battery) -> bool:
    """Is it the rule's time of day, and does all of its condition hold?"""
    if situation.soc_wh is None or not rule.overlaps(situation.day_s, situation.slot_seconds):
        return False
    stored_wh = Fraction(situation.soc_wh + situation.coming_wh)
    known = [price for price in situation.prices if price > 0]
    for term in rule.when.terms:
        if isinstance(term.limit, Level):
            holds = term.holds(stored_wh, policy.level_wh(term.limit, battery.capacity_wh))
        else:
            price = policy.price_uc(term.limit)
            holds = bool(known) and term.holds(Fraction(known[-1]), price)
        if not holds:
            return False
    return True


def _wish(rule: Rule, situation: Situation, policy: Policy) -> OrderIntent | None:
    """What a rule orders in the slot; None: it does not fire, or may not, or it is too little."""
    battery, soc_wh = situation.battery, situation.soc_wh
    if battery is None or soc_wh is None or not _fires(rule, situation, policy, battery):
        return None
    order = None
    if rule.buy_to is not None:
        order = _purchase(rule, rule.buy_to, situation, policy, usable_battery(battery, policy))
    elif rule.sell_to is not None:
        order = _sale(rule, rule.sell_to, situation, policy, usable_battery(battery, policy))
    return order if order is not None and order.energy_wh >= policy.min_order_wh else None


def _purchase(
    rule: Rule, target: Level, situation: Situation, policy: Policy, battery: Battery
) -> OrderIntent:
    assert situation.soc_wh is not None
    stored_wh = situation.soc_wh + situation.coming_wh
    missing_wh = floor(policy.level_wh(target, battery.capacity_wh) - stored_wh)
    energy_wh = min(
        missing_wh,
        battery.charge_limit_wh(stored_wh, situation.slot_seconds),
        situation.max_buy_wh if situation.can_buy else 0,
        _at_most_wh(rule, situation),
    )
    # Nobody pays more than what the energy costs without a market.
    price = min(
        best_bid(situation, policy)
        if rule.price_max is None
        else floor(policy.price_uc(rule.price_max)),
        situation.retail - 1,
    )
    return OrderIntent("buy", energy_wh, capped_bid(price, policy))


def _sale(
    rule: Rule, target: Level, situation: Situation, policy: Policy, battery: Battery
) -> OrderIntent:
    assert situation.soc_wh is not None
    stored_wh = situation.soc_wh + situation.coming_wh
    above_wh = floor(stored_wh - policy.level_wh(target, battery.capacity_wh))
    energy_wh = min(
        above_wh,
        # the rate of the battery, less what the home takes itself
        battery.discharge_limit_wh(stored_wh, situation.slot_seconds)
        - max(situation.forecast.net_wh, 0),
        situation.max_sell_wh if situation.can_sell else 0,
        _spare_wh(situation, policy),
        _at_most_wh(rule, situation),
    )
    price = max(
        best_ask(situation, policy)
        if rule.price_min is None
        else ceil(policy.price_uc(rule.price_min)),
        situation.feed_in + 1,
    )
    return OrderIntent("sell", energy_wh, capped_ask(price, policy))


def _at_most_wh(rule: Rule, situation: Situation) -> int:
    """What the rule's power carries in the slot [Wh]."""
    return 10**9 if rule.power_max is None else rule.power_max * situation.slot_seconds // 3600
