"""
What analytics remembers: one SQLite file, written in batches, readable with any SQLite tool.

Events are kept whole (`events.body`, canonical JSON) and, where people ask for them, also as
columns: blocks, clearings, trades, settlements, CPF, states, readings, refusals. After a restart
the live picture is folded again from this file; changes of the rules are never forgotten, or the
tariff of a slot would be lost with them. Of a sealed reading only order, size and digest are
kept: the registers inside belong to the DSO.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import sqlite_utils

from analytics.rollups import HomeState, Rollup
from analytics.trades import Terms, trades_of
from wire.canonical import encode

SCHEMA: dict[str, tuple[dict[str, type], tuple[str, ...]]] = {
    "events": (
        {"id": int, "height": int, "time_ms": int, "name": str, "slot": int, "body": str},
        ("id",),
    ),
    "blocks": (
        {
            "height": int, "epoch": int, "view": int, "proposer": str, "n_tx": int,
            "time_ms": int, "finality_ms": int,
        },
        ("height",),
    ),
    "clearings": (
        {
            "slot": int, "height": int, "price_uc_per_kwh": int, "traded_wh": int, "bids": int,
            "offers": int, "welfare_uc": int,
        },
        ("slot",),
    ),
    "trades": (
        {
            "slot": int, "number": int, "address": str, "side": str, "kind": str,
            "reference": str, "energy_wh": int, "price_uc_per_kwh": int, "height": int,
            "amount_uc": int,
        },
        ("slot", "number", "kind", "reference"),
    ),
    "settlements": (
        {
            "slot": int, "address": str, "net_wh": int, "bought_wh": int, "sold_wh": int,
            "residual_wh": int, "amount_uc": int, "height": int, "assumed": int,
        },
        ("slot", "address"),
    ),
    "cpf": (
        {"validator": str, "end_slot": int, "cpf_q16": int, "eligible": int, "height": int},
        ("validator", "end_slot"),
    ),
    "states": (
        {
            "home": str, "time_ms": int, "online": int, "name": str, "grid_w": int, "pv_w": int,
            "battery_w": int, "load_w": int, "soc_permille": int, "lost": str, "measured": int,
        },
        ("home", "time_ms"),
    ),
    "readings": (
        {"id": int, "home": str, "sequence": int, "time_ms": int, "size_bytes": int, "digest": str},
        ("id",),
    ),
    "refusals": (
        {"node": str, "component": str, "reason": str, "count": int},
        ("node", "component", "reason"),
    ),
    "meta": ({"key": str, "value": str}, ("key",)),
}  # fmt: skip
OPENING = ("auction-opened", "escrow-offered", "escrow-revealed")
"""Events whose terms later ones need."""
RULE_CHANGE = "change-approved"
_BUSY_TIMEOUT_MS = 5000


class AnalyticsStore:
    """
    The file `analytics.sqlite`. Rows gather in memory; `flush` writes them in one transaction.

    Args:
        path: the file; its folder must exist
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite_utils.Database(path)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        for name, (columns, key) in SCHEMA.items():
            primary = key[0] if len(key) == 1 else key
            table = self._db.table(name).create(columns, pk=primary, if_not_exists=True)
            for column in columns.keys() - table.columns_dict.keys():
                table.add_column(column, columns[column], not_null_default=0)
        self._forget_names()
        self._db.table("events").create_index(["time_ms"], if_not_exists=True)
        self._db.table("states").create_index(["time_ms"], if_not_exists=True)
        self._pending: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
        self._terms = Terms()
        for event in self._events_named(*OPENING):
            self._terms.complete(event)
        counted = self._db.execute("SELECT home, MAX(sequence) FROM readings GROUP BY home")
        self._reading_sequence: dict[str, int] = dict(counted.fetchall())

    def _forget_names(self) -> None:
        """Once: homes told what they are called in an earlier release; that is nobody's to keep."""
        if self._db.execute("SELECT 1 FROM states WHERE name <> '' LIMIT 1").fetchone() is None:
            return
        with self._db.atomic():
            self._db.execute("UPDATE states SET name = ''")
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- writing ----------------------------------------------------------------------------------

    def add_event(self, height: int, time_ms: int, event: dict[str, Any]) -> None:
        """Remember a finalised event, whole and in its table."""
        name = event["event"]
        slot = event.get("slot")
        event = self._terms.complete(event)
        body = encode(event).decode()
        self._pending["events"].append((None, height, time_ms, name, slot, body))
        add = _COLUMNS.get(name)
        rows = add(height, event) if add is not None else []
        for table, row in rows + _trades(height, event):
            self._pending[table].append(row)

    def add_block(self, block: dict[str, Any]) -> None:
        """Remember an agreed block."""
        names = ("height", "epoch", "view", "proposer", "nTx", "timeMs", "finalityMs")
        self._pending["blocks"].append(tuple(block[name] for name in names))

    def add_state(self, state: HomeState) -> None:
        """Remember a home's state."""
        self._pending["states"].append((
            state.home, state.time_ms, int(state.online), "", state.grid_w, state.pv_w,
            state.battery_w, state.load_w, state.soc_permille, ",".join(state.lost),
            int(state.measured),
        ))  # fmt: skip

    def add_reading(self, home: str, time_ms: int, size_bytes: int, digest: str) -> None:
        """Remember that a sealed reading came in; sequence numbers count them per home."""
        sequence = self._reading_sequence.get(home, -1) + 1
        self._reading_sequence[home] = sequence
        self._pending["readings"].append((None, home, sequence, time_ms, size_bytes, digest))

    def add_refused(self, node: str, component: str, counts: dict[str, int]) -> None:
        """Remember a node's counts of refused messages."""
        for reason, count in counts.items():
            self._pending["refusals"].append((node, component, reason, count))

    def flush(self, delivered: dict[str, int], validators: dict[str, Any]) -> int:
        """
        Write everything pending, and how far and from whom the ledger has been followed.

        All in one transaction.

        Returns:
            Rows written.
        """
        pending, self._pending = self._pending, defaultdict(list)
        if not pending:
            return 0
        pending["meta"].append(("delivered", json.dumps(delivered)))
        pending["meta"].append(("validators", json.dumps(validators)))
        with self._db.atomic():
            for table, rows in pending.items():
                marks = ",".join("?" * len(SCHEMA[table][0]))
                self._db.conn.executemany(
                    f"INSERT OR REPLACE INTO {table} VALUES ({marks})",  # noqa: S608 our names
                    rows,
                )
        return sum(len(rows) for rows in pending.values())

    def prune(self, before_ms: int) -> None:
        """
        Forget events, states and readings that came in before `before_ms`; the rest is small.

        Changes of the rules are kept: they hold for the slots to come.
        """
        with self._db.atomic():
            self._db.table("events").delete_where(
                "time_ms < ? AND name != ?", [before_ms, RULE_CHANGE]
            )
            for table in ("states", "readings"):
                self._db.table(table).delete_where("time_ms < ?", [before_ms])

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    # -- reading ----------------------------------------------------------------------------------

    def delivered(self) -> dict[str, int]:
        """How far the ledger has been followed, per contract."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'delivered'").fetchone()
        return {str(k): int(v) for k, v in json.loads(row[0]).items()} if row else {}

    def validators(self) -> dict[str, Any]:
        """Who speaks for the ledger; empty: the founders."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'validators'").fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {}
        return found

    def rows(self, table: str, order: str = "") -> list[dict[str, Any]]:
        """All rows of a table, in the order of its primary key or `order`."""
        assert table in SCHEMA
        return list(self._db[table].rows_where(order_by=order or ",".join(SCHEMA[table][1])))

    def replay(self, rollup: Rollup, since_ms: int = 0) -> None:
        """Fold what is remembered since `since_ms` into `rollup`, and all changes of the rules."""
        for event in self._events_named(RULE_CHANGE):
            rollup.rules.take_event(event)
        events = self._db.execute(
            "SELECT height, body FROM events WHERE time_ms >= ? ORDER BY id", (since_ms,)
        )
        for height, body in events:
            rollup.fold_event(height, json.loads(body))
        for row in self._db["blocks"].rows_where("time_ms >= ?", [since_ms], order_by="height"):
            rollup.fold_block({
                "height": row["height"], "epoch": row["epoch"], "view": row["view"],
                "proposer": row["proposer"], "nTx": row["n_tx"], "timeMs": row["time_ms"],
                "finalityMs": row["finality_ms"],
            })  # fmt: skip
        for row in self._db["states"].rows_where("time_ms >= ?", [since_ms], order_by="time_ms"):
            row["lost"] = tuple(filter(None, row["lost"].split(",")))
            row["online"], row["measured"] = bool(row["online"]), bool(row["measured"])
            del row["name"]
            rollup.fold_state(HomeState(**row))
        counts: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for row in self._db["refusals"].rows:
            counts[row["node"], row["component"]][row["reason"]] = row["count"]
        for (node, component), by_reason in counts.items():
            rollup.fold_refused(node, component, by_reason)

    def _events_named(self, *names: str) -> list[dict[str, Any]]:
        """The remembered events of these names, in order."""
        marks = ",".join("?" * len(names))
        rows = self._db.execute(
            f"SELECT body FROM events WHERE name IN ({marks}) ORDER BY id",  # noqa: S608 marks only
            names,
        )
        return [json.loads(body) for (body,) in rows]


