"""The bus against a real broker in this process."""

import asyncio
import socket

import pytest
from support.brokers import Authority, make_key, running_broker
from support.patience import PATIENCE_S

from runtime.bus import BACKOFF_MAX_S, MAX_PAYLOAD_BYTES, is_milestone
from runtime.link import MISC_PERIOD_S
from runtime.metrics import refusals
from runtime.ports import BusDownError, Message
from wire.errors import MalformedError, OversizedError
from wire.topics import COMMAND, EVENTS, STATE, SYNC_REQ, TX, build

AUTHORITY = Authority()
HOME, NODE, DESK = make_key("home"), make_key("node"), make_key("desk")


async def start(*buses):
    for bus in buses:
        await bus.start()
    for bus in buses:
        await bus.wait_connected(PATIENCE_S)


async def eventually(condition, timeout_s=PATIENCE_S):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def broker():
    async with running_broker(AUTHORITY, limited=False) as running:
        yield running


@pytest.fixture
async def pair(broker):
    """A home that speaks on tx and a node that listens."""
    home = AUTHORITY.bus(broker.port, HOME, {"address"})
    node = AUTHORITY.bus(broker.port, NODE, {"validator"})
    yield home, node
    await home.stop()
    await node.stop()


TX_HOME = build("test", TX, HOME.id)
TX_ALL = build("test", TX, "+")


async def test_a_published_message_arrives_with_topic_and_payload(pair):
    home, node = pair
    got: list[Message] = []

    async def handler(message):
        got.append(message)

    node.subscribe(TX_ALL, handler)
    await start(home, node)
    await home.publish(TX_HOME, b"hello")
    await eventually(lambda: got)
    assert got == [Message(TX_HOME, b"hello", retained=False)]


async def test_a_burst_arrives_whole_and_in_order(pair):
    home, node = pair
    got: list[int] = []

    async def handler(message):
        await asyncio.sleep(0)
        got.append(int(message.payload))

    node.subscribe(TX_ALL, handler)
    await start(home, node)
    for n in range(600):
        home.publish_soon(TX_HOME, b"%d" % n)
    await eventually(lambda: len(got) == 600)
    assert got == list(range(600))


async def test_a_burst_of_large_messages_arrives_whole(pair):
    home, node = pair
    sizes = []

    async def handler(message):
        sizes.append(len(message.payload))

    node.subscribe(TX_ALL, handler)
    await start(home, node)
    for _ in range(100):
        home.publish_soon(TX_HOME, bytes(120_000))
    await eventually(lambda: len(sizes) == 100)
    assert set(sizes) == {120_000} and home.connected


async def test_a_subscription_made_later_works_too(pair):
    home, node = pair
    await start(home, node)
    got = asyncio.Queue()
    node.subscribe(TX_ALL, got.put)
    await asyncio.sleep(0.1)
    await home.publish(TX_HOME, b"1")
    assert (await asyncio.wait_for(got.get(), PATIENCE_S)).payload == b"1"


async def test_every_matching_handler_gets_a_message_once(pair):
    home, node = pair
    first, second, third = [], [], []

    def into(found):
        async def handler(message):
            found.append(message.payload)

        return handler

    node.subscribe(TX_ALL, into(first))
    node.subscribe(TX_ALL, into(second))
    node.subscribe(TX_HOME, into(third))
    await start(home, node)
    await home.publish(TX_HOME, b"x")
    await eventually(lambda: first and second and third)
    await asyncio.sleep(0.05)
    assert (first, second, third) == ([b"x"], [b"x"], [b"x"])


async def test_a_failing_handler_neither_stops_the_bus_nor_gets_the_message_again(pair):
    home, node = pair
    seen = []

    async def handler(message):
        seen.append(message.payload)
        if message.payload == b"poison":
            raise RuntimeError("boom")
        if message.payload == b"bad":
            raise MalformedError("bad")

    before = refusals("bus").get("MALFORMED", 0)
    node.subscribe(TX_ALL, handler)
    await start(home, node)
    for payload in (b"poison", b"bad", b"good"):
        await home.publish(TX_HOME, payload)
    await eventually(lambda: len(seen) == 3)
    node.reconnect()
    await asyncio.sleep(0.1)
    await node.wait_connected(PATIENCE_S)
    await home.publish(TX_HOME, b"after")
    await eventually(lambda: b"after" in seen)
    assert seen == [b"poison", b"bad", b"good", b"after"]
    assert refusals("bus")["MALFORMED"] == before + 1


