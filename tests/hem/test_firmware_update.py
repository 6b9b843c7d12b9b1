"""
A meter gets its firmware over real sockets: repository over HTTP, home, gateway, Modbus meter, and
the CSM-DB over a broker certifies what the gateway attests.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.brokers import REPOSITORY, Authority, running_broker
from support.enrolment import connected_lane
from support.firmware import Makers
from support.patience import PATIENCE_S

from csmdb.firmware_http import build_app
from csmdb.service import CsmDbService
from csmdb.setup import create
from hem.config import load_market_facts, load_provisioning
from hem.ems.enrolment import Enrolment
from hem.ems.firmware import Firmware
from hem.ems.firmware_status import Wish, read_view
from hem.ems.keyring import Keyring
from hem.firmware_client import Question, metadata_files, taken
from hem.firmware_worker import consult as consult_here
from hem.gateway import firmware as gateway_firmware
from hem.gateway.client import GatewayClient, GatewayError
from hem.gateway.service import run
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbClient
from runtime.http import listen, serving
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from sim.firmware_meter import FirmwareMeter, make_image
from wire.errors import ConfigError
from wire.keys import BoxKey, SigningKey, to_text
from wire.metering import Reading, load_record

KEY = SigningKey(bytes(32))
TEMPLATES = {"RM-1": "hearthgrid-rm1", "RM-2": "hearthgrid-rm2"}
WAYS = {"RM-1": "registers", "RM-2": "file-records"}
SLOT_S = 900


class StepClock(SystemClock):
    """Market time that stands until it is told; real time is real."""

    def __init__(self):
        self.ahead_ms = 0

    def now_ms(self):
        return super().now_ms() + self.ahead_ms


async def here(question):
    """The worker's answer without a process of its own: quick."""
    return taken(await asyncio.to_thread(consult_here, question))


def provision(folder, meter, makers, url="http://127.0.0.1:9", extra=""):
    (folder / "genesis.json").write_text(
        json.dumps(
            {
                "chainId": "hg-test",
                "slotLengthS": SLOT_S,
                "dsoBoxKey": to_text(BoxKey(bytes(32)).public),
            }
        )
    )
    key = to_text(KEY.public)
    (folder / "provisioning.toml").write_text(f"""
[home]
name = "home-01"
claim_code = "x"
data_dir = "data"
[broker]
port = 1883
[market]
name = "test"
genesis = "genesis.json"
csmdb = "{KEY.id}"
csmdb_key = "{key}"
csmdb_box = "{key}"
[gateway]
socket = "gw.sock"
cache_s = 0.05
[firmware]
url = "{url}"
root = "{makers.root}"
{extra}
[[devices]]
name = "meter"
kind = "template"
template = "{TEMPLATES[meter.memory.model]}"
port = {meter.port}
""")
    return load_provisioning(folder / "provisioning.toml")


@asynccontextmanager
async def metered(model="RM-1", version="1.0.0"):
    meter = FirmwareMeter(model, make_image(model, version), restart_s=0.05)
    await meter.start()
    try:
        yield meter
    finally:
        await meter.stop()


@asynccontextmanager
async def serving_gateway(config, clock):
    """The gateway in this process, and a client that has met it."""
    stop = asyncio.Event()
    facts = load_market_facts(config.market.genesis)
    task = asyncio.create_task(run(config, facts, stop, clock))
    client = GatewayClient(config.gateway.socket)
    try:
        await client.wait_ready(PATIENCE_S)
        yield client
    finally:
        await client.close()
        stop.set()
        await task


@asynccontextmanager
async def premises(tmp_path, model="RM-1", **how):
    """A meter, its gateway, and who makes firmware for it."""
    makers = Makers(tmp_path / "makers")
    async with metered(model) as meter:
        with tempfile.TemporaryDirectory(prefix="hg") as name:
            config = provision(Path(name), meter, makers, **how)
            clock = StepClock()
            async with serving_gateway(config, clock) as gateway:
                await gateway.nameplate()
                yield meter, makers, gateway, config, clock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gateway_firmware, "PAUSE_S", 0.05)
    monkeypatch.setattr(gateway_firmware.FirmwareKeeper.__init__, "__defaults__", (here, 0.05))


