"""The Store port: SQLite and memory keep the same promises; refusals are counted by name."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import log, metrics
from runtime.store import MemoryStore, SqliteStore
from wire.errors import Refusal


@pytest.fixture(params=["sqlite", "memory"])
def store(request, tmp_path):
    made = SqliteStore(tmp_path / "kv.sqlite") if request.param == "sqlite" else MemoryStore()
    yield made
    made.close()


def test_what_is_put_is_got_until_it_is_deleted(store):
    assert store.get("a") is None
    store.put("a", b"1")
    store.put("a", b"2")
    assert store.get("a") == b"2"
    store.delete("a")
    store.delete("a")
    assert store.get("a") is None


def test_a_scan_gives_its_prefix_in_order(store):
    for key in ("b/2", "a/1", "b/10", "b", "c", "b/é", "ba"):
        store.put(key, key.encode())
    assert [key for key, _ in store.scan("b/")] == ["b/10", "b/2", "b/é"]
    assert len(list(store.scan(""))) == 7


def test_a_scan_survives_changes_made_while_it_runs(store):
    """An outbox deletes what it has sent while it walks through what it has."""
    for n in range(5):
        store.put(f"q/{n}", b"x")
    for key, _ in store.scan("q/"):
        store.delete(key)
    assert list(store.scan("q/")) == []


def test_an_error_undoes_the_whole_transaction(store):
    store.put("a", b"1")
    with pytest.raises(RuntimeError), store.atomic():
        store.put("a", b"2")
        store.put("b", b"3")
        raise RuntimeError
    assert (store.get("a"), store.get("b")) == (b"1", None)
    with store.atomic():
        store.put("b", b"3")
    assert store.get("b") == b"3"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["put", "delete"]), st.text("ab/", max_size=3))))
def test_both_stores_behave_alike(tmp_path_factory, steps):
    disk = SqliteStore(tmp_path_factory.mktemp("kv") / "kv.sqlite", "NORMAL")
    memory = MemoryStore()
    for action, key in steps:
        for one in (disk, memory):
            one.put(key, b"x") if action == "put" else one.delete(key)
    for prefix in ("", "a", "a/", "b"):
        assert list(disk.scan(prefix)) == list(memory.scan(prefix))
    disk.close()


def test_rows_are_there_when_the_file_is_opened_again(tmp_path):
    first = SqliteStore(tmp_path / "kv.sqlite")
    first.put("a", b"\x00\xff")
    first.close()
    assert SqliteStore(tmp_path / "kv.sqlite").get("a") == b"\x00\xff"


def test_what_was_committed_survives_a_killed_process(tmp_path):
    """And what was not, is gone."""
    path = tmp_path / "kv.sqlite"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom runtime.store import SqliteStore\n"
        "s = SqliteStore(Path(sys.argv[1]))\ns.put('kept', b'1')\n"
        "with s.atomic():\n    s.put('lost', b'1')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    store = SqliteStore(path)
    assert (store.get("kept"), store.get("lost")) == (b"1", None)


def test_the_journal_and_the_flush_are_what_an_outbox_needs(tmp_path):
    """A power cut must not lose what was confirmed: synchronous=FULL (2) unless asked otherwise."""
    full = SqliteStore(tmp_path / "full.sqlite")
    normal = SqliteStore(tmp_path / "normal.sqlite", "NORMAL")
    assert full._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert normal._db.execute("PRAGMA synchronous").fetchone() == (1,)
    assert full._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with pytest.raises(ValueError, match="OFF"):
        SqliteStore(tmp_path / "off.sqlite", "OFF")


def test_refusals_are_counted_by_component_and_name():
    before = metrics.refusals("test-part").get("REPLAYED", 0)
    metrics.count_refusal("test-part", Refusal.REPLAYED)
    metrics.count_refusal("test-part", Refusal.OVERSIZED)
    metrics.count_refusal("another-part", Refusal.OVERSIZED)
    assert metrics.refusals("test-part") == {"OVERSIZED": 1, "REPLAYED": before + 1}
    sample = metrics.REFUSALS.labels("test-part", "OVERSIZED")
    assert sample._value.get() == 1.0


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_log_line_names_its_component_and_level(form):
    code = (
        "from runtime.log import configure\n"
        "log = configure('tester')\nlog.debug('hidden')\nlog.warning('shown', slot=5)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HEARTHGRID_LOG_FORMAT": form, "HEARTHGRID_LOG": "info"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    if form == "json":
        row = json.loads(line)
        assert row["component"] == "tester"
        assert (row["event"], row["level"], row["slot"]) == ("shown", "warning", 5)
        assert row["timestamp"].endswith("Z")
    else:
        assert "shown" in line


def test_an_unknown_log_level_is_info(monkeypatch):
    monkeypatch.setenv("HEARTHGRID_LOG", "chatty")
    assert log.configure("tester") is not None
