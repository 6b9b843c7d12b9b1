"""What a home refuses of a firmware repository, by name, over HTTP; and what it takes."""

import json
import shutil
from datetime import timedelta

import pytest
from support.firmware import MODEL, VENDOR, Makers, showing

from hem.firmware_client import Question, choose, consult, find, image_path, metadata_files, taken
from hem.firmware_worker import consult as consult_here
from wire.errors import FirmwareRefusedError, Refusal
from wire.firmware import Plate

PLATE = Plate(type="hearthgrid-rm1", vendor=VENDOR, model=MODEL, serial="1", firmware="1.0")
DAY = timedelta(days=1)


@pytest.fixture
def makers(tmp_path):
    return Makers(tmp_path / "makers")


@pytest.fixture
def home(tmp_path, makers):
    """A function: ask the server as the same home every time."""
    state = tmp_path / "state"
    root = tmp_path / "root.json"
    shutil.copy(makers.root, root)

    def ask(url, wanted=""):
        question = Question(root=str(root), state=str(state), url=url, wanted=wanted)
        return taken(consult_here(question))

    ask.state, ask.root = state, root
    return ask


def refused(refusal, ask, *words):
    with pytest.raises(FirmwareRefusedError) as caught:
        ask(*words)
    assert caught.value.refusal is refusal, caught.value


def show(makers, server):
    """Show the newest, in the place of what was shown."""
    shutil.copytree(makers.public, server.folder, dirs_exist_ok=True)


def test_a_file_is_found_by_what_it_is_for_fetched_and_verified(makers, home):
    name = makers.release("2.0", b"new" * 1000)
    makers.release("9.0", b"x", model="RM-2")
    with showing(makers.public) as server:
        file, target = choose(home(server.url), PLATE)
        assert (file.name, target.version) == (name, "2.0")
        home(server.url, file.name)
        assert image_path(home.state, name).read_bytes() == b"new" * 1000


def test_a_repository_frozen_at_an_old_timestamp_is_refused(makers, home):
    with showing(makers.public) as server:
        home(server.url)
        makers.repository(2 * DAY).publish(makers.drawers)  # its timestamp ended a day ago
        show(makers, server)
        refused(Refusal.FROZEN, home, server.url)


def test_metadata_that_has_expired_is_refused(tmp_path, makers, home):
    makers.repository(200 * DAY).publish(makers.drawers)
    makers.repository().renew()  # the service goes on signing; nobody has signed the targets
    with showing(makers.public) as server:
        refused(Refusal.METADATA_EXPIRED, home, server.url)


def test_older_metadata_than_was_seen_is_a_rollback(makers, home):
    with showing(makers.public) as server:
        makers.release("2.0", b"vulnerable")
        show(makers, server)
        old = (server.folder / "metadata/timestamp.json").read_bytes()
        home(server.url)
        makers.release("2.1", b"patched")
        show(makers, server)
        home(server.url)
        (server.folder / "metadata/timestamp.json").write_bytes(old)
        refused(Refusal.ROLLED_BACK, home, server.url)


def test_files_of_two_days_do_not_mix(makers, home):
    makers.release("2.0", b"one")
    with showing(makers.public) as server:
        metadata = server.folder / "metadata"
        newest = max(int(path.name.split(".")[0]) for path in metadata.glob("*.targets.json"))
        shutil.copy(metadata / f"{newest - 1}.targets.json", metadata / f"{newest}.targets.json")
        refused(Refusal.MIXED_METADATA, home, server.url)
        makers.release("2.1", b"two")
        show(makers, server)
        newest = max(int(path.name.split(".")[0]) for path in metadata.glob("*.snapshot.json"))
        shutil.copy(metadata / f"{newest - 1}.snapshot.json", metadata / f"{newest}.snapshot.json")
        refused(Refusal.MIXED_METADATA, home, server.url)


