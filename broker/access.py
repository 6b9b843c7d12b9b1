"""
Who is at the door: from an MQTT CONNECT to a `wire.topics.Peer`. Pure.

The password is a token (`wire.certificates.Token`) signed by the key that the client id is the hash
of, and holding what the CSM-DB's issuing key signed for it: a Certificate (a participant or a
service), an AddressGrant (a trading lane, naming nobody), or nothing (a meter about to enrol, which
may only talk to the CSM-DB). Client id, user name and token id must be one: otherwise any valid
client could take over another's session and the messages queued in it.

Tokens are judged by wall time, because they live for a real minute; certificates and grants by
market time, which runs faster than real time in simulations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from wire.canonical import decode
from wire.certificates import (
    ROLES,
    TOKEN_MAX_BYTES,
    AddressGrant,
    Certificate,
    Token,
    check_validity,
    load,
    read_token,
)
from wire.errors import CertificateError, MalformedError, UnsignedError
from wire.presence import at_work
from wire.slots import SlotGrid
from wire.topics import Peer

GRANT_GRACE_SLOTS = 192
"""A grant opens the broker this long after its last slot: its owner still awaits settlement and may
send a late receipt."""
MAX_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class Trust:
    """What a broker believes in."""

    market: str
    issuing_key: bytes
    """Public half of the CSM-DB's issuing key."""
    grid: SlotGrid = field(default_factory=SlotGrid)
    """Slots of the market, for the end of a grant."""


@dataclass(frozen=True, slots=True)
class Access:
    """A proven identity, and until when."""

    peer: Peer
    until_ms: int | None
    """Market time at which the credential ends; None without one."""
    nonce: str
    """The token's, for the replay guard."""
    at_work_ms: tuple[int, int] | None = None
    """Market times between which an address is at work (`wire.presence`); None: not an address."""


def identify(
    client_id: str, user_name: str, password: str, trust: Trust, wall_ms: int, now_ms: int
) -> Access:
    """
    Check a CONNECT and return who sent it.

    Args:
        wall_ms: real time, for the token
        now_ms: market time, for the credential

    Raises:
        WireError: by name; nobody is let in.
    """
    if client_id != user_name or len(client_id) > MAX_ID_CHARS:
        raise CertificateError("client id and user name differ", client_id=client_id[:MAX_ID_CHARS])
    if not password:
        raise UnsignedError("no token")
    token = read_token(password.encode(errors="replace"), client_id, trust.market, wall_ms)
    roles, until_ms, at_work_ms = _credential(token, trust, now_ms)
    return Access(Peer(token.id, roles), until_ms, token.nonce, at_work_ms)


def _credential(
    token: Token, trust: Trust, now_ms: int
) -> tuple[frozenset[str], int | None, tuple[int, int] | None]:
    """Roles, and market times: when it ends, and between which an address is at work."""
    if not token.credential:
        return frozenset(), None, None
    value = decode(token.credential.encode(), TOKEN_MAX_BYTES)
    if not isinstance(value, dict):
        raise MalformedError("a credential is a JSON object")
    if "subject" in value:
        certificate = load(Certificate, value, trust.issuing_key, trust.market)
        _same_owner(token, certificate.subject, certificate.key)
        check_validity(certificate, now_ms)
        return frozenset(certificate.roles) & frozenset(ROLES), certificate.not_after_ms, None
    grant = load(AddressGrant, value, trust.issuing_key, trust.market)
    _same_owner(token, grant.address, grant.key)
    until_ms = trust.grid.end_ms(grant.end_slot + GRANT_GRACE_SLOTS)
    if now_ms >= until_ms:
        raise CertificateError("grant has ended", address=grant.address, end_slot=grant.end_slot)
    first, last = at_work(grant.start_slot, grant.end_slot)
    times_ms = trust.grid.start_ms(max(first, 0)), trust.grid.end_ms(last)
    return frozenset({"address"}), until_ms, times_ms


def _same_owner(token: Token, owner: str, key: str) -> None:
    if owner != token.id or key != token.key:
        raise CertificateError("credential is another's", owner=owner)
