"""Who gets in, and as whom."""

import msgspec
import pytest
from msgspec.structs import replace
from support.brokers import DAY_MS, Authority, make_key

from broker.access import GRANT_GRACE_SLOTS, identify
from wire.certificates import TOKEN_MAX_AGE_MS, Token, dump_text, make_token, seal
from wire.errors import (
    BadSignatureError,
    CertificateError,
    ExpiredError,
    MalformedError,
    UnsignedError,
    WireError,
)
from wire.keys import to_text
from wire.topics import Peer

AUTHORITY = Authority("market-1")
KEY, OTHER = make_key("me"), make_key("other")
WALL_MS = 1_800_000_000_000
MARKET_MS = WALL_MS + 300 * DAY_MS  # a sped-up market is far ahead of the wall


def certificate(key=KEY, roles=("prosumer",), start=MARKET_MS - DAY_MS, end=MARKET_MS + DAY_MS):
    return AUTHORITY.certificate(key, roles, start, end)


def enter(credential, key=KEY, client_id=None, user=None, market="market-1", token_ms=WALL_MS):
    password = make_token(key, market, token_ms, "n1", credential)
    client_id = client_id or key.id
    return identify(client_id, user or client_id, password, AUTHORITY.trust, WALL_MS, MARKET_MS)


def test_a_certificate_gives_its_roles_until_it_ends():
    access = enter(certificate(roles=["validator", "aggregator"]))
    assert access.peer == Peer(KEY.id, frozenset({"validator", "aggregator"}))
    assert access.until_ms == MARKET_MS + DAY_MS


def test_a_grant_makes_an_address():
    end_slot = MARKET_MS // 900_000
    access = enter(AUTHORITY.grant(KEY, end_slot))
    assert access.peer == Peer(KEY.id, frozenset({"address"}))
    assert access.until_ms == (end_slot + GRANT_GRACE_SLOTS + 1) * 900_000


def test_without_a_credential_one_has_no_roles():
    assert enter(None).peer == Peer(KEY.id, frozenset())


def test_certificates_are_judged_by_market_time_and_tokens_by_wall_time():
    with pytest.raises(CertificateError):
        enter(certificate(start=WALL_MS - DAY_MS, end=WALL_MS + DAY_MS))
    for skew_ms in (-TOKEN_MAX_AGE_MS - 1, TOKEN_MAX_AGE_MS + 1, MARKET_MS - WALL_MS):
        with pytest.raises(ExpiredError):
            enter(certificate(), token_ms=WALL_MS + skew_ms)


def test_an_address_is_at_work_about_the_slots_of_its_grant():
    for length, ahead in ((1, 3), (4, 6), (500, 98)):
        first = MARKET_MS // 900_000 + 10
        terms = replace(AUTHORITY.grant(KEY), start_slot=first, end_slot=first + length - 1)
        access = enter(seal(terms, AUTHORITY.key, AUTHORITY.market))
        assert access.at_work_ms is not None
        begin_ms, end_ms = access.at_work_ms
        assert begin_ms == (first - ahead) * 900_000
        assert end_ms == (first + length + 2) * 900_000


def test_a_grant_whose_settlement_is_long_over_lets_nobody_in():
    with pytest.raises(CertificateError):
        enter(AUTHORITY.grant(KEY, MARKET_MS // 900_000 - GRANT_GRACE_SLOTS - 1))


@pytest.mark.parametrize("names", [(OTHER.id, OTHER.id), (KEY.id, OTHER.id), (OTHER.id, KEY.id)])
def test_client_id_user_name_and_token_must_be_one(names):
    with pytest.raises(CertificateError):
        enter(certificate(), client_id=names[0], user=names[1])


def test_another_clients_credential_is_worth_nothing():
    with pytest.raises(CertificateError):
        enter(certificate(OTHER))
    with pytest.raises(CertificateError):
        enter(AUTHORITY.grant(OTHER, MARKET_MS // 900_000))


def test_a_self_made_certificate_is_worth_nothing():
    forged = seal(certificate(roles=["csmdb"]), KEY, "market-1")
    with pytest.raises(BadSignatureError):
        enter(forged)


def test_a_credential_of_another_market_is_worth_nothing():
    elsewhere = Authority("market-2", AUTHORITY.key)
    with pytest.raises(BadSignatureError):
        enter(elsewhere.certificate(KEY, ["dso"], MARKET_MS - 1, MARKET_MS + 1))


def test_a_token_for_another_broker_is_worth_nothing():
    with pytest.raises(WireError):
        enter(certificate(), market="market-2")


def test_a_certificate_cannot_invent_roles():
    assert enter(certificate(roles=["prosumer", "root"])).peer.roles == {"prosumer"}


@pytest.mark.parametrize("password", ["", "x", "{}", '{"id":1}', "[" * 200, "\ud800"])
def test_rubbish_is_refused_by_name(password):
    with pytest.raises((MalformedError, UnsignedError)):
        identify(KEY.id, KEY.id, password, AUTHORITY.trust, WALL_MS, MARKET_MS)


@pytest.mark.parametrize("credential", ["{}", "[]", '"x"', '{"subject":"x"}', '{"address":1}'])
def test_a_rubbish_credential_is_refused_by_name(credential):
    token = Token(
        id=KEY.id, key=to_text(KEY.public), broker="market-1", time_ms=WALL_MS, nonce="n",
        credential="",
    )  # fmt: skip
    token = seal(msgspec.structs.replace(token, credential=credential), KEY, "market-1")
    with pytest.raises(WireError):
        identify(KEY.id, KEY.id, dump_text(token), AUTHORITY.trust, WALL_MS, MARKET_MS)
