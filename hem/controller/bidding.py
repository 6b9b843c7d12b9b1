"""
What a home orders for a slot: quantities and prices from forecast, battery and tariff.

Without a market a home buys at retail and sells at feed-in, so any price between the two is a gain
for both sides; a trade that is not kept costs. So each home trades what it is sure of:

* **Without a battery**: a low quantile of its surplus or deficit. A Wh too much costs the seller
  imbalance − price and the buyer price − feed-in; a Wh too little costs the gain. The quantile is
  that of the newsvendor, and never above the expectation.
* **With a battery**: it absorbs errors, so the quantity is firm. Trades that only replace what the
  tariff would settle anyway (a surplus with no room left, a deficit with an empty battery) are
  always good. Those that move stored energy through time are good only if it is worth less (more)
  later than it brings (costs) now. What it is worth follows from running the battery in
  self-consumption over the day ahead, for several needs: feed-in where it gets full before it
  gets empty, retail where it gets empty first, the mean where that depends on the need. Stored
  energy is never sold below. Energy is bought for later only by a home that has seen a whole day:
  before that, nobody knows whether tomorrow's sun does not fill the battery for nothing.

Prices: a margin inside (feed-in, retail); from the battery never below wear plus what the energy is
worth later. All of it in integers.

Source: TMI section V-D; zero-intelligence-plus traders (Cliff 1997) for margins around the middle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from hem.controller.battery import Battery
from hem.controller.curves import bid_price, bid_quantity_wh, offer_price, offer_quantity_wh
from hem.controller.forecast import Forecast
from hem.controller.policy import Policy
from hem.controller.value_curve import Terms, ValueCurve
from hem.controller.value_orders import bids, offers

Side = Literal["buy", "sell"]

RECENT_PRICES = 4
AHEAD_TRUST_PERMILLE = 700
"""Share of a spare or missing amount over the day ahead that we act on."""
OFFER_POWER_PERMILLE = 450
"""Share of the discharging power that may be promised to others."""

NEEDS_PERMILLE = (800, 1000, 1500)
"""Needs to reckon with, of what is expected of a day that was seen before."""
NEEDS_UNSEEN_PERMILLE = (700, 1000, 2000)
"""The same while parts of the day were never seen."""
_ANY_TIME_S = 10**9
"""So long that rates do not limit."""


@dataclass(frozen=True, slots=True)
class OrderIntent:
    """An order we want to send."""

    side: Side
    energy_wh: int
    price_uc_per_kwh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything a decision depends on."""

    slot: int
    slot_seconds: int
    forecast: Forecast
    soc_wh: int | None
    """Stored energy expected when the slot begins; None without a battery."""
    battery: Battery | None
    retail: int
    """[µ¤/kWh], as are the next two."""
    feed_in: int
    imbalance: int
    prices: tuple[int, ...] = ()
    """Recent clearing prices, the newest last; 0 where nothing was traded."""
    can_buy: bool = True
    can_sell: bool = True
    max_buy_wh: int = 10**9
    max_sell_wh: int = 10**9
    day_s: int = 0
    """When the slot begins by the home's clock: seconds since midnight."""
    curve: ValueCurve | None = None
    """What stored energy is worth after the slot; None where nobody knows (ADR 0009)."""
    coming_wh: int = 0
    """Bought − sold in the slot that runs, and still to come: not in `soc_wh` yet."""
    owed_wh: int = 0
    """What the battery has to give in later slots for what is sold or promised in them [Wh]."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What we order, what the battery should do about it, and why."""

    orders: tuple[OrderIntent, ...]
    battery_wh: int
    """Expected battery energy in the slot if all orders are filled (+ discharge)."""
    reason: str
    rule: str = ""
    """Of the owner's, that decided; empty: none did."""


@dataclass(frozen=True, slots=True)
class _Outlook:
    """The battery in self-consumption over the slot and the day ahead."""

    known: bool
    spill_wh: int
    """Exported because it is full, before it is empty: selling this much costs nothing."""
    spare_wh: int
    """AC energy that it could give now and still never be empty before it is full."""
    short_wh: int
    """Bought because it is empty, before it is full again."""


