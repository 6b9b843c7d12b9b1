"""What a battery does that knows what stored energy is worth, and what its home would pay."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hem.controller.battery import Battery
from hem.controller.value_curve import NO_LIMIT_WH, Terms, ValueCurve, bid_steps, dispatch, levels

BATTERY = Battery(10_000, 5_000, 5_000, soc_min_permille=100)
SECONDS = 900
WEAR = 60_000
STEEP = ValueCurve(
    1_000, 1_000, (500_000, 400_000, 300_000, 250_000, 200_000, 150_000, 80_000, 0, 0)
)
"""Nine segments of a kWh."""


@st.composite
def batteries(draw):
    low = draw(st.integers(0, 400))
    return Battery(
        capacity_wh=draw(st.integers(500, 30_000)),
        max_charge_w=draw(st.integers(0, 12_000)),
        max_discharge_w=draw(st.integers(0, 12_000)),
        charge_permille=draw(st.integers(700, 1000)),
        discharge_permille=draw(st.integers(700, 1000)),
        soc_min_permille=low,
        soc_max_permille=draw(st.integers(low + 100, 1000)),
    )


@st.composite
def curves_of(draw, battery):
    count = draw(st.integers(1, 12))
    values = sorted(draw(st.lists(st.integers(-50_000, 700_000), min_size=count, max_size=count)))
    step_wh = max((battery.ceiling_wh - battery.floor_wh) // count, 1)
    return ValueCurve(battery.floor_wh, step_wh, tuple(reversed(values)))


@st.composite
def terms(draw, *, limits=True):
    imports = draw(st.integers(0, 600_000))
    some = (
        st.one_of(st.just(NO_LIMIT_WH), st.integers(0, 3_000)) if limits else st.just(NO_LIMIT_WH)
    )
    return Terms(
        import_price=imports,
        export_price=draw(st.integers(-100_000, 600_000)),
        wear=draw(st.integers(0, 150_000)),
        reluctance=draw(st.integers(0, 50_000)),
        import_max_wh=draw(some),
        export_max_wh=draw(some),
    )


nets = st.integers(-3_000, 3_000)


@given(st.data(), batteries())
def test_no_sequence_of_slots_leaves_the_battery_s_range(data, battery):
    soc_wh = data.draw(st.integers(battery.floor_wh, battery.ceiling_wh))
    for _ in range(data.draw(st.integers(1, 12))):
        curve = data.draw(curves_of(battery))
        out_wh = dispatch(data.draw(nets), soc_wh, curve, battery, data.draw(terms()), SECONDS)
        assert -battery.max_charge_w * SECONDS <= out_wh * 3600 <= battery.max_discharge_w * SECONDS
        soc_wh = battery.after(soc_wh, max(-out_wh, 0), max(out_wh, 0))
        assert battery.floor_wh <= soc_wh <= battery.ceiling_wh


@given(st.data(), batteries(), nets, terms(limits=False))
def test_no_other_energy_would_have_been_better(data, battery, net_wh, facts):
    """Cost now less the value of what is stored then; a step of rounding is allowed for."""
    curve = data.draw(curves_of(battery))
    soc_wh = data.draw(st.integers(battery.floor_wh, battery.ceiling_wh))
    facts = Terms(import_price=facts.import_price, export_price=facts.export_price, wear=facts.wear)
    most_in = battery.charge_limit_wh(soc_wh, SECONDS)
    most_out = battery.discharge_limit_wh(soc_wh, SECONDS)

    def loss(out_wh):
        grid_wh = net_wh - out_wh
        price = facts.import_price if grid_wh > 0 else min(facts.export_price, facts.import_price)
        after_wh = battery.after(soc_wh, max(-out_wh, 0), max(out_wh, 0))
        return grid_wh * price + max(out_wh, 0) * facts.wear - stored_value(curve, after_wh)

    ours = loss(dispatch(net_wh, soc_wh, curve, battery, facts, SECONDS))
    span = [*range(-most_in, most_out + 1, max((most_in + most_out) // 40, 1)), 0, net_wh]
    best = min(loss(out_wh) for out_wh in span if -most_in <= out_wh <= most_out)
    dearest = max(abs(facts.import_price), abs(facts.export_price), *map(abs, curve.marginals), 1)
    assert ours <= best + 4 * dearest


def stored_value(curve, soc_wh):
    """What is stored above the floor is worth [µ¤/kWh · Wh]."""
    left_wh, value = soc_wh - curve.floor_wh, 0
    for marginal in curve.marginals:
        part_wh = min(max(left_wh, 0), curve.step_wh)
        value += part_wh * marginal
        left_wh -= part_wh
    return value


@given(st.data(), batteries(), nets, terms())
def test_the_connection_s_limits_come_before_what_energy_is_worth(data, battery, net_wh, facts):
    curve = data.draw(curves_of(battery))
    soc_wh = data.draw(st.integers(battery.floor_wh, battery.ceiling_wh))
    out_wh = dispatch(net_wh, soc_wh, curve, battery, facts, SECONDS)
    grid_wh = net_wh - out_wh
    if grid_wh > facts.import_max_wh:  # only where the battery gives all it has
        assert out_wh == battery.discharge_limit_wh(soc_wh, SECONDS)
    if -grid_wh > facts.export_max_wh:  # only where it takes all it can
        assert -out_wh == battery.charge_limit_wh(soc_wh, SECONDS)


@given(st.data(), batteries(), nets, terms())
def test_demand_falls_with_the_price_and_wear_is_never_sold_below(data, battery, net_wh, facts):
    curve = data.draw(curves_of(battery))
    soc_wh = data.draw(st.integers(battery.floor_wh, battery.ceiling_wh))
    steps = bid_steps(net_wh, soc_wh, curve, battery, facts, SECONDS)
    assert all(low < high for (low, _), (high, _) in pairwise(steps))
    assert all(more > less for (_, more), (_, less) in pairwise(steps))
    for price, demand_wh in steps:
        if demand_wh < net_wh and demand_wh < 0 and net_wh > -facts.export_max_wh:
            sold_wh = min(-demand_wh, net_wh - demand_wh)
            assert sold_wh == 0 or price >= facts.wear or curve.marginals[-1] < 0


def test_the_four_levels_of_a_slot():
    at = levels(STEEP, BATTERY, Terms(import_price=300_000, export_price=80_000, wear=WEAR))
    assert (at.charge_to_wh, at.store_to_wh) == (3_000, 7_000)
    assert (at.cover_to_wh, at.sell_to_wh) == (5_000, 8_000)


@pytest.mark.parametrize(
    ("soc_wh", "net_wh", "out_wh", "why"),
    [
        (6_000, 800, 800, "covers the home from 6 kWh"),
        (5_000, 800, 0, "keeps what is worth more later than import costs now"),
        (6_000, -800, -800, "stores surplus below 7 kWh"),
        (7_000, -800, 0, "exports surplus where more is worth less"),
        (2_000, 0, -1_053, "charges from the grid up to 3 kWh"),
        (9_000, 0, 949, "sells down to 8 kWh"),
    ],
)
def test_what_the_levels_mean(soc_wh, net_wh, out_wh, why):
    facts = Terms(import_price=300_000, export_price=80_000, wear=WEAR)
    assert dispatch(net_wh, soc_wh, STEEP, BATTERY, facts, SECONDS) == out_wh, why


def test_who_is_reluctant_enough_consumes_what_he_makes():
    facts = Terms(import_price=300_000, export_price=80_000, wear=WEAR, reluctance=10**6)
    for soc_wh in (2_000, 5_000, 9_000):
        assert dispatch(700, soc_wh, STEEP, BATTERY, facts, SECONDS) == 700
        assert dispatch(-700, soc_wh, STEEP, BATTERY, facts, SECONDS) == -700
        assert dispatch(0, soc_wh, STEEP, BATTERY, facts, SECONDS) == 0


def test_an_export_that_pays_more_than_import_costs_is_no_money_pump():
    facts = Terms(import_price=100_000, export_price=400_000, wear=0)
    worthless = ValueCurve(1_000, 9_000, (0,))
    assert dispatch(0, 9_000, worthless, BATTERY, facts, SECONDS) == 1_250
    steps = bid_steps(0, 9_000, worthless, BATTERY, facts, SECONDS)
    assert all(price < 100_000 for price, _ in steps)


@pytest.mark.parametrize(
    "bad",
    [
        {"floorWh": 0, "stepWh": 0, "marginals": [1]},
        {"floorWh": 0, "stepWh": 10, "marginals": []},
        {"floorWh": 0, "stepWh": 10, "marginals": [1, 2]},
        {"floorWh": 0, "stepWh": 10, "marginals": [1.5]},
        {"floorWh": 0, "stepWh": 10, "marginals": [10**13]},
        {"floorWh": True, "stepWh": 10, "marginals": [1]},
        {"floorWh": -1, "stepWh": 10, "marginals": [1]},
        {"stepWh": 10, "marginals": [1]},
        [],
        None,
    ],
)
def test_what_is_no_curve_is_refused(bad):
    with pytest.raises(ValueError, match="value"):
        ValueCurve.from_json(bad)


def test_a_curve_is_kept_as_it_is():
    assert ValueCurve.from_json(STEEP.to_json()) == STEEP
    assert (STEEP.marginal(0), STEEP.marginal(2_000), STEEP.marginal(99_999)) == (
        500_000,
        400_000,
        0,
    )


def test_a_full_battery_sells_nothing_of_what_rounding_leaves_above_the_last_segment():
    """Forty segments of 180 Wh end 27 Wh below the ceiling of 8.03 kWh; those are worth as much."""
    battery = Battery(8_030, 4_000, 4_000, soc_min_permille=100)
    curve = ValueCurve(battery.floor_wh, 180, (200_000,) * 40)
    bare = Terms(import_price=300_000, export_price=80_000)
    assert battery.ceiling_wh > battery.floor_wh + 40 * 180
    assert dispatch(0, battery.ceiling_wh, curve, battery, bare, SECONDS) == 0
    assert curve.marginal(battery.ceiling_wh) == 200_000
