"""
SunSpec devices: find the models, read their points.

A SunSpec device shows the marker "SunS" at 40000, 50000 or 0, then a chain of models, each with its
id and length, ended by 0xFFFF (SunSpec Device Information Model Specification, section 6). Where a
point lies, its type, its scale factor and its not-available value come from the definitions in
pysunspec2. A point is named `model:point`, e.g. `203:W`; a list of names is read as fall-backs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Protocol

from sunspec2 import device as sunspec
from sunspec2 import mb

from hem.gateway.modbus import REGISTERS_MAX, DeviceRefusedError

BASE_ADDRESSES = (40_000, 50_000, 0)
MARKER = [0x5375, 0x6E53]  # "SunS"
END = 0xFFFF
MODELS_MAX = 64
MODEL_REGISTERS_MAX = 1_000
"""A longer model is left out: one poll must not become hundreds of requests."""
GROUPS_MAX = 8
"""Most groups of a kind that are looked at: no home's device has more DC ports."""
ADDRESS_MAX = 0xFFFF
SCALE_MAX = 10
NUMBER_MAX = 10**12
"""A terawatt, or a terawatt-hour: no home has it, and sums of such numbers still fit anywhere."""

# Definitions come from the package only, never from the folder we happen to run in.
sunspec.set_model_defs_path([sunspec.models_dir])


class Registers(Protocol):
    """Something to read registers from."""

    async def read(self, device_id: int, address: int, count: int) -> list[int]:
        """Holding registers."""
        ...


@dataclass(frozen=True, slots=True)
class Point:
    """Where a point of a model lies and how it is written."""

    offset: int
    """Registers after the model's id."""
    size: int
    """Registers."""
    type: str
    scale: str | int | None
    """Name of the point with the power of ten, the power itself, or none."""


@dataclass(frozen=True, slots=True)
class Block:
    """A model found in a device."""

    model: int
    address: int
    """Address of the model's id register."""
    size: int
    """Registers, with id and length."""


@cache
def model_points(model: int) -> Mapping[str, Point]:
    """
    The points of a model's fixed block by name, then those of its groups as `group.number.point`.

    Groups whose count the device says are there up to `GROUPS_MAX`; groups within groups are not.

    Raises:
        DeviceRefusedError: no definition of this model.
    """
    try:
        definition = sunspec.get_model_def(model)
    except Exception as error:
        raise DeviceRefusedError(f"no definition of SunSpec model {model}: {error}") from None
    points: dict[str, Point] = {}
    offset = _lay(points, "", definition["group"]["points"], 0)
    for group in definition["group"].get("groups", []):
        if "groups" in group:
            break
        repeats = group.get("count", 1) != 1
        for number in range(GROUPS_MAX if repeats else 1):
            offset = _lay(points, f"{group['name']}.{number}.", group["points"], offset)
        if repeats:
            break  # where the next one begins depends on the device
    return points


def _lay(points: dict[str, Point], prefix: str, definitions: Iterable[Any], offset: int) -> int:
    """Lay points one after the other from `offset` on; where they end."""
    for point in definitions:
        size = int(point["size"])
        points[prefix + point["name"]] = Point(offset, size, point["type"], point.get("sf"))
        offset += size
    return offset


