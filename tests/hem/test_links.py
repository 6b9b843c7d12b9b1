"""Modbus over TCP, a serial line and an adapter: real ptys, sockets and servers."""

import asyncio
import logging
import time
from contextlib import suppress

import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st
from modbus_rig import PATIENT_S, honest, mute, rig_of
from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU
from support.patience import PATIENCE_S

from hem.gateway.links import (
    Connection,
    DeviceExceptionError,
    _AnswerFramer,
    link_for,
)
from hem.gateway.modbus import DeviceLostError, DeviceRefusedError

BACK_S = 10.0
"""A device that is well again answers within this time."""
HASTE_S = 0.3


@pytest.fixture(params=["tcp", "rtu", "rtu-over-tcp"])
async def rig(request, tmp_path):
    async with rig_of(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=["rtu", "rtu-over-tcp"])
async def serial_rig(request, tmp_path):
    async with rig_of(request.param, tmp_path) as made:
        yield made


async def answers_again(link, unit=1):
    """Ask until it answers, and say how long that took."""
    began_s = time.monotonic()
    while True:
        try:
            await link.read(unit, 100, 2)
        except DeviceLostError:
            assert time.monotonic() - began_s < PATIENCE_S
            await asyncio.sleep(0.1)
        else:
            return time.monotonic() - began_s


async def lost(link, unit=1):
    with pytest.raises(DeviceLostError):
        await link.read(unit, 100, 2)


async def test_registers_are_read_and_written_on_every_kind_of_connection(rig):
    link = rig.link()
    assert await link.read(1, 100, 3) == [1000, 1001, 1002]
    assert await link.read(2, 101, 1) == [2001]
    assert await link.read(2, 101, 1, "input") == [2001]
    await link.write(2, 103, [7, 0xFFFF])
    assert rig.units[2].registers[3:5] == [7, 0xFFFF]
    assert await link.read(2, 103, 2) == [7, 0xFFFF]


async def test_a_refusal_carries_the_devices_code_and_the_connection_stays(rig):
    link = rig.link()
    with pytest.raises(DeviceExceptionError) as refused:
        await link.read(1, 500, 2)
    assert refused.value.code == ExcCodes.ILLEGAL_ADDRESS
    with pytest.raises(DeviceRefusedError):
        await link.write(1, 115, [1])
    assert await link.read(1, 100, 1) == [1000]


async def test_many_askers_share_a_connection_and_each_gets_its_own_answer(rig):
    link = rig.link()
    wanted = [(unit, 100 + n % 15) for n in range(20) for unit in (1, 2)]
    answers = await asyncio.gather(*(link.read(unit, at, 1) for unit, at in wanted))
    assert answers == [[unit * 1000 + at - 100] for unit, at in wanted]


async def test_a_mute_unit_costs_one_wait_and_the_others_are_heard(rig):
    link = rig.link(HASTE_S)
    await answers_again(link)
    began_s = time.monotonic()
    rig.cable.pass_on = mute
    await lost(link, unit=1)
    assert time.monotonic() - began_s >= HASTE_S
    rig.cable.pass_on = honest
    assert await answers_again(link, unit=2) < BACK_S


async def test_a_line_that_was_closed_is_open_again_at_once(rig):
    """A serial port has one user; the one before us, whom we just gave up, was us."""
    link = rig.link(HASTE_S)
    await answers_again(link)
    rig.cable.pass_on = mute
    for _ in range(3):
        with pytest.raises(DeviceLostError, match="no answer in time"):
            await link.read(1, 100, 1)


async def test_a_cut_cable_is_a_lost_device_that_is_back_soon_after(rig):
    link = rig.link(HASTE_S)
    await answers_again(link)
    rig.cable.unplug()
    await lost(link)
    await lost(link)
    await rig.plug_in()
    assert await answers_again(link) < BACK_S


async def test_a_cable_cut_while_we_wait_for_the_answer(rig):
    link = rig.link(1.0)
    await answers_again(link)
    rig.cable.pass_on = mute
    rig.cable.asked.clear()
    asking = asyncio.create_task(lost(link))
    await asyncio.wait_for(rig.cable.asked.wait(), PATIENCE_S)
    rig.cable.unplug()
    await asking
    rig.cable.pass_on = honest
    await rig.plug_in()
    assert await answers_again(link) < BACK_S


