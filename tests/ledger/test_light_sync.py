"""The light follower on a bus, between validators that answer from a real chain, and liars."""

import asyncio
import contextlib
import json

import msgspec
import pytest
from support.chain_builder import START_MS, SUPERVISOR, VALIDATORS, Chain, deposit, key
from support.nodes import Hub, HubBus, MovableClock
from support.patience import PATIENCE_S

from ledger import proofs, types
from ledger.checkpoint import genesis_checkpoint, read_checkpoint
from ledger.light import ConflictError, TrustExpiredError
from ledger.light_sync import LightFollower, NoProofError
from ledger.prover import INCLUSION, RECEIPT, Prover, answer_anchor, answer_proof
from ledger.statements import sign_message
from wire import topics
from wire.canonical import decode, encode
from wire.errors import MalformedError
from wire.keys import to_text

ANN = key("home 0")
ME = key("follower")
ROW = f"account/{ANN.id}"


class Server:
    """One validator as the light client sees it."""

    def __init__(self, hub, who, chain):
        self.key, self.chain = who, chain
        self.bus = HubBus(hub)
        self.change = lambda _question, answer: answer
        self.silent = False
        self.bus.subscribe(topics.build(chain.genesis.market, topics.SYNC_REQ, "+"), self.answer)

    async def answer(self, message):
        question = decode(message.payload)
        if question["to"] != self.key.id or self.silent:
            return
        store, asked = self.chain.store, question["key"]
        if question["kind"] == "proof":
            answer = answer_proof(store, self.chain.ledger, asked)
        else:
            answer = answer_anchor(store, asked)
        said = {"reqId": question["reqId"], "kind": question["kind"],
                "value": to_text(self.change(question, answer))}  # fmt: skip
        topic = topics.build(self.chain.genesis.market, topics.SYNC_RSP, ME.id)
        await self.bus.publish(topic, sign_message(said, self.key, self.chain.chain_id))


def make_chain():
    chain = Chain()
    chain.settle_in(ANN)
    for number in range(3):
        chain.block(START_MS + 100 + number, chain.tx(SUPERVISOR, deposit(ANN, 5)))
    return chain


@contextlib.asynccontextmanager
async def feeder():
    hub = Hub()
    chain = make_chain()
    servers = [Server(hub, who, chain) for who in VALIDATORS]
    bus = HubBus(hub)
    clock = MovableClock()
    follower = LightFollower(bus, chain.genesis, clock, ME.id)
    await follower.start()
    for one in (bus, *(server.bus for server in servers)):
        await one.start()
    try:
        yield follower, servers, clock
    finally:
        for one in (bus, *(server.bus for server in servers)):
            await one.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("ledger.light_sync.ANSWER_TIMEOUT_S", 0.2)


async def test_it_follows_to_the_newest_header_and_a_second_validator_confirms_it():
    async with feeder() as (follower, servers, clock):
        assert await follower.follow()
        assert follower.light.trust.height == servers[0].chain.store.height
        servers[0].chain.block(START_MS + 900_000)
        clock.move_to(START_MS + 900_000)
        assert await follower.follow(), "over a seal"
        assert follower.light.trust.epoch == 1


async def test_a_balance_a_receipt_and_an_inclusion_are_known_by_one_answer_each():
    async with feeder() as (follower, servers, _):
        await follower.follow()
        store = servers[0].chain.store
        txid = store.get_block(3).txids[0]
        assert (await follower.prove(ROW)).value["balanceUc"] > 0
        assert (await follower.prove(RECEIPT + txid.hex())).receipt["code"] == "OK"
        assert (await follower.prove(INCLUSION + txid.hex())).height == 3
        assert (await follower.prove("account/nobody")).value is None


async def test_whatever_all_but_one_validator_make_of_their_answers_the_honest_one_is_heard():
    """Cut off, flipped, about something else, another's words, nothing."""
    async with feeder() as (follower, servers, _):
        chain = servers[0].chain
        other = answer_proof(chain.store, chain.ledger, f"account/{SUPERVISOR.id}")
        lies = [
            lambda _q, raw: raw[:-1],
            lambda _q, raw: raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
            lambda q, raw: other if q["kind"] == "proof" else b"",
            lambda _q, _raw: b"\x91\xa6anchor",
        ]
        expected = chain.ledger.query(ROW)["balanceUc"] - 5
        for lie in lies:
            for honest in range(4):
                for number, server in enumerate(servers):
                    server.change = lie if number != honest else lambda _q, raw: raw
                assert (await follower.prove(ROW)).value["balanceUc"] == expected
                await follower.follow()
                assert follower.light.trust.height == chain.store.height


async def test_with_no_honest_answer_it_says_so_and_trusts_nothing_new():
    async with feeder() as (follower, servers, _):
        for server in servers:
            server.silent = True
        for attempt in (follower.follow(), follower.prove(ROW)):
            with pytest.raises(NoProofError):
                await attempt
        assert follower.light.trust == genesis_checkpoint(servers[0].chain.genesis)


