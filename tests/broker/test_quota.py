"""No client can say so much that the others wait; nothing of what it says is lost."""

import asyncio
import secrets
import time

import pytest
from support.brokers import Authority, make_key, running_broker
from support.enrolment import connected_lane
from support.patience import PATIENCE_S
from support.raw_mqtt import RawClient

from broker.packets import PINGRESP_PACKET, UNAVAILABLE
from broker.quota import (
    ADDRESS,
    HOME,
    MAX_CLIENTS,
    RESTING,
    STRANGER,
    STRANGERS,
    Quota,
    rates_of,
)
from broker.sessions import MAX_WAITING_BYTES, Delivery, Message, Session
from runtime.bus import MqttBus
from runtime.metrics import refusals
from wire.certificates import make_token
from wire.topics import CSMDB_REQ, STATE, TX, Peer, build

AUTHORITY = Authority()
FLOODER, HONEST, NODE = make_key("flooder"), make_key("honest"), make_key("node")


def peer(name, *roles):
    return Peer(name, frozenset(roles))


def test_a_client_waits_once_its_burst_is_used_up_and_only_as_long_as_it_must():
    quota, who = Quota(), peer("a", "address")
    waits = [quota.charge(who, 1, 100, 0.0, 0.0) for _ in range(int(ADDRESS.messages_burst) + 1)]
    assert not any(waits[:-1]) and waits[-1] == pytest.approx(1 / ADDRESS.messages_per_s)
    assert quota.charge(peer("b", "address"), 1, 100, 0.0, 0.0) == 0
    assert quota.charge(who, 1, 100, 1.0, 0.0) == 0


def test_bytes_count_as_well_as_messages():
    quota, who = Quota(), peer("a", "prosumer")
    assert quota.charge(who, 1, int(HOME.bytes_burst) + 64 * 1024, 0, 0) == pytest.approx(1.0)


def test_in_a_market_that_runs_faster_quotas_do_too():
    quota, who = Quota(), peer("a", "address")
    assert (
        quota.charge(who, ADDRESS.messages_burst + 100, 0, 0.0, 0.0) == 100 / ADDRESS.messages_per_s
    )
    assert quota.charge(who, 0, 0, 0.1, 90.0) == 0


def test_strangers_share_one_bucket_as_anybody_can_make_identities():
    quota = Quota()
    for number in range(int(STRANGERS.messages_burst)):
        assert quota.charge(peer(f"s{number}"), 1, 10, 0.0, 0.0) == 0
    assert quota.charge(peer("one more"), 1, 10, 0.0, 0.0) > 0
    assert quota.charge(peer("home", "prosumer"), 1, 10, 0.0, 0.0) == 0


def test_addresses_that_are_not_at_work_share_one_bucket_whatever_a_home_has_collected():
    quota = Quota()

    def say(name, *, resting):
        return quota.charge(peer(name, "address"), 1, 10, 0.0, 0.0, resting=resting)

    assert not any(say(f"late {n}", resting=True) for n in range(int(RESTING.messages_burst)))
    assert say("one more", resting=True) > 0
    assert say("at work", resting=False) == 0


def test_a_debt_is_known_before_anything_is_checked_and_is_paid_off_by_time():
    quota = Quota()
    assert quota.debt_s("a", 0.0, 0.0) == 0
    quota.charge(peer("a", "address"), ADDRESS.messages_burst + 40, 0, 0.0, 0.0)
    assert quota.debt_s("a", 1.0, 0.0) == pytest.approx(40 / ADDRESS.messages_per_s - 1)
    assert quota.debt_s("a", 60.0, 0.0) == 0


async def test_whoever_has_used_up_its_quota_still_gets_answers_to_its_pings():
    """Else its client would take the broker for lost, connect anew, and say everything again."""
    async with running_broker(AUTHORITY) as broker:
        flooder = await connected_lane(AUTHORITY, broker.port, FLOODER, roles={"address"})
        flooder_peer = Peer(FLOODER.id, frozenset({"address"}))
        broker._charge(flooder_peer, ADDRESS.messages_burst + 200, 0)
        sending = asyncio.create_task(_flood(flooder, 5))
        (connection,) = broker._connections
        async with asyncio.timeout(PATIENCE_S):
            while not connection.is_paused:
                await asyncio.sleep(0.01)
        answers = []
        write, connection.write = connection.write, answers.append
        flooder._link._client._send_pingreq()
        async with asyncio.timeout(5.0):
            while PINGRESP_PACKET not in answers:
                await asyncio.sleep(0.01)
        connection.write = write
        assert connection.is_paused and not sending.done()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await flooder.stop()