async def test_garbage_is_a_lost_device_and_no_noise_in_the_log(rig, caplog):
    caplog.set_level(logging.WARNING)
    link = rig.link(HASTE_S)
    for garbage in (b"\xff" * 300, bytes(range(256)), b"\0\1\0\0\0\3\1\3\7", b"\1\x2b\x0e\1", b"x"):
        rig.cable.pass_on = lambda data, garbage=garbage: [(0.0, garbage)]
        await lost(link)
    rig.cable.pass_on = honest
    assert await answers_again(link) < BACK_S
    assert caplog.records == []


async def test_a_wrong_checksum_is_no_answer(serial_rig):
    link = serial_rig.link(HASTE_S)
    await answers_again(link)
    serial_rig.cable.pass_on = lambda data: [(0.0, data[:4] + bytes([data[4] ^ 1]) + data[5:])]
    await lost(link)
    serial_rig.cable.pass_on = honest
    assert await answers_again(link) < BACK_S


async def test_an_answer_is_found_among_noise(serial_rig):
    """A line that turns round adds bytes; pymodbus' own framer takes the zero for a unit."""
    link = serial_rig.link()
    noise = b"\x00\xff\x01\x03"
    serial_rig.cable.pass_on = lambda data: [(0.0, noise), (0.0, data[:3]), (0.05, data[3:])]
    assert await link.read(1, 100, 2) == [1000, 1001]
    serial_rig.cable.pass_on = lambda data: [(0.0, data + noise)]
    assert await link.read(1, 102, 2) == [1002, 1003]
    assert await link.read(1, 104, 2) == [1004, 1005]


async def test_a_late_answer_never_meets_the_next_question(rig):
    link = rig.link(2.0)
    await answers_again(link)
    rig.cable.pass_on = lambda data: [(2.6, data)]
    await lost(link)
    rig.cable.pass_on = lambda data: [(1.0, data)]  # the late one would come first
    assert await link.read(1, 110, 2) == [1010, 1011], "the late one says 1000, 1001"
    assert await link.read(1, 112, 2) == [1012, 1013]


async def test_the_answer_to_an_abandoned_question_never_meets_the_next(rig):
    link = rig.link(2.0)
    await answers_again(link)
    rig.cable.pass_on = lambda data: [(0.3, data)]
    rig.cable.asked.clear()
    asking = asyncio.create_task(link.read(1, 100, 2))
    await asyncio.wait_for(rig.cable.asked.wait(), PATIENCE_S)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    rig.cable.pass_on = lambda data: [(0.6, data)]
    assert await link.read(1, 110, 2) == [1010, 1011]


async def test_another_units_answer_is_not_taken(serial_rig):
    link = serial_rig.link(HASTE_S)

    def as_unit_2(data):
        frame = b"\x02" + data[1:-2]
        return [(0.0, frame + FramerRTU.compute_CRC(frame).to_bytes(2, "big"))]

    serial_rig.cable.pass_on = as_unit_2
    await lost(link)
    serial_rig.cable.pass_on = lambda data: [*as_unit_2(data), (0.0, data)]
    assert await answers_again(link) < BACK_S


async def test_an_answer_of_another_length_or_function_is_refused(rig):
    link = rig.link(2.0)
    await answers_again(link)
    task = asyncio.create_task(link.read(1, 100, 4))
    frames = []
    rig.cable.pass_on = lambda data: [(0.0, frames.append(data) or data)]
    assert await task == [1000, 1001, 1002, 1003]
    (long,) = frames
    if rig.connection.kind == "tcp":
        rig.cable.pass_on = lambda data: [(0.0, data[:7] + b"\x06\0\x64\0\1")]
        await lost(link)  # of the length it announces nothing more comes
        return
    rig.cable.pass_on = lambda data: [(0.0, long)]
    with pytest.raises(DeviceRefusedError, match="asked for 2 registers, got 4"):
        await link.read(1, 100, 2)
    await asyncio.sleep(0)
    with pytest.raises(DeviceLostError):
        await link.write(1, 100, [1])  # an answer to a read is not one to a write


