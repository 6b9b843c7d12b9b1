"""
The CSM-DB's X.509 authority: its files, and what it answers to signing requests.

    tls-ca.key   seed of the authority's key (mode 0600)
    tls-ca.crt   its certificate: what brokers and homes are given to believe in

One identity has one TLS key at a time: a certificate for another key revokes those before, and a
key that was revoked never gets a certificate again. A ban does not end the connection: who is
banned has yet to hear how it gets out of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from csmdb.core import OPERATOR
from csmdb.key_rows import TlsRow
from csmdb.pki import TlsAuthority, digest_of, pem_of, read_request
from csmdb.records import Refused
from csmdb.requests import MAX_ADDRESSES, read_identity
from csmdb.revoked_keys import revoke_certificates, revoked_serials
from csmdb.setup import CsmDb
from runtime.keyfiles import read_secret, write_secret
from runtime.tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE, write_key
from wire.enrolment import TLS_CERTIFICATE
from wire.errors import ConfigError, MalformedError, Refusal
from wire.keys import KEY_BYTES, from_text
from wire.revoked_keys import serial_text

CA_KEY, CA_CERTIFICATE = "tls-ca.key", "tls-ca.crt"
SERVER_CERTIFICATE, SERVER_KEY, CRL = "server.crt", "server.key", "crl.pem"
PARTICIPANT_DAYS = 90
ADDRESS_DAYS = 16
"""A grant's longest life and the time after it in which its owner settles."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    identity: str
    public: Ed25519PublicKey
    days: int


def init_authority(csmdb: CsmDb) -> TlsAuthority:
    """
    Make the authority, once.

    Raises:
        ConfigError: there is one already.
    """
    if (csmdb.folder / CA_KEY).exists():
        raise ConfigError(f"{csmdb.folder / CA_KEY}: there is an authority already")
    seed = os.urandom(KEY_BYTES)
    made = TlsAuthority.create(f"hearthgrid {csmdb.market}", csmdb.clock.wall_ms(), seed)
    (csmdb.folder / CA_CERTIFICATE).write_bytes(made.pem)
    write_secret(csmdb.folder / CA_KEY, seed)
    with csmdb.repository.atomic():
        csmdb.repository.audit(csmdb.clock.now_ms(), OPERATOR, "tls-init", "OK", "")
    return made


def has_authority(folder: Path) -> bool:
    """Was an authority made here?"""
    return (folder / CA_KEY).exists()


def open_authority(folder: Path) -> TlsAuthority:
    """
    The authority of a CSM-DB's folder.

    Raises:
        ConfigError: there is none, or its files are damaged.
    """
    if not has_authority(folder):
        raise ConfigError(f"{folder}: no TLS authority; make one with `csmdb tls init`")
    try:
        raw = (folder / CA_CERTIFICATE).read_bytes()
        return TlsAuthority.load(read_secret(folder / CA_KEY), raw)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / CA_CERTIFICATE}: {error}; restore the backup") from None


def certify(csmdb: CsmDb, sender: str, parameters: dict[str, Any]) -> list[str] | Refused:
    """
    Certificates for TLS keys of the sender and of addresses that are granted to it, all or none.

    Returns:
        PEM texts, in order; or NOT_FOUND (no authority here), UNKNOWN_SENDER, NOT_ALLOWED (an
        address of another), REVOKED (the identity, or the TLS key).

    Raises:
        MalformedError, BadSignatureError: a request is not one, or does not prove its key.
    """
    asked = _read(parameters)
    if not has_authority(csmdb.folder):
        return Refused(Refusal.NOT_FOUND, "this market's broker takes no certificates")
    authority, rows = open_authority(csmdb.folder), csmdb.repository
    with rows.atomic():
        decision: list[_Wanted] | Refused = _check(csmdb, sender, asked)
        outcome, issued = "OK", list[str]()
        if isinstance(decision, Refused):
            outcome = decision.refusal.value
        else:
            issued = [_issue(csmdb, authority, one) for one in decision]
        rows.audit(csmdb.clock.now_ms(), sender, TLS_CERTIFICATE, outcome, "", subject=sender)
    return decision if isinstance(decision, Refused) else issued


