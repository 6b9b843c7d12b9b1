"""A broker that was killed remembers what it acknowledged."""

import asyncio
import secrets
import sqlite3

import pytest
from support.brokers import Authority, BrokerProcess, make_key, running_broker
from support.raw_mqtt import RawClient

from broker.embedded import EXPIRY_MS
from broker.sessions import Delivery, Message, Session
from broker.store import Journal
from wire.certificates import make_token
from wire.topics import EVENTS, STATE, Peer, build

AUTHORITY = Authority()
HOME, NODE, DESK = make_key("home"), make_key("node"), make_key("desk")
EVENT, STATES = build("test", EVENTS, "market"), build("test", STATE, "+")


async def enter(port, key, *roles, clean=False):
    client = await RawClient.open(port)
    wall_ms = AUTHORITY.clock.wall_ms()
    credential = AUTHORITY.certificate(key, roles)
    password = make_token(key, "test", wall_ms, secrets.token_hex(8), credential)
    present, code = await client.connect(key.id, key.id, password, clean)
    assert code == 0
    return client, present


async def test_subscriptions_queues_and_retained_messages_survive_sigkill(tmp_path):
    with BrokerProcess(AUTHORITY, tmp_path) as process:
        home, _ = await enter(process.port, HOME, "prosumer")
        await home.subscribe(EVENT)
        await home.disconnect()
        node, _ = await enter(process.port, NODE, "validator")
        for n in range(50):
            await node.publish(EVENT, b"%d" % n)
        desk, _ = await enter(process.port, DESK, "prosumer")
        await desk.publish(build("test", STATE, DESK.id), b"fine", retain=True)
        process.kill()
        process.start()
        home, present = await enter(process.port, HOME, "prosumer")
        assert present == 1
        got = [await home.read() for _ in range(50)]
        assert [p.payload for p in got] == [b"%d" % n for n in range(50)]
        for packet in got:
            home.acknowledge(packet)
        node, _ = await enter(process.port, NODE, "validator")
        await node.publish(EVENT, b"new")
        assert (await home.read()).payload == b"new", "the subscription stands"
        dso, _ = await enter(process.port, make_key("dso"), "dso")
        await dso.subscribe(STATES)
        got = await dso.read()
        assert got.payload == b"fine" and got.is_retained


async def test_what_a_client_acknowledged_does_not_come_back_after_an_orderly_stop(tmp_path):
    state = tmp_path / "broker.sqlite"
    async with running_broker(AUTHORITY, state) as broker:
        home, _ = await enter(broker.port, HOME, "prosumer")
        await home.subscribe(EVENT)
        node, _ = await enter(broker.port, NODE, "validator")
        for n in range(5):
            await node.publish(EVENT, b"%d" % n)
        for _ in range(5):
            got = await home.read()
            if got.payload != b"3":
                home.acknowledge(got)
        await asyncio.sleep(0.1)
    async with running_broker(AUTHORITY, state) as broker:
        home, _ = await enter(broker.port, HOME, "prosumer")
        got = await home.read()
        assert (got.payload, got.is_dup) == (b"3", True)
        home.acknowledge(got)
        await home.read_nothing()
    rows = sqlite3.connect(state).execute("SELECT count(*) FROM messages").fetchone()
    assert rows == (0,), "the file does not grow"


async def test_clean_sessions_and_ended_subscriptions_are_not_remembered(tmp_path):
    state = tmp_path / "broker.sqlite"
    async with running_broker(AUTHORITY, state) as broker:
        clean, _ = await enter(broker.port, NODE, "validator", clean=True)
        await clean.subscribe(EVENT)
        home, _ = await enter(broker.port, HOME, "prosumer")
        await home.subscribe(EVENT)
        name = EVENT.encode()
        home.send(b"\xa2" + bytes((4 + len(name),)) + b"\0\x08\0" + bytes((len(name),)) + name)
        await home.read()
    async with running_broker(AUTHORITY, state) as broker:
        assert set(broker._clients) == {HOME.id}
        assert broker._clients[HOME.id].subscriptions == {}


