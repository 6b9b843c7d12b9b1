"""
Tables of the CSM-DB and their migrations.

    claims             one-time codes, hashed; what their holder may become
    participants       who was enrolled, or which service was certified
    meters             the certified smart meter of a home (TMI section IV: type, serial, vendor, …)
    certificates       everything signed for a participant, newest last
    address_grants     who asked for which address: only here does an address lead to a home
    validator_grants   which meter speaks for which validator
    audit              what was decided, append-only, each row holding the digest of the one before

A participant's rows can be erased on request; `audit` keeps identities (hashes of keys) and names
of operations, no names of people, serial numbers or registers.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("csmdb")


@migrations()
def first_tables(db: Database) -> None:
    """The tables of the first release."""
    db.create_table(
        "claims",
        {
            "code_hash": str,
            "roles": str,
            "max_import_w": int,
            "max_export_w": int,
            "feeder": str,
            "validator": str,
            "expires_ms": int,
            "used_by": str,
            "used_ms": int,
        },
        pk="code_hash",
        not_null={"roles", "max_import_w", "max_export_w", "feeder", "validator", "expires_ms"},
    )
    db.create_table(
        "participants",
        {
            "id": str,
            "key": str,
            "box_key": str,
            "roles": str,
            "feeder": str,
            "max_import_w": int,
            "max_export_w": int,
            "validator": str,
            "name": str,
            "enrolled_ms": int,
            "banned": str,
        },
        pk="id",
        not_null={"key", "box_key", "roles", "feeder", "validator", "name", "banned"},
    )
    db.create_table(
        "meters",
        {
            "meter_id": str,
            "meter_key": str,
            "participant": str,
            "type": str,
            "serial": str,
            "vendor": str,
            "model": str,
            "firmware": str,
        },
        pk="meter_id",
        foreign_keys=[("participant", "participants", "id")],
    )
    db.table("meters").create_index(["vendor", "model", "serial"], unique=True)
    db.table("meters").create_index(["participant"], unique=True)
    db.create_table(
        "certificates",
        {"serial_no": int, "subject": str, "document": str, "not_after_ms": int},
        pk="serial_no",
    )
    db.table("certificates").create_index(["subject"])
    db.create_table(
        "address_grants",
        {
            "address": str,
            "participant": str,
            "meter_key": str,
            "start_slot": int,
            "end_slot": int,
            "document": str,
        },
        pk="address",
        foreign_keys=[("participant", "participants", "id")],
    )
    db.table("address_grants").create_index(["participant", "address"])
    db.create_table(
        "validator_grants",
        {
            "id": int,
            "validator": str,
            "participant": str,
            "meter_key": str,
            "start_slot": int,
            "end_slot": int,
            "document": str,
        },
        pk="id",
        foreign_keys=[("participant", "participants", "id")],
    )
    db.table("validator_grants").create_index(["validator"])
    db.create_table(
        "audit",
        {
            "seq": int,
            "time_ms": int,
            "actor": str,
            "action": str,
            "outcome": str,
            "detail": str,
            "previous": str,
            "digest": str,
        },
        pk="seq",
    )
    for event in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER audit_no_{event.lower()} BEFORE {event} ON audit"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


@migrations()
def meters_without_serial(db: Database) -> None:
    """Two meters that tell no serial are two: many do not."""
    columns = "vendor, model, serial"
    db.execute("DROP INDEX idx_meters_vendor_model_serial")
    db.execute(f"CREATE UNIQUE INDEX idx_meters_serial ON meters ({columns}) WHERE serial <> ''")


def open_database(path: Path) -> Database:
    """
    Open (or make) the database and bring it to the present schema.

    WAL with synchronous=FULL: a certificate that was handed out must survive a power cut.
    """
    connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    db = Database(connection, execute_plugins=False)
    migrations.apply(db)
    return db
