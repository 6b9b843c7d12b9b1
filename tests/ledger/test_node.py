"""What a node must withstand, on four real nodes in one process: each test is a way to stop it."""

import asyncio
import contextlib
import math
import shutil
import sqlite3
import time
from unittest import mock

import msgspec
import pytest
from msgspec.structs import replace
from support import chain_builder
from support.chain_builder import FIRST_SLOT, SUPERVISOR, asset, bid, key, register, slot_ms
from support.nodes import HubBus, feeder
from support.patience import PATIENCE_S

from ledger import node as node_module
from ledger import protocol
from ledger.fetch import (
    MAX_ANSWER_BYTES,
    Fetcher,
    _Block,
    _Blocks,
    _Run,
    answer_blocks,
    answer_bodies,
)
from ledger.judging import Judgement, Verdict
from ledger.node import Node
from ledger.snapshots import Snapshots
from ledger.types import (
    ZERO_HASH,
    Finality,
    Proposal,
    ValidatorSet,
    Vote,
    VoteKind,
    decode,
    encode,
    header_hash,
    make_vote,
)
from runtime.bus import MAX_PAYLOAD_BYTES
from runtime.metrics import refusals
from wire import certificates, topics
from wire.certificates import ValidatorLicence
from wire.errors import MalformedError, Refusal
from wire.keys import to_text

ANN, BOB = key("ann"), key("bob")


async def registered(market, *homes):
    """Register homes; each has used nonce 0."""
    txs = [market.chain.tx(home, register(home), nonce=0) for home in homes]
    market.send(*txs)
    await market.executed(*txs)


def held(market, tx):
    """True when every node's mempool has it; a validator's own transactions may be there too."""
    return all(node.mempool.get(tx.txid) is not None for node in market.nodes)


def held_anywhere(market, tx):
    """True when some node's mempool has it."""
    return any(node.mempool.get(tx.txid) is not None for node in market.nodes)


def renewal(market, home, nonce, **more):
    """A transaction that is good for nothing but its nonce."""
    return market.chain.tx(home, register(home), nonce=nonce, **more)


def heavy(market, nonce):
    """A transaction of about 6 kB from the supervisor."""
    start = FIRST_SLOT + 10 + nonce
    assets = [asset(ANN, "production", 1, start, start + 300) for _ in range(64)]
    return market.chain.tx(SUPERVISOR, *assets, nonce=nonce)


# --- Transactions that could stop the chain -------------------------------------------------------


async def test_a_transaction_that_expires_in_every_mempool_does_not_stop_the_chain(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN, BOB)
        late = renewal(market, ANN, 2, expires_slot=FIRST_SLOT)  # waits for nonce 1
        market.send(late)
        await market.until(lambda: held(market, late))
        market.clock.move_to(slot_ms(FIRST_SLOT + 1) + 5)
        others = renewal(market, ANN, 1), renewal(market, BOB, 1)
        market.send(*others)
        await market.executed(*others)
        # it is dropped, and its nonce is free for another
        await market.until(lambda: not held_anywhere(market, late))
        again = renewal(market, ANN, 2)
        market.send(again)
        await market.executed(again)


async def test_two_transactions_with_one_nonce_shown_to_different_nodes_cost_nobody_else(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN, BOB)
        one, other = (
            renewal(market, ANN, 1),
            market.chain.tx(ANN, bid("buy", FIRST_SLOT + 2, 1, 1), nonce=1),
        )
        buses = [node.bus for node in market.nodes]
        market.hub.carries = lambda _from, to, topic: (
            not topic.endswith(f"tx/{ANN.id}") or (to in buses and buses.index(to) % 2 == seen)
        )
        for seen, tx in enumerate((one, other)):  # noqa: B007
            market.send(tx)
            await asyncio.sleep(0.01)
        market.hub.carries = lambda *_: True
        honest = [renewal(market, BOB, nonce) for nonce in range(1, 6)]
        for tx in honest:
            market.send(tx)
            await asyncio.sleep(0.05)
        await market.executed(*honest)
        await market.until(lambda: all(n.ledger.next_nonce(ANN.id) == 2 for n in market.nodes))
        roots = {node.ledger.state_root(min(market.heights)) for node in market.nodes}
        assert len(roots) == 1