def _read(parameters: dict[str, Any]) -> list[tuple[str, Ed25519PublicKey]]:
    found = parameters.get("requests")
    if type(found) is not list or not 1 <= len(found) <= MAX_ADDRESSES:
        raise MalformedError(f"requests is a list of 1 to {MAX_ADDRESSES}")
    asked = []
    for one in found:
        if type(one) is not dict or type(one.get("csr")) is not str:
            raise MalformedError("a request is an object with identity and csr")
        asked.append((read_identity(one, "identity"), read_request(from_text(one["csr"]))))
    digests = {digest_of(public) for _, public in asked}
    if not len({identity for identity, _ in asked}) == len(digests) == len(asked):
        raise MalformedError("each identity once, each with a key of its own")
    return asked


def _check(
    csmdb: CsmDb, sender: str, asked: list[tuple[str, Ed25519PublicKey]]
) -> list[_Wanted] | Refused:
    keys, rows = csmdb.repository.keys, csmdb.repository
    if rows.participant(sender) is None:
        return Refused(Refusal.UNKNOWN_SENDER, "enrol first")
    wanted = []
    for identity, public in asked:
        granted = rows.address_grant(identity)
        if identity != sender and (granted is None or granted[0] != sender):
            return Refused(Refusal.NOT_ALLOWED, f"{identity} is not yours")
        if keys.is_revoked(identity):
            return Refused(Refusal.REVOKED, f"{identity} is revoked")
        if keys.is_key_revoked(digest_of(public)):
            return Refused(Refusal.REVOKED, "this TLS key is revoked; make another")
        days = PARTICIPANT_DAYS if identity == sender else ADDRESS_DAYS
        wanted.append(_Wanted(identity, public, days))
    return wanted


def _issue(csmdb: CsmDb, authority: TlsAuthority, one: _Wanted) -> str:
    wall_ms, keys = csmdb.clock.wall_ms(), csmdb.repository.keys
    certificate = authority.client(one.identity, one.public, wall_ms, one.days)
    digest = digest_of(one.public)
    revoke_certificates(keys, one.identity, "rotated", wall_ms, but_key=digest)
    not_after_ms = int(certificate.not_valid_after_utc.timestamp()) * 1000
    serial = serial_text(certificate.serial_number)
    keys.add_tls(TlsRow(serial, one.identity, digest, not_after_ms))
    return pem_of(certificate).decode()


def write_server(csmdb: CsmDb, hosts: Iterable[str], target: Path) -> None:
    """
    Write what a broker needs: ca.crt, server.crt, server.key, crl.pem. The key is not kept here.

    Raises:
        ConfigError: there is no authority.
    """
    authority = open_authority(csmdb.folder)
    key = Ed25519PrivateKey.generate()
    certificate = authority.server(key.public_key(), hosts, csmdb.clock.wall_ms())
    target.mkdir(parents=True, exist_ok=True)
    (target / CA_FILE).write_bytes(authority.pem)
    (target / SERVER_CERTIFICATE).write_bytes(pem_of(certificate))
    write_key(target / SERVER_KEY, key)
    (target / CRL).write_bytes(render_crl(csmdb))
    with csmdb.repository.atomic():
        csmdb.repository.audit(csmdb.clock.now_ms(), OPERATOR, "tls-server", "OK", "")


def write_own(csmdb: CsmDb) -> Path:
    """The folder of the CSM-DB's own client files (`runtime.tls.client_context`), made anew."""
    authority, folder = open_authority(csmdb.folder), csmdb.folder / "tls-client"
    key = Ed25519PrivateKey.generate()
    certificate = authority.client(
        csmdb.id, key.public_key(), csmdb.clock.wall_ms(), PARTICIPANT_DAYS
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / CA_FILE).write_bytes(authority.pem)
    (folder / CERTIFICATE_FILE).write_bytes(pem_of(certificate))
    write_key(folder / KEY_FILE, key)
    return folder


def render_crl(csmdb: CsmDb) -> bytes:
    """The X.509 list of what is revoked, PEM."""
    number, serials = revoked_serials(csmdb)
    return open_authority(csmdb.folder).revoked(number, serials, csmdb.clock.wall_ms())
