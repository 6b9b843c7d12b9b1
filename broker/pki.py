"""
X.509 for Mosquitto: a certificate authority, the server's certificate, the clients', a CRL.

Mosquitto cannot check the tokens of `broker.access`; it takes the common name of a client's
certificate for its identity (`broker.mosquitto`). So whoever runs the CSM-DB runs this authority
too and certifies, under the identity `hg1…`, the keys it has enrolled or granted.

All keys are Ed25519. The TLS key of a client is not its signing key: a process that terminates TLS
need not be able to sign transactions.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wire.errors import ConfigError
from wire.keys import is_id

SKEW = timedelta(minutes=5)
"""How far the clocks of two machines may differ."""


class TlsAuthority:
    """
    A certificate authority for one broker, made anew and kept in memory.

    Args:
        name: common name of the authority
        now_ms: UTC milliseconds
        days: validity of everything it signs
    """

    def __init__(self, name: str, now_ms: int, days: int = 365) -> None:
        self._key = Ed25519PrivateKey.generate()
        self._name = _name(name)
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        self._from, self._until = now - SKEW, now + timedelta(days=days)
        self._certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, None)
        )

    def write_broker(self, folder: Path, hosts: Iterable[str], revoked: Iterable[int] = ()) -> None:
        """Write what `broker.mosquitto.render_config` names: ca.crt, server.crt, server.key and
        crl.pem with the serial numbers in `revoked`."""
        names = [_general_name(host) for host in hosts]
        key = Ed25519PrivateKey.generate()
        certificate = (
            self._builder(_name("broker"), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, None)
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.crt").write_bytes(_pem(self._certificate))
        (folder / "server.crt").write_bytes(_pem(certificate))
        _write_key(folder / "server.key", key)
        self.write_crl(folder / "crl.pem", revoked)

    def write_client(self, folder: Path, identity: str) -> int:
        """
        Write what `runtime.tls.client_context` reads: ca.crt, client.crt, client.key.

        Returns:
            The certificate's serial number, to revoke it by.

        Raises:
            ConfigError: `identity` is not one.
        """
        if not is_id(identity):
            raise ConfigError(f"{identity!r} is not an identity (hg1…)")
        key = Ed25519PrivateKey.generate()
        certificate = (
            self._builder(_name(identity), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, None)
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.crt").write_bytes(_pem(self._certificate))
        (folder / "client.crt").write_bytes(_pem(certificate))
        _write_key(folder / "client.key", key)
        return certificate.serial_number

    def write_crl(self, path: Path, revoked: Iterable[int]) -> None:
        """Write the list of revoked serial numbers (Mosquitto wants one, even if it is empty)."""
        crl = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(self._from)
            .next_update(self._until)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            crl = crl.add_revoked_certificate(entry.revocation_date(self._from).build())
        signed = crl.sign(self._key, None)
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: Ed25519PrivateKey) -> x509.CertificateBuilder:
        """What all certificates have in common; the identifiers let OpenSSL 3's strict mode in."""
        ours, theirs = self._key.public_key(), key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(theirs)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._from)
            .not_valid_after(self._until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(theirs), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: Ed25519PrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
