"""Advisories at work: meters are banned and let in, revisions never go back, revocations follow."""

import asyncio
import hashlib
import json
import shutil

import pytest
from support.brokers import make_key
from support.csmdb_site import NOW_MS, StandingClock, enrolled, run_csmdb
from support.enrolment import AskingHome
from typer.testing import CliRunner

from csmdb import advisories
from csmdb.advisories import import_document, import_path, review_all, set_make
from csmdb.advisory_watch import AdvisoryWatch
from csmdb.cli import app
from csmdb.config import CONFIG, load_config
from csmdb.knowledge_rows import KnowledgeRows
from csmdb.privacy import erase
from csmdb.product_names import Alias
from csmdb.records import Refused
from csmdb.revocations import list_since
from csmdb.revoked_keys import revoke
from csmdb.setup import open_csmdb
from csmdb.succession import re_enrol
from runtime.metrics import refusals
from sim.scenarios.vulnerable_meter import made_up
from wire.certificates import Revocation, load
from wire.enrolment import RENEW
from wire.errors import ConfigError, FutureDatedError, RolledBackError

M1 = {"vendor": "Made up", "model": "M1"}
DSO = make_key("dso")


def revision(version, released="2026-01-05T00:00:00Z", **words):
    raw = made_up().replace(b'"version": "1"', f'"version": "{version}"'.encode())
    raw = raw.replace(b'"current_release_date": "2026-01-05T00:00:00Z"',
                      f'"current_release_date": "{released}"'.encode())  # fmt: skip
    for old, new in words.items():
        raw = raw.replace(old.encode(), new.encode())
    return raw


def take(csmdb, raw):
    done = import_document(csmdb, raw)
    review_all(csmdb)
    return done.outcome


def banned(csmdb, home):
    return csmdb.repository.participant(home.ems.id).banned


def granted(csmdb, home, number=0, **slots):
    return csmdb.desk.grant_addresses(
        home.ems.id, {"addresses": [home.address_row(number)], **slots}, NOW_MS
    )


def revoked(csmdb, after=0):
    """What the DSO is told."""
    csmdb.issue_service_certificate(DSO.public, ["dso"])
    answer = list_since(csmdb, DSO.id, {"after": after})
    issuer = csmdb.issuing_key.public
    return [load(Revocation, row, issuer, csmdb.market) for row in answer["revocations"]]


@pytest.fixture
def old(csmdb):
    return enrolled(csmdb, "old", **M1, firmware="1.0")


@pytest.fixture
def new(csmdb):
    return enrolled(csmdb, "new", **M1, firmware="1.1")


# --- bans -----------------------------------------------------------------------------------------


def test_a_named_meter_is_banned_and_let_in_when_its_firmware_is_fixed(csmdb, old, new):
    assert take(csmdb, made_up()) == "new"
    assert "MADE-UP-2026-01" in banned(csmdb, old) and not banned(csmdb, new)
    assert granted(csmdb, old).refusal.value == "BANNED"
    assert csmdb.desk.renew(old.ems.id, NOW_MS).refusal.value == "BANNED", RENEW
    assert not isinstance(granted(csmdb, new), Refused)
    done = set_make(csmdb, old.ems.id, "1.1")
    assert (done.banned, done.changed, banned(csmdb, old)) == (False, True, "")
    assert not isinstance(granted(csmdb, old), Refused)
    assert csmdb.repository.certificate_of(old.ems.id).meter[0].firmware == "1.1"
    assert set_make(csmdb, old.ems.id, "1.0").banned, "and an old one is named again"
    csmdb.repository.check_audit()


def test_firmware_that_nobody_can_compare_counts_as_vulnerable(csmdb):
    home = enrolled(csmdb, "odd", **M1, firmware="")
    take(csmdb, made_up())
    (review,) = review_all(csmdb)
    assert banned(csmdb, home) and not review.findings[0].certain


def test_a_later_revision_lets_in_whom_it_clears_and_bans_whom_it_names(csmdb, old, new):
    take(csmdb, made_up())
    swapped = revision(
        2, **{'"known_affected": ["P1"], "fixed": ["P2"]':
              '"known_affected": ["P2"], "known_not_affected": ["P1"]'}
    )  # fmt: skip
    assert take(csmdb, swapped) == "updated"
    assert not banned(csmdb, old) and banned(csmdb, new)


