"""The outbox of operations: once each, whatever happens in between."""

import asyncio
import time

import pytest
from support.brokers import make_key

from runtime.outbox import LIFE_SLOTS, OperationOutbox
from runtime.ports import BusDownError
from runtime.rng import SystemRng
from runtime.store import PartOfStore, SqliteStore
from wire.slots import SlotGrid
from wire.transactions import parse_transaction

KEY = make_key("sender")
SLOT_MS = 900_000


class StandingClock:
    def __init__(self):
        self.ms = 1_000 * SLOT_MS

    def now_ms(self):
        return self.ms

    wall_ms = now_ms


class Ledger:
    """What the outbox sees of a ledger: takes transactions in nonce order, tells their fate."""

    def __init__(self):
        self.nonce = 5
        self.executed = []
        self.deaf = False
        self.down = False
        self.sent = 0
        self.events = []
        self.fates = {}
        self.behind = False

    async def publish(self, topic, payload, *, qos=1, retain=False):
        if self.down:
            raise BusDownError("down")
        self.sent += 1
        assert topic == f"hg/v1/test/tx/{KEY.id}"
        tx = parse_transaction(payload)
        if self.deaf or tx.nonce != self.nonce:
            return
        self.nonce += 1
        self.executed += [op["n"] for op in tx.operations]
        codes = ["DUPLICATE" if op.get("bad") else "OK" for op in tx.operations]
        event = {"event": "tx", "txid": tx.txid.hex(), "sender": KEY.id, "code": "OK"}
        self.fates[tx.txid] = {"height": 1, "code": "OK", "codes": codes}
        self.events.append({**event, "codes": codes})

    async def next_nonce(self):
        return self.nonce

    async def receipt(self, tx):
        """As validators answer: what it became, never, or (also from those behind) nothing yet."""
        if self.behind:
            return {}
        never = {"height": 0, "code": "WRONG_NONCE", "codes": []}
        return self.fates.get(tx.txid) or (never if self.nonce > tx.nonce else {})


class Bench:
    """An outbox on a file, which can crash and come back."""

    def __init__(self, folder):
        self.path = folder / "outbox.sqlite"
        self.ledger, self.clock, self.done = Ledger(), StandingClock(), []
        self.open()

    def open(self):
        self.store = SqliteStore(self.path)
        self.outbox = OperationOutbox(
            self.store, KEY, "test", "hg-test-0", SlotGrid(), self.ledger, self.clock,
            SystemRng(), self.ledger.next_nonce, self.ledger.receipt,
            self.note,
        )  # fmt: skip

    def note(self, key, operation, code):
        assert key == f"key/{operation['n']}"
        self.done.append((key, code))

    def crash(self):
        self.store.close()
        self.open()

    def add(self, *numbers, **fields):
        return self.outbox.add([(f"key/{n}", {"op": "x", "n": n, **fields}) for n in numbers])

    async def turn(self, *, events=True, seconds=0.1):
        """Run for a moment; then deliver what the ledger said."""
        task = asyncio.create_task(self.outbox.run())
        for _ in range(3):
            await asyncio.sleep(seconds / 3)
            while events and self.ledger.events:
                await self.outbox.take_event(1, self.ledger.events.pop(0))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.outbox.RESEND_S", 0.01)
    opened = Bench(tmp_path)
    yield opened
    opened.store.close()


async def test_operations_go_out_in_one_bundle_and_become_final(bench):
    assert bench.add(1, 2, 3) == 3
    await bench.turn()
    assert bench.ledger.executed == [1, 2, 3]
    assert bench.ledger.nonce == 6
    assert bench.outbox.waiting == 0
    assert bench.done == [("key/1", "OK"), ("key/2", "OK"), ("key/3", "OK")]


async def test_a_key_is_done_once_even_after_a_restart(bench):
    bench.add(1)
    await bench.turn()
    bench.crash()
    assert bench.add(1) == 0
    await bench.turn()
    assert bench.ledger.executed == [1]
    assert bench.outbox.state_of("key/1") == "OK"


async def test_a_refused_operation_is_final_with_its_code(bench):
    bench.add(1, bad=True)
    await bench.turn()
    assert bench.outbox.state_of("key/1") == "DUPLICATE"


