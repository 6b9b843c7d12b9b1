"""
Succession: a new device, or a new EMS key, takes the place of one that is known.

Identities are hashes of keys, so a new key is a new participant. It gets a one-time code which
hands it what its predecessor had: roles, limits, feeder, the validator it hosts, who it is, a ban,
its addresses and, at the DSO, its account. The old identity is revoked.

    re-enrolment   the device was lost: an operator revokes it, with the addresses whose keys were
                   on it, and gives the household the code
    rotation       the device asks for the code itself, under its old key, which is revoked when the
                   new one is enrolled; addresses stay good, and settle
"""

from __future__ import annotations

from csmdb.core import DAY_MS, OPERATOR, hash_code, make_code
from csmdb.records import Claim, Participant, Refused
from csmdb.revoked_keys import revoke
from csmdb.setup import CsmDb
from wire.enrolment import SUCCESSION_CODE
from wire.errors import ConfigError, Refusal

RE_ENROL_DAYS = 30
ROTATION_DAYS = 1


def re_enrol(csmdb: CsmDb, participant: str, reason: str, actor: str = OPERATOR) -> str:
    """
    Revoke a lost device and give the code for its successor. Again: another code.

    Returns:
        The one-time code. It is not kept: only its hash is.

    Raises:
        ConfigError: not a home, it has a successor, or the reason is not known.
    """
    rows = csmdb.repository
    with rows.atomic():
        who = rows.participant(participant)
        if who is None or rows.meter_of(participant) is None:
            raise ConfigError(f"{participant}: not a home, or it has a successor already")
        revoke(csmdb, participant, reason, actor)
        code = _add_code(csmdb, who, RE_ENROL_DAYS)
        rows.audit(csmdb.clock.now_ms(), actor, "re-enrol", "OK", reason, subject=participant)
    return code


def succession_code(csmdb: CsmDb, sender: str) -> str | Refused:
    """
    The code for a home that replaces its own EMS key.

    Returns:
        The one-time code; or UNKNOWN_SENDER, BANNED, NOT_ALLOWED (not a home).
    """
    rows = csmdb.repository
    with rows.atomic():
        who = rows.participant(sender)
        if who is None:
            return Refused(Refusal.UNKNOWN_SENDER, "enrol first")
        if who.banned:
            return Refused(Refusal.BANNED, who.banned)
        if rows.meter_of(sender) is None:
            return Refused(Refusal.NOT_ALLOWED, "a service is certified by the operator")
        code = _add_code(csmdb, who, ROTATION_DAYS)
        rows.audit(csmdb.clock.now_ms(), sender, SUCCESSION_CODE, "OK", "", subject=sender)
    return code


def _add_code(csmdb: CsmDb, who: Participant, days: int) -> str:
    code = make_code(csmdb.rng.bytes(10))
    claim = Claim(
        code_hash=hash_code(code),
        roles=who.roles,
        max_import_w=who.max_import_w,
        max_export_w=who.max_export_w,
        feeder=who.feeder,
        validator=who.validator,
        expires_ms=csmdb.clock.now_ms() + days * DAY_MS,
    )
    csmdb.repository.add_claim(claim)
    csmdb.repository.keys.expect_successor(claim.code_hash, who.id)
    return code
