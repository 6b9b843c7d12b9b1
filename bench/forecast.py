"""
How good the forecasts of load, PV and net are, beside those that cost nothing.

    python -m bench.forecast [--data DIR] [--json] [--short] [--tuned]

Each home is played through in time; every few hours each method says what the next 48 hours will
bring, knowing only what was measured before, and is compared with what came. Errors are mean powers
[W]: of the slot 1, 6 and 24 hours ahead, and over all slots of 24 and 48 hours. *Error* is the mean
absolute error of the median; *pinball* the mean pinball loss of the quantiles 100…900 permille
(Koenker and Bassett 1978), for a forecast without quantiles half its error.

The constants of `hem.controller.scenarios` were chosen on some homes; the figures are of the
others, unless `--tuned` asks for the first.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench.forecast_data import (
    CITYLEARN,
    FOLDER,
    LEMLAB,
    DataSet,
    House,
    read_citylearn,
    read_lemlab,
)
from bench.forecast_methods import METHODS, OURS, Known
from bench.report import WIDTH, progress
from hem.controller.accuracy import KINDS, PERMILLE, Kind
from hem.controller.forecast import Forecaster
from hem.controller.history import History
from hem.controller.scenarios import Ints, Scenarios, quantiles
from wire.errors import ConfigError

DAYS = 2
"""How far ahead."""
EVERY_H = {24: 7, 96: 5.25}
"""Hours between two forecasts by slots a day; no divisor of a day, so that all times come up."""
SHORT_TIMES = 12
"""So many times fewer forecasts, of two homes a set, with `--short`."""
LEADS = ("1 h", "6 h", "24 h", "day", "2 days")
READERS: dict[str, Callable[[Path], DataSet]] = {CITYLEARN: read_citylearn, LEMLAB: read_lemlab}
_Sums = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One method's errors for one kind, by `LEADS` [W]."""

    method: str
    kind: Kind
    error_w: tuple[float, ...]
    pinball_w: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """One data set."""

    data: str
    homes: tuple[str, ...]
    forecasts: int
    slots_per_day: int
    note: str
    scenarios_us: float
    """Mean processor time of one home's paths [µs]."""
    figures: tuple[Figure, ...]

    def figure(self, method: str, kind: Kind) -> Figure:
        """One row."""
        return next(one for one in self.figures if (one.method, one.kind) == (method, kind))


class Score:
    """Sums of errors of every method: kind, error or pinball, lead [Wh a slot]."""

    def __init__(self) -> None:
        self.sums = {name: np.zeros((len(KINDS), 2, len(LEADS))) for name in METHODS}
        self.forecasts = 0
        self.scenarios_s = 0.0

    def add(self, known: Known, load_wh: Ints, pv_wh: Ints) -> None:
        """Ask every method, and compare with what came."""
        self.forecasts += 1
        for name, method in METHODS.items():
            begun_s = time.process_time()
            paths = method(known)
            if name == OURS:
                self.scenarios_s += time.process_time() - begun_s
            self.sums[name] += errors_wh(paths, load_wh, pv_wh, known.history.slots_per_day)


def errors_wh(paths: Scenarios, load_wh: Ints, pv_wh: Ints, slots_per_day: int) -> _Sums:
    """Error and pinball loss of one forecast: (kind, 2, lead) [Wh a slot]."""
    found = quantiles(paths, PERMILLE)
    pairs = (
        (found.load_wh, load_wh),
        (found.pv_wh, pv_wh),
        (found.net_wh, load_wh - pv_wh),
    )
    shares = np.array(PERMILLE)[:, None] / 1000
    made = []
    for rows, actual in pairs:
        off = actual - rows
        error = np.abs(off[PERMILLE.index(500)])
        pinball = np.maximum(shares * off, (shares - 1) * off).mean(0)
        made.append([_by_lead(each, slots_per_day) for each in (error, pinball)])
    return np.array(made)


def _by_lead(slots: _Sums, slots_per_day: int) -> list[float]:
    hour = slots_per_day // 24
    at = [float(slots[hours * hour - 1]) for hours in (1, 6, 24)]
    return [*at, float(slots[:slots_per_day].mean()), float(slots.mean())]