async def test_a_message_is_acknowledged_only_when_its_handler_has_returned(broker):
    """A process that dies while handling a message gets it again."""
    home = AUTHORITY.bus(broker.port, HOME, {"address"})
    slow = AUTHORITY.bus(broker.port, NODE, {"validator"})
    begun = asyncio.Event()

    async def never_returns(_message):
        begun.set()
        await asyncio.Event().wait()

    slow.subscribe(TX_ALL, never_returns)
    await start(home, slow)
    await home.publish(TX_HOME, b"unfinished")
    await asyncio.wait_for(begun.wait(), PATIENCE_S)
    await slow.stop()
    again = AUTHORITY.bus(broker.port, NODE, {"validator"})
    got = asyncio.Queue()
    again.subscribe(TX_ALL, got.put)
    await start(again)
    assert (await asyncio.wait_for(got.get(), PATIENCE_S)).payload == b"unfinished"
    await home.stop()
    await again.stop()


async def test_with_two_handlers_the_slower_one_decides_the_acknowledgement(broker):
    home = AUTHORITY.bus(broker.port, HOME, {"address"})
    node = AUTHORITY.bus(broker.port, NODE, {"validator"})
    quick = asyncio.Queue()

    async def never_returns(_message):
        await asyncio.Event().wait()

    node.subscribe(TX_ALL, never_returns)
    node.subscribe(TX_ALL, quick.put)
    await start(home, node)
    await home.publish(TX_HOME, b"x")
    await asyncio.wait_for(quick.get(), PATIENCE_S)
    await asyncio.sleep(0.05)
    assert len(broker._clients[NODE.id].underway) == 1
    await home.stop()
    await node.stop()


async def test_publish_without_a_connection_says_so(unused_tcp_port):
    bus = AUTHORITY.bus(unused_tcp_port, HOME, {"address"})
    with pytest.raises(BusDownError):
        await bus.publish(TX_HOME, b"x")
    bus.publish_soon(TX_HOME, b"x")
    assert bus.dropped == 1
    await bus.start()
    assert not bus.connected
    with pytest.raises(TimeoutError):
        await bus.wait_connected(0.3)
    await bus.stop()


async def test_publish_fails_when_the_connection_goes_before_the_acknowledgement():
    """A broker that accepts everybody and then says nothing, and hangs up."""

    async def mute(reader, writer):
        await reader.read(4096)
        writer.write(b"\x20\x02\x00\x00")
        await reader.readexactly(10)
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    bus = AUTHORITY.bus(server.sockets[0].getsockname()[1], HOME, {"address"})
    await start(bus)
    with pytest.raises(BusDownError):
        await bus.publish(TX_HOME, b"x" * 100)
    await bus.stop()
    server.close()


async def test_a_message_too_big_for_the_broker_is_refused_here(pair):
    home, node = pair
    await start(home, node)
    with pytest.raises(OversizedError):
        await home.publish(TX_HOME, bytes(MAX_PAYLOAD_BYTES + 1))
    home.publish_soon(TX_HOME, bytes(MAX_PAYLOAD_BYTES + 1))
    await home.publish(TX_HOME, bytes(MAX_PAYLOAD_BYTES))
    assert home.connected and home.dropped == 1


async def test_the_last_will_speaks_when_a_process_vanishes_but_not_when_it_leaves(broker):
    topic = build("test", STATE, HOME.id)
    desk = AUTHORITY.bus(broker.port, DESK, {"dso"})
    states = []

    async def handler(message):
        states.append(message.payload)

    desk.subscribe(build("test", STATE, "+"), handler)
    leaving = AUTHORITY.bus(broker.port, HOME, {"prosumer"}, will=(topic, b"offline", True))
    await start(desk, leaving)
    await leaving.stop()
    await asyncio.sleep(0.1)
    assert states == []
    vanishing = AUTHORITY.bus(broker.port, HOME, {"prosumer"}, will=(topic, b"offline", True))
    await start(vanishing)
    vanishing._link._socket.close()  # no DISCONNECT, as if the process were killed
    await eventually(lambda: states == [b"offline"])
    vanishing._task.cancel()
    await desk.stop()


