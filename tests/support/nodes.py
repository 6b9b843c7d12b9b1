"""
Several real ledger nodes in one process, on a bus in memory and a clock that can be moved.

Everything but the broker is real: cores, mempools, SQLite files, vote logs. The bus keeps the
broker's size limit, so that what does not fit into a message is lost here too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from paho.mqtt.client import topic_matches_sub
from support import chain_builder
from support.patience import PATIENCE_S

from ledger.genesis import Genesis
from ledger.node import Node
from runtime.bus import MAX_PAYLOAD_BYTES
from runtime.metrics import count_refusal
from runtime.ports import BusDownError, Handler, Message
from sim import movable_clock
from wire import topics
from wire.errors import WireError
from wire.keys import SigningKey
from wire.transactions import Transaction

DELAY_S = 0.001


class Hub:
    """The broker: takes messages to all who subscribed, in order."""

    def __init__(self) -> None:
        self.buses: list[HubBus] = []
        self.too_big: list[str] = []
        """Topics of messages that did not fit."""
        self.carries: Callable[[HubBus, HubBus, str], bool] = lambda _from, _to, _topic: True
        """Whether a message reaches a client."""

    def deliver(self, sender: HubBus, topic: str, payload: bytes) -> None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            self.too_big.append(topic)
            return
        for bus in self.buses:
            if self.carries(sender, bus, topic):
                bus.queue.put_nowait(Message(topic, payload))


class HubBus:
    """One client's connection to the hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.queue: asyncio.Queue[Message] = asyncio.Queue()
        self.connected = True
        self._handlers: list[tuple[str, Handler]] = []
        self._task: asyncio.Task[None] | None = None
        hub.buses.append(self)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.hub.buses.remove(self)

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        return

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        self._handlers.append((topic_filter, handler))

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        if not self.connected:
            raise BusDownError("not connected")
        self.publish_soon(topic, payload)

    def publish_soon(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        if self.connected:
            asyncio.get_running_loop().call_later(DELAY_S, self.hub.deliver, self, topic, payload)

    async def _run(self) -> None:
        while True:
            message = await self.queue.get()
            for topic_filter, handler in self._handlers:
                if topic_matches_sub(topic_filter, message.topic):
                    try:
                        await handler(message)
                    except WireError as error:
                        count_refusal("bus", error.refusal)


class MovableClock(movable_clock.MovableClock):
    """Real time from the test market's start on, moved at will."""

    def __init__(self) -> None:
        super().__init__(chain_builder.START_MS + 1000)


class Feeder:
    """Four nodes, and a client that sends transactions to them."""

    def __init__(self, folder: Path, genesis: Genesis) -> None:
        self.folder = folder
        self.genesis = genesis
        self.hub = Hub()
        self.clock = MovableClock()
        self.chain = chain_builder.Chain(genesis=genesis)
        """Only to make transactions with."""
        self.nodes: list[Node] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._client = HubBus(self.hub)

    @staticmethod
    def key(index: int) -> SigningKey:
        """The key of a node; the first four are the founders'."""
        return chain_builder.key(f"validator {index}")

    def start(self, index: int, **options: Any) -> Node:
        """Start (or start again) a node from its folder."""
        folder = self.folder / f"node-{index}"
        folder.mkdir(exist_ok=True)
        key = self.key(index)
        node = Node(self.genesis, folder, key, HubBus(self.hub), self.clock, **options)
        task = asyncio.create_task(node.run())
        if index == len(self.nodes):
            self.nodes.append(node)
            self.tasks.append(task)
        else:
            self.nodes[index], self.tasks[index] = node, task
        return node

    async def stop(self, index: int) -> None:
        """Stop a node; its folder stays."""
        self.tasks[index].cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self.tasks[index]

    def send(self, *transactions: Transaction) -> None:
        """Publish transactions."""
        for tx in transactions:
            topic = topics.build(self.genesis.market, topics.TX, tx.sender)
            self._client.publish_soon(topic, tx.raw)

    async def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """
        Wait for something.

        Raises:
            AssertionError: it did not come.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            for task in self.tasks:
                if task.done() and not task.cancelled() and task.exception() is not None:
                    raise AssertionError("a node stopped") from task.exception()
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {self.heights}"
            await asyncio.sleep(0.01)

    async def executed(self, *transactions: Transaction, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every running node has executed all of these."""
        await self.until(
            lambda: all(
                node.ledger.is_executed(tx.txid)
                for node, task in zip(self.nodes, self.tasks, strict=True)
                if not task.done()
                for tx in transactions
            ),
            timeout_s,
        )

    @property
    def heights(self) -> list[int]:
        """Executed heights."""
        return [node.executed_height for node in self.nodes]


@contextlib.asynccontextmanager
async def feeder(folder: Path, **genesis: object) -> AsyncIterator[Feeder]:
    """Four running nodes."""
    running = Feeder(folder, chain_builder.make_genesis(**{"delta0_ms": 50, **genesis}))
    for index in range(4):
        running.start(index)
    try:
        yield running
    finally:
        for index in range(len(running.nodes)):
            await running.stop(index)
