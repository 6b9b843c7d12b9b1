"""Where addresses change, an order's price and amount are shared by many homes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hem.controller.bidding import OrderIntent
from hem.controller.discretion import ENERGY_STEP_WH, PRICE_STEP_UC_PER_KWH, discreet

orders = st.builds(
    OrderIntent, st.sampled_from(["buy", "sell"]), st.integers(1, 5_000), st.integers(0, 10**6)
)


def always(_orders):
    return True


@given(order=orders, chance=st.floats(0, 1, exclude_max=True))
def test_every_order_is_in_whole_steps_and_no_dearer_for_its_owner(order, chance):
    for one in discreet([order], lambda: chance, always):
        assert one.energy_wh % ENERGY_STEP_WH == one.price_uc_per_kwh % PRICE_STEP_UC_PER_KWH == 0
        assert abs(one.energy_wh - order.energy_wh) < ENERGY_STEP_WH
        gain_uc = one.price_uc_per_kwh - order.price_uc_per_kwh
        assert 0 <= (gain_uc if order.side == "sell" else -gain_uc) < PRICE_STEP_UC_PER_KWH


@pytest.mark.parametrize("energy_wh", [20, 130, 249])
def test_nothing_is_lost_in_the_mean(energy_wh):
    rng, order, times = Random(1), OrderIntent("sell", energy_wh, 100_000), 4_000
    given_wh = sum(
        one.energy_wh for _ in range(times) for one in discreet([order], rng.random, always)
    )
    assert abs(given_wh / times - energy_wh) < 2


@given(order=orders)
def test_what_would_break_a_limit_when_rounded_up_is_rounded_down(order):
    def within(some):
        return sum(one.energy_wh for one in some) <= order.energy_wh

    assert within(discreet([order], lambda: 0.0, within))
