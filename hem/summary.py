"""What a home has on disk, for the command line. Reads only; works beside a running home."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import msgspec

from hem.controller.explain import Fate, Record, explain
from hem.ems.addresses import kept_grants
from hem.ems.decisions import DecisionLog
from hem.ems.enrolment import CERTIFICATE, GRANT
from hem.ems.funds import withdrawn
from hem.ems.lanes import SENDERS
from hem.ems.light import LightState, kept_view
from hem.ems.pledges import Pledges
from hem.ems.wallet import POSITION, Wallet
from runtime.store import SqliteStore
from wire.certificates import AddressGrant, Certificate, parse
from wire.envelope import date_text
from wire.errors import ConfigError
from wire.slots import SlotGrid

LATEST = 8
MANY = 10_000
DAY_MINUTES = 24 * 60
POSITIONS = 12
"""Slots whose positions are shown."""
DAY_MS = 86_400_000
MARKETS = {
    "market": "double-auction", "auction": "auctions", "offer": "order-book",
    "accept": "order-book", "escrow": "escrow", "lot": "escrow", "take": "escrow",
    "session": "schedules", "schedule": "schedules",
}  # fmt: skip
"""The market of a position's source or of a promise's key."""
EMS_FILE = "ems.sqlite"
OUTBOX_FILE = "outbox.sqlite"


def summary_of(folder: Path) -> dict[str, Any]:
    """Wallet, what the light client proved of it, outboxes, how far the ledger was read."""
    with opened(folder, EMS_FILE) as store, opened(folder, OUTBOX_FILE) as queue:
        wallet = Wallet.kept(store)
        return {
            "address": wallet.address,
            **wallet.balance,
            "registered": wallet.registered,
            "light": kept_view(store, wallet.address).to_json(),
            "readHeights": wallet.resume(),
            "settledSlots": len(wallet.settlements()),
            "waitingReadings": sum(1 for _ in store.scan("reading/")),
            "waitingOperations": sum(1 for _ in queue.scan("wait/"))
            + sum("/wait/" in key for key, _ in queue.scan(SENDERS)),
        }


def status_of(folder: Path, grid: SlotGrid, now_ms: int) -> dict[str, Any]:
    """
    The summary, and what the home has going on in its markets.

    Adds `certificateDaysLeft`, `grantEndSlot`, `addresses` (where they change), `positions` (by
    slot and market), `promises` (that stand), `withdrawals` (from the DSO).
    """
    facts = summary_of(folder)
    with opened(folder, EMS_FILE) as store:
        wallet = Wallet.kept(store)
        slot = grid.slot_at(now_ms)
        certificate, grant = store.get(CERTIFICATE), store.get(GRANT)
        if certificate is not None:
            end_ms = parse(Certificate, certificate.decode()).not_after_ms
            facts["certificateDaysLeft"] = round((end_ms - now_ms) / DAY_MS, 1)
        if grant is not None:
            facts["grantEndSlot"] = parse(AddressGrant, grant.decode()).end_slot
        granted = kept_grants(store)
        if granted:
            facts["grantEndSlot"] = granted[-1].end_slot
            facts["addresses"] = [
                _address(one, wallet) for one in granted if one.start_slot <= slot
            ]
        slots = [int(key.removeprefix(POSITION)) for key, _ in store.scan(POSITION)]
        shown = [one for one in slots if one >= slot] or slots
        return {
            **facts,
            "positions": [
                {"slot": one, "time": _clock(one, grid), "markets": markets_of(wallet, one)}
                for one in shown[:POSITIONS]
            ],
            "promises": _promises(store, slot, now_ms),
            "withdrawals": withdrawn(store, wallet.address),
        }


def _address(grant: AddressGrant, wallet: Wallet) -> dict[str, Any]:
    """One of the home's addresses, its slots and its money."""
    return {
        "address": grant.address,
        "startSlot": grant.start_slot,
        "endSlot": grant.end_slot,
        **wallet.balance_of(grant.address),
    }