def decide(situation: Situation, policy: Policy) -> Decision:
    """
    Orders of a home for one slot.

    All orders together can be kept by the home's forecast and its battery, lie within the grants,
    and their prices lie strictly between feed-in and retail and within the owner's caps.
    """
    if not policy.trades:
        return Decision((), 0, "the owner takes part in rewards only (RE)")
    if situation.retail - situation.feed_in < 2:
        return Decision((), 0, "nothing to gain between feed-in and retail")
    battery, soc_wh = situation.battery, situation.soc_wh
    if battery is None or soc_wh is None:
        intents, reason = _without_battery(situation, policy)
    else:
        intents, reason = _with_battery(situation, policy, usable_battery(battery, policy), soc_wh)
    orders = _within_grants(intents, situation, policy)
    position_wh = sum(o.energy_wh if o.side == "buy" else -o.energy_wh for o in orders)
    return Decision(orders, battery_wh(situation, policy, position_wh), reason)


def answer_auction(
    situation: Situation,
    policy: Policy,
    template: str,
    energy_wh: int,
    price_uc_per_kwh: int,
    committed_sell_wh: int,
) -> OrderIntent | None:
    """
    Answer the aggregator's auction with battery energy beyond the home's own need (TMI V-D).

    Args:
        template: "reverse" (the aggregator buys under a cap) or "forward" (it sells above a floor)
        energy_wh: what it wants or has
        price_uc_per_kwh: its cap or floor
        committed_sell_wh: what we already offered or sold for this slot

    Returns:
        A sell order not above the cap and not below wear plus opportunity value; a buy order
        (forward) not below the floor for what the battery will be short of; else None.
    """
    battery, soc_wh = situation.battery, situation.soc_wh
    if battery is None or soc_wh is None or not policy.trades or energy_wh <= 0:
        return None
    usable = usable_battery(battery, policy)
    outlook = _outlook(situation, usable, soc_wh)
    if template == "reverse" and situation.can_sell:
        stored = _stored_offers(situation, policy, usable, soc_wh, outlook)
        asks = [(capped_ask(each.price_uc_per_kwh, policy), each.energy_wh) for each in stored]
        given = [ask for ask in asks if ask[0] <= price_uc_per_kwh]
        if not given:
            return None
        price, free_wh = max(given)[0], sum(wh for _, wh in given) - committed_sell_wh
        quantity_wh = min(energy_wh, free_wh, situation.max_sell_wh - committed_sell_wh)
        if price > price_uc_per_kwh or quantity_wh < policy.min_order_wh:
            return None
        return OrderIntent("sell", quantity_wh, price)
    if template == "forward" and situation.can_buy:
        charging = _charge_bids(situation, policy, usable, soc_wh, outlook)
        wanted = [(capped_bid(each.price_uc_per_kwh, policy), each.energy_wh) for each in charging]
        taken = [bid for bid in wanted if bid[0] >= price_uc_per_kwh]
        if not taken:
            return None
        price = min(taken)[0]
        quantity_wh = min(energy_wh, sum(wh for _, wh in taken), situation.max_buy_wh)
        if price < price_uc_per_kwh or quantity_wh < policy.min_order_wh:
            return None
        return OrderIntent("buy", quantity_wh, price)
    return None


def _without_battery(situation: Situation, policy: Policy) -> tuple[list[OrderIntent], str]:
    forecast = situation.forecast
    net_wh = forecast.net_wh
    if forecast.pv_wh and forecast.spread_wh >= abs(net_wh):
        return [], f"{net_wh} Wh ± {forecast.spread_wh} Wh: surplus or deficit, nobody knows"
    gap = situation.retail - situation.feed_in
    price = _expected_price(situation)
    if net_wh >= 0:
        fractile = (situation.retail - price) * 1000 // gap
        quantity_wh = _cautious(net_wh, situation.forecast.spread_wh, fractile, policy)
        reason = f"expected deficit {net_wh} Wh, bid for the {quantity_wh} Wh we are sure of"
        return [OrderIntent("buy", quantity_wh, _risky_bid(situation, policy))], reason
    risk = max(situation.imbalance - situation.feed_in, 1)
    ask = _risky_ask(situation, policy)
    fractile = (max(price, ask) - situation.feed_in) * 1000 // risk
    quantity_wh = _cautious(-net_wh, situation.forecast.spread_wh, fractile, policy)
    reason = f"expected surplus {-net_wh} Wh, offer the {quantity_wh} Wh we are sure of"
    return [OrderIntent("sell", quantity_wh, ask)], reason


