"""MQTT devices on foreign brokers: real Mosquitto and amqtt, both with users and passwords."""

import asyncio
import contextlib
import getpass
import json
import subprocess
import threading
from contextlib import asynccontextmanager

import paho.mqtt.client as mqtt
import pytest
from amqtt.broker import Broker
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.patience import PATIENCE_S, error_of

from bench.brokers import INSTALL, find_mosquitto, free_port
from hem.gateway import mqtt_meter
from hem.gateway.figures import ENERGY_MAX_WH, POWER_MAX_W, WentBackError, whole_w, whole_wh
from hem.gateway.modbus import DeviceError, DeviceLostError, DeviceRefusedError
from hem.gateway.mqtt_meter import (
    MAKES,
    PAYLOAD_BYTES_MAX,
    MqttConfig,
    MqttSource,
    Point,
    source_for,
)
from hem.gateway.source import Sample
from runtime.ports import Message
from wire.errors import ConfigError

SECRET = "secret {}"
"""The password of each user of the brokers here (tests/support/raw_mqtt.py)."""


class Mosquitto:
    """A household's Mosquitto: users with passwords, nobody else."""

    def __init__(self, folder):
        if find_mosquitto() is None:
            pytest.skip(INSTALL)
        self.folder, self.port, self.process = folder, free_port(), None
        passwords = folder / "passwords"
        for number, user in enumerate(("hem", "device", "spy")):
            subprocess.run(
                ["mosquitto_passwd", "-b", *(["-c"] if number == 0 else []), str(passwords), user,
                 SECRET.format(user)], check=True,
            )  # fmt: skip
        passwords.chmod(0o600)
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\n"
            f"password_file {passwords}\nuser {getpass.getuser()}\n"
        )

    async def start(self):
        command = ["mosquitto", "-c", str(self.folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220

    async def stop(self):
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, PATIENCE_S)


class Amqtt:
    """The same of amqtt, in this process."""

    def __init__(self, _folder):
        self.port, self.broker = free_port(), None

    async def start(self):
        listener = {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}
        self.broker = Broker(
            {
                "listeners": {"default": listener},
                "plugins": {"support.raw_mqtt.PasswordPlugin": {}},
            }
        )
        await self.broker.start()

    async def stop(self):
        await self.broker.shutdown()


@pytest.fixture(params=[Mosquitto, Amqtt], ids=["mosquitto", "amqtt"])
async def broker(request, tmp_path):
    running = request.param(tmp_path)
    await running.start()
    yield running
    await running.stop()


class Client:
    """A device, or somebody who listens in: paho with a thread of its own."""

    def __init__(self, user, port):
        self.heard = []
        self.ready = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=user)
        self.client.username_pw_set(user, SECRET.format(user))
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda *_: self.client.subscribe("#")
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _c, _u, message: self.heard.append(message.topic)
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()

    async def wait_ready(self):
        assert await asyncio.to_thread(self.ready.wait, PATIENCE_S)

    def say(self, topic, payload, retain=False):
        text = payload if isinstance(payload, bytes | str) else json.dumps(payload)
        self.client.publish(topic, text, qos=1, retain=retain)

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


@asynccontextmanager
async def device_at(broker):
    device = Client("device", broker.port)
    try:
        await device.wait_ready()
        yield device
    finally:
        await asyncio.to_thread(device.stop)


class Seconds:
    """Process time that moves when told."""

    def __init__(self):
        self.now_s = 1_000.0

    def __call__(self):
        return self.now_s


def config(**wishes):
    return MqttConfig(**{"name": "plug", "user": "hem", "wait_s": 0.05, **wishes})


@asynccontextmanager
async def source_at(broker, password="secret hem", **wishes):
    seconds = Seconds()
    source = MqttSource(config(port=broker.port, **wishes), password, monotonic_s=seconds)
    try:
        yield source, seconds
    finally:
        source.close()
        await asyncio.sleep(0.01)