def markets_of(wallet: Wallet, slot: int) -> dict[str, dict[str, int]]:
    """What was bought and sold for a slot, by market [Wh]."""
    found: dict[str, dict[str, int]] = {}
    for source, (bought_wh, sold_wh) in wallet.contracted(slot).items():
        kind = source.partition("/")[0]
        row = found.setdefault(MARKETS.get(kind, kind), {"boughtWh": 0, "soldWh": 0})
        row["boughtWh"] += bought_wh
        row["soldWh"] += sold_wh
    return found


def _promises(store: SqliteStore, slot: int, now_ms: int) -> list[dict[str, Any]]:
    """What the home promised and the ledger has not decided yet."""
    return [
        {
            "market": MARKETS.get(key.partition("/")[0], key.partition("/")[0]),
            "operation": pledge.operation.get("op", ""),
            "startSlot": pledge.start_slot,
            "endSlot": pledge.end_slot,
            "energyWh": pledge.energy_wh,
            "source": pledge.source,
        }
        for key, pledge in Pledges(store).kept()
        if pledge.energy_wh and pledge.end_slot >= slot and now_ms < pledge.until_ms
    ]


def settlements_of(folder: Path) -> list[dict[str, Any]]:
    """The home's settled slots, oldest first."""
    with opened(folder, EMS_FILE) as store:
        return Wallet.kept(store).settlements()


def decisions_of(
    folder: Path, when: str, grid: SlotGrid, zone: tzinfo = UTC
) -> list[dict[str, Any]]:
    """
    Decisions in words, newest first.

    Args:
        when: a slot number, `HH:MM` (the newest such slot), or empty for the last ones
        zone: of the household's clock

    Raises:
        ConfigError: neither of these.
    """
    with opened(folder, EMS_FILE) as store:
        wallet = Wallet.kept(store)
        rows = with_fates(DecisionLog(store).latest(MANY), wallet, wallet.settlements())
    if when.isdecimal():
        rows = [row for row in rows if row["slot"] == int(when)]
    elif when:
        minute = _minute_of_day(when)
        rows = [row for row in rows if _covers(row["slot"], minute, grid, zone)][:1]
    else:
        rows = rows[:LATEST]
    return [{**row, "text": _told(row, grid, zone)} for row in rows]


