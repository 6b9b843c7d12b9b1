"""
Slots: half-open intervals [start, end) of a market's fixed length, numbered from the Unix epoch.

UTC and integers only, so daylight saving and local calendars never reach the market. Unix time
gives every day 86,400 seconds, so a leap second repeats a second and moves no slot boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

Slot = NewType("Slot", int)
"""Slot number: floor(unix time / length)."""
TimeMs = NewType("TimeMs", int)
"""UTC milliseconds since the Unix epoch."""

DEFAULT_SLOT_S = 900
MIN_SLOT_S = 4  # PETra, section on timing


@dataclass(frozen=True, slots=True)
class SlotGrid:
    """The slots of one market: `length_s` seconds each (at least 4)."""

    length_s: int = DEFAULT_SLOT_S

    def __post_init__(self) -> None:
        if self.length_s < MIN_SLOT_S:
            raise ValueError(f"slot length {self.length_s} s is below {MIN_SLOT_S} s")

    def slot_at(self, time_ms: int) -> Slot:
        """Slot that contains `time_ms`."""
        return Slot(time_ms // (self.length_s * 1000))

    def start_ms(self, slot: int) -> TimeMs:
        """First millisecond of the slot."""
        return TimeMs(slot * self.length_s * 1000)

    def end_ms(self, slot: int) -> TimeMs:
        """First millisecond after the slot."""
        return self.start_ms(slot + 1)
