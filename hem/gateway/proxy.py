"""
A Modbus TCP proxy: many inverters accept one client, and that one is us.

Other programs of the house (a wall box, a dashboard) connect here and share our link. They are
guests:

- our own questions go first, and wait for one guest's question at most;
- guests may read. They may write only where the rules allow it, and where `permit` does: our own
  setpoints have priority over foreign ones;
- a guest has one question under way, the others wait in its socket; how often it may ask, how long
  it may be silent and how many guests there are is bounded;
- a unit that fell silent on a guest's question is not asked by guests for a while, longer each
  time: whoever asks for what a device does not answer holds up nobody but guests;
- a question under way is never abandoned when its guest hangs up, for that would cost us the
  connection.

Answers carry the guest's transaction number. What went wrong is told by Modbus' exception codes,
the device's own where it gave one, else 0x0B for a device that does not answer. A single register
(function 6) is written to the device by function 16, as we always do.

pymodbus decodes and encodes. Its server is not used: it answers the last of several questions that
come in one segment, and bounds nothing.

References:
    MODBUS Application Protocol V1.1b3, section 7; MODBUS Messaging on TCP/IP V1.0b, section 3.1.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadHoldingRegistersResponse,
    ReadInputRegistersRequest,
    ReadInputRegistersResponse,
    WriteMultipleRegistersRequest,
    WriteMultipleRegistersResponse,
    WriteSingleRegisterRequest,
    WriteSingleRegisterResponse,
)

from hem.gateway.links import WRITE_REGISTERS_MAX, DeviceExceptionError, Link, Table
from hem.gateway.modbus import REGISTERS_MAX, DeviceError, DeviceLostError

PDU_BYTES_MAX = 253
"""Modbus application protocol 4.1."""
MBAP = struct.Struct(">HHHB")
"""Transaction, protocol (0), length of what follows it, unit."""
SEND_S_MAX = 5.0
PENALTY_S_MIN = 3.0
PENALTY_S_MAX = 60.0
PORT_MAX = 65_535
UNIT_MAX = 255

READS = (
    ReadHoldingRegistersRequest.function_code,
    ReadInputRegistersRequest.function_code,
)
WRITES = (
    WriteSingleRegisterRequest.function_code,
    WriteMultipleRegistersRequest.function_code,
)

Permit = Callable[[int, int, Sequence[int]], bool]
"""May a guest write these values to this unit and address now?"""


class Log(Protocol):
    """Where the lines go."""

    def info(self, event: str, **facts: Any) -> Any:
        """As it should be."""
        ...

    def warning(self, event: str, **facts: Any) -> Any:
        """Worth a look."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRules:
    """
    What guests may do.

    Raises:
        ValueError: names the key and what would be right.
    """

    device_ids: frozenset[int]
    """Units that guests may ask; others are told that there is no way to them."""
    host: str = "127.0.0.1"
    """Loopback; anything else lets the whole network read, and write where that is allowed."""
    port: int = 5020
    """0 for a free one."""
    allow_writes: bool = False
    clients_max: int = 4
    requests_per_s: float = 10.0
    """Of one guest."""
    idle_s: float = 60.0
    """A guest that has not asked a whole question for so long is dropped [real s]."""
    wait_s_max: float = 5.0
    """A guest's question that waited so long for its turn is told that we are busy [real s]."""

    def __post_init__(self) -> None:
        if not self.device_ids or not all(0 <= unit <= UNIT_MAX for unit in self.device_ids):
            raise ValueError("device_ids: expected one or more units within 0…255")
        if not 0 <= self.port <= PORT_MAX:
            raise ValueError(f"port: {self.port} is not within 0…{PORT_MAX}")
        for key in ("clients_max", "requests_per_s", "idle_s", "wait_s_max"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}: {getattr(self, key)} is not above 0")