async def value_of(source, say=None):
    """What is read once it can be read; `say` is called until then."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if say is not None:
                say()
            await asyncio.sleep(0.02)
            with contextlib.suppress(DeviceError):
                return await source.read()


TASMOTA = {
    "Time": "2026-07-10T12:00:00",
    "ENERGY": {"Total": 1234.567, "Today": 1.2, "Power": -345.5, "ExportActive": 12.001},
    "TempUnit": "C",
}
SHELLY = {
    "shelly-1/status/em:0": {"id": 0, "a_act_power": 1.0, "total_act_power": 1_250.5},
    "shelly-1/status/emdata:0": {"id": 0, "total_act": 4_567.89, "total_act_ret": 12.99},
}
ZIGBEE = {"power": 7, "energy": 0.29, "produced_energy": 0, "linkquality": 120}
SPOKEN = {
    "tasmota": ({"tele/meter/SENSOR": TASMOTA}, "meter", (-346, 1_234_567, 12_001)),
    "shelly-em": (SHELLY, "shelly-1", (1_250, 4_567, 12)),
    "shelly-em1": (
        {
            "shelly-2/status/em1:0": {"act_power": -0.5},
            "shelly-2/status/em1data:0": {"total_act_energy": 1, "total_act_ret_energy": 2.5},
        },
        "shelly-2",
        (0, 1, 2),
    ),
    "shelly-switch": (
        {
            "shelly-3/status/switch:0": {
                "apower": 60.2,
                "aenergy": {"total": 99.999},
                "ret_aenergy": {"total": 0.0},
            }
        },
        "shelly-3",
        (60, 99, 0),
    ),
    "zigbee2mqtt": ({"zigbee2mqtt/the plug/2": ZIGBEE}, "the plug/2", (7, 290, 0)),
}


@pytest.mark.parametrize("make", SPOKEN)
async def test_every_make_is_read_exactly(broker, make):
    messages, topic, (power_w, import_wh, export_wh) = SPOKEN[make]
    async with device_at(broker) as device, source_at(broker, make=make, topic=topic) as parts:
        source, _ = parts
        assert source.capabilities == {"grid"}
        sample = await value_of(source, lambda: [device.say(*one) for one in messages.items()])
        assert (sample.grid_w, sample.import_wh, sample.export_wh) == (
            power_w, import_wh, export_wh,
        )  # fmt: skip
        assert sample.details == {"model": make}


async def test_it_never_says_anything_and_hears_only_what_is_configured(broker):
    spy = Client("spy", broker.port)
    try:
        await spy.wait_ready()
        async with (
            device_at(broker) as device,
            source_at(broker, make="zigbee2mqtt", topic="plug") as (source, _),
        ):
            heard = []
            take = source._listener._on_message

            def listen_in(message):
                heard.append(message.topic)
                take(message)

            source._listener._on_message = listen_in

            def say():
                device.say("zigbee2mqtt/other", ZIGBEE)
                device.say("zigbee2mqtt/plug", ZIGBEE)

            await value_of(source, say)
            assert set(heard) == {"zigbee2mqtt/plug"}
        device_topics = {"zigbee2mqtt/plug", "zigbee2mqtt/other"}
        async with asyncio.timeout(PATIENCE_S):
            while set(spy.heard) < device_topics:
                await asyncio.sleep(0.01)
        assert {one for one in spy.heard if not one.startswith("$SYS")} == device_topics
    finally:
        await asyncio.to_thread(spy.stop)


async def test_a_wrong_password_is_a_lost_device_with_the_brokers_word(broker):
    async with source_at(broker, "wrong", make="zigbee2mqtt", topic="plug") as (source, _):
        async with asyncio.timeout(PATIENCE_S):
            while "ot authorized" not in str(await error_of(source, DeviceLostError, DeviceError)):
                pass


async def test_the_broker_goes_and_comes_back(broker):
    async with (
        device_at(broker) as device,
        source_at(broker, make="zigbee2mqtt", topic="plug") as (source, seconds),
    ):
        await value_of(source, lambda: device.say("zigbee2mqtt/plug", ZIGBEE))
        await broker.stop()
        seconds.now_s += 91
        assert "nothing for 90" in str(await error_of(source, DeviceLostError, DeviceError))
        await broker.start()
        sample = await value_of(source, lambda: device.say("zigbee2mqtt/plug", ZIGBEE))
        assert sample.import_wh == 290


async def test_one_silent_topic_makes_the_device_lost(broker):
    async with (
        device_at(broker) as device,
        source_at(broker, make="shelly-em", topic="shelly-1") as (source, seconds),
    ):
        power, energy = SHELLY.items()
        await value_of(source, lambda: [device.say(*one) for one in (power, energy)])
        seconds.now_s += 91
        heard_at_s = source._heard_at_s
        async with asyncio.timeout(PATIENCE_S):
            while heard_at_s[power[0]] != seconds.now_s:
                device.say(*power)
                await asyncio.sleep(0.02)
        with pytest.raises(DeviceLostError, match=r"emdata:0 is silent"):
            await source.read()


async def test_what_the_broker_kept_is_not_taken_for_news(broker):
    async with device_at(broker) as device:
        device.say("zigbee2mqtt/plug", ZIGBEE, retain=True)
        async with asyncio.timeout(PATIENCE_S):
            while "zigbee2mqtt/plug" not in device.heard:
                await asyncio.sleep(0.01)
        async with source_at(broker, make="zigbee2mqtt", topic="plug") as (source, _):
            async with asyncio.timeout(PATIENCE_S):
                while "is silent" not in str(await error_of(source, DeviceLostError, DeviceError)):
                    pass
            assert (await value_of(source, lambda: device.say("zigbee2mqtt/plug", ZIGBEE))).grid_w


async def test_what_was_said_while_we_were_away_is_not_taken_for_news(broker):
    async with (
        device_at(broker) as device,
        source_at(broker, make="zigbee2mqtt", topic="plug") as (source, seconds),
    ):
        await value_of(source, lambda: device.say("zigbee2mqtt/plug", ZIGBEE))
        source.close()
        await asyncio.sleep(0.5)  # whatever was on its way
        seconds.now_s += 91
        before = len(device.heard)
        device.say("zigbee2mqtt/plug", ZIGBEE)
        async with asyncio.timeout(PATIENCE_S):
            while len(device.heard) == before:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE_S):
            while "is silent" not in str(await error_of(source, DeviceLostError, DeviceError)):
                pass
        await asyncio.sleep(0.5)
        with pytest.raises(DeviceLostError, match="is silent"):
            await source.read()
        await value_of(source, lambda: device.say("zigbee2mqtt/plug", ZIGBEE))


async def test_refused_messages_over_the_wire_are_named_and_the_next_good_one_heals(broker):
    async with (
        device_at(broker) as device,
        source_at(broker, make="zigbee2mqtt", topic="plug") as (source, _),
    ):
        await value_of(source, lambda: device.say("zigbee2mqtt/plug", ZIGBEE))
        device.say("zigbee2mqtt/plug", b" " * (PAYLOAD_BYTES_MAX + 1))
        assert "8193 bytes" in str(await error_of(source, DeviceRefusedError, DeviceError))
        device.say("zigbee2mqtt/plug", ZIGBEE | {"energy": 0.289})
        assert "went back from 290" in str(await error_of(source, WentBackError, DeviceError))
        device.say("zigbee2mqtt/plug", ZIGBEE | {"energy": 0.3})
        assert (await value_of(source)).import_wh == 300


async def test_a_payload_of_megabytes_does_not_stop_us(broker):
    async with (
        device_at(broker) as device,
        source_at(broker, make="zigbee2mqtt", topic="plug") as (source, _),
    ):
        await value_of(source, lambda: device.say("zigbee2mqtt/plug", ZIGBEE))
        device.say("zigbee2mqtt/plug", b"x" * 3_000_000)
        more = ZIGBEE | {"power": 8}
        async with asyncio.timeout(PATIENCE_S):
            while (
                await value_of(source, lambda: device.say("zigbee2mqtt/plug", more))
            ).grid_w != 8:
                pass


# --- messages, without a broker ----------------------------------------------------------------


async def taken(payload, retained=False, topic="zigbee2mqtt/plug", **wishes):
    """What a source says after one message (its broker is not there)."""
    wishes = {"make": "zigbee2mqtt", "topic": "plug", "port": free_port(), "wait_s": 0, **wishes}
    source = MqttSource(config(**wishes))
    source._take(Message(topic, payload, retained))
    try:
        return await source.read()
    finally:
        source.close()


def zigbee(**changes):
    return json.dumps(ZIGBEE | changes).encode()


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "not JSON"),
        (b"online", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 8_000, "not JSON"),
        (b'{"power": NaN, "energy": 1, "produced_energy": 0}', "NaN is not a number"),
        (b'{"power": -Infinity, "energy": 1, "produced_energy": 0}', "-Infinity is not"),
        (b'{"power": 1, "energy": 1e999999999, "produced_energy": 0}', "too great|not JSON"),
        (b'{"power": 1, "energy": ' + b"9" * 5_000 + b', "produced_energy": 0}', "not JSON"),
        (b"[]", "has no power"),
        (b"7", "has no power"),
        (zigbee(power="7"), "not a number"),
        (zigbee(power=None), "not a number"),
        (zigbee(power=True), "not a number"),
        (zigbee(power=[7]), "not a number"),
        (zigbee(power=POWER_MAX_W + 1), "too great"),
        (zigbee(energy=-0.001), "below zero"),
        (zigbee(energy=ENERGY_MAX_WH // 1_000 + 1), "too great"),
        (b'{"power": 1, "energy": 1}', "has no produced_energy"),
    ],
)
async def test_a_message_that_cannot_be_is_refused_with_the_reason(payload, why):
    with pytest.raises(DeviceRefusedError, match=why):
        await taken(payload)


async def test_a_good_message_is_taken_and_a_retained_or_foreign_one_is_not():
    assert (await taken(zigbee())).import_wh == 290
    with pytest.raises(DeviceLostError):
        await taken(zigbee(), retained=True)
    with pytest.raises(DeviceLostError):
        await taken(zigbee(), topic="zigbee2mqtt/other")


@pytest.mark.parametrize(
    ("role", "is_reversed", "sample"),
    [
        ("grid", False, {"grid_w": 7, "import_wh": 290, "export_wh": 50}),
        ("grid", True, {"grid_w": -7, "import_wh": 50, "export_wh": 290}),
        ("pv", False, {"pv_w": 7, "generation_wh": 290}),
        ("pv", True, {"pv_w": -7, "generation_wh": 50}),
        ("load", False, {"load_w": 7}),
    ],
)
async def test_the_role_says_what_the_numbers_mean(role, is_reversed, sample):
    said = await taken(zigbee(produced_energy=0.05), role=role, is_reversed=is_reversed)
    assert said == Sample(**sample, details={"model": "zigbee2mqtt"})


async def test_a_plug_that_knows_no_export_can_be_a_generators_meter():
    payload = json.dumps({"power": 600, "energy": 1.5}).encode()
    assert (await taken(payload, role="pv")).generation_wh == 1_500


async def test_another_make_is_described_in_the_same_words():
    points = [
        {"quantity": "power", "topic": "house", "path": "phase.0.p", "unit": "kW", "sign": -1},
        {"quantity": "power", "topic": "house", "path": "phase.1.p", "unit": "W"},
        {"quantity": "forward", "topic": "house", "path": "in", "unit": "Wh"},
        {"quantity": "backward", "topic": "house", "path": "out", "unit": "kWh"},
    ]
    wishes = {"make": "other", "points": points, "topic": ""}
    payload = b'{"phase": [{"p": 0.25}, {"p": 50}], "in": 5, "out": 0.0019}'
    source = MqttSource(config(**wishes, port=free_port(), wait_s=0))
    source._take(Message("house", payload))
    try:
        said = await source.read()
    finally:
        source.close()
    assert (said.grid_w, said.import_wh, said.export_wh) == (-200, 5, 1)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["power", "energy", "produced_energy", "x"]), inner, max_size=4
                )
            ),
            max_leaves=8,
        ).map(lambda said: json.dumps(said).encode()),
        st.fixed_dictionaries(
            dict.fromkeys(
                ["power", "energy", "produced_energy"],
                st.integers() | st.floats() | st.booleans(),
            )
        ).map(lambda said: json.dumps(said).encode()),
    )
)
def test_any_payload_is_values_or_a_refusal(payload):
    points = list(config(make="zigbee2mqtt", topic="plug").points_needed)
    try:
        found = mqtt_meter._read(payload, points)
    except DeviceRefusedError:
        return
    assert abs(whole_w(found["power"])) <= POWER_MAX_W
    assert 0 <= whole_wh(found["forward"]) <= ENERGY_MAX_WH
    assert 0 <= whole_wh(found["backward"]) <= ENERGY_MAX_WH


# --- configuration -----------------------------------------------------------------------------


POINT = {"quantity": "power", "topic": "a/b", "path": "p", "unit": "W"}


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"make": "zigbee2mqtt"}, "topic is missing"),
        ({"make": "zigbee2mqtt", "topic": "#"}, "topic"),
        ({"make": "zigbee2mqtt", "topic": "a", "points": [POINT]}, "only then"),
        ({"make": "other"}, "only then"),
        ({"make": "other", "points": [POINT]}, "needs a point for 'forward'"),
        ({"make": "other", "role": "load", "points": [POINT | {"topic": "a/+"}]}, "topic"),
        ({"make": "other", "role": "load", "points": [POINT | {"unit": "kWh"}]}, "cannot be in"),
        ({"make": "other", "role": "load", "points": [POINT | {"sign": 2}]}, "sign"),
        ({"make": "sonoff", "topic": "a"}, "make"),
        ({"make": "zigbee2mqtt", "topic": "a", "qos": 1}, "qos"),
        ({"make": "zigbee2mqtt", "topic": "a", "user": None, "password_file": "p"}, "add user"),
    ],
)
def test_a_wrong_section_is_refused(wishes, why):
    with pytest.raises(ValidationError, match=why):
        config(**wishes)


def test_a_register_has_no_sign():
    with pytest.raises(ValidationError, match="no sign"):
        Point(quantity="forward", topic="a", path="b", unit="Wh", sign=-1)


def test_the_makes_are_data_that_the_configuration_knows():
    for make, points in MAKES.items():
        assert {point.quantity for point in points} == {"power", "forward", "backward"}
        assert config(make=make, topic="x").points_needed


def test_the_password_comes_from_a_file_of_ones_own(tmp_path):
    wishes = config(make="zigbee2mqtt", topic="a", password_file="secret")
    with pytest.raises(ConfigError, match="cannot be read"):
        source_for(wishes, tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("secret hem\n")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        source_for(wishes, tmp_path)
    secret.chmod(0o600)
    assert source_for(wishes, tmp_path)._listener._password == "secret hem"
    assert source_for(config(make="zigbee2mqtt", topic="a"))._listener._password is None
