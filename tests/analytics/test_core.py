"""Measures by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.core import energy_balance, percentile, permille


def test_percentile_is_the_nearest_rank():
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([7], 0.99) == 7
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("part", "whole", "expected"), [(1, 4, 250), (5, 4, 1000), (-1, 4, 0), (1, 0, None)]
)
def test_shares_stay_between_nothing_and_all(part, whole, expected):
    assert permille(part, whole) == expected


def test_what_leaves_one_meter_and_enters_another_is_shared():
    balance = energy_balance([[500, -300], [-200, -100]], load_wh=1000, generation_wh=800)
    assert (balance.import_wh, balance.export_wh, balance.shared_wh) == (200, 300, 300)
    assert balance.self_sufficiency_permille == 800
    assert balance.self_consumption_permille == 625


@given(st.lists(st.lists(st.integers(-10_000, 10_000), max_size=6), max_size=20))
def test_neighbours_never_add_energy(nets):
    balance = energy_balance(nets, 0, 0)
    assert balance.import_wh - balance.export_wh == sum(map(sum, nets))
    assert balance.shared_wh == balance.home_export_wh - balance.export_wh >= 0
