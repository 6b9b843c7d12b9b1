"""The checker refuses every plan that cannot be, and names the slot and the figures."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_tasks import FIRST, tasks

from hem.controller.battery import Battery
from hem.controller.fallback import plan_by_rules
from hem.controller.plan import Car, Deferrable, Note, Outlook, Task, Worth
from hem.controller.plan_check import Fault, check_plan

replace = msgspec.structs.replace


def a_task():
    """A home with everything: sun at noon, a dear evening, a car, a load, limits."""
    suns = (0, 0, 900, 1_500, 0, 0)
    prices = (100_000, 120_000, 300_000, 300_000, 400_000, 400_000)
    slots = tuple(
        Outlook(
            load_wh=300, pv_wh=sun, import_price_uc_per_kwh=price, export_price_uc_per_kwh=80_000,
            import_limit_wh=2_000, export_limit_wh=1_000,
        )
        for sun, price in zip(suns, prices, strict=True)
    )  # fmt: skip
    return Task(
        first_slot=FIRST,
        slot_seconds=3600,
        slots=slots,
        battery=Battery(4_000, 1_000, 1_000),
        soc_wh=1_000,
        degradation_uc_per_kwh=60_000,
        worth=(Worth(energy_wh=3_000, price_uc_per_kwh=90_000),),
        loads=(
            Deferrable(
                name="wash", profile_wh=(400, 200), earliest_slot=FIRST + 2, end_slot=FIRST + 5
            ),
        ),
        car=Car(
            plugged_slots=(FIRST, FIRST + 1, FIRST + 4),
            ready_slot=FIRST + 4,
            need_wh=1_800,
            soon_wh=450,
            min_charge_wh=400,
            max_charge_wh=1_500,
        ),
    )


TASK = a_task()
PLAN = plan_by_rules(TASK)


def with_slot(at, **changes):
    slots = list(PLAN.slots)
    slots[at] = replace(slots[at], **changes)
    return replace(PLAN, slots=tuple(slots))


def moved(at, **more):
    """The plan with so much more of each field in a slot."""
    slot = PLAN.slots[at]
    return with_slot(at, **{name: getattr(slot, name) + wh for name, wh in more.items()})


def test_the_plan_that_the_others_are_made_from_is_accepted():
    assert check_plan(TASK, PLAN) == []
    assert any(slot.charge_wh for slot in PLAN.slots)
    assert any(slot.discharge_wh for slot in PLAN.slots)


SURPLUS = next(at for at, slot in enumerate(PLAN.slots) if slot.charge_wh)
DEFICIT = next(at for at, slot in enumerate(PLAN.slots) if slot.discharge_wh)
IMPOSSIBLE = {
    "a state of charge of −247 %": (with_slot(5, soc_wh=-9_880), Fault.SOC_RANGE),
    "more stored than there is room": (with_slot(5, soc_wh=4_001), Fault.SOC_RANGE),
    "stored energy from nothing": (moved(3, soc_wh=1), Fault.SOC_PATH),
    "stored energy that is lost": (moved(0, soc_wh=-1), Fault.SOC_PATH),
    "charge and discharge at once": (
        moved(SURPLUS, charge_wh=100, discharge_wh=100),
        Fault.BOTH_WAYS,
    ),
    "import and export at once": (moved(0, import_wh=100, export_wh=100), Fault.BOTH_WAYS),
    "charging above the rate": (with_slot(SURPLUS, charge_wh=1_001), Fault.CHARGE_RATE),
    "discharging above the rate": (with_slot(DEFICIT, discharge_wh=1_001), Fault.DISCHARGE_RATE),
    "discharging what is not there": (with_slot(0, discharge_wh=900), Fault.DISCHARGE_RATE),
    "energy from nowhere": (moved(4, import_wh=-1), Fault.BALANCE),
    "energy that goes nowhere": (moved(3, export_wh=-1), Fault.BALANCE),
    "import above the limit": (with_slot(0, import_wh=2_001), Fault.IMPORT_LIMIT),
    "export above the limit": (with_slot(3, export_wh=1_201), Fault.EXPORT_LIMIT),
    "negative import for export": (with_slot(3, import_wh=-1_200), Fault.NEGATIVE),
    "sun that cannot be curtailed": (moved(3, curtailed_wh=1), Fault.CURTAILED),
    "less load than expected": (moved(4, load_wh=-300), Fault.OTHER_OUTLOOK),
    "more sun than expected": (moved(4, pv_wh=300), Fault.OTHER_OUTLOOK),
    "a better price": (moved(4, import_price_uc_per_kwh=-1), Fault.OTHER_OUTLOOK),
    "a load twice": (moved(2, flexible_wh=400), Fault.FLEXIBLE),
    "a load never": (replace(PLAN, starts={}), Fault.LOAD_MISSING),
    "a load too early": (replace(PLAN, starts={"wash": FIRST + 1}), Fault.LOAD_WINDOW),
    "a load too late": (replace(PLAN, starts={"wash": FIRST + 4}), Fault.LOAD_WINDOW),
    "a load out of the day": (replace(PLAN, starts={"wash": FIRST + 400}), Fault.LOAD_WINDOW),
    "a load nobody has": (replace(PLAN, starts={**PLAN.starts, "x": FIRST}), Fault.LOAD_UNKNOWN),
    "a car with less than it needs": (
        replace(PLAN, car_wh=(500, 0, 0, 0, 0, 0)),
        Fault.CAR_SHORT,
    ),
    "a car with more than it takes": (
        replace(PLAN, car_wh=(1_500, 1_500, 0, 0, 0, 0)),
        Fault.CAR_TOO_MUCH,
    ),
    "a car that is away": (replace(PLAN, car_wh=(1_500, 0, 500, 0, 0, 0)), Fault.CAR_AWAY),
    "a car after it was to be ready": (
        replace(PLAN, car_wh=(1_500, 0, 0, 0, 500, 0)),
        Fault.CAR_AWAY,
    ),
    "a car above its power": (replace(PLAN, car_wh=(2_000, 0, 0, 0, 0, 0)), Fault.CAR_RATE),
    "a car below its least power": (replace(PLAN, car_wh=(399, 1_500, 0, 0, 0, 0)), Fault.CAR_RATE),
    "an empty car that waits": (replace(PLAN, car_wh=(0, 1_500, 0, 0, 0, 0)), Fault.CAR_LATE),
    "an empty plan": (replace(PLAN, slots=()), Fault.EMPTY),
    "too few slots": (replace(PLAN, slots=PLAN.slots[:-1]), Fault.OTHER_SLOTS),
    "other slots": (replace(PLAN, first_slot=FIRST + 1), Fault.OTHER_SLOTS),
    "slots in another order": (replace(PLAN, slots=PLAN.slots[::-1]), Fault.OTHER_SLOTS),
    "no car": (replace(PLAN, car_wh=()), Fault.OTHER_SLOTS),
    "half of an energy": (with_slot(0, import_wh=300.0), Fault.NOT_INTEGER),
    "true for an energy": (with_slot(0, discharge_wh=False), Fault.NOT_INTEGER),
    "text for an energy": (with_slot(0, import_wh="300"), Fault.NOT_INTEGER),
    "no number": (with_slot(0, soc_wh=float("nan")), Fault.NOT_INTEGER),
    "a cost that is no integer": (replace(PLAN, cost_uc=0.5), Fault.NOT_INTEGER),
    "a cost that is not that of its slots": (replace(PLAN, cost_uc=PLAN.cost_uc - 1), Fault.COST),
    "a want that is none": (
        replace(PLAN, notes=(Note(kind="car-short", slot=FIRST, energy_wh=1),)),
        Fault.NOTE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_plan_is_refused_by_the_name_of_its_fault(name):
    plan, fault = IMPOSSIBLE[name]
    found = check_plan(TASK, plan)
    assert fault in {violation.fault for violation in found}, [str(each) for each in found]
    for violation in found:
        assert FIRST <= violation.slot <= FIRST + 400


def test_a_violation_is_told_with_slot_and_figures():
    texts = [str(each) for each in check_plan(TASK, IMPOSSIBLE["a state of charge of −247 %"][0])]
    assert "SOC_RANGE in slot 1005: -9880 Wh (-247 %), expected 200…4000 Wh" in texts


def test_a_battery_that_is_not_there_stores_nothing():
    task = replace(TASK, battery=None, worth=())
    assert Fault.NO_BATTERY in {each.fault for each in check_plan(task, PLAN)}


@given(tasks(slots_max=8), st.data())
def test_a_plan_with_one_wrong_wh_is_refused(task, data):
    """Whatever energy of whatever plan is changed: the balance or the stored energy breaks."""
    plan = plan_by_rules(task)
    at = data.draw(st.integers(0, len(plan.slots) - 1))
    name = data.draw(
        st.sampled_from(
            ["load_wh", "pv_wh", "flexible_wh", "charge_wh", "discharge_wh", "import_wh",
             "export_wh", "curtailed_wh", "soc_wh"]
        )
    )  # fmt: skip
    more_wh = data.draw(st.integers(-500, 500).filter(bool))
    slots = list(plan.slots)
    slots[at] = replace(slots[at], **{name: getattr(slots[at], name) + more_wh})
    assert check_plan(task, replace(plan, slots=tuple(slots)))
