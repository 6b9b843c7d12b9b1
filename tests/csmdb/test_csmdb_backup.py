"""Backup and restore of a CSM-DB."""

import json
import sqlite3
import threading

import pytest
from support.csmdb_site import NOW_MS, StandingClock, enrolled, run_csmdb

from csmdb.backup import back_up, restore
from csmdb.privacy import erase, export, set_person
from csmdb.records import Person
from csmdb.schema import TABLES
from csmdb.setup import open_csmdb
from wire.errors import ConfigError


@pytest.fixture
def home(csmdb):
    home = enrolled(csmdb)
    set_person(csmdb, home.ems.id, Person("Annemarie Musterfrau"))
    csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, NOW_MS)
    return home


def everything(csmdb):
    return {
        table: list(csmdb.repository.db.query(f"SELECT * FROM {table} ORDER BY {key}"))
        for table, key in TABLES.items()
    }


def test_a_restored_database_is_the_one_that_was_backed_up_and_goes_on(csmdb, home, tmp_path):
    said = json.loads(run_csmdb("backup", csmdb.folder, tmp_path / "b", "--json"))
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"b", "csmdb"}
    again = json.loads(run_csmdb("restore", tmp_path / "new", tmp_path / "b", "--json"))
    assert again["rows"] == said["rows"] > 10
    with open_csmdb(tmp_path / "new", clock=StandingClock()) as restored:
        assert everything(restored) == everything(csmdb)
        assert restored.id == csmdb.id
        assert restored.box.public == csmdb.box.public
        enrolled(restored, "home-2")
        restored.repository.check_audit()
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "new").glob("*.key")} == {0}


def test_every_table_is_in_a_backup(csmdb, storage_url):
    listing = (
        "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'"
        if storage_url
        else "SELECT name FROM sqlite_master WHERE type = 'table'"
    )
    names = {row["name"] for row in csmdb.repository.db.query(listing)}
    assert {name for name in names if "sqlite" not in name and "migra" not in name} == set(TABLES)


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_backup_moves_a_database_to_another_storage(csmdb, home, tmp_path, target, request):
    back_up(csmdb, tmp_path / "b")
    words = []
    if target == "postgresql":
        url = request.getfixturevalue("postgres").fresh()
        words = ["--storage", url]
    run_csmdb("restore", tmp_path / "new", tmp_path / "b", *words)
    with open_csmdb(tmp_path / "new", clock=StandingClock()) as restored:
        assert everything(restored) == everything(csmdb)
        restored.repository.check_audit()
    if words:
        again = run_csmdb("restore", tmp_path / "other", tmp_path / "b", *words, code=2)
        assert "give an empty one" in again
        assert not (tmp_path / "other").exists()


def test_a_backup_of_a_running_database_is_of_one_moment(csmdb, home, tmp_path):
    """Homes enrol meanwhile; none of them is held up, none is there by half."""
    stop, failed = threading.Event(), []

    def enrol():
        try:
            with open_csmdb(csmdb.folder, clock=StandingClock()) as other:
                number = 0
                while not stop.is_set():
                    number += 1
                    enrolled(other, f"busy-{number}")
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=enrol)
    thread.start()
    try:
        for number in range(5):
            back_up(csmdb, tmp_path / f"b{number}")
    finally:
        stop.set()
        thread.join()
    assert failed == []
    for number in range(5):
        restore(tmp_path / f"b{number}", tmp_path / f"new{number}")
        with open_csmdb(tmp_path / f"new{number}", clock=StandingClock()) as restored:
            rows = everything(restored)
            homes = {row["participant"] for row in rows["meters"]}
            certified = {row["subject"] for row in rows["certificates"]}
            assert certified == homes | {restored.id}


def test_a_backup_made_after_an_erasure_has_nothing_of_it(csmdb, home, tmp_path):
    back_up(csmdb, tmp_path / "before")
    assert b"Musterfrau" in (tmp_path / "before").read_bytes()
    erase(csmdb, home.ems.id)
    back_up(csmdb, tmp_path / "after")
    raw = (tmp_path / "after").read_bytes()
    assert b"Musterfrau" not in raw
    assert b"SN-home-1" not in raw
    restore(tmp_path / "after", tmp_path / "new")
    with open_csmdb(tmp_path / "new", clock=StandingClock()) as restored:
        assert export(restored, home.ems.id)["person"]["name"] == ""


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE participants SET max_import_w = 1", "damaged"),
        ("DELETE FROM address_grants", "damaged"),
        ("UPDATE files SET content = 'x' WHERE name = 'box.key'", "damaged"),
        ("DROP TABLE backup", "not a backup"),
        ("UPDATE backup SET manifest = '[]'", "not a backup"),
        ("UPDATE backup SET manifest = '{\"format\": 9}'", "another format"),
        ("INSERT INTO _sqlite_migrations VALUES (9, 'csmdb', 'of-tomorrow', '')", "later release"),
    ],
)
def test_a_backup_that_is_not_whole_restores_nothing(csmdb, home, tmp_path, statement, message):
    back_up(csmdb, tmp_path / "b")
    with sqlite3.connect(tmp_path / "b") as file:
        file.execute(statement)
    file.close()
    error = run_csmdb("restore", tmp_path / "new", tmp_path / "b", code=2)
    assert message in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} - {"b-wal", "b-shm"} == {"b", "csmdb"}


def test_garbage_and_what_is_not_there_are_one_line(tmp_path):
    (tmp_path / "b").write_bytes(b"SQLite format 3\0" + bytes(5000))
    for name in ("b", "nowhere"):
        assert "not a backup" in run_csmdb("restore", tmp_path / "new", tmp_path / name, code=2)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(csmdb, home, tmp_path):
    back_up(csmdb, tmp_path / "b")
    with pytest.raises(ConfigError, match="already"):
        back_up(csmdb, tmp_path / "b")
    with pytest.raises(ConfigError, match="holds something"):
        restore(tmp_path / "b", csmdb.folder)
    with pytest.raises(ConfigError, match="cannot be written"):
        back_up(csmdb, tmp_path / "no" / "b")
