"""
How homes show themselves in the simulated month: under one address, or under fresh ones.

`FIXED` is what a home does that keeps its address; `FRESH` what it does with a new one for each
period of slots (docs/concepts/privacy.md). Each promise of `FRESH` is a switch of its own, so that
a leak can be planted: the attack that is for it has to find it (`sim.linkage`).
"""

from __future__ import annotations

from dataclasses import dataclass

FRESH_SLOTS = 4
"""Slots of a period by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What an observer may learn from when and how homes write."""

    address_slots: int = 0
    """An address is for so many slots; 0: for the whole month."""
    delay_s: int = 0
    """Each message waits for a time drawn anew from [0, delay); 0: it leaves at once."""
    quantised: bool = False
    """Dates and request ids name the slot's beginning; else the home's own clock."""
    same_money: bool = False
    """All withdraw the same amount to an address; else the owner's choice."""
    same_limits: bool = False
    """All grants carry the same limits; else the connection's."""
    cpf_apart: bool = False
    """The validator says its CPF itself; else its home does, beside its receipt."""
    discreet: bool = False
    """Bids leave in coarse steps (`hem.controller.discretion`); else to the Wh and the µ¤."""
    own_delay: bool = False
    """A planted leak: the delay is drawn once for each home, not for each message."""

    @property
    def rotates(self) -> bool:
        """Do addresses change?"""
        return self.address_slots > 0


FIXED = Habits()
FRESH = Habits(
    address_slots=FRESH_SLOTS,
    delay_s=60,
    quantised=True,
    same_money=True,
    same_limits=True,
    cpf_apart=True,
    discreet=True,
)
