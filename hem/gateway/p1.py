"""
The P1 port of a smart meter: telegrams from a serial line or a TCP adapter, grid values out.

The meter speaks unasked, every second (DSMR 5) or every ten (before). One reader per meter keeps
the newest telegram; `read` hands it out while it is young enough. dsmr-parser knows the lines of
every dialect; what can go wrong around it is decided here: where a telegram begins and ends in a
stream of whatever, that its CRC is right, that its registers are complete, each there once, and
plausible, and that its clock moves. dsmr-parser is given only the lines we need: it is faster, and
its parser of the power failure log grows with every telegram.

Registers: the sum of the tariffs where the dialect's are all there, else the total (1.8.0, 2.8.0).
DSMR 2.2 and 3 and the Q3D have neither CRC nor clock, so a corrupted digit or a frozen adapter can
be noticed only by what reads the registers next. Encrypted telegrams (Luxembourg, Austria) are not
read: use an adapter that decrypts.

Sources: DSMR P1 companion standard 5.0.2, sections 5 and 6; IEC 62056-21 mode D; e-MUCS-P1 1.7.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import serial  # type: ignore[import-untyped]
from pydantic import Field, model_validator

from hem.config import Name, Port, Section
from hem.gateway.background import BackgroundReader
from hem.gateway.figures import Quantity, quantity_of, sample_of
from hem.gateway.modbus import DeviceLostError, DeviceRefusedError
from hem.gateway.source import Sample
from wire.errors import ConfigError

TELEGRAM_BYTES_MAX = 16 * 1024
CHUNK_BYTES = 4_096
TAIL_BYTES_MAX = 7
"""From '!' to the end of its line: '!', four digits of CRC, CR, LF."""
DETAIL_CHARS_MAX = 64
INSTALL = "kind 'p1' needs dsmr-parser: pip install 'hearthgrid[p1]'"

_CRC = re.compile(rb"![0-9A-Fa-f]{1,4}\r?\n\Z")
_REGISTER_LINE = re.compile(rb"^\d-\d:([12]\.[78]\.\d)\D", re.MULTILINE)
_PRINTABLE = re.compile(r"[ -~]+")

T = TypeVar("T")


class Line(NamedTuple):
    """How characters travel on the wire."""

    baud: int
    data_bits: int
    parity: str


OLD_LINE = Line(9_600, 7, "E")
NEW_LINE = Line(115_200, 8, "N")


class Dialect(NamedTuple):
    """What kind of telegram a meter sends."""

    specification: str
    """Its name in dsmr_parser.telegram_specifications."""
    tariffs: int = 2
    has_crc: bool = True
    has_clock: bool = True
    has_signed_power: bool = False
    """Export is a negative 1.7.0 where there is no 2.7.0."""
    line: Line = NEW_LINE


DIALECTS = MappingProxyType(
    {
        "2.2": Dialect("V2_2", has_crc=False, has_clock=False, line=OLD_LINE),
        "3": Dialect("V3", has_crc=False, has_clock=False, line=OLD_LINE),
        "4": Dialect("V4"),
        "5": Dialect("V5"),
        "belgium": Dialect("BELGIUM_FLUVIUS"),
        "luxembourg": Dialect("LUXEMBOURG_SMARTY"),
        "hungary": Dialect("EON_HUNGARY", tariffs=4),
        "sweden": Dialect("SWEDEN", tariffs=0),
        "q3d": Dialect(
            "Q3D", 0, has_crc=False, has_clock=False, has_signed_power=True, line=OLD_LINE
        ),
    }
)


class CrcError(DeviceRefusedError):
    """The telegram's CRC is missing, or is not that of its content."""


class TelegramCutError(DeviceRefusedError):
    """Another telegram began before this one had ended."""


class TelegramTooLongError(DeviceRefusedError):
    """More than `TELEGRAM_BYTES_MAX` without an end."""


class TelegramRefusedError(DeviceRefusedError):
    """A telegram that is whole but lacks what we need, or says what cannot be."""


class FrozenError(DeviceLostError):
    """Telegrams come, but the meter's clock stands still: an adapter repeats itself."""