async def hand_over(gateway, makers, *names):
    """What an EMS does: fetch from the repository's folder, and pass on."""
    metadata = makers.public / "metadata"
    for path in metadata.glob("*.root.json"):
        await gateway.hand_over(path.name, path.read_bytes())
    for role in ("snapshot", "targets"):
        newest = max(metadata.glob(f"*.{role}.json"), key=lambda path: int(path.name.split(".")[0]))
        await gateway.hand_over(f"{role}.json", newest.read_bytes())
    await gateway.hand_over("timestamp.json", (metadata / "timestamp.json").read_bytes())
    for name in names:
        (path,) = (makers.public / "targets").glob(f"*.{name}")
        await gateway.hand_over(name, path.read_bytes())


async def settled(gateway):
    async with asyncio.timeout(PATIENCE_S):
        while (status := await gateway.firmware_status())["state"] in ("writing", "starting"):
            await asyncio.sleep(0.02)
    return status


async def refused(code, awaitable):
    with pytest.raises(GatewayError) as caught:
        await awaitable
    assert caught.value.code == code, caught.value


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TEMPLATES)
async def test_from_the_repository_to_the_certificate(tmp_path, monkeypatch, model):
    """Served over HTTP, fetched in a child, verified twice, written, run, attested, certified."""
    if model == "RM-1":  # once with the real children
        monkeypatch.undo()
    makers = Makers(tmp_path)
    name = makers.release("2.0.0", make_image(model, "2.0.0"), model=model,
                          template=TEMPLATES[model], installs_by=WAYS[model])  # fmt: skip
    csmdb = create(makers.folder, "test")
    authority, market = Authority("test", csmdb.issuing_key), "test"
    listener = listen("127.0.0.1", 0, "port")
    app = build_app(makers.repository(), csmdb.clock.monotonic_s)
    async with (
        metered(model) as meter,
        running_broker(authority) as broker,
        serving(app, listener, tmp_path / "url") as url,
    ):
        own = await connected_lane(authority, broker.port, csmdb.issuing_key,
                                   credential=csmdb.certificate)  # fmt: skip
        reviewed = []
        service = CsmDbService.on(csmdb, own)
        service.firmware = csmdb.firmware_desk(reviewed.append)
        service.start()
        with tempfile.TemporaryDirectory(prefix="hg") as folder:
            config = provision(Path(folder), meter, makers, url)
            clock = StepClock()
            config.home.data_dir.mkdir()
            keyring = Keyring(config.home.data_dir / "keys", SystemRng())
            store = SqliteStore(config.home.data_dir / "ems.sqlite")
            bus = await connected_lane(authority, broker.port, keyring.ems)
            line = CsmDbClient(bus, keyring.ems, keyring.box, market, csmdb.issuing_key.public,
                               csmdb.box.public, clock, SystemRng())  # fmt: skip

            @asynccontextmanager
            async def on_line():
                yield line

            async with serving_gateway(config, clock) as gateway:
                enrolment = Enrolment(store, keyring, gateway, market, csmdb.issuing_key.public)
                code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
                before = await enrolment.enrol(line, code)
                assert before.meter[0].firmware == "1.0.0"
                renewed = []
                firmware = Firmware(config.firmware, config.home.data_dir, gateway, enrolment,
                                    on_line, clock, lambda: renewed.append(1),
                                    **({} if model == "RM-1" else {"consult": here}))  # fmt: skip
                assert await firmware.attest(), "plate and certificate agree"
                view = await firmware.look()
                assert (view.state, view.installed) == ("installed", "2.0.0"), view
                assert meter.version == "2.0.0"
                assert await firmware.attest()
                after = enrolment.certificate
                assert after.meter[0].firmware == "2.0.0"
                assert after.serial_no > before.serial_no
                assert renewed == [1]
                assert reviewed == [keyring.ems.id]
                assert csmdb.repository.meter_of(keyring.ems.id).firmware == "2.0.0"
                assert read_view(config.home.data_dir).attested == "2.0.0"
                assert (await firmware.look()).state == "current", "nothing is installed twice"
                assert (await firmware.look(Wish(name))).refusal == "DOWNGRADED"
            await bus.stop()
            store.close()
        await own.stop()
        csmdb.close()


async def test_slots_are_closed_before_during_and_after_and_the_registers_go_on(tmp_path):
    async with premises(tmp_path) as (meter, makers, gateway, _, clock):
        first = clock.now_ms() // (SLOT_S * 1000)
        name = makers.release("2.0.0", make_image("RM-1", "2.0.0", 8_000))
        await hand_over(gateway, makers, name)
        readings = []

        async def close_next():
            slot = first + len(readings)
            clock.ahead_ms += SLOT_S * 1000
            meter.import_wh += 100
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        signed = await gateway.sign_reading(slot)
                        break
                    except GatewayError as error:
                        assert error.code == "DEVICE_LOST", error  # it restarts; the EMS asks again
                        await asyncio.sleep(0.05)
            readings.append(load_record(Reading, signed["reading"]))

        await close_next()
        await gateway.install_firmware(name)
        await close_next()
        assert (await gateway.firmware_status())["state"] == "writing", "the slot was closed during"
        assert (await settled(gateway))["state"] == "done"
        await close_next()
        assert [one.import_wh - readings[0].import_wh for one in readings] == [0, 100, 200]
        assert [one.seq for one in readings] == [0, 1, 2]


