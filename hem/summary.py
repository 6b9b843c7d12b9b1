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
from wire.slots import SlotGrid

LATEST = 8
MANY = 10_000
DAY_MINUTES = 24 * 60
EMS_FILE = "ems.sqlite"
OUTBOX_FILE = "outbox.sqlite"


def summary_of(folder: Path) -> dict[str, Any]:
    """Wallet, outboxes and how far the ledger was read."""
    with _store(folder, EMS_FILE) as store, _store(folder, OUTBOX_FILE) as queue:
        wallet = Wallet.kept(store)
        return {
            "address": wallet.address,
            **wallet.balance,
            "registered": wallet.registered,
            "readHeights": wallet.resume(),
            "settledSlots": len(wallet.settlements()),
            "waitingReadings": sum(1 for _ in store.scan("reading/")),
            "waitingOperations": sum(1 for _ in queue.scan("wait/")),
        }


def settlements_of(folder: Path) -> list[dict[str, Any]]:
    """The home's settled slots, oldest first."""
    with _store(folder, EMS_FILE) as store:
        return Wallet.kept(store).settlements()


def decisions_of(folder: Path, when: str, grid: SlotGrid) -> list[dict[str, Any]]:
    """
    Decisions with a sentence each, newest first.

    Args:
        when: a slot number, `HH:MM` (UTC, the newest such slot), or empty for the last ones

    Raises:
        ConfigError: neither of these.
    """
    with _store(folder, EMS_FILE) as store:
        rows = DecisionLog(store).latest(MANY)
    if when.isdecimal():
        rows = [row for row in rows if row["slot"] == int(when)]
    elif when:
        minute = _minute_of_day(when)
        rows = [row for row in rows if _covers(row["slot"], minute, grid)][:1]
    else:
        rows = rows[:LATEST]
    return [{**row, "text": _sentence(row, grid)} for row in rows]


def _minute_of_day(when: str) -> int:
    hours, colon, minutes = when.partition(":")
    if colon and hours.isdecimal() and minutes.isdecimal():
        minute = int(hours) * 60 + int(minutes)
        if int(minutes) < 60 and minute < DAY_MINUTES:
            return minute
    raise ConfigError(f"{when!r}: give a slot number or a time such as 18:00")


def _covers(slot: int, minute: int, grid: SlotGrid) -> bool:
    """Does the slot overlap that minute of its day?"""
    begin_s = grid.start_ms(slot) // 1000 % (DAY_MINUTES * 60)
    return begin_s < (minute + 1) * 60 and minute * 60 < begin_s + grid.length_s


def _sentence(row: dict[str, Any], grid: SlotGrid) -> str:
    orders = [
        f"{o['side']} {o['energyWh']} Wh at {o['priceUcPerKwh'] / 1e6:.3f} ¤/kWh"
        + (f" ({row['codes'][str(n)]})" if str(n) in row["codes"] else "")
        for n, o in enumerate(row["orders"])
    ]
    done = "; ".join(orders) if orders else "no order"
    return f"{_clock(row['slot'], grid)} (slot {row['slot']}): {done}. {row['reason']}"


def _clock(slot: int, grid: SlotGrid) -> str:
    return date_text(grid.start_ms(slot))[11:16]


@contextmanager
def _store(folder: Path, name: str) -> Iterator[SqliteStore]:
    path = folder / name
    if not path.exists():
        raise ConfigError(f"{folder}: this home has not run yet; start it with `hem run`")
    store = SqliteStore(path)
    try:
        yield store
    finally:
        store.close()
