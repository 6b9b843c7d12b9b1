"""
A frozen device: it answers, and what it says no longer moves.

An adapter that repeats its last telegram, or an inverter whose communication board goes on while
its meter chip hangs, answers every question with the same block. That is a fault only where energy
must flow: a counter that stands still beside a power cannot be right. So a device is frozen when
every number it gives has been the same for a while, and a power among them would by now have moved
its counter (or a battery its state of charge) by more than the coarsest step in the field.

Constant values alone prove nothing: a curtailed inverter stands at its limit for hours, a battery
that is full for days. Time that nobody looked proves nothing either, and is not counted.

Source: own reasoning; the coarsest counters of the templates and of SunSpec count whole kWh.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hem.gateway.source import Sample

STILL_S = 300.0
"""So long every number stays the same, at least [real s]."""
STEP_WH = 1_100
"""A counter of whole kWh has moved by then, and the power was read a tenth too high."""
STEP_PERMILLE = 30
"""Of a battery's capacity: a state of charge in whole per cent has moved, losses included."""
POWER_W_MIN = 50
"""What flows less is standby, offset and noise."""
GAP_S_MAX = 30.0
"""Between two looks more time than this is not known to have been the same."""


class Frozen:
    """
    Watches one device.

    Args:
        still_s: how long every number has to stay the same [real s]
    """

    def __init__(self, still_s: float = STILL_S) -> None:
        self._still_s = still_s
        self._last: Sample | None = None
        self._looked_at_s = 0.0
        self._same_s = 0.0

    def look(self, sample: Sample, now_s: float) -> str:
        """
        Take a sample.

        Args:
            now_s: monotonic [real s]

        Returns:
            Why the device is frozen; empty where it is not, or not known to be.
        """
        numbers = replace(sample, details={})
        if numbers == self._last:
            self._same_s += max(0.0, min(now_s - self._looked_at_s, GAP_S_MAX))
        else:
            self._last, self._same_s = numbers, 0.0
        self._looked_at_s = now_s
        if self._same_s < self._still_s:
            return ""
        for name, power_w, step_wh in _flows(sample):
            if abs(power_w) >= POWER_W_MIN and abs(power_w) * self._same_s >= step_wh * 3_600:
                return (
                    f"frozen: {name} is {power_w} W, and for {self._same_s:.0f} s nothing has moved"
                )
        return ""


def _flows(sample: Sample) -> Iterator[tuple[str, int, int]]:
    """Powers that something counts: name, power [W], and the energy that must show [Wh]."""
    if sample.grid_w is not None:
        counter_wh = sample.import_wh if sample.grid_w > 0 else sample.export_wh
        if counter_wh is not None:
            yield "grid_w", sample.grid_w, STEP_WH
    if sample.pv_w is not None and sample.generation_wh is not None:
        yield "pv_w", sample.pv_w, STEP_WH
    if (
        sample.battery_w is not None
        and sample.capacity_wh
        and 0 < (sample.soc_permille or 0) < 1000
    ):
        step_wh = max(STEP_WH, sample.capacity_wh * STEP_PERMILLE // 1000)
        yield "battery_w", sample.battery_w, step_wh
