"""Snapshots: the same bytes everywhere, believed for their root only, taken beside the node."""

import contextlib
import time
from dataclasses import replace

import msgspec
import pytest
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    VALIDATORS,
    Chain,
    bid,
    key,
    make_genesis,
    slot_ms,
)

from ledger import types
from ledger.checkpoint import checkpoint_json, genesis_checkpoint
from ledger.execution import ChainError, Ledger
from ledger.joining import restore
from ledger.prover import Prover
from ledger.schedule import Epochs
from ledger.snapshot import (
    CHUNK_BYTES,
    Offer,
    Preamble,
    SnapshotError,
    check_chunk,
    check_offer,
    chunk_hash,
    cut,
    read_offer,
    root_of,
    split,
)
from ledger.snapshots import (
    Snapshots,
    SnapshotTaker,
    answer_chunk,
    answer_snapshot,
    default_every_epochs,
    offer_of,
    take,
)
from ledger.state import State
from ledger.store import LedgerStore, OldSeal
from ledger.types import ValidatorSet
from runtime.bus import MAX_PAYLOAD_BYTES
from wire.canonical import encode
from wire.errors import HearthgridError, MalformedError, OversizedError

HOMES = [key(f"home {number}") for number in range(12)]
FOUNDERS = ValidatorSet(tuple(k.id for k in VALIDATORS), tuple(k.public for k in VALIDATORS))


def make_chain(folder, *, every=1, epochs=3):
    """Homes that bid, over some epochs; a snapshot is taken at each seal."""
    folder.mkdir(exist_ok=True)
    chain = Chain(LedgerStore.in_folder(folder))
    taker = SnapshotTaker(chain.store, every)
    chain.settle_in(*HOMES)
    for number in range(epochs):
        chain.block(
            chain.ledger.time_ms + 1,
            *(chain.tx(home, bid("buy", FIRST_SLOT + 3 + number, 10, 100)) for home in HOMES),
        )
        seal = chain.seal()
        taker.executed(chain.store.get_block(seal.height).header)
        taker.wait()
    chain.block(chain.ledger.time_ms + 1)
    taker.close()
    return chain


def newest(chain):
    return read_offer(answer_snapshot(chain.store))


def chunks_of(chain, height):
    return list(Snapshots.beside(chain.store).chunks(height))


def trust_of(chain):
    return checkpoint_json(genesis_checkpoint(chain.genesis))


def restored(chain, offer, chunks, **more):
    store = LedgerStore(":memory:")
    return restore(store, chain.genesis, offer, chunks, trust=trust_of(chain), **more)


def test_a_ledger_restored_from_a_snapshot_goes_on_as_the_one_it_was_taken_of(tmp_path):
    """State, epoch, receipts that are still under no header, heads of events: all there."""
    chain = make_chain(tmp_path)
    offer = newest(chain)
    ledger = restored(chain, offer, chunks_of(chain, offer.manifest.height))
    seal = offer.manifest.height
    assert ledger.executed_height == seal
    assert ledger.epoch == chain.epoch.epoch
    for height in range(seal + 1, chain.store.height + 1):
        block = chain.store.get_block(height)
        ledger.execute(block.header, [], block.certificate)
    assert list(ledger.store.state_rows()) == list(chain.store.state_rows())
    epochs = Epochs(chain.genesis, ledger, ledger.store)
    assert epochs.current() == chain.epochs.current()
    for contract in ("market", "wallet", "poe"):
        before = chain.store.previous_event_height(contract, seal + 1)
        assert ledger.store.previous_event_height(contract, seal + 1) == before


def test_it_opens_again_and_knows_what_it_does_not_have(tmp_path):
    chain = make_chain(tmp_path)
    offer = newest(chain)
    ledger = restored(chain, offer, chunks_of(chain, offer.manifest.height))
    again = Ledger.open(chain.genesis, ledger.store)
    assert again.state.root() == offer.cover.header.state_root
    assert ledger.store.floor == offer.manifest.height
    assert ledger.store.used_nonce(HOMES[0].id) == chain.ledger.next_nonce(HOMES[0].id)
    assert ledger.store.used_nonce("hg1nobody") == 0
    assert ledger.store.event_heights("wallet", 0, 10) == []


