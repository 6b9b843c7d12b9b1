"""
One client's connection: bytes in, packets to the broker, bytes out.

Whatever comes in, the worst that happens is that this connection is closed, by a counted name.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol, cast

import structlog
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket

from broker import packets
from broker.packets import Publish, Splitter
from broker.quota import CONNECT_COST, FILTER_COST
from broker.sessions import Session
from wire.errors import MalformedError, WireError

READ_AHEAD_BYTES = 64 * 1024
"""Of a client that has used up its quota: so its pings are answered and its acknowledgements taken
while what it says waits. One that has sent more is not read from."""
PACKET_BYTES = 256
"""What holding a packet takes beside its body, generously."""
PAUSE_MAX_S = 10.0
"""So often a client that has used up its quota is looked at; shorter than any keep-alive."""

log = structlog.get_logger(component="broker")


class Desk(Protocol):
    """What a connection asks of the broker."""

    def opened(self, connection: Connection) -> None:
        """A TCP connection was made."""
        ...

    def closed(self, connection: Connection) -> None:
        """It is gone, with or without a goodbye."""
        ...

    def connect(self, connection: Connection, packet: ConnectPacket) -> None:
        """CONNECT: answer it and give the connection its session, or close it."""
        ...

    def publish(self, connection: Connection, publish: Publish) -> None:
        """PUBLISH."""
        ...

    def acknowledged(self, session: Session, packet_id: int) -> bool:
        """PUBACK; False when nothing of that number was under way."""
        ...

    def subscribe(
        self, connection: Connection, packet_id: int, wanted: list[tuple[str, int]]
    ) -> None:
        """SUBSCRIBE."""
        ...

    def unsubscribe(self, connection: Connection, packet_id: int, filters: list[str]) -> None:
        """UNSUBSCRIBE."""
        ...

    def refuse(self, error: WireError) -> None:
        """Count and log something refused."""
        ...

    def charge(self, connection: Connection, messages: float, size_bytes: int) -> float:
        """Take from the client's quota; seconds for which to read nothing more from it."""
        ...


