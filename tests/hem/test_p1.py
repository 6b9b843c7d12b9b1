"""P1 telegrams: exact values, refusals by name, bounded garbage; a real pty and real sockets."""

import asyncio
import importlib
import os
import pty
import tracemalloc
import tty
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.patience import PATIENCE_S, error_of

from hem.gateway.modbus import DeviceError, DeviceLostError, DeviceRefusedError
from hem.gateway.p1 import (
    CHUNK_BYTES,
    DIALECTS,
    TELEGRAM_BYTES_MAX,
    CrcError,
    FrozenError,
    P1Config,
    P1Source,
    Splitter,
    TelegramCutError,
    TelegramReader,
    TelegramRefusedError,
    TelegramTooLongError,
    source_for,
)
from wire.errors import ConfigError

MEASURED = Path(__file__).parents[3] / "shared/data/dsmr_p1"
REFUSALS = (CrcError, TelegramCutError, TelegramRefusedError, TelegramTooLongError)


def crc16(data):
    """CRC-16/ARC by its definition: x16 + x15 + x2 + 1, bits of bytes and result reversed."""
    register = 0
    for byte in data:
        register ^= int(f"{byte:08b}"[::-1], 2) << 8
        for _ in range(8):
            register = (register << 1 ^ 0x8005 if register & 0x8000 else register << 1) & 0xFFFF
    return int(f"{register:016b}"[::-1], 2)


def sealed(body, crc=None):
    """A telegram with its CRC, or the one that is given (b"" for none)."""
    content = body + b"!"
    return content + (f"{crc16(content):04X}".encode() if crc is None else crc) + b"\r\n"


DUTCH = {
    "0.2.8": "1-3:0.2.8(50)",
    "1.0.0": "0-0:1.0.0(260710120000S)",
    "96.1.1": "0-0:96.1.1(4D4144452D55502D303031)",
    "1.8.1": "1-0:1.8.1(001234.567*kWh)",
    "1.8.2": "1-0:1.8.2(000765.434*kWh)",
    "2.8.1": "1-0:2.8.1(000100.001*kWh)",
    "2.8.2": "1-0:2.8.2(000200.002*kWh)",
    "96.14.0": "0-0:96.14.0(0002)",
    "1.7.0": "1-0:1.7.0(00.000*kW)",
    "2.7.0": "1-0:2.7.0(01.193*kW)",
    "99.97.0": "1-0:99.97.0(2)(0-0:96.7.19)(260101000000W)(0000000240*s)"
    "(260102000000W)(0000000301*s)",
    "96.13.0": "0-0:96.13.0()",
    "24.1.0": "0-1:24.1.0(003)",
    "24.2.1": "0-1:24.2.1(260710115500S)(00042.000*m3)",
}  # fmt: skip


def body(changes=None, header="/MAD5\\made-up", lines=DUTCH):
    """The lines of a telegram; a change to None leaves its line out."""
    chosen = {**lines, **(changes or {})}
    text = "\r\n".join([header, "", *(line for line in chosen.values() if line is not None)])
    return text.encode("latin-1") + b"\r\n"


def dutch(second=0, **changes):
    stamp = {"1.0.0": f"0-0:1.0.0(2607101200{second:02}S)"}
    return sealed(body(stamp | {key.replace("_", "."): one for key, one in changes.items()}))


def reader(dialect):
    return TelegramReader(DIALECTS[dialect])


def grid(reading):
    return reading.sample.grid_w, reading.sample.import_wh, reading.sample.export_wh


# --- telegrams ---------------------------------------------------------------------------------


def test_our_crc_is_the_published_one():
    assert crc16(b"123456789") == 0xBB3D


@pytest.mark.parametrize("dialect", ["4", "5", "belgium", "luxembourg"])
def test_registers_are_the_exact_sum_of_the_tariffs_and_power_is_import_less_export(dialect):
    reading = reader(dialect).read(dutch())
    assert grid(reading) == (-1193, 2_000_001, 300_003)
    assert all(type(value) is int for value in grid(reading))
    assert reading.meter_time.isoformat() == "2026-07-10T10:00:00+00:00"


