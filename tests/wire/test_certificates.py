"""Certificates, grants and tokens: who issued them, for whom, for where and when."""

import msgspec
import pytest

from wire.certificates import (
    TOKEN_MAX_AGE_MS,
    AddressGrant,
    Certificate,
    Meter,
    Token,
    ValidatorGrant,
    check_validity,
    dump,
    dump_text,
    load,
    make_token,
    parse,
    read_token,
    seal,
)
from wire.errors import (
    BadSignatureError,
    CertificateError,
    ExpiredError,
    MalformedError,
    OversizedError,
    UnsignedError,
    WireError,
)
from wire.keys import SigningKey, to_text

ISSUER, KEY, OTHER = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
MARKET = "demo"
NOW_MS = 1_780_315_200_000

METER = Meter(
    type="smart",
    serial="S1",
    vendor="V",
    model="M",
    firmware="1.0",
    meter_key=to_text(OTHER.public),
)
CERTIFICATE = Certificate(
    subject=KEY.id, key=to_text(KEY.public), roles=["prosumer"], feeder="f1", max_import_w=11_000,
    max_export_w=5_000, not_before_ms=NOW_MS, not_after_ms=NOW_MS + 1_000, serial_no=1,
    meter=[METER],
)  # fmt: skip
GRANT = AddressGrant(
    address=KEY.id, key=to_text(KEY.public), meter_key=to_text(OTHER.public), can_buy=True,
    can_sell=True, max_buy_wh=5_000, max_sell_wh=5_000, start_slot=1, end_slot=9,
)  # fmt: skip
VALIDATOR = ValidatorGrant(
    validator=KEY.id, meter_key=to_text(OTHER.public), start_slot=1, end_slot=9
)
RECORDS = [CERTIFICATE, GRANT, VALIDATOR]


def token(**changes):
    return make_token(
        changes.pop("key", KEY), changes.pop("market", MARKET), changes.pop("wall_ms", NOW_MS),
        "nonce", changes.pop("credential", None),
    )  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_a_sealed_record_loads_as_object_and_as_text(record):
    sealed = seal(record, ISSUER, MARKET)
    for form in (dump(sealed), dump_text(sealed)):
        assert load(type(record), form, ISSUER.public, MARKET) == sealed


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_refused_unsigned_or_by_another_issuer_or_market(record):
    with pytest.raises(UnsignedError):
        load(type(record), dump(record), ISSUER.public, MARKET)
    with pytest.raises(BadSignatureError):
        load(type(record), dump(seal(record, OTHER, MARKET)), ISSUER.public, MARKET)
    with pytest.raises(BadSignatureError):
        load(type(record), dump(seal(record, ISSUER, "elsewhere")), ISSUER.public, MARKET)


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_is_under_the_signature(record):
    sealed = dump(seal(record, ISSUER, MARKET))
    for name, value in sealed.items():
        if name == "signature":
            continue
        other = {str: "x", int: 99, bool: not value, list: []}[type(value)]
        with pytest.raises(WireError):
            load(type(record), {**sealed, name: other}, ISSUER.public, MARKET)


@pytest.mark.parametrize("record", RECORDS)
def test_other_fields_and_types_are_malformed(record):
    sealed = dump(seal(record, ISSUER, MARKET))
    bad = [{**sealed, "more": 1}, {}, [], 5, None, "", "{", "\ud800", {**sealed, "signature": 1}]
    bad += [
        {k: v for k, v in sealed.items() if k != name} for name in sealed if name != "signature"
    ]
    for form in bad:
        with pytest.raises(MalformedError):
            load(type(record), form, ISSUER.public, MARKET)


def test_a_grant_is_not_taken_for_another_kind_of_record():
    """The fields of a validator grant could be an address grant's one day; the domain never is."""
    sealed = seal(VALIDATOR, ISSUER, MARKET)
    with pytest.raises(WireError):
        load(AddressGrant, dump(sealed), ISSUER.public, MARKET)


