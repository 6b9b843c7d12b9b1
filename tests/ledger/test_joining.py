"""A new node begins at a snapshot of its peers, whatever one of them says, and goes on."""

import asyncio
import contextlib
import shutil
from types import SimpleNamespace

import msgspec
import pytest
from support.chain_builder import (
    FIRST_SLOT,
    OTHERS,
    START_MS,
    SUPERVISOR,
    VALIDATORS,
    deposit,
    key,
    make_genesis,
    register,
    slot_ms,
)
from support.nodes import HubBus, MovableClock, feeder

from ledger import joining, light_sync
from ledger.checkpoint import genesis_checkpoint
from ledger.joining import STAGE, CannotJoinError, is_empty, join
from ledger.light import DAY_MS
from ledger.node import Node
from ledger.prover import newest_checkpoint
from ledger.snapshot import chunk_hash, cut, pack, read_offer, split
from ledger.snapshots import FOLDER, Snapshots, SnapshotTaker
from ledger.statements import sign_message
from ledger.store import FILE_NAME, LedgerStore
from runtime.metrics import refusals
from wire.errors import ConfigError
from wire.keys import from_text, to_text

NEWCOMER = OTHERS[0]


@contextlib.asynccontextmanager
async def chain_with_snapshots(folder, homes=4):
    """Four nodes in their third epoch, with two snapshots each of more than one chunk."""
    async with feeder(folder) as running:
        takers = [take_snapshots(node) for node in running.nodes]
        signers = [key(f"home {number}") for number in range(homes)]
        txs = [running.chain.tx(home, register(home)) for home in signers]
        running.send(*txs)
        await running.executed(*txs)
        for number in (1, 2):
            await turn_epoch(running, number)
        try:
            yield running
        finally:
            for taker in takers:
                taker.close()


def take_snapshots(node):
    """At each seal, as a running node does."""
    taker, execute = SnapshotTaker(node.store, 1), node.execute

    def execute_and_take(header, txids, finality):
        execute(header, txids, finality)
        taker.executed(header)

    node.execute = execute_and_take
    return taker


async def turn_epoch(running, number):
    """Go to the next slot; a block of the new epoch names the state after the seal."""
    running.clock.move_to(slot_ms(FIRST_SLOT + number, 1))
    await make_block(running)
    await running.until(lambda: all(node.ledger.epoch >= number for node in running.nodes))
    await make_block(running)


async def make_block(running):
    tx = running.chain.tx(SUPERVISOR, deposit(key("ann"), 1))
    running.send(tx)
    await running.executed(tx)


async def join_as(running, folder, who=NEWCOMER, **more):
    folder.mkdir(exist_ok=True)
    bus = HubBus(running.hub)
    return await join(folder, running.genesis, bus, running.clock, who.id, every_epochs=1, **more)


def answer_falsely(node, change):
    """Let a validator answer `kind`s with `change(kind, bytes)`, rightly signed."""
    publisher = node._publisher
    answer = publisher._answer

    def lie(request):
        raw = answer(request)
        if request["kind"] not in ("snapshot", "chunk") or raw is None:
            return raw
        said = msgspec.json.decode(raw)
        value = change(request["kind"], from_text(said["value"]))
        statement = {"reqId": said["reqId"], "kind": said["kind"], "value": to_text(value)}
        return sign_message(statement, node.key, node.genesis.chain_id)

    publisher._answer = lie


def spoil_chunks(kind, raw):
    return raw[:-1] + b"\0" if kind == "chunk" else raw


def spoil_manifest(kind, raw):
    if kind == "chunk":
        return raw
    offer = read_offer(raw)
    hashes = (bytes(32), *offer.manifest.hashes[1:])
    return pack(
        msgspec.structs.replace(
            offer, manifest=msgspec.structs.replace(offer.manifest, hashes=hashes)
        )
    )


def spoil_accounts(node, value):
    """Offer a snapshot whose accounts are no rows; its hashes are right."""
    forged = {}

    def spoil(kind, raw):
        if kind == "chunk":
            return forged.get(raw, raw)
        offer = read_offer(raw)
        own = list(Snapshots.beside(node.store).chunks(offer.manifest.height))
        preamble, rows = split(own)
        changed = ((key, value if key.startswith("account/") else row) for key, row in rows)
        chunks = list(cut(preamble, changed))
        forged.update(zip(own, chunks, strict=False))
        manifest = msgspec.structs.replace(
            offer.manifest,
            size_bytes=sum(map(len, chunks)),
            hashes=tuple(map(chunk_hash, chunks)),
        )
        return pack(msgspec.structs.replace(offer, manifest=manifest))

    answer_falsely(node, spoil)


