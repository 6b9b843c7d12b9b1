"""
HiGHS, thinly: a model in, values out, one thread, within a time.

`highspy` is an extra (`hearthgrid[planner]`) and is loaded when first used: what it and numpy cost
in memory is paid by the process that solves, and only then.

References:
    Huangfu, Hall (2018), Parallelizing the dual revised simplex method; https://highs.dev.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any

from hem.controller.milp import Kind, Model

GAP = 1e-4
"""Of the objective: a plan that is dearer by less than this is as good."""


class Outcome(StrEnum):
    """How solving ended."""

    OPTIMAL = "optimal"
    FEASIBLE_LATE = "feasible-late"
    """Time ran out; this is the best that was found."""
    LATE = "late"
    """Time ran out and nothing was found."""
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    """The solver refused the model or gave up."""
    NO_SOLVER = "no-solver"
    """`highspy` is not installed, or does not load on this machine."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver says; empty without a solution."""

    outcome: Outcome
    values: Sequence[float] = ()
    """Of the columns."""
    balance_duals: Sequence[float] = ()
    """Of the first rows, as many as asked for; empty where something is integer."""


def solve(model: Model, seconds: float, balance_rows: int, gap: float = GAP) -> Solution:
    """
    Minimise.

    Args:
        seconds: of wall clock; then the best so far
        balance_rows: how many of the first rows' duals are wanted
        gap: share of the objective by which the answer may be dearer than the best
    """
    try:
        highspy = importlib.import_module("highspy")
    except ImportError:
        return Solution(Outcome.NO_SOLVER)
    highs = highspy.Highs()
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("time_limit", seconds),
        ("mip_rel_gap", gap),
    ):
        highs.setOptionValue(option, value)
    if highs.passModel(_lp(highspy, model)) == highspy.HighsStatus.kError:
        return Solution(Outcome.FAILED)
    highs.run()
    outcome = _outcome(highspy, highs)
    if outcome not in (Outcome.OPTIMAL, Outcome.FEASIBLE_LATE):
        return Solution(outcome)
    solution = highs.getSolution()
    duals = list(solution.row_dual)[:balance_rows] if model.is_lp else []
    return Solution(outcome, list(solution.col_value), duals)


def _lp(highspy: ModuleType, model: Model) -> object:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(model.cost), len(model.row_lower)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = model.cost, model.lower, model.upper
    lp.row_lower_, lp.row_upper_ = model.row_lower, model.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = model.column_starts
    lp.a_matrix_.index_ = model.rows
    lp.a_matrix_.value_ = model.values
    kinds = {
        Kind.CONTINUOUS: highspy.HighsVarType.kContinuous,
        Kind.INTEGER: highspy.HighsVarType.kInteger,
        Kind.SEMI_CONTINUOUS: highspy.HighsVarType.kSemiContinuous,
    }
    if not model.is_lp:
        lp.integrality_ = [kinds[kind] for kind in model.kind]
    return lp


def _outcome(highspy: ModuleType, highs: Any) -> Outcome:
    status = highs.getModelStatus()
    found = highs.getInfo().primal_solution_status
    if status == highspy.HighsModelStatus.kOptimal:
        return Outcome.OPTIMAL
    if status == highspy.HighsModelStatus.kTimeLimit:
        feasible = found == highspy.SolutionStatus.kSolutionStatusFeasible
        return Outcome.FEASIBLE_LATE if feasible else Outcome.LATE
    if status == highspy.HighsModelStatus.kInfeasible:
        return Outcome.INFEASIBLE
    return Outcome.FAILED
