"""What a home has on disk, for the command line. Reads only; works beside a running home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hem.ems.decisions import DecisionLog
from hem.ems.wallet import Wallet
from runtime.store import SqliteStore
from wire.envelope import date_text
from wire.errors import ConfigError

SLOT_MS = 900_000
LATEST = 8


def summary_of(folder: Path) -> dict[str, Any]:
    """Wallet, outbox and how far the ledger was read."""
    with _store(folder) as store:
        wallet = Wallet(store, "")
        return {
            **wallet.balance,
            "registered": wallet.registered,
            "readHeights": wallet.resume(),
            "settledSlots": len(wallet.settlements()),
            "waitingReadings": sum(1 for _ in store.scan("reading/")),
        }


def settlements_of(folder: Path) -> list[dict[str, Any]]:
    """The home's settled slots, oldest first."""
    with _store(folder) as store:
        return Wallet(store, "").settlements()


def decisions_of(folder: Path, when: str) -> list[dict[str, Any]]:
    """
    Decisions with a sentence each, newest first.

    Args:
        when: a slot number, `HH:MM` (UTC, the newest such slot), or empty for the last ones

    Raises:
        ConfigError: neither of these.
    """
    with _store(folder) as store:
        rows = DecisionLog(store).latest(10_000)
    if when.isdecimal():
        rows = [row for row in rows if row["slot"] == int(when)]
    elif when:
        hours, colon, minutes = when.partition(":")
        if not (colon and hours.isdecimal() and minutes.isdecimal()):
            raise ConfigError(f"{when!r}: give a slot number or a time such as 18:00")
        wanted = f"{int(hours):02}:{int(minutes) // 15 * 15:02}"
        rows = [row for row in rows if _clock(row["slot"]) == wanted][:1]
    else:
        rows = rows[:LATEST]
    return [{**row, "text": _sentence(row)} for row in rows]


def _sentence(row: dict[str, Any]) -> str:
    orders = [
        f"{o['side']} {o['energyWh']} Wh at {o['priceUcPerKwh'] / 1e6:.3f} ¤/kWh"
        + (f" ({row['codes'][str(n)]})" if str(n) in row["codes"] else "")
        for n, o in enumerate(row["orders"])
    ]
    done = "; ".join(orders) if orders else "no order"
    return f"{_clock(row['slot'])} (slot {row['slot']}): {done}. {row['reason']}"


def _clock(slot: int) -> str:
    return date_text(slot * SLOT_MS)[11:16]


@contextmanager
def _store(folder: Path) -> Iterator[SqliteStore]:
    path = folder / "ems.sqlite"
    if not path.exists():
        raise ConfigError(f"{folder}: this home has not run yet; start it with `hem run`")
    store = SqliteStore(path)
    try:
        yield store
    finally:
        store.close()
