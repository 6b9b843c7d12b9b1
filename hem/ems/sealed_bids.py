"""
Our sealed bids: what we committed to, kept until it can be revealed.

The salt is on disk before the commitment leaves, or a bid whose commitment is on the ledger could
never be opened and its deposit would be lost. A reveal that comes a moment too soon (the block's
time is the leader's) is sent again under a new key.

Source: `market.sealed`; `ledger.contracts.sealed` for the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ledger.rulebook import RuleBook
from market.sealed import SALT_BYTES, SealedBid, commitment
from runtime.ports import Rng, Store
from wire.canonical import decode, encode
from wire.errors import Refusal
from wire.keys import from_text, to_text

SEALED = "sealed/"
COMMIT, REVEAL = "commit/", "reveal/"
SHARES = (1, 2, 4, 8, 9)
"""Tenths of the window that have passed when the reveal is sent, and sent again when that was too
soon: the block's time is the leader's, and clocks differ."""
KeyedOperation = tuple[str, dict[str, Any]]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A bid as it is kept."""

    bid: SealedBid
    salt: str
    attempt: int = 0


class SealedBids:
    """
    Bids that were committed.

    Args:
        store: kept between starts (synchronous=FULL)
        rng: for salts
    """

    def __init__(self, store: Store, rng: Rng) -> None:
        self._store, self._rng = store, rng

    def commit(self, key: str, bid: SealedBid) -> KeyedOperation:
        """
        The operation that commits to a bid; the same one when it is asked for again.

        Args:
            key: under which the bid would have been sent openly
        """
        kept = self._find(bid.slot, key)
        if kept is None:
            kept = _Kept(bid=bid, salt=to_text(self._rng.bytes(SALT_BYTES)))
            self._put(bid.slot, key, kept)
        made = commitment(from_text(kept.salt, SALT_BYTES), kept.bid)
        return COMMIT + key, {
            "op": "commit-bid",
            "slot": kept.bid.slot,
            "auction": kept.bid.auction,
            "commitment": to_text(made),
        }

    def due(
        self, now_ms: int, rules: RuleBook, state_of: Callable[[str], str]
    ) -> list[KeyedOperation]:
        """
        Reveals to send now.

        Args:
            state_of: what became of an operation (`runtime.outbox.OperationOutbox.state_of`)
        """
        return [
            (f"{REVEAL}{key}/{kept.attempt}", _reveal(kept))
            for key, kept in self._open(now_ms, rules, state_of)
            if now_ms >= _from_ms(rules, kept) and state_of(COMMIT + key) == "OK"
        ]

    def next_ms(self, now_ms: int, rules: RuleBook, state_of: Callable[[str], str]) -> int | None:
        """Market time at which to look again; None while nothing is to be revealed."""
        times = [
            max(now_ms, _from_ms(rules, kept)) for _, kept in self._open(now_ms, rules, state_of)
        ]
        return min(times, default=None)

    def too_soon(self, key: str) -> None:
        """A reveal was refused because its time had not come: it is sent once more."""
        for row, base, kept in self._rows():
            if base == base_key(key) and kept.attempt + 1 < len(SHARES):
                again = msgspec.structs.replace(kept, attempt=kept.attempt + 1)
                self._write(row, again)

    def forget_before(self, slot: int) -> None:
        """Drop bids for slots that are past."""
        past = [row for row, _, kept in self._rows() if kept.bid.slot < slot]
        if past:
            with self._store.atomic():
                for row in past:
                    self._store.delete(row)

    def _open(
        self, now_ms: int, rules: RuleBook, state_of: Callable[[str], str]
    ) -> Iterator[tuple[str, _Kept]]:
        """Bids that are committed, or about to be, and not revealed yet, by key."""
        for _, key, kept in self._rows():
            hopeless = state_of(COMMIT + key) not in ("", "waiting", "OK")
            revealed = state_of(f"{REVEAL}{key}/{kept.attempt}") != ""
            if now_ms < rules.gate_ms(kept.bid.slot) and not hopeless and not revealed:
                yield key, kept

    def _find(self, slot: int, key: str) -> _Kept | None:
        raw = self._store.get(_row(slot, key))
        return None if raw is None else msgspec.convert(decode(raw), _Kept)

    def _rows(self) -> list[tuple[str, str, _Kept]]:
        """(row, key, bid) of everything that is kept."""
        return [
            (row, row.split("/", 2)[2], msgspec.convert(decode(raw), _Kept))
            for row, raw in self._store.scan(SEALED)
        ]

    def _put(self, slot: int, key: str, kept: _Kept) -> None:
        self._write(_row(slot, key), kept)

    def _write(self, row: str, kept: _Kept) -> None:
        with self._store.atomic():
            self._store.put(row, encode(msgspec.to_builtins(kept)))


def base_key(key: str) -> str:
    """The key under which a bid would have been sent openly, of its commitment's or reveal's."""
    if key.startswith(COMMIT):
        return key.removeprefix(COMMIT)
    return key.removeprefix(REVEAL).rpartition("/")[0] if key.startswith(REVEAL) else key


def outcome_of(operation: dict[str, Any], code: str) -> str | None:
    """
    What an operation's fate says of the order in it; None: nothing yet.

    A commitment that was taken is no order, and a reveal that came too soon will come again.
    """
    if operation["op"] == "commit-bid" and code == "OK":
        return None
    if operation["op"] == "reveal-bid" and code == Refusal.TOO_SOON.value:
        return None
    return code


def _from_ms(rules: RuleBook, kept: _Kept) -> int:
    begins_ms, ends_ms = rules.reveal_ms(kept.bid.slot), rules.gate_ms(kept.bid.slot)
    return begins_ms + (ends_ms - begins_ms) * SHARES[kept.attempt] // 10


def _reveal(kept: _Kept) -> dict[str, Any]:
    bid = kept.bid
    return {
        "op": "reveal-bid",
        "slot": bid.slot,
        "auction": bid.auction,
        "side": bid.side,
        "energyWh": bid.energy_wh,
        "priceUcPerKwh": bid.price_uc_per_kwh,
        "salt": kept.salt,
    }


def _row(slot: int, key: str) -> str:
    return f"{SEALED}{slot:012d}/{key}"
