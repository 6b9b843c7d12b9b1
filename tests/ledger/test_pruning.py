"""A node may drop what is old: little by little, and never what others need."""

import json
import sqlite3
import time
from types import SimpleNamespace

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    OTHERS,
    Chain,
    bid,
    join,
    key,
)
from typer.testing import CliRunner

from ledger import pruning
from ledger.checkpoint import checkpoint_json, genesis_checkpoint
from ledger.cli import app
from ledger.execution import ChainError
from ledger.fetch import answer_blocks
from ledger.genesis import write_genesis
from ledger.joining import place, restore
from ledger.light import LightClient
from ledger.prover import NotProvableError, Prover, answer_anchor
from ledger.pruning import Pruner
from ledger.publish import Publisher
from ledger.snapshot import read_offer
from ledger.snapshots import Snapshots, SnapshotTaker, answer_snapshot
from ledger.store import FILE_NAME, LedgerStore, stored_block
from ledger.verify import verify_folder
from wire.errors import ConfigError

HOMES = [key(f"home {number}") for number in range(6)]
CLOCK = SimpleNamespace(monotonic_s=time.monotonic)
KEEP = 2


def make_chain(folder, epochs=8, *, pruned=True, every=1):
    """Epochs with trade and a change of validators; a snapshot at each seal; then dropped."""
    folder.mkdir(exist_ok=True)
    chain = Chain(LedgerStore.in_folder(folder))
    write_genesis(chain.genesis, folder / "genesis.json")
    taker = SnapshotTaker(chain.store, every)
    chain.settle_in(*HOMES)
    chain.block(chain.ledger.time_ms + 1, chain.tx(OTHERS[0], join(OTHERS[0])))
    for number in range(epochs):
        slot = FIRST_SLOT + 3 + number
        chain.block(
            chain.ledger.time_ms + 1,
            *(chain.tx(home, bid("buy", slot, 10, 100_000)) for home in HOMES),
        )
        chain.seal()
        taker.executed(chain.store.tip.header)
        taker.wait()
    chain.block(chain.ledger.time_ms + 1)
    taker.close()
    if pruned:
        chain.before = dump(chain.store)
        Pruner(chain.store, CLOCK, KEEP).tend(10.0)
    return chain


def dump(store):
    return {name: list(store.raw_rows(name)) for name in ("blocks", "bodies", "events", "state")}


def seals(chain, store_rows):
    return [row for row in store_rows if chain_header(row).seal]


def chain_header(row):
    return stored_block(row).header


def test_only_what_is_old_goes_and_the_state_stays(tmp_path):
    chain = make_chain(tmp_path)
    store, floor = chain.store, chain.store.floor
    assert floor > 5
    after = dump(store)
    assert after["state"] == chain.before["state"]
    assert after["blocks"] == [row for row in chain.before["blocks"] if row[0] > floor]
    assert after["bodies"] == [row for row in chain.before["bodies"] if row[1] > floor]
    assert after["events"] == [row for row in chain.before["events"] if row[1] > floor]
    newest_dropped = max(seals(chain, chain.before["blocks"][:floor]), key=lambda row: row[0])
    assert chain_header(newest_dropped).epoch + KEEP < chain.ledger.epoch


def test_everything_since_the_last_but_one_snapshot_is_kept(tmp_path):
    chain = make_chain(tmp_path, every=3)
    older = Snapshots.beside(chain.store).heights()[0]
    assert chain.store.floor == older - 1
    for height in range(older, chain.store.height + 1):
        assert chain.store.get_block(height) is not None
    answer_blocks(chain.store, str(older))
    assert answer_blocks(chain.store, "1") is None


def test_without_two_snapshots_nothing_is_dropped(tmp_path):
    chain = make_chain(tmp_path, pruned=False)
    snapshots = Snapshots.beside(chain.store)
    snapshots.drop(snapshots.heights()[0])
    assert Pruner(chain.store, CLOCK, KEEP).tend(10.0) == 0
    assert chain.store.floor == 0