class SharedLink:
    """
    A link that we share with guests. It is a `Link` itself: what asks it directly is us.

    Args:
        link: the one connection; it is asked one question at a time
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._turns = _Turns()
        self._penalties: dict[int, _Penalty] = {}
        self._lost_to_us: set[int] = set()

    async def read(
        self, device_id: int, address: int, count: int, table: Table = "holding"
    ) -> list[int]:
        """
        Registers, for us.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        async with self._turns.take(guest=False), self._of_ours(device_id):
            return await self._link.read(device_id, address, count, table)

    async def write(self, device_id: int, address: int, values: list[int]) -> None:
        """
        Write holding registers, for us.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        async with self._turns.take(guest=False), self._of_ours(device_id):
            await self._link.write(device_id, address, values)

    async def read_file(self, device_id: int, file: int, record: int, size: int) -> bytes:
        """
        Bytes of a file, for us.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        async with self._turns.take(guest=False), self._of_ours(device_id):
            return await self._link.read_file(device_id, file, record, size)

    async def write_file(self, device_id: int, file: int, record: int, data: bytes) -> None:
        """
        Write bytes into a file, for us.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        async with self._turns.take(guest=False), self._of_ours(device_id):
            await self._link.write_file(device_id, file, record, data)

    def close(self) -> None:
        """Drop the connection."""
        self._link.close()

    @asynccontextmanager
    async def for_guest(self, device_id: int, wait_s_max: float) -> AsyncIterator[Link]:
        """
        The link, for one question of a guest.

        Raises:
            DeviceLostError: the unit fell silent on a guest a while ago.
            TimeoutError: it was not the guest's turn for `wait_s_max`.
        """
        async with self._turns.take(guest=True, wait_s_max=wait_s_max):
            now_s = asyncio.get_running_loop().time()
            penalty = self._penalties.get(device_id)
            if penalty is not None and now_s < penalty.until_s:
                raise DeviceLostError(f"unit {device_id} fell silent a while ago")
            try:
                yield self._link
            except DeviceLostError:
                now_s = asyncio.get_running_loop().time()
                self._penalties[device_id] = _Penalty.after(penalty, now_s)
                raise

    @asynccontextmanager
    async def _of_ours(self, device_id: int) -> AsyncIterator[None]:
        """A device that was lost to us too and is back was not silenced by a guest."""
        try:
            yield
        except DeviceLostError:
            self._lost_to_us.add(device_id)
            raise
        if device_id in self._lost_to_us:
            self._lost_to_us.discard(device_id)
            self._penalties.pop(device_id, None)


class Proxy:
    """
    Serves guests.

    Args:
        rules: what they may do
        link: shared with us
        log: for what an operator wants to see
        permit: asked before a guest's write where writes are allowed: False while we hold a
            setpoint on that unit, or where a write budget is spent
    """

    def __init__(
        self,
        rules: ProxyRules,
        link: SharedLink,
        log: Log,
        permit: Permit = lambda _unit, _address, _values: True,
    ) -> None:
        self._rules = rules
        self._link = link
        self._log = log
        self._permit = permit
        self._decoder = DecodePDU(True)
        self._framer = FramerSocket(self._decoder)
        self._server: asyncio.Server | None = None
        self._guests: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._full = False

    async def start(self) -> int:
        """
        Listen.

        Returns:
            The port.

        Raises:
            OSError: the port cannot be had.
        """
        self._server = await asyncio.start_server(
            self._welcome, self._rules.host, self._rules.port, limit=2 * PDU_BYTES_MAX
        )
        port: int = self._server.sockets[0].getsockname()[1]
        writes = self._rules.allow_writes
        self._log.info("proxy ready", host=self._rules.host, port=port, writes=writes)
        return port

    async def stop(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._guests)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._guests) >= self._rules.clients_max:
            if not self._full:
                self._log.warning("proxy full, guests turned away", clients=len(self._guests))
            self._full = True
            writer.transport.abort()
            return
        self._full = False
        task = asyncio.current_task()
        assert task is not None
        self._guests[task] = writer
        try:
            await self._serve(reader, writer)
        except (TimeoutError, OSError, EOFError, asyncio.CancelledError):
            pass  # silent, gone, not a Modbus client, or we stop
        finally:
            del self._guests[task]
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Question and answer, one after the other, until the guest goes."""
        loop = asyncio.get_running_loop()
        pause_s = 1 / self._rules.requests_per_s
        next_s = loop.time()
        while True:
            async with asyncio.timeout(self._rules.idle_s):
                transaction, unit, pdu = await _read_question(reader)
            await asyncio.sleep(next_s - loop.time())
            next_s = max(next_s, loop.time() - 1.0) + pause_s  # what was not used in 1 s is lost
            answer = await self._answer(unit, pdu)
            answer.dev_id, answer.transaction_id = unit, transaction
            writer.write(self._framer.buildFrame(answer))
            async with asyncio.timeout(SEND_S_MAX):
                await writer.drain()

    async def _answer(self, unit: int, pdu: bytes) -> ModbusPDU:
        code = pdu[0]
        if unit not in self._rules.device_ids:
            return ExceptionResponse(code, ExcCodes.GATEWAY_PATH_UNAVIABLE)
        if code not in READS and not (code in WRITES and self._rules.allow_writes):
            return ExceptionResponse(code, ExcCodes.ILLEGAL_FUNCTION)
        question = self._decoder.decode(pdu)
        if question is None:
            return ExceptionResponse(code, ExcCodes.ILLEGAL_VALUE)
        refusal = _malformed(question)
        if refusal is not None:
            return ExceptionResponse(code, refusal)
        try:
            async with self._link.for_guest(unit, self._rules.wait_s_max) as link:
                if not self._permitted(unit, question):
                    return ExceptionResponse(code, ExcCodes.DEVICE_BUSY)
                return await _forward(link, unit, question)
        except DeviceExceptionError as error:
            return ExceptionResponse(code, error.code)
        except DeviceLostError:
            return ExceptionResponse(code, ExcCodes.GATEWAY_NO_RESPONSE)
        except DeviceError:
            return ExceptionResponse(code, ExcCodes.DEVICE_FAILURE)
        except TimeoutError:
            return ExceptionResponse(code, ExcCodes.DEVICE_BUSY)

    def _permitted(self, unit: int, question: ModbusPDU) -> bool:
        if question.function_code not in WRITES:
            return True
        return self._permit(unit, question.address, list(question.registers))


