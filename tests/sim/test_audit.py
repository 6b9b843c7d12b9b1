"""
The audit passes on a whole run, and every kind of damage fails the check that is there for it.

A test names the set of checks that fail: where one damage shows in two records (a receipt that is
missing on chain was not seen by the DSO either), both say so, and no other does.
"""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from support.finished_run import HOMES, NETS_WH, SLOTS, FinishedRun

from ledger import types
from ledger.execution import ChainError, Ledger
from ledger.schedule import Epochs
from ledger.store import LedgerStore
from ledger.verify import verify_folder
from sim.audit import Audit, audit
from wire.canonical import decode, encode
from wire.errors import ConfigError
from wire.metering import Reading, digest, record_json, sign_record
from wire.transactions import parse_transaction


@pytest.fixture
def run(tmp_path: Path) -> FinishedRun:
    return FinishedRun(tmp_path / "run")


def verify_here(folder: Path) -> dict[str, Any]:
    """The verification that a demo has done by another process, without starting one."""
    try:
        return {"ok": True, **asdict(verify_folder(folder))}
    except (ChainError, ConfigError) as error:
        return {"ok": False, "error": str(error)}


def audited(run: FinishedRun) -> Audit:
    return audit(run.feeder, verify_here)


def failed(run: FinishedRun) -> set[str]:
    return set(audited(run).failed)


def line(result: Audit, name: str) -> str:
    return next(check.line for check in result.checks if check.name == name)


def change(path: Path, statement: str, *values: object) -> None:
    """Change a database behind everybody's back."""
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(statement, values).rowcount > 0, "the test changed nothing"


def everywhere(run: FinishedRun, statement: str, *values: object) -> None:
    """The same change in all validators' stores."""
    for number in range(len(run.feeder.validators)):
        change(run.chain_file(number), statement, *values)


def shorten(run: FinishedRun, number: int, blocks: int) -> None:
    """Leave a validator with a valid chain that lacks the last blocks: what it held before them."""
    path = run.chain_file(number)
    whole = LedgerStore(path.rename(path.with_suffix(".whole")), read_only=True)
    store = LedgerStore(path)
    ledger = Ledger.open(run.genesis, store)
    epochs = Epochs(run.genesis, ledger, store)
    epochs.current()
    for height in range(1, whole.height + 1 - blocks):
        block = whole.get_block(height)
        assert block is not None
        txs = [parse_transaction(whole.get_body(txid) or b"") for txid in block.txids]
        ledger.execute(block.header, txs, block.certificate)
        if block.header.seal:
            epochs.after_seal(block.header, types.decode(types.Finality, block.certificate))
    store.close()
    whole.close()


def shorten_all(run: FinishedRun, blocks: int) -> None:
    shorten(run, 0, blocks)
    for number in range(1, len(run.feeder.validators)):
        shutil.copy(run.chain_file(0), run.chain_file(number))


def edit_reading(run: FinishedRun, name: str, seq: int, **changes: int) -> None:
    """Change a stored reading; its signature is left as it was."""
    meter = run.homes[name].meter.id
    reading = replace(run.readings[name][seq], **changes)
    put_reading(run, meter, reading)


def put_reading(run: FinishedRun, meter: str, reading: Reading) -> None:
    document = encode(record_json(reading)).decode()
    query = "UPDATE readings SET document = ? WHERE meter = ? AND seq = ?"
    change(run.dso_file, query, document, meter, reading.seq)


def lie_from(run: FinishedRun, name: str, seq: int, by_wh: int) -> None:
    """The meter itself signs other registers, from a reading on: a chain without a flaw."""
    meter = run.homes[name].meter
    previous = digest(run.readings[name][seq - 1])
    for honest in run.readings[name][seq:]:
        other = replace(honest, import_wh=honest.import_wh + by_wh, previous=previous)
        signed = sign_record(other, meter, run.genesis.chain_id)
        put_reading(run, meter.id, signed)
        previous = digest(signed)


def edit_event(run: FinishedRun, name: str, edit: Callable[[dict], None]) -> None:
    """Change the first event of a name in all validators' stores."""
    for number in range(len(run.feeder.validators)):
        with closing(sqlite3.connect(run.chain_file(number))) as db, db:
            rows = db.execute(
                "SELECT height, events FROM events WHERE contract = 'market' ORDER BY height"
            )
            for height, raw in rows.fetchall():
                events = decode(bytes(raw), 1 << 20)
                found = next((event for event in events if event["event"] == name), None)
                if found is not None:
                    edit(found)
                    db.execute(
                        "UPDATE events SET events = ? WHERE contract = 'market' AND height = ?",
                        (encode(events), height),
                    )
                    break


# --- a whole run ----------------------------------------------------------------------------------


