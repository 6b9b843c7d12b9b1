"""The broker asks the ACL for every publish, subscription and delivery."""

import asyncio
import secrets

import pytest
from support.brokers import DAY_MS, Authority, make_key, running_broker
from support.patience import PATIENCE_S
from support.raw_mqtt import RawClient

from broker.router import Router, matches
from broker.sessions import Session
from runtime.metrics import refusals
from wire.certificates import make_token
from wire.topics import (
    AUCTION,
    COMMAND,
    CONSENSUS_PROPOSAL,
    CSMDB_REQ,
    CSMDB_RSP,
    DSO_REQ,
    DSO_RSP,
    EVENTS,
    READING,
    STATE,
    SYNC_RSP,
    TX,
    Peer,
    build,
)

AUTHORITY = Authority()
HOME, OTHER, NODE, DESK, DB = (make_key(n) for n in ("home", "other", "node", "desk", "db"))


@pytest.fixture
async def broker():
    async with running_broker(AUTHORITY, connect_timeout_s=0.4) as running:
        yield running


def topic(kind, leaf=""):
    return build("test", kind, leaf)


async def enter(broker, key, *roles, credential=None, **more):
    client = await RawClient.open(broker.port)
    if credential is None and roles:
        grant = roles == ("address",)
        credential = AUTHORITY.grant(key) if grant else AUTHORITY.certificate(key, roles)
    wall_ms = AUTHORITY.clock.wall_ms()
    password = make_token(key, "test", wall_ms, secrets.token_hex(8), credential)
    _, code = await client.connect(key.id, key.id, password, **more)
    assert code == 0
    return client


@pytest.mark.parametrize(
    ("roles", "kind", "leaf"),
    [
        (("prosumer",), TX, OTHER.id),
        (("prosumer",), CONSENSUS_PROPOSAL, ""),
        (("prosumer",), EVENTS, "market"),
        (("prosumer",), AUCTION, ""),
        (("prosumer",), COMMAND, HOME.id),
        (("address",), READING, HOME.id),
        (("validator",), CSMDB_RSP, OTHER.id),
        ((), TX, HOME.id),
        ((), CSMDB_REQ, OTHER.id),
    ],
)
async def test_a_message_one_may_not_send_reaches_nobody(broker, roles, kind, leaf):
    witness_roles = {
        COMMAND: ("prosumer",), CSMDB_RSP: ("prosumer",), READING: ("dso",), CSMDB_REQ: ("csmdb",),
    }  # fmt: skip
    reader_key = HOME if kind == COMMAND else OTHER
    sender_key = HOME if kind != COMMAND else OTHER
    reader = await enter(broker, reader_key, *witness_roles.get(kind, ("validator",)))
    assert await reader.subscribe(topic(kind, leaf)) == 1
    before = refusals("broker").get("NOT_ALLOWED", 0)
    sender = await enter(broker, sender_key, *roles)
    await sender.publish(topic(kind, leaf), b"x", retain=True)
    await reader.read_nothing(0.15)
    assert refusals("broker")["NOT_ALLOWED"] == before + 1
    assert topic(kind, leaf) not in broker._retained


@pytest.mark.parametrize(
    "wanted",
    [
        "#", "hg/v1/test/#", "+/+/+/+/+", "hg/v1/+/events/market", "hg/v1/test/+/+", "$SYS/#",
        "hg/v1/other/events/market", topic(READING, "+"), topic(READING, HOME.id),
        topic(SYNC_RSP, "+"), topic(CSMDB_REQ, "+"), topic(CSMDB_RSP, OTHER.id), "", "/",
    ],
)  # fmt: skip
async def test_a_subscription_one_may_not_have_is_refused(broker, wanted):
    home = await enter(broker, HOME, "prosumer")
    assert await home.subscribe(wanted) == 0x80


async def test_enrolment_works_without_a_credential_and_nothing_else_does(broker):
    meter, db = await enter(broker, HOME), await enter(broker, DB, "csmdb")
    assert await db.subscribe(topic(CSMDB_REQ, "+")) == 1
    assert await meter.subscribe(topic(CSMDB_RSP, HOME.id)) == 1
    assert await meter.subscribe(topic(EVENTS, "market")) == 0x80
    await meter.publish(topic(CSMDB_REQ, HOME.id), b"enrol me")
    got = await db.read()
    assert got.payload == b"enrol me"
    db.acknowledge(got)
    await db.publish(topic(CSMDB_RSP, HOME.id), b"welcome")
    assert (await meter.read()).payload == b"welcome"


@pytest.mark.parametrize("roles", [("aggregator",), ("aggregator", "dso")])
async def test_an_aggregator_may_ask_the_dso_also_when_it_is_the_same_desk(broker, roles):
    desk = await enter(broker, DESK, *roles)
    dso = desk if "dso" in roles else await enter(broker, OTHER, "dso")
    assert await dso.subscribe(topic(DSO_REQ, "+")) == 1
    assert await desk.subscribe(topic(DSO_RSP, DESK.id)) == 1
    await desk.publish(topic(DSO_REQ, DESK.id), b"may we?", qos=0)
    asked = await dso.read()
    assert (asked.topic, asked.payload) == (topic(DSO_REQ, DESK.id), b"may we?")
    await dso.publish(topic(DSO_RSP, DESK.id), b"you may", qos=0)
    assert (await desk.read()).payload == b"you may"


async def test_lost_roles_end_what_an_old_subscription_delivered(broker):
    """Both what arrives later and what was queued meanwhile."""
    desk = await enter(broker, DESK, "dso")
    assert await desk.subscribe(topic(STATE, "+")) == 1
    await desk.disconnect()
    home = await enter(broker, HOME, "prosumer")
    await home.publish(topic(STATE, HOME.id), b"queued")
    desk = await enter(broker, DESK, "prosumer")
    await home.publish(topic(STATE, HOME.id), b"later")
    await desk.read_nothing()


