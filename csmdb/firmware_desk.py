"""
What the CSM-DB decides of firmware: a challenge, and what it believes of the answer.

    home                        CSM-DB                          gateway
     ├── firmware-nonce ──────────►│
     │◄──────────── nonce ─────────┤
     ├── attest_firmware(nonce) ──────────────────────────────────►│ reads the plate, signs
     ├── attest-firmware ─────────►│ key, plate, freshness, no lower version
     │◄──────── certificate ───────┤

A nonce is good once and for a few minutes, and is kept nowhere: it is a MAC over who asks, when,
and the number of the newest certificate. An attestation that changes something makes a newer
certificate, and with it every nonce from before worthless, also after a restart. Asking for nonces
fills no table, and attesting what is known already no certificates.

References:
    ADR 0012; RFC 9334 section 10.2 (freshness by nonces).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from csmdb.core import OPERATOR, Desk
from csmdb.records import Refused
from wire.certificates import Certificate, Meter
from wire.enrolment import ATTEST_FIRMWARE
from wire.envelope import check_time
from wire.errors import ConfigError, MalformedError, Refusal, ReplayedError, WireError
from wire.firmware import (
    Attestation,
    check_attestation,
    is_lower,
    load_attestation,
    version_of,
)
from wire.keys import KEY_BYTES, from_text, id_of

NONCE_LIFE_MS = 300_000
AHEAD_MS = 60_000
_NONCE_LABEL = "csmdb/firmware-nonce"


class MeterRows(Protocol):
    """What the database does for us beyond what the desk needs."""

    def set_firmware(self, participant: str, firmware: str) -> None:
        """The version that a home's meter runs."""
        ...


@dataclass(frozen=True, slots=True)
class FirmwareDesk:
    """
    Decides on attestations.

    Args:
        desk: keys, market, rows
        meters: the same rows
        review: told of a participant whose meter attested another firmware; may lift a ban that
            no advisory supports any more. It runs inside the transaction of the attestation.
    """

    desk: Desk
    meters: MeterRows
    review: Callable[[str], object] = lambda _: None

    def challenge(self, sender: str, now_ms: int) -> dict[str, Any] | Refused:
        """
        A nonce for `sender`, whose signature was checked.

        Returns:
            `{nonce, expiresMs}`; or UNKNOWN_SENDER, NOT_ALLOWED (no meter). A ban does not refuse
            it: a patched meter has to be able to say so.
        """
        newest = self.desk.rows.certificate_of(sender)
        if newest is None:
            return Refused(Refusal.UNKNOWN_SENDER, "enrol first")
        if self.desk.rows.meter_of(sender) is None:
            return Refused(Refusal.NOT_ALLOWED, "a service has no meter")
        nonce = self._nonce(sender, newest, now_ms)
        return {"nonce": nonce, "expiresMs": now_ms + NONCE_LIFE_MS}

    def attest(self, sender: str, parameters: dict[str, Any], now_ms: int) -> Certificate | Refused:
        """
        Take what a gateway says of its meter's firmware.

        Returns:
            The certificate that names the firmware, new unless it did before; or UNKNOWN_SENDER,
            NOT_ALLOWED, BAD_SIGNATURE, UNSIGNED, REPLAYED, EXPIRED, FUTURE_DATED, OTHER_DEVICE,
            DOWNGRADED; or BANNED, and then what was attested is kept all the same.

        Raises:
            MalformedError: the parameters are no attestation.
        """
        record = load_attestation(parameters.get("attestation"))
        with self.desk.rows.atomic():
            decision = self._attest(sender, record, now_ms)
            if isinstance(decision, Refused):
                outcome, detail = decision.refusal.value, ""  # no version, no serial number
            else:
                outcome, detail = "OK", f"certificate {decision.serial_no}"
            self.desk.rows.audit(now_ms, sender, ATTEST_FIRMWARE, outcome, detail, subject=sender)
        return decision

    def _attest(self, sender: str, record: Attestation, now_ms: int) -> Certificate | Refused:
        rows = self.desk.rows
        meter, newest = rows.meter_of(sender), rows.certificate_of(sender)
        if newest is None:
            return Refused(Refusal.UNKNOWN_SENDER, "enrol first")
        if meter is None:
            return Refused(Refusal.NOT_ALLOWED, "a service has no meter")
        try:
            self._check(sender, record, meter, newest, now_ms)
        except WireError as error:
            return Refused(error.refusal, str(error))
        fault = _fault(record, meter)
        if fault is not None:
            return fault
        self.meters.set_firmware(sender, record.firmware)
        self.review(sender)
        named = bool(newest.meter) and newest.meter[0].firmware == record.firmware
        # a new one uses the nonce up, banned or not; what says nothing new needs none
        certificate = newest if named else self.desk.certify_meter(sender, now_ms)
        who = rows.participant(sender)
        if who is not None and who.banned:
            return Refused(Refusal.BANNED, who.banned)
        return certificate

    def _check(
        self, sender: str, record: Attestation, meter: Meter, newest: Certificate, now_ms: int
    ) -> None:
        """Raises WireError: not this meter's, or not fresh."""
        public = from_text(meter.meter_key, KEY_BYTES)
        check_attestation(record, public, self.desk.market)
        issued_ms = _issued_ms(record.nonce)
        if not hmac.compare_digest(record.nonce, self._nonce(sender, newest, issued_ms)):
            raise ReplayedError("the nonce was used, or is not ours")
        check_time(issued_ms, now_ms, NONCE_LIFE_MS, AHEAD_MS)
        check_time(record.time_ms, now_ms, NONCE_LIFE_MS, AHEAD_MS)

    def _nonce(self, sender: str, newest: Certificate, issued_ms: int) -> str:
        key = self.desk.key.derive(_NONCE_LABEL).seed
        covered = f"{sender}\0{newest.serial_no}\0{issued_ms}".encode()
        return f"{issued_ms}.{hmac.new(key, covered, hashlib.sha256).hexdigest()}"

    def allow(self, sender: str, version: str, now_ms: int, actor: str = OPERATOR) -> None:
        """
        Let a home's meter go back to a lower version: take that as the one that is known.

        Raises:
            ConfigError: no such home, or not a version.
        """
        rows = self.desk.rows
        if rows.meter_of(sender) is None:
            raise ConfigError(f"{sender}: no home has this identity; see `csmdb list`")
        try:
            version_of(version)
        except WireError as error:
            raise ConfigError(f"VERSION: {error}") from None
        with rows.atomic():
            self.meters.set_firmware(sender, version)
            rows.audit(now_ms, actor, "allow-firmware", "OK", "", subject=sender)


def _issued_ms(nonce: str) -> int:
    """When a nonce says it was made. Raises MalformedError."""
    number, dot, mac = nonce.partition(".")
    if not dot or len(mac) != 64 or not re.fullmatch(r"[0-9]{1,16}", number):
        raise MalformedError("not a nonce of ours")
    return int(number)


def _fault(record: Attestation, meter: Meter) -> Refused | None:
    """Why the plate cannot be that of this home's meter, or not yet again."""
    for name in ("vendor", "model", "serial"):
        if getattr(record, name) != getattr(meter, name):
            return Refused(Refusal.OTHER_DEVICE, f"another {name} than was enrolled; enrol it anew")
    if record.meter != id_of(from_text(meter.meter_key)):
        return Refused(Refusal.OTHER_DEVICE, "another meter key")
    if is_lower(record.firmware, meter.firmware):
        return Refused(Refusal.DOWNGRADED, "lower than what was attested before")
    return None
