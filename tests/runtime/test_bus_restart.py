"""The bus and a broker process that is killed and comes back on the same port."""

import asyncio

from support.brokers import Authority, BrokerProcess, make_key
from support.patience import PATIENCE_S

from runtime.ports import BusDownError
from wire.topics import TX, build

AUTHORITY = Authority()
HOME, NODE = make_key("home"), make_key("node")
TX_HOME, TX_ALL = build("test", TX, HOME.id), build("test", TX, "+")


async def test_nothing_that_publish_returned_for_is_lost_when_the_broker_is_killed(tmp_path):
    """The publisher repeats what failed; the subscriber gets everything, some perhaps twice."""
    with BrokerProcess(AUTHORITY, tmp_path) as process:
        home = AUTHORITY.bus(process.port, HOME, {"address"})
        node = AUTHORITY.bus(process.port, NODE, {"validator"})
        got: list[int] = []
        failed = 0

        async def handler(message):
            await asyncio.sleep(0.002)  # slower than the publisher: a queue builds up
            got.append(int(message.payload))

        node.subscribe(TX_ALL, handler)
        await home.start()
        await node.start()
        await home.wait_connected(PATIENCE_S)
        await node.wait_connected(PATIENCE_S)
        loop = asyncio.get_running_loop()

        async def publish_all():
            nonlocal failed
            for n in range(300):
                while True:
                    try:
                        await home.publish(TX_HOME, b"%d" % n)
                        break
                    except BusDownError:
                        failed += 1
                        await home.wait_connected(PATIENCE_S)

        publishing = asyncio.create_task(publish_all())
        await asyncio.sleep(0.3)
        await loop.run_in_executor(None, process.kill)
        assert 0 < len(got) < 300 and not publishing.done()
        await loop.run_in_executor(None, process.start)
        await asyncio.wait_for(publishing, PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while set(got) != set(range(300)):
                await asyncio.sleep(0.02)
        assert failed >= 1, "the kill must have hit a publish"
        first = list(dict.fromkeys(got))
        assert first == sorted(first), "first arrivals keep their order"
        await home.stop()
        await node.stop()


async def test_messages_for_an_absent_subscriber_wait_through_a_kill(tmp_path):
    with BrokerProcess(AUTHORITY, tmp_path) as process:
        node = AUTHORITY.bus(process.port, NODE, {"validator"})
        got = asyncio.Queue()
        node.subscribe(TX_ALL, got.put)
        await node.start()
        await node.wait_connected(PATIENCE_S)
        await node.stop()
        home = AUTHORITY.bus(process.port, HOME, {"address"})
        await home.start()
        await home.wait_connected(PATIENCE_S)
        await home.publish(TX_HOME, b"while you were away")
        process.kill()
        process.start()
        node = AUTHORITY.bus(process.port, NODE, {"validator"})
        node.subscribe(TX_ALL, got.put)
        await node.start()
        assert (await asyncio.wait_for(got.get(), PATIENCE_S)).payload == b"while you were away"
        await node.stop()
        await home.stop()
