"""
Connections to Modbus devices: TCP, a serial line, and a serial line behind a TCP adapter.

All three ask one question at a time, wait a bounded time, and know two errors: a device is lost
(`DeviceLostError`) or refuses (`DeviceRefusedError`, with the device's own code where it gave one).
A connection that fell silent is closed and made anew at the next question.

Modbus TCP numbers its questions; a serial line does not, so there a late answer could be taken for
the answer to the next question. Hence on a serial line, and behind an adapter:
- a unit that fell silent is asked nothing for `QUIET_FACTOR` timeouts, while what it says is thrown
  away; other units may be asked meanwhile, for an answer carries its unit;
- an answer must have the unit and the function that were asked, its checksum, and (for a write) the
  address and the length; it is found among noise, for RS-485 lines add bytes when they turn round.
  pymodbus' own framer expects it at the first byte that could begin any frame, which a stray zero
  does, so this one is ours.

References:
    MODBUS Application Protocol V1.1b3, sections 6 and 7;
    MODBUS over Serial Line V1.02, section 2.5.
"""

from __future__ import annotations

import asyncio
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerRTU, FramerSocket, FramerType
from pymodbus.pdu import DecodePDU, ModbusPDU
from pymodbus.pdu.file_message import FileRecord, ReadFileRecordRequest, WriteFileRecordRequest
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadInputRegistersRequest,
    WriteMultipleRegistersRequest,
)

from hem.gateway.modbus import REGISTERS_MAX, DeviceLostError, DeviceRefusedError

WRITE_REGISTERS_MAX = 123
"""Most registers of one write (Modbus application protocol 6.12)."""
BAUDS = (1_200, 2_400, 4_800, 9_600, 19_200, 38_400, 57_600, 115_200, 230_400)
BITS_PER_CHAR = 11
"""Start, eight data, parity or a second stop, stop (serial line 2.5.1)."""
GAP_CHARS = 3.5
GAP_S_MIN = 0.00175
"""Silence between two frames: 3.5 characters, 1.75 ms above 19200 baud (serial line 2.5.1.1)."""
QUIET_FACTOR = 2.0
BUFFER_BYTES_MAX = 1_024
"""An answer of 255 bytes is found behind this much noise, about."""
EXCEPTION = 0x80
READ_HOLDING, READ_INPUT, WRITE_REGISTERS = 3, 4, 16
WRITE_FILE = 21

Kind = Literal["tcp", "rtu", "rtu-over-tcp"]
Table = Literal["holding", "input"]


