"""
The home's outlook: what it will use and make, and what stored energy is worth, slot by slot.

Made anew at each slot's beginning by a child (hem/ems/value_worker.py) from the home's history.
What the child says is decoded strictly and must fit the battery; when it fails, is late, or the
home knows fewer than two days, there is no value, and whoever asks goes by the state of charge
(hem/controller/curves.py) and self-consumption. One line is logged when that begins and one when it
is over.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import msgspec
import structlog

from hem.controller.accuracy import Accuracy
from hem.controller.battery import Battery
from hem.controller.history import History, HistoryError
from hem.controller.plan import SLOTS_MAX
from hem.controller.value_curve import Terms, ValueCurve, dispatch
from hem.ems.value_worker import Answer, Bands, Curve, Question
from runtime.child import ChildError, ask_child
from runtime.ports import Store
from wire.canonical import decode, encode
from wire.errors import WireError

HORIZON_S = 48 * 3_600
DAYS_MIN = 2
"""Before that nobody knows whether tomorrow is like today."""
USED_FOR_SLOTS = 8
"""A value so old is still used; then the prices and the weather it was made for are gone."""
HISTORY, ACCURACY, PLAN = "history", "accuracy", "plan"
"""Where they are kept."""

DEADLINE_S = 20.0
"""From the start of the child to its answer [real s]; a slot has 900."""
WORKER = "hem.ems.value_worker"

Ask = Callable[[bytes], Awaitable[bytes]]
"""A question to the child. Raises `ChildError`."""

log = structlog.get_logger(component="hem")

_ANSWER = msgspec.json.Decoder(Answer)


async def ask_worker(question: bytes) -> bytes:
    """
    Ask a child of our own.

    Raises:
        ChildError: no answer.
    """
    command = (sys.executable, "-m", WORKER, f"{DEADLINE_S:g}")
    return await ask_child(command, question, DEADLINE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What the slots ahead are asked with."""

    first_slot: int
    import_price: tuple[int, ...]
    """By slot [µ¤/kWh]."""
    export_price: tuple[int, ...]
    import_max_wh: tuple[int, ...] | None = None
    export_max_wh: tuple[int, ...] | None = None
    battery: Battery | None = None
    wear: int = 0
    reluctance: int = 0
    keep_wh: int = 0
    """Stored above the battery's floor, for the home alone [Wh]."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One slot as it is expected [Wh]."""

    slot: int
    load_wh: int
    pv_wh: int
    battery_wh: int
    """+ discharge."""
    soc_wh: int
    """At its end."""
    import_price: int
    export_price: int


@dataclass(frozen=True, slots=True)
class _View:
    """The last answer, and what it was asked with."""

    prospect: Prospect
    answer: Answer
    curves: tuple[ValueCurve, ...]


