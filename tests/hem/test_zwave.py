"""Z-Wave meters: exact values over a real websocket to a made-up zwave-js-server; refusals."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager

import pytest
from pydantic import ValidationError
from support.patience import PATIENCE_S
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from hem.gateway.figures import WentBackError
from hem.gateway.modbus import DeviceError, DeviceLostError, DeviceRefusedError
from hem.gateway.source import Sample
from hem.gateway.zwave import MESSAGE_BYTES_MAX, ZwaveConfig, ZwaveSource, source_for
from wire.errors import ConfigError

NODE = 7
VERSION = {
    "type": "version",
    "driverVersion": "15.0.0",
    "serverVersion": "3.0.0",
    "homeId": 1,
    "minSchemaVersion": 0,
    "maxSchemaVersion": 40,
}
W, KWH_IN, KWH_OUT = 66_049, 65_537, 65_538
"""HA's value ids know them too: 7-50-0-value-66049, …-65537, …-65538."""


class Server:
    """A zwave-js-server with one meter; what it does wrong is up to a test."""

    def __init__(self):
        self.values = {W: "-1500.5", KWH_IN: "1234.567", KWH_OUT: "0.0019"}
        self.greeting = json.dumps(VERSION)
        self.answer = self.as_usual
        self.questions = []
        self.server, self.port = None, 0

    async def start(self):
        self.server = await serve(self.serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self):
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, socket):
        try:
            await socket.send(self.greeting)
            async for text in socket:
                question = json.loads(text)
                self.questions.append(question)
                answer = self.answer(question)
                for one in answer if isinstance(answer, list) else [answer]:
                    if one is not None:
                        await socket.send(one)
        except ConnectionClosed:
            pass

    def as_usual(self, question):
        if question["command"] == "set_api_schema":
            return reply(question, "{}")
        assert question["command"] == "node.poll_value"
        if question["nodeId"] != NODE:
            return failure(question, "node_not_found", message="Node 8 not found")
        at = question["valueId"]
        assert (at["commandClass"], at["endpoint"], at["property"]) == (50, 0, "value")
        value = self.values.get(at["propertyKey"])
        return reply(question, "{}" if value is None else f'{{"value": {value}}}')

    def polled(self, answer):
        """From now on every poll is answered so."""

        def instead(question):
            if question["command"] != "node.poll_value":
                return self.as_usual(question)
            return answer(question)

        self.answer = instead


def reply(question, result):
    head = f'"type": "result", "success": true, "messageId": "{question["messageId"]}"'
    return f'{{{head}, "result": {result}}}'


def failure(question, code, **more):
    return json.dumps(
        {"type": "result", "success": False, "messageId": question["messageId"],
         "errorCode": code, **more}
    )  # fmt: skip


class Seconds:
    """Process time that moves when told."""

    def __init__(self):
        self.now_s = 1_000.0

    def __call__(self):
        return self.now_s


@asynccontextmanager
async def meter(**wishes):
    server, seconds = Server(), Seconds()
    await server.start()
    wishes = {"node": NODE, "wait_s": 0.05, "poll_every_s": 1, **wishes}
    config = ZwaveConfig(name="meter", port=server.port, **wishes)
    source = ZwaveSource(config, monotonic_s=seconds)
    try:
        yield server, source, seconds
    finally:
        source.close()
        await asyncio.sleep(0.01)
        await server.stop()


async def value_of(source, wanted=lambda _: True):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                sample = await source.read()
            except DeviceError:
                pass
            else:
                if wanted(sample):
                    return sample
            await asyncio.sleep(0.01)


async def error_of(source, kind, what=""):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await source.read()
            except kind as error:
                if what in str(error):
                    return error
            except DeviceError:
                pass
            await asyncio.sleep(0.01)


async def test_the_meters_values_are_read_exactly():
    async with meter() as (server, source, _):
        sample = await value_of(source)
        assert sample == Sample(
            grid_w=-1500, import_wh=1_234_567, export_wh=1, details={"model": "Z-Wave node 7"}
        )
        assert source.capabilities == {"grid"}
        assert server.questions[0]["command"] == "set_api_schema"
        assert server.questions[0]["schemaVersion"] == 40
        assert {one["command"] for one in server.questions[1:]} == {"node.poll_value"}


async def test_it_asks_only_for_what_its_role_needs():
    async with meter(role="pv", is_reversed=True) as (server, source, _):
        del server.values[KWH_IN]
        sample = await value_of(source)
        assert (sample.pv_w, sample.generation_wh, sample.grid_w) == (1500, 1, None)
    async with meter(role="load", power_key=W) as (server, source, _):
        server.values = {W: "60"}
        assert (await value_of(source)).load_w == 60


