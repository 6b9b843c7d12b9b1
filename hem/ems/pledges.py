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
    Promises.

    Args:
        store: kept between starts (synchronous=FULL)
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, key: str) -> Pledge | None:
        """The promise that was made under a key, also one that is over; None: none was."""
        return next((pledge for _, kept, pledge in self._all() if kept == key), None)

    def add(self, key: str, pledge: Pledge) -> None:
        """Keep a promise; durable when this returns."""
        self._put(f"{PLEDGE}{pledge.end_slot:012d}/{key}", pledge)

    def sent(self, key: str) -> list[tuple[str, dict[str, Any]]]:
        """
        The operations with which a promise and its parts were made, by the keys they left under.

        A sealed one left as a commitment, under `commit/<key>`.
        """
        return [
            (f"commit/{kept}" if pledge.operation["op"] == "commit-bid" else kept, pledge.operation)
            for _, kept, pledge in self._all()
            if kept == key or kept.startswith(key + "/")
        ]

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

    def release(self, key: str) -> None:
        """
        It promises nothing any more: refused, traded, or taken back.

        So do its parts, whose keys are `<key>/<number>`.
        """
        for row, kept, pledge in self._all():
            if kept == key or kept.startswith(key + "/"):
                self._put(row, msgspec.structs.replace(pledge, energy_wh=0))

    def forget_before(self, slot: int) -> None:
        """Drop the promises for slots that are past."""
        past = [key for key, _ in self._store.scan(PLEDGE) if key < f"{PLEDGE}{slot:012d}/"]
        if past:
            with self._store.atomic():
                for key in past:
                    self._store.delete(key)

    def _all(self) -> list[tuple[str, str, Pledge]]:
        """(row, key, promise) of everything that is kept."""
        return [
            (row, row.split("/", 2)[2], msgspec.convert(decode(raw), Pledge))
            for row, raw in self._store.scan(PLEDGE)
        ]

    def _put(self, row: str, pledge: Pledge) -> None:
        with self._store.atomic():
            self._store.put(row, encode(msgspec.to_builtins(pledge)))


def total_wh(pledges: Iterable[Pledge], slot: int) -> int:
    """What is promised in a slot: to give (+) or to take (−) [Wh]."""
    return sum(one.energy_wh for one in pledges if one.start_slot <= slot <= one.end_slot)
