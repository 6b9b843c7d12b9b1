"""
Homes from measured profiles, in the layouts of two public data sets.

- **CityLearn** (2022): `schema.json` and `Building_*.csv`, hourly. `solar_generation` is W
  for each kW installed, `non_shiftable_load` kWh in the hour; PV and battery sizes stand in the
  schema. Hour h of a file is the one that ends at h:00; it is held constant, so a quarter-hour
  market sees four equal slots.
- **lemlab**: `prosumers/hh/*.csv` (W, every 15 minutes), `prosumers/pv/*.csv` (per unit of peak).
  The set names no equipment, so the seed gives PV of 3 to 8 kWp to half of the houses (and at least
  four), a battery to a third, and a car from `prosumers/ev/*.csv`, if there, to one without PV.

A day is 24 hours of rows from the first midnight on, whatever daylight saving does, and is played
as a UTC day of the market. The seed chooses it among the sunnier half of the set without its very
best tenth, so that there is something to trade.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from sim.homes import (
    CONNECTION_W,
    VALIDATORS,
    BatterySpec,
    Home,
    export_limit_w,
    home_name,
    make_battery,
)
from sim.shapes import MS_PER_DAY
from sim.tables import Table, read_table
from wire.errors import ConfigError

HOUR_S, QUARTER_S = 3600, 900
HOURS = 24
QUARTERS = 96
CITYLEARN_SOC0_PERMILLE = 300
"""The data set does not say; the night has used most of the day before."""
CAR_KWH_PER_KM = 0.18
CAR_CHARGER_W = 7_360
SIZE_MAX = 1e6
"""Of a home's equipment [kW, kWh]; more is a mistake in the schema."""

CITYLEARN_COLUMNS = {
    "hour": "the hour of the day, 1 to 24",
    "non_shiftable_load": "the house's load [kWh in the hour]",
    "solar_generation": "PV output [W per kW installed]",
}
LEMLAB_LOAD = {"timestamp": "Unix time [s]", "power": "the house's load [W]"}
LEMLAB_PV = {"timestamp": "Unix time [s]", "power": "PV output per unit of peak, 0 to 1"}
LEMLAB_CAR = {
    "timestamp": "Unix time [s]",
    "availability": "1 while the car is at home, else 0",
    "distance_driven": "km driven in the interval",
}


