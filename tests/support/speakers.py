"""
Validators that only speak, and a bus in memory: what a client of the ledger hears and asks.

The honest ones are real publishers on one real store of blocks with made-up events; a liar is a key
that signs what the test wants. The air refuses what the broker would refuse, and loses what the
test says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from support.chain_builder import MARKET, START_MS, VALIDATORS, key, make_genesis

from ledger.client import LedgerClient, sign_message
from ledger.publish import Publisher
from ledger.statements import EventHead, count_parts, event_message
from ledger.store import BlockRecord, LedgerStore, StoredBlock
from ledger.types import Header, encode, header_hash
from runtime.bus import MAX_PAYLOAD_BYTES
from runtime.metrics import count_refusal
from runtime.ports import BusDownError, Handler, Message
from wire import topics
from wire.canonical import encode as canonical
from wire.errors import OversizedError, WireError
from wire.keys import SigningKey

CLIENT = key("client")


class RealClock:
    """Real time is market time."""

    speed = 1.0

    def now_ms(self) -> int:
        return int(time.time() * 1000)

    wall_ms = now_ms

    def monotonic_s(self) -> float:
        return time.monotonic()


class Air:
    """A broker: brings every message to whoever subscribed to its very topic."""

    def __init__(self) -> None:
        self.handlers: dict[str, list[Handler]] = {}
        self.loses: Callable[[str, bytes], bool] = lambda _topic, _payload: False
        self.connected = True
        self.refused: list[str] = []
        """Names of what handlers raised."""
        self.carried: list[tuple[str, bytes]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        self.handlers.setdefault(topic_filter, []).append(handler)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        if not self.connected:
            raise BusDownError("not connected")
        self.publish_soon(topic, payload)

    def publish_soon(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise OversizedError("too big for the broker", size=len(payload))
        if self.connected and not self.loses(topic, payload):
            task = asyncio.create_task(self._bring(Message(topic, payload)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _bring(self, message: Message) -> None:
        self.carried.append((message.topic, message.payload))
        for handler in self.handlers.get(message.topic, ()):
            try:
                await handler(message)
            except WireError as error:
                count_refusal("bus", error.refusal)
                self.refused.append(error.refusal.value)


class Feeder:
    """Four validators with one history; the last `silent` of them do not speak for it."""

    def __init__(self, *, silent: int = 1) -> None:
        self.genesis = make_genesis()
        self.air = Air()
        self.store = LedgerStore(":memory:")
        self.height = 0
        self.nodes = [self.node(one) for one in VALIDATORS[: len(VALIDATORS) - silent]]
        self.seen: list[tuple[int, dict[str, Any]]] = []

    def node(self, validator: SigningKey) -> Publisher:
        """An honest validator that answers questions."""
        node = SimpleNamespace(
            key=validator, genesis=self.genesis, store=self.store, bus=self.air, clock=RealClock(),
            ledger=SimpleNamespace(query=lambda name: {"row": name}), executed_height=0,
            epoch=SimpleNamespace(validators=SimpleNamespace(index=lambda _: None)),
        )  # fmt: skip
        publisher = Publisher(node)
        topic = topics.build(MARKET, topics.SYNC_REQ, CLIENT.id)
        self.air.subscribe(topic, publisher.take_request)
        return publisher

    def add(self, contract: str, *events: dict[str, Any], say: bool = True) -> int:
        """A block with events of a contract, told by the honest ones."""
        self.height += 1
        header = Header(
            chain_id=self.genesis.chain_id, epoch=0, view=self.height, height=self.height,
            parent_hash=bytes(32), justify_hash=bytes(32), tx_root=bytes(32), n_tx=0,
            exec_height=self.height - 1, state_root=bytes(32), receipts_root=bytes(32),
            validators_hash=bytes(32), schedule_root=bytes(32), time_ms=START_MS + self.height,
            proposer="",
        )  # fmt: skip
        block = StoredBlock(
            height=self.height, hash=header_hash(header), header_bytes=encode(header),
            certificate=b"", txids=(), state_root=bytes(32), receipts_root=bytes(32),
        )  # fmt: skip
        self.store.write_block(BlockRecord(block, [], [], {contract: list(events)}, {}))
        if say:
            for node in self.nodes:
                self.say(node, contract, self.height)
        return self.height

    def say(self, node: Publisher, contract: str, height: int) -> None:
        """One honest validator tells of a block."""
        for message in node._event_messages(contract, height):
            node._publish(contract, message)

    def messages(
        self, contract: str, height: int, previous: int, *events: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """An event message of any content, in parts."""
        head = EventHead(self.genesis.chain_id, contract, height, previous, START_MS)
        raw = canonical(list(events))
        return [event_message(head, raw, part) for part in range(count_parts(len(raw)))]

    def claim(self, validator: SigningKey, contract: str, message: dict[str, Any]) -> None:
        """Somebody signs a message and says it."""
        topic = topics.build(MARKET, topics.EVENTS, contract)
        self.air.publish_soon(topic, sign_message(message, validator, self.genesis.chain_id))

    def answer(self, validator: SigningKey, statement: dict[str, Any]) -> None:
        """Somebody signs an answer and gives it to the client."""
        topic = topics.build(MARKET, topics.SYNC_RSP, CLIENT.id)
        self.air.publish_soon(topic, sign_message(statement, validator, self.genesis.chain_id))

    def client(self, **options: Any) -> LedgerClient:
        """A client that remembers what it sees in `seen`."""
        self.air.handlers = {
            topic: handlers for topic, handlers in self.air.handlers.items()
            if "/sync/req/" in topic
        }  # fmt: skip
        options = {"from_start": True, **options}
        return LedgerClient(self.air, self.genesis, RealClock(), CLIENT.id, **options)

    async def note(self, height: int, event: dict[str, Any]) -> None:
        """A handler."""
        self.seen.append((height, event))

    @property
    def heights(self) -> list[int]:
        """Where the events that were seen are from."""
        return [height for height, _ in self.seen]
