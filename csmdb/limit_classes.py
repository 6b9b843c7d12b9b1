"""
Limit classes: what a grant says of a home's connection is the same for many homes. Pure.

A grant carries the most that its address may buy and sell in a slot. Taken from the home's own
connection, those two numbers would be its fingerprint on every fresh address. So they are rounded
**up** to a class, one for both directions:

- Up, since a missing receipt is settled as the most the connection lets in (ADR 0004): rounded
  down, silence would cost less than what the home can draw. Rounded up it costs an honest home
  nothing for good, as its late receipt pays the difference back.
- The feeder is no less safe: the DSO has the true limits and checks every withdrawal against them.
  Homes withdraw energy in portions (`wire.withdrawal`), so that those amounts are alike, too.
- One class for both directions, as the assumption takes the larger of the two anyway.

Whether an address may buy and whether it may sell stays visible: the contract enforces it. Homes
that only consume are told apart from those that also sell, and each role needs its own crowd.

References:
    ADR 0013 (ended addresses); L. Sweeney, k-anonymity (2002).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from csmdb.records import Participant

DEFAULT_CLASSES_W = (11_000, 24_000, 43_000, 110_000)
"""Three phases of 16, 35 and 63 A at 230 V, which most homes have, and small businesses. One phase
is in the first, too: few classes hide better than exact ones."""
MIN_HOMES = 5
BUYERS = frozenset({"consumer", "prosumer"})
SELLERS = frozenset({"producer", "prosumer"})


@dataclass(frozen=True, slots=True)
class Crowd:
    """Homes whose addresses look alike."""

    can_buy: bool
    can_sell: bool
    class_w: int
    homes: int


def class_of(power_w: int, classes_w: Sequence[int]) -> int:
    """
    The class of a connection [W].

    Args:
        classes_w: rising; beyond the last its multiples are classes; none: the power itself
    """
    if not classes_w:
        return power_w
    last_w = classes_w[-1]
    multiple_w = -(-power_w // last_w) * last_w
    return next((one for one in classes_w if power_w <= one), multiple_w)


def limits_of(who: Participant, classes_w: Sequence[int]) -> tuple[int, int]:
    """What its addresses may buy and sell at most [W]; 0 where the role allows nothing."""
    can_buy, can_sell = bool(BUYERS & set(who.roles)), bool(SELLERS & set(who.roles))
    if not classes_w:
        return who.max_import_w * can_buy, who.max_export_w * can_sell
    larger_w = max(who.max_import_w * can_buy, who.max_export_w * can_sell)
    class_w = class_of(larger_w, classes_w)
    return class_w * can_buy, class_w * can_sell


def crowds(homes: Iterable[Participant], classes_w: Sequence[int]) -> list[Crowd]:
    """How many homes share each class and role, the smallest crowds first."""
    counts: Counter[tuple[bool, bool, int]] = Counter()
    for who in homes:
        can_buy, can_sell = bool(BUYERS & set(who.roles)), bool(SELLERS & set(who.roles))
        if can_buy or can_sell:
            counts[can_buy, can_sell, max(limits_of(who, classes_w))] += 1
    found = [Crowd(*looks, homes=count) for looks, count in counts.items()]
    return sorted(found, key=lambda one: (one.homes, one.class_w, one.can_sell))


def remedy(crowd: Crowd, classes_w: Sequence[int]) -> str:
    """What to do about a crowd that is too small."""
    if crowd.class_w in classes_w and crowd.class_w != classes_w[-1]:
        return f"take {crowd.class_w} out of limit_classes_w: these homes join the next class"
    return "put a larger class into limit_classes_w, or accept that these homes are known by size"
