"""The solver's plans can be kept, and are the cheapest."""

import pytest
from hypothesis import assume, given, settings
from plan_tasks import FIRST, cheapest_uc, tasks, tiny_tasks

from hem.controller.battery import Battery
from hem.controller.fallback import plan_by_rules
from hem.controller.highs import Outcome, solve
from hem.controller.milp import Model, build, read_plan
from hem.controller.plan import Car, Deferrable, Outlook, Task, Worth
from hem.controller.plan_check import check_plan
from hem.controller.planning import shortcomings

pytest.importorskip("highspy")

LOSSLESS = Battery(4_000, 2_000, 2_000, 1000, 1000, soc_min_permille=0)


def solved(task, gap=0.0):
    model = build(task)
    solution = solve(model, 60, len(task.slots), gap)
    assert solution.outcome is Outcome.OPTIMAL
    return read_plan(task, model, solution.values, solution.balance_duals)


def day(prices, load_wh=500, pv_wh=0, export=80_000, **more):
    slots = tuple(
        Outlook(
            load_wh=load_wh, pv_wh=pv_wh, import_price_uc_per_kwh=price,
            export_price_uc_per_kwh=export,
        )
        for price in prices
    )  # fmt: skip
    return Task(first_slot=FIRST, slot_seconds=3600, slots=slots, **more)


@given(tasks())
@settings(max_examples=max(120, settings().max_examples))
def test_the_checker_accepts_every_plan_of_the_solver(task):
    assert check_plan(task, solved(task)) == []


def rounding_uc(task):
    """What whole Wh may cost: two of each slot, and a car's, at the dearest price [µ¤]."""
    dearest = max(
        task.degradation_uc_per_kwh,
        *(part.price_uc_per_kwh for part in task.worth),
        *(abs(each.import_price_uc_per_kwh) for each in task.slots),
        *(abs(each.export_price_uc_per_kwh) for each in task.slots),
    )
    return 4 * (len(task.slots) + 2) * dearest // 1000 + 10


