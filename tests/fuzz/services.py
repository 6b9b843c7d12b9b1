"""Targets with something behind the decoder: a node, a ledger, a broker, a CSM-DB, a device."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from fuzz import seeds
from pymodbus.exceptions import ModbusException
from support import chain_builder as cb
from support.nodes import Hub, HubBus, MovableClock

import broker.connection
from aggregator.auditor import Auditor
from aggregator.store import AggregatorStore
from broker import packets
from broker.access import Trust
from broker.connection import Connection
from broker.embedded import EmbeddedBroker
from broker.quota import Quota
from csmdb.service import CsmDbService
from csmdb.setup import CsmDb, create
from hem.config import Device, load_market_facts, load_provisioning
from hem.gateway import protocol
from hem.gateway.client import GatewayClient
from hem.gateway.devices import Site
from hem.gateway.links import Connection as Line
from hem.gateway.links import link_for
from hem.gateway.modbus import DeviceError
from hem.gateway.roles import Battery, Inverter, Meter
from ledger.client import LedgerClient
from ledger.genesis import Poe
from ledger.node import Node
from ledger.statements import sign_message
from runtime.clock import SystemClock
from runtime.link import Incoming, Link, _Socket
from runtime.ports import Message
from runtime.rng import SystemRng
from sim.profiles import load_profiles
from wire import canonical, topics
from wire.certificates import make_token
from wire.enrolment import make_answer
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import ConfigError, WireError
from wire.keys import Domain, seal_to, to_text
from wire.metering import Reading, load_record, record_json, sign_record
from wire.units import MAX_SAFE_INT

R = TypeVar("R")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of a million refusals."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The loop that all targets share; what a callback of it raises is a find."""
    made = asyncio.new_event_loop()
    made.set_exception_handler(_remember)
    return made


_failures: list[BaseException] = []