def test_the_details_name_the_meter():
    details = reader("5").read(dutch()).sample.details
    assert details == {"model": "MAD5\\made-up", "serial": "MADE-UP-001", "firmware": "P1 50"}


@pytest.mark.parametrize("dialect", ["2.2", "3"])
def test_an_old_telegram_has_neither_crc_nor_clock(dialect):
    old = body({"1.0.0": None, "0.2.8": None}, lines=DUTCH)
    reading = reader(dialect).read(sealed(old, crc=b""))
    assert grid(reading) == (-1193, 2_000_001, 300_003)
    assert reading.meter_time is None


def test_four_tariffs_are_added_up_in_hungary():
    more = {
        f"{way}.8.{tariff}": f"1-0:{way}.8.{tariff}(00000{tariff}.00{way}*kWh)"
        for way in (1, 2)
        for tariff in (1, 2, 3, 4)
    }
    totals = {"1.8.0": "1-0:1.8.0(000999.000*kWh)", "2.8.0": "1-0:2.8.0(000999.000*kWh)"}
    assert grid(reader("hungary").read(sealed(body(more | totals)))) == (-1193, 10_004, 10_008)


@pytest.mark.parametrize("dialect", ["5", "luxembourg", "hungary", "sweden"])
def test_a_total_stands_in_for_tariffs_that_are_not_there(dialect):
    changes = dict.fromkeys(("1.8.1", "1.8.2", "2.8.1", "2.8.2"))
    totals = {"1.8.0": "1-0:1.8.0(000999.001*kWh)"}
    if dialect == "5":  # dsmr-parser knows no export total in the Netherlands
        totals |= {key: DUTCH[key] for key in ("2.8.1", "2.8.2")}
        assert grid(reader(dialect).read(sealed(body(changes | totals)))) == (
            -1193, 999_001, 300_003,
        )  # fmt: skip
        return
    totals["2.8.0"] = "1-0:2.8.0(000000.002*kWh)"
    assert grid(reader(dialect).read(sealed(body(changes | totals)))) == (-1193, 999_001, 2)


Q3D = {
    "0.0.0": "1-0:0.0.0*255(1234567890)",
    "1.8.0": "1-0:1.8.0*255(00032549.5061669*kWh)",
    "2.8.0": "1-0:2.8.0*255(00000001.9999999*kWh)",
    "1.7.0": "1-0:1.7.0*255(-000688.51*W)",
}


def test_the_q3d_counts_parts_of_a_watt_hour_that_stay_in_the_meter():
    telegram = sealed(body(lines=Q3D, header="/ESYmade-up"), crc=b"")
    assert grid(reader("q3d").read(telegram)) == (-689, 32_549_506, 1_999)


def test_a_meter_without_an_export_register_cannot_be_the_grid_meter():
    telegram = sealed(body({"2.8.0": None}, lines=Q3D, header="/ESYmade-up"), crc=b"")
    with pytest.raises(TelegramRefusedError, match="no export"):
        reader("q3d").read(telegram)


def test_a_kwh_that_no_float_holds_is_exact():
    telegram = dutch(**{"1.8.1": "1-0:1.8.1(999999.999*kWh)", "1.8.2": "1-0:1.8.2(999999.999*kWh)"})
    assert reader("5").read(telegram).sample.import_wh == 1_999_999_998


@pytest.mark.parametrize("place", [30, 120, -12])
def test_any_flipped_bit_is_a_crc_error(place):
    telegram = bytearray(dutch())
    telegram[place] ^= 1
    with pytest.raises(CrcError, match=r"says CRC [0-9A-F]{4}, its content has [0-9A-F]{4}"):
        reader("5").read(bytes(telegram))


@pytest.mark.parametrize("dialect", ["4", "5", "belgium", "luxembourg", "hungary", "sweden"])
def test_a_telegram_without_the_crc_it_owes_is_refused(dialect):
    with pytest.raises(CrcError, match="has no CRC"):
        reader(dialect).read(sealed(body(), crc=b""))


