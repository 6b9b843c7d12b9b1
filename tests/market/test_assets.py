"""Energy assets: splitting and merging lose nothing and create nothing."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.assets import (
    EnergyAsset,
    Kind,
    energy_at,
    exchange,
    is_sound,
    merge,
    split_energy,
    split_interval,
    subtract,
)

LAST = 12
MANY = settings(max_examples=max(1000, settings().max_examples))


def produce(energy_wh, start, end):
    return EnergyAsset(Kind.PRODUCTION, energy_wh, start, end)


def consume(energy_wh, start, end):
    return EnergyAsset(Kind.CONSUMPTION, energy_wh, start, end)


@st.composite
def an_asset(draw, kind=Kind.PRODUCTION):
    start, end = sorted(draw(st.tuples(st.integers(0, LAST), st.integers(0, LAST))))
    return EnergyAsset(kind, draw(st.integers(1, 500)), start, end)


assets = st.lists(an_asset(), max_size=5)


def profile(held):
    """Energy in each slot: what a holding is, however it is written."""
    return [energy_at(held, slot) for slot in range(LAST + 2)]


def test_a_small_asset_inside_a_large_one_leaves_three_parts():
    """Peers kept the residual of the common slots only and lost the rest of the interval."""
    result = exchange(produce(300, 40, 43), [consume(100, 41, 42)])
    assert result.traded == (produce(100, 41, 42),)
    assert result.first_rest == (produce(300, 40, 40), produce(200, 41, 42), produce(300, 43, 43))
    assert result.second_rest == ()


def test_a_large_asset_given_for_a_small_one_comes_back_in_three_parts():
    result = exchange(consume(100, 41, 42), [produce(300, 40, 43)])
    assert result.traded == (consume(100, 41, 42),)
    assert result.second_rest == (produce(300, 40, 40), produce(200, 41, 42), produce(300, 43, 43))


def test_intervals_that_do_not_overlap_trade_nothing():
    first, second = produce(300, 40, 41), consume(300, 42, 43)
    result = exchange(first, [second])
    assert (result.traded, result.first_rest, result.second_rest) == ((), (first,), (second,))


def test_several_assets_are_given_as_their_sum():
    result = exchange(produce(100, 1, 4), [consume(60, 1, 2), consume(60, 2, 3)])
    assert result.traded == (produce(60, 1, 1), produce(100, 2, 2), produce(60, 3, 3))
    assert result.second_rest == (consume(20, 2, 2),)


@pytest.mark.parametrize("energy_wh", [0, -1, 100, 101])
def test_a_split_by_energy_leaves_no_side_empty(energy_wh):
    with pytest.raises(ValueError, match="split"):
        split_energy(produce(100, 1, 2), energy_wh)


@pytest.mark.parametrize("slot", [0, 1, 4])
def test_a_split_by_interval_leaves_no_side_empty(slot):
    with pytest.raises(ValueError, match="split"):
        split_interval(produce(100, 1, 3), slot)


def test_production_and_consumption_do_not_mix():
    with pytest.raises(ValueError, match="add up"):
        merge([produce(1, 1, 1), consume(1, 1, 1)])
    with pytest.raises(ValueError, match="exchanged"):
        exchange(produce(1, 1, 1), [produce(1, 1, 1)])


def test_more_than_is_held_cannot_be_taken():
    with pytest.raises(ValueError, match="too much"):
        subtract([produce(5, 1, 3)], [produce(6, 2, 2)])


@pytest.mark.parametrize("bad", [produce(0, 1, 2), produce(5, 3, 2), produce(5, -1, 2)])
def test_an_asset_of_nothing_is_not_sound(bad):
    assert not is_sound(bad)


@MANY
@given(an_asset(), st.data())
def test_split_and_merge_by_energy_is_a_round_trip(asset, data):
    if asset.energy_wh > 1:
        parts = split_energy(asset, data.draw(st.integers(1, asset.energy_wh - 1)))
        assert merge(parts) == (asset,)


@MANY
@given(an_asset(), st.data())
def test_split_and_merge_by_interval_is_a_round_trip(asset, data):
    if asset.start_slot < asset.end_slot:
        parts = split_interval(asset, data.draw(st.integers(asset.start_slot + 1, asset.end_slot)))
        assert merge(parts) == (asset,)


@MANY
@given(assets, st.permutations(range(5)))
def test_merging_keeps_every_slot_and_does_not_care_for_order(held, order):
    merged = merge(held)
    assert profile(merged) == profile(held)
    assert merge(held[i] for i in order if i < len(held)) == merged
    assert merge(merged) == merged
    ends = [(one.start_slot, one.end_slot) for one in merged]
    assert all(before[1] < after[0] for before, after in pairwise(ends))
    for before, after in pairwise(merged):
        assert before.end_slot + 1 < after.start_slot or before.energy_wh != after.energy_wh


@MANY
@given(assets, assets)
def test_what_was_merged_in_can_be_taken_out(held, more):
    assert subtract([*held, *more], more) == merge(held)


@MANY
@given(an_asset(), st.lists(an_asset(Kind.CONSUMPTION), max_size=4))
def test_an_exchange_gives_every_watt_hour_to_one_of_three(first, second):
    """Traded + returned = given, on both sides, in every slot; the smaller energy is traded."""
    result = exchange(first, second)
    traded = profile(result.traded)
    mine, theirs = profile([first]), profile(second)
    assert traded == [min(pair) for pair in zip(mine, theirs, strict=True)]
    left = [a - b for a, b in zip(mine, traded, strict=True)]
    assert profile(result.first_rest) == left
    returned = [a - b for a, b in zip(theirs, traded, strict=True)]
    assert profile(result.second_rest) == returned
