"""
Quantities as an owner writes them: `50 Ah`, `4.2 kW`, `20 %`, `60 £/MWh`, `1 min`, `17:00`.

A number, a space if you like, a unit; nothing else. Read exactly (fractions, never floats) and kept
with the text they came from. Who turns one into an integer rounds it toward what the owner allows
for sure: a highest price down, a lowest one up.

    energy     Wh, kWh, MWh; Ah at the battery's voltage; % of the battery's capacity
    power      W, kW
    price      µ¤/kWh, ¤/kWh, cent/kWh (ct/kWh), ¤/MWh; £, € and $ in the place of ¤
    duration   s, min, h
    time       HH:MM, 24:00 as an end

Source: ETSE section IV (its policies speak of Ah and £/MWh); `wire.units` for what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

_NUMBER = r"(\d{1,12}(?:\.\d{1,9})?)"
_QUANTITY = re.compile(rf"{_NUMBER} ?([^\s\d.,+-][^\s]{{0,7}})", re.ASCII | re.DOTALL)
_TIME = re.compile(r"(\d{2}):(\d{2})", re.ASCII)
_ENERGY_WH = {"Wh": 1, "kWh": 1_000, "MWh": 1_000_000}
_POWER_W = {"W": 1, "kW": 1_000}
_DURATION_S = {"s": 1, "min": 60, "h": 3_600}
CURRENCIES = ("¤", "£", "€", "$")
"""¤ is the market's own; another is worth so many ¤ as the policy's `currency` says."""
_PRICE_UC_PER_KWH = {
    "µ¤/kWh": Fraction(1),
    "cent/kWh": Fraction(10_000),
    "ct/kWh": Fraction(10_000),
    **{f"{sign}/kWh": Fraction(1_000_000) for sign in CURRENCIES},
    **{f"{sign}/MWh": Fraction(1_000) for sign in CURRENCIES},
}
DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Level:
    """An amount of stored energy: absolute, at a voltage, or a share of the capacity."""

    text: str
    number: Fraction
    """In the unit."""
    unit: Literal["Wh", "Ah", "%"]

    def energy_wh(self, capacity_wh: int, battery_voltage_v: Fraction | None) -> Fraction:
        """
        The energy of it, exactly [Wh].

        Args:
            battery_voltage_v: needed for Ah only; the policy's check has seen to it
        """
        if self.unit == "Wh":
            return self.number
        if self.unit == "%":
            return self.number * capacity_wh / 100
        assert battery_voltage_v is not None
        return self.number * battery_voltage_v

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class EnergyPrice:
    """A price of energy in some currency."""

    text: str
    number: Fraction
    """Millionths of the currency for each kWh."""
    currency: str
    """One of `CURRENCIES`."""

    def uc_per_kwh(self, worth: Mapping[str, Fraction]) -> Fraction:
        """
        The price, exactly [µ¤/kWh].

        Args:
            worth: of one unit of a currency [¤]; one that is not there is the market's own
        """
        return self.number * worth.get(self.currency, Fraction(1))

    def __str__(self) -> str:
        return self.text


def parse_level(value: object) -> Level:
    """
    `50 Ah`, `2.5 kWh`, `20 %`.

    Raises:
        ValueError: anything else, or more than 100 %; says what would be right.
    """
    units = (*_ENERGY_WH, "Ah", "%")
    number, unit, text = _split(value, units, "an amount of energy, such as '2.5 kWh' or '20 %'")
    if unit in _ENERGY_WH:
        return Level(text, number * _ENERGY_WH[unit], "Wh")
    if unit == "%" and number > 100:
        raise ValueError(f"{text!r} is more than the battery holds; give at most '100 %'")
    return Level(text, number, "%" if unit == "%" else "Ah")


def parse_price(value: object) -> EnergyPrice:
    """
    `60 £/MWh`, `12.5 cent/kWh`, `250000 µ¤/kWh`.

    Raises:
        ValueError: anything else; says what would be right.
    """
    number, unit, text = _split(
        value, tuple(_PRICE_UC_PER_KWH), "a price, such as '12.5 cent/kWh' or '60 ¤/MWh'"
    )
    currency = unit[0] if unit[0] in CURRENCIES else "¤"
    return EnergyPrice(text, number * _PRICE_UC_PER_KWH[unit], currency)


def parse_power_w(value: object) -> Fraction:
    """
    `4.2 kW`, exactly [W].

    Raises:
        ValueError: anything else; says what would be right.
    """
    number, unit, _ = _split(value, tuple(_POWER_W), "a power, such as '4.2 kW'")
    return number * _POWER_W[unit]


def parse_duration_s(value: object) -> int:
    """
    `90 s`, `1 min`, `2 h` [s].

    Raises:
        ValueError: anything else, nothing, or no whole seconds; says what would be right.
    """
    number, unit, text = _split(value, tuple(_DURATION_S), "a duration, such as '15 min'")
    seconds = number * _DURATION_S[unit]
    if seconds.denominator != 1 or seconds < 1:
        raise ValueError(f"{text!r} is not a whole number of seconds; give one, such as '1 min'")
    return int(seconds)


def parse_time_of_day(value: object) -> int:
    """
    `17:00`, minutes since midnight; `24:00` is the end of the day.

    Raises:
        ValueError: anything else; says what would be right.
    """
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        hours, minutes = int(found[1]), int(found[2])
        if minutes < 60 and hours * 60 + minutes <= DAY_MINUTES:
            return hours * 60 + minutes
    raise ValueError(f"{_shown(value)} is not a time of day; write it as text, such as '17:00'")


def parse_number(value: object) -> Fraction:
    """
    A positive number as text, `51.2`, exactly; whole ones may be numbers.

    Raises:
        ValueError: anything else; says what would be right.
    """
    text = str(value) if type(value) is int else value
    if isinstance(text, str) and re.fullmatch(_NUMBER, text, re.ASCII) and Fraction(text) > 0:
        return Fraction(text)
    raise ValueError(f"{_shown(value)} is not a positive number as text, such as '51.2'")


def _split(value: object, units: tuple[str, ...], wanted: str) -> tuple[Fraction, str, str]:
    found = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{_shown(value)} is not {wanted}")
    if found[2] not in units:
        raise ValueError(f"{found[2]!r} is none of the units {', '.join(units)}")
    return Fraction(found[1]), found[2], found[0]


def _shown(value: object) -> str:
    return repr(value)[:40]
