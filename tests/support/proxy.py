"""
A broker that misbehaves: what stands between real nodes and a real broker, and reads along.

Each node connects to a `Link` of its own instead of to the broker. What the broker sends down a
link is taken apart; the network's `rule` says, message by message and for each receiver alone,
whether it is shown, when, how often and with what content. That is all a broker could do itself: it
cannot sign. For the broker and the node nothing is lost: the proxy acknowledges for whom it
deceives.

    network = Network(broker_port)
    link = await network.link("validator-0")        # the node connects to link.port
    network.rule = halves({"validator-0", "validator-1"}, {"validator-2", "validator-3"})
    network.rule = honest
    link.cut(); link.mend()
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from support.raw_mqtt import PUBACK, PUBLISH, Packet, packet, text

MAX_REMEMBERED = 50_000
QOS_BITS = 0b0110


@dataclass(frozen=True, slots=True)
class Passing:
    """A message on its way down to one client."""

    sender: str
    """The link that it came up last, empty when it came from a client without a link."""
    receiver: str
    topic: str
    payload: bytes


Fate = Sequence[tuple[float, bytes]]
"""What is shown instead: delay [s] and payload, any number of times."""
Rule = Callable[[Passing], Fate]


def honest(message: Passing) -> Fate:
    """Show it at once, as it is."""
    return ((0.0, message.payload),)


def halves(*groups: set[str]) -> Rule:
    """A partition: nobody is shown what another group says."""

    def rule(message: Passing) -> Fate:
        split = any(
            (message.sender in group) != (message.receiver in group)
            for group in groups
            if message.sender
        )
        return () if split else honest(message)

    return rule


def moody(seed: int, drop: float, duplicate: float, delay_s: float) -> Rule:
    """Each client is shown something else: losses, repetitions and disorder of its own."""
    moods: dict[str, Random] = {}

    def rule(message: Passing) -> Fate:
        rng = moods.setdefault(message.receiver, Random(f"{seed}/{message.receiver}"))
        if rng.random() < drop:
            return ()
        times = 2 if rng.random() < duplicate else 1
        return [(rng.uniform(0.0, delay_s), message.payload) for _ in range(times)]

    return rule


@dataclass
class Network:
    """The links of a test."""

    broker_port: int
    rule: Rule = honest
    watch: Callable[[str, str, bytes], None] = lambda _sender, _topic, _payload: None
    """Told of every message that a node sends up: link, topic, payload."""
    links: dict[str, Link] = field(default_factory=dict)
    hidden: int = 0
    """Messages that somebody was not shown."""
    _senders: dict[bytes, str] = field(default_factory=dict)

    async def link(self, name: str) -> Link:
        """A new link, open."""
        link = self.links[name] = Link(name, self)
        await link.open()
        return link

    async def close(self) -> None:
        """End all links."""
        for link in self.links.values():
            await link.close()

    def went_up(self, sender: str, topic: str, payload: bytes) -> None:
        """Remember who said it: a certificate, for one, does not tell."""
        if len(self._senders) >= MAX_REMEMBERED:
            self._senders.clear()
        self._senders[_digest(topic, payload)] = sender
        self.watch(sender, topic, payload)

    def fate(self, receiver: str, topic: str, payload: bytes) -> Fate:
        """What a client is shown of a message."""
        sender = self._senders.get(_digest(topic, payload), "")
        shown = self.rule(Passing(sender, receiver, topic, payload))
        self.hidden += not shown
        return shown


@asynccontextmanager
async def network_to(broker_port: int, *names: str) -> AsyncIterator[Network]:
    """A network with a link for each name."""
    network = Network(broker_port)
    try:
        for name in names:
            await network.link(name)
        yield network
    finally:
        await network.close()


class Link:
    """One client's way to the broker."""

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self.port = 0
        self._network = network
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False

    async def open(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break the connection, and every one that is tried."""
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """Let the client connect again."""
        self._is_cut = False

    async def close(self) -> None:
        """Stop listening and end what runs."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            broker = await asyncio.open_connection("127.0.0.1", self._network.broker_port)
        except OSError:
            writer.transport.abort()
            return
        ways = [self._up(reader, broker[1]), self._down(broker[0], broker[1], writer)]
        tasks = [asyncio.create_task(self._run(way)) for way in ways]
        self._tasks |= set(tasks)
        self._writers |= {writer, broker[1]}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for one in (writer, broker[1]):
            one.transport.abort()
            self._writers.discard(one)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks -= set(tasks)

    async def _run(self, way: object) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, OSError):
            await way  # type: ignore[misc]

    async def _up(self, client: asyncio.StreamReader, broker: asyncio.StreamWriter) -> None:
        """From the client to the broker: everything as it is."""
        while True:
            came = await _read(client)
            if came.kind == PUBLISH:
                self._network.went_up(self.name, came.topic, came.payload)
            broker.write(_bytes(came))
            await broker.drain()

    async def _down(
        self,
        broker: asyncio.StreamReader,
        answers: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
    ) -> None:
        """From the broker to the client: messages by the rule, everything else as it is."""
        loop = asyncio.get_running_loop()
        while True:
            came = await _read(broker)
            if came.kind != PUBLISH:
                client.write(_bytes(came))
                continue
            if came.qos:
                answers.write(packet(PUBACK << 4, came.packet_id.to_bytes(2, "big")))
            for delay_s, payload in self._network.fate(self.name, came.topic, came.payload):
                # Shown at QoS 0, because the broker has its acknowledgement already.
                shown = packet(PUBLISH << 4 | came.flags & ~QOS_BITS, text(came.topic) + payload)
                if delay_s <= 0:
                    client.write(shown)
                else:
                    loop.call_later(delay_s, _write, client, shown)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(data)


def _digest(topic: str, payload: bytes) -> bytes:
    return hashlib.sha256(topic.encode() + b"\0" + payload).digest()


def _bytes(one: Packet) -> bytes:
    return packet(one.kind << 4 | one.flags, one.body)


async def _read(reader: asyncio.StreamReader) -> Packet:
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return Packet(first >> 4, first & 15, await reader.readexactly(length))
