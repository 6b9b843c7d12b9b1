"""The knowledge base, bans and revocations in the database: statements, and rows as values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from csmdb.csaf import Advisory
from csmdb.product_names import Alias
from csmdb.storage import Storage, insert
from wire.certificates import Meter, Revocation, dump_text, parse

PAGE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept of an advisory beside its text."""

    name: str
    id: str
    version: str
    released_ms: int
    digest: str
    title: str
    publisher: str
    status: str
    imported_ms: int


@dataclass(frozen=True, slots=True)
class MeterRow:
    """A certified meter, and why its home is banned by advisories; empty: it is not."""

    participant: str
    meter: Meter
    reason: str


@dataclass(frozen=True, slots=True)
class KnowledgeRows:
    """
    Everything of `csmdb.advisories` in one database.

    Args:
        db: at the present schema
    """

    db: Storage

    # --- advisories -----------------------------------------------------------------------------

    def known(self, name: str) -> Known | None:
        """An advisory by its name (`Advisory.name`)."""
        return next(iter(self._advisories("WHERE name = ?", [name])), None)

    def advisories(self) -> list[Known]:
        """All of them, by id."""
        return list(self._advisories("ORDER BY id, name", []))

    def _advisories(self, then: str, values: list[object]) -> Iterator[Known]:
        columns = ", ".join(Known.__slots__)
        for row in self.db.query(f"SELECT {columns} FROM advisories {then}", values):  # noqa: S608
            yield Known(**row)

    def digests(self) -> list[str]:
        """Digests of all of them."""
        return [row["digest"] for row in self.db.query("SELECT digest FROM advisories")]

    def document(self, digest: str) -> str:
        """An advisory as it was read."""
        sql = "SELECT document FROM advisories WHERE digest = ?"
        return str(next(iter(self.db.query(sql, [digest])))["document"])

    def put_advisory(self, advisory: Advisory, now_ms: int) -> None:
        """Keep an advisory in place of its earlier revision."""
        self.drop_advisory(advisory.name)
        row = {
            "name": advisory.name, "id": advisory.id, "version": advisory.version_text,
            "released_ms": advisory.released_ms, "digest": advisory.digest,
            "title": advisory.title, "publisher": advisory.publisher, "status": advisory.status,
            "imported_ms": now_ms, "document": advisory.text,
        }  # fmt: skip
        insert(self.db, "advisories", row)

    def drop_advisory(self, name: str) -> None:
        """Forget an advisory (`Advisory.name`)."""
        self.db.execute("DELETE FROM advisories WHERE name = ?", [name])

    # --- what an operator knows of names --------------------------------------------------------

    def aliases(self) -> list[Alias]:
        """What operators said of plates and products."""
        rows = self.db.query(
            "SELECT plate_vendor, plate_model, vendor, model, same FROM product_aliases ORDER BY id"
        )
        return [Alias(**{**row, "same": bool(row["same"])}) for row in rows]

    def put_alias(self, alias: Alias) -> None:
        """Keep what an operator said; it takes the place of what was said of the same names."""
        self.drop_alias(alias)
        row = {name: getattr(alias, name) for name in Alias.__slots__}
        insert(self.db, "product_aliases", {**row, "id": _alias_id(alias), "same": int(alias.same)})

    def drop_alias(self, alias: Alias) -> bool:
        """Forget it; False: nothing was said of these names."""
        done = self.db.execute("DELETE FROM product_aliases WHERE id = ?", [_alias_id(alias)])
        return done == 1

    # --- meters and bans ------------------------------------------------------------------------

    def meters(self) -> list[MeterRow]:
        """All certified meters."""
        fields = Meter.__struct_fields__
        columns = ", ".join(f"m.{name}" for name in fields)
        sql = (
            f"SELECT m.participant, {columns}, COALESCE(b.reason, '') AS reason"  # noqa: S608
            " FROM meters m LEFT JOIN bans b"
            " ON b.participant = m.participant AND b.source = 'advisory'"
            " ORDER BY m.participant"
        )
        return [
            MeterRow(
                row["participant"], Meter(**{name: row[name] for name in fields}), row["reason"]
            )
            for row in self.db.query(sql)
        ]

    def ban_reason(self, participant: str, source: str) -> str:
        """Why a source bans somebody; empty: it does not."""
        sql = "SELECT reason FROM bans WHERE participant = ? AND source = ?"
        row = next(iter(self.db.query(sql, [participant, source])), None)
        return str(row["reason"]) if row is not None else ""

    def set_make(self, participant: str, vendor: str, model: str, firmware: str) -> None:
        """Change what is known of somebody's meter."""
        self.db.execute(
            "UPDATE meters SET vendor = ?, model = ?, firmware = ? WHERE participant = ?",
            [vendor, model, firmware, participant],
        )

    # --- revocations ----------------------------------------------------------------------------

    def last_number(self) -> int:
        """Number of the newest revocation; 0: there is none."""
        row = next(iter(self.db.query("SELECT MAX(number) AS number FROM revocations")))
        return int(row["number"] or 0)

    def add_revocation(self, participant: str, revocation: Revocation) -> None:
        """Keep what was signed."""
        row = {
            "number": revocation.number, "participant": participant,
            "address": revocation.address, "banned": int(revocation.banned),
            "end_slot": revocation.end_slot, "document": dump_text(revocation),
        }  # fmt: skip
        insert(self.db, "revocations", row)

    def is_revoked(self, address: str) -> bool:
        """Is an address banned by its newest revocation?"""
        sql = "SELECT banned FROM revocations WHERE address = ? ORDER BY number DESC LIMIT 1"
        return any(row["banned"] for row in self.db.query(sql, [address]))

    def revocations_after(self, number: int, from_slot: int) -> list[Revocation]:
        """
        A page of revocations, of each address the newest, the lowest number first.

        Args:
            number: those after it
            from_slot: only of addresses whose grant holds then or later
        """
        sql = (
            "SELECT r.document FROM revocations r WHERE r.number > ? AND r.end_slot >= ?"
            " AND NOT EXISTS (SELECT 1 FROM revocations l"
            " WHERE l.address = r.address AND l.number > r.number)"
            " ORDER BY r.number LIMIT ?"
        )
        rows = self.db.query(sql, [number, from_slot, PAGE_ROWS])
        return [parse(Revocation, row["document"]) for row in rows]


def _alias_id(alias: Alias) -> str:
    return hashlib.sha256("\n".join(alias.key).encode()).hexdigest()
