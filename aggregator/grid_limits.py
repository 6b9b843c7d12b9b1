"""
The DSO's approval of a feeder's schedule: what the line carries, slot by slot. Pure.

Each slot is approved as asked, as far as that keeps within the feeder's rating and within what
known works leave of it; what goes beyond is cut to the tightest limit, and the change says which
that was. What was approved before stands, or an aggregator could move its schedule after the fact.

References:
    TMI section IV (the DSO approves the aggregator's schedule, with possible changes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from wire.day_ahead import Change, Row
from wire.errors import Refusal

DAY_S = 86_400
AHEAD_DAYS_MAX = 3
"""A schedule is approved for slots that begin within this time [d]."""


class Reason(StrEnum):
    """Why a slot was approved otherwise than asked."""

    IMPORT_RATING = "IMPORT_RATING"
    """The feeder carries no more import."""
    EXPORT_RATING = "EXPORT_RATING"
    """The feeder carries no more export."""
    IMPORT_WORKS = "IMPORT_WORKS"
    """Works on the line leave room for less import."""
    EXPORT_WORKS = "EXPORT_WORKS"
    """Works on the line leave room for less export."""
    APPROVED_BEFORE = "APPROVED_BEFORE"
    """Another value was approved for the slot already."""


@dataclass(frozen=True, slots=True)
class Works:
    """Works on the line: a lower limit in some slots of every day."""

    first_slot_of_day: int
    last_slot_of_day: int
    """Inclusive."""
    import_w: int | None = None
    """Most import [W]; None: no other than the rating."""
    export_w: int | None = None
    """Most export [W]; None: no other than the rating."""


@dataclass(frozen=True, slots=True)
class GridPolicy:
    """What the DSO knows of a feeder. See `aggregator.config.DsoSection`."""

    rating_import_w: int | None = None
    """Most import [W]; None: not limited."""
    rating_export_w: int | None = None
    """Most export [W]; None: not limited."""
    works: Sequence[Works] = ()


@dataclass(frozen=True, slots=True)
class Approved:
    """The DSO's answer."""

    slots: list[Row]
    """(slot, net energy [Wh]) as approved, for every slot that was asked."""
    changes: list[Change]


def refusal_of(
    asked: Sequence[Row], roles: frozenset[str], slot: int, slot_s: int
) -> Refusal | None:
    """
    Why a schedule is not looked at, or None.

    Args:
        roles: of the certificate of who asks
        slot: the current one
        slot_s: length of a slot [s]

    Returns:
        NOT_ALLOWED (only an aggregator has a feeder's schedule), SLOT_CLOSED (one has ended),
        SLOT_TOO_FAR.
    """
    if "aggregator" not in roles:
        return Refusal.NOT_ALLOWED
    if any(each < slot for each, _ in asked):
        return Refusal.SLOT_CLOSED
    if any(each > slot + AHEAD_DAYS_MAX * DAY_S // slot_s for each, _ in asked):
        return Refusal.SLOT_TOO_FAR
    return None


def approve(
    asked: Sequence[Row], before: Mapping[int, int], policy: GridPolicy, slot_s: int
) -> Approved:
    """
    Approve a schedule, with changes where the grid needs them.

    Args:
        asked: (slot, net energy [Wh]), slots rising
        before: what was approved for these slots already [Wh]
        slot_s: length of a slot [s]

    Returns:
        Every slot that was asked, and a change for each that is not approved as asked. A limit is a
        power times the length of a slot, rounded down: to the safe side.
    """
    slots: list[Row] = []
    changes: list[Change] = []
    for slot, asked_wh in asked:
        if slot in before:
            approved_wh, reason = before[slot], Reason.APPROVED_BEFORE
        else:
            approved_wh, reason = _within(slot, asked_wh, policy, slot_s)
        slots.append((slot, approved_wh))
        if approved_wh != asked_wh:
            changes.append(Change(slot, asked_wh, approved_wh, reason.value))
    return Approved(slots, changes)


def _within(slot: int, asked_wh: int, policy: GridPolicy, slot_s: int) -> tuple[int, Reason]:
    """The nearest net energy that the line carries, and what limits it on that side."""
    imports = asked_wh >= 0
    limits = (
        [(policy.rating_import_w, Reason.IMPORT_RATING)]
        if imports
        else [(policy.rating_export_w, Reason.EXPORT_RATING)]
    )
    of_day = slot % (DAY_S // slot_s)
    for works in policy.works:
        if works.first_slot_of_day <= of_day <= works.last_slot_of_day:
            limits.append(
                (works.import_w, Reason.IMPORT_WORKS)
                if imports
                else (works.export_w, Reason.EXPORT_WORKS)
            )
    # The first of equal limits is named: the rating before works.
    energy_wh, tightest = abs(asked_wh), limits[0][1]
    for power_w, reason in limits:
        if power_w is not None and power_w * slot_s // 3600 < energy_wh:
            energy_wh, tightest = power_w * slot_s // 3600, reason
    return (energy_wh if imports else -energy_wh), tightest
