"""
Clients that publish ready-made transactions: MQTT 3.1.1 and no more than that.

Each address is a connection of its own with its own identity, as at a home. Packets are built
before they are needed, so that the load costs the shared cores as little as it can.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable
from typing import cast

from runtime.clock import SystemClock
from wire.certificates import Signed as Credential
from wire.certificates import make_token
from wire.keys import SigningKey

CONNACK, PUBACK = 0x20, 0x40
OPEN_TIMEOUT_S = 10.0
MAX_PACKET_ID = 65_535


class Publisher(asyncio.Protocol):
    """One connection that publishes with QoS 1 and counts acknowledgements."""

    def __init__(self, greeting: bytes) -> None:
        self._greeting = greeting
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._next_id = 0
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent = self.acknowledged = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce ourselves."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._greeting)

    def data_received(self, data: bytes) -> None:
        """CONNACK and PUBACK are all that a publisher is sent."""
        data = self._buffer + data
        at = 0
        while at + 4 <= len(data):
            if data[at] == PUBACK:
                self.acknowledged += 1
            elif data[at] == CONNACK and not self.accepted.done():
                code = data[at + 3]
                if code:
                    self.accepted.set_exception(ConnectionError(f"refused with code {code}"))
                else:
                    self.accepted.set_result(None)
            at += 4
        self._buffer = data[at:]

    def connection_lost(self, error: Exception | None) -> None:
        """Whoever still waits for the CONNACK must know."""
        if not self.accepted.done():
            self.accepted.set_exception(ConnectionError(f"connection lost: {error}"))

    def publish(self, topic: bytes, payload: bytes) -> None:
        """Send a message with QoS 1; nobody waits for its acknowledgement."""
        assert self._transport is not None
        self._next_id = self._next_id % MAX_PACKET_ID + 1
        self.sent += 1
        body = topic + self._next_id.to_bytes(2, "big") + payload
        self._transport.write(b"\x32" + _length(len(body)) + body)

    def close(self) -> None:
        """Say goodbye."""
        if self._transport is not None:
            self._transport.write(b"\xe0\x00")
            self._transport.close()


async def connect(
    key: SigningKey, market: str, credential: Credential, host: str, port: int,
    tls: Callable[[str], ssl.SSLContext | None],
) -> Publisher:  # fmt: skip
    """
    A publisher under the identity of `key`, with the token every client shows.

    Raises:
        ConnectionError, TimeoutError: the broker would not have it.
    """
    token = make_token(key, market, SystemClock().wall_ms(), secrets.token_hex(16), credential)
    identity = text(key.id)
    body = text("MQTT") + b"\x04\xc2\x00\x00" + identity + identity + text(token)
    greeting = b"\x10" + _length(len(body)) + body
    context = tls(key.id)
    async with asyncio.timeout(OPEN_TIMEOUT_S):
        _, publisher = await asyncio.get_running_loop().create_connection(
            lambda: Publisher(greeting), host, port, ssl=context,
            server_hostname=host if context is not None else None,
        )  # fmt: skip
        await publisher.accepted
    return publisher


def text(value: str) -> bytes:
    """A string as MQTT writes it."""
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