@pytest.mark.parametrize("keeps_half", [True, False])
async def test_a_power_cut_of_the_meter_in_the_middle_costs_nothing_but_time(tmp_path, keeps_half):
    async with premises(tmp_path, "RM-2") as (meter, makers, gateway, _, _clock):
        name = makers.release("2.0.0", make_image("RM-2", "2.0.0"), model="RM-2",
                              template="hearthgrid-rm2", installs_by="file-records")  # fmt: skip
        await hand_over(gateway, makers, name)
        meter.cut_after, meter.keeps_half = 20, keeps_half
        await gateway.install_firmware(name)
        status = await settled(gateway)
        assert status["state"] == "done", status
        assert meter.version == "2.0.0"


@pytest.mark.long
async def test_a_gateway_that_is_killed_in_the_middle_goes_on_when_it_is_started_again(tmp_path):
    """kill -9 of a real process; the old firmware runs until the second one is through."""
    makers = Makers(tmp_path / "makers")
    image = make_image("RM-1", "2.0.0", 40_000)
    name = makers.release("2.0.0", image)
    async with metered() as meter:
        with tempfile.TemporaryDirectory(prefix="hg") as folder:
            config = provision(Path(folder), meter, makers)
            gateway = GatewayClient(config.gateway.socket)
            process = await spawned(folder)
            await gateway.wait_ready(PATIENCE_S)
            await gateway.nameplate()
            await hand_over(gateway, makers, name)
            await gateway.install_firmware(name)
            async with asyncio.timeout(PATIENCE_S):
                while meter.writes < 50:
                    await asyncio.sleep(0.005)
            process.kill()
            await process.wait()
            assert meter.version == "1.0.0"
            written, parts = meter.writes, -(-len(image) // 100)
            assert written < parts
            process = await spawned(folder)
            await gateway.wait_ready(PATIENCE_S)
            assert (await settled(gateway))["state"] == "done"
            assert meter.version == "2.0.0"
            assert meter.writes <= parts + 1, "what was there was not written again"
            await gateway.close()
            process.terminate()
            assert await process.wait() == 0


async def spawned(folder):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hem.cli", "gateway", f"{folder}/provisioning.toml", cwd=REPOSITORY
    )


@pytest.mark.long
async def test_a_gateway_that_is_stopped_in_the_middle_goes_on_when_it_is_started_again(tmp_path):
    makers = Makers(tmp_path / "makers")
    name = makers.release("2.0.0", make_image("RM-1", "2.0.0", 400_000))
    async with metered() as meter:
        with tempfile.TemporaryDirectory(prefix="hg") as folder:
            config = provision(Path(folder), meter, makers)
            async with serving_gateway(config, StepClock()) as gateway:
                await gateway.nameplate()
                await hand_over(gateway, makers, name)
                await gateway.install_firmware(name)
                async with asyncio.timeout(PATIENCE_S):
                    while meter.writes < 20:
                        await asyncio.sleep(0.001)
            assert meter.version == "1.0.0"
            written = meter.writes
            assert written < 4_000
            async with serving_gateway(config, StepClock()) as gateway:
                assert (await settled(gateway))["state"] == "done"
            assert meter.version == "2.0.0"
            assert meter.writes <= 4_001, "what was there was not written again"


async def test_a_file_that_the_meter_refuses_is_given_up_after_three_attempts(tmp_path):
    async with premises(tmp_path) as (meter, makers, gateway, _, _clock):
        name = makers.release("2.0.0", make_image("RM-9", "2.0.0", 300))  # signed, but not for it
        await hand_over(gateway, makers, name)
        await gateway.install_firmware(name)
        status = await settled(gateway)
        assert status["state"] == "failed"
        assert "bad" in status["why"]
        assert meter.version == "1.0.0"


