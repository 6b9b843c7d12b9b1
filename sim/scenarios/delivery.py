"""What several scenarios share: everybody's meter speaks, slots are settled, money is compared."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from sim.scenarios import expect
from sim.scenarios.balances import Balances
from sim.stage import Actor, Stage

AFTER_S = 5
"""How long after a boundary of slots the scenarios act [s of market time]."""


async def deliver(stage: Stage, slot: int, net_wh: Mapping[Actor, int]) -> None:
    """
    Let the meters of a slot that has ended speak.

    Args:
        net_wh: import − export of each home [Wh]
    """
    said = [actor.submit(stage.receipt(actor, slot, wh)) for actor, wh in net_wh.items()]
    for event in await asyncio.gather(*said):
        expect("a meter's receipt", ["OK"], event["codes"])


async def settle(stage: Stage, slot: int) -> dict[str, Any]:
    """Go on until a slot is settled; its `settled` event."""
    await stage.to_ms(stage.genesis.settle_ms(slot) + AFTER_S * 1000)
    return next(event for event in stage.events("settled") if event["slot"] == slot)


def both(before: Balances, after: Balances) -> dict[str, dict[str, int]]:
    """Balances for an outcome: free and locked money before and after, by name [µ¤]."""
    return {
        name: {
            "beforeUc": before[name][0], "lockedBeforeUc": before[name][1],
            "afterUc": after[name][0], "lockedAfterUc": after[name][1],
        }
        for name in before
    }  # fmt: skip


def gained(before: Balances, after: Balances) -> dict[str, int]:
    """By how much everybody's money, free and locked, changed [µ¤]."""
    return {name: sum(after[name]) - sum(before[name]) for name in before}
