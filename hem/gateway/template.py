"""
What a device template may say, checked before anything connects.

A template is one TOML file in `hem/gateway/templates`: products, capabilities, connections, typed
parameters, the points to read, and for a battery the registers that hold its power. It is data: no
expressions, only sums of points, scales, and conditions on parameters. Signs are the site's (grid +
import, battery + discharge, see hem/gateway/source.py). A mistake names file, key and remedy.

Three things a template cannot leave out: a meter shows power and both counters, or it could not be
billed by; an inverter shows power and its counter; a battery shows power, charge and its limits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hem.gateway.decode import WORDS, NumberType, WordOrder
from hem.gateway.source import Sample
from hem.gateway.template_firmware import Firmware
from wire.errors import ConfigError

FOLDER = "hem.gateway.templates"
REGISTER_MAX = 0xFFFF
GAP_MAX = 60
SAMPLE_NAMES = tuple(field.name for field in fields(Sample) if field.name != "details")
DETAILS = ("vendor", "model", "firmware", "serial")
UNITS: dict[str, tuple[str, int]] = {
    "W": ("power", 1), "kW": ("power", 1000), "Wh": ("energy", 1), "kWh": ("energy", 1000),
    "MWh": ("energy", 1_000_000), "%": ("share", 10), "": ("raw", 1),
}  # fmt: skip
"""Units of points: what they measure, and how many W, Wh or permille one of them is."""
NEEDS: dict[str, tuple[str, ...]] = {
    "grid": ("grid_w", "import_wh", "export_wh"),
    "pv": ("pv_w", "generation_wh"),
    "battery": ("battery_w", "soc_permille", "capacity_wh", "max_charge_w", "max_discharge_w"),
    "load": ("load_w",),
}
"""What a capability has to show."""
QUANTITIES = (
    "power_w", "charge_w", "discharge_w", "magnitude_w", "lease_s", "max_charge_w",
    "max_discharge_w",
)  # fmt: skip
"""What may be written besides numbers and parameters: + discharge, and the two halves of it."""

Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Address = Annotated[int, Field(ge=0, le=REGISTER_MAX)]
PointType = Literal["u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "string"]
Scalar = bool | int | float | str
Value = Annotated[int, Field(ge=-(2**63), lt=2**64)] | Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """Base of the parts: a key we do not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Connection(Part):
    """How the product is reached."""

    kind: Literal["tcp", "rtu"]
    port: int = Field(default=502, ge=1, le=65_535)
    """Of `tcp`."""
    baud: Literal[1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200] = 9600
    """Of `rtu`, also behind a TCP adapter, as is the parity."""
    parity: Literal["N", "E", "O"] = "N"


class Parameter(Part):
    """What the installer has to say about this device. Without a default it has to be given."""

    name: Identifier
    type: Literal["int", "float", "bool", "choice"]
    help: str = Field(min_length=1)
    unit: str = ""
    default: Scalar | None = None
    min: float | None = None
    max: float | None = None
    choices: tuple[Scalar, ...] = ()

    def check(self, value: Any) -> Scalar:
        """
        The value, if it is one.

        Raises:
            ValueError: says what would be right.
        """
        unit = f" {self.unit}" if self.unit else ""
        if self.type == "choice":
            if value not in self.choices:
                raise ValueError(f"is one of {', '.join(map(str, self.choices))}, not {value!r}")
            return self.choices[self.choices.index(value)]
        wanted = {"int": (int,), "float": (int, float), "bool": (bool,)}[self.type]
        if not isinstance(value, wanted) or (self.type != "bool" and isinstance(value, bool)):
            raise ValueError(f"is {_a(self.type)}, not {value!r}")
        low, high = self.min, self.max
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"lies between {low:g} and {high:g}{unit}, not at {value}")
        found: Scalar = value
        return found

    @model_validator(mode="after")
    def _whole(self) -> Parameter:
        if self.type == "choice" and not self.choices:
            raise ValueError("a choice needs choices")
        if self.type in {"int", "float"} and (self.min is None or self.max is None):
            raise ValueError("a number needs min and max")
        if self.default is not None:
            self.check(self.default)
        return self


class Reversal(Part):
    """A power that another register gives the sign of."""

    point: Identifier
    mask: int = Field(default=REGISTER_MAX, ge=1, le=REGISTER_MAX)
    equals: int = Field(ge=0, le=REGISTER_MAX)
    """The masked register when the power is negative."""


