"""Limits from outside: the tightest holds, ended ones are gone, setpoints keep to them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.battery import Battery
from hem.controller.limits import Caps, Limit, caps_between, fault_of
from hem.controller.setpoint import setpoint_w

BATTERY = Battery(8_000, 3_000, 4_000, soc_min_permille=100)
powers = st.integers(0, 9_000)
caps_w = st.one_of(st.none(), st.integers(0, 9_000))


def caps(import_w, export_w):
    return Caps(
        None if import_w is None else Limit("import", import_w, "dso"),
        None if export_w is None else Limit("export", export_w, "dso"),
    )


def test_the_tightest_of_those_that_hold_counts():
    limits = [
        Limit("import", 9_000, "connection"),
        Limit("import", 5_000, "dso", 100, 200),
        Limit("import", 4_200, "household", 150, 160),
        Limit("export", 3_000, "dso", 0, 120),
    ]
    assert caps_between(limits, 0, 100).import_w == 9_000
    assert caps_between(limits, 100, 110).import_w == 5_000
    assert caps_between(limits, 140, 151).import_w == 4_200, "a moment of it is enough"
    assert caps_between(limits, 160, 170).import_w == 5_000
    assert caps_between(limits, 200, 210) == Caps(limits[0]), "ended by itself"


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (Limit("import", 4_199, "dso", 0, 99), "4200"),
        (Limit("export", -1, "dso", 0, 99), "give 0"),
        (Limit("export", 0, "dso", 0, 10), "ended already"),
        (Limit("export", 0, "dso", 99, 99), "ended already"),
        (Limit("export", 0, "dso"), "31 days"),
    ],
)
def test_what_nobody_may_ask_for_is_refused(limit, told):
    assert told in fault_of(limit, 10)


@pytest.mark.parametrize(
    "limit", [Limit("import", 4_200, "dso", 0, 99), Limit("export", 0, "dso", 0, 99)]
)
def test_what_may_be_asked_for_is_taken(limit):
    assert fault_of(limit, 10) == ""


def test_import_above_a_limit_is_covered_from_the_battery_reserve_included():
    power_w = setpoint_w(1_500, 0, 900, 6_500, 0, 4_000, BATTERY, True, 4_000, caps(4_200, None))
    assert 6_500 - power_w == 4_200


def test_what_was_sold_is_not_exported_above_a_limit():
    assert setpoint_w(-500, 0, 900, 500, 0, 7_000, BATTERY, True, 0, caps(None, 1_000)) == 1_500


def test_export_above_a_limit_is_stored():
    assert setpoint_w(-500, 0, 900, 0, 4_000, 2_000, BATTERY, True, 0, caps(None, 1_500)) == -2_500


@settings(max_examples=300, deadline=None)
@given(
    st.integers(-2_000, 2_000), st.integers(-2_000, 2_000), st.integers(0, 900), powers, powers,
    st.integers(0, 8_000), caps_w, caps_w, st.integers(0, 8_000),
)  # fmt: skip
def test_limits_are_kept_as_far_as_the_battery_can(
    position, so_far, left, load, pv, soc, import_w, export_w, reserve
):
    held = caps(import_w, export_w)
    power = setpoint_w(position, so_far, left, load, pv, soc, BATTERY, True, reserve, held)
    grid_w = load - pv - power
    assert -3_000 <= power <= 4_000, "rates"
    seconds = max(left, 30)
    if power < 0:
        assert BATTERY.after(soc, -power * seconds // 3600, 0) <= BATTERY.ceiling_wh
    if import_w is not None and grid_w > import_w:
        lasts_s = min(seconds, 180)
        could_w = min(4_000, BATTERY.discharge_limit_wh(soc, 10**9) * 3600 // lasts_s)
        assert power == max(could_w, 0), "all that there is covers the load"
    if export_w is not None and -grid_w > export_w:
        could_w = min(3_000, BATTERY.charge_limit_wh(soc, 10**9) * 3600 // seconds)
        assert power == -could_w, "only the sun's own export is above it"
