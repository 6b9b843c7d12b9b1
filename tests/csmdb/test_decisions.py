"""The rules of the CSM-DB (csmdb.core) on a real database file."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.brokers import make_key
from support.csmdb_site import NOW_MS, StandingClock, drop_triggers
from support.enrolment import AskingHome

from csmdb.audit import AuditBrokenError
from csmdb.core import DAY_MS, GRANT_DAYS, hash_code, make_code
from csmdb.records import Refused
from csmdb.requests import MAX_AT_WORK
from csmdb.setup import create, open_csmdb
from wire.certificates import AddressGrant, Certificate, ValidatorGrant, check, dump, load
from wire.errors import ConfigError, MalformedError, Refusal
from wire.keys import to_text

VALIDATOR = make_key("validator").id


def claim(csmdb, roles=("prosumer",), validator=""):
    return csmdb.add_claim(roles, 10_000, 6_000, "feeder-1", validator)


def enrolled(csmdb, name="home-1", **how):
    home = AskingHome(name)
    certificate = csmdb.desk.enroll(home.ems.id, home.enrolment(claim(csmdb, **how)), NOW_MS)
    assert isinstance(certificate, Certificate)
    return home


def reason(decision):
    assert isinstance(decision, Refused), decision
    return decision.refusal


def test_a_claim_becomes_a_certificate_with_what_the_claim_allows(csmdb):
    home = AskingHome("home-1")
    certificate = csmdb.desk.enroll(home.ems.id, home.enrolment(claim(csmdb)), NOW_MS)
    check(certificate, csmdb.issuing_key.public, "test")
    assert load(Certificate, dump(certificate), csmdb.issuing_key.public, "test") == certificate
    assert (certificate.subject, certificate.roles) == (home.ems.id, ["prosumer"])
    assert (certificate.max_import_w, certificate.max_export_w) == (10_000, 6_000)
    assert certificate.meter[0].meter_key == to_text(home.meter.public)
    assert certificate.not_before_ms < NOW_MS < certificate.not_after_ms


def test_the_same_enrolment_again_gets_the_same_certificate(csmdb):
    home, code = AskingHome("home-1"), claim(csmdb)
    first = csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS)
    again = csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS + 60_000)
    assert again == first


def test_a_repeated_enrolment_may_bring_a_new_box_key(csmdb):
    """A home that lost its box key before the answer came must still get one."""
    home, code = AskingHome("home-1"), claim(csmdb)
    csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS)
    box = to_text(bytes(range(32)))
    csmdb.desk.enroll(home.ems.id, home.enrolment(code) | {"boxKey": box}, NOW_MS)
    assert csmdb.repository.participant(home.ems.id).box_key == box


def test_an_unknown_code_is_a_bad_claim(csmdb):
    home = AskingHome("home-1")
    request = home.enrolment(make_code(bytes(10)))
    assert reason(csmdb.desk.enroll(home.ems.id, request, NOW_MS)) == Refusal.BAD_CLAIM


def test_a_code_is_used_once(csmdb):
    code = claim(csmdb)
    first, second = AskingHome("home-1"), AskingHome("home-2")
    csmdb.desk.enroll(first.ems.id, first.enrolment(code), NOW_MS)
    refused = csmdb.desk.enroll(second.ems.id, second.enrolment(code), NOW_MS)
    assert reason(refused) == Refusal.CLAIM_USED


def test_an_enrolled_home_learns_nothing_from_anothers_code(csmdb):
    home, other, code = enrolled(csmdb, "home-1"), AskingHome("home-2"), claim(csmdb)
    csmdb.desk.enroll(other.ems.id, other.enrolment(code), NOW_MS)
    refused = csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS)
    assert reason(refused) == Refusal.CLAIM_USED


def test_a_used_code_does_not_change_the_meter(csmdb):
    home, code = AskingHome("home-1"), claim(csmdb)
    csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS)
    other = home.enrolment(code, meter_key=to_text(make_key("other").public))
    assert reason(csmdb.desk.enroll(home.ems.id, other, NOW_MS)) == Refusal.CLAIM_USED


def test_an_expired_code_is_refused(csmdb):
    home, code = AskingHome("home-1"), claim(csmdb)
    late_ms = NOW_MS + 31 * DAY_MS
    refused = csmdb.desk.enroll(home.ems.id, home.enrolment(code), late_ms)
    assert reason(refused) == Refusal.EXPIRED


@pytest.mark.parametrize("change", ["serial", "key"])
def test_a_meter_is_certified_once(csmdb, change):
    first = enrolled(csmdb)
    second = AskingHome("home-2")
    request = second.enrolment(claim(csmdb), serial="SN-home-1")
    if change == "key":
        request = second.enrolment(claim(csmdb), meter_key=to_text(first.meter.public))
    assert reason(csmdb.desk.enroll(second.ems.id, request, NOW_MS)) == Refusal.DUPLICATE


def test_meters_that_tell_no_serial_are_told_apart_by_their_keys(csmdb):
    """Many makes give no serial over Modbus; two homes with such a one are two homes."""
    for name in ("home-1", "home-2"):
        home = AskingHome(name)
        request = home.enrolment(claim(csmdb), serial="")
        assert isinstance(csmdb.desk.enroll(home.ems.id, request, NOW_MS), Certificate), name
    again = AskingHome("home-3")
    key = to_text(home.meter.public)
    request = again.enrolment(claim(csmdb), serial="", meter_key=key)
    assert reason(csmdb.desk.enroll(again.ems.id, request, NOW_MS)) == Refusal.DUPLICATE


def test_a_database_of_the_first_release_takes_meters_without_a_serial(tmp_path):
    """The rule reaches the files that are there, which had one that no empty serial came twice."""
    create(tmp_path / "csmdb", "test", clock=StandingClock()).close()
    (file,) = (tmp_path / "csmdb").glob("*.sqlite")
    with sqlite3.connect(file) as old:
        old.execute("DROP INDEX idx_meters_serial")
        old.execute(
            "CREATE UNIQUE INDEX idx_meters_vendor_model_serial ON meters (vendor, model, serial)"
        )
        old.execute("DELETE FROM _sqlite_migrations WHERE name = 'meters_without_serial'")
    old.close()
    with open_csmdb(tmp_path / "csmdb", clock=StandingClock()) as csmdb:
        test_meters_that_tell_no_serial_are_told_apart_by_their_keys(csmdb)


def test_an_enrolled_key_cannot_take_a_second_claim(csmdb):
    home = enrolled(csmdb)
    request = home.enrolment(claim(csmdb))
    assert reason(csmdb.desk.enroll(home.ems.id, request, NOW_MS)) == Refusal.DUPLICATE


def test_a_refused_enrolment_leaves_the_claim_usable(csmdb):
    enrolled(csmdb)
    code, second = claim(csmdb), AskingHome("home-2")
    bad = second.enrolment(code, serial="SN-home-1")
    assert reason(csmdb.desk.enroll(second.ems.id, bad, NOW_MS)) == Refusal.DUPLICATE
    good = csmdb.desk.enroll(second.ems.id, second.enrolment(code), NOW_MS)
    assert isinstance(good, Certificate)


@pytest.mark.parametrize(
    "change",
    [
        {"key": 7},
        {"key": to_text(bytes(32))},
        {"boxKey": "short"},
        {"claimCode": "x" * 200},
        {"meter": {}},
        {"meter": None},
    ],
)
def test_a_malformed_enrolment_is_named_so(csmdb, change):
    home = AskingHome("home-1")
    with pytest.raises(MalformedError):
        csmdb.desk.enroll(home.ems.id, home.enrolment(claim(csmdb)) | change, NOW_MS)


def test_codes_are_not_kept_and_typing_errors_are_forgiven(csmdb):
    code = claim(csmdb)
    rows = [*csmdb.repository.db.query("SELECT * FROM claims"), *csmdb.repository.audit_rows()]
    assert code.replace("-", "") not in repr(rows).replace("-", "")
    assert hash_code(code.lower().replace("-", " ").replace("1", "l")) == hash_code(code)


@given(st.binary(min_size=10, max_size=10))
def test_every_code_is_told_apart(random):
    code = make_code(random)
    assert len(code) == 19
    number = sum(
        "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(letter) << 5 * place
        for place, letter in enumerate(code.replace("-", ""))
    )
    assert number == int.from_bytes(random, "big")


def test_a_grant_carries_a_class_of_limits_per_slot_and_names_nobody(csmdb):
    home = enrolled(csmdb)
    [grant] = csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, NOW_MS)
    check(grant, csmdb.issuing_key.public, "test")
    slot = NOW_MS // 900_000
    assert grant.address == home.address().id
    assert (grant.max_buy_wh, grant.max_sell_wh) == (2_750, 2_750), "10 and 6 kW of 11 kW"
    assert (grant.start_slot, grant.end_slot) == (slot, slot + 96 * GRANT_DAYS)
    assert home.ems.id not in str(dump(grant))


@pytest.mark.parametrize(
    ("role", "can_buy", "can_sell"),
    [("consumer", True, False), ("producer", False, True), ("prosumer", True, True)],
)
def test_roles_say_who_may_buy_and_sell(csmdb, role, can_buy, can_sell):
    home = enrolled(csmdb, roles=(role,))
    [grant] = csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, NOW_MS)
    assert (grant.can_buy, grant.can_sell) == (can_buy, can_sell)
    assert bool(grant.max_buy_wh) == can_buy
    assert bool(grant.max_sell_wh) == can_sell


def test_the_same_addresses_again_get_the_same_grants(csmdb):
    home = enrolled(csmdb)
    asked = {"addresses": [home.address_row(n) for n in range(3)]}
    first = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
    assert csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS + 3_600_000) == first


def test_a_certificate_is_renewed_in_its_second_half_and_after_its_end(csmdb):
    home = enrolled(csmdb)
    first = csmdb.repository.certificate_of(home.ems.id)
    assert csmdb.desk.renew(home.ems.id, NOW_MS + 100 * DAY_MS) == first
    second = csmdb.desk.renew(home.ems.id, NOW_MS + 200 * DAY_MS)
    check(second, csmdb.issuing_key.public, "test")
    assert (second.subject, second.meter) == (first.subject, first.meter)
    assert second.not_after_ms > first.not_after_ms
    assert csmdb.desk.renew(home.ems.id, NOW_MS + 200 * DAY_MS + 1) == second, "asked again"
    third = csmdb.desk.renew(home.ems.id, NOW_MS + 900 * DAY_MS)
    assert third.not_before_ms < NOW_MS + 900 * DAY_MS < third.not_after_ms


def test_strangers_services_and_the_banned_renew_nothing(csmdb):
    assert reason(csmdb.desk.renew(make_key("x").id, NOW_MS)) == Refusal.UNKNOWN_SENDER
    csmdb.desk.certify_service(make_key("svc").public, ("dso",), "DSO", NOW_MS)
    assert reason(csmdb.desk.renew(make_key("svc").id, NOW_MS)) == Refusal.NOT_ALLOWED
    home = enrolled(csmdb)
    csmdb.repository.set_ban(home.ems.id, "meter tampered with")
    refused = csmdb.desk.renew(home.ems.id, NOW_MS + 300 * DAY_MS)
    assert reason(refused) == Refusal.BANNED


def test_a_service_that_is_certified_again_stays_banned(csmdb):
    key = make_key("svc")
    csmdb.desk.certify_service(key.public, ("dso",), "DSO", NOW_MS)
    csmdb.repository.set_ban(key.id, "left the office")
    csmdb.desk.certify_service(key.public, ("dso", "aggregator"), "DSO", NOW_MS + 1)
    who = csmdb.repository.participant(key.id)
    assert (who.roles, who.banned) == (("dso", "aggregator"), "left the office")


def test_an_addresss_grant_is_made_longer_in_its_second_half_not_after_its_end(csmdb):
    home = enrolled(csmdb)
    asked = {"addresses": [home.address_row()]}
    [first] = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
    [longer] = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS + 3 * GRANT_DAYS * DAY_MS // 4)
    check(longer, csmdb.issuing_key.public, "test")
    assert (longer.address, longer.start_slot) == (first.address, first.start_slot)
    assert longer.end_slot == first.end_slot + 96 * GRANT_DAYS * 3 // 4
    assert csmdb.repository.address_grant(first.address) == (home.ems.id, longer)
    assert csmdb.desk.grant_addresses(
        home.ems.id, asked, NOW_MS + 3 * GRANT_DAYS * DAY_MS // 4
    ) == [longer]
    refused = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS + 30 * DAY_MS)
    assert reason(refused) == Refusal.DUPLICATE


def test_who_is_not_enrolled_gets_no_grant(csmdb):
    home = AskingHome("home-1")
    asked = {"addresses": [home.address_row()]}
    refused = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
    assert reason(refused) == Refusal.UNKNOWN_SENDER


def test_a_service_gets_no_address(csmdb):
    csmdb.issue_service_certificate(make_key("svc").public, ["analytics"])
    asked = {"addresses": [AskingHome("home-1").address_row()]}
    refused = csmdb.desk.grant_addresses(make_key("svc").id, asked, NOW_MS)
    assert reason(refused) == Refusal.NOT_ALLOWED


def test_an_address_has_one_owner(csmdb):
    first, second = enrolled(csmdb, "home-1"), enrolled(csmdb, "home-2")
    asked = {"addresses": [first.address_row()]}
    csmdb.desk.grant_addresses(first.ems.id, asked, NOW_MS)
    refused = csmdb.desk.grant_addresses(second.ems.id, asked, NOW_MS)
    assert reason(refused) == Refusal.DUPLICATE


def test_a_participant_is_not_an_address(csmdb):
    home = enrolled(csmdb)
    row = home.address_row() | {"key": to_text(home.ems.public)}
    refused = csmdb.desk.grant_addresses(home.ems.id, {"addresses": [row]}, NOW_MS)
    assert reason(refused) == Refusal.NOT_ALLOWED


def test_a_batch_is_granted_whole_or_not_at_all(csmdb):
    first, second = enrolled(csmdb, "home-1"), enrolled(csmdb, "home-2")
    csmdb.desk.grant_addresses(first.ems.id, {"addresses": [first.address_row()]}, NOW_MS)
    asked = {"addresses": [second.address_row(), first.address_row()]}
    assert isinstance(csmdb.desk.grant_addresses(second.ems.id, asked, NOW_MS), Refused)
    assert csmdb.repository.address_grant(second.address().id) is None


def test_addresses_at_a_time_are_bounded(csmdb):
    home = enrolled(csmdb)
    asked = {"addresses": [home.address_row(n) for n in range(MAX_AT_WORK)]}
    assert len(csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)) == MAX_AT_WORK
    one_more = {"addresses": [home.address_row(MAX_AT_WORK)]}
    refused = csmdb.desk.grant_addresses(home.ems.id, one_more, NOW_MS)
    assert reason(refused) == Refusal.QUANTITY_OUT_OF_RANGE


def _rows(home, windows, first=0):
    return [
        home.address_row(first + n) | {"startSlot": start, "endSlot": end}
        for n, (start, end) in enumerate(windows)
    ]


@pytest.mark.parametrize("length", [1, 2, 4, 96])
def test_a_fresh_address_for_each_period_is_within_what_a_home_may_have(csmdb, length):
    home, slot = enrolled(csmdb), NOW_MS // 900_000
    windows = [(slot + n * length, slot + (n + 1) * length - 1) for n in range(96 // length)]
    for at in range(0, len(windows), 32):
        asked = {"addresses": _rows(home, windows[at : at + 32], at)}
        assert isinstance(csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS), list)


def test_two_addresses_for_every_slot_are_more_than_a_home_may_have(csmdb):
    home, slot = enrolled(csmdb), NOW_MS // 900_000
    asked = {"addresses": _rows(home, [(slot + n // 2, slot + n // 2) for n in range(32)])}
    refused = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
    assert reason(refused) == Refusal.QUANTITY_OUT_OF_RANGE


def test_many_short_grants_are_not_renewed_into_one_time(csmdb):
    home, slot = enrolled(csmdb), NOW_MS // 900_000
    windows = [(slot + 16 * n, slot + 16 * n) for n in range(30)]
    asked = {"addresses": _rows(home, windows)}
    assert isinstance(csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS), list)
    asked = {"addresses": _rows(home, [(start, slot + 500) for start, _ in windows])}
    refused = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
    assert reason(refused) == Refusal.QUANTITY_OUT_OF_RANGE


@pytest.mark.parametrize("offsets", [(-3, 10), (5, 4), (0, 15 * 96)])
def test_the_interval_of_a_grant_is_bounded(csmdb, offsets):
    home, slot = enrolled(csmdb), NOW_MS // 900_000
    asked = {
        "addresses": [home.address_row()],
        "startSlot": slot + offsets[0],
        "endSlot": slot + offsets[1],
    }
    refused = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
    assert reason(refused) == Refusal.QUANTITY_OUT_OF_RANGE


def test_a_home_speaks_for_the_validator_of_its_claim_only(csmdb):
    host, other = enrolled(csmdb, "home-1", validator=VALIDATOR), enrolled(csmdb, "home-2")
    asked = {"validator": VALIDATOR, "meterKey": to_text(make_key("pseudonym").public)}
    grant = csmdb.desk.grant_validator(host.ems.id, asked, NOW_MS)
    assert isinstance(grant, ValidatorGrant)
    check(grant, csmdb.issuing_key.public, "test")
    assert csmdb.desk.grant_validator(host.ems.id, asked, NOW_MS + 1_000) == grant
    refused = csmdb.desk.grant_validator(other.ems.id, asked, NOW_MS)
    assert reason(refused) == Refusal.NOT_ALLOWED


def test_a_validator_grant_is_renewed_when_it_runs_out(csmdb):
    host = enrolled(csmdb, validator=VALIDATOR)
    asked = {"validator": VALIDATOR, "meterKey": to_text(make_key("pseudonym").public)}
    first = csmdb.desk.grant_validator(host.ems.id, asked, NOW_MS)
    later = csmdb.desk.grant_validator(host.ems.id, asked, NOW_MS + 3 * GRANT_DAYS * DAY_MS // 4)
    assert later.end_slot > first.end_slot


def test_only_dso_and_aggregator_see_whose_address_is_whose(csmdb):
    home = enrolled(csmdb)
    csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, NOW_MS)
    dso = make_key("dso")
    csmdb.issue_service_certificate(dso.public, ["dso"])
    page = csmdb.desk.list_meters(dso.id, {}, NOW_MS)
    assert page["meters"] == [
        {
            "participant": home.ems.id,
            "meterKey": to_text(home.meter.public),
            "validator": "",
            "addresses": [home.address().id],
        }
    ]
    assert reason(csmdb.desk.list_meters(home.ems.id, {}, NOW_MS)) == Refusal.NOT_ALLOWED
    assert reason(csmdb.desk.list_meters("hg1x", {}, NOW_MS)) == Refusal.UNKNOWN_SENDER


def test_the_dso_sees_limits_ban_and_whose_an_address_is(csmdb):
    home, other = enrolled(csmdb), enrolled(csmdb, "home-2")
    [grant] = csmdb.desk.grant_addresses(home.ems.id, {"addresses": [home.address_row()]}, NOW_MS)
    dso = make_key("dso")
    csmdb.issue_service_certificate(dso.public, ["dso"])

    def show(asker, whom):
        asked = {"participant": whom, "address": home.address().id}
        return csmdb.desk.show_participant(asker, asked, NOW_MS)

    assert show(dso.id, home.ems.id)["participant"] == {
        "id": home.ems.id, "roles": ["prosumer"], "feeder": "feeder-1", "maxImportW": 10_000,
        "maxExportW": 6_000, "banned": "", "predecessors": [], "grant": dump(grant),
    }  # fmt: skip
    csmdb.ban(other.ems.id, "meter tampered with")
    shown = show(dso.id, other.ems.id)["participant"]
    assert (shown["banned"], shown["grant"]) == ("meter tampered with", {})
    assert reason(show(home.ems.id, home.ems.id)) == Refusal.NOT_ALLOWED
    assert reason(show(dso.id, make_key("nobody").id)) == Refusal.NOT_FOUND
    with pytest.raises(MalformedError):
        csmdb.desk.show_participant(dso.id, {"participant": 7}, NOW_MS)


def test_pages_of_meters_join_without_loss(csmdb, monkeypatch):
    monkeypatch.setattr("csmdb.core.PAGE_ROWS", 3)
    homes = [enrolled(csmdb, f"home-{n}") for n in range(4)]
    for home in homes[:3]:
        asked = {"addresses": [home.address_row(n) for n in range(4)]}
        csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
    dso = make_key("dso")
    csmdb.issue_service_certificate(dso.public, ["dso"])
    seen, cursor = [], ""
    while True:
        page = csmdb.desk.list_meters(dso.id, {"after": cursor}, NOW_MS)
        seen += [(m["participant"], a) for m in page["meters"] for a in m["addresses"] or [""]]
        cursor = page["next"]
        if not cursor:
            break
    assert len(seen) == len(set(seen)) == 13


def test_the_banned_are_refused_everything(csmdb):
    home, code = AskingHome("home-1"), claim(csmdb, validator=VALIDATOR)
    csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS)
    csmdb.ban(home.ems.id, "meter tampered with")
    asked = {"addresses": [home.address_row()]}
    validator = {"validator": VALIDATOR, "meterKey": to_text(make_key("p").public)}
    for refused in (
        csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS),
        csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS),
        csmdb.desk.grant_validator(home.ems.id, validator, NOW_MS),
    ):
        assert reason(refused) == Refusal.BANNED
    csmdb.ban(home.ems.id, "")
    assert isinstance(csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)[0], AddressGrant)


def test_the_audit_log_is_append_only_and_chained(csmdb):
    enrolled(csmdb)
    assert csmdb.repository.check_audit().seq >= 3
    with pytest.raises(Exception, match="append-only"):
        csmdb.repository.db.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
    with pytest.raises(Exception, match="append-only"):
        csmdb.repository.db.execute("DELETE FROM audit WHERE seq = 1")


def test_a_forged_audit_row_is_found(csmdb):
    enrolled(csmdb)
    drop_triggers(csmdb.repository.db)
    csmdb.repository.db.execute("UPDATE audit SET outcome = 'BANNED' WHERE seq = 2")
    with pytest.raises(AuditBrokenError, match="row 2"):
        csmdb.repository.check_audit()


def test_everything_survives_being_opened_again(csmdb):
    home, code = AskingHome("home-1"), claim(csmdb)
    first = csmdb.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS)
    with open_csmdb(csmdb.folder, clock=StandingClock()) as again:
        assert again.id == csmdb.id
        assert again.certificate == csmdb.certificate
        assert again.desk.enroll(home.ems.id, home.enrolment(code), NOW_MS) == first


def test_keys_that_others_can_read_are_refused(csmdb):
    (csmdb.folder / "issuing.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_csmdb(csmdb.folder)


def test_a_folder_is_made_once(csmdb):
    with pytest.raises(ConfigError, match="already"):
        create(csmdb.folder, "test")


def test_each_address_of_a_batch_may_have_slots_of_its_own(csmdb):
    home, slot = enrolled(csmdb), NOW_MS // 900_000
    windows = [(slot + 4 * n, slot + 4 * n + 3) for n in range(32)]
    rows = [
        {**home.address_row(n), "startSlot": first, "endSlot": last}
        for n, (first, last) in enumerate(windows)
    ]
    grants = csmdb.desk.grant_addresses(home.ems.id, {"addresses": rows}, NOW_MS)
    assert [(g.start_slot, g.end_slot) for g in grants] == windows
    assert csmdb.desk.grant_addresses(home.ems.id, {"addresses": rows}, NOW_MS) == grants
    later = [{**home.address_row(40), "startSlot": slot + 200, "endSlot": slot + 203}]
    assert len(csmdb.desk.grant_addresses(home.ems.id, {"addresses": later}, NOW_MS)) == 1


def test_an_address_for_slots_of_its_own_is_bounded_as_any(csmdb):
    home, slot = enrolled(csmdb), NOW_MS // 900_000
    bad = [{**home.address_row(), "startSlot": slot, "endSlot": slot + 15 * 96}]
    refused = csmdb.desk.grant_addresses(home.ems.id, {"addresses": bad}, NOW_MS)
    assert reason(refused) == Refusal.QUANTITY_OUT_OF_RANGE
    row = {"startSlot": slot, "endSlot": slot + 3}
    for first in (0, 8):
        asked = {"addresses": [{**home.address_row(first + n), **row} for n in range(8)]}
        assert len(csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)) == 8
    more = {"addresses": [{**home.address_row(50), **row}]}
    refused = csmdb.desk.grant_addresses(home.ems.id, more, NOW_MS)
    assert reason(refused) == Refusal.QUANTITY_OUT_OF_RANGE
