"""
Ed25519 keys, domain-separated signatures, self-certifying identities, sealed boxes.

One verifier everywhere (libsodium through PyNaCl): Ed25519 libraries disagree on edge cases, and
two opinions about one signature split a chain (what this one says of them is pinned by
tests/vectors/ed25519_edge_cases.json). A signature covers

    domain ‖ 0x00 ‖ chain-id ‖ 0x00 ‖ message

so a reading can never be taken for a bid, nor a message of one market for one of another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.signing import SigningKey as _NaclSigningKey
from nacl.signing import VerifyKey

from wire.errors import MalformedError, WeakKeyError

KEY_BYTES = 32
KEY_CHARS = 43
"""Of 32 bytes in base64url without padding."""
SIGNATURE_BYTES = 64
ID_PREFIX = "hg1"


class Domain(Enum):
    """What a signature is for; the value is the prefix of the signed bytes."""

    TX = b"hearthgrid-tx-v1"
    MESSAGE = b"hearthgrid-message-v1"
    READING = b"hearthgrid-reading-v1"
    RECEIPT = b"hearthgrid-receipt-v1"
    CPF = b"hearthgrid-cpf-v1"
    CERT = b"hearthgrid-cert-v1"
    GRANT = b"hearthgrid-grant-v1"
    VALIDATOR = b"hearthgrid-validator-v1"
    LICENCE = b"hearthgrid-licence-v1"
    REVOCATION = b"hearthgrid-revocation-v1"
    VOTE = b"hearthgrid-vote-v1"
    HEADER = b"hearthgrid-header-v1"
    EVENT = b"hearthgrid-event-v1"
    TOKEN = b"hearthgrid-token-v1"
    FIRMWARE = b"hearthgrid-firmware-v1"
    REVOKED = b"hearthgrid-revoked-v1"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 private key, kept as its 32-byte seed. Never printed."""

    seed: bytes

    def __post_init__(self) -> None:
        if len(self.seed) != KEY_BYTES:
            raise MalformedError("a key seed has 32 bytes", size=len(self.seed))

    def __repr__(self) -> str:
        return f"SigningKey({self.id})"

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return bytes(_pair(self.seed).verify_key)

    @property
    def id(self) -> str:
        """The self-certifying identity of the public key."""
        return id_of(self.public)

    def sign(self, domain: Domain, chain_id: str, message: bytes) -> bytes:
        """Detached signature, 64 bytes."""
        signed = _pair(self.seed).sign(preimage(domain, chain_id, message))
        return signed.signature

    def derive(self, label: str) -> SigningKey:
        """An unlinkable child key: HMAC-SHA-256(seed, label) as its seed."""
        return SigningKey(hmac.new(self.seed, label.encode(), hashlib.sha256).digest())


@lru_cache(maxsize=32)
def _pair(seed: bytes) -> _NaclSigningKey:
    """The expanded key pair of a seed: making it costs as much as signing."""
    return _NaclSigningKey(seed)


def preimage(domain: Domain, chain_id: str, message: bytes) -> bytes:
    """The bytes that are signed."""
    return domain.value + b"\0" + chain_id.encode() + b"\0" + message


def verify(public: bytes, domain: Domain, chain_id: str, message: bytes, signature: bytes) -> bool:
    """True when `signature` is `public`'s over this domain, chain and message."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public).verify(preimage(domain, chain_id, message), signature)
    except (CryptoError, ValueError):
        return False
    return True


@lru_cache(maxsize=65_536)
def is_good_key(public: bytes) -> bool:
    """
    True for a public key that only a private key can sign for.

    That is a point of the curve's large subgroup, in its one encoding. For a point of small order
    some libraries accept signatures that anybody can make.
    """
    return len(public) == KEY_BYTES and crypto_core_ed25519_is_valid_point(public)


def check_key(public: bytes) -> None:
    """
    Refuse a public key that must not become anybody's identity.

    Raises:
        WeakKeyError: see `is_good_key`.
    """
    if not is_good_key(public):
        raise WeakKeyError("not a key that anybody can hold alone", key=to_text(public[:KEY_BYTES]))


def id_of(public: bytes) -> str:
    """
    The identity of a public key: `hg1` and 32 base32 characters of SHA-256 (160 bits).

    It serves as address, participant id, MQTT client id and topic leaf: `[a-z0-9]` only.
    """
    digest = hashlib.sha256(public).digest()[:20]
    return ID_PREFIX + base64.b32encode(digest).decode().lower()


def is_id(text: str) -> bool:
    """True for a well-formed identity."""
    body = text.removeprefix(ID_PREFIX)
    return (
        len(text) == 35 and len(body) == 32 and set(body) <= set("abcdefghijklmnopqrstuvwxyz234567")
    )


def to_text(data: bytes) -> str:
    """base64url without padding, the form of keys and signatures in JSON."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_text(text: str, size: int | None = None) -> bytes:
    """
    Decode base64url without padding; only the one canonical spelling is accepted.

    Raises:
        MalformedError: not base64url, a second spelling, or not `size` bytes.
    """
    data = _key_bytes(text) if len(text) == KEY_CHARS else _from_text(text)
    if size is not None and len(data) != size:
        raise MalformedError("not canonical base64url of the right size", size=len(data))
    return data


def _from_text(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("not base64url") from None
    if to_text(data) != text:
        raise MalformedError("not canonical base64url", size=len(data))
    return data


_key_bytes = lru_cache(maxsize=65_536)(_from_text)
"""The same keys come with every transaction."""


@dataclass(frozen=True, slots=True)
class BoxKey:
    """An X25519 private key that opens sealed boxes (readings, enrolment, grants)."""

    seed: bytes

    def __repr__(self) -> str:
        return "BoxKey(…)"

    @property
    def public(self) -> bytes:
        """The public key that others seal to, 32 bytes."""
        return bytes(PrivateKey(self.seed).public_key)

    def open(self, sealed: bytes) -> bytes:
        """
        Open a sealed box.

        Raises:
            MalformedError: not sealed to this key, or changed on the way.
        """
        try:
            return SealedBox(PrivateKey(self.seed)).decrypt(sealed)
        except (CryptoError, ValueError, TypeError):
            raise MalformedError("sealed box does not open") from None


def seal_to(public: bytes, message: bytes) -> bytes:
    """
    Seal `message` so that only the holder of `public`'s private half can read it.

    Raises:
        MalformedError: not a public key that can be sealed to.
    """
    try:
        return SealedBox(PublicKey(public)).encrypt(message)
    except (CryptoError, ValueError, TypeError):
        # wrong length, or a point of low order
        raise MalformedError("nothing can be sealed to this box key") from None
