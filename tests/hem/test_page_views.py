"""Facts in a household's words: units, signs, days on which the clocks change."""

from __future__ import annotations

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.page_household import MIDNIGHT, WELL, made_up_day

from hem.ems.standing import Standing
from hem.web import views
from wire.slots import SlotGrid

GRID = SlotGrid(900)


@pytest.mark.parametrize(
    ("amount_uc", "text"),
    [
        (0, "0.00"), (12_345_678, "12.35"), (-5_000, "−0.01"), (-4_999, "0.00"), (5_000, "0.01"),
        (-1_000_000, "−1.00"),
    ],
)  # fmt: skip
def test_money_has_two_decimals_and_no_minus_before_nothing(amount_uc, text):
    assert views.money(amount_uc) == text


@given(st.integers(-(10**15), 10**15))
def test_rounding_is_by_half_a_hundredth_at_most(energy_wh):
    shown = float(views.kwh(energy_wh).replace("−", "-"))
    assert abs(shown - energy_wh / 1000) <= 0.005 + abs(energy_wh) * 1e-15


@pytest.mark.parametrize(("month_day", "slots"), [((3, 29), 92), ((6, 1), 96), ((10, 25), 100)])
def test_a_day_is_from_midnight_to_midnight_also_when_the_clocks_change(month_day, slots):
    from datetime import datetime  # noqa: PLC0415

    zone = ZoneInfo("Europe/Berlin")
    noon = datetime(2026, *month_day, 12, tzinfo=zone)
    first, last = views.today(int(noon.timestamp() * 1000), GRID, zone)
    assert last - first + 1 == slots
    assert views.clock(first, GRID, zone) == "00:00"


def test_the_sums_of_a_day():
    rows = made_up_day()
    sums = views.today_sums(rows)
    assert sums.load == views.kwh(sum(row.load_wh for row in rows))
    assert 0 <= int(sums.own_share) <= 100
    assert views.today_sums([]).own_share == "–"


def test_the_table_is_newest_first():
    lines = views.slot_lines(made_up_day(), GRID, UTC)
    assert lines[-1].time == "00:00"
    assert lines[0].time > lines[1].time
    assert views.today(MIDNIGHT * 900_000, GRID, UTC) == (MIDNIGHT, MIDNIGHT + 95)


def test_equal_figures_share_a_place():
    rows = [Standing(name, cpf, 1, True) for name, cpf in (("a", 9), ("b", 9), ("c", 3))]
    assert [line.place for line in views.rank_lines(rows, "c")] == [1, 1, 3]
    assert [line.ours for line in views.rank_lines(rows, "c")] == [False, False, True]
    assert not any(line.ours for line in views.rank_lines(rows, ""))


def test_every_problem_of_a_policy_has_its_line():
    message = (
        "policy.toml: line 2, a: no such key; remove it or use one of b, c; line 12, b: too"
        " large; correct the value"
    )
    assert [line for line, _ in views.problem_lines(message)] == [2, 12]
    assert views.problem_lines("policy.toml: not TOML: bad (at line 3, column 1)")[0][0] == 3
    assert views.problem_lines("") == []


def test_the_first_page_is_a_sentence():
    view = views.now_view(WELL, UTC)
    assert view.summary == (
        "The house uses 0.72 kW, the sun gives 3.48 kW, the battery takes 1.52 kW and"
        " 1.24 kW goes to the grid."
    )
    assert view.flows == {"sun": "in", "battery": "out", "grid": "out", "house": "out"}
