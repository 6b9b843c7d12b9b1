"""
Firmware gets into a meter whole or not at all: real Modbus servers, cuts in the middle, and any
order of cuts against the memory itself.
"""

import asyncio
import zlib
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_rig import TcpCable, mute
from pydantic import ValidationError
from pymodbus.pdu.file_message import FileRecord, WriteFileRecordResponse
from support.patience import PATIENCE_S

from hem.gateway.firmware_writer import FirmwareWriter
from hem.gateway.links import Connection, _answer_bytes, link_for
from hem.gateway.modbus import DeviceError, DeviceLostError, DeviceRefusedError
from hem.gateway.template import load_template
from hem.gateway.template_firmware import Firmware
from sim import firmware_meter as meters
from sim.firmware_meter import FirmwareMemory, FirmwareMeter, make_image

MODELS = {"RM-1": "hearthgrid-rm1", "RM-2": "hearthgrid-rm2"}


def facts_of(model):
    return load_template(MODELS[model]).firmware


@asynccontextmanager
async def metered(model, size=1_501):
    """A meter that runs 1.0.0, the file of 2.0.0, and who writes it over a cable."""
    meter = FirmwareMeter(model, make_image(model, "1.0.0"), restart_s=0.05)
    await meter.start()
    cable = TcpCable(meter.port)
    await cable.plug_in()
    link = link_for(Connection(host="127.0.0.1", port=cable.port), 0.5)
    writer = FirmwareWriter(facts_of(model), link, 1)
    try:
        yield meter, make_image(model, "2.0.0", size), writer, cable
    finally:
        link.close()
        cable.unplug()
        await meter.stop()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("model", MODELS)
async def test_a_file_of_odd_size_is_written_read_back_and_run_after_a_restart(model):
    async with metered(model) as (meter, image, writer, _):
        told = []
        await writer.write(image, told.append)
        assert meter.version == "1.0.0", "nothing runs that was not committed"
        assert told[-1] == len(image) == 1_501
        await writer.commit()
        await until(lambda: meter.version == "2.0.0")
        assert meter.memory.running == image


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("keeps_half", [True, False])
async def test_a_power_cut_in_the_middle_leaves_the_old_one_and_the_next_call_goes_on(
    model, keeps_half
):
    async with metered(model) as (meter, image, writer, _):
        meter.cut_after, meter.keeps_half = 6, keeps_half
        with pytest.raises(DeviceError):  # lost, or it did not keep the part
            await writer.write(image)
        await until(lambda: meter._restarting is not None and meter._restarting.done())
        assert meter.version == "1.0.0"
        step, waiting = writer.facts.chunk_bytes, bytes(meter.memory.waiting)
        starts = range(0, len(image), step)
        missing = [
            at for at in starts if waiting[at:][:step][: len(image) - at] != image[at:][:step]
        ]
        written = meter.writes
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    await writer.write(image)
                    break
                except DeviceLostError:
                    await asyncio.sleep(0.02)
        assert meter.writes - written == len(missing), "what is there is not written again"
        assert len(missing) < len(starts) or not keeps_half
        await writer.commit()
        await until(lambda: meter.version == "2.0.0")


async def test_a_cable_that_is_cut_in_the_middle_is_a_lost_device_and_the_next_call_goes_on():
    async with metered("RM-1") as (meter, image, writer, cable):
        honest = cable.pass_on

        def told(written):
            if written > 700:
                cable.pass_on = mute

        with pytest.raises(DeviceLostError):
            await writer.write(image, told)
        before = meter.writes
        assert 0 < before < 16
        cable.pass_on = honest
        await writer.write(image)
        assert bytes(meter.memory.waiting[: len(image)]) == image
        assert meter.writes - before <= 16 - before + 1


@pytest.mark.parametrize("spoilt", ["crc", "head"])
async def test_a_meter_refuses_a_file_whose_crc_or_head_is_wrong_and_runs_on(spoilt):
    async with metered("RM-1") as (meter, image, writer, _):
        await writer.write(make_image("RM-9", "2.0.0") if spoilt == "head" else image)
        if spoilt == "crc":
            meter.memory.waiting[400] ^= 1
        await writer.commit()
        assert await writer.standing() == "bad"
        assert meter.version == "1.0.0"


async def test_a_memory_that_does_not_keep_a_part_is_refused():
    async with metered("RM-1") as (meter, image, writer, _):
        meter.memory.put = lambda start, data: True
        with pytest.raises(DeviceRefusedError, match="kept something else"):
            await writer.write(image)


