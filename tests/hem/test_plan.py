"""Tasks and plans as JSON: strict, bounded, integers."""

import json
from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from plan_tasks import FIRST, tasks
from pydantic import ValidationError

from hem.controller.fallback import plan_by_rules
from hem.controller.flexible import CarPolicy, DeferrablePolicy
from hem.controller.plan import (
    BYTES_MAX,
    SLOTS_MAX,
    Outlook,
    Task,
    plan_from_json,
    task_from_json,
    to_json,
)
from wire.errors import MalformedError, OversizedError


@given(tasks())
def test_a_task_and_its_plan_survive_json(task):
    plan = plan_by_rules(task)
    assert task_from_json(to_json(task)) == task
    assert plan_from_json(to_json(plan)) == plan


def small_task():
    slot = Outlook(
        load_wh=1, pv_wh=0, import_price_uc_per_kwh=300_000, export_price_uc_per_kwh=80_000
    )
    return Task(first_slot=FIRST, slot_seconds=900, slots=(slot,))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slot_seconds", 900.0),
        ("slot_seconds", True),
        ("slot_seconds", 0),
        ("soc_wh", -1),
        ("soc_wh", 10**20),
        ("slots", []),
        ("colour", "red"),
        ("battery", {"capacity_wh": 0, "max_charge_w": 1, "max_discharge_w": 1}),
        ("worth", [{"energy_wh": 1, "price_uc_per_kwh": n} for n in (1, 2)]),
        ("loads", [{"name": "a", "profile_wh": [1], "earliest_slot": 1, "end_slot": 2}] * 2),
        ("car", {"plugged_slots": [2, 1], "ready_slot": 3, "need_wh": 1, "max_charge_wh": 1}),
        ("car", {"plugged_slots": [], "ready_slot": 3, "need_wh": 1, "max_charge_wh": 1,
                 "soon_wh": 2}),
    ],
)  # fmt: skip
def test_a_task_that_is_none_is_refused(field, value):
    raw = json.loads(to_json(small_task()))
    raw[field] = value
    with pytest.raises(MalformedError, match="not a task"):
        task_from_json(json.dumps(raw).encode())


def test_what_is_too_long_is_not_read():
    with pytest.raises(OversizedError, match="plan too long"):
        plan_from_json(b" " * (BYTES_MAX + 1))


def test_the_longest_task_and_its_plan_fit():
    slot = Outlook(
        load_wh=10**8, pv_wh=10**8, import_price_uc_per_kwh=10**9, export_price_uc_per_kwh=-(10**9)
    )
    task = Task(first_slot=10**11, slot_seconds=900, slots=(slot,) * SLOTS_MAX)
    assert len(to_json(task)) < BYTES_MAX / 4
    assert len(to_json(plan_by_rules(task))) < BYTES_MAX / 4


MIDNIGHT = datetime(2026, 3, 2)  # a Monday
A_DAY = MIDNIGHT.date()


def slot_at(time):
    return FIRST + (time - MIDNIGHT) // timedelta(minutes=15)


def test_a_load_by_power_and_minutes_becomes_energy_per_slot():
    load = DeferrablePolicy(
        name="dish", power_w=1_200, minutes=40, earliest="20:05", latest="06:00"
    )
    assert load.profile_wh(900) == (300, 300, 200)
    made = load.on_day(A_DAY, slot_at, 900)
    assert made.name == "dish 2026-03-02"
    assert (made.earliest_slot, made.end_slot) == (FIRST + 81, FIRST + 96 + 24)


def test_a_load_runs_on_its_days_only():
    load = DeferrablePolicy(
        name="wash", wh_per_slot=(500, 100), earliest="08:00", latest="12:00", days=("mon", "fri")
    )
    assert load.on_day(A_DAY, slot_at, 900).profile_wh == (500, 100)
    assert load.on_day(date(2026, 3, 3), slot_at, 900) is None


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"power_w": 100},
        {"minutes": 100},
        {"power_w": 100, "minutes": 5, "wh_per_slot": [1]},
        {"wh_per_slot": [1], "earliest": "24:00"},
        {"wh_per_slot": [1], "latest": "7:00"},
        {"wh_per_slot": [1], "days": []},
        {"wh_per_slot": [1], "days": ["monday"]},
        {"wh_per_slot": [-1]},
        {"wh_per_slot": [1], "colour": "red"},
    ],
)
def test_a_load_that_is_not_clear_is_refused(keys):
    with pytest.raises(ValidationError):
        DeferrablePolicy(**{"name": "a", "earliest": "08:00", "latest": "12:00", **keys})


def a_car(**changes):
    keys = {"capacity_wh": 50_000, "max_charge_w": 11_000, "ready_by": "07:00", "need_wh": 12_000}
    return CarPolicy(**{**keys, **changes})


def test_a_car_needs_no_more_than_it_has_room_for():
    car = a_car(min_soc_permille=200).plugged((FIRST,), FIRST + 9, 45_000, 900)
    assert (car.need_wh, car.soon_wh) == (5_000, 0)
    assert (car.min_charge_wh, car.max_charge_wh) == (345, 2_750)


def test_a_nearly_empty_car_has_a_part_that_does_not_wait():
    car = a_car(min_soc_permille=400).plugged((FIRST,), FIRST + 9, 5_000, 900)
    assert (car.need_wh, car.soon_wh) == (15_000, 15_000)
    silent = a_car(min_soc_permille=400).plugged((FIRST,), FIRST + 9, None, 900)
    assert (silent.need_wh, silent.soon_wh) == (12_000, 0)


def test_the_car_is_ready_by_the_next_time_it_is_that_late():
    assert a_car().ready_at(MIDNIGHT) == MIDNIGHT + timedelta(hours=7)
    evening = MIDNIGHT + timedelta(hours=7)
    assert a_car().ready_at(evening) == evening + timedelta(days=1)


@pytest.mark.parametrize("keys", [{"min_charge_w": 12_000}, {"need_wh": 60_000}, {"wheels": 4}])
def test_a_car_that_cannot_be_is_refused(keys):
    with pytest.raises(ValidationError):
        a_car(**keys)