def _remember(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, ModbusException):
        return  # pymodbus fails inside asyncio, which logs it and closes: the device is lost
    _failures.append(error if error is not None else AssertionError(context["message"]))


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run to the end, and raise what failed beside it."""
    result = loop().run_until_complete(work)
    if _failures:
        raise _failures.pop()
    return result


@cache
def folder() -> Path:
    """Files of this process; in memory where the machine has such a place."""
    memory = Path("/dev/shm")
    holder = tempfile.TemporaryDirectory(
        prefix="hearthgrid-fuzz-", dir=memory if memory.is_dir() else None
    )
    _holders.append(holder)
    return Path(holder.name)


_holders: list[Any] = []

# --- The ledger's node and client -----------------------------------------------------------------

_TOPICS = (topics.TX, topics.CONSENSUS_PROPOSAL, topics.CONSENSUS_VOTE, topics.CONSENSUS_CERT,
           topics.SYNC_REQ, topics.SYNC_RSP)  # fmt: skip


def node_messages() -> list[bytes]:
    """The number of a topic, and a message for it."""
    by_topic: list[Any] = [
        seeds.transactions(), [], [], [], seeds.questions(), seeds.answers(),
    ]  # fmt: skip
    for kind, raw in seeds.objects():
        name = kind.__name__
        number = {"Proposal": 1, "Vote": 2, "Certificate": 3}.get(name)
        if number is not None:
            by_topic[number].append(raw)
    return [bytes((number,)) + raw for number, raws in enumerate(by_topic) for raw in raws]


def message_of(data: bytes, market: str, own: str, sender: str) -> Message:
    """The message that such bytes stand for."""
    kind = _TOPICS[data[0] % len(_TOPICS)] if data else topics.TX
    leaf = own if kind == topics.SYNC_RSP else sender
    topic = topics.build(market, kind, leaf if "<id>" in kind else "")
    return Message(topic, data[1:])


class _Asker:
    """A node that is fed by hand, and turns at once."""

    def __init__(self) -> None:
        self.clock = MovableClock()
        self.bus = HubBus(Hub())
        self.runs = 0
        home = folder() / f"node-{id(self)}"
        home.mkdir()
        self.node = Node(seeds.chain().genesis, home, cb.VALIDATORS[0], self.bus, self.clock)
        self.node._new_core(self.node.epochs.current(), restore=True)
        self.node._subscribe()
        self.node.turn()

    async def take(self, message: Message) -> None:
        """As the bus does: refused by name, or used."""
        for topic_filter, handler in self.bus._handlers:
            if topics.parse(topic_filter).kind == topics.parse(message.topic).kind:
                with suppress(WireError):
                    await handler(message)
        self.node.turn()

    def close(self) -> None:
        self.node._cancel_timers()
        self.node._votes.close()
        self.node.store.close()


_askers: list[_Asker] = []


def run_node(data: bytes) -> None:
    """Any message on any topic, to a node at height 0 with four validators."""

    async def take() -> None:
        if not _askers:
            _askers.append(_Asker())
        asker = _askers[0]
        sender = cb.VALIDATORS[1].id
        if data[:1] == b"\x00":  # from whoever it says it is from
            value = msgspec.json.decode(data[1:]) if _is_json(data[1:]) else None
            named = value.get("clientId") if isinstance(value, dict) else None
            if isinstance(named, str) and topics._LEAF.fullmatch(named):
                sender = named
        message = message_of(data, cb.MARKET, cb.VALIDATORS[0].id, sender)
        await asker.take(message)
        publisher = asker.node._publisher
        for limit in (publisher._questions, publisher._bytes_of, publisher._bytes_of_all):
            limit._left.clear()  # its limit of questions is tested elsewhere
        asker.runs += 1
        if asker.runs % 2000 == 0:
            asker.close()
            _askers.clear()

    run(take())


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


_clients: list[LedgerClient] = []


def client_messages() -> list[bytes]:
    words = [canonical.encode(one) for one in seeds.event_words()]
    return [bytes((number % 4,)) + one for number, one in enumerate(words)]


def run_client(data: bytes) -> None:
    """Words that up to four validators sign, to a client that follows the ledger."""
    if not data:
        return
    if not _clients:
        genesis = seeds.chain().genesis
        made = LedgerClient(HubBus(Hub()), genesis, SystemClock(), seeds.HOME.id, from_start=True)
        made.on_local_event(_ignore)
        _clients.append(made)
    client = _clients[0]
    try:
        said = canonical.decode(data[1:], 120 * 1024)
    except WireError:
        said = None
    raws = [data[1:]]
    if isinstance(said, dict):
        said.pop("validator", None)
        said.pop("signature", None)
        signers = cb.VALIDATORS[: 1 + data[0] % 4]
        raws += [sign_message(said, key, seeds.chain().chain_id) for key in signers]

    async def take() -> None:
        for raw in raws:
            for handler in (client._take_event, client._take_answer, client._take_local):
                with suppress(WireError):
                    await handler(Message("hg/v1/test/events/market", raw))
        for follower in client._followers.values():
            for _ in range(4):
                with suppress(WireError):
                    follower.chain.take()

    run(take())


async def _ignore(_height: int, _event: dict[str, Any]) -> None:
    return


# --- The contracts --------------------------------------------------------------------------------


class _Market:
    def __init__(self) -> None:
        self.chain = cb.Chain(genesis=seeds.chain().genesis)
        self.chain.settle_in(seeds.HOME, seeds.OTHER_HOME)
        self.blocks = 0


_markets: list[_Market] = []


def blocks() -> list[bytes]:
    """The number of a sender, and the operations of one transaction of it."""
    senders = {"deploy-auction": 1, "add-energy-asset": 1, "add-financial-balance": 1,
               "fund-rewards": 1, "leave-validator": 2, "commit-seed": 2, "reveal-seed": 2,
               "set-payee": 2, "join-validator": 3}  # fmt: skip
    return [
        bytes((senders.get(one["op"], 0),)) + msgspec.json.encode([one])
        for one in seeds.operations()
    ]


def run_execution(data: bytes) -> None:
    """A block with one well-signed transaction of any operations: it is executed, or refused."""
    if not data:
        return
    try:
        value = msgspec.json.decode(data[1:])
        canonical.encode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, WireError):
        return
    if not isinstance(value, list):
        return
    if not _markets:
        _markets.append(_Market())
    market = _markets[0]
    chain = market.chain
    sender = (seeds.HOME, cb.SUPERVISOR, cb.VALIDATORS[0], cb.OTHERS[0])[data[0] % 4]
    try:
        tx = chain.tx(sender, *value, nonce=chain.ledger.next_nonce(sender.id))
    except WireError:
        return
    if chain.ledger.is_executed(tx.txid):
        return  # no honest validator votes for a block that repeats a transaction
    # now and then the next slot begins: gates close, auctions and slots are settled
    chain.block(chain.ledger.time_ms + (1 if market.blocks % 5 else 450_000), tx)
    market.blocks += 1
    if market.blocks % 200 == 0:
        chain.store.close()
        _markets.clear()


# --- The broker and its clients -------------------------------------------------------------------


class _Pipe(asyncio.Transport):
    """A transport to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.written = 0

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += len(data)

    def pause_reading(self) -> None:
        """Its writer is not asked: what comes while it pauses waits in the connection."""

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class _Failing:
    """Stands for the log of `broker.connection`: what it would log as its own mistake is a find."""

    def exception(self, *_: Any, **__: Any) -> None:
        error = sys.exc_info()[1]
        assert error is not None
        raise error

    def __getattr__(self, _name: str) -> Any:
        return lambda *_, **__: None