async def test_reading_often_does_not_fill_the_air():
    async with meter(poll_every_s=600) as (server, source, _):
        await value_of(source)
        for _ in range(100):
            await source.read()
            await asyncio.sleep(0.005)
        assert len(server.questions) == 4  # the schema and one round


async def test_new_values_come_with_the_next_round():
    async with meter() as (server, source, _):
        await value_of(source)
        server.values[W] = "20"
        await value_of(source, lambda sample: sample.grid_w == 20)


async def test_events_and_answers_to_others_are_skipped():
    async with meter() as (server, source, _):
        event = json.dumps({"type": "event", "event": {"source": "node", "nodeId": NODE}})
        other = reply({"messageId": "other"}, '{"value": 0}')
        server.polled(lambda question: [event, other, server.as_usual(question)])
        assert (await value_of(source)).import_wh == 1_234_567


async def test_a_meter_that_does_not_answer_is_lost_once_its_values_are_old():
    async with meter(stale_after_s=60) as (server, source, seconds):
        await value_of(source)
        server.polled(
            lambda question: failure(
                question, "zwave_error", zwaveErrorCode=204, zwaveErrorMessage="timed out"
            )
        )
        asked = len(server.questions)
        async with asyncio.timeout(PATIENCE_S):
            while len(server.questions) < asked + 2:
                await asyncio.sleep(0.01)
        assert (await source.read()).grid_w == -1500  # still young
        seconds.now_s += 61
        assert "timed out" in str(await error_of(source, DeviceLostError))
        server.answer = server.as_usual
        await value_of(source)


async def test_a_server_that_is_mute_is_lost():
    async with meter(answer_s_max=1) as (server, source, _):
        server.polled(lambda _: None)
        await error_of(source, DeviceLostError, "TimeoutError")


async def test_the_server_goes_and_comes_back():
    async with meter() as (server, source, seconds):
        await value_of(source)
        await server.stop()
        seconds.now_s += 61
        await error_of(source, DeviceLostError)
        await server.start()
        assert (await value_of(source)).import_wh == 1_234_567


async def test_a_node_that_is_not_there_is_refused_with_the_servers_word():
    async with meter(node=8) as (_, source, _):
        await error_of(source, DeviceRefusedError, "node_not_found")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "has no power value"),
        ("null", "not a number"),
        ('"12"', "not a number"),
        ("true", "not a number"),
        ("NaN", "not a number"),
        ("1e99", "too great"),
    ],
)
async def test_a_value_that_cannot_be_is_refused_with_the_reason(value, why):
    async with meter() as (server, source, _):
        server.values[W] = value
        await error_of(source, DeviceRefusedError, why)
        server.values[W] = "1"
        assert (await value_of(source)).grid_w == 1


async def test_a_register_that_goes_back_is_refused():
    async with meter() as (server, source, _):
        await value_of(source)
        server.values[KWH_IN] = "1234.566"
        await error_of(source, WentBackError, "forward register went back")
        server.values[KWH_IN] = "-1"
        await error_of(source, DeviceRefusedError, "below zero")


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        ("hello", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 5_000, "not JSON"),
        ("{}", "did not greet"),
        (json.dumps(VERSION | {"minSchemaVersion": 10_000}), "schema 10000 and up"),
    ],
)
async def test_who_is_no_zwave_js_server_is_refused(greeting, why):
    async with meter() as (server, source, _):
        server.greeting = greeting
        await error_of(source, DeviceRefusedError, why)
        server.greeting = json.dumps(VERSION)
        await value_of(source)


async def test_a_message_without_measure_ends_the_connection_not_the_memory():
    async with meter() as (server, source, _):
        server.polled(lambda _: "x" * (MESSAGE_BYTES_MAX + 1))
        await error_of(source, DeviceLostError, "too big")
        server.answer = server.as_usual
        await value_of(source)


@pytest.mark.parametrize(
    "wishes", [{}, {"node": 0}, {"node": 7, "poll": 1}, {"node": 7, "role": "battery"}]
)
def test_a_wrong_section_is_refused(wishes):
    with pytest.raises(ValidationError):
        ZwaveConfig(name="meter", **wishes)


def test_the_missing_library_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    with pytest.raises(ConfigError, match=r"^kind 'zwave' needs .*'hearthgrid\[zwave\]'$"):
        source_for(ZwaveConfig(name="meter", node=7))
