"""
Tables of the CSM-DB and their migrations, as SQL that every database behind the port takes.

    claims             one-time codes, hashed; what their holder may become
    participants       who was enrolled, or which service was certified
    persons            name, contact, address and meter's place of a participant, when told
    meters             the certified smart meter of a home (TMI section IV: type, serial, vendor, …)
    certificates       everything signed for a participant, newest last
    address_grants     who asked for which address: only here does an address lead to a home
    validator_grants   which meter speaks for which validator
    bans               why somebody is banned, by each who says so: an operator, an advisory
    advisories         the knowledge base: every advisory at its newest revision
    product_aliases    what operators know of plates' and advisories' names
    revocations        what was signed for the ledger when a ban came or went
    tls_certificates   X.509 serials and digests of the TLS keys they are for
    revoked_keys       which identity or serial is good no more, since when, and who succeeds it
    successions        whose place the holder of a claim takes
    tokens             operators' tokens for the HTTP API, hashed
    audit              what was decided, append-only, each row holding the digest of the one before
    audit_personal     what of a row of `audit` names a person, until it is erased
    audit_head         the last row of `audit`, sealed

What is personal can be erased on request (`csmdb.privacy`); `audit` keeps identities (hashes of
keys), names of operations and commitments, no names of people, serial numbers or registers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Migration:
    """A step to the present schema; it is never changed once released."""

    name: str
    statements: tuple[str, ...]
    sqlite: tuple[str, ...] = ()
    """Statements in SQLite's own words, after the common ones."""


APPEND_ONLY = "the audit log is append-only"

FIRST_TABLES = Migration(
    "first_tables",
    (
        """CREATE TABLE claims (
            code_hash TEXT PRIMARY KEY, roles TEXT NOT NULL, max_import_w BIGINT NOT NULL,
            max_export_w BIGINT NOT NULL, feeder TEXT NOT NULL, validator TEXT NOT NULL,
            expires_ms BIGINT NOT NULL, used_by TEXT, used_ms BIGINT)""",
        """CREATE TABLE participants (
            id TEXT PRIMARY KEY, key TEXT NOT NULL, box_key TEXT NOT NULL, roles TEXT NOT NULL,
            feeder TEXT NOT NULL, max_import_w BIGINT, max_export_w BIGINT,
            validator TEXT NOT NULL, name TEXT NOT NULL, enrolled_ms BIGINT,
            banned TEXT NOT NULL)""",
        """CREATE TABLE meters (
            meter_id TEXT PRIMARY KEY, meter_key TEXT,
            participant TEXT REFERENCES participants (id), type TEXT, serial TEXT, vendor TEXT,
            model TEXT, firmware TEXT)""",
        "CREATE UNIQUE INDEX idx_meters_vendor_model_serial ON meters (vendor, model, serial)",
        "CREATE UNIQUE INDEX idx_meters_participant ON meters (participant)",
        """CREATE TABLE certificates (
            serial_no BIGINT PRIMARY KEY, subject TEXT, document TEXT, not_after_ms BIGINT)""",
        "CREATE INDEX idx_certificates_subject ON certificates (subject)",
        """CREATE TABLE address_grants (
            address TEXT PRIMARY KEY, participant TEXT REFERENCES participants (id),
            meter_key TEXT, start_slot BIGINT, end_slot BIGINT, document TEXT)""",
        "CREATE INDEX idx_address_grants_participant_address"
        " ON address_grants (participant, address)",
        """CREATE TABLE validator_grants (
            id BIGINT PRIMARY KEY, validator TEXT,
            participant TEXT REFERENCES participants (id), meter_key TEXT, start_slot BIGINT,
            end_slot BIGINT, document TEXT)""",
        "CREATE INDEX idx_validator_grants_validator ON validator_grants (validator)",
        """CREATE TABLE audit (
            seq BIGINT PRIMARY KEY, time_ms BIGINT, actor TEXT, action TEXT, outcome TEXT,
            detail TEXT, previous TEXT, digest TEXT)""",
    ),
    sqlite=tuple(
        f"CREATE TRIGGER audit_no_{event.lower()} BEFORE {event} ON audit"
        f" BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
        for event in ("UPDATE", "DELETE")
    ),
)

METERS_WITHOUT_SERIAL = Migration(
    "meters_without_serial",
    (
        # two meters that tell no serial are two: many do not
        "DROP INDEX idx_meters_vendor_model_serial",
        "CREATE UNIQUE INDEX idx_meters_serial ON meters (vendor, model, serial)"
        " WHERE serial <> ''",
    ),
)