async def test_a_file_that_says_another_version_than_its_metadata_is_not_called_installed(
    tmp_path, monkeypatch
):
    async with premises(tmp_path) as (meter, makers, gateway, _, _clock):
        monkeypatch.setattr(
            gateway_firmware.FirmwareKeeper, "_await_version", _impatient, raising=True
        )
        name = makers.release("2.0.0", make_image("RM-1", "1.9.0", 300))
        await hand_over(gateway, makers, name)
        await gateway.install_firmware(name)
        status = await settled(gateway)
        assert status["state"] == "failed"
        assert "does not run 2.0.0" in status["why"]
        assert meter.version == "1.9.0"


_await_version = gateway_firmware.FirmwareKeeper._await_version


async def _impatient(self, job, writer):
    facts = writer.facts.model_copy(update={"restart_s": 0.4})
    writer.facts = facts
    await _await_version(self, job, writer)


# --- the EMS is not believed ----------------------------------------------------------------------


async def test_the_gateway_verifies_what_the_ems_hands_over(tmp_path):
    async with premises(tmp_path) as (meter, makers, gateway, config, _clock):
        await refused("UNAVAILABLE", gateway.install_firmware("x.bin"))  # no metadata at all
        name = makers.release("2.0.0", make_image("RM-1", "2.0.0"))
        forged = json.loads((makers.public / "metadata/2.targets.json").read_text())
        forged["signed"]["targets"][name]["custom"]["version"] = "9.0.0"
        await hand_over(gateway, makers, name)
        await gateway.hand_over("targets.json", json.dumps(forged).encode())
        await refused("TOO_FEW_SIGNATURES", gateway.install_firmware(name))
        (config.home.data_dir / "gateway/firmware/inbox" / name).unlink()
        await hand_over(gateway, makers)
        await refused("UNAVAILABLE", gateway.install_firmware(name))  # metadata, and no file
        await hand_over(gateway, makers, name)
        await gateway.hand_over(name, make_image("RM-1", "2.0.0", seed=666))
        await refused("WRONG_DIGEST", gateway.install_firmware(name))
        await refused("NOT_FOUND", _again(gateway, makers, name, "another.bin"))
        assert (await gateway.firmware_status())["state"] == "none"
        assert meter.writes == 0


async def _again(gateway, makers, name, asked):
    await hand_over(gateway, makers, name)
    await gateway.install_firmware(asked)


async def test_the_gateway_remembers_what_it_saw_and_takes_no_older_repository(tmp_path):
    async with premises(tmp_path) as (meter, makers, gateway, _, _clock):
        old = makers.release("1.5.0", make_image("RM-1", "1.5.0"))
        stale = (makers.public / "metadata/timestamp.json").read_bytes()
        new = makers.release("2.0.0", make_image("RM-1", "2.0.0"))
        await hand_over(gateway, makers, new)
        await gateway.install_firmware(new)
        assert (await settled(gateway))["state"] == "done"
        await hand_over(gateway, makers, old)
        await refused("DOWNGRADED", gateway.install_firmware(old))
        await hand_over(gateway, makers, old)
        await gateway.hand_over("timestamp.json", stale)
        await refused("ROLLED_BACK", gateway.install_firmware(old))
        assert meter.version == "2.0.0"


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"model": "RM-2"}, "OTHER_DEVICE"),
        ({"vendor": "Else"}, "OTHER_DEVICE"),
        ({"installs_by": "file-records"}, "OTHER_DEVICE"),
        ({"from_versions": ["1.9.0"]}, "NOT_FROM_HERE"),
    ],
)
async def test_a_signed_file_for_something_else_is_not_written(tmp_path, facts, code):
    async with premises(tmp_path) as (meter, makers, gateway, _, _clock):
        name = makers.release("2.0.0", make_image("RM-1", "2.0.0"), **facts)
        await hand_over(gateway, makers, name)
        await refused(code, gateway.install_firmware(name))
        assert meter.writes == 0


async def test_a_hand_over_is_bounded_and_has_no_gaps(tmp_path, monkeypatch):
    async with premises(tmp_path) as (_, _makers, gateway, config, _clock):
        await refused("BAD_PARAMS", gateway.hand_over("../meter.key", b"x"))
        await refused("BAD_PARAMS", gateway.call("firmware_part", name="a", offset=5, data="AAAA"))
        await refused("BAD_PARAMS", gateway.call("firmware_part", name="a", offset=0, data="?"))
        await refused("BAD_PARAMS", gateway.attest_firmware("sign me"))
        monkeypatch.setattr(gateway_firmware, "INBOX_BYTES_MAX", 20_000)
        await refused("OVERSIZED", gateway.hand_over("a", b"x" * 30_000))
        assert not (config.home.data_dir / "gateway/firmware/inbox").exists()
        await gateway.hand_over("a", b"x" * 15_000)
        await gateway.hand_over("a", b"y")
        assert (config.home.data_dir / "gateway/firmware/inbox/a").read_bytes() == b"y"