def test_it_goes_in_small_steps(tmp_path, monkeypatch):
    """One round stops when its time is over, and the next one goes on."""
    monkeypatch.setattr(pruning, "STEP_BLOCKS", 2)
    chain = make_chain(tmp_path, pruned=False)
    now = iter(range(1000))
    slow = SimpleNamespace(monotonic_s=lambda: next(now))
    pruner = Pruner(chain.store, slow, KEEP)
    assert pruner.tend(1.5) == 2
    assert chain.store.floor == 2
    assert pruner.tend(1.5) == 2
    assert chain.store.floor == 4


def test_the_file_gets_smaller(tmp_path):
    """A few pages at a time, until none is free."""
    chain = make_chain(tmp_path, epochs=20)
    database = sqlite3.connect(tmp_path / FILE_NAME)
    before = database.execute("PRAGMA page_count").fetchone()[0]
    free = [database.execute("PRAGMA freelist_count").fetchone()[0]]
    while free[-1]:
        Pruner(chain.store, CLOCK, KEEP).tend()
        free.append(database.execute("PRAGMA freelist_count").fetchone()[0])
        assert free[-1] < free[-2]
    assert database.execute("PRAGMA page_count").fetchone()[0] <= before - free[0]
    assert free[0] > 0


def test_a_light_client_can_still_follow_from_the_genesis(tmp_path):
    """Over every change of validators; seals are never dropped."""
    chain = make_chain(tmp_path)
    wanted = [row[0] for row in seals(chain, chain.before["blocks"])]
    kept = [seal.header.height for seal in chain.store.old_seals()]
    assert kept == [height for height in wanted if height <= chain.store.floor]
    light, prover = LightClient(genesis_checkpoint(chain.genesis)), Prover(chain.store)
    changes = 0
    for _ in range(20):
        trust = light.trust
        step = prover.step(trust.height, trust.validators.hash)
        light.advance(step.anchor, chain.ledger.time_ms, step.following())
        changes += trust.validators.hash != light.trust.validators.hash
        if light.trust.height == chain.store.height:
            break
    assert light.trust.height == chain.store.height
    assert changes == 1
    assert answer_anchor(chain.store, f"at/{kept[0]}") != b""
    with pytest.raises(NotProvableError):
        prover.anchor(kept[0] - 1)


def test_statements_about_events_stay_those_of_all_others(tmp_path):
    """Each names the height before, though that is not here any more."""
    chain = make_chain(tmp_path, pruned=False)
    wanted = {
        (name, height): chain.store.previous_event_height(name, height)
        for name in ("market", "wallet", "poe")
        for height in range(1, chain.store.height + 2)
    }
    Pruner(chain.store, CLOCK, KEEP).tend(10.0)
    floor = chain.store.floor
    for (name, height), before in wanted.items():
        if height > floor:
            assert chain.store.previous_event_height(name, height) == before
    assert chain.store.event_heights("wallet", 0, 16) == []  # a gap is not told as none
    assert chain.store.event_heights("wallet", chain.store.height - 3, 16) != []


def test_the_fate_of_an_old_transaction_is_not_guessed(tmp_path):
    """Its nonce is used, but by what is not known here: "never" would make a wallet pay twice."""
    chain = make_chain(tmp_path)
    node = SimpleNamespace(store=chain.store, ledger=chain.ledger)
    publisher = Publisher.__new__(Publisher)
    publisher._node = node
    sender = HOMES[0]
    first = chain.tx(sender, bid("buy", 1, 1, 1), nonce=0)
    last = chain.ledger.next_nonce(sender.id) - 1
    assert publisher._fate(f"{first.txid.hex()}/{sender.id}/0") == {}
    other = chain.tx(sender, bid("buy", 1, 1, 1), nonce=last)
    assert publisher._fate(f"{other.txid.hex()}/{sender.id}/{last}")["code"] == "WRONG_NONCE"
    assert publisher._fate(f"{other.txid.hex()}/{sender.id}/{last + 1}") == {}


def test_a_pruned_folder_is_verified_from_its_oldest_snapshot(tmp_path):
    chain = make_chain(tmp_path)
    older = Snapshots.beside(chain.store).heights()[0]
    floor, root = chain.store.floor, chain.ledger.state.root().hex()
    chain.store.close()
    report = verify_folder(tmp_path)
    assert (report.executed_from, report.trusted, report.not_here) == (older, "genesis", floor)
    assert report.state_root == root
    with pytest.raises(ConfigError, match="--keep all"):
        verify_folder(tmp_path, from_genesis=True)