def with_fates(
    rows: Iterable[Mapping[str, Any]], wallet: Wallet, settled: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Decisions with what became of them: positions by market, and what the meter saw."""
    metered = {row["slot"]: row["netWh"] for row in settled if not row.get("assumed")}
    return [
        {**row, "markets": markets_of(wallet, row["slot"]), "fate": _fate(row, wallet, metered)}
        for row in rows
    ]


def in_words(row: Mapping[str, Any]) -> str:
    """
    A decision as the household is told it; its short reason where no more is known.

    Args:
        row: of `with_fates`
    """
    if "record" not in row:
        return str(row["reason"])
    record = msgspec.convert(row["record"], Record)
    return explain(record, row["orders"], msgspec.convert(row["fate"], Fate))


def _fate(row: Mapping[str, Any], wallet: Wallet, metered: dict[int, int]) -> dict[str, Any]:
    """What became of a decision (`hem.controller.explain.Fate`)."""
    slot = row["slot"]
    amounts = wallet.contracted(slot).values()
    fate = Fate(
        bought_wh=sum(bought_wh for bought_wh, _ in amounts),
        sold_wh=sum(sold_wh for _, sold_wh in amounts),
        refused=sum(code != "OK" for code in row["codes"].values()),
        cleared=wallet.price(slot) is not None,
        metered_net_wh=metered.get(slot),
    )
    found: dict[str, Any] = msgspec.to_builtins(fate)
    return found


def _told(row: dict[str, Any], grid: SlotGrid, zone: tzinfo) -> str:
    """A row in words; one that was written without a record as far as it goes."""
    if "record" not in row:
        return _sentence(row, grid)
    ends = _local(row["slot"] + 1, grid, zone)
    return f"{_local(row['slot'], grid, zone)}–{ends}: {in_words(row)}"


def _local(slot: int, grid: SlotGrid, zone: tzinfo) -> str:
    """When a slot begins, by the household's clock."""
    return datetime.fromtimestamp(grid.start_ms(slot) // 1000, zone).strftime("%H:%M")


def _minute_of_day(when: str) -> int:
    hours, colon, minutes = when.partition(":")
    if colon and hours.isdecimal() and minutes.isdecimal():
        minute = int(hours) * 60 + int(minutes)
        if int(minutes) < 60 and minute < DAY_MINUTES:
            return minute
    raise ConfigError(f"{when!r}: give a slot number or a time such as 18:00")


def _covers(slot: int, minute: int, grid: SlotGrid, zone: tzinfo) -> bool:
    """Does the slot overlap that minute of its day?"""
    at = datetime.fromtimestamp(grid.start_ms(slot) // 1000, zone)
    begin_s = at.hour * 3600 + at.minute * 60 + at.second
    return begin_s < (minute + 1) * 60 and minute * 60 < begin_s + grid.length_s


def _sentence(row: dict[str, Any], grid: SlotGrid) -> str:
    orders = [
        f"{o['side']} {o['energyWh']} Wh at {o['priceUcPerKwh'] / 1e6:.3f} ¤/kWh"
        + (f" ({row['codes'][str(n)]})" if str(n) in row["codes"] else "")
        for n, o in enumerate(row["orders"])
    ]
    done = "; ".join(orders) if orders else "no order"
    text = f"{_clock(row['slot'], grid)} (slot {row['slot']}): {done}. {row['reason']}"
    contracted = [
        f"{market} {_amounts(amounts['boughtWh'], amounts['soldWh'])}"
        for market, amounts in row["markets"].items()
    ]
    return text + (f". Contracted: {'; '.join(contracted)}" if contracted else "")


def _amounts(bought_wh: int, sold_wh: int) -> str:
    parts = [("bought", bought_wh), ("sold", sold_wh)]
    return ", ".join(f"{what} {energy_wh} Wh" for what, energy_wh in parts if energy_wh)


def proof_text(light: dict[str, Any]) -> str:
    """What the light client proved, in a line (`LightView.to_json`)."""
    if light["provedHeight"] < 0:
        return f"proved: nothing yet (light client: {light['state']})"
    said = {
        LightState.SAME: "as the home believes",
        LightState.DIFFERS: "NOT what the home believes",
    }.get(LightState(light["state"]), f"light client: {light['state']}")
    return (
        f"proved: balance {light['provedBalanceUc'] / 1e6:.6f} ¤,"
        f" locked {light['provedLockedUc'] / 1e6:.6f} ¤ after block {light['provedHeight']}"
        f" (headers verified up to {light['verifiedHeight']}): {said}"
    )


def status_text(facts: dict[str, Any]) -> list[str]:
    """The status in lines for people."""
    plain = {
        k: v for k, v in facts.items() if not isinstance(v, (list, dict)) or k == "readHeights"
    }
    lines = [f"{name}: {value}" for name, value in plain.items()]
    lines.append(proof_text(facts["light"]))
    lines += [
        f"address {one['address']}: slots {one['startSlot']}…{one['endSlot']},"
        f" balance {one['balanceUc'] / 1e6:.6f} ¤, locked {one['lockedUc'] / 1e6:.6f} ¤"
        for one in facts.get("addresses", ())
    ]
    for row in facts["positions"]:
        for market, amounts in row["markets"].items():
            said = _amounts(amounts["boughtWh"], amounts["soldWh"])
            lines.append(f"position {row['time']} (slot {row['slot']}): {market} {said}")
    for one in facts["promises"]:
        what = "gives" if one["energyWh"] > 0 else "takes"
        lines.append(
            f"promise slots {one['startSlot']}…{one['endSlot']}: {one['market']}"
            f" ({one['operation']}) {what} {abs(one['energyWh'])} Wh, from the {one['source']}"
        )
    lines += [f"withdrawn: {name} {value}" for name, value in facts["withdrawals"].items()]
    return lines


def _clock(slot: int, grid: SlotGrid) -> str:
    return date_text(grid.start_ms(slot))[11:16]


@contextmanager
def opened(folder: Path, name: str) -> Iterator[SqliteStore]:
    """
    A home's database, as a command reads it.

    Raises:
        ConfigError: there is none yet.
    """
    path = folder / name
    if not path.exists():
        raise ConfigError(f"{folder}: this home has not run yet; start it with `hem run`")
    store = SqliteStore(path)
    try:
        yield store
    finally:
        store.close()