@given(tasks())
@settings(max_examples=max(100, settings().max_examples))
def test_no_plan_by_rules_is_better_than_the_solvers(task):
    # To a model, getting back to the floor is worth as much as what is stored above it.
    assume(task.battery is None or task.soc_wh >= task.battery.floor_wh)
    best, rules = shortcomings(solved(task)), shortcomings(plan_by_rules(task))
    if best[:3] == rules[:3]:
        assert best[3] <= rules[3] + rounding_uc(task)
    else:
        # Limits first: what a few Wh of rounding weigh is left out of account.
        assert [best[0] // 100, *best[1:]] <= [rules[0] // 100 + 1, *rules[1:]]


@given(tiny_tasks())
@settings(max_examples=max(100, settings().max_examples))
def test_without_losses_nothing_that_can_be_tried_is_cheaper_by_a_single_unit(task):
    """Beside trying every step of every slot; what each slot costs is rounded."""
    assert abs(solved(task).cost_uc - cheapest_uc(task)) <= 4 * len(task.slots)


@given(tiny_tasks(losses=True))
def test_with_losses_the_difference_is_that_of_rounding(task):
    """Whole Wh lose up to 1 Wh in a slot, in a battery of 12 Wh much: the model does not."""
    assert abs(solved(task).cost_uc - cheapest_uc(task)) <= rounding_uc(task)


def test_it_charges_when_energy_is_cheap_and_discharges_when_it_is_dear():
    plan = solved(
        day([100_000, 100_000, 400_000, 400_000], battery=LOSSLESS, degradation_uc_per_kwh=1_000)
    )
    assert sum(slot.charge_wh for slot in plan.slots[:2]) == 1_000
    assert [slot.discharge_wh for slot in plan.slots[2:]] == [500, 500]


def test_what_is_worth_more_later_is_kept():
    worth = (
        Worth(energy_wh=1_000, price_uc_per_kwh=500_000),
        Worth(energy_wh=3_000, price_uc_per_kwh=200_000),
    )
    plan = solved(day([300_000] * 4, battery=LOSSLESS, soc_wh=2_500, worth=worth))
    assert plan.slots[-1].soc_wh == 1_000


def test_wear_is_paid_for_what_is_discharged():
    """A spread of 30 % does not pay for wear of 100 %."""
    battery = day([100_000, 130_000], battery=LOSSLESS, degradation_uc_per_kwh=100_000)
    assert [slot.charge_wh for slot in solved(battery).slots] == [0, 0]


def believed_and_planned_uc(task):
    """The model's own cost, and that of the plan that was read from it [µ¤]."""
    model = build(task)
    solution = solve(model, 60, len(task.slots), 0.0)
    plan = read_plan(task, model, solution.values, solution.balance_duals)
    believed = sum(c * value for c, value in zip(model.cost, solution.values, strict=True))
    return round(believed * 1e6), plan


@given(tasks())
def test_the_plan_costs_what_the_model_says(task):
    """Nothing that the model believes in is lost on the way to a plan that can be kept."""
    assume(task.battery is None or task.soc_wh >= task.battery.floor_wh)
    believed_uc, plan = believed_and_planned_uc(task)
    assume(not plan.notes)
    assert abs(believed_uc - plan.cost_uc) <= rounding_uc(task)


def test_a_negative_price_does_not_make_it_burn_energy():
    """Charging and discharging at once would use energy up where using it is paid for."""
    battery = Battery(1_000, 5_000, 5_000, 800, 800)
    task = day([-200_000] * 2, export=-200_000, battery=battery, soc_wh=1_000)
    believed_uc, plan = believed_and_planned_uc(task)
    assert abs(believed_uc - plan.cost_uc) <= rounding_uc(task)
    assert check_plan(task, plan) == []


def test_an_export_price_above_the_import_price_is_no_pump():
    """Energy that is imported to be exported at once would pay without end."""
    task = day([100_000] * 2, export=300_000, load_wh=500, pv_wh=800)
    believed_uc, plan = believed_and_planned_uc(task)
    assert [(slot.import_wh, slot.export_wh) for slot in plan.slots] == [(0, 300)] * 2
    assert believed_uc == plan.cost_uc == -2 * 90_000


def test_a_load_runs_once_through_in_the_cheapest_part_of_its_window():
    load = Deferrable(
        name="washing", profile_wh=(500, 900), earliest_slot=FIRST + 1, end_slot=FIRST + 5
    )
    plan = solved(day([1, 400_000, 300_000, 200_000, 350_000, 1], loads=(load,)))
    assert plan.starts == {"washing": FIRST + 2}
    assert [slot.flexible_wh for slot in plan.slots] == [0, 0, 500, 900, 0, 0]


def test_a_load_waits_for_room_under_the_limit():
    """Two loads that are cheapest together run one after the other."""
    slots = tuple(
        Outlook(
            load_wh=100, pv_wh=0, import_price_uc_per_kwh=price, export_price_uc_per_kwh=0,
            import_limit_wh=1_200,
        )
        for price in (100_000, 200_000)
    )  # fmt: skip
    loads = tuple(
        Deferrable(name=name, profile_wh=(1_000,), earliest_slot=FIRST, end_slot=FIRST + 2)
        for name in "ab"
    )
    plan = solved(Task(first_slot=FIRST, slot_seconds=900, slots=slots, loads=loads))
    assert sorted(plan.starts.values()) == [FIRST, FIRST + 1]
    assert plan.notes == ()


def test_what_no_limit_leaves_room_for_is_left_out_and_said():
    slots = (
        Outlook(
            load_wh=2_000, pv_wh=0, import_price_uc_per_kwh=100_000, export_price_uc_per_kwh=0,
            import_limit_wh=1_500,
        ),
    )  # fmt: skip
    load = Deferrable(name="a", profile_wh=(10,), earliest_slot=FIRST, end_slot=FIRST + 1)
    plan = solved(Task(first_slot=FIRST, slot_seconds=900, slots=slots, loads=(load,)))
    assert {(note.kind, note.energy_wh) for note in plan.notes} == {
        ("import-limit", 500),
        ("load-left-out", 10),
    }


def test_the_car_charges_with_its_least_power_or_not_at_all():
    car = Car(
        plugged_slots=tuple(range(FIRST, FIRST + 4)), ready_slot=FIRST + 4, need_wh=1_500,
        min_charge_wh=700, max_charge_wh=1_000, charge_permille=1000,
    )  # fmt: skip
    plan = solved(day([300_000, 100_000, 200_000, 100_000], car=car))
    assert plan.car_wh[0] == plan.car_wh[2] == 0
    assert all(700 <= plan.car_wh[at] <= 1_000 for at in (1, 3))
    assert sum(plan.car_wh) == 1_500


def test_a_nearly_empty_car_does_not_wait_for_a_better_price():
    car = Car(
        plugged_slots=tuple(range(FIRST + 1, FIRST + 4)), ready_slot=FIRST + 4, need_wh=1_500,
        soon_wh=600, max_charge_wh=1_000, charge_permille=1000,
    )  # fmt: skip
    plan = solved(day([400_000, 400_000, 400_000, 100_000], car=car))
    assert plan.car_wh == (0, 600, 0, 900)


def test_sun_that_has_no_way_out_is_stored_before_it_is_curtailed():
    slots = tuple(
        Outlook(
            load_wh=0, pv_wh=3_000, import_price_uc_per_kwh=300_000,
            export_price_uc_per_kwh=80_000, export_limit_wh=500,
        )
        for _ in range(2)
    )  # fmt: skip
    worth = (Worth(energy_wh=4_000, price_uc_per_kwh=200_000),)
    task = Task(
        first_slot=FIRST, slot_seconds=3600, slots=slots, battery=LOSSLESS, worth=worth,
        can_curtail=True,
    )  # fmt: skip
    plan = solved(task)
    assert plan.slots[-1].soc_wh == 4_000
    assert sum(slot.curtailed_wh for slot in plan.slots) == 1_000
    assert plan.notes == ()


def test_the_price_of_one_more_kwh_is_told_where_all_is_linear():
    """Cheap energy is stored for the dear slot, so both cost what the cheap one does."""
    task = day([100_000, 400_000], battery=LOSSLESS, load_wh=100)
    assert solved(task).marginal_uc_per_kwh == (100_000, 100_000)
    load = Deferrable(name="a", profile_wh=(1,), earliest_slot=FIRST, end_slot=FIRST + 2)
    assert solved(day([1, 2], loads=(load,))).marginal_uc_per_kwh == ()


def test_a_model_that_cannot_be_is_called_infeasible():
    model = Model()
    row = model.row(2.0, 2.0)
    model.column(1.0, 1.0, [(row, 1.0)])
    assert solve(model, 10, 1).outcome is Outcome.INFEASIBLE


def test_no_time_is_not_a_plan():
    """Without a moment to solve in there is no answer to be misread."""
    load = Deferrable(name="a", profile_wh=(5,) * 4, earliest_slot=FIRST, end_slot=FIRST + 48)
    task = day([100_000 + 7 * (at % 5) for at in range(48)], battery=LOSSLESS, loads=(load,))
    assert solve(build(task), 0.0, 48).outcome in (Outcome.LATE, Outcome.FEASIBLE_LATE)


def test_without_highspy_there_is_no_solver(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "highspy", None)
    assert solve(build(day([1])), 1, 1).outcome is Outcome.NO_SOLVER
