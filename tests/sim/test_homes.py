"""Made-up homes are plausible and repeatable, and their energy is exact."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import Tariff
from sim.baseline import day_without_market
from sim.homes import BatterySpec, Home, generate_homes, load_home, save_home
from sim.shapes import sun_sine
from wire.errors import ConfigError

START_MS = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000
WMS_PER_KWH = 3_600_000_000
TARIFF = Tariff(300_000, 80_000, 300_000)
SEEDS = range(1, 9)


def make(load_w, pv_w, **rest):
    return Home(
        name="home-01", kind="test", interval_s=300, start_ms=START_MS, load_w=load_w, pv_w=pv_w,
        **rest,
    )  # fmt: skip


def test_ten_homes_are_the_agreed_mix():
    kinds = [home.kind for home in generate_homes(10, 1, START_MS)]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "consumer": 3, "pv": 2, "pv-battery": 3, "vacant": 1, "ev": 1,
    }  # fmt: skip


@pytest.mark.parametrize("count", [4, 10, 13])
def test_four_homes_with_pv_host_validators(count):
    homes = generate_homes(count, 1, START_MS)
    assert [home.has_pv for home in homes if home.validator] == [True] * 4


@pytest.mark.parametrize("seed", SEEDS)
def test_daily_energy_is_plausible(seed):
    for home in generate_homes(10, seed, START_MS):
        for day in range(2):
            span = START_MS + day * DAY_MS, START_MS + (day + 1) * DAY_MS
            load_kwh = home.load_wms(*span) / WMS_PER_KWH
            low, high = {"vacant": (0.4, 2.0), "ev": (12, 32)}.get(home.kind, (6, 15))
            assert low <= load_kwh <= high, (home.name, home.kind)
            pv_kwh = home.pv_wms(*span) / WMS_PER_KWH
            assert (3 <= pv_kwh <= 70) if home.kind.startswith("pv") else pv_kwh == 0
        assert max(home.load_w) <= home.max_import_w
        assert max(home.pv_w) <= home.max_export_w
        assert min(home.load_w) >= 0


@pytest.mark.parametrize("seed", SEEDS)
def test_no_sun_at_night(seed):
    for home in generate_homes(4, seed, START_MS):
        for hour in (0, 1, 2, 3, 21, 22, 23):
            assert home.pv_at(START_MS + hour * 3_600_000) == 0


def test_the_sun_is_highest_at_noon_and_higher_in_june_than_in_december():
    noon_ms = START_MS + DAY_MS // 2
    winter_ms = int(datetime(2026, 12, 21, 12, tzinfo=UTC).timestamp() * 1000)
    assert sun_sine(noon_ms) > max(sun_sine(noon_ms - 7_200_000), sun_sine(noon_ms + 7_200_000))
    assert sun_sine(noon_ms) == pytest.approx(0.883, abs=0.01)  # 62° on 1 June at 50° N
    assert 0.2 < sun_sine(winter_ms) < 0.35


def test_the_evening_is_busier_than_the_night():
    hour_ms = 3_600_000
    homes = generate_homes(40, 5, START_MS)
    night = sum(h.load_wms(START_MS + 2 * hour_ms, START_MS + 5 * hour_ms) for h in homes)
    evening = sum(h.load_wms(START_MS + 18 * hour_ms, START_MS + 21 * hour_ms) for h in homes)
    assert evening > 2 * night


def test_a_car_charges_in_the_evening():
    (car,) = (home for home in generate_homes(10, 1, START_MS) if home.kind == "ev")
    busy = [k for k, power in enumerate(car.load_w[:288]) if power > 7_000]
    assert busy
    assert min(busy) * 300 / 3600 > 17


def test_the_same_seed_makes_the_same_homes_and_another_does_not():
    assert generate_homes(10, 3, START_MS) == generate_homes(10, 3, START_MS)
    assert generate_homes(10, 3, START_MS) != generate_homes(10, 4, START_MS)


def test_a_home_more_changes_no_other():
    assert generate_homes(12, 3, START_MS)[:10] == generate_homes(10, 3, START_MS)


def test_a_profile_that_begins_before_midnight_keeps_its_hours():
    """The demo begins one slot early; the evening must not move with it."""
    early = generate_homes(10, 2, START_MS - 900_000)
    for home in early:
        assert home.pv_at(START_MS + 2 * 3_600_000) == 0
    assert any(home.pv_at(START_MS + 12 * 3_600_000) for home in early)


def test_impossible_arguments_are_refused():
    for arguments in ((0, 1, 0), (1, 1, 0, 0), (1, 1, 0, 1, 700)):
        with pytest.raises(ValueError, match="count="):
            generate_homes(*arguments)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 9000), min_size=1, max_size=5),
    st.lists(st.integers(-2_000_000, 4_000_000), min_size=3, max_size=3).map(sorted),
)
def test_energy_adds_up_exactly_over_any_split(load_w, times):
    home = make(load_w, [0] * len(load_w))
    a, b, c = (START_MS + time for time in times)
    assert home.load_wms(a, c) == home.load_wms(a, b) + home.load_wms(b, c)


def test_a_profile_repeats_and_holds_within_an_interval():
    home = make([100, 200], [0, 50])
    assert [home.load_at(START_MS + s * 1000) for s in (0, 299, 300, 599, 600, -1)] == [
        100, 100, 200, 200, 100, 200,
    ]  # fmt: skip
    assert home.load_wms(START_MS, START_MS + 600_000) == 300_000 * 300
    assert home.pv_wms(START_MS + 300_000, START_MS + 600_000) == 50 * 300_000
    assert home.load_wms(START_MS, START_MS - 5) == 0


def test_intervals_are_counted_from_the_start_of_the_profile():
    """The demo's profiles begin at a quarter to midnight, not at a multiple of their length."""
    home = Home(name="h", kind="test", interval_s=300, start_ms=START_MS + 7_000,
                load_w=[1, 2, 3], pv_w=[0, 0, 0])  # fmt: skip
    assert [home.load_at(START_MS + 7_000 + s * 1000) for s in (-1, 0, 299, 300, 900)] == [
        3, 1, 1, 2, 1,
    ]  # fmt: skip
    assert home.load_wms(START_MS + 7_000 + 299_000, START_MS + 7_000 + 301_000) == 3_000