def _text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def _packet(first_byte: int, body: bytes) -> bytes:
    return bytes((first_byte,)) + packets._length_bytes(len(body)) + body


def _connect(password: str) -> bytes:
    name = cb.VALIDATORS[0].id
    will = _text(f"hg/v1/{cb.MARKET}/consensus/cert") + _text(b"gone")
    head = _text("MQTT") + b"\x04\xe6\x00\x3c"
    return _packet(0x10, head + _text(name) + will + _text(name) + _text(password))


@cache
def streams() -> tuple[bytes, ...]:
    """What clients send after CONNECT."""
    topic = f"hg/v1/{cb.MARKET}/consensus/cert"
    publish = _packet(0x32, _text(topic) + b"\x00\x05" + b"payload")
    subscribe = _packet(0x82, b"\x00\x01" + _text(topic) + b"\x01" + _text("a/+/#") + b"\x02")
    unsubscribe = _packet(0xA2, b"\x00\x02" + _text(topic))
    rest = b"\xc0\x00" + b"\x40\x02\x00\x01"
    return (
        publish + subscribe + unsubscribe + rest + b"\xe0\x00",
        subscribe + publish * 3,
        _connect("no token"),
        _packet(0x30, _text(topic) + b"x" * 300),
    )


_brokers: list[EmbeddedBroker] = []


def run_broker(data: bytes) -> None:
    """A stream before, and after, a validator was let in."""

    async def feed() -> None:
        if not _brokers:
            trust, unlimited = Trust(cb.MARKET, cb.ISSUER.public), Quota(limited=False)
            made = EmbeddedBroker(trust, SystemClock(), quota=unlimited)
            broker.connection.log = _Failing()
            _brokers.append(made)
        desk = _brokers[0]
        stranger, member = Connection(desk), Connection(desk)
        clock = SystemClock()
        key = cb.VALIDATORS[0]
        token = make_token(key, cb.MARKET, clock.wall_ms(), SystemRng().bytes(8).hex(), None)
        for connection, greeting in ((stranger, b""), (member, _connect(token))):
            connection.connection_made(_Pipe())
            connection.data_received(greeting)
            if greeting:
                assert connection.session is not None
                peer = topics.Peer(key.id, frozenset({"validator"}))
                desk._set_peer(connection.session, peer)
            half = len(data) // 2
            connection.data_received(data[:half])
            connection.data_received(data[half:])
            await asyncio.sleep(0)
            connection.connection_lost(None)
        assert not desk._connections

    run(feed())


@cache
def broker_streams() -> tuple[bytes, ...]:
    """What brokers send."""
    topic = f"hg/v1/{cb.MARKET}/events/market"
    message = _packet(0x32, _text(topic) + b"\x00\x05" + b"payload")
    return (
        b"\x20\x02\x00\x00" + b"\x90\x03\x00\x01\x01" + message + b"\x40\x02\x00\x01\xd0\x00",
        b"\x20\x02\x00\x05",
        b"\x20\x02\x01\x00" + _packet(0x31, _text(topic) + b"retained") + message * 4,
    )


