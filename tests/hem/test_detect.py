"""`hem detect` finds what is there, says how sure it is, and writes to nothing (real servers)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tomllib
from contextlib import asynccontextmanager

import pytest
from modbus_rig import SerialCable
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice
from register_server import Registers, device_of, devices_of, fixture, served

from hem.config import Device
from hem.gateway.detect import detect
from hem.gateway.form import checked, missing_of
from hem.gateway.match import judge, look_at, verdict
from hem.gateway.places import network_places, serial_places, units_of
from hem.gateway.proposal import proposal, to_json
from hem.gateway.template import load_template, template_ids
from runtime.clock import SystemClock
from sim.battery_physics import BatteryFacts, HomePhysics
from sim.sunspec_server import BATTERY_ID, INVERTER_ID, METER_ID, HomeDevices
from wire.errors import ConfigError

TIMEOUT_S = 5.0
TIED = {"sma-sunny-island": "sma-sunny-boy-storage"}
"""One register map, one device class: nobody can tell them apart by reading."""


class Everywhere(dict):
    """A table in which every register can be read: zero where nothing else is known."""

    def __contains__(self, _address):
        return True

    def __missing__(self, _address):
        return 0


def nobody(_done, _text):
    """A bar that nobody looks at."""


async def found_at(port, units, timeout_s=TIMEOUT_S, adapter=False):
    places = network_places("127.0.0.1", [port], public=False, adapter=adapter)
    return await detect(places, units, timeout_s, nobody)


def entries_of(findings):
    return tomllib.loads(proposal(findings))["devices"]


@asynccontextmanager
async def sunspec_home():
    clock = SystemClock()
    battery = BatteryFacts(10_000, 5_000, 4_000, 900, 900)
    physics = HomePhysics(
        clock.now_ms(), 60_000, lambda _: 1_500, lambda _: 4_000, battery, 18_000_000_000
    )
    devices = HomeDevices("home-01", physics, clock, has_pv=True)
    port = await devices.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await devices.stop()


@asynccontextmanager
async def tcp(serve):
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.mark.parametrize("everywhere", [False, True], ids=["its registers", "zeros elsewhere"])
@pytest.mark.parametrize("identity", template_ids())
async def test_every_product_is_found_as_itself_and_not_written_to(identity, everywhere):
    """First of the candidates, but for two products that read the same."""
    async with device_of(identity) as (template, devices, port):
        if everywhere:
            for registers in devices.values():
                registers.tables = {n: Everywhere(t) for n, t in registers.tables.items()}
        (finding,) = await found_at(port, [template.device_id])
        names = [candidate.template for candidate in finding.candidates]
        assert names[0] == TIED.get(identity, identity)
        assert identity in names[:3]
        if identity in TIED:
            assert finding.verdict == "ambiguous"
        assert all(registers.writes == [] for registers in devices.values())


@pytest.mark.parametrize("identity", template_ids())
async def test_the_proposal_loads_and_says_what_is_left_to_fill_in(identity):
    async with device_of(identity) as (template, _devices, port):
        findings = await found_at(port, [template.device_id])
    text = proposal(findings)
    (entry,) = tomllib.loads(text)["devices"]
    device = Device.model_validate(entry)
    assert (device.kind, device.host, device.port) == ("template", "127.0.0.1", port)
    missing = [field.name for field in missing_of(device.template, entry)]
    assert re.findall(r"^# (\w+) =      # FILL IN", text, re.MULTILINE) == missing
    given = fixture(identity).get("parameters", {})
    if device.template == identity:  # filled in, nothing is missing
        complete = {name: given[name] for name in missing}
        load_template(identity).settings((device.model_extra or {}) | complete)


async def test_sunspec_devices_tell_vendor_serial_and_capabilities():
    async with sunspec_home() as port:
        findings = await found_at(port, units_of("1-10,100,126", serial=False))
    assert [finding.unit for finding in findings] == [METER_ID, INVERTER_ID, BATTERY_ID]
    said = [(f.kind, f.sunspec.serial, f.sunspec.capabilities) for f in findings]
    assert said == [
        ("sunspec", "home-01-m", ("grid",)),
        ("sunspec", "home-01-i", ("pv",)),
        ("sunspec", "home-01-b", ("battery",)),
    ]
    assert {finding.sunspec.vendor for finding in findings} == {"Simulated"}
    entries = entries_of(findings)
    assert [entry["name"] for entry in entries] == ["meter", "pv", "battery"]
    assert [Device.model_validate(entry).use for entry in entries] == [
        ("grid",), ("pv",), ("battery",),
    ]  # fmt: skip


async def test_a_device_that_answers_on_every_unit_id_is_one():
    template = load_template("goodwe-et")
    (registers,) = devices_of(template).values()
    async with served(dict.fromkeys((1, 2, 247), registers)) as port:
        (finding,) = await found_at(port, [1, 2, 3, 247])
    assert (finding.unit, set(finding.also_units)) == (247, {1, 2}), "the product's own counts"
    assert "the same device answers as unit" in proposal([finding])


async def test_three_meters_on_one_line_are_three():
    meters = {}
    for unit, energy in ((1, "4108 0000"), (2, "4208 0000"), (3, "4308 0000")):
        (meters[unit],) = devices_of(load_template("eastron-sdm630")).values()
        meters[unit].put("input", 72, energy)
    async with served(meters) as port:
        findings = await found_at(port, [1, 2, 3, 4])
    assert [entry["name"] for entry in entries_of(findings)] == ["meter", "meter-2", "meter-3"]


async def test_a_device_that_is_nothing_we_know_is_said_once_and_not_proposed():
    strange = Registers()
    strange.put("holding", 7, "BEEF")
    async with served(dict.fromkeys((1, 2, 3), strange)) as port:
        (finding,) = await found_at(port, [1, 2, 3])
    assert (finding.kind, finding.also_units) == ("unknown", (2, 3))
    assert "devices" not in tomllib.loads(proposal([finding]))
    assert to_json([finding])[0]["entry"] is None


async def test_a_mute_port_costs_a_time_out_for_each_unit_and_is_nothing():
    async def mute(reader, _writer):
        while await reader.read(4096):
            pass

    async with tcp(mute) as port:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert await found_at(port, [1, 2, 3], timeout_s=0.2) == []
        assert loop.time() - began_s < 30


async def test_a_web_server_on_the_port_is_nothing():
    async def web(reader, writer):
        while await reader.read(4096):
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with tcp(web) as port:
        assert await found_at(port, [1, 2, 3], timeout_s=0.2) == []


async def test_a_host_that_refuses_is_nothing():
    async with tcp(lambda *_: None) as port:
        pass
    assert await found_at(port, [1, 2, 3]) == []


async def test_a_gateway_that_answers_for_units_that_are_not_there_is_nothing():
    """Exceptions 10 and 11 are the gateway's."""

    class Away(Registers):
        everywhere = True

        async def act(self, *_):
            return ExcCodes.GATEWAY_NO_RESPONSE

    def everywhere():  # beyond its registers the server would answer in the unit's own name
        return {"holding": {0: 0, 0xFFFF: 0}, "input": {0: 0, 0xFFFF: 0}}

    async with served({unit: Away(everywhere()) for unit in (1, 2)}) as port:
        assert await found_at(port, [1, 2]) == []