def load_profiles(folder: Path, count: int, seed: int, start_ms: int, days: int = 2) -> list[Home]:
    """
    The first `count` houses of a data set, on days chosen by `seed`.

    The chosen days begin at the midnight (UTC) nearest to `start_ms`; before it and after them they
    repeat.

    Args:
        folder: a data set in one of the two layouts
        start_ms: about when the market's day begins
        days: consecutive days taken

    Raises:
        ConfigError: unknown layout, too few houses or days, or a broken file (file, line, column).
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of profiles")
    midnight_ms = (start_ms + MS_PER_DAY // 2) // MS_PER_DAY * MS_PER_DAY
    if (folder / "schema.json").exists() or _sorted(folder, "Building_*.csv"):
        return _citylearn(folder, count, seed, midnight_ms, days)
    if (folder / "prosumers" / "hh").is_dir():
        return _lemlab(folder / "prosumers", count, seed, midnight_ms, days)
    raise ConfigError(
        f"{folder}: unknown layout; expected CityLearn's (schema.json, Building_*.csv)"
        " or lemlab's (prosumers/hh/*.csv, prosumers/pv/*.csv)"
    )


# CityLearn


@dataclass(frozen=True, slots=True)
class _Equipment:
    """What the schema says about one building."""

    pv_kw: float
    battery: BatterySpec | None


def _citylearn(folder: Path, count: int, seed: int, start_ms: int, days: int) -> list[Home]:
    paths = _enough(folder, _sorted(folder, "Building_*.csv"), count, "Building_*.csv")
    equipment = _read_schema(folder / "schema.json")
    tables = [read_table(path, CITYLEARN_COLUMNS) for path in paths]
    _same_length(tables)
    for table in tables:
        _check_hours(table)
    first = _first_midnight(tables[0])
    suns = [table.columns["solar_generation"][first:] for table in tables]
    from_row = first + HOURS * _sunny_day(folder, suns, HOURS, days, seed)
    homes = []
    for index, table in enumerate(tables):
        rows = slice(from_row, from_row + HOURS * days)
        if table.path.stem not in equipment:
            raise ConfigError(f"{folder / 'schema.json'}: does not name {table.path.stem}")
        owned = equipment[table.path.stem]
        homes.append(
            _home(
                index,
                HOUR_S,
                start_ms,
                [round(kwh * 1000) for kwh in table.columns["non_shiftable_load"][rows]],
                [round(w * owned.pv_kw) for w in table.columns["solar_generation"][rows]],
                owned.battery,
            )
        )
    return _with_validators(homes)


def _read_schema(path: Path) -> dict[str, _Equipment]:
    try:
        buildings = json.loads(path.read_text(encoding="utf-8"))["buildings"]
        return {name: _equipment(path, name, building) for name, building in buildings.items()}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); it names PV sizes") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path}: expected an object 'buildings' of buildings by name") from None


def _equipment(path: Path, name: str, building: dict[str, Any]) -> _Equipment:
    pv_kw = _size(path, name, building, "pv", "nominal_power", "kW")
    capacity_kwh = _size(path, name, building, "electrical_storage", "capacity", "kWh")
    battery = None
    if capacity_kwh:
        power_kw = _size(path, name, building, "electrical_storage", "nominal_power", "kW")
        share = _size(path, name, building, "electrical_storage", "efficiency", "0 to 1")
        if not 0 < share <= 1:
            raise ConfigError(f"{path}, {name}: efficiency {share} is not above 0 and up to 1")
        power_w = round(power_kw * 1000)
        battery = BatterySpec(
            capacity_wh=round(capacity_kwh * 1000),
            max_charge_w=power_w,
            max_discharge_w=power_w,
            efficiency_permille=round(share * 1000),
            soc0_permille=CITYLEARN_SOC0_PERMILLE,
        )
    return _Equipment(pv_kw, battery)


def _size(
    path: Path, name: str, building: dict[str, Any], device: str, key: str, unit: str
) -> float:
    """A device's attribute; 0 for a building without the device."""
    if building.get(device) is None:
        return 0.0
    value = building[device]["attributes"].get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= SIZE_MAX:
        raise ConfigError(
            f"{path}, {name}: {device}.attributes.{key} is {value!r}; write a number [{unit}]"
        )
    return float(value)


def _check_hours(table: Table) -> None:
    hours = table.columns["hour"]
    for row in range(len(hours)):
        expected = hours[row - 1] % HOURS + 1 if row else hours[0]
        if hours[row] != expected or hours[row] not in range(1, HOURS + 1):
            raise table.wrong(row, "hour", f"{hours[row]:g} where {expected:g} follows; no gaps")


def _first_midnight(table: Table) -> int:
    """The row of the first hour 1."""
    return int(HOURS + 1 - table.columns["hour"][0]) % HOURS


# lemlab


def _lemlab(folder: Path, count: int, seed: int, start_ms: int, days: int) -> list[Home]:
    paths = _enough(folder, _sorted(folder / "hh", "*.csv"), count, "hh/*.csv")
    loads = [read_table(path, LEMLAB_LOAD) for path in paths]
    roofs = [read_table(path, LEMLAB_PV) for path in _sorted(folder / "pv", "*.csv")]
    if not roofs:
        raise ConfigError(f"{folder / 'pv'}: no *.csv; PV output per unit of peak belongs here")
    cars = [read_table(path, LEMLAB_CAR) for path in _sorted(folder / "ev", "*.csv")[:1]]
    tables = [*loads, *roofs, *cars]
    _same_length(tables)
    for table in tables:
        _check_quarters(table, loads[0])
    for table in roofs:
        _at_most_one(table, "power")
    suns = [table.columns["power"] for table in roofs]
    from_row = QUARTERS * _sunny_day(folder, suns, QUARTERS, days, seed)
    rows = slice(from_row, from_row + QUARTERS * days)
    rng = Random(f"{seed}/lemlab")
    with_pv = rng.sample(range(count), min(count, max(VALIDATORS, math.ceil(count / 2))))
    with_battery = set(with_pv[: math.ceil(count / 3)])
    with_car = next((i for i in range(count) if i not in with_pv), None) if cars else None
    homes = []
    for index, table in enumerate(loads):
        load_w = [round(power) for power in table.columns["power"][rows]]
        pv_w = [0] * len(load_w)
        if index in with_pv:
            peak_w = rng.randrange(3_000, 8_001, 500)
            roof = roofs[index % len(roofs)].columns["power"][rows]
            pv_w = [round(share * peak_w) for share in roof]
        if index == with_car:
            car_w = _charging_w(cars[0], rows)
            load_w = [house + car for house, car in zip(load_w, car_w, strict=True)]
        battery = make_battery(rng) if index in with_battery else None
        kind = "ev" if index == with_car else ""
        homes.append(_home(index, QUARTER_S, start_ms, load_w, pv_w, battery, kind))
    return _with_validators(homes)