def offer_nothing(kind, raw):
    return b"" if kind == "snapshot" else raw


async def test_a_fifth_node_joins_while_blocks_are_made_and_one_peer_lies(tmp_path):
    async with chain_with_snapshots(tmp_path, homes=300) as running:
        answer_falsely(running.nodes[3], spoil_chunks)
        before = refusals("ledger.light").get("BAD_CERTIFICATE", 0)

        async def make_blocks():
            while True:
                await make_block(running)
                await asyncio.sleep(0.05)

        making = asyncio.create_task(make_blocks())
        folder = tmp_path / "newcomer"
        joined = await join_as(running, folder)
        assert joined.rows > 900
        assert joined.size_bytes > 2 * 64 * 1024
        assert joined.validators == 4
        assert sum(refusals("ledger.light").values()) > before  # the liar was found out
        node = Node(running.genesis, folder, NEWCOMER, HubBus(running.hub), running.clock)
        assert node.store.floor == joined.height == node.executed_height
        running.nodes.append(node)
        running.tasks.append(asyncio.create_task(node.run()))
        await running.until(lambda: node.executed_height > joined.height + 3)
        await running.until(lambda: node.executed_height == max(running.heights))
        making.cancel()
        height = node.executed_height
        assert node.ledger.state_root(height) == running.nodes[0].ledger.state_root(height)
        await running.stop(4)
        running.nodes.pop()
        running.tasks.pop()


async def test_it_says_the_same_of_events_as_everybody_else(tmp_path):
    """Its statements about events count, for they name the same height before."""
    async with chain_with_snapshots(tmp_path) as running:
        folder = tmp_path / "newcomer"
        joined = await join_as(running, folder)
        with contextlib.closing(LedgerStore.in_folder(folder)) as store:
            for contract in ("market", "wallet", "poe"):
                found = store.previous_event_height(contract, joined.height + 1)
                wanted = running.nodes[0].store
                assert found == wanted.previous_event_height(contract, joined.height + 1)


async def test_a_validator_that_joined_watches_until_the_next_epoch(tmp_path):
    """Its old log is lost, so it may have voted: it must not contradict itself."""
    async with chain_with_snapshots(tmp_path) as running:
        await running.stop(3)
        shutil.rmtree(tmp_path / "node-3")
        assert await join_as(running, tmp_path / "node-3", VALIDATORS[3]) is not None
        node = running.start(3)
        await asyncio.sleep(0)
        assert node._born.fresh is False
        assert node._seat(node.epochs.current()) is None
        await turn_epoch(running, 3)
        await turn_epoch(running, 4)
        assert node._seat(node._epoch) == 3


async def test_a_manifest_that_only_a_liar_offers_costs_no_more_than_time(tmp_path):
    async with chain_with_snapshots(tmp_path) as running:
        answer_falsely(running.nodes[0], spoil_manifest)
        joined = await join_as(running, tmp_path / "newcomer")
        assert joined.validators == 3