def test_a_crc_is_checked_even_where_none_is_owed():
    assert grid(reader("3").read(sealed(body())))[0] == -1193
    with pytest.raises(CrcError):
        reader("3").read(sealed(body(), crc=b"0000" if crc16(body() + b"!") else b"0001"))
    with pytest.raises(CrcError):
        reader("3").read(sealed(body(), crc=b"??"))


def test_a_crc_may_come_without_its_leading_zeros():
    for second in range(60):
        telegram = dutch(second)
        short = telegram.replace(b"!0", b"!")
        assert reader("5").read(short) == reader("5").read(telegram)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"1.8.2": None}, "import"),
        ({"2.8.1": None}, "export"),
        ({"1.7.0": None}, "no power"),
        ({"2.7.0": None}, "no power"),
        ({"1.8.1": "1-0:1.8.1(NaN*kWh)"}, "is NaN"),
        ({"1.8.1": "1-0:1.8.1(sNaN*kWh)"}, "is sNaN"),
        ({"1.8.1": "1-0:1.8.1(-Infinity*kWh)"}, "is -Infinity"),
        ({"1.8.1": "1-0:1.8.1(-000001.000*kWh)"}, "below zero"),
        ({"1.8.1": "1-0:1.8.1(1E999999*kWh)"}, "too great"),
        ({"1.8.1": "1-0:1.8.1(000001.000*m3)"}, "is in 'm3'"),
        ({"1.8.1": "1-0:1.8.1(000001.000*kW)"}, "is in 'kW'"),
        ({"1.8.1": "1-0:1.8.1(000001.000)"}, "is in 'None'"),
        ({"1.8.1": "1-0:1.8.1(zero*kWh)"}, "cannot be parsed"),
        ({"1.8.1": "1-0:1.8.1(000001.000*kWh*kWh)"}, "cannot be parsed"),
        ({"1.8.1": "1-0:1.8.1()"}, "import"),
        ({"1.8.1": "1-0:1.8.1(1*kWh)(2*kWh)"}, "import"),
        ({"again": DUTCH["1.8.1"]}, "twice"),
        ({"again": "1-1:1.7.0(00.000*kW)"}, "twice"),
        ({"1.7.0": "1-0:1.7.0(-01.000*kW)"}, "below zero"),
        ({"1.7.0": "1-0:1.7.0(99999.000*kW)"}, "too great"),
        ({"1.0.0": "0-0:1.0.0(261332250000S)"}, "timestamp"),
        ({"1.0.0": None}, "timestamp"),
        ({"96.1.1": "0-0:96.1.1(\xe9)"}, "not ASCII"),
    ],
)
def test_a_telegram_that_cannot_be_is_refused_with_the_reason(changes, why):
    with pytest.raises(TelegramRefusedError, match=why):
        reader("5").read(sealed(body(changes)))


def test_reading_for_a_day_needs_no_more_memory_than_reading_once():
    """dsmr-parser's parser of the power failure log would grow with each of these."""
    one, telegram = reader("5"), dutch()
    for _ in range(50):
        one.read(telegram)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1_000):
            one.read(telegram)
        assert tracemalloc.get_traced_memory()[0] - before < 16 * 1024
    finally:
        tracemalloc.stop()