def _charging_w(car: Table, rows: slice) -> list[int]:
    """Charge what was driven, as soon as the car is at home."""
    owed_wh = 0.0
    series = []
    for at_home, km in zip(
        car.columns["availability"][rows], car.columns["distance_driven"][rows], strict=True
    ):
        owed_wh += km * CAR_KWH_PER_KM * 1000
        power_w = min(CAR_CHARGER_W, owed_wh * HOUR_S / QUARTER_S) if at_home else 0.0
        owed_wh -= power_w * QUARTER_S / HOUR_S
        series.append(round(power_w))
    return series


def _check_quarters(table: Table, reference: Table) -> None:
    times, start = table.columns["timestamp"], reference.columns["timestamp"][0]
    if times[0] != start:
        raise table.wrong(0, "timestamp", f"begins at {times[0]:.0f}, the houses at {start:.0f}")
    for row in range(1, len(times)):
        if times[row] - times[row - 1] != QUARTER_S:
            raise table.wrong(
                row, "timestamp", f"{times[row]:.0f} is not 900 s after the line before; no gaps"
            )


def _at_most_one(table: Table, column: str) -> None:
    for row, value in enumerate(table.columns[column]):
        if value > 1:
            raise table.wrong(row, column, f"{value:g} is above 1; write the share of peak power")


# Both


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """Files in natural order: Building_2 before Building_10."""
    return sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))


def _enough(folder: Path, paths: list[Path], count: int, pattern: str) -> list[Path]:
    if not paths:
        raise ConfigError(f"{folder}: no {pattern}; there must be one file for each house")
    if count > len(paths):
        raise ConfigError(
            f"{folder}: has {len(paths)} houses and {count} were asked for;"
            f" use --homes {len(paths)} or fewer"
        )
    return paths[:count]


def _same_length(tables: Sequence[Table]) -> None:
    for table in tables[1:]:
        if len(table) != len(tables[0]):
            raise ConfigError(
                f"{table.path}: {len(table)} rows, but {tables[0].path.name} has {len(tables[0])};"
                " all files must cover the same time"
            )


def _sunny_day(folder: Path, suns: list[list[float]], steps: int, days: int, seed: int) -> int:
    """The index of a day whose sunshine, with the days after it, is high but not the highest."""
    most = len(suns[0]) // steps - days
    if most < 0:
        raise ConfigError(f"{folder}: {len(suns[0]) // steps} whole days of data, {days} needed")
    light = [
        sum(sum(sun[steps * day : steps * (day + days)]) for sun in suns) for day in range(most + 1)
    ]
    ranked = sorted(range(most + 1), key=lambda day: (light[day], day))
    sunny = ranked[len(ranked) // 2 : max(len(ranked) * 9 // 10, len(ranked) // 2 + 1)]
    return Random(f"{seed}/day").choice(sunny)


def _home(
    index: int,
    interval_s: int,
    start_ms: int,
    load_w: list[int],
    pv_w: list[int],
    battery: BatterySpec | None,
    kind: str = "",
) -> Home:
    charge_w = battery.max_charge_w if battery else 0
    return Home(
        name=home_name(index),
        kind=kind or ("pv" if any(pv_w) else "consumer") + ("-battery" if battery else ""),
        interval_s=interval_s,
        start_ms=start_ms,
        load_w=load_w,
        pv_w=pv_w,
        battery=battery,
        max_import_w=max(CONNECTION_W, max(load_w) + charge_w),
        max_export_w=export_limit_w(max(pv_w), battery),
    )


def _with_validators(homes: list[Home]) -> list[Home]:
    """Mark the first four homes with PV."""
    hosts = [home.name for home in homes if home.has_pv][:VALIDATORS]
    return [msgspec.structs.replace(home, validator=home.name in hosts) for home in homes]