class Connection(asyncio.Protocol):
    """The asyncio side of a connection, and the `Pipe` of its session."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.session: Session | None = None
        self.will: Publish | None = None
        """Published when the connection ends without DISCONNECT."""
        self.writable = True
        self.heard_s = self._loop.time()
        """Monotonic time of the last bytes that came in."""
        self.keepalive_s = 0
        self.tls_serial = ""
        """Of the X.509 certificate it came with, hexadecimal; empty without one."""
        self.until_ms: int | None = None
        """Market time at which the credential ends."""
        self.at_work_ms: tuple[int, int] | None = None
        """Market times between which an address may say what addresses may; None: no address."""
        self._backlog: deque[tuple[int, bytes]] = deque()
        """Packets that are here already of a client that has used up its quota."""
        self._backlog_bytes = 0
        self._pinged = False
        """A ping has overtaken what waits in this pause."""
        self._pause: asyncio.TimerHandle | None = None

    # --- asyncio ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected (TCP_NODELAY is asyncio's default)."""
        self._transport = cast(asyncio.Transport, transport)
        self._desk.opened(self)

    @property
    def peer_certificate(self) -> dict[str, Any]:
        """The X.509 certificate of the other side, as `ssl` tells it; empty without one."""
        tls = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        return (tls.getpeercert() or {}) if tls is not None else {}

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        self.heard_s = self._loop.time()
        self._work(self._splitter.feed(data))

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._gone()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        self.writable = False

    def resume_writing(self) -> None:
        """It has caught up."""
        self.writable = True
        if self.session is not None:
            self.session.pump()

    # --- for the broker -----------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes; nothing once the connection is closed."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Close after what was written is sent, publishing the last will."""
        transport = self._transport
        self._gone()
        if transport is not None:
            transport.close()

    def abort(self) -> None:
        """Close at once, publishing the last will."""
        transport = self._transport
        self._gone()
        if transport is not None:
            transport.abort()

    # --- packets ------------------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        """True while nothing is read because the client has used up its quota."""
        return self._pause is not None

    def _work(self, packets_in: Iterable[tuple[int, bytes]]) -> None:
        try:
            for first_byte, body in packets_in:
                if self._transport is None:
                    return
                if self._pause is not None and not self._is_urgent(first_byte >> 4):
                    self._put_off(first_byte, body)
                    continue
                self._handle(first_byte, body)
                self._charge(first_byte >> 4, body)
        except WireError as error:
            self._desk.refuse(error)
            self.abort()
        except Exception:
            # our own mistake must not take the broker down with it
            log.exception("connection failed")
            self.abort()

    def _charge(self, kind: int, body: bytes) -> None:
        """Count what was handled; stop reading when it was more than the client may say."""
        if kind == packets.PUBACK or self._pause is not None:
            return
        costs = {packets.CONNECT: CONNECT_COST, packets.SUBSCRIBE: FILTER_COST,
                 packets.UNSUBSCRIBE: FILTER_COST}  # fmt: skip
        self._take(costs.get(kind, 1), len(body))

    def _take(self, messages: float, size_bytes: int) -> None:
        if self._transport is None:
            return
        wait_s = self._desk.charge(self, messages, size_bytes)
        if wait_s > 0:
            self._pause = self._loop.call_later(min(wait_s, PAUSE_MAX_S), self._go_on)

    def _is_urgent(self, kind: int) -> bool:
        """
        May a packet overtake what waits? What keeps the connection, once each time.

        Acknowledgements are as many as what we send; pings as many as a client likes.
        """
        if kind == packets.PINGREQ and not self._pinged:
            self._pinged = True
            return True
        return kind == packets.PUBACK

    def _put_off(self, first_byte: int, body: bytes) -> None:
        self._backlog.append((first_byte, body))
        self._backlog_bytes += len(body) + PACKET_BYTES
        if self._backlog_bytes > READ_AHEAD_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """The quota has something in it again."""
        self._pause, self._pinged = None, False
        self.heard_s = self._loop.time()
        backlog, self._backlog, self._backlog_bytes = self._backlog, deque(), 0
        self._work(backlog)
        if self._backlog_bytes <= READ_AHEAD_BYTES and self._transport is not None:
            self._transport.resume_reading()

    def _handle(self, first_byte: int, body: bytes) -> None:
        kind = first_byte >> 4
        if self.session is None:
            if kind != packets.CONNECT:
                raise MalformedError("the first packet must be CONNECT", kind=kind)
            self._desk.connect(self, packets.decode_with(ConnectPacket, first_byte, body))
        elif kind == packets.PUBLISH:
            self._desk.publish(self, packets.parse_publish(first_byte, body))
        elif kind == packets.PUBACK:
            self._acknowledged(self.session, first_byte, body)
        elif kind == packets.PINGREQ:
            self.write(packets.PINGRESP_PACKET)
        elif kind == packets.DISCONNECT:
            self.will = None
            self.close()
        else:
            self._handle_rare(kind, first_byte, body)

    def _acknowledged(self, session: Session, first_byte: int, body: bytes) -> None:
        """What we sent costs nothing to acknowledge; what we did not counts as a message."""
        if self._desk.acknowledged(session, int.from_bytes(body[:2], "big")):
            return
        if self._pause is not None:
            self._put_off(first_byte, body)
        else:
            self._take(1, len(body))

    def _handle_rare(self, kind: int, first_byte: int, body: bytes) -> None:
        if kind == packets.SUBSCRIBE and first_byte & 15 == 2:
            packet = packets.decode_with(SubscribePacket, first_byte, body)
            self._desk.subscribe(self, _packet_id(packet), _topics(packet))
        elif kind == packets.UNSUBSCRIBE and first_byte & 15 == 2:
            packet = packets.decode_with(UnsubscribePacket, first_byte, body)
            self._desk.unsubscribe(self, _packet_id(packet), _topics(packet))
        else:
            raise MalformedError("packet not expected here", kind=kind)

    def _gone(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._backlog.clear()
        if self._transport is not None:
            self._transport = None
            self._desk.closed(self)


def _packet_id(packet: Any) -> int:
    number: int = packet.variable_header.packet_id
    return number


def _topics(packet: Any) -> list[Any]:
    topics: list[Any] = packet.payload.topics
    if not topics:
        raise MalformedError("no topic filter")  # 3.8.3, 3.10.3
    return topics
