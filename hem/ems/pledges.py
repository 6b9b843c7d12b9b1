"""
What we promised and the ledger has not decided yet, until it is decided or its slots are past.

Two kinds, because they count differently in what we plan:

- from the **battery**: an answer to the aggregator's auction, beyond the home's own need;
- from the **forecast**: an offer to neighbours or a schedule: part of what the home gives or takes
  anyway, only sold or bought early.

A promise is made once: after a crash the ledger's events are read again from where we stood, and
the same answer is found here under its key. What was refused, traded (then it is a position in the
wallet) or has lapsed stays as a promise of nothing, so that it is not made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from runtime.ports import Store
from wire.canonical import decode, encode

PLEDGE = "pledge/"
NEVER_MS = 2**53 - 1

Source = Literal["battery", "forecast"]


class Pledge(msgspec.Struct, frozen=True, kw_only=True):
    """One promise."""

    start_slot: int
    end_slot: int
    """Inclusive."""
    energy_wh: int
    """In every slot: to give (+) or to take (−) [Wh]."""
    source: Source
    operation: dict[str, Any]
    """With which it was made."""
    until_ms: int = NEVER_MS
    """Market time at which it lapses by itself."""
    name: str = ""
    """What the ledger calls it, where that is known afterwards only."""


class Pledges:
    """
    Promises. All of them are in memory, too: they are looked at for every slot and offer.

    Args:
        store: kept between starts (synchronous=FULL); nobody else writes promises into it
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows = {row: msgspec.convert(decode(raw), Pledge) for row, raw in store.scan(PLEDGE)}

    def find(self, key: str) -> Pledge | None:
        """The promise that was made under a key, also one that is over; None: none was."""
        return next((pledge for _, kept, pledge in self._all() if kept == key), None)

    def add(self, key: str, pledge: Pledge) -> None:
        """Keep a promise; durable when this returns."""
        self._put(f"{PLEDGE}{pledge.end_slot:012d}/{key}", pledge)

    def name(self, key: str, name: str) -> None:
        """Note what the ledger calls a promise."""
        for row, kept, pledge in self._all():
            if kept == key:
                self._put(row, msgspec.structs.replace(pledge, name=name))

    def key_of(self, name: str) -> str:
        """The key of the promise that the ledger calls so; empty: none of ours."""
        return next((key for _, key, pledge in self._all() if name and pledge.name == name), "")

    def standing(self, source: Source, now_ms: int) -> list[Pledge]:
        """Promises that hold now."""
        return [
            pledge
            for _, _, pledge in self._all()
            if pledge.source == source and pledge.energy_wh and now_ms < pledge.until_ms
        ]

    def release(self, key: str, *, parts: bool = True) -> None:
        """
        It promises nothing any more: refused, traded, or taken back.

        Args:
            parts: so do its parts, whose keys are `<key>/<number>`
        """
        for row, kept, pledge in self._all():
            if pledge.energy_wh and (kept == key or (parts and kept.startswith(key + "/"))):
                self._put(row, msgspec.structs.replace(pledge, energy_wh=0))

    def kept(self, key: str = "") -> list[tuple[str, Pledge]]:
        """
        Promises with their keys, by the slot they end with; also those that are over.

        Args:
            key: only this one and its parts
        """
        return [
            (kept, pledge)
            for _, kept, pledge in self._all()
            if not key or kept == key or kept.startswith(key + "/")
        ]

    def forget_before(self, slot: int) -> None:
        """Drop the promises for slots that are past."""
        past = [row for row, _, pledge in self._all() if pledge.end_slot < slot]
        if past:
            with self._store.atomic():
                for row in past:
                    self._store.delete(row)
            for row in past:
                del self._rows[row]

    def _all(self) -> list[tuple[str, str, Pledge]]:
        """(row, key, promise) of everything that is kept, by the slot it ends with."""
        return [(row, row.split("/", 2)[2], self._rows[row]) for row in sorted(self._rows)]

    def _put(self, row: str, pledge: Pledge) -> None:
        with self._store.atomic():
            self._store.put(row, encode(msgspec.to_builtins(pledge)))
        self._rows[row] = pledge


def by_slot(pledges: Iterable[Pledge]) -> dict[int, int]:
    """What is promised in each slot: to give (+) or to take (−) [Wh]."""
    found: dict[int, int] = {}
    for one in pledges:
        for slot in range(one.start_slot, one.end_slot + 1):
            found[slot] = found.get(slot, 0) + one.energy_wh
    return found