class Planner:
    """
    Keeps history and outlook.

    Args:
        store: where the history is kept
        slots_per_day, slot_s: of the market
        ask: runs the child
        zone: where people live
    """

    def __init__(
        self,
        store: Store,
        slots_per_day: int,
        slot_s: int,
        ask: Ask = ask_worker,
        zone: str = "UTC",
    ) -> None:
        self._store, self._ask, self._zone = store, ask, zone
        self._slots_per_day, self._slot_s = slots_per_day, slot_s
        self.history = self._kept_history()
        self.accuracy = self._kept_accuracy()
        self._view: _View | None = None
        self.why_not = ""
        """Why there is no fresh outlook; empty where there is one."""

    @property
    def knows_enough(self) -> bool:
        """Were as many slots seen as two days have?"""
        return sum(1 for _ in self.history.measured()) >= DAYS_MIN * self._slots_per_day

    def observe(self, slot: int, load_wh: int, pv_wh: int) -> None:
        """Learn what a slot was [Wh]."""
        self.history.observe(slot, load_wh, pv_wh)
        self.accuracy.observe(slot, load_wh, pv_wh)
        with self._store.atomic():
            self._store.put(HISTORY, self.history.to_bytes())
            self._store.put(ACCURACY, encode(self.accuracy.to_save()))

    def count(self) -> int:
        """Slots that an outlook has."""
        return min(HORIZON_S // self._slot_s, SLOTS_MAX)

    async def look(self, prospect: Prospect) -> None:
        """Make the outlook anew. Never raises: without one, `value_after` has no answer."""
        if not self.knows_enough:
            self.why_not = "the home knows fewer than two days"
            return
        try:
            answer = await self._answer(prospect)
            curves = tuple(_curve(one, prospect.battery) for one in answer.curves)
        except (ChildError, ValueError) as error:
            if not self.why_not:
                log.warning("no value of stored energy, by the state of charge", why=str(error))
            self.why_not = str(error)
            return
        if self.why_not:
            log.info("stored energy has a value again")
        self.why_not = ""
        self._view = _View(prospect, answer, curves)
        self.accuracy.expect(prospect.first_slot, answer.bands, self.history)

    def value_after(self, slot: int, now_slot: int) -> ValueCurve | None:
        """What stored energy is worth when a slot has ended; None where nobody knows."""
        view = self._view
        if view is None or not 0 <= now_slot - view.prospect.first_slot < USED_FOR_SLOTS:
            return None
        index = slot + 1 - view.prospect.first_slot
        return view.curves[index] if 0 <= index < len(view.curves) else None

    def bands(self) -> tuple[int, Bands] | None:
        """The first slot of the outlook, and its quantiles."""
        return (
            None
            if self._view is None
            else (self._view.prospect.first_slot, self._view.answer.bands)
        )

    def path(self, soc_wh: int | None) -> list[Planned]:
        """What the home will do if all comes as expected, from a charge at the first slot on."""
        view, planned = self._view, []
        if view is None:
            return []
        ahead, answer = view.prospect, view.answer
        for at, (load_wh, pv_wh) in enumerate(zip(answer.load_wh, answer.pv_wh, strict=True)):
            out_wh = 0
            if ahead.battery is not None and soc_wh is not None and at + 1 < len(view.curves):
                terms = Terms(
                    import_price=ahead.import_price[at],
                    export_price=ahead.export_price[at],
                    wear=ahead.wear,
                    reluctance=ahead.reluctance,
                    keep_wh=ahead.keep_wh,
                )
                if ahead.import_max_wh is not None:
                    terms = replace(terms, import_max_wh=ahead.import_max_wh[at])
                if ahead.export_max_wh is not None:
                    terms = replace(terms, export_max_wh=ahead.export_max_wh[at])
                curve = view.curves[at + 1]
                out_wh = dispatch(
                    load_wh - pv_wh, soc_wh, curve, ahead.battery, terms, self._slot_s
                )
                soc_wh = ahead.battery.after(soc_wh, max(-out_wh, 0), max(out_wh, 0))
            planned.append(
                Planned(
                    ahead.first_slot + at, load_wh, pv_wh, out_wh, soc_wh or 0,
                    ahead.import_price[at], ahead.export_price[at],
                )
            )  # fmt: skip
        return planned

    async def _answer(self, prospect: Prospect) -> Answer:
        """
        Raises:
            ChildError: no answer, or not one to this question.
        """
        if importlib.util.find_spec("numpy") is None:
            raise ChildError("numpy is not installed")
        question = Question(
            history=self.history.to_bytes(),
            slots_per_day=self._slots_per_day,
            first_slot=prospect.first_slot,
            count=len(prospect.import_price),
            slot_s=self._slot_s,
            zone=self._zone,
            import_price=prospect.import_price,
            export_price=prospect.export_price,
            import_max_wh=prospect.import_max_wh,
            export_max_wh=prospect.export_max_wh,
            battery=prospect.battery,
            wear=prospect.wear,
            keep=len(prospect.import_price),
        )
        try:
            answer = _ANSWER.decode(await self._ask(msgspec.json.encode(question)))
        except msgspec.MsgspecError as error:
            raise ChildError(f"not an answer: {error}") from None
        count = question.count
        tables = (answer.bands.load_wh, answer.bands.pv_wh, answer.bands.net_wh)
        rows = [answer.load_wh, answer.pv_wh, *(row for table in tables for row in table)]
        if any(len(row) != count for row in rows) or any(len(table) != 9 for table in tables):
            raise ChildError("an answer of another length")
        return answer

    def _kept_history(self) -> History:
        raw = self._store.get(HISTORY)
        if raw is not None:
            try:
                return History.from_bytes(raw, self._slots_per_day)
            except HistoryError as error:
                log.warning("history lost", why=str(error))
        return History(self._slots_per_day)

    def _kept_accuracy(self) -> Accuracy:
        raw = self._store.get(ACCURACY)
        if raw is not None:
            try:
                return Accuracy.from_save(self._slots_per_day, decode(raw))
            except (WireError, ValueError, KeyError, TypeError) as error:
                log.warning("skill of the forecasts lost", why=str(error))
        return Accuracy(self._slots_per_day)


def _curve(one: Curve, battery: Battery | None) -> ValueCurve:
    """
    A curve that fits the battery.

    Raises:
        ChildError, ValueError: it does not, or is none.
    """
    curve = ValueCurve(one.floorWh, one.stepWh, one.marginals)
    if battery is None or curve.floor_wh != battery.floor_wh:
        raise ChildError("a value curve of another battery")
    # Segments are whole Wh: the last ends below the ceiling, or is the least there is.
    count, range_wh = len(curve.marginals), battery.ceiling_wh - battery.floor_wh
    if curve.step_wh != max(range_wh // count, 1):
        raise ChildError("a value curve of another battery")
    return curve
