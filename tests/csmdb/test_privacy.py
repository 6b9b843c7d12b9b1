"""Access to and erasure of what is personal."""

import hashlib
import json
from contextlib import closing

import msgspec
import pytest
from support.brokers import make_key
from support.csmdb_site import NOW_MS, StandingClock, enrolled, run_csmdb
from support.enrolment import AskingHome

from csmdb.advisories import set_make
from csmdb.config import open_storage
from csmdb.core import CERTIFICATE_DAYS, DAY_MS
from csmdb.privacy import erase, set_person
from csmdb.records import Person
from csmdb.revoked_keys import revoke
from csmdb.schema import TABLES
from csmdb.service import CsmDbService
from csmdb.setup import open_csmdb
from csmdb.succession import re_enrol
from wire.certificates import AddressGrant, ValidatorGrant, check, dump_text
from wire.errors import ConfigError, Refusal
from wire.keys import to_text

PERSON = Person(
    "Annemarie Musterfrau", "annemarie@example.org", "Wiesengrund 17, 4711 Nirgendwo",
    "Kellerabgang links",
)  # fmt: skip
METER = {
    "serial": "SERIAL-77-Q", "vendor": "Zaehlerwerk", "model": "ZW-3000", "firmware": "9.9.zw",
}  # fmt: skip
REASON = "Musterfraus Siegel gebrochen"
WORDS = [
    *(getattr(PERSON, name) for name in ("name", "contact", "address", "meter_location")),
    *METER.values(), REASON, "Musterfrau", "SERIAL-77",
]  # fmt: skip
VALIDATOR = make_key("validator").id


@pytest.fixture
def home(csmdb):
    """Somebody of whom everything there is was told, twice, and others beside."""
    for number in range(20):
        enrolled(csmdb, f"other-{number}")
    home = enrolled(csmdb, "home-1", **METER)
    set_person(csmdb, home.ems.id, Person("Annemarie Musterfrau", address="Musterfrau-Hof 1"))
    set_person(csmdb, home.ems.id, PERSON)
    csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, NOW_MS)
    csmdb.desk.renew(home.ems.id, NOW_MS + CERTIFICATE_DAYS * DAY_MS)
    csmdb.ban(home.ems.id, REASON)
    return home


def found_in(files):
    """Which of the words stand, byte for byte, in which file."""
    return {(path.name, word) for path in files for word in WORDS if word.encode() in read(path)}


