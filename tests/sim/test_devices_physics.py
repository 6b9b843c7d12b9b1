"""The simulated house obeys arithmetic: energy is exact, conserved, whoever looks and when."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.battery_physics import WMS_PER_WH, BatteryFacts, HomePhysics, Window

STEP_MS = 60_000
HOUR_MS = 3_600_000
FACTS = BatteryFacts(10_000, 5_000, 4_000, 900, 950)


def house(load=lambda ms: 0, pv=lambda ms: 0, battery=FACTS, soc_wh=5_000):
    return HomePhysics(0, STEP_MS, load, pv, battery, Fraction(soc_wh * WMS_PER_WH))


def wh(wms):
    return Fraction(wms) / WMS_PER_WH


def test_import_and_export_are_counted_apart_within_one_interval():
    alone = house(lambda ms: 1200 if ms < HOUR_MS // 2 else 0, lambda ms: 600, battery=None)
    alone.advance(HOUR_MS)
    assert (wh(alone.import_wms), wh(alone.export_wms)) == (300, 300)
    assert wh(alone.generation_wms) == 600


def test_a_surplus_charges_with_losses_and_a_load_discharges_with_losses():
    physics = house(pv=lambda ms: 1000)
    physics.advance(HOUR_MS)
    assert wh(physics.stored_wms) == 5_000 + 900
    physics = house(load=lambda ms: 1000)
    physics.advance(HOUR_MS)
    assert wh(physics.stored_wms) == 5_000 - Fraction(1000 * 1000, 950)
    assert physics.import_wms == 0


def test_a_full_and_an_empty_battery_stop_to_the_millisecond():
    physics = house(pv=lambda ms: 9_000, soc_wh=9_100)  # 5 kW · 0.9 fills 900 Wh in 720 s
    physics.advance(HOUR_MS)
    assert wh(physics.stored_wms) == 10_000
    assert wh(physics.export_wms) == 4_000 + 5_000 * Fraction(2_880, 3_600)
    assert physics.flows().battery_w == 0
    physics = house(load=lambda ms: 950, soc_wh=500)
    physics.advance(HOUR_MS)
    assert wh(physics.import_wms) == 475
    assert physics.stored_wms == 0


def test_limits_hold_against_the_command():
    physics = house()
    physics.window = Window(9_999, 9_999)
    assert physics.flows().battery_w == 4_000
    physics.window = Window(-9_999, -9_999)
    assert physics.flows().battery_w == -5_000
    assert physics.flows().grid_w == 5_000


def test_a_window_limits_the_own_mode():
    physics = house(load=lambda ms: 3_000)
    physics.window = Window(-500, 1_000)
    assert physics.flows().battery_w == 1_000
    physics.window = Window(0, 0)
    assert physics.flows().battery_w == 0


@pytest.mark.parametrize("now_ms", [0, -5])
def test_a_clock_that_stands_or_steps_back_changes_nothing(now_ms):
    physics = house(load=lambda ms: 100)
    physics.advance(now_ms)
    assert (physics.time_ms, physics.import_wms) == (0, 0)


@given(
    st.lists(st.integers(0, 8_000), min_size=30, max_size=30),
    st.lists(st.integers(0, 8_000), min_size=30, max_size=30),
    st.lists(st.tuples(st.integers(1, 400_000), st.integers(-7_000, 7_000)), max_size=8),
    st.lists(st.integers(1, 200_000), max_size=10),
    st.integers(0, 10_000),
)
def test_registers_do_not_depend_on_when_they_are_read_and_energy_is_conserved(
    loads, sun, commands, reads, soc_wh
):
    def at(profile):
        return lambda ms: profile[ms // STEP_MS % 30]

    def run(look):
        physics = house(at(loads), at(sun), soc_wh=soc_wh)
        for wait_ms, power_w in commands:
            start_ms = physics.time_ms
            for pause_ms in look:
                physics.advance(min(physics.time_ms + pause_ms, start_ms + wait_ms))
            physics.advance(start_ms + wait_ms)
            physics.window = Window(power_w, power_w)
        physics.advance(30 * STEP_MS * 2)
        return physics

    seen, unseen = run(reads), run([])
    for name in ("time_ms", "import_wms", "export_wms", "generation_wms", "stored_wms"):
        assert getattr(seen, name) == getattr(unseen, name)
    assert FACTS.floor_wms <= seen.stored_wms <= FACTS.ceiling_wms
    # What the battery gave is what nobody else delivered, and it never makes energy.
    assert seen.time_ms == 2 * 30 * STEP_MS
    used_wms = 2 * STEP_MS * sum(loads)
    given_wms = used_wms - seen.import_wms + seen.export_wms - seen.generation_wms
    assert seen.stored_wms - soc_wh * WMS_PER_WH <= -given_wms