def lagging_chain(folder):
    """Leaders propose before they execute: the header after the seal answers for several blocks."""
    folder.mkdir(exist_ok=True)
    chain = Chain(LedgerStore.in_folder(folder))
    chain.settle_in(*HOMES)
    lag = chain.ledger.covered_height
    header = chain.header(
        slot_ms(FIRST_SLOT + 1), [], exec_height=lag, state_root=chain.ledger.state_root(lag),
        receipts_root=chain.ledger.receipts_root(lag, lag),
    )  # fmt: skip
    chain.execute(header, [], chain.finality(header))
    taker = SnapshotTaker(chain.store, 1)  # it also takes what a crash prevented
    taker.wait()
    taker.close()
    chain.block(chain.ledger.time_ms + 1)
    return chain


def test_receipts_that_no_header_answers_for_yet_come_along(tmp_path):
    chain = lagging_chain(tmp_path)
    offer = newest(chain)
    ledger = restored(chain, offer, chunks_of(chain, offer.manifest.height))
    tip = chain.store.tip
    assert tip.header.receipts_root != types.ZERO_HASH
    ledger.execute(tip.header, [], tip.certificate)
    assert ledger.executed_height == tip.height


def test_a_lie_about_any_of_these_blocks_is_found(tmp_path):
    """Another receipt, another header below the seal, or one block less."""
    chain = lagging_chain(tmp_path)
    offer = newest(chain)
    preamble, found = split(chunks_of(chain, offer.manifest.height))
    rows, (*below, seal) = list(found), preamble.blocks
    assert below
    change = msgspec.structs.replace
    receipts = below[-1].receipts.replace(b'"OK"', b'"NO"', 1)
    assert receipts != below[-1].receipts
    header = change(below[-1].header, time_ms=below[-1].header.time_ms + 1)
    for blocks in (
        (*below[:-1], change(below[-1], receipts=receipts), seal),
        (*below[:-1], change(below[-1], header=header), seal),
        (*below[1:], seal),
    ):
        with pytest.raises(SnapshotError):
            restored(chain, offer, cut(Preamble(blocks, preamble.event_heads), rows))


def test_every_node_makes_the_same_chunks(tmp_path):
    first, second = make_chain(tmp_path / "a"), make_chain(tmp_path / "b")
    assert newest(first).manifest == newest(second).manifest


def test_chunks_and_offers_fit_into_a_message(tmp_path):
    rows = [(f"account/{number:06d}", b"x" * 200) for number in range(2000)]
    chunks = list(cut(Preamble((past_block(tmp_path),), {}), rows))
    assert {len(chunk) for chunk in chunks[:-1]} == {CHUNK_BYTES}
    assert CHUNK_BYTES * 4 / 3 + 1024 < MAX_PAYLOAD_BYTES
    _, again = split(chunks)
    assert list(again) == rows
    with pytest.raises(OversizedError):
        read_offer(b"x" * (84 * 1024 + 1))


def past_block(folder):
    chain = make_chain(folder, epochs=1)
    preamble, _ = split(chunks_of(chain, newest(chain).manifest.height))
    return preamble.blocks[0]


def spoil_row(chunks):
    """Give a home money in the rows, and name the new chunk in the manifest."""
    joined = b"".join(chunks)
    spoilt = joined.replace(b'"balanceUc":1', b'"balanceUc":2', 1)
    assert spoilt != joined
    return [spoilt[i : i + CHUNK_BYTES] for i in range(0, len(spoilt), CHUNK_BYTES)]


def test_a_changed_row_is_found_by_the_root(tmp_path):
    """Whoever offers it names the hash of the changed chunk too."""
    chain = make_chain(tmp_path)
    offer = newest(chain)
    chunks = spoil_row(chunks_of(chain, offer.manifest.height))
    hashes = tuple(map(chunk_hash, chunks))
    lie = msgspec.structs.replace(
        offer, manifest=msgspec.structs.replace(offer.manifest, hashes=hashes)
    )
    with pytest.raises(ChainError, match="root"):
        restored(chain, lie, chunks)


def test_a_missing_row_an_extra_row_and_a_cut_stream_are_found(tmp_path):
    chain = make_chain(tmp_path)
    offer = newest(chain)
    chunks = chunks_of(chain, offer.manifest.height)
    preamble, found = split(chunks)
    rows = list(found)
    for wrong in (rows[1:], [*rows, ("zzz", b"true")]):
        with pytest.raises((ChainError, SnapshotError)):
            restored(chain, offer, cut(preamble, wrong))
    with pytest.raises(MalformedError, match="ascending"):
        restored(chain, offer, cut(preamble, [*rows, rows[0]]))
    with pytest.raises(MalformedError, match="short"):
        restored(chain, offer, [b"".join(chunks)[:-1]])
    with pytest.raises(MalformedError):
        restored(chain, offer, [])


