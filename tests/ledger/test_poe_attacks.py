"""Each attack on Proof of Energy that is told in docs/concepts/consensus.md, and its counter."""

import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.chain_builder import FIRST_SLOT, VALIDATORS, Chain, cpf, slot_ms

from ledger.genesis import Poe
from ledger.poe import Candidate, Eligibility, Ineligible, Window, leader_order
from ledger.protocol import conflict
from ledger.types import Vote, VoteKind
from sim.consensus import CALM, Node, run
from wire.cpf import Q16, cpf_q16

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "docs/concepts/consensus.md"
RULES = Poe()
RULE = Eligibility(RULES.min_energy_wh, RULES.min_production_wh)
HONEST = [Candidate(f"v{number}", f"c{number}", Q16 // 2) for number in range(8)]
SLOTS_WH = st.lists(
    st.tuples(st.integers(-3000, 3000), st.integers(0, 3000)), min_size=2, max_size=8
)


def share(candidates, ids, mode="smooth"):
    """Share of the turns of a whole round of the schedule."""
    order = leader_order(candidates, RULES.base, mode, b"seed")
    return sum(candidates[turn].id in ids for turn in order) / len(order)


# --- what is reported -----------------------------------------------------------------------------


@given(st.integers(1, 8))
def test_zero_zero_has_no_cpf_and_is_not_eligible(slots):
    zeros = [0] * slots
    assert cpf_q16(zeros, zeros, RULES.kappa_milli) == 0
    assert RULE.refusal(Window(zeros, zeros)) is Ineligible.TOO_LITTLE_ENERGY


@given(SLOTS_WH, st.integers(1, 1000))
def test_no_choice_of_unit_raises_the_cpf(slots, factor):
    nets, made = zip(*slots, strict=True)
    assert cpf_q16(nets, made, 1000) == cpf_q16(
        [factor * one for one in nets], [factor * one for one in made], 1000
    )


def test_production_that_no_meter_signed_does_not_come_to_the_chain():
    """Fake P or C: a number under the host's own key instead of the meter's is refused."""
    chain = Chain()
    said = cpf(VALIDATORS[0], FIRST_SLOT + 7, Q16, chain.chain_id)
    true = said["attestation"]
    others = cpf(VALIDATORS[1], FIRST_SLOT + 7, Q16, chain.chain_id)["attestation"]
    chain.block(slot_ms(FIRST_SLOT + 8, 1))
    for forged in (
        {**true, "cpf_q16": true["cpf_q16"] - 1},
        {**true, "start_slot": FIRST_SLOT - 1, "end_slot": FIRST_SLOT + 6},
        {**true, "signature": others["signature"]},
        {**others, "validator": VALIDATORS[0].id},
    ):
        codes = chain.codes(
            chain.ledger.time_ms + 1, VALIDATORS[0], {**said, "attestation": forged}
        )
        assert codes == ["BAD_SIGNATURE"]
    assert chain.codes(chain.ledger.time_ms + 1, VALIDATORS[0], said) == ["OK"]


@given(SLOTS_WH, st.integers(1, 3000))
def test_battery_round_trips_in_any_two_slots_never_help_a_home_that_is_balanced(slots, energy_wh):
    made = [one for _, one in slots]
    assume(sum(made) >= RULES.min_production_wh)
    still = cpf_q16([0] * len(made), made, 1000)
    round_trip = [energy_wh, -energy_wh, *[0] * (len(made) - 2)]
    assert cpf_q16(round_trip, made, 1000) <= still


def test_wasting_ones_surplus_costs_it_and_brings_turns_within_the_cap():
    """A real CPF: consumption in the slot of production. What it brings is bounded."""
    made, sold = [500] * 8, [-400] * 8
    before, after = cpf_q16(sold, made, 1000), cpf_q16([0] * 8, made, 1000)
    assert before < after == Q16
    homes = [*HONEST, Candidate("waster", "waster", after)]
    assert share(homes, {"waster"}) < 2 / 9
    assert share(homes, {"waster"}, "strict") == 1 / 9


@pytest.mark.parametrize("meters", range(1, 13))
def test_many_meters_of_one_controller_get_a_quarter_of_the_turns_at_most(meters):
    homes = [*HONEST, *(Candidate(f"s{number}", "sybil", Q16) for number in range(meters))]
    ids = {f"s{number}" for number in range(meters)}
    rounding = len(ids) / len(leader_order(homes, RULES.base, "smooth", b"seed"))
    assert share(homes, ids) <= 1 / 4 + rounding


# --- who draws the lots ---------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.integers(0, 7))
def test_lots_decide_between_equals_only(seed, best):
    homes = [
        Candidate(f"v{number}", f"c{number}", 1000 + 50 * (number == best)) for number in range(8)
    ]
    assert leader_order(homes, RULES.base, "smooth", seed)[0] == best
    assert leader_order(homes, RULES.base, "strict", seed)[0] == best


# --- votes ----------------------------------------------------------------------------------------


def test_nothing_at_stake_every_vote_that_could_help_two_forks_is_evidence():
    """Two votes of one view either exclude each other and are evidence, or serve one block."""
    one, other = b"\1" * 32, b"\2" * 32
    said = [
        Vote(0, 5, kind, block, 1, b"")
        for kind, block in product((VoteKind.NOTARIZE, VoteKind.FINALIZE), (one, other))
    ]
    for first, second in product(said, said):
        both = {(vote.kind, vote.block_hash) for vote in (first, second)}
        helps_two = first.kind == second.kind and len({name for _, name in both}) == 2
        assert not helps_two or conflict(first, second)


class Censor(Node):
    """Leads with blocks that leave out what it does not like."""

    def choose(self, taken):
        return [txid for txid in super().choose(taken) if txid[0] >= 128]


@pytest.mark.parametrize(("n", "censors"), [(4, {2}), (7, {1, 4})])
def test_what_up_to_f_censors_leave_out_is_final_with_the_next_honest_leader(n, censors):
    result = run(seed=4, n=n, faults=CALM, byzantine=dict.fromkeys(censors, Censor))
    assert result.violations == []
    assert result.transactions_final == 60


# --- the document ---------------------------------------------------------------------------------


def test_every_test_that_the_document_names_exists():
    text = DOCUMENT.read_text(encoding="utf-8")
    attacks = text[text.index("## Attacks") : text.index("## How it is tested")]
    rows = [line for line in attacks.splitlines() if line.startswith("| **")]
    assert len(rows) >= 15
    written = {
        path.name: path.read_text(encoding="utf-8") for path in REPOSITORY.glob("tests/*/test_*.py")
    }
    for row in rows:
        named = re.findall(r"`(?:tests/)?(?:\w+/)?(test_\w+\.py)?(?:::)?(test_\w+)`", row)
        assert named, f"no test named: {row[:60]}"
        for file, name in named:
            places = [written[file]] if file else list(written.values())
            assert any(f"def {name}(" in text for text in places), f"{file}::{name}"
