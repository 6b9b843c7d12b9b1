"""
The error tree, and the names of every refusal.

Expected refusals are values (`Refusal.SLOT_CLOSED`): a contract returns them in a receipt. Bad
outside input raises a named error that carries its facts and its refusal, so that one `except
WireError` at the edge of a service can count and log it by name.

    HearthgridError
    ├── ConfigError                 a file the operator wrote; names file, key and remedy
    ├── FirmwareRefusedError        firmware or its metadata; .refusal says what is wrong with it
    └── WireError                   something from outside; has .refusal
        ├── MalformedError          not the canonical form, or not the schema
        ├── OversizedError
        ├── UnsignedError
        ├── BadSignatureError
        ├── UnknownOperationError
        ├── UnknownSenderError
        ├── ExpiredError
        ├── FutureDatedError
        ├── ReplayedError
        ├── RolledBackError         an older revision than is known
        ├── CertificateError        wrong issuer, outside its validity, wrong role
        ├── RateLimitedError
        ├── WeakKeyError            a point of small order, or no point of the curve
        ├── RevokedError            a key that was good once: lost, stolen or replaced
        ├── TopicError
        └── UnitError               a unit or a value that does not convert exactly
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Refusal(StrEnum):
    """Why something was not done. The name is what people and machines see."""

    # The wire
    MALFORMED = "MALFORMED"
    OVERSIZED = "OVERSIZED"
    UNSIGNED = "UNSIGNED"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNKNOWN_OPERATION = "UNKNOWN_OPERATION"
    UNKNOWN_SENDER = "UNKNOWN_SENDER"
    EXPIRED = "EXPIRED"
    FUTURE_DATED = "FUTURE_DATED"
    REPLAYED = "REPLAYED"
    BAD_CERTIFICATE = "BAD_CERTIFICATE"
    REVOKED = "REVOKED"
    """The key was lost, stolen or replaced by another."""
    BAD_TOPIC = "BAD_TOPIC"
    BAD_UNIT = "BAD_UNIT"
    WEAK_KEY = "WEAK_KEY"
    ROLLED_BACK = "ROLLED_BACK"
    """Older than what is known, of something whose revisions only go up."""
    # Access
    NOT_ALLOWED = "NOT_ALLOWED"
    BANNED = "BANNED"
    RATE_LIMITED = "RATE_LIMITED"
    # The ledger
    WRONG_NONCE = "WRONG_NONCE"
    MEMPOOL_FULL = "MEMPOOL_FULL"
    # Validators
    NO_CONFLICT = "NO_CONFLICT"
    """Two votes that an honest validator may both have signed."""
    BAD_PREIMAGE = "BAD_PREIMAGE"
    """It does not open what was committed to: a layer of an onion, a sealed bid."""
    TOO_SOON = "TOO_SOON"
    """A seed committed to so late could have been chosen to suit; or a bid revealed while others
    may still be made."""
    # The market
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    IN_DEBT = "IN_DEBT"
    """The private account with the DSO is below its credit limit: the bill comes first."""
    INSUFFICIENT_ASSET = "INSUFFICIENT_ASSET"
    ASSET_LOCKED = "ASSET_LOCKED"
    REWARDS_ONLY = "REWARDS_ONLY"
    """The address takes rewards and does not trade (mode RE)."""
    SEALED_BIDS_ONLY = "SEALED_BIDS_ONLY"
    """The auction takes bids that are committed first and revealed later."""
    SLOT_CLOSED = "SLOT_CLOSED"
    SLOT_TOO_FAR = "SLOT_TOO_FAR"
    PRICE_OUT_OF_RANGE = "PRICE_OUT_OF_RANGE"
    QUANTITY_OUT_OF_RANGE = "QUANTITY_OUT_OF_RANGE"
    DUPLICATE = "DUPLICATE"
    NOT_FOUND = "NOT_FOUND"
    TERMS_DIFFER = "TERMS_DIFFER"
    """What was accepted is not what was offered."""
    NO_OVERLAP = "NO_OVERLAP"
    """An offer and what was given for it have no slot in common."""
    # The DSO's limits on a withdrawal
    PRODUCTION_CAPACITY = "PRODUCTION_CAPACITY"
    """More than the home's plant produces."""
    EXPORT_LIMIT = "EXPORT_LIMIT"
    IMPORT_LIMIT = "IMPORT_LIMIT"
    FEEDER_RATING = "FEEDER_RATING"
    """The homes of a feeder together would overload it."""
    # Enrolment
    BAD_CLAIM = "BAD_CLAIM"
    CLAIM_USED = "CLAIM_USED"
    UNKNOWN_MAKE = "UNKNOWN_MAKE"
    """Of the meter, so that nobody can tell whether an advisory names it."""
    # Firmware
    METADATA_EXPIRED = "METADATA_EXPIRED"
    FROZEN = "FROZEN"
    """The newest that is shown of a repository is older than its timestamp allows."""
    MIXED_METADATA = "MIXED_METADATA"
    """Files of a repository that do not belong together."""
    TOO_FEW_SIGNATURES = "TOO_FEW_SIGNATURES"
    WRONG_DIGEST = "WRONG_DIGEST"
    """A file that is not what its metadata says."""
    ENDLESS = "ENDLESS"
    """More bytes than the metadata promises."""
    OTHER_DEVICE = "OTHER_DEVICE"
    DOWNGRADED = "DOWNGRADED"
    """A version that is not above the one that is known."""
    NOT_FROM_HERE = "NOT_FROM_HERE"
    """The file does not follow the version that is installed."""
    METER_REFUSED = "METER_REFUSED"
    """The meter itself did not take the file."""


