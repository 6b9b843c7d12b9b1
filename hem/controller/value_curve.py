"""
What one more stored Wh is worth, by the state of charge; and what a battery does that knows it.

A full battery gains less by another Wh than an empty one: the marginal value falls with the state
of charge. Four levels of charge follow from it and from the two prices of the slot, and they say
all there is to do (η_c, η_d: efficiencies; w: wear):

    charge from the grid up to where a stored Wh is worth more than      import / η_c
    store surplus        up to where it is worth more than               export / η_c
    cover the home       down to where it is worth more than   (import − w) · η_d
    sell                 down to where it is worth more than   (export − w) · η_d

The same thresholds, asked for every price, are the home's step bid curve. A reluctance [µ¤/kWh]
moves each of them towards plain self-consumption: whoever leaves it has to gain that much.
Integers, rounded so that nothing is done at a loss.

Source: TMI (Siano et al. 2019) eqs 1 to 8 for the battery and its wear; order-up-to levels are the
optimal policy of a storage with convex costs (Harsha and Dahleh 2015). The curves themselves come
from hem/controller/worth.py; ADR 0009 says why.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from hem.controller.battery import Battery

NO_LIMIT_WH = 10**12
PRICE_MAX = 10**12


@dataclass(frozen=True, slots=True)
class ValueCurve:
    """
    Marginal value of stored energy.

    Raises:
        ValueError: no segments, an empty step, or values that rise with the charge.
    """

    floor_wh: int
    """Stored energy at which the first segment begins."""
    step_wh: int
    """Length of a segment."""
    marginals: tuple[int, ...]
    """What a stored kWh is worth in each segment [µ¤/kWh], falling."""

    def __post_init__(self) -> None:
        if not self.marginals or self.step_wh <= 0 or self.floor_wh < 0:
            raise ValueError("a value curve has segments of positive length")
        if list(self.marginals) != sorted(self.marginals, reverse=True):
            raise ValueError("the value of stored energy falls with the charge")
        if max(self.marginals[0], -self.marginals[-1]) > PRICE_MAX:
            raise ValueError(f"a value beyond {PRICE_MAX} µ¤/kWh")

    def marginal(self, soc_wh: int) -> int:
        """What a stored kWh is worth at a charge [µ¤/kWh]; above the last segment as in it."""
        index = max(soc_wh - self.floor_wh, 0) // self.step_wh
        return self.marginals[min(index, len(self.marginals) - 1)]

    def level_wh(self, price: int) -> int:
        """
        Charge up to which a stored kWh is worth more than `price` [Wh].

        Where that holds to the end there is no such charge, and `NO_LIMIT_WH` says so: whoever is
        charged above the last segment (its length is rounded, the owner's range may have been
        wider) has no reason to give that away.
        """
        index = bisect_left(self.marginals, -price, key=_negated)
        if index == len(self.marginals):
            return NO_LIMIT_WH
        return self.floor_wh + self.step_wh * index

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"floorWh": self.floor_wh, "stepWh": self.step_wh, "marginals": list(self.marginals)}

    @classmethod
    def from_json(cls, value: Any) -> ValueCurve:
        """
        The opposite of `to_json`.

        Raises:
            ValueError: not a value curve.
        """
        try:
            floor_wh, step_wh, marginals = value["floorWh"], value["stepWh"], value["marginals"]
            whole = all(type(one) is int for one in (floor_wh, step_wh, *marginals))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a value curve: {error!r}") from None
        if not whole:
            raise ValueError("a value curve is made of whole numbers")
        return cls(floor_wh, step_wh, tuple(marginals))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What energy costs in a slot, and what may flow."""

    import_price: int
    """[µ¤/kWh], as are the next three."""
    export_price: int
    wear: int = 0
    """Of a kWh discharged (eq 8)."""
    reluctance: int = 0
    """Least gain for which self-consumption is left."""
    import_max_wh: int = NO_LIMIT_WH
    export_max_wh: int = NO_LIMIT_WH
    keep_wh: int = 0
    """Stored above the battery's floor, for the home alone: never sold."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The four levels of charge [Wh] that say what a battery does."""

    charge_to_wh: int
    """From the grid."""
    store_to_wh: int
    """From surplus."""
    cover_to_wh: int
    """For the home's own use."""
    sell_to_wh: int


