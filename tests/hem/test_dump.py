"""The support bundle: useful, and searched for every secret of the home."""

from __future__ import annotations

import base64
import errno
import json
import re
import tarfile

import pytest
from home_at_hand import ADDRESS, SLOT, award, begin, register, teach

from hem.config import load_provisioning
from hem.dump import Veil, secrets_of, write_dump
from runtime.keyfiles import write_secret
from runtime.store import SqliteStore
from wire.errors import ConfigError
from wire.keys import from_text

CLAIM = "7Q2M-XXXX-PLMN-0042"
PASSWORD = "correct horse battery"


@pytest.fixture
async def lived_in(home, tmp_path):
    """A home with a past, a claim code, a password and a policy that a helper may see."""
    await register(home)
    teach(home, 500, 0)
    home.gateway.soc_permille = -1
    await begin(home, SLOT)
    home.clock.to(SLOT, 120)
    await home.trader.bid(SLOT)
    await award(home, SLOT + 1, "buy", 250)
    for number in (1, 2):
        home.keyring.address(number)
    _ = home.keyring.box
    folder = home.config.home.data_dir
    SqliteStore(folder / "outbox.sqlite").close()
    (folder / "gateway").mkdir()
    write_secret(folder / "gateway" / "meter.key", bytes(range(32)))
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "policy.toml").write_text(
        f"# mine is {ADDRESS.id}, my code {CLAIM}\nreserve_permille = 200\n"
    )
    file = tmp_path / "provisioning.toml"
    text = file.read_text().replace('claim_code = "x"', f"claim_code = '{CLAIM}'")
    file.write_text(
        text + f'[local_broker]\nuser = "ha"\npassword_file = "password"\n# {PASSWORD}\n'
    )
    return file


def bundle(path):
    with tarfile.open(path) as archive:
        return {one.name: archive.extractfile(one).read().decode() for one in archive}


def dump(file, home, target):
    config = load_provisioning(file)
    write_dump(file, config, home.grid, home.clock.now_ms(), target)
    return bundle(target)


async def test_no_secret_of_the_home_is_in_the_bundle(home, lived_in, tmp_path):
    texts = dump(lived_in, home, tmp_path / "dump.tar.gz")
    everything = "\n".join(texts.values())
    folder = home.config.home.data_dir
    secrets = [CLAIM, PASSWORD]
    for path in folder.rglob("*.key"):
        secret = path.read_text().strip()
        secrets += [secret, from_text(secret).hex() if len(secret) == 43 else secret]
    assert len(secrets) >= 2 + 2 * 4
    for secret in secrets:
        assert secret not in everything
    for name in (ADDRESS.id, home.ems_key.id):
        assert name not in everything
    assert not re.search(r"hg1[a-z2-7]{32}", everything)
    assert (tmp_path / "dump.tar.gz").stat().st_mode & 0o777 == 0o600


async def test_what_helps_is_there(home, lived_in, tmp_path):
    texts = dump(lived_in, home, tmp_path / "dump.tar.gz")
    assert "reserve_permille = 200" in texts["policy.toml"]
    assert "[gateway]" in texts["provisioning.toml"]
    assert 'claim_code = "<redacted>"' in texts["provisioning.toml"]
    status = json.loads(texts["status.json"])
    assert status["positions"][0]["markets"] == {"double-auction": {"boughtWh": 250, "soldWh": 0}}
    assert status["address"] == "id-1" or re.fullmatch(r"id-\d+", status["address"])
    assert json.loads(texts["decisions.json"])[0]["slot"] == SLOT + 1
    assert json.loads(texts["rows.json"])["ems.sqlite"]["decision"] >= 1
    assert json.loads(texts["versions.json"])["python"]
    files = {row["file"]: row["mode"] for row in json.loads(texts["files.json"])["files"]}
    assert files["keys/ems.key"] == "0o600"


async def test_a_broken_part_says_why_and_stops_nothing(home, lived_in, tmp_path):
    store = SqliteStore(home.config.home.data_dir / "ems.sqlite")
    with store.atomic():
        store.put("balance", b"nonsense")
    store.close()
    texts = dump(lived_in, home, tmp_path / "dump.tar.gz")
    assert "error" in json.loads(texts["status.json"])
    assert json.loads(texts["versions.json"])["python"]


async def test_a_full_disk_is_one_line_and_leaves_no_half_bundle(
    home, lived_in, tmp_path, monkeypatch
):
    """Who makes room and tries again is not told that the file is there already."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        dump(lived_in, home, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


async def test_a_bundle_never_overwrites(home, lived_in, tmp_path):
    (tmp_path / "there").write_text("precious")
    with pytest.raises(ConfigError, match="is there already"):
        dump(lived_in, home, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "precious"


def test_every_form_of_a_key_is_a_secret(home, tmp_path):
    home.keyring.address(1)
    found = secrets_of(home.config)
    text = (home.config.home.data_dir / "keys" / "address-1.key").read_text().strip()
    raw = from_text(text)
    assert {text, raw.hex(), base64.b64encode(raw).decode()} <= found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a hg1" + "a" * 32 + " b hg1" + "b" * 32 + " hg1" + "a" * 32, "a id-1 b id-2 id-1"),
        ("k=" + "A" * 43, "k=<redacted>"),
        ("ab" * 32, "<redacted>"),
        ("open-sesame!", "<redacted>!"),
        ("password = 'hi'", 'password = "<redacted>"'),
        ("  Claim_Code=abc # x", '  Claim_Code="<redacted>"'),
        ("port = 1883", "port = 1883"),
    ],
)
def test_the_veil_hides_secrets_keys_and_names_and_nothing_else(text, shown):
    assert Veil(["open-sesame", "x"]).over(text) == shown
