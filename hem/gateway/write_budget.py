"""
How often a device may be written to, for registers that wear out.

Setpoints of many inverters lie in EEPROM or flash, good for some ten thousand writes. So a device
gets `per_day` writes a day and no more, whatever asks for them:

- what is there already is not written again;
- the last `reserve` writes of a day only restore neutral, so that whatever was set can be undone;
- a write is counted on disk before it goes out: one that fails has worn the register too, and a
  restart gives nothing back.

Days are counted each on its own, and by the caller's clock. A clock that steps back and forth
visits days, and finds for each what was spent on it: stepping buys nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum

from runtime.ports import Store

DAY_MS = 86_400_000
DAYS_KEPT = 62
"""Days remembered, the longest unused forgotten first."""
PREFIX = "writes:"


class Verdict(StrEnum):
    """What becomes of a write."""

    WRITE = "WRITE"
    """It is counted: do it."""
    UNCHANGED = "UNCHANGED"
    """The registers hold these values: leave them alone."""
    SPENT = "SPENT"
    """Nothing is left today; for a setpoint: nothing but the reserve."""


class WriteBudget:
    """
    The writes of one device.

    Args:
        store: where they are counted, durable when `atomic` ends
        device: its name
        per_day: most writes of a UTC day, 1 or more
        reserve: how many of them are kept for restoring neutral, fewer than `per_day`

    Raises:
        ValueError: there would be no write left for a setpoint.
    """

    def __init__(self, store: Store, device: str, per_day: int, reserve: int) -> None:
        if not 0 <= reserve < per_day:
            raise ValueError(f"reserve: {reserve} is not within 0…{per_day - 1} (per_day - 1)")
        self._store = store
        self._key = PREFIX + device
        self._per_day = per_day
        self._reserve = reserve
        self._spent = _load(store.get(self._key))

    def admit(
        self,
        values: Sequence[int],
        present: Sequence[int] | None,
        now_ms: int,
        *,
        neutral: bool = False,
    ) -> Verdict:
        """
        Ask before one request that writes; where the answer is WRITE it is counted.

        Args:
            values: of the registers, as they shall be
            present: as they were read just now; None where they cannot be read
            now_ms: UTC
            neutral: whether this restores neutral
        """
        if present is not None and list(values) == list(present):
            return Verdict.UNCHANGED
        if self.left(now_ms, neutral=neutral) < 1:
            return Verdict.SPENT
        self._spend(now_ms // DAY_MS)
        return Verdict.WRITE

    def left(self, now_ms: int, *, neutral: bool = False) -> int:
        """Writes left today, for a setpoint or for neutral."""
        usable = self._per_day - (0 if neutral else self._reserve)
        return max(0, usable - self._spent.get(now_ms // DAY_MS, 0))

    def _spend(self, day: int) -> None:
        spent = dict(self._spent)
        spent[day] = spent.pop(day, 0) + 1  # the day used last stands last
        for oldest in list(spent)[:-DAYS_KEPT]:
            del spent[oldest]
        with self._store.atomic():
            self._store.put(self._key, json.dumps(list(spent.items())).encode())
        self._spent = spent


def _load(row: bytes | None) -> dict[int, int]:
    """Day to writes, in the order of last use. A row that is broken tells of no day."""
    if row is None:
        return {}
    try:
        return {int(day): int(count) for day, count in json.loads(row)}
    except (ValueError, TypeError):
        return {}