def run_link(data: bytes, goes_on: bool = True) -> None:
    """Anything a broker may send: handed on, or the connection is lost; never an exception."""

    async def feed() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        got: list[Incoming] = []

        def take(link: Link, incoming: Incoming) -> None:
            got.append(incoming)
            link.acknowledge(incoming)

        link = Link("hg1test", "token", None, 60, take)
        link._socket = link._client.ready_socket = _Socket(loop(), ours)
        link._client.connect("127.0.0.1", 1883, 60)
        try:
            theirs.send(data[:60_000])
            link._readable()
            assert goes_on or link.lost.done()
            theirs.close()
            for _ in range(3):
                if not link.lost.done():
                    link._readable()
            assert link.lost.done()
        finally:
            link._release("the test is over")
            if link._accepted.done() and not link._accepted.cancelled():
                link._accepted.exception()
            theirs.close()

    run(feed())


# --- The CSM-DB and the DSO -----------------------------------------------------------------------


@cache
def enrolment_answers() -> tuple[bytes, ...]:
    request = Envelope(seeds.HOME.id, "r", seeds.NOW_MS, "enroll", {})
    answer = make_answer(
        cb.ISSUER, cb.MARKET, seeds.BOX.public, request, {"certificate": {}}, seeds.NOW_MS
    )
    return answer, seeds.BOX.open(answer)


_registers: list[tuple[CsmDb, CsmDbService, str]] = []


def _csmdb() -> tuple[CsmDb, CsmDbService, str]:
    if not _registers:
        made = create(folder() / "csmdb", cb.MARKET)
        code = made.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
        service = CsmDbService.on(made, HubBus(Hub()), burst=10**9)
        _registers.append((made, service, code))
        enroll = json.loads(seeds.csmdb_requests()[0])
        enroll["parameters"]["claimCode"] = code
        _ask(msgspec.json.encode(enroll, order="sorted"))
    return _registers[0]


def _ask(data: bytes) -> None:
    csmdb, service, code = _csmdb()
    topic = topics.build(cb.MARKET, topics.CSMDB_REQ, seeds.HOME.id)
    raws = [data, seal_to(csmdb.box.public, data)]
    try:
        value = canonical.decode(data)
    except WireError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("parameters"), dict):
        parameters = value["parameters"]
        if parameters.get("claimCode") == "c":
            parameters["claimCode"] = code
        wall_ms, rng = csmdb.clock.wall_ms(), SystemRng()
        envelope = Envelope(
            seeds.HOME.id, new_req_id(wall_ms, rng.bytes(10)), wall_ms,
            str(value.get("operation"))[:128], parameters,
        )  # fmt: skip
        with suppress(WireError):
            sealed = seal_envelope(envelope, seeds.HOME, Domain.MESSAGE, cb.MARKET)
            raws.append(seal_to(csmdb.box.public, sealed))

    async def take() -> None:
        for raw in raws:
            await service.take(Message(topic, raw))

    run(take())


def run_csmdb(data: bytes) -> None:
    """Raw, sealed, and signed by an enrolled home."""
    _csmdb()
    _ask(data)


_auditors: list[tuple[AggregatorStore, Auditor]] = []


def run_reading(data: bytes) -> None:
    """Raw, sealed, and signed by a certified meter that lies as it likes."""
    chain = seeds.chain()
    if not _auditors:
        store = AggregatorStore(folder() / "aggregator.sqlite")
        made = Auditor(store, seeds.BOX, chain.chain_id, chain.genesis.grid, Poe())
        row = {"meterKey": to_text(seeds.METER.public), "participant": seeds.HOME.id,
               "addresses": [seeds.HOME.id], "validator": cb.VALIDATORS[0].id}  # fmt: skip
        made.directory.add([row])
        _auditors.append((store, made))
    _, auditor = _auditors[0]
    payloads = [data, seal_to(seeds.BOX.public, data)]
    with suppress(WireError):
        reading = load_record(Reading, canonical.decode(data))
        reading = msgspec.structs.replace(reading, meter=seeds.METER.id)
        signed = sign_record(reading, seeds.METER, chain.chain_id)
        payloads.append(seal_to(seeds.BOX.public, canonical.encode(record_json(signed))))
    for payload in payloads:
        with suppress(WireError):
            auditor.take_reading(seeds.HOME.id, payload, seeds.NOW_MS)


# --- The home -------------------------------------------------------------------------------------


