"""Store-and-forward of readings: in order, at least once, kept until the broker has them."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.brokers import Authority, BrokerProcess, make_key
from support.crashes import FragileStore, PowerCut
from support.patience import PATIENCE_S

from hem.ems import readings as module
from hem.ems.readings import ReadingOutbox
from runtime.ports import BusDownError
from wire import topics

TOPIC = topics.build("test", topics.READING, make_key("home").id)


class Lane:
    """A bus that is up or down, and may lose the acknowledgement."""

    def __init__(self):
        self.up = True
        self.lose_acks = 0
        self.got = []

    async def publish(self, topic, payload, *, qos=1, retain=False):
        assert topic == TOPIC
        if not self.up:
            raise BusDownError("down")
        self.got.append(payload)
        if self.lose_acks:
            self.lose_acks -= 1
            raise BusDownError("lost before the acknowledgement")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.005)


@contextlib.asynccontextmanager
async def running(outbox):
    task = asyncio.create_task(outbox.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def emptied(outbox):
    async with asyncio.timeout(PATIENCE_S):
        while outbox.waiting:
            await asyncio.sleep(0.005)


async def test_readings_leave_in_the_order_of_their_slots(tmp_path):
    lane = Lane()
    outbox = ReadingOutbox(FragileStore(tmp_path / "r.sqlite"), lane, TOPIC)
    for slot in (7, 9, 8):
        outbox.add(slot, b"%d" % slot)
    async with running(outbox):
        await emptied(outbox)
        outbox.add(10, b"10")
        await emptied(outbox)
    assert lane.got == [b"7", b"8", b"9", b"10"]


async def test_days_offline_lose_nothing(tmp_path):
    lane = Lane()
    lane.up = False
    outbox = ReadingOutbox(FragileStore(tmp_path / "r.sqlite"), lane, TOPIC)
    async with running(outbox):
        for slot in range(300):
            outbox.add(slot, b"%d" % slot)
        await asyncio.sleep(0.03)
        assert outbox.waiting == 300
        lane.up = True
        await emptied(outbox)
    assert lane.got == [b"%d" % slot for slot in range(300)]


async def test_without_an_acknowledgement_it_is_sent_again(tmp_path):
    lane = Lane()
    lane.lose_acks = 2
    outbox = ReadingOutbox(FragileStore(tmp_path / "r.sqlite"), lane, TOPIC)
    outbox.add(1, b"one")
    async with running(outbox):
        await emptied(outbox)
    assert lane.got == [b"one"] * 3


async def test_a_crash_at_any_moment_loses_no_reading(tmp_path):
    lives = 0
    while True:
        path, lane, taken = tmp_path / f"{lives}.sqlite", Lane(), []
        store = FragileStore(path, lives)
        try:
            outbox = ReadingOutbox(store, lane, TOPIC)
            for slot in (1, 2, 3):
                outbox.add(slot, b"%d" % slot)
                taken.append(b"%d" % slot)
            async with asyncio.timeout(0.2):
                await outbox.run()
        except PowerCut:
            store.close()
        except TimeoutError:
            break
        again = ReadingOutbox(FragileStore(path), lane, TOPIC)
        async with running(again):
            await emptied(again)
        assert set(taken) <= set(lane.got), f"cut after {lives} moments"
        lives += 1
    assert lives > 12, "three readings in, three out, each with its moments"


async def test_a_killed_broker_gets_every_reading_after_it_is_back(tmp_path):
    authority = Authority()
    home, dso = make_key("home"), make_key("dso")
    got = []

    async def take(message):
        got.append(message.payload)

    with BrokerProcess(authority, tmp_path) as broker:
        lane = authority.bus(broker.port, home, {"prosumer"})
        desk = authority.bus(broker.port, dso, {"dso"})
        desk.subscribe(topics.build("test", topics.READING, "+"), take)
        for bus in (desk, lane):
            await bus.start()
            await bus.wait_connected(PATIENCE_S)
        outbox = ReadingOutbox(FragileStore(tmp_path / "r.sqlite"), lane, TOPIC)
        async with running(outbox):
            outbox.add(1, b"1")
            await emptied(outbox)
            await asyncio.to_thread(broker.kill)
            for slot in (2, 3):
                outbox.add(slot, b"%d" % slot)
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(PATIENCE_S):
                while len(set(got)) < 3:
                    await asyncio.sleep(0.02)
        await lane.stop()
        await desk.stop()
    assert sorted(set(got)) == [b"1", b"2", b"3"]
