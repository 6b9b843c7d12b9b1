"""Backups: whole, private, of a running home; and a restored home does nothing a second time."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import threading

import pytest
from support.brokers import make_key

from hem import backup as module
from hem.backup import back_up, restore
from hem.config import MarketFacts
from hem.ems.readings import ReadingOutbox
from hem.ems.wallet import Wallet
from hem.gateway.meterbook import MeterBook
from hem.gateway.signer import Registers, SigningRefusedError
from hem.locks import only_one
from runtime.keyfiles import write_secret
from runtime.outbox import OperationOutbox
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.errors import ConfigError
from wire.keys import BoxKey, SigningKey, to_text
from wire.metering import Reading, digest, load_record
from wire.slots import SlotGrid
from wire.transactions import parse_transaction

GRID = SlotGrid()
SLOT = 1_978_130
SLOT_MS = 900_000
SEED = bytes(range(32))
METER = SigningKey(SEED)
HOME = make_key("address")


def facts():
    box = to_text(BoxKey(bytes(range(1, 33))).public)
    return MarketFacts.model_validate({"chainId": "hg-test-0", "dsoBoxKey": box})


class Meter:
    """The gateway's book on a folder; registers rise by 100 Wh a slot."""

    def __init__(self, folder):
        (folder / "gateway").mkdir(parents=True, exist_ok=True)
        if not (folder / "gateway" / "meter.key").exists():
            write_secret(folder / "gateway" / "meter.key", SEED)
        self.store = SqliteStore(folder / "gateway" / "registers.sqlite")
        self.book = MeterBook(METER, self.store, facts(), 20_000, 4)

    def read(self, slot):
        registers = Registers(100 * (slot - SLOT), 0, 0)
        row = self.book.sign_reading(slot, GRID.end_ms(slot) + 5, registers)
        return load_record(Reading, row["reading"])


class Clock:
    def __init__(self):
        self.ms = SLOT * SLOT_MS

    def now_ms(self):
        return self.ms

    wall_ms = now_ms


class Ledger:
    """Executes each nonce once, and each receipt and registration once, as the real one."""

    def __init__(self):
        self.nonce, self.executed, self.once, self.events, self.fates = 0, [], set(), [], {}
        self.deaf = False

    async def publish(self, topic, payload, *, qos=1, retain=False):
        tx = parse_transaction(payload)
        if self.deaf or tx.nonce != self.nonce:
            return
        self.nonce += 1
        codes = [self.execute(op) for op in tx.operations]
        event = {"event": "tx", "txid": tx.txid.hex(), "code": "OK", "codes": codes}
        self.fates[tx.txid] = {"code": "OK", "codes": codes}
        self.events.append(event)

    def execute(self, op):
        name = (op["op"], op["n"])
        if op["op"] == "receipt" and name in self.once:
            return "DUPLICATE"
        self.once.add(name)
        self.executed.append(name)
        return "OK"

    async def next_nonce(self):
        return self.nonce

    async def receipt(self, tx):
        never = {"code": "WRONG_NONCE", "codes": []}
        return self.fates.get(tx.txid) or (never if self.nonce > tx.nonce else {})


class Sender:
    def __init__(self, folder, ledger):
        self.ledger = ledger
        self.store = SqliteStore(folder / "outbox.sqlite")
        self.outbox = OperationOutbox(
            self.store, HOME, "test", "hg-test-0", GRID, ledger, Clock(), SystemRng(),
            ledger.next_nonce, ledger.receipt,
        )  # fmt: skip

    async def turn(self):
        task = asyncio.create_task(self.outbox.run())
        for _ in range(30):
            await asyncio.sleep(0.01)
            while self.ledger.events:
                await self.outbox.take_event(1, self.ledger.events.pop(0))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("runtime.outbox.RESEND_S", 0.01)


@pytest.fixture
async def data(tmp_path):
    """A home's data folder."""
    folder = tmp_path / "data"
    (folder / "keys").mkdir(parents=True)
    write_secret(folder / "keys" / "ems.key", b"e" * 32)
    write_secret(folder / "keys" / "address-1.key", HOME.seed)
    (folder / "identity.json").write_text("{}")
    (folder / "checkpoint.json").write_text('{"height": 7}')
    (folder / "policy.good.toml").write_text("reserve_permille = 100\n")
    (folder / "limits.json").write_text("[]")
    store = SqliteStore(folder / "ems.sqlite")
    wallet = Wallet(store, HOME.id)
    await wallet.take_event(1, {"event": "address-registered", "address": HOME.id})
    ReadingOutbox(store, None, "t").add(SLOT, b"sealed")
    store.close()
    Sender(folder, Ledger()).store.close()
    meter = Meter(folder)
    for slot in range(SLOT, SLOT + 4):
        meter.read(slot)
    meter.store.close()
    return folder


def now_ms(slot, offset_s=60):
    return GRID.start_ms(slot) + offset_s * 1_000