def test_what_is_under_investigation_is_shown_and_bans_nobody(csmdb, old):
    take(csmdb, revision(1, known_affected="under_investigation"))
    (review,) = review_all(csmdb)
    assert [one.bans for one in review.findings] == [False] and not banned(csmdb, old)


def test_an_operators_ban_and_an_advisorys_are_lifted_each_by_its_own(csmdb, old):
    csmdb.ban(old.ems.id, "tampered with")
    take(csmdb, made_up())
    assert banned(csmdb, old) == "tampered with"
    set_make(csmdb, old.ems.id, "1.1")
    assert banned(csmdb, old) == "tampered with"
    set_make(csmdb, old.ems.id, "1.0")
    csmdb.ban(old.ems.id, "")
    assert "MADE-UP" in banned(csmdb, old)
    set_make(csmdb, old.ems.id, "1.1")
    assert banned(csmdb, old) == ""


def test_an_erasure_lifts_no_ban_and_the_make_can_be_told_again(csmdb, old):
    take(csmdb, made_up())
    erase(csmdb, old.ems.id)
    review_all(csmdb)
    assert banned(csmdb, old)
    assert not set_make(csmdb, old.ems.id, "1.1", vendor="Made up", model="M1").banned
    assert not banned(csmdb, old)


def test_an_operators_words_on_names_ban_and_clear(csmdb, old):
    lab = enrolled(csmdb, "lab", vendor="Lab", model="X", firmware="1.0")
    take(csmdb, made_up())
    same = Alias("Lab", "X", "Made up", "M1", True)
    advisories.say_alias(csmdb, same)
    advisories.say_alias(csmdb, Alias("Made up", "M1", "Made up", "M1", False))
    review_all(csmdb)
    assert banned(csmdb, lab) and not banned(csmdb, old)
    advisories.say_alias(csmdb, same, remove=True)
    review_all(csmdb)
    assert not banned(csmdb, lab)
    with pytest.raises(ConfigError, match="nothing was said"):
        advisories.say_alias(csmdb, same, remove=True)


# --- revisions ------------------------------------------------------------------------------------


def test_a_revision_never_goes_back(csmdb, old):
    known = revision(3, "2026-02-01T00:00:00Z")
    assert take(csmdb, known) == "new" and take(csmdb, known) == "known"
    for older in (
        made_up(),
        revision(2, "2026-03-01T00:00:00Z"),
        revision(4, "2026-01-31T23:59:59Z"),
        revision("3.0.0", "2026-02-01T00:00:00Z", **{"Readings can": "No readings can"}),
    ):
        with pytest.raises(RolledBackError):
            import_document(csmdb, older)
    assert banned(csmdb, old)
    with pytest.raises(FutureDatedError):
        import_document(csmdb, revision(5, "2126-01-01T00:00:00Z"))
    assert take(csmdb, revision("3.0.1", "2026-02-01T00:00:00Z")) == "updated"


def test_another_publishers_advisory_of_the_same_id_is_another_one(csmdb):
    take(csmdb, made_up())
    other = made_up().replace(b"https://made-up.example", b"https://other.example")
    assert take(csmdb, other) == "new"
    assert len(KnowledgeRows(csmdb.repository.db).advisories()) == 2


def test_the_knowledge_base_is_the_same_after_it_is_opened_again(csmdb, old):
    take(csmdb, made_up())
    with open_csmdb(csmdb.folder, clock=StandingClock()) as again:
        with pytest.raises(RolledBackError):
            import_document(again, revision(0))
        (review,) = review_all(again)
        assert (review.participant, review.changed) == (old.ems.id, False)


# --- revocations ----------------------------------------------------------------------------------