async def test_everybody_cannot_be_asked_on_a_serial_line(serial_rig):
    with pytest.raises(DeviceRefusedError):
        await serial_rig.link().read(0, 100, 1)


async def test_a_serial_port_that_is_not_there_or_not_one_is_a_lost_device(tmp_path):
    for path in (tmp_path / "ttyNONE", "/dev/null", tmp_path):
        link = link_for(Connection(kind="rtu", path=str(path)), HASTE_S)
        await lost(link)
        link.close()


async def test_a_serial_port_belongs_to_one_program(tmp_path):
    async with rig_of("rtu", tmp_path) as rig:
        first, second = rig.link(HASTE_S), rig.link(HASTE_S)
        await answers_again(first)
        await lost(second)
        first.close()
        assert await answers_again(second) < BACK_S


async def test_speed_parity_and_stop_bits_reach_the_port(monkeypatch):
    opened = []

    def no_port(path, **options):  # ptys know no parity
        opened.append((path, options))
        raise serial.SerialException("busy")

    monkeypatch.setattr(serial, "serial_for_url", no_port)
    even = Connection(kind="rtu", path="/dev/ttyUSB7", baud=19_200, parity="E", stopbits=2)
    await lost(link_for(even, PATIENT_S))
    ((path, options),) = opened
    assert path == "/dev/ttyUSB7"
    assert (options["baudrate"], options["parity"], options["stopbits"]) == (19_200, "E", 2)
    assert (options["bytesize"], options["exclusive"]) == (8, True)


def answer(unit, function, body):
    frame = bytes([unit, function]) + body
    return frame + FramerRTU.compute_CRC(frame).to_bytes(2, "big")


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(1, 247), st.integers(1, 125))
def test_the_framer_finds_its_answer_in_any_noise_and_raises_nothing(before, after, unit, count):
    body = bytes([2 * count]) + bytes(2 * count)
    framer = _AnswerFramer(DecodePDU(False))
    assert framer.handleFrame(before + after, unit, 0) == (len(before + after), None)
    framer.expect(3)
    used, pdu = framer.handleFrame(before + answer(unit, 3, body) + after, unit, 0)
    assert used
    assert pdu.registers == [0] * count
    assert pdu.dev_id == unit


@given(st.binary(max_size=300), st.integers(1, 247), st.sampled_from([3, 4, 16]))
def test_no_bytes_make_the_framer_raise(data, unit, function):
    framer = _AnswerFramer(DecodePDU(False))
    framer.expect(function)
    framer.handleFrame(data, unit, 0)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"kind": "udp", "host": "a"}, "kind"),
        ({"kind": "tcp"}, "host"),
        ({"kind": "rtu-over-tcp"}, "host"),
        ({"host": "a", "path": "/dev/ttyS0"}, "path"),
        ({"host": "a", "port": 0}, "port"),
        ({"host": "a", "port": "502"}, "port"),
        ({"kind": "rtu"}, "path"),
        ({"kind": "rtu", "path": "socket://evil:1"}, "path"),
        ({"kind": "rtu", "path": "/dev/ttyS0", "host": "a"}, "host"),
        ({"kind": "rtu", "path": "/dev/ttyS0", "baud": 1}, "baud"),
        ({"kind": "rtu", "path": "/dev/ttyS0", "parity": "X"}, "parity"),
        ({"kind": "rtu", "path": "/dev/ttyS0", "stopbits": 3}, "stopbits"),
    ],
)
def test_a_wrong_connection_is_refused_by_the_key(values, key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        Connection(**values)


def test_a_connection_survives_json():
    for made in (
        Connection(host="inverter.lan"),
        Connection(kind="rtu", path="/dev/ttyUSB0", baud=19_200, parity="E", stopbits=2),
        Connection(kind="rtu-over-tcp", host="10.0.0.9", port=8899),
    ):
        assert Connection.from_json(made.to_json()) == made
    for bad in (None, [], {"kind": "tcp"}, {"host": "a", "colour": 1}, {"host": 5}):
        with pytest.raises(ValueError, match=r"\w"):
            Connection.from_json(bad)
