"""
What answers on a network or a serial line, and which device of ours it could be. Only reads.

Every host is asked over one connection at a time, as many devices accept only one. A unit that
answers is first looked at as a SunSpec device, whose models say what it is; else the templates are
tried, each register being read once whatever the number of templates that want it. Devices that
answer on every unit id are one device.

What is found is a proposal (`hem.gateway.match` says how sure); `hem.gateway.proposal` writes it
down for the owner to check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from hem.gateway.links import (
    Connection,
    DeviceExceptionError,
    Link,
    NoConnectionError,
    Table,
    link_for,
)
from hem.gateway.match import Candidate, Look, Verdict, judge, keys, look_at, ranked, verdict
from hem.gateway.modbus import DeviceError, DeviceLostError, DeviceRefusedError
from hem.gateway.places import Places
from hem.gateway.sunspec import discover
from hem.gateway.sunspec_device import SunSpecSource
from hem.gateway.template import Template, load_template, template_ids
from hem.gateway.template_device import Batch

HOSTS_AT_ONCE = 64
SILENCES_MAX = 3
"""A unit that leaves so many questions in a row unanswered is asked no more."""
HOST_S_MAX = 300.0
"""Longest look at one host [real s]."""
SERIAL_S_MAX = 1_800.0
GATEWAY_CODES = (10, 11)
"""Path unavailable, target fell silent: a gateway answers in the place of a unit (V1.1b3, 7)."""
OWN_CODES = (1, 2, 3)
"""Function, address or value that it does not have: only a unit that is there says so. Of others
(4, 6) some servers make use for units that are not."""
COUNTER_LOOKS = 2
"""A counter may go on between two reads; hardly ever twice."""

Tell = Callable[[int, str], None]
"""Takes how many hosts are done, and what is happening."""


@dataclass(frozen=True, slots=True)
class SunSpecFacts:
    """What a SunSpec device says of itself."""

    vendor: str
    model: str
    serial: str
    firmware: str
    capabilities: tuple[str, ...]
    models: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One device that answered."""

    connection: Connection
    unit: int
    kind: Literal["sunspec", "template", "unknown"]
    sunspec: SunSpecFacts | None = None
    candidates: tuple[Candidate, ...] = ()
    """Templates that fit, the best first; of a SunSpec device those of its maker."""
    also_units: tuple[int, ...] = ()
    """Other unit ids on which the same device answers."""
    note: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """How sure the first candidate is."""
        return verdict(self.candidates) if self.candidates else None


