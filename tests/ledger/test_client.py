"""What a client hands on: what f + 1 validators said, all of it, in order, once."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from support.chain_builder import FIRST_SLOT, MARKET, START_MS, VALIDATORS, key
from support.patience import PATIENCE_S
from support.speakers import CLIENT, Feeder

from ledger import client as client_module
from ledger.client import QueryError, Validators
from ledger.event_chain import MAX_PENDING, EventChain
from ledger.statements import PART_BYTES, EventPart
from runtime.metrics import refusals
from wire import topics
from wire.canonical import decode
from wire.errors import MalformedError
from wire.keys import to_text
from wire.transactions import make_transaction

LIAR = VALIDATORS[3]
GOOD = VALIDATORS[:3]


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    for name, value in {
        "GAP_WAIT_S": 0.02, "ASK_WAIT_S": 0.1, "ASK_PAUSE_S": 0.0, "RETRY_MIN_S": 0.01,
        "RETRY_MAX_S": 0.04,
    }.items():  # fmt: skip
        monkeypatch.setattr(client_module, name, value)
    monkeypatch.setattr("ledger.publish.RATE_PER_S", 10_000.0)


@pytest.fixture
def feeder():
    return Feeder()


@asynccontextmanager
async def following(feeder, *handlers, **options):
    client = feeder.client(**options)
    for handler in handlers or (feeder.note,):
        client.on_event(handler)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def until(condition, timeout_s=PATIENCE_S):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen in time"
        await asyncio.sleep(0.005)


def event(n, **more):
    return {"event": "receipt", "n": n, **more}


def settled(rows):
    address = "hg1" + "q" * 40
    return {
        "event": "settled", "slot": FIRST_SLOT, "missing": [],
        "rows": [
            {"address": f"{address}{n:05d}", "netWh": n, "boughtWh": 0, "soldWh": 0,
             "residualWh": n, "amountUc": 10 * n}
            for n in range(rows)
        ],
    }  # fmt: skip


# --- who is believed ------------------------------------------------------------------------------


async def test_one_validator_alone_is_not_believed(feeder):
    async with following(feeder):
        [message] = feeder.messages("market", 1, 0, event(1))
        for _ in range(3):
            feeder.claim(LIAR, "market", message)
        await asyncio.sleep(0.1)
        assert feeder.seen == []
        feeder.claim(GOOD[0], "market", message)
        await until(lambda: feeder.seen == [(1, event(1))])


async def test_f_liars_change_nothing(feeder):
    async with following(feeder):
        for n in range(1, 6):
            [lie] = feeder.messages("market", n, n - 1, event(666))
            feeder.claim(LIAR, "market", lie)
            feeder.add("market", event(n))
            feeder.claim(LIAR, "market", lie)
        await until(lambda: len(feeder.seen) == 5)
        assert feeder.seen == [(n, event(n)) for n in range(1, 6)]


async def test_a_flood_of_lies_takes_the_liars_own_room_only(feeder):
    """What one honest validator said before the flood still counts after it."""
    async with following(feeder) as client:
        [true] = feeder.messages("market", 1, 0, event(1))
        [far] = feeder.messages("market", 9, 1, event(9))
        feeder.claim(GOOD[0], "market", true)
        feeder.claim(GOOD[0], "market", far)
        for n in range(MAX_PENDING + 100):
            [lie] = feeder.messages("market", n + 1, n, event(-n))
            feeder.claim(LIAR, "market", lie)
            if n % 200 == 0:
                await asyncio.sleep(0)
        chain = client._followers["market"].chain
        await until(lambda: chain.pending[LIAR.id] == MAX_PENDING)
        await asyncio.sleep(0.05)
        assert chain.pending == {LIAR.id: MAX_PENDING, GOOD[0].id: 2}
        feeder.claim(GOOD[1], "market", true)
        feeder.claim(GOOD[1], "market", far)
        await until(lambda: feeder.heights == [1, 9])


def test_of_what_one_says_alone_the_next_message_is_forgotten_last():
    """An honest validator far ahead of a client that others do not reach yet."""
    chain = EventChain(0)
    for n in range(1, MAX_PENDING + 50):
        chain.count("ahead", b"digest", EventPart("market", n, n - 1, 0, 1, "", b"[]"), 2)
    assert chain.count("other", b"digest", EventPart("market", 1, 0, 0, 1, "", b"[]"), 2)
    assert chain.take() == (1, [])


def test_agreed_messages_that_wait_take_little_room_and_the_next_one_any(monkeypatch):
    monkeypatch.setattr("ledger.event_chain.MAX_AGREED_BYTES", 10_000)
    chain = EventChain(0)
    for n in range(1, 500):
        chain.count("one", b"digest", EventPart("market", n + 1, n, 0, 1, "", b"[]"), 1)
    assert chain._agreed_bytes <= 10_000
    long = b"[" + b" " * 50_000 + b"]"
    assert chain.count("one", b"long", EventPart("market", 1, 0, 0, 2, "d", long), 1)
    assert chain.missing() == (0, 1)
    assert list(chain._agreed) == [0]


async def test_strangers_are_not_heard(feeder):
    async with following(feeder):
        [message] = feeder.messages("market", 1, 0, event(1))
        for name in ("thief", "other thief"):
            feeder.claim(key(name), "market", message)
        await until(lambda: feeder.air.refused == ["UNKNOWN_SENDER"] * 2)
        assert feeder.seen == []


HOSTILE = [
    {"contract": 7},
    {"contract": ["market"]},
    {"contract": "block"},
    {"chainId": "another"},
    {"height": "1"},
    {"height": True},
    {"height": 0},
    {"prevHeight": 1},
    {"prevHeight": -1},
    {"part": 1},
    {"part": -1},
    {"parts": 0},
    {"parts": "1"},
    {"parts": 2**40, "digest": "0" * 64, "chunk": "AAAA"},
    {"parts": 2, "digest": "0", "chunk": "AAAA"},
    {"parts": 2, "digest": "0" * 64, "chunk": ""},
    {"parts": 2, "digest": "0" * 64, "chunk": {}},
    {"parts": 2, "digest": 5, "chunk": "AAAA"},
    {"parts": 2, "digest": "0" * 64, "chunk": to_text(bytes(PART_BYTES + 1))},
    {"events": {}},
    {"events": [1]},
    {"events": [{"no": "name"}]},
]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
async def test_a_malformed_message_is_refused_by_name(feeder, change):
    async with following(feeder):
        [message] = feeder.messages("market", 1, 0, event(1))
        feeder.claim(LIAR, "market", {**message, **change})
        answer = {"reqId": "r", "kind": "events", "value": {"messages": [{**message, **change}]}}
        feeder.answer(LIAR, answer)
        await until(lambda: feeder.air.refused == ["MALFORMED"] * 2)
        feeder.add("market", event(1))
        await until(lambda: feeder.heights == [1])


@pytest.mark.parametrize(
    "change",
    [
        {"reqId": {}}, {"kind": []}, {"kind": "events", "value": []},
        {"kind": "events", "value": {"messages": {}}},
        {"kind": "events", "value": {"messages": [1]}},
    ],
    ids=str,
)  # fmt: skip
async def test_a_malformed_answer_is_refused_by_name(feeder, change):
    async with following(feeder):
        feeder.answer(LIAR, {"reqId": "r", "kind": "account", "value": {}, **change})
        await until(lambda: feeder.air.refused == ["MALFORMED"])


async def test_an_answer_of_too_many_messages_is_refused(feeder):
    async with following(feeder):
        messages = feeder.messages("market", 1, 0, event(1)) * 65
        feeder.answer(LIAR, {"reqId": "r", "kind": "events", "value": {"messages": messages}})
        await until(lambda: feeder.air.refused == ["MALFORMED"])


# --- all of it ------------------------------------------------------------------------------------


async def test_a_settlement_of_three_thousand_homes_arrives_as_one_event(feeder):
    async with following(feeder):
        feeder.add("market", event(0), settled(3_000), event(2))
        await until(lambda: len(feeder.seen) == 3)
        assert feeder.seen == [(1, event(0)), (1, settled(3_000)), (1, event(2))]


async def test_what_was_lost_is_asked_for(feeder):
    async with following(feeder):
        feeder.add("market", event(1))
        for n in (2, 3, 4):
            feeder.add("market", event(n), say=False)
        feeder.add("market", event(5))
        await until(lambda: feeder.heights == [1, 2, 3, 4, 5])


async def test_lost_parts_are_asked_for_part_by_part(feeder):
    """Of the live parts every third is lost, of the answers every other one."""
    lost = 0

    def loses(topic, payload):
        nonlocal lost
        lost += 1
        return lost % (3 if "/events/" in topic else 2) == 0

    feeder.air.loses = loses
    async with following(feeder):
        for n in range(3):
            feeder.add("market", settled(1_500 + n))
        feeder.air.loses = lambda topic, payload: "/sync/rsp/" in topic and loses(topic, payload)
        feeder.add("market", event(9))
        await until(lambda: len(feeder.seen) == 4)
        assert feeder.heights == [1, 2, 3, 4]
        assert [len(e["rows"]) for _, e in feeder.seen[:3]] == [1_500, 1_501, 1_502]


async def test_a_message_much_longer_than_an_answer_is_fetched_in_pieces(feeder):
    """2 MB of which nothing was heard live: every answer brings the next parts."""
    feeder.add("market", *(event(n, text="x" * 1000) for n in range(2_000)), say=False)
    async with following(feeder):
        await until(lambda: len(feeder.seen) == 2_000)
        asked = [raw for topic, raw in feeder.air.carried if "/sync/req/" in topic]
        assert any(b'"market/0/30"' in raw or b'"market/0/31"' in raw for raw in asked)


async def test_a_last_message_that_was_lost_is_asked_for_after_a_silence(feeder, monkeypatch):
    monkeypatch.setattr(client_module, "QUIET_S", 0.3)
    async with following(feeder) as client:
        feeder.add("wallet", event(1))
        await until(lambda: client._followers["wallet"].caught_up)
        feeder.add("wallet", event(2), say=False)
        await until(lambda: feeder.heights == [1, 2])


async def test_what_happened_while_the_broker_was_away_is_asked_for(feeder):
    async with following(feeder) as client:
        feeder.add("poe", event(1))
        await until(lambda: client._followers["poe"].caught_up)
        feeder.air.connected = False
        feeder.add("poe", event(2))
        await asyncio.sleep(0.1)
        feeder.air.connected = True
        await until(lambda: feeder.heights == [1, 2])


async def test_a_client_that_starts_now_does_not_ask_for_history(feeder):
    feeder.add("market", event(1), say=False)
    async with following(feeder, from_start=False):
        feeder.add("market", event(2))
        await until(lambda: feeder.heights == [2])
        await asyncio.sleep(0.1)
        assert feeder.heights == [2]


# --- once each, in order --------------------------------------------------------------------------


async def test_a_handler_that_fails_sees_its_event_again_and_the_others_do_not(feeder):
    tries, others = [], []

    async def fails_twice(height, one):
        tries.append(one["n"])
        if one["n"] == 2 and tries.count(2) < 3:
            raise OSError("disk full")

    async def other(height, one):
        others.append(one["n"])

    async with following(feeder, other, fails_twice, feeder.note) as client:
        feeder.add("market", event(1), event(2), event(3))
        feeder.add("market", event(4))
        await until(lambda: client.delivered()["market"] == 2)
    assert tries == [1, 2, 2, 2, 3, 4]
    assert others == [1, 2, 3, 4]
    assert [e["n"] for _, e in feeder.seen] == [1, 2, 3, 4]


async def test_what_a_handler_cannot_take_is_not_counted_as_handled(feeder):
    broken = True

    async def fails(height, one):
        if broken and one["n"] == 2:
            raise OSError("disk full")

    async with following(feeder, fails, feeder.note) as client:
        feeder.add("market", event(1))
        feeder.add("market", event(2))
        feeder.add("wallet", event(3))
        await until(lambda: client.delivered()["wallet"] == 3)  # others go on meanwhile
        assert await client.query("account", "x", 1.0) == {"row": "account/x"}
        assert client.delivered()["market"] == 1
        assert sorted(feeder.heights) == [1, 3]
        broken = False
        await until(lambda: client.delivered()["market"] == 2)


async def test_an_event_that_a_handler_refuses_by_name_is_counted_and_passed_over(feeder):
    before = refusals("ledger.client").get("MALFORMED", 0)

    async def refuses(height, one):
        raise MalformedError("not for me")

    async with following(feeder, refuses, feeder.note):
        feeder.add("market", event(1), event(2))
        await until(lambda: len(feeder.seen) == 2)
    assert refusals("ledger.client")["MALFORMED"] == before + 2


async def test_a_restart_goes_on_after_what_was_handled(feeder):
    async def fails(height, one):
        if one["n"] == 2:
            raise OSError("disk full")

    async with following(feeder, feeder.note, fails) as client:
        feeder.add("market", event(1))
        feeder.add("market", event(2))
        await until(lambda: feeder.heights == [1, 2])
        kept = client.delivered()
    assert kept["market"] == 1
    feeder.seen.clear()
    feeder.add("market", event(3), say=False)
    async with following(feeder, resume=kept):
        await until(lambda: feeder.heights == [2, 3])


async def test_a_handler_may_ask_the_ledger(feeder):
    answers = []

    async def asks(height, one):
        answers.append(await client.query("account", "x"))

    client = feeder.client()
    client.on_event(asks)
    await client.start()
    feeder.add("market", event(1), say=False)  # it comes in an answer
    await until(lambda: answers == [{"row": "account/x"}])
    await client.stop()


# --- questions ------------------------------------------------------------------------------------


async def test_an_answer_counts_once_per_validator(feeder):
    feeder.nodes.clear()
    feeder.air.handlers.clear()
    async with following(feeder) as client:
        asking = asyncio.create_task(client.query("account", "x", 1.0))
        await until(lambda: client._asker._queries)
        [req_id] = client._asker._queries
        for n in range(50):
            lie = {"reqId": req_id, "kind": "account", "value": {"balanceUc": n % 2}}
            feeder.answer(LIAR, lie)
        await asyncio.sleep(0.1)
        assert len(client._asker._queries[req_id].answers) == 1
        with pytest.raises(QueryError):
            await asking


async def test_the_receipt_of_a_transaction_is_what_f_plus_1_say_of_its_sender_and_nonce(feeder):
    tx = make_transaction(
        CLIENT, feeder.genesis.chain_id, 7, FIRST_SLOT, [{"op": "x"}], "r" * 26, START_MS
    )
    true = {"height": 3, "code": "OK", "codes": ["OK"]}
    asked = []

    async def tell(message):
        request = decode(message.payload)
        if request["kind"] == "tx":
            asked.append(request["key"])
            for who, value in ((LIAR, {}), (GOOD[0], true), (GOOD[1], true)):
                feeder.answer(who, {"reqId": request["reqId"], "kind": "tx", "value": value})

    feeder.air.handlers.clear()
    feeder.air.subscribe(topics.build(MARKET, topics.SYNC_REQ, CLIENT.id), tell)
    async with following(feeder) as client:
        assert await client.receipt(tx) == true
    assert asked == [f"{tx.txid.hex()}/{CLIENT.id}/7"]


# --- other validators -----------------------------------------------------------------------------

NEW = [key(f"new validator {n}") for n in range(7)]


def change_of(epoch, members):
    rows = [{"id": k.id, "key": to_text(k.public), "controller": "c"} for k in members]
    return {"event": "validators", "epoch": epoch, "validators": rows}


async def test_after_a_change_the_new_validators_count_and_the_old_do_not(feeder):
    async with following(feeder) as client:
        feeder.add("poe", change_of(1, NEW))
        await until(lambda: client.validators().epoch == 1)
        assert client.delivered()["poe"] == 1
        [message] = feeder.messages("market", 2, 0, event(2))
        for old in VALIDATORS:
            feeder.claim(old, "market", message)
        await until(lambda: feeder.air.refused.count("UNKNOWN_SENDER") >= 4)
        feeder.claim(NEW[0], "market", message)
        feeder.claim(NEW[1], "market", message)
        await asyncio.sleep(0.05)
        assert feeder.heights == [1]
        feeder.claim(NEW[2], "market", message)  # f + 1 of seven
        await until(lambda: feeder.heights == [1, 2])


async def test_what_an_old_validator_said_before_the_change_does_not_count_after_it(feeder):
    async with following(feeder) as client:
        [lie] = feeder.messages("market", 2, 0, event(666))
        feeder.claim(LIAR, "market", lie)
        await asyncio.sleep(0.05)
        feeder.add("poe", change_of(1, [*GOOD, NEW[0]]))
        await until(lambda: client.validators().epoch == 1)
        feeder.claim(NEW[0], "market", lie)  # f liars of the new set
        await asyncio.sleep(0.05)
        assert feeder.heights == [1]


async def test_validators_kept_over_a_restart_are_not_taken_back_by_an_old_change(feeder):
    async with following(feeder) as client:
        feeder.add("poe", change_of(2, VALIDATORS))
        await until(lambda: client.validators().epoch == 2)
        kept = Validators.from_json(client.validators().to_json())
    assert kept == client.validators()
    feeder.add("poe", change_of(1, NEW), say=False)
    feeder.add("poe", event(3), say=False)
    async with following(feeder, validators=kept) as client:
        await until(lambda: feeder.heights[-1] == 3)
        assert client.validators() == kept


async def test_a_change_to_nonsense_changes_nothing(feeder):
    thief = {"id": NEW[0].id, "key": to_text(NEW[1].public), "controller": "c"}
    async with following(feeder) as client:
        feeder.add("poe", {"event": "validators", "epoch": 1, "validators": [thief]})
        feeder.add("market", change_of(1, NEW))
        await until(lambda: sorted(feeder.heights) == [1, 2])
        assert client.validators().epoch == 0


# --- one node's own words -------------------------------------------------------------------------


async def test_a_nodes_own_words_are_heard_as_its_own_and_checked(feeder):
    heard = []

    async def listen(height, one):
        heard.append((height, one["validator"]))

    client = feeder.client()
    client.on_local_event(listen)
    await client.start()
    own = {"chainId": feeder.genesis.chain_id, "contract": "block", "height": 3}
    feeder.claim(LIAR, "block", {**own, "events": [{"event": "block"}]})
    await until(lambda: heard == [(3, LIAR.id)])
    for bad in ({"events": {}}, {"events": [1]}, {"height": "3"}, {"contract": "market"}):
        feeder.claim(LIAR, "block", {**own, "events": [{"event": "block"}], **bad})
    await until(lambda: feeder.air.refused == ["MALFORMED"] * 4)
    await client.stop()
    assert len(heard) == 1
