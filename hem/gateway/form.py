"""
The form in which a device is set up, made from the templates. Pure.

A product has fields: where the device is, and its template's parameters, each with unit, range,
default and help. `checked` turns what was filled in into a `[[devices]]` entry, or says of each
field what is wrong; `toml_of` writes the entry. The same facts as JSON Schema: `device_schema`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from hem.config import Device
from hem.gateway.links import BAUDS
from hem.gateway.template import Parameter, Scalar, Template, load_template, template_ids
from wire.errors import ConfigError

FieldType = Literal["text", "int", "float", "bool", "choice", "many"]
Connection = Literal["tcp", "rtu", "rtu-over-tcp"]
Answers = Mapping[str, Any]
Entry = dict[str, Any]
"""A `[[devices]]` entry: names and values as they stand in the file."""

SUNSPEC = "sunspec"
TEXT_CHARS_MAX = 255
NAME = r"[a-z0-9][a-z0-9-]{0,62}"
HOST = r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,252})"
PATH = r"/dev/[A-Za-z0-9._:/+-]{1,200}"
CAPABILITIES = ("grid", "pv", "battery", "load")
CONNECTION_NAMES = {"tcp": "network", "rtu": "serial line", "rtu-over-tcp": "serial over network"}


class FormError(ConfigError):
    """Some fields are not as they ought to be."""

    def __init__(self, wrong: Mapping[str, str]) -> None:
        self.wrong = dict(wrong)
        """What is wrong, by field."""
        super().__init__("; ".join(f"{name}: {text}" for name, text in wrong.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One thing to fill in."""

    name: str
    label: str
    type: FieldType
    help: str = ""
    unit: str = ""
    required: bool = False
    default: Scalar | None = None
    min: float | None = None
    max: float | None = None
    choices: tuple[Scalar, ...] = ()
    pattern: str = ""
    """What a text has to be, whole (a regular expression of both Python and JavaScript)."""
    connections: tuple[Connection, ...] = ()
    """For which it is asked; for all of them where none is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What one can choose, with its form."""

    id: str
    """`sunspec`, or the template's."""
    vendor: str
    products: tuple[str, ...]
    capabilities: tuple[str, ...]
    one_of: bool
    """Put in one place: `use` takes one capability."""
    controllable: bool
    notes: str
    fields: tuple[Field, ...]

    def to_json(self) -> dict[str, Any]:
        """As the page gets it."""
        return asdict(self)


@cache
def products() -> tuple[Product, ...]:
    """All products, SunSpec first."""
    return (_sunspec(), *(_of_template(load_template(identity)) for identity in template_ids()))


def product(identity: str) -> Product:
    """
    A product.

    Raises:
        FormError: there is none of that name.
    """
    for each in products():
        if each.id == identity:
            return each
    raise FormError({"product": f"{identity[:64]!r} is not known; choose one of the list"})


def checked(identity: str, answers: Answers) -> Entry:
    """
    The entry that a form's answers make; what is left at its default is left out.

    Args:
        identity: the product's
        answers: by field; texts or numbers, as a page sends them; empty ones count as not given

    Raises:
        FormError: says of each field what would be right.
    """
    chosen = product(identity)
    given = {name: value for name, value in answers.items() if value not in ("", None, [])}
    wrong: dict[str, str] = {}
    shown = {each.name: each.default for each in chosen.fields}
    connection = given.get("connection", shown["connection"])
    known = {each.name for each in chosen.fields}
    wrong |= {str(name)[:64]: "is no field of this product" for name in set(given) - known}
    kind = {"kind": SUNSPEC} if identity == SUNSPEC else {"kind": "template", "template": identity}
    entry: Entry = {}
    for each in chosen.fields:
        if each.connections and connection not in each.connections:
            continue
        if each.name not in given:
            if each.required:
                wrong[each.name] = "has to be given"
            continue
        try:
            value = _value(each, given[each.name])
        except ValueError as error:
            wrong[each.name] = str(error)
            continue
        if each.required or value != each.default:
            entry[each.name] = value
    entry.pop("connection", None)
    if connection != "tcp":  # a device's default, whatever the form begins with
        entry["connection"] = connection
    if connection == "rtu-over-tcp" and "port" not in wrong:  # adapters know no usual port
        entry.setdefault("port", shown["port"])
    if chosen.one_of and len(entry.get("use", ())) > 1:
        wrong["use"] = "is one place only"
    if wrong:
        raise FormError(wrong)
    name = entry.pop("name")
    return {"name": name, **kind, **entry}


