"""
A device that a template describes: its registers read, its battery held and given back.

Points that lie side by side are read in one request. Registers that only bigger products have are
asked for on their own, and not again once the device refused them. What is not available, not a
number or not plausible is None.

A battery is held by writing the template's registers in order and reading them back; it is given
back by writing the neutral values in the reverse order, so that the switch that was thrown last is
thrown back first. Registers in flash are written only when they change and within a daily budget
(hem/gateway/write_budget.py); a battery is given back whatever the budget says. Where the device
has no timer of its own, whoever wrote has to come back; `reversion` says so.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Any, Literal, cast

from hem.gateway.decode import NumberType, bits, decode, encode, text
from hem.gateway.firmware_writer import FirmwareWriter
from hem.gateway.links import Link, Table
from hem.gateway.modbus import REGISTERS_MAX, DeviceError, DeviceRefusedError
from hem.gateway.source import Sample
from hem.gateway.sunspec import NUMBER_MAX, SCALE_MAX
from hem.gateway.template import (
    DETAILS,
    NEEDS,
    QUANTITIES,
    SAMPLE_NAMES,
    UNITS,
    Hold,
    Point,
    Scalar,
    Template,
    Value,
    Write,
)
from hem.gateway.write_budget import Verdict, WriteBudget
from runtime.ports import Store
from runtime.store import MemoryStore

POWER_MAX_W = 10_000_000
PERMILLE_MAX = 1_000
LIMITS = ("max_charge_w", "max_discharge_w")

Standing = Literal["neutral", "ours", "foreign"]
"""Whose power a battery holds."""
Writes = tuple[tuple[int, tuple[int, ...]], ...]
"""Addresses, each with the registers from there on."""
Key = tuple[int, Table, int]
"""Unit id, table, address."""
Numbers = dict[str, Decimal | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Registers that are read in one request."""

    device_id: int
    table: Table
    address: int
    count: int
    optional: bool


