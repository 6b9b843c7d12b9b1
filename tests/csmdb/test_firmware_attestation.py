"""The CSM-DB believes an attestation of its meter's key, fresh, once, and never a lower version."""

import msgspec
import pytest
from support.csmdb_site import NOW_MS, enrolled

from csmdb.advisories import import_document, review, review_all
from csmdb.firmware_desk import NONCE_LIFE_MS
from csmdb.records import Refused
from sim.scenarios.vulnerable_meter import made_up
from wire.certificates import Certificate, load
from wire.errors import ConfigError, MalformedError, Refusal
from wire.firmware import Attestation, attestation_json, is_lower, sign_attestation, version_of


@pytest.fixture
def home(csmdb):
    return enrolled(csmdb)


def attested(csmdb, home, firmware="2.0", key=None, nonce=None, market="test", **facts):
    """The parameters that a home's gateway would send."""
    if nonce is None:
        nonce = csmdb.firmware_desk().challenge(home.ems.id, NOW_MS)["nonce"]
    record = Attestation(
        **{
            "meter": home.meter.id, "vendor": "Test", "model": "M1", "serial": f"SN-{home.name}",
            "firmware": firmware, "digest": "", "slot": 1, "time_ms": NOW_MS, "nonce": nonce,
            **facts,
        }
    )  # fmt: skip
    return {"attestation": attestation_json(sign_attestation(record, key or home.meter, market))}


def attest(csmdb, home, *, at_ms=NOW_MS, review=lambda _: None, **facts):
    parameters = attested(csmdb, home, **facts)
    return csmdb.firmware_desk(review).attest(home.ems.id, parameters, at_ms)


def test_what_a_gateway_attests_is_in_the_next_certificate_and_in_the_log(csmdb, home):
    certificate = attest(csmdb, home)
    assert isinstance(certificate, Certificate)
    load(Certificate, msgspec.to_builtins(certificate), csmdb.issuing_key.public, "test")
    assert certificate.meter[0].firmware == "2.0"
    assert csmdb.desk.renew(home.ems.id, NOW_MS) == certificate
    *_, row, _renewal = csmdb.repository.audit_rows(home.ems.id)
    assert (row["action"], row["outcome"]) == ("attest-firmware", "OK")
    assert "2.0" not in row["detail"]


def test_a_nonce_is_good_once(csmdb, home):
    parameters = attested(csmdb, home)
    desk = csmdb.firmware_desk()
    assert isinstance(desk.attest(home.ems.id, parameters, NOW_MS), Certificate)
    assert desk.attest(home.ems.id, parameters, NOW_MS).refusal is Refusal.REPLAYED


def test_attesting_what_is_known_makes_no_certificate(csmdb, home):
    first = attest(csmdb, home)
    assert attest(csmdb, home) == first


@pytest.mark.parametrize(
    ("facts", "refusal"),
    [
        ({"firmware": "0.9"}, Refusal.DOWNGRADED),
        ({"firmware": "beta"}, Refusal.DOWNGRADED),
        ({"firmware": "2.0", "serial": "SN-other"}, Refusal.OTHER_DEVICE),
        ({"firmware": "2.0", "vendor": "Else"}, Refusal.OTHER_DEVICE),
        ({"firmware": "2.0", "model": "M2"}, Refusal.OTHER_DEVICE),
        ({"firmware": "2.0", "market": "another"}, Refusal.BAD_SIGNATURE),
        ({"at_ms": NOW_MS + NONCE_LIFE_MS + 2_000}, Refusal.EXPIRED),
        ({"at_ms": NOW_MS - 120_000}, Refusal.FUTURE_DATED),
        ({"time_ms": NOW_MS - NONCE_LIFE_MS - 2_000}, Refusal.EXPIRED),
        ({"nonce": f"{NOW_MS}.{'0' * 64}"}, Refusal.REPLAYED),
        ({"nonce": "1.x"}, Refusal.MALFORMED),
    ],
)
def test_what_is_not_believed_has_a_name_and_changes_nothing(csmdb, home, facts, refusal):
    decision = attest(csmdb, home, **facts)
    assert isinstance(decision, Refused)
    assert decision.refusal is refusal
    assert csmdb.repository.meter_of(home.ems.id).firmware == "1.0"


