"""The solver as a process of its own: whatever it does, the home has a plan that can be kept."""

import asyncio
import json
import os
import subprocess
import sys

import msgspec
import psutil
import pytest
from plan_tasks import FIRST
from structlog.testing import capture_logs

from hem.controller.battery import Battery
from hem.controller.fallback import plan_by_rules
from hem.controller.plan import BYTES_MAX, Deferrable, Outlook, Task, Worth, to_json
from hem.controller.plan_check import check_plan
from hem.controller.planning import Step, assemble, shortcomings
from hem.ems.solver import Solver
from hem.ems.solver_worker import Answer

WAIT_S = 60.0
READ_ALL = "import sys; sys.stdin.buffer.read()\n"


def a_task():
    slots = tuple(
        Outlook(
            load_wh=300, pv_wh=0, import_price_uc_per_kwh=price, export_price_uc_per_kwh=80_000,
        )
        for price in (100_000, 100_000, 400_000, 400_000)
    )  # fmt: skip
    return Task(
        first_slot=FIRST,
        slot_seconds=3600,
        slots=slots,
        battery=Battery(4_000, 2_000, 2_000),
        soc_wh=200,
        worth=(Worth(energy_wh=3_800, price_uc_per_kwh=90_000),),
        loads=(Deferrable(name="a", profile_wh=(500,), earliest_slot=FIRST, end_slot=FIRST + 4),),
    )


def child(code):
    """A solver that runs this code instead of solving."""
    return [sys.executable, "-c", READ_ALL + code]


async def plan_of(code, deadline_s=WAIT_S):
    """(plan, why it is not the solver's) of a child with this code."""
    solver = Solver(deadline_s, child(code))
    with capture_logs() as logs:
        plan = await solver.plan(a_task())
    assert [line["log_level"] for line in logs] == ["warning"]
    assert check_plan(a_task(), plan) == []
    return plan, solver.why_not


async def test_the_solver_plans_better_than_the_rules():
    pytest.importorskip("highspy")
    solver = Solver(WAIT_S)
    plan = await solver.plan(a_task())
    assert solver.why_not == ""
    assert plan.made_by == "solver"
    assert shortcomings(plan) < shortcomings(plan_by_rules(a_task()))
    assert check_plan(a_task(), plan) == []


async def test_a_late_child_is_killed_and_the_rules_plan(tmp_path):
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    plan, why = await plan_of(code, deadline_s=3)
    assert plan.made_by == "rules"
    assert why.startswith("late")
    if pid.exists():  # on a busy machine it was killed before it could say
        assert not psutil.pid_exists(int(pid.read_text()))


async def test_a_child_that_does_not_read_is_late(tmp_path):
    solver = Solver(2, [sys.executable, "-c", "import time; time.sleep(600)"])
    assert (await solver.plan(a_task())).made_by == "rules"
    assert solver.why_not.startswith("late")


def edited(**changes):
    """Code that answers with the rules' plan, changed."""
    plan = json.loads(to_json(plan_by_rules(a_task())))
    plan.update(changes)
    return f"print({json.dumps(json.dumps({'outcome': 'optimal', 'plan': plan}))})"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.kill(os.getpid(), 9)", "crashed: exit code -9"),
        ("raise SystemExit(3)", "crashed: exit code 3"),
        ("", "not an answer"),
        ("print('{}')", "not an answer"),
        ("print('plan')", "not an answer"),
        ("sys.stdout.buffer.write(bytes(range(256)))", "not an answer"),
        ('print(\'{"outcome":"optimal","plan":{"slots":[]}}\')', "not an answer"),
        (f"print('[' * {BYTES_MAX - 10})", "not an answer"),
        (f"print(' ' * {BYTES_MAX + 10})", "says more than"),
        ('print(\'{"outcome":"infeasible","plan":null}\')', "infeasible"),
        ('print(\'{"outcome":"no-solver"}\')', "no-solver"),
        ('print(\'{"outcome":"fine"}\')', "not an answer"),
        (edited(cost_uc=-(10**9)), "impossible plan: COST"),
        (edited(slots=[]), "impossible plan: EMPTY"),
        (edited(starts={}), "impossible plan: LOAD_MISSING"),
        (edited(cost_uc=1.5), "not an answer"),
        (edited(made_by="an oracle"), "not an answer"),
        (edited(extra=1), "not an answer"),
    ],
)
async def test_an_answer_that_is_none_is_named_and_the_rules_plan(code, why):
    plan, found = await plan_of(code)
    assert plan.made_by == "rules"
    assert found.startswith(why)