AUDIT_OF_SUBJECTS = Migration(
    "audit_of_subjects",
    (
        "ALTER TABLE audit ADD COLUMN subject TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE audit ADD COLUMN commitment TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX idx_audit_subject ON audit (subject)",
        """CREATE TABLE audit_personal (
            seq BIGINT PRIMARY KEY, salt TEXT NOT NULL, document TEXT NOT NULL)""",
        """CREATE TABLE audit_head (
            id BIGINT PRIMARY KEY CHECK (id = 1), seq BIGINT NOT NULL, digest TEXT NOT NULL,
            seal TEXT NOT NULL)""",
    ),
)

PERSONS = Migration(
    "persons",
    (
        """CREATE TABLE persons (
            participant TEXT PRIMARY KEY REFERENCES participants (id), name TEXT NOT NULL,
            contact TEXT NOT NULL, address TEXT NOT NULL, meter_location TEXT NOT NULL)""",
    ),
)

TOKENS = Migration(
    "tokens",
    (
        """CREATE TABLE tokens (
            id TEXT PRIMARY KEY, role TEXT NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL,
            created_ms BIGINT NOT NULL, expires_ms BIGINT NOT NULL)""",
    ),
)

ADVISORIES = Migration(
    "advisories",
    (
        """CREATE TABLE bans (
            id TEXT PRIMARY KEY, participant TEXT NOT NULL REFERENCES participants (id),
            source TEXT NOT NULL, reason TEXT NOT NULL, since_ms BIGINT NOT NULL)""",
        "INSERT INTO bans SELECT id || '/operator', id, 'operator', banned, 0 FROM participants"
        " WHERE banned <> ''",
        """CREATE TABLE advisories (
            name TEXT PRIMARY KEY, id TEXT NOT NULL, version TEXT NOT NULL,
            released_ms BIGINT NOT NULL, digest TEXT NOT NULL, title TEXT NOT NULL,
            publisher TEXT NOT NULL, status TEXT NOT NULL, imported_ms BIGINT NOT NULL,
            document TEXT NOT NULL)""",
        "CREATE INDEX idx_advisories_digest ON advisories (digest)",
        """CREATE TABLE product_aliases (
            id TEXT PRIMARY KEY, plate_vendor TEXT NOT NULL, plate_model TEXT NOT NULL,
            vendor TEXT NOT NULL, model TEXT NOT NULL, same BIGINT NOT NULL)""",
        """CREATE TABLE revocations (
            number BIGINT PRIMARY KEY, participant TEXT NOT NULL REFERENCES participants (id),
            address TEXT NOT NULL, banned BIGINT NOT NULL, end_slot BIGINT NOT NULL,
            document TEXT NOT NULL)""",
        "CREATE INDEX idx_revocations_address ON revocations (address, number)",
    ),
)

LIFE_OF_KEYS = Migration(
    "life_of_keys",
    (
        """CREATE TABLE tls_certificates (
            serial TEXT PRIMARY KEY, identity TEXT NOT NULL, key_digest TEXT NOT NULL,
            not_after_ms BIGINT NOT NULL)""",
        "CREATE INDEX idx_tls_certificates_identity ON tls_certificates (identity)",
        "CREATE INDEX idx_tls_certificates_key_digest ON tls_certificates (key_digest)",
        """CREATE TABLE revoked_keys (
            number BIGINT PRIMARY KEY, identity TEXT NOT NULL, serial TEXT NOT NULL,
            reason TEXT NOT NULL, successor TEXT NOT NULL, time_ms BIGINT NOT NULL,
            until_ms BIGINT NOT NULL)""",
        "CREATE INDEX idx_revoked_keys_identity ON revoked_keys (identity)",
        "CREATE INDEX idx_revoked_keys_serial ON revoked_keys (serial)",
        """CREATE TABLE successions (
            code_hash TEXT PRIMARY KEY REFERENCES claims (code_hash),
            predecessor TEXT NOT NULL)""",
    ),
)

MIGRATIONS = (
    FIRST_TABLES, METERS_WITHOUT_SERIAL, AUDIT_OF_SUBJECTS, PERSONS, TOKENS, ADVISORIES,
    LIFE_OF_KEYS,
)  # fmt: skip

TABLES = {
    "claims": "code_hash",
    "participants": "id",
    "persons": "participant",
    "meters": "meter_id",
    "certificates": "serial_no",
    "address_grants": "address",
    "validator_grants": "id",
    "bans": "id",
    "advisories": "name",
    "product_aliases": "id",
    "revocations": "number",
    "tokens": "id",
    "tls_certificates": "serial",
    "revoked_keys": "number",
    "successions": "code_hash",
    "audit": "seq",
    "audit_personal": "seq",
    "audit_head": "id",
}
"""Every table and its key, those that others refer to first."""
