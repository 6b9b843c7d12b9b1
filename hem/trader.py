"""
The trader: what the home orders in which market, when, and what it promised already.

    + 60…     schedules, offers of neighbours to accept, offers of ours, escrowed trades
    + 120 s   the double auction of the next slot, with what is left
    minutes   the owner's rules, until something is ordered in it
    events    the aggregator's auctions, sessions reopened, changes of the rules proposed
    a window  before a gate: sealed bids are revealed

The decisions are `hem.controller`'s; here they meet what is on disk: wallet, promises, outbox. One
rule keeps the markets apart: whatever was sold or bought early, or is on offer, is part of the
home's need when the next market is looked at.

No order leaves that breaks the owner's policy or a limit from outside: all of them pass
`hem.controller.rules.permitted` (here `_allowed`), each for every slot that it is for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from itertools import groupby
from typing import Any, Literal, Protocol

import msgspec
import structlog

from hem.controller.battery import Battery
from hem.controller.bidding import Decision, OrderIntent, Situation, answer_auction
from hem.controller.discretion import discreet
from hem.controller.explain import Cause, LimitNote, Record, RunnerUp, cause_of
from hem.controller.forecast import Forecast, Forecaster, present
from hem.controller.forward import (
    Block,
    Choice,
    Early,
    StandingOffer,
    adjustment,
    block_to_sell,
    choose,
    choose_lot,
    committed,
    lots,
    schedule,
    soc_at,
    wish_of,
)
from hem.controller.limits import FOREVER_MS, FREE, Caps, Limit
from hem.controller.policy import Market, Policy
from hem.controller.rules import (
    Forbidden,
    binding,
    bounded,
    bounds_of,
    decide_by,
    due,
    permitted,
    permitted_together,
    reserve_permille,
)
from hem.controller.sections import Rule
from hem.controller.value_curve import ValueCurve
from hem.controller.value_orders import lost_otherwise_uc
from hem.ems.addresses import Addresses
from hem.ems.board import Board
from hem.ems.decisions import DecisionLog
from hem.ems.pledges import NEVER_MS, Pledge, Pledges, Source, by_slot
from hem.ems.sealed_bids import SealedBids, base_key, outcome_of
from hem.ems.wallet import MARKET, Wallet
from hem.gateway.client import GatewayError
from ledger.approvals import approves
from ledger.genesis import Genesis
from ledger.rulebook import RuleBook
from market.escrow import least_guarantee_uc
from market.sealed import SealedBid
from runtime.ports import Clock, Rng, Store
from wire.canonical import decode, encode
from wire.errors import Refusal, WireError
from wire.tmi import bid_offer
from wire.units import cost_uc

RECENT_PRICES = 8
ACCEPTANCES = 2
"""Offers accepted in one slot: their fate is seen before more is bought."""
SESSION = "@session"
RULES = "rules"
BID_AFTER_MS = 120_000
"""How long after a slot's start it is bid for the next [ms]."""
WATCH_EVERY_MS = 60_000
"""How often rules are looked at [ms]."""
KNOW_WITHIN_MS = 110_000
"""Who does not know by then what is final trades ahead in the next slot [ms after its start]."""
MARKET_OF_PROMISE: dict[str, Market] = {
    "post-offer": "order-book", "accept-offer": "order-book", "make-offer": "escrow",
    "accept-escrow": "escrow", "submit-schedule": "schedules", "auction-bid": "auctions",
}  # fmt: skip
"""The market of an operation in which a promise was made; a sealed one does not say."""
MAX_AHEAD = 96
KEEP_SLOTS = 96
"""Promises and salts are kept so long after their slot [slots]."""
RETRY_S = 0.05
LOOK_S = 1.0

log = structlog.get_logger(component="hem")

State = dict[str, Any]
"""Of the home, as the gateway tells it."""


class Outbox(Protocol):
    """Where operations are left (`hem.ems.lanes.Lanes`)."""

    def add(self, operations: list[tuple[str, dict[str, Any]]], slot: int) -> int:
        """Leave operations, each under its key, once; they are for a slot, and of its address."""
        ...

    def state_of(self, key: str) -> str:
        """`waiting`, a code, or empty."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a trader works with."""

    genesis: Genesis
    addresses: Addresses
    policy: Policy
    wallet: Wallet
    outbox: Outbox
    decisions: DecisionLog
    forecaster: Forecaster
    store: Store
    clock: Clock
    rng: Rng
    state: Callable[[], Awaitable[State]]
    """Asks the gateway. Raises `GatewayError`."""
    caught_up: Callable[[], bool] = lambda: True
    """Do we know what is final? Who has been away may have sold what it does not know of."""
    zone: tzinfo = UTC
    """Of the household's clock."""
    caps: Callable[[int, int], Caps] = lambda _start_ms, _end_ms: FREE
    """The limits from outside in an interval of market time [ms]."""
    policy_error: Callable[[], str] = lambda: ""
    """Why the owner's file is not in force; empty: it is."""
    value_after: Callable[[int], ValueCurve | None] = lambda _slot: None
    """What stored energy is worth when a slot has ended."""
    discreet: bool = False
    """Do bids leave in coarse steps, for the sake of an address that nobody is to recognise?"""


