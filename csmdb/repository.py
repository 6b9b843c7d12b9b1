"""The repository port on SQLite (sqlite-utils), and the hash-chained audit log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from csmdb.records import AddressRow, Claim, Participant
from csmdb.schema import open_database
from wire.certificates import AddressGrant, Certificate, Meter, ValidatorGrant, dump_text, parse
from wire.errors import ConfigError, HearthgridError
from wire.keys import from_text, id_of
from wire.metering import ZERO_DIGEST


class AuditBrokenError(HearthgridError):
    """A row of the audit log was changed, removed or put in."""


class SqliteRepository:
    """All of the CSM-DB in one file."""

    def __init__(self, path: Path) -> None:
        self.db: Database = open_database(path)

    def close(self) -> None:
        """Release the file."""
        self.db.close()

    def atomic(self) -> AbstractContextManager[object]:
        """One transaction."""
        return self.db.atomic()

    # --- claims and participants ----------------------------------------------------------------

    def claim(self, code_hash: str) -> Claim | None:
        """The claim of a hashed code."""
        row = self._one("SELECT * FROM claims WHERE code_hash = ?", code_hash)
        if row is None:
            return None
        return Claim(
            code_hash=row["code_hash"],
            roles=tuple(json.loads(row["roles"])),
            max_import_w=row["max_import_w"],
            max_export_w=row["max_export_w"],
            feeder=row["feeder"],
            validator=row["validator"],
            expires_ms=row["expires_ms"],
            used_by=row["used_by"] or "",
        )

    def add_claim(self, claim: Claim) -> None:
        """Remember a claim."""
        self._insert(
            "claims",
            code_hash=claim.code_hash,
            roles=json.dumps(claim.roles),
            max_import_w=claim.max_import_w,
            max_export_w=claim.max_export_w,
            feeder=claim.feeder,
            validator=claim.validator,
            expires_ms=claim.expires_ms,
        )

    def use_claim(self, code_hash: str, participant: str, time_ms: int) -> None:
        """Mark a claim as used."""
        self.db.execute(
            "UPDATE claims SET used_by = ?, used_ms = ? WHERE code_hash = ?",
            [participant, time_ms, code_hash],
        )

    def participant(self, participant: str) -> Participant | None:
        """Somebody by identity."""
        row = self._one("SELECT * FROM participants WHERE id = ?", participant)
        if row is None:
            return None
        return Participant(**{**row, "roles": tuple(json.loads(row["roles"]))})

    def put_participant(self, participant: Participant) -> None:
        """Add or change somebody."""
        row = {name: getattr(participant, name) for name in Participant.__slots__}
        self.db.table("participants").upsert(
            {**row, "roles": json.dumps(participant.roles)}, pk="id"
        )

    def set_ban(self, participant: str, reason: str) -> None:
        """
        Ban somebody, or lift it with an empty reason.

        Raises:
            ConfigError: nobody has this identity.
        """
        cursor = self.db.execute(
            "UPDATE participants SET banned = ? WHERE id = ?", [reason, participant]
        )
        if cursor.rowcount != 1:
            raise ConfigError(f"{participant}: nobody has this identity")

    def meter_of(self, participant: str) -> Meter | None:
        """The meter of a home."""
        row = self._one("SELECT * FROM meters WHERE participant = ?", participant)
        if row is None:
            return None
        return Meter(**{name: row[name] for name in Meter.__struct_fields__})

    def meter_owner(self, meter: Meter) -> str:
        """Who has this meter key, or this vendor, model and serial; empty: nobody."""
        row = self._one(
            "SELECT participant FROM meters WHERE meter_key = ?"
            " OR (vendor = ? AND model = ? AND serial = ? AND serial <> '')",
            meter.meter_key,
            meter.vendor,
            meter.model,
            meter.serial,
        )
        return str(row["participant"]) if row is not None else ""

    def add_meter(self, participant: str, meter: Meter) -> None:
        """Bind a meter to a home."""
        fields = {name: getattr(meter, name) for name in Meter.__struct_fields__}
        meter_id = id_of(from_text(meter.meter_key))
        self._insert("meters", meter_id=meter_id, participant=participant, **fields)

    # --- what was signed ------------------------------------------------------------------------

    def next_serial_no(self) -> int:
        """Number of the next certificate."""
        row = self._one("SELECT COALESCE(MAX(serial_no), 0) + 1 AS n FROM certificates")
        assert row is not None
        return int(row["n"])

    def certificate_of(self, participant: str) -> Certificate | None:
        """The newest certificate of somebody."""
        row = self._one(
            "SELECT document FROM certificates WHERE subject = ? ORDER BY serial_no DESC LIMIT 1",
            participant,
        )
        return parse(Certificate, row["document"]) if row is not None else None

    def add_certificate(self, certificate: Certificate) -> None:
        """Keep what was signed."""
        self._insert(
            "certificates",
            serial_no=certificate.serial_no,
            subject=certificate.subject,
            not_after_ms=certificate.not_after_ms,
            document=dump_text(certificate),
        )

    def address_grant(self, address: str) -> tuple[str, AddressGrant] | None:
        """Who holds an address, and its grant."""
        row = self._one("SELECT * FROM address_grants WHERE address = ?", address)
        return (row["participant"], parse(AddressGrant, row["document"])) if row else None

    def add_address_grant(self, participant: str, grant: AddressGrant) -> None:
        """Keep what was signed; a renewed grant takes the place of the one before."""
        self.db.execute("DELETE FROM address_grants WHERE address = ?", [grant.address])
        self._insert(
            "address_grants",
            address=grant.address,
            participant=participant,
            meter_key=grant.meter_key,
            start_slot=grant.start_slot,
            end_slot=grant.end_slot,
            document=dump_text(grant),
        )

    def live_addresses(self, participant: str, start_slot: int, end_slot: int) -> int:
        """How many grants of somebody touch these slots."""
        row = self._one(
            "SELECT COUNT(*) AS n FROM address_grants"
            " WHERE participant = ? AND start_slot <= ? AND end_slot >= ?",
            participant,
            end_slot,
            start_slot,
        )
        assert row is not None
        return int(row["n"])

    def validator_grant(self, validator: str) -> tuple[str, ValidatorGrant] | None:
        """The newest grant for a validator, and who holds it."""
        row = self._one(
            "SELECT * FROM validator_grants WHERE validator = ? ORDER BY id DESC LIMIT 1",
            validator,
        )
        return (row["participant"], parse(ValidatorGrant, row["document"])) if row else None

    def add_validator_grant(self, participant: str, grant: ValidatorGrant) -> None:
        """Keep what was signed."""
        self._insert(
            "validator_grants",
            validator=grant.validator,
            participant=participant,
            meter_key=grant.meter_key,
            start_slot=grant.start_slot,
            end_slot=grant.end_slot,
            document=dump_text(grant),
        )

    def address_rows(self, after: tuple[str, str], from_slot: int, limit: int) -> list[AddressRow]:
        """Meters with addresses valid from `from_slot` on, ordered by (participant, address)."""
        rows = self.db.query(
            "SELECT m.participant, m.meter_key, COALESCE(g.address, '') AS address, p.validator"
            " FROM meters m JOIN participants p ON p.id = m.participant"
            " LEFT JOIN address_grants g"
            "   ON g.participant = m.participant AND g.end_slot >= :from_slot"
            " WHERE (m.participant, COALESCE(g.address, '')) > (:participant, :address)"
            " ORDER BY 1, 3 LIMIT :limit",
            {
                "from_slot": from_slot,
                "participant": after[0],
                "address": after[1],
                "limit": limit,
            },
        )
        return [AddressRow(**row) for row in rows]

    # --- the audit log --------------------------------------------------------------------------

    def audit(self, time_ms: int, actor: str, action: str, outcome: str, detail: str) -> None:
        """Append to the audit log."""
        last = self._one("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1")
        row = {
            "seq": last["seq"] + 1 if last else 1,
            "time_ms": time_ms,
            "actor": actor,
            "action": action,
            "outcome": outcome,
            "detail": detail,
            "previous": last["digest"] if last else ZERO_DIGEST,
        }
        self._insert("audit", **row, digest=_digest(row))

    def check_audit(self) -> int:
        """
        Follow the chain of the audit log.

        Returns:
            How many rows it has.

        Raises:
            AuditBrokenError: the first row that does not fit.
        """
        previous, seq = ZERO_DIGEST, 0
        for row in self.audit_rows():
            digest = row.pop("digest")
            seq += 1
            if row["seq"] != seq or row["previous"] != previous or _digest(row) != digest:
                raise AuditBrokenError(f"audit row {row['seq']} does not follow row {seq - 1}")
            previous = digest
        return seq

    def audit_rows(self) -> Iterator[dict[str, Any]]:
        """Every row of the audit log, oldest first."""
        yield from self.db.query("SELECT * FROM audit ORDER BY seq")

    # --- for people -----------------------------------------------------------------------------

    def list_participants(self) -> list[dict[str, Any]]:
        """One line per participant and service."""
        return [
            {**row, "roles": json.loads(row["roles"])}
            for row in self.db.query(
                "SELECT p.id, p.name, p.roles, p.feeder, p.validator, p.banned,"
                " COALESCE(m.serial, '') AS meter_serial,"
                " (SELECT COUNT(*) FROM address_grants g WHERE g.participant = p.id) AS addresses"
                " FROM participants p LEFT JOIN meters m ON m.participant = p.id"
                " ORDER BY p.enrolled_ms, p.id"
            )
        ]

    def list_claims(self) -> list[dict[str, Any]]:
        """Claims and whether they were used (never the codes: they are not kept)."""
        return [
            {
                **row,
                "roles": json.loads(row["roles"]),
                "used_by": row["used_by"] or "",
                "used_ms": row["used_ms"] or 0,
            }
            for row in self.db.query("SELECT * FROM claims ORDER BY expires_ms, code_hash")
        ]

    # --- helpers --------------------------------------------------------------------------------

    def _one(self, sql: str, *values: object) -> dict[str, Any] | None:
        return next(iter(self.db.query(sql, list(values))), None)

    def _insert(self, table: str, **row: object) -> None:
        self.db.table(table).insert(row)


def _digest(row: dict[str, Any]) -> str:
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
