"""The home's keys: made once, on the device, readable by its owner only, whole or not at all."""

import stat

import pytest

from hem.ems.keyring import Keyring
from runtime import keyfiles
from runtime.keyfiles import read_secret, write_secret
from runtime.rng import SystemRng
from wire.errors import ConfigError


def test_keys_are_made_when_first_asked_for_and_stay(tmp_path):
    ring = Keyring(tmp_path / "keys", SystemRng())
    ids = [ring.ems.id, ring.address(1).id, ring.address(2).id]
    assert len(set(ids)) == 3
    again = Keyring(tmp_path / "keys", SystemRng())
    assert [again.ems.id, again.address(1).id, again.address(2).id] == ids


def test_only_the_owner_can_read_them(tmp_path):
    ring = Keyring(tmp_path / "keys", SystemRng())
    assert ring.ems and ring.box
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_key_that_others_may_read_is_refused(tmp_path):
    ring = Keyring(tmp_path / "keys", SystemRng())
    assert ring.ems
    (tmp_path / "keys" / "ems.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        _ = ring.ems


def test_a_key_is_never_overwritten(tmp_path):
    write_secret(tmp_path / "a.key", b"a" * 32)
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "a.key", b"b" * 32)
    assert read_secret(tmp_path / "a.key") == b"a" * 32


def test_a_power_cut_while_a_key_is_written_leaves_none(tmp_path, monkeypatch):
    def cut(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(keyfiles.os, "fsync", cut)
    with pytest.raises(KeyboardInterrupt):
        write_secret(tmp_path / "a.key", b"a" * 32)
    monkeypatch.undo()
    assert not (tmp_path / "a.key").exists()
    write_secret(tmp_path / "a.key", b"b" * 32)
    assert read_secret(tmp_path / "a.key") == b"b" * 32
    assert [path.name for path in tmp_path.iterdir()] == ["a.key"]
