"""
Enrolment: from a claim code to a certificate, an address grant and, for a host, a validator grant.

Every answer is kept as it comes, and every request may be repeated, so enrolment goes on where a
crash stopped it. What is only temporarily in the way (a meter that does not answer yet, a CSM-DB
that is down) is waited for; a refusal is final and raised.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from hem.ems.addresses import AddressBook
from hem.ems.keyring import Keyring
from hem.gateway.client import GatewayClient, GatewayError
from runtime.csmdb_client import CsmDbClient
from runtime.ports import Store
from wire.certificates import (
    AddressGrant,
    Certificate,
    Signed,
    ValidatorGrant,
    dump_text,
    load,
)
from wire.enrolment import ENROLL, GRANT_ADDRESSES, GRANT_VALIDATOR, RENEW
from wire.errors import CertificateError, WireError
from wire.keys import to_text

CERTIFICATE = "enrolment/certificate"
GRANT = "enrolment/grant"
VALIDATOR_GRANT = "enrolment/validator-grant"
ADDRESS_NUMBER = "enrolment/address-number"
METER_RETRY_S = 1.0

S = TypeVar("S", bound=Signed)

log = structlog.get_logger(component="hem")


@dataclass(slots=True)
class Enrolment:
    """What the CSM-DB has given us, and how to get the rest."""

    store: Store
    keyring: Keyring
    gateway: GatewayClient
    market: str
    issuing_key: bytes

    @property
    def certificate(self) -> Certificate | None:
        """Our certificate, once enrolled."""
        return self._kept(Certificate, CERTIFICATE)

    @property
    def grant(self) -> AddressGrant | None:
        """The grant of our trading address, once we have one."""
        return self._kept(AddressGrant, GRANT)

    @property
    def validator_grant(self) -> ValidatorGrant | None:
        """The grant for the validator this home hosts, if any."""
        return self._kept(ValidatorGrant, VALIDATOR_GRANT)

    @property
    def address_number(self) -> int:
        """Number of the address we trade under."""
        raw = self.store.get(ADDRESS_NUMBER)
        return int(raw) if raw is not None else 1

    async def enrol(self, csmdb: CsmDbClient, claim_code: str) -> Certificate:
        """
        Trade the claim code for a certificate (once).

        Raises:
            CsmDbRefusedError: BAD_CLAIM, CLAIM_USED, …
        """
        known = self.certificate
        if known is not None:
            return known
        ems = self.keyring.ems
        meter = await self._meter()
        answer = await _ask(
            csmdb,
            ENROLL,
            {"claimCode": claim_code, "key": to_text(ems.public), "meter": meter},
        )
        certificate = self._check(Certificate, answer["certificate"])
        if certificate.subject != ems.id:
            raise CertificateError("certificate of another home", subject=certificate.subject)
        self._keep((CERTIFICATE, dump_text(certificate)))
        return certificate

    async def obtain_grant(
        self, csmdb: CsmDbClient, first_slot: int, last_slot: int | None
    ) -> AddressGrant:
        """
        A grant for our trading address that is valid in `first_slot`; a fresh address when the old
        grant has ended.

        Args:
            first_slot: first slot to trade in
            last_slot: last one, or None for what the CSM-DB gives
        """
        known = self.grant
        if known is not None and known.end_slot >= first_slot:
            return known
        number = self.address_number + (1 if known is not None else 0)
        key = self.keyring.address(number)
        pseudonym = (await self.gateway.pseudonym(key.id))["key"]
        parameters = {
            "addresses": [{"key": to_text(key.public), "meterKey": pseudonym}],
            **_window(first_slot, last_slot),
        }
        answer = await _ask(csmdb, GRANT_ADDRESSES, parameters)
        grant = self._check(AddressGrant, answer["grants"][0])
        if grant.address != key.id or grant.meter_key != pseudonym:
            raise CertificateError("grant of another address", address=grant.address)
        self._keep((ADDRESS_NUMBER, str(number)), (GRANT, dump_text(grant)))
        return grant

    async def obtain_addresses(self, csmdb: CsmDbClient, book: AddressBook, slot: int) -> None:
        """
        Grants for the addresses of coming periods, in one batch; none where there are enough.

        Args:
            slot: the current one

        Raises:
            CsmDbRefusedError: BANNED, … TimeoutError: no answer. GatewayError.
        """
        periods = book.missing(slot)
        if not periods:
            return
        rows = []
        for period in periods:
            key, (first, last) = book.key(period), book.window(period, slot)
            pseudonym = (await self.gateway.pseudonym(key.id))["key"]
            named = {"key": to_text(key.public), "meterKey": pseudonym}
            rows.append({**named, "startSlot": first, "endSlot": last})
        answer = await csmdb.ask(GRANT_ADDRESSES, {"addresses": rows})
        grants = [self._check(AddressGrant, one) for one in answer["grants"]]
        for row, grant in zip(rows, grants, strict=True):
            if (grant.key, grant.meter_key) != (row["key"], row["meterKey"]):
                raise CertificateError("grant of another address", address=grant.address)
        book.keep(dict(zip(periods, grants, strict=True)))
        log.info("addresses granted", count=len(grants))

    async def renew_certificate(self, csmdb: CsmDbClient) -> bool:
        """
        Ask for a newer certificate, once.

        Returns:
            Whether there is one: the CSM-DB gives the same while half of it is left.

        Raises:
            CsmDbRefusedError: BANNED, … TimeoutError: no answer.
        """
        known = self.certificate
        answer = await csmdb.ask(RENEW, {})
        certificate = self._check(Certificate, answer["certificate"])
        if certificate.subject != self.keyring.ems.id:
            raise CertificateError("certificate of another home", subject=certificate.subject)
        if known is not None and certificate.not_after_ms <= known.not_after_ms:
            return False
        self._keep((CERTIFICATE, dump_text(certificate)))
        return True

    async def renew_grant(self, csmdb: CsmDbClient, first_slot: int, last_slot: int | None) -> bool:
        """
        Ask for a longer grant of the address we have, once.

        Returns:
            Whether it is longer than before.

        Raises:
            CsmDbRefusedError: BANNED, … TimeoutError: no answer.
        """
        known = self.grant
        if known is None:
            return False
        parameters = {
            "addresses": [{"key": known.key, "meterKey": known.meter_key}],
            **_window(first_slot, last_slot),
        }
        answer = await csmdb.ask(GRANT_ADDRESSES, parameters)
        grant = self._check(AddressGrant, answer["grants"][0])
        if grant.address != known.address or grant.meter_key != known.meter_key:
            raise CertificateError("grant of another address", address=grant.address)
        if grant.end_slot <= known.end_slot:
            return False
        self._keep((GRANT, dump_text(grant)))
        return True

    async def obtain_validator_grant(
        self, csmdb: CsmDbClient, validator: str, first_slot: int, last_slot: int | None
    ) -> ValidatorGrant:
        """A grant that lets our meter speak for the validator we host."""
        known = self.validator_grant
        if known is not None and known.end_slot >= first_slot and known.validator == validator:
            return known
        pseudonym = (await self.gateway.pseudonym(f"validator:{validator}"))["key"]
        parameters = {
            "validator": validator,
            "meterKey": pseudonym,
            **_window(first_slot, last_slot),
        }
        answer = await _ask(csmdb, GRANT_VALIDATOR, parameters)
        grant = self._check(ValidatorGrant, answer["grant"])
        if grant.validator != validator or grant.meter_key != pseudonym:
            raise CertificateError("grant of another validator", validator=grant.validator)
        self._keep((VALIDATOR_GRANT, dump_text(grant)))
        return grant

    async def renew_validator_grant(
        self, csmdb: CsmDbClient, first_slot: int, last_slot: int | None
    ) -> bool:
        """
        Ask for a longer grant for the validator we host, once.

        Returns:
            Whether it is longer than before.

        Raises:
            CsmDbRefusedError: NOT_ALLOWED, … TimeoutError: no answer.
        """
        known = self.validator_grant
        if known is None:
            return False
        parameters = {
            "validator": known.validator,
            "meterKey": known.meter_key,
            **_window(first_slot, last_slot),
        }
        answer = await csmdb.ask(GRANT_VALIDATOR, parameters)
        grant = self._check(ValidatorGrant, answer["grant"])
        if grant.validator != known.validator or grant.meter_key != known.meter_key:
            raise CertificateError("grant of another validator", validator=grant.validator)
        if grant.end_slot <= known.end_slot:
            return False
        self._keep((VALIDATOR_GRANT, dump_text(grant)))
        return True

    async def _meter(self) -> dict[str, str]:
        """What is on the meter's plate, and its key; waits for a meter that does not answer yet."""
        said = False
        while True:
            try:
                plate = await self.gateway.nameplate()
                return {**plate, "meter_key": (await self.gateway.public_keys())["meter"]}
            except GatewayError as error:
                if not said:
                    log.warning("enrolment waits for the meter", reason=str(error))
                said = True
                await asyncio.sleep(METER_RETRY_S)

    def _check(self, kind: type[S], value: object) -> S:
        return load(kind, value, self.issuing_key, self.market)

    def _keep(self, *rows: tuple[str, str]) -> None:
        with self.store.atomic():
            for key, text in rows:
                self.store.put(key, text.encode())
        log.info("received", what=rows[-1][0])

    def _kept(self, kind: type[S], key: str) -> S | None:
        raw = self.store.get(key)
        if raw is None:
            return None
        try:
            return self._check(kind, raw.decode())
        except WireError as error:
            log.warning("kept record is not valid, asked for anew", key=key, reason=str(error))
            return None


async def _ask(csmdb: CsmDbClient, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Ask until there is an answer: the CSM-DB may be down for longer than one request waits."""
    said = False
    while True:
        try:
            return await csmdb.ask(operation, parameters)
        except TimeoutError:
            if not said:
                log.warning("the CSM-DB does not answer, asked again", operation=operation)
            said = True


def _window(first_slot: int, last_slot: int | None) -> dict[str, int]:
    if last_slot is None:
        return {}
    return {"startSlot": first_slot, "endSlot": last_slot}