async def test_a_transaction_on_anothers_topic_is_refused_by_name(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        tx = renewal(market, ANN, 1)
        before = refusals("mempool").get(Refusal.BAD_TOPIC.value, 0)
        topic = topics.build(market.genesis.market, topics.TX, BOB.id)
        HubBus(market.hub).publish_soon(topic, tx.raw)
        await market.until(
            lambda: refusals("mempool").get(Refusal.BAD_TOPIC.value, 0) == before + 4
        )
        assert not held_anywhere(market, tx)


# --- Errors ---------------------------------------------------------------------------------------


async def test_a_node_that_cannot_write_stops_and_goes_on_when_it_is_started_again(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        broken = market.nodes[3]
        full = sqlite3.OperationalError("database or disk is full")
        with mock.patch.object(broken.store, "write_block", side_effect=full):
            tx = renewal(market, ANN, 1)
            market.send(tx)
            with pytest.raises(sqlite3.OperationalError):
                await asyncio.wait_for(asyncio.shield(market.tasks[3]), PATIENCE_S)
        await market.executed(tx)
        assert broken.executed_height < market.nodes[0].executed_height
        market.start(3)
        last = renewal(market, ANN, 2)
        market.send(last)
        await market.executed(tx, last)


async def test_a_body_that_comes_late_is_fetched_and_an_error_then_stops_the_node_too(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        deaf = market.nodes[3]
        market.hub.carries = lambda _from, to, topic: not (to is deaf.bus and "/tx/" in topic)
        tx = renewal(market, ANN, 1)
        market.send(tx)
        await market.executed(tx)
        full = sqlite3.OperationalError("database or disk is full")
        with mock.patch.object(deaf.store, "write_block", side_effect=full):
            market.send(renewal(market, ANN, 2))
            with pytest.raises(sqlite3.OperationalError):
                await asyncio.wait_for(asyncio.shield(market.tasks[3]), PATIENCE_S)


# --- Catching up ----------------------------------------------------------------------------------


async def test_a_node_catches_up_over_blocks_larger_than_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr("ledger.mempool.SENDER_OPERATIONS", 2_048)  # one sender is enough here
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        await market.stop(3)
        # no leader takes anything until all are there, so that they come into one block
        wave = [heavy(market, nonce) for nonce in range(60)]
        size = sum(len(tx.raw) for tx in wave)
        assert size > 3 * MAX_PAYLOAD_BYTES
        market.send(*reversed(wave))
        await market.executed(*wave, timeout_s=PATIENCE_S)
        store = market.nodes[0].store
        blocks = [store.get_block(h) for h in range(1, market.nodes[0].executed_height + 1)]
        heaviest = max(sum(len(store.get_body(t)) for t in block.txids) for block in blocks)
        assert heaviest > MAX_PAYLOAD_BYTES, "the test makes no block that is too large"
        assert market.hub.too_big == []
        market.start(3)
        await market.executed(*wave, timeout_s=PATIENCE_S)
        assert market.nodes[3].ledger.state_root(market.heights[3]) == market.nodes[
            0
        ].ledger.state_root(market.heights[3])


async def test_an_answer_always_fits_into_a_message(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        wave = [heavy(market, nonce) for nonce in range(40)]
        market.send(*reversed(wave))
        await market.executed(*wave, timeout_s=PATIENCE_S)
        node = market.nodes[0]
        for height in range(node.executed_height):
            answer = answer_blocks(node.store, str(height))
            assert len(answer) < MAX_PAYLOAD_BYTES
        ids = ",".join(tx.txid.hex() for tx in wave)
        assert len(answer_bodies(node.mempool, node.store, ids)) > MAX_ANSWER_BYTES / 2
        assert len(answer_bodies(node.mempool, node.store, ids)) < MAX_PAYLOAD_BYTES


async def test_a_liar_among_those_asked_only_costs_time(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        await market.stop(3)
        txs = [renewal(market, ANN, nonce) for nonce in range(1, 8)]
        for tx in txs:
            market.send(tx)
            await asyncio.sleep(0.03)
        await market.executed(*txs)

        def lies(store, key):
            good = msgspec.msgpack.decode(answer_blocks(store, key) or b"\x92\xa6blocks\x90")
            for block in good[1]:
                block[3] = [b"nonsense", *block[3]]  # a bad body among good ones
            if len(good[1]) > 1:
                good[1][1][1] = [ZERO_HASH]  # other transactions than the header's
            return msgspec.msgpack.encode(good)

        with mock.patch("ledger.publish.answer_blocks", lies):
            market.start(3)
            await market.executed(*txs, timeout_s=PATIENCE_S)


async def test_kept_bodies_come_back_whatever_their_order(tmp_path):
    async with feeder(tmp_path) as market:
        home = key("home")
        first = renewal(market, home, 0)
        orders = (bid("buy", FIRST_SLOT + 2, 1, price) for price in range(1, 1000))
        later = (market.chain.tx(home, order, nonce=1) for order in orders)
        second = next(tx for tx in later if tx.txid < first.txid)
        await market.stop(3)
        node = market.start(3)
        await asyncio.sleep(0.05)
        node.store.keep_bodies([(tx.txid, tx.raw) for tx in (second, first)])
        await market.stop(3)
        node = market.start(3)
        await asyncio.sleep(0.05)
        assert node.mempool.missing([first.txid, second.txid]) == []


# --- Views ----------------------------------------------------------------------------------------


async def test_after_hundreds_of_failed_views_the_chain_goes_on(tmp_path, monkeypatch):
    """As when a release finds every block wrong, until it is mended; one node missed it all."""
    monkeypatch.setattr(ValidatorSet, "inline_views", 8)  # as if certificates were large
    async with feeder(tmp_path, delta0_ms=10) as market:
        await registered(market, ANN)
        away = market.nodes[3].bus
        market.hub.carries = lambda sender, to, _topic: away not in (sender, to)

        def never(*_args):
            return Judgement(Verdict.INVALID, "a mistake of ours")

        tx = renewal(market, ANN, 1)
        with mock.patch.object(node_module, "judge", never):
            market.send(tx)
            await market.until(lambda: market.nodes[0]._core.view > 40)
        # now its vote is needed
        gone = market.nodes[0].bus
        market.hub.carries = lambda sender, to, _topic: gone not in (sender, to)
        others = market.nodes[1:]
        await market.until(lambda: all(n.ledger.is_executed(tx.txid) for n in others))


# --- The vote log ---------------------------------------------------------------------------------


async def test_a_validator_that_lost_its_vote_log_watches_until_the_next_epoch(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        await market.stop(3)
        (tmp_path / "node-3" / "votes.wal").unlink()
        lost = market.start(3)
        said = []
        publish = lost.bus.publish_soon
        lost.bus.publish_soon = lambda topic, payload, **more: (
            said.append(topic.split("/")[3:5]), publish(topic, payload, **more)
        )  # fmt: skip
        tx = renewal(market, ANN, 1)
        market.send(tx)
        await market.executed(tx)
        # a second restart does not make it forget that its log is young
        await market.stop(3)
        watching = market.start(3)
        after = renewal(market, ANN, 2)
        market.send(after)
        await market.executed(after)
        assert not [leaf for _, leaf in said if leaf in ("vote", "prop")], "it voted"
        assert watching._core.me is None

        market.clock.move_to(slot_ms(FIRST_SLOT + 1) + 1)
        sealing = renewal(market, ANN, 3)
        market.send(sealing)
        await market.executed(sealing)
        await market.until(lambda: watching._core.me is not None)
        await market.stop(0)  # its votes are needed now
        last = renewal(market, ANN, 4)
        market.send(last)
        await market.executed(last)


async def test_a_founders_key_in_a_new_folder_watches_until_the_next_epoch(tmp_path):
    """It may have voted in this epoch from the folder that is gone."""
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        await market.stop(3)
        shutil.rmtree(tmp_path / "node-3")
        for restarts in range(2):
            rebuilt = market.start(3)
            tx = renewal(market, ANN, 1 + restarts)
            market.send(tx)
            await market.executed(tx)
            assert rebuilt._core.me is None
            await market.stop(3)
        rebuilt = market.start(3)
        market.clock.move_to(slot_ms(FIRST_SLOT + 1) + 1)
        sealing = renewal(market, ANN, 3)
        market.send(sealing)
        await market.executed(sealing)
        await market.until(lambda: rebuilt._core.me == 3)


async def test_snapshots_are_taken_and_old_epochs_dropped_while_the_node_runs(tmp_path):
    async with feeder(tmp_path, slot_length_s=21_600) as market:  # a snapshot every four epochs
        await market.stop(3)
        keeping = market.start(3, keep_epochs=2)
        await registered(market, ANN)
        first = market.genesis.grid.slot_at(market.clock.now_ms())
        for number in range(1, 14):
            market.clock.move_to(market.genesis.grid.start_ms(first + number) + 1)
            tx = renewal(market, ANN, number, expires_slot=10**6)
            market.send(tx)
            await market.executed(tx)
        heights = Snapshots.beside(keeping.store).heights()
        assert len(heights) == 2
        await market.until(lambda: keeping.store.floor > 1)
        assert market.nodes[0].store.floor <= 1
        assert keeping.ledger.state_root(market.heights[3]) == market.nodes[0].ledger.state_root(
            market.heights[3]
        )


async def test_a_node_that_only_follows_never_votes_whatever_seat_its_key_has(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        await market.stop(3)
        said = []
        bus = HubBus(market.hub)
        publish = bus.publish_soon
        bus.publish_soon = lambda topic, payload, **more: (
            said.append(topic), publish(topic, payload, **more)
        )  # fmt: skip
        key = chain_builder.VALIDATORS[3]
        follower = Node(market.genesis, tmp_path / "node-3", key, bus, market.clock, votes=False)
        task = asyncio.create_task(follower.run())
        tx = renewal(market, ANN, 1)
        market.send(tx)
        await market.until(lambda: follower.ledger.is_executed(tx.txid))
        task.cancel()
        assert not [topic for topic in said if "consensus/vote" in topic or "/tx/" in topic]


# --- What a review proved -------------------------------------------------------------------------


async def test_a_refused_registration_sent_twice_does_not_stop_the_chain(tmp_path):
    """UNKNOWN_SENDER leaves the nonce unused: the same transaction came into a second block."""
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        ended = market.chain.tx(
            BOB, register(BOB, start_slot=FIRST_SLOT - 9, end_slot=FIRST_SLOT - 1), nonce=0
        )
        market.send(ended)
        await market.executed(ended)
        market.send(ended)
        after = renewal(market, ANN, 1)
        market.send(after)
        await market.executed(after)
        assert all(not task.done() for task in market.tasks)
        assert not held_anywhere(market, ended) and not held_anywhere(market, after)


async def test_a_licence_that_has_ended_is_not_put_again_and_again(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        late = market.key(4)
        licence = ValidatorLicence(
            validator=late.id, key=to_text(late.public), controller="home-4",
            not_before_ms=0, not_after_ms=slot_ms(FIRST_SLOT) + 2_000,
        )  # fmt: skip
        folder = tmp_path / "node-4"
        folder.mkdir()
        sealed = certificates.seal(licence, chain_builder.ISSUER, chain_builder.MARKET)
        (folder / "licence.json").write_text(certificates.dump_text(sealed))
        market.clock.move_to(slot_ms(FIRST_SLOT) + 3_000)
        said = []
        node = market.start(4)
        publish = node.bus.publish_soon
        node.bus.publish_soon = lambda topic, payload, **more: (
            said.append(topic), publish(topic, payload, **more)
        )  # fmt: skip
        await asyncio.sleep(2.5)
        assert not [topic for topic in said if "/tx/" in topic] and not market.tasks[4].done()


async def test_holes_in_the_nullifications_of_everybody_are_filled(tmp_path, monkeypatch):
    """Each node missed other views, none lately: nobody could propose, and nobody asked."""
    monkeypatch.setattr(ValidatorSet, "inline_views", 2)
    async with feeder(tmp_path, delta0_ms=10) as market:
        await registered(market, ANN)
        buses = [node.bus for node in market.nodes]

        def without(away):
            def carries(sender, to, topic):
                gone = away is not None and buses[away] in (sender, to)
                return not gone and not topic.endswith("consensus/prop")

            return carries

        tx = renewal(market, ANN, 1)
        market.hub.carries = without(None)
        market.send(tx)
        for away in range(4):
            market.hub.carries = without(away)
            start = max(node.view for node in market.nodes)
            await market.until(lambda: max(n.view for n in market.nodes) > start + 14, 30)  # noqa: B023
            market.hub.carries = without(None)
            await market.until(lambda: len({n.view for n in market.nodes}) == 1)
        market.hub.carries = lambda *_: True
        await market.executed(tx, timeout_s=PATIENCE_S)


async def test_a_node_catches_up_over_blocks_whose_proof_is_that_of_a_later_one(
    tmp_path, monkeypatch
):
    """Finality lagged by more blocks than lie on a proof's path; a node was away meanwhile."""
    monkeypatch.setattr(protocol, "KEPT_PATH", 3)
    async with feeder(tmp_path, delta0_ms=50) as market:
        await registered(market, ANN)
        await market.stop(3)
        deliver, decided_from = market.hub.deliver, math.inf

        def undecided(sender, topic, payload):
            is_vote = topics.parse(topic).kind == topics.CONSENSUS_VOTE
            vote = decode(Vote, payload) if is_vote else None
            if vote is None or vote.kind != VoteKind.FINALIZE or vote.view >= decided_from:
                deliver(sender, topic, payload)

        market.hub.deliver = undecided
        tx = renewal(market, ANN, 1)
        market.send(tx)
        await market.until(
            lambda: all(len(list(n._core.tree.blocks())) > 10 for n in market.nodes[:3])
        )
        decided_from = max(node.view for node in market.nodes)
        await market.executed(tx)
        store = market.nodes[0].store
        blocks = [store.get_block(h) for h in range(1, market.nodes[0].executed_height + 1)]
        assert any(not block.certificate for block in blocks)
        market.start(3)
        await market.executed(tx)
        assert market.nodes[3].store.get_block(blocks[-1].height).hash == blocks[-1].hash
        last = renewal(market, ANN, 2)
        market.send(last)
        await market.executed(tx, last)


@contextlib.contextmanager
def finality_of_seals_is_lost(market):
    """No FINALIZE for a seal arrives: that of a block above it finalises the seal."""
    deliver, seals = market.hub.deliver, set()

    def lossy(sender, topic, payload):
        kind = topics.parse(topic).kind
        if kind == topics.CONSENSUS_PROPOSAL:
            header = decode(Proposal, payload).header
            seals.update([header_hash(header)] if header.seal else [])
        vote = decode(Vote, payload) if kind == topics.CONSENSUS_VOTE else None
        if vote is None or vote.kind != VoteKind.FINALIZE or vote.block_hash not in seals:
            deliver(sender, topic, payload)

    market.hub.deliver = lossy
    yield
    market.hub.deliver = deliver


async def test_what_a_seal_has_dropped_is_not_taken_for_the_next_block(tmp_path):
    """It is final and lies on top of the seal, but its epoch is over: this once halted a feeder."""
    async with feeder(tmp_path, delta0_ms=50) as market:
        await registered(market, ANN)
        with finality_of_seals_is_lost(market):
            market.clock.move_to(slot_ms(FIRST_SLOT + 1, 1))
            first = renewal(market, ANN, 1)
            market.send(first)
            await market.executed(first)
            await market.until(lambda: all(node.epoch.epoch == 1 for node in market.nodes))
        seal = market.nodes[0].store.tip
        assert seal.header.seal and {n.executed_height for n in market.nodes} == {seal.height}
        finality = decode(Finality, seal.certificate)
        dropped, *rest = finality.path
        own = encode(Finality(finality.certificate, tuple(rest)))
        last = encode(Finality(finality.certificate))
        evil = (
            _Blocks([_Block(encode(dropped), [], own, [])]),
            _Run([encode(dropped), *map(encode, rest)], last),
            _Blocks([_Block(encode(dropped), [], b"", [])]),
        )
        before, liar = refusals("fetch").get("MALFORMED", 0), HubBus(market.hub)
        for node in market.nodes[:3]:
            topic = topics.build(market.genesis.market, topics.SYNC_RSP, node.key.id)
            for answer in evil:
                liar.publish_soon(topic, msgspec.msgpack.encode(answer))
        await market.until(lambda: refusals("fetch").get("MALFORMED", 0) >= before + 6)
        assert {node.executed_height for node in market.nodes} == {seal.height}
        second = renewal(market, ANN, 2)
        market.send(second)
        await market.executed(second)


async def test_leaders_wait_while_finality_lags(tmp_path):
    """Else blocks that nothing finalises would outgrow what can be stored and sent."""
    async with feeder(tmp_path, delta0_ms=50) as market:
        await registered(market, ANN)
        deliver = market.hub.deliver

        def undecided(sender, topic, payload):
            is_vote = topics.parse(topic).kind == topics.CONSENSUS_VOTE
            if not is_vote or decode(Vote, payload).kind != VoteKind.FINALIZE:
                deliver(sender, topic, payload)

        market.hub.deliver = undecided
        market.clock.move_to(slot_ms(FIRST_SLOT + 1, 1))  # above a seal come empty blocks at once
        first = renewal(market, ANN, 1)
        market.send(first)
        began, began_s = max(node.view for node in market.nodes), time.monotonic()
        await market.until(lambda: max(node.view for node in market.nodes) >= began + 20)
        took_s = time.monotonic() - began_s
        assert took_s > 0.5, "each waits 25 ms at least; at the speed of the network it takes 0.2 s"
        market.hub.deliver = deliver
        await market.executed(first)


async def test_headers_that_are_not_final_prove_no_block(tmp_path):
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        node = market.nodes[0]
        tip = node.store.tip
        after = replace(tip.header, height=tip.height + 1, parent_hash=tip.hash)
        finality = decode(Finality, tip.certificate)
        for headers, why in (([tip.header], "do not follow"), ([after], "are not final")):
            with pytest.raises(MalformedError, match=why):
                node._fetcher._use_run(headers, finality)
        asking = Fetcher(node)
        asking._use_blocks([_Block(encode(after), [], b"", [])])
        assert asking._run_wanted
        assert asking._wake.is_set(), "it would sleep on it"


async def test_one_liar_cannot_keep_the_founders_from_beginning(tmp_path):
    """It speaks of an epoch to come while they listen; unproven words count for nothing."""
    async with feeder(tmp_path) as market:
        liar = chain_builder.VALIDATORS[3]
        await market.stop(3)
        vote = make_vote(liar, market.genesis.chain_id, 3, 7, 1, VoteKind.NULLIFY)
        topic = topics.build(market.genesis.market, topics.CONSENSUS_VOTE, liar.id)
        bus = HubBus(market.hub)
        for _ in range(10):
            bus.publish_soon(topic, encode(vote))
            await asyncio.sleep(0.02)
        await market.until(lambda: all(n._core.me is not None for n in market.nodes[:3]))
        await registered(market, ANN)


async def test_listening_begins_when_the_broker_is_there(tmp_path):
    """A founder's key in a new folder, whose broker is slow to answer, must not speak first."""
    async with feeder(tmp_path) as market:
        await registered(market, ANN)
        await market.stop(3)
        shutil.rmtree(tmp_path / "node-3")
        (tmp_path / "node-3").mkdir()
        bus, there = HubBus(market.hub), asyncio.Event()
        bus.wait_connected = lambda _timeout_s=None: there.wait()
        market.hub.carries = lambda sender, to, _: there.is_set() or bus not in (sender, to)
        key = chain_builder.VALIDATORS[3]
        node = Node(market.genesis, tmp_path / "node-3", key, bus, market.clock)
        task = asyncio.create_task(node.run())
        await asyncio.sleep(0.8)
        assert node._core.me is None, "it stopped listening before it could hear"
        there.set()
        await market.until(lambda: node.executed_height > 0 and not node._settling)
        assert node._core.me is None
        task.cancel()
