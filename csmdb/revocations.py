"""
Revocations: what the CSM-DB's bans become on the ledger (`ledger.contracts.revocations`).

Whenever somebody is banned, or let in again, a revocation is signed for every address of theirs
whose grant has not ended; past addresses are never named. So it is for an address whose key is
lost (`csmdb.revoked_keys`), which never comes back. The DSO asks for them
(`list-revocations`) and submits them. They name an address, a reason's code and digests, nobody:
but who is banned under several addresses at once shows that they are one home's, until these grants
end.

Numbers only go up, also after a restored backup: a number is never below the time it was made at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csmdb.knowledge_rows import KnowledgeRows
from csmdb.records import Refused
from csmdb.requests import read_count
from wire.certificates import AddressGrant, Revocation, dump, seal
from wire.errors import Refusal

if TYPE_CHECKING:
    from csmdb.setup import CsmDb

ADVISORY, OPERATOR, KEY = "ADVISORY", "OPERATOR", "KEY"


def follow(csmdb: CsmDb, participant: str, reason: str, advisory: str = "") -> list[Revocation]:
    """
    Sign what has become true of somebody's addresses; inside a transaction.

    Args:
        reason: ADVISORY, OPERATOR or KEY
        advisory: digest of the one that names the meter, hex, or empty

    Returns:
        What was signed; nothing for addresses of which it was said before.
    """
    rows, kept = csmdb.repository, KnowledgeRows(csmdb.repository.db)
    who = rows.participant(participant)
    assert who is not None
    banned = bool(who.banned)
    csmdb.knowledge.refresh(kept)
    slot = csmdb.grid.slot_at(csmdb.clock.now_ms())
    live = [grant for grant in rows.address_grants_of(participant) if grant.end_slot >= slot]
    made = []
    for grant in live:
        out = banned or rows.keys.is_revoked(grant.address)
        if kept.is_revoked(grant.address) != out:
            made.append(_sign(csmdb, kept, grant, out, reason, advisory))
            kept.add_revocation(participant, made[-1])
    return made


def list_since(csmdb: CsmDb, sender: str, parameters: dict[str, Any]) -> dict[str, Any] | Refused:
    """
    Revocations after a number, for the DSO to submit: one page of them.

    Returns:
        `{"revocations": […], "next": number}`, none when there are no more; or UNKNOWN_SENDER,
        BANNED, NOT_ALLOWED (not the DSO).

    Raises:
        MalformedError: the parameters name no number.
    """
    after = read_count(parameters.get("after"), "after")
    who = csmdb.repository.participant(sender)
    if who is None:
        return Refused(Refusal.UNKNOWN_SENDER, "no certificate")
    if who.banned:
        return Refused(Refusal.BANNED, who.banned)
    if "dso" not in who.roles:
        return Refused(Refusal.NOT_ALLOWED, "for the DSO only")
    slot = csmdb.grid.slot_at(csmdb.clock.now_ms())
    found = KnowledgeRows(csmdb.repository.db).revocations_after(after, slot)
    return {
        "revocations": [dump(one) for one in found],
        "next": found[-1].number if found else after,
    }


def _sign(
    csmdb: CsmDb, kept: KnowledgeRows, grant: AddressGrant, banned: bool, reason: str, advisory: str
) -> Revocation:
    said = Revocation(
        number=max(kept.last_number() + 1, csmdb.clock.now_ms()),
        address=grant.address,
        banned=banned,
        reason=reason,
        advisory=advisory,
        knowledge=csmdb.knowledge.digest,
        end_slot=grant.end_slot,
    )
    return seal(said, csmdb.issuing_key, csmdb.market)