@cache
def rpc_lines() -> tuple[bytes, ...]:
    questions = (
        ("state", {}), ("pseudonym", {"label": seeds.HOME.id}), ("sign_reading", {"slot": 5}),
        ("sign_receipt", {"address": seeds.HOME.id, "slot": 5}),
        ("attest_cpf", {"validator": seeds.HOME.id, "start_slot": 1, "end_slot": 8}),
        ("set_battery", {"power_w": -500, "lease_s": 60}),
    )  # fmt: skip
    asked = [{"id": 7, "method": method, "params": params} for method, params in questions]
    told: list[Any] = [{"id": 7, "result": {}}, {"id": 7, "error": {"code": "A", "message": "b"}}]
    return tuple(msgspec.json.encode(one) + b"\n" for one in (*asked, *told))


def run_gateway_rpc(data: bytes) -> None:
    """A line to the gateway is a request or an RPC error that can be answered; a line from it."""
    try:
        number, _, _ = protocol.read_request(data)
        protocol.result_line(number, {})
    except protocol.RpcError as error:
        protocol.error_line(protocol.request_id(data), error)

    async def listen() -> None:
        client = GatewayClient(Path("nowhere"), 1.0)
        waiting = client._waiting[7] = loop().create_future()
        reader = asyncio.StreamReader(limit=protocol.RESPONSE_BYTES_MAX)
        reader.feed_data(data)
        reader.feed_eof()
        await client._listen(reader, None)  # type: ignore[arg-type]
        assert waiting.done(), "a broken stream must not leave anybody waiting"
        waiting.exception()

    run(listen())


PROVISIONING = b"""
[home]
name = "home-03"
claim_code = "abc"
data_dir = "data"
[broker]
port = 1883
[market]
name = "test"
genesis = "genesis.json"
csmdb = "%(csmdb)s"
csmdb_key = "%(key)s"
csmdb_box = "%(box)s"
[[devices]]
name = "meter"
kind = "sunspec-meter"
port = 5020
device_id = 1
"""


@cache
def provisionings() -> tuple[bytes, ...]:
    names = {
        b"csmdb": cb.ISSUER.id.encode(), b"key": to_text(cb.ISSUER.public).encode(),
        b"box": to_text(seeds.BOX.public).encode(),
    }  # fmt: skip
    return (PROVISIONING % names, *seeds.geneses())


def run_provisioning(data: bytes) -> None:
    path = folder() / "file"
    path.write_bytes(data)
    for load in (load_provisioning, load_market_facts):
        try:
            load(path)
        except ConfigError as error:
            assert str(error)


SCHEMA = {
    "buildings": {
        f"Building_{number}": {
            "pv": {"nominal_power": 4.0, "attributes": {"nominal_power": 4.0}},
            "electrical_storage": {
                "attributes": {"capacity": 6.4, "nominal_power": 5.0, "efficiency": 0.9}
            },
        }
        for number in (1, 2)
    }
}


@cache
def profiles() -> tuple[bytes, ...]:
    """One byte says which file of which layout the rest is; the others are as they should be."""
    hours = [f"{hour % 24 + 1},{500 + hour},{(hour % 24) * 10}" for hour in range(96)]
    building = "hour,non_shiftable_load,solar_generation\n" + "\n".join(hours)
    quarters = [f"{900 * quarter},{0.5}" for quarter in range(96 * 3)]
    table = "timestamp,power\n" + "\n".join(quarters)
    cars = [f"{900 * quarter},1,0.2" for quarter in range(96 * 3)]
    car = "timestamp,availability,distance_driven\n" + "\n".join(cars)
    parts = (building, json.dumps(SCHEMA), table, table, car)
    return tuple(bytes((number,)) + part.encode() for number, part in enumerate(parts))


_FILES = ("Building_1.csv", "schema.json", "prosumers/hh/1.csv", "prosumers/pv/1.csv",
          "prosumers/ev/1.csv")  # fmt: skip


def run_profiles(data: bytes) -> None:
    """A data set with one strange file."""
    if not data:
        return
    number = data[0] % len(_FILES)
    layout = range(2) if number < 2 else range(2, 5)
    home = folder() / ("citylearn" if number < 2 else "lemlab")
    for each in layout:
        path = home / _FILES[each]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[1:] if each == number else profiles()[each][1:])
    try:
        homes = load_profiles(home, 1, 7, cb.START_MS, 1)
        msgspec.json.encode(homes)
    except ConfigError as error:
        assert str(error)