class Trader:
    """
    A home at work in all markets that its owner's policy names.

    Everything about a slot is done under the address that is for it (`hem.ems.addresses`), and no
    order is for slots of two addresses.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._policy, self._grid = parts.policy, parts.genesis.grid
        self._wallet, self._outbox, self._clock = parts.wallet, parts.outbox, parts.clock
        self.rules = _kept_rules(parts.genesis, parts.store)
        self.pledges = Pledges(parts.store)
        self.board = Board()
        self._sealed = SealedBids(parts.store, parts.rng)
        self._lost: tuple[str, ...] = ()
        """Devices that did not answer when the gateway was asked last."""
        self._to_reveal = asyncio.Event()

    def renew_policy(self, policy: Policy) -> None:
        """The owner wishes something else; orders that have left are not called back."""
        self._policy = policy

    # --- The double auction ----------------------------------------------------------------------

    async def bid(self, slot: int) -> None:
        """Decide about the next slot that can still be bid for, and bid in its double auction."""
        since_ms = self._clock.now_ms() - self._grid.length_s * 1000
        await self._bid(slot, due(self._policy, since_ms, self._clock.now_ms()), only_rules=False)

    async def watch(self, slot: int) -> None:
        """Look at the owner's rules once more, where nothing was ordered yet."""
        now_ms = self._clock.now_ms()
        rules = due(self._policy, now_ms - WATCH_EVERY_MS, now_ms)
        if any(rule.keep is None for rule in rules):
            await self._bid(slot, rules, only_rules=True)

    async def _bid(self, slot: int, rules: tuple[Rule, ...], *, only_rules: bool) -> None:
        target = self._target(slot)
        if not self._may_trade(target, "double-auction") or not self._is_new(f"bid/{target}/0"):
            if not self._policy.trades and not only_rules:
                self._note(target, Cause.REWARDS_ONLY)
            return
        now_ms = self._clock.now_ms()
        if not await self._know(now_ms + (self._closes_ms(target) - now_ms) // 2):
            log.warning("no bid: we do not know yet what is final", slot=target)
            self._note(target, Cause.LEDGER_UNKNOWN)
            return
        now = await self._unlimited(slot + 1)
        if now is None:
            self._note(target, Cause.DEVICE_LOST)
            return
        situation = self._ahead(now, target, await self._early_or_present())
        decision = decide_by(situation, self._policy, rules)
        if only_rules and not decision.rule:
            return
        orders, refused = permitted_together(
            decision.orders, "double-auction", situation, self._policy
        )
        if self._parts.discreet:
            orders = discreet(
                orders, lambda: self._parts.rng.uniform(0, 1),
                lambda some: not permitted_together(
                    some, "double-auction", situation, self._policy
                )[1],
            )  # fmt: skip
        record = self._record(situation, decision, rules, refused)
        kept = replace(decision, orders=orders)
        self._parts.decisions.add(target, self._clock.now_ms(), kept, record)
        sealed = self._sealed_rule(target)
        self._leave(
            [
                self._order(f"bid/{target}/{number}", target, "", order, sealed=sealed)
                for number, order in enumerate(orders)
            ],
            target,
        )

    def _target(self, slot: int) -> int:
        """The slot that is bid for in a slot: the first whose bids are taken a little longer."""
        bids_ms = self._grid.start_ms(slot) + BID_AFTER_MS
        target = slot + 1
        while self._closes_ms(target) <= bids_ms and target < slot + MAX_AHEAD:
            target += 1
        return target

    def _closes_ms(self, slot: int) -> int:
        """When bids for a slot are not taken any more; where they are sealed: commitments."""
        return self.rules.reveal_ms(slot) if self._sealed_rule(slot) else self.rules.gate_ms(slot)

    def _lapses_ms(self, slot: int) -> int:
        """When an offer for a slot lapses: before we bid for the slot ourselves."""
        return self._grid.start_ms(slot - (self._target(slot) - slot))

    async def _know(self, until_ms: int) -> bool:
        """Wait until we know what is final, a moment at most."""
        while not self._parts.caught_up():
            if self._clock.now_ms() >= until_ms:
                return False
            await asyncio.sleep(RETRY_S)
        return True

    # --- Some slots ahead ------------------------------------------------------------------------

    async def trade_ahead(self, slot: int) -> None:
        """Schedules, offers to neighbours and of neighbours, as far as the policy names them."""
        markets = {"schedules", "order-book", "escrow"}
        if not markets.intersection(self._policy.markets) or not self._wallet.registered:
            return
        self._leave_again()
        if not await self._know(self._grid.start_ms(slot) + KNOW_WITHIN_MS):
            log.warning("not trading ahead: we do not know yet what is final", slot=slot)
            return
        now = await self._unlimited(slot + 1)
        if now is None:
            return
        self._schedule(now, slot + self._policy.schedules.lead_slots)
        self._trade_blocks(now, slot)
        self._trade_lots(now, slot)

    def _leave_again(self) -> None:
        """A promise whose operation a crash kept from the outbox is sent now."""
        now_ms = self._clock.now_ms()
        for key, pledge in self.pledges.kept():
            stands = pledge.energy_wh and now_ms < pledge.until_ms
            if stands and self._still_allowed(pledge):
                self._leave([(_left_as(key, pledge), pledge.operation)], pledge.start_slot)

    def _schedule(self, base: Situation, slot: int) -> None:
        key = f"schedule/{slot}"
        if not self._may_trade(slot, "schedules") or not self._is_new(key):
            return
        order = schedule(*bounded(self._ahead(base, slot), self._policy))
        if order is None or not self._allowed(
            "schedules", base, [Block(slot, slot, *_what(order))], order.side
        ):
            return
        sent = self._order(key, slot, SESSION, order, sealed=self._sealed_rule(slot))
        self._promise(key, slot, slot, order, sent[1])
        self._leave([sent], slot)

    def _trade_blocks(self, base: Situation, slot: int) -> None:
        policy, now_ms = self._policy.order_book, self._clock.now_ms()
        first, last = slot + policy.lead_slots, slot + policy.lead_slots + policy.block_slots - 1
        for _ in range(ACCEPTANCES):
            wishes = self._wishes(base, range(self._target(slot) + 1, last + 1), "order-book")
            offers = self.board.offers("order-book", now_ms, self._wallet.is_ours)
            new = [offer for offer in offers if self._is_new(f"accept/{offer.name}")]
            choice = self._choose(new, wishes)
            if choice is None or not self._allowed("order-book", base, choice.parts, "buy"):
                break
            self._accept(choice)
        last = self._last_of_address(first, last)
        sells = self._wishes(base, range(first, last + 1), "order-book")
        block = block_to_sell([sells.get(s) for s in range(first, last + 1)], first, self._policy)
        if block is not None and self._allowed("order-book", base, [block], "sell"):
            self._post(block)

    def _choose(self, offers: list[StandingOffer], wishes: dict[int, OrderIntent]) -> Choice | None:
        """An offer to accept under one of our addresses, the one of the nearest slots first."""
        for address, slots in groupby(sorted(wishes), self._address):
            choice = choose(offers, {s: wishes[s] for s in slots}, self._policy, address)
            if choice is not None:
                return choice
        return None

    def _last_of_address(self, first: int, last: int) -> int:
        """The last of some slots that are for the address of their first one."""
        for slot in range(first + 1, last + 1):
            if self._address(slot) != self._address(first):
                return slot - 1
        return last

    def _address(self, slot: int) -> str:
        """The address that is for a slot; empty: there is none."""
        grant = self._parts.addresses.grant_of(slot)
        return "" if grant is None else grant.address

    def _accept(self, choice: Choice) -> None:
        operation = {
            "op": "accept-offer",
            "offer": choice.offer.name,
            "assets": [
                {"energyWh": p.energy_wh, "startSlot": p.start_slot, "endSlot": p.end_slot}
                for p in choice.parts
            ],
        }
        key = f"accept/{choice.offer.name}"
        for number, part in enumerate(choice.parts):
            order = OrderIntent("buy", part.energy_wh, part.price_uc_per_kwh)
            part_key = key if number == 0 else f"{key}/{number}"
            self._promise(part_key, part.start_slot, part.end_slot, order, operation)
        self._leave([(key, operation)], choice.parts[0].start_slot)

    def _post(self, block: Block) -> None:
        key, until_ms = f"offer/{block.start_slot}", self._lapses_ms(block.start_slot)
        if not self._is_new(key) or until_ms <= self._clock.now_ms():
            return
        operation = {
            "op": "post-offer", "kind": "production", "energyWh": block.energy_wh,
            "startSlot": block.start_slot, "endSlot": block.end_slot,
            "priceUcPerKwh": block.price_uc_per_kwh, "untilMs": until_ms,
        }  # fmt: skip
        order = OrderIntent("sell", block.energy_wh, block.price_uc_per_kwh)
        self._promise(key, block.start_slot, block.end_slot, order, operation, until_ms=until_ms)
        self._leave([(key, operation)], block.start_slot)

    def _trade_lots(self, base: Situation, slot: int) -> None:
        policy, now_ms = self._policy.escrow, self._clock.now_ms()
        target = slot + policy.lead_slots
        for _ in range(policy.lots):
            wishes = self._wishes(base, range(self._target(slot) + 1, target + 1), "escrow")
            offers = [
                offer
                for offer in self.board.offers("escrow", now_ms, self._wallet.is_ours)
                if self._is_new(f"take/{offer.name}") and self._room_for_lot(offer.start_slot)
            ]
            own = self._address(target)
            offer = choose_lot(offers, wishes, self._policy, self._escrow_terms, own)
            if offer is None:
                break
            slot_of, what = offer.start_slot, (offer.energy_wh, offer.price_uc_per_kwh)
            if not self._allowed("escrow", base, [Block(slot_of, slot_of, *what)], "buy"):
                break
            self._take(offer)
        if not self._room_for_lot(target):
            return
        wish = self._wishes(base, range(target, target + 1), "escrow").get(target)
        fee_uc, feed_in = self._escrow_terms(target)
        for number, energy_wh in enumerate(lots(wish, self._policy, fee_uc, feed_in)):
            assert wish is not None
            order = OrderIntent("sell", energy_wh, wish.price_uc_per_kwh)
            if self._allowed("escrow", base, [Block(target, target, *_what(order))], "sell"):
                self._offer_lot(target, number, order)

    def _escrow_terms(self, slot: int) -> tuple[int, int]:
        """(fee of taking part [µ¤], feed-in price [µ¤/kWh]) of a slot."""
        rules = self.rules.of_slot(slot)
        return rules.escrow.fee_uc, rules.tariff.feed_in_uc_per_kwh

    def _room_for_lot(self, slot: int) -> bool:
        """Few lots for one slot: an address has eight orders there, in all markets together."""
        mine = [
            pledge
            for key, pledge in self.pledges.kept()
            if key.startswith(("take/", "lot/")) and pledge.start_slot == slot
        ]
        return len(mine) < self._policy.escrow.lots

    def _take(self, offer: StandingOffer) -> None:
        operation = {
            "op": "accept-escrow", "offer": offer.name, "energyWh": offer.energy_wh,
            "priceUcPerKwh": offer.price_uc_per_kwh,
        }  # fmt: skip
        order = OrderIntent("buy", offer.energy_wh, offer.price_uc_per_kwh)
        key = f"take/{offer.name}"
        self._promise(key, offer.start_slot, offer.start_slot, order, operation)
        self._leave([(key, operation)], offer.start_slot)

    def _offer_lot(self, slot: int, number: int, order: OrderIntent) -> None:
        rules = self.rules.of_slot(slot).escrow
        name = f"{self._address(slot)}:{slot}-{number}"
        price_uc, until_ms = cost_uc(order.energy_wh, order.price_uc_per_kwh), self._lapses_ms(slot)
        if not self._is_new(f"lot/{name}") or until_ms <= self._clock.now_ms():
            return
        operation = {
            "op": "make-offer", "offer": name, "slot": slot, "energyWh": order.energy_wh,
            "priceUcPerKwh": order.price_uc_per_kwh,
            "guaranteeUc": least_guarantee_uc(price_uc, rules.guarantee_permille),
            "acceptBeforeMs": until_ms, "deliverBeforeMs": self._parts.genesis.settle_ms(slot),
        }  # fmt: skip
        self._promise(f"lot/{name}", slot, slot, order, operation, until_ms=until_ms, name=name)
        self._leave([(f"lot/{name}", operation)], slot)

    def _wishes(
        self, base: Situation, slots: range, market: Literal["order-book", "escrow"]
    ) -> dict[int, OrderIntent]:
        """What we would order for each of these slots, after all that is promised."""
        early = self._early()
        rules = self._rules_ahead(base.slot)
        wishes: dict[int, OrderIntent] = {}
        for slot in slots:
            if not self._may_trade(slot, market):
                continue
            wish = wish_of(decide_by(self._ahead(base, slot, early), self._policy, rules))
            if wish is not None:
                # a battery gives or takes the same energy once only, in whichever slot
                early.plan(slot, wish.energy_wh if wish.side == "buy" else -wish.energy_wh)
                wishes[slot] = wish
        return wishes

    def _rules_ahead(self, slot: int) -> tuple[Rule, ...]:
        """
        The owner's rules, where they can only be served ahead of time.

        Who bids for the next slot buys in it what a rule asks for; and what is on its way already
        is not bought a second time.
        """
        ordered = any(one >= slot and net_wh for one, net_wh in self._wallet.net_wh().items())
        promised = any(
            pledge.end_slot >= slot
            for pledge in self.pledges.standing("forecast", self._clock.now_ms())
        )
        if "double-auction" in self._policy.markets or ordered or promised:
            return ()
        now_ms = self._clock.now_ms()
        return due(self._policy, now_ms - self._grid.length_s * 1000, now_ms)

    # --- The gate --------------------------------------------------------------------------------

    def _allowed(
        self,
        market: Market,
        base: Situation,
        parts: Sequence[Block],
        side: Literal["buy", "sell"],
    ) -> bool:
        """
        May an order leave that is for these slots? All of them or none.

        Args:
            base: situation of the next slot, before limits (`_unlimited`)
        """
        early = self._early()
        for part in parts:
            order = OrderIntent(side, part.energy_wh, part.price_uc_per_kwh)
            for slot in range(part.start_slot, part.end_slot + 1):
                verdict = permitted(order, market, self._ahead(base, slot, early), self._policy)
                if isinstance(verdict, Forbidden):
                    log.warning("order not sent", market=market, slot=slot, reason=verdict.value)
                    return False
                early.plan(slot, part.energy_wh if side == "buy" else -part.energy_wh)
        return True

    def _of_auction(
        self, orders: tuple[OrderIntent, ...], situation: Situation
    ) -> tuple[OrderIntent, ...]:
        """Of the answers to an auction those that may leave."""
        allowed, refused = permitted_together(orders, "auctions", situation, self._policy)
        if refused:
            log.warning("order not sent", market="auctions", reason=refused[0].value)
        return allowed

    def _still_allowed(self, pledge: Pledge) -> bool:
        """Does a promise that has not left yet keep to the policy, which may be another by now?"""
        market = MARKET_OF_PROMISE.get(pledge.operation["op"])
        price = pledge.operation.get("priceUcPerKwh")
        if not self._policy.trades or (market and market not in self._policy.markets):
            return False
        for slot in range(pledge.start_slot, pledge.end_slot + 1):
            bounds = bounds_of(self._bare(slot), self._policy)
            if pledge.energy_wh > 0 and bounds.never_sell:
                return False
            if price is None:
                continue
            if pledge.energy_wh > 0 and bounds.sell_min is not None and price < bounds.sell_min:
                return False
            if pledge.energy_wh < 0 and bounds.buy_max is not None and price > bounds.buy_max:
                return False
        return True

    # --- Events ----------------------------------------------------------------------------------

    async def take_event(self, _height: int, event: dict[str, Any]) -> None:
        """Handler for finalised events (`ledger.client`), after the wallet's."""
        if self.rules.take_event(event):
            self._keep_rules()
        self.board.take_event(event)
        self._fold_pledges(event)
        match event["event"]:
            case "auction-opened":
                await self._answer_auction(event)
            case "adjustment-opened":
                await self._adjust(event)
            case "change-proposed" if approves(self._policy.approve, event):
                change = event["change"]
                operation = {"op": "approve-change", "change": change}
                now_slot = self._grid.slot_at(self._clock.now_ms())
                self._leave([(f"approve/{change}", operation)], now_slot)

    def _fold_pledges(self, event: dict[str, Any]) -> None:
        """A promise ends when it has become a position, or cannot become one any more."""
        match event["event"]:
            case "offer-posted" if self._wallet.is_ours(event["address"]):
                self.pledges.name(f"offer/{event['startSlot']}", event["offer"])
            case "offer-accepted" if self._wallet.is_ours(event["acceptedBy"]):
                self.pledges.release(f"accept/{event['offer']}")
            case "offer-accepted" | "offer-rescinded" | "offer-expired":
                self._release_named(event["offer"])
            case "escrow-accepted" | "escrow-ended":
                self._release_named(event["offer"])
                self.pledges.release(f"take/{event['offer']}")
            case "session-closed":
                self.pledges.release(f"schedule/{event['slot']}")
            case "auction-cleared":
                self.pledges.release(f"auction/{event['auction']}")

    def _release_named(self, name: str) -> None:
        key = self.pledges.key_of(name)
        if key:
            self.pledges.release(key)

    async def _answer_auction(self, event: dict[str, Any]) -> None:
        """Answer an auction of the aggregator if the battery can deliver."""
        if self._clock.now_ms() >= event["deadlineMs"]:
            return
        slot, auction = event["slot"], event["auction"]
        if not (self._policy.trades_in("auctions") and self._granted(slot)):
            return
        key = f"auction/{auction}"
        given = self.pledges.kept(key)
        if given:
            self._leave(
                [
                    (_left_as(key, pledge), pledge.operation)
                    for key, pledge in given
                    if self._still_allowed(pledge)
                ],
                slot,
            )
            return
        situation = await self._later(slot)
        if situation is None:
            return
        if event["template"] == "double":
            if not self._ordered_wh(slot, "sell") and not self._ordered_wh(slot, "buy"):
                orders = decide_by(situation, self._policy, ()).orders
                self._bid_in(key, event, self._of_auction(orders, situation), "forecast")
            return
        if event["template"] == "forward" and self._ordered_wh(slot, "buy"):
            return  # what we are short of may be bought already
        order = answer_auction(
            *bounded(situation, self._policy), event["template"], event["energyWh"],
            event["priceUcPerKwh"], self._ordered_wh(slot, "sell"),
        )  # fmt: skip
        if order is not None:
            self._bid_in(key, event, self._of_auction((order,), situation), "battery")

    def _bid_in(
        self, key: str, event: dict[str, Any], orders: tuple[OrderIntent, ...], source: Source
    ) -> None:
        """Bid in a deployed auction, and keep what that promises."""
        slot, auction = event["slot"], event["auction"]
        for number, order in enumerate(orders):
            part_key = key if number == 0 else f"{key}/{number}"
            sent = self._order(part_key, slot, auction, order, sealed=event["sealed"])
            self._promise(part_key, slot, slot, order, sent[1], source=source)
            log.info("auction answered", auction=auction, energy_wh=order.energy_wh)
            self._leave([sent], slot)

    async def _adjust(self, event: dict[str, Any]) -> None:
        """Give back what we do not expect to keep of a schedule, while the session is open."""
        slot = event["slot"]
        sources = self._wallet.contracted(slot).items()
        net_wh = sum(b - s for name, (b, s) in sources if name.startswith("session/"))
        if not (net_wh and self._policy.trades_in("schedules") and self._granted(slot)):
            return
        if self._clock.now_ms() >= event["deadlineMs"]:
            return
        situation = await self._later(slot)
        if situation is None:
            return
        without = replace(situation, forecast=committed(situation.forecast, -net_wh))
        order = adjustment(without, net_wh, bounded(without, self._policy)[1])
        if order is not None and not isinstance(
            permitted(order, "schedules", situation, self._policy), Forbidden
        ):
            key = f"adjust/{slot}/{event['deadlineMs']}"
            self._leave([(key, _submit(slot, order))], slot)

    # --- Sealed bids -----------------------------------------------------------------------------

    async def reveal(self) -> None:
        """Open our sealed bids when their time comes, until cancelled."""
        while True:
            next_ms = self.reveal_due()
            wait_s = LOOK_S if next_ms is None else self._clock.real_seconds_until(next_ms)
            self._to_reveal.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(wait_s, RETRY_S), LOOK_S)):
                    await self._to_reveal.wait()

    def reveal_due(self) -> int | None:
        """Open the sealed bids whose time has come; when to look again (None: there are none)."""
        now_ms, state_of = self._clock.now_ms(), self._outbox.state_of
        for key, operation in self._sealed.due(now_ms, self.rules, state_of):
            self._outbox.add([(key, operation)], operation["slot"])
        return self._sealed.next_ms(now_ms, self.rules, state_of)

    def operation_done(self, key: str, operation: dict[str, Any], code: str) -> None:
        """Take what became of one of our operations."""
        if operation["op"] == "reveal-bid" and code == Refusal.TOO_SOON.value:
            self._sealed.too_soon(key)
        outcome = outcome_of(operation, code)
        if outcome is None:
            self._to_reveal.set()
            return
        base = base_key(key)
        if outcome != "OK":
            log.info("operation refused", key=key, op=operation["op"], code=outcome)
            self.pledges.release(base, parts=operation["op"] == "accept-offer")
        self._parts.decisions.outcome(base, outcome)

    def forget_before(self, slot: int) -> None:
        """Drop what is past, by a day: a clock that ran ahead for a moment must cost no promise."""
        self.pledges.forget_before(slot - KEEP_SLOTS)
        self._sealed.forget_before(slot - KEEP_SLOTS)
        self.board.forget_before(self._clock.now_ms())
        self.rules.forget_before(slot)

    # --- Helpers ---------------------------------------------------------------------------------

    def _order(
        self, key: str, slot: int, auction: str, order: OrderIntent, *, sealed: bool
    ) -> tuple[str, dict[str, Any]]:
        """
        The operation for an order, open or sealed, and the key under which it leaves.

        Args:
            auction: of a deployed one its name, of a forward session `SESSION`, else empty
        """
        if sealed:
            return self._sealed.commit(
                key,
                SealedBid(
                    address=self._address(slot), slot=slot, auction=auction, side=order.side,
                    energy_wh=order.energy_wh, price_uc_per_kwh=order.price_uc_per_kwh,
                ),
            )  # fmt: skip
        if auction == SESSION:
            return key, _submit(slot, order)
        if not auction:
            return key, bid_offer(order.side, slot, order.energy_wh, order.price_uc_per_kwh)
        return key, {
            "op": "auction-bid", "auction": auction, "side": order.side,
            "energyWh": order.energy_wh, "priceUcPerKwh": order.price_uc_per_kwh,
        }  # fmt: skip

    def _leave(self, operations: list[tuple[str, dict[str, Any]]], slot: int) -> None:
        """Send operations under the address that is for a slot."""
        if not operations:
            return
        self._outbox.add(operations, slot)
        if any(operation["op"] == "commit-bid" for _, operation in operations):
            self._to_reveal.set()

    def _is_new(self, key: str) -> bool:
        """Was nothing sent under this key, and nothing promised?"""
        return (
            self._outbox.state_of(key) == self._outbox.state_of(f"commit/{key}") == ""
            and self.pledges.find(key) is None
        )

    def _sealed_rule(self, slot: int) -> bool:
        return self.rules.of_slot(slot).auctions.sealed

    def _promise(
        self,
        key: str,
        start_slot: int,
        end_slot: int,
        order: OrderIntent,
        operation: dict[str, Any],
        *,
        source: Source = "forecast",
        until_ms: int = NEVER_MS,
        name: str = "",
    ) -> None:
        energy_wh = order.energy_wh if order.side == "sell" else -order.energy_wh
        self.pledges.add(
            key,
            Pledge(
                start_slot=start_slot, end_slot=end_slot, energy_wh=energy_wh, source=source,
                operation=operation, until_ms=until_ms, name=name,
            ),
        )  # fmt: skip

    def _may_trade(self, slot: int, market: Any) -> bool:
        return (
            self._policy.trades_in(market)
            and market in self.rules.of_slot(slot).templates
            and self._granted(slot)
            and self._clock.now_ms() < self.rules.gate_ms(slot)
        )

    def _granted(self, slot: int) -> bool:
        """There is an address for a slot, and the ledger knows it."""
        address = self._address(slot)
        return bool(address) and self._wallet.is_registered(address)

    def _early(self) -> Early:
        """What is sold and bought early as of now."""
        now_ms = self._clock.now_ms()
        return Early(
            self._wallet.net_wh(),
            by_slot(self.pledges.standing("forecast", now_ms)),
            by_slot(self.pledges.standing("battery", now_ms)),
            self._parts.forecaster.forecast,
        )

    async def _early_or_present(self) -> Early:
        """The same; a home that has seen no slot yet expects the next one to be as it is now."""
        early = self._early()
        if not self._parts.forecaster.empty:
            return early
        try:
            state = await self._parts.state()
        except GatewayError:
            return early
        as_now = present(state["load_w"], state["pv_w"], self._grid.length_s)
        return replace(early, plain=lambda _slot: as_now)

    def _ahead(self, now: Situation, slot: int, early: Early | None = None) -> Situation:
        """
        The situation of a later slot.

        Args:
            now: that of the next one, before limits (`_unlimited`)
        """
        early = early or self._early()
        soc_wh = soc_at(now, slot, early.net_wh)
        later = replace(
            now, slot=slot, soc_wh=soc_wh, forecast=early.forecast(slot), day_s=self.day_s(slot)
        )
        return self._limited(later, early, self._caps(slot))

    async def _later(self, slot: int) -> Situation | None:
        """The situation of a slot that has not begun; None when nobody knows the home's state."""
        now = await self._unlimited(self._grid.slot_at(self._clock.now_ms()) + 1)
        return None if now is None else self._ahead(now, slot)

    async def _unlimited(self, slot: int) -> Situation | None:
        """The same before what the battery promised elsewhere, and what our grant allows."""
        try:
            state = await self._parts.state()
        except GatewayError as error:
            log.warning("no state", reason=str(error))
            return None
        battery, soc_wh = battery_of(state, self._policy)
        devices = state.get("devices", {})
        self._lost = tuple(sorted(name for name, found in devices.items() if found != "ok"))
        return replace(
            self._bare(slot),
            forecast=self._early().forecast(slot),
            soc_wh=soc_wh,
            battery=battery,
            coming_wh=self._coming_wh(slot - 1),
        )

    def _bare(self, slot: int) -> Situation:
        """A slot of which nothing is known but when it is."""
        return Situation(
            slot=slot, slot_seconds=self._grid.length_s, forecast=Forecast(0, 0, 0), soc_wh=None,
            battery=None, retail=0, feed_in=0, imbalance=0, day_s=self.day_s(slot),
        )  # fmt: skip

    def day_s(self, slot: int) -> int:
        """Seconds since midnight by the household's clock when a slot begins."""
        at = datetime.fromtimestamp(self._grid.start_ms(slot) / 1000, self._parts.zone)
        return at.hour * 3600 + at.minute * 60 + at.second

    def reserve_permille(self, slot: int, state: State) -> int:
        """What is kept for the home in a slot that runs, of the battery's capacity."""
        battery, soc_wh = battery_of(state, self._policy)
        now = replace(self._bare(slot), battery=battery, soc_wh=soc_wh)
        return reserve_permille(now, self._policy)

    def _coming_wh(self, slot: int) -> int:
        """What the slot that runs will still bring into the battery by what was traded for it."""
        position = self._wallet.position(slot)
        if position is None or self._parts.forecaster.empty:
            return 0
        left_ms = min(
            max(self._grid.end_ms(slot) - self._clock.now_ms(), 0), self._grid.length_s * 1000
        )
        net_wh = self._parts.forecaster.forecast(slot).net_wh
        return (position.net_wh - net_wh) * left_ms // (self._grid.length_s * 1000)

    def _caps(self, slot: int) -> Caps:
        return self._parts.caps(self._grid.start_ms(slot), self._grid.end_ms(slot))

    def _limited(self, situation: Situation, early: Early, caps: Caps) -> Situation:
        """A situation with its slot's prices, less what is promised, within grant and limits."""
        slot, tariff = situation.slot, self.rules.tariff(situation.slot)
        can_buy, can_sell, granted_buy_wh, granted_sell_wh = self._limits(slot)
        battery, soc_wh = situation.battery, situation.soc_wh
        pledged_wh = early.battery_wh.get(slot, 0)
        if battery is not None and soc_wh is not None:
            battery, soc_wh = after_pledge(battery, soc_wh, pledged_wh, self._grid.length_s)
        recent = [self._wallet.price(s) for s in range(slot - RECENT_PRICES, slot)]
        position = self._wallet.position(slot)
        bought_wh, sold_wh = (position.bought_wh, position.sold_wh) if position else (0, 0)
        offered_wh = early.promised_wh.get(slot, 0)
        most_buy_wh = _least(granted_buy_wh, caps.import_wh(self._grid.length_s))
        most_sell_wh = _least(granted_sell_wh, caps.export_wh(self._grid.length_s))
        return replace(
            situation,
            curve=self._parts.value_after(slot),
            owed_wh=early.owed_wh(slot),
            soc_wh=soc_wh,
            battery=battery,
            retail=tariff.retail_uc_per_kwh,
            feed_in=tariff.feed_in_uc_per_kwh,
            imbalance=tariff.imbalance_uc_per_kwh,
            prices=tuple(p for p in recent if p is not None),
            can_buy=can_buy,
            can_sell=can_sell,
            max_buy_wh=max(most_buy_wh + min(pledged_wh, 0) + min(offered_wh, 0) - bought_wh, 0),
            max_sell_wh=max(most_sell_wh - max(pledged_wh, 0) - max(offered_wh, 0) - sold_wh, 0),
        )

    def _limits(self, slot: int) -> tuple[bool, bool, int, int]:
        """May we buy, may we sell, and how much of each [Wh], by the grant for a slot."""
        grant = self._parts.addresses.grant_of(slot)
        if grant is None:
            return False, False, 0, 0
        return grant.can_buy, grant.can_sell, grant.max_buy_wh, grant.max_sell_wh

    # --- Telling ---------------------------------------------------------------------------------

    def _note(self, slot: int, cause: Cause) -> None:
        """Write down why nothing was even decided."""
        record = Record(
            cause=cause, policy_error=self._parts.policy_error(), lost=self._lost,
            limits=self._limit_notes(slot),
        )  # fmt: skip
        nothing = Decision((), 0, cause.value)
        if self._parts.decisions.get(slot) is None:
            self._parts.decisions.add(slot, self._clock.now_ms(), nothing, record)

    def _record(
        self,
        situation: Situation,
        decision: Decision,
        rules: tuple[Rule, ...],
        refused: tuple[Forbidden, ...],
    ) -> Record:
        """What was known, and what held the decision back."""
        policy, slot = self._policy, situation.slot
        caps = self._caps(slot)
        free = situation
        if caps != FREE:
            _, _, buy_wh, sell_wh = self._limits(slot)
            free = replace(situation, max_buy_wh=buy_wh, max_sell_wh=sell_wh)
        held = binding(situation, free, policy, rules, decision)
        bounds = bounds_of(situation, policy)
        battery, soc_wh, curve = situation.battery, situation.soc_wh, situation.curve
        return Record(
            cause=cause_of(situation, policy, decision, held),
            net_wh=situation.forecast.net_wh,
            stored_permille=-1
            if battery is None or soc_wh is None else battery.soc_permille(soc_wh),
            retail_uc_per_kwh=situation.retail, feed_in_uc_per_kwh=situation.feed_in,
            rule=decision.rule, bounds=held,
            buy_max_uc_per_kwh=-1 if bounds.buy_max is None else bounds.buy_max,
            sell_min_uc_per_kwh=-1 if bounds.sell_min is None else bounds.sell_min,
            never_sell=bounds.never_sell, keep_wh=bounds.keep_wh,
            limits=self._limit_notes(slot), refused=tuple(one.value for one in refused),
            policy_error=self._parts.policy_error(), lost=self._lost,
            mode="rules" if curve is None else "plan",
            worth_uc_per_kwh=None if curve is None or soc_wh is None else curve.marginal(soc_wh),
            runner_up=_runner_up(situation, policy, decision),
        )  # fmt: skip

    def _limit_notes(self, slot: int) -> tuple[LimitNote, ...]:
        caps = self._caps(slot)
        return tuple(
            LimitNote(side=one.side, power_w=one.power_w, origin=one.origin, until=self._until(one))
            for one in (caps.import_limit, caps.export_limit)
            if one is not None
        )

    def _until(self, limit: Limit) -> str:
        if limit.until_ms == FOREVER_MS:
            return ""
        return datetime.fromtimestamp(limit.until_ms / 1000, self._parts.zone).strftime("%H:%M")

    def _ordered_wh(self, slot: int, side: str) -> int:
        """What we ordered, or got already, in the double auction of a slot [Wh]."""
        got = self._wallet.contracted(slot).get(MARKET)
        if got is not None:
            return got[0 if side == "buy" else 1]
        decision = self._parts.decisions.get(slot) or {"orders": []}
        return sum(order["energyWh"] for order in decision["orders"] if order["side"] == side)

    def _keep_rules(self) -> None:
        with self._parts.store.atomic():
            self._parts.store.put(RULES, encode(self.rules.to_json()))