class P1Config(Section):
    """A `[[devices]]` entry of kind "p1": either `path`, or `host` and `port`."""

    kind: Literal["p1"] = "p1"
    name: Name
    dialect: Literal["2.2", "3", "4", "5", "belgium", "luxembourg", "hungary", "sweden", "q3d"] = (
        "5"
    )
    """DSMR version or country; it fixes the line too (2.2, 3, q3d: 9600 7E1; else 115200 8N1)."""
    path: Path | None = None
    """Such as /dev/serial/by-id/usb-FTDI_…; it stays the same when another is plugged in."""
    host: str | None = None
    """Of a TCP adapter (ser2net raw or a P1 dongle)."""
    port: Port | None = None
    """Of that adapter."""
    age_s_max: float = Field(default=30, ge=1, le=600)
    """A telegram older than this is not handed out; so long a silence ends a connection [s]."""
    frozen_s_max: float = Field(default=60, ge=11, le=3_600)
    """How long the meter's clock may stand still [s]."""
    wait_s: float = Field(default=1.0, ge=0, le=30)
    """How long a read waits for a telegram when there is no young one [s]."""

    @model_validator(mode="after")
    def _has_one_way(self) -> P1Config:
        by_tcp = self.host is not None and self.port is not None
        is_half = (self.host is None) != (self.port is None)
        if is_half or by_tcp == (self.path is not None):
            raise ValueError("give either path, or host and port")
        return self


# --- telegrams ---------------------------------------------------------------------------------


class Splitter:
    """
    Cuts a stream into telegrams, from '/' to the end of the line with '!'.

    Whatever comes between is skipped. Never holds more than a telegram and the chunk after it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._is_inside = False

    @property
    def held(self) -> int:
        """Bytes that wait for their end."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes | DeviceRefusedError]:
        """Take bytes as they come; give whole telegrams, and why others were dropped."""
        found: list[bytes | DeviceRefusedError] = []
        self._buffer += data
        while (one := self._next()) is not None:
            found.append(one)
        return found

    def _next(self) -> bytes | DeviceRefusedError | None:
        buffer = self._buffer
        if not self._is_inside:
            begin = buffer.find(b"/")
            del buffer[: len(buffer) if begin < 0 else begin]
            if begin < 0:
                return None
            self._is_inside = True
        another, end = buffer.find(b"/", 1), buffer.find(b"!")
        line_end = buffer.find(b"\n", end) if end >= 0 else -1
        if another >= 0 and (line_end < 0 or another < line_end):
            del buffer[:another]
            return TelegramCutError(f"the telegram was cut after {another} bytes")
        if (end if end >= 0 else len(buffer)) > TELEGRAM_BYTES_MAX:
            return self._drop(TelegramTooLongError(f"no end within {TELEGRAM_BYTES_MAX} bytes"))
        if end < 0:
            return None
        if line_end < 0 and len(buffer) - end <= TAIL_BYTES_MAX:
            return None
        if not 0 <= line_end < end + TAIL_BYTES_MAX:
            return self._drop(CrcError("the line of the CRC is too long"))
        telegram = bytes(buffer[: line_end + 1])
        del buffer[: line_end + 1]
        self._is_inside = False
        return telegram

    def _drop(self, error: DeviceRefusedError) -> DeviceRefusedError:
        """Skip to whatever begins next; there is no other '/' before the end that was looked at."""
        self._buffer[:1] = b""
        self._is_inside = False
        return error


@dataclass(frozen=True, slots=True)
class Reading:
    """What a telegram says."""

    sample: Sample
    meter_time: datetime | None
    """When the meter made it; None where the dialect has no clock."""


