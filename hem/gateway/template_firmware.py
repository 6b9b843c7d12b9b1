"""
What a template may say of firmware: where a file is put, and how the device is told.

Every device that we can write has the same five registers and one of two ways for the bytes:

    size, crc (u32)    of the file that comes; written before it
    command            `begin` clears the waiting half of the memory, `commit` tries what is in it
    status             `receiving`, `bad` (the file was not taken), anything else: nothing goes on
    file-records       function 21 writes records of consecutive files, 20 reads them
    registers          `offset` (u32) says which part of the file a window of registers shows

There is no standard for this; a template says what its maker published. A device belongs here only
if it goes on running its old firmware until a whole file passed its own check.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hem.gateway.decode import WordOrder

REGISTER_MAX = 0xFFFF
RECORDS_PER_FILE = 10_000
"""Modbus application protocol 6.14: records 0 to 9999."""
RECORD_REGISTERS_MAX = 120
"""One record fills a request (6.15: 251 bytes with 7 of header)."""
WINDOW_REGISTERS_MAX = 123

Address = Annotated[int, Field(ge=0, le=REGISTER_MAX)]
Code = Annotated[int, Field(ge=0, le=REGISTER_MAX)]


class Firmware(BaseModel):
    """How a device takes firmware. Addresses are those of holding registers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["file-records", "registers"]
    command: Address
    status: Address
    size: Address
    """Bytes of the file, two registers."""
    crc: Address
    """CRC-32 of the file (that of zlib and IEEE 802.3), two registers."""
    order: WordOrder = "big"
    """Of the two words of `size`, `crc` and `offset`."""
    begin: Code = 1
    commit: Code = 2
    receiving: Code = 1
    bad: Code = 2
    offset: Address | None = None
    """Of `registers`: the byte that the window begins at, two registers."""
    window: Address | None = None
    """Of `registers`: the first register of the window."""
    file: int | None = Field(default=None, ge=1, le=REGISTER_MAX)
    """Of `file-records`: number of the first file; record n of it holds register n."""
    chunk_registers: int = Field(default=50, ge=1, le=WINDOW_REGISTERS_MAX)
    """Registers in one request."""
    restart_s: float = Field(default=60.0, gt=0, le=3_600)
    """So long the device may be away after `commit` [real s]."""

    @property
    def chunk_bytes(self) -> int:
        """Bytes in one request."""
        return 2 * self.chunk_registers

    @model_validator(mode="after")
    def _whole(self) -> Firmware:
        window = (self.offset, self.window)
        if self.by == "registers" and (None in window or self.file is not None):
            raise ValueError("'registers' needs offset and window, and has no file")
        if self.by == "file-records" and (self.file is None or window != (None, None)):
            raise ValueError("'file-records' needs file, and has no offset or window")
        if self.by == "file-records" and self.chunk_registers > RECORD_REGISTERS_MAX:
            raise ValueError(f"chunk_registers of file records: at most {RECORD_REGISTERS_MAX}")
        if self.by == "file-records" and RECORDS_PER_FILE % self.chunk_registers:
            raise ValueError("chunk_registers has to divide 10000: a chunk lies in one file")
        if self.window is not None and self.window + self.chunk_registers - 1 > REGISTER_MAX:
            raise ValueError("the window ends past the last register")
        if self.begin == self.commit or self.receiving == self.bad:
            raise ValueError("begin and commit, receiving and bad have to differ")
        return self

    def covers(self, address: int, count: int) -> bool:
        """Does a write touch these registers? Nobody but us may."""
        spans = [(self.command, 1), (self.status, 1), (self.size, 2), (self.crc, 2)]
        if self.offset is not None and self.window is not None:
            spans += [(self.offset, 2), (self.window, self.chunk_registers)]
        return any(address < first + size and first < address + count for first, size in spans)