def battery_of(state: State, policy: Policy) -> tuple[Battery | None, int | None]:
    """The controller's battery model and its energy [Wh], from a gateway state."""
    found = state.get("battery")
    if not found or state["soc_permille"] < 0:
        return None, None
    battery = Battery(
        capacity_wh=found["capacity_wh"],
        max_charge_w=found["max_charge_w"],
        max_discharge_w=found["max_discharge_w"],
        soc_min_permille=policy.soc_min_permille,
        soc_max_permille=policy.soc_max_permille,
    )
    return battery, state["soc_permille"] * battery.capacity_wh // 1000


def _runner_up(situation: Situation, policy: Policy, decision: Decision) -> RunnerUp | None:
    """To order nothing, and what that would have cost; None where stored energy has no value."""
    battery, soc_wh, curve = situation.battery, situation.soc_wh, situation.curve
    if battery is None or soc_wh is None or curve is None or not decision.orders:
        return None
    orders = [(one.side, one.energy_wh, one.price_uc_per_kwh) for one in decision.orders]
    wear = policy.degradation_uc_per_kwh
    return RunnerUp(
        action="keep it" if decision.orders[0].side == "sell" else "buy nothing",
        cost_uc=lost_otherwise_uc(curve, battery, soc_wh, orders, wear),
    )


