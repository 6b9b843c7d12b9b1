"""
What the CSM-DB signs: certificates, address grants, validator grants. What a client shows: a token.

- A **certificate** binds a participant's identity and key to roles, limits, feeder and, for a home,
  its meter (type, serial, vendor, model, firmware, meter key): TMI's CSM-DB record, signed.
- An **address grant** makes a random address a lawful trader without naming its owner: TMI's random
  address, PETra's anonymous address and Nazari's certificate of existence in one object.
- A **validator grant** names the pseudonymous meter key whose CPF counts for a validator.
- A **validator licence** lets a key validate, and says who runs it: the votes of one controller are
  bounded together.
- A **revocation** bans an address, or lets it trade again: the later number counts.
- A **token** proves a key to the broker: fresh, short-lived, signed by the key the id is made of.

All are canonical JSON with a `signature`; `seal` signs, `load` checks. Times are UTC milliseconds.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from wire.canonical import decode, encode
from wire.errors import (
    BadSignatureError,
    CertificateError,
    ExpiredError,
    MalformedError,
    UnsignedError,
)
from wire.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    Domain,
    SigningKey,
    check_key,
    from_text,
    id_of,
    to_text,
    verify,
)

ROLES = (
    "consumer", "producer", "prosumer", "aggregator", "dso", "validator", "csmdb", "analytics",
    "observer",
)  # fmt: skip
TOKEN_MAX_AGE_MS = 60_000
TOKEN_MAX_BYTES = 8 * 1024


class Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the signed records. `signature` is base64url, empty before signing."""

    signature: str = ""


class Meter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certified smart meter."""

    type: str
    serial: str
    vendor: str
    model: str
    firmware: str
    meter_key: str
    """Public key of the gateway's meter key, base64url."""


class Certificate(Signed, frozen=True, kw_only=True):
    """A participant known to the CSM-DB."""

    subject: str
    """Identity: `id_of(key)`."""
    key: str
    """EMS (or service) public key, base64url."""
    roles: list[str]
    feeder: str
    max_import_w: int
    max_export_w: int
    not_before_ms: int
    not_after_ms: int
    serial_no: int
    meter: list[Meter]
    """One meter for a home, none for a service (a list because the wire has no null)."""


class AddressGrant(Signed, frozen=True, kw_only=True):
    """Permission to trade under an address, naming nobody."""

    address: str
    key: str
    """Address public key, base64url; `address == id_of(key)`."""
    meter_key: str
    """Pseudonymous meter key that alone may confirm this address's deliveries."""
    can_buy: bool
    can_sell: bool
    max_buy_wh: int
    """Most energy bought per slot [Wh]."""
    max_sell_wh: int
    """Most energy sold per slot [Wh]."""
    start_slot: int
    end_slot: int
    """Last slot, inclusive."""


class ValidatorGrant(Signed, frozen=True, kw_only=True):
    """The meter whose CPF counts for a validator's turn in the schedule."""

    validator: str
    """Validator identity: `id_of(validator key)`."""
    meter_key: str
    """Pseudonymous meter key that attests the CPF."""
    start_slot: int
    end_slot: int


class ValidatorLicence(Signed, frozen=True, kw_only=True):
    """Permission to validate."""

    validator: str
    """Validator identity: `id_of(key)`."""
    key: str
    """Validator public key, base64url."""
    controller: str
    """Who runs it; one name for all validators of one party."""
    not_before_ms: int
    not_after_ms: int


class Revocation(Signed, frozen=True, kw_only=True):
    """An address may not trade any longer, or may again; it names neither its owner nor others."""

    number: int
    """Of all revocations of the CSM-DB; of an address' revocations the highest counts."""
    address: str
    banned: bool
    """False: it may trade again."""
    reason: str
    """ADVISORY: the meter's firmware is vulnerable; KEY: its key is lost; OPERATOR: another reason,
    told privately."""
    advisory: str
    """SHA-256 of the advisory, hex, or empty."""
    knowledge: str
    """SHA-256 of all advisories known to the CSM-DB then, hex."""
    end_slot: int
    """Last slot of the address' grant, inclusive: from then on there is nothing to revoke."""


class Token(Signed, frozen=True, kw_only=True):
    """Proof of a key to the broker, sent as the MQTT password."""

    id: str
    key: str
    broker: str
    """Name of the broker (its market), so a token cannot be replayed elsewhere."""
    time_ms: int
    """Wall-clock time of signing; tokens live 60 s."""
    nonce: str
    credential: str
    """JSON text of a Certificate or AddressGrant, or empty before enrolment."""


S = TypeVar("S", bound=Signed)

