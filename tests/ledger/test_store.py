"""The ledger's file: a block is there as a whole or not at all, and bodies survive."""

import sqlite3

import pytest
from support.chain_builder import START_MS, Chain, events_of, key, register

from ledger.store import BlockRecord, LedgerStore, StoredBlock
from wire.errors import MalformedError

ANN = key("ann")


def record(height: int, **changes) -> BlockRecord:
    block = StoredBlock(
        height=height, hash=bytes([height]) * 32, header_bytes=b"header", certificate=b"",
        txids=(b"a" * 32,), state_root=bytes(32), receipts_root=bytes(32),
    )  # fmt: skip
    fields = {
        "block": block, "bodies": [(b"a" * 32, b"raw")], "receipts": [{"code": "OK"}],
        "events": {"market": [{"event": "x"}]}, "writes": {"k": b'{"v":1}', "gone": None},
    }  # fmt: skip
    return BlockRecord(**{**fields, **changes})


def test_a_block_is_written_whole(tmp_path):
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.write_genesis(b"genesis", {"gone": b"1"})
    assert store.tip is None
    assert store.height == 0
    store.write_block(record(1))
    again = LedgerStore(tmp_path / "ledger.sqlite", read_only=True)
    assert again.tip == record(1).block
    assert again.get_body(b"a" * 32) == b"raw"
    assert again.executed_at(b"a" * 32) == 1
    assert again.receipts(1) == [{"code": "OK"}]
    assert again.events(1) == again.events(1, "market") == [{"event": "x"}]
    assert again.events(1, "wallet") == []
    assert list(again.state_rows()) == [("k", {"v": 1})]


def test_a_block_that_cannot_be_written_leaves_nothing(tmp_path):
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.write_genesis(b"genesis", {"k": b"1"})
    with pytest.raises(MalformedError):  # after block, bodies and receipts were written
        bodies = [(b"a" * 32, b"raw")]
        store.write_block(record(1, bodies=bodies, events={"market": [{"event": 1.5}]}))
    assert store.height == 0
    assert store.get_body(b"a" * 32) is None
    assert list(store.state_rows()) == [("k", 1)]
    store.write_block(record(1))


def test_a_body_that_is_there_already_does_not_stop_a_block(tmp_path):
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.write_genesis(b"genesis", {})
    store.write_block(record(1, bodies=[(b"a" * 32, b"raw"), (b"a" * 32, b"raw")]))
    assert store.height == 1 and store.get_body(b"a" * 32) == b"raw"


def test_kept_bodies_survive_until_they_are_executed(tmp_path):
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.write_genesis(b"genesis", {})
    store.keep_bodies([(b"a" * 32, b"raw"), (b"b" * 32, b"other")])
    store.keep_bodies([(b"a" * 32, b"raw")])
    store.close()
    store = LedgerStore(tmp_path / "ledger.sqlite")
    assert store.kept_bodies() == [b"raw", b"other"]
    assert store.get_body(b"b" * 32) == b"other"
    assert store.executed_at(b"b" * 32) is None
    store.write_block(record(1))
    assert store.kept_bodies() == [b"other"]
    store.forget_bodies([b"b" * 32])
    assert store.kept_bodies() == []


def test_a_failing_store_leaves_the_ledger_where_it_was():
    chain = Chain()
    chain.settle_in(ANN)
    before = chain.ledger.executed_height, chain.ledger.state.root()
    chain.store._db.execute("CREATE TRIGGER full BEFORE INSERT ON receipts"
                            " BEGIN SELECT RAISE(FAIL, 'disk full'); END")  # fmt: skip
    with pytest.raises(sqlite3.IntegrityError, match="disk full"):
        chain.block(START_MS + 60_000)
    assert (chain.ledger.executed_height, chain.ledger.state.root()) == before
    chain.store._db.execute("DROP TRIGGER full")
    result = chain.block(START_MS + 60_001, chain.tx(key("bob"), register(key("bob"))))
    assert len(events_of(result, "address-registered")) == 1


def test_a_reader_sees_one_moment_while_a_node_writes(tmp_path):
    store = LedgerStore(tmp_path / "ledger.sqlite")
    store.write_genesis(b"genesis", {})
    store.write_block(record(1))
    reader = LedgerStore(tmp_path / "ledger.sqlite", read_only=True)
    reader.snapshot()
    store.write_block(record(2, bodies=[], writes={"k": b'{"v":2}'}))
    assert reader.height == 1
    assert list(reader.state_rows()) == [("k", {"v": 1})]
