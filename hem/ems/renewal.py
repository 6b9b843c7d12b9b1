"""
Renewal: a newer certificate and longer grants, before the old ones end.

    valid ──► due ──► valid              the CSM-DB gives a new one in the second half of the old
      └─► expired ──► valid              the broker knows us no more; we ask it as a stranger may

A home asks somewhere in the last third of what it holds, each at its own moment, so that homes that
were enrolled on one day do not come back on one day. A CSM-DB that is away is asked again with
back-off and jitter. A home whose certificate has ended reads its meter and keeps what it reads; it
asks for a certificate as one that enrols would, and goes on by itself when it gets one. It trades
as long as its address' grant lasts: the trading lane shows the grant and no certificate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from enum import StrEnum

import structlog

from hem.ems.enrolment import Enrolment
from hem.gateway.client import GatewayError
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.ports import BusDownError, Clock, Rng
from wire.certificates import AddressGrant, Certificate, ValidatorGrant
from wire.errors import WireError
from wire.slots import SlotGrid

RETRY_MIN_S = 5.0
RETRY_MAX_S = 900.0
LOOK_MS = 3_600_000
"""So often we look whether something is due [market ms]."""
DAY_MS = 86_400_000

Line = Callable[[], AbstractAsyncContextManager[CsmDbClient]]
"""Opens a line to the CSM-DB, also for a home whose certificate has ended."""

log = structlog.get_logger(component="hem")


class CertificateState(StrEnum):
    """How our certificate stands."""

    NONE = "not-enrolled"
    VALID = "valid"
    DUE = "renewal-due"
    EXPIRED = "expired"
    REFUSED = "refused"
    """The CSM-DB does not renew it: `Renewal.reason`."""


class Renewal:
    """
    Keeps certificate and grants from ending.

    Args:
        line: opens a line to the CSM-DB
        last_slot: last slot to trade in, where a trial has an end
        validator: the validator this home hosts, or empty
        renewed: called when there is something new, with what: "certificate", "grant" or
            "validator-grant"
    """

    def __init__(
        self,
        enrolment: Enrolment,
        clock: Clock,
        grid: SlotGrid,
        rng: Rng,
        line: Line,
        last_slot: int | None,
        validator: str,
        renewed: Callable[[str], None],
    ) -> None:
        self._enrolment, self._clock, self._grid, self._rng = enrolment, clock, grid, rng
        self._line, self._last_slot, self._validator = line, last_slot, validator
        self._renewed = renewed
        self._part = rng.uniform(0.6, 1.0)
        """Of the last third: our own moment in it."""
        self._said = False
        self.changing = False
        """Addresses change (`wire.rotation`): none is made longer."""
        self.reason = ""
        """Why the CSM-DB does not renew; empty: it does, or has not been asked."""

    @property
    def state(self) -> CertificateState:
        """Of the certificate, now."""
        certificate, now_ms = self._enrolment.certificate, self._clock.now_ms()
        if certificate is None:
            return CertificateState.NONE
        if now_ms >= certificate.not_after_ms:
            return CertificateState.EXPIRED
        if self.reason:
            return CertificateState.REFUSED
        due = now_ms >= self._certificate_due_ms(certificate)
        return CertificateState.DUE if due else CertificateState.VALID

    @property
    def expired(self) -> bool:
        """The broker lets us in no more."""
        return self.state is CertificateState.EXPIRED

    @property
    def days_left(self) -> float:
        """Until the certificate ends; negative after it [days]."""
        certificate = self._enrolment.certificate
        end_ms = certificate.not_after_ms if certificate is not None else 0
        return (end_ms - self._clock.now_ms()) / DAY_MS

    async def run(self) -> None:
        """Renew for ever; cancel to stop."""
        pause_s = RETRY_MIN_S
        while True:
            if not self._due():
                pause_s, self._said = RETRY_MIN_S, False
                next_ms = self._next_ms()
                await self._clock.sleep_until(min(next_ms, self._clock.now_ms() + LOOK_MS))
                continue
            if await self._renew():
                continue
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def renew_now(self) -> None:
        """Ask until there is a certificate that holds (for a start with one that has ended)."""
        pause_s = RETRY_MIN_S
        while self.expired:
            if not await self._renew():
                await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _renew(self) -> bool:
        """Ask for whatever is due; False: something is still to be asked for."""
        due = self._due()
        try:
            async with self._line() as csmdb:
                for what in due:
                    if not await self._ask(csmdb, what):
                        return False
                    log.info("renewed", what=what)
                    self._renewed(what)
        except CsmDbRefusedError as error:
            self._trouble(str(error))
            self.reason = error.reason
            return False
        except (TimeoutError, BusDownError, GatewayError, WireError) as error:
            self._trouble(str(error) or "no answer")
            return False
        self.reason = ""
        return True

    async def _ask(self, csmdb: CsmDbClient, what: str) -> bool:
        first, last = self._grid.slot_at(self._clock.now_ms()), self._last_slot
        match what:
            case "certificate":
                return await self._enrolment.renew_certificate(csmdb)
            case "grant":
                return await self._enrolment.renew_grant(csmdb, first, last)
        return await self._enrolment.renew_validator_grant(csmdb, first, last)

    # --- When --------------------------------------------------------------------------------

    def _due(self) -> list[str]:
        """What is to be asked for now."""
        now_ms = self._clock.now_ms()
        return [what for what, due_ms in self._dues() if now_ms >= due_ms]

    def _next_ms(self) -> int:
        """When the next thing is due."""
        return min((due_ms for _, due_ms in self._dues()), default=2**53)

    def _dues(self) -> list[tuple[str, int]]:
        held: list[tuple[str, int]] = []
        certificate, grant = self._enrolment.certificate, self._enrolment.grant
        if certificate is not None:
            held.append(("certificate", self._certificate_due_ms(certificate)))
        if grant is not None and self._may_be_longer(grant) and not self.changing:
            held.append(("grant", self._grant_due_ms(grant)))
        validator = self._enrolment.validator_grant if self._validator else None
        if validator is not None and self._may_be_longer(validator):
            held.append(("validator-grant", self._grant_due_ms(validator)))
        return held

    def _may_be_longer(self, grant: AddressGrant | ValidatorGrant) -> bool:
        """It ends before the trial does, and has not ended (then a fresh address is needed)."""
        if isinstance(grant, AddressGrant):
            ended = grant.end_slot < self._grid.slot_at(self._clock.now_ms())
            return not ended and (self._last_slot is None or grant.end_slot < self._last_slot)
        return self._last_slot is None or grant.end_slot < self._last_slot

    def _certificate_due_ms(self, certificate: Certificate) -> int:
        return self._moment_ms(certificate.not_before_ms, certificate.not_after_ms)

    def _grant_due_ms(self, grant: AddressGrant | ValidatorGrant) -> int:
        begin = max(grant.start_slot, grant.end_slot - self._longest_slots())
        return self._moment_ms(self._grid.start_ms(begin), self._grid.end_ms(grant.end_slot))

    def _longest_slots(self) -> int:
        """A grant that was made longer begins long ago: the last third is of the last week."""
        return 7 * DAY_MS // (self._grid.length_s * 1000)

    def _moment_ms(self, begin_ms: int, end_ms: int) -> int:
        return end_ms - int((end_ms - begin_ms) / 3 * self._part)

    # --- Saying it once ----------------------------------------------------------------------

    def _trouble(self, reason: str) -> None:
        if not self._said:
            self._said = True
            log.warning("not renewed, asked again", state=self.state.value, reason=reason[:200])
