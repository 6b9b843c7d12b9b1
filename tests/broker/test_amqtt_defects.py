"""
Each defect of amqtt 0.12.1, shown on plain amqtt and closed in ours.

When a `plain` test fails after an upgrade, amqtt has repaired that defect.
"""

import asyncio
import secrets
import time

import pytest
from support.brokers import Authority, make_key, running_broker
from support.raw_mqtt import RawClient, plain_amqtt

from broker.packets import BAD_CREDENTIALS, MAX_PACKET_BYTES
from wire.certificates import make_token
from wire.topics import EVENTS, STATE, TX, build

AUTHORITY = Authority()
VICTIM, THIEF, DESK, NODE = (make_key(n) for n in ("victim", "thief", "desk", "node"))
OWN_STATE = build("test", STATE, VICTIM.id)
EVENT = build("test", EVENTS, "market")


@pytest.fixture
async def plain():
    async with plain_amqtt() as port:
        yield port


@pytest.fixture
async def ours():
    async with running_broker(AUTHORITY, connect_timeout_s=0.3) as broker:
        yield broker.port


def token(key, roles=("prosumer",)):
    credential = AUTHORITY.certificate(key, roles) if roles else None
    return make_token(key, "test", AUTHORITY.clock.wall_ms(), secrets.token_hex(8), credential)


async def enter(port, key, roles=("prosumer",), clean=False, **more):
    client = await RawClient.open(port)
    present, code = await client.connect(key.id, key.id, token(key, roles), clean, **more)
    assert code == 0
    return client, present


async def enter_plain(port, client_id, user, clean=False):
    client = await RawClient.open(port)
    present, code = await client.connect(client_id, user, f"secret {user}", clean)
    assert code == 0
    return client, present


# --- inheriting a session ---------------------------------------------------------------------


async def test_plain_gives_a_victims_session_to_whoever_names_it(plain):
    victim, _ = await enter_plain(plain, "victim", "victim")
    await victim.subscribe("private/victim")
    await victim.disconnect()
    _, present = await enter_plain(plain, "victim", "thief")
    assert present == 1


async def test_a_client_id_that_is_not_ones_own_is_refused(ours):
    victim, _ = await enter(ours, VICTIM)
    await victim.subscribe(EVENT)
    await victim.disconnect()
    for client_id, user in ((VICTIM.id, THIEF.id), (VICTIM.id, VICTIM.id), (THIEF.id, VICTIM.id)):
        thief = await RawClient.open(ours)
        present, code = await thief.connect(client_id, user, token(THIEF))
        assert (present, code) == (0, BAD_CREDENTIALS)
        assert await thief.is_closed()
    _, present = await enter(ours, VICTIM)
    assert present == 1, "the victim still has its session"


# --- deleting a session -----------------------------------------------------------------------


async def test_plain_lets_a_bad_password_delete_a_session(plain):
    victim, _ = await enter_plain(plain, "victim", "victim")
    await victim.subscribe("private/victim")
    await victim.disconnect()
    thief = await RawClient.open(plain)
    _, code = await thief.connect("victim", "victim", "wrong", clean=True)
    assert code != 0
    sender, _ = await enter_plain(plain, "desk", "desk")
    await sender.publish("private/victim", b"lost")
    victim, _ = await enter_plain(plain, "victim", "victim")
    await victim.read_nothing()


async def test_a_bad_password_touches_no_session(ours):
    victim, _ = await enter(ours, VICTIM)
    await victim.subscribe(EVENT)
    thief = await RawClient.open(ours)
    _, code = await thief.connect(VICTIM.id, VICTIM.id, "wrong", clean=True)
    assert code == BAD_CREDENTIALS
    node, _ = await enter(ours, NODE, ["validator"])
    await node.publish(EVENT, b"still here")
    assert (await victim.read()).payload == b"still here", "not even its connection"


# --- retained messages ------------------------------------------------------------------------


async def test_plain_sends_anybodys_retained_messages_to_a_fresh_connection(plain):
    victim, _ = await enter_plain(plain, "victim", "victim")
    await victim.subscribe("private/victim")
    await victim.publish("private/victim", b"for me only", retain=True)
    thief, _ = await enter_plain(plain, "thief", "thief")
    assert (await thief.read()).payload == b"for me only"