def _with_battery(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int
) -> tuple[list[OrderIntent], str]:
    net_wh = situation.forecast.net_wh
    outlook = _outlook(situation, battery, soc_wh)
    stored = _stored_offers(situation, policy, battery, soc_wh, outlook)
    stored_wh = sum(order.energy_wh for order in stored)
    if net_wh < 0:
        surplus = _surplus_offers(situation, policy, battery, soc_wh, outlook)
        surplus_wh = sum(order.energy_wh for order in surplus)
        if surplus_wh or stored_wh:
            return (
                [*surplus, *stored],
                f"surplus {-net_wh} Wh of which the battery will not need {surplus_wh} Wh, "
                f"and {stored_wh} Wh stored beyond our own need",
            )
    elif stored_wh:
        return stored, f"{stored_wh} Wh stored beyond our own need"
    charging = _charge_bids(situation, policy, battery, soc_wh, outlook)
    buy_wh = _deficit_bid_wh(situation, policy, battery, soc_wh, outlook)
    return (
        [
            OrderIntent("buy", buy_wh, _risky_bid(situation, policy)),
            *charging,
        ],
        f"the battery will be short of {outlook.short_wh} Wh"
        if outlook.known
        else "the day ahead is not known yet: by the state of charge",
    )


def _deficit_bid_wh(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, outlook: _Outlook
) -> int:
    """
    What of this slot's deficit to buy.

    What the battery cannot give is bought in any case, so it is bid for. To buy more keeps stored
    energy for later: a gain only if the battery then runs empty, which nobody knows who has not
    seen a whole day.
    """
    forecast = situation.forecast
    empty_wh = forecast.net_wh - battery.discharge_limit_wh(soc_wh, situation.slot_seconds)
    wanted_wh = 0
    if outlook.known and forecast.day_seen:
        wanted_wh = outlook.short_wh * AHEAD_TRUST_PERMILLE // 1000
    return max(min(forecast.net_wh - forecast.spread_wh, max(empty_wh, wanted_wh)), 0)


def _outlook(situation: Situation, battery: Battery, soc_wh: int) -> _Outlook:
    """Run the battery in self-consumption until it was first full or first empty, whichever."""
    ahead = situation.forecast.ahead_wh
    if not ahead:
        return _Outlook(False, 0, 0, 0)
    seconds = situation.slot_seconds
    spill_wh = short_wh = 0
    spare_wh = battery.discharge_limit_wh(soc_wh, _ANY_TIME_S)
    for net_wh in chain((situation.forecast.net_wh,), ahead):
        if net_wh < 0:
            charge_wh = min(-net_wh, battery.charge_limit_wh(soc_wh, seconds))
            lost_wh = -net_wh - charge_wh
            full = battery.charge_limit_wh(soc_wh, _ANY_TIME_S) <= -net_wh
            soc_wh = battery.after(soc_wh, charge_wh, 0)
            if short_wh and full:
                break
            # Surplus beyond the charging rate is exported whatever the state of charge.
            spill_wh += lost_wh if full else 0
        else:
            given_wh = min(net_wh, battery.discharge_limit_wh(soc_wh, seconds))
            left_wh = battery.discharge_limit_wh(soc_wh, _ANY_TIME_S)
            empty = left_wh <= net_wh
            soc_wh = battery.after(soc_wh, 0, given_wh)
            if spill_wh and empty:
                break
            short_wh += net_wh - given_wh if empty else 0
            if not spill_wh:
                spare_wh = min(spare_wh, battery.discharge_limit_wh(soc_wh, _ANY_TIME_S))
    # Never full within the day: what is left may be needed after it.
    return _Outlook(True, spill_wh, spare_wh if spill_wh else 0, short_wh)


