"""
The battery as the transactive controller sees it: TMI equations 1 to 8 in integers.

Energies on the AC side are what the meter sees; stored energy is inside the battery. Every rounding
goes against us: less room, less to give, more taken out, less put in. So a plan that is feasible
here is feasible in the real battery.

Source: TMI (Siano et al. 2019), section V-D.
"""

from __future__ import annotations

from dataclasses import dataclass

from wire.units import Uc, cost_uc


@dataclass(frozen=True, slots=True)
class Battery:
    """A battery, its efficiencies and the range its owner allows."""

    capacity_wh: int
    max_charge_w: int
    max_discharge_w: int
    charge_permille: int = 949
    """η_charge · 1000; √0.9, for a round trip of 90 %."""
    discharge_permille: int = 949
    """η_discharge · 1000."""
    soc_min_permille: int = 50
    soc_max_permille: int = 1000

    def __post_init__(self) -> None:
        if self.capacity_wh <= 0 or self.max_charge_w < 0 or self.max_discharge_w < 0:
            raise ValueError("capacity must be positive, rates must not be negative")
        if not (0 < self.charge_permille <= 1000 and 0 < self.discharge_permille <= 1000):
            raise ValueError("efficiencies must be in 1…1000 permille")
        if not 0 <= self.soc_min_permille <= self.soc_max_permille <= 1000:
            raise ValueError("expected 0 ≤ soc_min ≤ soc_max ≤ 1000 permille")

    @property
    def floor_wh(self) -> int:
        """Least stored energy [Wh], rounded up (eq 1)."""
        return -(-self.capacity_wh * self.soc_min_permille // 1000)

    @property
    def ceiling_wh(self) -> int:
        """Most stored energy [Wh], rounded down (eq 1)."""
        return self.capacity_wh * self.soc_max_permille // 1000

    def soc_permille(self, soc_wh: int) -> int:
        """State of charge of the nominal capacity, rounded down, within 0…1000."""
        return min(max(soc_wh * 1000 // self.capacity_wh, 0), 1000)

    def charge_limit_wh(self, soc_wh: int, seconds: int) -> int:
        """
        Most AC energy [Wh] the battery can take in `seconds` (eqs 1, 2, 4), rounded down.

        Above its ceiling it takes nothing.
        """
        room_wh = max(self.ceiling_wh - soc_wh, 0) * 1000 // self.charge_permille
        return min(room_wh, self.max_charge_w * max(seconds, 0) // 3600)

    def discharge_limit_wh(self, soc_wh: int, seconds: int) -> int:
        """
        Most AC energy [Wh] the battery can give in `seconds` (eqs 1, 3, 5), rounded down.

        Below its floor it gives nothing.
        """
        given_wh = max(soc_wh - self.floor_wh, 0) * self.discharge_permille // 1000
        return min(given_wh, self.max_discharge_w * max(seconds, 0) // 3600)

    def after(self, soc_wh: int, charge_wh: int, discharge_wh: int) -> int:
        """
        Stored energy [Wh] after taking and giving AC energy (eq 6).

        What goes in is rounded down, what comes out is rounded up.
        """
        stored_wh = charge_wh * self.charge_permille // 1000
        drawn_wh = -(-discharge_wh * 1000 // self.discharge_permille)
        return soc_wh + stored_wh - drawn_wh

    def degradation_uc(self, energy_wh: int, cost_uc_per_kwh: int) -> Uc:
        """Cost of the wear of discharging `energy_wh` [µ¤] (eq 7), rounded toward zero."""
        return cost_uc(energy_wh, cost_uc_per_kwh)


def degradation_cost_uc_per_kwh(battery_cost_uc: int, lifetime_throughput_wh: int) -> int:
    """
    Wear for each kWh discharged, C_d = C_battery / L_ET [µ¤/kWh] (eq 8), rounded up.

    Raises:
        ValueError: a throughput that is not positive, or a negative cost.
    """
    if lifetime_throughput_wh <= 0 or battery_cost_uc < 0:
        raise ValueError("throughput must be positive and cost must not be negative")
    return -(-battery_cost_uc * 1000 // lifetime_throughput_wh)
