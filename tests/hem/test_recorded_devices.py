"""
Devices in the field, as others recorded them, on a real Modbus TCP server before a whole site.

What their registers mean is tested on the source alone in `test_gateway_devices` and
`test_templates`; here they are found and read as an owner would have them read.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from register_server import Registers, served

from hem.config import Device
from hem.gateway.devices import Site

DATA = Path(__file__).parents[3] / "shared/data/modbus_devices"


class Notes:
    """A log that remembers."""

    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append((event, facts.get("why")))

    warning = info


def recorded(name):
    """The text of a recording."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"third-party device data is not at {DATA}")
    return path.read_text()


def dump(name):
    """Registers as recorded; those that the device refused are not there."""
    registers = Registers()
    table, address = "holding", 0
    for line in recorded(f"registers/{name}.hex").splitlines():
        begins = re.match(r"# (?:HOLDING_REGISTER|Address.of) start (ir:|hr:)?(\d+)", line)
        if begins:
            table = "input" if begins[1] == "ir:" else "holding"
            address = int(begins[2])
        elif not line.startswith("#"):
            for word in line.split():
                if re.fullmatch("[0-9A-F]{4}", word):
                    registers.tables[table][address] = int(word, 16)
                address += 1
    return registers


def meter_of_the_field():
    """The SDM630's registers, and what its owner saw."""
    text = recorded("SDM630.yaml")
    words = re.search(r"rawValues: \|-\n((?:\s+(?:[0-9A-F]{4} ?)+\n)+)", text)[1].split()
    registers = Registers()
    registers.put("input", 0, " ".join(words))
    return registers, dict(re.findall(r"'([^']+)':\s+\[\s*(-?[\d.]+)\s*\]", text))


@pytest.mark.parametrize(
    ("name", "vendor", "pv_w", "generation_wh"),
    [
        ("DeviceSMASunnyBoy36Dated20250518", "SMA", 3_680, 30_388_530),
        ("DeviceSMASunnyBoy36Dated20250608", "SMA", 0, 30_847_780),
        ("EmulatedDER", "DERSec", 9_800, 150),
    ],
)
async def test_a_sunspec_device_is_found_and_read_without_a_template(
    name, vendor, pv_w, generation_wh
):
    """The second Sunny Boy was recorded at night: it knows no power, and nothing flows."""
    async with served({1: dump(name)}) as port:
        site = Site([Device(name="it", kind="sunspec", port=port)], 2.0, notes := Notes())
        state = await site.poll(0.0)
        assert (state.devices, notes.lines) == ({"it": "ok"}, [])
        assert (state.pv_w, state.generation_wh) == (pv_w, generation_wh)
        assert (site.meter, site.battery) == (None, None), "models that nothing stands behind"
        assert site.inverters[0].nameplate["vendor"] == vendor
        site.close()


async def test_a_heat_pump_that_is_not_sunspec_is_refused_by_name_and_the_site_runs():
    async with (
        served({1: dump("DeviceThermiaGenesisDated20250518")}) as pump,
        served({1: dump("EmulatedDER")}) as port,
    ):
        configs = [
            Device(name="pump", kind="sunspec", port=pump),
            Device(name="pv", kind="sunspec-inverter", port=port),
        ]
        site = Site(configs, 2.0, notes := Notes())
        state = await site.poll(0.0)
        assert state.devices == {"pump": "lost", "pv": "ok"}
        why = "not a SunSpec device: no marker at 40000, 50000 or 0"
        assert notes.lines == [("device lost", why)]
        assert state.pv_w == 9_800
        site.close()


async def test_a_meter_in_the_field_is_read_as_its_owner_saw_it():
    registers, seen = meter_of_the_field()
    async with served({1: registers}) as port:
        meter = Device(
            name="meter", kind="template", template="eastron-sdm630", use=("grid",), port=port
        )
        site = Site([meter], 2.0, Notes())
        state = await site.poll(0.0)
        assert state.devices == {"meter": "ok"}
        assert state.grid_w == round(float(seen["Total System Power"]))
        assert state.import_wh == round(1000 * float(seen["Total Import KWh"]))
        assert state.export_wh == round(1000 * float(seen["Total Export KWh"]))
        site.close()
