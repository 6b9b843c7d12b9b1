"""
TLS to the broker with a client certificate: keys made here, certificates asked for, kept, renewed.

    ca.crt                 whom we believe: the CSM-DB's authority, handed over with the
                           configuration
    tls-<identity>.key     one TLS key for each identity we connect under (PKCS#8, mode 0600)
    tls-<identity>.crt     its certificate

A certificate's name is the identity and nothing else, and no two identities share a key: either
would link them. A key that the CSM-DB calls revoked is replaced by a new one.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from runtime.csmdb_client import CsmDbRefusedError
from runtime.ports import Clock
from wire.enrolment import TLS_CERTIFICATE
from wire.errors import ConfigError, MalformedError, Refusal
from wire.keys import to_text

CA_FILE = "ca.crt"
CERTIFICATE_FILE = "client.crt"
KEY_FILE = "client.key"
MAX_REQUESTS = 32

log = structlog.get_logger(component="tls")


class Asker(Protocol):
    """A line to the CSM-DB: `runtime.csmdb_client` over the broker, or `runtime.door`."""

    async def ask(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """The answer; raises CsmDbRefusedError or TimeoutError."""
        ...


def client_context(folder: Path) -> ssl.SSLContext:
    """
    The context of a lane whose X.509 files are in `folder`: ca.crt, client.crt, client.key.

    Raises:
        ConfigError: a file is missing or is not what its name says.
    """
    context = trusting(folder / CA_FILE)
    try:
        context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    except OSError as error:  # ssl.SSLError is one
        names = f"{CERTIFICATE_FILE}, {KEY_FILE}"
        raise ConfigError(f"{folder}: want {names} in PEM ({error})") from None
    return context


def trusting(ca: Path) -> ssl.SSLContext:
    """
    A context that believes in one authority. TLS 1.3: what came before shows a client's
    certificate, and with it who connects, to everybody on the way.

    Raises:
        ConfigError: `ca` is not a certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigError(f"{ca}: want the authority's certificate in PEM ({error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Tls:
    """
    The TLS keys and certificates of one process.

    Args:
        folder: where they are kept; made when it is not there
        ca: the authority's certificate

    Raises:
        ConfigError: `ca` is not one.
    """

    def __init__(self, folder: Path, ca: Path, clock: Clock) -> None:
        self._folder, self._ca, self._clock = folder, ca, clock
        self._contexts: dict[str, ssl.SSLContext] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        trusting(ca)

    def context_for(self, identity: str) -> ssl.SSLContext:
        """
        The context of the lane of an identity, always the same one.

        It has no certificate before `obtain`, and the new one for connections after it.
        """
        context = self._contexts.get(identity)
        if context is None:
            context = self._contexts[identity] = trusting(self._ca)
            if self._certificate(identity) is not None:
                self._load(identity)
        return context

    def due(self, identity: str) -> bool:
        """No certificate, or less than a third of its time is left."""
        certificate = self._certificate(identity)
        if certificate is None:
            return True
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return self._now() >= until - (until - since) / 3

    def has_ended(self, identity: str) -> bool:
        """No certificate that the broker would take."""
        certificate = self._certificate(identity)
        return certificate is None or self._now() >= certificate.not_valid_after_utc

    async def obtain(self, asker: Asker, identities: Iterable[str]) -> bool:
        """
        Get certificates for those that are due, in as few requests as it takes.

        Returns:
            Whether there are new ones (lanes that stand keep theirs until they reconnect).

        Raises:
            CsmDbRefusedError: NOT_ALLOWED, REVOKED (the identity), … TimeoutError: no answer.
            MalformedError: the answer is not what was asked for.
        """
        due = [identity for identity in identities if self.due(identity)]
        for at in range(0, len(due), MAX_REQUESTS):
            await self._obtain(asker, due[at : at + MAX_REQUESTS])
        return bool(due)

    def replace_key(self, identity: str) -> None:
        """Forget a key and its certificate: the next `obtain` makes another and revokes this."""
        self._path(identity, "crt").unlink(missing_ok=True)
        self._path(identity, "key").unlink(missing_ok=True)

    def forget(self, identity: str) -> None:
        """An identity is used no more."""
        self._contexts.pop(identity, None)
        self.replace_key(identity)

    async def _obtain(self, asker: Asker, due: list[str]) -> None:
        try:
            pems = await self._ask(asker, due)
        except CsmDbRefusedError as error:
            if error.reason != Refusal.REVOKED.value or not any(map(self._has_key, due)):
                raise
            # a key came back out of a backup, or was replaced elsewhere: once more with new ones
            log.warning("TLS key was revoked, making another")
            for identity in due:
                self.replace_key(identity)
            pems = await self._ask(asker, due)
        for identity, pem in zip(due, pems, strict=True):
            self._keep(identity, pem)
            self._load(identity)

    async def _ask(self, asker: Asker, due: list[str]) -> list[str]:
        requests = [
            {"identity": identity, "csr": _request(self._key(identity))} for identity in due
        ]
        answer = await asker.ask(TLS_CERTIFICATE, {"requests": requests})
        pems = answer.get("certificates")
        if type(pems) is not list or len(pems) != len(due):
            raise MalformedError("not the certificates that were asked for")
        return pems

    def _keep(self, identity: str, pem: object) -> None:
        try:
            certificate = x509.load_pem_x509_certificate(str(pem).encode())
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except ValueError as error:
            raise MalformedError(f"not a certificate: {error}"[:200]) from None
        fits = certificate.public_key() == self._key(identity).public_key()
        if not fits or [name.value for name in names] != [identity]:
            raise MalformedError("certificate of another key or name", identity=identity)
        _write(self._path(identity, "crt"), str(pem).encode())

    def _load(self, identity: str) -> None:
        context = self._contexts.get(identity)
        if context is not None:
            context.load_cert_chain(self._path(identity, "crt"), self._path(identity, "key"))

    def _certificate(self, identity: str) -> x509.Certificate | None:
        try:
            raw = self._path(identity, "crt").read_bytes()
            certificate = x509.load_pem_x509_certificate(raw)
            fits = certificate.public_key() == self._key(identity).public_key()
        except FileNotFoundError:
            return None
        except ValueError:
            log.warning("kept certificate is not valid, asked for anew", identity=identity)
            return None
        return certificate if fits else None

    def _has_key(self, identity: str) -> bool:
        return self._path(identity, "key").exists()

    def _key(self, identity: str) -> Ed25519PrivateKey:
        """The TLS key of an identity, made when first asked for."""
        path = self._path(identity, "key")
        if not path.exists():
            write_key(path, Ed25519PrivateKey.generate())
        return read_key(path)

    def _path(self, identity: str, what: str) -> Path:
        return self._folder / f"tls-{identity}.{what}"

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ms() // 1000, UTC)


def write_key(path: Path, key: Ed25519PrivateKey) -> None:
    """Write a private key as PEM of mode 0600; it appears whole or not at all."""
    _write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def read_key(path: Path) -> Ed25519PrivateKey:
    """
    A private key from its file.

    Raises:
        ConfigError: others may read it, or it is not an Ed25519 key.
    """
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others may read this key; chmod 600 it")
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a TLS key ({error}); delete it for a new one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: not an Ed25519 key; delete it for a new one")
    return key


def _request(key: Ed25519PrivateKey) -> str:
    """A signing request without a name: the CSM-DB gives it."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    return to_text(request.public_bytes(Encoding.DER))


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
