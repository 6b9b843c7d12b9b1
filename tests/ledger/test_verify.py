"""The audit: passes what is right, names the block of whatever is not."""

import shutil
import sqlite3
from unittest import mock

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    auction,
    auction_bid,
    bid,
    cpf,
    key,
    make_genesis,
    receipt,
    slot_ms,
)

from ledger import types
from ledger.execution import ChainError, Ledger
from ledger.genesis import write_genesis
from ledger.store import FILE_NAME, LedgerStore
from ledger.verify import verify_folder
from wire.errors import ConfigError

ANN, BOB = key("ann"), key("bob")
SLOT = FIRST_SLOT + 2


def make_chain(folder, *, spoil=None):
    """A short market: registration, an auction, a trade, receipts (one late), an attestation."""
    folder.mkdir(exist_ok=True)
    write_genesis(make_genesis(), folder / "genesis.json")
    chain = Chain(LedgerStore.in_folder(folder))
    chain.settle_in(ANN, BOB)
    chain.codes(START_MS + 60_000, SUPERVISOR,
                auction("flex", "reverse", SLOT, 100, 200_000, "as-bid"))  # fmt: skip
    chain.block(
        slot_ms(SLOT - 1, 120),
        chain.tx(ANN, bid("buy", SLOT, 1000, 250_000)),
        chain.tx(BOB, bid("sell", SLOT, 700, 100_000), auction_bid("flex", 100, 90_000)),
    )
    chain.block(slot_ms(SLOT, -300))
    chain.block(slot_ms(SLOT + 1, 1), chain.tx(ANN, receipt(ANN, SLOT, 650, chain.chain_id)))
    chain.block(slot_ms(SLOT + 2, 1))
    chain.block(
        slot_ms(SLOT + 9, 1),
        chain.tx(BOB, receipt(BOB, SLOT, -820, chain.chain_id),
                 cpf(VALIDATORS[1], SLOT + 8, 50_000, chain.chain_id)),
    )  # fmt: skip
    if spoil is not None:
        spoil(chain)
    chain.block(chain.ledger.time_ms + 900_000, chain.tx(ANN, bid("buy", SLOT + 20, 1, 1)))
    chain.store.keep_bodies([(tx.txid, tx.raw) for tx in [chain.tx(ANN, bid("buy", 1, 1, 1))]])
    chain.store.close()
    return chain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain")
    make_chain(path)
    db = sqlite3.connect(path / FILE_NAME)
    db.execute("PRAGMA journal_mode=DELETE")
    db.close()
    return path


@pytest.fixture
def copy(folder, tmp_path):
    for name in ("genesis.json", FILE_NAME):
        shutil.copy(folder / name, tmp_path / name)
    return tmp_path


def edit(path, statement, *values):
    db = sqlite3.connect(path / FILE_NAME)
    assert db.execute(statement, values).rowcount > 0
    db.commit()
    db.close()


def test_a_good_chain_passes_and_is_summed_up(folder):
    report = verify_folder(folder)
    assert report.height == 9
    assert report.txs == 9
    assert report.balances_uc == report.deposits_uc == 10**12 + 2 * 100_000_000
    assert report.energy_traded_wh == 800
    silent_wh = 5_000  # Ann's next receipt is missing: settled at the most her grant lets in
    assert report.residual_wh == 650 - 820 - (700 - 800) + silent_wh
    stored = LedgerStore.in_folder(folder, read_only=True)
    assert report.state_root == stored.tip.state_root.hex()
    assert report.epochs == stored.tip.header.epoch + 2, "the last block sealed an epoch"
    stored.close()


def value_cells():
    """Every value column of every table that holds the chain."""
    return [
        ("blocks", "hash", "height"), ("blocks", "header", "height"),
        ("blocks", "certificate", "height"), ("blocks", "txids", "height"),
        ("blocks", "state_root", "height"), ("blocks", "receipts_root", "height"),
        ("bodies", "txid", "txid"), ("bodies", "raw", "txid"), ("receipts", "receipts", "height"),
        ("events", "events", "height, contract"), ("events", "contract", "height, contract"),
        ("state", "value", "key"), ("state", "key", "key"), ("meta", "value", "key"),
        ("pending", "txid", "txid"),
    ]  # fmt: skip