def play(data: DataSet, house: House, every: int, score: Score) -> None:
    """Live through a home's slots, and forecast after `every` of them."""
    per_day = data.slots_per_day
    history, forecaster = History(per_day), Forecaster(per_day)
    load_wh, pv_wh = (np.array(wh, dtype=np.int32) for wh in (house.load_wh, house.pv_wh))
    count = DAYS * per_day
    for done in range(len(load_wh) - count):
        slot = house.first_slot + done
        if done >= data.first_days * per_day and done % every == 0:
            past = load_wh[:done], pv_wh[:done]
            known = Known(history, forecaster, *past, slot, count, data.offset_s)
            score.add(known, load_wh[done : done + count], pv_wh[done : done + count])
        history.observe(slot, house.load_wh[done], house.pv_wh[done])
        forecaster.observe(slot, house.load_wh[done], house.pv_wh[done])


def measure(
    data: DataSet, houses: tuple[House, ...], every: int, say: Callable[[str], None]
) -> Result:
    """All methods on these homes."""
    score = Score()
    for house in houses:
        say(f"{data.name}: {house.name}")
        play(data, house, every, score)
    to_w = data.slots_per_day / 24 / max(score.forecasts, 1)
    figures = [
        Figure(name, kind, *(tuple(float(wh * to_w) for wh in row) for row in sums[n]))
        for name, sums in score.sums.items()
        for n, kind in enumerate(KINDS)
    ]
    took_us = score.scenarios_s / max(score.forecasts, 1) * 1e6
    return Result(
        data=data.name,
        homes=tuple(house.name for house in houses),
        forecasts=score.forecasts,
        slots_per_day=data.slots_per_day,
        note=data.note,
        scenarios_us=took_us,
        figures=tuple(figures),
    )


def run(sets: list[DataSet], short: bool, tuned: bool, say: Callable[[str], None]) -> list[Result]:
    """Every data set."""
    results = []
    for data in sets:
        houses = data.tuned if tuned else data.held_out
        every = round(EVERY_H[data.slots_per_day] * data.slots_per_day / 24)
        if short:
            houses, every = houses[:2], every * SHORT_TIMES + 1
        results.append(measure(data, houses, every, say))
    return results


def show(results: list[Result], tuned: bool) -> None:
    """Print a table for each data set."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    said = "the constants WERE chosen on them" if tuned else "the constants were chosen on others"
    for result in results:
        console.print(_table(result))
        console.print(
            f"{len(result.homes)} homes ({said}): {', '.join(result.homes)}; {result.forecasts:,} "
            f"forecasts of {DAYS * result.slots_per_day} slots. "
            f"Scenarios: {result.scenarios_us:,.0f} µs of processor time each. {result.note}\n"
        )


def _table(result: Result) -> Table:
    table = Table(title=f"{result.data}: mean absolute error | pinball loss, W")
    table.add_column("", no_wrap=True)
    table.add_column("forecast", no_wrap=True)
    for what in ("error", "pinball"):
        for lead in LEADS:
            table.add_column(f"{what}\n{lead}", justify="right")
    for kind in KINDS:
        rows = [one for one in result.figures if one.kind == kind]
        for one in rows:
            cells = [*(f"{w:,.0f}" for w in one.error_w), *(f"{w:,.1f}" for w in one.pinball_w)]
            table.add_row(kind if one is rows[0] else "", one.method, *cells)
        table.add_section()
    return table


def main(
    data: Annotated[
        Path, typer.Option(help=f"Folder that holds {CITYLEARN} and {LEMLAB}.")
    ] = FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    short: Annotated[bool, typer.Option("--short", help="Two homes a set, few forecasts.")] = False,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="The homes that the constants were chosen on.")
    ] = False,
) -> None:
    """
    Measure how good the forecasts are.

    Exit code 0: measured. 2: a data set is not there, or is not what it should be.
    """
    try:
        sets = [read(data / name) for name, read in READERS.items()]
    except ConfigError as error:
        print(f"bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    with progress(as_json) as say:
        results = run(sets, short, tuned, say)
    if as_json:
        rows = [asdict(result) for result in results]
        print(json.dumps({"leads": LEADS, "tuned": tuned, "sets": rows}))
    else:
        show(results, tuned)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
