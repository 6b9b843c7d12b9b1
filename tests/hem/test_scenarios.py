"""Scenarios are made of what this home measured, and never of more."""

import subprocess
import sys
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hem.controller.history import History
from hem.controller.scenarios import (
    PATHS_MAX,
    SCENARIOS,
    WEIGHT_SUM,
    Scenarios,
    quantiles,
    scenarios,
)

MONDAY = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()) // 3_600
"""Slot of 1 h at midnight."""
NINE = tuple(range(100, 1_000, 100))
ENERGIES = st.one_of(st.integers(-3, 30_000), st.just(0))


def history_of(load_wh, pv_wh=lambda _: 0, first=MONDAY, days=21, slots_per_day=24):
    history = History(slots_per_day)
    for slot in range(first, first + days * slots_per_day):
        history.observe(slot, load_wh(slot), pv_wh(slot))
    return history


@st.composite
def homes(draw):
    slots_per_day = draw(st.sampled_from([1, 4, 24, 96]))
    history = History(slots_per_day, draw(st.integers(1, 28)))
    rows = draw(st.lists(st.tuples(st.integers(0, 400), ENERGIES, ENERGIES), max_size=80))
    first = draw(st.sampled_from([0, 20_000]))
    for slot, load_wh, pv_wh in rows:
        history.observe(first + slot, load_wh, pv_wh)
    return history, first + draw(st.integers(0, 500)), draw(st.integers(1, 200))


def a_clock(changes_at, before_s=3_600, after_s=7_200):
    return lambda slot: before_s if slot < changes_at else after_s


@given(homes(), st.integers(0, 20_500), st.sampled_from([-36_000, 0, 20_700]), st.integers(1, 30))
def test_paths_are_never_negative_nor_more_than_was_ever_measured(home, changes, before_s, most):
    history, first, count = home
    found = scenarios(history, first, count, a_clock(changes, before_s, before_s + 3_600), most)
    paths = len(found.weight)
    assert found.load_wh.shape == found.pv_wh.shape == (paths, count)
    assert 1 <= paths <= most
    assert (found.weight.sum(), found.weight.min() > 0) == (WEIGHT_SUM, True)
    measured = [row for slot, row in history.measured() if slot < first]
    for made, known in zip((found.load_wh, found.pv_wh), zip(*measured, strict=True), strict=False):
        assert made.dtype == np.int32
        assert made.min() >= 0
        assert made.max() <= max(known)
    if not measured:
        assert not found.load_wh.any()
        assert not found.pv_wh.any()


@given(homes(), st.lists(st.integers(0, 1_000), min_size=1, max_size=9, unique=True))
def test_quantiles_are_in_order_and_between_the_paths(home, permille):
    history, first, count = home
    paths = scenarios(history, first, count)
    found = quantiles(paths, sorted(permille))
    nets = paths.load_wh - paths.pv_wh
    for rows, made in ((found.load_wh, paths.load_wh), (found.pv_wh, paths.pv_wh),
                       (found.net_wh, nets)):  # fmt: skip
        assert rows.shape == (len(permille), count)
        assert (np.diff(rows, axis=0) >= 0).all()
        assert (rows >= made.min(0)).all()
        assert (rows <= made.max(0)).all()


@given(homes(), st.integers(0, 20_500))
def test_a_home_without_pv_never_gets_pv(home, changes):
    history, first, count = home
    dark = History(history.slots_per_day)
    for slot, (load_wh, _) in history.measured():
        dark.observe(slot, load_wh, 0)
    assert not scenarios(dark, first, count, a_clock(changes)).pv_wh.any()


def test_a_path_of_weights_is_a_quantile_by_weight():
    column = np.array([[10], [20], [30]], dtype=np.int32)
    paths = Scenarios(0, column, column * 0, np.array([600, 300, 100], dtype=np.int32))
    found = quantiles(paths, (0, 300, 525, 750, 950, 1_000))
    # The middles of the weights: 300, 750 and 950 ‰.
    assert found.load_wh[:, 0].tolist() == [10, 10, 15, 20, 30, 30]
    assert found.net_wh.tolist() == found.load_wh.tolist()