class _Image:
    """A device whose registers are given bytes from address 40000 on, and 0xFFFF elsewhere."""

    def __init__(self, data: bytes) -> None:
        self._registers = data
        self.reads = 0

    async def read(self, _device_id: int, address: int, count: int) -> list[int]:
        assert address >= 0 and 1 <= count <= 125 and address + count <= 0x10000
        self.reads += 1
        found = []
        for each in range(address - 40_000, address - 40_000 + count):
            part = self._registers[2 * each : 2 * each + 2] if each >= 0 else b""
            found.append(int.from_bytes(part, "big") if len(part) == 2 else 0xFFFF)
        return found

    async def write(self, _device_id: int, address: int, values: list[int]) -> None:
        at = 2 * (address - 40_000)
        raw = b"".join(value.to_bytes(2, "big") for value in values)
        self._registers = self._registers[:at] + raw + self._registers[at + len(raw) :]


@cache
def register_images() -> tuple[bytes, ...]:
    """Models with zeros, ones and small numbers in their registers."""
    lengths = {1: 66, 203: 105, 213: 124, 103: 50, 113: 60, 701: 153, 802: 62, 713: 7, 124: 24}
    found = []
    for models in ((1, 203), (1, 213), (1, 103), (1, 113), (1, 701), (1, 802, 124), (1, 713, 124)):
        for fill in (b"\x00\x00", b"\x00\x01", b"\x40\x40"):
            words = b"SunS"
            for model in models:
                size = lengths[model]
                words += model.to_bytes(2, "big") + size.to_bytes(2, "big") + fill * size
            found.append(words + b"\xff\xff\x00\x00")
    return tuple(found)


class _Notes:
    def info(self, *_: Any, **__: Any) -> None:
        return

    warning = info


def run_sunspec(data: bytes) -> None:
    """
    Any registers in the place of meter, inverter and battery.

    Whatever a device says, what the gateway makes of it fits into a message and into the store.
    """

    async def poll() -> None:
        image = _Image(data)
        link: Any = image
        site = Site([], 1.0, _Notes())
        config = Device(name="d", kind="sunspec-meter")
        site.meter = Meter(config, link, _Notes())
        site.inverters = [Inverter(config, link, _Notes()), Inverter(config, link, _Notes())]
        site.battery = Battery(config, link, _Notes())
        state = await site.poll(1.0)
        numbers = [
            state.grid_w, state.pv_w, state.battery_w, state.load_w, state.soc_permille,
            state.import_wh or 0, state.export_wh or 0, state.generation_wh or 0,
        ]  # fmt: skip
        if state.battery is not None:
            numbers += [state.battery.capacity_wh, state.battery.max_charge_w]
            numbers += [state.battery.max_discharge_w]
            for power_w in (10_000_000, -10_000_000, 0, 1):
                with suppress(DeviceError):
                    await site.battery.command(power_w, 60, 2.0)
            await site.battery.poll(3.0)
        assert all(type(n) is int and abs(n) <= MAX_SAFE_INT for n in numbers), numbers
        nameplate = site.meter.nameplate
        assert all(type(text) is str for text in nameplate.values())
        msgspec.json.encode(nameplate)
        assert image.reads < 500

    run(poll())


@cache
def modbus_answers() -> tuple[bytes, ...]:
    head = b"\x00\x01\x00\x00\x00\x07\x01"
    return (head + b"\x03\x04SunS", head + b"\x83\x02", b"\x00\x01\x00\x00\x00\x03\x01\x83\x02")


def run_modbus(data: bytes) -> None:
    """Any bytes as the answer to a request over TCP: registers, or a named error, in time."""

    async def ask() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked = await reader.read(64)
            writer.write(asked[:2] + data[2:])
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        link = link_for(Line(host="127.0.0.1", port=port), 0.05)
        try:
            for count in (2, 125):
                with suppress(DeviceError):
                    registers = await link.read(1, 40_000, count)
                    assert len(registers) == count
                    assert all(0 <= register <= 0xFFFF for register in registers)
        finally:
            link.close()
            server.close()

    run(ask())
