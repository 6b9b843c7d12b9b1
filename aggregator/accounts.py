"""
accounts.sqlite: the DSO's private accounts (ADR 0005).

    accounts      what a participant has with the DSO, off the chain
    addresses     under which addresses it trades: the one place beside the CSM-DB that knows
    withdrawals   what was asked, and what became of it
    parts         the operations of a withdrawal on the ledger
    energy        energy withdrawn (and returned) by participant and feeder
    deposits      what came back from the ledger, each event once; below zero: a debt taken over
    debts         what addresses owe on the ledger now (`aggregator.bills`)
    payments      what participants paid the DSO, or got from it, beside the ledger
    schedules     what an aggregator asked to be approved for its feeder, and what was

Money leaves an account when the withdrawal is decided, before anything is sent; a part that the
ledger refuses is booked back. So the sum of all accounts and of what is on the ledger through them
changes by payments only. An account may fall below zero when an address ends in debt: that is the
participant's bill (ADR 0013). synchronous=FULL: an answer that was given survives a power cut.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from aggregator.grid_limits import Approved
from market.assets import EnergyAsset, Holding, Kind, exchange, subtract
from wire.day_ahead import Row
from wire.withdrawal import DONE, SENT, Withdrawal

FAILED = "failed"

migrations = Migrations("accounts")


@migrations()
def first_tables(db: Database) -> None:
    """The tables of the first release."""
    db.create_table("accounts", {"participant": str, "balance_uc": int}, pk="participant")
    db.create_table("addresses", {"address": str, "participant": str}, pk="address")
    db.create_table("registered", {"address": str}, pk="address")
    db.create_table(
        "withdrawals",
        {"id": int, "participant": str, "name": str, "address": str, "request": str},
        pk="id",
    )
    db.table("withdrawals").create_index(["participant", "name"], unique=True)
    db.create_table(
        "parts",
        {
            "withdrawal": int, "number": int, "status": str, "reason": str, "kind": str,
            "amount": int, "start_slot": int, "end_slot": int,
        },
        pk=("withdrawal", "number"),
    )  # fmt: skip
    db.create_table(
        "energy",
        {
            "id": int, "participant": str, "feeder": str, "sign": int, "kind": str,
            "energy_wh": int, "start_slot": int, "end_slot": int,
        },
        pk="id",
    )  # fmt: skip
    db.table("energy").create_index(["feeder", "end_slot"])
    db.table("energy").create_index(["participant", "end_slot"])
    db.create_table(
        "deposits",
        {
            "height": int, "number": int, "address": str, "kind": str, "amount": int,
            "start_slot": int, "end_slot": int, "credited": int,
        },
        pk=("height", "number"),
    )  # fmt: skip
    db.table("deposits").create_index(["address", "credited"])


@migrations()
def approved_schedules(db: Database) -> None:
    """The DSO's own record of what it approved; `reason` is empty where that is what was asked."""
    db.create_table(
        "schedules",
        {"aggregator": str, "slot": int, "asked_wh": int, "approved_wh": int, "reason": str},
        pk=("aggregator", "slot"),
    )


@migrations()
def bills(db: Database) -> None:
    """What addresses owe, and what was paid."""
    db.create_table("debts", {"address": str, "owed_uc": int}, pk="address")
    db.create_table(
        "payments",
        {"reference": str, "participant": str, "amount_uc": int, "time_ms": int},
        pk="reference",
    )


@dataclass(frozen=True, slots=True)
class State:
    """What became of a withdrawal."""

    reference: str
    asked: Withdrawal
    status: str
    """"sent", "done" or "failed"."""
    reason: str