def test_every_live_address_is_revoked_and_later_reinstated_and_none_that_is_past(csmdb, old, new):
    slot = csmdb.grid.slot_at(NOW_MS)
    granted(csmdb, old, 0)
    granted(csmdb, old, 1)
    granted(csmdb, old, 2, startSlot=slot - 1, endSlot=slot - 1)
    granted(csmdb, new, 0)
    take(csmdb, made_up())
    told = revoked(csmdb)
    assert {one.address for one in told} == {old.address(0).id, old.address(1).id}
    assert {(one.banned, one.reason) for one in told} == {(True, "ADVISORY")}
    assert len(csmdb.repository.revocations_of(old.ems.id)) == 2, "nothing of the past was signed"
    assert {one.advisory for one in told} == set(KnowledgeRows(csmdb.repository.db).digests())
    assert len({one.knowledge for one in told}) == 1 and len(told[0].knowledge) == 64
    assert review_all(csmdb)[0].changed is False and revoked(csmdb) == told, "said once"
    set_make(csmdb, old.ems.id, "1.1")
    again = revoked(csmdb)
    assert {(one.address, one.banned) for one in again} == {
        (old.address(0).id, False), (old.address(1).id, False),
    }  # fmt: skip
    numbers = [one.number for one in (*told, *again)]
    assert numbers == sorted(set(numbers)) and numbers[0] >= NOW_MS
    assert revoked(csmdb, after=numbers[-1]) == []


def test_an_operators_ban_is_revoked_too_without_its_words(csmdb, new):
    granted(csmdb, new)
    csmdb.ban(new.ems.id, "Ann tampered with it")
    (told,) = revoked(csmdb)
    assert (told.banned, told.reason, told.advisory) == (True, "OPERATOR", "")
    csmdb.ban(new.ems.id, "")
    (told,) = revoked(csmdb)
    assert not told.banned


def test_only_the_dso_is_told(csmdb, old):
    csmdb.issue_service_certificate(DSO.public, ["aggregator"])
    assert list_since(csmdb, DSO.id, {"after": 0}).refusal.value == "NOT_ALLOWED"
    assert list_since(csmdb, old.ems.id, {"after": 0}).refusal.value == "NOT_ALLOWED"
    assert list_since(csmdb, "hg1x", {"after": 0}).refusal.value == "UNKNOWN_SENDER"


def test_revocations_come_in_pages(csmdb, old):
    homes = [enrolled(csmdb, f"more-{number}", **M1, firmware="1.0") for number in range(6)]
    for home in homes:
        rows = [home.address_row(number) for number in range(15)]
        csmdb.desk.grant_addresses(home.ems.id, {"addresses": rows}, NOW_MS)
    take(csmdb, made_up())
    first = revoked(csmdb)
    rest = revoked(csmdb, after=first[-1].number)
    assert (len(first), len(rest)) == (64, 26)


def test_an_address_whose_key_is_lost_stays_out_when_a_ban_ends(csmdb, new):
    granted(csmdb, new, 0)
    granted(csmdb, new, 1)
    revoke(csmdb, new.address(0).id, "stolen")
    (told,) = revoked(csmdb)
    assert (told.address, told.banned, told.reason) == (new.address(0).id, True, "KEY")
    csmdb.ban(new.ems.id, "why")
    csmdb.ban(new.ems.id, "")
    assert {one.address: one.banned for one in revoked(csmdb)} == {
        new.address(0).id: True, new.address(1).id: False,
    }  # fmt: skip


def test_a_ban_goes_to_the_successor_and_ends_there(csmdb, old):
    take(csmdb, made_up())
    csmdb.ban(old.ems.id, "tampered with")
    code = re_enrol(csmdb, old.ems.id, "lost")
    heir = AskingHome("heir")
    asked = heir.enrolment(code, **M1, firmware="1.0", serial="SN-old")
    assert not isinstance(csmdb.desk.enroll(heir.ems.id, asked, NOW_MS), Refused)
    assert {row["source"] for row in csmdb.repository.bans_of(heir.ems.id)} == {
        "advisory", "operator",
    }  # fmt: skip
    csmdb.ban(heir.ems.id, "")
    assert "MADE-UP" in banned(csmdb, heir)
    set_make(csmdb, heir.ems.id, "1.1")
    assert banned(csmdb, heir) == ""