class DeviceExceptionError(DeviceRefusedError):
    """The device answered with an exception; `code` is Modbus' (1 illegal function, 2 address)."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"the device answered with exception {code}")


class NoConnectionError(DeviceLostError):
    """Nobody listens there."""


class Link(Protocol):
    """A connection that any number of devices share."""

    async def read(
        self, device_id: int, address: int, count: int, table: Table = "holding"
    ) -> list[int]:
        """
        Registers.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...

    async def write(self, device_id: int, address: int, values: list[int]) -> None:
        """
        Write holding registers in one request.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...

    async def read_file(self, device_id: int, file: int, record: int, size: int) -> bytes:
        """
        Bytes of a file, an even number, from a record (of two bytes each) on.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...

    async def write_file(self, device_id: int, file: int, record: int, data: bytes) -> None:
        """
        Write an even number of bytes into a file, in one request.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...

    def close(self) -> None:
        """Drop the connection; the next question makes it anew."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """
    Where a device is reached. Equal connections are one line and share one link.

    Raises:
        ValueError: names the key and what would be right.
    """

    kind: Kind = "tcp"
    host: str = ""
    """Of tcp and rtu-over-tcp."""
    port: int = 502
    path: str = ""
    """Of rtu: the serial port, `/dev/serial/by-id/…`."""
    baud: int = 9_600
    """Of rtu; of rtu-over-tcp the speed behind the adapter, for how long a frame takes."""
    parity: Literal["N", "E", "O"] = "N"
    stopbits: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.kind not in ("tcp", "rtu", "rtu-over-tcp"):
            raise ValueError(f"kind: {self.kind!r} is not one of tcp, rtu, rtu-over-tcp")
        if not isinstance(self.host, str) or not isinstance(self.path, str):
            raise ValueError("host: a host and a path are texts")
        if self.kind == "rtu":
            if not self.path.startswith("/"):  # "socket://…" would mean something to pyserial
                raise ValueError("path: expected a serial port such as /dev/ttyUSB0")
            if self.host:
                raise ValueError("host: a serial port has none; remove it or set another kind")
        else:
            if not self.host:
                raise ValueError(f"host: is missing; {self.kind} needs one")
            if self.path:
                raise ValueError("path: belongs to kind rtu; remove it or set that kind")
        if type(self.port) is not int or not 1 <= self.port <= 65_535:
            raise ValueError(f"port: {self.port!r} is not within 1…65535")
        if self.baud not in BAUDS:
            raise ValueError(f"baud: {self.baud!r} is not one of {', '.join(map(str, BAUDS))}")
        if self.parity not in ("N", "E", "O"):
            raise ValueError(f"parity: {self.parity!r} is not one of N, E, O")
        if self.stopbits not in (1, 2):
            raise ValueError(f"stopbits: {self.stopbits!r} is not 1 or 2")

    @property
    def where(self) -> str:
        """For a log line: `/dev/ttyUSB0` or `host:port`."""
        return self.path if self.kind == "rtu" else f"{self.host}:{self.port}"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(value: Any) -> Connection:
        """
        The opposite of `to_json`.

        Raises:
            ValueError: not a connection.
        """
        if not isinstance(value, dict):
            raise ValueError("expected an object")
        try:
            return Connection(**value)
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None


def port_trouble(path: str) -> str:
    """Why a serial port cannot be opened, and what to do; empty where nothing speaks against it."""
    port = Path(path)
    if not port.exists():
        return "there is no such port; is the adapter plugged in?"
    if not port.is_char_device():
        return "is no serial port; give one such as /dev/ttyUSB0"
    if not os.access(port, os.R_OK | os.W_OK):
        return "your user may not use it; add it to the port's group (ls -l says which)"
    return ""


def link_for(connection: Connection, timeout_s: float) -> ClientLink:
    """
    A link of the connection's kind; it connects when first asked.

    Args:
        timeout_s: how long to wait for a connection, and for an answer to begin [real s]
    """
    return ClientLink(connection, timeout_s)


class ClientLink:
    """
    One connection, with pymodbus below it.

    Args:
        connection: what to connect to
        timeout_s: how long to wait for a connection, and for an answer to begin [real s]
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._serial = connection.kind != "tcp"
        self._lock = asyncio.Lock()
        self._client: AsyncModbusTcpClient | AsyncModbusSerialClient | None = None
        self._quiet_until_s: dict[int, float] = {}
        self._heard_at_s = 0.0

    async def read(
        self, device_id: int, address: int, count: int, table: Table = "holding"
    ) -> list[int]:
        """
        Holding or input registers, 125 at most.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        assert 1 <= count <= REGISTERS_MAX, count
        assert 0 <= address <= 0x10000 - count, address
        request = ReadHoldingRegistersRequest if table == "holding" else ReadInputRegistersRequest
        question = request(address=address, count=count, dev_id=device_id)
        response = await self._ask(question, 5 + 2 * count)
        registers = list(response.registers)
        if len(registers) != count:
            raise DeviceRefusedError(f"asked for {count} registers, got {len(registers)}")
        return registers

    async def write(self, device_id: int, address: int, values: list[int]) -> None:
        """
        Write holding registers in one request, 123 at most.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        assert 1 <= len(values) <= WRITE_REGISTERS_MAX, values
        assert all(0 <= value <= 0xFFFF for value in values), values
        question = WriteMultipleRegistersRequest(
            address=address, registers=values, dev_id=device_id
        )
        response = await self._ask(question, 9 + 2 * len(values))
        if (response.address, response.count) != (address, len(values)):
            raise DeviceRefusedError(
                f"wrote {len(values)} registers at {address}, the device confirmed"
                f" {response.count} at {response.address}"
            )

    async def read_file(self, device_id: int, file: int, record: int, size: int) -> bytes:
        """
        Bytes of a file, 240 at most (function 20).

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        asked = FileRecord(file_number=file, record_number=record, record_length=size)
        response = await self._ask(ReadFileRecordRequest([asked], dev_id=device_id), 7 + size)
        found = b"".join(bytes(each.record_data) for each in getattr(response, "records", ()))
        if len(found) != size:
            raise DeviceRefusedError(f"asked for {size} bytes of a file, got {len(found)}")
        return found

    async def write_file(self, device_id: int, file: int, record: int, data: bytes) -> None:
        """
        Write bytes into a file, 240 at most (function 21).

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        sent = FileRecord(file_number=file, record_number=record, record_data=data)
        response = await self._ask(
            WriteFileRecordRequest([sent], dev_id=device_id), 24 + 2 * len(data)
        )
        confirmed = [
            (each.file_number, each.record_number, bytes(each.record_data))
            for each in getattr(response, "records", ())
        ]
        if confirmed != [(file, record, data)]:
            raise DeviceRefusedError(f"wrote record {record} of file {file}, heard something else")

    def close(self) -> None:
        """Drop the connection; the next question makes it anew."""
        client, self._client = self._client, None
        if client is not None:
            # Not at once: a serial transport that was just made is set up in the next round of the
            # loop, and fails there if it was closed before.
            asyncio.get_running_loop().call_soon(client.close)

    async def _ask(self, question: ModbusPDU, frame_bytes: int) -> ModbusPDU:
        """Ask, and wait for an answer of the same function from the same unit."""
        unit = question.dev_id
        if self._serial and unit == 0:
            raise DeviceRefusedError("unit 0 of a serial line is everybody and answers nothing")
        async with self._lock:
            client = await self._connected()
            if self._serial:
                await self._keep_distance(unit)
                client = await self._connected()  # the line may have been cut meanwhile
                framer = client.ctx.framer
                assert isinstance(framer, _AnswerFramer)
                framer.expect(question.function_code)
            try:
                async with asyncio.timeout(self._wait_s(frame_bytes)):
                    response: ModbusPDU = await client.execute(False, question)
            except (ModbusException, TimeoutError, OSError) as error:
                self._silence(unit)
                raise DeviceLostError(_why(error)) from None
            except BaseException:  # cancelled: the answer may still come
                self._silence(unit)
                raise
            self._heard_at_s = asyncio.get_running_loop().time()
            if response.function_code == question.function_code | EXCEPTION:
                raise DeviceExceptionError(response.exception_code)
            if response.function_code != question.function_code:
                self._silence(unit)
                raise DeviceRefusedError(
                    f"asked for function {question.function_code}, got {response.function_code}"
                )
            return response

    async def _connected(self) -> AsyncModbusTcpClient | AsyncModbusSerialClient:
        if self._client is not None and self._client.connected:
            return self._client
        self.close()
        await asyncio.sleep(0)  # closed by then: a serial port is ours alone, and only once
        client = _client(self._connection, self._timeout_s)
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                connected = await client.connect()
        except Exception as error:  # whatever a driver may raise: there is no connection
            where = self._connection.where
            raise NoConnectionError(f"no connection to {where}: {error}") from None
        if not connected:  # of a serial port the driver does not tell why
            rtu = self._connection.kind == "rtu"
            trouble = port_trouble(self._connection.path) if rtu else ""
            why = f": {trouble}" if trouble else ""
            raise NoConnectionError(f"no connection to {self._connection.where}{why}")
        self._client = client
        return client

    async def _keep_distance(self, unit: int) -> None:
        """Let the line rest: between two frames, and longer for a unit that may answer late."""
        now_s = asyncio.get_running_loop().time()
        gap_s = max(GAP_S_MIN, self._frame_s(GAP_CHARS))
        until_s = max(self._heard_at_s + gap_s, self._quiet_until_s.pop(unit, 0.0))
        if until_s > now_s:
            await asyncio.sleep(until_s - now_s)

    def _silence(self, unit: int) -> None:
        """Nobody answered: a late answer must not meet the next question."""
        self.close()
        if self._serial:
            now_s = asyncio.get_running_loop().time()
            self._quiet_until_s[unit] = now_s + QUIET_FACTOR * self._timeout_s

    def _wait_s(self, frame_bytes: int) -> float:
        return self._timeout_s + (self._frame_s(8 + frame_bytes) if self._serial else 0.0)

    def _frame_s(self, chars: float) -> float:
        return chars * BITS_PER_CHAR / self._connection.baud


