"""
Enrolment: from a claim code to a certificate, an address grant and, for a host, a validator grant.

Every answer is kept as it comes, and every request may be repeated, so enrolment goes on where a
crash stopped it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import structlog

from hem.ems.keyring import Keyring
from hem.gateway.client import GatewayClient
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
from wire.enrolment import ENROLL, GRANT_ADDRESSES, GRANT_VALIDATOR
from wire.errors import WireError
from wire.keys import to_text

CERTIFICATE = "enrolment/certificate"
GRANT = "enrolment/grant"
VALIDATOR_GRANT = "enrolment/validator-grant"
ADDRESS_NUMBER = "enrolment/address-number"

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
        plate = await self.gateway.nameplate()
        meter = {**plate, "meter_key": (await self.gateway.public_keys())["meter"]}
        answer = await csmdb.ask(
            ENROLL,
            {"claimCode": claim_code, "key": to_text(self.keyring.ems.public), "meter": meter},
        )
        return self._keep(Certificate, CERTIFICATE, answer["certificate"])

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
        answer = await csmdb.ask(GRANT_ADDRESSES, parameters)
        with self.store.atomic():
            self.store.put(ADDRESS_NUMBER, str(number).encode())
        return self._keep(AddressGrant, GRANT, answer["grants"][0])

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
        answer = await csmdb.ask(GRANT_VALIDATOR, parameters)
        return self._keep(ValidatorGrant, VALIDATOR_GRANT, answer["grant"])

    def _keep(self, kind: type[S], key: str, value: object) -> S:
        record = load(kind, value, self.issuing_key, self.market)
        with self.store.atomic():
            self.store.put(key, dump_text(record).encode())
        log.info("received", what=kind.__name__)
        return record

    def _kept(self, kind: type[S], key: str) -> S | None:
        raw = self.store.get(key)
        if raw is None:
            return None
        try:
            return load(kind, raw.decode(), self.issuing_key, self.market)
        except WireError as error:
            log.warning("kept record is not valid, asked for anew", key=key, reason=str(error))
            return None


def _window(first_slot: int, last_slot: int | None) -> dict[str, int]:
    if last_slot is None:
        return {}
    return {"startSlot": first_slot, "endSlot": last_slot}