def test_the_command_says_from_where(tmp_path):
    chain = make_chain(tmp_path)
    chain.store.close()
    runner = CliRunner()
    found = json.loads(runner.invoke(app, ["verify", str(tmp_path), "--json"]).stdout)
    assert found["executed_from"] > 0
    assert found["not_here"] > 0


def test_a_whole_folder_is_verified_from_its_genesis(tmp_path):
    chain = make_chain(tmp_path, pruned=False)
    chain.store.close()
    report = verify_folder(tmp_path, from_genesis=True)
    assert (report.executed_from, report.not_here) == (0, 0)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE state SET value = CAST('{\"n\":1}' AS BLOB) WHERE key = 'totals'",
        "DELETE FROM bodies WHERE height = (SELECT max(height) FROM bodies)",
        "DELETE FROM blocks WHERE height = (SELECT min(height) FROM blocks)",
        "UPDATE seals SET certificate = (SELECT certificate FROM blocks LIMIT 1)",
        "DELETE FROM seals WHERE next_validators != validators",
        "INSERT INTO events VALUES ('poe', 1, CAST('[]' AS BLOB))",
        "UPDATE meta SET value = CAST('{\"floor\":3}' AS BLOB) WHERE key = 'history'",
    ],
)
def test_damage_to_a_pruned_folder_is_found(tmp_path, damage):
    chain = make_chain(tmp_path)
    chain.store.close()
    database = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    assert database.execute(damage).rowcount > 0
    database.close()
    with pytest.raises(ChainError):
        verify_folder(tmp_path)


def test_a_damaged_snapshot_is_found(tmp_path):
    chain = make_chain(tmp_path)
    snapshots = Snapshots.beside(chain.store)
    file = snapshots.folder / f"{snapshots.heights()[0]}.chunks"
    chain.store.close()
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ChainError, match="chunk"):
        verify_folder(tmp_path)


def joined_folder(tmp_path):
    """A folder that began with a snapshot of a chain, and went on for some blocks."""
    chain = make_chain(tmp_path / "peer", pruned=False)
    folder, stage = tmp_path / "joined", tmp_path / "stage"
    folder.mkdir()
    stage.mkdir()
    write_genesis(chain.genesis, folder / "genesis.json")
    offer = read_offer(answer_snapshot(chain.store))
    height = offer.manifest.height
    chunks = list(Snapshots.beside(chain.store).chunks(height))
    Pruner(chain.store, CLOCK, KEEP).tend(10.0)
    store = LedgerStore.in_folder(stage)
    trust = checkpoint_json(genesis_checkpoint(chain.genesis))
    restore(store, chain.genesis, offer, chunks, trust=trust, seals=chain.store.old_seals())
    manifest = offer.manifest
    Snapshots(stage / "snapshots").write(height, manifest.state_root, chunks, lambda: manifest.rows)
    store.close()
    place(stage, folder)
    own = Chain(LedgerStore.in_folder(folder), genesis=chain.genesis)
    for number in range(height + 1, chain.store.height + 1):
        block = chain.store.get_block(number)
        own.execute(block.header, [], block.certificate)
    return own, folder, height


def test_a_folder_that_began_with_a_snapshot_is_verified_from_there(tmp_path):
    chain, folder, height = joined_folder(tmp_path)
    chain.store.close()
    report = verify_folder(folder)
    assert report.executed_from == report.not_here == height
    assert report.trusted == "genesis"


def test_it_is_verified_later_too_when_its_first_snapshot_is_gone(tmp_path):
    chain, folder, height = joined_folder(tmp_path)
    taker = SnapshotTaker(chain.store, 1)
    for _ in range(5):
        chain.block(chain.ledger.time_ms + 1)
        chain.seal()
        taker.executed(chain.store.tip.header)
        taker.wait()
    chain.block(chain.ledger.time_ms + 1)
    taker.close()
    chain.store.close()
    report = verify_folder(folder)
    assert report.executed_from > report.not_here == height
    chain = Chain(LedgerStore.in_folder(folder), genesis=chain.genesis)
    Pruner(chain.store, CLOCK, KEEP).tend(10.0)
    chain.store.close()
    report = verify_folder(folder)
    assert report.not_here > height