def toml_of(entry: Entry, above: Sequence[str] = (), below: Sequence[str] = ()) -> str:
    """
    A `[[devices]]` entry as it stands in a file.

    Args:
        above, below: lines of comment before the keys, and after them
    """
    lines = ["[[devices]]", *(_comment(line) for line in above)]
    lines += [f"{name} = {_toml(value)}" for name, value in entry.items()]
    lines += [_comment(line) for line in below]
    return "\n".join(lines) + "\n"


def missing_of(identity: str, entry: Entry) -> list[Field]:
    """The parameters that an entry of this template still lacks."""
    return [
        each
        for each in product(identity).fields
        if each.required and not each.connections and each.name not in entry
    ]


def device_schema() -> dict[str, Any]:
    """The JSON Schema of a `[[devices]]` entry: one variant for each kind and template."""
    from hem.gateway.mqtt_meter import MqttConfig  # noqa: PLC0415  (only who asks for all)
    from hem.gateway.p1 import P1Config  # noqa: PLC0415
    from hem.gateway.zwave import ZwaveConfig  # noqa: PLC0415

    variants = [_variant(each) for each in products()]
    common = Device.model_json_schema()["properties"]
    for kind in ("meter", "inverter", "battery"):
        keys = {name: each for name, each in common.items() if name not in {"template", "use"}}
        keys["kind"] = {"const": f"sunspec-{kind}"}
        variants.append(_object(f"sunspec-{kind}", keys, ["name", "kind"]))
    variants += [model.model_json_schema() for model in (P1Config, MqttConfig, ZwaveConfig)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An entry of [[devices]]",
        "oneOf": variants,
    }


def _sunspec() -> Product:
    return Product(
        id=SUNSPEC, vendor="SunSpec", products=("any SunSpec device",),
        capabilities=CAPABILITIES[:3], one_of=False, controllable=True,
        notes="Its models say what it is; many inverters speak it, sometimes after a setting.",
        fields=(*_place_fields(("tcp", "rtu", "rtu-over-tcp"), 502, 9_600, "N", 1),
                _use_field(CAPABILITIES[:3], one_of=False)),
    )  # fmt: skip


def _of_template(template: Template) -> Product:
    tcp, rtu = template.connection("tcp"), template.connection("rtu")
    kinds: tuple[Connection, ...] = ("tcp",) if rtu is None else ("tcp", "rtu", "rtu-over-tcp")
    if tcp is None:  # a serial line first; `tcp` is one behind a Modbus gateway
        kinds = ("rtu", "rtu-over-tcp", "tcp")
    shown = rtu or template.connections[0]
    place = _place_fields(
        kinds, (tcp or template.connections[0]).port, shown.baud, shown.parity, template.device_id
    )
    return Product(
        id=template.id, vendor=template.vendor, products=template.products,
        capabilities=template.capabilities, one_of=template.one_of,
        controllable=template.hold is not None, notes=template.notes,
        fields=(*place, *map(_of_parameter, template.parameters),
                _use_field(template.capabilities, one_of=template.one_of)),
    )  # fmt: skip


def _place_fields(
    kinds: tuple[Connection, ...], port: int, baud: int, parity: str, device_id: int
) -> tuple[Field, ...]:
    network: tuple[Connection, ...] = ("tcp", "rtu-over-tcp")
    serial: tuple[Connection, ...] = ("rtu", "rtu-over-tcp")
    return (
        Field(name="name", label="Name", type="text", required=True, pattern=NAME,
              help="Its own in this home: small letters, digits, hyphens"),
        Field(name="connection", label="Connection", type="choice", choices=kinds,
              default=kinds[0],
              help=", ".join(f"{kind}: {CONNECTION_NAMES[kind]}" for kind in kinds)),
        Field(name="host", label="Address", type="text", required=True, pattern=HOST,
              connections=network, help="Such as 192.168.1.20; let the router keep it the same"),
        Field(name="port", label="Port", type="int", default=port, min=1, max=65_535,
              connections=network),
        Field(name="path", label="Serial port", type="text", required=True, pattern=PATH,
              connections=("rtu",), help="Such as /dev/serial/by-id/usb-…"),
        Field(name="baud", label="Speed", type="choice", choices=BAUDS, default=baud, unit="baud",
              connections=serial),
        Field(name="parity", label="Parity", type="choice", choices=("N", "E", "O"),
              default=parity, connections=serial, help="N none, E even, O odd"),
        Field(name="stopbits", label="Stop bits", type="choice", choices=(1, 2), default=1,
              connections=serial),
        Field(name="device_id", label="Unit id", type="int", default=device_id, min=0, max=255,
              help="Of the device on its line; its menu says which"),
    )  # fmt: skip


