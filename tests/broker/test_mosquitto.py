"""A real Mosquitto takes the rendered files and keeps their rules. Skipped where it is missing."""

import asyncio
import ssl

import pytest
from support.brokers import Authority, make_key
from support.patience import PATIENCE_S

from bench.brokers import INSTALL, Mosquitto, context_of, find_mosquitto, write_client
from csmdb.pki import TlsAuthority
from runtime.bus import MqttBus
from runtime.rng import SystemRng
from runtime.tls import client_context
from sim.processes import Processes
from wire.errors import ConfigError
from wire.topics import CONSENSUS_PROPOSAL, CSMDB_RSP, EVENTS, SYNC_RSP, TX, build

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason=INSTALL)
HOME, OTHER, NODE, DB = (make_key(n) for n in ("home", "other", "node", "db"))
SERVICES = {NODE.id: frozenset({"validator"}), DB.id: frozenset({"csmdb"})}


@pytest.fixture
def running(tmp_path):
    processes = Processes(tmp_path / "logs")
    try:
        yield Mosquitto(processes, tmp_path / "broker", "test", SERVICES)
    finally:
        processes.stop()


async def enter(broker, key, *, client_id=None, tls=None):
    """A lane; `client_id` is what the client claims to be."""
    bus = MqttBus(
        "127.0.0.1", broker.port, lambda: (client_id or key.id, "unused"), SystemRng(),
        tls=tls or context_of(broker, key.id),
    )  # fmt: skip
    return bus


def topic(kind, leaf=""):
    return build("test", kind, leaf)


async def hear(bus, *topics):
    heard = []

    async def take(message):
        heard.append((message.topic, message.payload))

    for one in topics:
        bus.subscribe(one, take)
    await bus.start()
    await bus.wait_connected(PATIENCE_S)
    return heard


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_who_may_speak_and_hear_is_as_rendered(running):
    node, home, other = [await enter(running, key) for key in (NODE, HOME, OTHER)]
    try:
        heard = await hear(node, topic(TX, "+"), topic(CONSENSUS_PROPOSAL))
        at_home = await hear(home, topic(EVENTS, "market"), topic(CSMDB_RSP, HOME.id))
        elsewhere = await hear(other, topic(SYNC_RSP, HOME.id))
        await home.publish(topic(TX, OTHER.id), b"in another's name")
        await home.publish(topic(CONSENSUS_PROPOSAL), b"not a validator")
        await home.publish(topic(EVENTS, "market"), b"not a validator")
        await node.publish(topic(CSMDB_RSP, HOME.id), b"not the CSM-DB")
        await node.publish(topic(SYNC_RSP, HOME.id), b"for the home only")
        await home.publish(topic(TX, HOME.id), b"mine")
        await node.publish(topic(EVENTS, "market"), b"cleared")
        await until(lambda: heard and at_home)
        assert heard == [(topic(TX, HOME.id), b"mine")]
        assert at_home == [(topic(EVENTS, "market"), b"cleared")]
        assert elsewhere == []
    finally:
        for bus in (node, home, other):
            await bus.stop()


async def test_the_certificate_is_the_identity_whatever_the_client_says(running):
    node, liar = await enter(running, NODE), await enter(running, HOME, client_id=OTHER.id)
    try:
        heard = await hear(node, topic(TX, "+"))
        await hear(liar)
        await liar.publish(topic(TX, OTHER.id), b"in another's name")
        await liar.publish(topic(TX, HOME.id), b"mine")
        await until(lambda: heard)
        assert heard == [(topic(TX, HOME.id), b"mine")]
    finally:
        await node.stop()
        await liar.stop()


async def test_nobody_enters_without_a_certificate_of_this_authority(running, tmp_path):
    bare = ssl.create_default_context(cafile=running.tls_folder(HOME.id) / "ca.crt")
    strange = TlsAuthority.create("another", Authority().clock.wall_ms(), bytes(32))
    write_client(strange, tmp_path / "strange", HOME.id)
    (tmp_path / "strange" / "ca.crt").write_bytes(
        (running.tls_folder(HOME.id) / "ca.crt").read_bytes()
    )
    for tls in (bare, client_context(tmp_path / "strange")):
        bus = await enter(running, HOME, tls=tls)
        await bus.start()
        with pytest.raises(TimeoutError):
            await bus.wait_connected(0.7)
        await bus.stop()


async def test_what_was_sent_to_an_absent_validator_waits_for_it(running):
    node, home = await enter(running, NODE), await enter(running, HOME)
    heard = await hear(node, topic(TX, "+"))
    await hear(home)
    await node.stop()
    for number in range(1500):  # more than Mosquitto keeps unless told
        home.publish_soon(topic(TX, HOME.id), b"%d" % number)
    await home.publish(topic(TX, HOME.id), b"last")
    again = await enter(running, NODE)
    try:
        heard = await hear(again, topic(TX, "+"))
        await until(lambda: heard and heard[-1][1] == b"last")
        assert [payload for _, payload in heard[:-1]] == [b"%d" % n for n in range(1500)]
    finally:
        await again.stop()
        await home.stop()


def test_a_folder_without_the_clients_files_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"ca\.crt"):
        client_context(tmp_path)
