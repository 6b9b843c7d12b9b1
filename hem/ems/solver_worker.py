"""
Solve one task in a process of its own and end.

    python -m hem.ems.solver_worker SECONDS < task.json > answer.json

numpy and HiGHS take tens of megabytes and may crash or hang; here they take nobody with them, and
what they took is given back. The process is nice to the others, and the kernel ends it when it
burns more time than it was given.
"""

from __future__ import annotations

import os
import resource
import sys

import msgspec

from hem.controller.highs import Outcome, solve
from hem.controller.milp import build, read_plan
from hem.controller.plan import BYTES_MAX, Plan, Task, task_from_json
from wire.errors import WireError

NICENESS = 10
CPU_S_SPARE = 5
"""For starting, and for HiGHS looking at its clock late."""


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How solving ended, and the plan if there is one."""

    outcome: Outcome
    plan: Plan | None = None


def answer(task: Task, seconds: float) -> Answer:
    """Solve a task in this process; without a solution the answer has no plan."""
    model = build(task)
    solution = solve(model, seconds, len(task.slots))
    if not solution.values:
        return Answer(solution.outcome)
    return Answer(solution.outcome, read_plan(task, model, solution.values, solution.balance_duals))


def main() -> None:
    """A task on stdin, an answer on stdout; exit code 2 for what is not a task."""
    seconds = float(sys.argv[1])
    os.nice(NICENESS)
    most_s = int(seconds) + CPU_S_SPARE
    resource.setrlimit(resource.RLIMIT_CPU, (most_s, most_s))
    try:
        task = task_from_json(sys.stdin.buffer.read(BYTES_MAX + 1))
    except WireError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.stdout.buffer.write(msgspec.json.encode(answer(task, seconds)))


if __name__ == "__main__":
    main()