@pytest.mark.parametrize("permille", [(500, 100), (100, 100), (-1,), (1_001,)])
def test_shares_that_are_none_are_refused(permille):
    with pytest.raises(ValueError, match="permille"):
        quantiles(scenarios(History(24), 0, 1), permille)


@pytest.mark.parametrize(("first", "count", "most"), [(0, 0, 1), (-1, 1, 1), (0, 1, 0),
                                                      (0, 1, PATHS_MAX + 1)])  # fmt: skip
def test_impossible_questions_are_refused(first, count, most):
    with pytest.raises(ValueError, match="paths"):
        scenarios(History(24), first, count, None, most)


def test_what_comes_after_the_question_is_not_looked_at():
    known = history_of(lambda slot: slot % 24 * 10, lambda slot: slot % 7, days=10)
    more = history_of(lambda slot: slot % 24 * 10, lambda slot: slot % 7, days=10)
    first = MONDAY + 240
    for slot in range(first, first + 48):
        more.observe(slot, 9_999, 9_999)
    one, two = scenarios(known, first, 48), scenarios(more, first, 48)
    assert np.array_equal(one.load_wh, two.load_wh)
    assert np.array_equal(one.pv_wh, two.pv_wh)


def test_a_steady_home_goes_on_as_it_was():
    history = history_of(lambda slot: 100 + slot % 24, lambda slot: 50 * (9 <= slot % 24 < 15))
    found = scenarios(history, MONDAY + 21 * 24 + 5, 48)
    assert len(found.weight) == SCENARIOS
    slots = np.arange(21 * 24 + 5, 21 * 24 + 53) % 24
    assert (found.load_wh == 100 + slots).all()
    assert (found.pv_wh == 50 * ((slots >= 9) & (slots < 15))).all()


def test_days_of_the_same_kind_come_first():
    def load_wh(slot):
        weekend = (slot - MONDAY) // 24 % 7 >= 5
        return 900 if weekend and slot % 24 == 10 else 100

    friday = MONDAY + 25 * 24
    history = history_of(load_wh, days=25)
    found = scenarios(history, friday, 48)
    late = found.load_wh == 900
    on_friday, on_saturday = (int(found.weight[late[:, day * 24 + 10]].sum()) for day in (0, 1))
    assert late[:2, 24 + 10].all()
    assert not late[:3, 10].any()
    assert on_saturday > 450
    assert on_friday < 250


def test_a_load_that_is_high_now_is_high_for_a_while():
    history = history_of(lambda slot: 800 if slot == MONDAY + 503 else 100 + slot % 2, days=21)
    middle = quantiles(scenarios(history, MONDAY + 504, 48), (500,)).load_wh[0]
    assert middle[0] > 200 > middle[4] >= 100
    assert middle[40] < 120


def test_a_peak_on_a_high_day_is_not_higher_than_the_highest_ever():
    first = MONDAY + 21 * 24 + 17
    history = History(24)
    for slot in range(MONDAY, first):
        history.observe(slot, 900 if slot % 24 == 17 or slot == first - 1 else 100, 0)
    assert scenarios(history, first, 1).load_wh.tolist() == [[900]] * SCENARIOS


def test_clouds_of_now_darken_the_next_hours_more_than_tomorrow():
    def pv_wh(slot):
        today = slot >= MONDAY + 20 * 24
        return (200 if today else 1_000) * (6 <= slot % 24 < 20)

    history = History(24)
    for slot in range(MONDAY, MONDAY + 20 * 24 + 12):
        history.observe(slot, 100, pv_wh(slot))
    middle = quantiles(scenarios(history, MONDAY + 20 * 24 + 12, 48), (500,)).pv_wh[0]
    assert middle[0] < 450 < middle[6] < middle[24] <= 1_000


