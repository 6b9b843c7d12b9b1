"""Reading what askers send: form only, every mistake a `MalformedError`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from wire.certificates import Meter
from wire.errors import MalformedError
from wire.keys import KEY_BYTES, check_key, from_text, id_of, is_id

MAX_ADDRESSES = 32
"""Addresses in one request."""
MAX_AT_WORK = 16
"""Addresses of a home that may be at work together (`wire.presence`): one for each slot, changed
with every slot, are 11."""
MAX_TEXT = 64


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """An enrolment whose form is right."""

    code: str
    key: str
    box_key: str
    meter: Meter


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """An address that somebody wants to trade under, and in which slots."""

    key: bytes
    meter_key: str
    """Public key of the meter's pseudonym, base64url."""
    start_slot: int
    end_slot: int
    """Inclusive."""


def read_enrolment(sender: str, parameters: dict[str, Any]) -> EnrolmentRequest:
    """The parameters of `enroll`, whose key must be the sender's. Raises MalformedError."""
    key = read_key(parameters, "key")
    if id_of(from_text(key)) != sender:
        raise MalformedError("key is not the sender's", sender=sender)
    try:
        meter = msgspec.convert(parameters.get("meter"), Meter, strict=True)
    except msgspec.ValidationError as error:
        raise MalformedError(f"meter: {error}") from None
    for name in ("type", "serial", "vendor", "model", "firmware"):
        read_text(getattr(meter, name), f"meter.{name}")
    check_key(from_text(meter.meter_key, KEY_BYTES))
    check_key(from_text(key))
    if meter.meter_key == key:
        raise MalformedError("the meter key and the EMS key are one")
    return EnrolmentRequest(
        code=read_text(parameters.get("claimCode"), "claimCode", 128),
        key=key,
        box_key=read_key(parameters, "boxKey"),
        meter=meter,
    )


def read_addresses(parameters: dict[str, Any], first: int, last: int) -> list[AddressRequest]:
    """
    The addresses of `grant-addresses`.

    Args:
        first, last: slots of those that do not name their own

    Raises:
        MalformedError: not of this form.
    """
    rows = parameters.get("addresses")
    if type(rows) is not list or not 1 <= len(rows) <= MAX_ADDRESSES:
        raise MalformedError(f"addresses is a list of 1 to {MAX_ADDRESSES}")
    if any(type(row) is not dict for row in rows):
        raise MalformedError("an address is an object with key and meterKey")
    found = [
        AddressRequest(
            key=from_text(read_key(row, "key")),
            meter_key=read_key(row, "meterKey"),
            start_slot=read_count(row.get("startSlot", first), "startSlot"),
            end_slot=read_count(row.get("endSlot", last), "endSlot"),
        )
        for row in rows
    ]
    for one in found:
        check_key(one.key)
        check_key(from_text(one.meter_key))
    return found


def read_key(value: dict[str, Any], name: str) -> str:
    """A public key's text. Raises MalformedError."""
    text = value.get(name)
    if type(text) is not str:
        raise MalformedError("expected a public key", field=name)
    from_text(text, KEY_BYTES)
    return text


def read_identity(value: dict[str, Any], name: str) -> str:
    """An identity. Raises MalformedError."""
    text = value.get(name)
    if type(text) is not str or not is_id(text):
        raise MalformedError("expected an identity", field=name)
    return text


def read_text(text: object, name: str, limit: int = MAX_TEXT) -> str:
    """A short text. Raises MalformedError."""
    if type(text) is not str or len(text) > limit or "\0" in text:  # PostgreSQL takes no NUL
        raise MalformedError("expected a short text", field=name, limit=limit)
    return text


def read_count(value: object, name: str) -> int:
    """A number that is not negative. Raises MalformedError."""
    if type(value) is not int or value < 0:
        raise MalformedError("expected a slot number", field=name)
    return value
