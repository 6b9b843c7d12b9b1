"""
One connection to the broker, from the TCP handshake to its loss: paho-mqtt on the asyncio loop.

paho keeps the protocol; this module gives it a connected socket, tells it when the socket is
readable or writable, and turns its callbacks into futures. No thread is used, except for name
resolution and a TLS handshake. A link is never reused: the bus makes a new one for every attempt,
with a fresh password, so that nothing of an old connection is sent twice behind a caller's back
(a caller whose `publish` failed decides itself whether to repeat it).

MQTT 3.1.1, clean_session=0, TCP_NODELAY (without it a request and its answer cost 40 ms and more).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from runtime.ports import BusDownError

MAX_INFLIGHT = 256
"""Publishes sent and not yet acknowledged; the rest of a burst waits in paho's queue."""
MAX_QUEUED = 10_000
MAX_PACKET_BYTES = 1024 * 1024
"""Of a packet from the broker; paho alone would gather up to 256 MiB."""
READ_CHUNK_BYTES = 64 * 1024
WRITE_BUFFER_BYTES = 256 * 1024
"""Above this, packets stay in paho's queue until the socket takes more."""
MISC_PERIOD_S = 2.0
UNTAKEN_MS = 15_000
"""So long the kernel waits for the other side to take what was sent (Linux)."""


class Will(NamedTuple):
    """What the broker says for us when the connection is lost without a goodbye."""

    topic: str
    payload: bytes
    retain: bool = True


class LinkRefusedError(ConnectionError):
    """The broker answered CONNECT with a refusal (authentication, usually)."""


class Incoming(NamedTuple):
    """A message as it came in; `mid` and `qos` are needed to acknowledge it."""

    topic: str
    payload: bytes
    retained: bool
    mid: int
    qos: int


