"""
Which template a device fits: the evidence in its registers, weighed. Pure; `hem.gateway.detect`
reads the registers.

A template fits when every register it needs is there and every value is plausible. Many fit by
chance, so each piece of evidence has a weight, about the bits by which chance is ruled out:

- a register that names the product (the template's `identify`) is worth more than all the rest;
- a number is worth the share of its registers' patterns that no home could show: a state of charge
  between 0 and 100 in sixteen bits says much, a power in sixteen bits next to nothing;
- a zero says little, "not available" nothing;
- the product's own unit id or port says a little.

What ranks first is a proposal, not a fact: `verdict` says how sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, cast

from hem.gateway.decode import NumberType, bits, decode, text
from hem.gateway.links import Table
from hem.gateway.template import UNITS, Identify, Point, Scalar, Template
from hem.gateway.template_device import Batch, plan, scaled

NAMED_BITS = 60.0
"""The product's own name or code."""
MISNAMED_BITS = -30.0
"""It is there and says something else; not all codes of a family are published."""
UNNAMED_BITS = -4.0
"""The register that would name it is not there: older firmware, or another product."""
ZERO_BITS = 1.0
FLOAT_BITS = 8.0
"""A plausible float: most patterns are numbers beyond any home, or next to nothing."""
INTEGER_BITS_MAX = 16.0
PLACE_BITS = 4.0
"""The unit id, or the port, is the product's and not everybody's."""
WEAK_BITS = 12.0
"""A device that only shows so much could be many things."""
LEAD_BITS = 8.0
"""So far ahead of the next one, the first is more than a guess."""
POWER_MAX_W = 100_000
ENERGY_MAX_WH = 1_000_000_000
PERMILLE_MAX = 1_000
FLOAT_MIN = 1e-3
"""Smaller floats are other numbers read as floats."""
USUAL_UNITS = (0, 1, 255)
USUAL_PORT = 502

Verdict = Literal["named", "likely", "ambiguous", "weak"]
Words = Mapping[tuple[int, Table, int], int]
"""Registers that could be read, by unit id, table and address."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A template that fits."""

    template: str
    weight_bits: float
    points: int
    """Values that said something."""
    named: bool
    """Whether a register named the product."""
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What to read of a device to judge one template."""

    template: Template
    settings: Mapping[str, Scalar]
    unit: int

    @property
    def points(self) -> list[Point]:
        """Those whose unit is known: the template's defaults stand for what nobody said yet."""
        return [
            point
            for point in self.template.read_points(self.settings)
            if point.device_id is None or point.device_id in self.settings
        ]

    @property
    def needed(self) -> list[Batch]:
        """What the device has to have; read in as few requests as the template allows."""
        spans = [
            Batch(self.unit_of(p), p.table, p.address, p.size, p.optional) for p in self.points
        ]
        if self.template.hold is not None:
            spans += [
                Batch(self.unit, "holding", write.address, write.size, False)
                for write in self.template.hold.write
                if write.readback
            ]
        return plan(spans, self.template.gap)

    @property
    def names(self) -> list[Batch]:
        """Registers that may name the product."""
        return [
            Batch(self.unit, each.table, each.address, each.size, True)
            for each in self.template.identify
        ]

    def unit_of(self, point: Point) -> int:
        """The unit id that a point is read from."""
        return self.unit if point.device_id is None else int(self.settings[point.device_id])


def look_at(template: Template, unit: int) -> Look:
    """How a template is tried when nobody has given its parameters."""
    settings = {
        parameter.name: parameter.default if parameter.default is not None else choice
        for parameter in template.parameters
        for choice in [parameter.choices[0] if parameter.choices else None]
        if parameter.default is not None or choice is not None
    }
    return Look(template, cast("dict[str, Scalar]", settings), unit)


def judge(look: Look, words: Words, port: int | None) -> Candidate | None:
    """
    Weigh what was read.

    Args:
        words: all of `look.needed` and `look.names`
        port: of Modbus TCP; None on a serial line

    Returns:
        The candidate, None where a register is refused or a value is not plausible.
    """
    required = [key for batch in look.needed if not batch.optional for key in keys(batch)]
    if any(words.get(key) is None for key in required):
        return None
    weight, reasons, named = _names(look, words)
    known = {p.name: _raw(p, look.unit_of(p), words) for p in look.points if p.type != "string"}
    told = 0
    for point in look.points:
        raw = known.get(point.name)
        if raw is None:  # not available, or a string
            continue
        worth = _worth(point, raw, known)
        if worth is None:
            return None
        weight += worth
        told += raw != 0
    if not (told or named):
        return None
    place = _place(look, port)
    weight += PLACE_BITS * len(place)
    reasons = [*reasons, f"{told} values are plausible", *place]
    return Candidate(look.template.id, round(weight, 1), told, named, tuple(reasons))


