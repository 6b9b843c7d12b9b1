"""Home Assistant's discovery, on a real Mosquitto with a password; nothing secret leaves."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time

import pytest
from home_at_hand import ADDRESS, SLOT, award, begin, register
from support.patience import PATIENCE_S

from hem.config import LocalBroker
from hem.ems.home_assistant import SENSORS, HomeAssistant, local_bus
from runtime.bus import MqttBus
from runtime.rng import SystemRng
from wire.errors import ConfigError

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
needs_broker = pytest.mark.skipif(MOSQUITTO is None, reason="apt install mosquitto")
FIGURES = {
    "grid_w": -420, "pv_w": 3_000, "battery_w": -500, "load_w": 2_080, "soc_permille": 415,
    "import_wh": 12_345, "export_wh": 678, "generation_wh": 9_000, "price_uc_per_kwh": 150_000,
    "balance_uc": 12_500_000, "position_wh": -250, "cpf_q16": 32_768,
}  # fmt: skip


class Broker:
    """A Mosquitto with one user."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        passwords = folder / "passwords"
        subprocess.run(
            ["mosquitto_passwd", "-b", "-c", str(passwords), "ha", "s3cret-word"], check=True
        )
        (folder / "m.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
            f"persistence false\nuser {subprocess.getoutput('id -un')}\n"
        )
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self.folder / "m.conf")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def broker(tmp_path):
    folder = tmp_path / "broker"
    folder.mkdir()
    made = Broker(folder)
    yield made
    made.stop()


@pytest.fixture
def config(broker, tmp_path):
    password = tmp_path / "password"
    password.write_text("s3cret-word\n")
    password.chmod(0o600)
    return LocalBroker(port=broker.port, user="ha", password_file=password, period_s=1)


class Listener:
    """What Home Assistant sees."""

    def __init__(self, port, client_id="homeassistant"):
        self.bus = MqttBus(
            "127.0.0.1", port, lambda: (client_id, "s3cret-word"), SystemRng(), user="ha"
        )
        self.heard = []
        self.bus.subscribe("#", self.take)

    async def take(self, message):
        self.heard.append(message)

    def last(self, topic):
        found = [one.payload for one in self.heard if one.topic == topic]
        return found[-1].decode() if found else ""

    def state(self):
        return json.loads(self.last("hearthgrid/home-01/state") or "{}")

    def sensors(self):
        return {
            one.topic.split("/")[3]: json.loads(one.payload)
            for one in self.heard
            if one.topic.startswith("homeassistant/sensor/hearthgrid_home-01/")
        }


@pytest.fixture
async def listener(broker):
    made = Listener(broker.port)
    await made.bus.start()
    await made.bus.wait_connected(PATIENCE_S)
    yield made
    await made.bus.stop()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def running(config, figures):
    async def tell():
        return figures

    return asyncio.create_task(HomeAssistant.on(config, "home-01", SystemRng()).run(tell))


async def end(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@needs_broker
async def test_sensors_and_states_are_told_retained_and_offline_when_it_ends(
    broker, config, listener
):
    task = running(config, dict(FIGURES))
    await until(listener.state)
    assert listener.last("hearthgrid/home-01/availability") == "online"
    assert listener.state() == {
        "grid": -420, "pv": 3_000, "battery": -500, "load": 2_080, "soc": 41.5, "import": 12_345,
        "export": 678, "generation": 9_000, "price": 0.15, "balance": 12.5, "position": -250,
        "cpf": 0.5,
    }  # fmt: skip
    sensors = listener.sensors()
    assert set(sensors) == {sensor.key for sensor in SENSORS}
    registers = {"import", "export", "generation"}
    for key, found in sensors.items():
        total = key in registers
        assert found["state_class"] == ("total_increasing" if total else "measurement")
        assert found["state_topic"] == "hearthgrid/home-01/state"
        assert found["availability_topic"] == "hearthgrid/home-01/availability"
        assert found["value_template"] == f"{{{{ value_json.{key} }}}}"
    assert sensors["import"]["device_class"] == "energy"
    assert len({found["unique_id"] for found in sensors.values()}) == len(SENSORS)

    late = Listener(broker.port, "another")
    await late.bus.start()
    await until(lambda: late.state() and len(late.sensors()) == len(SENSORS))
    assert all(one.retained for one in late.heard[:3])
    await end(task)
    await until(lambda: listener.last("hearthgrid/home-01/availability") == "offline")
    await late.bus.stop()


@needs_broker
async def test_a_broker_that_was_away_is_told_everything_again(broker, config):
    figures = dict(FIGURES)
    task = running(config, figures)
    for _ in range(2):
        listener = Listener(broker.port)
        await listener.bus.start()
        await until(lambda seen=listener: len(seen.sensors()) == len(SENSORS) and seen.state())
        await listener.bus.stop()
        broker.stop()  # it keeps nothing
        broker.start()
    await end(task)


@needs_broker
async def test_states_are_told_when_they_change_and_not_oftener_than_the_period(config, listener):
    figures = dict(FIGURES)
    task = running(config, figures)
    await until(listener.state)

    def told():
        return sum(one.topic.endswith("/state") for one in listener.heard)

    before = told()
    await asyncio.sleep(1.2)
    assert told() == before, "nothing has changed"
    for number in range(100):
        figures["grid_w"] = number
        await asyncio.sleep(0.001)
    await until(lambda: listener.state()["grid"] == 99)
    assert told() <= before + 2
    await end(task)


@needs_broker
async def test_a_home_without_a_battery_has_no_battery_and_what_is_unknown_is_null(
    config, listener
):
    figures = {**FIGURES, "soc_permille": -1, "battery_w": 0}
    task = running(config, figures)
    await until(listener.state)
    assert not {"soc", "battery"} & set(listener.sensors())
    del figures["pv_w"]
    await until(lambda: listener.state()["pv"] is None)
    await end(task)


@needs_broker
async def test_nothing_secret_is_told_by_a_real_home(home, config, listener):
    await register(home)
    await award(home, SLOT, "sell", 250)
    await begin(home, SLOT)
    teller = HomeAssistant.on(config, "home-01", SystemRng())
    task = asyncio.create_task(teller.run(home._figures))
    await until(listener.state)
    assert listener.state()["position"] == -250
    await end(task)
    said = b"".join(one.topic.encode() + one.payload for one in listener.heard).decode()
    assert ADDRESS.id not in said and home.ems_key.id not in said
    assert not re.search(r"hg1[a-z2-7]{32}", said)
    for path in home.config.home.data_dir.rglob("*.key"):
        assert path.read_text().strip() not in said
    assert "s3cret-word" not in said


@needs_broker
async def test_a_wrong_password_is_tried_again_and_stops_nothing(config, listener, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("nonsense")
    wrong.chmod(0o600)
    task = running(config.model_copy(update={"password_file": wrong}), FIGURES)
    await asyncio.sleep(0.5)
    assert not task.done()
    assert not listener.state()
    await end(task)


@pytest.mark.parametrize(
    ("mode", "content", "told"),
    [(0o644, "x", "chmod 600"), (0o600, " \n", "holds no password"), (None, "", "cannot be read")],
)
def test_a_password_file_that_cannot_be_used_is_named(tmp_path, mode, content, told):
    path = tmp_path / "password"
    if mode is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=told) as caught:
        local_bus(LocalBroker(user="ha", password_file=path), "home-01", SystemRng())
    assert str(path) in str(caught.value)
