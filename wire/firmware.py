"""
Firmware of certified meters: versions, what a repository says of a file, and a meter's attestation.

    repository ── target + custom metadata (signed, TUF) ──► home ──► gateway ──► meter
    meter's plate ──► gateway: attestation under the CSM-DB's nonce ──► CSM-DB ──► certificate

An attestation says what the gateway read from the plate, and is signed by the meter key for the
market's name, as certificates are. What it cannot say is docs/how-to/firmware.md's to tell.

References:
    The Update Framework specification 1.0; ETSE section IV (vulnerable meters are kept out until
    they are patched); ADR 0012.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from wire.canonical import encode
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import (
    BadSignatureError,
    FirmwareRefusedError,
    MalformedError,
    Refusal,
    UnsignedError,
)
from wire.keys import SIGNATURE_BYTES, Domain, SigningKey, from_text, to_text, verify

CHECK_FIRMWARE = "check-firmware"
"""The command by which the DSO asks a home to look for firmware now."""
IMAGE_BYTES_MAX = 8 * 1024 * 1024
TEXT_MAX = 64
NUMBERS_MAX = 6
_VERSION = re.compile(r"[vV]?([0-9]{1,9}(?:\.[0-9]{1,9}){0,5})(?: (?:BN|build) ([0-9]{1,9}))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX)]


class Target(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What a file is for: the custom metadata of a target."""

    vendor: Text
    model: Text
    version: Text
    from_versions: Annotated[list[Text], msgspec.Meta(max_length=64)] = []
    """Versions that it may follow; none: any lower one."""
    template: Text
    """The device template that says how it is written."""
    installs_by: Literal["file-records", "registers"]


class Plate(msgspec.Struct, frozen=True, kw_only=True):
    """What a device says of itself, and by which template it is read."""

    type: str
    vendor: str
    model: str
    serial: str
    firmware: str


class Attestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a gateway read from its meter's plate."""

    meter: str
    """Identity of the meter key."""
    vendor: str
    model: str
    serial: str
    firmware: str
    digest: str
    """SHA-256 (hex) of the file that this gateway wrote and the meter took; empty: none."""
    slot: int
    time_ms: int
    nonce: str
    """The CSM-DB's challenge."""
    signature: str = ""


def make_check(home: str, key: SigningKey, market: str, wall_ms: int, random_80: bytes) -> bytes:
    """
    The DSO's message on `hem/<home>/command`: look for firmware now.

    Args:
        key: the supervisor's
        wall_ms: real time, as every message has
        random_80: ten random bytes, for the message's identifier
    """
    req_id = new_req_id(wall_ms, random_80)
    envelope = Envelope(key.id, req_id, wall_ms, CHECK_FIRMWARE, {"home": home})
    return seal_envelope(envelope, key, Domain.MESSAGE, market)


def version_of(text: str) -> tuple[int, ...]:
    """
    A version as numbers that compare as it does; zeros at its end count for nothing.

    A build number counts after all others, as makers write it: `3.03 BN 830`, `3.03 build 830`.

    Raises:
        MalformedError: not up to six numbers with dots between.
    """
    found = _VERSION.fullmatch(text)
    if found is None:
        raise MalformedError("not a version such as 2.10.1", version=text[:TEXT_MAX])
    numbers = [int(number) for number in found[1].split(".")]
    if found[2] is not None:
        numbers += [0] * (NUMBERS_MAX - len(numbers)) + [int(found[2])]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def is_lower(version: str, known: str) -> bool:
    """
    Is a version lower than the one that is known? What cannot be compared is, unless it is equal:
    nobody may get round the question with a name that is no number.
    """
    if version == known:
        return False
    try:
        return version_of(version) < version_of(known)
    except MalformedError:
        return known != ""


def is_file_name(name: str) -> bool:
    """May a target be called so? One part, no surprises."""
    return _NAME.fullmatch(name) is not None


def read_target(custom: Any) -> Target:
    """
    The custom metadata of a target.

    Raises:
        MalformedError: not that, or a version that cannot be compared.
    """
    try:
        target = msgspec.convert(custom, Target, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedError(f"not a firmware's metadata: {error}") from None
    version_of(target.version)
    return target


def check_fits(target: Target, plate: Plate) -> None:
    """
    Raise unless a file is for this device and leads it to a higher version.

    Raises:
        FirmwareRefusedError: OTHER_DEVICE, DOWNGRADED, NOT_FROM_HERE.
    """
    for name, wanted, found in (
        ("vendor", target.vendor, plate.vendor),
        ("model", target.model, plate.model),
        ("template", target.template, plate.type),
    ):
        if wanted != found:
            raise FirmwareRefusedError(
                Refusal.OTHER_DEVICE, f"it is for {name} {wanted!r}, this device is {found!r}"
            )
    if plate.firmware == target.version or is_lower(target.version, plate.firmware):
        raise FirmwareRefusedError(
            Refusal.DOWNGRADED, f"{target.version} is not above {plate.firmware} that is installed"
        )
    if target.from_versions and plate.firmware not in target.from_versions:
        raise FirmwareRefusedError(
            Refusal.NOT_FROM_HERE, f"{target.version} does not follow {plate.firmware}"
        )


def sign_attestation(record: Attestation, key: SigningKey, market: str) -> Attestation:
    """The record signed by the meter key."""
    signature = key.sign(Domain.FIRMWARE, market, _unsigned(record))
    return msgspec.structs.replace(record, signature=to_text(signature))


def load_attestation(value: Any) -> Attestation:
    """
    The form of an attestation.

    Raises:
        MalformedError: wrong fields, or a text that is too long.
    """
    try:
        record = msgspec.convert(value, Attestation, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedError(f"not an attestation: {error}") from None
    for name in ("vendor", "model", "serial", "firmware", "digest"):
        text = getattr(record, name)
        if len(text) > TEXT_MAX or "\0" in text:
            raise MalformedError("expected a short text", field=name)
    return record


def check_attestation(record: Attestation, public: bytes, market: str) -> None:
    """
    Raise unless `public` signed the record for this market.

    Raises:
        UnsignedError, BadSignatureError, MalformedError.
    """
    if not record.signature:
        raise UnsignedError("the attestation is not signed")
    signature = from_text(record.signature, SIGNATURE_BYTES)
    if not verify(public, Domain.FIRMWARE, market, _unsigned(record), signature):
        raise BadSignatureError("the attestation is not this meter's")


def attestation_json(record: Attestation) -> dict[str, Any]:
    """The record as a JSON object."""
    value = msgspec.to_builtins(record)
    assert type(value) is dict
    return value


def _unsigned(record: Attestation) -> bytes:
    value = attestation_json(record)
    del value["signature"]
    return encode(value)