def test_roles_decide_and_buckets_are_bounded():
    assert rates_of(peer("x")) is STRANGER
    assert rates_of(peer("x", "address")) is ADDRESS
    assert rates_of(peer("x", "prosumer", "validator")).messages_per_s > HOME.messages_per_s
    quota = Quota()
    for number in range(MAX_CLIENTS + 10):
        quota.charge(peer(f"h{number}", "address"), 1, 10, 0.0, 0.0)
    assert len(quota._buckets) == MAX_CLIENTS


async def _flood(bus: MqttBus, count: int) -> None:
    topic = build("test", TX, FLOODER.id)
    await asyncio.gather(*(bus.publish(topic, b"%d" % n) for n in range(count)))


async def test_a_flooder_is_read_later_and_whole_while_others_are_read_at_once():
    """Over real sockets; the flooder's connection stands, and its keep-alive is not used up."""
    async with running_broker(AUTHORITY) as broker:
        flooder, honest, node = [
            await connected_lane(AUTHORITY, broker.port, key, roles=roles)
            for key, roles in ((FLOODER, {"address"}), (HONEST, {"address"}), (NODE, {"validator"}))
        ]
        heard: list[bytes] = []

        async def take(message):
            heard.append(message.payload)

        node.subscribe(build("test", TX, "+"), take)
        await asyncio.sleep(0.1)
        count = int(ADDRESS.messages_burst) + 15
        began_s = time.monotonic()
        task = asyncio.create_task(_flood(flooder, count))
        async with asyncio.timeout(PATIENCE_S):
            while len(heard) < ADDRESS.messages_burst - 10:
                await asyncio.sleep(0.01)
            await honest.publish(build("test", TX, HONEST.id), b"mine")
            assert not task.done(), "the flooder waits, the other one does not"
            await task
        assert time.monotonic() - began_s > 1.0
        assert heard.count(b"mine") == 1
        async with asyncio.timeout(PATIENCE_S):
            while len(heard) < count + 1:
                await asyncio.sleep(0.01)
        assert flooder.connected and flooder.dropped == 0
        # connecting anew fills no bucket: what cannot be paid off soon is not let in
        broker._charge(Peer(FLOODER.id, frozenset({"address"})), 500, 0)
        await flooder.stop()
        again = AUTHORITY.bus(broker.port, FLOODER, {"address"})
        await again.start()
        with pytest.raises(TimeoutError):
            await again.wait_connected(1.0)
        await asyncio.gather(*(bus.stop() for bus in (again, honest, node)))


@pytest.mark.parametrize(
    ("roles", "kind", "size", "kept"),
    [
        ({"prosumer"}, STATE, 500, True),
        ({"prosumer"}, STATE, 20_000, False),
        ({"address"}, TX, 500, False),
        (set(), CSMDB_REQ, 500, False),
    ],
)
async def test_a_home_leaves_nothing_behind_but_its_state(roles, kind, size, kept):
    """Fifty thousand retained messages are room for all; strangers could fill it."""
    async with running_broker(AUTHORITY) as broker:
        bus = await connected_lane(AUTHORITY, broker.port, HONEST, roles=roles)
        topic = build("test", kind, HONEST.id)
        await bus.publish(topic, bytes(size), retain=True)
        assert (topic in broker._retained) is kept
        await bus.stop()


def test_what_waits_for_a_slow_reader_is_bounded_in_bytes():
    session = Session(peer("slow", "address"), False, 0)
    message = Message(1, "t", bytes(120 * 1024), 1)
    for number in range(MAX_WAITING_BYTES // len(message.payload) + 2):
        assert session.full == (session.waiting_bytes >= MAX_WAITING_BYTES)
        if not session.full:
            session.offer(Delivery(number, message, False))
    assert session.full
    session.drop(session.waiting[0])
    assert not session.full


async def test_one_client_cannot_use_up_the_memory_of_tokens_that_others_need(monkeypatch):
    """It is refused as RATE_LIMITED once its own share is full; strangers have a share as well."""
    monkeypatch.setattr("broker.embedded.NONCES_PER_CLIENT", 3)
    monkeypatch.setattr("broker.embedded.NONCES_OF_STRANGERS", 5)
    async with running_broker(AUTHORITY, limited=False) as broker:

        async def knock(key, credential=None):
            client = await RawClient.open(broker.port)
            token = make_token(
                key, "test", AUTHORITY.clock.wall_ms(), secrets.token_hex(8), credential
            )
            _, code = await client.connect(key.id, key.id, token)
            client.vanish()
            return code

        grant = AUTHORITY.grant(FLOODER)
        assert [await knock(FLOODER, grant) for _ in range(4)] == [0, 0, 0, UNAVAILABLE]
        assert refusals("broker")["RATE_LIMITED"]
        codes = [await knock(make_key(f"stranger-{n}")) for n in range(6)]
        assert codes == [0] * 5 + [UNAVAILABLE]
        assert await knock(HONEST, AUTHORITY.grant(HONEST)) == 0
