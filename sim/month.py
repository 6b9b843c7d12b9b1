"""
A simulated month: homes trade over the real contracts, and an observer writes down what is public.

    slot start     meters are read; receipts (and CPF) go out; old addresses deposit what is left
    + 120 s        each home's trader bids for the next slot under that slot's address
    in between     fresh addresses are registered at random moments of the period before, the
                   supervisor withdraws money and energy to them

Blocks are made as on a calm feeder: a few seconds after a message, or when something is due. Homes
trade in the double auction. What comes out is an `Observation` and, apart from it, the truth.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hem.controller.forecast import Forecaster
from ledger.genesis import Genesis, GenesisValidator, Supervisor, seal_genesis
from ledger.store import LedgerStore
from sim.chain_maker import ChainMaker
from sim.month_habits import Habits
from sim.month_homes import SLOT_S, SLOTS_PER_DAY, START_MS, MonthHome, make_homes, meter
from sim.month_lives import Life, MonthClock, Registry, begin_life
from sim.month_post import Post
from sim.observation import Observation, Seen, SeenBlock
from wire import certificates, cpf, topics
from wire.keys import SigningKey, to_text
from wire.metering import (
    ZERO_DIGEST,
    CpfAttestation,
    Receipt,
    record_json,
    sign_record,
)
from wire.transactions import Transaction

SLOT_MS = SLOT_S * 1000
BID_AFTER_MS = 120_000
BLOCK_EVERY_MS = 15_000
TARGET_UC = 10_000_000
"""Withdrawn to every address where all withdraw the same [µ¤]."""
SUPERVISOR_UC = 10**13
VALIDATORS = 4
WARM_UP_DAYS = 1
"""Homes know so much of themselves when the month begins: their last day before it."""
RECENT_CLEARINGS = 8
TOP_UP_SHARE = 5
"""A home that keeps its address withdraws again when it has less than this part of its target."""
SETTLED_SLOTS = 2
"""A slot is settled when so many have begun after it."""
FINISH_SLOTS = 3
"""After the last slot: its receipts, its settlement [slots]."""


@dataclass(slots=True)
class Truth:
    """What the observer does not see."""

    home_of: dict[str, str] = field(default_factory=dict)
    """Address → home."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Validator → home."""
    first_slot: int = 0
    nets_wh: dict[str, list[int]] = field(default_factory=dict)
    """By home, what its meter counted in each slot, import − export [Wh]."""
    loads_wh: dict[str, list[int]] = field(default_factory=dict)
    """By home, what was used in it in each slot [Wh]."""


def run_month(
    homes: int, days: int, seed: int, habits: Habits, slots: int | None = None
) -> tuple[Observation, Truth]:
    """
    Let the homes of a seed trade for some days.

    Args:
        slots: so many instead of whole days

    Returns:
        What was public, and the truth.
    """
    month = Month(homes, days, seed, habits)
    asyncio.run(month.run(days * SLOTS_PER_DAY if slots is None else slots))
    return month.observation, month.truth