def ranked(candidates: Collection[Candidate]) -> list[Candidate]:
    """The best first."""
    return sorted(candidates, key=lambda c: (-c.weight_bits, -c.points, c.template))


def verdict(candidates: Sequence[Candidate]) -> Verdict:
    """How sure the first of the ranked candidates is."""
    first, *others = candidates
    rivals = [c for c in others if first.weight_bits - c.weight_bits < LEAD_BITS]
    if first.named and not any(rival.named for rival in rivals):
        return "named"
    if rivals:
        return "ambiguous"
    return "weak" if first.weight_bits < WEAK_BITS else "likely"


def keys(batch: Batch) -> list[tuple[int, Table, int]]:
    """The registers of a batch."""
    return [(batch.device_id, batch.table, batch.address + i) for i in range(batch.count)]


def _names(look: Look, words: Words) -> tuple[float, list[str], bool]:
    """Weight, reasons, and whether the product was named."""
    weight, reasons, named = 0.0, [], False
    for each, batch in zip(look.template.identify, look.names, strict=True):
        found = [words.get(key) for key in keys(batch)]
        if any(word is None for word in found):
            weight += UNNAMED_BITS
            continue
        says = _says(each, cast("list[int]", found))
        if says is None:
            weight += MISNAMED_BITS
            reasons.append(f"register {each.address} names another product")
        else:
            weight, named = weight + NAMED_BITS, True
            reasons.append(f"register {each.address} says {says}")
    return weight, reasons, named


def _says(each: Identify, words: list[int]) -> str | None:
    """What the register says where it is one of the template's products."""
    if each.type != "string":
        value = bits(words)
        return str(value) if value in each.values else None
    swapped = [(word & 0xFF) << 8 | word >> 8 for word in words]
    for said in (text(words), text(swapped)):
        if said.startswith(each.begins):
            return said
    return None


def _raw(point: Point, unit: int, words: Words) -> int | float | None:
    found = [words.get((unit, point.table, point.address + i)) for i in range(point.size)]
    if any(word is None for word in found):
        return None
    known = cast("list[int]", found)
    if bits(known, point.order) in point.na:
        return None
    return decode(known, cast(NumberType, point.type), point.order)


def _worth(point: Point, raw: int | float, known: Mapping[str, int | float | None]) -> float | None:
    """The weight of a value, None where no home has it."""
    kind, _ = UNITS[point.unit]
    if kind == "raw":
        return 0.0
    value = scaled(point, raw, known)
    low, high = _range(point, kind)
    if value is None or not low <= value <= high:
        return None
    if raw == 0:
        return ZERO_BITS
    if point.type.startswith("f"):
        return FLOAT_BITS if abs(raw) >= FLOAT_MIN else None
    step = abs(point.scale) * UNITS[point.unit][1]
    patterns = 2.0 ** (16 * point.size)
    plausible = max(1.0, float((high - low) / step))
    return min(INTEGER_BITS_MAX, max(ZERO_BITS, math.log2(patterns / plausible)))


def _range(point: Point, kind: str) -> tuple[Decimal, Decimal]:
    """Plausible values in W, Wh or permille."""
    if kind == "share":
        return Decimal(0), Decimal(PERMILLE_MAX)
    if kind == "energy":
        return Decimal(0), Decimal(ENERGY_MAX_WH)
    low = 0 if point.type.startswith("u") and point.sign > 0 and not point.negative_when else -1
    return Decimal(low * POWER_MAX_W), Decimal(POWER_MAX_W)


def _place(look: Look, port: int | None) -> list[str]:
    reasons = []
    if look.unit == look.template.device_id and look.unit not in USUAL_UNITS:
        reasons.append(f"unit id {look.unit} is the product's")
    tcp = look.template.connection("tcp")
    if tcp is not None and port == tcp.port and port != USUAL_PORT:
        reasons.append(f"port {port} is the product's")
    return reasons
