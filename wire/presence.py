"""
When an address is at work: about the slots of its grant.

It is registered ahead of them (`wire.rotation`), and has its receipts and the settlement of the
last one behind them. In this time the broker lets it say what an address may say; before and after,
what comes (a deposit, a receipt that is late) waits its turn among all such addresses. So whoever
collects grants for many days has no more to flood with than those of its present: the CSM-DB counts
how many of somebody's are at work together. Pure.

Source: docs/concepts/limits.md.
"""

from __future__ import annotations

AHEAD_SLOTS = 2
"""From the registration of an address to its first slot, beside the length of its period."""
AFTER_SLOTS = 2
"""The last slot's settlement, and a repetition."""
MAX_LENGTH_SLOTS = 96
"""A longer grant is not registered earlier than this before it begins."""


def at_work(start_slot: int, end_slot: int) -> tuple[int, int]:
    """
    First and last slot in which the address of a grant is at work.

    Args:
        start_slot, end_slot: of the grant, inclusive
    """
    length = min(end_slot - start_slot + 1, MAX_LENGTH_SLOTS)
    return start_slot - AHEAD_SLOTS - length, end_slot + AFTER_SLOTS