@pytest.mark.parametrize("liar", range(4))
async def test_a_server_that_holds_news_back_is_outvoted_by_f_plus_1(liar):
    """One old answer among f + 1 does not keep the client in the past."""
    async with feeder() as (follower, servers, _):
        old = proofs.encode(proofs.Step(Prover(servers[0].chain.store).anchor(1)))
        servers[liar].change = lambda q, raw: old if q["kind"] == "anchor" else raw
        await follower.follow()
        assert follower.light.trust.height == servers[0].chain.store.height


async def test_a_header_is_not_confirmed_by_another_height():
    async with feeder() as (follower, servers, _):
        old = proofs.encode(proofs.Step(Prover(servers[0].chain.store).anchor(1)))
        for server in servers:
            server.change = lambda q, raw: old if q["key"].startswith("at/") else raw
        assert not await follower.follow()
        assert follower.light.trust.height == servers[0].chain.store.height


async def test_an_answer_counts_only_from_the_validator_that_was_asked():
    async with feeder() as (follower, servers, _):
        chain = servers[0].chain
        topic = topics.build(chain.genesis.market, topics.SYNC_RSP, ME.id)

        async def butt_in(message):
            question = decode(message.payload)
            said = {"reqId": question["reqId"], "kind": question["kind"], "value": ""}
            if question["to"] != servers[1].key.id:
                await servers[1].bus.publish(
                    topic, sign_message(said, servers[1].key, chain.chain_id)
                )

        servers[1].bus._handlers.insert(
            0, (topics.build(chain.genesis.market, topics.SYNC_REQ, "+"), butt_in)
        )
        servers[1].silent = True
        hub = servers[1].bus.hub
        hub.buses.remove(servers[1].bus)
        hub.buses.insert(0, servers[1].bus)  # it hears first, so it speaks first
        for _ in range(4):
            assert (await follower.prove(ROW)).value is not None


async def test_two_validators_that_show_different_final_blocks_are_evidence():
    async with feeder() as (follower, servers, _):
        chain = servers[0].chain
        good = Prover(chain.store).anchor(chain.store.height)
        header = msgspec.structs.replace(good.header, state_root=b"x" * 32)
        votes = [
            types.make_vote(VALIDATORS[i], chain.chain_id, i, header.epoch, header.view,
                            types.VoteKind.FINALIZE, types.header_hash(header))
            for i in (1, 2, 3)
        ]  # fmt: skip
        bad = proofs.Anchor(header, types.Finality(types.make_certificate(votes)))
        for liar in servers[:2]:
            liar.change = lambda _q, _raw: proofs.encode(proofs.Step(bad))
        with pytest.raises(ConflictError) as caught:
            await follower.follow()
        assert set(caught.value.conflict.guilty) == {VALIDATORS[2].id, VALIDATORS[3].id}


async def test_it_stops_when_it_was_away_too_long():
    async with feeder() as (follower, _, clock):
        clock.move_to(START_MS + 15 * 24 * 3600 * 1000)
        with pytest.raises(TrustExpiredError):
            await follower.follow()
        with pytest.raises(TrustExpiredError):
            await follower.prove(ROW)


async def test_its_place_is_in_the_checkpoint_file_and_it_goes_on_from_there(tmp_path):
    file = tmp_path / "checkpoint.json"
    async with feeder() as (follower, _, _clock):
        running = asyncio.create_task(follower.run(file))
        async with asyncio.timeout(PATIENCE_S):
            while not file.exists():
                await asyncio.sleep(0.01)
        running.cancel()
        assert read_checkpoint(file) == follower.light.trust
        assert json.loads(file.read_bytes())["height"] == follower.light.trust.height


async def test_words_of_others_on_its_lane_are_not_taken_for_answers():
    async with feeder() as (follower, servers, _):
        for server in servers[:3]:
            server.silent = True
        stranger = key("stranger")
        said = {"reqId": "x", "kind": "proof", "value": ""}
        topic = topics.build(servers[0].chain.genesis.market, topics.SYNC_RSP, ME.id)
        for raw in (
            b"\x92\xa6blocks\x90",
            b"{",
            encode(said),
            sign_message(said, stranger, servers[0].chain.chain_id),
            sign_message({"reqId": 7, "value": []}, servers[1].key, servers[0].chain.chain_id),
        ):
            await servers[1].bus.publish(topic, raw)
        assert (await follower.prove(ROW)).value is not None


@pytest.mark.parametrize("asked", ["", "at/", "at/-1", "at/1e3", "next/1", "next/1/00", "x" * 300])
def test_a_question_that_is_none_is_refused_by_name(asked):
    chain = Chain()
    with pytest.raises(MalformedError):
        answer_anchor(chain.store, asked)


@pytest.mark.parametrize("asked", [RECEIPT, INCLUSION + "00", RECEIPT + "x" * 64, "x" * 257])
def test_a_proof_of_nothing_is_refused_by_name(asked):
    chain = Chain()
    with pytest.raises(MalformedError):
        answer_proof(chain.store, chain.ledger, asked)


def test_what_cannot_be_proved_now_is_answered_with_nothing():
    chain = Chain()
    for asked in (ROW, RECEIPT + "00" * 32, INCLUSION + "00" * 32):
        assert answer_proof(chain.store, chain.ledger, asked) == b""
    assert answer_anchor(chain.store, "at/7") == b""
    assert answer_anchor(chain.store, "next/0/" + "00" * 32) == b""