def test_a_backup_is_for_its_owner_only_and_brings_everything_back(data, tmp_path):
    target = tmp_path / "home.tar"
    assert back_up(data, target, "home-01", now_ms(SLOT + 4)) == 10
    assert target.stat().st_mode & 0o777 == 0o600
    done = restore(target, tmp_path / "again", GRID, now_ms(SLOT + 4))
    assert (done.files, done.dropped) == (10, 0)
    for name in ("keys/ems.key", "keys/address-1.key", "gateway/meter.key"):
        path = tmp_path / "again" / name
        assert path.read_bytes() == (data / name).read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
    for name in ("checkpoint.json", "policy.good.toml", "limits.json"):
        assert (tmp_path / "again" / name).read_bytes() == (data / name).read_bytes()
    store = SqliteStore(tmp_path / "again" / "ems.sqlite")
    assert Wallet.kept(store).address == HOME.id
    assert ReadingOutbox(store, None, "t").waiting == 1
    store.close()
    assert not list((tmp_path / "again").glob(".restore-*"))
    assert not list(data.glob(".backup-*"))


def test_a_backup_never_overwrites(data, tmp_path):
    target = tmp_path / "home.tar"
    target.write_text("precious")
    with pytest.raises(ConfigError, match="is there already"):
        back_up(data, target, "home-01", 0)
    assert target.read_text() == "precious"


def test_a_home_that_has_not_run_has_no_backup(tmp_path):
    with pytest.raises(ConfigError, match="not run yet"):
        back_up(tmp_path, tmp_path / "x.tar", "home-01", 0)
    assert not (tmp_path / "x.tar").exists()


def test_a_backup_of_a_home_that_writes_is_of_one_moment(data, tmp_path):
    """Each transaction moves an amount from one row to another: their sum never changes."""
    path = data / "ems.sqlite"
    store = SqliteStore(path, synchronous="NORMAL")
    with store.atomic():
        store.put("a", b"1000")
        store.put("b", b"0")
    stop = threading.Event()

    def write():
        writer = SqliteStore(path, synchronous="NORMAL")
        while not stop.is_set():
            with writer.atomic():
                for key, change in (("a", -1), ("b", 1)):
                    writer.put(key, str(int(writer.get(key)) + change).encode())
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            back_up(data, tmp_path / f"{number}.tar", "home-01", now_ms(SLOT + 4))
    finally:
        stop.set()
        thread.join()
        store.close()
    for number in range(5):
        restore(tmp_path / f"{number}.tar", tmp_path / str(number), GRID, now_ms(SLOT + 4))
        copy = SqliteStore(tmp_path / str(number) / "ems.sqlite")
        assert int(copy.get("a")) + int(copy.get("b")) == 1_000
        copy.close()


@pytest.mark.parametrize("there", ["ems.sqlite", "keys/ems.key", "gateway/meter.key"])
def test_a_folder_with_a_home_is_left_alone(data, tmp_path, there):
    back_up(data, tmp_path / "home.tar", "home-01", 0)
    target = tmp_path / "other"
    (target / there).parent.mkdir(parents=True, exist_ok=True)
    (target / there).write_text("mine")
    with pytest.raises(ConfigError, match="move that folder away"):
        restore(tmp_path / "home.tar", target, GRID, now_ms(SLOT + 4))
    assert (target / there).read_text() == "mine"


def test_a_folder_in_use_is_left_alone(data, tmp_path):
    back_up(data, tmp_path / "home.tar", "home-01", 0)
    with only_one(tmp_path / "used"), pytest.raises(ConfigError, match="running already"):
        restore(tmp_path / "home.tar", tmp_path / "used", GRID, now_ms(SLOT + 4))


def _tar(path, *entries):
    with tarfile.open(path, "w") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def _manifest(**files):
    return "manifest.json", json.dumps({"format": 1, "madeMs": 0, "files": files}).encode()


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([], "not a backup"),
        ([("x", b"y")], "not a backup"),
        ([("manifest.json", b"[]")], "not a backup"),
        ([("manifest.json", b'{"format": 9, "madeMs": 0, "files": {"a": "b"}}')], "format 9"),
        ([_manifest()], "list of files"),
        ([_manifest(**{"../evil": "0"}), ("../evil", b"x")], "no file of a home"),
        ([_manifest(**{"/etc/passwd": "0"}), ("/etc/passwd", b"x")], "no file of a home"),
        ([_manifest(**{"keys/../../x.key": "0"})], "no file of a home"),
        ([_manifest(**{"ems.sqlite": "0"})], "not whole"),
        ([_manifest(**{"ems.sqlite": "0"}), ("ems.sqlite", b"x")], "is damaged"),
    ],
)
def test_what_is_no_whole_backup_is_refused_and_leaves_nothing(tmp_path, entries, told):
    source = _tar(tmp_path / "bad.tar", *entries)
    with pytest.raises(ConfigError, match=told):
        restore(source, tmp_path / "home", GRID, 0)
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["hem.lock"]
    assert not (tmp_path / "evil").exists()


def test_nonsense_is_no_backup(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"\0" * 2_000)
    with pytest.raises(ConfigError, match="not a backup"):
        restore(tmp_path / "bad.tar", tmp_path / "home", GRID, 0)
    with pytest.raises(ConfigError, match="not a backup"):
        restore(tmp_path / "none.tar", tmp_path / "home", GRID, 0)