@dataclass
class Unit:
    """A unit id whose registers are read once, and never written."""

    link: Link
    unit: int
    words: dict[tuple[int, Table, int], int] = field(default_factory=dict)
    refused: set[Batch] = field(default_factory=set)
    silences: int = 0
    there: bool = False
    """Whether it gave a register, or refused one as only a device does."""

    async def read(
        self, device_id: int, address: int, count: int, table: Table = "holding"
    ) -> list[int]:
        """
        Registers, from memory where they are known.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        batch = Batch(device_id, table, address, count, False)
        known = [self.words.get(key) for key in keys(batch)]
        if all(word is not None for word in known):
            return [word for word in known if word is not None]
        try:
            found = await self.link.read(device_id, address, count, table)
        except DeviceLostError:
            self.silences += 1
            raise
        except DeviceExceptionError as error:
            self.there |= error.code in OWN_CODES
            raise
        self.silences, self.there = 0, True
        self.words.update(zip(keys(batch), found, strict=True))
        return found

    async def write(self, device_id: int, address: int, values: list[int]) -> None:
        """
        Refuse.

        Raises:
            DeviceRefusedError: always.
        """
        raise DeviceRefusedError("who looks for devices writes to none")

    async def fetch(self, batches: Sequence[Batch]) -> bool:
        """
        Read what is not known yet.

        Returns:
            False where a batch that is needed is refused: the rest is not asked.

        Raises:
            DeviceLostError: the unit fell silent.
        """
        for batch in batches:
            if not await self._fetched(batch) and not batch.optional:
                return False
        return True

    async def _fetched(self, batch: Batch) -> bool:
        batch = replace(batch, optional=False)
        if batch in self.refused:
            return False
        try:
            await self.read(batch.device_id, batch.address, batch.count, batch.table)
        except DeviceLostError:
            if self.silences >= SILENCES_MAX:
                raise
        except DeviceRefusedError:
            pass
        else:
            return True
        self.refused.add(batch)
        return False


async def detect(
    places: Places, units: Sequence[int], timeout_s: float, tell: Tell
) -> list[Finding]:
    """
    Ask every place.

    Args:
        timeout_s: how long a connection, and an answer, may take [real s]

    Returns:
        What answered, in the order of the places.
    """
    free, done = asyncio.Semaphore(HOSTS_AT_ONCE), 0

    async def one(host: Sequence[Connection]) -> list[Finding]:
        nonlocal done
        async with free:
            found: list[Finding] = []
            with suppress(TimeoutError):
                async with asyncio.timeout(SERIAL_S_MAX if places.serial else HOST_S_MAX):
                    for connection in host:
                        tell(done, connection.where)
                        await _place(connection, units, timeout_s, found)
                        if places.serial and found:
                            break  # the line has one speed
            done += 1
            tell(done, host[0].where)
            return found

    return [each for host in await asyncio.gather(*map(one, places.hosts)) for each in host]


async def _place(
    connection: Connection, units: Sequence[int], timeout_s: float, found: list[Finding]
) -> None:
    """Ask the units of one connection, and add what answers."""
    link = link_for(connection, timeout_s)
    try:
        for unit in units:
            asked = Unit(link, unit)
            try:
                if not await _answers(asked):
                    continue
            except NoConnectionError:
                return  # most addresses of a network are nobody's
            here = [each for each in found if each.connection == connection]
            new = None
            twin = await _twin(asked, here)
            if twin is None:
                new = await _look(asked, connection)
                if not asked.there:
                    continue
                twin = _as_unknown(new, here)
            if twin is not None:
                found[found.index(twin)] = _with_unit(twin, unit)
            elif new is not None:
                found.append(new)
    finally:
        link.close()


async def _answers(asked: Unit) -> bool:
    """
    Does this unit speak Modbus? A refusal is an answer, unless it is a gateway's.

    Raises:
        NoConnectionError: nobody listens there.
    """
    try:
        await asked.read(asked.unit, 40_000, 2)
    except DeviceExceptionError as error:
        return error.code not in GATEWAY_CODES
    except NoConnectionError:
        raise
    except DeviceLostError:
        return False
    except DeviceRefusedError:
        pass  # an odd answer is one
    return True


async def _look(asked: Unit, connection: Connection) -> Finding:
    """What this unit is."""
    try:
        chain = await discover(asked, asked.unit)
    except DeviceLostError as error:
        return Finding(connection, asked.unit, "unknown", note=str(error))
    except DeviceError:
        return await _by_template(asked, connection)
    models = tuple(block.model for block in chain)
    source = SunSpecSource(asked, asked.unit)
    try:
        sample = await source.read()
    except DeviceError as error:
        return Finding(connection, asked.unit, "unknown", note=f"SunSpec, but {error}")
    said = {name: _printable(value) for name, value in sample.details.items()}
    facts = SunSpecFacts(
        said["vendor"], said["model"], said["serial"], said["firmware"],
        tuple(sorted(source.capabilities)), models,
    )  # fmt: skip
    candidates = await _candidates(asked, connection, _of_vendor(facts.vendor))
    return Finding(connection, asked.unit, "sunspec", facts, tuple(candidates))


async def _by_template(asked: Unit, connection: Connection) -> Finding:
    templates = [load_template(identity) for identity in template_ids()]
    if connection.kind != "tcp":
        templates = [template for template in templates if template.connection("rtu")]
    candidates = await _candidates(asked, connection, templates)
    if not candidates:
        note = "it answers, and no template fits"
        if asked.silences >= SILENCES_MAX:
            note = "it answered, and fell silent"
        return Finding(connection, asked.unit, "unknown", note=note)
    return Finding(connection, asked.unit, "template", candidates=tuple(candidates))


async def _candidates(
    asked: Unit, connection: Connection, templates: Sequence[Template]
) -> list[Candidate]:
    found = []
    port = connection.port if connection.kind == "tcp" else None
    with suppress(DeviceLostError):  # what was found until it fell silent counts
        for template in templates:
            look = look_at(template, asked.unit)
            if not await asked.fetch(look.needed):
                continue
            await asked.fetch(look.names)
            candidate = judge(look, asked.words, port)
            if candidate is not None:
                found.append(candidate)
    return ranked(found)


async def _twin(asked: Unit, found: Sequence[Finding]) -> Finding | None:
    """
    The device that answers on this unit id, too: many ignore it.

    It is one where the same counters stand in the same registers; a new device whose counters are
    all zero is taken for another.
    """
    for finding in found:
        if finding.sunspec is not None:
            other = await _look(asked, finding.connection)
            if other.sunspec == finding.sunspec and finding.sunspec.serial:
                return finding
        elif finding.kind == "template":
            template = load_template(finding.candidates[0].template)
            if await _same_counters(asked, template, finding):
                return finding
    return None


async def _same_counters(asked: Unit, template: Template, finding: Finding) -> bool:
    mine, theirs = look_at(template, asked.unit), look_at(template, finding.unit)
    with suppress(DeviceLostError):
        for _ in range(COUNTER_LOOKS):
            here, there = Unit(asked.link, asked.unit), Unit(asked.link, finding.unit)
            if not await here.fetch(mine.needed) or not await there.fetch(theirs.needed):
                return False
            counters = _counters(mine, here)
            if counters == _counters(theirs, there):
                return any(any(words) for words in counters)
    return False


def _as_unknown(new: Finding, found: Sequence[Finding]) -> Finding | None:
    """Something that answers on every unit id and is nothing we know is said once."""
    alike = (each for each in found if each.kind == new.kind == "unknown")
    return next((each for each in alike if each.note == new.note), None)


def _counters(look: Look, asked: Unit) -> list[list[int | None]]:
    """The registers of energies, without units."""
    return [
        [asked.words.get((look.unit_of(p), p.table, p.address + i)) for i in range(p.size)]
        for p in look.points
        if p.name.endswith("_wh") and p.name != "capacity_wh"
    ]


def _with_unit(finding: Finding, unit: int) -> Finding:
    """The same device on one more unit id; the product's own counts, else the first."""
    if finding.candidates:
        preferred = load_template(finding.candidates[0].template).device_id
        if unit == preferred and finding.sunspec is None:
            return replace(finding, unit=unit, also_units=(*finding.also_units, finding.unit))
    return replace(finding, also_units=(*finding.also_units, unit))


def _of_vendor(vendor: str) -> list[Template]:
    """Templates of a maker whose SunSpec registers may not show all that its device has."""
    templates = (load_template(identity) for identity in template_ids())
    first = vendor.split(maxsplit=1)[0].casefold() if vendor.split() else ""
    return [each for each in templates if first and each.vendor.split()[0].casefold() == first]


def _printable(text: str) -> str:
    """What a device says of itself goes into files and terminals."""
    return "".join(char for char in text if char.isascii() and char.isprintable())[:64]
