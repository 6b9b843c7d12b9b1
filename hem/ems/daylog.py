"""
What flowed in each slot: one row a slot, for the household's page, kept for eight days.

Registers are exact, and the battery's energy is the mean of samples of its power; the load is what
makes the row balance:

    load = generation + import − export + battery (discharge positive)

Beside it stands what was expected of the slot just before it was measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from hem.controller.forecast import Forecast
from runtime.ports import Store
from wire.canonical import decode, encode

KEEP_SLOTS = 8 * 96
DAY = "day/"


@dataclass(frozen=True, slots=True)
class DayRow:
    """One slot that has ended."""

    slot: int
    load_wh: int
    pv_wh: int
    battery_wh: int
    """Discharge positive."""
    import_wh: int
    export_wh: int
    soc_permille: int
    """At the slot's end; negative: no battery."""
    price_uc_per_kwh: int
    """Clearing price; negative: nothing was traded."""
    expected_load_wh: int
    expected_pv_wh: int


class DayLog:
    """The rows, by slot."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._battery_w: list[int] = []
        self._soc_permille = -1

    def sample(self, battery_w: int, soc_permille: int) -> None:
        """Note the battery's power now (discharge positive) and its state of charge."""
        self._battery_w.append(battery_w)
        self._soc_permille = soc_permille

    def skip(self) -> None:
        """Forget the samples: what flowed cannot be put on one slot."""
        self._battery_w = []

    def close(
        self,
        slot: int,
        length_s: int,
        flowed_wh: tuple[int, int, int],
        expected: Forecast,
        price_uc_per_kwh: int | None,
    ) -> None:
        """
        Write a slot down, by its registers and the samples since the last one.

        Args:
            length_s: of the slot
            flowed_wh: import, export and generation
            price_uc_per_kwh: None when nothing was traded
        """
        import_wh, export_wh, pv_wh = flowed_wh
        samples, self._battery_w = self._battery_w, []
        battery_wh = sum(samples) * length_s // (3600 * len(samples)) if samples else 0
        row = DayRow(
            slot=slot,
            load_wh=max(0, pv_wh + import_wh - export_wh + battery_wh),
            pv_wh=pv_wh,
            battery_wh=battery_wh,
            import_wh=import_wh,
            export_wh=export_wh,
            soc_permille=self._soc_permille,
            price_uc_per_kwh=-1 if price_uc_per_kwh is None else price_uc_per_kwh,
            expected_load_wh=expected.load_wh,
            expected_pv_wh=expected.pv_wh,
        )
        with self._store.atomic():
            self._store.put(_key(slot), encode(asdict(row)))

    def rows(self, first_slot: int, last_slot: int) -> list[DayRow]:
        """The rows of some slots, oldest first; slots that nobody measured are left out."""
        found = (self._store.get(_key(slot)) for slot in range(first_slot, last_slot + 1))
        return [DayRow(**decode(raw)) for raw in found if raw is not None]

    def forget_before(self, slot: int) -> None:
        """Keep eight days."""
        oldest = _key(slot - KEEP_SLOTS)
        with self._store.atomic():
            for key, _ in list(self._store.scan(DAY)):
                if key < oldest:
                    self._store.delete(key)


def _key(slot: int) -> str:
    return f"{DAY}{slot:012d}"
