"""
MQTT 3.1.1 packets on the hot path: splitting a stream, PUBLISH and the fixed answers.

amqtt's codecs read a packet with half a dozen awaits and build it from objects; for the packets
that make up the traffic (PUBLISH, PUBACK, PINGREQ) that was most of the broker's time. CONNECT,
SUBSCRIBE and UNSUBSCRIBE still go through amqtt's codecs (`decode_with`).

Section numbers are those of the OASIS standard, MQTT 3.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from amqtt.adapters import BufferReader
from amqtt.mqtt.packet import MQTTFixedHeader

from wire.errors import MalformedError, OversizedError

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 8, 9, 10, 11
PINGREQ, DISCONNECT = 12, 14

MAX_PACKET_BYTES = 128 * 1024
PINGRESP_PACKET = b"\xd0\x00"

# CONNACK return codes, 3.2.2.3
ACCEPTED, BAD_IDENTIFIER, UNAVAILABLE, BAD_CREDENTIALS, NOT_AUTHORIZED = 0, 2, 3, 4, 5
SUBACK_FAILURE = 0x80


class Publish(NamedTuple):
    """A PUBLISH packet, 3.3."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int


class Splitter:
    """Cuts a byte stream into packets, refusing one that is too long as soon as it says so."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._need = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """
        Take bytes from the socket; yield (first byte, body) of each whole packet.

        Raises:
            OversizedError, MalformedError: the connection cannot go on.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data = bytes(self._rest)
            self._rest.clear()
        at, size = 0, len(data)
        self._need = 0
        while at < size:
            start, length = _remaining_length(data, at + 1)
            if length > MAX_PACKET_BYTES:
                raise OversizedError("packet too long", size=length, limit=MAX_PACKET_BYTES)
            end = start + length
            if length < 0 or end > size:
                self._need = 0 if length < 0 else end - at
                break
            yield data[at], data[start:end]
            at = end
        self._rest += data[at:]


def parse_publish(first_byte: int, body: bytes) -> Publish:
    """
    Read a PUBLISH.

    Raises:
        MalformedError: against 3.3.
    """
    qos = first_byte >> 1 & 3
    end = 2 + int.from_bytes(body[:2], "big")
    start = end + 2 if qos else end
    if len(body) < start or end == 2 or qos == 3:
        raise MalformedError("PUBLISH is cut short")
    try:
        topic = body[2:end].decode()
    except UnicodeDecodeError:
        raise MalformedError("topic is not UTF-8") from None
    packet_id = int.from_bytes(body[end:start], "big")
    if qos and not packet_id:
        raise MalformedError("packet id 0")
    return Publish(topic, body[start:], qos, bool(first_byte & 1), packet_id)


def publish_head(topic: str, payload_bytes: int, qos: int, retain: bool, dup: bool) -> bytes:
    """A PUBLISH up to the packet id."""
    name = topic.encode()
    length = 2 + len(name) + (2 if qos else 0) + payload_bytes
    first = PUBLISH << 4 | dup << 3 | qos << 1 | retain
    return bytes((first,)) + _length_bytes(length) + len(name).to_bytes(2, "big") + name


def connack(session_present: bool, code: int) -> bytes:
    """CONNACK, 3.2."""
    return bytes((CONNACK << 4, 2, session_present, code))


def puback(packet_id: int) -> bytes:
    """PUBACK, 3.4."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def suback(packet_id: int, codes: list[int]) -> bytes:
    """SUBACK, 3.9."""
    body = packet_id.to_bytes(2, "big") + bytes(codes)
    return bytes((SUBACK << 4,)) + _length_bytes(len(body)) + body


def unsuback(packet_id: int) -> bytes:
    """UNSUBACK, 3.11."""
    return b"\xb0\x02" + packet_id.to_bytes(2, "big")


def decode_with(packet_type: Any, first_byte: int, body: bytes) -> Any:
    """
    Decode a whole packet with amqtt's codec.

    Raises:
        MalformedError: the codec refuses it.
    """
    header = MQTTFixedHeader(first_byte >> 4, first_byte & 15, len(body))
    coroutine = packet_type.from_stream(BufferReader(body), fixed_header=header)
    try:
        # the reader holds everything, so the coroutine runs to its end without a pause
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    except Exception as error:
        raise MalformedError(f"cannot decode packet: {error!r}"[:120]) from None
    coroutine.close()
    raise MalformedError("packet is cut short")


def _remaining_length(data: bytes, at: int) -> tuple[int, int]:
    """Start of the body and its length (2.2.3); length -1 when the header is incomplete."""
    length = 0
    for shift in (0, 7, 14, 21):
        if at >= len(data):
            return at, -1
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at, length
    raise MalformedError("remaining length has more than four bytes")


def _length_bytes(length: int) -> bytes:
    out = bytearray()
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
