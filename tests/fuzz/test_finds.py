"""What fuzzing found, one test each; every one of them failed before it was mended."""

import asyncio
import struct
from pathlib import Path

import pytest
from fuzz import harness, services
from support import chain_builder as cb

from hem.config import Device, load_market_facts, load_provisioning
from hem.gateway.client import GatewayClient, GatewayError
from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.roles import Battery, Meter
from hem.gateway.sunspec import NUMBER_MAX
from ledger.contracts.operations import read_operation
from ledger.protocol import decode_record
from runtime.link import MAX_PACKET_BYTES
from sim.profiles import load_profiles
from wire.envelope import date_ms, date_text
from wire.errors import ConfigError, MalformedError, UnknownOperationError


def model(number, size, **registers):
    words = [0] * size
    for place, value in registers.items():
        words[int(place[1:]) - 2] = value & 0xFFFF
    return struct.pack(f">HH{size}H", number, size, *words)


def image(*models):
    return b"SunS" + b"".join(models) + b"\xff\xff\x00\x00"


def device(kind, data):
    link = services._Image(data)
    return kind(Device(name="d", kind="any"), link, services._Notes()), link


COMMON = model(1, 66)


def test_a_date_of_a_year_below_1000_has_one_spelling():
    assert date_text(date_ms("0026-06-06T00:00:00Z")) == "0026-06-06T00:00:00Z"


@pytest.mark.parametrize("name", [{}, [], None, 5, {"op": "bid-offer"}])
def test_an_operation_whose_name_is_no_text_is_unknown(name):
    with pytest.raises(UnknownOperationError):
        read_operation({"op": name})


@pytest.mark.parametrize("raw", [b"", b"\x92\xa4vote\x96", b"\x93\xa4bo\xcf\xff" + b"\xff" * 7])
def test_a_record_of_the_vote_log_that_is_none_is_malformed(raw):
    with pytest.raises(MalformedError):
        decode_record(raw)


@pytest.mark.parametrize("line", [b'{"id":[],"result":1}\n', b'{"id":{}}\n', b"[" * 9000 + b"\n"])
async def test_an_odd_line_from_the_gateway_does_not_hold_up_whoever_waits(line):
    client = GatewayClient(Path("nowhere"), 1.0)
    waiting = client._waiting[0] = asyncio.get_running_loop().create_future()
    reader = asyncio.StreamReader()
    reader.feed_data(line)
    reader.feed_eof()
    await client._listen(reader, None)
    with pytest.raises(GatewayError, match="hung up"):
        await waiting


@pytest.mark.parametrize("topic", [b"\xff\xfe\xf3", b"hg/v1/\xc3"])
def test_a_topic_that_is_not_utf8_ends_the_connection_instead_of_sticking_in_it(topic):
    packet = services._packet(0x32, services._text(topic) + b"\x00\x05x")
    harness.TARGETS["link"].run(b"\x20\x02\x00\x00" + packet + b"\xd0\x00")


def test_a_packet_announced_as_too_long_ends_the_connection_before_it_is_gathered():
    announced = services.packets._length_bytes(MAX_PACKET_BYTES + 1)
    services.run_link(b"\x20\x02\x00\x00\x30" + announced + b"x", goes_on=False)


async def test_what_no_home_can_have_measured_is_not_available():
    words = {f"r{place}": 0x7E7E for place in range(2, 120)}
    meter, _ = device(Meter, image(COMMON, model(213, 124, **words)))
    await meter.poll(1.0)
    assert meter.status == "lost"
    assert abs(meter.grid_w) <= NUMBER_MAX


async def test_a_battery_rated_below_one_watt_is_refused_not_divided_by():
    storage = model(124, 24, r2=5, r18=0xFFF6)  # WChaMax 5 · 10⁻¹⁰ W
    bank = model(802, 62, r3=10_000, r4=5, r5=5, r54=0xFFF6)
    battery, _ = device(Battery, image(COMMON, bank, storage))
    await battery.poll(1.0)
    with pytest.raises(DeviceRefusedError):
        await battery.command(1000, 60, 2.0)


async def test_a_model_of_65000_registers_costs_no_hundreds_of_requests():
    battery, link = device(Battery, image(COMMON, model(802, 25_000)))
    await battery.poll(1.0)
    assert link.reads < 10


@pytest.mark.parametrize(
    "text",
    ["a = " + "9" * 5000, "a = " + "[" * 3000, 'data_dir = "a\\u0000b"'],
)
def test_a_provisioning_file_with_anything_in_it_is_a_config_error(tmp_path, text):
    good = services.provisionings()[0].decode()
    path = tmp_path / "home.toml"
    path.write_text(good.replace('data_dir = "data"', text))
    with pytest.raises(ConfigError):
        load_provisioning(path)


def test_a_path_with_a_zero_byte_is_a_config_error(tmp_path):
    path = tmp_path / "home.toml"
    good = services.provisionings()[0].decode()
    path.write_text(good.replace('"data"', '"da\\u0000ta"'))
    with pytest.raises(ConfigError):
        load_provisioning(path)


def test_a_deeply_nested_genesis_is_a_config_error_to_a_gateway(tmp_path):
    path = tmp_path / "genesis.json"
    path.write_text("[" * 90_000)
    with pytest.raises(ConfigError):
        load_market_facts(path)


@pytest.mark.parametrize("schema", ["[" * 90_000, '{"buildings":' + "9" * 5000 + "}"])
def test_a_schema_that_is_none_is_a_config_error(tmp_path, schema):
    (tmp_path / "Building_1.csv").write_bytes(services.profiles()[0][1:])
    (tmp_path / "schema.json").write_text(schema)
    with pytest.raises(ConfigError):
        load_profiles(tmp_path, 1, 7, cb.START_MS, 1)


def test_equipment_without_measure_is_a_config_error(tmp_path):
    schema = services.profiles()[1][1:].decode().replace("4.0", "Infinity")
    (tmp_path / "Building_1.csv").write_bytes(services.profiles()[0][1:])
    (tmp_path / "schema.json").write_text(schema)
    with pytest.raises(ConfigError, match="write a number"):
        load_profiles(tmp_path, 1, 7, cb.START_MS, 1)


def test_an_answer_between_nodes_whose_tag_is_not_utf8_is_malformed():
    raw = b"\x92\xaccertifi\xe3ates\x90"
    services.run_node(b"\x05" + raw)