def after_pledge(
    battery: Battery, soc_wh: int, pledged_wh: int, seconds: int
) -> tuple[Battery, int]:
    """
    What is left of a battery when `pledged_wh` is promised elsewhere for the same slot.

    Args:
        pledged_wh: AC energy to give (+) or take (−)
        seconds: length of the slot
    """
    power_w = -(-abs(pledged_wh) * 3600 // seconds)
    if pledged_wh >= 0:
        rest = replace(battery, max_discharge_w=max(battery.max_discharge_w - power_w, 0))
        return rest, max(battery.after(soc_wh, 0, pledged_wh), 0)
    rest = replace(battery, max_charge_w=max(battery.max_charge_w - power_w, 0))
    return rest, battery.after(soc_wh, -pledged_wh, 0)


def _least(granted_wh: int, limit_wh: int | None) -> int:
    return granted_wh if limit_wh is None else min(granted_wh, limit_wh)


def _what(order: OrderIntent) -> tuple[int, int]:
    """Its energy [Wh] and price [µ¤/kWh]."""
    return order.energy_wh, order.price_uc_per_kwh


def _left_as(key: str, pledge: Pledge) -> str:
    """
    The key under which a promise's operation left.

    An acceptance is one operation for all its parts; a sealed one left as a commitment.
    """
    if pledge.operation["op"] == "accept-offer":
        return "/".join(key.split("/")[:2])
    return f"commit/{key}" if pledge.operation["op"] == "commit-bid" else key


def _submit(slot: int, order: OrderIntent) -> dict[str, Any]:
    return {
        "op": "submit-schedule", "side": order.side, "slot": slot, "energyWh": order.energy_wh,
        "priceUcPerKwh": order.price_uc_per_kwh,
    }  # fmt: skip


def _kept_rules(genesis: Genesis, store: Store) -> RuleBook:
    raw = store.get(RULES)
    try:
        return RuleBook.kept(genesis, {} if raw is None else decode(raw))
    except (msgspec.ValidationError, WireError) as error:
        log.warning(
            "the rules that were kept are lost; those of the genesis hold", reason=str(error)
        )
        return RuleBook(genesis)
