"""What the CSM-DB keeps of the life of keys: TLS certificates, revocations, who succeeded whom."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from csmdb.storage import Storage, insert


@dataclass(frozen=True, slots=True)
class TlsRow:
    """A TLS certificate that was issued."""

    serial: str
    """Hexadecimal (`wire.revoked_keys.serial_text`)."""
    identity: str
    key_digest: str
    not_after_ms: int
    """Wall time."""


@dataclass(frozen=True, slots=True)
class RevokedKey:
    """An entry; an identity or a serial is named, or an address was that was forgotten."""

    number: int
    """From 1 on, without a gap."""
    identity: str
    serial: str
    reason: str
    """One of `csmdb.revoked_keys.REASONS`: a word, nothing of a person."""
    successor: str
    """Identity that takes the place of this one, or empty."""
    time_ms: int
    until_ms: int
    """When it would have ended by itself: market time for an identity, wall time for a serial."""


class KeyRows:
    """
    These tables. Writes happen inside the repository's `atomic`.

    Args:
        db: at the present schema
    """

    def __init__(self, db: Storage) -> None:
        self._db = db

    # --- TLS certificates -----------------------------------------------------------------------

    def add_tls(self, row: TlsRow) -> None:
        """Keep what was issued."""
        insert(self._db, "tls_certificates", asdict(row))

    def tls_of(self, identity: str) -> list[TlsRow]:
        """All TLS certificates of an identity."""
        sql = "SELECT * FROM tls_certificates WHERE identity = ? ORDER BY not_after_ms, serial"
        return [TlsRow(**row) for row in self._db.query(sql, [identity])]

    def is_key_revoked(self, key_digest: str) -> bool:
        """Was a certificate of this TLS key revoked?"""
        sql = (
            "SELECT 1 FROM tls_certificates t JOIN revoked_keys r ON r.serial = t.serial"
            " WHERE t.key_digest = ? LIMIT 1"
        )
        return self._has(sql, key_digest)

    # --- revocations ----------------------------------------------------------------------------

    def add_revocation(
        self,
        time_ms: int,
        until_ms: int,
        reason: str,
        *,
        identity: str = "",
        serial: str = "",
        successor: str = "",
    ) -> int:
        """Append an entry; gives its number."""
        number = self.newest() + 1
        row = RevokedKey(number, identity, serial, reason, successor, time_ms, until_ms)
        insert(self._db, "revoked_keys", asdict(row))
        return number

    def newest(self) -> int:
        """Number of the newest entry; 0: there is none."""
        row = next(iter(self._db.query("SELECT MAX(number) AS n FROM revoked_keys")))
        return int(row["n"] or 0)

    def is_revoked(self, identity: str) -> bool:
        """Is an identity revoked?"""
        return self._has("SELECT 1 FROM revoked_keys WHERE identity = ? LIMIT 1", identity)

    def is_serial_revoked(self, serial: str) -> bool:
        """Is a TLS certificate revoked?"""
        return self._has("SELECT 1 FROM revoked_keys WHERE serial = ? LIMIT 1", serial)

    def revoked_keys(self, after: int = 0, limit: int = 2**31) -> list[RevokedKey]:
        """Entries after a number."""
        sql = "SELECT * FROM revoked_keys WHERE number > ? ORDER BY number LIMIT ?"
        return [RevokedKey(**row) for row in self._db.query(sql, [after, limit])]

    # --- successions ----------------------------------------------------------------------------

    def expect_successor(self, code_hash: str, predecessor: str) -> None:
        """Whoever uses this code takes the place of somebody."""
        insert(self._db, "successions", {"code_hash": code_hash, "predecessor": predecessor})

    def predecessor_by(self, code_hash: str) -> str:
        """Whose place the holder of a code takes; empty: nobody's."""
        sql = "SELECT predecessor FROM successions WHERE code_hash = ?"
        row = next(iter(self._db.query(sql, [code_hash])), None)
        return str(row["predecessor"]) if row is not None else ""

    def successor_of(self, participant: str) -> str:
        """Who took somebody's place; empty: nobody."""
        sql = "SELECT successor FROM revoked_keys WHERE identity = ? AND successor <> ''"
        row = next(iter(self._db.query(sql, [participant])), None)
        return str(row["successor"]) if row is not None else ""

    def predecessors(self, participant: str) -> list[str]:
        """Whose place somebody took, the latest first."""
        found: list[str] = []
        sql = (
            "SELECT s.predecessor FROM successions s JOIN claims c ON c.code_hash = s.code_hash"
            " WHERE c.used_by = ?"
        )
        while row := next(iter(self._db.query(sql, [participant])), None):
            participant = str(row["predecessor"])
            found.append(participant)
        return found

    def hand_over(self, old: str, new: str) -> None:
        """Give a successor what its predecessor had: who it is, its bans, and its addresses."""
        self._db.execute("UPDATE persons SET participant = ? WHERE participant = ?", [new, old])
        self._db.execute(
            "UPDATE address_grants SET participant = ? WHERE participant = ?", [new, old]
        )
        self._db.execute("UPDATE revocations SET participant = ? WHERE participant = ?", [new, old])
        self._db.execute(
            "UPDATE bans SET id = CAST(? AS TEXT) || '/' || source, participant = ?"
            " WHERE participant = ?",
            [new, new, old],
        )

    def take_meter(self, old: str) -> None:
        """Take the meter from somebody who was succeeded."""
        self._db.execute("DELETE FROM meters WHERE participant = ?", [old])

    def facts_of(self, participant: str) -> dict[str, Any]:
        """What is kept of somebody here, for an export."""
        return {
            "tlsCertificates": [asdict(row) for row in self.tls_of(participant)],
            "revokedKeys": [
                asdict(row) for row in self.revoked_keys() if row.identity == participant
            ],
            "successions": self.predecessors(participant),
        }

    def _has(self, sql: str, value: str) -> bool:
        return next(iter(self._db.query(sql, [value])), None) is not None
