"""
What the slots ahead may bring: S equally long paths of load and PV, each with a weight.

Every path is made of days that this home has seen, so that it has the steps and clouds of a real
day, and its energy never exceeds what was measured. Two things are changed in it:

- the first hours are drawn towards what the meter shows now: the load by the ratio of the last hour
  to the same hour of the source day, the PV by the difference in clearness. The pull fades, for the
  load and the clouds of the moment within a few hours, for the kind of day over a day or two;
- the days are chosen: for the load those of the same kind (work day, weekend) and weekday come
  first, in local time, since people live by the clock; for PV the last days, in UTC, since the sun
  does not. Recent days weigh more.

Clearness is PV over its envelope, the best of the same slot in the days known: a clear sky without
coordinates, after Bacher, Madsen and Nielsen (2009), "Online short-term solar power forecasting",
who estimate it by quantile regression. The pull is a first-order autoregression of what deviates.
Constants were chosen on the homes that `bench.forecast` names as such, and on no other.

This module needs numpy, and is to be imported where a plan is made, not where a home starts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hem.controller.history import MISSING, History

SCENARIOS = 21
"""Paths at most; a home that knows fewer days gets one for each."""
PATHS_MAX = 50
WEIGHT_SUM = 1_000
AGE_FADES_DAYS = 7.0
"""After so many places in the order of days, a day's weight is down to 1/e."""
OTHER_KIND_DAYS = 10
"""A weekend counts as so many days older to a work day, and the other way round."""
SAME_WEEKDAY_DAYS = 4
"""The same day of the week counts as so many days younger."""
LOAD_NOW, LOAD_NOW_H = 0.75, 1.5
"""Share of the last hour's deviation that is still there at once, and the hours to 1/e of it."""
LOAD_DAY, LOAD_DAY_H = 0.2, 24.0
"""The same of what stays for the day."""
LOAD_FLOOR_W = 20.0
"""Added on both sides of a ratio of loads: a home that was off is not pulled to nothing."""
LOAD_RATIO_MAX = 5.0
CLOUDS_NOW, CLOUDS_NOW_H = 0.9, 6.0
"""Share of the last hour's deviation in clearness, and its hours to 1/e."""
CLOUDS_DAY, CLOUDS_DAY_H = 0.4, 36.0
"""The same of the deviation of the last hours of light."""
CLOUDS_NOW_MEMORY_H, CLOUDS_DAY_MEMORY_H = 1.0, 6.0
"""How far back each of them looks."""
_DAY_S = 86_400
_THURSDAY = 3
"""The weekday of 1 January 1970, Monday being 0."""
_SATURDAY = 5
_PROBE_DAYS = 7
"""Between two changes of the clock lies more than a week."""

Ints = npt.NDArray[np.int32]
_Floats = npt.NDArray[np.float64]
_Index = npt.NDArray[np.int64]
OffsetS = Callable[[int], int]
"""Seconds by which local time is ahead of UTC in a slot."""


@dataclass(frozen=True, slots=True)
class Scenarios:
    """What may come: S paths over T slots [Wh, not negative]."""

    first_slot: int
    load_wh: Ints
    """(S, T)"""
    pv_wh: Ints
    """(S, T)"""
    weight: Ints
    """(S,): positive, falling; they add up to `WEIGHT_SUM`."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """For each share, what is not exceeded with this probability, slot by slot [Wh]."""

    permille: tuple[int, ...]
    """Q shares, rising."""
    load_wh: Ints
    """(Q, T)"""
    pv_wh: Ints
    """(Q, T)"""
    net_wh: Ints
    """(Q, T) of load − PV, path by path; not the difference of the other two."""


@dataclass(frozen=True, slots=True)
class _Days:
    """The days before the first slot that is not known, cut at that slot's time of day."""

    end: int
    """The slot after the last known one; in local time for the load."""
    wh: _Floats
    """(D, slots a day), newest day first, without gaps."""
    usable: _Index
    """Rows of which at least half was measured, newest first; all that have anything if none is."""

    @property
    def per_day(self) -> int:
        """Slots a day."""
        return int(self.wh.shape[1])


