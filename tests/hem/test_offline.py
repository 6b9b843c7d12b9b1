"""
Three days offline: a home goes on without a line, and comes back.

A real broker with a line that breaks, the home's own outboxes on their files, meter readings that
are really signed, the DSO's auditor, and the contract with its mempool; slots pass as fast as they
are played.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal

import pytest
from home_at_hand import ADDRESS
from metered_home import DSO_BOX, METER, START, grant_terms, metered_home, reborn
from structlog.testing import capture_logs
from support.brokers import Authority, make_key, running_broker
from support.chain_builder import SUPERVISOR, Chain, deposit, slot_ms
from support.chain_builder import register as registration
from support.homes import DSO_BOX as SITE_BOX
from support.homes import SLOT_S, Site, log_lines
from support.patience import PATIENCE_S
from support.proxy import network_to

from aggregator.auditor import Auditor
from aggregator.store import AggregatorStore
from broker.sessions import WINDOW
from hem import trader
from hem.ems.lanes import Lane, Lanes
from hem.ems.readings import ReadingOutbox
from ledger.contracts.context import TRUE_UP_SLOTS
from ledger.mempool import Budget, Mempool
from runtime import bus
from runtime.store import SqliteStore
from wire import topics
from wire.canonical import decode, encode
from wire.errors import WireError
from wire.keys import to_text
from wire.metering import ZERO_DIGEST, Reading, digest, load_record

MARKET = "demo"
DAYS_SLOTS = 3 * 96
BEFORE = 3
"""Slots that pass before the line breaks."""
PLAY_AT_S = (0, 180, 540)
"""When the home is at work in each slot: its beginning and two of its ticks."""
OURS, NEIGHBOUR = "home", "neighbour"


class Ledger:
    """The contract with its mempool: a block for every transaction, at the home's market time."""

    def __init__(self, genesis, clock):
        self.chain = Chain(genesis=genesis)
        self._clock = clock
        self._pool = Mempool(self.chain.ledger)
        self.events = []
        self.operations = 0
        self.caught_up = True
        """Whether the home knows what is final: not without a line."""
        self.chain.block(
            slot_ms(START - 4), self.chain.tx(ADDRESS, registration(ADDRESS, **grant_terms()))
        )
        money = self.chain.tx(SUPERVISOR, deposit(ADDRESS, 10**9))
        self.chain.block(self.chain.ledger.time_ms + 1, money)

    def pass_time(self):
        """An empty block: slots end and are settled without anybody saying anything."""
        self._block([])

    async def take(self, message):
        """Handler for `tx/<address>`."""
        sender = topics.parse(message.topic).leaf
        with contextlib.suppress(WireError):  # a repetition of what was executed
            tx = self._pool.add(message.payload, self._clock.now_ms(), sender)
            self.operations += len(tx.operations)
            self._block(self._pool.take(self._clock.now_ms(), Budget()))

    def _block(self, transactions):
        time_ms = max(self.chain.ledger.time_ms + 1, self._clock.now_ms())
        result = self.chain.block(time_ms, *transactions)
        self._pool.remove([tx.txid for tx in transactions])
        self.events += [(result.height, event) for event in result.events]

    # what a ledger client answers

    async def query(self, _kind, address):
        return {"nonce": self.chain.ledger.next_nonce(address)}

    async def receipt(self, transaction):
        if self.chain.ledger.next_nonce(transaction.sender) > transaction.nonce:
            return {"code": "WRONG_NONCE", "codes": []}
        return {}

    def named(self, name):
        return [event for _, event in self.events if event["event"] == name]


