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

Decide = Callable[[str, dict[str, Any], int], object]
"""Decides on the parameters of a sender at a market time [ms]."""

log = structlog.get_logger(component=COMPONENT)


@dataclass(slots=True)
class CsmDbService:
    """Answers requests on one lane."""

    csmdb: CsmDb
    bus: Bus
    rate: RateLimit
    reader: EnvelopeReader
    firmware: FirmwareDesk

    @property
    def now_ms(self) -> int:
        """Market time."""
        return self.csmdb.clock.now_ms()

    @classmethod
    def on(
        cls,
        csmdb: CsmDb,
        bus: Bus,
        *,
        burst: float = BURST,
        review: Callable[[str], object] | None = None,
    ) -> CsmDbService:
        """
        A service on a lane whose identity is the CSM-DB's.

        Args:
            review: told of a participant whose meter attested another firmware; by default the
                advisories are looked at, which bans it or lifts their ban
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
        firmware = csmdb.firmware_desk(review or (lambda who: advisories.review(csmdb, who)))
        return cls(csmdb, bus, rate, reader, firmware)

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

    def answer(self, asker: str, payload: bytes, counted_as: str = "") -> bytes | None:
        """
        The sealed answer to a sealed request of `asker`; None: there is nobody to answer.

        Args:
            counted_as: whose allowance it takes, where nobody has proved yet to be `asker`
        """
        if not self.rate.admit(counted_as or asker, self.csmdb.clock.monotonic_s()):
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
        name, decide = _OPERATIONS.get(envelope.operation, ("", None))
        if decide is None:
            raise UnknownOperationError(
                "not an operation of the CSM-DB", operation=envelope.operation[:32]
            )
        decision = decide(self, envelope.client_id, envelope.parameters)
        if isinstance(decision, Refused):
            count_refusal(COMPONENT, decision.refusal)
            log.info(
                "refused", operation=envelope.operation, sender=envelope.client_id,
                reason=decision.refusal.value,
            )  # fmt: skip
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


# --- operations: the name of what is answered, and who decides ------------------------------------


def _enroll(service: CsmDbService, sender: str, parameters: dict[str, Any]) -> object:
    csmdb = service.csmdb
    decision = csmdb.desk.enroll(sender, parameters, csmdb.clock.now_ms())
    if isinstance(decision, Signed):
        advisories.review(csmdb, sender)
    return decision


_Decide = Callable[[CsmDbService, str, dict[str, Any]], object]
_OPERATIONS: dict[str, tuple[str, _Decide]] = {
    ENROLL: ("certificate", _enroll),
    RENEW: ("certificate", lambda on, who, _: on.csmdb.desk.renew(who, on.now_ms)),
    GRANT_ADDRESSES: (
        "grants", lambda on, who, said: on.csmdb.desk.grant_addresses(who, said, on.now_ms)
    ),
    GRANT_VALIDATOR: (
        "grant", lambda on, who, said: on.csmdb.desk.grant_validator(who, said, on.now_ms)
    ),
    LIST_METERS: ("", lambda on, who, said: on.csmdb.desk.list_meters(who, said, on.now_ms)),
    SHOW_PARTICIPANT: (
        "", lambda on, who, said: on.csmdb.desk.show_participant(who, said, on.now_ms)
    ),
    FIRMWARE_NONCE: ("", lambda on, who, _: on.firmware.challenge(who, on.now_ms)),
    ATTEST_FIRMWARE: (
        "certificate", lambda on, who, said: on.firmware.attest(who, said, on.now_ms)
    ),
    LIST_REVOCATIONS: ("", lambda on, who, said: revocations.list_since(on.csmdb, who, said)),
    TLS_CERTIFICATE: ("certificates", lambda on, who, said: certify(on.csmdb, who, said)),
    SUCCESSION_CODE: ("claimCode", lambda on, who, _: succession_code(on.csmdb, who)),
    LIST_REVOKED_KEYS: ("", lambda on, who, said: read_page(on.csmdb, who, said.get("after", 0))),
}  # fmt: skip


def _result(name: str, decision: object) -> dict[str, Any]:
    if isinstance(decision, Signed):
        return {name: dump(decision)}
    if isinstance(decision, str):
        return {name: decision}
    if isinstance(decision, list):
        return {name: [dump(one) if isinstance(one, Signed) else one for one in decision]}
    assert isinstance(decision, dict)
    return decision
