"""The forecasts that are compared: each says, as paths, what the slots ahead will bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hem.controller.forecast import Forecaster
from hem.controller.history import History
from hem.controller.scenarios import WEIGHT_SUM, Ints, OffsetS, Scenarios, scenarios

OURS = "scenarios"
PAST_DAYS = 21


@dataclass(frozen=True, slots=True)
class Known:
    """What a home knows at the beginning of `first_slot`, and how far it has to look."""

    history: History
    forecaster: Forecaster
    load_wh: Ints
    """All that was measured, oldest first."""
    pv_wh: Ints
    first_slot: int
    count: int
    offset_s: OffsetS | None


Method = Callable[[Known], Scenarios]


def persistence(known: Known) -> Scenarios:
    """As in the last slot."""
    return _point(known, *(np.full(known.count, wh[-1]) for wh in (known.load_wh, known.pv_wh)))


def past_days(known: Known, days: int) -> Scenarios:
    """Each of the last days is a path; all weigh the same."""
    per_day = known.history.slots_per_day
    phase = np.arange(known.count) % per_day
    kinds = (known.load_wh, known.pv_wh)
    load, pv = (wh[-days * per_day :].reshape(days, per_day)[:, phase] for wh in kinds)
    weight = np.full(days, WEIGHT_SUM // days, dtype=np.int32)
    weight[0] += WEIGHT_SUM - weight.sum()
    return Scenarios(known.first_slot, load, pv, weight)


def yesterday(known: Known) -> Scenarios:
    """As a day before, at the same time."""
    return past_days(known, 1)


def mean_of(days: int) -> Method:
    """The mean of the last days at the same time."""

    def method(known: Known) -> Scenarios:
        paths = past_days(known, days)
        return _point(known, paths.load_wh.mean(0), paths.pv_wh.mean(0))

    return method


def near_slots(known: Known) -> Scenarios:
    """The forecaster of the bidding: made for the next slots, asked for all."""
    slots = range(known.first_slot, known.first_slot + known.count)
    made = [known.forecaster.forecast(slot) for slot in slots]
    load, pv = ([one.load_wh for one in made], [one.pv_wh for one in made])
    return _point(known, np.array(load), np.array(pv))


def ours(known: Known) -> Scenarios:
    """What is measured here."""
    return scenarios(known.history, known.first_slot, known.count, known.offset_s)


METHODS: dict[str, Method] = {
    "persistence": persistence,
    "yesterday": yesterday,
    "mean of 7 days": mean_of(7),
    "mean of 14 days": mean_of(14),
    "mean of 21 days": mean_of(21),
    "bidding's forecaster": near_slots,
    "the past 21 days": lambda known: past_days(known, PAST_DAYS),
    OURS: ours,
}


def _point(known: Known, load_wh: np.ndarray, pv_wh: np.ndarray) -> Scenarios:
    """One path."""
    load, pv = (np.rint(wh).astype(np.int32)[None] for wh in (load_wh, pv_wh))
    return Scenarios(known.first_slot, load, pv, np.array([WEIGHT_SUM], dtype=np.int32))