def _worth_later(situation: Situation, battery: Battery, soc_wh: int, energy_wh: int) -> int:
    """
    What `energy_wh` that the battery could give in this slot is worth if it is kept [µ¤/kWh].

    The battery is run in self-consumption over the day ahead with and without that energy; the
    difference is what is bought more (retail) and exported less (feed-in). The mean over several
    needs, because the need is a guess: so it lies between the two as the battery may run empty.
    What is still missing at the end has to be bought some day. Retail while nothing is known.
    """
    forecast = situation.forecast
    if situation.curve is not None:
        return _by_curve(situation, situation.curve, battery, soc_wh, energy_wh)
    if not forecast.ahead_wh:
        return situation.retail
    soc_wh = self_consumption(battery, soc_wh, forecast.net_wh, situation.slot_seconds)[0]
    energy_wh = max(min(energy_wh, battery.discharge_limit_wh(soc_wh, _ANY_TIME_S)), 1)
    less_wh = max(battery.after(soc_wh, 0, energy_wh), 0)
    needs = NEEDS_PERMILLE if forecast.day_seen else NEEDS_UNSEEN_PERMILLE
    lost_uc = 0
    for need in needs:
        kept, kept_soc_wh = _day_cost(situation, battery, soc_wh, need)
        given, given_soc_wh = _day_cost(situation, battery, less_wh, need)
        missing_wh = (kept_soc_wh - given_soc_wh) * battery.discharge_permille // 1000
        lost_uc += given - kept + missing_wh * situation.retail
    worth = lost_uc // (energy_wh * len(needs))
    return min(max(worth, situation.feed_in), situation.retail)