class Dso:
    """The desk that reads the readings, with the aggregator's auditor."""

    def __init__(self, folder, home, rules):
        self.store = AggregatorStore(folder / "aggregator.sqlite")
        self.auditor = Auditor(self.store, DSO_BOX, home.genesis.chain_id, home.grid, rules)
        meter = {
            "participant": home.ems_key.id, "meterKey": to_text(METER.public),
            "addresses": [ADDRESS.id], "validator": "",
        }  # fmt: skip
        self.auditor.directory.add([meter])
        self.auditor.stale = False
        self.home, self.clock = home.ems_key.id, home.clock
        self.arrived: list[Reading] = []
        self.others: list[tuple[int, bytes]] = []
        """Readings of the neighbour, with how many of ours were there before."""
        self.on_arrival = lambda: None

    async def take(self, message):
        sender = topics.parse(message.topic).leaf
        if sender != self.home:
            self.others.append((len(self.arrived), message.payload))
            return
        self.auditor.take_reading(sender, message.payload, self.clock.now_ms())
        self.arrived.append(load_record(Reading, decode(DSO_BOX.open(message.payload))))
        self.on_arrival()

    def kept(self, first, last):
        return self.store.readings(METER.id, first, last)


class Scene:
    """Broker, lines, DSO, ledger, the home and its neighbour."""

    def __init__(self, folder, stack):
        self.folder, self.stack = folder, stack
        self.tasks = []
        self.now = START

    async def open(self):
        self.authority = Authority(MARKET)
        self.broker = await self.stack.enter_async_context(running_broker(self.authority))
        self.network = await self.stack.enter_async_context(
            network_to(self.broker.port, OURS, NEIGHBOUR)
        )
        self.home = await metered_home(self.folder)
        self.ledger = Ledger(self.home.genesis, self.home.clock)
        self.dso = Dso(self.folder, self.home, self.home.genesis.poe)
        self.stack.callback(self.dso.store.close)
        self.desk = make_key("desk")
        desk = await self.lane(self.broker.port, self.desk, {"dso", "validator"})
        desk.subscribe(topics.build(MARKET, topics.READING, "+"), self.dso.take)
        node = await self.lane(self.broker.port, make_key("node"), {"validator"})
        node.subscribe(topics.build(MARKET, topics.TX, "+"), self.ledger.take)
        self.stack.push_async_callback(self.stop)
        await self.start()

    async def lane(self, port, key, roles):
        made = self.authority.bus(port, key, roles)
        await made.start()
        await made.wait_connected(PATIENCE_S)
        self.stack.push_async_callback(made.stop)
        return made

    async def start(self):
        """Connect the home's lanes and begin to send; also without a line."""
        home, port = self.home, self.network.links[OURS].port
        home.home_bus = self.authority.bus(port, home.ems_key, {"prosumer"})
        trade = self.authority.bus(port, ADDRESS, {"address"})
        topic = topics.build(MARKET, topics.READING, home.ems_key.id)
        home.readings = ReadingOutbox(home.store, home.home_bus, topic)
        home.client = self.ledger
        lane = Lane(trade, home._make_outbox(ADDRESS, trade))
        home.outbox = Lanes(home.addresses, lambda _: lane, home._queue)
        home.take_up_trade()
        await home.home_bus.start()
        await home.outbox.open(home.grant)
        self.buses = [home.home_bus]
        self.tasks = [asyncio.create_task(home.readings.run())]

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.home.outbox.stop()
        for one in self.buses:
            await one.stop()

    async def restart(self):
        """A power cut: nothing is said, nothing is written any more."""
        await self.stop()
        self.home = reborn(self.home, self.folder)
        await self.start()
        await self.home._catch_up()

    async def play(self, slots, *, bids=False):
        """Let slots pass at the home; true time passes with them."""
        for _ in range(slots):
            self.now += 1
            for offset_s in PLAY_AT_S:
                self.home.clock.to(self.now, offset_s)
                self.home.gateway.true_s = (self.now - START) * 900 + offset_s
                if offset_s == 0:
                    await self.home._begin_slot(self.now)
                    self.ledger.pass_time()
                else:
                    await self.home._tick(self.now)
                    if bids and offset_s == PLAY_AT_S[1]:
                        await self.bid()
            await asyncio.sleep(0)

    async def bid(self):
        """The home's try to bid; it waits for what it does not know while time goes on."""
        trying = asyncio.create_task(self.home.trader.bid(self.now))
        await asyncio.sleep(0)
        self.home.clock.to(self.now, PLAY_AT_S[2] - 1)
        await asyncio.wait_for(trying, PATIENCE_S)

    async def tell_events(self):
        """What the ledger's client tells the home of what is final."""
        events, self.ledger.events = self.ledger.events, []
        for height, event in events:
            await self.home.wallet.take_event(height, event)
            await self.home.outbox.take_event(height, event)
            if event["event"] == "receipt":
                self.dso.auditor.take_receipt(event, self.home.clock.now_ms())
        return [event for _, event in events]

    async def caught_up(self):
        """Until nothing waits, days of slots one by one; what the ledger said meanwhile."""
        told = []
        async with asyncio.timeout(3 * PATIENCE_S):
            while self.home.readings.waiting or self.home.outbox.waiting:
                told += await self.tell_events()
                await asyncio.sleep(0.01)
            while len({reading.seq for reading in self.dso.arrived}) < len(self.signed):
                await asyncio.sleep(0.01)
        return told + await self.tell_events()

    def cut(self):
        self.network.links[OURS].cut()
        self.ledger.caught_up = False

    def mend(self):
        self.network.links[OURS].mend()
        self.ledger.caught_up = True

    @property
    def signed(self):
        return self.home.gateway.signed

    def code(self, slot):
        """How the receipt of a slot ended."""
        return self.home.outbox.state_of(f"receipt/{slot}")