def _use_field(capabilities: Sequence[str], *, one_of: bool) -> Field:
    text = "Where it is mounted; the first if left out" if one_of else "All of them if left out"
    return Field(name="use", label="Used as", type="many", choices=tuple(capabilities), help=text)


def _of_parameter(parameter: Parameter) -> Field:
    return Field(
        name=parameter.name, label=_label(parameter.name), type=parameter.type,
        help=parameter.help, unit=parameter.unit, required=parameter.default is None,
        default=parameter.default, min=parameter.min, max=parameter.max,
        choices=parameter.choices,
    )  # fmt: skip


def _label(name: str) -> str:
    """`max_charge_w` as people say it: the unit stands beside it."""
    plain = re.sub(r"_(w|wh|s|percent|permille)$", "", name)
    words = plain.replace("_", " ").replace("max ", "most ").replace("min ", "least ")
    return words[:1].upper() + words[1:]


def _value(each: Field, given: Any) -> Any:
    """
    What was filled in, in its type.

    Raises:
        ValueError: says what would be right.
    """
    match each.type:
        case "text":
            return _text(each, given)
        case "many":
            wanted = [given] if isinstance(given, str) else given
            if not isinstance(wanted, list) or any(one not in each.choices for one in wanted):
                raise ValueError(f"is of {', '.join(map(str, each.choices))}")
            return list(dict.fromkeys(wanted))
        case "choice":
            for choice in each.choices:
                if not isinstance(given, bool) and str(given) == str(choice):
                    return choice
            raise ValueError(f"is one of {', '.join(map(str, each.choices))}")
        case "bool":
            if given in (True, "true"):
                return True
            if given in (False, "false"):
                return False
            raise ValueError("is true or false")
    return _number(each, given)


def _text(each: Field, given: Any) -> str:
    if not isinstance(given, str) or len(given) > TEXT_CHARS_MAX:
        raise ValueError("is a text")
    if not re.fullmatch(each.pattern, given, re.ASCII):
        raise ValueError(f"does not look like one; {each.help or each.pattern}")
    return given


def _number(each: Field, given: Any) -> int | float:
    whole = each.type == "int"
    kind = "a whole number" if whole else "a number"
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError(f"is {kind}")
    try:
        value = int(given) if whole and not isinstance(given, float) else float(given)
        number = math.isfinite(value) and (not whole or value == int(value))
    except (ValueError, OverflowError):  # a whole number may have any number of digits
        number = False
    if not number:
        raise ValueError(f"is {kind}")
    low, high = each.min, each.max
    if (low is not None and value < low) or (high is not None and value > high):
        unit = f" {each.unit}" if each.unit else ""
        raise ValueError(f"lies between {low:g} and {high:g}{unit}")
    return int(value) if whole else value


def _variant(each: Product) -> dict[str, Any]:
    keys: dict[str, Any] = {"kind": {"const": "template"}, "template": {"const": each.id}}
    if each.id == SUNSPEC:
        keys = {"kind": {"const": SUNSPEC}}
    needed = ["name", *keys]
    needed += [one.name for one in each.fields if one.required and not one.connections]
    keys |= {one.name: _property(one) for one in each.fields}
    return _object(each.id, keys, list(dict.fromkeys(needed)))


def _object(title: str, keys: dict[str, Any], needed: list[str]) -> dict[str, Any]:
    return {
        "title": title, "type": "object", "properties": keys, "required": needed,
        "additionalProperties": False,
    }  # fmt: skip


def _property(each: Field) -> dict[str, Any]:
    kinds = {"text": "string", "int": "integer", "float": "number", "bool": "boolean"}
    text = " ".join(part for part in (each.help, f"[{each.unit}]" if each.unit else "") if part)
    found: dict[str, Any] = {"description": text} if text else {}
    if each.type == "many":
        found |= {"type": "array", "items": {"enum": list(each.choices)}}
    elif each.type == "choice":
        found["enum"] = list(each.choices)
    else:
        found["type"] = kinds[each.type]
    found |= {"pattern": f"^{each.pattern}$"} if each.pattern else {}
    facts = {"default": each.default, "minimum": each.min, "maximum": each.max}
    return found | {name: value for name, value in facts.items() if value is not None}


def _toml(value: Any) -> str:
    if isinstance(value, str):  # JSON's escapes are TOML's, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _comment(line: str) -> str:
    printable = "".join(char if char.isprintable() else "?" for char in line)
    return f"# {printable}".rstrip()