@pytest.mark.parametrize(("table", "column", "order"), value_cells())
def test_one_flipped_byte_fails_and_names_a_block(folder, copy, table, column, order):
    """First, last and some byte of every row: each by itself."""
    original = (copy / FILE_NAME).read_bytes()
    db = sqlite3.connect(folder / FILE_NAME)
    names = order.split(", ")
    where = " AND ".join(f"{name} = ?" for name in names)
    rows = db.execute(f"SELECT {column}, {order} FROM {table} ORDER BY {order}").fetchall()
    db.close()
    assert rows
    step = max(1, len(rows) // 6)
    for number, (cell, *row_key) in enumerate(rows[::step]):
        data = cell.encode() if isinstance(cell, str) else cell
        if not data:
            continue
        place = (0, len(data) - 1, (number * 7919) % len(data))[number % 3]
        flipped = bytearray(data)
        flipped[place] ^= 1
        new = flipped.decode() if isinstance(cell, str) else bytes(flipped)
        (copy / FILE_NAME).write_bytes(original)
        edit(copy, f"UPDATE {table} SET {column} = ? WHERE {where}", new, *row_key)
        with pytest.raises(ChainError, match=r"^block \d+: "):
            verify_folder(copy)


@pytest.mark.parametrize("height", [1, 4, 7, 9])
@pytest.mark.parametrize("column", ["header", "certificate", "hash", "state_root"])
def test_the_named_block_is_the_changed_one(copy, height, column):
    db = sqlite3.connect(copy / FILE_NAME)
    (data,) = db.execute(f"SELECT {column} FROM blocks WHERE height = ?", (height,)).fetchone()
    db.close()
    flipped = data[:20] + bytes([data[20] ^ 0x80]) + data[21:]
    edit(copy, f"UPDATE blocks SET {column} = ? WHERE height = ?", flipped, height)
    with pytest.raises(ChainError) as caught:
        verify_folder(copy)
    assert caught.value.height == height


def test_bytes_all_over_one_block_count(folder, copy):
    """A stride through a header, a finalization and a body."""
    db = sqlite3.connect(folder / FILE_NAME)
    (header, certificate) = db.execute(
        "SELECT header, certificate FROM blocks WHERE height = 4"
    ).fetchone()
    (raw,) = db.execute("SELECT raw FROM bodies WHERE height = 4 AND position = 0").fetchone()
    db.close()
    cases = [
        ("blocks", "header", "height = 4", header, 5),
        ("blocks", "certificate", "height = 4", certificate, 11),
        ("bodies", "raw", "height = 4 AND position = 0", raw, 19),
    ]
    original = (copy / FILE_NAME).read_bytes()
    for table, column, where, data, step in cases:
        for place in range(0, len(data), step):
            flipped = bytearray(data)
            flipped[place] ^= 0x10
            (copy / FILE_NAME).write_bytes(original)
            edit(copy, f"UPDATE {table} SET {column} = ? WHERE {where}", bytes(flipped))
            with pytest.raises(ChainError) as caught:
                verify_folder(copy)
            assert caught.value.height == 4, (column, place, str(caught.value))


def test_bytes_flipped_in_the_file_itself_are_found_or_harmless(folder, copy):
    """Wherever the disk lies: the audit fails, or the chain in the file is still the same chain."""
    original = bytearray((copy / FILE_NAME).read_bytes())
    good = verify_folder(folder)
    found = 0
    for place in range(101, len(original), len(original) // 60):
        damaged = bytearray(original)
        damaged[place] ^= 0x40
        (copy / FILE_NAME).write_bytes(damaged)
        try:
            assert verify_folder(copy) == good, "free space of a page"
        except ChainError:
            found += 1
    assert found > 5


@pytest.mark.parametrize(
    ("statement", "height"),
    [
        ("DELETE FROM blocks WHERE height = 4", 4),
        ("DELETE FROM bodies WHERE height = 4 AND position = 1", 4),
        ("DELETE FROM receipts WHERE height = 6", 6),
        ("DELETE FROM events WHERE height = 6 AND contract = 'market'", 6),
        ("DELETE FROM state WHERE key LIKE 'account/%'", 9),
        ("INSERT INTO state VALUES ('account/more', '{}')", 9),
        ("INSERT INTO events VALUES ('market', 99, '[]')", 9),
        ("INSERT INTO bodies VALUES (x'00', 99, 0, x'00')", 9),
        ("UPDATE bodies SET position = 9 - position WHERE height = 4", 4),
        ("INSERT INTO meta VALUES ('surprise', x'00')", 9),
        ("UPDATE state SET value = 'text' WHERE key = 'totals'", 9),
        ("UPDATE blocks SET header = 7 WHERE height = 3", 3),
    ],
)
def test_rows_that_are_missing_too_many_or_misplaced_are_found(copy, statement, height):
    edit(copy, statement)
    with pytest.raises(ChainError) as caught:
        verify_folder(copy)
    assert caught.value.height == height


def test_another_genesis_is_found(copy):
    write_genesis(make_genesis(gate_lead_s=299), copy / "genesis.json")
    with pytest.raises(ChainError, match="genesis"):
        verify_folder(copy)


def test_a_folder_without_a_chain_is_a_mistake_of_the_caller(tmp_path):
    with pytest.raises(ConfigError):
        verify_folder(tmp_path)


def test_a_block_is_final_by_a_descendant_that_links_to_it(tmp_path):
    def no_certificate(chain):
        chain.block(chain.ledger.time_ms + 1, certificate=b"")

    make_chain(tmp_path, spoil=no_certificate)
    assert verify_folder(tmp_path).height == 10


def test_a_tip_that_nothing_proves_final_fails(tmp_path):
    make_chain(tmp_path)
    chain = Chain(LedgerStore.in_folder(tmp_path))
    chain.block(chain.ledger.time_ms + 1, certificate=b"")
    chain.store.close()
    with pytest.raises(ChainError, match="block 10: nothing proves it final"):
        verify_folder(tmp_path)


@pytest.mark.parametrize("signers", [(0,), (0, 1), (1, 1, 2)])
def test_too_few_signers_prove_nothing(tmp_path, signers):
    """A certificate that a node would never accept, in a chain written by a liar."""

    def few(chain):
        header = chain.header(chain.ledger.time_ms + 1, [])
        votes = [
            types.make_vote(VALIDATORS[i], chain.chain_id, i, header.epoch, header.view,
                            types.VoteKind.FINALIZE, types.header_hash(header))
            for i in signers
        ]  # fmt: skip
        chain.execute(header, [], types.encode(types.Finality(types.make_certificate(votes))))

    make_chain(tmp_path, spoil=few)
    with pytest.raises(ChainError, match="block 9: its finalization"):
        verify_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"proposer": VALIDATORS[0].id, "view": 10**6}, "does not lead"),
        ({"schedule_root": b"x" * 32}, "schedule"),
        ({"validators_hash": b"x" * 32}, "validators"),
        ({"epoch": 77}, "epoch"),
        ({"seal": True}, "seal flag"),
        ({"view": 0}, "view"),
    ],
)
def test_a_signed_block_that_breaks_the_rules_of_leadership_fails(tmp_path, change, named):
    """Even a quorum cannot make a block valid that breaks the rules on its face."""

    def break_rule(chain):
        header = chain.header(chain.ledger.time_ms + 1, [], **change)
        if named == "does not lead":
            wrong = (chain.epoch.leader(header.view) + 1) % 4
            header = chain.header(
                chain.ledger.time_ms + 1, [], view=header.view,
                proposer=chain.epoch.validators.ids[wrong],
            )  # fmt: skip
        chain.ledger.execute(header, [], chain.finality(header))

    with mock.patch.object(Ledger, "_check_header"):  # which would not execute some of them
        make_chain(tmp_path, spoil=break_rule)
    with pytest.raises(ChainError, match=rf"block 9: .*{named}"):
        verify_folder(tmp_path)