def test_file_records_go_over_a_serial_line():
    """Their answers are of odd length, which a serial line's framing has to know."""
    answer = WriteFileRecordResponse([FileRecord(1, 5, b"abcd")]).encode()
    frame = bytes([1, 21]) + answer + b"\0\0"
    assert _answer_bytes(frame, 1, 21) == len(frame)


class Wire:
    """A meter's memory without a network: every request may be the last, or be lost on its way."""

    def __init__(self, memory, model):
        self.memory, self.facts = memory, facts_of(model)
        self.fates = []

    async def read(self, _unit, address, count, table="holding"):
        self._fate()
        memory = self.memory
        if address == self.facts.status:
            return [memory.status]
        if address == self.facts.window:
            data = memory.part(memory.offset, 2 * count)
            return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
        number = memory.size if address == self.facts.size else memory.crc
        return [number >> 16, number & 0xFFFF]

    async def write(self, _unit, address, values):
        after = self._fate()
        memory = self.memory
        match address:
            case meters.COMMAND if values == [meters.BEGIN]:
                memory.begin()
            case meters.COMMAND:
                memory.commit()
            case meters.SIZE:
                memory.size = values[0] << 16 | values[1]
            case meters.CRC:
                memory.crc = values[0] << 16 | values[1]
            case meters.OFFSET:
                memory.offset = values[0] << 16 | values[1]
            case _:
                data = b"".join(word.to_bytes(2, "big") for word in values)
                if not memory.put(memory.offset, data):
                    raise DeviceRefusedError("exception 3")
        after()

    async def read_file(self, _unit, file, record, size):
        self._fate()
        return self.memory.part(2 * ((file - 1) * 10_000 + record), size)

    async def write_file(self, _unit, file, record, data):
        after = self._fate()
        self.memory.put(2 * ((file - 1) * 10_000 + record), data)
        after()

    def _fate(self):
        """Deliver; lose the question; lose the answer; cut the power before or after."""
        fate = self.fates.pop(0) if self.fates else "deliver"
        if fate == "lose":
            raise DeviceLostError("lost")
        if fate in ("cut", "cut-all"):
            self.memory.power_cut(keeps_half=fate == "cut")
            raise DeviceLostError("power")

        def after():
            if fate == "mute":
                raise DeviceLostError("no answer")
            if fate == "cut-after":
                self.memory.power_cut(keeps_half=True)
                raise DeviceLostError("power")

        return after


FATES = st.lists(
    st.sampled_from(["deliver"] * 40 + ["lose", "mute", "cut", "cut-all", "cut-after"]),
    max_size=120,
)


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(sorted(MODELS)),
    fates=FATES,
    delivered=st.integers(0, 60),
    early=st.booleans(),
)
def test_no_order_of_cuts_leaves_a_meter_with_a_mix(model, fates, delivered, early):
    """Another file begun before, commits in between: what runs is always one of the whole files."""
    old, other, new = (make_image(model, v, 900) for v in ("1.0.0", "1.5.0", "2.0.0"))
    memory = FirmwareMemory(model, old)
    wire = Wire(memory, model)
    writer = FirmwareWriter(wire.facts, wire, 1)

    async def attempt(image, commit):
        try:
            await writer.write(image)
            if commit:
                await writer.commit()
        except DeviceError:
            pass
        assert memory.running in (old, other, new)

    async def course():
        wire.fates = ["deliver"] * delivered + ["lose"]
        await attempt(other, False)
        if early:  # a gateway that died after the command
            memory.commit()
            assert memory.running in (old, other, new)
        wire.fates = list(fates)
        while wire.fates:
            await attempt(new, True)
        wire.fates = []
        if memory.running != new:
            await attempt(new, True)
        assert memory.running == new
        assert zlib.crc32(memory.running) == zlib.crc32(new)

    asyncio.run(course())


@pytest.mark.parametrize(
    "facts",
    [
        {"by": "registers"},
        {"by": "file-records"},
        {"by": "file-records", "file": 1, "offset": 1, "window": 2},
        {"by": "file-records", "file": 1, "chunk_registers": 64},
        {"by": "file-records", "file": 1, "begin": 2},
        {"by": "registers", "offset": 1, "window": 0xFFFF},
    ],
)
def test_a_section_that_cannot_work_is_refused_when_the_template_is_read(facts):
    with pytest.raises(ValidationError):
        Firmware(**{"command": 1, "status": 2, "size": 3, "crc": 5, **facts})


def test_guests_of_a_shared_line_may_not_touch_what_firmware_is_written_by():
    facts = facts_of("RM-1")
    assert facts.covers(0x7200, 1)
    assert facts.covers(0x71FF, 2)
    assert facts.covers(0x7210 + 49, 1)
    assert not facts.covers(0x7100, 6)
