"""A template says only what makes sense; what it says agrees with what others know."""

from __future__ import annotations

import json
import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from register_server import devices_of, fixture

from hem.config import Device, Proxy
from hem.gateway import decode as words
from hem.gateway.config_docs import key_table
from hem.gateway.devices import Site
from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.source import Sample
from hem.gateway.template import (
    UNITS,
    load_template,
    parse_template,
    template_ids,
    template_schema,
)
from hem.gateway.template_device import (
    POWER_MAX_W,
    TemplateSource,
    encoded,
    plan,
)
from hem.gateway.template_docs import OTHERS, PROXY_EXAMPLE, device_reference
from wire.errors import ConfigError

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared/data"
EVCC = DATA / "evcc_modbus_templates/meter"
SDM630 = DATA / "modbus_devices/SDM630.yaml"

HEAD = """
id = "x"
vendor = "V"
products = ["P"]
capabilities = ["grid"]
source = "s"
tested = "fixture"
connections = [{ kind = "tcp" }]
"""
GRID = """
points = [
  { name = "grid_w", address = 1, type = "i32", unit = "W" },
  { name = "import_wh", address = 3, type = "u32", unit = "Wh" },
  { name = "export_wh", address = 5, type = "u32", unit = "Wh" },
]
"""


def test_there_are_templates_of_meters_inverters_hybrids_and_batteries():
    templates = [load_template(identity) for identity in template_ids()]
    assert len(templates) >= 20
    assert sum("grid" in t.capabilities for t in templates) >= 10
    assert sum(t.capabilities == ("pv",) for t in templates) >= 5
    assert sum(t.hold is not None for t in templates) >= 10
    assert all(t.tested == "fixture" for t in templates), "nobody has tried one on the product"


@pytest.mark.parametrize("identity", template_ids())
def test_every_template_has_a_fixture_with_limits_and_something_not_available(identity):
    facts, template = fixture(identity), load_template(identity)
    assert facts["not_available"]
    assert template.settings(facts.get("parameters", {})) is not None
    assert bool(facts.get("hold")) == (template.hold is not None)
    assert set(facts.get("as", {})) == set(template.capabilities[1:] if template.one_of else ())


def test_the_reference_of_devices_is_current():
    """Else: python -m hem.gateway.template_docs docs/reference/devices.md."""
    page = (ROOT / "docs/reference/devices.md").read_text(encoding="utf-8")
    assert page == device_reference()
    assert all(f"### {identity}\n" in page for identity in template_ids())


def test_the_reference_s_examples_are_taken_and_every_key_has_a_meaning():
    for section, example in OTHERS.values():
        (device,) = tomllib.loads(example)["devices"]
        assert section.model_validate(device).kind == Device(**device).kind
    (proxy,) = tomllib.loads(PROXY_EXAMPLE)["proxy"]
    Proxy.model_validate(proxy)
    for section in (Proxy, *(section for section, _ in OTHERS.values())):
        rows = [row for row in key_table(section).splitlines() if row.startswith("| `")]
        assert len(rows) >= len(section.model_fields) - 2, "all but kind and name"
        assert all(len(row.split("|")[2]) > 4 for row in rows), "every key has a meaning"