def _malformed(question: ModbusPDU) -> ExcCodes | None:
    """What no device is asked; None for what may be."""
    registers = len(question.registers)
    if question.function_code in READS:
        count, count_max = question.count, REGISTERS_MAX
    else:
        count, count_max = registers, WRITE_REGISTERS_MAX
    announced = question.count if isinstance(question, WriteMultipleRegistersRequest) else count
    if not 1 <= count <= count_max or announced != count:
        return ExcCodes.ILLEGAL_VALUE
    return ExcCodes.ILLEGAL_ADDRESS if question.address + count > 0x10000 else None


async def _read_question(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """
    Transaction, unit and what is asked.

    Raises:
        EOFError: the guest went, or does not speak Modbus TCP.
    """
    transaction, protocol, length, unit = MBAP.unpack(await reader.readexactly(MBAP.size))
    if protocol != 0 or not 2 <= length <= PDU_BYTES_MAX + 1:
        raise EOFError("not Modbus TCP")
    return transaction, unit, await reader.readexactly(length - 1)


async def _forward(link: Link, unit: int, question: ModbusPDU) -> ModbusPDU:
    """
    Put a guest's question to the device.

    Raises:
        DeviceLostError, DeviceRefusedError.
    """
    address, registers = question.address, list(question.registers)
    match question:
        case ReadInputRegistersRequest():
            found = await link.read(unit, address, question.count, "input")
            return ReadInputRegistersResponse(registers=found)
        case ReadHoldingRegistersRequest():
            found = await link.read(unit, address, question.count)
            return ReadHoldingRegistersResponse(registers=found)
        case WriteSingleRegisterRequest():
            await link.write(unit, address, registers)
            return WriteSingleRegisterResponse(address=address, registers=registers)
        case _:
            await link.write(unit, address, registers)
            return WriteMultipleRegistersResponse(address=address, count=len(registers))


@dataclass(frozen=True, slots=True)
class _Penalty:
    """How long guests may not ask a unit."""

    until_s: float
    length_s: float

    @staticmethod
    def after(before: _Penalty | None, now_s: float) -> _Penalty:
        """Twice the one before, unless that is long over."""
        length_s = PENALTY_S_MIN
        if before is not None and now_s < before.until_s + PENALTY_S_MAX:
            length_s = min(2 * before.length_s, PENALTY_S_MAX)
        return _Penalty(now_s + length_s, length_s)


class _Turns:
    """A lock that we get before guests do; guests get it in the order in which they came."""

    def __init__(self) -> None:
        self._taken = False
        self._ours: deque[asyncio.Future[None]] = deque()
        self._guests: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def take(self, *, guest: bool, wait_s_max: float | None = None) -> AsyncIterator[None]:
        """
        Have the turn.

        Raises:
            TimeoutError: not within `wait_s_max`.
        """
        if self._taken:
            await self._wait(self._guests if guest else self._ours, wait_s_max)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, queue: deque[asyncio.Future[None]], wait_s_max: float | None) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(wait_s_max):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it came, but too late for us
            else:
                with suppress(ValueError):
                    queue.remove(turn)
            raise

    def _pass_on(self) -> None:
        for queue in (self._ours, self._guests):
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._taken = False
