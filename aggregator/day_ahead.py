"""
The aggregator's day-ahead schedule: home by home from what meters said, then the feeder. Pure.

    due_days            the current slot         -> the days whose schedule is to be made
    day_ahead           history of every home    -> expected net energy of homes and feeder
    forecast_deviation  measured, and approved   -> what the next slots will deviate by

Net energy is import − export [Wh]; a slot's place in the day is its number modulo slots per day.

References:
    TMI sections IV and V-C (a schedule for each home from history; the DSO approves the feeder's).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

DAY_S = 86_400
ENOUGH_PERMILLE = 800
"""Share of the homes that must be known before the others are taken to be like them."""


@dataclass(frozen=True, slots=True)
class DayAhead:
    """The schedule of one day: lists with a value for each slot, None where nothing is expected."""

    feeder: list[int | None]
    """[Wh]"""
    homes: dict[str, list[int | None]]
    """By meter [Wh]; where there are any, they add up to the feeder's."""


def due_days(slot: int, slot_s: int, lead_hours: int) -> list[int]:
    """
    The days whose schedule should exist now, each by its first slot.

    Args:
        slot: the current one
        slot_s: length of a slot [s]
        lead_hours: how long before a day begins its schedule is made [h], at most 24

    Returns:
        Today (the service may have been down), and tomorrow once it is near enough.
    """
    per_day = DAY_S // slot_s
    today = slot - slot % per_day
    tomorrow = today + per_day
    return [today, tomorrow] if (tomorrow - slot) * slot_s <= lead_hours * 3600 else [today]


def day_ahead(
    history: Iterable[tuple[str, int, int, int]],
    homes: Collection[str],
    per_day: int,
    standing_wh: Sequence[int] = (),
) -> DayAhead:
    """
    Expected net energy of each home, and of the feeder, in each slot of a day.

    A home's is the mean of the same slot of the day over the days of its history, rounded down.
    Homes have been there for different times, and a plain sum would expect nothing of those without
    a history. So, slot by slot:

    - with the history of at least 80 % of the homes, each of the others is taken to be like the
      mean of those, rounded down (the sum is scaled to the number of homes);
    - with less, the standing schedule's value stands for the whole feeder, and homes have none;
    - without a standing schedule, None: nothing is expected, so nothing can deviate.

    Args:
        history: (meter, slot of the day, sum of net energy [Wh], days), each meter and slot once
        homes: the meters of the feeder; others in the history have left it. Empty: not known yet,
            then whoever is in the history
        per_day: slots in a day
        standing_wh: one value for each slot of the day, or none at all
    """
    means: list[dict[str, int]] = [{} for _ in range(per_day)]
    for home, of_day, total_wh, days in history:
        means[of_day][home] = total_wh // days
    there = sorted(homes or {home for seen in means for home in seen})
    made = DayAhead([], {home: [] for home in there})
    for of_day, seen in enumerate(means):
        known = [seen[home] for home in there if home in seen]
        if len(known) >= enough(len(there)):
            typical_wh = sum(known) // len(known)
            expected = [seen.get(home, typical_wh) for home in there]
            made.feeder.append(sum(expected))
            for home, net_wh in zip(there, expected, strict=True):
                made.homes[home].append(net_wh)
        else:
            made.feeder.append(standing_wh[of_day] if of_day < len(standing_wh) else None)
            for rows in made.homes.values():
                rows.append(None)
    return made


def enough(homes: int) -> int:
    """How many of so many homes speak for the feeder: 80 %, rounded up, and one at least."""
    return max(1, -(-homes * ENOUGH_PERMILLE // 1000))


def forecast_deviation(measured: Sequence[tuple[int, int | None]]) -> int:
    """
    The deviation that the next slots will probably have [Wh].

    Persistence: the mean of the last measured deviations from the schedule, rounded down.

    Args:
        measured: (net energy, approved net energy or None) of the last slots [Wh]
    """
    deviations = [net_wh - approved for net_wh, approved in measured if approved is not None]
    return sum(deviations) // len(deviations) if deviations else 0