def test_the_schema_is_a_json_schema_that_names_every_key():
    schema = template_schema()
    json.dumps(schema)
    assert {"id", "points", "sums", "hold", "parameters"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id = ", "x.toml: not TOML"),
        (HEAD, "x.toml: points: is missing; add it"),
        (HEAD + GRID + "colour = 1", "x.toml: colour: is no key here; remove it"),
        (HEAD.replace('"tcp"', '"carrier pigeon"') + GRID, "x.toml: connections.0.kind: Input"),
        (HEAD + GRID.replace('"i32"', '"i33"'), "x.toml: points.grid_w.type: Input should be"),
        (HEAD + GRID.replace("address = 1", "address = 65536"), "points.grid_w.address: Input"),
        (HEAD + GRID.replace("address = 1", "address = 65535"), "ends past the last register"),
        (HEAD + GRID.replace('"W"', '"kWh"'), "unit of grid_w is one of W, kW, not 'kWh'"),
        (HEAD + GRID.replace("export_wh", "other_wh"), "capability grid has to show export_wh"),
        (HEAD + GRID.replace("export_wh", "import_wh"), "point import_wh is there twice"),
        (HEAD + GRID.replace('"W"', '"W", na = [0x100000000]'), "na is compared with unsigned"),
        (HEAD + GRID.replace('"W"', '"W", when = { a = 1 }'), "a is no parameter of this"),
        (HEAD + GRID.replace('"W"', '"W", scale_register = "b"'), "b is no point of this"),
        (HEAD + GRID + 'sums = [{ name = "pv_w" }]', "a sum needs something"),
        (HEAD + GRID + 'sums = [{ name = "pv_w", add = ["c"] }]', "c is no point of this"),
        (
            HEAD + GRID + 'parameters = [{ name = "a", type = "int", help = "h" }]',
            "parameters.a: a number needs min and max",
        ),
        (
            HEAD + GRID + 'identify = [{ address = 1, type = "u16", begins = ["P"] }]',
            "identify.0: a string has length and begins, a number values",
        ),
        (
            HEAD + GRID + '[hold]\nreversion = "none"\nwrite = [{ name = "a", address = 1,'
            ' type = "u16", hold = 1, neutral = 0 }]',
            "only a battery's power can be held",
        ),
    ],
)
def test_a_mistake_names_file_key_and_remedy(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_template(text, "x.toml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("x.toml: ")


BATTERY = (
    HEAD.replace("grid", "battery")
    + """
parameters = [
  { name = "capacity_wh", type = "int", min = 1, max = 9, help = "h" },
  { name = "max_charge_w", type = "int", min = 1, max = 9, help = "h" },
  { name = "max_discharge_w", type = "int", min = 1, max = 9, help = "h" },
]
points = [
  { name = "battery_w", address = 1, type = "i32", unit = "W" },
  { name = "soc_permille", address = 3, type = "u16", unit = "%" },
]
[hold]
"""
)


@pytest.mark.parametrize(
    ("hold", "said"),
    [
        (
            'reversion = "none"\nwrite = [{ name = "a", address = 1, type = "u16", hold = 1 }]',
            "no register has a neutral value",
        ),
        (
            'reversion = "register"\nwrite = [{ name = "a", address = 1, type = "u16", hold = 1,'
            " neutral = 0 }]",
            "needs a register that lease_s is written to",
        ),
        (
            'reversion = "none"\nkeepalive_s = 5\nwrite = [{ name = "a", address = 1,'
            ' type = "u16", hold = 1, neutral = 0 }]',
            "keepalive_s is given for reversion 'keepalive'",
        ),
        (
            'reversion = "register"\nwrite = [{ name = "a", address = 1, type = "u16",'
            ' hold = "lease_s", neutral = 0, flash = true }]',
            "needs a register not in flash",
        ),
        (
            'reversion = "none"\nrewind_s = 60\nwrite = [{ name = "a", address = 1,'
            ' type = "u16", hold = 1, neutral = 0 }]',
            "rewind_s and registers that rewind need each other",
        ),
        (
            'reversion = "none"\nwrite = [{ name = "a", address = 1, type = "u16",'
            ' hold = "powr_w", neutral = 0 }]',
            "powr_w is no quantity or parameter",
        ),
        (
            'reversion = "none"\nwrite = [{ name = "a", address = 1, type = "u16", hold = 1,'
            " neutral = 0, tells = true, readback = false }]",
            "what tells has a neutral value and can be read",
        ),
        (
            'reversion = "none"\nwrite = [{ name = "a", address = 1, type = "u16", hold = 1,'
            " neutral = 0, with_previous = true }]",
            "with_previous needs the register before it",
        ),
    ],
)
def test_a_battery_that_could_not_be_given_back_is_refused(hold, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_template(BATTERY + hold, "x.toml")


class Wall:
    """A link whose registers come out of a function."""

    def __init__(self, word):
        self.word = word
        self.written = {}

    async def read(self, unit, address, count, table="holding"):
        where = range(address, address + count)
        return [self.written.get((unit, a), self.word(table, a)) for a in where]

    async def write(self, unit, address, values):
        self.written |= {(unit, address + i): value for i, value in enumerate(values)}

    def close(self):
        pass


def source_of(identity, link):
    template = load_template(identity)
    settings = template.settings(fixture(identity).get("parameters", {}))
    return TemplateSource(template, settings, link, template.device_id, template.capabilities)


WORD = st.one_of(
    st.sampled_from([0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7F80, 0x7FF0]), st.integers(0, 0xFFFF)
)


@given(identity=st.sampled_from(template_ids()), some=st.lists(WORD, min_size=1, max_size=40))
async def test_any_registers_at_all_give_values_within_bounds_or_none(identity, some):
    """Garbage is never an exception and never a number that no home has."""
    source = source_of(identity, Wall(lambda _table, address: some[address % len(some)]))
    sample = await source.read()
    for name in ("grid_w", "battery_w", "pv_w", "load_w"):
        assert getattr(sample, name) is None or abs(getattr(sample, name)) <= POWER_MAX_W
    for name in ("import_wh", "export_wh", "generation_wh", "capacity_wh"):
        assert getattr(sample, name) is None or 0 <= getattr(sample, name) <= 10**12
    assert sample.soc_permille is None or 0 <= sample.soc_permille <= 1000
    for power_w in (-(10**7), 0, 10**7) if source.hold_facts else ():
        try:
            accepted_w = await source.hold(power_w, 60)
        except DeviceRefusedError:
            continue
        assert -sample.max_charge_w <= accepted_w <= sample.max_discharge_w


@given(data=st.data(), kind=st.sampled_from(sorted(words.CODES)))
def test_numbers_survive_the_registers(data, kind):
    if kind.startswith("f"):
        width = 32 if kind == "f32" else 64
        value = data.draw(st.floats(width=width, allow_nan=False, allow_infinity=False))
    else:
        bits = int(kind[1:])
        low, high = (0, 2**bits) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        value = data.draw(st.integers(low, high - 1))
    for order in ("big", "little"):
        assert words.decode(words.encode(value, kind, order), kind, order) == value
    assert words.encode(value, kind, "big") == words.encode(value, kind, "little")[::-1]


WRITES = [
    (identity, write)
    for identity in template_ids()
    if (hold := load_template(identity).hold)
    for write in hold.write
    if {write.hold, write.charge, write.discharge} & {"power_w", "charge_w", "discharge_w"}
]


@given(which=st.sampled_from(WRITES), power_w=st.integers(0, 20_000))
def test_a_power_that_is_written_is_the_power_that_stands_there(which, power_w):
    _identity, write = which
    found = words.decode(encoded(write, Decimal(power_w)), write.type, write.order)
    assert abs(Decimal(found) * write.scale * write.sign - power_w) <= write.scale / 2


@pytest.mark.parametrize("value", [-1, 2**16, 10**9])
def test_a_power_that_does_not_fit_is_refused_and_not_cut_off(value):
    write = next(w for _, w in WRITES if w.type == "u16")
    with pytest.raises(DeviceRefusedError, match="does not fit into u16"):
        encoded(write, Decimal(value))


@pytest.mark.parametrize("identity", template_ids())
def test_no_request_asks_for_more_than_modbus_allows(identity):
    source = source_of(identity, Wall(lambda *_: 0))
    assert all(1 <= batch.count <= 125 for batch in source._batches)
    assert plan(source._batches, load_template(identity).gap) == source._batches


def third_party(path):
    if not path.exists():
        pytest.skip(f"third-party device data is not at {path}")
    return path


# What others know of the same products.

KINDS = {
    "uint16": ("u16", "big"), "int16": ("i16", "big"), "uint32": ("u32", "big"),
    "int32": ("i32", "big"), "uint64": ("u64", "big"), "float32": ("f32", "big"),
    "uint32s": ("u32", "little"), "int32s": ("i32", "little"), "float32s": ("f32", "little"),
}  # fmt: skip
SAME = {
    "alpha-ess-smile": "alpha-ess-smile",
    "deye-sg-3p": "deye-hybrid-3p",
    "deye-storage": "deye-storage",
    "deye-string": "deye-string",
    "eastron-sdm120": "eastron-sdm120",
    "foxess-h3": "fox-ess-h3",
    "foxess-h3-pro": "fox-ess-h3-smart",
    "goodwe-dt": "goodwe-dt",
    "goodwe-et": "goodwe-hybrid",
    "growatt-min": "growatt-min-tlxe",
    "growatt-sph": "growatt-hybrid",
    "growatt-tl-xh": "growatt-hybrid-tlxh",
    "huawei-sun2000": "huawei-sun2000-hybrid",
    "kostal-plenticore": "kostal-plenticore-gen2",
    "marstek-venus": "marstek-venus-e",
    "sma-home-manager": "sma-homemanager-modbus",
    "sma-sunny-boy": "sma-inverter-modbus",
    "sma-sunny-boy-storage": "sma-sbs-modbus",
    "sma-sunny-island": "sma-si-modbus",
    "sofar-hyd-3ph": "sofarsolar-g3",
    "solaredge-battery": "solaredge-hybrid",
    "solax-hybrid": "solax",
    "solis-rhi": "solis-hybrid",
    "solis-string": "solis",
    "sungrow-sg": "sungrow-inverter",
    "sungrow-sh": "sungrow-hybrid",
    "victron-gx": "victron-energy",
}
"""Our template, and the file of evcc's that names registers of the same product."""
DELIBERATE = {
    "deye-sg-3p": {},
    "eastron-sdm120": {74: "export: read there when the meter is a PV meter"},
    "foxess-h3": {32000: "PV's counter", 32009: "export's counter"},
    "foxess-h3-pro": {39601: "PV's counter", 39613: "export's counter"},
    "goodwe-et": {36015: "export's counter"},
    "growatt-sph": {1050: "export's counter"},
    "growatt-tl-xh": {3073: "export's counter"},
    "huawei-sun2000": {
        32106: "AC yield instead of DC input 32108: what a meter would count",
        47249: "power to discharge with; evcc only charges",
    },
    "kostal-plenticore": {514: "SoC, there by SunSpec 802", 582: "power, there by SunSpec 802"},
    "marstek-venus": {42021: "power to discharge with; evcc only charges"},
    "sma-home-manager": {30581: "u32 as SMA says, there i32", 30583: "u32 as SMA says, there i32"},
    "sofar-hyd-3ph": {
        0x0692: "export's counter",
        0x1187: "three numbers of one field of bytes there",
        0x1189: "one of them",
        0x118B: "one of them",
        0x1110: "u16, there i16: a mode",
    },
    "solaredge-battery": {
        0xE00B: "timeout: evcc leaves it at the device's",
        0xE00E: "most charge: evcc charges at the battery's limit",
        0xE142: "rated energy", 0xE144: "rated charge", 0xE146: "rated discharge",
    },
    "solax-hybrid": {72: "export's counter"},
    "solis-rhi": {33029: "PV's counter, left out there for its 1 kWh steps", 33285: "export's"},
    "sungrow-sh": {13022: "u16 as a SoC is, there i16", 13045: "export's counter"},
    "victron-gx": {2634: "import's counter", 2636: "export's counter"},
}  # fmt: skip
"""Registers of ours that evcc does not read, or reads as another type, and why."""


def others_registers(text):
    """address -> {(type, order, scale)} of an evcc template, read loosely."""
    found = {}
    for part in re.split(r"register:\s*(?:#.*)?\n", text)[1:]:
        chunk = re.split(r"- source:|batterymode:|\n\s*(?:energy|soc|power|currents):", part)[0]
        kind = re.search(r"(?:decode|encoding):.*\b(u?int\d\w*|float32\w*)", chunk)
        if kind is None:
            continue
        scale = re.search(r"(if [^\n]*\n\s*)?scale: (-?[\d.]+)", chunk)
        scales = {scale[2] if scale else "1", "1" if scale is None or scale[1] else scale[2]}
        lines = re.findall(r"address:([^#\n]*)", chunk)
        for one in re.findall(r"0x[0-9a-fA-F]+|\b\d{1,5}\b(?![\"])", " ".join(lines)):
            known = found.setdefault(int(one, 0), set())
            known |= {(*others_type(kind[1]), each) for each in scales}
    services = r"address=(\d+)&type=\w+&encoding=(\w+)(?:&scale=([\d.]+))?"
    for address, kind, scale in re.findall(services, text):
        found.setdefault(int(address), set()).add((*others_type(kind), scale or "1"))
    return found


def others_type(name):
    name = name.replace("nans", "s").replace("snan", "s").replace("nan", "")
    return KINDS.get(name, (name, "big"))


def factor(point):
    """Our scale in evcc's units: W, kWh, %."""
    measures, times = UNITS[point.unit]
    each = {"power": 1, "energy": 1000, "share": 10, "raw": 1}[measures]
    return point.scale * times / each


@pytest.mark.parametrize("identity", sorted(SAME))
def test_registers_agree_with_another_project_s(identity):
    """Addresses, types, word orders and scales; differences are the ones we mean."""
    theirs = others_registers(third_party(EVCC / f"{SAME[identity]}.yaml").read_text())
    template = load_template(identity)
    meant = DELIBERATE.get(identity, {})
    agreed = 0
    writes = template.hold.write if template.hold else ()
    for point in (*template.points, *writes):
        if point.address in meant:
            continue
        assert point.address in theirs, f"{point.name} at {point.address} is known to us only"
        known = theirs[point.address]
        assert (point.type, point.order) in {(t, o) for t, o, _ in known}, (point.name, known)
        if hasattr(point, "unit"):
            assert factor(point) in {abs(Decimal(s)) for _, _, s in known}, (point.name, known)
        agreed += 1
    assert agreed >= 1
    ours = {p.address for p in (*template.points, *writes)}
    assert set(meant) <= ours, "a difference that is none"


def test_every_template_is_compared_or_known_from_elsewhere():
    elsewhere = {
        "abb-b23", "carlo-gavazzi-em24", "carlo-gavazzi-em340", "eastron-sdm630", "eastron-sdm72",
        "hearthgrid-rm1", "hearthgrid-rm2",
        "inepro-pro380", "janitza-umg", "schneider-iem3000", "shelly-pro-3em", "siemens-pac2200",
    }  # fmt: skip
    assert set(SAME) | elsewhere == set(template_ids())


async def test_a_real_sdm630_is_read_as_its_owner_saw_it():
    """Registers of a meter in the field, with the values that its owner expects."""
    text = third_party(SDM630).read_text()
    raw = re.search(r"rawValues: \|-\n((?:\s+(?:[0-9A-F]{4} ?)+\n)+)", text)[1].split()
    expected = dict(re.findall(r"'([^']+)':\s+\[\s*(-?[\d.]+)\s*\]", text))
    source = source_of("eastron-sdm630", Wall(lambda _table, address: int(raw[address], 16)))
    sample = await source.read()
    assert sample.grid_w == round(float(expected["Total System Power"])) == 1821
    assert sample.import_wh == round(1000 * float(expected["Total Import KWh"])) == 8608
    assert sample.export_wh == round(1000 * float(expected["Total Export KWh"])) == 0
    assert {b.table for b in source._batches} == {"input"}
    # The types and places of single phases, by the same decoder.
    for name, address in (("Phase 1 Power", 12), ("Frequency Of Supply Voltages", 70)):
        found = words.decode([int(w, 16) for w in raw[address : address + 2]], "f32")
        assert f"{found:.3f}" == f"{float(expected[name]):.3f}"


def test_text_in_registers_is_printable_whatever_is_sent():
    assert words.text([0x534D, 0x4100, 0x4242]) == "SMA"
    assert words.text([0x07FF, 0x2041, 0x0A20]) == "A"


async def test_a_sample_without_values_is_not_taken_for_zero():
    source = source_of("victron-gx", Wall(lambda *_: 0x8000))
    sample = await source.read()
    assert isinstance(sample, Sample)
    assert sample.soc_permille is None  # 32768 % is none


def test_devices_on_one_line_share_a_connection():
    line = {"connection": "rtu", "path": "/dev/serial/by-id/usb-0", "kind": "template"}
    configs = [
        Device(name="a", template="eastron-sdm630", device_id=1, **line),
        Device(name="b", template="carlo-gavazzi-em340", device_id=2, use=("pv",), **line),
    ]

    class Notes:
        def info(self, *_args, **_facts):
            raise AssertionError

        warning = info

    site = Site(configs, 1.0, Notes())
    assert len(site._links) == 1
    (connection,) = site._links
    assert (connection.kind, connection.path, connection.baud) == ("rtu", line["path"], 9600)


def test_fixtures_have_registers_only_where_the_template_reads_or_writes():
    for identity in template_ids():
        template = load_template(identity)
        known = {(p.table, p.address + i) for p in template.points for i in range(p.size)}
        writes = template.hold.write if template.hold else ()
        known |= {("holding", w.address + i) for w in writes for i in range(w.size)}
        known |= {(e.table, e.address + i) for e in template.identify for i in range(e.size)}
        for row in fixture(identity)["registers"]:
            for i in range(len(row["words"].split())):
                assert (row["table"], row["address"] + i) in known, (identity, row)
        assert devices_of(template)
