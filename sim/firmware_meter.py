"""
A simulated meter that takes firmware over Modbus TCP, and keeps its head when the power goes.

It has two halves of memory. One runs; the other takes what comes. `commit` checks size, CRC and the
file's own head, and only then turns the halves round, in one step; then the meter restarts. Its
energy registers lie in memory of their own and go on counting. Templates: `hearthgrid-rm1` (a
window of registers) and `hearthgrid-rm2` (file records).

    meter = FirmwareMeter("RM-1", make_image("RM-1", "1.0.0"))
    await meter.start(); meter.port; meter.version
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from typing import Any, cast

from pymodbus.constants import ExcCodes
from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.file_message import (
    FileRecord,
    ReadFileRecordRequest,
    ReadFileRecordResponse,
    WriteFileRecordRequest,
    WriteFileRecordResponse,
)
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

NAMEPLATE, ENERGY, CONTROL = 0x7000, 0x7100, 0x7200
COMMAND, STATUS, SIZE, CRC, OFFSET, WINDOW = (CONTROL + n for n in (0, 1, 2, 4, 6, 16))
WINDOW_REGISTERS = 50
BEGIN, COMMIT = 1, 2
IDLE, RECEIVING, BAD = 0, 1, 2
RECORDS_PER_FILE = 10_000
MEMORY_BYTES = 512 * 1024
ERASED = 0xFF
WRITES = (6, 16)
MAGIC = b"HGFW "


def make_image(model: str, version: str, size: int = 4_000, seed: int = 0) -> bytes:
    """A file of firmware: a line that says what it is, and some bytes."""
    head = MAGIC + json.dumps({"model": model, "version": version}).encode() + b"\n"
    return head + random.Random(f"{seed}/{version}").randbytes(max(0, size - len(head)))


def read_head(image: bytes) -> tuple[str, str]:
    """
    Model and version of a file.

    Raises:
        ValueError: no such file.
    """
    line, _, _ = image.partition(b"\n")
    if not line.startswith(MAGIC):
        raise ValueError("not firmware of this make")
    facts = json.loads(line.removeprefix(MAGIC))
    if not isinstance(facts, dict):
        raise ValueError("not firmware of this make")
    return str(facts.get("model")), str(facts.get("version"))


class FirmwareMemory:
    """What survives a power cut: the half that runs, and the half that takes what comes."""

    def __init__(self, model: str, image: bytes) -> None:
        self.model = model
        self.running = image
        self.waiting = bytearray()
        self.status, self.size, self.crc, self.offset = IDLE, 0, 0, 0

    @property
    def version(self) -> str:
        """Of what runs."""
        return read_head(self.running)[1]

    def begin(self) -> None:
        """Clear the waiting half."""
        if not 0 < self.size <= MEMORY_BYTES:
            self.status = BAD
            return
        self.waiting = bytearray([ERASED]) * (self.size + self.size % 2)
        self.status = RECEIVING

    def put(self, start: int, data: bytes) -> bool:
        """Keep a part; False: it is not being taken, or does not fit."""
        if self.status != RECEIVING or start + len(data) > len(self.waiting):
            return False
        self.waiting[start : start + len(data)] = data
        return True

    def part(self, start: int, size: int) -> bytes:
        """A part of the waiting half; erased where there is nothing."""
        found = bytes(self.waiting[start : start + size])
        return found + bytes([ERASED]) * (size - len(found))

    def commit(self) -> bool:
        """Run the waiting half, if it is what was announced and meant for this meter."""
        image = bytes(self.waiting[: self.size])
        try:
            fits = read_head(image)[0] == self.model
        except ValueError:
            fits = False
        if self.status != RECEIVING or zlib.crc32(image) != self.crc or not fits:
            self.status = BAD
            return False
        self.running = image
        self.status = IDLE
        return True

    def power_cut(self, *, keeps_half: bool) -> None:
        """The power goes and comes; some memories keep what they were being given."""
        self.offset = 0
        if not keeps_half:
            self.waiting, self.status = bytearray(), IDLE


class FirmwareMeter:
    """
    The meter on the network.

    Args:
        model: `RM-1` takes firmware by a window of registers, `RM-2` by file records
        image: what runs at first
        restart_s: how long a restart takes [real s]
    """

    def __init__(
        self, model: str, image: bytes, *, serial: str = "RM-0001", restart_s: float = 0.3
    ) -> None:
        self.memory = FirmwareMemory(model, image)
        self.serial, self._restart_s = serial, restart_s
        self.grid_w, self.import_wh, self.export_wh = 1_500, 100_000, 2_000
        self.writes = 0
        """Parts of firmware that were written."""
        self.cut_after = -1
        """The power goes after so many more parts; negative: it does not."""
        self.keeps_half = True
        self.port = 0
        self._dark = False
        self._runs = self.memory.version
        self._server: ModbusTcpServer | None = None
        self._restarting: asyncio.Task[None] | None = None

    @property
    def version(self) -> str:
        """Of the firmware that runs: the memory's when the meter started."""
        return self._runs

    async def start(self) -> None:
        """Run what the memory holds; serve on the port of before."""
        self._runs, self._dark = self.memory.version, False
        device = SimDevice(
            1,
            [
                SimData(
                    NAMEPLATE, values=[0] * (CONTROL + 80 - NAMEPLATE), datatype=DataType.REGISTERS
                )
            ],
            action=self._act,
        )
        server = ModbusTcpServer(
            [device], address=("127.0.0.1", self.port), custom_pdu=list(_file_pdus(self))
        )
        await server.serve_forever(background=True)
        self.port = cast(Any, server.transport).sockets[0].getsockname()[1]
        self._server = server

    async def stop(self) -> None:
        """Off the network."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)
        await self._off()

    async def restart(self) -> None:
        """Be away for a moment, and run what the memory says."""
        await self._off()
        await asyncio.sleep(self._restart_s)
        await self.start()

    async def _off(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await cast(Any, server).shutdown()

    def restart_soon(self) -> None:
        """Restart once the answer that is under way has left."""
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._later())

    async def _later(self) -> None:
        await asyncio.sleep(0.01)
        await self.restart()

    def taken(self, start: int, data: bytes) -> bool:
        """A part arrived; the power may go with it, and then nothing is kept until the restart."""
        if self._dark:
            return False
        self.writes += 1
        kept = self.memory.put(start, data)
        if self.cut_after == 0:
            self.memory.power_cut(keeps_half=self.keeps_half)
            self._dark = True
            self.restart_soon()
        self.cut_after -= self.cut_after >= 0
        return kept

    async def _act(
        self, function: int, start: int, address: int, count: int, words: list[int], values: Any
    ) -> ExcCodes | None:
        if function in WRITES and not self._write(address, list(values)):
            return ExcCodes.ILLEGAL_VALUE
        known = self._registers()
        for each in range(address, address + count):
            words[each - start] = known.get(each, 0)
        return None

    def _write(self, address: int, values: list[int]) -> bool:
        memory = self.memory
        number = values[0] << 16 | values[1] if len(values) == 2 else -1
        if address == COMMAND and values == [BEGIN]:
            memory.begin()
        elif address == COMMAND and values == [COMMIT]:
            if memory.commit():
                self.restart_soon()
        elif address == SIZE and number >= 0:
            memory.size = number
        elif address == CRC and number >= 0:
            memory.crc = number
        elif address == OFFSET and number >= 0:
            memory.offset = number
        elif address == WINDOW and len(values) <= WINDOW_REGISTERS:
            return self.taken(memory.offset, b"".join(word.to_bytes(2, "big") for word in values))
        else:
            return False
        return True

    def _registers(self) -> dict[int, int]:
        memory = self.memory
        found: dict[int, int] = {}
        for address, length, text in (
            (NAMEPLATE, 8, f"HEARTHGRID {memory.model}"), (NAMEPLATE + 8, 4, memory.model),
            (NAMEPLATE + 16, 8, self.version), (NAMEPLATE + 24, 8, self.serial),
        ):  # fmt: skip
            _place(found, address, text.encode()[: 2 * length].ljust(2 * length, b"\0"))
        for address, value in (
            (ENERGY, self.grid_w & 0xFFFFFFFF), (ENERGY + 2, self.import_wh),
            (ENERGY + 4, self.export_wh), (SIZE, memory.size), (CRC, memory.crc),
            (OFFSET, memory.offset),
        ):  # fmt: skip
            _place(found, address, value.to_bytes(4, "big"))
        found[STATUS] = memory.status
        _place(found, WINDOW, memory.part(memory.offset, 2 * WINDOW_REGISTERS))
        return found


def _place(registers: dict[int, int], address: int, data: bytes) -> None:
    for i in range(0, len(data), 2):
        registers[address + i // 2] = int.from_bytes(data[i : i + 2], "big")


def _file_pdus(meter: FirmwareMeter) -> tuple[type[ModbusPDU], type[ModbusPDU]]:
    """Functions 20 and 21 on a meter's waiting half; pymodbus' own answer with made-up bytes."""

    class Read(ReadFileRecordRequest):
        def decode(self, data: bytes) -> None:  # pymodbus takes the length for bytes here
            self.records = [
                FileRecord(
                    file_number=int.from_bytes(data[i + 1 : i + 3], "big"),
                    record_number=int.from_bytes(data[i + 3 : i + 5], "big"),
                    record_length=2 * int.from_bytes(data[i + 5 : i + 7], "big"),
                )
                for i in range(1, data[0], 7)
            ]

        async def datastore_update(self, context: Any, device_id: int) -> ModbusPDU:
            for record in self.records:
                size = 2 * record.record_length
                record.record_data = meter.memory.part(_start(record), size)
            return ReadFileRecordResponse(
                records=self.records, dev_id=device_id, transaction_id=self.transaction_id
            )

    class Write(WriteFileRecordRequest):
        async def datastore_update(self, context: Any, device_id: int) -> ModbusPDU:
            for record in self.records:
                meter.taken(_start(record), bytes(record.record_data))
            return WriteFileRecordResponse(
                records=self.records, dev_id=device_id, transaction_id=self.transaction_id
            )

    return Read, Write


def _start(record: FileRecord) -> int:
    """The byte of the image that a record begins at; file 1 is the first."""
    return 2 * ((record.file_number - 1) * RECORDS_PER_FILE + record.record_number)
