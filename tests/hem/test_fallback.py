"""Plans by rules: can be kept, and sensible."""

from hypothesis import given, settings
from plan_tasks import FIRST, tasks

from hem.controller.battery import Battery
from hem.controller.fallback import plan_by_rules
from hem.controller.plan import Car, Deferrable, Outlook, Task
from hem.controller.plan_check import check_plan


def day(prices, load_wh=500, pv_wh=0, **more):
    slots = tuple(
        Outlook(
            load_wh=load_wh, pv_wh=pv_wh, import_price_uc_per_kwh=price,
            export_price_uc_per_kwh=80_000,
        )
        for price in prices
    )  # fmt: skip
    return Task(first_slot=FIRST, slot_seconds=3600, slots=slots, **more)


@given(tasks(slots_max=96))
@settings(max_examples=max(250, settings().max_examples))
def test_the_checker_accepts_every_plan_by_rules(task):
    assert check_plan(task, plan_by_rules(task)) == []


def test_the_battery_serves_the_home_and_stores_its_surplus():
    battery = Battery(4_000, 2_000, 2_000, 1000, 1000, soc_min_permille=0)
    plan = plan_by_rules(day([300_000] * 2, load_wh=500, pv_wh=1_200, battery=battery))
    assert [slot.charge_wh for slot in plan.slots] == [700, 700]
    plan = plan_by_rules(day([300_000] * 3, battery=battery, soc_wh=1_200))
    assert [slot.discharge_wh for slot in plan.slots] == [500, 500, 200]


def test_a_load_runs_where_it_is_cheapest():
    load = Deferrable(name="a", profile_wh=(500, 900), earliest_slot=FIRST, end_slot=FIRST + 4)
    plan = plan_by_rules(day([400_000, 300_000, 100_000, 350_000], loads=(load,)))
    assert plan.starts == {"a": FIRST + 1}


def test_the_sun_is_cheaper_than_a_cheap_night():
    """What is not exported costs the feed-in price."""
    slots = [day([120_000] * 2, load_wh=0).slots[0], day([300_000], load_wh=0, pv_wh=900).slots[0]]
    load = Deferrable(name="a", profile_wh=(900,), earliest_slot=FIRST, end_slot=FIRST + 2)
    task = Task(first_slot=FIRST, slot_seconds=3600, slots=tuple(slots), loads=(load,))
    assert plan_by_rules(task).starts == {"a": FIRST + 1}


def test_the_car_takes_the_cheapest_hours_before_it_must_be_ready():
    car = Car(
        plugged_slots=tuple(range(FIRST, FIRST + 4)), ready_slot=FIRST + 3, need_wh=1_500,
        max_charge_wh=1_000, charge_permille=1000,
    )  # fmt: skip
    plan = plan_by_rules(day([300_000, 100_000, 200_000, 1], car=car))
    assert plan.car_wh == (0, 1_000, 500, 0)


def test_the_urgent_part_of_the_car_goes_before_a_load():
    slots = tuple(
        Outlook(
            load_wh=0, pv_wh=0, import_price_uc_per_kwh=price, export_price_uc_per_kwh=0,
            import_limit_wh=1_010,
        )
        for price in (100_000, 300_000)
    )  # fmt: skip
    car = Car(
        plugged_slots=(FIRST,), ready_slot=FIRST + 1, need_wh=900, soon_wh=900,
        max_charge_wh=1_000, charge_permille=1000,
    )  # fmt: skip
    load = Deferrable(name="a", profile_wh=(900,), earliest_slot=FIRST, end_slot=FIRST + 2)
    task = Task(first_slot=FIRST, slot_seconds=900, slots=slots, loads=(load,), car=car)
    plan = plan_by_rules(task)
    assert plan.car_wh == (900, 0)
    assert plan.starts == {"a": FIRST + 1}
