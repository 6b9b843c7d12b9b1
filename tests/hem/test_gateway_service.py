"""The gateway process keeps its promises to the EMS, to the battery, and against strangers."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from register_server import device_of
from support.patience import PATIENCE_S

from hem.config import load_market_facts, load_provisioning
from hem.gateway.builders import BUILDERS
from hem.gateway.client import GatewayClient, GatewayError
from hem.gateway.service import run
from hem.gateway.source import Sample
from runtime.clock import ScaledClock, SystemClock, write_clock
from sim.battery_physics import WMS_PER_WH, BatteryFacts, HomePhysics
from sim.sunspec_server import BATTERY_ID, HomeDevices
from wire.canonical import encode
from wire.certificates import Meter
from wire.errors import ConfigError
from wire.keys import BoxKey, SigningKey, from_text, to_text
from wire.metering import CpfAttestation, Reading, Receipt, check_record, digest, load_record
from wire.slots import SlotGrid

GRID = SlotGrid(900)
START_MS = GRID.start_ms(1_980_000)
KEY = SigningKey(bytes(32))
DSO = BoxKey(bytes(range(32)))
ADDRESS = SigningKey(b"a" * 32).id
VALIDATOR = SigningKey(b"v" * 32).id
CHAIN = "hg-test"


class StepClock(SystemClock):
    """Market time that moves when told; real time is real."""

    def __init__(self):
        self.market_ms = START_MS

    def now_ms(self):
        return self.market_ms


@dataclass
class Rig:
    """A home with devices and the files of its gateway."""

    folder: Path
    clock: SystemClock
    devices: HomeDevices

    @property
    def file(self):
        return self.folder / "provisioning.toml"

    @property
    def socket(self):
        return self.folder / "gw.sock"

    def battery_w(self):
        self.devices.refresh()
        return self.devices.physics.flows().battery_w


def provision(folder, port, extra=""):
    (folder / "genesis.json").write_text(
        json.dumps({"chainId": CHAIN, "slotLengthS": 900, "dsoBoxKey": to_text(DSO.public)})
    )
    key = to_text(KEY.public)
    devices = "".join(
        f'[[devices]]\nname = "{name}"\nkind = "sunspec-{kind}"\nport = {port}\ndevice_id = {n}\n'
        for n, name, kind in ((1, "meter", "meter"), (2, "pv", "inverter"), (3, "bat", "battery"))
    )
    (folder / "provisioning.toml").write_text(f"""