class Month:
    """
    One feeder under one set of habits.

    Args:
        store: where its chain is kept; by default nowhere
    """

    def __init__(
        self, homes: int, days: int, seed: int, habits: Habits, store: LedgerStore | None = None
    ) -> None:
        made = make_homes(homes, days + WARM_UP_DAYS, seed, VALIDATORS)
        self._homes, self._habits = made, habits
        self._rng = Random(f"month/{seed}/lots")
        self._registry = Registry("month", seed)
        self._validators = {
            home.name: self._registry.key(f"validator of {home.name}")
            for home in made if home.validator
        } or {"": self._registry.key("validator")}  # fmt: skip
        self._supervisor = self._registry.key("supervisor")
        self.genesis = self._make_genesis()
        self._grid = self.genesis.grid
        self._first = self._grid.slot_at(START_MS) + WARM_UP_DAYS * SLOTS_PER_DAY
        keys = {key.id: key for key in self._validators.values()}
        self._chain = ChainMaker(self.genesis, store or LedgerStore(":memory:"), keys)
        self._post = Post(self.genesis.chain_id, self._grid, habits, Random(f"month/{seed}/post"))
        self._clock = MonthClock()
        self._forecasters = {home.name: self._warm(home) for home in made}
        self._lives: dict[str, Life] = {}
        self._numbers = dict.fromkeys((home.name for home in made), 0)
        self._recent: deque[tuple[int, dict[str, Any]]] = deque(maxlen=RECENT_CLEARINGS)
        self._granted = {
            home.name: self._registry.validator_grant(
                self._validators[home.name], self._cpf_meter(home), range(self._first + 10**5)
            )
            for home in made if home.validator
        }  # fmt: skip
        self._end = 0
        self.observation = Observation.of(self.genesis)
        self.truth = Truth(
            hosts={key.id: name for name, key in self._validators.items()}, first_slot=self._first
        )

    async def run(self, slots: int) -> None:
        """Trade for some slots."""
        self._end = self._first + slots
        await self._begin_period(self._first, self._grid.start_ms(self._first))
        for slot in range(self._first, self._end + FINISH_SLOTS):
            await self._slot(slot)
        for home in self._homes:
            self.truth.nets_wh[home.name] = home.nets_wh
            first = WARM_UP_DAYS * SLOTS_PER_DAY
            self.truth.loads_wh[home.name] = home.load_wh[first : first + slots]

    # --- A slot ----------------------------------------------------------------------------------

    async def _slot(self, slot: int) -> None:
        start_ms = self._grid.start_ms(slot)
        await self._drain(start_ms)
        if self._first < slot <= self._end:
            self._read_meters(slot - 1)
        self._end_lives(slot)
        if slot < self._end:
            await self._change_addresses(slot)
            await self._drain(start_ms + BID_AFTER_MS)
            await self._bid(slot)
        for life in list(self._lives.values()):
            life.wallet.forget_before(slot)
            life.trader.forget_before(slot)
        await self._drain(start_ms + SLOT_MS - 1)

    def _read_meters(self, ended: int) -> None:
        """Close a slot in every home: receipt, CPF, what the forecaster learns."""
        index = ended - self._first + WARM_UP_DAYS * SLOTS_PER_DAY
        at_ms = self._grid.end_ms(ended)
        for home in self._homes:
            life = self._life_of(home, ended)
            position = life.wallet.position(ended)
            net_wh = meter(home, index, None if position is None else position.net_wh)
            self._forecasters[home.name].observe(ended, home.load_wh[index], home.pv_wh[index])
            operations = [self._receipt(life, ended, net_wh)]
            attested = self._attestation(home, ended) if home.validator else []
            if attested and self._habits.cpf_apart:
                key = self._validators[home.name]
                self._post.send(home, key, at_ms, _just(attested))
                attested = []
            self._post.send(home, life.key, at_ms, _just(operations + attested))

    async def _bid(self, slot: int) -> None:
        """Let the traders decide on the next slot, and send their bids."""
        at_ms = self._clock.market_ms = self._grid.start_ms(slot) + BID_AFTER_MS
        if slot + 1 >= self._end:
            return
        for home in self._homes:
            life = self._life_of(home, slot + 1)
            await life.trader.bid(slot)
            operations = life.outbox.take()
            if operations:
                self._post.send(home, life.key, at_ms, _just(operations))

    # --- Addresses -------------------------------------------------------------------------------

    async def _change_addresses(self, slot: int) -> None:
        """A slot before a period is bid for, its addresses begin to be registered."""
        period = self._habits.address_slots
        if not period:
            return
        coming = slot + 1 + period
        if coming % period == 0 and coming < self._end:
            await self._begin_period(coming, self._grid.start_ms(slot))
        elif slot == self._first:
            # the month may begin within a period: the next one begins sooner than usual
            following = (slot // period + 1) * period
            for start in range(following, coming, period):
                await self._begin_period(start, self._grid.start_ms(slot))

    async def _begin_period(self, first: int, since_ms: int) -> None:
        """
        An address for every home, registered at a moment of its own before it is needed.

        Args:
            first: slot of the period
            since_ms: from when it may be registered
        """
        period = self._habits.address_slots
        last = (first // period + 1) * period - 1 if period else self._end
        until_ms = max(self._grid.start_ms(first - 1), since_ms) + BID_AFTER_MS // 2
        for home in self._homes:
            self._numbers[home.name] += 1
            life = await begin_life(
                self._registry, self.genesis, home, self._numbers[home.name],
                range(first, last + 1), self._habits, self._forecasters[home.name], self._clock,
                tuple(self._recent),
            )  # fmt: skip
            self._lives[life.address] = life
            self.truth.home_of[life.address] = home.name
            grant = certificates.dump(life.grant)
            operation = {"op": "register-address", "grant": grant}
            at_ms = round(self._rng.uniform(since_ms + 1, until_ms))
            self._post.send_at(home, life.key, at_ms, _just([operation]))

    def _end_lives(self, slot: int) -> None:
        """What is left on an address is deposited at a random moment after its settlement."""
        for life in self._lives.values():
            if self._habits.rotates and life.grant.end_slot + SETTLED_SLOTS == slot:
                self._end_life(life, slot)

    def _end_life(self, life: Life, slot: int) -> None:
        length_ms = self._habits.address_slots * SLOT_MS
        at_ms = self._grid.start_ms(slot) + BLOCK_EVERY_MS + round(self._rng.uniform(0, length_ms))

        def rest() -> list[dict[str, Any]]:
            self._lives.pop(life.address, None)
            free_uc = life.wallet.balance["balanceUc"]
            if free_uc <= 0:
                return []
            return [{"op": "deposit-financial-balance", "amountUc": free_uc}]

        self._post.send_at(life.home, life.key, at_ms, rest)

    def _life_of(self, home: MonthHome, slot: int) -> Life:
        return next(
            life for life in self._lives.values() if life.home is home and life.covers(slot)
        )

    # --- Money -----------------------------------------------------------------------------------

    def _welcome(self, life: Life, at_ms: int) -> None:
        """The supervisor withdraws money and energy to an address that was just registered."""
        grant = life.grant
        assets = [
            {
                "op": "add-energy-asset", "address": life.address, "kind": kind,
                "energyWh": limit_wh, "startSlot": grant.start_slot, "endSlot": grant.end_slot,
            }
            for kind, limit_wh in (
                ("production", grant.max_sell_wh), ("consumption", grant.max_buy_wh),
            )
        ]  # fmt: skip
        money = self._money(life, self._target_uc(life.home))
        self._post.send_plain(self._supervisor, at_ms + 1_000, _just([*assets, money]))

    def _target_uc(self, home: MonthHome) -> int:
        return TARGET_UC if self._habits.same_money else home.policy.wallet.target_uc

    def _money(self, life: Life, amount_uc: int) -> dict[str, Any]:
        return {
            "op": "add-financial-balance", "address": life.address, "amountUc": amount_uc,
        }  # fmt: skip

    def _look_after(self, life: Life, time_ms: int) -> None:
        """A home that keeps its address fills its wallet up, within its owner's bounds."""
        target_uc, free_uc = self._target_uc(life.home), life.wallet.balance["balanceUc"]
        if free_uc < target_uc // TOP_UP_SHARE:
            missing = self._money(life, target_uc - free_uc)
            self._post.send_plain(self._supervisor, time_ms + 1_000, _just([missing]))

    # --- The chain -------------------------------------------------------------------------------

    async def _drain(self, until_ms: int) -> None:
        """Make blocks of what is seen, and of what is due, up to a moment."""
        while True:
            due_ms = self._chain.ledger.next_due_ms()
            moments = [one for one in (self._post.next_ms, due_ms) if one is not None]
            earliest_ms = max(min(moments, default=until_ms), self._chain.ledger.time_ms + 1)
            block_ms = -(-earliest_ms // BLOCK_EVERY_MS) * BLOCK_EVERY_MS
            if block_ms > until_ms or not moments:
                return
            await self._block(block_ms, self._post.seen_until(block_ms))

    async def _block(self, time_ms: int, seen: list[tuple[int, Transaction]]) -> None:
        observed, market = self.observation, self.genesis.market
        for seen_ms, tx in seen:
            observed.messages.append(
                Seen(seen_ms, topics.build(market, topics.TX, tx.sender), tx.raw)
            )
        result = self._chain.block(time_ms, [tx for _, tx in seen])
        txids = tuple(tx.txid.hex() for _, tx in seen)
        observed.blocks.append(SeenBlock(result.height, time_ms, txids, result.events))
        self._clock.market_ms = time_ms
        for event in result.events:
            await self._tell(result.height, event, time_ms)

    async def _tell(self, height: int, event: dict[str, Any], time_ms: int) -> None:
        """Let those hear of an event whom it concerns."""
        name = event["event"]
        if name == "cleared":
            self._recent.append((height, {**event, "awards": []}))
        if name in ("cleared", "settled", "trued-up"):
            for life in self._lives.values():
                await life.wallet.take_event(height, event)
        elif name in ("balance", "address-registered"):
            concerned = self._lives.get(event["address"])
            if concerned is None:
                return
            await concerned.wallet.take_event(height, event)
            if name == "address-registered":
                self._welcome(concerned, time_ms)
            elif not self._habits.rotates:
                self._look_after(concerned, time_ms)

    # --- What meters say -------------------------------------------------------------------------

    def _receipt(self, life: Life, slot: int, net_wh: int) -> dict[str, Any]:
        # the digest of a sealed reading tells nothing: any 32 bytes do
        said = Receipt(address=life.address, slot=slot, net_wh=net_wh, reading=ZERO_DIGEST)
        signed = sign_record(said, life.meter_key, self.genesis.chain_id)
        return {"op": "receipt", "receipt": record_json(signed)}

    def _attestation(self, home: MonthHome, ended: int) -> list[dict[str, Any]]:
        """The CPF of the window that ended, as the home's gateway attests it."""
        rules = self.genesis.poe
        nets_wh = home.nets_wh[-rules.window_slots :]
        if len(nets_wh) < rules.window_slots:
            return []
        stop = ended - self._first + WARM_UP_DAYS * SLOTS_PER_DAY + 1
        made_wh = home.pv_wh[stop - rules.window_slots : stop]
        said = CpfAttestation(
            validator=self._validators[home.name].id, start_slot=ended - rules.window_slots + 1,
            end_slot=ended, cpf_q16=cpf.cpf_q16(nets_wh, made_wh, rules.kappa_milli),
            eligible=cpf.eligible(
                nets_wh, made_wh, min_energy_wh=rules.min_energy_wh,
                min_production_wh=rules.min_production_wh,
            ),
        )  # fmt: skip
        signed = sign_record(said, self._cpf_meter(home), self.genesis.chain_id)
        return [
            {"op": "cpf", "grant": self._granted[home.name], "attestation": record_json(signed)}
        ]

    def _cpf_meter(self, home: MonthHome) -> SigningKey:
        return self._validators[home.name].derive("meter")

    def _warm(self, home: MonthHome) -> Forecaster:
        """What a home knows of itself when the month begins."""
        forecaster = Forecaster(SLOTS_PER_DAY)
        for index in range(WARM_UP_DAYS * SLOTS_PER_DAY):
            slot = self._first - WARM_UP_DAYS * SLOTS_PER_DAY + index
            forecaster.observe(slot, home.load_wh[index], home.pv_wh[index])
        return forecaster

    def _make_genesis(self) -> Genesis:
        supervisor = self._supervisor
        return seal_genesis(
            Genesis(
                market="month",
                start_ms=START_MS + WARM_UP_DAYS * SLOTS_PER_DAY * SLOT_MS,
                issuing_key=to_text(self._registry.issuer.public),
                supervisor=Supervisor(
                    address=supervisor.id, key=to_text(supervisor.public),
                    balance_uc=SUPERVISOR_UC,
                ),
                validators=tuple(
                    GenesisValidator(
                        id=key.id, key=to_text(key.public), controller=f"party-{number}"
                    )
                    for number, key in enumerate(self._validators.values())
                ),
            )
        )  # fmt: skip


def _just(operations: list[dict[str, Any]]) -> Any:
    """Operations that are known when the message is written."""
    return lambda: operations
