"""A device that says the very same while energy flows is found out, and no other."""

from __future__ import annotations

import pytest

from hem.gateway.frozen import GAP_S_MAX, STEP_WH, STILL_S, Frozen
from hem.gateway.source import Sample

GRID = {"grid_w": 6_000, "import_wh": 10_000, "export_wh": 500}
PV = {"pv_w": 6_000, "generation_wh": 10_000}
BATTERY = {"battery_w": -6_000, "soc_permille": 500, "capacity_wh": 10_000}
ENOUGH_S = STEP_WH * 3_600 // 6_000


def looked(values, until_s, every_s=10, changed=lambda at_s: {}):
    """What is said at the end of so many looks."""
    frozen, said = Frozen(), ""
    for at_s in range(0, until_s + 1, every_s):
        said = frozen.look(Sample(**(values | changed(at_s))), float(at_s))
    return said


@pytest.mark.parametrize("values", [GRID, GRID | {"grid_w": -6_000}, PV, BATTERY])
def test_a_power_beside_a_counter_that_stands_is_frozen(values):
    assert ENOUGH_S > STILL_S
    assert looked(values, ENOUGH_S - 10) == ""
    assert "nothing has moved" in looked(values, ENOUGH_S)


@pytest.mark.parametrize(
    "values",
    [
        GRID | {"grid_w": 0},
        GRID | {"grid_w": 40},
        GRID | {"grid_w": None},
        GRID | {"import_wh": None},
        PV | {"generation_wh": None},
        {"load_w": 6_000},
        BATTERY | {"soc_permille": 1_000, "battery_w": -100},
        BATTERY | {"soc_permille": 0, "battery_w": 100},
        BATTERY | {"capacity_wh": None},
        BATTERY | {"soc_permille": None},
        {},
    ],
)
def test_what_nothing_counts_is_never_frozen(values):
    assert looked(values, 3 * 86_400, every_s=30) == ""


@pytest.mark.parametrize("name", ["grid_w", "import_wh", "export_wh", "pv_w"])
def test_any_number_that_moves_is_a_sign_of_life(name):
    def changed(at_s):
        return {name: 6_000 + at_s // (ENOUGH_S // 2) % 2}

    assert looked(GRID | PV, 10 * ENOUGH_S, changed=changed) == ""


def test_a_counter_of_whole_kilowatt_hours_is_not_taken_for_frozen():
    """A curtailed inverter stands at its limit for hours."""

    def changed(at_s):
        return {"generation_wh": at_s * 6_000 // 3_600 // 1_000 * 1_000}

    assert looked(PV, 6 * 3_600, changed=changed) == ""


def test_a_big_battery_may_take_longer_to_show_it():
    big = BATTERY | {"capacity_wh": 100_000}
    assert looked(big, 2 * ENOUGH_S) == ""
    assert looked(big, 3 * ENOUGH_S)


def test_time_that_nobody_looked_is_not_counted():
    assert looked(GRID, 100 * 600, every_s=600) != ""
    assert looked(GRID, (int(STILL_S / GAP_S_MAX) - 1) * 600, every_s=600) == ""


def test_little_power_takes_its_time_however_long_it_stood_still():
    assert looked(GRID | {"grid_w": 600}, ENOUGH_S) == ""
    assert looked(GRID | {"grid_w": 600}, 10 * ENOUGH_S)


def test_it_is_well_again_when_a_number_moves():
    frozen = Frozen(2.0)
    values = GRID | {"grid_w": 10**6}
    said = [frozen.look(Sample(**values), at_s) for at_s in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)]
    assert [bool(one) for one in said] == [False, False, False, False, True, True]
    assert frozen.look(Sample(**values | {"import_wh": 10_300}), 6.0) == ""
    assert frozen.look(Sample(**values | {"import_wh": 10_300}), 7.0) == ""


def test_a_serial_number_that_is_read_now_and_then_is_no_sign_of_life():
    frozen = Frozen(2.0)
    for at_s in range(6):
        details = {"serial": str(at_s)}
        said = frozen.look(Sample(grid_w=10**6, import_wh=1, export_wh=1, details=details), at_s)
    assert said
