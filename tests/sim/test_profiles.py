"""Homes from measured profiles: both layouts, and every way in which a file can be broken."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sim.profiles import load_profiles
from wire.errors import ConfigError

START_MS = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000
WMS_PER_KWH = 3_600_000_000
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def bell(hour):
    return max(0.0, math.sin(math.pi * (hour - 6) / 12))


def write_citylearn(folder, houses=2, days=6):
    """Brighter every day, so that the choice of a day can be told from the values."""
    battery = {"capacity": 6.4, "nominal_power": 5.0, "efficiency": 0.9}
    buildings = {}
    for number in range(1, houses + 1):
        lines = ["month,hour,non_shiftable_load,solar_generation", "7,24,0.5,0.0"]
        for day in range(days):
            lines += [
                f"8,{hour},{0.25 * number},{bell(hour) * (100 + 100 * day):.3f}"
                for hour in range(1, 25)
            ]
        (folder / f"Building_{number}.csv").write_text("\n".join(lines) + "\n")
        buildings[f"Building_{number}"] = {
            "pv": {"attributes": {"nominal_power": 4.0}},
            "electrical_storage": {"attributes": battery} if number == 1 else None,
        }
    (folder / "schema.json").write_text(json.dumps({"buildings": buildings}))
    return folder


def write_lemlab(folder, houses=10, days=5):
    def write(name, header, row):
        path = folder / "prosumers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [header]
        lines += [f"{1_613_343_600 + 900 * k}," + row(k) for k in range(96 * days)]
        path.write_text("\n".join(lines) + "\n")

    for number in range(houses):
        write(f"hh/hh_{number}.csv", "timestamp,power,heat", lambda k, n=number: f"{200 + n},0")
    write("pv/pv_1_pu.csv", "timestamp,power", lambda k: f"{bell(k % 96 / 4) * 0.8:.4f}")
    write(
        "ev/ev_1.csv", "timestamp,availability,distance_driven",
        lambda k: "0.0,5.0" if 32 <= k % 96 < 36 else "1.0,0.0",
    )  # fmt: skip
    return folder


def damage(path, line, old, new):
    lines = path.read_text().split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines))


def test_citylearn_units_are_kwh_in_the_hour_and_w_per_kw(tmp_path):
    one, two = load_profiles(write_citylearn(tmp_path), 2, 1, START_MS, 1)
    assert one.interval_s == 3600
    assert set(one.load_w) == {250}
    assert set(two.load_w) == {500}
    assert max(one.pv_w) % 400 == 0  # 100 W/kW more each day, from 4 kW
    assert one.battery is not None
    assert (one.battery.capacity_wh, one.battery.max_charge_w) == (6_400, 5_000)
    assert two.battery is None


def test_citylearn_hours_end_at_their_number(tmp_path):
    """Hour 12 is the one from 11:00 to 12:00; the file's bell peaks in it."""
    (one,) = load_profiles(write_citylearn(tmp_path), 1, 1, START_MS, 1)
    assert one.pv_w.index(max(one.pv_w)) == 11
    assert one.start_ms == START_MS


def test_the_day_is_among_the_sunnier_half(tmp_path):
    folder = write_citylearn(tmp_path, days=6)
    peaks = {max(load_profiles(folder, 1, seed, START_MS, 1)[0].pv_w) for seed in range(40)}
    assert peaks == {1600, 2000}  # of 400 … 2400: the better half without the best


def test_the_same_seed_chooses_the_same_day_and_equipment(tmp_path):
    folder = write_lemlab(tmp_path)
    assert load_profiles(folder, 10, 5, START_MS) == load_profiles(folder, 10, 5, START_MS)


def test_days_begin_at_the_midnight_nearest_to_the_start(tmp_path):
    """A run that begins a slot before midnight must not have its sun a slot early."""
    (home,) = load_profiles(write_citylearn(tmp_path), 1, 1, START_MS - 900_000, 1)
    assert home.start_ms == START_MS


def test_lemlab_gets_pv_for_half_batteries_for_a_third_and_one_car(tmp_path):
    homes = load_profiles(write_lemlab(tmp_path), 10, 1, START_MS, 1)
    assert sum(home.has_pv for home in homes) == 5
    assert sum(home.battery is not None for home in homes) == 4
    assert [home.kind for home in homes].count("ev") == 1
    assert all(2_400 <= home.pv_peak_w <= 6_400 for home in homes if home.has_pv)  # 0.8 of peak
    assert sum(home.validator for home in homes) == 4
    assert {home.interval_s for home in homes} == {900}


def test_the_car_gets_what_it_drove(tmp_path):
    homes = load_profiles(write_lemlab(tmp_path), 10, 1, START_MS, 1)
    (car,) = (home for home in homes if home.kind == "ev")
    house_w = min(car.load_w)
    charged_wh = sum(power - house_w for power in car.load_w) / 4
    assert charged_wh == pytest.approx(20 * 180, abs=1)
    assert car.load_w[36] - house_w == 7_360  # right after it came home