async def test_nothing_is_lost_in_a_crash_before_sending(bench):
    bench.add(1)
    bench.crash()
    await bench.turn()
    assert bench.ledger.executed == [1]


async def test_a_crash_after_sending_does_not_send_a_second_version(bench):
    bench.add(1)
    await bench.turn(events=False)
    assert bench.ledger.executed == [1]
    bench.crash()
    await bench.turn()
    assert bench.ledger.executed == [1]
    assert bench.outbox.waiting == 0


async def test_it_sends_again_until_it_is_heard(bench):
    bench.ledger.deaf = True
    bench.add(1)
    await bench.turn()
    assert bench.ledger.sent > 1
    bench.ledger.deaf = False
    await bench.turn()
    assert bench.ledger.executed == [1]


async def test_a_broker_that_is_away_is_waited_for(bench):
    bench.ledger.down = True
    bench.add(1)
    await bench.turn()
    bench.ledger.down = False
    await bench.turn()
    assert bench.ledger.executed == [1]


async def test_an_expired_transaction_is_signed_again(bench):
    bench.ledger.deaf = True
    bench.add(1)
    await bench.turn()
    bench.clock.ms += (LIFE_SLOTS + 2) * SLOT_MS
    bench.ledger.deaf = False
    await bench.turn(seconds=0.8)
    assert bench.ledger.executed == [1]
    assert bench.outbox.waiting == 0


async def test_an_expired_transaction_whose_event_never_comes_is_done_by_its_receipt(bench):
    bench.add(1)
    await bench.turn(events=False)
    bench.ledger.events.clear()
    bench.clock.ms += (LIFE_SLOTS + 2) * SLOT_MS
    await bench.turn(seconds=0.5)
    assert bench.ledger.executed == [1]
    assert bench.outbox.state_of("key/1") == "OK"
    assert bench.done == [("key/1", "OK")]


async def test_a_lost_event_is_asked_for_before_the_transaction_expires(bench):
    bench.add(1, bad=True)
    await bench.turn(events=False)
    bench.ledger.events.clear()
    await bench.turn(seconds=0.3)
    assert bench.outbox.state_of("key/1") == "DUPLICATE"
    assert bench.ledger.executed == [1]


async def test_a_nonce_that_another_transaction_of_ours_used_does_not_stop_the_outbox(bench):
    """Say, one signed before our backup was restored: we never see an event of it."""
    bench.ledger.deaf = True
    bench.add(1)
    await bench.turn()
    bench.ledger.nonce += 1
    bench.ledger.deaf = False
    await bench.turn(seconds=1.2)
    assert bench.ledger.executed == [1]
    assert bench.ledger.nonce == 7
    assert bench.outbox.state_of("key/1") == "OK"


async def test_an_expired_version_that_was_executed_after_all_ends_the_flight(bench):
    """The validators that answered were behind; so it was signed again, but not executed again."""
    bench.ledger.behind = True
    bench.add(1)
    await bench.turn(events=False)
    bench.ledger.events.clear()
    bench.clock.ms += (LIFE_SLOTS + 2) * SLOT_MS
    await bench.turn()
    assert len(bench.outbox._flight.versions) == 2
    bench.crash()
    assert len(bench.outbox._flight.versions) == 2
    bench.ledger.behind = False
    await bench.turn(seconds=0.9)
    assert bench.ledger.executed == [1]
    assert bench.ledger.nonce == 6
    assert bench.outbox.state_of("key/1") == "OK"
    assert list(bench.store.scan("flight/")) == []


async def test_an_event_that_refuses_one_version_does_not_send_what_another_did(bench):
    bench.ledger.behind = True
    bench.add(1)
    await bench.turn(events=False)
    [event] = bench.ledger.events
    bench.ledger.events.clear()
    bench.clock.ms += (LIFE_SLOTS + 2) * SLOT_MS
    await bench.turn()
    second = bench.outbox._flight.transaction.txid.hex()
    assert second != event["txid"]
    refused = {"event": "tx", "txid": second, "code": "WRONG_NONCE", "codes": []}
    await bench.outbox.take_event(2, refused)
    bench.ledger.behind = False
    await bench.turn(seconds=0.9)
    assert bench.ledger.executed == [1]
    assert bench.outbox.state_of("key/1") == "OK"


