"""
A home's electricity over market time: load, PV, battery, and the meters that count them.

    grid = load − pv − battery            [W, grid + import, battery + discharge]

Everything is piecewise constant: load and PV change on a grid of steps, the battery's command when
it is written, and its power when it becomes full or empty. `advance` walks from change to change,
so the registers are exact integers [W·ms] and do not depend on how often they are read. Import and
export are counted apart within each piece, as a real meter does.

Without a command the battery follows its own self-consumption mode: it charges from the surplus
and covers the load. A command limits it to a window of powers; a window of one point fixes it.
State of charge (TMI eqs 1–6): charging stores η_c of what flows in, discharging takes 1/η_d of what
flows out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

WMS_PER_WH = 3_600_000
"""1 Wh in W·ms."""

Power = Callable[[int], int]
"""Power [W] at a market time [ms]; constant within each step of the profile."""


@dataclass(frozen=True, slots=True)
class BatteryFacts:
    """What a battery is."""

    capacity_wh: int
    max_charge_w: int
    max_discharge_w: int
    charge_permille: int = 950
    """η_c · 1000."""
    discharge_permille: int = 950
    """η_d · 1000."""
    min_soc_permille: int = 0
    max_soc_permille: int = 1000

    @property
    def floor_wms(self) -> Fraction:
        """Stored energy when empty [W·ms]."""
        return Fraction(self.capacity_wh * WMS_PER_WH * self.min_soc_permille, 1000)

    @property
    def ceiling_wms(self) -> Fraction:
        """Stored energy when full [W·ms]."""
        return Fraction(self.capacity_wh * WMS_PER_WH * self.max_soc_permille, 1000)


@dataclass(frozen=True, slots=True)
class Window:
    """What a command allows: battery power from `low_w` to `high_w`, + discharge."""

    low_w: int
    high_w: int


@dataclass(slots=True)
class Flows:
    """Power at one moment [W]."""

    load_w: int
    pv_w: int
    battery_w: int

    @property
    def grid_w(self) -> int:
        """What the connection carries, + import."""
        return self.load_w - self.pv_w - self.battery_w


@dataclass(slots=True)
class HomePhysics:
    """
    One home, advanced in market time.

    Energies are W·ms since the start and exact.
    """

    time_ms: int
    step_ms: int
    """Load and PV may change every so often, counted from `origin_ms`."""
    load_at: Power
    pv_at: Power
    battery: BatteryFacts | None = None
    stored_wms: Fraction = Fraction(0)
    window: Window | None = None
    """The command in force; None is neutral."""
    import_wms: int = 0
    export_wms: int = 0
    generation_wms: int = 0
    origin_ms: int = 0

    def advance(self, now_ms: int) -> None:
        """Let time pass up to `now_ms`; a clock that stands or steps back changes nothing."""
        while self.time_ms < now_ms:
            flows = self.flows()
            step_left_ms = self.step_ms - (self.time_ms - self.origin_ms) % self.step_ms
            until_ms = min(now_ms, self.time_ms + step_left_ms)
            until_ms = self._before_limit(flows.battery_w, until_ms)
            self._count(flows, until_ms - self.time_ms)
            self.time_ms = until_ms

    def flows(self) -> Flows:
        """Power at the present time."""
        load_w, pv_w = self.load_at(self.time_ms), self.pv_at(self.time_ms)
        return Flows(load_w, pv_w, self._battery_w(load_w - pv_w))

    @property
    def soc_permille(self) -> int:
        """State of charge of the nominal capacity, 0…1000."""
        if self.battery is None:
            return 0
        return round(self.stored_wms * 1000 / (self.battery.capacity_wh * WMS_PER_WH))

    def _battery_w(self, wanted_w: int) -> int:
        """The power the battery takes or gives where `wanted_w` would balance the house."""
        facts = self.battery
        if facts is None:
            return 0
        power_w = wanted_w
        if self.window is not None:
            power_w = min(max(power_w, self.window.low_w), self.window.high_w)
        power_w = min(max(power_w, -facts.max_charge_w), facts.max_discharge_w)
        # A millisecond's worth must fit, or the battery counts as full or empty.
        room_wms = self._room(power_w)
        return power_w if room_wms >= self._rate(power_w) else 0

    def _rate(self, power_w: int) -> Fraction:
        """Change of the store's energy per ms, as a magnitude [W]."""
        assert self.battery is not None
        if power_w < 0:
            return Fraction(-power_w * self.battery.charge_permille, 1000)
        return Fraction(power_w * 1000, self.battery.discharge_permille)

    def _room(self, power_w: int) -> Fraction:
        assert self.battery is not None
        if power_w < 0:
            return self.battery.ceiling_wms - self.stored_wms
        return self.stored_wms - self.battery.floor_wms

    def _before_limit(self, power_w: int, until_ms: int) -> int:
        if power_w == 0:
            return until_ms
        whole_ms = self._room(power_w) // self._rate(power_w)
        return min(until_ms, self.time_ms + whole_ms)

    def _count(self, flows: Flows, duration_ms: int) -> None:
        grid_wms = flows.grid_w * duration_ms
        self.import_wms += max(grid_wms, 0)
        self.export_wms += max(-grid_wms, 0)
        self.generation_wms += flows.pv_w * duration_ms
        if flows.battery_w:
            change = self._rate(flows.battery_w) * duration_ms
            self.stored_wms += change if flows.battery_w < 0 else -change
