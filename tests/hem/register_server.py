"""A Modbus TCP server with the registers of a template's fixture, and no others."""

from __future__ import annotations

import logging
import tomllib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from typing import Any, cast

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from hem.gateway.template import FOLDER, Template, load_template

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)

READ_HOLDING, READ_INPUT, WRITE_ONE, WRITE = 3, 4, 6, 16
IN_A_GAP = 0xDEAD
"""What an undefined register says that is read between two others."""


def fixture(template: str) -> dict[str, Any]:
    """The fixture that a template ships with."""
    file = resources.files(FOLDER) / "fixtures" / f"{template}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


@dataclass
class Registers:
    """One device's registers; tests look into them and change them."""

    everywhere = False
    """Whether `act` answers for all addresses, not only for those between two registers."""

    tables: dict[str, dict[int, int]] = field(default_factory=lambda: {"holding": {}, "input": {}})
    write_only: set[int] = field(default_factory=set)
    deaf: set[int] = field(default_factory=set)
    """Holding registers that take a write and keep what they have."""
    writes: list[tuple[int, list[int]]] = field(default_factory=list)

    def put(self, table: str, address: int, words: str) -> None:
        """Set registers from a line of hexadecimal words."""
        for i, word in enumerate(words.split()):
            self.tables[table][address + i] = int(word, 16)

    def get(self, address: int, count: int) -> str:
        """Holding registers as a line of hexadecimal words."""
        found = (self.tables["holding"][address + i] for i in range(count))
        return " ".join(f"{word:04X}" for word in found)

    def fill(self, gap: int) -> None:
        """Undefined registers between two that are at most `gap` apart can be read."""
        for table in self.tables.values():
            known = sorted(table)
            for low, high in pairwise(known):
                if high - low <= gap + 1:
                    for address in range(low + 1, high):
                        table[address] = IN_A_GAP

    async def act(
        self, function: int, start: int, address: int, count: int, words: list[int], values: Any
    ) -> ExcCodes | None:
        """Answer a request."""
        table = self.tables["input" if function == READ_INPUT else "holding"]
        wanted = range(address, address + count)
        if any(each not in table for each in wanted):
            return ExcCodes.ILLEGAL_ADDRESS
        if function in (WRITE_ONE, WRITE):
            self.writes.append((address, list(values)))
            for each, value in zip(wanted, values, strict=True):
                if each not in self.deaf:
                    table[each] = value
        elif self.write_only.intersection(wanted) and function == READ_HOLDING:
            return ExcCodes.ILLEGAL_ADDRESS
        for each in wanted:
            words[each - start] = table[each]
        return None


def devices_of(template: Template) -> dict[int, Registers]:
    """The registers of a template's fixture, by unit id."""
    found: dict[int, Registers] = {}
    for row in fixture(template.id)["registers"]:
        device = found.setdefault(row.get("device_id", template.device_id), Registers())
        device.put(row["table"], row["address"], row["words"])
        if row.get("write_only"):
            device.write_only.add(row["address"])
    for device in found.values():
        device.fill(template.gap)
    return found


@asynccontextmanager
async def served(devices: dict[int, Registers]):
    """Serve them; gives the port."""
    bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
    sims = [
        SimDevice(
            unit,
            (bits, bits, _block(registers, "holding"), _block(registers, "input")),
            action=registers.act,
        )
        for unit, registers in devices.items()
    ]
    server = ModbusTcpServer(sims, address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    try:
        yield cast(Any, server.transport).sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


def _block(registers: Registers, table: str) -> list[SimData]:
    """From the first register to the last: all 65,536 would take half a second."""
    known = registers.tables[table] or {0: 0}
    if registers.everywhere:
        known = {0: 0, 0xFFFF: 0}
    first = min(known)
    size = max(known) - first + 1
    return [SimData(first, values=[0] * size, datatype=DataType.REGISTERS)]


@asynccontextmanager
async def device_of(identity: str):
    """A template's device: the template, its registers by unit id, and the port."""
    template = load_template(identity)
    devices = devices_of(template)
    async with served(devices) as port:
        yield template, devices, port
