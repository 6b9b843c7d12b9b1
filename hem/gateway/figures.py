"""
Numbers that a foreign device sends as text, exactly or not at all.

P1 ports, MQTT devices and Z-Wave meters write decimals; here they stay decimals (a float would lose
a Wh now and then) and become whole watts and watt-hours in the one place that rounds: power to the
nearest watt, half to even, and a register down to the watt-hours it has completed (the rest stays
in the device and comes with a later reading).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from types import MappingProxyType
from typing import Literal

from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.source import Sample

POWER_MAX_W = 10_000_000
ENERGY_MAX_WH = 10**12
"""A register beyond this is nonsense: a household's meter would need 10,000 years."""
TEXT_SHOWN = 40

Unit = Literal["W", "kW", "Wh", "kWh"]
Role = Literal["grid", "pv", "load"]
Quantity = Literal["power", "forward", "backward"]
"""What a meter on a line measures: power (+ forward), and the energies that went either way."""

SCALE = MappingProxyType({"W": 1, "kW": 1_000, "Wh": 1, "kWh": 1_000})
NEEDED: Mapping[Role, tuple[Quantity, ...]] = MappingProxyType(
    {"grid": ("power", "forward", "backward"), "pv": ("power", "forward"), "load": ("power",)}
)
"""What each role cannot do without. Forward is import for the grid, generation for PV."""


class WentBackError(DeviceRefusedError):
    """A register shows less than before: another device, a reset one, or a broken message."""


def quantity_of(value: object, unit: str, what: str) -> Decimal:
    """
    A number as sent, in W or Wh and inside the bounds.

    Args:
        value: what came: an int or a Decimal; anything else is refused, bool and str too
        unit: W, kW, Wh or kWh
        what: what to call it in an error

    Raises:
        DeviceRefusedError: not a finite number, or beyond what a household can have; an energy
            below zero.
    """
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise DeviceRefusedError(f"{what} is not a number: {repr(value)[:TEXT_SHOWN]}")
    number = Decimal(value)
    if not number.is_finite():
        raise DeviceRefusedError(f"{what} is {number}")
    is_power = unit in {"W", "kW"}
    if number.copy_abs() > (POWER_MAX_W if is_power else ENERGY_MAX_WH):  # before it is multiplied
        raise DeviceRefusedError(f"{what} is too great: {str(number)[:TEXT_SHOWN]} {unit}")
    if not is_power and number < 0:
        raise DeviceRefusedError(f"{what} is a register below zero: {number:.3f} {unit}")
    scaled = number * SCALE[unit]
    if scaled.copy_abs() > (POWER_MAX_W if is_power else ENERGY_MAX_WH):
        raise DeviceRefusedError(f"{what} is too great: {str(number)[:TEXT_SHOWN]} {unit}")
    return scaled


def whole_w(power_w: Decimal) -> int:
    """The nearest watt, half to even."""
    return int(power_w.to_integral_value(ROUND_HALF_EVEN))


def whole_wh(energy_wh: Decimal) -> int:
    """The watt-hours that are complete."""
    return int(energy_wh.to_integral_value(ROUND_FLOOR))


def sample_of(
    role: Role,
    quantities: Mapping[Quantity, Decimal],
    is_reversed: bool,
    details: dict[str, str] | None = None,
) -> Sample:
    """
    What a meter on a line says about the home, by the role of that line.

    Args:
        quantities: [W], [Wh]; at least `needed_by(role, is_reversed)`
        is_reversed: the meter is mounted the other way round
    """
    power_w = whole_w(quantities["power"])
    if is_reversed:
        power_w = -power_w
    ahead: Quantity = "backward" if is_reversed else "forward"
    back: Quantity = "forward" if is_reversed else "backward"
    if role == "load":
        return Sample(load_w=power_w, details=details or {})
    forward_wh = whole_wh(quantities[ahead])
    if role == "pv":
        return Sample(pv_w=power_w, generation_wh=forward_wh, details=details or {})
    return Sample(
        grid_w=power_w,
        import_wh=forward_wh,
        export_wh=whole_wh(quantities[back]),
        details=details or {},
    )


def needed_by(role: Role, is_reversed: bool) -> tuple[Quantity, ...]:
    """The quantities that a role needs of a meter, as the meter itself calls them."""
    turned: dict[Quantity, Quantity] = {"forward": "backward", "backward": "forward"}
    return tuple(turned.get(q, q) if is_reversed else q for q in NEEDED[role])


class Registers:
    """Remembers registers, so that none goes back unnoticed while this process lives."""

    def __init__(self) -> None:
        self._highest: dict[Quantity, Decimal] = {}

    def check(self, quantities: Mapping[Quantity, Decimal]) -> None:
        """
        Take registers that have not gone back; take none of them when one has.

        Raises:
            WentBackError: names the register, what it was and what it is.
        """
        energies: dict[Quantity, Decimal] = {q: v for q, v in quantities.items() if q != "power"}
        for name, value in energies.items():
            if value < self._highest.get(name, value):
                raise WentBackError(
                    f"the {name} register went back from {self._highest[name]} Wh to {value} Wh"
                )
        self._highest.update(energies)
