"""
The envelope: TMI's JSON message (section V-E), made precise.

    {"clientId", "reqId", "date", "operation", "parameters", "signature"}

The signature covers `domain ‖ chain-id ‖ JCS(message without signature)`. `EnvelopeReader` is the
one door for private messages (enrolment, grants, commands); transactions come through
`wire.transactions`, which uses the same envelope with the TX domain.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from wire.canonical import MAX_MESSAGE_BYTES, decode, encode
from wire.errors import (
    BadSignatureError,
    ExpiredError,
    FutureDatedError,
    MalformedError,
    ReplayedError,
    UnknownSenderError,
    UnsignedError,
)
from wire.keys import SIGNATURE_BYTES, Domain, SigningKey, from_text, to_text, verify
from wire.replay import ReplayGuard

WHOLE_SECOND_MS = 999
"""By how much a date may be earlier than the signing: it has whole seconds."""
FIELDS = frozenset({"clientId", "reqId", "date", "operation", "parameters", "signature"})
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message as its signer meant it."""

    client_id: str
    req_id: str
    date_ms: int
    operation: str
    parameters: dict[str, Any]
    signature: str = ""

    def unsigned(self) -> dict[str, Any]:
        """The JSON object that is signed."""
        return {
            "clientId": self.client_id,
            "reqId": self.req_id,
            "date": date_text(self.date_ms),
            "operation": self.operation,
            "parameters": self.parameters,
        }


def date_text(time_ms: int) -> str:
    """UTC with whole seconds, e.g. `2026-06-01T12:00:00Z`."""
    # not strftime: how it writes a year below 1000 is the machine's business
    return datetime.fromtimestamp(time_ms // 1000, UTC).isoformat()[:19] + "Z"


def date_ms(text: str) -> int:
    """
    The milliseconds of a `date` field.

    Raises:
        MalformedError: not exactly this form, or not a date.
    """
    if not _DATE.fullmatch(text):
        raise MalformedError("date is not YYYY-MM-DDTHH:MM:SSZ")
    try:
        # strptime takes ten times as long, and every transaction has a date
        at = datetime(
            int(text[:4]), int(text[5:7]), int(text[8:10]),
            int(text[11:13]), int(text[14:16]), int(text[17:19]), tzinfo=UTC,
        )  # fmt: skip
        return int(at.timestamp()) * 1000
    except ValueError:
        raise MalformedError("no such date") from None


def new_req_id(time_ms: int, random_80: bytes) -> str:
    """A UUIDv7 (RFC 9562 section 5.7) from a time and ten random bytes."""
    raw = bytearray(time_ms.to_bytes(6, "big") + random_80[:10])
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return str(uuid.UUID(bytes=bytes(raw)))


def seal_envelope(envelope: Envelope, key: SigningKey, domain: Domain, chain_id: str) -> bytes:
    """Sign an envelope and return its canonical bytes."""
    unsigned = envelope.unsigned()
    signature = key.sign(domain, chain_id, encode(unsigned))
    return encode({**unsigned, "signature": to_text(signature)})


def parse_envelope(raw: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> tuple[Envelope, bytes]:
    """
    Read an envelope without believing it.

    Returns:
        The envelope, and the canonical bytes its signature must cover.

    Raises:
        OversizedError, MalformedError, UnsignedError.
    """
    value = decode(raw, max_bytes)
    if type(value) is not dict:
        raise MalformedError("a message is a JSON object")
    if "signature" not in value or value["signature"] == "":
        raise UnsignedError("no signature")
    if value.keys() != FIELDS:
        raise MalformedError("fields differ", unexpected=sorted(value.keys() ^ FIELDS)[:4])
    for name in ("clientId", "reqId", "date", "operation", "signature"):
        if type(value[name]) is not str or len(value[name]) > 128:
            raise MalformedError("not a short string", field=name)
    if type(value["parameters"]) is not dict:
        raise MalformedError("parameters is not an object")
    signature = value["signature"]
    envelope = Envelope(
        client_id=value["clientId"],
        req_id=value["reqId"],
        date_ms=date_ms(value["date"]),
        operation=value["operation"],
        parameters=value["parameters"],
        signature=signature,
    )
    return envelope, _without_signature(raw, signature)


def _without_signature(raw: bytes, signature: str) -> bytes:
    """The canonical bytes of a message without its signature, which is its last field."""
    tail = b',"signature":' + encode(signature) + b"}"
    assert raw.endswith(tail), "signature sorts after all other fields"
    return raw[: -len(tail)] + b"}"


def check_signature(
    envelope: Envelope, signed: bytes, public: bytes, domain: Domain, chain_id: str
) -> None:
    """
    Raise unless the envelope's signature is `public`'s.

    Raises:
        BadSignatureError: it is not.
    """
    try:
        signature = from_text(envelope.signature, SIGNATURE_BYTES)
    except MalformedError:
        raise BadSignatureError("signature is not 64 bytes of base64url") from None
    if not verify(public, domain, chain_id, signed, signature):
        raise BadSignatureError("signature does not verify", sender=envelope.client_id)


@dataclass(slots=True)
class EnvelopeReader:
    """
    The door of a service that takes private messages: parse, time, sender, signature, replay.

    The replay guard is asked last, so that a forged message cannot use up somebody's reqId.
    """

    chain_id: str
    domain: Domain
    key_of: Callable[[Envelope], bytes | None]
    replay: ReplayGuard
    max_age_ms: int
    max_ahead_ms: int

    def __post_init__(self) -> None:
        longest_ms = self.max_age_ms + self.max_ahead_ms + WHOLE_SECOND_MS
        if self.replay.keep_ms < longest_ms:
            raise ValueError(f"the replay guard forgets before {longest_ms} ms")

    def read(self, raw: bytes, now_ms: int) -> Envelope:
        """
        Return the envelope in `raw` if it may be believed at `now_ms`.

        Raises:
            WireError: one of its subclasses, by name.
        """
        envelope, signed = parse_envelope(raw)
        check_time(envelope.date_ms, now_ms, self.max_age_ms, self.max_ahead_ms)
        public = self.key_of(envelope)
        if public is None:
            raise UnknownSenderError("no key for this sender", sender=envelope.client_id)
        check_signature(envelope, signed, public, self.domain, self.chain_id)
        if not self.replay.admit(envelope.client_id, envelope.req_id, now_ms):
            raise ReplayedError("reqId was used before", reqId=envelope.req_id)
        return envelope


def check_time(then_ms: int, now_ms: int, max_age_ms: int, max_ahead_ms: int) -> None:
    """
    Raise when a message is too old or too far in the future.

    Raises:
        ExpiredError, FutureDatedError.
    """
    if then_ms < now_ms - max_age_ms - WHOLE_SECOND_MS:
        raise ExpiredError("message too old", age_ms=now_ms - then_ms)
    if then_ms > now_ms + max_ahead_ms:
        raise FutureDatedError("message from the future", ahead_ms=then_ms - now_ms)