class TelegramReader:
    """
    Reads the telegrams of one dialect.

    Raises:
        ConfigError: dsmr-parser is not installed.
    """

    def __init__(self, dialect: Dialect) -> None:
        try:
            parsers = importlib.import_module("dsmr_parser.parsers")
            known = importlib.import_module("dsmr_parser.telegram_specifications")
        except ImportError:
            raise ConfigError(INSTALL) from None
        logging.getLogger("dsmr_parser").setLevel(logging.CRITICAL)  # we refuse by error, not log
        self._dialect = dialect
        objects = getattr(known, dialect.specification)["objects"]
        wanted = [one for one in objects if _is_wanted(one["value_name"])]
        self._references = {one["value_name"]: one["obis_reference"] for one in wanted}
        self._crc16: Callable[[str], int] = parsers.TelegramParser.crc16
        self._parser = parsers.TelegramParser(
            {"checksum_support": False, "objects": wanted}, apply_checksum_validation=False
        )

    def read(self, telegram: bytes) -> Reading:
        """
        A whole telegram's values.

        Raises:
            CrcError: missing where the dialect has one, or wrong.
            TelegramRefusedError: a value is missing, there twice, or cannot be.
        """
        self._check_crc(telegram)
        try:
            text = telegram.decode("ascii")
        except UnicodeDecodeError:
            raise TelegramRefusedError("not ASCII; is it the right dialect?") from None
        names = _REGISTER_LINE.findall(telegram)
        if len(names) != len(set(names)):
            raise TelegramRefusedError("a register is there twice")
        try:
            parsed = self._parser.parse(text)
        except Exception as error:  # what the library makes of nonsense is many things
            raise TelegramRefusedError(f"cannot be parsed: {error!r}"[:200]) from None
        values = {name: parsed.get(ref) for name, ref in self._references.items()}
        try:
            quantities: dict[Quantity, Decimal] = {
                "power": self._power_w(values),
                "forward": self._energy_wh(values, "USED", "IMPORTED", "import (1.8)"),
                "backward": self._energy_wh(values, "DELIVERED", "EXPORTED", "export (2.8)"),
            }
        except TelegramRefusedError:
            raise
        except DeviceRefusedError as error:
            raise TelegramRefusedError(str(error)) from None
        meter_time = getattr(values.get("P1_MESSAGE_TIMESTAMP"), "value", None)
        if self._dialect.has_clock and meter_time is None:
            raise TelegramRefusedError("no valid timestamp (1.0.0)")
        sample = sample_of("grid", quantities, is_reversed=False, details=_details(text, values))
        return Reading(sample, meter_time)

    def _check_crc(self, telegram: bytes) -> None:
        end = telegram.rfind(b"!")
        if _CRC.search(telegram) is None:
            if self._dialect.has_crc or telegram[end:].strip() != b"!":
                raise CrcError("the telegram has no CRC")
            return
        stated = int(telegram[end + 1 :], 16)
        content = self._crc16(telegram[: end + 1].decode("latin-1"))  # DSMR 5.0.2, 6.2: '/' to '!'
        if stated != content:
            raise CrcError(f"the telegram says CRC {stated:04X}, its content has {content:04X}")

    def _power_w(self, values: dict[str, Any]) -> Decimal:
        usage = _amount(values.get("CURRENT_ELECTRICITY_USAGE"), "W", "power in (1.7.0)")
        delivery = _amount(values.get("CURRENT_ELECTRICITY_DELIVERY"), "W", "power out (2.7.0)")
        is_signed = self._dialect.has_signed_power
        if usage is None or (delivery is None and not is_signed):
            raise TelegramRefusedError("no power (1.7.0, 2.7.0)")
        if not is_signed and min(usage, delivery or Decimal(0)) < 0:
            raise TelegramRefusedError("a power (1.7.0, 2.7.0) is below zero")
        return usage - (delivery or 0)

    def _energy_wh(self, values: dict[str, Any], way: str, total: str, what: str) -> Decimal:
        numbers = range(1, self._dialect.tariffs + 1)
        tariffs = [
            _amount(values.get(f"ELECTRICITY_{way}_TARIFF_{number}"), "Wh", what)
            for number in numbers
        ]
        known = [tariff for tariff in tariffs if tariff is not None]
        if known and len(known) == len(tariffs):
            return sum(known, Decimal(0))
        alone = _amount(values.get(f"ELECTRICITY_{total}_TOTAL"), "Wh", what)
        if alone is None:
            raise TelegramRefusedError(f"no {what} register, or not all of its tariffs")
        return alone


def _is_wanted(name: str) -> bool:
    return name in {
        "P1_MESSAGE_HEADER",
        "P1_MESSAGE_TIMESTAMP",
        "BELGIUM_VERSION_INFORMATION",
        "CURRENT_ELECTRICITY_USAGE",
        "CURRENT_ELECTRICITY_DELIVERY",
        "ELECTRICITY_IMPORTED_TOTAL",
        "ELECTRICITY_EXPORTED_TOTAL",
        "EQUIPMENT_IDENTIFIER",
        "BELGIUM_EQUIPMENT_IDENTIFIER",
        "LUXEMBOURG_EQUIPMENT_IDENTIFIER",
        "Q3D_EQUIPMENT_IDENTIFIER",
    } or bool(re.fullmatch(r"ELECTRICITY_(USED|DELIVERED)_TARIFF_\d", name))


def _amount(found: Any, base: str, what: str) -> Decimal | None:
    """A line's value in its base unit (W or Wh), or None where the line is not there."""
    if found is None or found.value is None:
        return None
    if found.unit not in {base, f"k{base}"}:
        raise TelegramRefusedError(f"{what} is in {str(found.unit)[:10]!r}, not k{base}")
    return quantity_of(found.value, found.unit, what)


def _details(text: str, values: dict[str, Any]) -> dict[str, str]:
    model = text[1:].splitlines()[0].strip()
    serials = [values.get(name) for name in values if name.endswith("EQUIPMENT_IDENTIFIER")]
    serial_no = next((one.value for one in serials if one is not None and one.value), "")
    with contextlib.suppress(ValueError):  # hexadecimal ASCII (DSMR 5.0.2, 6.12), or plain digits
        readable = bytes.fromhex(serial_no).decode("ascii")
        serial_no = readable if _PRINTABLE.fullmatch(readable) else serial_no
    version = getattr(values.get("P1_MESSAGE_HEADER"), "value", None)
    details = {"model": model, "serial": serial_no, "firmware": f"P1 {version}" if version else ""}
    return {
        key: value[:DETAIL_CHARS_MAX]
        for key, value in details.items()
        if _PRINTABLE.fullmatch(value)
    }


