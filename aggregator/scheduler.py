"""
The aggregator's schedule at work: made the day before, approved by the DSO, compared with meters.

    every slot   days that are due -> history -> `aggregator.day_ahead` -> stored, not approved
    at any time  stored, not approved -> dso/req -> approved with changes -> stored
    every slot   measured − approved -> the deviation to expect

The DSO is asked over the bus, though its desk may be in this very process: who approves is another
party than who asks. The request is repeated until it is answered. Before that nothing is expected
of a slot, so nothing deviates.

References:
    TMI sections IV and V-C.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from aggregator.auditor import Auditor
from aggregator.day_ahead import (
    DAY_S,
    day_ahead,
    due_days,
    enough,
    forecast_deviation,
)
from aggregator.store import AggregatorStore
from runtime.csmdb_client import CsmDbRefusedError
from runtime.dso_client import DsoClient
from runtime.ports import Clock
from wire.day_ahead import MAX_SLOTS
from wire.errors import WireError
from wire.slots import SlotGrid

MEASURED_SLOTS = 3
"""Slots from which the deviation of the next ones is reckoned."""
PAUSE_S = 10.0
"""Real time until the DSO is asked again after a refusal."""
LOOK_S = 1.0
"""Real time between two looks for something to be approved."""

log = structlog.get_logger(component="aggregator")


@dataclass(frozen=True, slots=True)
class SchedulePolicy:
    """How the schedule is made. See `aggregator.config.Schedule`."""

    standing_wh: Sequence[int] = ()
    """The feeder's net energy where there is no history, by slot of the day [Wh]."""
    history_days: int = 7
    """[d]"""
    lead_hours: int = 12
    """How long before a day begins its schedule is made [h]."""


class Scheduler:
    """
    Keeps a schedule for today and tomorrow, and has it approved.

    Args:
        auditor: whose directory says which meters there are
        dso: our line to the DSO
    """

    def __init__(
        self,
        store: AggregatorStore,
        auditor: Auditor,
        dso: DsoClient,
        grid: SlotGrid,
        clock: Clock,
        policy: SchedulePolicy,
    ) -> None:
        self._store, self._auditor, self._dso = store, auditor, dso
        self._grid, self._clock, self._policy = grid, clock, policy
        self._made: set[tuple[int, bool]] = set()
        """Days by their first slot, and whether they had begun when their schedule was made."""
        self._trouble = ""
        self._said_unapproved = False

    # --- every slot -----------------------------------------------------------------------------

    def on_slot(self, slot: int) -> None:
        """
        Make the schedules that are due.

        Once ahead of the day, and when it begins once more for slots that had no history then.
        """
        due = due_days(slot, self._grid.length_s, self._policy.lead_hours)
        for first_slot in due:
            once = (first_slot, first_slot <= slot)
            if once not in self._made:
                self._make(first_slot, slot)
                self._made.add(once)
        self._made = {once for once in self._made if once[0] >= due[0]}

    def deviation_wh(self, slot: int) -> int:
        """The deviation from the approved schedule that the next slots will probably have [Wh]."""
        if not self._auditor.listed:
            return 0  # how many meters there are nobody has told us yet: most may be missing
        first_slot = slot - MEASURED_SLOTS
        measured = self._store.measured(first_slot, slot - 1, self._enough_meters())
        rows = [(net_wh, self._store.approved(each)) for each, net_wh in measured]
        if not self._said_unapproved and any(
            row["approved_wh"] is None for row in self._store.schedule(first_slot, slot - 1)
        ):
            self._said_unapproved = True
            log.warning("the schedule is not approved: until it is, nothing deviates", slot=slot)
        return forecast_deviation(rows)

    def _make(self, first_slot: int, slot: int) -> None:
        days, slot_s = self._policy.history_days, self._grid.length_s
        per_day = DAY_S // slot_s
        history = self._store.home_history(first_slot - days * per_day, first_slot - 1, per_day)
        homes = self._auditor.directory.meters
        made = day_ahead(history, homes, per_day, self._policy.standing_wh)
        with self._store.atomic():
            fresh = self._store.put_schedule(first_slot, made, slot)
        if fresh:
            log.info("schedule made", first_slot=first_slot, slots=fresh, homes=len(made.homes))

    def _enough_meters(self) -> int:
        return enough(len(self._auditor.directory.meters))

    # --- approval -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask for approval for ever; cancel to stop."""
        while True:
            pause_s = LOOK_S
            try:
                while await self.ask_once():
                    pass
            except CsmDbRefusedError as error:
                self._report(f"the DSO refuses the schedule: {error.reason}")
                pause_s = PAUSE_S
            except TimeoutError:
                self._report("the DSO does not answer")
            except WireError as error:
                self._report(f"not an answer to a schedule: {error}")
                pause_s = PAUSE_S
            except Exception:
                log.exception("schedule not approved")
                pause_s = PAUSE_S
            await asyncio.sleep(pause_s)

    async def ask_once(self) -> bool:
        """
        Ask for what is next and not approved, in one request; False when there is nothing.

        Raises:
            CsmDbRefusedError, TimeoutError, WireError: as `DsoClient.approve_schedule`.
        """
        slot = self._grid.slot_at(self._clock.now_ms())
        rows = self._store.unapproved(slot, MAX_SLOTS)
        if not rows:
            return False
        answer = await self._dso.approve_schedule(rows)
        with self._store.atomic():
            self._store.put_approval(answer)
        log.info("schedule approved", first_slot=rows[0][0], slots=len(rows))
        for change in answer.changes:
            log.info(
                "schedule changed by the DSO", slot=change.slot, asked_wh=change.asked_wh,
                approved_wh=change.approved_wh, reason=change.reason,
            )  # fmt: skip
        if self._trouble:
            self._trouble = ""
            log.info("the DSO approves schedules again")
        return True

    def _report(self, trouble: str) -> None:
        """Log a kind of trouble once, however often it repeats."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning(trouble)