# --- files, command, watch ------------------------------------------------------------------------


def test_a_file_beside_its_digest_must_be_the_file_of_the_digest(csmdb, tmp_path):
    file = tmp_path / "one.json"
    file.write_bytes(made_up())
    beside = tmp_path / "one.json.sha512"
    beside.write_text(hashlib.sha512(made_up() + b" ").hexdigest() + "  one.json\n")
    assert [one.outcome for one in import_path(csmdb, file)] == ["BAD_SIGNATURE"]
    beside.write_text(hashlib.sha512(made_up()).hexdigest() + "  one.json\n")
    assert [one.outcome for one in import_path(csmdb, tmp_path)] == ["new"]


def ordered(*words):
    """The command in this process."""
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_imports_bans_shows_and_lets_in(csmdb, old, tmp_path):
    folder, files = csmdb.folder, tmp_path / "files"
    files.mkdir()
    (files / "a.json").write_bytes(made_up())
    told = json.loads(run_csmdb("advisory", "import", folder, files, "--json"))
    assert [one["outcome"] for one in told["imported"]] == ["new"]
    assert [(one["participant"], one["banned"]) for one in told["meters"]] == [(old.ems.id, True)]
    (files / "b.json").write_bytes(revision(0))
    refused = ordered("advisory", "import", folder, files)
    assert refused.exit_code == 1 and "ROLLED_BACK" in refused.output
    assert "MADE-UP-2026-01" in ordered("advisory", "list", folder).output
    shown = ordered("advisory", "show", folder, "MADE-UP-2026-01").output
    assert "affected: Made up M1 vers:generic/<1.1" in shown
    assert "no such advisory" in str(ordered("advisory", "show", folder, "X").exception)
    assert "banned" in ordered("advisory", "match", folder).output
    after = ordered("meter", folder, old.ems.id, "--firmware", "1.1").output
    assert "not banned (changed)" in after and not banned(csmdb, old)


def test_the_command_says_what_names_mean(csmdb, old):
    import_document(csmdb, made_up())
    names = ["--plate", "Made up", "--plate", "M1", "--named", "Made up", "--named", "M1"]
    ordered("advisory", "alias", csmdb.folder, *names, "--not")
    assert "Made up M1  is not  Made up M1" in ordered("advisory", "aliases", csmdb.folder).output
    assert not review_all(csmdb)
    told = ordered("advisory", "alias", csmdb.folder, *names, "--remove").output
    assert f"{old.ems.id}  banned (changed)" in told
    wrong = ordered("advisory", "alias", csmdb.folder, *names[:4], "--named", "x")
    assert isinstance(wrong.exception, ConfigError)


def test_the_watch_reads_what_is_new_and_tells_a_refused_file_once(csmdb, old, tmp_path):
    (csmdb.folder / CONFIG).open("a").write('\n[advisories]\nfolder = "feed"\nrefresh_s = 1\n')
    assert load_config(csmdb.folder).advisories.refresh_s == 1
    watch = AdvisoryWatch.of(csmdb)
    assert watch.look() == [], "no folder yet"
    feed = csmdb.folder / "feed"
    feed.mkdir()
    (feed / "broken.json").write_bytes(b"{")
    before = refusals("csmdb").get("MALFORMED", 0)
    (feed / "one.json").write_bytes(made_up())
    assert [one.banned for one in watch.look()] == [True]
    watch.look()
    assert refusals("csmdb").get("MALFORMED", 0) == before + 1
    (feed / "one.json").write_bytes(revision(2, known_affected="known_not_affected",
                                             **{', "fixed": ["P2"]': ""}))  # fmt: skip
    watch.look()
    assert not banned(csmdb, old)
    shutil.rmtree(feed)
    assert watch.look() == [], "what is known stays known"


async def test_a_running_watch_bans_by_itself(csmdb, old, tmp_path):
    watch = AdvisoryWatch(csmdb, tmp_path, 0.01)
    async with watch.running(), asyncio.timeout(60):
        (tmp_path / "one.json").write_bytes(made_up())
        while not banned(csmdb, old):
            await asyncio.sleep(0.01)