async def test_a_caller_that_fails_to_note_an_outcome_is_told_again(bench):
    bench.ledger.behind = True
    bench.add(1)
    await bench.turn(events=False)
    [event] = bench.ledger.events
    bench.outbox._on_done = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        await bench.outbox.take_event(1, event)
    bench.outbox._on_done = bench.note
    await bench.outbox.take_event(1, event)
    assert bench.done == [("key/1", "OK")]


async def test_a_nonce_that_the_ledger_refuses_is_asked_for(bench):
    bench.add(1)
    await bench.turn()
    bench.ledger.nonce, bench.ledger.behind = 9, True
    bench.add(2)
    await bench.turn()
    [event] = [{"event": "tx", "txid": bench.outbox._flight.transaction.txid.hex()}]
    await bench.outbox.take_event(1, {**event, "code": "WRONG_NONCE", "codes": []})
    bench.ledger.behind = False
    await bench.turn(seconds=0.8)
    assert bench.ledger.executed == [1, 2]


async def test_more_than_a_bundle_goes_in_several(bench):
    bench.add(*range(150))
    await bench.turn(seconds=0.9)
    await bench.turn(seconds=0.9)
    assert bench.ledger.executed == list(range(150))
    assert bench.ledger.nonce == 8


class RunningClock(StandingClock):
    """Market time stands, process time runs."""

    speed = 1.0

    def monotonic_s(self):
        return time.monotonic()


class LatestRng(SystemRng):
    """Draws the end of every interval."""

    def uniform(self, low, high):
        return high


def shared(bench, name):
    """One sender of several that share a file and the memory of keys."""
    key = make_key(name)
    return OperationOutbox(
        PartOfStore(bench.store, f"of/{key.id}/"), key, "test", "hg-test-0", SlotGrid(),
        bench.ledger, RunningClock(), LatestRng(), bench.ledger.next_nonce, bench.ledger.receipt,
        keys=bench.store, spread_s=60.0,
    )  # fmt: skip


def test_senders_that_share_a_file_do_an_operation_once_under_one_of_them(bench):
    one, other = shared(bench, "one"), shared(bench, "other")
    assert one.add([("key/1", {"op": "x", "n": 1})]) == 1
    assert other.add([("key/1", {"op": "x", "n": 1})]) == 0
    assert (one.waiting, other.waiting) == (1, 0)
    assert other.state_of("key/1") == "waiting"


async def test_what_is_kept_back_leaves_at_its_moment_and_keeps_nothing_else_waiting(bench):
    bench.outbox = shared(bench, "sender")
    bench.outbox.add([("key/1", {"op": "x", "n": 1})], spread_s=0.5)
    bench.outbox.add([("key/2", {"op": "x", "n": 2})])
    await bench.turn(seconds=0.3)
    assert bench.ledger.executed == [2]
    await bench.turn(seconds=0.6)
    assert bench.ledger.executed == [2, 1]


async def test_after_a_start_what_waited_is_kept_back_again(bench):
    """Addresses of one home must not be heard at one moment because it started then."""
    shared(bench, "sender").add([("key/1", {"op": "x", "n": 1})])
    bench.outbox = shared(bench, "sender")
    await bench.turn(seconds=0.2)
    assert bench.ledger.executed == [] and bench.outbox.waiting == 1


async def test_a_transaction_names_the_time_it_is_told_to_name(bench):
    clock = RunningClock()
    outbox = OperationOutbox(
        bench.store, KEY, "test", "hg-test-0", SlotGrid(), bench.ledger, clock, SystemRng(),
        bench.ledger.next_nonce, bench.ledger.receipt, dated=lambda ms: ms - ms % SLOT_MS,
    )  # fmt: skip
    outbox.add([("key/1", {"op": "x", "n": 1})])
    await outbox._depart()
    shown = outbox._flight.transaction.envelope
    assert shown.date_ms % SLOT_MS == 0
    assert int(shown.req_id.replace("-", "")[:12], 16) == shown.date_ms
