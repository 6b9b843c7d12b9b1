"""
How to talk to the CSM-DB: requests sealed to it, answers sealed to the asker.

    request   csmdb/req/<asker>   sealed box to the CSM-DB of an envelope signed by the asker's key
    answer    csmdb/rsp/<asker>   sealed box to the asker of an envelope signed by the issuing key

Both envelopes are signed for the market's name, because certificates exist before any chain does,
and dated by real time, like tokens. The answer repeats the request's `reqId` and operation; its
parameters are the result, or `{"refusal": NAME, "detail": text}`. A request that is sent again gets
a new `reqId`; every operation may be repeated without a second effect.

    enroll            {claimCode, key, boxKey, meter: {type, serial, vendor, model, firmware,
                      meter_key}}                                 -> {certificate}
    renew             {}                                          -> {certificate}
    grant-addresses   {addresses: [{key, meterKey, startSlot?, endSlot?}], startSlot?, endSlot?}
                      (an address' own slots go before the request's)           -> {grants}
    grant-validator   {validator, meterKey, startSlot?, endSlot?}               -> {grant}
    list-meters       {after, fromSlot}                           -> {meters, next}
    show-participant  {participant, address}                      -> {participant}
    firmware-nonce    {}                                          -> {nonce, expiresMs}
    attest-firmware   {attestation}                               -> {certificate}
    list-revocations  {after}                                     -> {revocations, next}
    tls-certificate   {requests: [{identity, csr}]}               -> {certificates}
    succession-code   {}                                          -> {claimCode}
    list-revoked-keys {after}                                     -> {keys, number}

A certificate signing request (PKCS#10, DER, base64url) proves the TLS key; `identity` is the
asker's own or that of an address granted to it. A succession code enrols a key that takes the
asker's place. Requests and answers also pass over the CSM-DB's door (HTTPS), for those whom the
broker does not know yet: the same bytes, and nobody on the way can read or change them.
"""

from __future__ import annotations

from typing import Any

from wire.envelope import Envelope, check_signature, parse_envelope, seal_envelope
from wire.errors import CertificateError
from wire.keys import BoxKey, Domain, SigningKey, id_of, seal_to

ENROLL = "enroll"
RENEW = "renew"
GRANT_ADDRESSES = "grant-addresses"
GRANT_VALIDATOR = "grant-validator"
LIST_METERS = "list-meters"
SHOW_PARTICIPANT = "show-participant"
FIRMWARE_NONCE = "firmware-nonce"
ATTEST_FIRMWARE = "attest-firmware"
LIST_REVOCATIONS = "list-revocations"
TLS_CERTIFICATE = "tls-certificate"
SUCCESSION_CODE = "succession-code"
LIST_REVOKED_KEYS = "list-revoked-keys"
OPERATIONS = (
    ENROLL, RENEW, GRANT_ADDRESSES, GRANT_VALIDATOR, LIST_METERS, SHOW_PARTICIPANT, FIRMWARE_NONCE,
    ATTEST_FIRMWARE, LIST_REVOCATIONS, TLS_CERTIFICATE, SUCCESSION_CODE, LIST_REVOKED_KEYS,
)  # fmt: skip

MAX_AGE_MS = 120_000
MAX_AHEAD_MS = 60_000


def make_request(
    key: SigningKey,
    market: str,
    csmdb_box: bytes,
    operation: str,
    parameters: dict[str, Any],
    req_id: str,
    wall_ms: int,
) -> bytes:
    """The bytes to publish on `csmdb/req/<key.id>`."""
    envelope = Envelope(key.id, req_id, wall_ms, operation, parameters)
    return seal_to(csmdb_box, seal_envelope(envelope, key, Domain.MESSAGE, market))


def make_answer(
    issuing: SigningKey,
    market: str,
    box: bytes,
    request: Envelope,
    parameters: dict[str, Any],
    wall_ms: int,
) -> bytes:
    """
    The bytes to publish on `csmdb/rsp/<asker>`.

    Raises:
        MalformedError: nothing can be sealed to `box`.
    """
    envelope = Envelope(issuing.id, request.req_id, wall_ms, request.operation, parameters)
    return seal_to(box, seal_envelope(envelope, issuing, Domain.MESSAGE, market))


def read_answer(raw: bytes, box: BoxKey, market: str, issuing_key: bytes) -> Envelope:
    """
    Open and check an answer.

    Raises:
        WireError: not sealed to us, malformed, or not the CSM-DB's.
    """
    envelope, signed = parse_envelope(box.open(raw))
    if envelope.client_id != id_of(issuing_key):
        raise CertificateError("answer is not the CSM-DB's", sender=envelope.client_id)
    check_signature(envelope, signed, issuing_key, Domain.MESSAGE, market)
    return envelope