def scenarios(
    history: History,
    first_slot: int,
    count: int,
    offset_s: OffsetS | None = None,
    most: int = SCENARIOS,
) -> Scenarios:
    """
    Paths of the `count` slots from `first_slot` on.

    Only what was measured before `first_slot` is used, so a past slot may be asked for as well. A
    home with no history gets one path of zeros; one without PV never gets any. Times of day that
    were never seen count as dark, with the mean load.

    Args:
        history: what the home measured
        first_slot, count: which slots, numbered from the Unix epoch
        offset_s: local time less UTC by slot [s]; None: people live in UTC
        most: paths at most

    Returns:
        S paths, 1 ≤ S ≤ `most`; fewer where fewer days are known.

    Raises:
        ValueError: no slots, no paths or more than `PATHS_MAX`, or slots before the epoch.
    """
    if count < 1 or first_slot < 0 or not 1 <= most <= PATHS_MAX:
        raise ValueError(f"at least one slot from the epoch on, and 1 to {PATHS_MAX} paths")
    load_wh, pv_wh, end = _measured_before(history, first_slot)
    if not len(load_wh):
        nothing = np.zeros((1, count), dtype=np.int32)
        return Scenarios(first_slot, nothing, nothing, _weights(1))
    per_day = history.slots_per_day
    slots = np.arange(first_slot, first_slot + count)
    sun = _days(end, pv_wh, per_day, unseen=0.0)
    people = _local(end, load_wh, _shifts(offset_s, end - len(load_wh), end, per_day), per_day)
    clock = slots + _shifts(offset_s, first_slot, first_slot + count, per_day)
    hours = (slots - end + 1).astype(np.float64) * (24 / per_day)
    paths = min(most, len(sun.usable), len(people.usable))
    load, pv = _load(people, clock, hours, paths), _pv(sun, slots - end, hours, paths)
    return Scenarios(first_slot, _whole(load), _whole(pv), _weights(paths))


def quantiles(paths: Scenarios, permille: Sequence[int]) -> Quantiles:
    """
    What load, PV and net are in the lower `permille` of cases, for each slot by itself.

    Between two paths the line is straight; beyond the outermost it is level.

    Args:
        paths: from `scenarios`
        permille: shares, rising, 0…1000

    Raises:
        ValueError: shares that do not rise, or are outside 0…1000.
    """
    shares = tuple(permille)
    if list(shares) != sorted(set(shares)) or not all(0 <= each <= 1000 for each in shares):
        raise ValueError("shares rise and lie within 0…1000 permille")
    kinds = (paths.load_wh, paths.pv_wh, paths.load_wh - paths.pv_wh)
    load, pv, net = (_quantile(each, paths.weight, shares) for each in kinds)
    return Quantiles(shares, load, pv, net)


