"""The battery model: TMI equations 1 to 8."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.battery import Battery, degradation_cost_uc_per_kwh

batteries = st.builds(
    Battery,
    st.integers(1_000, 20_000),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(700, 1000),
    st.integers(700, 1000),
    st.integers(0, 300),
    st.integers(700, 1000),
)


def test_worked_example():
    battery = Battery(10_000, 5_000, 4_000, 900, 900, 100, 900)
    assert battery.charge_limit_wh(5_000, 900) == 1_250  # the rate limits (eq 4)
    assert battery.charge_limit_wh(8_910, 900) == 100  # the ceiling limits (eqs 1, 2)
    assert battery.discharge_limit_wh(5_000, 900) == 1_000  # (eq 5)
    assert battery.discharge_limit_wh(1_100, 900) == 90  # (eqs 1, 3)
    assert battery.after(5_000, 1_000, 0) == 5_900  # (eq 6)
    assert battery.after(5_000, 0, 900) == 4_000


@settings(max_examples=40, deadline=None)
@given(batteries, st.data(), st.integers(0, 7_200))
def test_charging_within_the_limit_never_passes_the_ceiling(battery, data, seconds):
    soc = data.draw(st.integers(battery.floor_wh, battery.ceiling_wh))
    limit = battery.charge_limit_wh(soc, seconds)
    assert 0 <= limit * 3600 <= battery.max_charge_w * seconds
    assert battery.after(soc, limit, 0) <= battery.ceiling_wh


@settings(max_examples=40, deadline=None)
@given(batteries, st.data(), st.integers(0, 7_200))
def test_discharging_within_the_limit_never_passes_the_floor(battery, data, seconds):
    soc = data.draw(st.integers(battery.floor_wh, battery.ceiling_wh))
    limit = battery.discharge_limit_wh(soc, seconds)
    assert 0 <= limit * 3600 <= battery.max_discharge_w * seconds
    assert battery.after(soc, 0, limit) >= battery.floor_wh


@settings(max_examples=40, deadline=None)
@given(batteries, st.integers(0, 5_000))
def test_a_round_trip_never_creates_energy(battery, energy_wh):
    stored = battery.after(0, energy_wh, 0)
    assert stored <= energy_wh
    assert battery.after(stored, 0, energy_wh) <= 0


def test_outside_its_range_a_battery_gives_and_takes_nothing():
    battery = Battery(10_000, 5_000, 5_000, soc_min_permille=100, soc_max_permille=900)
    assert battery.discharge_limit_wh(500, 900) == 0
    assert battery.charge_limit_wh(9_500, 900) == 0


def test_degradation_is_cost_over_throughput_and_proportional_to_energy():
    price = degradation_cost_uc_per_kwh(2_400_000_000, 40_000_000)
    assert price == 60_000
    assert Battery(1_000, 1, 1).degradation_uc(2_500, price) == 150_000


@pytest.mark.parametrize(
    "bad", [(0, 1, 1), (1, -1, 1), (1, 1, 1, 0), (1, 1, 1, 900, 900, 900, 100)]
)
def test_an_impossible_battery_is_refused(bad):
    with pytest.raises(ValueError):
        Battery(*bad)


def test_a_lifetime_without_throughput_is_refused():
    with pytest.raises(ValueError):
        degradation_cost_uc_per_kwh(1, 0)
