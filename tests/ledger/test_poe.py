"""Proof of Energy orders leaders by CPF, gives everybody a turn, and cannot be gamed cheaply."""

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.genesis import Poe
from ledger.poe import (
    Q16,
    Candidate,
    Eligibility,
    Ineligible,
    Window,
    build_schedule,
    cpf_q16,
    leader_order,
    limit_controllers,
    schedule_root,
    schedule_seed,
)

RULE = Eligibility(min_energy_wh=200, min_production_wh=100)
BASE = 16_384


def homes(*cpfs, controllers=None):
    names = controllers or [f"home-{i}" for i in range(len(cpfs))]
    return [
        Candidate(f"v{i}", name, cpf) for i, (name, cpf) in enumerate(zip(names, cpfs, strict=True))
    ]


def test_the_first_leader_is_the_one_tmi_elects():
    assert leader_order(homes(100, 60_000, 30_000, 0), BASE, "smooth", b"")[0] == 1
    assert leader_order(homes(100, 60_000, 30_000, 0), BASE, "strict", b"") == (1, 2, 0, 3)


@given(st.lists(st.integers(0, Q16), min_size=1, max_size=31), st.integers(0, 100_000))
def test_everybody_has_a_turn_and_the_best_leads_first(cpfs, base):
    order = leader_order(homes(*cpfs), base, "smooth", b"seed")
    assert set(order) == set(range(len(cpfs)))
    assert len(order) <= 65 * len(cpfs)
    if len(cpfs) > 2 and max(cpfs) > 0 and cpfs.count(max(cpfs)) == 1 and base >= max(cpfs):
        assert cpfs[order[0]] == max(cpfs)


def test_turns_are_shared_in_proportion_to_base_and_cpf():
    order = leader_order(homes(BASE * 3, BASE, BASE, BASE), BASE, "smooth", b"")
    turns = Counter(order)
    for index, share in enumerate((0.4, 0.2, 0.2, 0.2)):
        assert abs(turns[index] - share * len(order)) <= 1


def test_the_turns_of_the_best_are_spread_out():
    order = leader_order(homes(Q16, 0, 0, 0), BASE, "smooth", b"")
    assert order.count(0) > len(order) // 3
    assert max(len(list(run)) for _, run in groupby(order)) == 2


@pytest.mark.parametrize("mode", ["smooth", "strict"])
@given(st.lists(st.tuples(st.integers(0, Q16), st.booleans()), min_size=1, max_size=12))
def test_the_banned_have_no_turn_and_the_others_have_theirs_as_before(mode, who):
    every = [
        Candidate(f"v{i}", f"home-{i % 3}", cpf, banned) for i, (cpf, banned) in enumerate(who)
    ]
    order = leader_order(every, BASE, mode, b"seed")
    free = [i for i, (_, banned) in enumerate(who) if not banned] or list(range(len(who)))
    alone = leader_order([every[i] for i in free], BASE, mode, b"seed")
    assert order == tuple(free[i] for i in alone)
    assert set(order) == set(free)


def test_the_seed_of_an_epoch_depends_on_the_chains_and_on_its_base():
    assert len({schedule_seed(seed, height) for seed in (b"", b"s") for height in (0, 1)}) == 4
    rules = Poe(base=BASE)
    assert build_schedule(rules, homes(5, 5, 5, 5), b"\x01") == leader_order(
        homes(5, 5, 5, 5), BASE, "smooth", b"\x01"
    )


def test_ties_go_by_lot_and_the_seed_decides():
    orders = {leader_order(homes(5, 5, 5, 5), BASE, "smooth", bytes([s]))[0] for s in range(40)}
    assert orders == {0, 1, 2, 3}
    again = leader_order(homes(5, 5, 5, 5), BASE, "smooth", b"\x01")
    assert again == leader_order(homes(5, 5, 5, 5), BASE, "smooth", b"\x01")


def test_one_controller_gets_a_quarter_at_most():
    controllers = ["giant"] * 6 + [f"small-{i}" for i in range(12)]
    weights = limit_controllers([80_000] * 6 + [20_000] * 12, controllers)
    assert sum(weights[:6]) * 4 <= sum(weights)
    assert weights[6:] == [20_000] * 12


def test_among_four_controllers_the_cpf_still_counts():
    weights = limit_controllers([80_000, 40_000, 20_000, 20_000], list("abcd"))
    assert weights[0] > weights[1] > weights[2] == weights[3]
    assert weights[0] * 2 <= sum(weights)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_controllers_are_left_alone(count):
    assert limit_controllers([7, 5][:count], ["a", "b"][:count]) == [7, 5][:count]


def test_a_vacant_house_is_not_eligible():
    assert RULE.refusal(Window([0, 0], [0, 0])) is Ineligible.TOO_LITTLE_ENERGY


def test_a_consumer_without_production_is_not_eligible():
    assert RULE.refusal(Window([500], [0])) is Ineligible.TOO_LITTLE_PRODUCTION


def test_a_gap_or_a_ban_is_not_eligible():
    assert RULE.refusal(Window([0, None], [500, 500])) is Ineligible.GAP
    assert RULE.refusal(Window([0], [500, 500])) is Ineligible.GAP
    assert RULE.refusal(Window([], [])) is Ineligible.GAP
    assert RULE.refusal(Window([0], [500]), banned=True) is Ineligible.BANNED
    assert RULE.refusal(Window([0], [500])) is None


def test_a_battery_round_trip_gains_nothing():
    """Charging from the grid in one slot and giving it back in the next is imbalance twice."""
    quiet = cpf_q16([0, 0], [500, 500], 1000)
    churn = cpf_q16([800, -800], [500, 500], 1000)
    assert churn < quiet


def test_a_schedule_has_a_root_of_its_own():
    assert schedule_root((0, 1, 2)) != schedule_root((0, 2, 1))