def _measured_before(history: History, first_slot: int) -> tuple[_Floats, _Floats, int]:
    """Load and PV of whole days, NaN where missing, and the slot at which they end."""
    end = min(history.newest + 1, first_slot)
    rings = [np.frombuffer(ring, dtype=np.int32) for ring in history.buffers()]
    known = [ring[: max(len(ring) - (history.newest + 1 - end), 0)] for ring in rings]
    (there,) = np.nonzero(known[0] != MISSING)
    if not len(there):
        return np.zeros(0), np.zeros(0), end
    slots = len(known[0]) - int(there[0])
    padded = -(-slots // history.slots_per_day) * history.slots_per_day
    load_wh, pv_wh = (np.full(padded, np.nan) for _ in known)
    for made, ring in ((load_wh, known[0]), (pv_wh, known[1])):
        tail = ring[len(ring) - slots :]
        made[padded - slots :] = np.where(tail == MISSING, np.nan, tail)
    return load_wh, pv_wh, end


def _shifts(offset_s: OffsetS | None, begin: int, end: int, per_day: int) -> _Index:
    """Local time less UTC in slots, from `begin` to `end`; asked a few times for every week."""
    shift = np.zeros(end - begin, dtype=np.int64)
    if offset_s is None:
        return shift

    def slots_at(slot: int) -> int:
        return offset_s(max(slot, 0)) * per_day // _DAY_S

    for at in range(begin, end, _PROBE_DAYS * per_day):
        until = min(at + _PROBE_DAYS * per_day, end)
        before, after = slots_at(at), slots_at(until - 1)
        changed = until
        if before != after:
            changed = at + bisect_left(range(at, until), 1, key=lambda s: slots_at(s) != before)
        shift[at - begin : changed - begin] = before
        shift[changed - begin : until - begin] = after
    return shift


def _local(end: int, wh: _Floats, shift: _Index, per_day: int) -> _Days:
    """By the clock on the wall: an hour that it skips is a gap, of one that it repeats the last."""
    end_local = end + int(shift[-1])
    to = np.arange(len(wh)) + shift - shift[-1]
    here = (to >= 0) & (to < len(wh))
    by_clock = np.full(len(wh), np.nan)
    by_clock[to[here]] = wh[here]
    mean = np.nanmean(wh)
    return _days(end_local, by_clock, per_day, unseen=float(mean))


def _days(end: int, wh: _Floats, per_day: int, unseen: float) -> _Days:
    """Fill gaps from the same slot of other days; a time of day never seen is `unseen`."""
    rows = wh.reshape(-1, per_day)[::-1]
    known = ~np.isnan(rows)
    seen = known.sum(0)
    means = np.where(known, rows, 0.0).sum(0) / np.maximum(seen, 1)
    filled = np.where(known, rows, np.where(seen > 0, means, unseen))
    share = known.sum(1)
    usable = np.flatnonzero(2 * share >= per_day)
    return _Days(end, filled, usable if len(usable) else np.flatnonzero(share))


def _load(people: _Days, clock: _Index, hours: _Floats, paths: int) -> _Floats:
    """
    The most similar days for each day ahead, the first hours pulled towards the last one.

    Args:
        people: days by the clock on the wall
        clock: slots ahead, by the same clock
        hours: until each of them ends
        paths: how many
    """
    per_day = people.per_day
    ahead = clock - people.end
    day, phase = ahead // per_day, ahead % per_day
    row = np.empty((paths, len(clock)), dtype=np.int64)
    begins = np.flatnonzero(np.diff(clock // per_day, prepend=-1) | np.diff(day, prepend=-2))
    for begin, end in zip(begins, [*begins[1:], len(clock)], strict=True):
        last_date = (people.end + int(phase[begin])) // per_day - 1
        chosen = _similar(people.usable, int(clock[begin]) // per_day, last_date, paths)
        row[:, begin:end] = chosen[:, None]
    wh = people.wh[row, phase]
    window = max(per_day // 24, 1)
    level = people.wh[:, -window:].mean(1) + LOAD_FLOOR_W * 24 / per_day
    # A row's own last hour before our time of day is the end of the day before it.
    ratio = level[0] / np.append(level[1:], level[0])
    ratio = np.clip(ratio, 1 / LOAD_RATIO_MAX, LOAD_RATIO_MAX)
    pull = _fading(LOAD_NOW, LOAD_NOW_H, hours) + _fading(LOAD_DAY, LOAD_DAY_H, hours)
    drawn: _Floats = np.minimum(wh * ratio[row] ** pull, people.wh.max())
    return drawn


def _similar(usable: _Index, date: int, last_date: int, paths: int) -> _Index:
    """Rows in the order in which they resemble `date`; row 0 is `last_date` [days since epoch]."""
    source = last_date - usable
    weekday, other = (date + _THURSDAY) % 7, (source + _THURSDAY) % 7
    cost = (
        date
        - source
        + OTHER_KIND_DAYS * ((weekday >= _SATURDAY) != (other >= _SATURDAY))
        - SAME_WEEKDAY_DAYS * (weekday == other)
    )
    chosen: _Index = usable[np.argsort(cost, kind="stable")[:paths]]
    return chosen


def _pv(sun: _Days, ahead: _Index, hours: _Floats, paths: int) -> _Floats:
    """
    The weather that followed each of the last days, pulled towards what the sky is like now.

    Args:
        sun: days in UTC
        ahead: slots ahead, 0 for the first that is not known
        hours: until each of them ends
        paths: how many
    """
    phase = ahead % sun.per_day
    # On the second day ahead comes what followed: the weather of two days that belong together.
    row = np.maximum(sun.usable[:paths, None] - ahead // sun.per_day, 0)
    clear = sun.wh.max(0)
    now, now_age_h = _deviation(sun, clear, CLOUDS_NOW_MEMORY_H)
    day, _ = _deviation(sun, clear, CLOUDS_DAY_MEMORY_H)
    # At night the last clouds are hours old, as if the slot were that much further ahead.
    stale_h = max(now_age_h - CLOUDS_NOW_MEMORY_H, 0.0)
    pull = _fading(CLOUDS_NOW, CLOUDS_NOW_H, hours + stale_h)
    rest = (1 - pull) * _fading(CLOUDS_DAY, CLOUDS_DAY_H, hours)
    chosen = sun.usable[:paths, None]
    wh = sun.wh[row, phase] + (pull * now[chosen] + rest * day[chosen]) * clear[phase]
    kept: _Floats = np.clip(wh, 0.0, clear[phase])
    return kept


def _deviation(sun: _Days, clear: _Floats, memory_h: float) -> tuple[_Floats, float]:
    """
    Clearness of the last hours of light, less that of the same hours before each row.

    Returns:
        The deviation by row (0 for the oldest, before which nothing is known), and the age of the
        light in it [h].
    """
    age_h = np.arange(sun.per_day)[::-1] * (24 / sun.per_day)
    light = clear * np.exp(-age_h / memory_h)
    total = float(light.sum())
    if total <= 0:
        return np.zeros(len(sun.wh)), 0.0
    clearness = sun.wh @ np.exp(-age_h / memory_h) / total
    deviation = clearness[0] - np.append(clearness[1:], clearness[0])
    return deviation, float(light @ age_h) / total


def _fading(share: float, hours_to_1_e: float, hours: _Floats) -> _Floats:
    faded: _Floats = share * np.exp(-hours / hours_to_1_e)
    return faded


def _weights(paths: int) -> Ints:
    """Falling with the place in the order of days; rounded, what remains goes to the first."""
    shares = np.exp(-np.arange(paths) / AGE_FADES_DAYS)
    parts: Ints = np.maximum(shares * (WEIGHT_SUM / shares.sum()), 1).astype(np.int32)
    parts[0] += WEIGHT_SUM - parts.sum()
    return parts


def _quantile(wh: Ints, weight: Ints, shares: tuple[int, ...]) -> Ints:
    if len(wh) == 1:
        return _whole(np.repeat(wh, len(shares), axis=0))
    order = np.argsort(wh, axis=0, kind="stable")
    rising = np.take_along_axis(wh, order, axis=0)
    # A path stands in the middle of its weight, in half parts so that it stays whole.
    parts = weight[order]
    middle = 2 * np.cumsum(parts, axis=0) - parts
    column = np.arange(wh.shape[1])
    found = np.empty((len(shares), wh.shape[1]))
    for n, share in enumerate(shares):
        aim = 2 * share * WEIGHT_SUM // 1000
        above = np.clip((middle < aim).sum(0), 1, len(wh) - 1)
        low, high = middle[above - 1, column], middle[above, column]
        along = np.clip((aim - low) / (high - low), 0.0, 1.0)
        start, stop = rising[above - 1, column], rising[above, column]
        found[n] = start + along * (stop - start)
    return _whole(found)


def _whole(wh: _Floats) -> Ints:
    rounded: Ints = np.rint(wh).astype(np.int32)
    return rounded