def test_a_home_survives_its_file(tmp_path):
    for home in generate_homes(4, 1, START_MS):
        save_home(home, tmp_path / "home.json")
        assert load_home(tmp_path / "home.json") == home


@pytest.mark.parametrize("text", ["", "{", "{}", '{"name": 3}', "\xff"])
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "home.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"home\.json"):
        load_home(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        load_home(tmp_path / "nowhere.json")


def test_series_of_different_lengths_are_refused(tmp_path):
    save_home(make([1, 2], [0]), tmp_path / "home.json")
    with pytest.raises(ConfigError, match="of one length"):
        load_home(tmp_path / "home.json")


def test_baseline_without_a_battery_is_the_tariff_on_the_net():
    home = make([1200] * 288, [200] * 144 + [2200] * 144)
    result = day_without_market(home, TARIFF, 900, START_MS, 96)
    assert (result.import_wh, result.export_wh) == (12_000, 12_000)
    assert result.cost_uc == 12 * 300_000 - 12 * 80_000


def test_baseline_battery_shifts_the_surplus_to_the_evening():
    spec = BatterySpec(10_000, 5_000, 5_000, efficiency_permille=810, soc0_permille=0)
    home = make([0] * 144 + [500] * 144, [500] * 144 + [0] * 144, battery=spec)
    result = day_without_market(home, TARIFF, 900, START_MS, 96)
    assert result.export_wh == 0  # 6 kWh in, at 90 % 5.4 kWh stored
    assert result.import_wh == pytest.approx(6_000 - 5_400 * 0.9, abs=3)
    assert result.soc_end_permille == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_baseline_balances_for_made_up_homes(seed):
    for home in generate_homes(10, seed, START_MS):
        result = day_without_market(home, TARIFF, 900, START_MS, 96)
        span = START_MS, START_MS + DAY_MS
        net_wh = (home.load_wms(*span) - home.pv_wms(*span)) / 3_600_000
        if home.battery is None:
            assert result.import_wh - result.export_wh == pytest.approx(net_wh, abs=2)
        else:  # losses only ever add to what comes from the grid
            start_wh = home.battery.capacity_wh * home.battery.soc0_permille / 1000
            end_wh = home.battery.capacity_wh * result.soc_end_permille / 1000
            stored_wh = end_wh - start_wh
            assert result.import_wh - result.export_wh >= net_wh + min(stored_wh, 0) - 20