class Point(Part):
    """A value in the device's registers."""

    name: Identifier
    """A field of `Sample`, `vendor`, `model`, `firmware`, `serial`, or a name to add up by."""
    address: Address
    """Register as it is on the wire, counted from 0."""
    table: Literal["holding", "input"] = "holding"
    type: PointType
    length: int = Field(default=0, ge=0, le=64)
    """Registers of a string."""
    order: WordOrder = "big"
    unit: Literal["W", "kW", "Wh", "kWh", "MWh", "%", ""] = ""
    scale: Decimal = Decimal(1)
    """What one step of the register is, in `unit`."""
    scale_register: Identifier | None = None
    """A point that holds a power of ten, on top of `scale`."""
    sign: Literal[1, -1] = 1
    negative_when: Reversal | None = None
    na: tuple[int, ...] = ()
    """Raw register values, unsigned, that say "not available". A float that is none always does."""
    min: Decimal | None = None
    max: Decimal | None = None
    """Plausible values in `unit`; others count as not available."""
    device_id: Identifier | None = None
    """A parameter with the unit id, where it is not the device's."""
    optional: bool = False
    """Smaller products lack this register and refuse to read it."""
    when: dict[Identifier, Scalar] = {}
    """Parameters and their values for which this point is read."""

    @property
    def size(self) -> int:
        """Registers."""
        return self.length if self.type == "string" else WORDS[self.type]

    @model_validator(mode="after")
    def _whole(self) -> Point:
        if (self.type == "string") != (self.length > 0):
            raise ValueError("length is given for strings, and only for them")
        if self.type == "string" and self.name not in DETAILS:
            raise ValueError(f"a string is one of {', '.join(DETAILS)}")
        if self.address + self.size - 1 > REGISTER_MAX:
            raise ValueError("ends past the last register")
        if any(not 0 <= raw < 1 << (16 * self.size) for raw in self.na):
            raise ValueError("na is compared with unsigned registers; it does not fit them")
        _check_unit(self.name, self.unit)
        return self


class Identify(Part):
    """A register that says which product it is, for `hem detect`; reading values needs none."""

    address: Address
    table: Literal["holding", "input"] = "holding"
    type: Literal["u16", "u32", "string"]
    length: int = Field(default=0, ge=0, le=64)
    """Registers of a string."""
    values: tuple[int, ...] = ()
    """What a number may be."""
    begins: tuple[str, ...] = ()
    """How a text may begin; its bytes may be swapped within the registers."""

    @property
    def size(self) -> int:
        """Registers."""
        return self.length if self.type == "string" else WORDS[self.type]

    @model_validator(mode="after")
    def _whole(self) -> Identify:
        text = self.type == "string"
        if text != (self.length > 0) or text != bool(self.begins) or text == bool(self.values):
            raise ValueError("a string has length and begins, a number values")
        if self.address + self.size - 1 > REGISTER_MAX:
            raise ValueError("ends past the last register")
        return self


class Sum(Part):
    """A value that is added up from points."""

    name: Identifier
    add: tuple[Identifier, ...] = ()
    subtract: tuple[Identifier, ...] = ()
    missing: Literal["none", "zero"] = "none"
    """What a part that is not available makes of the sum: nothing, or no difference."""

    @model_validator(mode="after")
    def _whole(self) -> Sum:
        if not self.add + self.subtract:
            raise ValueError("a sum needs something to add or subtract")
        return self


class Write(Part):
    """A register that holds the battery's power. In `hold`s order; neutral in the reverse."""

    name: Identifier
    address: Address
    type: NumberType
    order: WordOrder = "big"
    scale: Decimal = Decimal(1)
    """What one step of the register is."""
    sign: Literal[1, -1] = 1
    round: Literal["nearest", "up"] = "nearest"
    hold: Value | None = None
    """Written whatever the power is: a number, a parameter, or one of the quantities."""
    charge: Value | None = None
    discharge: Value | None = None
    idle: Value | None = None
    """Written when the power is below, above, at zero."""
    neutral: Value | None = None
    """Written to give the device back to its own mode."""
    readback: bool = True
    """Whether the register reads as it was written."""
    tells: bool = False
    """Whether the register at its neutral value says that the device is in its own mode."""
    flash: bool = False
    """Whether each write wears memory out: it is left out when nothing changes."""
    rewinds: bool = False
    """Whether writing it begins the device's period anew: see `rewind_s`."""
    with_previous: bool = False
    """Written in one request with the register before it."""

    @property
    def size(self) -> int:
        """Registers."""
        return WORDS[self.type]

    def value(self, power_w: int) -> Value | None:
        """What is written to hold `power_w`."""
        chosen = self.charge if power_w < 0 else self.discharge if power_w > 0 else self.idle
        return chosen if chosen is not None else self.hold


