"""
The simulated month's messages on their way: queued by the time they are seen, signed, ordered.

A message of a home leaves some time after its occasion (its machine's work, or a delay drawn as the
habits say), by the home's clock, and is seen by the broker, and so by everybody, a moment later.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from runtime.outbox import LIFE_SLOTS
from sim.month_habits import Habits
from sim.month_homes import MonthHome
from wire.envelope import new_req_id
from wire.keys import SigningKey
from wire.rotation import public_ms
from wire.slots import SlotGrid
from wire.transactions import Transaction, make_transaction

Content = Callable[[], list[dict[str, Any]]]
"""Operations, asked for when the message leaves; none: nothing is sent."""


@dataclass(order=True, slots=True)
class _Letter:
    seen_ms: int
    number: int
    sent_ms: int = field(compare=False)
    """By the sender's clock."""
    key: SigningKey = field(compare=False)
    content: Content = field(compare=False)


class Post:
    """Messages of all senders, by the time they are seen."""

    def __init__(self, chain_id: str, grid: SlotGrid, habits: Habits, rng: Random) -> None:
        self._chain_id, self._grid, self._habits, self._rng = chain_id, grid, habits, rng
        self._queue: list[_Letter] = []
        self._numbers = count()
        self._nonces: dict[str, int] = {}
        self._last_seen_ms: dict[str, int] = {}
        self._own_delays: dict[str, float] = {}

    @property
    def next_ms(self) -> int | None:
        """When the next message is seen; None: nothing is on its way."""
        return self._queue[0].seen_ms if self._queue else None

    def send(self, home: MonthHome, key: SigningKey, at_ms: int, content: Content) -> None:
        """A home's message on an occasion at `at_ms` that all homes know, after its delay."""
        self._leave(home, key, at_ms + round(self._delay_ms(home)), content)

    def send_at(self, home: MonthHome, key: SigningKey, at_ms: int, content: Content) -> None:
        """A home's message at a moment of its own choice."""
        self._leave(home, key, at_ms, content)

    def send_plain(self, key: SigningKey, at_ms: int, content: Content) -> None:
        """A message of somebody whose clock and network tell nothing: the supervisor."""
        self._put(key, at_ms, at_ms, content)

    def seen_until(self, until_ms: int) -> list[tuple[int, Transaction]]:
        """Messages seen up to then, signed: (seen [ms], transaction)."""
        found = []
        while self._queue and self._queue[0].seen_ms <= until_ms:
            letter = heapq.heappop(self._queue)
            operations = letter.content()
            if operations:
                found.append((letter.seen_ms, self._sign(letter, operations)))
        return found

    def _leave(self, home: MonthHome, key: SigningKey, at_ms: int, content: Content) -> None:
        network_ms = home.network_ms * self._rng.uniform(0.7, 1.6)
        seen_ms = at_ms - round(home.clock_offset_ms - network_ms)
        self._put(key, seen_ms, at_ms, content)

    def _put(self, key: SigningKey, seen_ms: int, sent_ms: int, content: Content) -> None:
        # one connection: what was sent first is seen first
        seen_ms = max(seen_ms, self._last_seen_ms.get(key.id, 0) + 1)
        self._last_seen_ms[key.id] = seen_ms
        heapq.heappush(self._queue, _Letter(seen_ms, next(self._numbers), sent_ms, key, content))

    def _delay_ms(self, home: MonthHome) -> float:
        if not self._habits.delay_s:
            return home.work_ms * self._rng.uniform(0.8, 1.3)
        most_ms = self._habits.delay_s * 1000
        if self._habits.own_delay:
            drawn_ms = self._own_delays.setdefault(home.name, self._rng.uniform(0, most_ms))
            return drawn_ms + self._rng.uniform(0, 500)
        return self._rng.uniform(0, most_ms)

    def _sign(self, letter: _Letter, operations: list[dict[str, Any]]) -> Transaction:
        nonce = self._nonces.get(letter.key.id, 0)
        self._nonces[letter.key.id] = nonce + 1
        slot = self._grid.slot_at(letter.sent_ms)
        quantised = self._habits.quantised
        dated_ms = public_ms(self._grid, letter.sent_ms) if quantised else letter.sent_ms
        req_id = new_req_id(dated_ms, self._rng.randbytes(10))
        return make_transaction(
            letter.key, self._chain_id, nonce, slot + LIFE_SLOTS, operations, req_id, dated_ms
        )