async def test_a_host_is_asked_over_one_connection_at_a_time():
    connected, most = 0, 0
    template = load_template("huawei-sun2000")
    async with served(devices_of(template)) as far:

        async def carry(reader, writer):
            nonlocal connected, most
            connected += 1
            most = max(most, connected)
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", far)

            async def pump(source, sink):
                while data := await source.read(4096):
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
            connected -= 1

        async with tcp(carry) as port:
            (finding,) = await found_at(port, [1, 2])
    assert finding.candidates[0].template == "huawei-sun2000"
    assert most == 1


async def test_a_meter_on_a_serial_line_is_found_with_its_speed(tmp_path):
    """A real pty; the cable has no speed, so the first that is tried answers."""
    template = load_template("eastron-sdm630")
    cable = SerialCable(tmp_path)
    (registers,) = devices_of(template).values()
    bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
    block = [SimData(0, values=[0] * 0x10000, datatype=DataType.REGISTERS)]
    device = SimDevice(1, (bits, bits, block, block), action=registers.act)
    server = ModbusSerialServer(
        [device], port=cable.far_path, baudrate=9_600, ignore_missing_devices=True
    )
    await server.serve_forever(background=True)
    try:
        places = serial_places(str(cable.path), None, None)
        # Unit 2 is silent: a time-out more, no finding.
        (finding,) = await detect(places, [1, 2], 1.0, nobody)
    finally:
        await server.shutdown()
        cable.close()
    assert finding.candidates[0].template == "eastron-sdm630"
    (entry,) = entries_of([finding])
    assert entry == {
        "name": "meter", "kind": "template", "template": "eastron-sdm630",
        "connection": "rtu", "path": str(cable.path),
    }  # fmt: skip
    Device.model_validate(entry)


def test_all_zeros_are_no_evidence():
    for identity in template_ids():
        look = look_at(load_template(identity), 1)
        assert judge(look, Zeros(), 502) is None, identity


class Zeros(dict):
    def get(self, _key, _default=None):
        return 0


