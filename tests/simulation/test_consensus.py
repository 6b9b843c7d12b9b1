"""The consensus core survives what the simulator does to it; a broken rule does not."""

import pytest

from ledger.poe import Candidate, leader_order
from ledger.simplex import Core
from ledger.types import ValidatorSet
from sim.byzantine import (
    BelievesUnjustified,
    Equivocator,
    FalseCpf,
    FinalizesAfterNullify,
    Forker,
    Lazy,
    NeverRepairs,
    Reexecutes,
    Repeater,
    Silent,
    TwoFaced,
    WeakQuorum,
)
from sim.consensus import CALM, Faults, Node, run
from sim.schedules import MIXES, play
from wire.cpf import Q16

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
        (4, {2: Repeater}),
        (7, {2: FalseCpf, 5: Repeater}),
        (4, {2: TwoFaced}),
        (7, {1: TwoFaced, 5: TwoFaced}),
    ],
)
def test_up_to_f_byzantine_validators_change_nothing(n, byzantine):
    for seed in (5, 9):
        result = run(seed=seed, n=n, byzantine=byzantine)
        assert result.violations == []
        assert result.transactions_final == 60


def test_an_equivocator_is_caught():
    assert run(seed=1, n=4, faults=CALM, byzantine={1: Equivocator}).evidence == {1}


@pytest.mark.parametrize("n", [4, 7])
def test_a_broker_that_shows_everybody_something_else_makes_no_fork(n):
    """Whom it shows what is settled anew, time and again; it may be in league with liars."""
    places = range((n - 1) // 3)
    for byzantine in ({}, dict.fromkeys(places, TwoFaced)):
        for seed in (0, 1):
            result = run(seed=seed, n=n, faults=MIXES["split-broker"], byzantine=byzantine)
            assert result.violations == []
            assert result.transactions_final == 60
            assert result.hidden > 300, "it hid too little to mean anything"


def test_two_machines_with_one_key_are_one_byzantine_validator():
    for seed in (0, 1):
        result = run(seed=seed, n=4, twins=frozenset({2}))
        assert result.violations == []
        assert result.evidence <= {2}


def test_a_silent_leader_soon_gets_no_time():
    patient = run(seed=2, n=4, faults=CALM, byzantine={1: Silent}, submit_s=15.0, transactions=300)
    assert patient.violations == []
    assert patient.transactions_final == 300


HONEST = {"validator_set": ValidatorSet, "core": Core, "node": Node, "keep_log": True}
MUTANTS = [
    # rule that is broken, how, and within how many seeds (0, 1, 2 …) it is noticed
    ("quorum 2f", {"validator_set": WeakQuorum, "byzantine": {1: Equivocator}}, 1),
    ("finalize after nullify", {"core": FinalizesAfterNullify}, 10),
    ("no log on restart", {"keep_log": False, "faults": Faults(crashes=12)}, 5),
    ("no repair", {"core": NeverRepairs}, 2),
    ("no justify", {"core": BelievesUnjustified, "byzantine": {1: Forker}}, 1),
    ("executed twice", {"node": Reexecutes, "byzantine": {1: Repeater}}, 1),
]


@pytest.mark.parametrize(("name", "plan", "within"), MUTANTS, ids=[one[0] for one in MUTANTS])
def test_a_broken_rule_is_noticed_within_so_many_seeds(name, plan, within):
    found = (run(seed=seed, n=4, **plan).violations for seed in range(within))
    assert any(found), name
    unbroken = [run(seed=seed, n=4, **{**plan, **HONEST}).violations for seed in range(2)]
    assert not any(unbroken), "the plan fails without the broken rule too"


def test_seed_9_with_an_equivocator_everybody_learns_the_end():
    """A validator that missed the last messages before silence stayed behind for good."""
    assert run(seed=9, n=4, byzantine={1: Equivocator}).violations == []


def test_seed_150_the_order_of_signing_counts_not_that_of_publishing():
    """A false alarm: a logged NOTARIZE was published only after the crash and a NULLIFY."""
    assert run(seed=150, n=4, faults=MIXES["crashes"]).violations == []


def test_seed_20173_a_slow_network_is_given_the_time_that_the_bound_allows():
    """A false alarm: messages took up to 0.5 s, more than three times Δ0, also after healing."""
    slow = {"byzantine": {3: Silent, 5: Silent}, "faults": MIXES["disorder"]}
    assert run(seed=20173, n=7, **slow).violations == []


@pytest.mark.parametrize("seed", [4065, 7116, 9375])
def test_a_sender_goes_on_when_all_who_had_its_transaction_have_crashed(seed):
    """Of 20,000 runs three ended with transactions that only crashed memories had held."""
    assert play(seed, 4).violations == ()


def test_the_best_cpf_there_is_brings_a_limited_share_of_the_turns_and_no_fork():
    """CPF orders leaders and weighs no vote: a lie is unfair, and cannot be unsafe."""
    honest = [Candidate(f"v{index}", f"v{index}", Q16 // 2) for index in range(6)]
    liar = Candidate("liar", "liar", Q16)
    turns = leader_order([liar, *honest], Q16 // 4, "smooth", b"seed")
    assert turns[0] == 0
    assert turns.count(0) / len(turns) < 1 / 4
    for seed in range(3):
        assert run(seed=seed, n=4, byzantine={0: FalseCpf}).violations == []


def test_torn_and_garbled_logs_are_cut_and_nothing_said_is_forgotten():
    torn = 0

    class Watched(Node):
        def _open_log(self):
            nonlocal torn
            before = len(self.disk)
            entries = super()._open_log()
            torn += len(self.disk) < before
            return entries

    for seed in range(4):
        faults = Faults(drop=0.02, partitions=0, crashes=25)
        assert run(seed=seed, n=4, node=Watched, faults=faults).violations == []
    assert torn > 5, "the simulator tears too few writes to mean anything"
