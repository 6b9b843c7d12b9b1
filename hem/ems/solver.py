"""
Plans from a solver in a process of its own, or by rules when that does not work.

The child (`hem.ems.solver_worker`) lives for one plan, so that what numpy and HiGHS take in memory
does not stay in the HEM, and is killed when it is late. What it says is not believed: it is decoded
strictly, within a size, and judged by `hem.controller.plan_check` before anybody sees it. So is the
plan by rules. The better of the two is taken: no home is worse off for having a solver.

One line is logged when solving stops to work and one when it works again.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

import msgspec
import structlog

from hem.controller.fallback import plan_by_rules
from hem.controller.plan import BYTES_MAX, Plan, Task, to_json
from hem.controller.plan_check import check_plan
from hem.controller.planning import shortcomings
from hem.ems.solver_worker import Answer
from runtime.child import ChildError, ask_child

DEADLINE_S = 20.0
"""From the start of the child to its answer [real s]; a slot has 900."""
SOLVING_PERMILLE = 600
"""Of the deadline, for the solver; the rest is for starting and reading on a busy machine."""
WORKER = "hem.ems.solver_worker"

log = structlog.get_logger(component="hem")

_ANSWER = msgspec.json.Decoder(Answer)


class Solver:
    """
    Makes plans.

    Args:
        deadline_s: for one plan [real s]
        command: the child, without its time; None for our own
    """

    def __init__(
        self, deadline_s: float = DEADLINE_S, command: Sequence[str] | None = None
    ) -> None:
        self._deadline_s = deadline_s
        self._command = tuple(command or (sys.executable, "-m", WORKER))
        self._own = command is None
        self.why_not = ""
        """Why the last plan did not come from the solver; empty when it could have."""

    async def plan(self, task: Task) -> Plan | None:
        """
        The best plan there is: the solver's, or the rules' where that is better or the only one.

        Returns:
            A plan without fault. None: not even the rules found one, which is a defect of ours and
            logged as such.
        """
        found = []
        try:
            found.append(await self._solved(task))
        except ChildError as error:
            self._failed(str(error))
        else:
            self._works()
        by_rules = plan_by_rules(task)
        faults = check_plan(task, by_rules)
        if faults:
            log.error("the rules made an impossible plan", faults=[str(f) for f in faults[:3]])
        else:
            found.append(by_rules)
        return min(found, key=shortcomings, default=None)

    async def _solved(self, task: Task) -> Plan:
        if self._own and importlib.util.find_spec("highspy") is None:
            raise ChildError("highspy is not installed: pip install 'hearthgrid[planner]'")
        seconds = self._deadline_s * SOLVING_PERMILLE / 1000
        command = (*self._command, f"{seconds:g}")
        return _judged(task, await ask_child(command, to_json(task), self._deadline_s, BYTES_MAX))

    def _failed(self, why: str) -> None:
        if not self.why_not:
            log.warning("no plan from the solver, planning by rules", why=why)
        self.why_not = why

    def _works(self) -> None:
        if self.why_not:
            log.info("the solver plans again")
        self.why_not = ""


def _judged(task: Task, data: bytes) -> Plan:
    try:
        answer = _ANSWER.decode(data)
    except msgspec.MsgspecError as error:
        raise ChildError(f"not an answer: {error}") from None
    if answer.plan is None:
        raise ChildError(answer.outcome.value)
    faults = check_plan(task, answer.plan)
    if faults:
        raise ChildError(f"impossible plan: {faults[0]} ({len(faults)} faults)")
    return answer.plan
