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
from hem.controller.value_curve import NO_LIMIT_WH, ValueCurve

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
        self._outlook, self._wear, self._grid_wh = outlook, float(wear), grid_wh
        self._into, self._out = battery.charge_permille / 1000, battery.discharge_permille / 1000
        self._most_in_wh = battery.max_charge_w * seconds / 3600
        self._most_out_wh = battery.max_discharge_w * seconds / 3600
        count = outlook.net_wh.shape[0]
        weight = outlook.weight
        self._weight = np.full(count, 1 / count) if weight is None else weight.astype(np.float64)
        self._net_wh = outlook.net_wh.astype(np.float64)

    def before(self, slot: int, after: Floats, export: float) -> Floats:
        """Marginal values before a slot, from those after it."""
        price = float(self._outlook.import_price[slot])
        import_max_wh = _limit(self._outlook.import_max_wh, slot)
        export_max_wh = _limit(self._outlook.export_max_wh, slot)
        grid_wh, into, out, wear = self._grid_wh, self._into, self._out, self._wear
        net_wh = self._net_wh[:, slot, None]
        surplus_wh, deficit_wh = np.maximum(-net_wh, 0), np.maximum(net_wh, 0)

        def level_wh(threshold: float) -> float:
            return float(grid_wh[np.searchsorted(-after, -threshold, side="left")])

        take_wh = np.maximum(
            np.minimum(surplus_wh, (level_wh(export / into) - grid_wh) / into),
            np.maximum((level_wh(price / into) - grid_wh) / into, surplus_wh - export_max_wh),
        )
        room_wh = np.minimum(
            (grid_wh[-1] - grid_wh) / into,
            np.minimum(self._most_in_wh, np.maximum(import_max_wh - net_wh, 0)),
        )
        take_wh = np.clip(take_wh, 0, room_wh)
        give_wh = np.maximum(
            np.minimum(deficit_wh, (grid_wh - level_wh((price - wear) * out)) * out),
            np.maximum(
                (grid_wh - level_wh((export - wear) * out)) * out, deficit_wh - import_max_wh
            ),
        )
        left_wh = np.minimum(
            (grid_wh - grid_wh[0]) * out,
            np.minimum(self._most_out_wh, np.maximum(export_max_wh + net_wh, 0)),
        )
        give_wh = np.clip(give_wh, 0, left_wh)
        flow_wh = net_wh + take_wh - give_wh
        worth = np.concatenate(([0.0], np.cumsum(after))) * (grid_wh[1] - grid_wh[0])
        cost = np.where(flow_wh > 0, flow_wh * price, np.maximum(flow_wh, -export_max_wh) * export)
        cost += give_wh * wear
        cost -= np.interp(grid_wh + take_wh * into - give_wh / out, grid_wh, worth)
        marginal = -np.diff(self._weight @ cost) / np.diff(grid_wh)
        falling: Floats = np.minimum.accumulate(marginal)
        return falling


def _limit(limits: NDArray[Any] | None, slot: int) -> float:
    return float(NO_LIMIT_WH if limits is None else limits[slot])


def _curve(battery: Battery, step_wh: int, marginal: Floats) -> ValueCurve:
    values = tuple(int(value) for value in np.floor(marginal))
    return ValueCurve(battery.floor_wh, step_wh, values)
