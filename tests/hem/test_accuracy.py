"""The home knows how good its forecasts are, and how good those are that cost nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hem.controller.accuracy import KINDS, PERMILLE, WINDOW_DAYS, Accuracy
from hem.controller.history import History
from hem.controller.scenarios import Quantiles, quantiles, scenarios


def flat(wh, columns=24, pv_wh=0):
    """Quantiles of a home that is sure of itself."""
    rows = [[wh] * columns] * len(PERMILLE)
    pv = [[pv_wh] * columns] * len(PERMILLE)
    net = [[wh - pv_wh] * columns] * len(PERMILLE)
    return Quantiles(PERMILLE, rows, pv, net)


def known(load_wh=100, pv_wh=0, until=48):
    history = History(24)
    for slot in range(until):
        history.observe(slot, load_wh, pv_wh)
    return history


def test_three_forecasts_are_scored_on_the_same_slot():
    accuracy, history = Accuracy(24), known()
    history.observe(47, 130, 0)
    accuracy.expect(48, flat(180), history)
    accuracy.observe(48, 200, 0)
    skill = accuracy.skill("load", 1)
    assert (skill.scored, skill.error_wh) == (1, 20)
    assert (skill.persistence_wh, skill.yesterday_wh) == (70, 100)
    # A sure forecast has half its error as pinball loss: 10 of 35 Wh.
    assert (skill.pinball_wh, skill.better_permille) == (10, 714)


def test_pinball_loss_asks_for_the_right_spread():
    accuracy, history = Accuracy(24), known()
    rows = [[share] * 24 for share in PERMILLE]
    accuracy.expect(48, Quantiles(PERMILLE, rows, rows, rows), history)
    accuracy.observe(48, 500, 0)
    # (0.1·400 + 0.2·300 + 0.3·200 + 0.4·100) · 2 / 9
    assert accuracy.skill("load", 1).pinball_wh == 44


@pytest.mark.parametrize(
    ("slots_per_day", "leads"),
    [(1, (1,)), (24, (1, 4, 24)), (96, (1, 16, 96)), (21_600, (1, 3_600, 21_600))],
)
def test_leads_are_the_next_slot_four_hours_and_a_day(slots_per_day, leads):
    assert Accuracy(slots_per_day).leads == leads


def test_every_lead_is_scored_when_its_slot_is_over():
    accuracy, history = Accuracy(24), known()
    accuracy.expect(48, flat(100), history)
    for slot in range(48, 72):
        scored = tuple(accuracy.skill("net", lead).scored for lead in accuracy.leads)
        assert scored == (slot > 48, slot > 51, slot > 71)
        accuracy.observe(slot, 100, 0)
    assert {one["lead"] for one in accuracy.to_json()} == {"next", "4h", "24h"}


def test_a_slot_told_twice_or_forecast_twice_counts_once():
    accuracy, history = Accuracy(24), known()
    accuracy.expect(48, flat(1), history)
    accuracy.expect(48, flat(60), history)
    accuracy.observe(48, 100, 0)
    accuracy.observe(48, 100, 0)
    skill = accuracy.skill("load", 1)
    assert (skill.scored, skill.error_wh) == (1, 40)


def test_a_home_without_a_day_of_history_is_not_scored():
    accuracy, history = Accuracy(24), known(until=3)
    accuracy.expect(3, flat(100, columns=4), history)
    accuracy.expect(3, flat(100, columns=4), History(24))
    accuracy.observe(3, 100, 0)
    assert accuracy.to_json() == []
    assert accuracy.figures() == {}


def test_what_is_never_measured_is_forgotten():
    accuracy, history = Accuracy(24), known()
    for slot in range(48, 400):
        accuracy.expect(slot, flat(100), history)
        history.observe(slot, 100, 0)
        if slot % 24 == 0:
            accuracy.observe(slot, 100, 0)
    assert len(accuracy._pending) < 5 * 24


def test_the_last_week_counts_more_than_the_weeks_before():
    accuracy, history = Accuracy(24), known()
    for slot in range(48, 48 + 24 * 7 * 4):
        good = slot >= 48 + 24 * 7
        accuracy.expect(slot, flat(100 if good else 500), history)
        accuracy.observe(slot, 100, 0)
        history.observe(slot, 100, 0)
    assert accuracy.skill("load", 1).error_wh < 400 // 4
    assert accuracy.skill("load", 1).scored == 24 * 7 * 4 > WINDOW_DAYS * 24


def test_the_page_and_the_metrics_tell_the_same():
    accuracy, history = Accuracy(24), known(100, 30)
    accuracy.expect(48, flat(180, pv_wh=10), history)
    accuracy.observe(48, 200, 20)
    by_kind = {one["kind"]: one for one in accuracy.to_json()}
    assert set(by_kind) == set(KINDS)
    assert by_kind["pv"]["errorWh"] == accuracy.figures()["forecast_pv_next_error_wh"] == 10
    assert by_kind["net"]["errorWh"] == 10
    assert json.dumps(accuracy.to_json())
    assert all(isinstance(value, int) for value in accuracy.figures().values())


def test_our_own_scenarios_beat_both_on_a_home_with_habits_and_weather():
    accuracy, history = Accuracy(24), History(24)
    for slot in range(24 * 35):
        day, hour = divmod(slot, 24)
        load_wh = 300 + 40 * hour + (slot * 7919 % 101)
        pv_wh = (800 + 300 * (day * 31 % 7)) * (8 <= hour < 18)
        if slot >= 24 * 14:
            accuracy.expect(slot, quantiles(scenarios(history, slot, 24), PERMILLE), history)
        accuracy.observe(slot, load_wh, pv_wh)
        history.observe(slot, load_wh, pv_wh)
    for kind in KINDS:
        for lead in accuracy.leads:
            assert accuracy.skill(kind, lead).better_permille > 0, (kind, lead)


@given(st.lists(st.tuples(st.integers(-10, 10**7), st.integers(-10, 10**7)), max_size=30))
def test_skill_survives_a_restart(rows):
    accuracy, history = Accuracy(4), known()
    for slot, (load_wh, pv_wh) in enumerate(rows, start=48):
        accuracy.expect(slot, flat(100), history)
        accuracy.observe(slot, load_wh, pv_wh)
        history.observe(slot, load_wh, pv_wh)
    saved = json.loads(json.dumps(accuracy.to_save()))
    again = Accuracy.from_save(4, saved)
    assert again.to_json() == accuracy.to_json()
    assert Accuracy.from_save(8, saved).to_json() == []


def test_quantiles_of_other_shares_are_refused():
    with pytest.raises(ValueError, match="permille"):
        Accuracy(24).expect(48, Quantiles((500,), [[1]], [[1]], [[1]]), known())


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"slotsPerDay": 24},
        {"slotsPerDay": True, "means": []},
        {"slotsPerDay": 24, "means": 3},
        {"slotsPerDay": 24, "means": [[]]},
        {"slotsPerDay": 24, "means": [["load", 1, 1, 1, 1, 1]]},
        {"slotsPerDay": 24, "means": [["load", 1, 1, 1, 1, 1, -1]]},
        {"slotsPerDay": 24, "means": [["load", 1, 1, 1, 1, 1, 0.5]]},
        {"slotsPerDay": 24, "means": [["heat", 1, 1, 1, 1, 1, 1]]},
        {"slotsPerDay": 24, "means": [[["load"], 1, 1, 1, 1, 1, 1]]},
        {"slotsPerDay": 24, "means": [["load", 7, 1, 1, 1, 1, 1]]},
    ],
)
def test_garbage_from_the_disk_is_refused(saved):
    with pytest.raises(ValueError, match="not a saved forecast accuracy"):
        Accuracy.from_save(24, saved)


@pytest.mark.parametrize("slots_per_day", [0, -1])
def test_a_day_without_slots_is_refused(slots_per_day):
    with pytest.raises(ValueError, match="at least one slot"):
        Accuracy(slots_per_day)