async def test_each_connection_shows_a_fresh_token_and_subscribes_again(pair):
    home, node = pair
    got = asyncio.Queue()
    node.subscribe(TX_ALL, got.put)
    await start(home, node)
    for n in range(3):
        node.reconnect()
        await asyncio.sleep(0.02)
        await node.wait_connected(PATIENCE_S)
        await home.publish(TX_HOME, b"%d" % n)
        assert (await asyncio.wait_for(got.get(), PATIENCE_S)).payload == b"%d" % n


async def test_a_birth_message_follows_every_connect(pair):
    home, node = pair
    got = []

    async def handler(message):
        got.append(message.payload)

    node.subscribe(TX_ALL, handler)
    home.on_connected(lambda: home.publish(TX_HOME, b"born"))
    await start(node, home)
    await eventually(lambda: len(got) == 1)
    home.reconnect()
    await eventually(lambda: len(got) == 2)


async def test_a_refused_connection_is_counted_once_and_tried_again(broker):
    stranger = Authority("test", make_key("another issuer")).bus(broker.port, HOME, {"prosumer"})
    before = refusals("bus").get("NOT_ALLOWED", 0)
    await stranger.start()
    await asyncio.sleep(0.9)
    assert not stranger.connected
    assert refusals("bus")["NOT_ALLOWED"] == before + 1
    assert refusals("broker")["BAD_SIGNATURE"] >= 2
    await stranger.stop()


async def test_a_refused_subscription_does_not_keep_the_others_from_working(broker):
    home = AUTHORITY.bus(broker.port, HOME, {"prosumer"})
    desk = AUTHORITY.bus(broker.port, DESK, {"dso"})
    got, other = asyncio.Queue(), asyncio.Queue()
    home.subscribe(build("test", COMMAND, "+"), other.put)
    home.subscribe(build("test", COMMAND, HOME.id), got.put)
    await start(home, desk)
    await desk.publish(build("test", COMMAND, HOME.id), b"limit")
    assert (await asyncio.wait_for(got.get(), PATIENCE_S)).payload == b"limit"
    await home.stop()
    await desk.stop()


async def test_a_request_and_its_answer_take_milliseconds(broker):
    """TCP_NODELAY on both sides: without it this would be 40 ms and more."""
    node, other = make_key("node"), make_key("other")
    asker = AUTHORITY.bus(broker.port, node, {"validator"})
    answerer = AUTHORITY.bus(broker.port, other, {"validator"})
    got = asyncio.Queue()

    async def answer(message):
        answerer.publish_soon(build("test", EVENTS, "answer"), message.payload)

    asker.subscribe(build("test", EVENTS, "answer"), got.put)
    answerer.subscribe(build("test", SYNC_REQ, "+"), answer)
    await start(asker, answerer)
    loop = asyncio.get_running_loop()
    times = []
    for _ in range(20):
        began = loop.time()
        asker.publish_soon(build("test", SYNC_REQ, node.id), b"?")
        await asyncio.wait_for(got.get(), PATIENCE_S)
        times.append(loop.time() - began)
    assert sorted(times)[10] < 0.02
    await asker.stop()
    await answerer.stop()


def test_milestones_are_powers_of_ten():
    assert [n for n in range(1, 1001) if is_milestone(n)] == [1, 10, 100, 1000]


def test_the_back_off_is_bounded():
    assert BACKOFF_MAX_S <= 10


async def test_a_stopped_bus_leaves_no_socket_in_the_loop(pair):
    """A reader left behind on a dead socket would spin the loop for ever."""
    home, _ = pair
    await start(home)
    link = home._link
    assert link is not None
    assert link._socket is not None
    await home.stop()
    assert link._socket.fileno() == -1


async def test_a_lane_that_the_loop_tells_nothing_looks_for_itself(broker):
    """Seen once under load: no event came at the broker's death, and a validator stayed deaf."""
    node = AUTHORITY.bus(broker.port, NODE, {"validator"})
    home = AUTHORITY.bus(broker.port, HOME, {"address"})
    got = asyncio.Queue()
    node.subscribe(TX_ALL, got.put)
    await start(home, node)
    loop = asyncio.get_running_loop()
    loop.remove_reader(node._link._socket.fileno())
    await home.publish(TX_HOME, b"1")
    assert (await asyncio.wait_for(got.get(), 3 * MISC_PERIOD_S)).payload == b"1"
    node._link._socket._raw.shutdown(socket.SHUT_RDWR)
    async with asyncio.timeout(3 * MISC_PERIOD_S):
        while node.connected:
            await asyncio.sleep(0.01)
    await home.stop()
    await node.stop()
