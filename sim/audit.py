"""
The audit at the end of a run: does what the processes left on disk hold together, and is it whole?

Eight checks:

    chain        re-executed from its genesis by a process of its own (`ledger verify`)
    nodes        all validators at one tip, with one block and one state
    settlement   every slot that the run promised is settled
    readings     every home's registers at every slot boundary, signed, unbroken, monotone
    receipts     one for each home and slot, true to the registers, and settled as it says
    dso          the DSO found all of them true by itself, and nothing else
    positions    clearings, trades and settlements of all markets are those of the signed orders
    money        every balance at every block follows from them; all bills add up to zero

What is demanded comes from the run's promise (homes and slots), never from what is there: a chain
that stopped early, or a home that fell silent, fails.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aggregator.store import AggregatorStore
from sim.audit_chain import (
    Verify,
    check_chain,
    check_nodes,
    check_settlement,
    most_advanced,
    verify_apart,
)
from sim.audit_delivery import check_dso, check_readings, check_receipts
from sim.audit_money import check_market
from sim.audit_trail import Check, Trail, read_trail
from sim.feeder import Feeder
from wire.errors import ConfigError, WireError

UNREADABLE = (
    sqlite3.Error, OSError, WireError, ConfigError, msgspec.DecodeError, ValueError, KeyError,
    TypeError, AttributeError,
)  # fmt: skip
"""What damaged files make the readers raise: a finding, not an accident."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was checked, line by line, and whether all of it held."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """All checks held."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """Names of the checks that did not hold."""
        return [check.name for check in self.checks if not check.passed]

    @property
    def lines(self) -> list[str]:
        """One line per check."""
        return [check.line for check in self.checks]

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers that the checks found."""
        return {name: fact for check in self.checks for name, fact in check.facts.items()}


def audit(feeder: Feeder, verify: Verify = verify_apart) -> Audit:
    """Audit a stopped run; `verify` re-executes its chain."""
    folders = [feeder.ledger_folder(index) for index in range(len(feeder.validators))]
    checks = [_guarded("nodes", lambda: check_nodes(folders))]
    try:
        believed = most_advanced(folders)
    except UNREADABLE as error:
        return Audit((Check("chain", False, f"cannot be read: {error!r}"), *checks))
    checks.insert(0, _guarded("chain", lambda: check_chain(believed, verify)))
    try:
        trail = read_trail(feeder, believed)
    except UNREADABLE as error:
        return Audit((*checks, Check("settlement", False, f"nothing can be read: {error!r}")))
    return Audit((*checks, *_of_trail(trail, feeder.out / "aggregator" / "data")))


def _of_trail(trail: Trail, aggregator: Path) -> list[Check]:
    checks = [_guarded("settlement", lambda: check_settlement(trail))]
    store = AggregatorStore(aggregator / "aggregator.sqlite")
    try:
        checks += _of_readings(trail, store)
        checks.append(_guarded("dso", lambda: check_dso(trail, store)))
    finally:
        store.close()
    return [*checks, *_of_market(trail)]


def _of_market(trail: Trail) -> list[Check]:
    try:
        return check_market(trail)
    except UNREADABLE as error:
        return [Check("money", False, f"cannot be replayed: {error!r}")]


def _of_readings(trail: Trail, store: AggregatorStore) -> list[Check]:
    try:
        readings, registers = check_readings(trail, store)
    except UNREADABLE as error:
        readings, registers = Check("readings", False, f"cannot be read: {error!r}"), {}
    return [readings, _guarded("receipts", lambda: check_receipts(trail, registers))]


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that cannot be carried out has failed."""
    try:
        return check()
    except UNREADABLE as error:
        return Check(name, False, f"cannot be read: {error!r}")