# --- An old backup -------------------------------------------------------------------------------


@pytest.mark.parametrize("later_slots", [0, 1, 10, 500])
def test_a_meter_never_signs_a_number_or_a_slot_twice(data, tmp_path, later_slots):
    """After the backup the home lived on; then it was restored, twice, and each time lived on."""
    signed = {}
    folder, slot = data, SLOT + 4

    def live(folder, first, last):
        meter = Meter(folder)
        for one in range(first, last):
            reading = meter.read(one)
            assert reading.seq not in signed, "one number, two readings"
            signed[reading.seq] = reading
        meter.store.close()

    meter = Meter(data)
    for one in range(SLOT, SLOT + 4):
        reading = load_record(Reading, meter.book.signed(one)["reading"])
        signed[reading.seq] = reading
    meter.store.close()
    back_up(data, tmp_path / "old.tar", "home-01", now_ms(slot))
    for number in range(3):
        live(folder, slot, slot + later_slots)
        slot += later_slots
        folder = tmp_path / f"again-{number}"
        restore(tmp_path / "old.tar", folder, GRID, now_ms(slot))
    live(folder, slot, slot + 3)
    slots = [reading.slot for reading in signed.values()]
    assert len(slots) == len(set(slots))
    for seq, reading in signed.items():
        before = signed.get(seq - 1)
        if before is not None:
            assert reading.previous == digest(before), "no false chain: a gap where one was"


def test_the_slot_of_the_return_has_no_receipt_and_the_next_has(data, tmp_path):
    back_up(data, tmp_path / "old.tar", "home-01", now_ms(SLOT + 4))
    restore(tmp_path / "old.tar", tmp_path / "again", GRID, now_ms(SLOT + 20))
    meter = Meter(tmp_path / "again")
    with pytest.raises(SigningRefusedError):
        meter.read(SLOT + 19)  # it may have been signed before
    for slot in (SLOT + 20, SLOT + 21):
        meter.read(slot)
    with pytest.raises(SigningRefusedError) as caught:
        meter.book.sign_receipt(HOME.id, SLOT + 20)
    assert caught.value.code == "GAP", "what flowed since the backup is not one slot's"
    assert meter.book.sign_receipt(HOME.id, SLOT + 21)["net_wh"] == 100
    meter.store.close()


async def test_what_waited_in_an_old_backup_is_not_sent_twice(data, tmp_path, quick):
    ledger = Ledger()
    sender = Sender(data, ledger)
    ledger.deaf = True
    sender.outbox.add([("deposit/1", {"op": "deposit-financial-balance", "n": 1})])
    await sender.turn()  # in flight
    sender.outbox.add(
        [
            ("offer/2", {"op": "post-offer", "n": 2}),
            ("receipt/3", {"op": "receipt", "n": 3}),
            ("register/x", {"op": "register-address", "n": 4}),
        ]
    )
    back_up(data, tmp_path / "old.tar", "home-01", now_ms(SLOT + 4))
    ledger.deaf = False
    await sender.turn()
    assert len(ledger.executed) == 4, "the home lived on and did all of it"
    sender.store.close()

    done = restore(tmp_path / "old.tar", tmp_path / "again", GRID, now_ms(SLOT + 9))
    assert done.dropped == 2
    again = Sender(tmp_path / "again", ledger)
    again.outbox.add([("offer/2", {"op": "post-offer", "n": 2})])
    again.outbox.add([("offer/5", {"op": "post-offer", "n": 5})])
    await again.turn()
    assert again.outbox.waiting == 0
    counts = [ledger.executed.count(one) for one in set(ledger.executed)]
    assert ledger.executed.count(("post-offer", 2)) == 1
    assert ledger.executed.count(("deposit-financial-balance", 1)) == 1
    assert ledger.executed.count(("receipt", 3)) == 1
    assert ("post-offer", 5) in ledger.executed, "the nonce is the ledger's, not the backup's"
    assert max(counts) <= 2  # a registration is taken once by the real ledger
    assert again.outbox.state_of("offer/2") == module.RESTORED
    again.store.close()


async def test_another_senders_affairs_are_let_go(data, quick):
    """A home that comes back under a fresh address begins with that one's nonce."""
    ledger = Ledger()
    sender = Sender(data, ledger)
    ledger.nonce = 57
    ledger.deaf = True
    sender.outbox.add([("bid/1", {"op": "post-offer", "n": 1})])
    await sender.turn()
    sender.store.close()
    other = Ledger()
    store = SqliteStore(data / "outbox.sqlite")
    outbox = OperationOutbox(
        store, make_key("fresh"), "test", "hg-test-0", GRID, other, Clock(), SystemRng(),
        other.next_nonce, other.receipt,
    )  # fmt: skip
    assert outbox.waiting == 0
    assert outbox.state_of("bid/1") == "OTHER_SENDER"
    fresh = Sender.__new__(Sender)
    fresh.ledger, fresh.store, fresh.outbox = other, store, outbox
    outbox.add([("bid/2", {"op": "post-offer", "n": 2})])
    await fresh.turn()
    assert other.executed == [("post-offer", 2)]
    store.close()
