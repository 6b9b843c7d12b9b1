"""
What the home used and produced, slot by slot, over the last weeks.

A ring by slot number: a slot may come late, twice or never. What is missing is filled from the same
slot of other days, and only when somebody asks; the ring itself keeps what was measured and nothing
else. 15-minute slots of 28 days are 21 kB in memory, and less than that in the store.

Integers and the standard library only: `hem.controller.scenarios` reads the ring as numpy arrays.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator

DAYS = 28
"""Four of each day of the week."""
SLOTS_MAX = 8_064
"""28 days of 5-minute slots. Shorter slots are kept for fewer days, so that a save stays small."""
SAVED_BYTES_MAX = 65_536
MISSING = -1
"""Stands for a slot that was not measured, in `load_wh` and `pv_wh` alike."""
ENERGY_MAX_WH = 1_000_000
"""A reading above 1 MWh a slot is not a home's."""
BEHIND_SLOTS = 4
"""So many slots in a row from before the ring: the clock was wrong before, not now."""
SLOT_MAX = 2**53 - 1
_MAGIC = b"HGHY\x01"
"""What it is, and the version of its format."""
_HEADER = struct.Struct("<IIq")
"""Slots a day, slots in the ring, the newest slot; the ring follows, load then PV, 4 bytes each."""


class HistoryError(ValueError):
    """Bytes that are not a history of this home's slots; it says why."""


class History:
    """
    Load and PV by slot.

    Args:
        slots_per_day: slots in 24 hours
        days: days to remember; fewer where that would be more than `SLOTS_MAX` slots

    Raises:
        ValueError: no slots, or no days.
    """

    def __init__(self, slots_per_day: int, days: int = DAYS) -> None:
        if slots_per_day < 1 or days < 1:
            raise ValueError("a history has at least one slot a day and one day")
        self.slots_per_day = slots_per_day
        self.capacity = min(slots_per_day * days, SLOTS_MAX)
        """Slots in the ring."""
        self.newest = -1
        """The latest slot that was measured; −1: none ever."""
        # By slot number modulo the capacity; both are MISSING, or neither is.
        self._load_wh = array("i", [MISSING]) * self.capacity
        self._pv_wh = array("i", [MISSING]) * self.capacity
        self._behind = 0

    @property
    def empty(self) -> bool:
        """Nothing was ever measured."""
        return self.newest < 0

    @property
    def oldest(self) -> int:
        """The first slot that the ring has room for; not below 0."""
        return max(self.newest + 1 - self.capacity, 0)

    def observe(self, slot: int, load_wh: int, pv_wh: int) -> None:
        """
        Write down what a slot was [Wh]; told twice, the later word counts.

        What is negative counts as nothing. A slot from before the ring is ignored, but several of
        them in a row mean that the clock once stood in the future: then we begin anew.
        """
        if not 0 <= slot <= SLOT_MAX:
            return
        if slot < self.oldest:
            self._behind += 1
            if self._behind < BEHIND_SLOTS:
                return
            self._clear()
        self._behind = 0
        self._advance(slot)
        at = slot % self.capacity
        self._load_wh[at] = min(max(load_wh, 0), ENERGY_MAX_WH)
        self._pv_wh[at] = min(max(pv_wh, 0), ENERGY_MAX_WH)

    def at(self, slot: int) -> tuple[int, int] | None:
        """What a slot was: load and PV [Wh]; None where it was not measured, or is forgotten."""
        if not self.oldest <= slot <= self.newest:
            return None
        at = slot % self.capacity
        load_wh = self._load_wh[at]
        return None if load_wh == MISSING else (load_wh, self._pv_wh[at])

    def filled(self, slot: int) -> tuple[int, int]:
        """
        What a slot was; where that is not known, the mean of the same slot of other days [Wh].

        A time of day that was never seen counts as dark, with the mean load. Zero while empty.
        """
        known = self.at(slot)
        if known is not None:
            return known
        same = [row for _, row in self.measured(slot % self.slots_per_day)]
        if same:
            return _mean([load for load, _ in same]), _mean([pv for _, pv in same])
        return _mean([load for load in self._load_wh if load != MISSING]), 0

    def measured(self, slot_of_day: int | None = None) -> Iterator[tuple[int, tuple[int, int]]]:
        """Every slot that was measured, oldest first; or those of one time of the day (UTC)."""
        first, step = self.oldest, 1
        if slot_of_day is not None:
            first += (slot_of_day - first) % self.slots_per_day
            step = self.slots_per_day
        for slot in range(first, self.newest + 1, step):
            row = self.at(slot)
            if row is not None:
                yield slot, row

    def buffers(self) -> tuple[array[int], array[int]]:
        """Copies of load and PV [Wh, or `MISSING`] from `newest + 1 − capacity` to `newest`."""
        head = (self.newest + 1) % self.capacity
        load_wh, pv_wh = self._load_wh, self._pv_wh
        return load_wh[head:] + load_wh[:head], pv_wh[head:] + pv_wh[:head]

    def to_bytes(self) -> bytes:
        """To keep across restarts; at most `SAVED_BYTES_MAX` bytes."""
        header = _HEADER.pack(self.slots_per_day, self.capacity, self.newest)
        rings = b"".join(_little(ring).tobytes() for ring in self.buffers())
        saved = _MAGIC + zlib.compress(header + rings)
        assert len(saved) <= SAVED_BYTES_MAX
        return saved

    @classmethod
    def from_bytes(cls, saved: bytes, slots_per_day: int, days: int = DAYS) -> History:
        """
        Go on from `to_bytes`; of more days than asked for, the last are taken.

        Args:
            saved: what was kept; nothing in it is believed
            slots_per_day, days: as for `History`

        Raises:
            HistoryError: not what `to_bytes` wrote, of another version or of another slot length.
        """
        newest, load_wh, pv_wh = _read(saved, slots_per_day)
        made = cls(slots_per_day, days)
        first = newest + 1 - len(load_wh)
        for slot, load, pv in zip(range(first, newest + 1), load_wh, pv_wh, strict=True):
            if load != MISSING:
                made.observe(slot, load, pv)
        return made

    def _advance(self, slot: int) -> None:
        """Make room up to `slot`: what lies between is missing."""
        for each in range(max(self.newest + 1, slot + 1 - self.capacity), slot + 1):
            self._load_wh[each % self.capacity] = MISSING
            self._pv_wh[each % self.capacity] = MISSING
        self.newest = max(self.newest, slot)

    def _clear(self) -> None:
        self._load_wh = array("i", [MISSING]) * self.capacity
        self._pv_wh = array("i", [MISSING]) * self.capacity
        self.newest = -1


