"""All homes change their addresses at the same slots, and show themselves by the same draw."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.chain_builder import FIRST_SLOT, grant_for, key

from wire.certificates import AddressGrant, parse
from wire.rotation import Rotation, public_ms
from wire.slots import SlotGrid

LENGTHS = st.sampled_from([4, 60, 900, 3_600])
RULES = st.builds(
    Rotation,
    LENGTHS.map(SlotGrid),
    address_slots=st.integers(1, 96),
    ahead_slots=st.integers(2, 24),
)
SLOTS = st.integers(0, 10**8)
CHANCES = st.floats(0, 1, exclude_max=True)


@given(RULES, SLOTS)
def test_each_slot_is_in_one_period_and_periods_follow_without_gap(rule, slot):
    period = rule.period(slot)
    assert rule.first_slot(period) <= slot <= rule.last_slot(period)
    assert rule.last_slot(period) + 1 == rule.first_slot(period + 1)
    assert rule.last_slot(period) - rule.first_slot(period) + 1 == rule.address_slots


@given(RULES, SLOTS, CHANCES)
def test_an_address_is_registered_before_it_is_funded_before_its_first_order(rule, slot, chance):
    period, grid = rule.period(slot), rule.grid
    first, last = rule.first_slot(period), rule.last_slot(period)
    registered_ms = rule.register_ms(period, chance)
    begin_ms = grid.start_ms(first - rule.ahead_slots - rule.address_slots)
    assert begin_ms <= registered_ms < grid.start_ms(first - rule.ahead_slots)
    funded_ms = rule.fund_ms(period, chance)
    assert registered_ms < funded_ms < grid.start_ms(first - 1), "orders for it leave in that slot"
    assert rule.deposit_ms(period, 1, chance) >= grid.end_ms(last + 1), "it is settled by then"


@given(RULES, SLOTS, st.integers(0, 10_000), st.integers(0, 10_000))
def test_the_public_time_tells_the_slot_and_nothing_of_a_clock(rule, slot, one, other):
    length_ms = rule.grid.length_s * 1000
    start_ms = rule.grid.start_ms(slot)
    shown = {public_ms(rule.grid, start_ms + offset % length_ms) for offset in (one, other)}
    assert shown == {start_ms}


def test_what_is_withdrawn_depends_on_the_grant_alone():
    rule = Rotation(SlotGrid(), 4, 2)
    grant = parse(AddressGrant, grant_for(key("home"), max_buy_wh=2_000, max_sell_wh=5_000))
    assert rule.float_uc(grant, 300_000) == 2 * 4 * 1_500_000


def test_slots_of_two_periods_are_never_together():
    rule = Rotation(SlotGrid(), 4, 2)
    first = rule.first_slot(rule.period(FIRST_SLOT))
    found = list(rule.by_period(range(first + 2, first + 9)))
    assert found == [[first + 2, first + 3], [first + i for i in range(4, 8)], [first + 8]]
