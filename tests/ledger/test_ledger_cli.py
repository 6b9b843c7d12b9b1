"""The `ledger` command: each part does what its help says, and a mistake is one line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys

import pytest
from support.chain_builder import ISSUER, SUPERVISOR, VALIDATORS, key, make_genesis
from support.http import serving
from support.little_chain import ANN, LittleNode, little_chain
from typer.testing import CliRunner

from ledger import process
from ledger.api import build_app
from ledger.cli import app
from ledger.genesis import load_genesis, write_genesis
from ledger.genesis_file import example, read_genesis_file
from ledger.roles import Role, decide, standing
from ledger.serving import URL_FILE, parse_address
from runtime.clock import clock_from_environment
from runtime.http import listen
from runtime.keyfiles import read_key, write_secret
from wire.errors import ConfigError
from wire.keys import to_text


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    chain = little_chain(folder)
    yield chain, folder
    chain.store.close()


@pytest.fixture(scope="module")
def folder(little):
    return little[1]


def ledger(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def mistake(*words) -> str:
    """What a wrong command says; it is one line."""
    error = ledger(*words).exception
    assert isinstance(error, ConfigError), error
    assert "\n" not in str(error)
    return str(error)


# --- init, key ------------------------------------------------------------------------------------


def filled_in(text: str) -> str:
    for name, one in {
        "ISSUING KEY": ISSUER, "SUPERVISOR KEY": SUPERVISOR,
        **{f"KEY OF VALIDATOR {i}": one for i, one in enumerate(VALIDATORS, 1)},
    }.items():  # fmt: skip
        text = text.replace(f"<{name}>", to_text(one.public))
    return text


@pytest.fixture
def written(tmp_path):
    """Write the example, with changes, and give its path."""

    def write(old: str = "", new: str = ""):
        text = filled_in(example())
        assert old in text
        path = tmp_path / "genesis.toml"
        path.write_text(text.replace(old, new) if old else text)
        return path

    return write


def test_the_example_with_keys_filled_in_makes_a_genesis(written, tmp_path):
    made = ledger("init", written(), "--folder", tmp_path / "new", "--json")
    assert made.exit_code == 0
    genesis = load_genesis(tmp_path / "new" / "genesis.json")
    assert json.loads(made.stdout)["chainId"] == genesis.chain_id
    assert [one.id for one in genesis.validators] == [one.id for one in VALIDATORS]
    assert genesis.supervisor.address == SUPERVISOR.id
    assert genesis.start_ms == 1_782_864_000_000


def test_the_printed_example_names_every_key_and_says_its_default():
    printed = ledger("init", "--example").output
    assert printed == example()
    defaults = make_genesis()
    for section in ("poe", "membership", "rewards", "prices"):
        for name in getattr(defaults, section).__struct_fields__:
            assert re.search(rf"^{name} = ", printed, re.MULTILINE), name
    for name in ("market", "start", "slot_length_s", "gate_lead_s", "grace_slots", "delta0_ms"):
        assert re.search(rf"^{name} = ", printed, re.MULTILINE), name
    assert json.loads(ledger("init", "--example", "--json").output)["example"] == printed


def test_what_is_left_out_of_the_file_has_the_defaults_that_it_names(written):
    whole = read_genesis_file(written())
    text = written().read_text()
    short = re.sub(r"(?ms)^\[prices\].*?(?=^# One)", "", text)
    short = short[: short.index("[poe]")]
    written().write_text(short)
    path = written()
    path.write_text(short)
    assert read_genesis_file(path) == whole


def test_the_untouched_example_says_which_key_to_fill_in(tmp_path):
    path = tmp_path / "genesis.toml"
    path.write_text(example())
    said = mistake("init", path)
    assert said.startswith(f"{path}: issuing_key: '<ISSUING KEY>' is not a public key")
    assert "ledger init --example" in said


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('market = "village"', 'market = "A village"', "market"),
        ("start = 2026-07-01T00:00:00Z", "start = 2026-07-01T00:00:00", "time zone"),
        ("start = 2026-07-01T00:00:00Z", "", "start: missing"),
        ("slot_length_s = 900 ", "slot_length_s = 1 ", "slot_length_s: 1 is outside"),
        ("slot_length_s = 900 ", 'slot_length_s = "900"', "slot_length_s"),
        ("slot_length_s = 900 ", "slotLengthS = 900 ", "snake_case"),
        ("window_slots = 8 ", "window_slot = 8 ", "window_slot"),
        ("retail_uc_per_kwh = 300_000 ", "retail_uc_per_kwh = -1 ", "prices.retail_uc_per_kwh"),
        ("per_block_uc = 0 ", "per_block_uc = 1_000_000_000 ", "per_block_uc"),
        ('controller = "home-02"', "", "controller"),
        ('controller = "home-02"', 'id = "hg1x"', "validators[2].id: does not belong"),
        ("[supervisor]", "[other]", "supervisor: missing"),
        ("[[validators]]", "[[voters]]", "validators: missing"),
        ('market = "village"', 'market = "village', "not TOML"),
        ('market = "village"', 'chain_id = "hg-x"\nmarket = "village"', "chain_id: remove it"),
    ],
)
def test_a_mistake_in_the_file_names_file_key_and_remedy(written, tmp_path, old, new, reason):
    path = written(old, new)
    said = mistake("init", path, "--folder", tmp_path / "new")
    assert said.startswith(f"{path}: ")
    assert reason in said
    assert "ledger init --example" in said
    assert not (tmp_path / "new" / "genesis.json").exists()


def test_a_genesis_is_never_overwritten(written, tmp_path):
    target = tmp_path / "genesis.json"
    target.write_text("mine")
    assert "is there already" in mistake("init", written(), "--folder", tmp_path)
    assert target.read_text() == "mine"
    assert "give a TOML file" in mistake("init")
    assert "cannot be read" in mistake("init", tmp_path / "none.toml")


def test_a_key_is_made_once_and_kept_private(tmp_path):
    path = tmp_path / "validator.key"
    made = json.loads(ledger("key", path, "--json").output)
    assert path.stat().st_mode & 0o777 == 0o600
    assert made["id"] == read_key(path).id
    assert len(made["onion"]) == 43
    assert json.loads(ledger("key", path, "--json").output) == made
    assert to_text(read_key(path).seed) not in ledger("key", path).output


# --- run ------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    """A chain folder with keys in it."""
    write_genesis(make_genesis(), tmp_path / "genesis.json")
    write_secret(tmp_path / "validator.key", VALIDATORS[0].seed)
    write_secret(tmp_path / "other.key", key("observer").seed)
    return tmp_path


@pytest.fixture
def started(home, monkeypatch):
    """Run with a key, but for the node itself."""
    monkeypatch.setattr(process, "read_certificate", lambda _path: None)
    monkeypatch.setattr(process, "run_service", lambda _main: None)

    def start(name: str, *words: str):
        return ledger(
            "run", home, "--key-file", home / f"{name}.key", "--certificate", home / "c", *words
        )

    return start


def test_full_refuses_a_validators_key_because_it_would_vote(started):
    said = started("validator", "--role", "full")
    assert isinstance(said.exception, ConfigError)
    assert "would vote" in str(said.exception)
    assert "--role validator" in str(said.exception)
    assert started("other", "--role", "full").exit_code == 0


def test_a_validator_without_a_seat_is_told_that_it_watches(home):
    genesis = load_genesis(home / "genesis.json")
    other = key("observer").id
    role, warning = decide(Role.VALIDATOR, standing(genesis, home, other), other)
    assert role is Role.VALIDATOR
    assert "watches until the chain seats it" in warning
    me = VALIDATORS[0].id
    assert decide(Role.VALIDATOR, standing(genesis, home, me), me) == (Role.VALIDATOR, "")


def test_without_a_role_the_key_decides(home):
    genesis = load_genesis(home / "genesis.json")
    for name, role in ((VALIDATORS[0].id, Role.VALIDATOR), (key("observer").id, Role.FULL)):
        assert decide(None, standing(genesis, home, name), name) == (role, "")


def test_the_chain_says_who_validates_once_there_is_one(little):
    chain, folder = little
    assert standing(chain.genesis, folder, VALIDATORS[3].id) == "active"
    assert standing(chain.genesis, folder, ANN.id) == ""


def test_a_light_client_has_nothing_to_serve(started):
    said = started("other", "--role", "light", "--http", "127.0.0.1:0")
    assert "use --role full" in str(said.exception)


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8334", ("127.0.0.1", 8334)), (":0", ("127.0.0.1", 0)),
     ("8334", ("127.0.0.1", 8334)), ("[::1]:80", ("::1", 80)), ("0.0.0.0:1", ("0.0.0.0", 1))],
)  # fmt: skip
def test_an_address_for_the_api_is_loopback_unless_named(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:x"])
def test_a_bad_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="expected HOST:PORT, like"):
        parse_address(text)


def test_a_port_that_is_taken_is_one_line(started):
    with listen("127.0.0.1", 0, "--http") as taken:
        said = started("other", "--http", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "give another port" in str(said.exception)


# --- status, evidence, peers ----------------------------------------------------------------------


def test_status_shows_the_tip(little):
    chain, folder = little
    facts = json.loads(ledger("status", folder, "--json").output)
    assert facts["height"] == chain.store.height
    assert facts["chainId"] == chain.chain_id
    assert f"height: {chain.store.height}\n" in ledger("status", folder).output


def test_evidence_reads_like_a_sentence_and_as_json(folder, tmp_path):
    said = ledger("evidence", folder).output
    assert f"open: {VALIDATORS[2].id} in epoch 1, view 7: notarize 0101" in said
    (one,) = json.loads(ledger("evidence", folder, "--json").output)["evidence"]
    assert one["judged"] is False


def test_no_evidence_is_said(tmp_path):
    chain = little_chain(tmp_path)
    chain.store._db.execute("DELETE FROM evidence")
    chain.store.close()
    assert ledger("evidence", tmp_path).output.startswith("no evidence")


def test_peers_asks_the_running_node_that_the_folder_names(little, tmp_path):
    chain, folder = little
    api = build_app(chain.genesis, folder, clock_from_environment(), LittleNode(chain))
    with serving(api) as address:
        (tmp_path / URL_FILE).write_text(address + "/\n")
        said = ledger("peers", tmp_path).output
        answer = json.loads(ledger("peers", "--url", address, "--json").output)
    assert f"{VALIDATORS[1].id}: " in said
    assert "finalize in epoch 2, view 5, block 8 (12 votes)" in said
    assert f"{VALIDATORS[3].id}: not heard since the node started" in said
    assert answer["silent"] == [VALIDATORS[3].id]
    assert "is the node running?" in mistake("peers", tmp_path)


def test_peers_says_how_to_serve_the_api_or_what_is_refused(little, tmp_path):
    assert "ledger run --http" in mistake("peers", tmp_path)
    assert "expected an address like" in mistake("peers", "--url", "file:///etc/passwd")
    chain, folder = little
    with serving(build_app(chain.genesis, folder, clock_from_environment())) as address:
        assert "no node is running here" in mistake("peers", "--url", address)


# --- export ---------------------------------------------------------------------------------------


def lines(*words) -> list[dict]:
    return [json.loads(line) for line in ledger("export", *words).stdout.splitlines()]


def test_blocks_receipts_transactions_and_events_leave_as_json_lines(little):
    chain, folder = little
    tip = chain.store.height
    blocks = lines("blocks", folder)
    assert [one["height"] for one in blocks] == list(range(1, tip + 1))
    assert blocks[1]["parentHash"] == blocks[0]["hash"]
    transactions, receipts = lines("transactions", folder), lines("receipts", folder)
    assert [one["txid"] for one in transactions] == [one["txid"] for one in receipts]
    assert len(transactions) == sum(one["nTx"] for one in blocks)
    assert {"register-address", "bid-offer"} <= {
        operation["op"] for one in transactions for operation in one["operations"]
    }
    events = lines("events", folder, "--from", 1, "--to", 1)
    assert {one["height"] for one in events} == {1}
    assert "address-registered" in {one["event"] for one in events}


def test_a_range_is_what_was_asked_for(folder):
    assert [one["height"] for one in lines("blocks", folder, "--from", 2, "--to", 3)] == [2, 3]
    assert lines("blocks", folder, "--from", 99_999) == []


def test_a_folder_without_its_old_blocks_is_exported_from_where_it_begins(tmp_path):
    chain = little_chain(tmp_path)
    chain.store.drop_blocks(2, lambda _height: (), ("market", "wallet", "poe"))
    chain.store.close()
    assert lines("blocks", tmp_path)[0]["height"] == 3
    assert "begins at block 3" in mistake("export", "blocks", tmp_path, "--from", 1)


@pytest.mark.parametrize("what", ["blocks", "transactions", "receipts", "events"])
def test_csv_has_a_heading_and_as_many_lines(folder, what):
    rows = list(csv.reader(io.StringIO(ledger("export", what, folder, "--format", "csv").stdout)))
    assert rows[0][0] == "height"
    assert len(rows) == 1 + len(lines(what, folder))
    assert {len(row) for row in rows} == {len(rows[0])}


def test_an_export_goes_to_a_new_file_only(folder, tmp_path):
    out = tmp_path / "blocks.jsonl"
    assert ledger("export", "blocks", folder, "--out", out).exit_code == 0
    assert len(out.read_text().splitlines()) == len(lines("blocks", folder))
    assert "is there already" in mistake("export", "blocks", folder, "--out", out)


def test_an_export_that_cannot_be_says_why(folder, tmp_path):
    assert "below --from 3" in mistake("export", "blocks", folder, "--from", 3, "--to", 2)
    assert "give one" in mistake("export", "blocks", folder, "--format", "csv", "--json")
    write_genesis(make_genesis(), tmp_path / "genesis.json")
    for words in (("status",), ("evidence",), ("export", "blocks")):
        assert "no chain here yet" in mistake(*words, tmp_path)
        assert "genesis.json" in mistake(*words, tmp_path / "nowhere")
    (tmp_path / "ledger.sqlite").write_text("this is not a database, not at all")
    for words in (("status",), ("evidence",), ("export", "blocks")):
        assert "cannot be read" in mistake(*words, tmp_path)


# --- all ------------------------------------------------------------------------------------------

COMMANDS = ("init", "key", "run", "status", "verify", "evidence", "peers", "export", "check-proof",
            "checkpoint", "prove balance", "prove receipt", "prove inclusion")  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_and_has_json(command):
    said = re.sub(r"\x1b\[[0-9;]*m", "", ledger(*command.split(), "--help").output)
    assert command == "run" or "--json" in said
    assert len(said) > 300


def test_prove_and_checkpoint_speak_json(folder, tmp_path):
    facts = json.loads(ledger("prove", "balance", ANN.id, "--folder", folder, "--json").output)
    assert facts["claim"]["key"] == f"account/{ANN.id}"
    out = tmp_path / "point.json"
    made = json.loads(ledger("checkpoint", folder, "--out", out, "--json").output)
    assert made["height"] == json.loads(out.read_text())["height"]


def test_as_a_program_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "ledger.cli", "status", str(tmp_path / "nowhere")]
    environment = {**os.environ, "PYTHONPATH": str(process.__file__).rsplit("/ledger/", 1)[0]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ledger: ")
    assert done.stderr.count("\n") == 1
