"""
X.509 for the broker's lanes: a certificate authority, what it signs, what it revoked.

Mosquitto cannot check the tokens of `broker.access`; it takes the common name of a client's
certificate for its identity (`broker.mosquitto`). So the CSM-DB runs this authority and certifies,
under the identity `hg1…` and nothing else, TLS keys that are made where they are used: a signing
request proves each key.

All keys are Ed25519. The TLS key of a client is not its signing key: a process that terminates TLS
need not be able to sign transactions. A client's certificate is valid in whole days, so that two
asked for together are not told by the second.

References:
    RFC 5280 (certificates and lists), RFC 8410 (Ed25519 in them), RFC 2986 (signing requests).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wire.errors import BadSignatureError, MalformedError

SKEW = timedelta(minutes=5)
"""How far the clocks of two machines may differ."""
AUTHORITY_DAYS = 3_650
SERVER_DAYS = 365
LIST_DAYS = 30
"""A list that was not renewed for so long is not believed: OpenSSL then lets nobody in."""


class TlsAuthority:
    """
    A certificate authority of one market.

    Args:
        key: its private key
        certificate: its own, signed by itself
    """

    def __init__(self, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(
        cls, name: str, wall_ms: int, seed: bytes, days: int = AUTHORITY_DAYS
    ) -> TlsAuthority:
        """An authority of this common name, whose key has this seed."""
        key = Ed25519PrivateKey.from_private_bytes(seed)
        since, until = _time(wall_ms) - SKEW, _time(wall_ms) + timedelta(days=days)
        certificate = (
            _builder(_name(name), _name(name), key.public_key(), key.public_key(), since, until)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(), critical=True)
            .sign(key, None)
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, seed: bytes, pem: bytes) -> TlsAuthority:
        """
        The authority of a key's seed and its certificate.

        Raises:
            ValueError: not a certificate, or of another key.
        """
        key, certificate = (
            Ed25519PrivateKey.from_private_bytes(seed),
            x509.load_pem_x509_certificate(pem),
        )
        if certificate.public_key() != key.public_key():
            raise ValueError("the certificate is of another key")
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        """What clients and brokers trust."""
        return pem_of(self.certificate)

    def server(
        self, public: Ed25519PublicKey, hosts: Iterable[str], wall_ms: int, days: int = SERVER_DAYS
    ) -> x509.Certificate:
        """A server's certificate for host names and addresses."""
        since, until = _time(wall_ms) - SKEW, _time(wall_ms) + timedelta(days=days)
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return (
            self._leaf("broker", public, since, until)
            .add_extension(names, critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, None)
        )

    def client(
        self, identity: str, public: Ed25519PublicKey, wall_ms: int, days: int
    ) -> x509.Certificate:
        """A client's certificate, from the beginning of the day before on."""
        today = _time(wall_ms).replace(hour=0, minute=0, second=0, microsecond=0)
        since, until = today - timedelta(days=1), today + timedelta(days=days + 1)
        return (
            self._leaf(identity, public, since, until)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, None)
        )

    def revoked(
        self, number: int, serials: Iterable[int], wall_ms: int, days: int = LIST_DAYS
    ) -> bytes:
        """The list of revoked serial numbers, PEM (Mosquitto wants one, even if it is empty)."""
        now = _time(wall_ms)
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - SKEW)
            .next_update(now + timedelta(days=days))
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            crl = crl.add_revoked_certificate(entry.revocation_date(now - SKEW).build())
        return crl.sign(self._key, None).public_bytes(Encoding.PEM)

    def _leaf(
        self, name: str, public: Ed25519PublicKey, since: datetime, until: datetime
    ) -> x509.CertificateBuilder:
        issuer = self.certificate.subject
        return _builder(
            _name(name), issuer, public, self._key.public_key(), since, until
        ).add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)


def read_request(der: bytes) -> Ed25519PublicKey:
    """
    The TLS key that a signing request proves; nothing else of the request is believed.

    Raises:
        MalformedError: not a request of an Ed25519 key. BadSignatureError: the key is not proven.
    """
    try:
        request = x509.load_der_x509_csr(der)
        public = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise MalformedError(f"not a signing request: {error}"[:200]) from None
    if not isinstance(public, Ed25519PublicKey):
        raise MalformedError("a TLS key is an Ed25519 key")
    if not proven:
        raise BadSignatureError("the request does not prove its key")
    return public


def digest_of(public: Ed25519PublicKey) -> str:
    """How a TLS key is remembered."""
    return hashlib.sha256(public.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate as its file has it."""
    return certificate.public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    theirs: Ed25519PublicKey,
    ours: Ed25519PublicKey,
    since: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    """What all certificates have in common; the identifiers let OpenSSL 3's strict mode in."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(theirs)
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(theirs), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
    )


def _time(wall_ms: int) -> datetime:
    return datetime.fromtimestamp(wall_ms // 1000, UTC)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
