"""What a node says: the same as every honest one, in pieces that the broker takes, to all ends."""

import contextlib
from types import SimpleNamespace

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    MARKET,
    START_MS,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    deposit,
    key,
)
from support.speakers import Feeder, RealClock

from ledger.allowance import Allowance
from ledger.client import read_message
from ledger.publish import (
    ASKER_BYTES_BURST,
    BYTES_BURST,
    MAX_ANSWER_BYTES,
    MAX_MESSAGES_PER_ANSWER,
    RATE_PER_S,
    Publisher,
    RateLimitedError,
)
from ledger.statements import PART_BYTES, join_parts, read_part
from ledger.types import ValidatorSet
from runtime.bus import MAX_PAYLOAD_BYTES
from runtime.ports import Message
from wire import topics
from wire.canonical import decode, encode
from wire.errors import MalformedError, Refusal
from wire.keys import to_text

ASKER = key("asker")


class Node:
    """A publisher on a store, and what it says."""

    def __init__(self, store, genesis, ledger=None, validator=VALIDATORS[0]):
        self.said = []
        self.genesis = genesis
        self.keys = {v.id: v.public for v in VALIDATORS}
        bus = SimpleNamespace(publish_soon=lambda topic, raw: self.said.append((topic, raw)))
        node = SimpleNamespace(
            key=validator, genesis=genesis, store=store, bus=bus, clock=RealClock(), ledger=ledger,
            executed_height=0,
            epoch=SimpleNamespace(
                validators=ValidatorSet(tuple(self.keys), tuple(self.keys.values()))
            ),
        )  # fmt: skip
        self.publisher = Publisher(node)

    async def ask(self, kind, name):
        """The value of an answer."""
        topic = topics.build(MARKET, topics.SYNC_REQ, ASKER.id)
        request = {"reqId": "r", "kind": kind, "key": name}
        await self.publisher.take_request(Message(topic, encode(request)))
        _, raw = self.said.pop()
        assert len(raw) <= MAX_PAYLOAD_BYTES
        _, _, answer = read_message(raw, self.keys, self.genesis.chain_id)
        return answer["value"]

    def messages(self):
        """What was published, without signature."""
        found = [read_message(raw, self.keys, self.genesis.chain_id) for _, raw in self.said]
        return [message for _, _, message in found]


