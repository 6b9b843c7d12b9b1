"""
Loads that may wait and the car, as the owner writes them into the policy.

    [[deferrable]]
    name = "dishwasher"
    power_w = 1200                 # or wh_per_slot = [300, 300, 50], slot after slot
    minutes = 60
    earliest = "20:00"             # local time
    latest = "06:00"               # done by then; not after `earliest` means the next day
    days = ["mon", "wed", "fri"]   # of `earliest`; all days without it

    [car]
    capacity_wh = 58000
    max_charge_w = 11000
    min_charge_w = 1380            # 6 A on one phase: less is nothing
    ready_by = "07:00"             # local time
    need_wh = 12000                # to be stored by then
    min_soc_permille = 200         # up to this it does not wait

Whether a car is plugged in, its state of charge, and how a device is told to start come from
devices and are not said here.

Source: TMI section V-D (flexible loads); docs/concepts/plan.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hem.controller.plan import Car, Deferrable

TimeOfDay = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SlotAt = Callable[[datetime], int]
"""The slot in which a local time (naive) lies."""


class _Section(BaseModel):
    """A key that we do not know is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DeferrablePolicy(_Section):
    """A load that may wait: it runs once in its window, without a break."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    wh_per_slot: Annotated[
        tuple[Annotated[int, Field(ge=0, le=100_000)], ...], Field(max_length=96)
    ] = ()
    """What it takes, slot after slot [Wh]; or power and minutes."""
    power_w: Annotated[int, Field(ge=1, le=100_000)] | None = None
    minutes: Annotated[int, Field(ge=1, le=1_440)] | None = None
    earliest: TimeOfDay
    latest: TimeOfDay
    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [self.power_w is not None, self.minutes is not None]
        if any(given) == bool(self.wh_per_slot) or any(given) != all(given):
            raise ValueError("give wh_per_slot, or power_w and minutes")
        return self

    def profile_wh(self, slot_seconds: int) -> tuple[int, ...]:
        """What it takes in each of its slots [Wh], the last perhaps in part; rounded up."""
        if self.power_w is None or self.minutes is None:
            return self.wh_per_slot
        whole, rest_s = divmod(self.minutes * 60, slot_seconds)
        seconds = [slot_seconds] * whole + ([rest_s] if rest_s else [])
        return tuple(-(-self.power_w * part // 3600) for part in seconds)

    def on_day(self, day: date, slot_at: SlotAt, slot_seconds: int) -> Deferrable | None:
        """
        The load of a day, for a task; None on a day without it.

        A window that begins within a slot begins with the next one.
        """
        if DAYS[day.weekday()] not in self.days:
            return None
        earliest = _at(day, self.earliest)
        latest = _at(day, self.latest)
        if latest <= earliest:
            latest += timedelta(days=1)
        return Deferrable(
            name=f"{self.name} {day.isoformat()}",
            profile_wh=self.profile_wh(slot_seconds),
            earliest_slot=slot_at(earliest + timedelta(seconds=slot_seconds - 1)),
            end_slot=slot_at(latest),
        )


class CarPolicy(_Section):
    """The car: when it must be ready, and with how much."""

    capacity_wh: Annotated[int, Field(ge=1_000, le=1_000_000)]
    max_charge_w: Annotated[int, Field(ge=1, le=100_000)]
    min_charge_w: Annotated[int, Field(ge=0, le=100_000)] = 1_380
    """It charges with this or more, or not at all."""
    ready_by: TimeOfDay
    need_wh: Annotated[int, Field(ge=0, le=1_000_000)]
    """To be stored until then, where its state of charge leaves room for it [Wh]."""
    min_soc_permille: Annotated[int, Field(ge=0, le=1000)] = 0
    """Up to this state of charge it does not wait for a better price."""
    charge_permille: Annotated[int, Field(ge=1, le=1000)] = 900
    """Stored of what it takes."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_charge_w > self.max_charge_w:
            raise ValueError("min_charge_w must not be above max_charge_w")
        if self.need_wh > self.capacity_wh:
            raise ValueError("need_wh must not be above capacity_wh")
        return self

    def ready_at(self, after: datetime) -> datetime:
        """The next local time at which it must be ready."""
        ready = _at(after.date(), self.ready_by)
        return ready if ready > after else ready + timedelta(days=1)

    def plugged(
        self, slots: Sequence[int], ready_slot: int, soc_wh: int | None, slot_seconds: int
    ) -> Car:
        """
        The car of a task.

        Args:
            slots: in which it is plugged in, rising
            ready_slot: it must be ready when this begins
            soc_wh: stored in it; None where the car does not say
        """
        need_wh, soon_wh = self.need_wh, 0
        if soc_wh is not None:
            room_wh = max(self.capacity_wh - soc_wh, 0)
            soon_wh = max(self.capacity_wh * self.min_soc_permille // 1000 - soc_wh, 0)
            need_wh = min(max(need_wh, soon_wh), room_wh)
        return Car(
            plugged_slots=tuple(slots),
            ready_slot=ready_slot,
            need_wh=need_wh,
            soon_wh=soon_wh,
            min_charge_wh=-(-self.min_charge_w * slot_seconds // 3600),
            max_charge_wh=max(
                self.max_charge_w * slot_seconds // 3600,
                -(-self.min_charge_w * slot_seconds // 3600),
            ),
            charge_permille=self.charge_permille,
        )


def _at(day: date, text: str) -> datetime:
    return datetime.combine(day, time.fromisoformat(text))
