"""The repository's commands, what is served of it, and keys that stay in their drawers."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from support.firmware import Makers, showing, target
from support.http import get, serving
from support.patience import PATIENCE_S
from typer.testing import CliRunner

from csmdb.cli import app
from csmdb.config import load_config
from csmdb.firmware_http import build_app
from csmdb.firmware_repository import FirmwareRepository
from csmdb.process import FIRMWARE_URL_FILE, _firmware
from csmdb.setup import create
from hem.firmware_client import Question, taken
from hem.firmware_worker import consult
from wire.errors import ConfigError, FirmwareRefusedError

FACTS = ["--vendor", "Hearthgrid", "--model", "RM-1", "--template", "hearthgrid-rm1",
         "--installs-by", "registers"]  # fmt: skip
DAY = timedelta(days=1)


@pytest.fixture
def makers(tmp_path):
    return Makers(tmp_path)


def run(*words, code=0):
    done = CliRunner().invoke(app, ["firmware", *map(str, words)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.exception if code else done.output


def seen(makers, home, server):
    """The versions that a home sees."""
    home.mkdir(exist_ok=True)
    (home / "root.json").write_bytes(makers.root.read_bytes())
    question = Question(root=str(home / "root.json"), state=str(home), url=server.url)
    return [file.custom["version"] for file in taken(consult(question))]


def test_from_init_to_a_home_that_sees_the_file_by_commands(tmp_path):
    create(tmp_path / "db", "test").close()
    drawers = [word for n in "abc" for word in ("--keys", tmp_path / n)]
    root = json.loads(run("init", tmp_path / "db", *drawers, "--json"))
    assert root == {"root": str(tmp_path / "db/firmware/metadata/1.root.json"),
                    "rootKeys": 3, "threshold": 2}  # fmt: skip
    file = tmp_path / "RM-1-2.0.bin"
    file.write_bytes(b"firmware")
    added = json.loads(run("add", tmp_path / "db", file, "--version", "2.0", *FACTS, "--json"))
    assert (added["published"], added["length"]) == (False, 8)
    assert "(not published)" in run("list", tmp_path / "db")
    assert "version 2" in run("publish", tmp_path / "db", "--keys", tmp_path / "a")
    (row,) = json.loads(run("list", tmp_path / "db", "--json"))
    assert (row["published"], row["version"], row["fromVersions"]) == (True, "2.0", [])
    for role in ("root", "targets", "snapshot", "timestamp"):
        assert f"{role} has a new key" in run("rotate", tmp_path / "db", role, *drawers)

    class Shown:
        root = tmp_path / "db/firmware/metadata/1.root.json"

    with showing(tmp_path / "db/firmware") as server:
        assert seen(Shown, tmp_path / "home", server) == ["2.0"]


def test_no_offline_key_is_on_the_server_and_every_key_is_its_owner_s_alone(tmp_path, makers):
    keys = {path.name: path for path in (makers.public / "keys").iterdir()}
    assert set(keys) == {"snapshot.key", "timestamp.key"}
    drawn = [path.name for drawer in makers.drawers for path in sorted(drawer.iterdir())]
    assert drawn == ["root-1.key", "targets.key", "root-2.key", "root-3.key"]
    for path in (*keys.values(), *tmp_path.glob("drawer-*/*.key")):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_cannot_be_published_nor_a_key_rotated_without_the_drawers(makers):
    repository = makers.repository()
    with pytest.raises(ConfigError, match="targets' key is in none"):
        repository.publish([])
    with pytest.raises(ConfigError, match="2 of the root's keys are needed, 1 are there"):
        repository.rotate("timestamp", makers.drawers[:1])
    assert repository.renew() == []
    assert [path.name for path in (makers.public / "keys").iterdir()] != []
    assert not list((makers.public / "keys").glob("timestamp-*")), "no key is left behind"


def test_the_service_signs_anew_what_is_half_over_and_homes_go_on(tmp_path, makers):
    makers.release("2.0", b"x", ago=6 * DAY)
    with showing(makers.public) as server, pytest.raises(FirmwareRefusedError, match="FROZEN"):
        seen(makers, tmp_path / "home", server)
    assert makers.repository().renew() == ["snapshot", "timestamp"]
    assert makers.repository().renew() == []
    assert makers.repository(-DAY / 4 * 3).renew() == ["timestamp"]
    with showing(makers.public) as server:
        assert seen(makers, tmp_path / "home", server) == ["2.0"]


@pytest.mark.parametrize(
    ("name", "content", "facts", "said"),
    [
        ("a b.bin", b"x", {}, "letters, digits"),
        ("a.bin", b"", {}, "1 to"),
        ("a.bin", b"x", {"version": "soon"}, "not a version"),
        ("a.bin", b"x", {"vendor": ""}, "vendor"),
    ],
)
def test_a_file_that_no_home_would_take_is_not_added(makers, name, content, facts, said):
    file = makers.files / name
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        makers.repository().add(file, target(**{"version": "2.0", **facts}))


def test_mistakes_are_named(tmp_path, makers):
    with pytest.raises(ConfigError, match="there is a firmware repository already"):
        makers.repository().init(makers.drawers)
    with pytest.raises(ConfigError, match="--threshold"):
        FirmwareRepository(tmp_path / "x", datetime.now(UTC)).init([tmp_path], 1, 2)
    assert "no CSM-DB here" in str(run("list", tmp_path / "nowhere", code=1))
    create(tmp_path / "bare", "test").close()
    assert "csmdb firmware init" in str(run("list", tmp_path / "bare", code=1))


def test_what_is_served_is_read_only_has_no_keys_and_is_rate_limited(makers):
    makers.release("2.0", b"x")
    app = build_app(makers.repository(), lambda: 0.0, burst=10, per_s=0.0001)
    with serving(app) as url:
        assert get(f"{url}/metadata/timestamp.json").status == 200
        (file,) = (makers.public / "targets").iterdir()
        assert get(f"{url}/targets/{file.name}").body == b"x"
        for path in ("keys/timestamp.key", "metadata/../keys/timestamp.key", "draft.json",
                     "metadata/..%2fkeys%2ftimestamp.key", "metadata/", "lock"):  # fmt: skip
            assert get(f"{url}/{path}").status == 404, path
        assert get(f"{url}/metadata/timestamp.json", "POST").status == 405
        assert [get(f"{url}/metadata/timestamp.json").status for _ in range(3)] == [200, 429, 429]


async def test_the_service_serves_it_where_it_is_told_to(tmp_path, makers):
    with create(makers.folder, "test") as csmdb:
        (csmdb.folder / "csmdb.toml").write_text("[firmware]\nport = 0\n")
        assert load_config(csmdb.folder).firmware.host == "127.0.0.1"
        makers.release("2.0", b"x", ago=6 * DAY)
        stamp = makers.public / "metadata/timestamp.json"
        before = stamp.read_bytes()
        async with _firmware(csmdb):
            url = (csmdb.folder / FIRMWARE_URL_FILE).read_text().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
            async with asyncio.timeout(PATIENCE_S):
                while stamp.read_bytes() == before:  # it signs when it starts
                    await asyncio.sleep(0.01)
            assert makers.repository().renew() == []
