"""
What the meter key signs: readings, delivery receipts and CPF attestations.

A **reading** holds cumulative registers and goes, sealed, to the DSO only. A **receipt** says for
one address and slot how much flowed, signed by that address's pseudonymous meter key; it goes on
chain.
A **CPF attestation** (TMI eq. 9, normalised: see `ledger.poe`) speaks for a validator.
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

from wire.canonical import encode
from wire.errors import BadSignatureError, MalformedError, UnsignedError
from wire.keys import SIGNATURE_BYTES, Domain, SigningKey, from_text, to_text, verify


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cumulative registers at the end of a slot. All energies [Wh] since installation."""

    meter: str
    """Identity of the meter key."""
    seq: int
    """0, 1, 2, …: one more for every reading signed."""
    slot: int
    """The slot that ended when this was read."""
    time_ms: int
    import_wh: int
    export_wh: int
    generation_wh: int
    previous: str
    """`digest` of the reading before, or 64 zeros for the first."""
    signature: str = ""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Net energy at the connection point in one slot, for one address [Wh]; positive: import."""

    address: str
    slot: int
    net_wh: int
    reading: str
    """Digest of the reading at the end of the slot: the DSO can recompute the receipt."""
    signature: str = ""


class CpfAttestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consumption-production function of a validator's home over a window of closed slots."""

    validator: str
    start_slot: int
    end_slot: int
    """Last slot of the window, inclusive."""
    cpf_q16: int
    """⌊65536 · CPF⌋, 0…65536."""
    eligible: bool
    """Enough energy turned over and produced, and no gap, to count (see `ledger.poe`)."""
    signature: str = ""


M = TypeVar("M", Reading, Receipt, CpfAttestation)
ZERO_DIGEST = "0" * 64

_DOMAINS: dict[type, Domain] = {
    Reading: Domain.READING,
    Receipt: Domain.RECEIPT,
    CpfAttestation: Domain.CPF,
}


def sign_record(record: M, key: SigningKey, chain_id: str) -> M:
    """Return the record signed by a meter key."""
    signature = key.sign(_DOMAINS[type(record)], chain_id, unsigned_bytes(record))
    return msgspec.structs.replace(record, signature=to_text(signature))


def load_record(kind: type[M], value: Any) -> M:
    """
    Read the form of a record from a JSON object.

    Raises:
        MalformedError: wrong fields.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedError(f"not a {kind.__name__}: {error}") from None


def check_record(record: Reading | Receipt | CpfAttestation, public: bytes, chain_id: str) -> None:
    """
    Raise unless `public` signed the record.

    Raises:
        UnsignedError, BadSignatureError, MalformedError.
    """
    if not record.signature:
        raise UnsignedError(f"{type(record).__name__} is not signed")
    signature = from_text(record.signature, SIGNATURE_BYTES)
    if not verify(public, _DOMAINS[type(record)], chain_id, unsigned_bytes(record), signature):
        raise BadSignatureError(f"{type(record).__name__} is not this meter's")


def record_json(record: Reading | Receipt | CpfAttestation) -> dict[str, Any]:
    """The record as a JSON object."""
    value = msgspec.to_builtins(record)
    assert type(value) is dict
    return value


def unsigned_bytes(record: Reading | Receipt | CpfAttestation) -> bytes:
    """Canonical bytes under the signature."""
    value = record_json(record)
    del value["signature"]
    return encode(value)


def digest(reading: Reading) -> str:
    """SHA-256 of the signed reading's canonical bytes, in hex: the link of the hash chain."""
    return hashlib.sha256(encode(record_json(reading))).hexdigest()