@pytest.mark.parametrize(
    ("file", "line", "old", "new", "said"),
    [
        ("Building_2.csv", 1, "solar_generation", "sun", "line 1, column 'solar_generation'"),
        ("Building_2.csv", 7, "0.5", "much", r"line 7, column 'non_shiftable_load': 'much' is not"),
        ("Building_2.csv", 7, "0.5", "nan", r"line 7, column 'non_shiftable_load': nan is not"),
        ("Building_2.csv", 7, "0.5", "inf", "line 7.*finite"),
        ("Building_2.csv", 7, "0.5", "-0.5", r"line 7, column 'non_shiftable_load'.*negative"),
        ("Building_2.csv", 7, "0.5", "", "line 7.*not a number"),
        ("Building_2.csv", 7, "0.5,", "", r"line 7: 3 fields, but the header names 4"),
        ("Building_2.csv", 7, "8,5", "8,6", r"line 7, column 'hour': 6 where 5 follows"),
        ("schema.json", 1, '"nominal_power": 4.0', '"nominal_power": "big"', "Building_1.*'big'"),
        ("schema.json", 1, '"efficiency": 0.9', '"efficiency": 90', "efficiency 90"),
        ("schema.json", 1, "Building_2", "Building_7", "does not name Building_2"),
        ("schema.json", 1, "buildings", "houses", "expected an object 'buildings'"),
        ("schema.json", 1, "{", "[", "schema.json, line 1: not JSON"),
    ],
)
def test_a_broken_citylearn_file_is_told_with_its_place(tmp_path, file, line, old, new, said):
    folder = write_citylearn(tmp_path)
    damage(folder / file, line, old, new)
    with pytest.raises(ConfigError, match=said) as caught:
        load_profiles(folder, 2, 1, START_MS, 1)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "line", "old", "new", "said"),
    [
        ("hh/hh_3.csv", 1, "power", "watts", "line 1, column 'power': is missing"),
        ("hh/hh_3.csv", 9, "203", "x", "line 9, column 'power': 'x' is not a number"),
        ("hh/hh_3.csv", 9, "203", "NaN", "line 9, column 'power'"),
        ("hh/hh_3.csv", 9, "203", "-4", "line 9, column 'power': -4 is negative"),
        ("hh/hh_3.csv", 3, "1613344500", "1613344501", "line 3, column 'timestamp'.*no gaps"),
        ("pv/pv_1_pu.csv", 60, ",0.", ",3.", "line 60, column 'power': 3.* is above 1"),
    ],
)
def test_a_broken_lemlab_file_is_told_with_its_place(tmp_path, file, line, old, new, said):
    folder = write_lemlab(tmp_path)
    damage(folder / "prosumers" / file, line, old, new)
    with pytest.raises(ConfigError, match=said) as caught:
        load_profiles(folder, 10, 1, START_MS, 1)
    assert file in str(caught.value)


def test_files_of_different_lengths_are_told(tmp_path):
    folder = write_citylearn(tmp_path)
    path = folder / "Building_2.csv"
    path.write_text("\n".join(path.read_text().split("\n")[:50]))
    with pytest.raises(ConfigError, match=r"Building_2\.csv: 49 rows, but Building_1\.csv has 145"):
        load_profiles(folder, 2, 1, START_MS, 1)


def test_files_of_different_times_are_told(tmp_path):
    folder = write_lemlab(tmp_path)
    path = folder / "prosumers" / "pv" / "pv_1_pu.csv"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], *lines[2:-1], "1613775600,0.0"]))
    with pytest.raises(ConfigError, match="begins at 1613344500"):
        load_profiles(folder, 10, 1, START_MS, 1)


def test_a_folder_that_is_not_there_or_not_known_is_told(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        load_profiles(tmp_path / "nowhere", 4, 1, START_MS)
    with pytest.raises(ConfigError, match="unknown layout; expected CityLearn"):
        load_profiles(tmp_path, 4, 1, START_MS)


def test_missing_files_are_told(tmp_path):
    folder = write_citylearn(tmp_path)
    (folder / "schema.json").unlink()
    with pytest.raises(ConfigError, match=r"schema\.json: cannot be read"):
        load_profiles(folder, 2, 1, START_MS, 1)
    lemlab = write_lemlab(tmp_path / "lemlab")
    (lemlab / "prosumers" / "pv" / "pv_1_pu.csv").unlink()
    with pytest.raises(ConfigError, match=r"pv: no \*\.csv"):
        load_profiles(lemlab, 4, 1, START_MS)


@pytest.mark.parametrize("content", [b"", b"month,hour,non_shiftable_load,solar_generation\n"])
def test_an_empty_file_is_told(tmp_path, content):
    folder = write_citylearn(tmp_path)
    (folder / "Building_2.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=r"Building_2\.csv"):
        load_profiles(folder, 2, 1, START_MS, 1)


def test_a_file_that_is_not_text_is_told(tmp_path):
    folder = write_citylearn(tmp_path)
    (folder / "Building_2.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"Building_2\.csv: not a CSV file in UTF-8"):
        load_profiles(folder, 2, 1, START_MS, 1)


def test_more_homes_or_days_than_measured_are_refused(tmp_path):
    folder = write_citylearn(tmp_path)
    with pytest.raises(ConfigError, match="has 2 houses and 3 were asked for"):
        load_profiles(folder, 3, 1, START_MS, 1)
    with pytest.raises(ConfigError, match="6 whole days of data, 9 needed"):
        load_profiles(folder, 2, 1, START_MS, 9)


@pytest.mark.parametrize("name", ["citylearn_2022", "lemlab_15houses"])
def test_the_published_data_sets_load(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not beside the project (../shared/data/{name})")
    homes = load_profiles(folder, 10, 1, START_MS)
    assert sum(home.validator for home in homes) == 4
    for home in homes:
        load_kwh = home.load_wms(START_MS, START_MS + DAY_MS) / WMS_PER_KWH
        assert 1 < load_kwh < 80
        assert home.pv_at(START_MS + 3_600_000) == 0
        assert max(home.load_w) <= home.max_import_w
