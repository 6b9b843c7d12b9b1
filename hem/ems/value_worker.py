"""
Forecast and value one home's next days in a process of its own, and end.

    python -m hem.ems.value_worker SECONDS < question.json > answer.json

numpy takes twenty megabytes to be imported; here they are given back a moment later. The process is
nice to the others, and the kernel ends it when it burns more time than it was given.
"""

from __future__ import annotations

import os
import resource
import sys
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from hem.controller.accuracy import PERMILLE
from hem.controller.battery import Battery

NICENESS = 10
CPU_S_SPARE = 5
BYTES_MAX = 1_000_000
SLOTS_MAX = 1_200
"""Two days and a half of three-minute slots."""

Count = Annotated[int, Meta(ge=1, le=SLOTS_MAX)]
Prices = Annotated[tuple[int, ...], Meta(min_length=1, max_length=SLOTS_MAX)]
Row = Annotated[tuple[int, ...], Meta(max_length=SLOTS_MAX)]


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was measured, what is asked, and what energy will cost."""

    history: bytes
    """`hem.controller.history.History.to_bytes`."""
    slots_per_day: int
    first_slot: int
    count: Count
    slot_s: int
    zone: str = "UTC"
    """Where people live: they get up by the clock, the sun does not."""
    import_price: Prices
    """By slot [µ¤/kWh], as is the next."""
    export_price: Prices
    import_max_wh: Prices | None = None
    """By slot; no limit where left out, as in the next."""
    export_max_wh: Prices | None = None
    battery: Battery | None = None
    wear: int = 0
    """Of a kWh discharged [µ¤/kWh]."""
    keep: Count = 97
    """How many curves are wanted."""


class Bands(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Quantiles by `accuracy.PERMILLE`, slot by slot [Wh]."""

    load_wh: tuple[Row, ...]
    pv_wh: tuple[Row, ...]
    net_wh: tuple[Row, ...]

    @property
    def permille(self) -> tuple[int, ...]:
        """Which quantiles."""
        return PERMILLE


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`hem.controller.value_curve.ValueCurve` as JSON."""

    floorWh: int  # noqa: N815 (as it is kept)
    stepWh: int  # noqa: N815
    marginals: Annotated[tuple[int, ...], Meta(min_length=1, max_length=400)]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to expect, and what stored energy is worth at the beginning of each slot."""

    load_wh: Row
    """Expected, by slot."""
    pv_wh: Row
    bands: Bands
    curves: Annotated[tuple[Curve, ...], Meta(max_length=SLOTS_MAX + 1)]
    """Empty without a battery."""


def answer(question: Question) -> Answer:
    """
    Do the work, in this process.

    Raises:
        ValueError: not a history of this home's slots, or not as many prices as slots.
    """
    import numpy as np  # noqa: PLC0415  (whoever asks need not have it in memory)

    from hem.controller.history import History  # noqa: PLC0415
    from hem.controller.scenarios import WEIGHT_SUM, quantiles, scenarios  # noqa: PLC0415
    from hem.controller.worth import Outlook, value_curves  # noqa: PLC0415

    count, most_in, most_out = question.count, question.import_max_wh, question.export_max_wh
    history = History.from_bytes(question.history, question.slots_per_day)
    zone = ZoneInfo(question.zone)

    def offset_s(slot: int) -> int:
        local = datetime.fromtimestamp(slot * question.slot_s, UTC).astimezone(zone)
        offset = local.utcoffset()
        return round(offset.total_seconds()) if offset is not None else 0

    paths = scenarios(history, question.first_slot, count, offset_s)
    bands = quantiles(paths, PERMILLE)
    weight = paths.weight / WEIGHT_SUM
    curves = []
    if question.battery is not None:
        outlook = Outlook(
            net_wh=paths.load_wh - paths.pv_wh,
            weight=weight,
            import_price=_row(question.import_price, count),
            export_price=_row(question.export_price, count),
            import_max_wh=None if most_in is None else _row(most_in, count),
            export_max_wh=None if most_out is None else _row(most_out, count),
        )
        found = value_curves(
            outlook, question.battery, question.wear, question.slot_s, question.keep
        )
        curves = [
            Curve(floorWh=one.floor_wh, stepWh=one.step_wh, marginals=one.marginals)
            for one in found
        ]
    return Answer(
        load_wh=tuple(np.rint(weight @ paths.load_wh).astype(int).tolist()),
        pv_wh=tuple(np.rint(weight @ paths.pv_wh).astype(int).tolist()),
        bands=Bands(
            load_wh=_rows(bands.load_wh), pv_wh=_rows(bands.pv_wh), net_wh=_rows(bands.net_wh)
        ),
        curves=tuple(curves),
    )


def _rows(table: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())


def _row(values: tuple[int, ...], count: int) -> Any:
    import numpy as np  # noqa: PLC0415  (as above)

    if len(values) != count:
        raise ValueError("as many prices and limits as slots")
    return np.array(values, dtype=np.float64)


def main() -> None:
    """A question on stdin, an answer on stdout; exit code 2 for what is not a question."""
    most_s = int(float(sys.argv[1])) + CPU_S_SPARE
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (most_s, most_s))
    try:
        question = msgspec.json.decode(sys.stdin.buffer.read(BYTES_MAX + 1), type=Question)
        found = answer(question)
    except (msgspec.MsgspecError, ValueError, LookupError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
