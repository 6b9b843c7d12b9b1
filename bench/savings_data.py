"""
The homes and prices of `bench.savings`, read from the folders of measurements.

`citylearn_2022`: a year, hourly, PV and battery as its schema says. `lemlab_15houses`: 45 days of
quarter hours; its PV is per unit, so every home gets 5 kW and the battery of the other set. Of both
sets some homes were looked at while constants were chosen; `looked_at` says which. Nothing of the
data is kept here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hem.controller.battery import Battery
from wire.errors import ConfigError

Series = NDArray[np.int64]

HOUR_S, QUARTER_S = 3_600, 900
LOOKED_AT = {"Building_1", "Building_2", "Building_4", "Building_5",
             "hh_3055_0", "hh_3114_0", "hh_3193_0", "hh_3216_0", "hh_3241_0"}  # fmt: skip
PV_W = 5_000
"""Of the homes whose PV is given per unit."""
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
    for folder in ("citylearn_2022", "lemlab_15houses", "dayahead_epftoolbox"):
        if not (data / folder).is_dir():
            raise ConfigError(
                f"{data / folder}: no such folder; give --data DIR with {folder} in it"
            )
    return [*_citylearn(data / "citylearn_2022"), *_lemlab(data / "lemlab_15houses")]


def tariffs(data: Path, house: House) -> list[Tariff]:
    """Flat, time of use, and the German day-ahead prices of the same time of a year."""
    count = len(house.load_wh)
    flat_import, flat_export = (np.full(count, price) for price in FLAT_UC_PER_KWH)
    feed_in = np.full(count, FEED_IN_UC_PER_KWH)
    spot = _day_ahead(data / "dayahead_epftoolbox", house)
    levied = spot * VAT_PERMILLE // 1000 + LEVIES_UC_PER_KWH
    return [
        Tariff("flat", flat_import, flat_export, False, house.phase),
        Tariff("time of use", _time_of_use(data, house), feed_in, False, house.phase),
        Tariff("day-ahead", levied, np.minimum(spot, levied), True, house.phase),
    ]


def _citylearn(folder: Path) -> Iterator[House]:
    schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))["buildings"]
    for file in sorted(folder.glob("Building_*.csv"), key=lambda path: int(path.stem[9:])):
        facts, rows = schema[file.stem], _rows(file)
        store = facts["electrical_storage"]["attributes"]
        pv_kw = float(facts["pv"]["attributes"]["nominal_power"])
        load_wh = [round(float(row["non_shiftable_load"]) * 1000) for row in rows]
        pv_wh = [round(float(row["solar_generation"]) * pv_kw) for row in rows]
        battery = _battery(round(store["capacity"] * 1000), round(store["nominal_power"] * 1000))
        yield _house(file.stem, "citylearn", HOUR_S, load_wh, pv_wh, battery)


def _lemlab(folder: Path) -> Iterator[House]:
    suns = [
        [float(row["power"]) for row in _rows(file)]
        for file in sorted((folder / "prosumers" / "pv").glob("pv_*_pu.csv"))
    ]
    for number, file in enumerate(sorted((folder / "prosumers" / "hh").glob("hh_*.csv"))):
        load_wh = [round(float(row["power"]) * QUARTER_S / 3600) for row in _rows(file)]
        pv_wh = [round(share * PV_W * QUARTER_S / 3600) for share in suns[number % len(suns)]]
        yield _house(file.stem, "lemlab", QUARTER_S, load_wh, pv_wh, _battery(6_400, 5_000))


def _house(
    name: str, source: str, slot_s: int, load_wh: list[int], pv_wh: list[int], battery: Battery
) -> House:
    return House(
        name,
        source,
        slot_s,
        STARTS_S[source] // slot_s,
        np.array([max(wh, 0) for wh in load_wh], dtype=np.int64),
        np.array([max(wh, 0) for wh in pv_wh], dtype=np.int64),
        battery,
        name in LOOKED_AT,
        PHASES[source],
    )


def _battery(capacity_wh: int, power_w: int) -> Battery:
    return Battery(capacity_wh, power_w, power_w, soc_min_permille=0)


def _time_of_use(data: Path, house: House) -> Series:
    """The set's own tariff; a home of the other set has dear evenings, 17 to 21 o'clock."""
    if house.source == "citylearn":
        rows = _rows(data / "citylearn_2022" / "pricing.csv")
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