class Link:
    """
    A connection to one broker.

    Args:
        client_id: MQTT client id, and user name unless `user` names another
        password: the token
        will: last will, or None
        keepalive_s: silence after which either side takes the other for dead [s]
        on_message: called for each message; the receiver calls `acknowledge` when done
        user: user name; empty: neither name nor password is sent
    """

    def __init__(
        self,
        client_id: str,
        password: str,
        will: Will | None,
        keepalive_s: int,
        on_message: Callable[[Link, Incoming], None],
        user: str | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._keepalive_s = keepalive_s
        self._on_message = on_message
        self._client = client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        name = client_id if user is None else user
        if name:
            client.username_pw_set(name, password)
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.max_queued_messages_set(MAX_QUEUED)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        client.on_message = self._received
        client.on_socket_register_write = self._wants_write
        self._socket: _Socket | None = None
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done, with the reason, when the connection is gone."""
        self._acks: dict[int, asyncio.Future[None] | None] = {}
        self._subacks: dict[int, asyncio.Future[list[bool]]] = {}
        self._flush_due = False
        self._writer_added = False
        self._misc: asyncio.TimerHandle | None = None

    async def open(
        self, host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float
    ) -> None:
        """
        Connect and be accepted.

        Raises:
            OSError, TimeoutError: no broker there (temporary).
            LinkRefusedError: the broker refused us.
        """
        try:
            async with asyncio.timeout(timeout_s):
                raw = await _connect_socket(self._loop, host, port, tls)
                self._socket = self._client.ready_socket = _Socket(self._loop, raw)
                self._loop.add_reader(raw.fileno(), self._readable)
                self._client.connect(host, port, self._keepalive_s)
                self._misc = self._loop.call_later(MISC_PERIOD_S, self._run_misc)
                await self._accepted
        except BaseException:
            self._release("not connected")
            raise

    async def subscribe(self, topic_filters: list[str]) -> list[str]:
        """Subscribe at QoS 1 and return the filters that were refused."""
        code, mid = self._client.subscribe([(f, 1) for f in topic_filters])
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise BusDownError("the connection was lost")
        future: asyncio.Future[list[bool]] = self._loop.create_future()
        self._subacks[mid] = future
        granted = await future
        return [f for f, ok in zip(topic_filters, granted, strict=True) if not ok]

    def publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, wait: bool
    ) -> asyncio.Future[None] | None:
        """
        Send a message; with `wait`, return a future of its acknowledgement (None: already sent).

        Raises:
            BusDownError: the connection is gone, or the outgoing queue is full.
        """
        info = self._client.publish(topic, payload, qos, retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise BusDownError(f"not sent: {info.rc.name}")
        if info.is_published():
            return None
        future: asyncio.Future[None] | None = self._loop.create_future() if wait else None
        self._acks[info.mid] = future
        return future

    @property
    def unacknowledged(self) -> int:
        """Messages handed over and not yet acknowledged."""
        return len(self._acks)

    def acknowledge(self, message: Incoming) -> None:
        """Tell the broker that the message was dealt with (nothing when the link is gone)."""
        if message.qos and not self.lost.done():
            self._client.ack(message.mid, message.qos)

    def close(self) -> None:
        """Say goodbye (so that no last will is sent) and release the socket."""
        if not self.lost.done():
            self._client.disconnect()
            self._client.loop_write()  # paho closes its socket, which flushes
        self._release("closed")

    # --- paho's callbacks -------------------------------------------------------------------

    def _connected(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._accepted.done():
            return
        if reason.is_failure:
            self._accepted.set_exception(LinkRefusedError(str(reason)))
        else:
            self._accepted.set_result(None)

    def _disconnected(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._release(str(reason))

    def _published(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        mid: int,
        _reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        future = self._acks.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _subscribed(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        future = self._subacks.pop(mid, None)
        if future is not None and not future.done():
            future.set_result([not reason.is_failure for reason in reasons])

    def _received(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        self._on_message(
            self,
            Incoming(
                message.topic, bytes(message.payload), message.retain, message.mid, message.qos
            ),
        )

    # --- the socket -------------------------------------------------------------------------

    def _readable(self) -> None:
        assert self._socket is not None
        self._socket.fill()
        while not self.lost.done():
            try:
                self._client.loop_read()
            except Exception as error:
                # paho would stumble over the same packet for ever (a topic that is not UTF-8, say)
                self._release(f"cannot read what the broker sent: {error!r}"[:200])
            if self._client.packet_bytes > MAX_PACKET_BYTES:
                self._release("the broker announced a packet that is too long")
            if not self._socket.has_data:
                break

    def _wants_write(self, *_: Any) -> None:
        """Write at the end of this turn of the loop: one pass for a whole burst."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.lost.done() or self._socket is None:
            return
        self._client.loop_write()
        if self.lost.done():
            return
        if self._socket.flush():
            self._remove_writer()
            if self._client.want_write():  # more than the buffer takes at once
                self._wants_write()
        elif not self._writer_added:
            self._writer_added = True
            self._loop.add_writer(self._socket.fileno(), self._flush)

    def _remove_writer(self) -> None:
        if self._writer_added and self._socket is not None:
            self._writer_added = False
            self._loop.remove_writer(self._socket.fileno())

    def _run_misc(self) -> None:
        """Keep the connection alive; and look at the socket, whatever the loop has told of it."""
        if not self.lost.done():
            self._client.loop_misc()
        if not self.lost.done():
            # A validator was once deaf after its broker's death: it was never told of the end.
            self._readable()
        if not self.lost.done():
            self._misc = self._loop.call_later(MISC_PERIOD_S, self._run_misc)

    def _release(self, reason: str) -> None:
        """Forget the socket and fail whoever waits for this connection. Idempotent."""
        if self._misc is not None:
            self._misc.cancel()
        if self._socket is not None and not self.lost.done():
            self._socket.close()
        if not self.lost.done():
            self.lost.set_result(reason)
        waiting = [f for f in (*self._acks.values(), *self._subacks.values()) if f is not None]
        for future in (self._accepted, *waiting):
            if not future.done():
                future.set_exception(BusDownError(f"connection lost: {reason}"))
                future.exception()  # nobody may be waiting any more
        self._acks.clear()
        self._subacks.clear()


class _Client(mqtt.Client):
    """paho's client on a socket that was connected for it (its own connect would block)."""

    ready_socket: _Socket | None = None

    @property
    def packet_bytes(self) -> int:
        """What the packet that is coming in says of its length."""
        size: int = self._in_packet["remaining_length"]
        return size

    def _create_socket(self) -> Any:
        assert self.ready_socket is not None
        return self.ready_socket


class _Socket:
    """
    A socket with buffers.

    paho reads headers byte by byte and writes packet by packet; with buffers that costs no system
    calls (they were the bus's greatest cost), and what a TLS record holds beyond the current packet
    cannot be overlooked.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, raw: socket.socket) -> None:
        self._loop = loop
        self._raw = raw
        self._buffer = b""
        self._at = 0
        self._ended = False
        self._out = bytearray()

    @property
    def has_data(self) -> bool:
        return self._at < len(self._buffer) or self._ended

    def fill(self) -> None:
        """Take what the kernel has. Only called when the buffer is empty or as good as."""
        chunks = [self._buffer[self._at :]]
        try:
            chunks.append(self._raw.recv(READ_CHUNK_BYTES))
            # a TLS read returns one record, which from Mosquitto is one message: take all there are
            # (up to a point), so that they share one turn of the loop and one write of their acks
            taken = len(chunks[-1])
            while (
                isinstance(self._raw, ssl.SSLSocket)
                and chunks[-1]
                and (taken < READ_CHUNK_BYTES or self._raw.pending())
            ):
                chunks.append(self._raw.recv(READ_CHUNK_BYTES))
                taken += len(chunks[-1])
            self._ended = not chunks[-1]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._ended = True
        self._buffer, self._at = b"".join(chunks), 0

    def recv(self, size: int) -> bytes:
        data = self._buffer[self._at : self._at + size]
        if not data and not self._ended:
            raise BlockingIOError
        self._at += len(data)
        return data

    def send(self, data: bytes) -> int:
        if len(self._out) > WRITE_BUFFER_BYTES:
            raise BlockingIOError
        self._out += data
        return len(data)

    def flush(self) -> bool:
        """Hand the kernel what it takes; True when nothing is left."""
        try:
            while self._out:
                del self._out[: self._raw.send(self._out)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._out.clear()  # the reading side will notice that the connection is gone
        return not self._out

    def close(self) -> None:
        """Leave the loop before the file descriptor is free for another (paho closes early)."""
        if self._raw.fileno() >= 0:
            self.flush()
            self._loop.remove_reader(self._raw.fileno())
            self._loop.remove_writer(self._raw.fileno())
            self._raw.close()

    def fileno(self) -> int:
        return self._raw.fileno()

    def setblocking(self, flag: bool) -> None:
        self._raw.setblocking(flag)


async def _connect_socket(
    loop: asyncio.AbstractEventLoop, host: str, port: int, tls: ssl.SSLContext | None
) -> socket.socket:
    last: OSError = OSError(f"{host} has no address")
    for family, address in await _addresses(loop, host, port):
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # what is sent must be taken, or it is lost
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNTAKEN_MS)
            await loop.sock_connect(raw, address)
            if tls is not None:
                raw = await loop.run_in_executor(None, _handshake, tls, raw, host)
        except OSError as error:
            raw.close()
            last = error
        except BaseException:
            raw.close()
            raise
        else:
            return raw
    raise last


async def _addresses(
    loop: asyncio.AbstractEventLoop, host: str, port: int
) -> list[tuple[int, Any]]:
    with contextlib.suppress(ValueError):
        version = ipaddress.ip_address(host).version
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _type, _proto, _name, address in found]


def _handshake(tls: ssl.SSLContext, raw: socket.socket, host: str) -> ssl.SSLSocket:
    raw.settimeout(10.0)
    wrapped = tls.wrap_socket(raw, server_hostname=host)
    wrapped.setblocking(False)
    return wrapped
