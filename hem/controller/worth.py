"""
What stored energy will be worth: stochastic dynamic programming over the battery's charge.

Backwards from the horizon, slot by slot: with the value of the next slot known, what the battery
does at each charge and in each scenario of load − PV follows in closed form (the four levels of
hem/controller/value_curve.py); the mean over the scenarios is the value of this slot. As scenarios
are drawn anew in every slot, nobody in the model knows the future, so a battery keeps room and
energy for what may come. A plan for the expected day (one scenario) does not: on measured homes it
is worth less than plain self-consumption in some months, and this is not (docs/reference/
benchmarks.md, ADR 0009).

Floats inside, integers out: what comes out is a `ValueCurve` for each slot. Needs numpy; whoever
has none uses the state-of-charge curves (hem/controller/curves.py).

Source: TMI (Siano et al. 2019) section V-D for the battery; Bellman 1957; the order-up-to policy of
storage, Harsha and Dahleh 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hem.controller.battery import Battery
from hem.controller.value_curve import ValueCurve

SEGMENTS = 40
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of the slots ahead; T slots, S scenarios."""

    net_wh: NDArray[Any]
    """Load − PV (S, T)."""
    import_price: NDArray[Any]
    """(T,) [µ¤/kWh], as is the next."""
    export_price: NDArray[Any]
    weight: NDArray[Any] | None = None
    """Of the scenarios (S,), adding up to one; equal where left out."""
    import_max_wh: NDArray[Any] | None = None
    """(T,); no limit where left out, as in the next."""
    export_max_wh: NDArray[Any] | None = None


def value_curves(
    outlook: Outlook, battery: Battery, wear: int, seconds: int, keep: int | None = None
) -> list[ValueCurve]:
    """
    The value of stored energy at the beginning of each of the T slots, and after the last.

    After the horizon a stored kWh is worth what it brings when it is exported at the mean price,
    never less than nothing.

    Args:
        wear: of a kWh discharged [µ¤/kWh]
        seconds: of a slot
        keep: only so many curves are wanted, the first ones

    Returns:
        T + 1 curves, or `keep`; number 0 is the value before the first slot, number 1 after it.
    """
    slots = outlook.net_wh.shape[1]
    keep = slots + 1 if keep is None else keep
    step_wh = max((battery.ceiling_wh - battery.floor_wh) // SEGMENTS, 1)
    grid_wh = battery.floor_wh + step_wh * np.arange(SEGMENTS + 1, dtype=np.float64)
    exports = np.minimum(outlook.export_price, outlook.import_price).astype(np.float64)
    last = max(float(np.mean(exports)), 0.0) * battery.discharge_permille / 1000
    marginal = np.full(SEGMENTS, last)
    curves = [_curve(battery, step_wh, marginal)]
    model = _Model(outlook, battery, wear, seconds, grid_wh)
    for slot in range(slots - 1, -1, -1):
        marginal = model.before(slot, marginal, float(exports[slot]))
        if slot < keep:
            curves.append(_curve(battery, step_wh, marginal))
    return curves[::-1][:keep]


class _Model:
    """One step backwards."""

    def __init__(
        self, outlook: Outlook, battery: Battery, wear: int, seconds: int, grid_wh: Floats
    ) -> None:
        self._wear, self._grid_wh, self._step_wh = float(wear), grid_wh, grid_wh[1] - grid_wh[0]
        self._into, self._out = battery.charge_permille / 1000, battery.discharge_permille / 1000
        most_in_wh = battery.max_charge_w * seconds / 3600
        most_out_wh = battery.max_discharge_w * seconds / 3600
        self._room_wh = np.minimum((grid_wh[-1] - grid_wh) / self._into, most_in_wh)
        self._left_wh = np.minimum((grid_wh - grid_wh[0]) * self._out, most_out_wh)
        count = outlook.net_wh.shape[0]
        weight = outlook.weight
        self._weight = np.full(count, 1 / count) if weight is None else weight.astype(np.float64)
        self._net_wh = outlook.net_wh.astype(np.float64).T[:, :, None]
        self._prices = outlook.import_price
        self._import_max_wh, self._export_max_wh = outlook.import_max_wh, outlook.export_max_wh

    def before(self, slot: int, after: Floats, export: float) -> Floats:
        """Marginal values before a slot, from those after it."""
        price, grid_wh, net_wh = float(self._prices[slot]), self._grid_wh, self._net_wh[slot]
        store_wh, charge_wh, cover_wh, sell_wh = self._levels(after, price, export)
        surplus_wh, deficit_wh = np.maximum(-net_wh, 0), np.maximum(net_wh, 0)
        least_in_wh, least_out_wh, room_wh, left_wh = (
            charge_wh,
            sell_wh,
            self._room_wh,
            self._left_wh,
        )
        if self._import_max_wh is not None:
            most = float(self._import_max_wh[slot])
            least_out_wh = np.maximum(least_out_wh, deficit_wh - most)
            room_wh = np.minimum(room_wh, np.maximum(most - net_wh, 0))
        if self._export_max_wh is not None:
            most = float(self._export_max_wh[slot])
            least_in_wh = np.maximum(least_in_wh, surplus_wh - most)
            left_wh = np.minimum(left_wh, np.maximum(most + net_wh, 0))
        take_wh = np.maximum(np.minimum(surplus_wh, store_wh), least_in_wh)
        take_wh = np.minimum(np.maximum(take_wh, 0, out=take_wh), room_wh)
        give_wh = np.maximum(np.minimum(deficit_wh, cover_wh), least_out_wh)
        give_wh = np.minimum(np.maximum(give_wh, 0, out=give_wh), left_wh)
        flow_wh = net_wh + take_wh - give_wh
        sold_wh = np.minimum(flow_wh, 0)
        if self._export_max_wh is not None:  # what is above is not sold, but lost
            sold_wh = np.maximum(sold_wh, -float(self._export_max_wh[slot]))
        cost = np.maximum(flow_wh, 0) * price + sold_wh * export + give_wh * self._wear
        cost -= self._worth(after, grid_wh + take_wh * self._into - give_wh / self._out)
        marginal = -np.diff(self._weight @ cost) / self._step_wh
        falling: Floats = np.minimum.accumulate(marginal)
        return falling

    def _levels(self, after: Floats, price: float, export: float) -> tuple[Floats, ...]:
        """AC energy at each charge to the levels: store, charge, cover, sell."""
        into, out, wear, grid_wh = self._into, self._out, self._wear, self._grid_wh
        thresholds = (export / into, price / into, (price - wear) * out, (export - wear) * out)
        at = grid_wh[np.searchsorted(-after, -np.array(thresholds))]
        return (
            (at[0] - grid_wh) / into,
            (at[1] - grid_wh) / into,
            (grid_wh - at[2]) * out,
            (grid_wh - at[3]) * out,
        )

    def _worth(self, after: Floats, soc_wh: Floats) -> Floats:
        """What a charge is worth after the slot: straight lines between the grid's points."""
        worth = np.concatenate(([0.0], np.cumsum(after))) * self._step_wh
        place = (soc_wh - self._grid_wh[0]) / self._step_wh
        index = np.minimum(place.astype(np.intp), len(after) - 1)
        found: Floats = worth[index] + (place - index) * self._step_wh * after[index]
        return found


def _curve(battery: Battery, step_wh: int, marginal: Floats) -> ValueCurve:
    values = np.floor(marginal).astype(np.int64).tolist()
    return ValueCurve(battery.floor_wh, step_wh, tuple(values))
