"""
The CSM-DB on the bus: requests in, decisions out (the rules are in `csmdb.core`).

A request passes, in this order: rate limit by topic leaf (the broker vouches for it), sealed box,
envelope form, time, sender's key, signature, replay. Whatever fails is counted by its name. It is
answered only if we know a key to seal the answer to, which a stranger's garbage does not give us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from csmdb import advisories, revocations
from csmdb.firmware_desk import FirmwareDesk
from csmdb.records import Refused
from csmdb.revoked_keys import read_page
from csmdb.setup import CsmDb
from csmdb.succession import succession_code
from csmdb.tls import certify
from runtime.metrics import count_refusal
from runtime.ports import Bus, BusDownError, Message
from runtime.rate_limit import RateLimit
from wire import topics
from wire.certificates import Signed, dump
from wire.enrolment import (
    ATTEST_FIRMWARE,
    ENROLL,
    FIRMWARE_NONCE,
    GRANT_ADDRESSES,
    GRANT_VALIDATOR,
    LIST_METERS,
    LIST_REVOCATIONS,
    LIST_REVOKED_KEYS,
    MAX_AGE_MS,
    MAX_AHEAD_MS,
    RENEW,
    SHOW_PARTICIPANT,
    SUCCESSION_CODE,
    TLS_CERTIFICATE,
    make_answer,
)
from wire.envelope import Envelope, EnvelopeReader, parse_envelope
from wire.errors import (
    CertificateError,
    MalformedError,
    Refusal,
    ReplayedError,
    RevokedError,
    UnknownOperationError,
    WireError,
)
from wire.keys import KEY_BYTES, Domain, from_text, id_of
from wire.replay import ReplayGuard

COMPONENT = "csmdb"
BURST = 40
"""Requests a sender may send at once."""
PER_SECOND = 4.0
MAX_SENDERS = 20_000
MAX_REQUESTS_REMEMBERED = 200_000

log = structlog.get_logger(component=COMPONENT)


@dataclass(slots=True)
class CsmDbService:
    """Answers requests on one lane."""

    csmdb: CsmDb
    bus: Bus
    rate: RateLimit
    reader: EnvelopeReader
    firmware: FirmwareDesk

    @classmethod
    def on(
        cls,
        csmdb: CsmDb,
        bus: Bus,
        *,
        burst: float = BURST,
        review: Callable[[str], None] = lambda _: None,
    ) -> CsmDbService:
        """
        A service on a lane whose identity is the CSM-DB's.

        Args:
            review: told of a participant whose meter attested another firmware
        """
        rows = csmdb.repository

        def key_of(envelope: Envelope) -> bytes | None:
            if envelope.operation == ENROLL:  # the key comes along; the identity is its hash
                text = envelope.parameters.get("key")
                public = from_text(text, KEY_BYTES) if type(text) is str else b""
                return public if id_of(public) == envelope.client_id else None
            known = rows.participant(envelope.client_id)
            return from_text(known.key) if known is not None else None

        reader = EnvelopeReader(
            chain_id=csmdb.market,
            domain=Domain.MESSAGE,
            key_of=key_of,
            replay=ReplayGuard(MAX_AGE_MS + MAX_AHEAD_MS + 1_000, MAX_REQUESTS_REMEMBERED),
            max_age_ms=MAX_AGE_MS,
            max_ahead_ms=MAX_AHEAD_MS,
        )
        rate = RateLimit(burst, PER_SECOND, MAX_SENDERS)
        return cls(csmdb, bus, rate, reader, csmdb.firmware_desk(review))

    def start(self) -> None:
        """Subscribe; works before the bus is connected."""
        self.bus.subscribe(topics.build(self.csmdb.market, topics.CSMDB_REQ, "+"), self.take)

    async def take(self, message: Message) -> None:
        """Handle one request: decide, keep, answer."""
        asker = topics.parse(message.topic).leaf
        sealed = self.answer(asker, message.payload)
        if sealed is None:
            return
        try:
            await self.bus.publish(topics.build(self.csmdb.market, topics.CSMDB_RSP, asker), sealed)
        except BusDownError:
            log.info("answer not delivered", asker=asker)  # it will be asked for again

    def answer(self, asker: str, payload: bytes) -> bytes | None:
        """The sealed answer to a sealed request of `asker`; None: there is nobody to answer."""
        if not self.rate.admit(asker, self.csmdb.clock.monotonic_s()):
            count_refusal(COMPONENT, Refusal.RATE_LIMITED)
            return None
        try:
            raw = self.csmdb.box.open(payload)
            envelope, _ = parse_envelope(raw)
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)
            return None
        try:
            envelope = self._read(raw, asker)
            self._refuse_revoked(envelope.client_id)
            answer = self._decide(envelope)
        except ReplayedError as error:
            count_refusal(COMPONENT, error.refusal)  # it was answered the first time
            return None
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)
            answer = {"refusal": error.refusal.value, "detail": str(error)[:200]}
        return self._sealed(asker, envelope, answer)

    def _read(self, raw: bytes, asker: str) -> Envelope:
        envelope = self.reader.read(raw, self.csmdb.clock.wall_ms())
        if envelope.client_id != asker:
            raise CertificateError("request on another's topic", sender=envelope.client_id)
        return envelope

    def _refuse_revoked(self, sender: str) -> None:
        if self.csmdb.repository.keys.is_revoked(sender):
            raise RevokedError("this key was lost, stolen or replaced", sender=sender)

    def _decide(self, envelope: Envelope) -> dict[str, Any]:
        desk, now_ms = self.csmdb.desk, self.csmdb.clock.now_ms()
        sender, parameters = envelope.client_id, envelope.parameters
        decision: object
        match envelope.operation:
            case op if op == ENROLL:
                name, decision = "certificate", desk.enroll(sender, parameters, now_ms)
                if isinstance(decision, Signed):
                    advisories.review(self.csmdb, sender)
            case op if op == RENEW:
                name, decision = "certificate", desk.renew(sender, now_ms)
            case op if op == GRANT_ADDRESSES:
                name, decision = "grants", desk.grant_addresses(sender, parameters, now_ms)
            case op if op == GRANT_VALIDATOR:
                name, decision = "grant", desk.grant_validator(sender, parameters, now_ms)
            case op if op == LIST_METERS:
                name, decision = "", desk.list_meters(sender, parameters, now_ms)
            case op if op == FIRMWARE_NONCE:
                name, decision = "", self.firmware.challenge(sender, now_ms)
            case op if op == ATTEST_FIRMWARE:
                name, decision = "certificate", self.firmware.attest(sender, parameters, now_ms)
            case op if op == SHOW_PARTICIPANT:
                name, decision = "", desk.show_participant(sender, parameters, now_ms)
            case op if op == LIST_REVOCATIONS:
                name, decision = "", revocations.list_since(self.csmdb, sender, parameters)
            case op if op == TLS_CERTIFICATE:
                name, decision = "certificates", certify(self.csmdb, sender, parameters)
            case op if op == SUCCESSION_CODE:
                name, decision = "claimCode", succession_code(self.csmdb, sender)
            case op if op == LIST_REVOKED_KEYS:
                name, decision = "", read_page(self.csmdb, sender, parameters.get("after", 0))
            case other:
                raise UnknownOperationError("not an operation of the CSM-DB", operation=other[:32])
        if isinstance(decision, Refused):
            count_refusal(COMPONENT, decision.refusal)
            log.info("refused", operation=op, sender=sender, reason=decision.refusal.value)
            return decision.parameters()
        return _result(name, decision)

    def _sealed(self, asker: str, request: Envelope, answer: dict[str, Any]) -> bytes | None:
        box = self._box_of(asker, request)
        if box is None:
            return None
        csmdb = self.csmdb
        try:
            return make_answer(
                csmdb.issuing_key, csmdb.market, box, request, answer, csmdb.clock.wall_ms()
            )
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)
            return None

    def _box_of(self, asker: str, request: Envelope) -> bytes | None:
        """What to seal an answer to: the key sent along, else the enrolled one."""
        text = request.parameters.get("boxKey")
        if type(text) is not str:
            known = self.csmdb.repository.participant(asker)
            text = known.box_key if known is not None else ""
        try:
            return from_text(text, KEY_BYTES) if text else None
        except MalformedError:
            return None


def _result(name: str, decision: object) -> dict[str, Any]:
    if isinstance(decision, Signed):
        return {name: dump(decision)}
    if isinstance(decision, str):
        return {name: decision}
    if isinstance(decision, list):
        return {name: [dump(one) if isinstance(one, Signed) else one for one in decision]}
    assert isinstance(decision, dict)
    return decision