def test_receipts_and_blocks_of_the_preamble_are_checked(tmp_path):
    chain = make_chain(tmp_path)
    offer = newest(chain)
    preamble, found = split(chunks_of(chain, offer.manifest.height))
    rows, block = list(found), preamble.blocks[-1]
    for changes in ({"receipts": b'[{"code":"OK"}]'}, {"txids": (bytes(32),)}):
        lie = msgspec.structs.replace(block, **changes)
        with pytest.raises(SnapshotError):
            restored(chain, offer, cut(Preamble((lie,), preamble.event_heads), rows))


def test_an_offer_needs_final_headers_that_belong_together(tmp_path):
    chain = make_chain(tmp_path)
    trust, offer = genesis_checkpoint(chain.genesis), newest(chain)
    check_offer(offer, trust, lambda _: FOUNDERS)
    other = msgspec.structs.replace
    forged = types.encode(
        types.Finality(
            types.Certificate(types.VoteKind.FINALIZE, 0, 1, bytes(32), b"\x0d", (bytes(64),) * 3)
        )
    )
    cover = other(offer.cover, finality=types.decode(types.Finality, forged))
    for lie in (
        other(offer, cover=cover),
        other(offer, cover=offer.seal),
        other(offer, seal=offer.cover),
        other(offer, manifest=other(offer.manifest, state_root=bytes(32))),
        other(offer, manifest=other(offer.manifest, height=offer.manifest.height - 1)),
        other(offer, manifest=other(offer.manifest, size_bytes=10**9)),
    ):
        with pytest.raises(HearthgridError):
            check_offer(lie, trust, lambda _: FOUNDERS)
    strangers = ValidatorSet(FOUNDERS.ids[:3], FOUNDERS.keys[:3])
    with pytest.raises(HearthgridError):
        check_offer(offer, trust, lambda _: strangers)


def test_a_chunk_is_checked_by_hash_and_size(tmp_path):
    chain = make_chain(tmp_path)
    manifest = newest(chain).manifest
    (chunk,) = chunks_of(chain, manifest.height)
    check_chunk(manifest, 0, chunk)
    for wrong in (chunk[:-1], chunk + b"x", bytes(len(chunk)), b""):
        with pytest.raises(SnapshotError):
            check_chunk(manifest, 0, wrong)


def test_the_root_over_rows_is_the_states(tmp_path):
    rows = {f"k/{number}": {"n": number} for number in range(300)}
    wanted = State(rows.items()).root()
    assert root_of((name, encode(value)) for name, value in rows.items()) == wanted


def test_no_snapshot_is_offered_before_the_next_header_names_its_root(tmp_path):
    chain = Chain(LedgerStore.in_folder(tmp_path))
    chain.block(START_MS + 1)
    chain.seal()
    SnapshotTaker(chain.store, 1).wait()
    assert answer_snapshot(chain.store) == b""
    chain.block(chain.ledger.time_ms + 1)
    assert newest(chain).manifest.height == 2


def test_a_header_that_names_an_older_state_makes_the_snapshot_useless(tmp_path):
    chain = Chain(LedgerStore.in_folder(tmp_path))
    chain.block(START_MS + 1)
    chain.seal()
    SnapshotTaker(chain.store, 1).wait()
    covered = chain.ledger.covered_height
    header = chain.header(
        chain.ledger.time_ms + 1, [], exec_height=covered,
        state_root=chain.ledger.state_root(covered),
        receipts_root=chain.ledger.receipts_root(covered, covered),
    )  # fmt: skip
    chain.execute(header, [], chain.finality(header))
    chain.block(chain.ledger.time_ms + 1)
    assert offer_of(chain.store, 2) is None
    prover, manifest = Prover(chain.store), Snapshots.beside(chain.store).manifest(2)
    lie = msgspec.structs.replace(manifest, state_root=header.state_root)
    with pytest.raises(SnapshotError, match="no header"):
        check_offer(
            Offer(lie, prover.anchor(2), prover.anchor(3)),
            genesis_checkpoint(chain.genesis),
            lambda _: FOUNDERS,
        )
    assert answer_snapshot(chain.store) == b""


