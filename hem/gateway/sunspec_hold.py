"""
How a SunSpec battery's power is held: what all ways have in common.

There are two, both with a lease that the device itself ends: model 124
(hem/gateway/sunspec_storage.py) and model 704 (hem/gateway/sunspec_power.py). Each is a few
registers that are written in order and read back, and a switch among them that is 0 in the device's
own mode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from hem.gateway.modbus import DeviceError, DeviceRefusedError
from hem.gateway.sunspec import ADDRESS_MAX, SCALE_MAX, Block, Snapshot, model_points

Standing = Literal["neutral", "ours", "foreign"]
"""Whose power a battery holds."""
Words = Mapping[str, Sequence[int]]
"""Registers from a point on, by its name."""


class Wire(Protocol):
    """Holding registers of a connection."""

    async def read(self, device_id: int, address: int, count: int) -> list[int]:
        """Read them."""
        ...

    async def write(self, device_id: int, address: int, values: list[int]) -> None:
        """Write them in one request."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a battery can do, and what flows beside it. All but `pv_w` are above 0."""

    max_charge_w: int
    max_discharge_w: int
    pv_w: int = 0
    """What PV gives on the DC side of the same inverter."""

    def within(self, power_w: int) -> int:
        """The nearest power that the battery can have [W], + discharge."""
        return max(-self.max_charge_w, min(self.max_discharge_w, power_w))


class Control(Protocol):
    """A way to hold a battery's power."""

    def find(self, chain: Sequence[Block]) -> bool:
        """Is its model there, long enough and within what Modbus can address?"""
        ...

    def see(self, snapshot: Snapshot) -> Standing:
        """
        Take what setpoints are worked out from; say whose power the battery holds.

        Raises:
            DeviceRefusedError: something needed is not available.
        """
        ...

    async def hold(self, power_w: int, lease_s: int, bounds: Bounds) -> int:
        """
        Fix the battery's power for `lease_s` real seconds.

        Returns:
            The power that will flow (within the bounds) [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs, or the device has
                no reversion timer.
        """
        ...

    async def restore_neutral(self) -> None:
        """
        End the lease. Writes only where the device is not in its own mode yet.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...

    async def is_neutral(self) -> bool:
        """
        Is it in its own mode?

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        ...


class HoldModel:
    """
    The registers of such a model, by the names of its points.

    Args:
        link: the connection
        device_id: the unit id on it
    """

    model: ClassVar[int]
    switch: ClassVar[str]
    last: ClassVar[str]
    """The last point that is read back; the switch is the first."""
    end: ClassVar[str]
    """The last point that is needed; a device may have an older, shorter version of the model."""
    off: ClassVar[tuple[int, ...]]
    """What the switch says in the device's own mode."""

    def __init__(self, link: Wire, device_id: int) -> None:
        self._link = link
        self._device_id = device_id
        self._block: Block | None = None
        self.commanded: Words | None = None

    def find(self, chain: Sequence[Block]) -> bool:
        """Is the model there, long enough and within what Modbus can address?"""
        end = model_points(self.model)[self.end]
        fit = (
            block
            for block in chain
            if block.model == self.model
            and end.offset + end.size <= block.size
            and block.address + block.size <= ADDRESS_MAX
        )
        self._block = next(fit, None)
        return self._block is not None

    async def restore_neutral(self) -> None:
        """
        End the lease. Writes only where the device is not in its own mode yet, and reads back.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        self.commanded = None
        if await self.is_neutral():
            return
        await self.write(self.switch, [0])
        if not await self.is_neutral():
            raise DeviceRefusedError("the battery took the write and is not in its own mode")

    async def is_neutral(self) -> bool:
        """
        Is it in its own mode?

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        return self._is_off(await self.look())

    @asynccontextmanager
    async def commanding(self) -> AsyncIterator[None]:
        """Half a setpoint is nobody's: where the block fails the battery is given back."""
        self.commanded = None
        try:
            yield
        except DeviceError:
            with suppress(DeviceError):  # the first reason counts
                await self.restore_neutral()
            raise

    def stands(self, words: Sequence[int]) -> Standing:
        """Whose power the battery holds, by the registers of the model."""
        if self._is_off(words):
            return "neutral"
        mine = self.commanded
        return "ours" if mine is not None and self.shows(words, mine) else "foreign"

    def _is_off(self, words: Sequence[int]) -> bool:
        return any(self.at(words, self.switch) == [value] for value in self.off)

    def shows(self, words: Sequence[int], wanted: Words) -> bool:
        """Do the registers of the model say that?"""
        return all(
            self.at(words, name, len(values)) == list(values) for name, values in wanted.items()
        )

    def at(self, words: Sequence[int], name: str, count: int = 1) -> list[int]:
        """So many registers of the model from a point on."""
        start = model_points(self.model)[name].offset
        return list(words[start : start + count])

    async def look(self) -> list[int]:
        """The registers from the switch to the last point, each in its place of the model."""
        points = model_points(self.model)
        start, last = points[self.switch].offset, points[self.last]
        count = last.offset + last.size - start
        words = await self._link.read(self._device_id, self._address + start, count)
        return [*[0] * start, *words]

    async def write(self, name: str, values: Sequence[int]) -> None:
        """Registers from a point on, in one request. Raises DeviceLostError, DeviceRefusedError."""
        address = self._address + model_points(self.model)[name].offset
        await self._link.write(self._device_id, address, list(values))

    @property
    def _address(self) -> int:
        assert self._block is not None, "found before it is used"
        return self._block.address


def first_positive(snapshot: Snapshot, *names: str) -> int:
    """The first of `names` that is above 0, as a whole number; 0 where none is."""
    numbers = (int(snapshot.number(name) or 0) for name in names)
    return next((number for number in numbers if number > 0), 0)


def scale_of(snapshot: Snapshot, name: str) -> int:
    """A scale factor; 0 where it is missing or no home needs it."""
    scale = snapshot.number(name)
    return int(scale) if scale is not None and abs(scale) <= SCALE_MAX else 0