async def test_a_command_that_is_not_there_is_named():
    solver = Solver(WAIT_S, ["/nonexistent/solver"])
    assert (await solver.plan(a_task())).made_by == "rules"
    assert solver.why_not == "does not start: No such file or directory"


async def test_without_highspy_the_log_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with capture_logs() as logs:
        plan = await Solver(WAIT_S).plan(a_task())
    assert plan.made_by == "rules"
    assert "pip install 'hearthgrid[planner]'" in logs[0]["why"]


async def test_one_line_when_it_stops_to_work_and_one_when_it_works_again(tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    good = msgspec.json.encode(Answer("optimal", plan_by_rules(a_task()))).decode()
    code = f"import pathlib; print(0 if pathlib.Path({str(broken)!r}).exists() else {good!r})"
    solver = Solver(WAIT_S, child(code))
    with capture_logs() as logs:
        await solver.plan(a_task())
        await solver.plan(a_task())
        broken.unlink()
        await solver.plan(a_task())
        await solver.plan(a_task())
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("warning", "no plan from the solver, planning by rules"),
        ("info", "the solver plans again"),
    ]


async def test_a_dearer_plan_than_that_by_rules_is_not_used():
    """A solver that was cut short may be worse than no solver."""
    task = a_task()
    rules = plan_by_rules(task)
    lazy = assemble(task, {"a": FIRST + 3}, (), [Step()] * 4, "solver")
    assert check_plan(task, lazy) == []
    answer = msgspec.json.encode(Answer("feasible-late", lazy)).decode()
    solver = Solver(WAIT_S, child(f"print({answer!r})"))
    assert await solver.plan(task) == rules
    assert solver.why_not == ""


async def test_whoever_is_cancelled_leaves_no_child(tmp_path):
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    planning = asyncio.create_task(Solver(WAIT_S, child(code)).plan(a_task()))
    async with asyncio.timeout(WAIT_S):
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.02)
    planning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await planning
    assert not psutil.pid_exists(int(pid.read_text()))


def test_the_child_is_nice_and_neither_numpy_nor_highs_come_into_the_hem():
    code = (
        "import sys, hem.ems.solver\n"
        "print([name for name in ('numpy', 'highspy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    assert done.stdout == "[]\n"
    code = (
        "import io, os, sys\n"
        "from hem.ems import solver_worker\n"
        "sys.argv = ['worker', '1']\n"
        "try:\n    solver_worker.main()\nexcept SystemExit as end:\n    print(os.nice(0), end.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="not a task", capture_output=True, text=True, timeout=WAIT_S, check=True,
    )  # fmt: skip
    assert done.stdout == f"{min(os.nice(0) + 10, 19)} 2\n"
    assert done.stderr.startswith("MALFORMED: not a task")


def test_the_worker_solves_what_it_is_given_on_stdin():
    pytest.importorskip("highspy")
    done = subprocess.run(
        [sys.executable, "-m", "hem.ems.solver_worker", "20"],
        input=to_json(a_task()), capture_output=True, timeout=WAIT_S, check=True,
    )  # fmt: skip
    answer = msgspec.json.decode(done.stdout, type=Answer)
    assert answer.outcome == "optimal"
    assert check_plan(a_task(), answer.plan) == []