def test_the_last_two_are_kept_and_half_written_ones_do_not_count(tmp_path):
    chain = make_chain(tmp_path, epochs=4)
    snapshots = Snapshots.beside(chain.store)
    heights = snapshots.heights()
    assert len(heights) == 2
    assert newest(chain).manifest.height == heights[-1]
    (snapshots.folder / f"{heights[-1]}.manifest").unlink()
    assert newest(chain).manifest.height == heights[0]
    (snapshots.folder / f"{heights[0]}.manifest").write_bytes(b"torn")
    assert answer_snapshot(chain.store) == b""


def test_snapshots_are_taken_every_so_many_epochs(tmp_path):
    chain = make_chain(tmp_path, every=2, epochs=4)
    found = Snapshots.beside(chain.store).heights()
    assert [chain.store.get_block(height).header.epoch for height in found] == [1, 3]
    assert default_every_epochs(chain.genesis) == 96


def test_questions_about_chunks_are_answered_or_refused(tmp_path):
    chain = make_chain(tmp_path)
    height = newest(chain).manifest.height
    assert answer_chunk(chain.store, f"{height}/0") == chunks_of(chain, height)[0]
    assert answer_chunk(chain.store, f"{height}/99") == b""
    assert answer_chunk(chain.store, "7/0") == b""
    for key_ in ("", "1", "../0", "1/-1", f"{height}/0/0", "9" * 20 + "/0"):
        with pytest.raises(MalformedError):
            answer_chunk(chain.store, key_)
    assert answer_chunk(LedgerStore(":memory:"), "1/0") == b""
    assert answer_snapshot(LedgerStore(":memory:")) == b""


def test_it_is_taken_of_the_seal_while_the_node_goes_on(tmp_path):
    """The reader sees the state as it was; the node writes blocks meanwhile."""
    chain = make_chain(tmp_path, epochs=1)
    seal = chain.seal()
    with contextlib.closing(LedgerStore(chain.store.path, read_only=True)) as reader:
        reader.snapshot()
        for _ in range(3):
            chain.block(
                chain.ledger.time_ms + 1,
                *(chain.tx(home, bid("sell", FIRST_SLOT + 9, 10, 100)) for home in HOMES),
            )
        manifest = take(reader, Snapshots.beside(chain.store))
    assert manifest.height == seal.height
    assert manifest.state_root == seal.state_root
    offer = offer_of(chain.store, seal.height)
    restored(chain, offer, chunks_of(chain, seal.height))


def test_beginning_a_snapshot_of_many_rows_does_not_stop_the_node(tmp_path):
    """10⁵ rows: the node waits for the begin of a read transaction only."""
    chain = Chain(LedgerStore.in_folder(tmp_path))
    chain.block(START_MS + 1)
    rows = {f"zz/{number:06d}": encode({"n": number}) for number in range(100_000)}
    with chain.store._atomic():
        chain.store._put_state(rows)
    taker = SnapshotTaker(chain.store, 1)
    seal = chain.seal()
    header = chain.store.get_block(seal.height).header
    started_s = time.perf_counter()
    assert taker.executed(header)
    assert time.perf_counter() - started_s < 0.1
    assert not taker.executed(header)
    taker.close()
    assert Snapshots.beside(chain.store).manifest(seal.height).rows > 100_000


def test_seals_on_the_way_are_kept_for_light_clients(tmp_path):
    chain = make_chain(tmp_path, epochs=2)
    offer = newest(chain)
    first = next(
        block for height in range(1, 9)
        if (block := chain.store.get_block(height)).header.seal
    )  # fmt: skip
    seal = OldSeal(first.header, types.decode(types.Finality, first.certificate))
    ledger = restored(chain, offer, chunks_of(chain, offer.manifest.height), seals=[seal])
    kept = [one.header.height for one in ledger.store.old_seals()]
    assert kept == [first.height, offer.manifest.height]


def test_another_genesis_is_not_this_state(tmp_path):
    chain = make_chain(tmp_path)
    offer = newest(chain)
    other = make_genesis(slot_length_s=1800)
    with pytest.raises(HearthgridError):
        check_offer(offer, replace(genesis_checkpoint(other)), lambda _: FOUNDERS)
