"""What both storages promise, and what only PostgreSQL has to."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from support.brokers import REPOSITORY
from support.csmdb_site import NOW_MS, StandingClock, enrolled, run_csmdb
from support.patience import PATIENCE_S

from csmdb.config import open_storage
from csmdb.schema import MIGRATIONS
from csmdb.setup import open_csmdb
from csmdb.storage import StorageDownError


def test_writers_in_several_processes_take_turns(csmdb):
    """No number of a certificate comes twice, and the log is one chain."""

    def many(name):
        with open_csmdb(csmdb.folder, clock=StandingClock()) as own:
            for number in range(15):
                enrolled(own, f"{name}-{number}")

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(many, ["a", "b", "c"]))
    rows = csmdb.repository.db.query("SELECT serial_no FROM certificates ORDER BY serial_no")
    assert [row["serial_no"] for row in rows] == list(range(1, 47))
    csmdb.repository.check_audit()


def test_a_transaction_inside_another_ends_with_it(csmdb):
    home = enrolled(csmdb)
    rows = csmdb.repository
    with pytest.raises(ZeroDivisionError), rows.atomic():
        with rows.atomic():
            rows.set_ban(home.ems.id, "inner")
        raise ZeroDivisionError
    assert rows.participant(home.ems.id).banned == ""


def test_a_database_is_migrated_once(csmdb, storage_url):
    table = "schema_migrations" if storage_url else "_sqlite_migrations"
    rows = csmdb.repository.db.query(f"SELECT name FROM {table}")
    assert {row["name"] for row in rows} == {migration.name for migration in MIGRATIONS}
    with closing(open_storage(csmdb.folder)) as again:
        assert list(again.applied) == []


def test_texts_sort_by_bytes_so_that_pages_of_addresses_are_whole(csmdb):
    for name in ("hg1b", "hg1A", "hg1a", "hg1-", "hg1_"):
        csmdb.repository.db.execute(
            "INSERT INTO claims (code_hash, roles, max_import_w, max_export_w, feeder, validator,"
            " expires_ms) VALUES (?, '[]', 0, 0, '', '', 0)",
            [name],
        )
    rows = csmdb.repository.db.query("SELECT code_hash FROM claims ORDER BY code_hash")
    names = [row["code_hash"] for row in rows]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[storage]\nurl = 'mysql://x'\n", "storage.url"),
        ("[storage]\npath = 'x'\n", "storage.path"),
        ("[storage\n", "not TOML"),
        ("[storage]\nurl = 'postgresql://u:geheim@127.0.0.1:1/db'\n", "storage.url"),
        ("[storage]\nurl = 'postgresql://u:geheim@[/db'\n", "storage.url"),
    ],
)
def test_a_wrong_configuration_is_one_line_without_the_password(tmp_path, text, message):
    run_csmdb("init", tmp_path / "db", "--market", "test")
    (tmp_path / "db" / "csmdb.toml").write_text(text)
    error = run_csmdb("list", tmp_path / "db", code=2)
    assert "csmdb.toml" in error
    assert message in error
    assert "geheim" not in error
    assert error.count("\n") == 1


def test_without_psycopg_the_extra_is_named(tmp_path):
    run_csmdb("init", tmp_path / "db", "--market", "test")
    (tmp_path / "db" / "csmdb.toml").write_text("[storage]\nurl = 'postgresql://x/y'\n")
    hidden = "import sys; sys.modules['psycopg'] = None; import csmdb.cli; csmdb.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "list", str(tmp_path / "db")],
        capture_output=True, check=False, text=True, cwd=REPOSITORY, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert "hearthgrid[postgres]" in done.stderr


def test_a_second_database_on_the_same_tables_is_refused(postgres, tmp_path):
    url = postgres.fresh()
    run_csmdb("init", tmp_path / "one", "--market", "test", "--storage", url)
    assert (tmp_path / "one" / "csmdb.toml").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "one" / "csmdb.sqlite").exists()
    words = ["init", tmp_path / "two", "--market", "test", "--storage", url]
    assert "give an empty one" in run_csmdb(*words, code=2)


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
def test_a_server_that_let_go_is_connected_to_again(csmdb, postgres):
    home = enrolled(csmdb, "home-1")
    postgres.drop_connections()
    assert csmdb.repository.participant(home.ems.id) is not None
    postgres.drop_connections()
    enrolled(csmdb, "home-2")
    csmdb.repository.check_audit()


@pytest.mark.parametrize("storage_url", ["postgresql"], indirect=True)
def test_a_connection_lost_in_a_transaction_does_nothing_of_it(csmdb, postgres):
    home = enrolled(csmdb, "home-1")
    rows = csmdb.repository

    with pytest.raises(StorageDownError), rows.atomic():
        rows.set_ban(home.ems.id, "why")
        postgres.drop_connections()
        rows.audit(NOW_MS, "operator", "ban", "OK", "", subject=home.ems.id)
    assert rows.participant(home.ems.id).banned == ""
    rows.check_audit()
