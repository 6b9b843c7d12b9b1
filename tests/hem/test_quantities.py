"""Quantities as an owner writes them: read exactly, or refused with what would be right."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hem.controller.quantities import (
    parse_duration_s,
    parse_level,
    parse_number,
    parse_power_w,
    parse_price,
    parse_time_of_day,
)

ANYTHING = st.one_of(st.text(max_size=20), st.integers(), st.floats(), st.none(), st.booleans())


@pytest.mark.parametrize(
    ("text", "energy_wh"),
    [
        ("2.5 kWh", 2_500), ("2.5kWh", 2_500), ("0.001 MWh", 1_000), ("10 Wh", 10),
        ("12 Ah", Fraction("614.4")), ("20 %", 2_000), ("33.3%", 3_330), ("0 Wh", 0),
    ],
)  # fmt: skip
def test_an_energy_is_exact(text, energy_wh):
    assert parse_level(text).energy_wh(10_000, Fraction("51.2")) == energy_wh


@pytest.mark.parametrize(
    ("text", "uc_per_kwh"),
    [
        ("60 £/MWh", 60_000), ("60 ¤/MWh", 60_000), ("12.5 cent/kWh", 125_000),
        ("12.5 ct/kWh", 125_000), ("0.3 €/kWh", 300_000), ("7 µ¤/kWh", 7), ("0.1 $/MWh", 100),
    ],
)  # fmt: skip
def test_a_price_is_exact(text, uc_per_kwh):
    assert parse_price(text).uc_per_kwh({}) == uc_per_kwh


def test_a_foreign_currency_is_worth_what_the_owner_says():
    worth = {"£": Fraction("1.17")}
    assert parse_price("60 £/MWh").uc_per_kwh(worth) == 70_200
    assert parse_price("60 €/MWh").uc_per_kwh(worth) == 60_000
    assert parse_price("6 cent/kWh").uc_per_kwh(worth) == 60_000, "of the market's currency"


def test_power_duration_and_time_of_day():
    assert parse_power_w("4.2 kW") == 4_200
    assert parse_duration_s("1 min") == 60
    assert parse_duration_s("1.5 h") == 5_400
    assert (parse_time_of_day("00:00"), parse_time_of_day("24:00")) == (0, 1_440)
    assert parse_number("51.2") == Fraction("51.2")


@pytest.mark.parametrize(
    ("parse", "value", "told"),
    [
        (parse_level, "50", "such as '2.5 kWh'"),
        (parse_level, 50, "such as '2.5 kWh'"),
        (parse_level, "-5 Ah", "such as '2.5 kWh'"),
        (parse_level, "5,2 kWh", "such as '2.5 kWh'"),
        (parse_level, "1e3 Wh", "such as '2.5 kWh'"),
        (parse_level, "5 kw", "none of the units Wh"),
        (parse_level, "101 %", "at most '100 %'"),
        (parse_price, "60 £", "none of the units"),
        (parse_price, "60 £ / MWh", "a price, such as"),
        (parse_power_w, "4.2 kWh", "none of the units W, kW"),
        (parse_duration_s, "0 min", "whole number of seconds"),
        (parse_duration_s, "0.5 s", "whole number of seconds"),
        (parse_time_of_day, "24:01", "such as '17:00'"),
        (parse_time_of_day, "7:00", "such as '17:00'"),
        (parse_number, 51.2, "as text, such as '51.2'"),
        (parse_number, "0", "positive"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(parse, value, told):
    with pytest.raises(ValueError, match="is") as error:
        parse(value)
    assert told in str(error.value)


@settings(max_examples=200, deadline=None)
@given(ANYTHING)
def test_no_value_does_more_than_be_refused(value):
    for parse in (parse_level, parse_price, parse_power_w, parse_duration_s, parse_time_of_day):
        try:
            parse(value)
        except ValueError as error:
            assert str(error)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12 - 1), st.integers(0, 999))
def test_what_is_written_is_what_is_read(whole, thousandths):
    text = f"{whole}.{thousandths:03} kWh"
    assert parse_level(text).energy_wh(1, None) == whole * 1_000 + thousandths