EXPECTED = {
    "V2_2": ("2.2", (1_010, 2_002, 2_002)),
    "V3": ("3", (1_190, 24_691_356, 24_691_356)),
    "V4_2": ("4", (2_027, 3_016_829, 0)),
    "V5": ("5", (244, 6_825, 2_444)),
    "V5_EON_HU": ("hungary", (-2_601, 173_640, 627_177)),
    "ESY5Q3DB1024_V304": ("q3d", (2_125, 52_185_782, 19_949_322)),
    "ESY5Q3DA1004_V304": ("q3d", None),
    "UNPADDED_CRC": ("5", None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_telegrams_of_real_meters(name):
    path = MEASURED / f"TELEGRAM_{name}.txt"
    if not path.exists():
        pytest.skip(f"the telegrams of real meters are not at {MEASURED}")
    dialect, values = EXPECTED[name]
    (telegram,) = Splitter().feed(path.read_bytes())
    if values is None:  # without an export register; a heat meter
        with pytest.raises(TelegramRefusedError, match=r"no (power|export)"):
            reader(dialect).read(telegram)
    else:
        assert grid(reader(dialect).read(telegram)) == values


@pytest.mark.parametrize("name", ["V4_2", "V5", "V5_EON_HU"])
def test_a_real_telegram_with_one_wrong_bit_is_a_crc_error(name):
    path = MEASURED / f"TELEGRAM_{name}.txt"
    if not path.exists():
        pytest.skip(f"the telegrams of real meters are not at {MEASURED}")
    dialect, _ = EXPECTED[name]
    (telegram,) = Splitter().feed(path.read_bytes())
    content = telegram.rindex(b"!")
    for place in range(1, content, 37):
        broken = bytearray(telegram)
        broken[place] ^= 1
        with pytest.raises(REFUSALS):
            reader(dialect).read(bytes(broken))
    digit = telegram.index(b"1-0:1.8") + 12
    broken = telegram[:digit] + bytes([telegram[digit] ^ 1]) + telegram[digit + 1 :]
    with pytest.raises(CrcError):
        reader(dialect).read(broken)


# --- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 500, CHUNK_BYTES])
def test_telegrams_are_found_however_they_are_cut_and_whatever_lies_between(size):
    stream = b"noise\r\n" + dutch(1) + b"  25818685\r\nmore noise!\r\n" + dutch(2) + dutch(3)
    splitter = Splitter()
    found = []
    for at in range(0, len(stream), size):
        found += splitter.feed(stream[at : at + size])
    assert found == [dutch(1), dutch(2), dutch(3)]
    assert splitter.held == 0


def test_a_telegram_cut_short_costs_only_itself():
    found = Splitter().feed(dutch(1)[:200] + dutch(2))
    assert type(found[0]) is TelegramCutError
    assert found[1:] == [dutch(2)]


def test_a_telegram_cut_in_its_crc_costs_only_itself():
    found = Splitter().feed(dutch(1)[:-4] + dutch(2))
    assert type(found[0]) is TelegramCutError
    assert found[1:] == [dutch(2)]


def test_a_telegram_of_the_greatest_length_passes_and_a_longer_one_does_not():
    for size, kind in ((TELEGRAM_BYTES_MAX, bytes), (TELEGRAM_BYTES_MAX + 1, TelegramTooLongError)):
        huge = b"/" + b"x" * (size - 1) + b"!0000\r\n"
        found = Splitter().feed(huge + dutch())
        assert [type(one) for one in found] == [kind, bytes]


def test_an_endless_line_after_the_end_is_refused():
    found = Splitter().feed(b"/x!" + b"0" * 50 + dutch())
    assert [type(one) for one in found][-1] is bytes
    assert not isinstance(found[0], bytes)


def test_a_telegram_without_an_end_never_fills_the_memory():
    splitter, refused = Splitter(), 0
    for chunk in [b"/" + b"x" * 4_095] + [b"x" * 4_096] * 2_000:
        refused += len(splitter.feed(chunk))
        assert splitter.held <= TELEGRAM_BYTES_MAX + CHUNK_BYTES
    assert refused == 1
    assert splitter.feed(dutch()) == [dutch()]


PIECES = st.one_of(
    st.binary(max_size=300),
    st.text(alphabet="/!\r\n0F:().*kW1-8", max_size=200).map(str.encode),
    st.integers(0, len(dutch())).map(lambda cut: dutch()[:cut]),
    st.integers(0, len(dutch())).map(lambda cut: dutch()[cut:]),
)


@settings(max_examples=max(300, settings().max_examples))
@given(st.lists(PIECES, max_size=6), st.integers(1, 700), st.sampled_from(list(DIALECTS)))
def test_after_any_garbage_the_next_telegram_is_found(pieces, size, dialect):
    """No crash, nothing but named refusals, bounded memory, and a good telegram gets through."""
    stream = b"".join(pieces) + dutch()
    splitter, one = Splitter(), READERS[dialect]
    found = []
    for at in range(0, len(stream), size):
        found += splitter.feed(stream[at : at + size])
        assert splitter.held <= TELEGRAM_BYTES_MAX + size
    assert found[-1] == dutch()
    for telegram in found:
        if isinstance(telegram, bytes):
            try:
                reading = one.read(telegram)
            except REFUSALS:
                continue
            assert None not in grid(reading)
        else:
            assert isinstance(telegram, REFUSALS)


READERS = {dialect: reader(dialect) for dialect in DIALECTS}


@settings(max_examples=max(300, settings().max_examples))
@given(
    st.dictionaries(
        st.sampled_from([*DUTCH, "more"]),
        st.one_of(
            st.none(),
            st.text(alphabet=st.characters(max_codepoint=255), max_size=60),
            st.from_regex(
                r"[01]-[0-3]:[12]\.[78]\.[0-4](\([0-9eEN.*kW-]{0,12}\)){0,2}", fullmatch=True
            ),
        ),
        max_size=5,
    ),
    st.sampled_from(list(DIALECTS)),
)  # fmt: skip
def test_lines_that_say_anything_are_values_or_named_refusals(changes, dialect):
    """The CRC is right, so it all depends on the reader."""
    content = body(changes).replace(b"!", b"?")
    try:
        power_w, import_wh, export_wh = grid(READERS[dialect].read(sealed(content)))
    except REFUSALS:
        return
    assert abs(power_w) <= 20_000_000
    assert import_wh >= 0
    assert export_wh >= 0


# --- the device --------------------------------------------------------------------------------


class Seconds:
    """Process time that moves when told."""

    def __init__(self):
        self.now_s = 1_000.0

    def __call__(self):
        return self.now_s


class Adapter:
    """A TCP adapter: whoever connects hears what is sent from then on."""

    def __init__(self):
        self.writers, self.server, self.port, self.connections = [], None, 0, 0

    async def start(self):
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    def _accept(self, _reader, writer):
        self.connections += 1
        self.writers.append(writer)

    async def send(self, data):
        await until(lambda: self.writers)
        for writer in self.writers:
            writer.write(data)
            await writer.drain()

    async def cut(self):
        """Nobody listens any more, and whoever was connected is reset."""
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()
        await self.server.wait_closed()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def adapter(**wishes):
    device, seconds = Adapter(), Seconds()
    await device.start()
    config = P1Config(name="meter", host="127.0.0.1", port=device.port, **wishes)
    source = P1Source(config, monotonic_s=seconds)
    try:
        yield device, source, seconds
    finally:
        source.close()
        await device.cut()


async def value_of(source, sent=None):
    """What is read once it can be read; `sent` is sent until then."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await source.read()
            except DeviceError:
                if sent is not None:
                    await sent()
            await asyncio.sleep(0.01)


QUICK = {"wait_s": 0.05}


async def test_the_newest_telegram_is_read_over_tcp():
    async with adapter(wait_s=30) as (device, source, _):
        assert source.capabilities == {"grid"}
        reading = asyncio.create_task(source.read())
        await device.send(dutch(1))
        sample = await reading
        assert (sample.grid_w, sample.import_wh, sample.export_wh) == (-1193, 2_000_001, 300_003)
        await device.send(dutch(2, **{"2.7.0": "1-0:2.7.0(00.007*kW)"}))
        async with asyncio.timeout(PATIENCE_S):
            while (await source.read()).grid_w != -7:
                await asyncio.sleep(0.01)
        assert device.connections == 1


async def test_a_telegram_grows_old():
    async with adapter(**QUICK, age_s_max=30) as (device, source, seconds):
        reading = value_of(source, lambda: device.send(dutch(1)))
        assert (await reading).grid_w == -1193
        seconds.now_s += 30
        assert (await source.read()).grid_w == -1193
        seconds.now_s += 0.1
        with pytest.raises(DeviceLostError, match="no telegram within"):
            await source.read()


async def test_a_device_that_never_speaks_is_lost_and_connected_to_again():
    async with adapter(**QUICK, age_s_max=1) as (device, source, _):
        error = await error_of(source, DeviceLostError, DeviceError)
        assert "no telegram" in str(error)
        await until(lambda: device.connections >= 2)
        assert "silent" in str(await error_of(source, DeviceLostError, DeviceError))


async def test_a_refused_telegram_is_named_when_there_is_no_good_one():
    async with adapter(**QUICK) as (device, source, _):
        assert isinstance(await error_of(source, DeviceLostError, DeviceError), DeviceLostError)
        await device.send(sealed(body(), crc=b"0000" if crc16(body() + b"!") else b"0001"))
        first = await error_of(source, CrcError, DeviceError)
        again = await error_of(source, CrcError, DeviceError)
        assert str(first) == str(again)
        assert isinstance(first, DeviceRefusedError)
        assert source.refused == 1


async def test_a_refused_telegram_does_not_hide_a_young_good_one():
    async with adapter(**QUICK) as (device, source, _):
        await value_of(source, lambda: device.send(dutch(1)))
        before = source.refused
        await device.send(sealed(body(), crc=b"") + dutch(1)[:100] + b"/")
        await until(lambda: source.refused >= before + 2)
        assert (await source.read()).grid_w == -1193


async def test_an_adapter_that_repeats_itself_is_found_out():
    async with adapter(**QUICK, age_s_max=30, frozen_s_max=60) as (device, source, seconds):
        await value_of(source, lambda: device.send(dutch(1)))
        for _ in range(3):
            seconds.now_s += 20
            await value_of(source)
            newest = source._newest_at_s
            while source._newest_at_s == newest:
                await device.send(dutch(1))
                await asyncio.sleep(0.01)
        assert (await source.read()).grid_w == -1193  # 60 s, not more
        seconds.now_s += 1
        with pytest.raises(FrozenError, match="61 s"):
            await source.read()
        await device.send(dutch(2))
        await value_of(source)


async def test_a_meter_without_a_clock_cannot_be_found_frozen():
    old = sealed(body({"1.0.0": None}), crc=b"")
    async with adapter(**QUICK, dialect="3", age_s_max=600, frozen_s_max=60) as parts:
        device, source, seconds = parts
        await value_of(source, lambda: device.send(old))
        seconds.now_s += 300
        assert (await source.read()).grid_w == -1193


async def test_the_cable_is_cut_and_comes_back():
    async with adapter(**QUICK, age_s_max=30) as (device, source, seconds):
        await value_of(source, lambda: device.send(dutch(1)))
        await device.cut()
        seconds.now_s += 31
        await error_of(source, DeviceLostError, DeviceError)
        await device.start()
        sample = await value_of(source, lambda: device.send(dutch(2)))
        assert sample.grid_w == -1193
        assert device.connections == 2


async def test_nobody_at_the_address_is_a_lost_device():
    async with adapter(**QUICK) as (device, source, _):
        await device.cut()
        error = await error_of(source, DeviceLostError, DeviceError)
        await until(lambda: "Connect" in source._trouble)
        assert "no telegram" in str(error)
        await device.start()


async def test_a_flood_of_garbage_leaves_the_loop_to_others_and_the_meter_to_be_found():
    async with adapter(**QUICK) as (device, source, _):
        await error_of(source, DeviceLostError, DeviceError)
        noise = os.urandom(512) * 8_000
        flood = asyncio.create_task(device.send(noise + b"\n" + dutch(1)))
        turns = 0
        async with asyncio.timeout(PATIENCE_S):
            while source._newest is None:
                await asyncio.sleep(0.001)
                turns += 1
        await flood
        assert turns > 3, "none, if the flood kept the loop"
        assert (await source.read()).grid_w == -1193


@asynccontextmanager
async def serial_line(tmp_path, **wishes):
    """A pty whose far end is the meter; the path stays when the adapter is another."""
    link = tmp_path / "ttyUSB0"
    plugged = []

    def plug():
        far, near = pty.openpty()
        tty.setraw(near)
        link.unlink(missing_ok=True)
        link.symlink_to(os.ttyname(near))
        plugged.append((far, near))
        return far

    def pull():
        for number in plugged.pop():
            os.close(number)

    far = plug()
    source = source_for(P1Config(name="meter", path=link, **QUICK, **wishes))
    try:
        yield source, far, plug, pull
    finally:
        source.close()
        await asyncio.sleep(0)
        while plugged:
            pull()


async def write(far, data):
    os.write(far, data)
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("dialect", ["5", "3"])
async def test_the_newest_telegram_is_read_from_a_serial_line(tmp_path, dialect):
    telegram = dutch(1) if dialect == "5" else sealed(body({"1.0.0": None}), crc=b"")
    async with serial_line(tmp_path, dialect=dialect) as (source, far, _, _):
        sample = await value_of(source, lambda: write(far, telegram))
        assert (sample.grid_w, sample.import_wh, sample.export_wh) == (-1193, 2_000_001, 300_003)


@pytest.mark.parametrize(("dialect", "line"), [("2.2", (9600, 7, "E")), ("5", (115200, 8, "N"))])
def test_the_line_is_set_as_the_dialect_has_it(tmp_path, monkeypatch, dialect, line):
    module = importlib.import_module("hem.gateway.p1")
    asked = {}
    monkeypatch.setattr(module.serial, "Serial", lambda path, **options: asked.update(options))
    module._SerialStream(tmp_path, DIALECTS[dialect].line)
    assert (asked["baudrate"], asked["bytesize"], asked["parity"]) == line


async def test_the_adapter_is_pulled_out_and_plugged_in_again(tmp_path):
    async with serial_line(tmp_path, age_s_max=1) as (source, far, plug, pull):
        await value_of(source, lambda: write(far, dutch(1)))
        pull()
        assert "telegram" in str(await error_of(source, DeviceLostError, DeviceError))
        another = plug()
        sample = await value_of(source, lambda: write(another, dutch(2)))
        assert sample.grid_w == -1193


def test_serial_lines_and_sockets_are_read_on_the_loop_of_the_services(tmp_path):
    """The gateway runs on uvloop (runtime.process), whose readers are its own."""

    async def all_of_it():
        await test_the_newest_telegram_is_read_from_a_serial_line(tmp_path, "5")
        await test_the_adapter_is_pulled_out_and_plugged_in_again(tmp_path)
        await test_the_cable_is_cut_and_comes_back()

    uvloop.run(all_of_it())


async def test_a_serial_port_that_is_not_there_is_a_lost_device(tmp_path):
    source = source_for(P1Config(name="meter", path=tmp_path / "none", **QUICK))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while "No such file" not in str(await error_of(source, DeviceLostError, DeviceError)):
                pass
    finally:
        source.close()


# --- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"host": "meter.local"},
        {"port": 2001},
        {"path": "/dev/ttyUSB0", "host": "meter.local", "port": 2001},
        {"path": "/dev/ttyUSB0", "port": 2001},
        {"path": "/dev/ttyUSB0", "dialect": "6"},
        {"path": "/dev/ttyUSB0", "baud": 9600},
        {"path": "/dev/ttyUSB0", "age_s_max": 0},
    ],
)
def test_a_wrong_section_is_refused(wishes):
    with pytest.raises(ValidationError):
        P1Config(name="meter", **wishes)


def test_every_dialect_can_be_chosen_and_read():
    for dialect in DIALECTS:
        assert P1Config(name="meter", path="/dev/ttyUSB0", dialect=dialect)
        assert reader(dialect)


def test_the_missing_library_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dsmr_parser.parsers", None)
    with pytest.raises(ConfigError, match=r"^kind 'p1' needs .*pip install 'hearthgrid\[p1\]'$"):
        source_for(P1Config(name="meter", path="/dev/ttyUSB0"))
