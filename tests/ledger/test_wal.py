"""The vote log gives back what was synced, and never half an entry."""

import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.wal import WriteAheadLog


def written(path, *entries):
    log = WriteAheadLog(path)
    for entry in entries:
        log.append(entry)
    log.close()
    return path


def test_what_was_synced_is_there_again_in_order(tmp_path):
    path = written(tmp_path / "votes.wal", b"one", b"two")
    log = WriteAheadLog(path)
    log.append(b"three")
    log.sync()
    assert log.entries() == [b"one", b"two", b"three"]
    assert log.size_bytes == path.stat().st_size
    assert log.truncated_bytes == 0


def test_nothing_reaches_the_file_before_sync(tmp_path):
    log = WriteAheadLog(tmp_path / "votes.wal")
    log.append(b"one")
    assert log.entries() == []
    log.sync()
    assert log.entries() == [b"one"]


def test_one_sync_is_one_disk_flush(tmp_path, monkeypatch):
    flushes = []
    monkeypatch.setattr("os.fdatasync", flushes.append)
    log = WriteAheadLog(tmp_path / "votes.wal")
    for number in range(10):
        log.append(bytes([number]))
    log.sync()
    log.sync()
    assert len(flushes) == 1


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 40))
def test_a_log_cut_anywhere_keeps_its_whole_entries_and_goes_on(tmp_path_factory, cut):
    path = written(tmp_path_factory.mktemp("wal") / "votes.wal", b"alpha", b"beta", b"gamma")
    data = path.read_bytes()
    path.write_bytes(data[: min(cut, len(data))])
    log = WriteAheadLog(path)
    whole = [b"alpha", b"beta", b"gamma"][: (cut >= 13) + (cut >= 25) + (cut >= 38)]
    assert log.entries() == whole
    log.append(b"delta")
    log.close()
    assert WriteAheadLog(path).entries() == [*whole, b"delta"]


def test_a_changed_byte_ends_the_log(tmp_path):
    path = written(tmp_path / "votes.wal", b"alpha", b"beta", b"gamma")
    data = bytearray(path.read_bytes())
    data[13 + 8] ^= 1
    path.write_bytes(data)
    log = WriteAheadLog(path)
    assert log.entries() == [b"alpha"]
    assert log.truncated_bytes == len(data) - 13


def test_zeros_at_the_end_are_cut_off(tmp_path):
    path = written(tmp_path / "votes.wal", b"alpha")
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert zlib.crc32(b"") == 0, "an empty entry of zeros would pass its checksum"
    assert WriteAheadLog(path).entries() == [b"alpha"]


def test_rewrite_replaces_everything_in_one_step(tmp_path):
    path = written(tmp_path / "votes.wal", b"alpha", b"beta")
    log = WriteAheadLog(path)
    log.append(b"unsynced")
    log.rewrite([b"gamma"])
    log.append(b"delta")
    log.sync()
    assert log.entries() == [b"gamma", b"delta"]
    assert list(tmp_path.iterdir()) == [path]