async def test_when_all_lie_it_does_not_join(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "CHUNK_ROUNDS", 1)
    async with chain_with_snapshots(tmp_path) as running:
        for node in running.nodes:
            answer_falsely(node, spoil_chunks)
        folder = tmp_path / "newcomer"
        with pytest.raises(CannotJoinError, match="none could be fetched"):
            await join_as(running, folder)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", [b"{", b"5", b'{"nonce":[]}', b'{"nonce":1}', b"\xff"])
async def test_rows_that_are_none_cost_no_more_than_time(tmp_path, value):
    """The liar's snapshot is the newest, so it is tried first."""
    async with chain_with_snapshots(tmp_path) as running:
        liar, honest, *others = running.nodes
        spoil_accounts(liar, value)
        for node in others:
            answer_falsely(node, offer_nothing)
        snapshots = Snapshots.beside(honest.store)
        older, newest = snapshots.heights()
        (snapshots.folder / f"{newest}.manifest").unlink()
        joined = await join_as(running, tmp_path / "newcomer")
        assert (joined.height, joined.validators) == (older, 1)


@pytest.mark.parametrize("value", [b"{", b"5"])
async def test_when_only_rows_that_are_none_are_offered_it_does_not_join(tmp_path, value):
    async with chain_with_snapshots(tmp_path) as running:
        spoil_accounts(running.nodes[0], value)
        for node in running.nodes[1:]:
            answer_falsely(node, offer_nothing)
        folder = tmp_path / "newcomer"
        with pytest.raises(CannotJoinError, match="none could be fetched"):
            await join_as(running, folder)
        assert list(folder.iterdir()) == []


async def test_killed_in_the_middle_it_begins_again_cleanly(tmp_path, monkeypatch):
    """A power cut leaves what was fetched: no chain, and no harm to the next attempt."""
    async with chain_with_snapshots(tmp_path, homes=300) as running:
        folder = tmp_path / "newcomer"
        answers = 0

        def cut_after_two_chunks(sender, receiver, topic):
            nonlocal answers
            if topic.endswith(NEWCOMER.id) and "/rsp/" in topic:
                answers += 1
            return answers < 8 * len(running.hub.buses)  # each is offered to all

        running.hub.carries = cut_after_two_chunks
        with monkeypatch.context() as patch:
            # what a killed process would have done on its way out
            patch.setattr(joining.shutil, "rmtree", lambda *_, **__: None)
            attempt = asyncio.create_task(join_as(running, folder))
            await running.until((folder / STAGE / FOLDER).exists)
            await asyncio.sleep(0.2)
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
        assert list((folder / STAGE / FOLDER).iterdir())
        assert is_empty(folder)
        running.hub.carries = lambda *_: True
        assert await join_as(running, folder) is not None
        assert not (folder / STAGE).exists()
        assert not is_empty(folder)


async def test_killed_before_the_last_step_the_folder_is_still_empty(tmp_path, monkeypatch):
    """The store is moved into place last; snapshots that came before it do no harm."""
    async with chain_with_snapshots(tmp_path) as running:
        folder = tmp_path / "newcomer"

        def place_half(stage, target):
            shutil.copytree(stage / FOLDER, target / FOLDER)
            raise OSError("power cut")

        with monkeypatch.context() as patch:
            patch.setattr(joining, "place", place_half)
            with pytest.raises(OSError, match="power cut"):
                await join_as(running, folder)
        assert is_empty(folder)
        assert await join_as(running, folder) is not None


async def test_a_folder_with_blocks_is_left_alone(tmp_path):
    async with chain_with_snapshots(tmp_path) as running:
        await running.stop(3)
        before = (tmp_path / "node-3" / FILE_NAME).read_bytes()
        assert await join_as(running, tmp_path / "node-3", VALIDATORS[3]) is None
        assert (tmp_path / "node-3" / FILE_NAME).read_bytes() == before


async def test_founders_do_not_wait_for_snapshots_that_cannot_be(tmp_path):
    """Younger than one snapshot interval: nobody is asked."""
    clock = MovableClock()
    clock.move_to(START_MS + DAY_MS - 60_000)
    assert await join(tmp_path, make_genesis(), SimpleNamespace(), clock, NEWCOMER.id) is None


async def test_nobody_there_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(light_sync, "ANSWER_TIMEOUT_S", 0.05)
    async with feeder(tmp_path) as running:
        running.clock.move_to(slot_ms(FIRST_SLOT + 2, 1))
        running.hub.carries = lambda *_: False
        with pytest.raises(CannotJoinError, match="no validator answers"):
            await join_as(running, tmp_path / "newcomer")


async def test_without_a_snapshot_a_node_begins_at_the_genesis(tmp_path):
    async with feeder(tmp_path) as running:
        await turn_epoch(running, 1)
        assert await join_as(running, tmp_path / "newcomer") is None


async def test_an_old_genesis_needs_a_checkpoint(tmp_path):
    async with chain_with_snapshots(tmp_path) as running:
        trust = newest_checkpoint(running.genesis, running.nodes[0].store)
        old = MovableClock()
        old.move_to(START_MS + 15 * DAY_MS)
        running.clock, clock = old, running.clock
        with pytest.raises(ConfigError, match="checkpoint"):
            await join_as(running, tmp_path / "newcomer")
        running.clock = clock
        joined = await join_as(running, tmp_path / "newcomer", trust=trust)
        assert joined is not None
        with contextlib.closing(LedgerStore.in_folder(tmp_path / "newcomer")) as store:
            assert store.joined_at["height"] == trust.height
        assert genesis_checkpoint(running.genesis).height == 0