class HearthgridError(Exception):
    """The root of every error we raise on purpose."""


class ConfigError(HearthgridError):
    """Something the operator wrote is wrong: a file, a key, an option."""


class WireError(HearthgridError):
    """Something from outside was refused; `refusal` is its name, `facts` are its circumstances."""

    refusal: ClassVar[Refusal] = Refusal.MALFORMED

    def __init__(self, message: str = "", **facts: object) -> None:
        self.facts = facts
        detail = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        text = f"{self.refusal.value}: {message}" if message else self.refusal.value
        super().__init__(f"{text} ({detail})" if detail else text)


class MalformedError(WireError):
    """Not canonical, or not what the schema says."""

    refusal = Refusal.MALFORMED


class OversizedError(WireError):
    """Longer than the receiver reads."""

    refusal = Refusal.OVERSIZED


class UnsignedError(WireError):
    """No signature where one is needed."""

    refusal = Refusal.UNSIGNED


class BadSignatureError(WireError):
    """The signature is not the sender's, or not over these bytes."""

    refusal = Refusal.BAD_SIGNATURE


class UnknownOperationError(WireError):
    """An operation this receiver does not have."""

    refusal = Refusal.UNKNOWN_OPERATION


class UnknownSenderError(WireError):
    """No key is known for this sender."""

    refusal = Refusal.UNKNOWN_SENDER


class ExpiredError(WireError):
    """Older than the receiver accepts."""

    refusal = Refusal.EXPIRED


class FutureDatedError(WireError):
    """Dated later than the receiver's clock and its tolerance."""

    refusal = Refusal.FUTURE_DATED


class ReplayedError(WireError):
    """Seen before."""

    refusal = Refusal.REPLAYED


class RolledBackError(WireError):
    """An older revision than is known."""

    refusal = Refusal.ROLLED_BACK


class CertificateError(WireError):
    """Wrong issuer, outside its validity, or without the role."""

    refusal = Refusal.BAD_CERTIFICATE


class RateLimitedError(WireError):
    """Its sender has said more than it may; later it may again."""

    refusal = Refusal.RATE_LIMITED


class WeakKeyError(WireError):
    """A public key for which anybody can make signatures, or no key at all."""

    refusal = Refusal.WEAK_KEY


class RevokedError(WireError):
    """The key was good once: it was lost, stolen or replaced."""

    refusal = Refusal.REVOKED


class TopicError(WireError):
    """Not a topic of this market."""

    refusal = Refusal.BAD_TOPIC


class UnitError(WireError):
    """A unit we do not know, or a value that does not convert exactly."""

    refusal = Refusal.BAD_UNIT


class FirmwareRefusedError(HearthgridError):
    """Firmware, or what a repository says of it, is not believed or does not fit."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        self.refusal = refusal
        self.detail = detail
        super().__init__(f"{refusal.value}: {detail}")