def test_a_file_with_other_bytes_or_too_few_of_them_is_not_taken(makers, home):
    name = makers.release("2.0", b"new" * 1000)
    with showing(makers.public) as server:
        (path,) = (server.folder / "targets").glob(f"*{name}")
        for content in (b"bad" * 1000, b"new" * 999):
            path.write_bytes(content)
            refused(Refusal.WRONG_DIGEST, home, server.url, name)
        assert not image_path(home.state, name).exists()


def test_endless_data_ends_at_what_was_promised(makers, home):
    name = makers.release("2.0", b"new" * 1000)
    with showing(makers.public) as server:
        server.endless = {name}
        refused(Refusal.ENDLESS, home, server.url, name)
        server.endless = {"timestamp.json"}
        refused(Refusal.ENDLESS, home, server.url)


def test_a_root_is_followed_only_with_enough_signatures_of_the_one_before(makers, home):
    with showing(makers.public) as server:
        makers.repository().rotate("root", makers.drawers)
        path = makers.public / "metadata/2.root.json"
        good = path.read_bytes()
        root = json.loads(good)
        old = json.loads(makers.root.read_bytes())["signed"]["roles"]["root"]["keyids"]
        root["signatures"] = [
            one for one in root["signatures"] if one["keyid"] not in old[:1] + old[1:2]
        ]  # two of the new root's keys, one of them old
        path.write_text(json.dumps(root))
        show(makers, server)
        refused(Refusal.TOO_FEW_SIGNATURES, home, server.url)
        path.write_bytes(good)
        show(makers, server)
        home(server.url)
        assert len(metadata_files(home.state)) == 5, "both roots are there to be handed on"


def test_a_stolen_online_key_signs_no_files(makers, home):
    """The targets are signed by a key that is not on the server."""
    makers.release("2.0", b"new")
    keys = makers.public / "keys"
    shutil.copy(keys / "snapshot.key", keys / "targets.key")
    with showing(makers.public) as server:
        path = max((server.folder / "metadata").glob("*.targets.json"))
        forged = json.loads(path.read_text())
        (one,) = forged["signed"]["targets"].values()
        one["custom"]["version"] = "3.0"
        path.write_text(json.dumps(forged))
        refused(Refusal.TOO_FEW_SIGNATURES, home, server.url)


def test_nonsense_is_malformed_and_a_server_that_is_away_is_no_refusal(makers, home):
    with showing(makers.public) as server:
        (server.folder / "metadata/timestamp.json").write_bytes(b"{")
        refused(Refusal.MALFORMED, home, server.url)
    question = Question(root=str(home.root), state=str(home.state), url="http://127.0.0.1:9")
    assert consult_here(question).away


@pytest.mark.parametrize(
    ("version", "facts", "refusal"),
    [
        ("0.9", {}, Refusal.DOWNGRADED),
        ("1.0", {}, Refusal.DOWNGRADED),
        ("2.0", {"vendor": "Else"}, Refusal.OTHER_DEVICE),
        ("2.0", {"model": "RM-2"}, Refusal.OTHER_DEVICE),
        ("2.0", {"template": "eastron-sdm120"}, Refusal.OTHER_DEVICE),
        ("2.0", {"from_versions": ["1.9"]}, Refusal.NOT_FROM_HERE),
    ],
)
def test_a_signed_file_that_does_not_fit_is_neither_chosen_nor_believed(
    makers, home, version, facts, refusal
):
    from wire.firmware import check_fits  # noqa: PLC0415

    name = makers.release(version, b"x", **facts)
    with showing(makers.public) as server:
        files = home(server.url)
    assert choose(files, PLATE) is None
    refused(refusal, check_fits, find(files, name)[1], PLATE)


async def test_the_child_says_what_the_worker_says(makers, home):
    """One question to a real process: the answer, and a refusal, arrive as they are."""
    makers.release("2.0", b"new")
    with showing(makers.public) as server:
        question = Question(root=str(home.root), state=str(home.state), url=server.url)
        assert [file.name for file in await consult(question)] == [f"{MODEL}-2.0.bin"]
