"""What the CSM-DB keeps, as values, and the port through which its rules see them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from csmdb.key_rows import KeyRows
from wire.certificates import AddressGrant, Certificate, Meter, ValidatorGrant
from wire.errors import Refusal


@dataclass(frozen=True, slots=True)
class Claim:
    """What the holder of a one-time code may become."""

    code_hash: str
    roles: tuple[str, ...]
    max_import_w: int
    max_export_w: int
    feeder: str
    validator: str
    """Validator this home hosts, or empty."""
    expires_ms: int
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class Participant:
    """Somebody who holds a certificate."""

    id: str
    key: str
    box_key: str
    """What answers are sealed to; empty for a service (it sends one along)."""
    roles: tuple[str, ...]
    feeder: str
    max_import_w: int
    max_export_w: int
    validator: str
    name: str
    enrolled_ms: int
    banned: str = ""
    """Why, or empty."""


@dataclass(frozen=True, slots=True)
class Person:
    """Who a participant is; every field may be empty."""

    name: str = ""
    contact: str = ""
    """A telephone number, an e-mail address."""
    address: str = ""
    """Of the house; not a trading address."""
    meter_location: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token."""

    id: str
    role: str
    name: str
    """Whose it is, for lists."""
    digest: str
    created_ms: int
    expires_ms: int
    """Also set to now by a revocation."""


@dataclass(frozen=True, slots=True)
class AddressRow:
    """An address of a meter, for the DSO's audit."""

    participant: str
    meter_key: str
    address: str
    """Empty for a meter without an address."""
    validator: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An expected no: its name, and a sentence for the log of whoever asked."""

    refusal: Refusal
    detail: str

    def parameters(self) -> dict[str, Any]:
        """The answer's parameters."""
        return {"refusal": self.refusal.value, "detail": self.detail}


class Repository(Protocol):
    """Storage as the rules need it. Writes happen inside `atomic`."""

    keys: KeyRows
    """Revocations and successions."""

    def atomic(self) -> AbstractContextManager[object]:
        """All writes inside happen, or none does."""
        ...

    def claim(self, code_hash: str) -> Claim | None:
        """The claim of a hashed code."""
        ...

    def add_claim(self, claim: Claim) -> None:
        """Remember a claim."""
        ...

    def use_claim(self, code_hash: str, participant: str, time_ms: int) -> None:
        """Mark a claim as used."""
        ...

    def participant(self, participant: str) -> Participant | None:
        """Somebody by identity."""
        ...

    def put_participant(self, participant: Participant) -> None:
        """Add or change somebody."""
        ...

    def meter_of(self, participant: str) -> Meter | None:
        """The meter of a home."""
        ...

    def meter_owner(self, meter: Meter) -> str:
        """
        Who has this meter key, or this vendor, model and serial; empty: nobody.

        A meter that tells no serial is known by its key alone.
        """
        ...

    def add_meter(self, participant: str, meter: Meter) -> None:
        """Bind a meter to a home."""
        ...

    def next_serial_no(self) -> int:
        """Number of the next certificate."""
        ...

    def certificate_of(self, participant: str) -> Certificate | None:
        """The newest certificate of somebody."""
        ...

    def add_certificate(self, certificate: Certificate) -> None:
        """Keep what was signed."""
        ...

    def address_grant(self, address: str) -> tuple[str, AddressGrant] | None:
        """Who holds an address, and its grant."""
        ...

    def add_address_grant(self, participant: str, grant: AddressGrant) -> None:
        """Keep what was signed."""
        ...

    def address_slots_of(self, participant: str, from_slot: int) -> dict[str, tuple[int, int]]:
        """First and last slots of somebody's grants that end in `from_slot` or later, by address;
        without revoked ones."""
        ...

    def validator_grant(self, validator: str) -> tuple[str, ValidatorGrant] | None:
        """The newest grant for a validator, and who holds it."""
        ...

    def add_validator_grant(self, participant: str, grant: ValidatorGrant) -> None:
        """Keep what was signed."""
        ...

    def address_rows(self, after: tuple[str, str], from_slot: int, limit: int) -> list[AddressRow]:
        """Meters with addresses valid from `from_slot` on, ordered by (participant, address)."""
        ...

    def audit(
        self,
        time_ms: int,
        actor: str,
        action: str,
        outcome: str,
        detail: str,
        *,
        subject: str = "",
        personal: dict[str, str] | None = None,
    ) -> None:
        """Append to the audit log; what is personal goes beside the chain."""
        ...