class Hold(Part):
    """How the battery's power is held for a while."""

    reversion: Literal["register", "keepalive", "none"]
    """What ends it without us: a timer that is written, the device after a silence, nothing."""
    keepalive_s: int | None = Field(default=None, ge=1, le=3_600)
    rewind_s: int | None = Field(default=None, ge=60, le=3_600)
    """Of a device that ends a period by itself, longer than our leases: so long after its begin the
    registers that rewind it are written again, though nothing changes."""
    sets: Literal["battery", "ac"] = "battery"
    """What the setpoint fixes: the battery, or the inverter's output that PV is part of."""
    writes_per_day: int = Field(default=1_000, ge=10)
    """Budget of flash-backed writes; giving the battery back is always allowed."""
    write: tuple[Write, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Hold:
        if (self.reversion == "keepalive") != (self.keepalive_s is not None):
            raise ValueError("keepalive_s is given for reversion 'keepalive', and only for it")
        if self.reversion != "none" and all(write.flash for write in self.write):
            raise ValueError("a device that ends a lease needs a register not in flash to renew it")
        if (self.rewind_s is not None) != any(write.rewinds for write in self.write):
            raise ValueError("rewind_s and registers that rewind need each other")
        if all(write.neutral is None for write in self.write):
            raise ValueError("no register has a neutral value; the battery could not be given back")
        if self.reversion == "register" and not any(
            "lease_s" in {write.hold, write.charge} for write in self.write
        ):
            raise ValueError("reversion 'register' needs a register that lease_s is written to")
        for write in self.write:
            if write.tells and (write.neutral in {None, *QUANTITIES} or not write.readback):
                raise ValueError(f"{write.name}: what tells has a neutral value and can be read")
        for before, write in zip((None, *self.write), self.write, strict=False):
            if write.with_previous and (
                before is None or before.address + before.size != write.address
            ):
                raise ValueError(f"{write.name}: with_previous needs the register before it")
        return self


class Template(Part):
    """One family of products that read alike."""

    id: Slug
    vendor: str = Field(min_length=1)
    products: tuple[str, ...] = Field(min_length=1)
    capabilities: tuple[Literal["grid", "pv", "battery", "load"], ...] = Field(min_length=1)
    one_of: bool = False
    """A meter that is put in one place: the first capability unless `use` says which."""
    source: str = Field(min_length=1)
    """Where the registers are known from."""
    tested: Literal["fixture", "device"]
    notes: str = ""
    device_id: int = Field(default=1, ge=0, le=255)
    connections: tuple[Connection, ...] = Field(min_length=1)
    gap: int = Field(default=0, ge=0, le=GAP_MAX)
    """Undefined registers that may be read to join two points into one request."""
    parameters: tuple[Parameter, ...] = ()
    points: tuple[Point, ...] = Field(min_length=1)
    sums: tuple[Sum, ...] = ()
    hold: Hold | None = None
    firmware: Firmware | None = None
    identify: tuple[Identify, ...] = ()

    def connection(self, kind: str) -> Connection | None:
        """The connection of a kind, where the product has one."""
        return next((each for each in self.connections if each.kind == kind), None)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Scalar]:
        """
        All parameters with their values.

        Raises:
            ConfigError: names the parameter and what would be right.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                names = ", ".join(known) or "none"
                raise ConfigError(f"{name} is no parameter of {self.id}; it has {names}")
        settings: dict[str, Scalar] = {}
        for name, parameter in known.items():
            value = given.get(name, parameter.default)
            if value is None:
                raise ConfigError(f"{name} is missing: {parameter.help}")
            try:
                settings[name] = parameter.check(value)
            except ValueError as error:
                raise ConfigError(f"{name} {error}") from None
        return settings

    def read_points(self, settings: Mapping[str, Scalar]) -> list[Point]:
        """The points of a device with these settings."""
        return [
            point
            for point in self.points
            if all(settings.get(name) == value for name, value in point.when.items())
        ]

    @model_validator(mode="after")
    def _whole(self) -> Template:
        parameters = {parameter.name for parameter in self.parameters}
        points = {point.name for point in self.points}
        shown = points | {each.name for each in self.sums} | parameters
        for point in self.points:
            _known(point.name, "parameter", point.when, parameters)
            _known(
                point.name, "parameter", [point.device_id] if point.device_id else [], parameters
            )
            _known(point.name, "point", [point.scale_register or point.name], points)
            if point.negative_when is not None:
                _known(point.name, "point", [point.negative_when.point], points)
        self._check_twice()
        earlier = set(points)
        for each in self.sums:
            _known(each.name, "point", each.add + each.subtract, earlier)
            earlier.add(each.name)
        for capability in self.capabilities:
            lacking = [name for name in NEEDS[capability] if name not in shown]
            if lacking:
                raise ValueError(f"capability {capability} has to show {', '.join(lacking)}")
        if self.hold is not None:
            self._check_hold(self.hold, parameters)
        if self.firmware is not None and not {"model", "firmware"} <= points:
            raise ValueError("firmware needs the points model and firmware, to know what is there")
        return self

    def _check_hold(self, hold: Hold, parameters: set[str]) -> None:
        if "battery" not in self.capabilities:
            raise ValueError("only a battery's power can be held")
        for write in hold.write:
            values = (write.hold, write.charge, write.discharge, write.idle, write.neutral)
            words = [value for value in values if isinstance(value, str)]
            _known(write.name, "quantity or parameter", words, parameters.union(QUANTITIES))

    def _check_twice(self) -> None:
        seen: set[tuple[str, tuple[tuple[str, Scalar], ...]]] = set()
        for point in self.points:
            key = (point.name, tuple(sorted(point.when.items())))
            if key in seen or (point.when and (point.name, ()) in seen):
                raise ValueError(f"point {point.name} is there twice")
            seen.add(key)
        for each in self.sums:
            if any(each.name == name for name, _ in seen):
                raise ValueError(f"{each.name} is a point and a sum")


def load_template(identity: str) -> Template:
    """
    A shipped template.

    Raises:
        ConfigError: there is none of that name, or it is broken.
    """
    if identity not in template_ids():
        near = [known for known in template_ids() if known[:3] == identity[:3]]
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see docs/reference/devices.md"
        raise ConfigError(f"unknown template {identity!r}{hint}")
    return _load(identity)


@cache
def _load(identity: str) -> Template:
    file = resources.files(FOLDER) / f"{identity}.toml"
    template = parse_template(file.read_text(encoding="utf-8"), f"{identity}.toml")
    if template.id != identity:
        raise ConfigError(f"{identity}.toml: id: has to be the file's name, {identity!r}")
    return template


@cache
def template_ids() -> tuple[str, ...]:
    """The names of all shipped templates."""
    names = [file.name for file in resources.files(FOLDER).iterdir()]
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def parse_template(text: str, file: str) -> Template:
    """
    Check a template's text.

    Raises:
        ConfigError: names file, key and remedy.
    """
    try:
        raw = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    try:
        return Template.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in _named(first["loc"], raw)) or "template"
        remedy = {
            "missing": "is missing; add it",
            "extra_forbidden": "is no key here; remove it or correct its spelling",
        }.get(first["type"], first["msg"].removeprefix("Value error, "))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{file}: {key}: {remedy}{more}") from None


def template_schema() -> dict[str, Any]:
    """The JSON Schema of a template."""
    return Template.model_json_schema()


def _named(place: Iterable[int | str], raw: Any) -> list[int | str]:
    """The path of a mistake, with names in the place of numbers where there are names."""
    path: list[int | str] = []
    for step in place:
        try:
            raw = raw[step]
        except (KeyError, IndexError, TypeError):
            raw = None
        named = isinstance(step, int) and isinstance(raw, dict) and isinstance(raw.get("name"), str)
        path.append(raw["name"] if named else step)
    return path


def _known(owner: str, what: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{owner}: {name} is no {what} of this template")


def _check_unit(name: str, unit: str) -> None:
    kinds = {"_w": "power", "_wh": "energy", "_permille": "share"}
    for ending, kind in kinds.items():
        if name in SAMPLE_NAMES and name.endswith(ending) and UNITS[unit][0] != kind:
            units = ", ".join(known for known, (of, _) in UNITS.items() if of == kind)
            raise ValueError(f"unit of {name} is one of {units}, not {unit!r}")


def _a(kind: str) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
