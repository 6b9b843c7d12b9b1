"""
The homes and prices of `bench.savings`, read from the folders of measurements.

Homes as `bench.forecast_data` reads them, with a battery and three tariffs. Nothing of the data is
kept here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.forecast_data import CITYLEARN, LEMLAB, read_citylearn, read_lemlab
from bench.forecast_data import House as Measured
from hem.controller.battery import Battery
from wire.errors import ConfigError

Series = NDArray[np.int64]

HOUR_S = 3_600
DAY_AHEAD = "dayahead_epftoolbox"
BATTERY = Battery(6_400, 5_000, 5_000, soc_min_permille=0)
"""That of every house of the first set, by its schema; those of the second get it too."""
STARTS_S = {"citylearn": 1_470_006_000, "lemlab": 1_613_343_600}
"""First slot: 31 July 2016 23:00 as if its clock were UTC, and 14 February 2021 23:00 UTC."""
PHASES = {"citylearn": 23, "lemlab": 0}
"""Slots since midnight in it, by the clock of the homes."""
DAY_AHEAD_STARTS_S = 1_451_865_600
"""4 January 2016 00:00 of the price series' own clock."""
LEVIES_UC_PER_KWH = 180_000
"""Grid fees and taxes on a day-ahead price, about Germany's."""
VAT_PERMILLE = 1_190
FLAT_UC_PER_KWH = (300_000, 80_000)
"""Import and export."""
FEED_IN_UC_PER_KWH = 80_000


@dataclass(frozen=True, slots=True)
class House:
    """What a home used and produced, slot by slot."""

    name: str
    source: str
    """`citylearn` or `lemlab`."""
    slot_s: int
    first_slot: int
    load_wh: Series
    pv_wh: Series
    battery: Battery
    looked_at: bool
    phase: int
    """Slots since midnight in the first one."""

    @property
    def per_day(self) -> int:
        """Slots of a day."""
        return 86_400 // self.slot_s


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a home pays and gets in each slot [µ¤/kWh]; export never above import."""

    name: str
    imports: Series
    exports: Series
    day_ahead: bool
    """Known until midnight, from 13:00 on until the next; else for good."""
    phase: int
    """Slots since midnight in the first one."""

    def known(self, start: int, count: int, per_day: int) -> tuple[Series, Series]:
        """Prices of slots as they are known one slot before: what is not yet is yesterday's."""
        slots = np.arange(start, start + count)
        if self.day_ahead:
            now = start - 1
            of_day = (now + self.phase) % per_day
            last = now - of_day + per_day * (2 if of_day * 24 >= 13 * per_day else 1) - 1
            late = slots > last
            slots = np.where(late, slots - per_day * -(-(slots - last) // per_day), slots)
        slots = np.clip(slots, 0, len(self.imports) - 1)
        return self.imports[slots], self.exports[slots]


def houses(data: Path) -> list[House]:
    """
    All homes of both sets.

    Raises:
        ConfigError: a folder is missing.
    """
    for folder in (CITYLEARN, LEMLAB, DAY_AHEAD):
        if not (data / folder).is_dir():
            raise ConfigError(
                f"{data / folder}: no such folder; give --data DIR with {folder} in it"
            )
    found = []
    for source, read in (("citylearn", read_citylearn), ("lemlab", read_lemlab)):
        every = read(data / {"citylearn": CITYLEARN, "lemlab": LEMLAB}[source])
        for looked_at, some in ((True, every.tuned), (False, every.held_out)):
            found += [_house(source, every.slots_per_day, one, looked_at=looked_at) for one in some]
    return found


def tariffs(data: Path, house: House) -> list[Tariff]:
    """Flat, time of use, and the German day-ahead prices of the same time of a year."""
    count = len(house.load_wh)
    flat_import, flat_export = (np.full(count, price) for price in FLAT_UC_PER_KWH)
    feed_in = np.full(count, FEED_IN_UC_PER_KWH)
    spot = _day_ahead(data / DAY_AHEAD, house)
    levied = spot * VAT_PERMILLE // 1000 + LEVIES_UC_PER_KWH
    return [
        Tariff("flat", flat_import, flat_export, False, house.phase),
        Tariff("time of use", _time_of_use(data, house), feed_in, False, house.phase),
        Tariff("day-ahead", levied, np.minimum(spot, levied), True, house.phase),
    ]


def _house(source: str, slots_per_day: int, one: Measured, *, looked_at: bool) -> House:
    return House(
        one.name,
        source,
        86_400 // slots_per_day,
        one.first_slot,
        np.array(one.load_wh, dtype=np.int64),
        np.array(one.pv_wh, dtype=np.int64),
        BATTERY,
        looked_at,
        PHASES[source],
    )


def _time_of_use(data: Path, house: House) -> Series:
    """The set's own tariff; a home of the other set has dear evenings, 17 to 21 o'clock."""
    if house.source == "citylearn":
        rows = _rows(data / CITYLEARN / "pricing.csv")
        return np.array([round(float(row["electricity_pricing"]) * 1e6) for row in rows])
    hour = (np.arange(len(house.load_wh)) * house.slot_s // HOUR_S) % 24
    return np.where((hour >= 17) & (hour < 21), 420_000, 240_000).astype(np.int64)


def _day_ahead(folder: Path, house: House) -> Series:
    """Hourly spot prices [µ¤/kWh], a slot's by its hour; 2021 is shown the prices of 2017."""
    rows = _rows(folder / "DE_2years_realprice_only.csv")
    prices = np.array([round(float(row["Real price"]) * 1000) for row in rows], dtype=np.int64)
    start_s = STARTS_S[house.source]
    if house.source == "lemlab":
        start_s -= 4 * 365 * 86_400 + 86_400 - HOUR_S  # local midnight, the same day of 2017
    first = (start_s - DAY_AHEAD_STARTS_S) // HOUR_S
    hours = first + np.arange(len(house.load_wh)) * house.slot_s // HOUR_S
    return prices[hours]


def _rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))