def test_a_verdict_is_as_sure_as_the_lead_over_the_next():
    from hem.gateway.match import Candidate  # noqa: PLC0415

    def one(name, bits, named=False):
        return Candidate(name, bits, 3, named, ())

    assert verdict([one("a", 99, True), one("b", 40)]) == "named"
    assert verdict([one("a", 99, True), one("b", 99, True)]) == "ambiguous"
    assert verdict([one("a", 40), one("b", 20)]) == "likely"
    assert verdict([one("a", 40), one("b", 35)]) == "ambiguous"
    assert verdict([one("a", 9)]) == "weak"


def test_what_a_device_calls_itself_cannot_leave_its_comment():
    """A model name with a line end would else add keys to the file."""
    from hem.gateway.detect import Finding, SunSpecFacts  # noqa: PLC0415
    from hem.gateway.links import Connection  # noqa: PLC0415

    facts = SunSpecFacts("Evil", 'x\nhost = "203.0.113.1"', "s\r[home]", "", ("grid",), (1,))
    finding = Finding(Connection(host="127.0.0.1"), 1, "sunspec", facts)
    (entry,) = entries_of([finding])
    assert entry == {"name": "meter", "kind": "sunspec", "use": ["grid"], "host": "127.0.0.1"}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("10.0.0.0/8", "16777216 addresses; give 4096 at most"),
        ("fd00::/64", "give 4096 at most"),
        ("8.8.8.8", "is not private"),
        ("router.example", "is no network and no serial port"),
        ("192.168.1.0/33", "is no network"),
    ],
)
def test_no_more_is_scanned_than_what_was_meant(place, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        network_places(place, [502], public=False, adapter=False)


def test_a_port_that_cannot_be_used_is_not_said_to_be_silent(tmp_path, monkeypatch):
    """What a newcomer meets first: a wrong name, a file, a user outside the group of the port."""
    with pytest.raises(ConfigError, match="ttyNONE: there is no such port"):
        serial_places("/dev/ttyNONE", None, None)
    with pytest.raises(ConfigError, match="is no serial port; give one such as"):
        serial_places(str(tmp_path), None, None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="add it to the port's group"):
        serial_places("/dev/null", None, None)


def test_public_addresses_are_scanned_only_when_that_is_said():
    places = network_places("8.8.8.8", [502], public=True, adapter=False)
    assert [host[0].host for host in places.hosts] == ["8.8.8.8"]
    hosts = network_places("192.168.1.7/30", [502, 1502], public=False, adapter=False).hosts
    assert [c.where for host in hosts for c in host] == [
        "192.168.1.5:502", "192.168.1.5:1502", "192.168.1.6:502", "192.168.1.6:1502",
    ]  # fmt: skip


@pytest.mark.parametrize("units", ["", "x", "0", "5-1", "1-300", "1,,2"])
def test_unit_ids_that_are_none_are_refused(units):
    with pytest.raises(ConfigError, match="--units"):
        units_of(units, serial=True)


async def command(*arguments):
    """`hem …` as a process: exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hem.cli", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_prints_entries_and_json_and_writes_a_new_file_only(tmp_path):
    async with device_of("sungrow-sh") as (_template, _devices, port):
        where = ("detect", "127.0.0.1", "--port", str(port), "--units", "1")
        code, out, _ = await command(*where)
        assert code == 0
        assert tomllib.loads(out)["devices"][0]["template"] == "sungrow-sh"
        code, out, _ = await command(*where, "--json")
        (facts,) = json.loads(out)
        assert (facts["verdict"], facts["toFillIn"]) == (
            "named",
            ["max_charge_w", "max_discharge_w"],
        )
        file = tmp_path / "found.toml"
        assert (await command(*where, "--out", str(file)))[0] == 0
        assert tomllib.loads(file.read_text())["devices"]
        before = file.read_text()
        code, _, err = await command(*where, "--out", str(file))
        assert (code, file.read_text()) == (2, before)
        assert "is there already" in err


async def test_nothing_found_is_one_line_and_exit_code_1():
    async with tcp(lambda *_: None) as port:
        pass
    code, out, err = await command("detect", "127.0.0.1", "--port", str(port))
    assert (code, out) == (1, "")
    assert err == "hem: nothing on 127.0.0.1 answered as a Modbus device\n"


def test_a_form_makes_the_entry_that_was_detected():
    """Both write the same file: what is at its default is left out."""
    entry = checked("eastron-sdm630", {
        "name": "meter", "connection": "tcp", "host": "192.168.1.9", "use": ["pv"],
    })  # fmt: skip
    assert entry == {
        "name": "meter", "kind": "template", "template": "eastron-sdm630",
        "host": "192.168.1.9", "use": ["pv"],
    }  # fmt: skip
