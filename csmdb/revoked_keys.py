"""
Revocation: keys that were lost, stolen or replaced are good no more, at brokers and elsewhere.

    a participant   its identity, its TLS certificates, and the addresses that are live: whoever has
                    its device has their keys too
    an address      that address and its TLS certificates
    TLS only        the certificates; the identity makes a new key and gets another

Each is an entry with the next number. Brokers fetch the signed list (`wire.revoked_keys`) and, for
Mosquitto, the X.509 one; live addresses are banned on the ledger too (`csmdb.revocations`). A
vulnerable meter is not a revoked key: see `csmdb ban`.
"""

from __future__ import annotations

from csmdb import revocations
from csmdb.core import OPERATOR
from csmdb.key_rows import KeyRows, RevokedKey
from csmdb.records import Refused
from csmdb.setup import CsmDb
from wire.errors import ConfigError, MalformedError, Refusal
from wire.revoked_keys import RevocationList, seal_list
from wire.slots import SlotGrid

REASONS = ("lost", "stolen", "rotated", "retired")
GRANT_GRACE_SLOTS = 200
"""So long after its last slot the broker may still take a grant, with something to spare."""
PAGE_ROWS = 200


def revoke(csmdb: CsmDb, identity: str, reason: str, actor: str = OPERATOR) -> int:
    """
    Revoke a participant with its live addresses, or one address. Again changes nothing.

    Returns:
        The number of the newest entry.

    Raises:
        ConfigError: nobody has this identity, or the reason is not one of `REASONS`.
    """
    check_reason(reason)
    rows, keys, now_ms = csmdb.repository, csmdb.repository.keys, csmdb.clock.now_ms()
    with rows.atomic():
        who, granted = rows.participant(identity), rows.address_grant(identity)
        if identity == csmdb.id:
            raise ConfigError("the CSM-DB's own key signs the list; see docs/how-to/broker.md")
        if who is None and granted is None:
            raise ConfigError(f"{identity}: nobody has this identity; see `csmdb list`")
        if who is not None:
            _revoke_one(csmdb, identity, reason, _certificate_ends_ms(csmdb, identity))
            for grant in rows.address_grants_of(identity):
                if grant.end_slot + GRANT_GRACE_SLOTS >= csmdb.grid.slot_at(now_ms):
                    until_ms = address_ends_ms(csmdb.grid, grant.end_slot)
                    _revoke_one(csmdb, grant.address, reason, until_ms)
        elif granted is not None:
            until_ms = address_ends_ms(csmdb.grid, granted[1].end_slot)
            _revoke_one(csmdb, identity, reason, until_ms)
        holder = identity if granted is None else granted[0]
        revocations.follow(csmdb, holder, revocations.KEY)
        rows.audit(now_ms, actor, "revoke", "OK", reason, subject=identity)
        return keys.newest()


def revoke_tls(csmdb: CsmDb, identity: str, reason: str, actor: str = OPERATOR) -> int:
    """
    Revoke the TLS certificates of an identity, which goes on under another TLS key.

    Returns:
        The number of the newest entry.

    Raises:
        ConfigError: it has none, or the reason is not one of `REASONS`.
    """
    check_reason(reason)
    rows = csmdb.repository
    with rows.atomic():
        if not rows.keys.tls_of(identity):
            raise ConfigError(f"{identity}: no TLS certificate was issued to it")
        revoke_certificates(rows.keys, identity, reason, csmdb.clock.wall_ms())
        rows.audit(csmdb.clock.now_ms(), actor, "revoke-tls", "OK", reason, subject=identity)
        return rows.keys.newest()


def revoke_certificates(
    keys: KeyRows, identity: str, reason: str, wall_ms: int, *, but_key: str = ""
) -> None:
    """Revoke the TLS certificates of an identity, but for those of one key."""
    for row in keys.tls_of(identity):
        if row.key_digest != but_key and not keys.is_serial_revoked(row.serial):
            keys.add_revocation(wall_ms, row.not_after_ms, reason, serial=row.serial)


def revocation_list(csmdb: CsmDb) -> RevocationList:
    """The signed list, as of now."""
    in_force = _in_force(csmdb)
    unsigned = RevocationList(
        number=csmdb.repository.keys.newest(),
        time_ms=csmdb.clock.wall_ms(),
        identities=sorted({one.identity for one in in_force if one.identity}),
        serials=sorted({one.serial for one in in_force if one.serial}),
    )
    return seal_list(unsigned, csmdb.issuing_key, csmdb.market)


def revoked_serials(csmdb: CsmDb) -> tuple[int, list[int]]:
    """Number of the newest entry, and the X.509 serial numbers that are revoked."""
    serials = sorted({int(one.serial, 16) for one in _in_force(csmdb) if one.serial})
    return csmdb.repository.keys.newest(), serials


def read_page(csmdb: CsmDb, sender: str, after: int) -> dict[str, object] | Refused:
    """
    Entries after a number, for the DSO: one page of them.

    Returns:
        `{"keys": [{number, identity, reason, successor}], "number": newest}`, without those
        that name a TLS certificate; or NOT_ALLOWED.

    Raises:
        MalformedError: not a number.
    """
    if type(after) is not int or after < 0:
        raise MalformedError("expected a number", field="after")
    who = csmdb.repository.participant(sender)
    if who is None or "dso" not in who.roles:
        return Refused(Refusal.NOT_ALLOWED, "for the DSO only")
    page = csmdb.repository.keys.revoked_keys(after, PAGE_ROWS)
    return {
        "keys": [
            {
                "number": one.number,
                "identity": one.identity,
                "reason": one.reason,
                "successor": one.successor,
            }
            for one in page
            if one.identity
        ],
        "number": page[-1].number if page else after,
    }


def check_reason(reason: str) -> None:
    """Raise `ConfigError` unless we know this reason."""
    if reason not in REASONS:
        raise ConfigError(f"reason: expected one of {', '.join(REASONS)}, got {reason!r}")


def address_ends_ms(grid: SlotGrid, end_slot: int) -> int:
    """When no broker takes a grant any more (market time)."""
    return grid.end_ms(end_slot + GRANT_GRACE_SLOTS)


def _revoke_one(csmdb: CsmDb, identity: str, reason: str, until_ms: int) -> None:
    keys = csmdb.repository.keys
    if not keys.is_revoked(identity):
        keys.add_revocation(csmdb.clock.now_ms(), until_ms, reason, identity=identity)
    revoke_certificates(keys, identity, reason, csmdb.clock.wall_ms())


def _certificate_ends_ms(csmdb: CsmDb, identity: str) -> int:
    return max(
        (one.not_after_ms for one in csmdb.repository.certificates_of(identity)),
        default=csmdb.clock.now_ms(),
    )


def _in_force(csmdb: CsmDb) -> list[RevokedKey]:
    """Entries that what they revoke has not outlived."""
    now_ms, wall_ms = csmdb.clock.now_ms(), csmdb.clock.wall_ms()
    return [
        one
        for one in csmdb.repository.keys.revoked_keys()
        if one.until_ms > (now_ms if one.identity else wall_ms)
    ]