def _by_curve(
    situation: Situation, curve: ValueCurve, battery: Battery, soc_wh: int, energy_wh: int
) -> int:
    """The mean value of the stored energy that `energy_wh` takes, after the slot's own use."""
    net_wh, seconds = situation.forecast.net_wh, situation.slot_seconds
    top_wh = self_consumption(battery, soc_wh, net_wh, seconds)[0]
    drawn_wh = max(energy_wh, 1) * 1000 // battery.discharge_permille
    values = [curve.marginal(max(top_wh - drawn_wh * part // 4, 0)) for part in range(1, 5)]
    worth = sum(values) * battery.discharge_permille // 4_000
    return min(max(worth, situation.feed_in), situation.retail)


def _day_cost(
    situation: Situation, battery: Battery, soc_wh: int, need_permille: int
) -> tuple[int, int]:
    """Cost of the day ahead in self-consumption [µ¤/1000] and the energy left at its end [Wh]."""
    cost = 0
    for expected_wh in situation.forecast.ahead_wh:
        net_wh = expected_wh * need_permille // 1000 if expected_wh > 0 else expected_wh
        soc_wh, grid_wh = self_consumption(battery, soc_wh, net_wh, situation.slot_seconds)
        cost += grid_wh * (situation.retail if grid_wh > 0 else situation.feed_in)
    return cost, soc_wh


def self_consumption(battery: Battery, soc_wh: int, net_wh: int, seconds: int) -> tuple[int, int]:
    """Stored energy after a slot of self-consumption, and what the grid carried [Wh]."""
    if net_wh < 0:
        charge_wh = min(-net_wh, battery.charge_limit_wh(soc_wh, seconds))
        return battery.after(soc_wh, charge_wh, 0), net_wh + charge_wh
    given_wh = min(net_wh, battery.discharge_limit_wh(soc_wh, seconds))
    return battery.after(soc_wh, 0, given_wh), net_wh - given_wh


def _surplus_offers(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, outlook: _Outlook
) -> list[OrderIntent]:
    """
    This slot's surplus: what the battery has no room for, and what it will not need.

    The first is exported in any case. If it turns out smaller, stored energy makes it good, so it
    is offered the more carefully and dearly, the more stored energy is worth. The second leaves
    the battery with less, so it is never given below that.
    """
    spread_wh, surplus_wh = situation.forecast.spread_wh, -situation.forecast.net_wh
    over_wh, free_wh = _free_surplus_wh(situation, policy, battery, soc_wh, outlook)
    worth = _worth_later(situation, battery, soc_wh, max(free_wh - over_wh, spread_wh))
    gap = situation.retail - situation.feed_in
    # What the battery can give stands behind the offer, as far as it can be spared; what it cannot
    # is forecast alone.
    backing_wh = battery.discharge_limit_wh(soc_wh, situation.slot_seconds)
    safe_wh = backing_wh * (situation.retail - worth) // gap
    risk_wh = max(spread_wh - safe_wh, spread_wh * (worth - situation.feed_in) // gap)
    sure_wh = max(over_wh - risk_wh, 0)
    more_wh = max(free_wh - max(over_wh, risk_wh), 0)
    low = best_ask(situation, policy)
    high = min(max(worth, low), best_bid(situation, policy))
    uncertain_wh = min(spread_wh, surplus_wh)
    ask = low + (high - low) * uncertain_wh // (surplus_wh + uncertain_wh)
    # Of what goes in, only a part comes out again.
    kept = worth * battery.charge_permille * battery.discharge_permille // 1_000_000
    return [
        OrderIntent("sell", sure_wh * policy.certainty_permille // 1000, ask),
        OrderIntent("sell", more_wh * policy.certainty_permille // 1000, max(ask, kept)),
    ]


def _free_surplus_wh(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, outlook: _Outlook
) -> tuple[int, int]:
    """Of this slot's surplus, what the battery cannot take and, with it, what it need not."""
    surplus_wh = -situation.forecast.net_wh
    over_wh = max(surplus_wh - battery.charge_limit_wh(soc_wh, situation.slot_seconds), 0)
    if outlook.known:
        free_wh = max(over_wh, outlook.spill_wh * AHEAD_TRUST_PERMILLE // 1000)
    else:
        soc = battery.soc_permille(soc_wh)
        free_wh = over_wh + offer_quantity_wh(soc, surplus_wh - over_wh, policy.offer_curve)
    return over_wh, min(free_wh, surplus_wh)


def _stored_offer_wh(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, outlook: _Outlook
) -> int:
    """Stored energy to offer: the curve of Fig 4, within what the home will not need itself."""
    if not outlook.known:
        return 0
    reserve_wh = battery.capacity_wh * policy.reserve_permille // 1000
    deficit_wh = max(situation.forecast.net_wh, 0)
    power_wh = battery.discharge_limit_wh(soc_wh - reserve_wh, situation.slot_seconds)
    # Part of the power stays with the home: an oven starts without asking.
    limit_wh = power_wh * OFFER_POWER_PERMILLE // 1000 - deficit_wh
    limit_wh -= situation.forecast.spread_wh
    soc = battery.soc_permille(soc_wh)
    by_curve_wh = offer_quantity_wh(soc, limit_wh, policy.offer_curve)
    free_wh = (outlook.spare_wh - reserve_wh) * AHEAD_TRUST_PERMILLE // 1000
    free_wh -= situation.forecast.spread_wh
    return max(min(by_curve_wh, free_wh), 0)


def _stored_offers(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, outlook: _Outlook
) -> list[OrderIntent]:
    """Stored energy to sell: in steps by what it will be worth, else one by Figs 4 and 5."""
    curve = situation.curve
    if curve is None:
        stored_wh = _stored_offer_wh(situation, policy, battery, soc_wh, outlook)
        ask = _stored_ask(situation, policy, battery, soc_wh, stored_wh)
        return [OrderIntent("sell", stored_wh, ask)]
    seconds, spread_wh = situation.slot_seconds, situation.forecast.spread_wh
    power_wh = battery.max_discharge_w * seconds // 3600
    after_wh = self_consumption(battery, soc_wh, situation.forecast.net_wh, seconds)[0]
    reserve_wh = battery.capacity_wh * policy.reserve_permille // 1000
    # The curve was made without what was promised since, and sees only what the home needs.
    owed_wh = -(-situation.owed_wh * 1000 // battery.discharge_permille)
    limit_wh = min(
        power_wh * OFFER_POWER_PERMILLE // 1000 - max(situation.forecast.net_wh, 0),
        battery.discharge_limit_wh(after_wh - reserve_wh - owed_wh, seconds),
    )
    found = offers(
        curve, battery, after_wh, max(limit_wh - spread_wh, 0), _terms(situation, policy), seconds
    )
    return [OrderIntent("sell", energy_wh, ask) for ask, energy_wh in found]


def _charge_bids(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, outlook: _Outlook
) -> list[OrderIntent]:
    """Energy to buy for later, in steps where its worth is known."""
    curve = situation.curve
    if curve is None:
        charge_wh = _charge_wh(situation, policy, battery, soc_wh, outlook)
        return [OrderIntent("buy", charge_wh, _charge_bid(situation, policy, battery, soc_wh))]
    seconds, net_wh = situation.slot_seconds, situation.forecast.net_wh
    after_wh = self_consumption(battery, soc_wh, net_wh, seconds)[0]
    limit_wh = battery.charge_limit_wh(after_wh, seconds) - max(-net_wh, 0)
    limit_wh = max(limit_wh - situation.forecast.spread_wh, 0)
    found = bids(curve, battery, after_wh, limit_wh, _terms(situation, policy), seconds)
    return [OrderIntent("buy", energy_wh, bid) for bid, energy_wh in found]


def _terms(situation: Situation, policy: Policy) -> Terms:
    """Between which prices stored energy is traded: a margin inside feed-in and retail."""
    return Terms(
        import_price=best_bid(situation, policy) + 1,
        export_price=best_ask(situation, policy),
        wear=policy.degradation_uc_per_kwh,
    )


def _charge_wh(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, outlook: _Outlook
) -> int:
    """Energy to buy for the battery: the curve of Fig 5, within what it will be short of."""
    if not (outlook.known and situation.forecast.day_seen):
        return 0
    deficit_wh = max(situation.forecast.net_wh, 0)
    missing_wh = (outlook.short_wh - deficit_wh) * AHEAD_TRUST_PERMILLE // 1000
    surplus_wh = max(-situation.forecast.net_wh, 0)
    limit_wh = battery.charge_limit_wh(soc_wh, situation.slot_seconds) - surplus_wh
    soc = battery.soc_permille(soc_wh)
    by_curve_wh = bid_quantity_wh(soc, limit_wh, policy.bid_curve)
    return max(min(by_curve_wh, missing_wh - situation.forecast.spread_wh), 0)


def _stored_ask(
    situation: Situation, policy: Policy, battery: Battery, soc_wh: int, stored_wh: int
) -> int:
    """
    Price of stored energy: wear plus what it is worth later, falling with the SoC.

    What it is worth later lies between feed-in and retail, see `_worth_later`.
    """
    later = _worth_later(situation, battery, soc_wh, stored_wh)
    least = later + policy.degradation_uc_per_kwh
    low = max(least, best_ask(situation, policy))
    high = max(low, best_bid(situation, policy))
    soc = battery.soc_permille(soc_wh)
    # A sudden load beyond the battery's power makes us miss the sale: uncertainty costs.
    spread_wh = situation.forecast.spread_wh
    power_wh = max(battery.max_discharge_w * situation.slot_seconds // 3600, 1)
    risk_uc = (high - low) * min(spread_wh, power_wh) // power_wh
    # A quarter of the way at most for the SoC: an offer that is never taken earns nothing.
    return offer_price(soc, low, low + (high - low) // 4, least) + risk_uc


def _charge_bid(situation: Situation, policy: Policy, battery: Battery, soc_wh: int) -> int:
    """Price for charging: price / efficiency + wear stays below retail, less the margin."""
    round_trip = battery.charge_permille * battery.discharge_permille // 1000
    worth = max(situation.retail - policy.degradation_uc_per_kwh, 0) * round_trip // 1000
    high = min(worth, situation.retail) - _margin(situation, policy)
    low = min(best_ask(situation, policy), high)
    return bid_price(battery.soc_permille(soc_wh), low, high)


def _risky_ask(situation: Situation, policy: Policy) -> int:
    """
    Price of a surplus with no battery behind it.

    A seller risks imbalance − price to gain price − feed-in. So the ask rises from the usual ask
    toward the highest bid with the share of the forecast that is uncertain.
    """
    low, high = best_ask(situation, policy), best_bid(situation, policy)
    spread_wh = situation.forecast.spread_wh
    known_wh = abs(situation.forecast.net_wh) + spread_wh
    return low + max(high - low, 0) * spread_wh // max(known_wh, 1)


def _risky_bid(situation: Situation, policy: Policy) -> int:
    """
    Price for a deficit with no battery behind it: the mirror image.

    A buyer risks price − feed-in to gain retail − price, so the bid falls with what is uncertain.
    """
    low, high = best_ask(situation, policy), best_bid(situation, policy)
    spread_wh = situation.forecast.spread_wh
    known_wh = abs(situation.forecast.net_wh) + spread_wh
    return high - max(high - low, 0) * spread_wh // max(known_wh, 1)


def _cautious(expected_wh: int, spread_wh: int, fractile_permille: int, policy: Policy) -> int:
    """A low quantile of an amount: the expectation, less up to one and a half spreads."""
    fractile = min(max(fractile_permille, 0), 500)
    less_wh = spread_wh * 3 * (500 - fractile) // 1000
    return max(expected_wh - less_wh, 0) * policy.certainty_permille // 1000


def _expected_price(situation: Situation) -> int:
    """Mean of the last prices, the middle of the gap while there are none."""
    traded = [price for price in situation.prices[-RECENT_PRICES:] if price > 0]
    price = sum(traded) // len(traded) if traded else (situation.feed_in + situation.retail) // 2
    return min(max(price, situation.feed_in), situation.retail)


def _margin(situation: Situation, policy: Policy) -> int:
    return max((situation.retail - situation.feed_in) * policy.margin_permille // 1000, 1)


def best_ask(situation: Situation, policy: Policy) -> int:
    """The least that a sure surplus is given for: the margin above feed-in [µ¤/kWh]."""
    return situation.feed_in + _margin(situation, policy)


def best_bid(situation: Situation, policy: Policy) -> int:
    """The most that is paid for a sure deficit: the margin below retail [µ¤/kWh]."""
    return situation.retail - _margin(situation, policy)


def capped_ask(price: int, policy: Policy) -> int:
    """A price to sell at, not below the owner's least [µ¤/kWh]."""
    return price if policy.sell_price_min is None else max(price, policy.sell_price_min)


def capped_bid(price: int, policy: Policy) -> int:
    """A price to buy at, not above the owner's most [µ¤/kWh]."""
    return price if policy.buy_price_max is None else min(price, policy.buy_price_max)


def usable_battery(battery: Battery, policy: Policy) -> Battery:
    """The battery within the owner's limits as well as its own."""
    low = max(battery.soc_min_permille, policy.soc_min_permille)
    high = min(battery.soc_max_permille, policy.soc_max_permille)
    return replace(battery, soc_min_permille=min(low, high), soc_max_permille=high)


def _within_grants(
    intents: list[OrderIntent], situation: Situation, policy: Policy
) -> tuple[OrderIntent, ...]:
    left_wh: dict[Side, int] = {
        "buy": situation.max_buy_wh if situation.can_buy else 0,
        "sell": situation.max_sell_wh if situation.can_sell else 0,
    }
    orders = []
    for intent in intents:
        price = intent.price_uc_per_kwh
        price = (capped_bid if intent.side == "buy" else capped_ask)(price, policy)
        quantity_wh = min(intent.energy_wh, left_wh[intent.side])
        gains = situation.feed_in < price < situation.retail
        if gains and quantity_wh >= policy.min_order_wh:
            orders.append(OrderIntent(intent.side, quantity_wh, price))
            left_wh[intent.side] -= quantity_wh
    return tuple(orders)


def battery_wh(situation: Situation, policy: Policy, position_wh: int) -> int:
    """What the battery does if the whole position is filled; the rest is the grid's."""
    battery, soc_wh = situation.battery, situation.soc_wh
    if battery is None or soc_wh is None:
        return 0
    usable = usable_battery(battery, policy)
    wanted_wh = situation.forecast.net_wh - position_wh
    if wanted_wh >= 0:
        return min(wanted_wh, usable.discharge_limit_wh(soc_wh, situation.slot_seconds))
    return -min(-wanted_wh, usable.charge_limit_wh(soc_wh, situation.slot_seconds))
