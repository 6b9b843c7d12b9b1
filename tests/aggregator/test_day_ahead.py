"""The day-ahead schedule of homes and feeder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.day_ahead import day_ahead, due_days, enough, forecast_deviation

PER_DAY = 96
FIRST = 10 * PER_DAY


def feeder(history, homes=(), standing_wh=()):
    return day_ahead(history, homes, PER_DAY, standing_wh).feeder


def test_a_homes_schedule_is_the_mean_of_the_same_slot_on_other_days():
    made = day_ahead([("a", 3, 401, 2), ("b", 3, -1000, 1)], ["a", "b"], PER_DAY)
    assert (made.homes["a"][3], made.homes["b"][3]) == (200, -1000)
    assert made.feeder[3] == -800
    assert made.feeder[4] is None and made.homes["a"][4] is None
    assert len(made.feeder) == len(made.homes["a"]) == PER_DAY


def test_a_mean_is_rounded_down():
    assert feeder([("a", 0, -1, 2)])[0] == -1


def test_a_standing_schedule_fills_what_history_does_not_know():
    expected = feeder([("a", 95, 50, 1)], standing_wh=list(range(PER_DAY)))
    assert expected[:2] == [0, 1]
    assert expected[95] == 50


def test_a_home_with_less_history_is_taken_to_be_like_the_others():
    """Four known homes draw 1000 Wh together; the fifth must not count as nothing."""
    made = day_ahead([(home, 95, 250, 1) for home in "abcd"], "abcde", PER_DAY)
    assert made.feeder[95] == 1_250
    assert made.homes["e"][95] == 250


def test_with_too_few_homes_known_the_standing_schedule_stands_for_the_feeder():
    history = [(home, 95, 250, 1) for home in "abc"]
    made = day_ahead(history, "abcde", PER_DAY, [7] * PER_DAY)
    assert made.feeder[95] == 7
    assert {rows[95] for rows in made.homes.values()} == {None}
    assert day_ahead(history, "abcde", PER_DAY).feeder[95] is None


def test_a_home_that_has_left_is_expected_no_more():
    history = [("a", 95, 250, 1), ("gone", 95, 9_000, 1)]
    assert feeder(history, homes=["a"])[95] == 250
    assert feeder(history)[95] == 9_250  # until we know which homes there are


def test_a_home_that_has_left_does_not_speak_for_those_without_a_history():
    gone = ("gone", 95, 9_000, 1)
    known = [(home, 95, 250, 1) for home in "abcd"]
    assert feeder([*known, gone], homes="abcde")[95] == 1_250
    assert feeder([*known[:3], gone], homes="abcde")[95] is None


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abcdefg"), st.integers(0, 7)),
        st.tuples(st.integers(-9_999, 9_999), st.integers(1, 7)),
        max_size=50,
    ),
    st.sets(st.sampled_from("abcdefg")),
    st.sampled_from([(), tuple(range(8))]),
)
def test_the_feeders_schedule_is_the_sum_of_its_homes(rows, homes, standing_wh):
    """Wherever homes have one, all of them have; elsewhere the standing schedule stands."""
    history = [(*where, *what) for where, what in rows.items()]
    made = day_ahead(history, homes, 8, standing_wh)
    for index, net_wh in enumerate(made.feeder):
        each = [expected[index] for expected in made.homes.values()]
        if None in each or not each:
            assert set(each) <= {None}
            assert net_wh == (standing_wh[index] if standing_wh else None)
        else:
            assert net_wh == sum(each)


@pytest.mark.parametrize(("homes", "needed"), [(0, 1), (1, 1), (4, 4), (5, 4), (6, 5), (100, 80)])
def test_four_in_five_homes_are_enough(homes, needed):
    assert enough(homes) == needed


@pytest.mark.parametrize(("lead_hours", "ahead_slots"), [(0, 0), (1, 4), (12, 48), (24, 96)])
def test_a_days_schedule_is_due_so_long_before_it_begins(lead_hours, ahead_slots):
    due = {slot: due_days(slot, 900, lead_hours) for slot in range(FIRST, FIRST + 2 * PER_DAY)}
    tomorrow = FIRST + PER_DAY
    early = [slot for slot, days in due.items() if tomorrow in days and slot < tomorrow]
    assert early == list(range(tomorrow - ahead_slots, tomorrow))
    assert all(slot - slot % PER_DAY in days for slot, days in due.items())


def test_what_was_not_approved_does_not_deviate():
    assert forecast_deviation([(900, None), (500, 200), (100, 0)]) == 200
    assert forecast_deviation([(900, None)]) == 0
    assert forecast_deviation([]) == 0
