"""
What the broker keeps for a client: its session, and the messages on their way to it.

A session outlives its connection unless the client asked for a clean one. Messages wait in it until
the client acknowledges them; at most `WINDOW` are under way at a time. Nothing is dropped because a
client is slow to acknowledge (amqtt gives up after 5 s), and what was under way when a connection
was lost is sent again, in order, with the DUP flag.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from broker.packets import publish_head
from wire.topics import Peer

WINDOW = 256
"""Messages under way to one client and not yet acknowledged."""
MAX_WAITING = 50_000
"""Messages kept for one client. An absent client that has this many is dropped from."""
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""The same, of their bytes: for clients that read slowly or not at all."""


class Pipe(Protocol):
    """The connection of a session."""

    writable: bool
    """False while the client does not read."""

    def write(self, data: bytes) -> None:
        """Send bytes."""
        ...


class Message:
    """One published message, shared by all sessions it goes to."""

    __slots__ = ("_head", "_head_of", "id", "payload", "qos", "refs", "stored", "topic")

    def __init__(self, number: int, topic: str, payload: bytes, qos: int) -> None:
        self.id = number
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.refs = 0
        """Deliveries of durable sessions that still need it."""
        self.stored = False
        self._head = b""
        self._head_of = -1

    def frame(self, qos: int, retain: bool, dup: bool, packet_id: int) -> bytes:
        """The PUBLISH packet; all but the packet id is built once for all receivers."""
        kind = qos << 2 | retain << 1 | dup
        if self._head_of != kind:
            self._head_of = kind
            self._head = publish_head(self.topic, len(self.payload), qos, retain, dup)
        if qos == 0:
            return self._head + self.payload
        return b"".join((self._head, packet_id.to_bytes(2, "big"), self.payload))


class Delivery:
    """A message for one session at QoS 1, from being queued to being acknowledged."""

    __slots__ = ("message", "number", "retained", "sent")

    def __init__(self, number: int, message: Message, retained: bool, sent: bool = False) -> None:
        self.number = number
        """Increases over the broker's life; the order within a session."""
        self.message = message
        self.retained = retained
        self.sent = sent
        """True once it may have reached the client, so that a repetition says DUP."""


class Session:
    """A client's subscriptions and queue."""

    __slots__ = (
        "_next_id", "clean", "client_id", "dropped", "last_seen_ms", "peer", "pipe",
        "subscriptions", "underway", "waiting", "waiting_bytes",
    )  # fmt: skip

    def __init__(self, peer: Peer, clean: bool, last_seen_ms: int) -> None:
        self.client_id = peer.id
        self.peer = peer
        self.clean = clean
        self.last_seen_ms = last_seen_ms
        """Wall time of the last disconnect."""
        self.pipe: Pipe | None = None
        self.subscriptions: dict[str, int] = {}
        self.waiting: deque[Delivery] = deque()
        self.waiting_bytes = 0
        """Of the payloads in `waiting`."""
        self.underway: dict[int, Delivery] = {}
        self.dropped = 0
        self._next_id = 1

    @property
    def full(self) -> bool:
        """True when no more can be kept for an unresponsive client."""
        return len(self.waiting) >= MAX_WAITING or self.waiting_bytes >= MAX_WAITING_BYTES

    def offer(self, delivery: Delivery) -> None:
        """Send a delivery now if nothing is before it and the window allows, else queue it."""
        if self.pipe is None or self.waiting or not self._may_send(self.pipe):
            self.put(delivery)
        else:
            self._send(self.pipe, delivery)

    def pump(self) -> None:
        """Send what waits, as far as the window allows."""
        while self.waiting and self.pipe is not None and self._may_send(self.pipe):
            delivery = self.waiting.popleft()
            self.waiting_bytes -= len(delivery.message.payload)
            self._send(self.pipe, delivery)

    def put(self, delivery: Delivery) -> None:
        """Let a delivery wait behind the others."""
        self.waiting.append(delivery)
        self.waiting_bytes += len(delivery.message.payload)

    def drop(self, delivery: Delivery) -> None:
        """Forget a delivery that waits."""
        self.waiting.remove(delivery)
        self.waiting_bytes -= len(delivery.message.payload)

    def acknowledge(self, packet_id: int) -> Delivery | None:
        """The client has a message; returns it, or None for an unknown packet id."""
        delivery = self.underway.pop(packet_id, None)
        if self.waiting:
            self.pump()
        return delivery

    def detach(self) -> None:
        """The connection is gone: what was under way waits again, first."""
        self.pipe = None
        self.waiting.extendleft(reversed(self.underway.values()))
        self.waiting_bytes += sum(len(one.message.payload) for one in self.underway.values())
        self.underway.clear()

    def deliveries(self) -> list[Delivery]:
        """Everything not acknowledged, in order."""
        return [*self.underway.values(), *self.waiting]

    def _may_send(self, pipe: Pipe) -> bool:
        return pipe.writable and len(self.underway) < WINDOW

    def _send(self, pipe: Pipe, delivery: Delivery) -> None:
        packet_id = self._next_id
        while packet_id in self.underway:
            packet_id = packet_id % 0xFFFF + 1
        self._next_id = packet_id % 0xFFFF + 1
        self.underway[packet_id] = delivery
        dup, delivery.sent = delivery.sent, True
        pipe.write(delivery.message.frame(1, delivery.retained, dup, packet_id))