[home]
name = "home-01"
claim_code = "x"
data_dir = "data"
[broker]
port = 1883
[market]
name = "demo"
genesis = "genesis.json"
csmdb = "{KEY.id}"
csmdb_key = "{key}"
csmdb_box = "{key}"
[gateway]
socket = "gw.sock"
cache_s = 0.05
{extra}
{devices}
""")


@asynccontextmanager
async def rig(extra="", clock=None, load_w=1500, pv_w=4000):
    clock = clock or StepClock()
    physics = HomePhysics(
        clock.now_ms(),
        60_000,
        lambda ms: load_w,
        lambda ms: pv_w,
        BatteryFacts(10_000, 5_000, 5_000),
        Fraction(5_000 * WMS_PER_WH),
    )
    devices = HomeDevices("home-01", physics, clock, has_pv=True)
    port = await devices.start("127.0.0.1", 0)
    with tempfile.TemporaryDirectory(prefix="hg") as name:
        provision(Path(name), port, extra)
        try:
            yield Rig(Path(name), clock, devices)
        finally:
            await devices.stop()


@asynccontextmanager
async def serving(home):
    """The gateway in this process, and a client that has met it."""
    config = load_provisioning(home.file)
    stop = asyncio.Event()
    facts = load_market_facts(config.market.genesis)
    task = asyncio.create_task(run(config, facts, stop, home.clock))
    client = GatewayClient(home.socket)
    try:
        await client.wait_ready(5)
        yield client
    finally:
        await client.close()
        stop.set()
        await task


def spawn(home, clock_file=None):
    """The gateway as its own process."""
    environment = os.environ | ({"HEARTHGRID_CLOCK": str(clock_file)} if clock_file else {})
    code = "import sys; from hem.gateway.service import main; main(sys.argv[1])"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(home.file)],
        env=environment,
        stderr=subprocess.PIPE,
    )


async def refused(code, awaitable):
    with pytest.raises(GatewayError) as caught:
        await awaitable
    assert caught.value.code == code


async def test_state_has_every_field_with_its_sign():
    async with rig() as home, serving(home) as gateway:
        home.clock.market_ms += 3_600_000
        state = await gateway.state()
        assert state == {
            "time_ms": home.clock.market_ms,
            "grid_w": 0,
            "pv_w": 4000,
            "battery_w": -2500,
            "load_w": 1500,
            "soc_permille": 738,
            "import_wh": 0,
            "export_wh": 0,
            "generation_wh": 4000,
            "battery": {"capacity_wh": 10_000, "max_charge_w": 5_000, "max_discharge_w": 5_000},
            "devices": {"meter": "ok", "pv": "ok", "bat": "ok"},
        }
        plate = await gateway.nameplate()
        assert (plate["type"], plate["serial"]) == ("sunspec-meter", "home-01-m")


async def test_a_meter_is_named_by_its_template_and_a_battery_that_is_not_there_is_said():
    async with device_of("shelly-pro-3em") as (template, _devices, port), rig() as home:
        head = home.file.read_text().split("[[devices]]")[0]
        device = f'[[devices]]\nname = "m"\nkind = "template"\ntemplate = "{template.id}"\n'
        home.file.write_text(f"{head}{device}port = {port}\n")
        async with serving(home) as gateway:
            assert (await gateway.nameplate())["type"] == "shelly-pro-3em"
            with pytest.raises(GatewayError, match="no device is configured as the battery"):
                await gateway.set_battery(0, 5)


class Bare:
    """A meter that tells its values and nothing of itself."""

    capabilities = frozenset({"grid"})

    async def read(self):
        return Sample(grid_w=0, import_wh=1, export_wh=2)

    def close(self):
        pass


async def test_a_meter_that_says_nothing_of_itself_can_be_enrolled(monkeypatch):
    monkeypatch.setitem(BUILDERS, "bare", lambda config, site: Bare())
    async with rig() as home:
        head = home.file.read_text().split("[[devices]]")[0]
        home.file.write_text(f'{head}[[devices]]\nname = "m"\nkind = "bare"\n')
        async with serving(home) as gateway:
            plate = await gateway.nameplate()
            assert plate == {
                "type": "bare",
                "vendor": "",
                "model": "",
                "firmware": "",
                "serial": "",
            }
            key = (await gateway.public_keys())["meter"]
            assert msgspec.convert(plate | {"meter_key": key}, Meter, strict=True).type == "bare"


async def test_readings_receipts_and_attestation_follow_from_the_registers():
    async with rig() as home, serving(home) as gateway:
        meter = from_text((await gateway.public_keys())["meter"])
        first = GRID.slot_at(home.clock.market_ms)
        await refused("TOO_EARLY", gateway.sign_reading(first))
        rows = []
        for number, power_w in enumerate((3_000, -1_000, 0)):
            await gateway.set_battery(power_w, 60)
            home.clock.market_ms += 900_000
            rows.append(await gateway.sign_reading(first + number))
        readings = [load_record(Reading, row["reading"]) for row in rows]
        for reading in readings:
            check_record(reading, meter, CHAIN)
        assert [reading.export_wh for reading in readings] == [1375, 1750, 2375]
        assert readings[2].previous == digest(readings[1])
        assert DSO.open(from_text(rows[1]["sealed"])) == encode(rows[1]["reading"])
        assert await gateway.sign_reading(first + 1) == rows[1]

        receipt = load_record(Receipt, await gateway.sign_receipt(ADDRESS, first + 1))
        check_record(receipt, from_text((await gateway.pseudonym(ADDRESS))["key"]), CHAIN)
        assert receipt.net_wh == -(1750 - 1375)
        assert receipt.reading == digest(readings[1])
        await refused("GAP", gateway.sign_receipt(ADDRESS, first))
        await refused("NO_READING", gateway.sign_receipt(ADDRESS, first + 9))

        label = f"validator:{VALIDATOR}"
        answer = await gateway.attest_cpf(VALIDATOR, first + 1, first + 2)
        check_record(
            load_record(CpfAttestation, answer),
            from_text((await gateway.pseudonym(label))["key"]),
            CHAIN,
        )
        assert answer["eligible"] is True


async def test_registers_that_fall_are_refused_over_the_socket():
    async with rig() as home, serving(home) as gateway:
        first = GRID.slot_at(home.clock.market_ms)
        home.clock.market_ms += 900_000
        await gateway.sign_reading(first)
        home.devices.physics.generation_wms = 0
        home.clock.market_ms += 900_000
        home.devices.physics.time_ms = home.clock.market_ms
        await refused("BACKWARDS", gateway.sign_reading(first + 1))
        assert (await gateway.state())["generation_wh"] == 0


async def test_a_lease_ends_and_a_renewed_one_goes_on():
    async with rig() as home, serving(home) as gateway:
        assert await gateway.set_battery(99_999, 1) == {"accepted_w": 5_000}
        assert (await gateway.state())["battery_w"] == 5_000
        await asyncio.sleep(0.7)
        await gateway.set_battery(2_000, 1)
        await asyncio.sleep(0.7)
        assert home.battery_w() == 2_000
        await asyncio.sleep(0.5)
        assert home.battery_w() == -2_500
        await gateway.set_battery(2_000, 60)
        await gateway.release_battery()
        assert (await gateway.state())["battery_w"] == -2_500


async def test_the_gateway_restores_neutral_where_the_devices_timer_fails():
    async with rig() as home:
        home.devices._revert = lambda: None
        async with serving(home) as gateway:
            await gateway.set_battery(2_000, 1)
            await asyncio.sleep(1.1)
            assert home.battery_w() == 2_000  # the device forgot
            await asyncio.sleep(0.8)
            assert home.battery_w() == -2_500  # the gateway did not


async def test_a_long_lease_is_given_to_the_device_in_short_ones():
    async with rig(extra="device_lease_s = 2") as home, serving(home) as gateway:
        await gateway.set_battery(2_000, 4)
        assert home.devices.images[BATTERY_ID].get(124, "InOutWRte_RvrtTms") == 2
        await asyncio.sleep(3.5)
        assert home.battery_w() == 2_000
        await asyncio.sleep(0.8)
        assert home.battery_w() == -2_500


async def test_a_lease_ends_with_whoever_took_it_unless_it_is_back_soon(monkeypatch):
    monkeypatch.setattr("hem.gateway.service.ALONE_S", 1.0)
    async with rig() as home, serving(home) as gateway:
        await gateway.set_battery(2_000, 600)
        await gateway.close()
        await gateway.state()  # it was only started anew
        await asyncio.sleep(1.5)
        assert home.battery_w() == 2_000
        await gateway.close()
        async with asyncio.timeout(PATIENCE_S):
            while home.battery_w() != -2_500:
                await asyncio.sleep(0.05)


async def test_a_graceful_stop_leaves_the_battery_neutral():
    async with rig() as home:
        async with serving(home) as gateway:
            await gateway.set_battery(2_000, 600)
            assert home.battery_w() == 2_000
        assert home.battery_w() == -2_500
        assert not home.socket.exists()


async def test_kill_9_frees_the_battery_and_the_chain_of_readings_goes_on(tmp_path):
    clock_file = tmp_path / "clock.json"
    write_clock(clock_file, [(time.time(), START_MS, 1200.0)])
    clock = ScaledClock(clock_file)
    async with rig(clock=clock) as home:
        client = GatewayClient(home.socket)
        process = spawn(home, clock_file)
        try:
            await client.wait_ready(10)
            key = await client.public_keys()
            slot = GRID.slot_at(clock.now_ms())
            await clock.sleep_until(GRID.end_ms(slot))
            await client.set_battery(2_000, 2)
            before = await client.sign_reading(slot)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert home.battery_w() == 2_000
        await refused("UNAVAILABLE", client.state())
        await asyncio.sleep(2.1)
        assert home.battery_w() == -2_500

        process = spawn(home, clock_file)
        try:
            await client.wait_ready(10)
            assert await client.public_keys() == key
            assert await client.sign_reading(slot) == before
            late = GRID.slot_at(clock.now_ms()) - 1
            after = await client.sign_reading(late)
            assert after["reading"]["seq"] == 1
            assert after["reading"]["previous"] == digest(load_record(Reading, before["reading"]))
            await refused("GAP", client.sign_receipt(ADDRESS, late))
        finally:
            await client.close()
            process.terminate()
            assert process.wait(5) == 0


async def test_two_gateways_cannot_share_one_key():
    async with rig() as home, serving(home):
        config = load_provisioning(home.file)
        facts = load_market_facts(config.market.genesis)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hem.gateway.service.LOCK_WAIT_S", 0.0)
            with pytest.raises(ConfigError, match="another gateway"):
                await run(config, facts, asyncio.Event(), home.clock)


async def test_the_files_and_the_socket_are_for_our_user_alone():
    async with rig() as home, serving(home):
        assert home.socket.stat().st_mode & 0o777 == 0o600
        assert (home.folder / "data/gateway").stat().st_mode & 0o777 == 0o700
        assert (home.folder / "data/gateway/meter.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to take another user's id")
async def test_another_user_is_turned_away_even_with_access_to_the_socket():
    ask = (
        "import os, socket, sys; os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        's.sendall(b\'{"id":1,"method":"public_keys","params":{}}\\n\')\n'
        "print(s.recv(999).decode())"
    )
    async with rig() as home, serving(home):
        home.folder.chmod(0o755)
        home.socket.chmod(0o777)
        stranger = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ask, str(home.socket), stdout=subprocess.PIPE
        )
        answer, _ = await stranger.communicate()
        assert json.loads(answer)["error"]["code"] == "NOT_ALLOWED"


def talk(path, data, answers=1):
    """Send bytes as they are; the answers' error codes."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(path))
        raw.sendall(data)
        lines = raw.makefile("rb")
        return [json.loads(lines.readline()) for _ in range(answers)]