def test_another_s_key_signs_nothing_and_another_s_nonce_is_not_taken(csmdb, home):
    other = enrolled(csmdb, "home-2")
    assert attest(csmdb, home, key=home.ems).refusal is Refusal.BAD_SIGNATURE
    assert attest(csmdb, home, key=other.meter).refusal is Refusal.BAD_SIGNATURE
    theirs = csmdb.firmware_desk().challenge(other.ems.id, NOW_MS)["nonce"]
    assert attest(csmdb, home, nonce=theirs).refusal is Refusal.REPLAYED


def test_a_stranger_and_a_service_get_no_nonce(csmdb):
    desk = csmdb.firmware_desk()
    assert desk.challenge("hg1" + "a" * 32, NOW_MS).refusal is Refusal.UNKNOWN_SENDER
    assert desk.challenge(csmdb.id, NOW_MS).refusal is Refusal.NOT_ALLOWED


def test_a_banned_meter_may_say_that_it_is_patched_and_is_certified_if_the_review_lifts_it(
    csmdb, home
):
    csmdb.ban(home.ems.id, "advisory")
    told = []
    assert attest(csmdb, home, firmware="1.1", review=told.append).refusal is Refusal.BANNED
    assert csmdb.repository.meter_of(home.ems.id).firmware == "1.1"
    assert csmdb.desk.renew(home.ems.id, NOW_MS).refusal is Refusal.BANNED

    decision = attest(csmdb, home, review=lambda who: csmdb.repository.set_ban(who, ""))
    assert decision.meter[0].firmware == "2.0"
    assert told == [home.ems.id]


def test_an_operator_may_allow_a_lower_version(csmdb, home):
    attest(csmdb, home, firmware="2.0")
    assert attest(csmdb, home, firmware="1.5").refusal is Refusal.DOWNGRADED
    csmdb.firmware_desk().allow(home.ems.id, "1.5", NOW_MS)
    assert isinstance(attest(csmdb, home, firmware="1.5"), Certificate)
    with pytest.raises(ConfigError, match="version"):
        csmdb.firmware_desk().allow(home.ems.id, "soon", NOW_MS)
    with pytest.raises(ConfigError, match="no home"):
        csmdb.firmware_desk().allow(csmdb.id, "1.0", NOW_MS)


@pytest.mark.parametrize("value", [None, {}, {"nonce": 1}, [], "x"])
def test_what_is_no_attestation_is_malformed(csmdb, home, value):
    with pytest.raises(MalformedError):
        csmdb.firmware_desk().attest(home.ems.id, {"attestation": value}, NOW_MS)


def test_versions_are_compared_by_their_numbers():
    assert version_of("1.10") > version_of("v1.9.9") == version_of("1.9.9.0")
    assert is_lower("1.9", "1.10")
    assert not is_lower("1.10", "1.10.0")
    assert not is_lower("1.0", "")
    for nonsense in ("", "1.", "1..2", "1.0-beta", "٣", "1" * 10):
        with pytest.raises(MalformedError):
            version_of(nonsense)


def test_a_meter_named_by_an_advisory_is_let_in_by_attesting_the_fixed_version(csmdb):
    """CSAF in, ban; the attestation lifts it, and one of a vulnerable version brings it back."""
    home = enrolled(csmdb, "named", vendor="Made up", model="M1", firmware="1.0")
    import_document(csmdb, made_up())
    review_all(csmdb)
    plate = {"vendor": "Made up", "review": lambda who: review(csmdb, who)}
    assert attest(csmdb, home, firmware="1.0", **plate).refusal is Refusal.BANNED
    certificate = attest(csmdb, home, firmware="1.1", **plate)
    assert certificate.meter[0].firmware == "1.1"
    assert csmdb.repository.participant(home.ems.id).banned == ""
    csmdb.firmware_desk().allow(home.ems.id, "1.0", NOW_MS)
    assert attest(csmdb, home, firmware="1.0", **plate).refusal is Refusal.BANNED
    csmdb.repository.check_audit()
