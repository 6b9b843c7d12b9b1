"""
The addresses that a home trades under: which one is for a slot.

Either one for as long as its grant lasts, made longer by renewal (`OneAddress`), or one for each
period of slots (`AddressBook`, `wire.rotation`). The number of an address is its period, and its
key is derived from it (`Keyring.period_address`): a period has one address for ever, whatever is
lost or restored, and two addresses never share a slot.

Grants are asked for in sealed batches, about a day ahead, and kept as they come. What was granted
is kept for as long as a receipt may be late, then it is forgotten.

Source: ADR 0010; docs/concepts/identities.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from hem.ems.keyring import Keyring
from runtime.ports import Store
from wire.certificates import AddressGrant, dump_text, parse
from wire.keys import SigningKey
from wire.rotation import Rotation

GRANTED = "address/"
OVER, DUE = "/over", "/due/"
"""What is noted of a period, beside its grant."""
HORIZON_S = 86_400
"""So far ahead there are grants after each request; the next one is made at half of it [s]."""
BATCH = 32
"""The CSM-DB grants so many at a time."""


class Addresses(Protocol):
    """What whoever trades, meters or keeps the wallet has to know."""

    def grant_of(self, slot: int) -> AddressGrant | None:
        """The grant of the address that is for a slot; None: there is none (yet)."""
        ...

    def __contains__(self, address: object) -> bool:
        """Is it one of ours?"""
        ...

    def is_over(self, slot: int) -> bool:
        """Will nothing be sent any more under the address that was for a slot?"""
        ...


class OneAddress:
    """
    One address for all slots of its grant.

    Args:
        grant: may be replaced by a longer one of the same address
    """

    def __init__(self, grant: AddressGrant | None = None) -> None:
        self.grant = grant

    def grant_of(self, slot: int) -> AddressGrant | None:
        """The grant, in its slots."""
        grant = self.grant
        if grant is None or not grant.start_slot <= slot <= grant.end_slot:
            return None
        return grant

    def __contains__(self, address: object) -> bool:
        """Is it the one?"""
        return self.grant is not None and address == self.grant.address

    def is_over(self, _slot: int) -> bool:
        """Never: whatever becomes of its receipts, the ledger says so."""
        return False


class AddressBook:
    """
    An address for each period.

    Args:
        store: kept between starts (synchronous=FULL)
        keyring: derives the keys
        chain_id: of the market; another chain has other addresses
        rule: when addresses change
        last_slot: the last one to trade in, where a trial has an end
    """

    def __init__(
        self,
        store: Store,
        keyring: Keyring,
        chain_id: str,
        rule: Rotation,
        last_slot: int | None = None,
    ) -> None:
        self._store, self._keyring, self._chain_id, self.rule = store, keyring, chain_id, rule
        self._last_slot = last_slot
        self._grants = dict(_kept(store))
        self._over = {p for p in self._grants if store.get(_row(p) + OVER) is not None}
        self._ours = {grant.address for grant in self._grants.values()}

    def grant_of(self, slot: int) -> AddressGrant | None:
        """The grant of the address of a slot's period."""
        grant = self._grants.get(self.rule.period(slot))
        if grant is None or not grant.start_slot <= slot <= grant.end_slot:
            return None
        return grant

    def __contains__(self, address: object) -> bool:
        """Is it one of ours, or was it lately?"""
        return address in self._ours

    def is_over(self, slot: int) -> bool:
        """The address of a slot's period was retired."""
        return self.rule.period(slot) in self._over

    def key(self, period: int) -> SigningKey:
        """The key of a period's address."""
        return self._keyring.period_address(self._chain_id, period)

    def chance(self, period: int, what: str) -> float:
        """Drawn for an address and a purpose, uniform in [0, 1)."""
        return self._keyring.chance(self._chain_id, period, what)

    def live(self) -> list[tuple[int, AddressGrant]]:
        """Granted periods for which something may still have to be done, oldest first."""
        return [(p, self._grants[p]) for p in sorted(self._grants) if p not in self._over]

    def missing(self, slot: int) -> list[int]:
        """
        The periods to ask the CSM-DB for now: none while there are grants for half a day.

        Args:
            slot: the current one
        """
        ahead = max(HORIZON_S // self.rule.grid.length_s, 2 * self.rule.address_slots)
        soon = max(self.rule.period(slot + ahead // 2), self._soon(slot))
        if not self._ungranted(slot, soon):
            return []
        return self._ungranted(slot, max(self.rule.period(slot + ahead), soon))[:BATCH]

    def is_urgent(self, slot: int) -> bool:
        """There is no grant for a period that has to be registered by now."""
        return bool(self._ungranted(slot, self._soon(slot)))

    def window(self, period: int, slot: int) -> tuple[int, int]:
        """The slots to ask for: all of the period that have not begun."""
        last = self.rule.last_slot(period)
        if self._last_slot is not None:
            last = min(last, self._last_slot)
        return max(self.rule.first_slot(period), slot + 1), last

    @property
    def end_slot(self) -> int:
        """The last slot that there is a grant for; −1: none."""
        return max((grant.end_slot for grant in self._grants.values()), default=-1)

    def _soon(self, slot: int) -> int:
        """The last period whose registration may have begun."""
        return self.rule.period(slot + self.rule.ahead_slots + self.rule.address_slots)

    def _ungranted(self, slot: int, last: int) -> list[int]:
        """Periods without a grant, from that of the next slot on."""
        if self._last_slot is not None:
            if slot >= self._last_slot:
                return []
            last = min(last, self.rule.period(self._last_slot))
        return [p for p in range(self.rule.period(slot + 1), last + 1) if p not in self._grants]

    def keep(self, granted: dict[int, AddressGrant]) -> None:
        """
        Keep grants; durable when this returns.

        Raises:
            ValueError: a grant reaches beyond its period: two addresses would share a slot.
        """
        for period, grant in granted.items():
            inside = self.rule.period(grant.start_slot) == self.rule.period(grant.end_slot)
            if not inside or self.rule.period(grant.start_slot) != period:
                raise ValueError(f"grant of {grant.address} is not for period {period}")
        with self._store.atomic():
            for period, grant in granted.items():
                self._store.put(_row(period), dump_text(grant).encode())
        self._grants |= granted
        self._ours |= {grant.address for grant in granted.values()}

    def retire(self, period: int) -> None:
        """Nothing is left to be done under a period's address."""
        with self._store.atomic():
            self._store.put(_row(period) + OVER, b"")
        self._over.add(period)

    def due_ms(self, period: int, what: str) -> int | None:
        """To when something was put off; None: it was not."""
        raw = self._store.get(f"{_row(period)}{DUE}{what}")
        return None if raw is None else int(raw)

    def put_off(self, period: int, what: str, due_ms: int) -> None:
        """Do something at another moment than planned; durable when this returns."""
        with self._store.atomic():
            self._store.put(f"{_row(period)}{DUE}{what}", str(due_ms).encode())

    def forget_before(self, slot: int) -> list[str]:
        """
        Drop addresses whose last slot is before a slot.

        Returns:
            Those that were dropped.
        """
        past = [p for p, grant in self._grants.items() if grant.end_slot < slot]
        if past:
            with self._store.atomic():
                for period in past:
                    for key, _ in list(self._store.scan(_row(period))):
                        self._store.delete(key)
        dropped = [self._grants.pop(period).address for period in past]
        self._over.difference_update(past)
        self._ours.difference_update(dropped)
        return dropped


def kept_grants(store: Store) -> list[AddressGrant]:
    """For reading: the grants of a book, oldest first; none where addresses do not change."""
    return [grant for _, grant in sorted(_kept(store), key=lambda row: row[0])]


def _kept(store: Store) -> Iterator[tuple[int, AddressGrant]]:
    for key, raw in store.scan(GRANTED):
        if key.count("/") == 1:
            yield int(key.removeprefix(GRANTED)), parse(AddressGrant, raw.decode())


def _row(period: int) -> str:
    return f"{GRANTED}{period:012d}"
