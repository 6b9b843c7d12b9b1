"""The forecaster learns from the home's own meter."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.forecast import Forecast, Forecaster


def test_who_knows_nothing_expects_nothing():
    assert Forecaster(96).forecast(5) == Forecast(0, 0, 0, day_seen=False)


def test_the_first_slots_are_forecast_by_persistence():
    forecaster = Forecaster(96)
    for slot in range(3):
        forecaster.observe(slot, 100, 0)
    forecast = forecaster.forecast(4)
    assert (forecast.load_wh, forecast.pv_wh, forecast.spread_wh) == (100, 0, 0)


def test_history_brings_the_evening_peak():
    forecaster = Forecaster(96)
    for slot in range(96 * 3):
        forecaster.observe(slot, 900 if slot % 96 == 72 else 100, 0)
    for slot in range(96 * 3, 96 * 3 + 71):
        forecaster.observe(slot, 100, 0)
    assert forecaster.forecast(96 * 3 + 72).load_wh > 350
    assert forecaster.forecast(96 * 3 + 73).load_wh == 100


def test_clouds_of_today_darken_the_sun_of_history():
    forecaster = Forecaster(96)
    for slot in range(96):
        forecaster.observe(slot, 0, 400 if 40 <= slot < 60 else 0)
    for slot in range(96, 96 + 50):
        forecaster.observe(slot, 0, 100 if slot - 96 >= 40 else 0)
    assert forecaster.forecast(96 + 51).pv_wh < 200


def test_a_steady_home_has_no_spread_and_a_restless_one_has():
    steady, restless = Forecaster(96), Forecaster(96)
    for slot in range(40):
        steady.observe(slot, 100, 0)
        restless.observe(slot, 300 * (slot % 2), 0)
    assert steady.forecast(41).spread_wh == 0
    assert restless.forecast(41).spread_wh >= 50


def test_the_day_ahead_is_told_only_when_enough_of_it_was_seen():
    forecaster = Forecaster(96)
    forecaster.observe(0, 100, 0)
    assert forecaster.forecast(2).ahead_wh == ()
    assert not forecaster.forecast(2).day_seen
    for slot in range(1, 96):
        forecaster.observe(slot, 100, 0)
    assert forecaster.forecast(97).ahead_wh == (100,) * 95
    assert forecaster.forecast(97).day_seen


def test_an_old_slot_told_again_changes_nothing():
    forecaster = Forecaster(96)
    forecaster.observe(5, 100, 0)
    before = forecaster.to_json()
    forecaster.observe(5, 900, 0)
    forecaster.observe(4, 900, 0)
    assert forecaster.to_json() == before


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 3_000), st.integers(-5, 3_000)), max_size=60))
def test_forecasts_are_never_negative_and_survive_a_restart(rows):
    forecaster = Forecaster(24)
    for slot, (load, pv) in enumerate(rows):
        forecaster.observe(slot, load, pv)
    again = Forecaster.from_json(24, json.loads(json.dumps(forecaster.to_json())))
    for slot in range(len(rows), len(rows) + 30):
        forecast = forecaster.forecast(slot)
        assert min(forecast.load_wh, forecast.pv_wh, forecast.spread_wh) >= 0
        assert again.forecast(slot) == forecast


def test_memory_is_bounded():
    forecaster = Forecaster(24)
    for slot in range(24 * 20):
        forecaster.observe(slot, slot, 0)
    saved = forecaster.to_json()
    assert len(saved["history"]) == 24
    assert len(saved["recent"]) == 4


@pytest.mark.parametrize("broken", [{}, {"history": 3}, {"history": [[1]], "recent": []}])
def test_a_broken_save_is_refused(broken):
    with pytest.raises(ValueError):
        Forecaster.from_json(96, broken)