class _AnswerFramer(FramerRTU):
    """
    Finds the answer that is waited for; everything else on the line is thrown away.

    While nothing was asked, all of it is.
    """

    def __init__(self, decoder: DecodePDU) -> None:
        super().__init__(decoder)
        self._function = 0

    def expect(self, function: int) -> None:
        """From now on wait for one answer to this function."""
        self._function = function

    def handleFrame(  # noqa: N802 (pymodbus' name)
        self, data: bytes, exp_devid: int, exp_tid: int
    ) -> tuple[int, ModbusPDU | None]:
        """Bytes used, and the answer if it is there."""
        if not self._function:
            return len(data), None
        for start in range(len(data) - 4):
            end = start + _answer_bytes(data[start:], exp_devid, self._function)
            if start < end <= len(data) and _checks(data[start:end]):
                pdu = self.decoder.decode(data[start + 1 : end - 2])
                if pdu is not None:
                    self._function = 0
                    pdu.dev_id, pdu.transaction_id = exp_devid, 0
                    return len(data), pdu
        return 0, None


class _NumberedFramer(FramerSocket):
    """Modbus TCP; what cannot be decoded is thrown away and raises nothing in the event loop."""

    def handleFrame(  # noqa: N802 (pymodbus' name)
        self, data: bytes, exp_devid: int, exp_tid: int
    ) -> tuple[int, ModbusPDU | None]:
        """Bytes used, and the answer if it is there."""
        try:
            return super().handleFrame(data, exp_devid, exp_tid)
        except (ModbusException, ValueError, LookupError, struct.error):
            return len(data), None


