"""
The slots that still have to be closed: reading signed, receipt accepted by the ledger.

A slot is on the list before anything is done about it and leaves it when its receipt is on the
ledger, or when nobody can bring it there any more. Slots that ended while we were away are put on
it from where the list had got to. Signing again gives the same record and the outbox knows each
receipt by its key, so a slot that is taken up twice, after a crash too, is receipted once.

The clock may be set. What lies in the future once it was set back stays on the list and waits until
it is over; and slots that are never put on it, because they were over too long ago when we came
back, are named in the log.
"""

from __future__ import annotations

from typing import Protocol

import structlog

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

log = structlog.get_logger(component="hem")


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
        self._ended: int | None = None

    def reach(self, ended: int) -> None:
        """Every slot up to `ended`, the last that is over, is on the list; durable on return."""
        self._ended = ended
        raw = self._store.get(REACHED)
        following = ended if raw is None else int(raw) + 1
        first = max(following, ended - LATE_SLOTS)
        if first > ended:
            return
        if following < first:
            log.warning(
                "slots ended too long ago to be closed", first_slot=following, last_slot=first - 1
            )
        with self._store.atomic():
            for slot in range(first, ended + 1):
                self._store.put(_key(slot), b"")
            self._store.put(REACHED, str(ended).encode())

    def waiting(self) -> list[int]:
        """Slots on the list that are over, oldest first."""
        listed = [int(key.removeprefix(LISTED)) for key, _ in self._store.scan(LISTED)]
        return [slot for slot in listed if self._ended is None or slot <= self._ended]

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
