"""
How good this home's forecasts are: errors at several leads, beside two forecasts that cost nothing.

Each forecast is kept until its slot was measured. Then three are scored on the same slot: ours,
persistence (what was measured last when we forecast) and the same slot of the day before. So
"better than nothing" can be seen on the page, and a forecast that has gone wrong in the metrics.

The pinball loss is that of Koenker and Bassett (1978), as a mean over the shares forecast. A
forecast without quantiles, as persistence, has half its absolute error as pinball loss when the
shares lie evenly around a half; that is what is compared with.

Integers only. Averages are over the last week, newer slots counting a little more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from hem.controller.history import ENERGY_MAX_WH, History

PERMILLE = tuple(range(100, 1_000, 100))
"""The shares that are scored."""
_MEDIAN = PERMILLE.index(500)
LEADS_H = {"next": 0, "4h": 4, "24h": 24}
"""How far ahead, by the name in the metrics [h]; 0: the next slot."""
WINDOW_DAYS = 7
_SCALE = 1_000_000
"""Averages are kept in µWh, so that rounding does not eat small changes."""

Kind = Literal["load", "pv", "net"]
KINDS: tuple[Kind, ...] = ("load", "pv", "net")
_Row = Sequence[int]
_Save = dict[str, Any]


class ForecastQuantiles(Protocol):
    """What `hem.controller.scenarios.quantiles` gives for `PERMILLE`."""

    @property
    def permille(self) -> tuple[int, ...]:
        """Shares."""
        ...

    @property
    def load_wh(self) -> Any:
        """(Q, T) of the load."""
        ...

    @property
    def pv_wh(self) -> Any:
        """(Q, T) of the PV."""
        ...

    @property
    def net_wh(self) -> Any:
        """(Q, T) of load − PV."""
        ...


@dataclass(frozen=True, slots=True)
class Skill:
    """Mean errors of one kind at one lead [Wh a slot, rounded]."""

    scored: int
    """Forecasts, since the beginning."""
    error_wh: int
    """Mean absolute error of the median."""
    pinball_wh: int
    """Mean pinball loss over `PERMILLE`."""
    persistence_wh: int
    """Mean absolute error of persistence."""
    yesterday_wh: int
    """Mean absolute error of the same slot of the day before."""
    better_permille: int
    """Share of the better one's pinball loss that ours saves; below 0: ours is worse."""


