"""`ledger prove`, `check-proof` and `checkpoint`, as people use them."""

import json
import sqlite3

import pytest
from support.chain_builder import START_MS, SUPERVISOR, Chain, deposit, key, make_genesis
from typer.testing import CliRunner

from ledger.checkpoint import genesis_checkpoint, read_checkpoint
from ledger.cli import app
from ledger.genesis import write_genesis
from ledger.store import LedgerStore
from wire.errors import ConfigError

ANN = key("home 0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    genesis = write_genesis(make_genesis(), folder / "genesis.json")
    chain = Chain(LedgerStore.in_folder(folder), genesis)
    chain.settle_in(ANN)
    chain.block(START_MS + 900_000, chain.tx(SUPERVISOR, deposit(ANN, 5)))
    for number in range(3):
        chain.block(START_MS + 900_001 + number)
    chain.store.close()
    return folder


@pytest.fixture
def txid(folder):
    store = LedgerStore.in_folder(folder, read_only=True)
    found = store.get_block(3).txids[0].hex()
    store.close()
    return found


def ledger(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_balance_leaves_the_folder_as_a_file_that_convinces_offline(folder, tmp_path):
    file = tmp_path / "balance.proof"
    made = ledger("prove", "balance", ANN.id, "--folder", folder, "--out", file)
    assert made.output == f"{file}: {file.stat().st_size} B\n"
    said = ledger("check-proof", file, "--genesis", folder / "genesis.json")
    assert said.exit_code == 0
    lines = dict(line.split(": ", 1) for line in said.output.splitlines() if ": " in line)
    assert lines["key"] == f"account/{ANN.id}"
    assert lines["value.balanceUc"] == "100000005"
    assert said.output.endswith("proof is valid\n")
    nobody = ledger("prove", "balance", key("nobody").id, "--folder", folder).output
    file.write_text(nobody)
    said = ledger("check-proof", file, "--genesis", folder / "genesis.json")
    assert "value: none\n" in said.output


def test_receipt_and_inclusion_are_proved_and_printed_as_json(folder, txid, tmp_path):
    for kind, expected in (("receipt", ("receipt", "txid")), ("inclusion", ("txid",))):
        file = tmp_path / kind
        assert not ledger("prove", kind, txid, "--folder", folder, "--out", file).exit_code
        said = ledger("check-proof", file, "--genesis", folder / "genesis.json", "--json")
        facts = json.loads(said.output)
        assert facts.pop("ok") is True
        for name in expected:
            facts = facts[name]
        assert facts == txid


def test_a_checkpoint_is_written_and_serves_instead_of_the_genesis(folder, txid, tmp_path):
    point, file = tmp_path / "checkpoint.json", tmp_path / "proof"
    assert ledger("checkpoint", folder, "--out", point).exit_code == 0
    assert read_checkpoint(point).height == 3
    ledger("prove", "inclusion", txid, "--folder", folder, "--out", file)
    words = ("check-proof", file, "--genesis", folder / "genesis.json", "--checkpoint")
    assert ledger(*words, point).exit_code == 0
    other = tmp_path / "other.json"
    other.write_text(point.read_text().replace("hg-test-", "hg-best-"))
    with pytest.raises(ConfigError, match="of chain hg-best-"):
        raise ledger(*words, other).exception


def test_a_proof_that_proves_nothing_ends_with_1_and_the_reason(folder, txid, tmp_path):
    file, other = tmp_path / "proof", tmp_path / "genesis.json"
    ledger("prove", "receipt", txid, "--folder", folder, "--out", file)
    good = file.read_bytes()
    write_genesis(make_genesis(gate_lead_s=299), other)
    late = tmp_path / "late.json"
    write_genesis(make_genesis(start_ms=0), late)
    for raw, genesis, reason in (
        (good.replace(b'"OK"', b'"NO"'), folder / "genesis.json", "does not hold this receipt"),
        (b"", folder / "genesis.json", "not a proof"),
        (good, other, "another chain"),
        (good, late, "a newer checkpoint is needed"),
    ):
        file.write_bytes(raw)
        said = ledger("check-proof", file, "--genesis", genesis)
        assert said.exit_code == 1
        assert reason in said.output
        assert said.output.count("\n") == 1
        said = ledger("check-proof", file, "--genesis", genesis, "--json")
        assert json.loads(said.stdout)["ok"] is False


def test_what_cannot_be_proved_or_is_mistyped_is_one_line_with_a_remedy(folder, tmp_path):
    said = ledger("prove", "receipt", "00" * 32, "--folder", folder)
    assert said.exit_code == 1
    assert "in no executed block" in said.output
    for words, reason in (
        (("prove", "balance", "ann", "--folder", folder), "begins with hg1"),
        (("prove", "receipt", "xyz", "--folder", folder), "64 hex digits"),
        (("prove", "inclusion", "00" * 32, "--folder", tmp_path), "genesis.json"),
        (("check-proof", tmp_path / "no", "--genesis", folder / "genesis.json"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=reason):
            raise ledger(*words).exception
    (tmp_path / "genesis.json").write_bytes((folder / "genesis.json").read_bytes())
    with pytest.raises(ConfigError, match="no chain here"):
        raise ledger("prove", "inclusion", "00" * 32, "--folder", tmp_path).exception
    (tmp_path / "ledger.sqlite").write_text("this is not a database, not at all")
    with pytest.raises(ConfigError, match="cannot be read"):
        raise ledger("prove", "inclusion", "00" * 32, "--folder", tmp_path).exception


def test_proving_changes_nothing_in_the_folder(folder, txid):
    def content():
        with sqlite3.connect(folder / "ledger.sqlite") as db:
            return list(db.iterdump())

    before = content()
    ledger("prove", "balance", ANN.id, "--folder", folder)
    ledger("prove", "receipt", txid, "--folder", folder)
    ledger("checkpoint", folder, "--out", folder.parent / "point.json")
    assert content() == before


def test_an_empty_chain_proves_nothing_and_its_checkpoint_is_the_genesis(tmp_path):
    genesis = write_genesis(make_genesis(), tmp_path / "genesis.json")
    Chain(LedgerStore.in_folder(tmp_path), genesis).store.close()
    said = ledger("prove", "balance", ANN.id, "--folder", tmp_path)
    assert (said.exit_code, "no block yet" in said.output) == (1, True)
    assert ledger("checkpoint", tmp_path, "--out", tmp_path / "point.json").exit_code == 0
    assert read_checkpoint(tmp_path / "point.json") == genesis_checkpoint(genesis)
