"""
The aggregator on the bus: one lane as aggregator, DSO desk and grid supervisor.

The supervisor's address in the genesis is the id of the service key, so one identity signs its
transactions, its certificate (roles aggregator and dso) lets it read sealed readings and open
auctions, and one outbox keeps its nonce.

    ledger events   address-registered -> fund it           tx            -> outbox
                    receipt, cpf       -> audit             auction-*     -> board
                    settled, trued-up  -> books       *-deposited   -> private accounts
    readings        -> audit
    dso/req         -> private accounts -> outbox
    every slot      schedule, deviation -> auction; progress stored
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import structlog

from aggregator.accounts import Accounts
from aggregator.auditor import Auditor
from aggregator.core import (
    DAY_S,
    FlexibilityPolicy,
    FundingPolicy,
    book,
    book_true_up,
    day_ahead,
    flexibility,
    forecast_deviation,
    fund,
)
from aggregator.dso_desk import DsoDesk
from aggregator.store import AggregatorStore
from aggregator.withdrawals import SafetyPolicy
from ledger.client import LedgerClient, QueryError, Validators
from ledger.genesis import Genesis
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.metrics import count_refusal
from runtime.outbox import OperationOutbox
from runtime.ports import Bus, BusDownError, Clock, Message, Rng, Store
from wire import topics
from wire.enrolment import LIST_METERS
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import WireError
from wire.keys import BoxKey, Domain, SigningKey

COMPONENT = "aggregator"
REFRESH_S = 1.0
"""Least real time between two look-ups at the CSM-DB."""
MEASURED_SLOTS = 3
ENOUGH_METERS = 0.8
"""Share of the meters that must have reported before a slot counts as measured."""
BOARD_OPERATION = "open-auctions"

log = structlog.get_logger(component=COMPONENT)


class Aggregator:
    """
    The aggregator's shell.

    Args:
        bus: the lane under `key.id`
        outbox_store: a file of its own, synchronous=FULL
        standing_wh: schedule before there is a history, by slot of the day [Wh]
        accounts: the participants' private accounts; none: in memory, for a market without any
    """

    def __init__(
        self,
        genesis: Genesis,
        key: SigningKey,
        box: BoxKey,
        csmdb_box: bytes,
        bus: Bus,
        store: AggregatorStore,
        outbox_store: Store,
        clock: Clock,
        rng: Rng,
        funding: FundingPolicy,
        flexible: FlexibilityPolicy,
        standing_wh: list[int],
        history_days: int,
        accounts: Accounts | None = None,
        safety: SafetyPolicy | None = None,
    ) -> None:
        self.genesis = genesis
        self.store = store
        self._key, self._bus, self._clock, self._rng = key, bus, clock, rng
        self._funding, self._flexible = funding, flexible
        self._standing_wh, self._history_days = standing_wh, history_days
        self.auditor = Auditor(store, box, genesis.chain_id, genesis.grid, genesis.poe)
        self.ledger = LedgerClient(
            bus, genesis, clock, key.id, resume=store.heights(), from_start=True, rng=rng,
            validators=Validators.kept(store.validators()),
        )  # fmt: skip
        self.csmdb = CsmDbClient(
            bus, key, box, genesis.market, genesis.issuer, csmdb_box, clock, rng
        )
        self.outbox = OperationOutbox(
            outbox_store,
            key,
            genesis.market,
            genesis.chain_id,
            genesis.grid,
            bus,
            clock,
            rng,
            self._next_nonce,
            self.ledger.receipt,
            self._done,
        )
        safety = safety or SafetyPolicy()
        self.desk = DsoDesk(
            bus, key, box, genesis.market, genesis.grid,
            accounts or Accounts(":memory:", safety.opening_uc), self.outbox, self.csmdb, clock,
            safety, energy=not funding.automatic,
        )  # fmt: skip
        self._board_stale = True
        self._scheduled_day = -1
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Subscribe and start the standing work; works before the bus is connected."""
        self.ledger.on_event(self._take_event)
        self._bus.subscribe(
            topics.build(self.genesis.market, topics.READING, "+"), self._take_reading
        )
        self.desk.start()
        await self.ledger.start()
        self._spawn(self.outbox.run())
        self._spawn(self._every_slot())
        self._spawn(self._look_up_meters())

    async def stop(self) -> None:
        """Stop the standing work; everything that matters is on disk."""
        await self.ledger.stop()
        await self.desk.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    # --- events ---------------------------------------------------------------------------------

    async def _take_event(self, height: int, event: dict[str, Any]) -> None:
        now_ms = self._clock.now_ms()
        self.desk.take_event(height, event)
        match event["event"]:
            case "address-registered":
                slot = self.genesis.grid.slot_at(now_ms)
                self.outbox.add(fund(event, slot, self._funding))
                self.auditor.take_grant(event)
            case "tx":
                await self.outbox.take_event(height, event)
            case "receipt":
                self.auditor.take_receipt(event, now_ms)
            case "cpf":
                self.auditor.take_cpf(event, now_ms)
            case "settled":
                with self.store.atomic():
                    self.store.add_book(event["slot"], "", book(event))
            case "trued-up":
                with self.store.atomic():
                    address = event["rows"][0]["address"]
                    self.store.add_book(event["slot"], address, book_true_up(event))
            case "auction-opened" | "auction-cleared":
                with self.store.atomic():
                    self.store.put_auction(event)
                self._board_stale = True
                await self._publish_board()

    async def _take_reading(self, message: Message) -> None:
        home = topics.parse(message.topic).leaf
        try:
            self.auditor.take_reading(home, message.payload, self._clock.now_ms())
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)

    # --- standing work --------------------------------------------------------------------------

    async def _every_slot(self) -> None:
        grid = self.genesis.grid
        while True:
            slot = grid.slot_at(self._clock.now_ms())
            try:
                await self.on_slot(slot)
            except Exception:
                log.exception("slot work failed", slot=slot)
            await self._clock.sleep_until(grid.start_ms(slot + 1))

    async def on_slot(self, slot: int) -> None:
        """What is done once in every slot: schedule, flexibility, overdue receipts, progress."""
        self._schedule_day(slot)
        operations = flexibility(
            slot, self.genesis.grid.length_s, self._forecast(slot), self._flexible
        )
        self.outbox.add(operations)
        self.auditor.give_up_overdue(slot, self._clock.now_ms())
        with self.store.atomic():
            self.store.put_validators(self.ledger.validators().to_json())
            self.store.put_heights(self.ledger.delivered())
        await self._publish_board()

    def _schedule_day(self, slot: int) -> None:
        per_day = DAY_S // self.genesis.grid.length_s
        first = slot - slot % per_day
        if first == self._scheduled_day:
            return
        history = self.store.feeder_net(
            first - self._history_days * per_day, first - 1, self._enough_meters()
        )
        expected = day_ahead(
            history, first, self.genesis.grid.length_s, self._history_days, self._standing_wh
        )
        with self.store.atomic():
            self.store.put_schedule(first, expected)
        self._scheduled_day = first

    def _forecast(self, slot: int) -> int:
        measured = self.store.feeder_net(slot - MEASURED_SLOTS, slot - 1, self._enough_meters())
        return forecast_deviation(
            [(net_wh, self.store.scheduled(each)) for each, net_wh in measured]
        )

    def _enough_meters(self) -> float:
        return max(1.0, ENOUGH_METERS * len(self.auditor.directory.meters))

    async def _look_up_meters(self) -> None:
        """Keep the directory of meters up to date: asked whenever somebody unknown turns up."""
        while True:
            if self.auditor.stale and self._bus.connected:
                try:
                    await self._refresh()
                except CsmDbRefusedError as error:
                    log.warning("the CSM-DB refuses to list meters", reason=error.reason)
                    await asyncio.sleep(10 * REFRESH_S)
                except (TimeoutError, WireError) as error:
                    log.info("meters not listed", reason=str(error))
                except Exception:
                    log.exception("meters not listed")
            await asyncio.sleep(REFRESH_S)

    async def _refresh(self) -> None:
        cursor, more = "", True
        while more:
            page = await self.csmdb.ask(LIST_METERS, {"after": cursor})
            self.auditor.directory.add(page.get("meters"))
            cursor = str(page.get("next", ""))
            more = cursor != ""
        self.auditor.refreshed(self._clock.now_ms())
        self.desk.claim(self._owner_of)

    def _owner_of(self, address: str) -> str:
        directory = self.auditor.directory
        meter = directory.meters.get(directory.meter_of_address.get(address, ""))
        return meter.participant if meter is not None else ""

    async def _publish_board(self) -> None:
        """Say (retained) which auctions are open, for whoever comes late."""
        if not self._board_stale:
            return
        self._board_stale = False
        now_ms = self._clock.now_ms()
        board = [
            {name: value for name, value in event.items() if name != "event"}
            for event, bought_wh in self.store.auctions()
            if bought_wh < 0 and event["deadlineMs"] > now_ms
        ]
        envelope = Envelope(
            self._key.id,
            new_req_id(self._clock.wall_ms(), self._rng.bytes(10)),
            now_ms,
            BOARD_OPERATION,
            {"auctions": board},
        )
        raw = seal_envelope(envelope, self._key, Domain.MESSAGE, self.genesis.market)
        try:
            await self._bus.publish(
                topics.build(self.genesis.market, topics.AUCTION), raw, retain=True
            )
        except BusDownError:
            self._board_stale = True  # said again in the next slot

    def _done(self, key: str, operation: dict[str, Any], code: str) -> None:
        """An operation is final."""
        self.desk.take_result(key, code)
        if code != "OK":
            log.warning("operation refused", key=key, op=operation["op"], code=code)

    async def _next_nonce(self) -> int:
        account = await self.ledger.query("account", self._key.id)
        nonce = account.get("nonce", 0) if isinstance(account, dict) else 0
        if type(nonce) is not int:
            raise QueryError("the account's nonce is not a number")
        return nonce


@contextlib.asynccontextmanager
async def running(aggregator: Aggregator) -> Any:
    """The aggregator at work, stopped at the end of the block."""
    await aggregator.start()
    try:
        yield aggregator
    finally:
        await aggregator.stop()
