"""
What the attacker believes of each home's past: the segments linked so far, summed up.

Row k of every array is home (or cluster) k. The sums are those that a forecaster keeps, so that the
attacker can foresee what the home's own would: last slots, yesterday, the habit of the hour.
"""

from __future__ import annotations

import numpy as np

from sim.linkage_tracks import COLUMNS, Batch, Floats

SLOTS_PER_DAY = 96
RECENT = 16
"""Slots of metered amounts that are kept as they were."""
HABIT_KEEP = 0.7
"""Weight of the habit when a new day comes in (as in `hem.controller.forecast`)."""


class Past:
    """
    The past of some homes.

    Args:
        homes: how many
        validators: how many there are to be ascribed to homes
    """

    def __init__(self, homes: int, validators: int) -> None:
        self.recent_wh = np.full((homes, RECENT), np.nan)
        """Metered amounts of the last slots, newest last [Wh]."""
        self.yesterday_wh = np.full((homes, SLOTS_PER_DAY), np.nan)
        """Of the last day, by slot of the day [Wh]."""
        self.habit_wh = np.full((homes, SLOTS_PER_DAY), np.nan)
        """Mean of the days, by slot of the day, newer ones heavier [Wh]."""
        self.last = np.full((homes, len(COLUMNS)), np.nan)
        """Columns of the last segment."""
        self.sums = np.zeros((homes, len(COLUMNS)))
        self.counts = np.zeros((homes, len(COLUMNS)))
        self.roughness = np.zeros((homes, validators))
        """How badly each validator's CPF went with the home's amounts, summed up."""

    @property
    def mean(self) -> Floats:
        """Mean of all segments' columns; NaN where nothing is known."""
        return np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1), np.nan)

    def take(self, batch: Batch, chosen: dict[int, int], roughness: Floats | None = None) -> None:
        """
        Add a period.

        Args:
            chosen: home → segment of the batch
            roughness: (homes, segments, validators) of this period
        """
        for home, segment in chosen.items():
            nets = batch.nets_wh[segment]
            self.recent_wh[home] = np.concatenate([self.recent_wh[home], nets])[-RECENT:]
            places = (batch.first_slot + np.arange(len(nets))) % SLOTS_PER_DAY
            self.yesterday_wh[home, places] = nets
            before = self.habit_wh[home, places]
            mixed = HABIT_KEEP * before + (1 - HABIT_KEEP) * nets
            self.habit_wh[home, places] = np.where(
                np.isnan(before), nets, np.where(np.isnan(nets), before, mixed)
            )
            columns = batch.columns[segment]
            known = ~np.isnan(columns)
            self.last[home] = columns
            self.sums[home, known] += columns[known]
            self.counts[home, known] += 1
            if roughness is not None:
                self.roughness[home] += roughness[home, segment]
