"""Units are exact or refused; slots tile the time."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import UnitError
from wire.slots import SlotGrid
from wire.units import MAX_SAFE_INT, cost_uc, energy_from_text, price_from_text

ENERGY = st.integers(-(10**9), 10**9)
PRICE = st.integers(-(10**7), 10**7)


@given(ENERGY, PRICE)
def test_cost_is_rounded_toward_zero(energy, price):
    exact = Fraction(energy * price, 1000)
    cost = cost_uc(energy, price)
    assert abs(cost) <= abs(exact) < abs(cost) + 1
    assert cost == 0 or (cost > 0) == (exact > 0)


@given(ENERGY, PRICE)
def test_a_credit_is_the_exact_negative_of_the_debit(energy, price):
    assert cost_uc(-energy, price) == -cost_uc(energy, price) == cost_uc(energy, -price)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), st.integers(0, 10**6))
def test_parts_never_cost_more_than_the_whole(parts, price):
    """What is locked for a bid always covers the awards it is split into."""
    assert sum(cost_uc(part, price) for part in parts) <= cost_uc(sum(parts), price)


@pytest.mark.parametrize(
    ("value", "unit", "wh"),
    [("10", "kWh", 10_000), ("0.001", "kWh", 1), ("1.5", "MWh", 1_500_000), ("7", "Wh", 7),
     ("-2", "kWh", -2_000), ("0", "Wh", 0), ("10.000", "kWh", 10_000)],
)  # fmt: skip
def test_energies_convert_exactly(value, unit, wh):
    assert energy_from_text(value, unit) == wh


@pytest.mark.parametrize(
    ("value", "unit", "price"),
    [("82", "cents", 820_000), ("0.0001", "cents/kWh", 1), ("60", "GBP/MWh", 60_000),
     ("0.3", "EUR/kWh", 300_000), ("5", "uc/kWh", 5), ("45", "EUR/MWh", 45_000)],
)  # fmt: skip
def test_prices_convert_exactly(value, unit, price):
    assert price_from_text(value, unit) == price


@pytest.mark.parametrize(
    "value",
    ["0.0005", "1.0000000000000000000000000001", "9007199254741", "-9007199254741", "1_000", " 10",
     "10 ", "１０", "٣", "1e1", "1E3", "+1", ".5", "5.", "", "-", "NaN", "Infinity", "0x10",
     "1,5", "ten", "9" * 33, "1\n", "--1"],
)  # fmt: skip
def test_what_does_not_convert_exactly_is_refused(value):
    with pytest.raises(UnitError):
        energy_from_text(value, "kWh")


@pytest.mark.parametrize("unit", ["", "kwh", "KWH", "J", "cents", "uc/kWh"])
def test_an_unknown_unit_is_refused(unit):
    with pytest.raises(UnitError, match="unknown unit"):
        energy_from_text("1", unit)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**6),
                   max_value=10**6))  # fmt: skip
def test_a_conversion_is_never_off(number):
    text = format(number, "f")
    exact = Fraction(number) * 1000
    if exact.denominator == 1 and abs(exact) <= MAX_SAFE_INT:
        assert energy_from_text(text, "kWh") == exact
    else:
        with pytest.raises(UnitError):
            energy_from_text(text, "kWh")


@given(st.integers(4, 86_400), st.integers(-(10**13), 10**13))
def test_every_moment_is_in_exactly_one_slot(length_s, time_ms):
    grid = SlotGrid(length_s)
    slot = grid.slot_at(time_ms)
    assert grid.start_ms(slot) <= time_ms < grid.end_ms(slot) == grid.start_ms(slot + 1)


def test_a_slot_is_half_open():
    grid = SlotGrid(900)
    assert [grid.slot_at(t) for t in (0, 899_999, 900_000, -1)] == [0, 0, 1, -1]


def test_slots_shorter_than_four_seconds_are_refused():
    assert SlotGrid(4).length_s == 4
    with pytest.raises(ValueError, match="below 4 s"):
        SlotGrid(3)