class TemplateSource:
    """
    A device read, and where it is a battery held, as its template says.

    Args:
        template: what the registers mean
        settings: the template's parameters (`Template.settings`)
        link: the connection
        device_id: the unit id on it
        use: the capabilities wanted; all of the template's where none is named
        budget: the writes that flash registers have left; forgotten with us if not given
        now_ms: UTC, for the budget
        monotonic_s: for the device's own period [real s]
    """

    def __init__(
        self,
        template: Template,
        settings: Mapping[str, Scalar],
        link: Link,
        device_id: int,
        use: Collection[str] = (),
        budget: WriteBudget | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.template = template
        self._settings = settings
        self._link = link
        self.device_id = device_id
        self._capabilities = _capabilities(template, use)
        self._points = template.read_points(settings)
        self.hold_facts: Hold | None = template.hold if "battery" in self._capabilities else None
        self._batches = plan(self._spans(), template.gap)
        self._refused: set[Batch] = set()
        self._last: Sample | None = None
        self._pv_w = 0
        self._words: dict[Key, int] = {}
        self._held: dict[str, list[int]] | None = None
        self._given_back = False
        self._budget = budget or new_budget(MemoryStore(), template.id, template.hold)
        self._now_ms, self._monotonic_s = now_ms, monotonic_s
        self._rewind_at_s = -math.inf

    @property
    def capabilities(self) -> frozenset[str]:
        """What of the template is in use."""
        return self._capabilities

    @property
    def standing(self) -> Standing:
        """Whose power the battery held when it was last read."""
        if self.hold_facts is None:
            return "neutral"
        tells = [write for write in self.hold_facts.write if write.tells]
        if not tells:
            return "ours" if self._held else "neutral" if self._given_back else "foreign"
        if all(self._shows(write, self._encoded(write, write.neutral, {})) for write in tells):
            return "neutral"
        held = self._held
        ours = held is not None and all(
            self._shows(write, held[write.name])
            for write in self.hold_facts.write
            if write.readback and write.name in held and not _counts_down(write)
        )
        return "ours" if ours else "foreign"

    async def read(self) -> Sample:
        """
        Look at the device now.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: it refuses a register it should have.
        """
        words: dict[Key, int] = {}
        try:
            for batch in self._batches:
                if batch not in self._refused:
                    await self._read_batch(batch, words)
        except Exception:
            self._refused.clear()  # when it is back it may be another
            raise
        self._words = words
        self._last = self._sample(self._numbers(words), words)
        return self._last

    def close(self) -> None:
        """Nothing of our own: the connection is shared."""

    async def hold(self, power_w: int, lease_s: int) -> int:
        """
        Hold the battery's power; see `hold_facts.reversion` for who ends the lease.

        Returns:
            The power that will flow, within the limits [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs, the limits are
                not known yet, or the budget of flash writes is used up.
        """
        facts, known = self._control(), self._last
        if known is None or known.max_charge_w is None or known.max_discharge_w is None:
            raise DeviceRefusedError("the battery's limits are not known yet")
        power_w = max(-known.max_charge_w, min(known.max_discharge_w, power_w))
        quantities = self._quantities(facts, power_w, lease_s, known)
        wanted = {
            write.name: self._encoded(write, value, quantities)
            for write in facts.write
            if (value := write.value(power_w)) is not None
        }
        self._held, self._given_back = None, False
        now_s = self._monotonic_s()
        rewind = facts.rewind_s is not None and now_s >= self._rewind_at_s
        try:
            for writes in _requests(facts.write, wanted):
                anew = rewind and any(write.rewinds for write in writes)
                await self._write(writes, wanted, spare=True, anew=anew)
            await self._confirm(facts.write, wanted)
        except DeviceError:
            with suppress(DeviceError):  # half a setpoint is nobody's; the first reason counts
                await self.restore_neutral()
            raise
        self._held = wanted
        if rewind and facts.rewind_s is not None:
            self._rewind_at_s = now_s + facts.rewind_s
        return power_w

    async def restore_neutral(self) -> None:
        """
        Give the battery back to its own mode, unless it is there.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        self._rewind_at_s = -math.inf
        self._held = None  # also where it does not answer: what it shows later is not ours
        if await self.is_neutral():
            return
        wanted = self._neutral()
        for writes in reversed(_requests(self._control().write, wanted)):
            await self._write(writes, wanted, spare=False)
        await self._confirm([write for write in self._control().write if write.tells], wanted)
        self._given_back = True

    async def is_neutral(self) -> bool:
        """
        Is the battery in its own mode? Without a register that tells: did we give it back?

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        tells = [write for write in self._control().write if write.tells]
        if not tells:
            return self._given_back
        for write in tells:
            neutral = self._encoded(write, write.neutral, self._neutral_quantities())
            if await self._read_back(write) != neutral:
                return False
        return True

    def admits_foreign(self, values: Sequence[int]) -> bool:
        """
        May somebody else write these values to the device? Where it keeps setpoints in flash every
        such write is counted: which of its other registers lie there is not known.
        """
        facts = self.template.hold
        if facts is None or not any(write.flash for write in facts.write):
            return True
        try:
            return self._budget.admit(values, None, self._now_ms()) is Verdict.WRITE
        except sqlite3.Error:  # what cannot be counted is not allowed
            return False

    def firmware_covers(self, address: int, count: int) -> bool:
        """Do these registers belong to what the device takes firmware by?"""
        firmware = self.template.firmware
        return firmware is not None and firmware.covers(address, count)

    def firmware_writer(self) -> FirmwareWriter | None:
        """Who writes firmware to this device; None where the template does not say how."""
        if self.template.firmware is None:
            return None
        return FirmwareWriter(self.template.firmware, self._link, self.device_id)

    def neutral_writes(self) -> Writes:
        """
        What gives the battery back, for whoever has to do it in our place.

        Raises:
            DeviceRefusedError: the limits that are restored are not known yet.
        """
        wanted = self._neutral()
        return tuple(
            (writes[0].address, tuple(word for write in writes for word in wanted[write.name]))
            for writes in reversed(_requests(self._control().write, wanted))
        )

    def neutral_proof(self) -> Writes:
        """What the registers say once it is given back; none where they cannot be read."""
        wanted = self._neutral()
        tells = [write for write in self._control().write if write.tells]
        return tuple((write.address, tuple(wanted[write.name])) for write in tells)

    def _neutral(self) -> dict[str, list[int]]:
        quantities = self._neutral_quantities()
        return {
            write.name: self._encoded(write, write.neutral, quantities)
            for write in self._control().write
            if write.neutral is not None
        }

    def _control(self) -> Hold:
        if self.hold_facts is None:
            raise DeviceRefusedError("this device has no registers to hold its battery by")
        return self.hold_facts

    def _spans(self) -> list[Batch]:
        spans = [Batch(self._unit(p), p.table, p.address, p.size, p.optional) for p in self._points]
        if self.hold_facts is not None:
            spans += [
                Batch(self.device_id, "holding", write.address, write.size, False)
                for write in self.hold_facts.write
                if write.readback
            ]
        return spans

    def _unit(self, point: Point) -> int:
        if point.device_id is None:
            return self.device_id
        return int(self._settings[point.device_id])

    async def _read_batch(self, batch: Batch, words: dict[Key, int]) -> None:
        unit, table, first = batch.device_id, batch.table, batch.address
        try:
            found = await self._link.read(unit, first, batch.count, table)
        except DeviceRefusedError:
            if not batch.optional:
                raise
            self._refused.add(batch)
            return
        words.update({(unit, table, first + i): word for i, word in enumerate(found)})

    def _numbers(self, words: Mapping[Key, int]) -> Numbers:
        """Every point and sum, in W, Wh and permille; raw ones as they are."""
        raw = {p.name: self._raw(p, words) for p in self._points if p.type != "string"}
        numbers: Numbers = {
            p.name: scaled(p, raw[p.name], raw) for p in self._points if p.type != "string"
        }
        for each in self.template.sums:
            parts = [(name, 1) for name in each.add] + [(name, -1) for name in each.subtract]
            known = [
                value * sign for name, sign in parts if (value := numbers.get(name)) is not None
            ]
            complete = len(known) == len(parts) or (each.missing == "zero" and known)
            numbers[each.name] = sum(known, Decimal(0)) if complete else None
        return numbers

    def _raw(self, point: Point, words: Mapping[Key, int]) -> int | float | None:
        found = self._found(point, words)
        if found is None or bits(found, point.order) in point.na:
            return None
        return decode(found, cast(NumberType, point.type), point.order)

    def _found(self, point: Point, words: Mapping[Key, int]) -> list[int] | None:
        unit = self._unit(point)
        keys = [(unit, point.table, point.address + i) for i in range(point.size)]
        return [words[key] for key in keys] if all(key in words for key in keys) else None

    def _sample(self, numbers: Numbers, words: Mapping[Key, int]) -> Sample:
        values: dict[str, int | None] = {}
        for name in SAMPLE_NAMES:
            number, setting = numbers.get(name), self._settings.get(name)
            if setting is not None and (number is None or name in LIMITS):
                chosen = Decimal(str(setting))  # a limit is the owner's to lower
                number = chosen if number is None else min(chosen, number)
            values[name] = plausible(name, number)
        self._pv_w = values["pv_w"] or 0
        used = {name for capability in self._capabilities for name in NEEDS[capability]}
        details = {"vendor": self.template.vendor, "model": self.template.products[0]}
        for point in self._points:
            found = self._found(point, words) if point.type == "string" else None
            if found and text(found):
                details[point.name] = text(found)
        return Sample(
            **cast(Any, {name: value for name, value in values.items() if name in used}),
            details={name: details.get(name, "") for name in DETAILS},
        )

    def _quantities(
        self, facts: Hold, power_w: int, lease_s: int, known: Sample
    ) -> dict[str, Decimal]:
        ac_w = power_w + self._pv_w if facts.sets == "ac" else power_w
        found = {
            "power_w": ac_w,
            "charge_w": max(0, -power_w),
            "discharge_w": max(0, power_w),
            "magnitude_w": abs(power_w),
            "lease_s": lease_s,
            "max_charge_w": known.max_charge_w or 0,
            "max_discharge_w": known.max_discharge_w or 0,
        }
        assert tuple(found) == QUANTITIES
        return {name: Decimal(value) for name, value in found.items()}

    def _neutral_quantities(self) -> dict[str, Decimal]:
        known = self._last
        limits = {name: getattr(known, name) for name in LIMITS} if known is not None else {}
        return {name: Decimal(value) for name, value in limits.items() if value is not None}

    def _encoded(
        self, write: Write, value: Value | None, quantities: Mapping[str, Decimal]
    ) -> list[int]:
        """
        The registers for a value.

        Raises:
            DeviceRefusedError: it is not known yet, or does not fit.
        """
        if isinstance(value, str):
            known = quantities.get(value)
            if known is None and value in self._settings:
                known = Decimal(str(self._settings[value]))
            if known is None:
                raise DeviceRefusedError(f"{write.name}: {value} is not known yet")
            return encoded(write, known)
        assert value is not None, write.name
        return _encode(write, Decimal(value))  # a plain number is what stands in the register

    async def _write(
        self,
        writes: Sequence[Write],
        wanted: Mapping[str, list[int]],
        *,
        spare: bool,
        anew: bool = False,
    ) -> None:
        """Write neighbours in one request; `spare` flash, but where the write itself counts."""
        words = [word for write in writes for word in wanted[write.name]]
        if any(write.flash for write in writes):
            known = not anew and all(write.readback for write in writes)
            seen = [word for w in writes for word in await self._read_back(w)] if known else None
            verdict = self._admit(words, seen, spare=spare)
            if verdict is Verdict.UNCHANGED:
                return
            if verdict is Verdict.SPENT and spare:
                raise DeviceRefusedError(
                    "the day's writes to the battery's memory are used up; it stays in its own mode"
                )
        await self._link.write(self.device_id, writes[0].address, words)

    def _admit(self, words: list[int], seen: list[int] | None, *, spare: bool) -> Verdict:
        """A full disk counts no writes: it refuses setpoints, and still gives the battery back."""
        try:
            return self._budget.admit(words, seen, self._now_ms(), neutral=not spare)
        except sqlite3.Error as error:
            if spare:
                raise DeviceRefusedError(f"writes cannot be counted: {error}") from None
            return Verdict.WRITE

    async def _confirm(self, writes: Iterable[Write], wanted: Mapping[str, list[int]]) -> None:
        for write in writes:
            if not write.readback or write.name not in wanted or _counts_down(write):
                continue
            seen = await self._read_back(write)
            if seen != wanted[write.name]:
                raise DeviceRefusedError(
                    f"the battery did not take the setpoint: {write.name} is"
                    f" {_hex(seen)} after {_hex(wanted[write.name])} was written"
                )

    async def _read_back(self, write: Write) -> list[int]:
        found = await self._link.read(self.device_id, write.address, write.size, "holding")
        for i, word in enumerate(found):
            self._words[self.device_id, "holding", write.address + i] = word
        return found

    def _shows(self, write: Write, wanted: list[int]) -> bool:
        keys = [(self.device_id, "holding", write.address + i) for i in range(write.size)]
        return [self._words.get(cast(Key, key)) for key in keys] == wanted


def new_budget(store: Store, device: str, hold: Hold | None) -> WriteBudget:
    """The writes of a device with these facts; an eighth of them is kept to give it back."""
    per_day = hold.writes_per_day if hold is not None else 10
    return WriteBudget(store, device, per_day, per_day // 8)


def plan(spans: Iterable[Batch], gap: int) -> list[Batch]:
    """Join what lies side by side, or at most `gap` registers apart; optional ones stay alone."""
    batches: list[Batch] = []
    ordered = sorted(set(spans), key=lambda s: (s.optional, s.device_id, s.table, s.address))
    for span in ordered:
        last = batches[-1] if batches else None
        if last is not None and _joins(last, span, gap):
            end = max(last.address + last.count, span.address + span.count)
            count = end - last.address
            batches[-1] = Batch(last.device_id, last.table, last.address, count, last.optional)
        else:
            batches.append(span)
    return batches


def scaled(
    point: Point, raw: int | float | None, others: Mapping[str, int | float | None]
) -> Decimal | None:
    """A raw register as a value in W, Wh or permille; None where it is not plausible."""
    if raw is None:
        return None
    value = Decimal(raw) * point.scale * point.sign
    if point.scale_register is not None:
        power = others.get(point.scale_register)
        if not isinstance(power, int) or abs(power) > SCALE_MAX:
            return None
        value = value.scaleb(power)
    turn = point.negative_when
    if turn is not None:
        state = others.get(turn.point)
        if state is None:
            return None
        if int(state) & turn.mask == turn.equals:
            value = -abs(value)
    low, high = point.min, point.max
    if (low is not None and value < low) or (high is not None and value > high):
        return None
    value *= UNITS[point.unit][1]
    return value if abs(value) <= NUMBER_MAX else None


def plausible(name: str, value: Decimal | None) -> int | None:
    """A field of `Sample` as a whole number, None where no home has such a value."""
    if value is None:
        return None
    number = int(value.to_integral_value(ROUND_HALF_EVEN))
    low, high = 0, NUMBER_MAX
    if name in {"grid_w", "battery_w", "pv_w", "load_w"}:
        low, high = -POWER_MAX_W, POWER_MAX_W
    elif name == "soc_permille":
        high = PERMILLE_MAX
    elif name in LIMITS:
        high = POWER_MAX_W
    return number if low <= number <= high else None


def encoded(write: Write, value: Decimal) -> list[int]:
    """
    The registers for a quantity.

    Raises:
        DeviceRefusedError: it does not fit.
    """
    steps = value * write.sign / write.scale
    if not write.type.startswith("f"):
        how = ROUND_CEILING if write.round == "up" else ROUND_HALF_EVEN
        steps = steps.to_integral_value(how)
    return _encode(write, steps)


def _encode(write: Write, steps: Decimal) -> list[int]:
    try:
        return encode(cast(float, steps), write.type, write.order)
    except ValueError as error:
        raise DeviceRefusedError(f"{write.name}: {error}") from None


def _capabilities(template: Template, use: Collection[str]) -> frozenset[str]:
    if use:
        return frozenset(use) & frozenset(template.capabilities)
    return frozenset(template.capabilities[:1] if template.one_of else template.capabilities)


def _joins(last: Batch, span: Batch, gap: int) -> bool:
    place = (last.device_id, str(last.table), last.optional)
    if place != (span.device_id, str(span.table), span.optional) or span.optional:
        return False
    near = span.address <= last.address + last.count + gap
    return near and span.address + span.count - last.address <= REGISTERS_MAX


def _requests(writes: Iterable[Write], wanted: Collection[str]) -> list[list[Write]]:
    """Writes that go out together, in order."""
    requests: list[list[Write]] = []
    before = None
    for write in writes:
        if write.name in wanted:
            if write.with_previous and requests and requests[-1][-1].name == before:
                requests[-1].append(write)
            else:
                requests.append([write])
        before = write.name
    return requests


def _counts_down(write: Write) -> bool:
    return "lease_s" in {write.hold, write.charge, write.discharge, write.idle}


def _hex(words: Iterable[int]) -> str:
    return " ".join(f"{word:04X}" for word in words)
