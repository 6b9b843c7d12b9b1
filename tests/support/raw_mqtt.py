"""An MQTT client that does exactly what a test says, right or wrong, and a plain amqtt broker."""

import asyncio
from contextlib import asynccontextmanager
from typing import NamedTuple

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin


class Packet(NamedTuple):
    """A packet as it came: kind, flags, and what follows the fixed header."""

    kind: int
    flags: int
    body: bytes

    @property
    def qos(self):
        return self.flags >> 1 & 3

    @property
    def is_retained(self):
        return bool(self.flags & 1)

    @property
    def is_dup(self):
        return bool(self.flags & 8)

    @property
    def topic(self):
        return self.body[2 : 2 + int.from_bytes(self.body[:2], "big")].decode()

    @property
    def payload(self):
        return self.body[2 + int.from_bytes(self.body[:2], "big") + (2 if self.qos else 0) :]

    @property
    def packet_id(self):
        at = 2 + int.from_bytes(self.body[:2], "big")
        return int.from_bytes(self.body[at : at + 2], "big")


CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def packet(first_byte: int, body: bytes) -> bytes:
    length, out = len(body), bytearray([first_byte])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + body


class RawClient:
    """One TCP connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes):
        self.writer.write(data)

    async def connect(self, client_id, user, password, clean=False, keepalive_s=0, will=None):
        """CONNECT; returns (session present, return code)."""
        flags = 0xC0 | (2 if clean else 0) | (0x2C if will else 0)
        body = text("MQTT") + bytes((4, flags)) + keepalive_s.to_bytes(2, "big") + text(client_id)
        body += text(will[0]) + text(will[1]) if will else b""
        self.send(packet(0x10, body + text(user) + text(password)))
        answer = await self.read()
        assert answer.kind == CONNACK
        return answer.body[0], answer.body[1]

    async def subscribe(self, topic_filter, qos=1):
        """SUBSCRIBE; returns the granted QoS or 0x80. Nothing else may come in between."""
        self.send(packet(0x82, b"\0\x07" + text(topic_filter) + bytes((qos,))))
        answer = await self.read()
        assert answer.kind == SUBACK
        return answer.body[2]

    async def publish(self, topic, payload, qos=1, retain=False, packet_id=9):
        """PUBLISH, and the PUBACK of QoS 1."""
        number = packet_id.to_bytes(2, "big") if qos else b""
        self.send(packet(0x30 | qos << 1 | retain, text(topic) + number + payload))
        if qos == 1:
            answer = await self.read()
            assert answer == Packet(PUBACK, 0, number)

    def acknowledge(self, received):
        self.send(b"\x40\x02" + received.packet_id.to_bytes(2, "big"))

    async def read(self, timeout_s=3.0):
        """The next packet; IncompleteReadError when the broker has closed."""
        async with asyncio.timeout(timeout_s):
            first = (await self.reader.readexactly(1))[0]
            length = shift = 0
            while True:
                byte = (await self.reader.readexactly(1))[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            return Packet(first >> 4, first & 15, await self.reader.readexactly(length))

    async def read_nothing(self, for_s=0.3):
        """Assert that nothing comes for a while."""
        try:
            raise AssertionError(f"came: {await self.read(for_s)}")
        except TimeoutError:
            pass

    async def is_closed(self, within_s=2.0):
        """True when the broker hangs up in time."""
        try:
            async with asyncio.timeout(within_s):
                while await self.reader.read(1024):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    async def disconnect(self):
        self.send(b"\xe0\x00")
        await self.is_closed(0.5)
        self.writer.close()

    def vanish(self):
        self.writer.transport.abort()


class PasswordPlugin(BaseAuthPlugin):
    """For plain amqtt: the password of NAME is `secret NAME`."""

    async def authenticate(self, *, session):
        return session.password == f"secret {session.username}"


class PrivatePlugin(BaseTopicPlugin):
    """For plain amqtt: only NAME may receive `private/NAME`."""

    async def topic_filtering(self, *, session=None, topic=None, action=None):
        return action != Action.RECEIVE or topic == f"private/{session.username}"


@asynccontextmanager
async def plain_amqtt():
    """amqtt as it comes, with the two plugins above; yields its port."""
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:0"}},
            "plugins": {
                "support.raw_mqtt.PasswordPlugin": {},
                "support.raw_mqtt.PrivatePlugin": {},
            },
        }
    )
    await broker.start()
    try:
        yield broker._servers["default"].instance.sockets[0].getsockname()[1]
    finally:
        await broker.shutdown()
