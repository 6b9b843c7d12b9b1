"""
aggregator.sqlite: readings as they were signed, receipts, evidence, books, the schedule, and where
we stand.

sqlite-utils for tables and migrations; plain SQL on the way of every reading. WAL with
synchronous=NORMAL: a reading lost in a power cut is sent again by its home (it keeps what was not
acknowledged), events are read again from the last height that was stored.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from aggregator.audit import Finding
from aggregator.core import Book
from aggregator.day_ahead import DayAhead
from wire.day_ahead import ScheduleAnswer
from wire.metering import Reading, digest

migrations = Migrations("aggregator")
MAX_EVIDENCE_PER_SUBJECT = 1_000
"""A liar must not fill the disk."""
_READING = msgspec.json.Decoder(Reading)


@migrations()
def first_tables(db: Database) -> None:
    """The tables of the first release."""
    db.create_table(
        "readings",
        {
            "meter": str,
            "seq": int,
            "slot": int,
            "digest": str,
            "document": str,
            "net_wh": int,
        },
        pk=("meter", "seq"),
    )
    db.table("readings").create_index(["meter", "slot"], unique=True)
    db.table("readings").create_index(["slot"])
    db.create_table(
        "receipts",
        {"address": str, "slot": int, "meter": str, "net_wh": int, "status": str},
        pk=("address", "slot"),
    )
    db.table("receipts").create_index(["meter", "slot"])
    db.table("receipts").create_index(["status"])
    db.create_table(
        "attestations",
        {
            "validator": str,
            "end_slot": int,
            "meter": str,
            "cpf_q16": int,
            "eligible": int,
            "status": str,
        },
        pk=("validator", "end_slot"),
    )
    db.table("attestations").create_index(["meter", "status"])
    db.create_table(
        "evidence",
        {
            "id": int,
            "time_ms": int,
            "kind": str,
            "subject": str,
            "detail": str,
            "document": str,
        },
        pk="id",
    )
    db.table("evidence").create_index(["kind", "subject", "detail"], unique=True)
    db.create_table("books", {"slot": int, "address": str, "book": str}, pk=("slot", "address"))
    db.create_table("schedule", {"slot": int, "net_wh": int}, pk="slot")
    db.create_table("auctions", {"auction": str, "event": str, "bought_wh": int}, pk="auction")
    db.create_table("pending", {"id": int, "home": str, "payload": bytes}, pk="id")
    db.create_table("meta", {"name": str, "value": str}, pk="name")


@migrations()
def grants_of_addresses(db: Database) -> None:
    """In which slots an address is in the market."""
    db.create_table("grants", {"address": str, "start_slot": int, "end_slot": int}, pk="address")


@migrations()
def schedules_of_homes_and_their_approval(db: Database) -> None:
    """`net_wh` is what is asked for; only what was approved counts. Homes' rows add up to it."""
    db.table("schedule").add_column("approved_wh", int)
    db.table("schedule").add_column("reason", str)
    db.create_table(
        "home_schedule", {"slot": int, "meter": str, "net_wh": int}, pk=("slot", "meter")
    )