class Accounts:
    """The DSO's private books. Writes happen inside `atomic`."""

    def __init__(self, path: Path | str, opening_uc: int = 0) -> None:
        self._opening_uc = opening_uc
        connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        self.db = Database(connection, execute_plugins=False)
        migrations.apply(self.db)

    def close(self) -> None:
        """Release the file."""
        self.db.close()

    def atomic(self) -> AbstractContextManager[object]:
        """One transaction."""
        return self.db.atomic()

    # --- accounts and addresses -----------------------------------------------------------------

    def balance_uc(self, participant: str) -> int:
        """What an account holds [µ¤]; a new one holds the opening amount."""
        row = self._one("SELECT balance_uc FROM accounts WHERE participant = ?", participant)
        return self._opening_uc if row is None else int(row["balance_uc"])

    def credit(self, participant: str, amount_uc: int) -> None:
        """Add to an account, or take from it; below zero it is a bill."""
        balance_uc = self.balance_uc(participant) + amount_uc
        self.db.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?)", [participant, balance_uc])

    def move(self, old: str, new: str) -> None:
        """
        Give a participant's account to who took its place; again changes nothing.

        Who has a new key gets no second opening amount.
        """
        self.credit(new, self.balance_uc(old) - self._opening_uc)
        self.db.execute("DELETE FROM accounts WHERE participant = ?", [old])
        for table in ("addresses", "withdrawals", "energy"):
            # a withdrawal whose name the new one used too stays, and ends, under the old one
            self.db.execute(
                f"UPDATE OR IGNORE {table} SET participant = ? WHERE participant = ?",  # noqa: S608
                [new, old],
            )

    def register(self, address: str) -> None:
        """Note that an address is known on the ledger."""
        self.db.execute("INSERT OR IGNORE INTO registered VALUES (?)", [address])

    def is_registered(self, address: str) -> bool:
        """Is an address known on the ledger?"""
        return self._one("SELECT 1 FROM registered WHERE address = ?", address) is not None

    def bind(self, address: str, participant: str) -> None:
        """Note whose an address is; what was deposited under it before is credited now."""
        self.db.execute("INSERT OR IGNORE INTO addresses VALUES (?, ?)", [address, participant])
        sql = "SELECT * FROM deposits WHERE address = ? AND credited = 0"
        for row in list(self.db.query(sql, [address])):
            self._credit_deposit(row)

    # --- withdrawals ----------------------------------------------------------------------------

    def withdraw(self, participant: str, feeder: str, asked: Withdrawal) -> State:
        """Book a withdrawal that was decided; it was not known before."""
        request = msgspec.json.encode(asked).decode()
        cursor = self.db.execute(
            "INSERT INTO withdrawals (participant, name, address, request) VALUES (?, ?, ?, ?)",
            [participant, asked.withdrawal, asked.address, request],
        )
        number = cursor.lastrowid
        parts: list[tuple[str, int, int, int]] = [
            (one.kind, one.energy_wh, one.start_slot, one.end_slot) for one in asked.assets
        ]
        if asked.amount_uc:
            parts.append(("money", asked.amount_uc, 0, 0))
            self.credit(participant, -asked.amount_uc)
        for index, part in enumerate(parts):
            self.db.execute(
                "INSERT INTO parts VALUES (?, ?, ?, '', ?, ?, ?, ?)", [number, index, SENT, *part]
            )
            if part[0] != "money":
                self._add_energy(participant, feeder, 1, part)
        self.bind(asked.address, participant)
        return State(str(number), asked, SENT, "")

    def withdrawal(self, participant: str, name: str) -> State | None:
        """A withdrawal by the participant's name for it."""
        sql = "SELECT id, request FROM withdrawals WHERE participant = ? AND name = ?"
        row = self._one(sql, participant, name)
        return None if row is None else self._state(row)

    def unfinished(self) -> list[State]:
        """Withdrawals of which a part may not have been sent."""
        rows = self.db.query(
            "SELECT id, request FROM withdrawals WHERE id IN"
            " (SELECT withdrawal FROM parts WHERE status = ?) ORDER BY id",
            [SENT],
        )
        return [self._state(row) for row in rows]

    def finish(self, reference: str, number: int, code: str) -> None:
        """A part is final on the ledger; one that was refused is booked back, once."""
        part = self._one(
            "SELECT p.*, w.participant FROM parts p JOIN withdrawals w ON w.id = p.withdrawal"
            " WHERE p.withdrawal = ? AND p.number = ? AND p.status = ?",
            int(reference), number, SENT,
        )  # fmt: skip
        if part is None:
            return
        status, reason = (DONE, "") if code == "OK" else (FAILED, code)
        self.db.execute(
            "UPDATE parts SET status = ?, reason = ? WHERE withdrawal = ? AND number = ?",
            [status, reason, int(reference), number],
        )
        if status == FAILED:
            self._give(part["participant"], part)

    # --- what comes back ------------------------------------------------------------------------

    def deposit(self, height: int, number: int, event: dict[str, Any]) -> None:
        """
        Take a finalised deposit; one that is known changes nothing.

        Args:
            number: which of the deposits of its block it is
            event: `asset-deposited`, `financial-deposited`, or `account-closed`, whose amount is
                below zero where the address ended in debt
        """
        money = event["event"] != "asset-deposited"
        row = {
            "height": height,
            "number": number,
            "address": event["address"],
            "kind": "money" if money else event["kind"],
            "amount": event["amountUc"] if money else event["energyWh"],
            "start_slot": event.get("startSlot", 0),
            "end_slot": event.get("endSlot", 0),
        }
        cursor = self.db.execute(
            "INSERT OR IGNORE INTO deposits VALUES (?, ?, ?, ?, ?, ?, ?, 0)", list(row.values())
        )
        if cursor.rowcount == 1:
            self._credit_deposit(row)

    def unclaimed(self) -> list[str]:
        """Addresses that deposited or owe something and whose owner is not known yet."""
        rows = self.db.query(
            "SELECT address FROM deposits WHERE credited = 0 UNION SELECT address FROM debts"
            " WHERE address NOT IN (SELECT address FROM addresses)"
        )
        return [row["address"] for row in rows]

    def unclaimed_uc(self) -> int:
        """Money, less debts, of ended addresses whose owner is not known yet [µ¤]."""
        row = self._one(
            "SELECT COALESCE(SUM(amount), 0) AS n FROM deposits"
            " WHERE credited = 0 AND kind = 'money'"
        )
        assert row is not None
        return int(row["n"])

    def _credit_deposit(self, row: dict[str, Any]) -> None:
        owner = self._one("SELECT * FROM addresses WHERE address = ?", row["address"])
        if owner is None:
            return
        self.db.execute(
            "UPDATE deposits SET credited = 1 WHERE height = ? AND number = ?",
            [row["height"], row["number"]],
        )
        self._give(owner["participant"], row)

    # --- energy ---------------------------------------------------------------------------------

    def energy(
        self, slot: int, *, participant: str | None = None, feeder: str | None = None
    ) -> tuple[EnergyAsset, ...]:
        """What is withdrawn and not returned from a slot on, of a participant, on a feeder."""
        rows = list(
            self.db.query(
                "SELECT * FROM energy WHERE end_slot >= :slot"
                " AND (:participant IS NULL OR participant = :participant)"
                " AND (:feeder IS NULL OR feeder = :feeder)",
                {"slot": slot, "participant": participant, "feeder": feeder},
            )
        )
        found: list[EnergyAsset] = []
        for kind in Kind:
            mine = [row for row in rows if row["kind"] == kind.value]
            given = [_asset(row, slot) for row in mine if row["sign"] > 0]
            found += subtract(given, [_asset(row, slot) for row in mine if row["sign"] < 0])
        return tuple(found)

    def _add_energy(
        self, participant: str, feeder: str, sign: int, part: tuple[str, int, int, int]
    ) -> None:
        self.db.execute(
            "INSERT INTO energy (participant, feeder, sign, kind, energy_wh, start_slot, end_slot)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [participant, feeder, sign, *part],
        )

    def _give(self, participant: str, row: dict[str, Any]) -> None:
        """Back to a participant: money to the account; energy, as far as it came from here."""
        if row["kind"] == "money":
            self.credit(participant, row["amount"])
            return
        kind, slot = Kind(row["kind"]), row["start_slot"]
        left: Holding = (EnergyAsset(kind, row["amount"], slot, row["end_slot"]),)
        feeders = self.db.query(
            "SELECT DISTINCT feeder FROM energy WHERE participant = ?", [participant]
        )
        for feeder in [each["feeder"] for each in feeders]:
            for held in self.energy(slot, participant=participant, feeder=feeder):
                if held.kind is not kind:
                    continue
                # What was given at registration is not in these books and not taken out of them.
                taken = exchange(held, [asset.turned() for asset in left]).traded
                left = subtract(left, taken)
                for one in taken:
                    back = (kind.value, one.energy_wh, one.start_slot, one.end_slot)
                    self._add_energy(participant, feeder, -1, back)

    # --- schedules ------------------------------------------------------------------------------

    def approved(self, aggregator: str, first_slot: int, last_slot: int) -> dict[int, int]:
        """What was approved for an aggregator's feeder, by slot [Wh]."""
        rows = self.db.query(
            "SELECT slot, approved_wh FROM schedules WHERE aggregator = ? AND slot BETWEEN ? AND ?",
            [aggregator, first_slot, last_slot],
        )
        return {row["slot"]: row["approved_wh"] for row in rows}

    def approve(self, aggregator: str, asked: Sequence[Row], answer: Approved) -> None:
        """Keep an approval; a slot that has one keeps it."""
        reasons = {change.slot: change.reason for change in answer.changes}
        for (slot, asked_wh), (_, approved_wh) in zip(asked, answer.slots, strict=True):
            self.db.execute(
                "INSERT OR IGNORE INTO schedules VALUES (?, ?, ?, ?, ?)",
                [aggregator, slot, asked_wh, approved_wh, reasons.get(slot, "")],
            )

    # --- helpers --------------------------------------------------------------------------------

    def _state(self, row: dict[str, Any]) -> State:
        asked = msgspec.json.decode(row["request"], type=Withdrawal)
        parts = list(
            self.db.query("SELECT status, reason FROM parts WHERE withdrawal = ?", [row["id"]])
        )
        statuses = {part["status"] for part in parts}
        status = SENT if SENT in statuses else FAILED if FAILED in statuses else DONE
        reason = next((part["reason"] for part in parts if part["reason"]), "")
        return State(str(row["id"]), asked, status, reason)

    def _one(self, sql: str, *values: object) -> dict[str, Any] | None:
        return next(iter(self.db.query(sql, list(values))), None)


def _asset(row: dict[str, Any], slot: int) -> EnergyAsset:
    """An entry of `energy` from a slot on."""
    start = max(row["start_slot"], slot)
    return EnergyAsset(Kind(row["kind"]), row["energy_wh"], start, row["end_slot"])
