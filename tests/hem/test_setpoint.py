"""The battery's power within a slot."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.battery import Battery
from hem.controller.setpoint import setpoint_w

BATTERY = Battery(8_000, 3_000, 4_000, soc_min_permille=100)
powers = st.integers(0, 9_000)


def test_without_a_position_the_battery_covers_the_home_and_takes_its_surplus():
    assert setpoint_w(0, 50, 600, 800, 300, 4_000, BATTERY, False) == 500
    assert setpoint_w(0, 50, 600, 300, 800, 4_000, BATTERY, False) == -500


def test_a_sale_is_delivered_evenly_over_the_slot():
    assert setpoint_w(-250, 0, 900, 200, 0, 4_000, BATTERY, True) == 1_200


def test_what_was_missed_is_made_good_later_in_the_slot():
    assert setpoint_w(-250, 0, 450, 200, 0, 4_000, BATTERY, True) == 2_200


def test_what_was_exported_too_much_is_taken_back():
    assert setpoint_w(-250, -300, 450, 0, 0, 4_000, BATTERY, True) == -400


def test_bought_energy_beyond_the_load_is_stored():
    assert setpoint_w(250, 0, 900, 200, 0, 4_000, BATTERY, True) == -800


def test_without_a_battery_there_is_nothing_to_set():
    assert setpoint_w(-250, 0, 900, 200, 0, None, None, True) == 0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(-2_000, 2_000), st.integers(-2_000, 2_000), st.integers(0, 900), powers, powers,
    st.integers(0, 8_000), st.booleans(),
)  # fmt: skip
def test_rates_and_soc_are_respected(position, so_far, left, load, pv, soc, contracted):
    power = setpoint_w(position, so_far, left, load, pv, soc, BATTERY, contracted)
    assert -3_000 <= power <= 4_000
    moved_wh = abs(power) * left // 3600
    if power > 0:
        assert BATTERY.after(soc, 0, moved_wh) >= BATTERY.floor_wh
    if power < 0:
        assert BATTERY.after(soc, moved_wh, 0) <= BATTERY.ceiling_wh


@settings(max_examples=40, deadline=None)
@given(st.integers(-2_000, 2_000), st.integers(1, 900), powers, powers, st.integers(0, 8_000))
def test_the_battery_never_exports_more_than_the_position_needs(position, left, load, pv, soc):
    power = setpoint_w(position, 0, left, load, pv, soc, BATTERY, True)
    if power > 0:
        export_w = power + pv - load
        assert export_w * left <= max(-position, 0) * 3600


@settings(max_examples=40, deadline=None)
@given(powers, powers, st.integers(0, 8_000))
def test_self_consumption_never_crosses_zero(load, pv, soc):
    power = setpoint_w(0, 0, 900, load, pv, soc, BATTERY, False)
    assert min(load - pv, 0) <= power <= max(load - pv, 0)
