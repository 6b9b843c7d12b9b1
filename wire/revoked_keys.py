"""
The list of revoked keys: what the CSM-DB signs, and brokers keep out by.

It names identities (participants, services, addresses whose key was lost, stolen or replaced) and
serial numbers of X.509 certificates. Its number goes up with every entry and never down, so that
nobody can hand a broker an older list, on which a stolen key is still good; a list of the same
number is only dated anew. An entry leaves the list when what it revokes would have ended by itself.

References:
    RFC 5280 section 5 (the same for X.509 alone).
"""

from __future__ import annotations

from typing import Any

import msgspec

from wire.canonical import decode, encode
from wire.certificates import Signed, dump, parse
from wire.errors import BadSignatureError, MalformedError, RolledBackError, UnsignedError
from wire.keys import SIGNATURE_BYTES, Domain, SigningKey, from_text, is_id, to_text, verify

MAX_BYTES = 4 * 1024 * 1024


class RevocationList(Signed, frozen=True, kw_only=True):
    """Everything that is revoked and would not have ended by itself."""

    number: int
    """Of the newest entry ever made; 0: nothing was ever revoked."""
    time_ms: int
    """UTC milliseconds (wall time) of signing."""
    identities: list[str]
    serials: list[str]
    """Of X.509 certificates, hexadecimal without leading zeros."""


def seal_list(unsigned: RevocationList, key: SigningKey, market: str) -> RevocationList:
    """Return the list signed by the issuing key."""
    signature = key.sign(Domain.REVOKED, market, _unsigned(unsigned))
    return msgspec.structs.replace(unsigned, signature=to_text(signature))


def read_list(
    raw: bytes, issuing_key: bytes, market: str, known: RevocationList | None = None
) -> RevocationList:
    """
    Check a list.

    Args:
        known: the one in force, or None

    Raises:
        MalformedError, OversizedError, UnsignedError.
        BadSignatureError: not the CSM-DB's, or another market's.
        RolledBackError: older than the one in force.
    """
    found = parse(RevocationList, decode(raw, MAX_BYTES))
    if not found.signature:
        raise UnsignedError("the list is not signed")
    signature = from_text(found.signature, SIGNATURE_BYTES)
    if not verify(issuing_key, Domain.REVOKED, market, _unsigned(found), signature):
        raise BadSignatureError("the list is not the CSM-DB's")
    if found.number < 0 or not all(is_id(one) for one in found.identities):
        raise MalformedError("not a list of revocations")
    if known is not None and (found.number, found.time_ms) < (known.number, known.time_ms):
        raise RolledBackError("an older list", number=found.number, known=known.number)
    return found


def dump_list(signed: RevocationList) -> bytes:
    """The list as canonical JSON."""
    return encode(dump(signed))


def serial_text(serial: int) -> str:
    """An X.509 serial number as the list writes it."""
    return f"{serial:x}"


def _unsigned(record: RevocationList) -> bytes:
    value: dict[str, Any] = dump(record)
    del value["signature"]
    return encode(value)