class Snapshot:
    """The registers of some models, read together."""

    def __init__(self, models: Mapping[int, Sequence[int]]) -> None:
        self._models = models

    def number(self, *names: str) -> Decimal | None:
        """
        The scaled value of the first of `names` that this device has, None where it has none.

        A zero accumulator counts as zero: a new meter has used nothing. What is larger than
        `NUMBER_MAX` is not a measurement, and not available.
        """
        for name in names:
            raw = self._raw(name)
            if isinstance(raw, int | float) and math.isfinite(raw):
                value = Decimal(raw).scaleb(self._scale(name))
                if abs(value) <= NUMBER_MAX:
                    return value
        return None

    def registers(self, model: int) -> Sequence[int]:
        """A model as it was read; empty where it is not there."""
        return self._models.get(model, ())

    def text(self, name: str) -> str:
        """A string point, empty where it is missing."""
        raw = self._raw(name)
        return raw.strip("\0 ") if isinstance(raw, str) else ""

    def _scale(self, name: str) -> int:
        model, point = _split(name)
        scale = model_points(model)[point].scale
        if isinstance(scale, str):
            scale = self._raw(f"{model}:{scale}")
        if not isinstance(scale, int) or abs(scale) > SCALE_MAX:
            return 0  # a missing factor is one (specification, section 4.2.8)
        return scale

    def _raw(self, name: str) -> Any:
        model, point_name = _split(name)
        registers = self._models.get(model)
        if registers is None:
            return None
        point = model_points(model)[point_name]
        part = registers[point.offset : point.offset + point.size]
        if len(part) < point.size:
            return None  # an older, shorter version of the model
        info = mb.point_type_info[point.type]
        data = b"".join(register.to_bytes(2, "big") for register in part)
        try:
            value = info.data_to(data)
        except (ValueError, UnicodeDecodeError):
            return None
        if point.type.startswith("acc"):
            return value
        return value if info.is_impl(value) else None


async def discover(link: Registers, device_id: int) -> list[Block]:
    """
    Walk the chain of models.

    Raises:
        DeviceLostError: no answer.
        DeviceRefusedError: no marker at any base address, or a chain without end.
    """
    base = await _find_base(link, device_id)
    blocks: list[Block] = []
    address = base + len(MARKER)
    while len(blocks) < MODELS_MAX and address < ADDRESS_MAX:
        model, length = await link.read(device_id, address, 2)
        if model == END:
            return blocks
        blocks.append(Block(model, address, length + 2))
        address += length + 2
    raise DeviceRefusedError("the chain of SunSpec models has no end")


async def read(
    link: Registers, device_id: int, chain: Sequence[Block], models: Iterable[int]
) -> Snapshot:
    """
    Read whole models with as few requests as Modbus allows; models not in the chain are left out.

    Raises:
        DeviceLostError, DeviceRefusedError.
    """
    wanted = set(models)
    found: dict[int, Sequence[int]] = {}
    run: list[Block] = []
    for block in [*chain, None]:
        joins = (
            block is not None
            and block.model in wanted
            and block.size <= MODEL_REGISTERS_MAX
            and block.address + block.size <= ADDRESS_MAX
            and block.model not in found
            and all(block.model != other.model for other in run)
        )
        if run and (not joins or not _fits(run, block)):
            found.update(await _read_run(link, device_id, run))
            run = []
        if joins and block is not None:
            run.append(block)
    return Snapshot(found)


def _fits(run: list[Block], block: Block | None) -> bool:
    last = run[-1]
    return (
        block is not None
        and block.address == last.address + last.size
        and block.address + block.size - run[0].address <= REGISTERS_MAX
    )


async def _read_run(link: Registers, device_id: int, run: list[Block]) -> dict[int, Sequence[int]]:
    start, end = run[0].address, run[-1].address + run[-1].size
    registers: list[int] = []
    for address in range(start, end, REGISTERS_MAX):
        count = min(REGISTERS_MAX, end - address)
        registers += await link.read(device_id, address, count)
    return {
        block.model: registers[block.address - start : block.address - start + block.size]
        for block in run
    }


async def _find_base(link: Registers, device_id: int) -> int:
    for base in BASE_ADDRESSES:
        try:
            if await link.read(device_id, base, len(MARKER)) == MARKER:
                return base
        except DeviceRefusedError:
            continue
    raise DeviceRefusedError("not a SunSpec device: no marker at 40000, 50000 or 0")


def _split(name: str) -> tuple[int, str]:
    model, _, point = name.partition(":")
    return int(model), point