def test_a_whole_run_passes_and_the_numbers_are_those_of_the_run(run: FinishedRun) -> None:
    result = audit(run.feeder)
    assert result.passed, result.lines
    assert result.facts["receiptsOf"] == dict.fromkeys(run.homes, SLOTS)
    assert result.facts["checkedOf"] == dict.fromkeys(run.homes, SLOTS)
    assert result.facts["settledSlots"] == result.facts["clearedSlots"] == SLOTS
    assert result.facts["energy_traded_wh"] > 0
    flowed_wh = sum(sum(nets[:SLOTS]) for nets in NETS_WH.values())
    assert f"{flowed_wh} Wh settled, {flowed_wh} Wh on the registers" in line(result, "receipts")


def test_a_late_receipt_counts_when_it_was_trued_up_and_is_named(run: FinishedRun) -> None:
    result = audited(run)
    assert result.facts["lateReceipts"] == 1
    assert "1 of them late and trued up" in line(result, "receipts")


def test_the_audit_changes_nothing_it_reads(run: FinishedRun) -> None:
    first, second = audited(run), audited(run)
    assert first.lines == second.lines


# --- the chain ------------------------------------------------------------------------------------


def test_a_chain_that_stops_before_the_last_settlement_fails(run: FinishedRun) -> None:
    shorten_all(run, 2)
    result = audit(run.feeder)
    assert result.failed == ["settlement"]
    assert "is not settled: due at" in line(result, "settlement")


def test_a_valid_chain_of_half_the_run_fails(run: FinishedRun) -> None:
    shorten_all(run, 9)
    assert {"settlement", "receipts"} <= failed(run)
    assert "chain" not in failed(run)


def test_blocks_cut_off_behind_the_validators_backs_fail(run: FinishedRun) -> None:
    height = audited(run).facts["height"]
    for table in ("blocks", "events", "receipts"):
        everywhere(run, f"DELETE FROM {table} WHERE height > ?", height - 2)
    assert {"chain", "settlement"} <= set(audit(run.feeder).failed)


def test_a_slot_that_nobody_settled_fails(tmp_path: Path) -> None:
    assert failed(FinishedRun(tmp_path / "run", settled=SLOTS - 1)) == {"settlement"}


@pytest.mark.parametrize("number", [0, 3])
def test_a_stuck_validator_fails_whichever_it_is(run: FinishedRun, number: int) -> None:
    shorten(run, number, 5)
    assert failed(run) == {"nodes"}


def test_a_validator_may_lack_the_two_blocks_that_were_on_their_way(run: FinishedRun) -> None:
    shorten(run, 3, 2)
    assert failed(run) == set()
    run.chain_file(3).with_suffix(".whole").rename(run.chain_file(3))
    shorten(run, 3, 3)
    assert failed(run) == {"nodes"}


def test_a_validator_without_a_block_fails(run: FinishedRun) -> None:
    shorten(run, 2, audited(run).facts["height"])
    result = audited(run)
    assert result.failed == ["nodes"]
    assert "validator 3 is at block 0" in line(result, "nodes")


@pytest.mark.parametrize("column", ["hash", "state_root"])
def test_a_validator_with_another_block_or_state_fails(run: FinishedRun, column: str) -> None:
    statement = f"UPDATE blocks SET {column} = ? WHERE height = (SELECT max(height) FROM blocks)"
    change(run.chain_file(1), statement, bytes(32))
    assert failed(run) == {"nodes"}


@pytest.mark.parametrize("who", ["home", "supervisor"])
def test_money_put_into_an_account_fails(run: FinishedRun, who: str) -> None:
    home, supervisor = run.address("home-02", 0).id, run.genesis.supervisor.address
    key = f"account/{home if who == 'home' else supervisor}"
    row = encode({"balanceUc": 10**9, "lockedUc": 0, "nonce": 9})
    everywhere(run, "UPDATE state SET value = ? WHERE key = ?", row, key)
    assert failed(run) == {"chain", "money"}


def test_a_settlement_that_announces_another_amount_fails(run: FinishedRun) -> None:
    def edit(event: dict) -> None:
        event["rows"][0]["amountUc"] += 1

    edit_event(run, "settled", edit)
    assert failed(run) == {"chain", "money"}


def test_a_settlement_over_other_energy_than_the_receipt_fails(run: FinishedRun) -> None:
    def edit(event: dict) -> None:
        event["rows"][0]["netWh"] += 1

    edit_event(run, "settled", edit)
    assert failed(run) == {"chain", "receipts", "positions"}


def test_an_emptied_table_of_transaction_receipts_fails(run: FinishedRun) -> None:
    everywhere(run, "DELETE FROM receipts")
    assert failed(run) == {"chain", "positions", "money"}


# --- readings and receipts ------------------------------------------------------------------------


def test_an_altered_reading_fails(run: FinishedRun) -> None:
    edit_reading(run, "home-02", 2, import_wh=9_999)
    assert failed(run) == {"readings"}


def test_a_deleted_reading_fails_although_more_than_enough_are_left(run: FinishedRun) -> None:
    meter = run.homes["home-03"].meter.id
    change(run.dso_file, "DELETE FROM readings WHERE meter = ? AND seq = 2", meter)
    result = audited(run)
    assert result.failed == ["readings"]
    assert result.facts["readings"] > HOMES * SLOTS