def _answer_bytes(data: bytes, unit: int, function: int) -> int:
    """Length of the answer to `function` that begins here; 0 where none does."""
    if data[0] != unit:
        return 0
    if data[1] == function | EXCEPTION:
        return 5
    if data[1] != function:
        return 0
    if function == WRITE_REGISTERS:
        return 8
    if function == WRITE_FILE:  # an echo of the question: its header is odd
        return 5 + data[2]
    return 5 + data[2] if data[2] % 2 == 0 else 0


def _checks(frame: bytes) -> bool:
    return FramerRTU.compute_CRC(frame[:-2]) == int.from_bytes(frame[-2:], "big")


def _client(
    connection: Connection, timeout_s: float
) -> AsyncModbusTcpClient | AsyncModbusSerialClient:
    # pymodbus' own wait is longer than ours, so that ours decides.
    never: dict[str, Any] = {"timeout": 60 + 2 * timeout_s, "retries": 0, "reconnect_delay": 0}
    client: AsyncModbusTcpClient | AsyncModbusSerialClient
    if connection.kind == "rtu":
        client = AsyncModbusSerialClient(
            connection.path,
            baudrate=connection.baud,
            parity=connection.parity,
            stopbits=connection.stopbits,
            **never,
        )
    else:
        framing = FramerType.SOCKET if connection.kind == "tcp" else FramerType.RTU
        client = AsyncModbusTcpClient(
            connection.host, port=connection.port, framer=framing, **never
        )
    framer = _NumberedFramer if connection.kind == "tcp" else _AnswerFramer
    client.ctx.framer = framer(DecodePDU(False))
    client.ctx.max_buffer_size = BUFFER_BYTES_MAX
    return client


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