# --- the line ----------------------------------------------------------------------------------


class _Stream(Protocol):
    async def read(self) -> bytes: ...

    def close(self) -> None: ...


class _TcpStream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        return await self._reader.read(CHUNK_BYTES)

    def close(self) -> None:
        self._writer.close()


class _SerialStream:
    def __init__(self, path: Path, line: Line) -> None:
        self._port = serial.Serial(
            str(path),
            baudrate=line.baud,
            bytesize=line.data_bits,
            parity=line.parity,
            timeout=0,
            exclusive=True,
        )

    async def read(self) -> bytes:
        """Bytes, or none when the adapter was pulled out."""
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        number: int = self._port.fileno()
        loop.add_reader(number, _settle, readable)
        try:
            await readable
        finally:
            loop.remove_reader(number)
        return os.read(number, CHUNK_BYTES)

    def close(self) -> None:
        self._port.close()


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _open(config: P1Config, line: Line) -> _Stream:
    if config.path is not None:
        return _SerialStream(config.path, line)
    reader, writer = await asyncio.open_connection(config.host, config.port, limit=CHUNK_BYTES)
    return _TcpStream(reader, writer)


# --- the device --------------------------------------------------------------------------------


class P1Source(BackgroundReader[Reading]):
    """
    A smart meter on its P1 port; the reader starts with the first `read`.

    Args:
        monotonic_s: process time, for ages
    """

    capabilities = frozenset({"grid"})

    def __init__(
        self, config: P1Config, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(config.age_s_max, config.wait_s, monotonic_s)
        self._config = config
        self._dialect = DIALECTS[config.dialect]
        self._reader = TelegramReader(self._dialect)
        self._clock_moved_at_s = 0.0
        self._refusal: DeviceRefusedError | None = None
        self._trouble = "the meter does not speak"
        self.refused = 0
        """Telegrams that were dropped so far."""

    async def read(self) -> Sample:
        """
        The newest telegram's values.

        Raises:
            DeviceLostError: no young telegram (FrozenError: none that is really new).
            DeviceRefusedError: none, and what came was refused (CrcError and its like say why).
        """
        self._begin()
        if not self._is_young():
            await self._wait()
        if not self._is_young():
            if self._refusal is not None:
                raise self._refusal.with_traceback(None)  # it may be raised many times
            raise DeviceLostError(f"no telegram within {self._config.age_s_max} s: {self._trouble}")
        assert self._newest is not None, "what is young is there"
        still_s = self._monotonic_s() - self._clock_moved_at_s
        if self._newest.meter_time is not None and still_s > self._config.frozen_s_max:
            raise FrozenError(f"the meter's clock has stood still for {still_s:.0f} s")
        return self._newest.sample

    def _lose(self, error: Exception) -> None:
        silent = isinstance(error, TimeoutError)
        why = f"silent for {self._config.age_s_max} s" if silent else str(error) or repr(error)
        self._trouble, self._refusal = why, None

    async def _talk(self) -> None:
        """
        Read one connection to its end.

        Raises:
            OSError: it ended. TimeoutError: nothing came for too long.
        """
        stream = await self._patiently(_open(self._config, self._dialect.line))
        splitter = Splitter()
        try:
            while chunk := await self._patiently(stream.read()):
                for one in splitter.feed(chunk):
                    self._take(one)
                await asyncio.sleep(0)  # a flood must not keep the others waiting
            raise ConnectionError("the connection ended")
        finally:
            stream.close()

    async def _patiently(self, work: Awaitable[T]) -> T:
        async with asyncio.timeout(self._config.age_s_max):
            return await work

    def _take(self, one: bytes | DeviceRefusedError) -> None:
        try:
            if isinstance(one, DeviceRefusedError):
                raise one
            reading = self._reader.read(one)
        except DeviceRefusedError as error:
            self.refused += 1
            self._refusal = error
            return
        now_s = self._monotonic_s()
        if self._newest is None or reading.meter_time != self._newest.meter_time:
            self._clock_moved_at_s = now_s
        self._keep(reading)
        self._refusal = None
        self._came.set()


def source_for(config: P1Config) -> P1Source:
    """
    The driver of a `[[devices]]` entry; connects with its first read.

    Raises:
        ConfigError: dsmr-parser is not installed.
    """
    return P1Source(config)
