"""
A day of a feeder that carries less than its plants make, with and without the congestion contract.

Without it every plant feeds in what the sun gives and every load takes what it wants. With it all
of them are schedules of a forward session, cleared under the feeder's rating by the very function
that the ledger runs (`market.congestion`); the plants then feed in their shares.

A feeder is read from SimBench's files (semicolon-separated; loads and plants name a profile that is
per unit of their nominal power) or is the one made here. Reactive power is left out: the rating in
VA is taken as W.

Source: Baggio and Grimaccia, IV-C; SimBench (Meinecke et al. 2020) for the files' form.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from market.congestion import BUY, ROOT, SELL, Congestion, Limit, Schedule, clear_session
from market.orders import Order
from market.settlement import Tariff
from wire.errors import ConfigError

SLOT_S = 900
SLOTS = 86_400 // SLOT_S
TARIFF = Tariff(300_000, 80_000, 300_000)
W_PER_MW = 1_000_000
TIME_FORMAT = "%d.%m.%Y %H:%M"


@dataclass(frozen=True, slots=True)
class FeederDay:
    """A feeder and what its connection points want to exchange in a day."""

    name: str
    day: str
    rating_w: int
    """Most that the transformer carries, either way."""
    loads_w: tuple[tuple[int, ...], ...]
    """Of each load, by slot [W]."""
    plants_w: tuple[tuple[int, ...], ...]
    """Of each plant, by slot [W]."""

    def export_w(self, slot: int) -> int:
        """What would flow to the grid above (negative: from it) if nobody were asked [W]."""
        made_w = sum(plant[slot] for plant in self.plants_w)
        return made_w - sum(load[slot] for load in self.loads_w)


@dataclass(frozen=True, slots=True)
class SlotResult:
    """A slot without and with the contract; + is export [W]."""

    without_w: int
    with_w: int
    curtailed_w: int
    """What plants were asked not to make."""
    price_uc_per_kwh: int


def play(feeder: FeederDay) -> list[SlotResult]:
    """Clear every slot of the day under the feeder's rating."""
    rating_wh = feeder.rating_w * SLOT_S // 3600
    return [_clear(feeder, slot, Limit(rating_wh, rating_wh)) for slot in range(SLOTS)]


def _clear(feeder: FeederDay, slot: int, limit: Limit) -> SlotResult:
    schedules = [
        Schedule(
            side=side,
            zone=ROOT,
            order=Order(
                f"{side}-{number}", powers[slot] * SLOT_S // 3600, price, (place, number, 0)
            ),
        )
        for place, side, points, price in (
            (0, BUY, feeder.loads_w, TARIFF.retail_uc_per_kwh),
            (1, SELL, feeder.plants_w, TARIFF.feed_in_uc_per_kwh),
        )
        for number, powers in enumerate(points)
    ]
    outcome = clear_session(schedules, {}, limit, TARIFF, Congestion.CURTAIL)
    sold_wh = sum(share.energy_wh for share in outcome.shares if share.side == SELL)
    bought_wh = sum(share.energy_wh for share in outcome.shares if share.side == BUY)
    offered_wh = sum(one.order.energy_wh for one in schedules if one.side == SELL)
    return SlotResult(
        without_w=feeder.export_w(slot),
        with_w=(sold_wh - bought_wh) * 3600 // SLOT_S,
        curtailed_w=(offered_wh - sold_wh) * 3600 // SLOT_S,
        price_uc_per_kwh=outcome.prices[ROOT],
    )


def made_up() -> FeederDay:
    """A village of ours: 12 homes and 6 plants of 240 kW together behind 100 kVA, in June."""
    loads = [
        tuple(
            300
            + 40 * home
            + (1_900 if slot in range(68, 88) else 500 if slot in range(26, 36) else 0)
            for slot in range(SLOTS)
        )
        for home in range(12)
    ]
    plants = [
        tuple(40_000 * _sun_permille(slot) // 1000 for slot in range(SLOTS)) for _ in range(6)
    ]
    return FeederDay(
        "a village of ours", "a clear day in June", 100_000, tuple(loads), tuple(plants)
    )


def _sun_permille(slot: int) -> int:
    """A clear day: a parabola from 05:00 to 21:00."""
    from_noon, half = abs(2 * slot - 104), 64
    return max(0, 1000 - 1000 * from_noon * from_noon // (half * half))


def load_simbench(folder: Path, day: str = "") -> FeederDay:
    """
    Read a low-voltage feeder and one of its days.

    Args:
        folder: `grid_*_Load.csv`, `…_RES.csv`, `…_Transformer.csv`, `grid_TransformerType.csv`,
            `LoadProfile*.csv`, `RESProfile*.csv`
        day: YYYY-MM-DD; empty: the day with the highest export

    Raises:
        ConfigError: a file is missing or wrong, or there is no such day.
    """
    loads, plants = _rows(folder, "grid_*_Load.csv"), _rows(folder, "grid_*_RES.csv")
    kinds = {row["id"]: row for row in _rows(folder, "grid_TransformerType.csv")}
    (transformer, *_) = _rows(folder, "grid_*_Transformer.csv")
    try:
        rating_w = _watts(kinds[transformer["type"]]["sR"], "1")
        load_profiles = _profiles(folder, "LoadProfile*.csv")
        plant_profiles = _profiles(folder, "RESProfile*.csv")
        every = [
            FeederDay(
                transformer["subnet"],
                one,
                rating_w,
                tuple(
                    _powers(load_profiles[one], f"{row['profile']}_pload", row["pLoad"])
                    for row in loads
                ),
                tuple(_powers(plant_profiles[one], row["profile"], row["pRES"]) for row in plants),
            )
            for one in sorted(load_profiles.keys() & plant_profiles.keys())
            if day in ("", one) and len(load_profiles[one]) == len(plant_profiles[one]) == SLOTS
        ]
    except (KeyError, InvalidOperation, ValueError) as error:
        raise ConfigError(f"{folder}: not a feeder in SimBench's form: {error!r}") from None
    if not every:
        raise ConfigError(f"{folder}: no whole day {day or 'at all'} in the profiles")
    return max(every, key=lambda one: max(one.export_w(slot) for slot in range(SLOTS)))


def _rows(folder: Path, pattern: str) -> list[dict[str, str]]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise ConfigError(f"{folder}: no {pattern}; give a folder with a SimBench feeder")
    try:
        with found[0].open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{found[0]}: cannot be read: {error}") from None
    if not rows:
        raise ConfigError(f"{found[0]}: no rows")
    return rows


def _profiles(folder: Path, pattern: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each day, by date, in order of time."""
    days: dict[str, list[dict[str, str]]] = {}
    last = datetime.min
    for row in _rows(folder, pattern):
        time = datetime.strptime(row["time"], TIME_FORMAT)
        if time <= last:
            raise ValueError(f"time does not rise at {row['time']}")
        last = time
        days.setdefault(time.date().isoformat(), []).append(row)
    return days


def _powers(rows: list[dict[str, str]], column: str, nominal_mw: str) -> tuple[int, ...]:
    return tuple(_watts(nominal_mw, row[column]) for row in rows)


def _watts(nominal_mw: str, per_unit: str) -> int:
    power_w = Decimal(nominal_mw) * Decimal(per_unit) * W_PER_MW
    if not 0 <= power_w <= 10**9:
        raise ValueError(f"{nominal_mw} MW × {per_unit} is no power of a feeder")
    return int(power_w)
