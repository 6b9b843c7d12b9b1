"""
Trading some slots ahead: with neighbours over the order book, in escrow, by a schedule. Pure.

What we would order for a slot (`hem.controller.bidding.decide`) is a wish. Here wishes become

- **blocks**: an offer of the order book has the same energy in every slot of an interval, so we
  offer what we wish to sell in each of them, at the dearest of our prices;
- **choices**: of the offers that stand, the one that saves most against our own limits;
- **lots**: escrowed trades of one slot, taken whole or not at all;
- **schedules**: what we expect to exchange with the grid, which is told, not wished.

What was sold or bought early is then part of the home's need (`committed`), so that nothing is sold
twice: whatever market comes next sees what is left.

Source: PETra section III (offers over intervals, partial trades); Nazari section III; Baggio's
forward session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hem.controller.bidding import (
    Decision,
    OrderIntent,
    Situation,
    best_ask,
    best_bid,
    capped_ask,
    capped_bid,
    self_consumption,
)
from hem.controller.forecast import Forecast
from hem.controller.policy import Policy
from wire.units import cost_uc

MAX_PARTS = 8
"""Assets that one acceptance may give (`market.order_book.MAX_ASSETS`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingOffer:
    """A neighbour's production for sale."""

    market: str
    """`order-book` or `escrow`."""
    name: str
    seller: str
    energy_wh: int
    """In each slot [Wh]."""
    start_slot: int
    end_slot: int
    """Inclusive."""
    price_uc_per_kwh: int
    until_ms: int
    """Market time from which it cannot be accepted."""


@dataclass(frozen=True, slots=True)
class Block:
    """The same energy in every slot of an interval."""

    start_slot: int
    end_slot: int
    """Inclusive."""
    energy_wh: int
    price_uc_per_kwh: int


@dataclass(frozen=True, slots=True)
class Choice:
    """An offer to accept, and what of it."""

    offer: StandingOffer
    parts: tuple[Block, ...]
    """Energy wished for, at the offer's price."""


def committed(forecast: Forecast, net_wh: int, ahead_wh: Sequence[int] = ()) -> Forecast:
    """
    A forecast with what was contracted early as part of the need.

    Args:
        net_wh: bought − sold for the slot [Wh]
        ahead_wh: the same for the slots after it
    """
    load_wh = forecast.load_wh - net_wh
    padded = (*ahead_wh, *(0 for _ in forecast.ahead_wh))
    return replace(
        forecast,
        load_wh=max(load_wh, 0),
        pv_wh=forecast.pv_wh + max(-load_wh, 0),
        ahead_wh=tuple(wh - bought for wh, bought in zip(forecast.ahead_wh, padded, strict=False)),
    )


@dataclass
class Early:
    """
    What is sold and bought early, slot by slot, at one moment; all [Wh].

    Args:
        contracted_wh: bought − sold
        promised_wh: offers and schedules that stand: to give (+) or to take (−)
        battery_wh: answers to the aggregator's auctions: to give (+) or to take (−)
        plain: the forecast of a slot
    """

    contracted_wh: Mapping[int, int]
    promised_wh: Mapping[int, int]
    battery_wh: Mapping[int, int]
    plain: Callable[[int], Forecast]
    _planned_wh: dict[int, int] = field(default_factory=dict)
    _forecasts: dict[int, Forecast] = field(default_factory=dict)

    def plan(self, slot: int, net_wh: int) -> None:
        """Reckon with a trade that is about to be ordered: bought (+) or sold (−)."""
        self._planned_wh[slot] = self._planned_wh.get(slot, 0) + net_wh

    def forecast(self, slot: int) -> Forecast:
        """What to expect of a slot when all that is kept; the battery has the slot to itself."""
        plain = self._plain(slot)
        ahead_wh = [
            self._early_wh(later) - self.battery_wh.get(later, 0)
            for later in range(slot + 1, slot + 1 + len(plain.ahead_wh))
        ]
        return committed(plain, self._early_wh(slot), ahead_wh)

    def net_wh(self, slot: int) -> int:
        """Load − PV to expect of a slot, with all that is promised in it."""
        promised_wh = self.battery_wh.get(slot, 0) - self._early_wh(slot)
        return self._plain(slot).net_wh + promised_wh

    def owed_wh(self, slot: int) -> int:
        """What stored energy must give after a slot for trades, beyond the home's need [Wh]."""
        traded = {*self.contracted_wh, *self.promised_wh, *self.battery_wh, *self._planned_wh}
        return sum(
            max(max(self.net_wh(later), 0) - max(self._plain(later).net_wh, 0), 0)
            for later in traded
            if later > slot
        )

    def _early_wh(self, slot: int) -> int:
        return (
            self.contracted_wh.get(slot, 0)
            - self.promised_wh.get(slot, 0)
            + self._planned_wh.get(slot, 0)
        )

    def _plain(self, slot: int) -> Forecast:
        if slot not in self._forecasts:
            self._forecasts[slot] = self.plain(slot)
        return self._forecasts[slot]


def soc_at(situation: Situation, slot: int, net_of: Callable[[int], int]) -> int | None:
    """
    Stored energy when a later slot begins, with the battery in self-consumption until then [Wh].

    Args:
        situation: that of an earlier slot
        net_of: load − PV to expect of a slot, all that is promised in it included [Wh]
    """
    soc_wh, battery = situation.soc_wh, situation.battery
    if battery is None or soc_wh is None:
        return None
    for between in range(situation.slot, slot):
        soc_wh, _ = self_consumption(battery, soc_wh, net_of(between), situation.slot_seconds)
    return soc_wh


def wish_of(decision: Decision) -> OrderIntent | None:
    """The largest order of a decision: what we most want for the slot."""
    return max(decision.orders, key=lambda order: order.energy_wh, default=None)


def block_to_sell(
    wishes: Sequence[OrderIntent | None], first_slot: int, policy: Policy
) -> Block | None:
    """
    The offer to post: the slots from the first on in which we wish to sell.

    Of the intervals that begin there the one with the most energy is taken.

    Args:
        wishes: of `first_slot` and the slots after it
    """
    best: Block | None = None
    sells: list[OrderIntent] = []
    for wish in wishes[: policy.order_book.block_slots]:
        if wish is None or wish.side != "sell":
            break
        sells.append(wish)
        energy_wh = min(one.energy_wh for one in sells)
        price = max(one.price_uc_per_kwh for one in sells)
        if best is None or energy_wh * len(sells) > best.energy_wh * _length(best):
            best = Block(first_slot, first_slot + len(sells) - 1, energy_wh, price)
    return best


def choose(
    offers: Sequence[StandingOffer],
    wishes: Mapping[int, OrderIntent],
    policy: Policy,
    address: str = "",
) -> Choice | None:
    """
    The offer of the order book that saves us most, or None when none is worth its price.

    Args:
        wishes: by slot
        address: ours, see `_spread`
    """
    choices = [
        (saved_uc, choice)
        for offer in offers
        for choice, saved_uc in (_look_at(offer, wishes, policy),)
        if choice is not None
    ]
    if not choices:
        return None
    return min(choices, key=lambda one: (-one[0], _spread(address, one[1].offer)))[1]


Terms = Callable[[int], tuple[int, int]]
"""(fee of taking part in an escrowed trade [µ¤], feed-in price [µ¤/kWh]) of a slot."""


def choose_lot(
    offers: Sequence[StandingOffer],
    wishes: Mapping[int, OrderIntent],
    policy: Policy,
    terms_of: Terms,
    address: str = "",
) -> StandingOffer | None:
    """
    The cheapest escrowed offer that we need the whole of and that saves more than its fee.

    One below the feed-in price is bait: nobody who delivers would give energy away.

    Args:
        wishes: by slot
        terms_of: of a slot
        address: ours, see `_spread`

    Returns:
        None: there is none.
    """
    wanted = [
        offer
        for offer in offers
        if (wish := wishes.get(offer.start_slot)) is not None
        and wish.side == "buy"
        and policy.min_order_wh <= offer.energy_wh <= wish.energy_wh
        and _is_worth_it(offer, wish.price_uc_per_kwh, policy, *terms_of(offer.start_slot))
    ]
    return min(wanted, key=lambda one: (one.price_uc_per_kwh, _spread(address, one)), default=None)


def _is_worth_it(
    offer: StandingOffer, limit: int, policy: Policy, fee_uc: int, feed_in: int
) -> bool:
    if not feed_in <= offer.price_uc_per_kwh <= limit or fee_uc > policy.escrow.fee_max_uc:
        return False
    return cost_uc(offer.energy_wh, limit - offer.price_uc_per_kwh) > fee_uc


def lots(wish: OrderIntent | None, policy: Policy, fee_uc: int, feed_in: int) -> list[int]:
    """
    Energy of each escrowed offer that we make of a wish to sell [Wh].

    Args:
        fee_uc: of taking part in one trade [µ¤]; a lot that gains no more is not offered
        feed_in: what the energy brings without a trade [µ¤/kWh]
    """
    if wish is None or wish.side != "sell" or fee_uc > policy.escrow.fee_max_uc:
        return []
    lot_wh = policy.escrow.lot_wh
    if cost_uc(lot_wh, max(wish.price_uc_per_kwh - feed_in, 0)) <= fee_uc:
        return []
    return [lot_wh] * min(wish.energy_wh // lot_wh, policy.escrow.lots)


def schedule(situation: Situation, policy: Policy) -> OrderIntent | None:
    """
    What we tell beforehand for a slot: the exchange with the grid that we expect.

    Prices are our limits: the most we pay, the least we take. None: nothing worth a message, or
    more than our grant allows.
    """
    grid_wh = expected_grid_wh(situation)
    side = "buy" if grid_wh > 0 else "sell"
    allowed = situation.can_buy if grid_wh > 0 else situation.can_sell
    most_wh = situation.max_buy_wh if grid_wh > 0 else situation.max_sell_wh
    energy_wh = min(abs(grid_wh) * policy.certainty_permille // 1000, most_wh)
    if not allowed or energy_wh < policy.min_order_wh:
        return None
    if side == "buy":
        if situation.imbalance > situation.retail:
            return None  # who has scheduled pays that for all that was not served
        return OrderIntent("buy", energy_wh, capped_bid(best_bid(situation, policy), policy))
    return OrderIntent("sell", energy_wh, capped_ask(best_ask(situation, policy), policy))


def adjustment(situation: Situation, net_wh: int, policy: Policy) -> OrderIntent | None:
    """
    What of a schedule to give back when the session is reopened.

    Args:
        situation: of the slot, without what was scheduled
        net_wh: bought − sold by the schedule [Wh]

    Returns:
        An order for the part that we do not expect to keep; None when we keep all.
    """
    grid_wh = expected_grid_wh(situation)
    if net_wh < 0:
        too_much_wh = min(grid_wh, 0) - net_wh
        if too_much_wh >= policy.min_order_wh:
            return OrderIntent("buy", too_much_wh, capped_bid(best_bid(situation, policy), policy))
    elif net_wh > 0:
        too_much_wh = net_wh - max(grid_wh, 0)
        if too_much_wh >= policy.min_order_wh:
            return OrderIntent("sell", too_much_wh, capped_ask(best_ask(situation, policy), policy))
    return None


def expected_grid_wh(situation: Situation) -> int:
    """Import − export that we expect of the slot in self-consumption [Wh]."""
    net_wh = situation.forecast.net_wh
    battery, soc_wh = situation.battery, situation.soc_wh
    if battery is None or soc_wh is None:
        return net_wh
    return self_consumption(battery, soc_wh, net_wh, situation.slot_seconds)[1]


def _look_at(
    offer: StandingOffer, wishes: Mapping[int, OrderIntent], policy: Policy
) -> tuple[Choice | None, int]:
    """What of an offer we would take, and what that saves [µ¤]."""
    parts: list[Block] = []
    saved_uc = 0
    for slot in range(offer.start_slot, offer.end_slot + 1):
        wish = wishes.get(slot)
        if wish is None or wish.side != "buy" or wish.price_uc_per_kwh < offer.price_uc_per_kwh:
            continue
        energy_wh = min(wish.energy_wh, offer.energy_wh)
        if energy_wh < policy.min_order_wh:
            continue
        if parts and parts[-1].end_slot == slot - 1 and parts[-1].energy_wh == energy_wh:
            parts[-1] = replace(parts[-1], end_slot=slot)
        elif len(parts) == MAX_PARTS:
            break
        else:
            parts.append(Block(slot, slot, energy_wh, offer.price_uc_per_kwh))
        saved_uc += cost_uc(energy_wh, wish.price_uc_per_kwh - offer.price_uc_per_kwh)
    return (Choice(offer, tuple(parts)), saved_uc) if parts else (None, 0)


def _spread(address: str, offer: StandingOffer) -> bytes:
    """
    An order of equal offers that differs from home to home.

    All look at the board at the same moment; if all took the same offer, all but one would get
    nothing in this slot.
    """
    return hashlib.sha256(f"{address} {offer.name}".encode()).digest()


def _length(block: Block) -> int:
    return block.end_slot - block.start_slot + 1