@pytest.fixture
async def scene(tmp_path, monkeypatch):
    monkeypatch.setattr(bus, "BACKOFF_MAX_S", 0.5)
    monkeypatch.setattr(trader, "RETRY_S", 0.0)
    async with contextlib.AsyncExitStack() as stack:
        made = Scene(tmp_path, stack)
        await made.open()
        await made.play(BEFORE)
        await made.caught_up()
        yield made


def given_up(lines):
    return [line["slot"] for line in lines if line["event"] == "no receipt for a slot"]


def assert_one_unbroken_chain(readings):
    """Every sequence number once and in order, each naming the one before, time and slot rising."""
    assert [reading.seq for reading in readings] == list(range(len(readings)))
    assert readings[0].previous == ZERO_DIGEST
    for before, after in itertools.pairwise(readings):
        assert after.previous == digest(before)
        assert after.slot == before.slot + 1
        assert after.time_ms > before.time_ms
        assert after.import_wh >= before.import_wh


def first_copies(readings):
    """As the DSO keeps them: a repetition says nothing new."""
    seen = set()
    return [r for r in readings if r.seq not in seen and not seen.add(r.seq)]


async def test_after_three_days_offline_every_reading_arrives_in_order_and_receipts_settle(scene):
    """The owner's acceptance: nothing missing, and late readings settle as the contract says."""
    first = scene.now
    scene.cut()
    with capture_logs() as lines:
        await scene.play(DAYS_SLOTS, bids=True)
        assert len(scene.signed) == BEFORE + DAYS_SLOTS, "the meter is read without a line"
        assert scene.home.readings.waiting == DAYS_SLOTS
        assert len(scene.dso.arrived) == BEFORE
        assert scene.home.outbox.waiting == DAYS_SLOTS, "receipts, and no bid for what is past"
        scene.mend()
        events = await scene.caught_up()
        await scene.home._tick(scene.now)

    assert_one_unbroken_chain(scene.dso.arrived)
    assert [r.seq for r in scene.dso.arrived] == [r.seq for r in scene.signed]
    assert len(scene.dso.kept(START, scene.now)) == BEFORE + DAYS_SLOTS

    offline = range(first, scene.now)
    assert len(offline) == DAYS_SLOTS
    in_time = [slot for slot in offline if slot + TRUE_UP_SLOTS >= scene.now]
    too_late = [slot for slot in offline if slot + TRUE_UP_SLOTS < scene.now]
    assert len(in_time) == TRUE_UP_SLOTS
    assert {scene.code(slot) for slot in in_time} == {"OK"}
    assert {scene.code(slot) for slot in too_late} == {"EXPIRED"}
    assert given_up(lines) == too_late, "each by name, and once"
    assert scene.home.to_close.waiting() == []

    # the newest slot has not been settled yet when its receipt comes: it is settled, the others
    # are trued up
    trued_up = [event["slot"] for event in events if event["event"] == "trued-up"]
    assert trued_up == in_time[: len(trued_up)]
    assert len(trued_up) >= TRUE_UP_SLOTS - scene.home.genesis.grace_slots - 1
    tariff = scene.home.genesis.prices.retail_uc_per_kwh
    paid = {e["slot"]: e["amountUc"] for e in events if e["event"] == "trued-up"}
    assert set(paid.values()) == {-500 * tariff // 1000}, "half a kWh each, from the registers"


@pytest.mark.long
async def test_the_dso_finds_nothing_but_the_energy_of_slots_nobody_receipted(scene):
    first = scene.now
    scene.dso.auditor.take_grant(
        {"address": ADDRESS.id, "startSlot": START, "endSlot": START + 1_000}
    )
    scene.cut()
    await scene.play(DAYS_SLOTS)
    scene.dso.auditor.give_up_overdue(scene.now, scene.home.clock.now_ms())
    scene.mend()
    await scene.caught_up()
    scene.dso.auditor.give_up_overdue(scene.now, scene.home.clock.now_ms())
    evidence = scene.dso.store.evidence()
    assert {row["kind"] for row in evidence} == {"NO_RECEIPT"}
    overdue = range(first, scene.now - 200)
    assert sorted(row["detail"] for row in evidence) == sorted(
        f"slot {slot}: registers moved by 500 Wh, no receipt" for slot in overdue
    )
    meter_receipts = scene.dso.store.open_receipts(METER.id)
    assert meter_receipts == [], "every receipt was compared with its readings"


@pytest.mark.parametrize("at", [1, pytest.param(DAYS_SLOTS // 2, marks=pytest.mark.long)])
async def test_a_home_that_loses_power_in_the_middle_brings_the_same(scene, at):
    scene.cut()
    await scene.play(at)
    await scene.restart()
    await scene.play(DAYS_SLOTS - at)
    await scene.restart()
    scene.mend()
    await scene.caught_up()
    assert_one_unbroken_chain(first_copies(scene.dso.arrived))
    assert len(scene.dso.kept(START, scene.now)) == BEFORE + DAYS_SLOTS
    in_time = range(scene.now - TRUE_UP_SLOTS, scene.now)
    assert {scene.code(slot) for slot in in_time} == {"OK"}
    assert scene.dso.store.evidence() == []


@pytest.mark.long
async def test_a_line_that_breaks_again_and_again_while_it_catches_up_loses_nothing(scene):
    scene.cut()
    await scene.play(DAYS_SLOTS)
    breaks = 0

    def break_again():
        nonlocal breaks
        if breaks < 5 and len(scene.dso.arrived) % 50 == 0:
            breaks += 1
            scene.cut()
            asyncio.get_running_loop().call_later(0.05, scene.mend)

    scene.dso.on_arrival = break_again
    scene.mend()
    await scene.caught_up()
    assert breaks == 5
    assert_one_unbroken_chain(first_copies(scene.dso.arrived))
    again = len(scene.dso.arrived) - len(scene.signed)
    assert 0 <= again <= breaks, "only what was not acknowledged is sent again"
    assert scene.dso.store.evidence() == []
    in_time = range(scene.now - TRUE_UP_SLOTS, scene.now)
    assert {scene.code(slot) for slot in in_time} == {"OK"}


async def test_a_power_cut_while_it_catches_up_loses_nothing(scene):
    scene.cut()
    await scene.play(DAYS_SLOTS)
    half = asyncio.Event()
    scene.dso.on_arrival = lambda: len(scene.dso.arrived) >= DAYS_SLOTS // 2 and half.set()
    scene.mend()
    await asyncio.wait_for(half.wait(), PATIENCE_S)
    await scene.restart()
    await scene.caught_up()
    assert_one_unbroken_chain(first_copies(scene.dso.arrived))
    assert len(scene.dso.arrived) - len(scene.signed) <= 1
    assert scene.dso.store.evidence() == []


async def test_the_catch_up_leaves_room_for_the_neighbours_and_for_the_broker(scene):
    """One reading is under way at a time, so a home with days to tell delays nobody's."""
    line = await scene.lane(scene.network.links[NEIGHBOUR].port, make_key(NEIGHBOUR), {"prosumer"})
    store = SqliteStore(scene.folder / "neighbour.sqlite")
    scene.stack.callback(store.close)
    topic = topics.build(MARKET, topics.READING, make_key(NEIGHBOUR).id)
    outbox = ReadingOutbox(store, line, topic)
    scene.tasks.append(asyncio.create_task(outbox.run()))
    every, asked, queued = 20, [], []

    def look():
        session = scene.broker._clients[scene.desk.id]
        queued.append(len(session.waiting) + len(session.underway))
        if len(scene.dso.arrived) % every == 0:
            asked.append(len(scene.dso.arrived))
            outbox.add(len(asked), encode({"number": len(asked)}))

    scene.cut()
    await scene.play(DAYS_SLOTS)
    operations = scene.ledger.operations
    scene.dso.on_arrival = look
    scene.mend()
    await scene.caught_up()
    async with asyncio.timeout(PATIENCE_S):
        while len(scene.dso.others) < len(asked):
            await asyncio.sleep(0.01)
    assert [decode(raw)["number"] for _, raw in scene.dso.others] == list(range(1, len(asked) + 1))
    overtaken = [came - left for left, (came, _) in zip(asked, scene.dso.others, strict=True)]
    assert max(overtaken) <= every, "before the next of its own"
    assert max(queued) <= WINDOW
    assert scene.broker._clients[scene.desk.id].dropped == 0
    assert scene.ledger.operations - operations == DAYS_SLOTS, "each receipt once"


# --- the real processes ---------------------------------------------------------------------------


@pytest.fixture
async def site(tmp_path):
    opened = await Site.open(tmp_path)
    yield opened
    await opened.close()


@pytest.mark.long
@pytest.mark.parametrize(
    "restart",
    [
        pytest.param(False, id="runs-on"),
        pytest.param(True, id="restarted"),
    ],
)
async def test_hem_and_gateway_read_every_slot_without_a_line(site, restart):
    """`hem run` with its gateway, a line that is cut for ten slots, and a power cut in them."""
    async with network_to(site.port, OURS) as network:
        ledger = await site.ledger()
        desk = await ledger.supervisor()
        home = await site.home("home-01", load_w=20_000)
        text = home.file.read_text()
        home.file.write_text(
            text.replace(f"port = {site.port}", f"port = {network.links[OURS].port}")
        )
        await home.start()

        def read():
            sealed = dict.fromkeys(itertools.chain(*site.readings.values()))
            return [load_record(Reading, decode(SITE_BOX.open(one))) for one in sealed]

        def receipts():
            return [event["slot"] for _, event in desk.events if event["event"] == "receipt"]

        async def until(condition):
            async with asyncio.timeout(PATIENCE_S):
                while not condition():
                    assert home.process.returncode is None, home.log.read_text()[-2000:]
                    await asyncio.sleep(0.05)

        await until(lambda: len(receipts()) >= 2)
        network.links[OURS].cut()
        known = read()
        await asyncio.sleep(2 * SLOT_S)
        if restart:
            await home.stop(signal.SIGKILL)
            await home.start()
        await asyncio.sleep(7 * SLOT_S)
        assert len(read()) == len(known)
        network.links[OURS].mend()
        await until(lambda: len(read()) >= len(known) + 9)
        readings = read()
        first, last = readings[0].slot, readings[-1].slot
        missing = set(range(first, last)) - {reading.slot for reading in readings}
        assert len(missing) <= restart, "a slot may end while the power is off"
        assert [r.seq for r in readings] == list(range(len(readings)))
        for before, after in itertools.pairwise(readings):
            assert after.previous == digest(before)
        late = range(known[-1].slot + 1, last - 1)
        await until(lambda: set(receipts()) >= set(late) - missing)
        assert not [line for line in log_lines(home) if line.get("level") == "error"]