def accepted_bids(count):
    return [
        {"event": "bid-accepted", "address": "hg1" + "q" * 45, "slot": FIRST_SLOT,
         "code": "OK", "txid": f"{n:064x}"}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def feeder():
    feeder = Feeder()
    feeder.nodes.clear()
    return feeder


def parts_of(node, contract, height):
    for message in node.publisher._event_messages(contract, height):
        node.publisher._publish(contract, message)
    return node.messages()


def test_twelve_bundles_of_accepted_bids_fit_the_broker(feeder):
    events = accepted_bids(12 * 64)
    node = Node(feeder.store, feeder.genesis)
    messages = parts_of(node, "market", feeder.add("market", *events))
    assert len(encode(events)) > MAX_PAYLOAD_BYTES
    assert all(len(raw) <= MAX_PAYLOAD_BYTES for _, raw in node.said)
    parts = [read_part(message, feeder.genesis.chain_id) for message in messages]
    assert [p.part for p in parts] == list(range(parts[0].parts))
    assert join_parts((p.slice for p in parts), parts[0].digest) == events


def test_every_honest_node_cuts_in_the_same_places(feeder):
    height = feeder.add("market", *accepted_bids(500))
    one, other = (Node(feeder.store, feeder.genesis, validator=v) for v in VALIDATORS[:2])
    assert parts_of(one, "market", height) == parts_of(other, "market", height)
    assert one.said != other.said


@pytest.mark.parametrize(("beyond", "parts"), [(0, 1), (1, 2)])
def test_a_message_is_cut_only_when_it_must_be(feeder, beyond, parts):
    frame = len(encode([{"event": "x", "text": ""}]))
    events = [{"event": "x", "text": "y" * (PART_BYTES - frame + beyond)}]
    node = Node(feeder.store, feeder.genesis)
    messages = parts_of(node, "market", feeder.add("market", *events))
    assert len(messages) == parts
    assert ("events" in messages[0]) == (parts == 1)


def test_parts_that_do_not_make_the_whole_are_refused(feeder):
    node = Node(feeder.store, feeder.genesis)
    messages = parts_of(node, "market", feeder.add("market", *accepted_bids(500)))
    parts = [read_part(message, feeder.genesis.chain_id) for message in messages]
    with pytest.raises(MalformedError):
        join_parts([parts[1].slice, parts[0].slice], parts[0].digest)
    with pytest.raises(MalformedError):
        join_parts([encode(accepted_bids(3))], parts[0].digest)


async def test_an_asker_gets_to_the_end_whatever_the_sizes(feeder):
    """Large messages among small ones: every answer is small enough and brings something new."""
    per_part = PART_BYTES / len(encode(accepted_bids(1)))
    tails = [int(per_part * 2.6), int(per_part * 2.2)]  # the last parts of both fit one answer
    sizes = [1, 3, 900, 1, 2_000, 400, *tails, *[1] * 40]
    heights = [feeder.add("wallet", *accepted_bids(size)) for size in sizes]
    node = Node(feeder.store, feeder.genesis)
    known = {}
    after, part = 0, 0
    while messages := (await node.ask("events", f"wallet/{after}/{part}"))["messages"]:
        assert len(messages) <= MAX_MESSAGES_PER_ANSWER
        assert len(encode(messages)) <= MAX_ANSWER_BYTES + 1024
        for message in messages:
            each = read_part(message, feeder.genesis.chain_id)
            assert (each.previous, each.part) == (after, part)
            known.setdefault(each.height, []).append(each)
            part += 1
            if part == each.parts:
                after, part = each.height, 0
    assert list(known) == heights
    joined = [join_parts((p.slice for p in ps), ps[0].digest) for ps in known.values()]
    assert [len(events) for events in joined] == sizes


@pytest.mark.parametrize(
    "name", ["market", "market/1", "market/1/-1", "market/1/1/1", "block/0/0", "market/²/0",
             "market/0/" + "9" * 16],
)  # fmt: skip
async def test_a_malformed_question_about_events_is_refused(feeder, name):
    with pytest.raises(MalformedError):
        await Node(feeder.store, feeder.genesis).ask("events", name)


async def test_who_asks_too_often_is_refused_as_that(feeder):
    node = Node(feeder.store, feeder.genesis)
    with pytest.raises(RateLimitedError) as refused:
        for _ in range(int(RATE_PER_S) * 4):
            await node.ask("tip", "")
    assert refused.value.refusal is Refusal.RATE_LIMITED


async def test_answers_are_bounded_in_bytes_for_each_asker_and_for_all_but_not_receipts(feeder):
    """A chain that anybody may read must not take its validators' time and their broker's lines."""
    feeder.add("wallet", *accepted_bids(400))
    node = Node(feeder.store, feeder.genesis)

    async def told_bytes(asker):
        topic = topics.build(MARKET, topics.SYNC_REQ, asker)
        request = encode({"reqId": "r", "kind": "events", "key": "wallet/0/0"})
        node.publisher._questions = Allowance(1e9, 1e9)
        before = len(node.said)
        with contextlib.suppress(RateLimitedError):
            while True:
                await node.publisher.take_request(Message(topic, request))
        return sum(len(raw) for _, raw in node.said[before:])

    first = await told_bytes("asker-0")
    assert ASKER_BYTES_BURST <= first < ASKER_BYTES_BURST * 1.5
    told = [await told_bytes(f"asker-{n}") for n in range(1, 8)]
    assert BYTES_BURST <= first + sum(told) < BYTES_BURST * 1.5
    assert told[-1] == 0
    assert await node.ask("tip", "") == {"height": 0}
    topic = topics.build(MARKET, topics.SYNC_REQ, VALIDATORS[1].id)
    before = len(node.said)
    request = encode({"reqId": "r", "kind": "events", "key": "wallet/0/0"})
    await node.publisher.take_request(Message(topic, request))
    assert len(node.said) == before + 1, "validators must be able to follow"


async def test_what_became_of_a_transaction_is_told():
    chain = Chain()
    node = Node(chain.store, chain.genesis, chain.ledger)
    sender, unknown = SUPERVISOR, to_text(bytes(32))
    good = chain.tx(sender, deposit(key("ann"), 5), deposit(sender, -1))
    early = chain.tx(sender, deposit(key("ann"), 5), nonce=9)
    used = chain.tx(sender, deposit(key("ann"), 7), nonce=0)
    coming = chain.tx(sender, deposit(key("ann"), 7), nonce=1)
    result = chain.block(START_MS + 1000, good, early)
    codes = list(result.receipts[0].codes)
    assert await node.ask("tx", good.txid.hex()) == {"height": 1, "code": "OK", "codes": codes}
    refused = {"height": 1, "code": "WRONG_NONCE", "codes": []}
    assert await node.ask("tx", early.txid.hex()) == refused
    never = {"height": 0, "code": "WRONG_NONCE", "codes": []}
    assert await node.ask("tx", f"{used.txid.hex()}/{sender.id}/0") == never
    assert await node.ask("tx", f"{coming.txid.hex()}/{sender.id}/1") == {}
    assert await node.ask("tx", used.txid.hex()) == {}
    for bad in (unknown, "00", f"{'0' * 64}/x", f"{'0' * 64}/x/y", ""):
        with pytest.raises(MalformedError):
            await node.ask("tx", bad)


def test_a_message_is_signed_by_the_node_alone(feeder):
    node = Node(feeder.store, feeder.genesis)
    parts_of(node, "market", feeder.add("market", *accepted_bids(1)))
    [(_, raw)] = node.said
    assert decode(raw)["validator"] == VALIDATORS[0].id
