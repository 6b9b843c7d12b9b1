"""The packets on the hot path, against paho's and amqtt's idea of them and against rubbish."""

import asyncio

import pytest
from amqtt.adapters import BufferReader
from amqtt.mqtt.connect import ConnectPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from hypothesis import given
from hypothesis import strategies as st

from broker import packets
from broker.packets import MAX_PACKET_BYTES, Splitter, decode_with, parse_publish, publish_head
from wire.errors import MalformedError, OversizedError, WireError

TOPICS = st.text(
    st.characters(exclude_characters="+#\0", exclude_categories=["Cs"]), min_size=1, max_size=300
)


def publish(topic, payload, qos, retain=False, dup=False, packet_id=7):
    number = packet_id.to_bytes(2, "big") if qos else b""
    size = len(payload)
    return publish_head(topic, size, qos, retain, dup) + number + payload


@given(TOPICS, st.binary(max_size=400), st.integers(0, 1), st.booleans(), st.booleans())
def test_publish_is_what_amqtt_would_send_and_reads_back(topic, payload, qos, retain, dup):
    raw = publish(topic, payload, qos, retain, dup)
    number = 7 if qos else None
    assert raw == PublishPacket.build(topic, payload, number, dup, qos, retain).to_bytes()
    ((first, body),) = Splitter().feed(raw)
    assert parse_publish(first, body) == (topic, payload, qos, retain, number or 0)


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(1, 50), min_size=1))
def test_packets_survive_any_fragmentation(payloads, cuts):
    stream = b"".join(publish("t", p, 0) for p in payloads)
    splitter, got, at = Splitter(), [], 0
    for turn in range(len(stream)):
        if at >= len(stream):
            break
        size = cuts[turn % len(cuts)]
        got += splitter.feed(stream[at : at + size])
        at += size
    assert [parse_publish(*p).payload for p in got] == payloads


def test_a_packet_of_the_largest_size_passes_and_one_byte_more_does_not():
    header = 2 + 1
    raw = publish("t", bytes(MAX_PACKET_BYTES - header), 0)
    assert len(list(Splitter().feed(raw))) == 1
    with pytest.raises(OversizedError):
        list(Splitter().feed(publish("t", bytes(MAX_PACKET_BYTES - header + 1), 0)[:4]))


def test_a_long_packet_byte_by_byte_does_not_cost_quadratic_work():
    raw = publish("t", bytes(100_000), 0)
    splitter = Splitter()
    assert sum(len(list(splitter.feed(raw[at : at + 1]))) for at in range(len(raw))) == 1


@given(st.binary(max_size=200))
def test_rubbish_is_refused_by_name_or_waits(raw):
    try:
        for first, body in Splitter().feed(raw):
            if first >> 4 == packets.PUBLISH:
                parse_publish(first, body)
            else:
                decode_with(ConnectPacket, first, body)
    except WireError:
        pass


@pytest.mark.parametrize(
    "raw",
    [
        b"\x30\x02\x00\x05",  # shorter than its topic
        b"\x30\x02\x00\x00",  # no topic
        b"\x32\x03\x00\x01t",  # QoS 1 without packet id
        b"\x32\x05\x00\x01t\x00\x00",  # packet id 0
        b"\x36\x05\x00\x01t\x00\x01",  # QoS 3
        b"\x30\x04\x00\x02\xff\xfe",  # not UTF-8
    ],
)
def test_a_wrong_publish_is_refused(raw):
    ((first, body),) = Splitter().feed(raw)
    with pytest.raises(MalformedError):
        parse_publish(first, body)


def test_a_remaining_length_of_five_bytes_is_refused():
    with pytest.raises(MalformedError):
        list(Splitter().feed(b"\x30\x80\x80\x80\x80\x01"))


def test_answers_are_what_amqtt_reads():
    raw = packets.suback(258, [0, 1, 0x80])
    packet = asyncio.run(SubackPacket.from_stream(BufferReader(raw)))
    assert packet.variable_header.packet_id == 258
    assert packet.payload.return_codes == [0, 1, 0x80]
    assert packets.puback(258) == b"\x40\x02\x01\x02"
    assert packets.unsuback(258) == b"\xb0\x02\x01\x02"
    assert packets.connack(True, 0) == b"\x20\x02\x01\x00"