def test_pv_never_exceeds_the_clear_sky_of_its_hour():
    history = history_of(lambda _: 0, lambda slot: 700 * (slot % 24 == 12) * (slot % 5 > 0))
    found = scenarios(history, MONDAY + 21 * 24, 48)
    hours = np.arange(48) % 24
    assert not found.pv_wh[:, hours != 12].any()
    assert found.pv_wh.max() == 700


@pytest.mark.parametrize(
    ("changed", "what_happens"), [(datetime(2026, 3, 29, 1, tzinfo=UTC), "spring"),
                                  (datetime(2026, 10, 25, 1, tzinfo=UTC), "autumn")]
)  # fmt: skip
@pytest.mark.parametrize("known_days_after", [-1, 0, 1, 3])
def test_people_keep_to_the_clock_when_it_changes_and_the_sun_does_not(
    changed, what_happens, known_days_after
):
    zone = ZoneInfo("Europe/Berlin")

    def offset_s(slot):
        return int(datetime.fromtimestamp(slot * 900, zone).utcoffset().total_seconds())

    def load_wh(slot):
        return 500 if datetime.fromtimestamp(slot * 900, zone).hour == 7 else 50

    def pv_wh(slot):
        return 300 if slot // 4 % 24 == 11 else 0

    first = int(changed.timestamp()) // 900 + known_days_after * 96
    history = history_of(load_wh, pv_wh, first - 14 * 96, 14, 96)
    found = scenarios(history, first, 192, offset_s)
    middle = quantiles(found, (500,))
    assert middle.load_wh[0].tolist() == [load_wh(first + n) for n in range(192)]
    assert middle.pv_wh[0].tolist() == [pv_wh(first + n) for n in range(192)]
    if known_days_after < 3:
        in_utc = quantiles(scenarios(history, first, 192), (500,))
        assert in_utc.load_wh.tolist() != middle.load_wh.tolist(), what_happens


def test_every_hour_of_a_change_within_the_paths_is_asked_for_once_a_week_or_at_the_change():
    asked = []

    def offset_s(slot):
        asked.append(slot)
        return 3_600

    history = history_of(lambda _: 100, slots_per_day=96, days=28)
    scenarios(history, MONDAY + 28 * 96, 192, offset_s)
    assert len(asked) < 20


def test_a_gap_of_days_is_no_path_and_a_gap_of_hours_is_filled():
    history = History(24)
    for slot in range(MONDAY, MONDAY + 10 * 24):
        day, hour = divmod(slot - MONDAY, 24)
        if (day not in (4, 5) and not (day == 7 and hour < 6)) or slot == MONDAY + 4 * 24 + 3:
            history.observe(slot, 100 + hour, 0)
    found = scenarios(history, MONDAY + 240, 24)
    assert len(found.weight) == 8
    assert (found.load_wh == 100 + np.arange(24)).all()


def test_a_home_that_was_off_for_a_year_still_answers():
    history = history_of(lambda slot: 100 + slot % 24)
    first = MONDAY + 400 * 24
    assert (scenarios(history, first, 24).load_wh == 100 + np.arange(24)).all()


def test_the_first_hours_of_a_home_give_one_path():
    history = History(96)
    for slot in range(8):
        history.observe(96_000 + slot, 100, 40)
    found = scenarios(history, 96_008, 192)
    assert len(found.weight) == 1
    assert (found.load_wh == 100).all()
    assert found.pv_wh[0, :88].max() == 0


def test_two_days_of_quarters_take_a_millisecond():
    """Twenty-one paths; the best of many runs, as others use the machine too."""
    rng = np.random.default_rng(1)
    history = history_of(lambda _: int(rng.integers(3_000)), lambda _: int(rng.integers(900)),
                         slots_per_day=96, days=28)  # fmt: skip
    taken = []
    for _ in range(200):
        started = time.process_time()
        found = scenarios(history, MONDAY + 28 * 96, 192)
        taken.append(time.process_time() - started)
    assert found.load_wh.shape == (SCENARIOS, 192)
    assert min(taken) < 0.001


def test_a_home_that_does_not_plan_needs_no_numpy():
    code = (
        "import sys; import hem.controller.history, hem.controller.accuracy;"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
