"""Demand curves at one price; PowerMatcher's published cases where they are at hand."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import Curve, CurveFault, PriceGrid, clear, clear_curves
from market.curve_auction import to_orders

POWERMATCHER = Path(__file__).parents[3] / "shared" / "data" / "powermatcher_auction"
MALFORMED = {"CBQ": 1, "ICF": 2}
"""Bids to be refused in a set: they rise with the price, or have too few or too many values."""
SCALE = 1000
"""Their prices have one decimal; ours are integers."""
GRID = PriceGrid(5, 0, 40)
MANY = settings(max_examples=max(200, settings().max_examples))


def curves(*rows):
    return [Curve(f"a{i}", tuple(row), (i,)) for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "price", "imbalance"),
    [
        ([(9, 9, 5, 5, 5), (0, -4, -4, -9, -9)], 20, 1),  # +1 at 20, −4 at 30
        ([(9, 9, 5, 5, 5), (0, -4, -8, -9, -9)], 20, -3),  # +5 at 10, −3 at 20
        ([(9, 8, 7, 6, 5)], 40, 5),  # all buy: the highest price
        ([(-1, -1, -2, -2, -2)], 0, -1),  # all sell: the lowest
        ([(4, 4, 4, 4, 4), (0, -4, -4, -4, -9)], 20, 0),  # balanced from 10 to 30: the middle
        ([(4, 4, 4, 4, 4), (0, -4, -4, -9, -9)], 10, 0),  # balanced at 10 and 20: rounded down
        ([(2, 2, 0, 0, 0), (0, 0, -2, -2, -2)], 10, 2),  # as far from both: the lower
        ([(9, 9, 9, 9, 0), (-3, -3, -3, -3, -3)], 40, -3),
    ],
)
def test_the_price_is_the_step_nearest_to_balance(rows, price, imbalance):
    result = clear_curves(GRID, curves(*rows))
    assert (result.price_uc_per_kwh, result.imbalance_wh) == (price, imbalance)
    assert sum(wh for _, wh in result.allocations) == imbalance


def test_malformed_curves_are_refused_by_name_and_the_rest_is_cleared():
    good = curves((4, 4, 0, 0, 0), (0, 0, -3, -3, -3))
    bad = [
        Curve("up", (0, 0, 1, 1, 1), (7,)), Curve("short", (1, 1), (8,)), Curve("none", (), (9,)),
    ]  # fmt: skip
    result = clear_curves(GRID, [*bad, *good])
    assert dict(result.refused) == {
        "up": CurveFault.ASCENDING, "short": CurveFault.WRONG_LENGTH,
        "none": CurveFault.WRONG_LENGTH,
    }  # fmt: skip
    assert result.allocations == clear_curves(GRID, good).allocations


def test_without_curves_nothing_is_allocated():
    result = clear_curves(GRID, [])
    assert (result.allocations, result.imbalance_wh, result.price_uc_per_kwh) == ((), 0, 0)


@pytest.mark.parametrize("grid", [PriceGrid(1, 0, 10), PriceGrid(5, 10, 10)])
def test_a_grid_without_a_range_is_refused(grid):
    with pytest.raises(ValueError, match="price grid"):
        clear_curves(grid, [])


FALLING = st.lists(st.integers(-9, 9), min_size=5, max_size=5).map(
    lambda row: tuple(sorted(row, reverse=True))
)


@MANY
@given(st.lists(FALLING, max_size=6), st.randoms(use_true_random=False))
def test_a_permutation_of_the_curves_changes_no_price_and_no_share(rows, chance):
    given_curves = curves(*rows)
    mixed = given_curves.copy()
    chance.shuffle(mixed)
    one, other = clear_curves(GRID, given_curves), clear_curves(GRID, mixed)
    assert one.price_uc_per_kwh == other.price_uc_per_kwh
    assert sorted(one.allocations) == sorted(other.allocations)


@MANY
@given(st.lists(FALLING, max_size=6))
def test_orders_say_what_the_curve_says_at_every_step(rows):
    """Bids at a step's price or more less offers at it or less are the curve, at every step."""
    for curve in curves(*rows):
        bids, offers = to_orders(GRID, [curve])
        for step in range(GRID.steps):
            price = GRID.price(step)
            wanted = sum(b.energy_wh for b in bids if b.price_uc_per_kwh >= price)
            given_wh = sum(o.energy_wh for o in offers if o.price_uc_per_kwh <= price)
            assert wanted - given_wh == curve.demand_wh[step]


@MANY
@given(st.lists(FALLING, max_size=6))
def test_as_orders_the_curves_trade_all_that_they_can_without_imbalance(rows):
    result = clear(*to_orders(GRID, curves(*rows)))
    possible = [
        min(sum(max(row[step], 0) for row in rows), sum(max(-row[step], 0) for row in rows))
        for step in range(GRID.steps)
    ]
    assert result.traded_wh == max(possible)
    assert sum(award.energy_wh for award in result.bid_awards) == result.traded_wh
    assert sum(award.energy_wh for award in result.offer_awards) == result.traded_wh


def _cases():
    if not POWERMATCHER.is_dir():
        return [pytest.param(None, marks=pytest.mark.skip(f"{POWERMATCHER} is not there"))]
    return [
        pytest.param(path, id=str(path.relative_to(POWERMATCHER)))
        for path in sorted(POWERMATCHER.rglob("Bids*.csv"))
    ]


def _numbers(line):
    return [float(text) for text in line.replace("\r", "").strip(", ").split(",")]


def _lines(path):
    return [line for line in path.read_text().splitlines() if line.strip(", \r")]


def _rows(path):
    return [tuple(int(wh) for wh in _numbers(line)) for line in _lines(path)]


@pytest.mark.parametrize("path", _cases())
def test_powermatchers_equilibrium_is_reproduced(path):
    """
    Sum and price of every set, and which bids are refused.

    Three sets (CBQ) hold one malformed bid each and no other; their sums are of bids that are not
    in the folder. They are given among the bids of CBF1 here, whose sum and price come out as if
    they were not there.
    """
    answer = path.with_name(path.name.replace("Bids", "AggBidPrice"))
    rows, bad = _rows(path), MALFORMED.get(path.relative_to(POWERMATCHER).parts[0], 0)
    if "CBQ" in path.parts:
        assert _numbers(_lines(answer)[2]) == [50]
        answer = POWERMATCHER / "CBF" / "CBF1" / "AggBidPrice.csv"
        rows += _rows(answer.with_name("Bids.csv"))
    sizes, total, price = (_numbers(line) for line in _lines(answer)[:3])
    grid = PriceGrid(int(sizes[0]), int(sizes[1] * SCALE), int(sizes[2] * SCALE))
    result = clear_curves(grid, curves(*rows))
    assert (len(result.refused), len(result.allocations)) == (bad, len(rows) - bad)
    assert list(result.total_wh) == total
    assert result.price_uc_per_kwh == round(price[0] * SCALE)
