"""
The analytics service: follows the ledger and the homes, remembers, and feeds the console.

One task writes what has gathered every half second in one transaction; nothing else touches the
disk while messages come in, because this process shares its cores with a whole feeder in the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import structlog

from analytics.facts import MarketFacts
from analytics.live import LiveView, Situation
from analytics.rollups import KEEP_DAYS, Rollup
from analytics.statements import BlockVotes, StateDoor, read_refused
from analytics.store import AnalyticsStore
from ledger.client import LedgerClient, Validators
from ledger.genesis import Genesis
from runtime.metrics import count_refusal, refusals
from runtime.ports import Bus, Clock, Message, Rng
from wire import topics
from wire.errors import WireError

COMPONENT = "analytics"
FLUSH_S = 0.5
HOUSEKEEPING_S = 600.0
DAY_MS = 86_400_000
MAX_READING_BYTES = 16 * 1024

log = structlog.get_logger(component=COMPONENT)


class AnalyticsService:
    """
    Folds one market into a store and a live view.

    Args:
        facts, genesis: the market
        bus: a lane with the role "analytics"
        clock, rng: market time; randomness for ids
        data_dir: holds `analytics.sqlite`
        client_id: identity of the lane
        retain_days: events, states and readings older than this are forgotten
    """

    def __init__(
        self,
        facts: MarketFacts,
        genesis: Genesis,
        bus: Bus,
        clock: Clock,
        rng: Rng,
        data_dir: Path,
        client_id: str,
        *,
        currency: str = "¤",
        retain_days: int = 400,
    ) -> None:
        self.facts = facts
        self._bus, self._clock = bus, clock
        self._retain_ms = retain_days * DAY_MS
        data_dir.mkdir(parents=True, exist_ok=True)
        self.store = AnalyticsStore(data_dir / "analytics.sqlite")
        self.rollup = Rollup(facts)
        self.store.replay(self.rollup, max(0, clock.now_ms() - KEEP_DAYS * DAY_MS))
        self.view = LiveView(facts, self.rollup, rng.bytes(4).hex(), currency)
        self._door = StateDoor(facts.chain_id)
        self._blocks = BlockVotes(facts)
        self._started_s = clock.monotonic_s()
        self._client = LedgerClient(
            bus, genesis, clock, client_id, resume=self.store.delivered(), from_start=True, rng=rng,
            validators=Validators.kept(self.store.validators()),
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Subscribe and begin to write."""
        self._client.on_event(self._take_event)
        self._client.on_local_event(self._take_statement)
        market = self.facts.market
        self._bus.subscribe(topics.build(market, topics.STATE, "+"), self._take_state)
        self._bus.subscribe(topics.build(market, topics.READING, "+"), self._take_reading)
        await self._client.start()
        self._tasks = [
            asyncio.create_task(self._write_regularly()),
            asyncio.create_task(self._keep_house()),
        ]

    async def stop(self) -> None:
        """Write what is left and release the file."""
        await self._client.stop()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.flush()
        self.store.close()

    def situation(self) -> Situation:
        """The moment, for the view."""
        return Situation(
            now_ms=self._clock.now_ms(),
            speed=float(getattr(self._clock, "speed", 1.0)),
            connected=self._bus.connected,
            uptime_s=self._clock.monotonic_s() - self._started_s,
        )

    def flush(self) -> int:
        """Write what has gathered; returns the number of rows."""
        return self.store.flush(self._client.delivered(), self._client.validators().to_json())

    async def _take_event(self, height: int, event: dict[str, Any]) -> None:
        self.store.add_event(height, self._clock.now_ms(), event)
        try:
            self.rollup.fold_event(height, event)
        except Exception:
            # The event is kept and folded again at the next start; the view must not stop for it,
            # and handing it on again would keep it twice.
            log.exception("event not counted", name=event.get("event"), height=height)

    async def _take_statement(self, _height: int, statement: dict[str, Any]) -> None:
        if statement.get("event") == "block":
            row = self._blocks.take(statement)
            if row is not None:
                self.store.add_block(row)
                self.rollup.fold_block(row)
        elif statement.get("event") == "refused":
            node, component, counts = read_refused(statement)
            self.store.add_refused(node, component, counts)
            self.rollup.fold_refused(node, component, counts)

    async def _take_state(self, message: Message) -> None:
        home = topics.parse(message.topic).leaf
        try:
            state = self._door.read(home, message.payload, self._clock.now_ms())
        except WireError as error:
            self._refuse(error)
            return
        self.store.add_state(state)
        self.rollup.fold_state(state)

    async def _take_reading(self, message: Message) -> None:
        if len(message.payload) > MAX_READING_BYTES:
            return
        home = topics.parse(message.topic).leaf
        digest = hashlib.sha256(message.payload).hexdigest()
        self.store.add_reading(home, self._clock.now_ms(), len(message.payload), digest)

    def _refuse(self, error: WireError) -> None:
        count_refusal(COMPONENT, error.refusal)
        counts = refusals(COMPONENT)
        self.store.add_refused(COMPONENT, COMPONENT, counts)
        self.rollup.fold_refused(COMPONENT, COMPONENT, counts)

    async def _write_regularly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                self.flush()
            except Exception:
                log.exception("cannot write", file="analytics.sqlite")

    async def _keep_house(self) -> None:
        while True:
            now_ms = self._clock.now_ms()
            self.rollup.forget_before(now_ms - KEEP_DAYS * DAY_MS)
            self.store.prune(now_ms - self._retain_ms)
            await asyncio.sleep(HOUSEKEEPING_S)
