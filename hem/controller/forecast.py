"""
What a home will use and produce in a slot, from its own meter alone.

Two sources are blended: persistence (the last slots) and the same slot of earlier days, weighted
exponentially. Persistence knows today's weather and who is at home, history knows the hour. PV is
persisted as the ratio of today to history, so that the sun's path comes from history and the clouds
from today. Integers only; memory is one row a slot of the day and the last few slots.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

RECENT_SLOTS = 4
HISTORY_KEEP_PERMILLE = 700
"""Weight of what was known when a new day comes in."""
ERROR_KEEP_PERMILLE = 900
"""Weight of the error so far when a smaller one comes in: a calm hour is soon over."""
ERROR_RISE_PERMILLE = 800
"""The same when a larger one comes in."""
AHEAD_MIN_PERMILLE = 400
"""Share of the day that must be known before we look further ahead than the slot."""
PERSISTENCE_PERMILLE = 600
"""Weight of persistence against history."""
_SCALE = 16
"""Averages are kept in sixteenths of a Wh, so that rounding does not eat small changes."""
_BOUND_WH = 1_000_000
"""A reading above 1 MWh a slot is not a home's."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What to expect of one slot [Wh, not negative]."""

    load_wh: int
    pv_wh: int
    spread_wh: int
    """Typical absolute error of load − PV."""
    ahead_wh: tuple[int, ...] = ()
    """Expected load − PV of the following slots, a day at most; empty while too little is known."""
    day_seen: bool = True
    """Was every slot of the day seen at least once? If not, parts of `ahead_wh` are a guess."""

    @property
    def net_wh(self) -> int:
        """Expected load − PV, before any battery."""
        return self.load_wh - self.pv_wh