class AggregatorStore:
    """What the aggregator remembers, beside its outbox."""

    def __init__(self, path: Path) -> None:
        connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        self.db = Database(connection, execute_plugins=False)
        migrations.apply(self.db)

    def close(self) -> None:
        """Release the file."""
        self.db.close()

    def atomic(self) -> AbstractContextManager[object]:
        """One transaction."""
        return self.db.atomic()

    # --- readings -------------------------------------------------------------------------------

    def reading(
        self, meter: str, *, seq: int | None = None, slot: int | None = None
    ) -> Reading | None:
        """A meter's reading by sequence number or by slot."""
        if seq is not None:
            row = self._one("SELECT document FROM readings WHERE meter = ? AND seq = ?", meter, seq)
        else:
            row = self._one(
                "SELECT document FROM readings WHERE meter = ? AND slot = ?", meter, slot
            )
        return _READING.decode(row["document"]) if row is not None else None

    def readings(self, meter: str, first_slot: int, last_slot: int) -> dict[int, Reading]:
        """A meter's readings by slot."""
        rows = self.db.query(
            "SELECT slot, document FROM readings WHERE meter = ? AND slot BETWEEN ? AND ?",
            [meter, first_slot, last_slot],
        )
        return {row["slot"]: _READING.decode(row["document"]) for row in rows}

    def add_reading(self, reading: Reading, document: str) -> None:
        """Keep a reading as it was signed."""
        self.db.execute(
            "INSERT INTO readings (meter, seq, slot, digest, document) VALUES (?, ?, ?, ?, ?)",
            [reading.meter, reading.seq, reading.slot, digest(reading), document],
        )

    def hold(self, home: str, payload: bytes, most: int) -> bool:
        """Keep a reading whose meter is not known yet; False when there are too many."""
        row = self._one("SELECT COUNT(*) AS n FROM pending")
        if row is not None and row["n"] >= most:
            return False
        self.db.execute("INSERT INTO pending (home, payload) VALUES (?, ?)", [home, payload])
        return True

    def held(self) -> list[tuple[int, str, bytes]]:
        """(id, home, payload) of held readings, oldest first."""
        rows = self.db.query("SELECT id, home, payload FROM pending ORDER BY id")
        return [(row["id"], row["home"], row["payload"]) for row in rows]

    def let_go(self, held: int) -> None:
        """Forget a held reading."""
        self.db.execute("DELETE FROM pending WHERE id = ?", [held])

    def set_net(self, meter: str, slot: int, net_wh: int) -> None:
        """Note the net energy of a slot, known once both its readings are there."""
        self.db.execute(
            "UPDATE readings SET net_wh = ? WHERE meter = ? AND slot = ?", [net_wh, meter, slot]
        )

    def home_history(
        self, first_slot: int, last_slot: int, per_day: int
    ) -> Iterator[tuple[str, int, int, int]]:
        """
        (meter, slot of the day, sum of net energy [Wh], days) of every meter that reported.

        Added up here, because it is a row for each home and slot otherwise.
        """
        return iter(
            self.db.execute(
                "SELECT meter, slot % ?, SUM(net_wh), COUNT(*) FROM readings"
                " WHERE slot BETWEEN ? AND ? AND net_wh IS NOT NULL GROUP BY 1, 2",
                [per_day, first_slot, last_slot],
            )
        )

    def measured(self, first_slot: int, last_slot: int, least: int) -> list[tuple[int, int]]:
        """
        (slot, net energy of the feeder [Wh]) of slots in which enough meters reported.

        A home whose reading is not there yet counts as its schedule had it: what nobody measured
        is no deviation.

        Args:
            least: how many meters are enough
        """
        rows = self.db.query(
            "SELECT r.slot, SUM(r.net_wh) AS net, COUNT(*) AS n,"
            " (SELECT COALESCE(SUM(h.net_wh), 0) FROM home_schedule h WHERE h.slot = r.slot"
            "  AND NOT EXISTS (SELECT 1 FROM readings o WHERE o.meter = h.meter"
            "  AND o.slot = h.slot AND o.net_wh IS NOT NULL)) AS rest"
            " FROM readings r WHERE r.slot BETWEEN ? AND ? AND r.net_wh IS NOT NULL"
            " GROUP BY r.slot ORDER BY r.slot",
            [first_slot, last_slot],
        )
        return [(row["slot"], row["net"] + row["rest"]) for row in rows if row["n"] >= least]

    # --- receipts and attestations --------------------------------------------------------------

    def add_receipt(self, address: str, slot: int, meter: str, net_wh: int) -> None:
        """Keep what a receipt said, to be compared with the registers."""
        self.db.execute(
            "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, 'open')",
            [address, slot, meter, net_wh],
        )

    def open_receipts(self, meter: str) -> list[dict[str, Any]]:
        """Receipts of a meter that are not compared yet."""
        sql = "SELECT * FROM receipts WHERE status = 'open' AND meter = ?"
        return list(self.db.query(sql, [meter]))

    def overdue_receipts(self, before_slot: int) -> list[dict[str, Any]]:
        """Receipts of slots before one that are not compared yet."""
        sql = "SELECT * FROM receipts WHERE status = 'open' AND slot < ?"
        return list(self.db.query(sql, [before_slot]))

    def close_receipt(self, address: str, slot: int, status: str) -> None:
        """Set what came of a receipt: ok, false or unproven."""
        self.db.execute(
            "UPDATE receipts SET status = ? WHERE address = ? AND slot = ?", [status, address, slot]
        )

    def add_grant(self, address: str, start_slot: int, end_slot: int) -> None:
        """Keep an address' slots; a renewed grant goes on where the one before began."""
        self.db.execute(
            "INSERT INTO grants VALUES (?, ?, ?) ON CONFLICT (address) DO UPDATE SET"
            " start_slot = MIN(start_slot, excluded.start_slot),"
            " end_slot = MAX(end_slot, excluded.end_slot)",
            [address, start_slot, end_slot],
        )

    def in_market(self, address: str, first_slot: int, last_slot: int) -> bool:
        """Was an address in the market in any of these slots?"""
        sql = "SELECT 1 FROM grants WHERE address = ? AND start_slot <= ? AND end_slot >= ?"
        return self._one(sql, address, last_slot, first_slot) is not None

    def unreceipted(self, first_slot: int, before_slot: int) -> list[dict[str, Any]]:
        """
        Slots with a net energy for which a meter confirmed nothing, and addresses in the market.

        Returns:
            `{meter, slot, net_wh, address}` for each meter and each address valid in the slot;
            the caller knows which address is of which meter.
        """
        return list(
            self.db.query(
                "SELECT r.meter, r.slot, r.net_wh, g.address FROM readings r JOIN grants g"
                " ON r.slot BETWEEN g.start_slot AND g.end_slot"
                " WHERE r.slot >= ? AND r.slot < ? AND r.net_wh IS NOT NULL AND NOT EXISTS"
                " (SELECT 1 FROM receipts c WHERE c.meter = r.meter AND c.slot = r.slot)"
                " ORDER BY r.slot",
                [first_slot, before_slot],
            )
        )

    def judged_before(self) -> int:
        """Slots before this one were looked through for missing receipts."""
        row = self._one("SELECT value FROM meta WHERE name = 'judged_before'")
        return int(row["value"]) if row is not None else 0

    def put_judged_before(self, slot: int) -> None:
        """Keep how far slots were looked through."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('judged_before', ?)", [str(slot)])

    def add_attestation(
        self, validator: str, end_slot: int, meter: str, q16: int, eligible: bool
    ) -> None:
        """Keep what an attestation said, to be compared with the registers."""
        self.db.execute(
            "INSERT OR IGNORE INTO attestations VALUES (?, ?, ?, ?, ?, 'open')",
            [validator, end_slot, meter, q16, int(eligible)],
        )

    def open_attestations(self, meter: str) -> list[dict[str, Any]]:
        """Attestations about a meter's home that are not compared yet."""
        sql = "SELECT * FROM attestations WHERE status = 'open' AND meter = ?"
        return list(self.db.query(sql, [meter]))

    def close_attestation(self, validator: str, end_slot: int, status: str) -> None:
        """Set what came of an attestation."""
        self.db.execute(
            "UPDATE attestations SET status = ? WHERE validator = ? AND end_slot = ?",
            [status, validator, end_slot],
        )

    def adopt(self, addresses: dict[str, str], validators: dict[str, str]) -> None:
        """Give receipts and attestations that came before their meter was known to it."""
        for row in list(self.db.query("SELECT DISTINCT address FROM receipts WHERE meter = ''")):
            self.db.execute(
                "UPDATE receipts SET meter = ? WHERE meter = '' AND address = ?",
                [addresses.get(row["address"], ""), row["address"]],
            )
        for row in list(
            self.db.query("SELECT DISTINCT validator FROM attestations WHERE meter = ''")
        ):
            self.db.execute(
                "UPDATE attestations SET meter = ? WHERE meter = '' AND validator = ?",
                [validators.get(row["validator"], ""), row["validator"]],
            )

    # --- evidence and books ---------------------------------------------------------------------

    def add_evidence(
        self, time_ms: int, subject: str, finding: Finding, document: str = ""
    ) -> bool:
        """Keep evidence; False when it is there already, or there is plenty about this subject."""
        row = self._one("SELECT COUNT(*) AS n FROM evidence WHERE subject = ?", subject)
        if row is not None and row["n"] >= MAX_EVIDENCE_PER_SUBJECT:
            return False
        cursor = self.db.execute(
            "INSERT OR IGNORE INTO evidence (time_ms, kind, subject, detail, document)"
            " VALUES (?, ?, ?, ?, ?)",
            [time_ms, finding.kind, subject, finding.detail, document],
        )
        return cursor.rowcount == 1

    def evidence(self) -> list[dict[str, Any]]:
        """All evidence, oldest first."""
        return list(self.db.query("SELECT * FROM evidence ORDER BY id"))

    def add_book(self, slot: int, address: str, entry: Book) -> None:
        """Keep the settlement of a slot (address empty) or an address' late receipt, once."""
        self.db.execute(
            "INSERT OR IGNORE INTO books VALUES (?, ?, ?)",
            [slot, address, json.dumps(msgspec.to_builtins(entry))],
        )

    def totals(self) -> dict[str, int]:
        """Sums over all books, and how many settled slots they cover."""
        sums: dict[str, int] = {"slots": 0}
        for row in self.db.query("SELECT address, book FROM books"):
            sums["slots"] += row["address"] == ""
            for name, value in json.loads(row["book"]).items():
                sums[name] = sums.get(name, 0) + value
        return sums

    # --- the schedule ---------------------------------------------------------------------------

    def put_schedule(self, first_slot: int, made: DayAhead, from_slot: int) -> int:
        """
        Keep a day's schedule, to be approved; a slot that has one keeps it.

        Args:
            first_slot: of the day
            from_slot: those before have passed

        Returns:
            For how many slots it is new.
        """
        fresh = 0
        for index, net_wh in enumerate(made.feeder):
            slot = first_slot + index
            if net_wh is None or slot < from_slot:
                continue
            cursor = self.db.execute(
                "INSERT OR IGNORE INTO schedule (slot, net_wh) VALUES (?, ?)", [slot, net_wh]
            )
            if cursor.rowcount != 1:
                continue
            fresh += 1
            self.db.conn.executemany(
                "INSERT INTO home_schedule VALUES (?, ?, ?)",
                [
                    (slot, meter, rows[index])
                    for meter, rows in made.homes.items()
                    if rows[index] is not None
                ],
            )
        return fresh

    def unapproved(self, from_slot: int, most: int) -> list[tuple[int, int]]:
        """(slot, net energy asked for [Wh]) of the next slots that nobody has approved."""
        rows = self.db.query(
            "SELECT slot, net_wh FROM schedule WHERE slot >= ? AND approved_wh IS NULL"
            " ORDER BY slot LIMIT ?",
            [from_slot, most],
        )
        return [(row["slot"], row["net_wh"]) for row in rows]

    def put_approval(self, answer: ScheduleAnswer) -> None:
        """Keep what the DSO approved, and why it is not what was asked."""
        reasons = {change.slot: change.reason for change in answer.changes}
        for slot, approved_wh in answer.slots:
            self.db.execute(
                "UPDATE schedule SET approved_wh = ?, reason = ? WHERE slot = ?",
                [approved_wh, reasons.get(slot, ""), slot],
            )

    def approved(self, slot: int) -> int | None:
        """Approved net energy of a slot [Wh]; None: nothing is expected."""
        row = self._one("SELECT approved_wh FROM schedule WHERE slot = ?", slot)
        return None if row is None else row["approved_wh"]

    def schedule(self, first_slot: int, last_slot: int) -> list[dict[str, Any]]:
        """`{slot, net_wh, approved_wh, reason}` of slots with a schedule."""
        return list(
            self.db.query(
                "SELECT slot, net_wh, approved_wh, COALESCE(reason, '') AS reason FROM schedule"
                " WHERE slot BETWEEN ? AND ? ORDER BY slot",
                [first_slot, last_slot],
            )
        )

    def home_schedule(self, slot: int) -> dict[str, int]:
        """What is expected of each home in a slot, by meter [Wh]."""
        rows = self.db.query("SELECT meter, net_wh FROM home_schedule WHERE slot = ?", [slot])
        return {row["meter"]: row["net_wh"] for row in rows}

    def last_scheduled(self) -> int | None:
        """The last slot with a schedule."""
        row = self._one("SELECT MAX(slot) AS slot FROM schedule")
        return None if row is None else row["slot"]

    # --- auctions and progress ------------------------------------------------------------------

    def put_auction(self, event: dict[str, Any]) -> None:
        """Keep an opened or cleared auction."""
        if event["event"] == "auction-opened":
            self.db.execute(
                "INSERT OR IGNORE INTO auctions VALUES (?, ?, -1)",
                [event["auction"], json.dumps(event, sort_keys=True)],
            )
        else:
            self.db.execute(
                "UPDATE auctions SET bought_wh = ? WHERE auction = ?",
                [event.get("boughtWh", 0), event["auction"]],
            )

    def auctions(self) -> list[tuple[dict[str, Any], int]]:
        """(opening event, energy bought [Wh] or −1 while open)."""
        rows = self.db.query("SELECT event, bought_wh FROM auctions")
        return [(json.loads(row["event"]), row["bought_wh"]) for row in rows]

    def heights(self) -> dict[str, int]:
        """Per contract, the height up to which events were handled."""
        row = self._one("SELECT value FROM meta WHERE name = 'heights'")
        return {k: int(v) for k, v in json.loads(row["value"]).items()} if row is not None else {}

    def put_heights(self, heights: dict[str, int]) -> None:
        """Keep where to go on after a restart."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('heights', ?)", [json.dumps(heights)])

    def rules(self) -> dict[str, Any]:
        """What was changed of the genesis' rules (`ledger.rulebook`); empty: nothing."""
        row = self._one("SELECT value FROM meta WHERE name = 'rules'")
        found: dict[str, Any] = json.loads(row["value"]) if row is not None else {}
        return found

    def put_rules(self, rules: Mapping[str, Any]) -> None:
        """Keep what was changed of the rules."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('rules', ?)", [json.dumps(rules)])

    def rounds(self) -> dict[int, int]:
        """Last round of the forward sessions that were cleared, by slot."""
        row = self._one("SELECT value FROM meta WHERE name = 'rounds'")
        found = json.loads(row["value"]) if row is not None else {}
        return {int(slot): int(number) for slot, number in found.items()}

    def put_rounds(self, rounds: Mapping[int, int]) -> None:
        """Keep which sessions were cleared."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('rounds', ?)", [json.dumps(rounds)])

    def validators(self) -> dict[str, Any]:
        """Who speaks for the ledger; empty: the founders."""
        row = self._one("SELECT value FROM meta WHERE name = 'validators'")
        found: dict[str, Any] = json.loads(row["value"]) if row is not None else {}
        return found

    def put_validators(self, validators: dict[str, Any]) -> None:
        """Keep who speaks for the ledger."""
        self.db.execute(
            "INSERT OR REPLACE INTO meta VALUES ('validators', ?)", [json.dumps(validators)]
        )

    def counts(self) -> dict[str, int]:
        """How much of everything there is."""
        sql = {
            "readings": "SELECT COUNT(*) AS n FROM readings",
            "meters": "SELECT COUNT(DISTINCT meter) AS n FROM readings",
            "receipts_ok": "SELECT COUNT(*) AS n FROM receipts WHERE status = 'ok'",
            "receipts_false": "SELECT COUNT(*) AS n FROM receipts WHERE status = 'false'",
            "receipts_unproven": "SELECT COUNT(*) AS n FROM receipts WHERE status = 'unproven'",
            "receipts_open": "SELECT COUNT(*) AS n FROM receipts WHERE status = 'open'",
            "attestations_ok": "SELECT COUNT(*) AS n FROM attestations WHERE status = 'ok'",
            "attestations_false": "SELECT COUNT(*) AS n FROM attestations WHERE status = 'false'",
            "evidence": "SELECT COUNT(*) AS n FROM evidence",
            "auctions": "SELECT COUNT(*) AS n FROM auctions",
        }
        found = {name: self._one(query) for name, query in sql.items()}
        return {name: int(row["n"]) if row is not None else 0 for name, row in found.items()}

    def _one(self, sql: str, *values: object) -> dict[str, Any] | None:
        return next(iter(self.db.query(sql, list(values))), None)
