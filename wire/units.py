"""
Units: integers only, the unit last in every name.

Energy is watt-hours, power watts, money micro-units of the market's currency (µ¤, `uc`), price
µ¤ per kWh. Grid energy and power are positive for import; battery power is positive for discharge.
Division happens in one place, `cost_uc`, which rounds toward zero: the remainder stays with the
payer.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact, Rounded
from typing import NewType

from wire.errors import UnitError

Wh = NewType("Wh", int)
"""Energy [Wh]."""
Watt = NewType("Watt", int)
"""Power [W]."""
Uc = NewType("Uc", int)
"""Money, micro-units of the market's currency [µ¤]."""
PriceUcPerKwh = NewType("PriceUcPerKwh", int)
"""Price [µ¤/kWh]."""

UC_PER_UNIT = 1_000_000
MAX_SAFE_INT = 2**53 - 1
"""The largest integer a message may carry (RFC 8785 section 3.2.2.3; I-JSON)."""
MAX_TEXT = 32
_DECIMAL = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
_EXACT = Context(prec=64, traps=[Inexact, Rounded])

_ENERGY_WH = {"Wh": Decimal(1), "kWh": Decimal(1_000), "MWh": Decimal(1_000_000)}
_PRICE_UC_PER_KWH = {
    "uc/kWh": Decimal(1),
    "cents": Decimal(10_000),  # TMI writes "cents" and means cents per kWh
    "cents/kWh": Decimal(10_000),
    "EUR/kWh": Decimal(1_000_000),
    "EUR/MWh": Decimal(1_000),
    "GBP/MWh": Decimal(1_000),
    "GBP/kWh": Decimal(1_000_000),
}


def cost_uc(energy_wh: int, price_uc_per_kwh: int) -> Uc:
    """
    Money for an amount of energy: `energy × price // 1000`, rounded toward zero.

    Rounding toward zero leaves the remainder with the payer, and makes a credit the exact
    negative of the same debit: cost(-e, p) == -cost(e, p).

    Args:
        energy_wh: energy [Wh], either sign
        price_uc_per_kwh: price [µ¤/kWh], either sign

    Returns:
        Money [µ¤].
    """
    product = energy_wh * price_uc_per_kwh
    return Uc(product // 1000) if product >= 0 else Uc(-(-product // 1000))


def energy_from_text(value: str, unit: str) -> Wh:
    """
    Convert a paper-style decimal string such as `"10"` `"kWh"` exactly.

    Raises:
        UnitError: unknown unit, not a number, or not a whole number of Wh.
    """
    return Wh(_exact(value, unit, _ENERGY_WH))


def price_from_text(value: str, unit: str) -> PriceUcPerKwh:
    """
    Convert a paper-style price such as `"82"` `"cents"` exactly to µ¤/kWh.

    Raises:
        UnitError: unknown unit, not a number, or not a whole number of µ¤/kWh.
    """
    return PriceUcPerKwh(_exact(value, unit, _PRICE_UC_PER_KWH))


def _exact(value: str, unit: str, table: dict[str, Decimal]) -> int:
    factor = table.get(unit)
    if factor is None:
        raise UnitError("unknown unit", unit=unit[:MAX_TEXT], known=sorted(table))
    if len(value) > MAX_TEXT:
        raise UnitError("number too long", length=len(value))
    if not _DECIMAL.fullmatch(value):
        raise UnitError("not a decimal number", value=value)
    converted = _EXACT.multiply(Decimal(value), factor)  # 32 digits by 7 fit in 64
    if converted != converted.to_integral_value() or abs(converted) > MAX_SAFE_INT:
        raise UnitError("does not convert to a whole number in range", value=value, unit=unit)
    return int(converted)