async def test_a_session_is_forgotten_only_after_a_long_absence(tmp_path):
    """The absence of those who were connected when the broker died begins with its restart."""
    state = tmp_path / "broker.sqlite"
    async with running_broker(AUTHORITY, state) as broker:
        home, _ = await enter(broker.port, HOME, "prosumer")
        await home.subscribe(EVENT)
        await asyncio.sleep(0.15)
    database = sqlite3.connect(state)
    database.execute("UPDATE sessions SET last_seen_ms = 0")
    database.commit()
    database.close()
    async with running_broker(AUTHORITY, state) as broker:
        broker._sweep()
        assert HOME.id in broker._clients
        broker._clients[HOME.id].last_seen_ms -= EXPIRY_MS + 60_000
        broker._sweep()
        assert HOME.id not in broker._clients


async def test_a_clean_connect_wipes_the_remembered_session(tmp_path):
    state = tmp_path / "broker.sqlite"
    async with running_broker(AUTHORITY, state) as broker:
        home, _ = await enter(broker.port, HOME, "prosumer")
        await home.subscribe(EVENT)
        await home.disconnect()
        node, _ = await enter(broker.port, NODE, "validator")
        await node.publish(EVENT, b"queued")
        await enter(broker.port, HOME, "prosumer", clean=True)
    async with running_broker(AUTHORITY, state) as broker:
        _, present = await enter(broker.port, HOME, "prosumer")
        assert present == 0


async def test_nobody_is_acknowledged_when_the_disk_fails(tmp_path):
    async with running_broker(AUTHORITY, tmp_path / "broker.sqlite") as broker:
        home, _ = await enter(broker.port, HOME, "prosumer")
        await home.subscribe(EVENT)
        await home.disconnect()
        node, _ = await enter(broker.port, NODE, "validator")
        broker.journal.failed = asyncio.get_running_loop().create_future()
        await asyncio.sleep(0.15)
        broker.journal._db.execute("PRAGMA query_only=ON")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.publish(EVENT, b"x"), 0.3)
        assert isinstance(broker.journal.failed.exception(), sqlite3.Error)
        broker.journal._db.execute("PRAGMA query_only=OFF")


async def test_a_message_everybody_received_at_once_never_reaches_the_disk(tmp_path):
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    delivery = Delivery(1, Message(1, "t", b"x", 1), False)
    done = []
    journal.add("a", delivery)
    journal.then(lambda: done.append("acknowledged"))
    journal.remove(delivery)
    assert not done
    journal.flush()
    assert done and sqlite3.connect(path).execute("SELECT * FROM messages").fetchall() == []
    journal.close()


async def test_a_message_is_kept_until_its_last_receiver_has_it(tmp_path):
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    message = Message(1, "t", b"x", 1)
    first, second = Delivery(1, message, False), Delivery(2, message, False)
    for name, delivery in (("a", first), ("b", second)):
        journal.session(Session(Peer(name, frozenset({"dso"})), False, 0))
        journal.add(name, delivery)
    journal.flush()
    journal.remove(first)
    journal.flush()
    again = Journal(path).load()
    assert [d.message.payload for d in again.sessions["b"].waiting] == [b"x"]
    assert not again.sessions["a"].waiting
    assert again.next_message == 2 and again.next_delivery == 3
    journal.remove(second)
    journal.close()
    assert sqlite3.connect(path).execute("SELECT * FROM messages").fetchall() == []


async def test_a_message_needed_again_before_its_row_was_deleted_stays(tmp_path):
    """A retained message goes to a new subscriber just after the last one had it."""
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    message = Message(1, "t", b"x", 1)
    first, second = Delivery(1, message, True), Delivery(2, message, True)
    journal.session(Session(Peer("a", frozenset({"dso"})), False, 0))
    journal.add("a", first)
    journal.flush()
    journal.remove(first)
    journal.add("a", second)
    journal.close()
    assert [d.message.payload for d in Journal(path).load().sessions["a"].waiting] == [b"x"]