HOSTILE = [
    (b"\n", "MALFORMED"),
    (b"{\n", "MALFORMED"),
    (b"\xff\xfe\x00\n", "MALFORMED"),
    (b"[" * 9_000 + b"\n", "MALFORMED"),
    (b'{"id":1,"method":"state","params":' + b'{"a":' * 3_000 + b"1" + b"}" * 3_001 + b"\n", None),
    (b'{"id":"x","method":"state"}\n', "MALFORMED"),
    (b'{"id":7,"method":"__init__"}\n', "UNKNOWN_METHOD"),
    (b'{"id":7,"method":"state","params":{"x":1}}\n', "BAD_PARAMS"),
    (b'{"id":7,"method":"sign_reading","params":{"slot":-1}}\n', "BAD_PARAMS"),
    (b'{"id":7,"method":"sign_reading","params":{"slot":1e99}}\n', "BAD_PARAMS"),
    (b'{"id":7,"method":"sign_reading","params":{"slot":true}}\n', "BAD_PARAMS"),
    (b'{"id":7,"method":"pseudonym","params":{"label":"anything"}}\n', "BAD_PARAMS"),
    (b'{"id":7,"method":"set_battery","params":{"power_w":1,"lease_s":0}}\n', "BAD_PARAMS"),
    (b'{"id":7,"method":"set_battery","params":{"power_w":1,"lease_s":99999}}\n', "BAD_PARAMS"),
    (b"x" * 20_000 + b"\n", "OVERSIZED"),
]