def test_a_reading_that_does_not_follow_the_one_before_fails(run: FinishedRun) -> None:
    meter = run.homes["home-03"].meter
    other = replace(run.readings["home-03"][SLOTS + 1], previous="ab" * 32)
    put_reading(run, meter.id, sign_record(other, meter, run.genesis.chain_id))
    assert failed(run) == {"readings"}


def test_a_register_that_goes_backwards_fails(run: FinishedRun) -> None:
    lie_from(run, "home-03", SLOTS + 1, by_wh=-1_000)
    assert failed(run) == {"readings"}


def test_receipts_without_registers_around_them_fail(run: FinishedRun) -> None:
    meter = run.homes["home-03"].meter.id
    change(run.dso_file, "DELETE FROM readings WHERE meter = ? AND seq >= ?", meter, SLOTS)
    assert failed(run) == {"readings", "receipts"}


def test_a_deleted_reading_does_not_hide_a_false_receipt_beside_it(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "run", lies={("home-02", 1): NETS_WH["home-02"][1] - 50})
    meter = run.homes["home-02"].meter.id
    change(run.dso_file, "DELETE FROM readings WHERE meter = ? AND seq = 2", meter)
    assert "receipts" in failed(run)


def test_registers_that_the_meter_signed_and_no_receipt_tells_fail(run: FinishedRun) -> None:
    lie_from(run, "home-04", 2, by_wh=5)
    assert failed(run) == {"receipts"}


def test_a_receipt_that_the_registers_do_not_give_fails(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "run", lies={("home-02", 1): NETS_WH["home-02"][1] - 50})
    result = audited(run)
    assert set(result.failed) == {"receipts", "dso"}
    assert "FALSE_RECEIPT" in line(result, "dso")


def test_false_receipts_that_make_up_for_each_other_fail(tmp_path: Path) -> None:
    nets = NETS_WH["home-02"]
    lies = {("home-02", 0): nets[0] - 50, ("home-02", 1): nets[1] + 50}
    result = audited(FinishedRun(tmp_path / "run", lies=lies))
    assert set(result.failed) == {"receipts", "dso"}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_missing_receipt_fails_in_whichever_slot(tmp_path: Path, index: int) -> None:
    run = FinishedRun(tmp_path / "run", never={("home-04", index)})
    assert failed(run) == {"receipts", "dso"}


def test_a_late_receipt_that_never_came_fails(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "run", never={("home-03", 1)})
    assert failed(run) == {"receipts", "dso"}


def test_a_home_that_never_sent_a_receipt_fails(tmp_path: Path) -> None:
    result = audited(FinishedRun(tmp_path / "run", silent={"home-02"}))
    assert set(result.failed) == {"receipts", "dso"}
    assert result.facts["receiptsOf"]["home-02"] == 0


def test_a_run_without_any_receipt_fails(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "run", silent=set(NETS_WH))
    assert {"receipts", "dso"} <= failed(run)


def test_an_altered_receipt_on_chain_fails(run: FinishedRun) -> None:
    def edit(event: dict) -> None:
        event["netWh"] += 1

    edit_event(run, "receipt", edit)
    assert failed(run) == {"chain", "receipts", "dso", "positions"}


def test_receipts_and_bills_of_an_address_that_no_home_has_fail(run: FinishedRun) -> None:
    run.feeder.homes.pop()
    assert failed(run) == {"receipts", "money"}


# --- the DSO --------------------------------------------------------------------------------------


def test_an_emptied_table_of_the_dso_fails(run: FinishedRun) -> None:
    change(run.dso_file, "DELETE FROM receipts")
    assert failed(run) == {"dso"}


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM receipts WHERE rowid = 5",
        "UPDATE receipts SET status = 'open' WHERE rowid = 5",
        "UPDATE receipts SET status = 'false' WHERE rowid = 5",
        "UPDATE receipts SET net_wh = net_wh + 1 WHERE rowid = 5",
        "INSERT INTO evidence (kind, subject, detail) VALUES ('FORK', 'somebody', 'two readings')",
    ],
)
def test_one_receipt_that_the_dso_did_not_find_true_fails(run: FinishedRun, damage: str) -> None:
    change(run.dso_file, damage)
    assert failed(run) == {"dso"}


# --- files that cannot be read --------------------------------------------------------------------


def test_a_home_that_never_enrolled_fails(run: FinishedRun) -> None:
    (run.out / "homes" / "home-04" / "data" / "identity.json").unlink()
    assert {"readings", "receipts", "dso"} <= failed(run)


def test_files_that_are_not_there_fail_the_audit_and_do_not_stop_it(run: FinishedRun) -> None:
    run.dso_file.unlink()
    assert failed(run) == {"readings", "receipts", "dso"}
    run.chain_file(2).unlink()
    assert not audited(run).passed


def test_a_reading_that_is_no_reading_fails(run: FinishedRun) -> None:
    document = msgspec.json.encode({"meter": 7}).decode()
    change(run.dso_file, "UPDATE readings SET document = ? WHERE seq = 1", document)
    assert "readings" in failed(run)