async def test_a_connection_ends_with_its_certificate(broker):
    now_ms = AUTHORITY.clock.now_ms()
    short = AUTHORITY.certificate(HOME, ["prosumer"], now_ms - DAY_MS, now_ms + 400)
    home = await enter(broker, HOME, credential=short)
    assert await home.is_closed(within_s=3)


async def test_a_token_opens_the_door_once(broker):
    password = make_token(HOME, "test", AUTHORITY.clock.wall_ms(), "nonce", None)
    codes = []
    for _ in range(2):
        client = await RawClient.open(broker.port)
        codes.append((await client.connect(HOME.id, HOME.id, password))[1])
    assert codes == [0, 4]


async def test_a_will_on_a_topic_one_may_not_use_is_dropped(broker):
    desk = await enter(broker, DESK, "dso")
    await desk.subscribe(topic(STATE, OTHER.id))
    liar = await enter(broker, HOME, "prosumer", will=(topic(STATE, OTHER.id), b"offline"))
    liar.vanish()
    await desk.read_nothing()


async def test_a_silent_client_is_dropped_and_its_will_published(broker):
    desk = await enter(broker, DESK, "dso")
    await desk.subscribe(topic(STATE, HOME.id))
    await enter(broker, HOME, "prosumer", keepalive_s=1, will=(topic(STATE, HOME.id), b"offline"))
    assert (await desk.read(4)).payload == b"offline"


async def test_the_newer_connection_of_an_identity_wins(broker):
    old = await enter(broker, HOME, "prosumer")
    new = await enter(broker, HOME, "prosumer")
    assert await old.is_closed()
    assert await new.subscribe(topic(EVENTS, "market")) == 1


async def test_a_clean_session_leaves_nothing_behind(broker):
    home = await enter(broker, HOME, "prosumer", clean=True)
    await home.subscribe(topic(EVENTS, "market"))
    await home.disconnect()
    assert HOME.id not in broker._clients and not broker._router._exact


async def test_a_qos_2_publish_ends_the_connection(broker):
    home = await enter(broker, HOME, "prosumer")
    home.send(b"\x34\x06\x00\x01t\x00\x01x")
    assert await home.is_closed()


async def test_overlapping_subscriptions_deliver_once(broker):
    node = await enter(broker, NODE, "validator")
    await node.subscribe(topic(TX, "+"))
    await node.subscribe(topic(TX, HOME.id))
    home = await enter(broker, HOME, "address")
    await home.publish(topic(TX, HOME.id), b"x")
    node.acknowledge(await node.read())
    await node.read_nothing()


async def test_unsubscribing_ends_the_deliveries(broker):
    node = await enter(broker, NODE, "validator")
    await node.subscribe(topic(EVENTS, "market"))
    node.send(
        b"\xa2"
        + bytes((4 + len(topic(EVENTS, "market")),))
        + b"\0\x08\0"
        + bytes((len(topic(EVENTS, "market")),))
        + topic(EVENTS, "market").encode()
    )
    assert (await node.read()).kind == 11
    other = await enter(broker, OTHER, "validator")
    await other.publish(topic(EVENTS, "market"), b"x")
    await node.read_nothing()


async def test_an_empty_retained_message_clears_it(broker):
    home = await enter(broker, HOME, "prosumer")
    await home.publish(topic(STATE, HOME.id), b"on", retain=True)
    await home.publish(topic(STATE, HOME.id), b"", retain=True)
    desk = await enter(broker, DESK, "dso")
    await desk.subscribe(topic(STATE, "+"))
    await desk.read_nothing()


async def test_rubbish_closes_only_its_own_connection(broker):
    home = await enter(broker, HOME, "prosumer")
    for rubbish in (b"\x10\x04\x00\x04MQ", b"GET / HTTP/1.1\r\n\r\n", b"\x82\x01\x00", b"\xff" * 9):
        stranger = await RawClient.open(broker.port)
        stranger.send(rubbish)
        assert await stranger.is_closed()
    assert await home.subscribe(topic(EVENTS, "market")) == 1
    home.send(b"\x82\x03\x00\x07\x00")  # SUBSCRIBE cut short
    assert await home.is_closed()


def test_a_route_is_kept_until_subscriptions_change():
    router = Router("test")
    session = Session(Peer(HOME.id, frozenset({"validator"})), False, 0)
    assert router.route(topic(TX, OTHER.id)) == []
    router.add(session, topic(TX, "+"), 1)
    assert router.route(topic(TX, OTHER.id)) == [(session, 1)]
    router.remove(session, topic(TX, "+"))
    assert router.route(topic(TX, OTHER.id)) == []


def test_a_filter_matches_level_by_level():
    assert matches("a/+/c", "a/b/c")
    assert not matches("a/+", "a/b/c")
    assert not matches("a/+/c/d", "a/b/c")


async def test_a_client_that_does_not_read_does_not_hold_up_the_others(broker):
    lazy, busy = await enter(broker, OTHER, "prosumer"), await enter(broker, HOME, "prosumer")
    for client in (lazy, busy):
        await client.subscribe(topic(EVENTS, "market"))
    node = await enter(broker, NODE, "validator")

    async def read_all():
        for _ in range(400):
            busy.acknowledge(await busy.read())

    reading = asyncio.create_task(read_all())
    for _ in range(400):
        await node.publish(topic(EVENTS, "market"), bytes(100_000))
    await asyncio.wait_for(reading, PATIENCE_S)
