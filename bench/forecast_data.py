"""
Measured homes for the forecast benchmark, and which of them the constants were chosen on.

- CityLearn 2022: metered houses in Fontana, California, a year of hours. The rows tell the hour by
  the clock of the data set, which never changes; it stands for UTC and for local time here.
- lemlab: 15 household profiles of 45 days in quarters, three PV profiles per unit of peak, all in
  the same weather, with the change to summer time in them. Each home gets 5 kW of PV, in turn.

Both are read with the checks of `sim.tables`; neither is part of the project.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from sim.profiles import CITYLEARN_COLUMNS, LEMLAB_LOAD, LEMLAB_PV
from sim.tables import read_table
from wire.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "shared" / "data"
"""Beside the project."""
CITYLEARN, LEMLAB = "citylearn_2022", "lemlab_15houses"
CITYLEARN_TUNED = ("Building_1", "Building_2", "Building_4", "Building_5")
CITYLEARN_FIRST = datetime(2016, 7, 31, tzinfo=UTC)
LEMLAB_TUNED = 5
"""The first homes by file name."""
LEMLAB_PEAK_W = 5_000
LEMLAB_NOTE = "All homes share three PV profiles and the weather of 23 days: PV is not held out."
LEMLAB_ZONE = ZoneInfo("Europe/Berlin")


@dataclass(frozen=True, slots=True)
class House:
    """One home's measurements; entry k is of slot `first_slot` + k."""

    name: str
    first_slot: int
    load_wh: list[int]
    pv_wh: list[int]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Homes with the same slots."""

    name: str
    slots_per_day: int
    first_days: int
    """Days that a home has seen before it is asked for a forecast."""
    tuned: tuple[House, ...]
    """The constants were chosen on these."""
    held_out: tuple[House, ...]
    offset_s: Callable[[int], int] | None
    """Local time less UTC by slot [s]."""
    note: str = ""
    """What a reader of the figures has to know."""


def read_citylearn(folder: Path) -> DataSet:
    """
    The houses of CityLearn's 2022 challenge.

    Raises:
        ConfigError: no such folder, or a file is not what it should be.
    """
    schema = folder / "schema.json"
    try:
        buildings = json.loads(schema.read_text(encoding="utf-8"))["buildings"]
        peaks_kw = {
            name: float(one["pv"]["attributes"]["nominal_power"]) for name, one in buildings.items()
        }
    except OSError as error:
        raise ConfigError(f"{schema}: cannot be read ({error.strerror}); see --data") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{schema}: expected 'buildings' with their PV in kW") from None
    houses = []
    for path in _sorted(folder, "Building_*.csv"):
        if path.stem not in peaks_kw:
            raise ConfigError(f"{schema}: does not name {path.stem}; add the building with its PV")
        columns = read_table(path, CITYLEARN_COLUMNS).columns
        first = int(CITYLEARN_FIRST.timestamp()) // 3600 + int(columns["hour"][0]) - 1
        load_wh = [round(kwh * 1000) for kwh in columns["non_shiftable_load"]]
        pv_wh = [round(w * peaks_kw[path.stem]) for w in columns["solar_generation"]]
        houses.append(House(path.stem, first, load_wh, pv_wh))
    tuned = tuple(each for each in houses if each.name in CITYLEARN_TUNED)
    others = tuple(each for each in houses if each.name not in CITYLEARN_TUNED)
    return DataSet(folder.name, 24, 28, tuned, others, None)


def read_lemlab(folder: Path) -> DataSet:
    """
    The household profiles of lemlab.

    Raises:
        ConfigError: no such folder, or a file is not what it should be.
    """
    roofs = [
        read_table(path, LEMLAB_PV).columns["power"]
        for path in _sorted(folder / "prosumers" / "pv", "*.csv")
    ]
    houses = []
    for index, path in enumerate(_sorted(folder / "prosumers" / "hh", "*.csv")):
        columns = read_table(path, LEMLAB_LOAD).columns
        roof = roofs[index % len(roofs)]
        if len(roof) != len(columns["power"]):
            raise ConfigError(f"{path}: not as many rows as the PV; both cover the same time")
        load_wh = [round(power_w / 4) for power_w in columns["power"]]
        pv_wh = [round(share * LEMLAB_PEAK_W / 4) for share in roof]
        houses.append(House(path.stem, int(columns["timestamp"][0]) // 900, load_wh, pv_wh))
    tuned, others = tuple(houses[:LEMLAB_TUNED]), tuple(houses[LEMLAB_TUNED:])
    return DataSet(folder.name, 96, 22, tuned, others, _berlin_s, LEMLAB_NOTE)


def _berlin_s(slot: int) -> int:
    offset = datetime.fromtimestamp(slot * 900, LEMLAB_ZONE).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def _sorted(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ConfigError(f"{folder}: no {pattern}; --data names the folder of the data sets")
    return paths
