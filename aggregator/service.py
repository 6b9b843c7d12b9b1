"""
The aggregator on the bus: one lane as aggregator, DSO desk and grid supervisor.

The supervisor's address in the genesis is the id of the service key, so one identity signs its
transactions, its certificate (roles aggregator and dso) lets it read sealed readings and open
auctions, and one outbox keeps its nonce.

    ledger events   address-registered -> fund it           tx            -> outbox
                    receipt, cpf       -> audit             auction-*     -> board
                    settled, trued-up  -> books       *-deposited, account-closed, balance
                                                    -> private accounts
                    change-proposed    -> approval, where the operator said so -> outbox
                    change-approved    -> rules       session-closed, interconnection-closed
                                                      -> adjustment -> outbox
    readings        -> audit
    CSM-DB          revocations -> outbox (`aggregator.revocations`)
    dso/req         -> private accounts -> outbox; schedules -> approval
    every slot      schedule (`aggregator.scheduler`), deviation -> auction; progress stored
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from aggregator.accounts import Accounts
from aggregator.auditor import Auditor
from aggregator.core import (
    AdjustmentPolicy,
    FlexibilityPolicy,
    FundingPolicy,
    KeyedOperation,
    adjustments,
    approval,
    book,
    book_true_up,
    flexibility,
    fund,
)
from aggregator.dso_desk import DsoDesk
from aggregator.grid_limits import GridPolicy
from aggregator.revocations import Revocations
from aggregator.scheduler import SchedulePolicy, Scheduler
from aggregator.store import AggregatorStore
from aggregator.withdrawals import SafetyPolicy
from ledger.approvals import Approval
from ledger.client import LedgerClient, QueryError, Validators
from ledger.genesis import Genesis
from ledger.rulebook import RuleBook
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.dso_client import DsoClient
from runtime.metrics import count_refusal
from runtime.outbox import OperationOutbox
from runtime.ports import Bus, BusDownError, Clock, Message, Rng, Store
from wire import topics
from wire.enrolment import LIST_METERS
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import WireError
from wire.keys import BoxKey, Domain, SigningKey, from_text

COMPONENT = "aggregator"
REFRESH_S = 1.0
"""Least real time between two look-ups at the CSM-DB."""
LOOK_BACK_SLOTS = 4
"""Addresses that had ended so long before the last listing of meters are known or no matter."""
BOARD_OPERATION = "open-auctions"

log = structlog.get_logger(component=COMPONENT)


class Aggregator:
    """
    The aggregator's shell.

    Args:
        bus: the lane under `key.id`
        outbox_store: a file of its own, synchronous=FULL
        accounts: the participants' private accounts; none: in memory, for a market without any
        limits: what the DSO approves of a schedule
        approve: changes of the rules that the operator always agrees with
        propose: changes that it wants (`aggregator.core.propose`)
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
        schedule: SchedulePolicy,
        accounts: Accounts | None = None,
        safety: SafetyPolicy | None = None,
        limits: GridPolicy | None = None,
        approve: Sequence[Approval] = (),
        adjust: AdjustmentPolicy | None = None,
        propose: Sequence[KeyedOperation] = (),
    ) -> None:
        self.genesis = genesis
        self.store = store
        self._key, self._bus, self._clock, self._rng = key, bus, clock, rng
        self._funding, self._flexible = funding, flexible
        self._propose = list(propose)
        self._approve, self._adjust = approve, adjust or AdjustmentPolicy()
        self.rules = RuleBook.kept(genesis, store.rules())
        self._rounds = store.rounds()
        """Last round of the sessions that were cleared, by slots that have not ended."""
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
            safety, limits or GridPolicy(), rng, energy=not funding.automatic,
            batch_s=safety.batch_s if genesis.fresh_addresses else 0,
        )  # fmt: skip
        dso = DsoClient(
            bus, key, box, genesis.market, key.public, from_text(genesis.dso_box_key), clock, rng
        )
        self.scheduler = Scheduler(store, self.auditor, dso, genesis.grid, clock, schedule)
        self.revocations = Revocations(bus, self.csmdb, self.outbox)
        self._board_stale = True
        self._listed_slot = 0
        """When the CSM-DB listed its meters last."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Subscribe and start the standing work; works before the bus is connected."""
        self.ledger.on_event(self._take_event)
        self._bus.subscribe(
            topics.build(self.genesis.market, topics.READING, "+"), self._take_reading
        )
        self.desk.start()
        self.outbox.add(self._propose)
        await self.ledger.start()
        self._spawn(self.outbox.run())
        self._spawn(self._every_slot())
        self._spawn(self._look_up_meters())
        self._spawn(self.desk.revoked.run())
        self._spawn(self.scheduler.run())
        self._spawn(self.revocations.run())

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
            case "change-proposed":
                self._consider(event)
            case "change-approved":
                if self.rules.take_event(event):
                    with self.store.atomic():
                        self.store.put_rules(self.rules.to_json())
            case "session-closed" | "interconnection-closed":
                self._reopen(event, now_ms)

    def _consider(self, event: dict[str, Any]) -> None:
        """Approve a proposed change if the operator said so beforehand."""
        ours = approval(event, self._key.id, self._approve)
        if ours is not None:
            self.outbox.add([ours])
        elif event["proposer"] != self._key.id:
            log.warning(
                "a change waits for a person's approval", change=event["change"],
                path=event["path"], value=event["value"], activation_slot=event["activationSlot"],
            )  # fmt: skip

    def _reopen(self, event: dict[str, Any], now_ms: int) -> None:
        """Reopen cleared sessions where the grid changed or is full, if that is configured."""
        if event["event"] == "session-closed":
            self._rounds[event["slot"]] = event["round"]
            with self.store.atomic():
                self.store.put_rounds(self._rounds)
        self.outbox.add(adjustments(event, self._rounds, now_ms, self.genesis.grid, self._adjust))

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
        self.scheduler.on_slot(slot)
        forecast_wh = self.scheduler.deviation_wh(slot)
        now_ms, grid = self._clock.now_ms(), self.genesis.grid
        self.outbox.add(flexibility(now_ms, self.rules, grid, forecast_wh, self._flexible))
        self._rounds = {each: number for each, number in self._rounds.items() if each >= slot}
        self.rules.forget_before(slot)
        self.auditor.give_up_overdue(slot, self._clock.now_ms())
        self.desk.claim(self._owner_of)
        with self.store.atomic():
            self.store.put_validators(self.ledger.validators().to_json())
            self.store.put_heights(self.ledger.delivered())
        await self._publish_board()

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
        slot = self.genesis.grid.slot_at(self._clock.now_ms())
        since = max(0, self._listed_slot - LOOK_BACK_SLOTS)
        while more:
            page = await self.csmdb.ask(LIST_METERS, {"after": cursor, "fromSlot": since})
            self.auditor.directory.add(page.get("meters"))
            cursor = str(page.get("next", ""))
            more = cursor != ""
        self._listed_slot = slot
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
