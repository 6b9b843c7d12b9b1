"""
What we promised in the aggregator's auctions, by slot and auction, until the slot is past.

An auction is answered once: when its opening is told again (after a crash the ledger's events are
read again from where we stood) the same answer is found here, and counts once.
"""

from __future__ import annotations

from typing import Any

from runtime.ports import Store
from wire.canonical import decode, encode

PLEDGE = "pledge/"


class Pledges:
    """
    Answers to auctions.

    Args:
        store: kept between starts (synchronous=FULL)
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def answer(self, slot: int, auction: str) -> dict[str, Any] | None:
        """The operation with which an auction was answered, or None."""
        raw = self._store.get(_key(slot, auction))
        found: dict[str, Any] | None = None if raw is None else decode(raw)["operation"]
        return found

    def add(self, slot: int, auction: str, energy_wh: int, operation: dict[str, Any]) -> None:
        """Keep an answer: energy to give (+) or to take (−) [Wh]; durable when this returns."""
        row = {"energyWh": energy_wh, "operation": operation}
        with self._store.atomic():
            self._store.put(_key(slot, auction), encode(row))

    def total_wh(self, slot: int) -> int:
        """What is promised in a slot: to give (+) or to take (−) [Wh]."""
        rows = self._store.scan(f"{PLEDGE}{slot:012d}/")
        return sum(int(decode(raw)["energyWh"]) for _, raw in rows)

    def refused(self, auction: str) -> None:
        """The ledger did not take the answer: it promises nothing, and is not given again."""
        for key, raw in list(self._store.scan(PLEDGE)):
            if key.rsplit("/", 1)[1] == auction:
                with self._store.atomic():
                    self._store.put(key, encode({**decode(raw), "energyWh": 0}))

    def forget_before(self, slot: int) -> None:
        """Drop the answers for slots that are past."""
        past = [key for key, _ in self._store.scan(PLEDGE) if key < f"{PLEDGE}{slot:012d}/"]
        if past:
            with self._store.atomic():
                for key in past:
                    self._store.delete(key)


def _key(slot: int, auction: str) -> str:
    return f"{PLEDGE}{slot:012d}/{auction}"