@pytest.mark.parametrize(
    "record",
    [msgspec.structs.replace(CERTIFICATE, subject=OTHER.id),
     msgspec.structs.replace(GRANT, address=OTHER.id)],
)  # fmt: skip
def test_an_identity_that_is_not_its_keys_hash_is_refused_even_if_issued(record):
    with pytest.raises(CertificateError):
        load(type(record), dump(seal(record, ISSUER, MARKET)), ISSUER.public, MARKET)


def test_numbers_are_not_made_of_texts_or_booleans():
    value = dump(seal(GRANT, ISSUER, MARKET))
    for wrong in ("5000", True, 5000.0):
        with pytest.raises(MalformedError):
            parse(AddressGrant, {**value, "max_buy_wh": wrong})


def test_validity_is_half_open():
    check_validity(CERTIFICATE, NOW_MS)
    check_validity(CERTIFICATE, NOW_MS + 999)
    for now_ms in (NOW_MS - 1, NOW_MS + 1_000):
        with pytest.raises(CertificateError):
            check_validity(CERTIFICATE, now_ms)


def test_a_token_proves_its_holder_and_carries_the_credential():
    sealed = seal(GRANT, ISSUER, MARKET)
    found = read_token(token(credential=sealed), KEY.id, MARKET, NOW_MS)
    assert found.id == KEY.id
    assert load(AddressGrant, found.credential, ISSUER.public, MARKET) == sealed
    assert read_token(token().encode(), KEY.id, MARKET, NOW_MS).credential == ""


def test_a_token_of_another_client_is_refused():
    with pytest.raises(CertificateError):
        read_token(token(), OTHER.id, MARKET, NOW_MS)


def test_a_token_for_another_broker_is_refused():
    with pytest.raises(WireError):
        read_token(token(market="elsewhere"), KEY.id, MARKET, NOW_MS)


def test_a_token_that_names_another_broker_than_it_was_signed_for_is_refused():
    liar = Token(id=KEY.id, key=to_text(KEY.public), broker="elsewhere", time_ms=NOW_MS, nonce="n",
                 credential="")  # fmt: skip
    with pytest.raises(CertificateError, match="another broker"):
        read_token(dump_text(seal(liar, KEY, MARKET)), KEY.id, MARKET, NOW_MS)


@pytest.mark.parametrize("age_ms", [TOKEN_MAX_AGE_MS, -TOKEN_MAX_AGE_MS])
def test_a_token_is_fresh_for_a_minute_either_way(age_ms):
    read_token(token(), KEY.id, MARKET, NOW_MS + age_ms)
    with pytest.raises(ExpiredError):
        read_token(token(), KEY.id, MARKET, NOW_MS + age_ms + (1 if age_ms > 0 else -1))


def test_a_token_signed_by_another_key_is_refused():
    forged = Token(id=KEY.id, key=to_text(KEY.public), broker=MARKET, time_ms=NOW_MS, nonce="n",
                   credential="")  # fmt: skip
    with pytest.raises(BadSignatureError):
        read_token(dump_text(seal(forged, OTHER, MARKET)), KEY.id, MARKET, NOW_MS)


def test_a_token_with_somebody_elses_key_under_ones_own_name_is_refused():
    forged = Token(id=KEY.id, key=to_text(OTHER.public), broker=MARKET, time_ms=NOW_MS, nonce="n",
                   credential="")  # fmt: skip
    with pytest.raises(CertificateError):
        read_token(dump_text(seal(forged, OTHER, MARKET)), KEY.id, MARKET, NOW_MS)


@pytest.mark.parametrize("text", ["", "password", "{}", b"\xff\xfe", "\udcff", "[1]", '{"id":1}'])
def test_a_password_that_is_no_token_is_malformed(text):
    with pytest.raises(MalformedError):
        read_token(text, KEY.id, MARKET, NOW_MS)


def test_an_oversized_token_is_refused_before_it_is_parsed():
    with pytest.raises(OversizedError):
        read_token("[" * 9_000, KEY.id, MARKET, NOW_MS)