def _mean(values: list[int]) -> int:
    return sum(values) // len(values) if values else 0


def _little(ring: array[int]) -> array[int]:
    """In the byte order of the file."""
    if sys.byteorder == "big":
        ring = ring[:]
        ring.byteswap()
    return ring


def _read(saved: bytes, slots_per_day: int) -> tuple[int, array[int], array[int]]:
    """The newest slot, and the rings as `buffers` gave them."""
    if not saved.startswith(_MAGIC):
        raise HistoryError("not a saved history, or one of another version")
    body = _inflate(saved[len(_MAGIC) :])
    if len(body) < _HEADER.size:
        raise HistoryError("a saved history ends within its header")
    per_day, capacity, newest = _HEADER.unpack_from(body)
    if per_day != slots_per_day:
        raise HistoryError(f"a history of {per_day} slots a day, and this home has {slots_per_day}")
    if not 0 < capacity <= SLOTS_MAX or len(body) != _HEADER.size + 8 * capacity:
        raise HistoryError(f"a saved history of {capacity} slots has {len(body)} bytes")
    rings = array("i", body[_HEADER.size :])
    rings = _little(rings)
    load_wh, pv_wh = rings[:capacity], rings[capacity:]
    rows = zip(load_wh, pv_wh, strict=True)
    if not all(_measured(*row) or row == (MISSING, MISSING) for row in rows):
        raise HistoryError("a saved history has energies that no home has")
    if not -1 <= newest <= SLOT_MAX or (newest < 0) != all(load == MISSING for load in load_wh):
        raise HistoryError(f"a saved history cannot end at slot {newest}")
    if any(load != MISSING for load in load_wh[: max(capacity - 1 - newest, 0)]):
        raise HistoryError("a saved history begins before slot 0")
    return newest, load_wh, pv_wh


def _inflate(packed: bytes) -> bytes:
    """Unpack and check its sum; never more than a history can be."""
    most = _HEADER.size + 8 * SLOTS_MAX
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(packed, most + 1)
    except zlib.error as problem:
        raise HistoryError(f"a saved history is damaged: {problem}") from None
    if not unpacker.eof or unpacker.unused_data or len(body) > most:
        raise HistoryError("a saved history is cut off, or longer than any")
    return body


def _measured(load_wh: int, pv_wh: int) -> bool:
    return 0 <= load_wh <= ENERGY_MAX_WH and 0 <= pv_wh <= ENERGY_MAX_WH
