"""The consensus core survives what the simulator does to it; a broken rule does not."""

import pytest

from ledger.simplex import Core
from ledger.types import ValidatorSet
from sim.byzantine import (
    BelievesUnjustified,
    Equivocator,
    FinalizesAfterNullify,
    Forker,
    Lazy,
    NeverRepairs,
    Silent,
    WeakQuorum,
)
from sim.consensus import CALM, Faults, run

ROUGH = Faults(drop=0.25, duplicate=0.15, delay_s=(0.001, 0.25), partitions=3, crashes=10)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_without_faults_everything_is_final_and_no_view_is_lost(n):
    result = run(seed=1, n=n, faults=CALM)
    assert result.violations == []
    assert result.transactions_final == 60
    assert result.nullified_views == 0
    assert result.epochs > 2


@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_safe_always_and_live_after_healing(seed, n):
    result = run(seed=seed, n=n, faults=ROUGH)
    assert result.violations == []
    assert result.transactions_final == 60


def test_one_seed_is_one_run():
    first, again, other = (run(seed=s, n=4, faults=ROUGH) for s in (11, 11, 12))
    assert first.log_hash == again.log_hash != other.log_hash


def test_crashes_lose_and_repeat_nothing():
    for seed in range(4):
        result = run(seed=seed, n=4, faults=Faults(crashes=25, lost_blocks_max=3))
        assert result.violations == []


def test_an_idle_chain_does_not_grow():
    few = run(seed=3, n=4, faults=CALM, transactions=1, end_s=60.0)
    assert few.violations == []
    assert set(few.heights.values()) == {1}
    assert few.nullified_views == 0
    # To 3 others each: 1 proposal, 3 + 4 votes, its finalization, and that once more because the
    # block sealed an epoch and the new one has none to show.
    assert few.messages == 30


@pytest.mark.parametrize(
    ("n", "byzantine"),
    [
        (4, {2: Silent}),
        (4, {2: Lazy}),
        (4, {2: Equivocator}),
        (7, {1: Equivocator, 4: Equivocator}),
        (7, {1: Equivocator, 4: Silent}),
        (7, {0: Forker, 3: Equivocator}),
    ],
)
def test_up_to_f_byzantine_validators_change_nothing(n, byzantine):
    for seed in (5, 9):
        result = run(seed=seed, n=n, byzantine=byzantine)
        assert result.violations == []
        assert result.transactions_final == 60


def test_an_equivocator_is_caught():
    assert run(seed=1, n=4, faults=CALM, byzantine={1: Equivocator}).evidence == {1}


def test_two_machines_with_one_key_are_one_byzantine_validator():
    for seed in (0, 1):
        result = run(seed=seed, n=4, twins=frozenset({2}))
        assert result.violations == []
        assert result.evidence <= {2}


def test_a_silent_leader_soon_gets_no_time():
    patient = run(seed=2, n=4, faults=CALM, byzantine={1: Silent}, submit_s=15.0, transactions=300)
    assert patient.violations == []
    assert patient.transactions_final == 300


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("quorum 2f", {"validator_set": WeakQuorum, "byzantine": {1: Equivocator}}),
        ("finalize after nullify", {"core": FinalizesAfterNullify}),
        ("no log on restart", {"keep_log": False, "faults": Faults(crashes=12)}),
        ("no repair", {"core": NeverRepairs}),
        ("no justify", {"core": BelievesUnjustified, "byzantine": {1: Forker}}),
    ],
)
def test_a_broken_rule_is_noticed(name, plan):
    honest = {"validator_set": ValidatorSet, "core": Core, "keep_log": True}
    found = [run(seed=seed, n=4, **plan).violations for seed in range(5)]
    assert any(found), name
    unbroken = [run(seed=seed, n=4, **{**plan, **honest}).violations for seed in range(2)]
    assert not any(unbroken), "the plan fails without the broken rule too"


def test_seed_9_with_an_equivocator_everybody_learns_the_end():
    """A validator that missed the last messages before silence stayed behind for good."""
    assert run(seed=9, n=4, byzantine={1: Equivocator}).violations == []