Rows = list[tuple[str, tuple[Any, ...]]]


def _clearing(height: int, event: dict[str, Any]) -> Rows:
    facts = (
        event["slot"], height, event["priceUcPerKwh"], event["tradedWh"], event["bids"],
        event["offers"], event.get("welfareUc", 0),
    )  # fmt: skip
    return [("clearings", facts)]


def _trades(height: int, event: dict[str, Any]) -> Rows:
    """The trades that an event made, whichever the market."""
    return [
        ("trades", (t.slot, t.number, t.address, t.side, t.kind, t.reference, t.energy_wh,
                    t.price_uc_per_kwh, height, t.amount_uc))
        for t in trades_of(event)
    ]  # fmt: skip


def _settlement(height: int, event: dict[str, Any]) -> Rows:
    return [
        ("settlements", (event["slot"], r["address"], r["netWh"], r["boughtWh"], r["soldWh"],
                         r["residualWh"], r["amountUc"], height, int(r.get("assumed", False))))
        for r in event["rows"]
    ]  # fmt: skip


def _cpf(height: int, event: dict[str, Any]) -> Rows:
    row = (
        event["validator"], event["endSlot"], event["cpfQ16"], int(event["eligible"]), height,
    )  # fmt: skip
    return [("cpf", row)]


_COLUMNS = {
    "cleared": _clearing,
    "settled": _settlement,
    "trued-up": _settlement,
    "cpf": _cpf,
}
