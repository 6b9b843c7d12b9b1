"""The light follower on a bus, between validators that answer from a real chain, and liars."""

import asyncio
import json
from types import SimpleNamespace

import msgspec
import pytest
from support.chain_builder import (
    OTHERS,
    START_MS,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    final,
    key,
    make_genesis,
)
from support.light_feeder import ME, ROW, feeder
from support.patience import PATIENCE_S

from ledger import merkle, proofs, types
from ledger.checkpoint import genesis_checkpoint, read_checkpoint
from ledger.joining import Joiner
from ledger.light import ConflictError, TrustExpiredError
from ledger.light_sync import LightFollower, NoProofError
from ledger.prover import INCLUSION, RECEIPT, Prover, answer_anchor, answer_proof
from ledger.statements import sign_message
from ledger.store import BlockRecord, LedgerStore, StoredBlock
from wire import topics
from wire.canonical import decode, encode
from wire.errors import MalformedError
from wire.keys import to_text

CHANGED = [*VALIDATORS[:3], OTHERS[0]]


def set_of(keys):
    return types.ValidatorSet(tuple(k.id for k in keys), tuple(k.public for k in keys))


def changing_chain(tip):
    """Headers only: block 3 is a seal that changes one of the validators."""
    genesis, store = make_genesis(), LedgerStore(":memory:")
    parent = types.genesis_hash(genesis.chain_id)
    for height in range(1, tip + 1):
        seal, keys = height == 3, VALIDATORS if height <= 3 else CHANGED
        header = types.Header(
            chain_id=genesis.chain_id, epoch=int(height > 3), view=height, height=height,
            parent_hash=parent, justify_hash=bytes(32), tx_root=merkle.EMPTY_ROOT, n_tx=0,
            exec_height=height - 1, state_root=bytes(32), receipts_root=bytes(32),
            validators_hash=set_of(keys).hash, schedule_root=bytes(32), time_ms=START_MS + height,
            proposer="", seal=seal, next_validators_hash=set_of(CHANGED).hash if seal else b"",
        )  # fmt: skip
        parent = types.header_hash(header)
        members = [{"id": k.id, "key": to_text(k.public)} for k in CHANGED]
        events = {"poe": [{"event": "validators", "validators": members}]} if seal else {}
        finality = types.encode(final(header, keys).finality)
        block = StoredBlock(
            height, parent, types.encode(header), finality, (), bytes(32), bytes(32)
        )
        store.write_block(BlockRecord(block, [], [], events, {}))
    return SimpleNamespace(genesis=genesis, chain_id=genesis.chain_id, store=store, ledger=None)


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


def dropped_answer(chain):
    """What a liar shows: final, and dropped after the seal."""
    seal = Prover(chain.store).anchor(3).header
    header = msgspec.structs.replace(
        seal, view=4, height=4, seal=False, next_validators_hash=b"", time_ms=seal.time_ms + 1,
        parent_hash=types.header_hash(seal),
    )  # fmt: skip
    return proofs.encode(proofs.Step(final(header, VALIDATORS)))


@pytest.mark.parametrize("liar", range(4))
@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize("tip", [3, 4, 6])
async def test_one_liar_with_a_dropped_header_does_not_stop_a_follower_nor_a_joiner(
    liar, joins, tip, tmp_path
):
    """Who joins asks the second validator first."""
    async with feeder(changing_chain(tip)) as (alone, servers, clock):
        chain = servers[0].chain
        joiner = Joiner(tmp_path, chain.genesis, alone._bus, clock, ME.id)
        await joiner.start()
        follower = joiner._follower if joins else alone
        light = follower.light
        lie = dropped_answer(chain)
        servers[liar].change = lambda q, raw: lie if q["key"].startswith("next/") else raw
        await follower.follow()
        assert light.trust.height == tip
        assert light.trust.validators == set_of(CHANGED)
        if joins:
            assert joiner._light.validators_at(3) == set_of(VALIDATORS)
            assert joiner._light.validators_at(4) == set_of(CHANGED)


async def test_a_chain_that_rests_at_a_change_of_validators_is_followed_and_kept(tmp_path):
    file = tmp_path / "checkpoint.json"
    async with feeder(changing_chain(3)) as (follower, _, clock):
        for _ in range(2):
            assert await follower.follow()
            assert (follower.light.trust.height, follower.light.trust.epoch) == (3, 1)
        again = LightFollower(follower._bus, follower._genesis, clock, ME.id)
        await run_until_kept(again, file)
        assert read_checkpoint(file) == follower.light.trust


async def run_until_kept(follower, file):
    await follower.start()
    running = asyncio.create_task(follower.run(file))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not file.exists():
                await asyncio.sleep(0.01)
    finally:
        running.cancel()


async def test_its_place_is_kept_when_nobody_answers_after_a_part_of_the_way(tmp_path):
    """The seal is taken, and then nobody shows what follows."""
    file = tmp_path / "checkpoint.json"
    async with feeder(changing_chain(6)) as (follower, servers, clock):
        for server in servers:
            server.change = lambda q, raw: raw if q["key"].startswith("next/0/") else b""
        with pytest.raises(NoProofError):
            await follower.follow()
        again = LightFollower(follower._bus, follower._genesis, clock, ME.id)
        await run_until_kept(again, file)
        assert read_checkpoint(file).height == follower.light.trust.height == 3


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
