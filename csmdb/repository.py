"""The repository port on a database: statements, and rows turned into values."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from csmdb import audit
from csmdb.audit import AuditBrokenError, AuditRow, Head, Personal
from csmdb.key_rows import KeyRows
from csmdb.records import AddressRow, Claim, Participant, Person, Token
from csmdb.schema import AUDIT_OF_SUBJECTS
from csmdb.storage import Storage, insert
from wire.certificates import AddressGrant, Certificate, Meter, ValidatorGrant, dump_text, parse
from wire.errors import ConfigError
from wire.keys import SigningKey, from_text, id_of


class SqlRepository:
    """
    All of the CSM-DB in one database.

    Args:
        db: at the present schema
        issuing_key: what seals the audit log's head is derived from it
    """

    def __init__(self, db: Storage, issuing_key: SigningKey) -> None:
        self.db = db
        self.keys = KeyRows(db)
        self._audit_key = issuing_key.derive("csmdb/audit").seed
        if AUDIT_OF_SUBJECTS.name in db.applied:
            self._seal_first_release()

    def close(self) -> None:
        """Release the database."""
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
        row["roles"] = json.dumps(participant.roles)
        changes = ", ".join(f"{name} = excluded.{name}" for name in row if name != "id")
        self._insert("participants", f"ON CONFLICT (id) DO UPDATE SET {changes}", **row)

    def set_ban(
        self, participant: str, reason: str, source: str = "operator", time_ms: int = 0
    ) -> None:
        """
        Ban somebody, or lift it with an empty reason; what another source says stays.

        Args:
            source: who says so; an operator's reason is shown before others
            time_ms: since when

        Raises:
            ConfigError: nobody has this identity.
        """
        if self.participant(participant) is None:
            raise ConfigError(f"{participant}: nobody has this identity")
        row_id = f"{participant}/{source}"
        self.db.execute("DELETE FROM bans WHERE id = ?", [row_id])
        if reason:
            self._insert("bans", id=row_id, participant=participant, source=source, reason=reason,
                         since_ms=time_ms)  # fmt: skip
        said = self._one(
            "SELECT reason FROM bans WHERE participant = ? ORDER BY source DESC LIMIT 1",
            participant,
        )
        self.db.execute(
            "UPDATE participants SET banned = ? WHERE id = ?",
            [said["reason"] if said is not None else "", participant],
        )

    def bans_of(self, participant: str) -> list[dict[str, Any]]:
        """Why somebody is banned, by source."""
        sql = "SELECT source, reason, since_ms FROM bans WHERE participant = ? ORDER BY source"
        return list(self.db.query(sql, [participant]))

    def revocations_of(self, participant: str) -> list[dict[str, Any]]:
        """What was signed for the ledger about somebody's addresses, the oldest first."""
        sql = "SELECT document FROM revocations WHERE participant = ? ORDER BY number"
        return [json.loads(row["document"]) for row in self.db.query(sql, [participant])]

    def forget_ban(self, participant: str, told: str) -> None:
        """Put something in the place of why somebody is banned: it tells of person or meter."""
        self.db.execute("UPDATE bans SET reason = ? WHERE participant = ?", [told, participant])

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

    def set_firmware(self, participant: str, firmware: str) -> None:
        """The version that a home's meter runs."""
        self.db.execute(
            "UPDATE meters SET firmware = ? WHERE participant = ?", [firmware, participant]
        )

    # --- persons --------------------------------------------------------------------------------

    def person(self, participant: str) -> Person:
        """Who somebody is, as far as it was told."""
        row = self._one(
            "SELECT name, contact, address, meter_location FROM persons WHERE participant = ?",
            participant,
        )
        return Person(**row) if row is not None else Person()

    def put_person(self, participant: str, person: Person) -> None:
        """Set who somebody is."""
        self.forget_person(participant)
        self._insert("persons", participant=participant, **asdict(person))

    def forget_person(self, participant: str) -> None:
        """Take out who somebody is."""
        self.db.execute("DELETE FROM persons WHERE participant = ?", [participant])

    def forget_meter(self, participant: str) -> None:
        """Take out all of somebody's meter but its key."""
        self.db.execute(
            "UPDATE meters SET type = '', serial = '', vendor = '', model = '', firmware = ''"
            " WHERE participant = ?",
            [participant],
        )

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

    def certificates_of(self, participant: str) -> list[Certificate]:
        """All certificates of somebody, the oldest first."""
        sql = "SELECT document FROM certificates WHERE subject = ? ORDER BY serial_no"
        return [parse(Certificate, row["document"]) for row in self.db.query(sql, [participant])]

    def replace_certificate(self, certificate: Certificate) -> None:
        """Keep another document under the same number."""
        self.db.execute(
            "UPDATE certificates SET document = ? WHERE serial_no = ?",
            [dump_text(certificate), certificate.serial_no],
        )

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

    def address_grants_of(self, participant: str) -> list[AddressGrant]:
        """All address grants of somebody."""
        sql = "SELECT document FROM address_grants WHERE participant = ? ORDER BY address"
        return [parse(AddressGrant, row["document"]) for row in self.db.query(sql, [participant])]

    def forget_address_grants(self, participant: str, before_slot: int) -> int:
        """
        Take out somebody's grants that ended before a slot, and what else names their addresses.

        Returns:
            How many grants it were.
        """
        those, values = "participant = ? AND end_slot < ?", [participant, before_slot]
        self.db.execute(f"DELETE FROM revocations WHERE {those}", values)  # noqa: S608 - constant
        # what was revoked with a device stands there in a row
        self.db.execute(
            "UPDATE revoked_keys SET identity = '' WHERE identity IN"  # noqa: S608 - constant
            f" (SELECT address FROM address_grants WHERE {those})",
            values,
        )
        sql = f"DELETE FROM address_grants WHERE {those}"  # noqa: S608 - constant
        return self.db.execute(sql, values)

    def validator_grants_of(self, participant: str) -> list[ValidatorGrant]:
        """All validator grants of somebody, the oldest first."""
        sql = "SELECT document FROM validator_grants WHERE participant = ? ORDER BY id"
        return [parse(ValidatorGrant, row["document"]) for row in self.db.query(sql, [participant])]

    def address_slots_of(self, participant: str, from_slot: int) -> dict[str, tuple[int, int]]:
        """First and last slots of somebody's grants that end in `from_slot` or later, by address;
        without revoked ones."""
        sql = (
            "SELECT address, start_slot, end_slot FROM address_grants"
            " WHERE participant = ? AND end_slot >= ? AND NOT EXISTS"
            " (SELECT 1 FROM revoked_keys WHERE identity = address_grants.address)"
        )
        rows = self.db.query(sql, [participant, from_slot])
        return {row["address"]: (int(row["start_slot"]), int(row["end_slot"])) for row in rows}

    def validator_grant(self, validator: str) -> tuple[str, ValidatorGrant] | None:
        """The newest grant for a validator, and who holds it."""
        row = self._one(
            "SELECT * FROM validator_grants WHERE validator = ? ORDER BY id DESC LIMIT 1",
            validator,
        )
        return (row["participant"], parse(ValidatorGrant, row["document"])) if row else None

    def add_validator_grant(self, participant: str, grant: ValidatorGrant) -> None:
        """Keep what was signed."""
        last = self._one("SELECT COALESCE(MAX(id), 0) AS id FROM validator_grants")
        assert last is not None
        self._insert(
            "validator_grants",
            id=last["id"] + 1,
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
            "   ON g.participant = m.participant AND g.end_slot >= ?"
            " WHERE (m.participant, COALESCE(g.address, '')) > (?, ?)"
            " ORDER BY 1, 3 LIMIT ?",
            [from_slot, *after, limit],
        )
        return [AddressRow(**row) for row in rows]

    # --- the audit log --------------------------------------------------------------------------

    def audit(
        self,
        time_ms: int,
        actor: str,
        action: str,
        outcome: str,
        detail: str,
        *,
        subject: str = "",
        personal: dict[str, str] | None = None,
    ) -> None:
        """Append to the audit log; what is personal goes beside the chain."""
        beside = None
        if personal:
            salt = secrets.token_hex(audit.SALT_BYTES)
            beside = Personal(salt, json.dumps(personal, sort_keys=True, ensure_ascii=False))
        row = audit.follow(
            self._audit_head(), time_ms=time_ms, actor=actor, action=action, outcome=outcome,
            detail=detail, subject=subject, commitment=beside.commitment if beside else "",
        )  # fmt: skip
        self._insert("audit", **asdict(row))
        if beside is not None:
            self._insert("audit_personal", seq=row.seq, **asdict(beside))
        self._put_head(row.seq, row.digest)

    def check_audit(self, expect: str = "") -> Head:
        """
        Follow the chain of the audit log to its sealed head.

        Args:
            expect: `SEQ:DIGEST` of a row that must be there, as an earlier check gave it

        Returns:
            The head.

        Raises:
            AuditBrokenError: what does not fit, from the oldest row on.
        """
        with self.db.snapshot():
            head = self._audit_head()
            if head is None:
                raise AuditBrokenError("the log has no sealed end")
            personal = {
                row.pop("seq"): Personal(**row)
                for row in self.db.query("SELECT * FROM audit_personal")
            }
            rows = (AuditRow(**row) for row in self.db.query("SELECT * FROM audit ORDER BY seq"))
            audit.check(rows, head, personal, self._audit_key)
            if expect and expect not in (
                f"{row['seq']}:{row['digest']}"
                for row in self.db.query("SELECT seq, digest FROM audit")
            ):
                raise AuditBrokenError(f"row {expect[:80]} is not in the log")
        return head

    def audit_rows(self, subject: str = "") -> Iterator[dict[str, Any]]:
        """
        Rows of the audit log, oldest first, with what is personal while it is there.

        Args:
            subject: only what is about it
        """
        return self._audit_rows("? = '' OR a.subject = ?", [subject, subject], 2**53)

    def audit_page(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Rows of the audit log from the one after `after` on, as `audit_rows` gives them."""
        return list(self._audit_rows("a.seq > ?", [after], limit))

    def _audit_rows(self, where: str, values: list[object], limit: int) -> Iterator[dict[str, Any]]:
        sql = (
            "SELECT a.*, COALESCE(p.document, '{}') AS personal"  # noqa: S608  (our own words)
            " FROM audit a LEFT JOIN audit_personal p ON p.seq = a.seq"
            f" WHERE {where} ORDER BY a.seq LIMIT ?"
        )
        for row in self.db.query(sql, [*values, limit]):
            yield {**row, "personal": json.loads(row["personal"])}

    def forget_audit(self, subject: str) -> int:
        """Take out what is personal of the log's rows about somebody; gives how many."""
        return self.db.execute(
            "DELETE FROM audit_personal WHERE seq IN (SELECT seq FROM audit WHERE subject = ?)",
            [subject],
        )

    def _audit_head(self) -> Head | None:
        row = self._one("SELECT seq, digest, seal FROM audit_head")
        return Head(**row) if row is not None else None

    def _put_head(self, seq: int, digest: str) -> None:
        self._insert(
            "audit_head",
            "ON CONFLICT (id) DO UPDATE SET"
            " seq = excluded.seq, digest = excluded.digest, seal = excluded.seal",
            id=1,
            **asdict(audit.make_head(self._audit_key, seq, digest)),
        )

    def _seal_first_release(self) -> None:
        """Once: the log of a file that had no sealed head ends where it ends."""
        last = self._one("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1")
        if last is not None:
            with self.db.atomic():
                self._put_head(last["seq"], last["digest"])

    # --- operators' tokens ----------------------------------------------------------------------

    def add_token(self, token: Token) -> None:
        """Keep a token's hash."""
        self._insert("tokens", **asdict(token))

    def token(self, token_id: str) -> Token | None:
        """A token by its id, ended or not."""
        row = self._one("SELECT * FROM tokens WHERE id = ?", token_id)
        return Token(**row) if row is not None else None

    def end_token(self, token_id: str, time_ms: int) -> bool:
        """End a token; False when there is none."""
        sql = "UPDATE tokens SET expires_ms = ? WHERE id = ?"
        return self.db.execute(sql, [time_ms, token_id]) == 1

    def list_tokens(self) -> list[dict[str, Any]]:
        """Tokens, without their hashes."""
        return list(
            self.db.query(
                "SELECT id, role, name, created_ms, expires_ms FROM tokens ORDER BY created_ms, id"
            )
        )

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

    def participant_page(self, after: str, limit: int) -> list[Participant]:
        """Participants and services by id, from the one after `after` on."""
        rows = self.db.query(
            "SELECT * FROM participants WHERE id > ? ORDER BY id LIMIT ?", [after, limit]
        )
        return [Participant(**{**row, "roles": tuple(json.loads(row["roles"]))}) for row in rows]

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

    def _insert(self, table: str, then: str = "", /, **row: object) -> None:
        insert(self.db, table, row, then)