def present(load_w: int, pv_w: int, seconds: int) -> Forecast:
    """
    The next slot of a home that has seen none yet: as it is now, give or take a half.

    That is what a forecaster says after its first slot, from a moment instead of a slot: enough to
    bid for what is hardly in doubt, and nothing about any later slot.
    """
    load_wh, pv_wh = (max(power_w, 0) * seconds // 3600 for power_w in (load_w, pv_w))
    return Forecast(load_wh, pv_wh, spread_wh=(load_wh + pv_wh) // 2)


class Forecaster:
    """
    Learns from each slot's load and PV.

    Args:
        slots_per_day: slots in 24 hours
    """

    def __init__(self, slots_per_day: int) -> None:
        if slots_per_day < 1:
            raise ValueError("a day has at least one slot")
        self._slots_per_day = slots_per_day
        self._history: dict[int, tuple[int, int]] = {}
        self._recent: deque[tuple[int, int, int]] = deque(maxlen=RECENT_SLOTS)
        self._error = 0
        self._errors_seen = 0

    @property
    def empty(self) -> bool:
        """Nothing was ever observed."""
        return not self._history

    def observe(self, slot: int, load_wh: int, pv_wh: int) -> None:
        """
        Learn what a slot was; one that is not newer than the last is ignored.

        The error is measured two slots ahead, as far as bidding has to look.
        """
        load_wh, pv_wh = (min(max(value, 0), _BOUND_WH) for value in (load_wh, pv_wh))
        if self._recent and slot <= self._recent[-1][0]:
            return
        self._learn_error(slot, load_wh - pv_wh)
        key = slot % self._slots_per_day
        new = (load_wh * _SCALE, pv_wh * _SCALE)
        old = self._history.get(key)
        self._history[key] = (
            new if old is None else (_blend(old[0], new[0]), _blend(old[1], new[1]))
        )
        self._recent.append((slot, load_wh, pv_wh))

    def forecast(self, slot: int) -> Forecast:
        """What to expect of a slot; zero when nothing was ever observed."""
        load_wh, pv_wh = self._expect(slot, list(self._recent))
        spread_wh = -(-self._error // _SCALE) if self._errors_seen else (load_wh + pv_wh) // 2
        return Forecast(
            load_wh, pv_wh, spread_wh, self._ahead(slot), len(self._history) == self._slots_per_day
        )

    def to_json(self) -> dict[str, Any]:
        """State to keep across restarts: integers and lists only."""
        return {
            "history": [[key, load, pv] for key, (load, pv) in sorted(self._history.items())],
            "recent": [list(row) for row in self._recent],
            "error": self._error,
            "errorsSeen": self._errors_seen,
        }

    @classmethod
    def from_json(cls, slots_per_day: int, saved: dict[str, Any]) -> Forecaster:
        """
        Go on from `to_json`; history of another slot length is dropped.

        Raises:
            ValueError: not what `to_json` wrote.
        """
        made = cls(slots_per_day)
        try:
            rows = [(int(key), int(load), int(pv)) for key, load, pv in saved["history"]]
            recent = [(int(slot), int(load), int(pv)) for slot, load, pv in saved["recent"]]
            error, errors_seen = int(saved["error"]), int(saved["errorsSeen"])
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"not a saved forecaster: {problem!r}") from None
        made._history = {key: (load, pv) for key, load, pv in rows if 0 <= key < slots_per_day}
        made._recent.extend(recent)
        made._error, made._errors_seen = error, errors_seen
        return made

    def _learn_error(self, slot: int, net_wh: int) -> None:
        known = [row for row in self._recent if row[0] <= slot - 2]
        if not known:
            return
        load_wh, pv_wh = self._expect(slot, known)
        error = abs(net_wh - (load_wh - pv_wh)) * _SCALE
        if self._errors_seen == 0:
            self._error = error
        else:
            keep = ERROR_RISE_PERMILLE if error > self._error else ERROR_KEEP_PERMILLE
            self._error = (self._error * keep + error * (1000 - keep)) // 1000
        self._errors_seen = min(self._errors_seen + 1, 1000)

    def _expect(self, slot: int, recent: list[tuple[int, int, int]]) -> tuple[int, int]:
        past = self._history.get(slot % self._slots_per_day)
        if not recent:
            return (0, 0) if past is None else (past[0] // _SCALE, past[1] // _SCALE)
        load_now, pv_now = _weighted([row[1] for row in recent]), recent[-1][2]
        if past is None:
            return load_now, self._trend(slot, recent)
        load_past, pv_past = past[0] // _SCALE, past[1] // _SCALE
        share = PERSISTENCE_PERMILLE
        load_wh = (load_now * share + load_past * (1000 - share)) // 1000
        # Today's clouds, as a ratio to history over the last slots, between none and double.
        seen = sum(row[2] for row in recent)
        usual = sum(self._history.get(row[0] % self._slots_per_day, (0, 0))[1] for row in recent)
        if usual >= _SCALE * len(recent):
            pv_wh = min(pv_past * seen * _SCALE // usual, 2 * pv_past)
        else:
            pv_wh = (pv_now * share + pv_past * (1000 - share)) // 1000
        return load_wh, pv_wh

    def _trend(self, slot: int, recent: list[tuple[int, int, int]]) -> int:
        """PV without history: the mean of the last two slots, less a falling trend."""
        last = recent[-1][2]
        if len(recent) < 2:
            return last
        before = recent[-2][2]
        falling = max(before - last, 0) * min(max(slot - recent[-1][0], 0), 2)
        return max(min((last + before) // 2, last) - falling // 2, 0)

    def _ahead(self, slot: int) -> tuple[int, ...]:
        """
        The day after `slot`; hours never seen count as dark, with 1.5 times the mean load so far.

        That makes us keep more for ourselves than needed on the first day, never less.
        """
        if len(self._history) * 1000 < self._slots_per_day * AHEAD_MIN_PERMILLE:
            return ()
        mean = sum(load for load, _ in self._history.values()) * 3 // (2 * len(self._history))
        rows = (
            self._history.get((slot + k) % self._slots_per_day, (mean, 0))
            for k in range(1, self._slots_per_day)
        )
        return tuple((load - pv) // _SCALE for load, pv in rows)


def _blend(old: int, new: int) -> int:
    keep = HISTORY_KEEP_PERMILLE
    return (old * keep + new * (1000 - keep)) // 1000


def _weighted(values: list[int]) -> int:
    """The newest value counts half, the others share the rest."""
    *older, newest = values
    if not older:
        return newest
    return (newest + sum(older) // len(older)) // 2