def read(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:  # a server drops files of its own
        return b""


def test_after_an_erasure_no_file_has_a_byte_of_it_also_while_the_service_runs(csmdb, home, files):
    """Every table, the log's readable part, free pages and the write-ahead log."""
    service = CsmDbService.on(csmdb, bus=None)
    assert {word for _, word in found_in(files())} == set(WORDS)
    said = json.loads(run_csmdb("erase", csmdb.folder, home.ems.id, "--json"))
    assert (said["certificates"], said["log_rows"]) == (2, 4)
    assert service.csmdb.repository.participant(home.ems.id).name == ""
    assert found_in(files()) == set()


def test_an_erasure_leaves_what_the_market_needs(csmdb, home):
    identity, address = home.ems.id, home.address().id
    before = csmdb.repository.certificate_of(identity)
    grant = csmdb.repository.address_grant(address)
    erase(csmdb, identity)
    after = csmdb.repository.certificate_of(identity)
    check(after, csmdb.issuing_key.public, "test")
    for name in ("subject", "key", "roles", "feeder", "max_import_w", "serial_no", "not_after_ms"):
        assert getattr(after, name) == getattr(before, name)
    assert after.meter[0].meter_key == to_text(home.meter.public)
    assert csmdb.repository.address_grant(address) == grant
    assert csmdb.repository.participant(identity).banned
    csmdb.ban(identity, "")
    assert csmdb.desk.renew(identity, NOW_MS) == after


def test_an_erased_meter_gets_no_more_grants_until_its_make_is_said_again(csmdb, home):
    """No advisory that is to come could find it. What it trades under ends with its grants."""
    identity, row = home.ems.id, {"addresses": [home.address_row(1)]}
    csmdb.ban(identity, "")
    before = csmdb.repository.address_grant(home.address().id)
    erase(csmdb, identity)
    refused = csmdb.desk.grant_addresses(identity, row, NOW_MS)
    assert refused.refusal is Refusal.UNKNOWN_MAKE
    assert csmdb.repository.address_grant(home.address().id) == before
    set_make(csmdb, identity, "9.9", vendor="Zaehlerwerk", model="ZW-3000")
    assert isinstance(csmdb.desk.grant_addresses(identity, row, NOW_MS)[0], AddressGrant)


def test_a_validator_of_an_erased_meter_gets_no_more_grants(csmdb):
    host = AskingHome("host")
    code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1", VALIDATOR)
    csmdb.desk.enroll(host.ems.id, host.enrolment(code, **METER), NOW_MS)
    asked = {"validator": VALIDATOR, "meterKey": to_text(host.meter.public)}
    assert isinstance(csmdb.desk.grant_validator(host.ems.id, asked, NOW_MS), ValidatorGrant)
    erase(csmdb, host.ems.id)
    refused = csmdb.desk.grant_validator(host.ems.id, asked, NOW_MS)
    assert refused.refusal is Refusal.UNKNOWN_MAKE


def test_an_erasure_leaves_the_log_whole_and_says_that_it_was_done(csmdb, home):
    before = csmdb.repository.check_audit()
    erase(csmdb, home.ems.id)
    csmdb.repository.check_audit(f"{before.seq}:{before.digest}")
    rows = list(csmdb.repository.audit_rows(home.ems.id))
    assert (rows[-1]["action"], rows[-1]["subject"]) == ("erase", home.ems.id)
    assert not any(row["personal"] for row in rows)
    named = [*["set-person"] * 2, "grant-addresses", "ban"]
    assert [row["action"] for row in rows if row["commitment"]] == named


def test_an_erasure_takes_addresses_of_long_ago_and_no_log_leads_to_them(csmdb, home, monkeypatch):
    """Fresh addresses make a history on the chain; nobody can tell any more whose it was."""
    address = home.address().id
    grant = csmdb.repository.address_grant(address)[1]
    digest = hashlib.sha256(msgspec.json.encode([grant], order="sorted")).hexdigest()
    assert digest in str(csmdb.repository.audit_page(0, 1000))
    monkeypatch.setattr(csmdb.clock, "now_ms", lambda: NOW_MS + 30 * DAY_MS, raising=False)
    assert erase(csmdb, home.ems.id).grants == 1
    assert csmdb.repository.address_grant(address) is None
    everything = "".join(
        str(list(csmdb.repository.db.query(f"SELECT * FROM {table}"))) for table in TABLES
    )
    assert address not in everything, "also where it was banned under it"
    assert digest not in everything
    csmdb.repository.check_audit()


def test_a_home_that_was_re_enrolled_and_named_again_leaves_no_byte_either(csmdb, home, files):
    """Its device was lost: what was known of the old identity and the new one, bans, firmware."""
    csmdb.ban(home.ems.id, "")
    code = re_enrol(csmdb, home.ems.id, "lost")
    heir = AskingHome("heir-of-home-1")
    csmdb.desk.enroll(heir.ems.id, heir.enrolment(code, **METER), NOW_MS)
    set_make(csmdb, heir.ems.id, "9.9.zw-b")
    csmdb.ban(heir.ems.id, REASON)
    assert {word for _, word in found_in(files())} == set(WORDS)
    erase(csmdb, heir.ems.id)
    assert found_in(files()) == set()
    run_csmdb("backup", csmdb.folder, csmdb.folder / "later.backup")
    assert found_in([csmdb.folder / "later.backup"]) == set()
    csmdb.repository.check_audit()


def test_addresses_of_long_ago_do_not_stand_beside_a_lost_device_any_more(csmdb, home, monkeypatch):
    """All of its identities were revoked in a row: the participant, then its addresses."""
    address, identity = home.address().id, home.ems.id
    newest = revoke(csmdb, identity, "lost")
    monkeypatch.setattr(csmdb.clock, "now_ms", lambda: NOW_MS + 30 * DAY_MS, raising=False)
    named = [one.identity for one in csmdb.repository.keys.revoked_keys()]
    assert {identity, address} <= set(named)
    erase(csmdb, identity)
    left = csmdb.repository.keys.revoked_keys()
    assert [one.number for one in left] == list(range(1, newest + 1)), "the list goes on"
    assert {one.identity for one in left} & {identity, address} == {identity}
    assert csmdb.repository.keys.is_revoked(identity)


def test_an_erasure_touches_nobody_else(csmdb, home):
    other = enrolled(csmdb, "other-90")
    set_person(csmdb, other.ems.id, Person("Bert"))
    erase(csmdb, home.ems.id)
    assert csmdb.repository.person(other.ems.id) == Person("Bert")
    assert csmdb.repository.meter_of(other.ems.id).serial == "SN-other-90"
    assert list(csmdb.repository.audit_rows(other.ems.id))[-1]["personal"] == {"name": "Bert"}


def test_what_is_told_after_an_erasure_is_kept_and_may_be_erased_again(csmdb, home, files):
    erase(csmdb, home.ems.id)
    set_person(csmdb, home.ems.id, PERSON)
    csmdb.repository.check_audit()
    erase(csmdb, home.ems.id)
    csmdb.repository.check_audit()
    assert found_in(files()) == set()


def test_a_database_that_somebody_reads_is_erased_in_the_end(csmdb, home, files):
    """Nothing is claimed while old pages may still be there; doing it again does it."""
    with closing(open_storage(csmdb.folder)) as reader, reader.snapshot():
        next(reader.query("SELECT * FROM persons"))
        error = run_csmdb("erase", csmdb.folder, home.ems.id, code=2)
        assert "do it again" in error
    run_csmdb("erase", csmdb.folder, home.ems.id)
    assert found_in(files()) == set()


def test_an_export_tells_everything(csmdb, home):
    told = json.loads(run_csmdb("export", csmdb.folder, home.ems.id, "--json"))
    text = json.dumps(told, ensure_ascii=False)
    assert [word for word in WORDS if word not in text] == []
    assert home.address().id in text
    assert told["audit"][-1]["action"] == "export"
    assert set(TABLES) - {"audit_head", "tokens", "advisories", "product_aliases"} == {
        "claims", "participants", "persons", "meters", "certificates", "address_grants",
        "validator_grants", "audit", "audit_personal", "bans", "revocations",
        "tls_certificates", "revoked_keys", "successions",
    }, "a table that an export does not look into"  # fmt: skip


def test_what_goes_to_the_ledger_names_nobody(csmdb, home):
    """A chain holds grants, so it verifies whoever was erased. Certificates stay off it."""
    csmdb.ban(home.ems.id, "")
    code = csmdb.add_claim(["prosumer"], 1, 1, "feeder-1", VALIDATOR)
    host = type(home)("host")
    csmdb.desk.enroll(host.ems.id, host.enrolment(code, serial="SERIAL-77-H"), NOW_MS)
    asked = {"validator": VALIDATOR, "meterKey": to_text(make_key("p").public)}
    grants = [
        csmdb.desk.grant_validator(host.ems.id, asked, NOW_MS),
        *csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, NOW_MS),
    ]
    assert [type(one) for one in grants] == [ValidatorGrant, AddressGrant]
    owner = [home.ems.id, host.ems.id, to_text(home.meter.public), to_text(host.meter.public)]
    for grant in grants:
        assert not [word for word in (*WORDS, *owner) if word in dump_text(grant)]


def test_nobody_and_too_long_a_name_are_refused(csmdb, home):
    assert "nobody has this identity" in run_csmdb("erase", csmdb.folder, "hg1no", code=2)
    assert "nobody has this identity" in run_csmdb("export", csmdb.folder, "hg1no", code=2)
    with pytest.raises(ConfigError, match="name"):
        set_person(csmdb, home.ems.id, Person("x" * 201))


def test_the_command_keeps_who_somebody_is(csmdb, home):
    words = ["--name", "Ann", "--meter-location", "cellar"]
    run_csmdb("person", csmdb.folder, home.ems.id, *words)
    with open_csmdb(csmdb.folder, clock=StandingClock()) as again:
        assert again.repository.person(home.ems.id) == Person("Ann", meter_location="cellar")