_DOMAINS: dict[type[Signed], Domain] = {
    Certificate: Domain.CERT,
    AddressGrant: Domain.GRANT,
    ValidatorGrant: Domain.VALIDATOR,
    ValidatorLicence: Domain.LICENCE,
    Revocation: Domain.REVOCATION,
    Token: Domain.TOKEN,
}


def seal(record: S, key: SigningKey, chain_id: str) -> S:
    """
    Return the record signed by `key`.

    Raises:
        WeakKeyError: it would vouch for a key that anybody can sign for.
    """
    _check_keys(record)
    signature = key.sign(_DOMAINS[type(record)], chain_id, _unsigned(record))
    return msgspec.structs.replace(record, signature=to_text(signature))


def dump(record: Signed) -> dict[str, Any]:
    """The record as a JSON object."""
    value = msgspec.to_builtins(record)
    assert type(value) is dict
    return value


def dump_text(record: Signed) -> str:
    """The record as canonical JSON text."""
    return encode(dump(record)).decode()


def load(kind: type[S], value: Any, issuer: bytes, chain_id: str) -> S:
    """
    Check and return a record of `kind` from a JSON object (or canonical text) signed by `issuer`.

    Raises:
        MalformedError: wrong fields. UnsignedError. BadSignatureError: not the issuer's.
        CertificateError: identity and key disagree. WeakKeyError.
    """
    record = parse(kind, value)
    check(record, issuer, chain_id)
    return record


def parse(kind: type[S], value: Any) -> S:
    """Read a record's form without believing it."""
    if isinstance(value, str):
        value = decode(_utf8(value))
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedError(f"not a {kind.__name__}: {error}") from None


def check(record: Signed, issuer: bytes, chain_id: str) -> None:
    """Raise unless `issuer` signed the record and its identity is the hash of its key."""
    if not record.signature:
        raise UnsignedError(f"{type(record).__name__} is not signed")
    signature = from_text(record.signature, SIGNATURE_BYTES)
    if not verify(issuer, _DOMAINS[type(record)], chain_id, _unsigned(record), signature):
        raise BadSignatureError(f"{type(record).__name__} is not the issuer's")
    pair = _identity(record)
    if pair is not None and id_of(from_text(pair[1], KEY_BYTES)) != pair[0]:
        raise CertificateError("identity is not the hash of the key", id=pair[0])
    _check_keys(record)


def check_validity(certificate: Certificate | ValidatorLicence, now_ms: int) -> None:
    """Raise `CertificateError` outside [not_before, not_after)."""
    if not certificate.not_before_ms <= now_ms < certificate.not_after_ms:
        pair = _identity(certificate)
        raise CertificateError("outside its validity", subject=pair and pair[0], now_ms=now_ms)


def make_token(
    key: SigningKey, market: str, wall_ms: int, nonce: str, credential: Signed | None
) -> str:
    """A fresh broker token (the MQTT password) for the holder of `key`."""
    token = Token(
        id=key.id,
        key=to_text(key.public),
        broker=market,
        time_ms=wall_ms,
        nonce=nonce,
        credential=dump_text(credential) if credential is not None else "",
    )
    return dump_text(seal(token, key, market))


def read_token(text: str | bytes, client_id: str, market: str, wall_ms: int) -> Token:
    """
    Check a token's form, key, freshness and owner (not its credential: see `broker.access`).

    Raises:
        WireError: by name.
    """
    raw = _utf8(text) if isinstance(text, str) else text
    token = parse(Token, decode(raw, TOKEN_MAX_BYTES))
    check(token, from_text(token.key, KEY_BYTES), market)
    if token.id != client_id:
        raise CertificateError("token is another client's", id=token.id)
    if token.broker != market:
        raise CertificateError("token is for another broker", broker=token.broker)
    if abs(wall_ms - token.time_ms) > TOKEN_MAX_AGE_MS:
        raise ExpiredError("token is not fresh", age_ms=wall_ms - token.time_ms)
    return token


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MalformedError("lone surrogate in a text") from None


def _unsigned(record: Signed) -> bytes:
    value = dump(record)
    del value["signature"]
    return encode(value)


def _check_keys(record: Signed) -> None:
    """Refuse weak keys, of identities and of meters."""
    pair = _identity(record)
    named = [] if pair is None else [pair[1]]
    match record:
        case Certificate(meter=meters):
            named += [meter.meter_key for meter in meters]
        case AddressGrant(meter_key=meter_key) | ValidatorGrant(meter_key=meter_key):
            named.append(meter_key)
    for text in named:
        check_key(from_text(text, KEY_BYTES))


def _identity(record: Signed) -> tuple[str, str] | None:
    match record:
        case Certificate(subject=subject, key=key):
            return subject, key
        case AddressGrant(address=address, key=key):
            return address, key
        case ValidatorLicence(validator=validator, key=key):
            return validator, key
        case Token(id=name, key=key):
            return name, key
    return None
