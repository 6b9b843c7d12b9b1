"""
Balances before and after, printed beside what a paper's rule makes of them, and compared exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

from sim.scenarios import Tell, expect
from sim.stage import Actor

Balances = dict[str, tuple[int, int]]
"""Free and locked money of actors by name [µ¤]."""


async def read(*actors: Actor) -> Balances:
    """The balances of actors, as f + 1 validators have them."""
    return {actor.name: await actor.balance() for actor in actors}


def compare(tell: Tell, before: Balances, after: Balances, rule: Mapping[str, int]) -> None:
    """
    Print balances before and after, and demand what the rule says.

    Args:
        tell: prints a line
        before, after: of the same actors
        rule: by how much each one's free money changes [µ¤]; nothing may stay locked

    Raises:
        ScenarioError: a balance differs from the rule, or money is still locked.
    """
    changes = {name: after[name][0] - free_uc for name, (free_uc, _) in before.items()}
    tell(f"  {'[µ¤]':<11}{'before':>19}{'after':>19}{'change':>12}{'by the rule':>13}")
    for name, change_uc in changes.items():
        free_uc, after_uc = before[name][0], after[name][0]
        tell(f"  {name:<11}{free_uc:>19,}{after_uc:>19,}{change_uc:>+12,}{rule[name]:>+13,}")
    expect("changes of the balances [µ¤]", dict(rule), changes)
    expect("still locked [µ¤]", dict.fromkeys(after, 0), {n: row[1] for n, row in after.items()})
