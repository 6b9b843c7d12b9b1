"""
What the CSM-DB knows of people: kept, told to whoever it is about, erased on request.

Erased are name, contact, address, the meter's place, its serial, make and firmware (also in the
certificates, which are signed anew without them), the name in lists, a ban's reason, what the
audit log's rows said beside the chain, and address grants that the DSO's audit needs no more. What
the market needs stays, and names nobody by itself: the identity, keys, roles, limits, feeder, a
ban, later address grants with their meter keys. The ledger never
had more than those grants, so a chain verifies as before.

A meter without its serial is known by its key alone; who lets it in again under another key looks
at the meter.

References:
    Regulation (EU) 2016/679, articles 15 (access), 17 (erasure), 20 (portability).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from csmdb.audit import ERASE
from csmdb.core import OPERATOR
from csmdb.limit_classes import Crowd, crowds
from csmdb.records import Participant, Person
from csmdb.setup import CsmDb
from wire.certificates import Certificate, Meter, dump, seal
from wire.errors import ConfigError

MAX_CHARS = 200
PAGE = 500
BANNED = "banned; the reason was erased"


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure took."""

    certificates: int
    """Signed anew without the meter's make and serial."""
    log_rows: int
    """Rows of the audit log whose personal part is gone."""
    grants: int
    """Address grants of long ago, which the DSO's audit needs no more."""


def set_person(csmdb: CsmDb, participant: str, person: Person, actor: str = OPERATOR) -> None:
    """
    Keep who a participant is; takes the place of what was known.

    Raises:
        ConfigError: nobody has this identity, or a text is too long.
    """
    for name, text in asdict(person).items():
        if len(text) > MAX_CHARS or not text.isprintable():
            raise ConfigError(f"{name}: expected one line of at most {MAX_CHARS} characters")
    rows, now_ms = csmdb.repository, csmdb.clock.now_ms()
    with rows.atomic():
        _known(csmdb, participant)
        rows.put_person(participant, person)
        told = {name: text for name, text in asdict(person).items() if text}
        rows.audit(
            now_ms, actor, "set-person", "OK", "", subject=participant, personal=told
        )  # fmt: skip


def erase(csmdb: CsmDb, participant: str, actor: str = OPERATOR) -> Erased:
    """
    Erase what is personal of a participant, and the room it took in the file.

    Raises:
        ConfigError: nobody has this identity.
        StorageDownError: all is erased, but the file could not be written anew; do it again.
    """
    rows, now_ms = csmdb.repository, csmdb.clock.now_ms()
    with rows.atomic():
        _known(csmdb, participant)
        # whose place it took was the same household
        household = (participant, *rows.keys.predecessors(participant))
        found = [_erase_one(csmdb, one) for one in household]
        for one in household:  # the log is whole if each says that it was erased
            rows.audit(now_ms, actor, ERASE, "OK", "", subject=one)
    rows.db.scrub()
    return Erased(
        sum(one.certificates for one in found),
        sum(one.log_rows for one in found),
        sum(one.grants for one in found),
    )


def _erase_one(csmdb: CsmDb, participant: str) -> Erased:
    rows = csmdb.repository
    who = _known(csmdb, participant)
    rows.put_participant(replace(who, name="", banned=BANNED if who.banned else ""))
    rows.forget_ban(participant, BANNED)
    rows.forget_person(participant)
    rows.forget_meter(participant)
    certificates = [one for one in rows.certificates_of(participant) if one.meter]
    for certificate in certificates:
        rows.replace_certificate(seal(_bare(certificate), csmdb.issuing_key, csmdb.market))
    grants = rows.forget_address_grants(participant, csmdb.desk.oldest_slot(csmdb.clock.now_ms()))
    return Erased(len(certificates), rows.forget_audit(participant), grants)


def export(csmdb: CsmDb, participant: str, actor: str = OPERATOR) -> dict[str, Any]:
    """
    Everything that is kept about a participant; the export itself is the last row of its log.

    Raises:
        ConfigError: nobody has this identity.
    """
    rows = csmdb.repository
    with rows.atomic():
        who = _known(csmdb, participant)
        rows.audit(csmdb.clock.now_ms(), actor, "export", "OK", "", subject=participant)
        meter = rows.meter_of(participant)
        return {
            "participant": asdict(who),
            "person": asdict(rows.person(participant)),
            "meter": msgspec.to_builtins(meter) if meter is not None else {},
            "bans": rows.bans_of(participant),
            "claims": [one for one in rows.list_claims() if one["used_by"] == participant],
            "certificates": [dump(one) for one in rows.certificates_of(participant)],
            "addressGrants": [dump(one) for one in rows.address_grants_of(participant)],
            "validatorGrants": [dump(one) for one in rows.validator_grants_of(participant)],
            "revocations": rows.revocations_of(participant),
            **rows.keys.facts_of(participant),
            "audit": list(rows.audit_rows(participant)),
        }


def crowds_of(csmdb: CsmDb) -> list[Crowd]:
    """How many homes share what their grants say, the smallest crowds first."""
    return crowds(_homes(csmdb), csmdb.privacy.limit_classes_w)


def _homes(csmdb: CsmDb) -> Iterator[Participant]:
    after = ""
    while page := csmdb.repository.participant_page(after, PAGE):
        yield from page
        after = page[-1].id


def _known(csmdb: CsmDb, participant: str) -> Participant:
    who = csmdb.repository.participant(participant)
    if who is None:
        raise ConfigError(f"{participant}: nobody has this identity; see `csmdb list`")
    return who


def _bare(certificate: Certificate) -> Certificate:
    """The certificate with the meter's key alone, not yet signed."""
    meters = [
        Meter(type="", serial="", vendor="", model="", firmware="", meter_key=meter.meter_key)
        for meter in certificate.meter
    ]
    return msgspec.structs.replace(certificate, meter=meters, signature="")