async def test_retained_messages_go_only_where_they_may(ours):
    victim, _ = await enter(ours, VICTIM)
    await victim.publish(OWN_STATE, b"at home", retain=True)
    desk, _ = await enter(ours, DESK, ["dso"])
    assert await desk.subscribe(build("test", STATE, "+")) == 1
    got = await desk.read()
    assert got.payload == b"at home" and got.is_retained
    thief, _ = await enter(ours, THIEF)
    assert await thief.subscribe(build("test", STATE, "+")) == 0x80
    assert await thief.subscribe(OWN_STATE) == 0x80
    await thief.read_nothing()


# --- CONNECT timeout --------------------------------------------------------------------------


async def test_plain_waits_for_connect_for_ever(plain):
    client = await RawClient.open(plain)
    assert not await client.is_closed(within_s=1.0)


async def test_a_connection_that_does_not_introduce_itself_is_closed(ours):
    silent, chatty = await RawClient.open(ours), await RawClient.open(ours)
    chatty.send(b"\xc0\x00")  # PINGREQ first
    assert await chatty.is_closed(within_s=0.2)
    assert await silent.is_closed(within_s=1.5)


# --- QoS --------------------------------------------------------------------------------------


async def test_plain_delivers_qos_0_at_the_subscribers_qos(plain):
    victim, _ = await enter_plain(plain, "victim", "victim")
    await victim.subscribe("private/victim", qos=1)
    sender, _ = await enter_plain(plain, "desk", "desk")
    await sender.publish("private/victim", b"x", qos=0)
    assert (await victim.read()).qos == 1


@pytest.mark.parametrize(
    ("sent", "subscribed", "got"), [(0, 1, 0), (1, 0, 0), (1, 1, 1), (1, 2, 1)]
)
async def test_a_delivery_has_the_lower_qos(ours, sent, subscribed, got):
    home, _ = await enter(ours, VICTIM)
    assert await home.subscribe(EVENT, qos=subscribed) == min(subscribed, 1)
    node, _ = await enter(ours, NODE, ["validator"])
    await node.publish(EVENT, b"x", qos=sent)
    assert (await home.read()).qos == got


# --- size -------------------------------------------------------------------------------------


async def test_plain_takes_a_packet_of_any_size(plain):
    client, _ = await enter_plain(plain, "victim", "victim")
    await client.publish("private/victim", bytes(4 * MAX_PACKET_BYTES))


async def test_a_packet_above_the_limit_is_refused_by_its_header(ours):
    node, _ = await enter(ours, NODE, ["validator"])
    await node.publish(EVENT, bytes(MAX_PACKET_BYTES - 2 - len(EVENT) - 2))
    node.send(b"\x32\x81\x80\x08")  # PUBLISH of 128 KiB and one byte; the body never comes
    assert await node.is_closed(within_s=1)


# --- acknowledging first ----------------------------------------------------------------------


async def test_what_was_not_acknowledged_comes_again_in_order_with_dup(ours):
    home, _ = await enter(ours, VICTIM)
    await home.subscribe(EVENT)
    node, _ = await enter(ours, NODE, ["validator"])
    for n in range(5):
        await node.publish(EVENT, b"%d" % n)
    received = [await home.read() for _ in range(3)]
    home.acknowledge(received[0])
    await asyncio.sleep(0.05)
    home.vanish()
    await asyncio.sleep(0.1)
    await node.publish(EVENT, b"5")
    home, present = await enter(ours, VICTIM)
    assert present == 1
    again = [await home.read() for _ in range(5)]
    assert [p.payload for p in again] == [b"1", b"2", b"3", b"4", b"5"]
    assert [p.is_dup for p in again] == [True, True, True, True, False]


# --- the cost of connecting -------------------------------------------------------------------


async def test_connecting_does_not_get_dearer_with_the_number_of_clients(ours):
    """amqtt walks all subscriptions for each connection; 5,000 clients took it a minute."""
    tokens = [(k, token(k)) for k in (make_key(f"home-{n}") for n in range(400))]

    async def arrive(batch):
        began = time.process_time()
        for key, password in batch:
            client = await RawClient.open(ours)
            assert await client.connect(key.id, key.id, password) == (0, 0)
            await client.subscribe(build("test", TX, key.id))
        return time.process_time() - began

    first, *_, last = [await arrive(tokens[at : at + 100]) for at in range(0, 400, 100)]
    assert last < 3 * first