async def test_without_a_section_nothing_is_taken(tmp_path):
    async with premises(tmp_path) as (_, makers, _gateway, config, clock):
        bare = config.model_copy(update={"firmware": None})
        with tempfile.TemporaryDirectory(prefix="hg") as folder:
            home = bare.home.model_copy(update={"data_dir": Path(folder) / "data"})
            section = bare.gateway.model_copy(update={"socket": Path(folder) / "gw.sock"})
            bare = bare.model_copy(update={"home": home, "gateway": section})
            async with serving_gateway(bare, clock) as gateway:
                await refused("NO_FIRMWARE", gateway.hand_over("a", b"x"))
                await refused("NO_FIRMWARE", gateway.install_firmware("a"))
    makers.root.rename(tmp_path / "gone.json")
    stranger = FirmwareMeter("RM-1", make_image("RM-1", "1.0"))
    stranger.port = 1502
    with pytest.raises(ConfigError, match=r"firmware\.root: no file"):
        provision(tmp_path, stranger, makers)


async def test_a_home_that_is_to_be_asked_waits_for_its_household(tmp_path):
    """And what it fetched itself is what the gateway needs."""
    async with premises(tmp_path, extra='install = "ask"') as (
        meter,
        makers,
        gateway,
        config,
        clock,
    ):
        makers.release("2.0.0", make_image("RM-1", "2.0.0"))
        makers.repository().rotate("root", makers.drawers)

        firmware = ems_of(makers, tmp_path, gateway, config, clock)
        view = await firmware.look()
        assert (view.state, view.available) == ("available", "2.0.0")
        assert meter.writes == 0
        assert len(metadata_files(config.home.data_dir / "firmware")) == 5
        assert (await firmware.look(Wish())).state == "installed"
        assert meter.version == "2.0.0"


def _newest(path):
    role = path.name.split(".")[1]
    return max(int(one.name.split(".")[0]) for one in path.parent.glob(f"*.{role}.json"))


async def test_a_file_that_the_meter_refused_is_not_tried_again_unless_somebody_asks(tmp_path):
    async with premises(tmp_path) as (meter, makers, gateway, config, clock):
        makers.release("2.0.0", make_image("RM-9", "2.0.0", 300))
        firmware = ems_of(makers, tmp_path, gateway, config, clock)
        assert (await firmware.look()).refusal == "METER_REFUSED"
        written = meter.writes
        assert written == 9, "three attempts of three parts"
        assert (await firmware.look()).refusal == "METER_REFUSED"
        assert meter.writes == written
        await firmware.look(Wish())
        assert meter.writes == 2 * written
        makers.release("2.0.1", make_image("RM-1", "2.0.1", 300))
        assert (await firmware.look()).state == "installed", "a later file may do"


async def test_a_home_that_starts_in_the_middle_waits_for_what_its_gateway_writes(tmp_path):
    async with premises(tmp_path) as (meter, makers, gateway, config, clock):
        name = makers.release("2.0.0", make_image("RM-1", "2.0.0", 8_000))
        await hand_over(gateway, makers, name)
        await gateway.install_firmware(name)
        firmware = ems_of(makers, tmp_path, gateway, config, clock)
        assert (await firmware.look()).state == "installed"
        assert meter.writes <= 81


def ems_of(makers, tmp_path, gateway, config, clock):
    """The EMS's half, whose repository is a folder."""

    async def from_folder(question):
        inbox = tmp_path / "as-served"
        inbox.mkdir(exist_ok=True)
        for path in (makers.public / "metadata").glob("[!.]*"):
            number, _, plain = path.name.partition(".")
            if plain in ("targets.json", "snapshot.json"):
                if int(number) == _newest(path):
                    shutil.copy(path, inbox / plain)
            else:
                shutil.copy(path, inbox / path.name)
        for path in (makers.public / "targets").iterdir():
            shutil.copy(path, inbox / path.name.partition(".")[2])
        facts = {"root": question.root, "state": question.state, "wanted": question.wanted}
        return await here(Question(**facts, inbox=str(inbox)))

    enrolment = Enrolment(SqliteStore(tmp_path / "s.sqlite"), None, gateway, "test", KEY.public)
    data_dir = config.home.data_dir
    return Firmware(config.firmware, data_dir, gateway, enrolment, None, clock, consult=from_folder)
