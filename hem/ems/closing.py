"""
The slots that still have to be closed: reading signed, receipt accepted by the ledger.

A slot is on the list before anything is done about it and leaves it when its receipt is on the
ledger, or when nobody can bring it there any more. Slots that ended while we were away are put on
it from where the list had got to. Signing again gives the same record and the outbox knows each
receipt by its key, so a slot that is taken up twice, after a crash too, is receipted once.
"""

from __future__ import annotations

from typing import Protocol

from runtime.ports import Store
from wire.errors import Refusal

LATE_SLOTS = 96
"""How late the ledger takes a receipt [slots]."""
LISTED = "to-close/"
REACHED = "to-close-reached"
WAITING = "waiting"
DELIVERED = frozenset({"OK", Refusal.DUPLICATE.value})
PASSING = frozenset({Refusal.FUTURE_DATED.value, Refusal.UNKNOWN_SENDER.value})
"""Refusals that a later try may not meet: a block's clock behind ours, a late registration."""


class _Outbox(Protocol):
    def state_of(self, key: str) -> str: ...


class SlotsToClose:
    """
    The list.

    Args:
        store: kept between starts (synchronous=FULL)
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def reach(self, ended: int) -> None:
        """Every slot up to `ended` that is new is on the list; durable when this returns."""
        raw = self._store.get(REACHED)
        first = ended if raw is None else max(int(raw) + 1, ended - LATE_SLOTS)
        if first > ended:
            return
        with self._store.atomic():
            for slot in range(first, ended + 1):
                self._store.put(_key(slot), b"")
            self._store.put(REACHED, str(ended).encode())

    def waiting(self) -> list[int]:
        """Slots on the list, oldest first."""
        return [int(key.removeprefix(LISTED)) for key, _ in self._store.scan(LISTED)]

    def done(self, slot: int) -> None:
        """Nothing is left to be done, or can be done, for a slot."""
        with self._store.atomic():
            self._store.delete(_key(slot))


def receipt_key(slot: int, attempt: int) -> str:
    """Under which name a receipt enters the outbox."""
    return f"receipt/{slot}" if attempt == 0 else f"receipt/{slot}/{attempt}"


def last_attempt(outbox: _Outbox, slot: int) -> tuple[int, str]:
    """
    How the last try to deliver a slot's receipt stands.

    Returns:
        The number of the try, and `waiting`, the code it ended with, or empty: not tried yet.
    """
    attempt, state = 0, outbox.state_of(receipt_key(slot, 0))
    while following := outbox.state_of(receipt_key(slot, attempt + 1)):
        attempt, state = attempt + 1, following
    return attempt, state


def _key(slot: int) -> str:
    return f"{LISTED}{slot:012d}"
