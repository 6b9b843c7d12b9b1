"""
Writing a file of firmware to a device, as its template says.

The order is such that a cut at any point leaves the old firmware running, or the whole new one:
the file goes into the half of the memory that is not running, each part is read back, and only then
is the device told to try it; it does so only if its own CRC over the whole agrees. What is there
already is not written again, so after a cut the same call goes on where it stopped.

References:
    MODBUS Application Protocol V1.1b3, sections 6.12, 6.14 and 6.15.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Literal

from hem.gateway.decode import decode, encode
from hem.gateway.links import Link
from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.template_firmware import RECORDS_PER_FILE, Firmware

BEGIN_S = 30.0
"""A device may take so long to clear its memory [real s]."""
POLL_S = 0.05
FILLER = b"\xff"
"""What a last part is filled up with; the size says that it does not count."""

Standing = Literal["receiving", "bad", "other"]


class FirmwareWriter:
    """
    Writes files to one device.

    Args:
        facts: the template's section
        link: the connection; its requests take turns with those of polls
        device_id: the unit id
    """

    def __init__(self, facts: Firmware, link: Link, device_id: int) -> None:
        self.facts = facts
        self._link = link
        self._unit = device_id

    async def standing(self) -> Standing:
        """
        What the device says of the file it was given.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        (code,) = await self._link.read(self._unit, self.facts.status, 1)
        known: dict[int, Standing] = {self.facts.receiving: "receiving", self.facts.bad: "bad"}
        return known.get(code, "other")

    async def write(self, image: bytes, told: Callable[[int], None] = lambda _: None) -> None:
        """
        Bring a whole file into the device's waiting memory; `told` how many bytes are there.

        Raises:
            DeviceLostError: call again. DeviceRefusedError: it does not keep what is written.
        """
        fresh = not await self._goes_on(image)
        if fresh:
            await self._begin(image)
        step = self.facts.chunk_bytes
        for start in range(0, len(image), step):
            part = image[start : start + step]
            part += FILLER * (len(part) % 2)
            if fresh or await self._read(start, len(part)) != part:
                await self._write(start, part)
                if await self._read(start, len(part)) != part:
                    raise DeviceRefusedError(f"byte {start}: the device kept something else")
            told(min(start + step, len(image)))

    async def commit(self) -> None:
        """
        Let the device try what it was given. Its answer may be lost: it may be starting.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        await self._link.write(self._unit, self.facts.command, [self.facts.commit])

    async def _goes_on(self, image: bytes) -> bool:
        """Is the device in the middle of taking this very file?"""
        if await self.standing() != "receiving":
            return False
        size = await self._link.read(self._unit, self.facts.size, 2)
        crc = await self._link.read(self._unit, self.facts.crc, 2)
        order = self.facts.order
        announced = decode(size, "u32", order), decode(crc, "u32", order)
        return announced == (len(image), zlib.crc32(image))

    async def _begin(self, image: bytes) -> None:
        await self._write_u32(self.facts.size, len(image))
        await self._write_u32(self.facts.crc, zlib.crc32(image))
        await self._link.write(self._unit, self.facts.command, [self.facts.begin])
        deadline_s = asyncio.get_running_loop().time() + BEGIN_S
        while await self.standing() != "receiving":
            if asyncio.get_running_loop().time() > deadline_s:
                raise DeviceRefusedError("the device does not begin to take firmware")
            await asyncio.sleep(POLL_S)

    async def _write_u32(self, address: int, value: int) -> None:
        await self._link.write(self._unit, address, encode(value, "u32", self.facts.order))

    async def _read(self, start: int, size: int) -> bytes:
        if self.facts.file is not None:
            return await self._link.read_file(self._unit, *self._record(start), size)
        assert self.facts.offset is not None and self.facts.window is not None
        await self._write_u32(self.facts.offset, start)
        words = await self._link.read(self._unit, self.facts.window, size // 2)
        return b"".join(word.to_bytes(2, "big") for word in words)

    async def _write(self, start: int, part: bytes) -> None:
        if self.facts.file is not None:
            await self._link.write_file(self._unit, *self._record(start), part)
            return
        assert self.facts.offset is not None and self.facts.window is not None
        await self._write_u32(self.facts.offset, start)
        words = [int.from_bytes(part[i : i + 2], "big") for i in range(0, len(part), 2)]
        await self._link.write(self._unit, self.facts.window, words)

    def _record(self, start: int) -> tuple[int, int]:
        """File and record of a byte."""
        assert self.facts.file is not None
        file, record = divmod(start // 2, RECORDS_PER_FILE)
        return self.facts.file + file, record