@dataclass(slots=True)
class _Means:
    """Running means [µWh]: error, pinball loss, persistence, yesterday."""

    scored: int = 0
    values: tuple[int, int, int, int] = (0, 0, 0, 0)

    def add(self, errors_micro: tuple[int, int, int, int], window: int) -> None:
        self.scored += 1
        share = min(self.scored, window)
        pairs = zip(self.values, errors_micro, strict=True)
        error, pinball, persistence, yesterday = (old + (new - old) // share for old, new in pairs)
        self.values = (error, pinball, persistence, yesterday)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A forecast whose slot is not over."""

    lead: int
    rows: dict[Kind, tuple[int, ...]]
    """Quantiles [Wh]."""
    persistence: dict[Kind, int]
    yesterday: dict[Kind, int]


class Accuracy:
    """
    Running skill.

    Args:
        slots_per_day: slots in 24 hours

    Raises:
        ValueError: no slots.
    """

    def __init__(self, slots_per_day: int) -> None:
        if slots_per_day < 1:
            raise ValueError("a day has at least one slot")
        self._slots_per_day = slots_per_day
        slots = {name: max(slots_per_day * hours // 24, 1) for name, hours in LEADS_H.items()}
        self._names = {lead: name for name, lead in reversed(slots.items())}
        self.leads = tuple(sorted(self._names))
        """Slots ahead: 1 is the first slot of a forecast."""
        self._means = {(kind, lead): _Means() for kind in KINDS for lead in self.leads}
        self._pending: dict[int, list[_Pending]] = {}

    def expect(self, first_slot: int, quantiles: ForecastQuantiles, history: History) -> None:
        """
        Keep a forecast until it can be scored; one made again for the same slots replaces it.

        Args:
            first_slot: the slot of the first column
            quantiles: of `PERMILLE`; leads beyond its columns are left out
            history: what was known when the forecast was made

        Raises:
            ValueError: quantiles of other shares.
        """
        if quantiles.permille != PERMILLE:
            raise ValueError(f"expected the quantiles {PERMILLE} permille")
        last = history.at(min(history.newest, first_slot - 1))
        columns = len(quantiles.load_wh[0])
        for lead in (each for each in self.leads if each <= columns):
            slot = first_slot + lead - 1
            before = history.at(slot - self._slots_per_day)
            if last is None or before is None:
                continue  # nothing to compare with
            tables = (quantiles.load_wh, quantiles.pv_wh, quantiles.net_wh)
            rows = {
                kind: tuple(int(row[lead - 1]) for row in table)
                for kind, table in zip(KINDS, tables, strict=True)
            }
            others = [one for one in self._pending.get(slot, ()) if one.lead != lead]
            made = _Pending(lead, rows, _by_kind(*last), _by_kind(*before))
            self._pending[slot] = [*others, made]

    def observe(self, slot: int, load_wh: int, pv_wh: int) -> None:
        """Score what was forecast for a slot that was measured [Wh]; forget what is long past."""
        actual = _by_kind(*(min(max(value, 0), ENERGY_MAX_WH) for value in (load_wh, pv_wh)))
        window = WINDOW_DAYS * self._slots_per_day
        for forecast in self._pending.pop(slot, ()):
            for kind, value_wh in actual.items():
                errors = _errors(forecast, kind, value_wh)
                self._means[kind, forecast.lead].add(errors, window)
        for past in [each for each in self._pending if each < slot - self._slots_per_day]:
            del self._pending[past]

    def skill(self, kind: Kind, lead: int) -> Skill:
        """
        How good forecasts of a kind are at a lead.

        Raises:
            KeyError: not one of `leads`.
        """
        means = self._means[kind, lead]
        _, pinball, persistence, yesterday = means.values
        nothing = min(persistence, yesterday) // 2
        better = (nothing - pinball) * 1000 // nothing if nothing else 0
        rounded = [(value + _SCALE // 2) // _SCALE for value in means.values]
        return Skill(
            scored=means.scored,
            error_wh=rounded[0],
            pinball_wh=rounded[1],
            persistence_wh=rounded[2],
            yesterday_wh=rounded[3],
            better_permille=better,
        )

    def to_json(self) -> list[dict[str, Any]]:
        """For the page: one object for each kind and lead of which something was scored."""
        found = []
        for kind, lead in self._means:
            skill = self.skill(kind, lead)
            if skill.scored:
                found.append(
                    {
                        "kind": kind,
                        "lead": self._names[lead],
                        "leadSlots": lead,
                        "scored": skill.scored,
                        "errorWh": skill.error_wh,
                        "pinballWh": skill.pinball_wh,
                        "persistenceErrorWh": skill.persistence_wh,
                        "yesterdayErrorWh": skill.yesterday_wh,
                        "betterPermille": skill.better_permille,
                    }
                )
        return found

    def figures(self) -> dict[str, int]:
        """For Prometheus, by name with the unit last, as `hem.ems.health` takes them."""
        found = {}
        for kind, lead in self._means:
            skill = self.skill(kind, lead)
            if skill.scored:
                name = f"forecast_{kind}_{self._names[lead]}"
                found[f"{name}_error_wh"] = skill.error_wh
                found[f"{name}_pinball_wh"] = skill.pinball_wh
                found[f"{name}_better_permille"] = skill.better_permille
        return found

    def to_save(self) -> _Save:
        """
        State to keep across restarts: integers and lists only.

        Forecasts not scored yet are not in it: a restart costs a day of scores, no more.
        """
        rows = [[kind, lead, one.scored, *one.values] for (kind, lead), one in self._means.items()]
        return {"slotsPerDay": self._slots_per_day, "means": rows}

    @classmethod
    def from_save(cls, slots_per_day: int, saved: Mapping[str, Any]) -> Accuracy:
        """
        Go on from `to_save`; skill of another slot length is dropped.

        Raises:
            ValueError: not what `to_save` wrote.
        """
        made = cls(slots_per_day)
        try:
            rows = [(row[0], *map(_count, row[1:])) for row in saved["means"]]
            same = _count(saved["slotsPerDay"]) == slots_per_day
            for kind, lead, scored, *values in rows if same else ():
                error, pinball, persistence, yesterday = values
                means = made._means[kind, lead]
                means.scored, means.values = scored, (error, pinball, persistence, yesterday)
        except (KeyError, IndexError, TypeError, ValueError) as problem:
            raise ValueError(f"not a saved forecast accuracy: {problem!r}") from None
        return made


def _by_kind(load_wh: int, pv_wh: int) -> dict[Kind, int]:
    return {"load": load_wh, "pv": pv_wh, "net": load_wh - pv_wh}


def _errors(forecast: _Pending, kind: Kind, actual_wh: int) -> tuple[int, int, int, int]:
    """Of the median, of all quantiles, and of the two others [µWh]."""
    row = forecast.rows[kind]
    points = (row[_MEDIAN], forecast.persistence[kind], forecast.yesterday[kind])
    error, persistence, yesterday = (abs(actual_wh - each) * _SCALE for each in points)
    return error, _pinball_micro(row, actual_wh), persistence, yesterday


def _pinball_micro(row: _Row, actual_wh: int) -> int:
    """Mean over `PERMILLE`: what lies above a quantile costs its share, below it the rest [µWh]."""
    loss = sum(
        max(share * (actual_wh - wh), (share - 1000) * (actual_wh - wh))
        for share, wh in zip(PERMILLE, row, strict=True)
    )
    return loss * (_SCALE // 1000) // len(row)


def _count(value: Any) -> int:
    """A whole number that is not negative; nothing from the disk is believed."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