def levels(curve: ValueCurve, battery: Battery, terms: Terms) -> Levels:
    """The levels of a slot; export is never taken to pay more than import costs."""
    import_price = terms.import_price
    export_price = min(terms.export_price, import_price)
    into, out, least = battery.charge_permille, battery.discharge_permille, terms.reluctance
    return Levels(
        charge_to_wh=curve.level_wh(-(-import_price * 1000 // into) + least),
        store_to_wh=curve.level_wh(export_price * 1000 // into - least),
        cover_to_wh=curve.level_wh((import_price - terms.wear) * out // 1000 + least),
        sell_to_wh=curve.level_wh((export_price - terms.wear) * out // 1000 - least),
    )


def dispatch(
    net_wh: int, soc_wh: int, curve: ValueCurve, battery: Battery, terms: Terms, seconds: int
) -> int:
    """
    What the battery does while the home needs `net_wh` (load − PV).

    The limits of the connection come first: what is above the import limit is taken from the
    battery whatever it is worth, and into it goes what may not be exported.

    Returns:
        AC energy [Wh], + discharge, within rates, room and charge.
    """
    at = levels(curve, battery, terms)
    into, out = battery.charge_permille, battery.discharge_permille
    surplus_wh, deficit_wh = max(-net_wh, 0), max(net_wh, 0)
    take_wh = max(
        min(surplus_wh, (at.store_to_wh - soc_wh) * 1000 // into),
        (at.charge_to_wh - soc_wh) * 1000 // into,
        surplus_wh - terms.export_max_wh,
        0,
    )
    give_wh = max(
        min(deficit_wh, (soc_wh - at.cover_to_wh) * out // 1000),
        (soc_wh - max(at.sell_to_wh, battery.floor_wh + terms.keep_wh)) * out // 1000,
        deficit_wh - terms.import_max_wh,
        0,
    )
    if give_wh and deficit_wh > terms.import_max_wh:
        take_wh = 0
    if take_wh:
        room_wh = max(terms.import_max_wh - net_wh, 0)
        return -min(take_wh, battery.charge_limit_wh(soc_wh, seconds), room_wh)
    room_wh = max(terms.export_max_wh + net_wh, 0)
    return min(give_wh, battery.discharge_limit_wh(soc_wh, seconds), room_wh)


def bid_steps(
    net_wh: int, soc_wh: int, curve: ValueCurve, battery: Battery, terms: Terms, seconds: int
) -> tuple[tuple[int, int], ...]:
    """
    The home's demand by price: (price [µ¤/kWh], what it takes from the market at it [Wh]).

    At each price the battery does what `dispatch` would if energy cost, and paid, that much. The
    prices are those at which something changes, within export and import; demand falls with the
    price (negative: supply). The quantity holds from its price up to the next.
    """
    low, high = min(terms.export_price, terms.import_price), terms.import_price
    into, out = battery.charge_permille, battery.discharge_permille
    changes = {low}
    for value in set(curve.marginals):
        changes.add(value * into // 1000 + 1)
        changes.add(-(-value * 1000 // out) + terms.wear)
    steps: list[tuple[int, int]] = []
    for price in sorted(price for price in changes if low <= price < high):
        here = Terms(
            import_price=price,
            export_price=price,
            wear=terms.wear,
            import_max_wh=terms.import_max_wh,
            export_max_wh=terms.export_max_wh,
        )
        demand_wh = net_wh - dispatch(net_wh, soc_wh, curve, battery, here, seconds)
        if not steps or demand_wh < steps[-1][1]:
            steps.append((price, demand_wh))
    return tuple(steps)


def _negated(value: int) -> int:
    return -value
