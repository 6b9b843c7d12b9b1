"""The value of stored energy: what following it costs, against the best there is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from hem.controller.battery import Battery
from hem.controller.value_curve import Terms, dispatch
from hem.controller.worth import SEGMENTS, Outlook, value_curves

BATTERY = Battery(8_000, 4_000, 4_000, soc_min_permille=0)
HOUR_S = 3_600
WEAR = 40_000


def follow(net_wh, imports, exports, curves, battery=BATTERY):
    """Cost of doing what the values say [µ¤/kWh · Wh], wear included."""
    soc_wh, cost = battery.floor_wh, 0
    for slot, net in enumerate(int(net) for net in net_wh):
        facts = Terms(import_price=int(imports[slot]), export_price=int(exports[slot]), wear=WEAR)
        out_wh = dispatch(net, soc_wh, curves[slot + 1], battery, facts, HOUR_S)
        grid_wh = net - out_wh
        cost += grid_wh * int(imports[slot] if grid_wh > 0 else exports[slot])
        cost += max(out_wh, 0) * WEAR
        soc_wh = battery.after(soc_wh, max(-out_wh, 0), max(out_wh, 0))
    return cost - soc_wh * battery.discharge_permille // 1000 * max(int(np.mean(exports)), 0)


def best(net_wh, imports, exports, battery=BATTERY):
    """The same by an LP that knows all of it."""
    count = len(net_wh)
    into, out = battery.charge_permille / 1000, battery.discharge_permille / 1000
    eye = sparse.identity(count)
    stored = eye - sparse.diags([np.ones(count - 1)], [-1], (count, count))
    rows = sparse.bmat([[-eye, eye, eye, -eye, None], [-into * eye, eye / out, None, None, stored]])
    cost = np.concatenate(
        [np.zeros(count), np.full(count, WEAR), imports, -exports, np.zeros(count)]
    )
    cost[-1] = -out * max(float(np.mean(exports)), 0)
    bounds = [(0, battery.max_charge_w)] * count + [(0, battery.max_discharge_w)] * count
    bounds += [(0, None)] * (2 * count) + [(0, battery.capacity_wh)] * count
    right = np.concatenate([net_wh, np.zeros(count)])
    return linprog(cost, A_eq=rows.tocsc(), b_eq=right, bounds=bounds, method="highs").fun


def random_day(seed, count=48):
    rng = np.random.default_rng(seed)
    hour = np.arange(count) % 24
    sun_wh = np.maximum(np.sin((hour - 6) / 12 * np.pi), 0) * rng.uniform(0, 4_000)
    net_wh = rng.integers(200, 1_500, count) - sun_wh.astype(int)
    imports = rng.integers(200_000, 400_000, count)
    return net_wh, imports, imports - rng.integers(50_000, 200_000, count)


@pytest.mark.parametrize("seed", range(12))
def test_one_certain_future_costs_what_the_best_plan_costs(seed):
    """Within one percent of the money that moves: the charge is known in steps of 200 Wh."""
    net_wh, imports, exports = random_day(seed)
    outlook = Outlook(net_wh=net_wh[None], import_price=imports, export_price=exports)
    curves = value_curves(outlook, BATTERY, WEAR, HOUR_S)
    ours, least = follow(net_wh, imports, exports, curves), best(net_wh, imports, exports)
    assert ours >= least - 1e-6 * abs(least)
    assert ours <= least + 0.01 * float(np.abs(net_wh) @ imports)


def test_many_futures_together_are_served_better_than_the_mean_of_them():
    """What comes is drawn anew in each slot: who plans for the mean keeps no room for it."""
    rng = np.random.default_rng(7)
    imports = np.tile(np.where(np.arange(24) >= 17, 450_000, 200_000), 2)
    exports = np.full(48, 80_000)
    futures = rng.choice([-3_000, 0, 2_500], (300, 48), p=[0.3, 0.4, 0.3])
    train, test = futures[:60], futures[60:]
    many = Outlook(net_wh=train, import_price=imports, export_price=exports)
    mean = Outlook(net_wh=train.mean(0)[None], import_price=imports, export_price=exports)
    by_many, by_mean = (value_curves(one, BATTERY, WEAR, HOUR_S) for one in (many, mean))
    costs = [
        (follow(net, imports, exports, by_many), follow(net, imports, exports, by_mean))
        for net in test
    ]
    ours, theirs = (sum(column) for column in zip(*costs, strict=True))
    assert ours < theirs


@pytest.mark.parametrize("seed", range(6))
def test_values_fall_with_the_charge_and_lie_between_the_prices(seed):
    net_wh, imports, exports = random_day(seed)
    outlook = Outlook(net_wh=net_wh[None], import_price=imports, export_price=exports)
    for curve in value_curves(outlook, BATTERY, WEAR, HOUR_S):
        assert len(curve.marginals) == SEGMENTS
        assert all(more >= less for more, less in pairwise(curve.marginals))
        assert curve.marginals[-1] >= 0 and curve.marginals[0] <= imports.max()


def test_weights_count_and_order_does_not():
    net_wh = np.array([[1_000] * 24, [-1_000] * 24])
    imports, exports = np.full(24, 300_000), np.full(24, 80_000)

    def first(scenarios, weight):
        outlook = Outlook(
            net_wh=scenarios, import_price=imports, export_price=exports, weight=np.array(weight)
        )
        return value_curves(outlook, BATTERY, WEAR, HOUR_S)[0]

    assert first(net_wh, [0.8, 0.2]) == first(net_wh[::-1], [0.2, 0.8])
    assert first(net_wh, [0.8, 0.2]).marginals[9] > first(net_wh, [0.2, 0.8]).marginals[9]


def test_a_cap_on_imports_to_come_makes_stored_energy_worth_more():
    net_wh = np.full((1, 24), 3_000)
    imports, exports = np.full(24, 300_000), np.full(24, 80_000)
    free = Outlook(net_wh=net_wh, import_price=imports, export_price=exports)
    spill = Outlook(
        net_wh=-net_wh, import_price=imports, export_price=exports,
        export_max_wh=np.full(24, 1_000),
    )  # fmt: skip
    plain = Outlook(net_wh=-net_wh, import_price=imports, export_price=exports)
    assert value_curves(free, BATTERY, WEAR, HOUR_S)[0].marginals[0] > 200_000
    full, empty = (value_curves(one, BATTERY, WEAR, HOUR_S)[0] for one in (spill, plain))
    assert full.marginals[-1] < empty.marginals[-1]


def test_only_the_first_curves_where_no_more_are_wanted():
    net_wh, imports, exports = random_day(3)
    outlook = Outlook(net_wh=net_wh[None], import_price=imports, export_price=exports)
    everything = value_curves(outlook, BATTERY, WEAR, HOUR_S)
    assert len(everything) == 49
    assert value_curves(outlook, BATTERY, WEAR, HOUR_S, keep=5) == everything[:5]