@pytest.mark.parametrize(("data", "code"), HOSTILE, ids=lambda v: str(v)[:40])
async def test_hostile_input_gets_a_named_error_and_the_gateway_lives(data, code):
    async with rig() as home, serving(home) as gateway:
        (answer,) = await asyncio.to_thread(talk, home.socket, data)
        assert answer["error"]["code"] == code if code else "error" in answer
        assert (await gateway.public_keys())["meter"]


async def test_half_a_request_and_a_hang_up_harm_nobody():
    async with rig() as home, serving(home) as gateway:
        for data in (b'{"id":1,', b"", b'{"id":1,"method":"state","params":{}}\n'):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(home.socket))
                raw.sendall(data)
        assert (await gateway.state())["pv_w"] == 4000


async def test_many_connections_are_bounded_and_freed():
    async with rig() as home, serving(home) as gateway:
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(30)]
        for one in crowd:
            one.connect(str(home.socket))
        await asyncio.sleep(0.1)
        assert (await gateway.public_keys())["meter"]
        for one in crowd:
            one.close()
        await asyncio.sleep(0.1)
        ask = b'{"id":3,"method":"public_keys"}\n'
        assert (await asyncio.to_thread(talk, home.socket, ask))[0]["id"] == 3


async def test_many_questions_at_once_share_one_poll():
    async with rig() as home, serving(home) as gateway:
        await gateway.state()
        await asyncio.sleep(0.06)
        polls = 0
        refresh = home.devices.refresh

        def counted():
            nonlocal polls
            polls += 1
            refresh()

        home.devices.refresh = counted
        states = await asyncio.gather(*(gateway.state() for _ in range(40)))
        assert len({state["pv_w"] for state in states}) == 1
        assert polls <= 2 * 3  # one request a device, and perhaps a second round


