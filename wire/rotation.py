"""
When homes change their trading addresses: all of them at the same boundaries of slots.

Slots are counted in periods of `address_slots`; whatever a home does about a slot, it does under
its address of the slot's period. Beside what is ordered and metered nothing may tie the address of
one period to that of the next, so the moments at which a home shows itself are drawn by the same
rule in every home, a fresh draw for each address:

    first − ahead − length … first − ahead      the address is registered
    first − ahead … + 3/4 slot                  money and energy are withdrawn to it
    first … last                                it is traded for, and metered
    last + grace + 2 … + length                 what is left of its money is deposited

and what a message says of its sender's clock is the slot, no more. Pure.

Source: PETra (anonymous addresses), TMI (random address); ADR 0010.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from wire.certificates import AddressGrant
from wire.slots import SlotGrid
from wire.units import cost_uc

MAX_ADDRESS_SLOTS = 96 * 7
MAX_AHEAD_SLOTS = 96
FUND_PERMILLE = 750
"""The part of its slot in which money and energy are withdrawn: then they are there in the next."""
SPREAD_PARTS = 16
"""A message leaves within this part of a slot after it was made."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """
    The rule of one market.

    Args:
        grid: its slots
        address_slots: an address is for so many
        ahead_slots: it is registered at the latest so many before its first one
    """

    grid: SlotGrid
    address_slots: int
    ahead_slots: int

    def period(self, slot: int) -> int:
        """The period that a slot is in; it is the number of the address, too."""
        return slot // self.address_slots

    def first_slot(self, period: int) -> int:
        """Of a period."""
        return period * self.address_slots

    def last_slot(self, period: int) -> int:
        """Of a period, inclusive."""
        return self.first_slot(period + 1) - 1

    def by_period(self, slots: Iterable[int]) -> Iterator[list[int]]:
        """Slots in their order, those of one period together: nothing is traded across two."""
        for _, same in groupby(slots, self.period):
            yield list(same)

    def register_ms(self, period: int, chance: float) -> int:
        """
        When the address of a period is registered.

        Args:
            chance: drawn anew for each address, uniform in [0, 1)
        """
        begin = self.first_slot(period) - self.ahead_slots - self.address_slots
        return self._moment(begin, self.address_slots, chance)

    def fund_ms(self, period: int, chance: float) -> int:
        """When money and energy are withdrawn to it; `chance` as above."""
        begin = self.first_slot(period) - self.ahead_slots
        return self._moment(begin, 1, chance * FUND_PERMILLE / 1000)

    def deposit_ms(self, period: int, grace_slots: int, chance: float) -> int:
        """
        From when what is left of its money is deposited; `chance` as above.

        Args:
            grace_slots: between the end of a slot and its settlement
        """
        begin = self.last_slot(period) + grace_slots + 2
        return self._moment(begin, self.address_slots, chance)

    @property
    def spread_s(self) -> float:
        """How long a message may wait before it leaves [s]."""
        return self.grid.length_s / SPREAD_PARTS

    def float_uc(self, grant: AddressGrant, retail_uc_per_kwh: int) -> int:
        """
        The money that is withdrawn to an address: what its grant can cost, bought and owed.

        Nothing of the home is in it but its grant, which everybody sees anyway.
        """
        most_wh = max(grant.max_buy_wh, grant.max_sell_wh)
        return 2 * self.address_slots * cost_uc(most_wh, retail_uc_per_kwh)

    def _moment(self, slot: int, slots: int, chance: float) -> int:
        length_ms = slots * self.grid.length_s * 1000
        return self.grid.start_ms(slot) + min(int(length_ms * chance), length_ms - 1)


def public_ms(grid: SlotGrid, now_ms: int) -> int:
    """The time that a message on a public topic names: its slot's begin, for every home."""
    return grid.start_ms(grid.slot_at(now_ms))