async def test_the_client_comes_back_when_the_gateway_does():
    async with rig() as home:
        client = GatewayClient(home.socket)
        await refused("UNAVAILABLE", client.state())
        for _ in range(2):
            async with serving(home):
                assert (await client.state())["devices"]["meter"] == "ok"
            await refused("UNAVAILABLE", client.state())
        await client.close()


async def test_a_battery_that_ignores_the_setpoint_is_a_named_error():
    async with rig() as home, serving(home) as gateway:
        await gateway.state()
        home.devices._commanded = home.devices._revert
        await refused("REJECTED", gateway.set_battery(1_000, 5))
        await home.devices.stop()
        with pytest.raises(GatewayError) as caught:
            await gateway.set_battery(1_000, 5)
        assert caught.value.code == "DEVICE_LOST"
        assert (await gateway.state())["devices"]["bat"] == "lost"


async def test_an_order_that_fails_does_not_bring_the_one_before_back():
    """Who asked to charge and was refused does not go on discharging."""
    async with rig(extra="device_lease_s = 2") as home, serving(home) as gateway:
        await gateway.set_battery(2_000, 600)
        take = home.devices._commanded
        home.devices._commanded = home.devices._revert
        await refused("REJECTED", gateway.set_battery(-1_000, 600))
        home.devices._commanded = take
        await asyncio.sleep(2.5)  # the order before was renewed every second
        assert home.battery_w() == -2_500


async def test_a_lease_ends_whatever_goes_wrong_with_its_renewals(monkeypatch):
    """A full disk, no more open files: not only devices fail."""
    async with rig(extra="device_lease_s = 2") as home, serving(home) as gateway:
        home.devices._revert = lambda: None  # its own timer fails, too
        await gateway.set_battery(2_000, 3)

        async def full(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr("hem.gateway.roles.Battery.command", full)
        async with asyncio.timeout(PATIENCE_S):
            while home.battery_w() != -2_500:
                await asyncio.sleep(0.05)


async def test_a_reading_is_not_made_up_when_the_meter_is_lost():
    async with rig() as home, serving(home) as gateway:
        first = GRID.slot_at(home.clock.market_ms)
        home.clock.market_ms += 900_000
        signed = await gateway.sign_reading(first)
        await home.devices.stop()
        home.clock.market_ms += 900_000
        await refused("DEVICE_LOST", gateway.sign_reading(first + 1))
        assert await gateway.sign_reading(first) == signed


async def test_setpoint_registers_hold_what_was_asked():
    async with rig() as home, serving(home) as gateway:
        await gateway.set_battery(-1_250, 7)
        image = home.devices.images[BATTERY_ID]
        names = ("StorCtl_Mod", "OutWRte", "InWRte", "InOutWRte_RvrtTms")
        assert [image.get(124, name) for name in names] == [3, -2_500, 2_500, 7]
