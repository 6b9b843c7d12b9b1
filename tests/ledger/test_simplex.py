"""Rules R1 to R6 of the consensus core, one at a time, with real signatures."""

import msgspec
import pytest

from ledger.judging import BLOCK_BUDGET
from ledger.node import MAX_PROPOSAL_BYTES
from ledger.protocol import (
    BodiesReady,
    BroadcastCertificate,
    BroadcastProposal,
    BroadcastVote,
    CertificateReceived,
    CertificateRecord,
    Content,
    EnterView,
    Epoch,
    Evidence,
    Finalized,
    KeyCrypto,
    MarkRecord,
    Persist,
    ProposalBuilt,
    ProposalReceived,
    ProposalRecord,
    Refused,
    RequestMissing,
    RequestNullifications,
    RequestProposal,
    SetTimer,
    Start,
    Timer,
    TimerFired,
    ValidateProposal,
    VoteReceived,
    VoteRecord,
    WorkAvailable,
    decode_record,
    encode_record,
)
from ledger.simplex import Core
from ledger.types import (
    INLINE_BYTES,
    ZERO_HASH,
    Justify,
    ValidatorSet,
    VoteKind,
    encode,
    genesis_hash,
    header_hash,
    justify_hash,
    make_certificate,
    make_vote,
    verify_certificate,
    verify_finality,
)
from wire.errors import Refusal
from wire.keys import SigningKey

CHAIN = "hg-test"
KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 5)]
VALIDATORS = ValidatorSet(tuple(key.id for key in KEYS), tuple(key.public for key in KEYS))
EPOCH = Epoch(
    chain_id=CHAIN,
    epoch=3,
    validators=VALIDATORS,
    schedule=(0, 1, 2, 3),
    base_hash=genesis_hash(CHAIN),
    base_time_ms=1000,
    delta_s=1.0,
)
NOTARIZE, NULLIFY, FINALIZE = VoteKind


def make_core(me, epoch=EPOCH):
    return Core(epoch, me, KeyCrypto(CHAIN, VALIDATORS, None if me is None else KEYS[me]))


def started(me, epoch=EPOCH):
    core = make_core(me, epoch)
    core.step(Start(), 0.0)
    return core


def content(time_ms=2000, txids=(), **changes):
    return Content(txids, 0, ZERO_HASH, ZERO_HASH, time_ms, **changes)


def vote(index, view, kind, block_hash=ZERO_HASH, epoch=3):
    return make_vote(KEYS[index], CHAIN, index, epoch, view, kind, block_hash)


def certificate(view, kind, block_hash=ZERO_HASH, by=(0, 1, 2)):
    return make_certificate([vote(index, view, kind, block_hash) for index in by])


def of(kind, effects):
    return [effect for effect in effects if isinstance(effect, kind)]


def said(effects):
    return [(one.vote.view, one.vote.kind) for one in of(BroadcastVote, effects)]


def propose(core, **changes):
    """Let `core`, who leads, propose; the effects and the proposal."""
    (request,) = of(RequestProposal, core.step(WorkAvailable(True), 0.0))
    effects = core.step(ProposalBuilt(request.view, request.parent_hash, content(**changes)), 0.0)
    (sent,) = of(BroadcastProposal, effects)
    return effects, sent.proposal


def accept(core, proposal):
    """Give a proposal to `core` and call its content good."""
    block_hash = header_hash(proposal.header)
    effects = core.step(ProposalReceived(proposal), 0.0)
    return effects + core.step(BodiesReady(block_hash, True), 0.0)


def first_block(**changes):
    return propose(started(0), **changes)[1]


# --- R1, R2, R3, R5 -------------------------------------------------------------------------------


def test_the_leader_asks_for_a_block_and_publishes_it_after_logging_it():
    effects, proposal = propose(started(0))
    log, send = of(Persist, effects)[0], of(BroadcastProposal, effects)[0]
    assert log.durable and log.record == ProposalRecord(proposal)
    assert effects.index(log) < effects.index(send)
    assert proposal.justify == Justify(None)
    assert proposal.header.height == 1


def test_a_leader_proposes_once():
    core = started(0)
    (request,) = of(RequestProposal, core.step(WorkAvailable(True), 0.0))
    built = ProposalBuilt(request.view, request.parent_hash, content())
    assert of(BroadcastProposal, core.step(built, 0.0))
    assert core.step(built, 0.0) == []
    assert of(RequestProposal, core.step(WorkAvailable(True), 0.0)) == []


def test_a_validator_notarizes_the_first_valid_proposal_once_and_logs_it_first():
    core, proposal = started(1), first_block()
    effects = core.step(ProposalReceived(proposal), 0.0)
    assert said(effects) == []
    (ask,) = of(ValidateProposal, effects)
    assert ask.parent is None and not ask.empty
    effects = core.step(BodiesReady(ask.block_hash, True), 0.0)
    assert said(effects) == [(1, NOTARIZE)]
    records = [one.record for one in of(Persist, effects)]
    assert records == [ProposalRecord(proposal), VoteRecord(of(BroadcastVote, effects)[0].vote)]
    assert effects.index(of(Persist, effects)[-1]) < effects.index(of(BroadcastVote, effects)[0])
    assert core.step(ProposalReceived(proposal), 0.0) == []


def test_an_invalid_body_is_answered_with_nullify():
    core, proposal = started(1), first_block()
    core.step(ProposalReceived(proposal), 0.0)
    effects = core.step(BodiesReady(header_hash(proposal.header), False), 0.0)
    assert said(effects) == [(1, NULLIFY)]


@pytest.mark.parametrize(
    "changes",
    [
        {"n_tx": 7}, {"height": 2}, {"validators_hash": b"\x01" * 32}, {"time_ms": 1000},
        {"schedule_root": b"\x01" * 32}, {"tx_root": b"\x01" * 32}, {"exec_height": 1},
        {"justify_hash": b"\x01" * 32}, {"seal": True}, {"parent_hash": b"\x01" * 32},
    ],
)  # fmt: skip
def test_a_proposal_wrong_on_its_face_is_refused_and_nullified(changes):
    proposal = first_block()
    header = msgspec.structs.replace(proposal.header, **changes)
    signature = vote(0, 1, NOTARIZE, header_hash(header)).signature
    bad = msgspec.structs.replace(proposal, header=header, signature=signature)
    effects = started(1).step(ProposalReceived(bad), 0.0)
    assert of(Refused, effects)[0].reason is Refusal.MALFORMED
    assert said(effects) == [(1, NULLIFY)]


def test_only_the_leader_proposes():
    proposal = first_block()
    header = msgspec.structs.replace(proposal.header, proposer=KEYS[2].id)
    signature = vote(2, 1, NOTARIZE, header_hash(header)).signature
    stranger = msgspec.structs.replace(proposal, header=header, signature=signature)
    forged = msgspec.structs.replace(proposal, signature=signature)
    core = started(1)
    (refused,) = of(Refused, core.step(ProposalReceived(stranger), 0.0))
    assert refused.reason is Refusal.NOT_ALLOWED
    (refused,) = of(Refused, core.step(ProposalReceived(forged), 0.0))
    assert refused.reason is Refusal.BAD_SIGNATURE
    assert of(ValidateProposal, core.step(ProposalReceived(proposal), 0.0))


def test_a_quorum_notarizes_then_finalizes_and_the_proof_holds():
    core, proposal = started(1), first_block(txids=(b"\x05" * 32,))
    block_hash = header_hash(proposal.header)
    accept(core, proposal)
    effects = core.step(VoteReceived(vote(2, 1, NOTARIZE, block_hash)), 0.0)
    assert said(effects) == [(1, FINALIZE)]
    assert of(EnterView, effects) == [EnterView(2, 1, nullified=False)]
    core.step(VoteReceived(vote(2, 1, FINALIZE, block_hash)), 0.0)
    effects = core.step(VoteReceived(vote(3, 1, FINALIZE, block_hash)), 0.0)
    (final,) = of(Finalized, effects)
    assert final.blocks == (proposal,)
    assert verify_certificate(final.certificate, VALIDATORS, CHAIN)
    assert verify_finality(block_hash, final.finality(0), VALIDATORS, CHAIN)
    assert core.tree.final_height == 1


def test_a_body_that_comes_late_is_still_finalized():
    core, proposal = started(1), first_block()
    block_hash = header_hash(proposal.header)
    core.step(ProposalReceived(proposal), 0.0)
    effects = core.step(CertificateReceived(certificate(1, NOTARIZE, block_hash, (0, 2, 3))), 0.0)
    assert core.view == 2 and said(effects) == []
    assert said(core.step(BodiesReady(block_hash, True), 0.0)) == [(1, FINALIZE)]


def test_no_finalize_after_nullify():
    core, proposal = started(1), first_block()
    block_hash = header_hash(proposal.header)
    core.step(ProposalReceived(proposal), 0.0)
    assert said(core.step(TimerFired(Timer.VIEW, 1), 0.0)) == [(1, NULLIFY)]
    assert said(core.step(BodiesReady(block_hash, True), 0.0)) == []
    effects = core.step(CertificateReceived(certificate(1, NOTARIZE, block_hash, (0, 2, 3))), 0.0)
    assert core.view == 2 and said(effects) == []


def test_a_later_finalization_makes_the_ancestors_final_in_order():
    first = first_block()
    leader, follower = started(1), started(2)
    block_hash = header_hash(first.header)
    for core in (leader, follower):
        accept(core, first)
        core.step(CertificateReceived(certificate(1, NOTARIZE, block_hash, (0, 2, 3))), 0.0)
    _, second = propose(leader, time_ms=3000)
    assert second.header.parent_hash == block_hash
    accept(follower, second)
    tip = header_hash(second.header)
    effects = follower.step(CertificateReceived(certificate(2, FINALIZE, tip)), 0.0)
    (final,) = of(Finalized, effects)
    assert final.blocks == (first, second)
    assert verify_finality(block_hash, final.finality(0), VALIDATORS, CHAIN)


def test_a_transaction_of_an_unfinalised_ancestor_is_not_repeated():
    txid = b"\x05" * 32
    first = first_block(txids=(txid,))
    leader, follower = started(1), started(2)
    for core in (leader, follower):
        accept(core, first)
        block_hash = header_hash(first.header)
        core.step(CertificateReceived(certificate(1, NOTARIZE, block_hash, (0, 2, 3))), 0.0)
    (request,) = of(RequestProposal, leader.step(WorkAvailable(True), 0.0))
    assert [one.txids for one in request.ancestors] == [(txid,)]
    with pytest.raises(AssertionError, match="transaction of an ancestor"):
        leader.step(ProposalBuilt(2, request.parent_hash, content(3000, (txid,))), 0.0)


# --- R4: time -------------------------------------------------------------------------------------


def test_an_idle_chain_sets_no_timers_and_a_fired_one_says_nothing():
    core = make_core(1)
    assert of(SetTimer, core.step(Start(), 0.0)) == []
    assert core.step(TimerFired(Timer.LEAD, 1), 0.0) == []
    assert core.step(TimerFired(Timer.VIEW, 1), 0.0) == []


def test_work_starts_the_timers_and_silence_is_nullified():
    core = started(1)
    timers = of(SetTimer, core.step(WorkAvailable(True), 0.0))
    assert [(t.timer, t.seconds) for t in timers] == [
        (Timer.LEAD, 2.0), (Timer.VIEW, 3.0), (Timer.REPAIR, 1.0),
    ]  # fmt: skip
    assert said(core.step(TimerFired(Timer.LEAD, 1), 0.0)) == [(1, NULLIFY)]
    assert said(core.step(TimerFired(Timer.VIEW, 1), 0.0)) == []


def test_work_that_came_back_after_rest_gets_its_full_time():
    core = started(1)
    core.step(WorkAvailable(True), 0.0)
    core.step(WorkAvailable(False), 0.1)
    assert len(of(SetTimer, core.step(WorkAvailable(True), 1.9))) == 3


def test_a_vote_of_the_view_starts_the_timers_of_an_idle_validator():
    assert of(SetTimer, started(1).step(VoteReceived(vote(2, 1, NULLIFY)), 0.0))


def test_the_lead_timer_does_not_fire_once_a_proposal_is_here():
    core = started(1)
    core.step(ProposalReceived(first_block()), 0.0)
    assert said(core.step(TimerFired(Timer.LEAD, 1), 0.0)) == []
    assert said(core.step(TimerFired(Timer.VIEW, 1), 0.0)) == [(1, NULLIFY)]


def test_a_leader_that_nullifies_its_view_is_followed():
    effects = started(1).step(VoteReceived(vote(0, 1, NULLIFY)), 0.0)
    assert said(effects) == [(1, NULLIFY)]


def test_views_take_longer_and_longer_while_finality_lags():
    """Each one notarizes a block and none becomes final: the network is slower than Δ."""
    core = started(1)
    core.step(WorkAvailable(True), 0.0)
    deltas = []
    for view in range(1, 13):
        by_hash = certificate(view, NOTARIZE, bytes([view]) * 32, by=(0, 2, 3))
        core.step(CertificateReceived(by_hash), 0.0)
        deltas.append(core.delta_s)
        assert core.lagging == (core.delta_s > 1.0)
    assert deltas == [1.0] * 4 + [1.5**k for k in (1, 2, 3, 4, 5, 6, 6, 6)]


def test_views_without_notarization_take_longer_and_longer_up_to_a_limit():
    core = started(1)
    core.step(WorkAvailable(True), 0.0)
    deltas = []
    for view in range(1, 9):
        core.step(CertificateReceived(certificate(view, NULLIFY, by=(0, 2, 3))), 0.0)
        deltas.append(core.delta_s)
    assert deltas == [1.5**k for k in (1, 2, 3, 4, 5, 6, 6, 6)]


def test_a_leader_long_silent_gets_no_time_until_it_is_heard():
    core = started(1)
    core.step(WorkAvailable(True), 0.0)
    for view in range(1, 8):
        effects = core.step(CertificateReceived(certificate(view, NULLIFY, by=(0, 2, 3))), 0.0)
    # Validator 3 was silent in view 4 once; in view 8 a second time.
    assert core.view == 8 and of(SetTimer, effects)[0].seconds > 0
    for view in range(8, 12):
        effects = core.step(CertificateReceived(certificate(view, NULLIFY, by=(0, 1, 2))), 0.0)
    assert core.leader == 3 and of(SetTimer, effects)[0].seconds == 0.0
    core.step(VoteReceived(vote(3, 12, NULLIFY)), 0.0)
    for view in range(12, 16):
        effects = core.step(CertificateReceived(certificate(view, NULLIFY, by=(0, 1, 2))), 0.0)
    assert core.leader == 3 and of(SetTimer, effects)[0].seconds > 0


# --- Justify --------------------------------------------------------------------------------------


def test_a_later_leader_justifies_its_block_with_the_nullifications_and_is_believed():
    leader, follower = started(2), started(3)
    for view in (1, 2):
        leader.step(CertificateReceived(certificate(view, NULLIFY)), 0.0)
    _, proposal = propose(leader)
    assert [one.view for one in proposal.justify.nullifications] == [1, 2]
    effects = accept(follower, proposal)
    assert follower.view == 3, "the justify alone brings a latecomer into the view"
    assert said(effects) == [(3, NOTARIZE)]


def test_after_many_failed_views_a_proposal_still_fits_into_a_message():
    views = 700
    leader, follower = started(0), started(1)
    for view in range(1, views + 1):
        leader.step(CertificateReceived(certificate(view, NULLIFY)), 0.0)
    assert leader.view == 701 and leader.leader == 0
    txids = tuple(number.to_bytes(32, "big") for number in range(BLOCK_BUDGET.transactions))
    _, proposal = propose(leader, txids=txids)
    assert len(encode(proposal)) < MAX_PROPOSAL_BYTES
    shown = proposal.justify.nullifications
    assert [one.view for one in shown] == list(range(701 - len(shown), 701)) and len(shown) > 50

    # who lacks the others asks for them, and votes when they have come
    effects = follower.step(ProposalReceived(proposal), 0.0)
    (asked,) = of(RequestNullifications, effects)
    assert (asked.first_view, asked.last_view) == (1, views - len(shown))
    assert of(ValidateProposal, effects) == [] and follower.view == 701
    for one in leader.nullifications(asked.first_view, asked.last_view, limit=10_000):
        effects = follower.step(CertificateReceived(one), 0.0)
    assert [one.block_hash for one in of(ValidateProposal, effects)] == [
        header_hash(proposal.header)
    ]
    effects = follower.step(BodiesReady(header_hash(proposal.header), True), 0.0)
    assert said(effects) == [(701, NOTARIZE)]


@pytest.mark.parametrize("n", [1, 4, 7, 31, 100, 128])
def test_a_justify_is_small_for_any_number_of_validators(n):
    keys = [SigningKey(number.to_bytes(32, "big")) for number in range(1, n + 1)]
    validators = ValidatorSet(tuple(k.id for k in keys), tuple(k.public for k in keys))
    votes = [
        make_vote(keys[i], CHAIN, i, 1, 2**40, NULLIFY) for i in range(n - validators.quorum, n)
    ]
    one = make_certificate(votes)
    justify = Justify(one, (one,) * validators.inline_views)
    assert validators.inline_views >= 2 and len(encode(justify)) <= INLINE_BYTES + len(encode(one))


def test_proposals_that_wait_for_nullifications_are_few():
    follower = started(1)
    for view in (601, 605, 609, 613, 617, 621):
        leader = started(0)
        for ended in range(1, view):
            leader.step(CertificateReceived(certificate(ended, NULLIFY)), 0.0)
        _, proposal = propose(leader)
        follower.step(ProposalReceived(proposal), 0.0)
    assert sorted(one.header.view for one in follower._waiting.values()) == [609, 613, 617, 621]


@pytest.mark.parametrize("skipped", [(), (1,), (2,), (2, 1), (1, 1)])
def test_a_block_that_does_not_show_every_view_it_skips_is_refused(skipped):
    leader, follower = started(2), started(3)
    for view in (1, 2):
        for core in (leader, follower):
            core.step(CertificateReceived(certificate(view, NULLIFY)), 0.0)
    _, proposal = propose(leader)
    justify = Justify(None, tuple(certificate(view, NULLIFY) for view in skipped))
    header = msgspec.structs.replace(proposal.header, justify_hash=justify_hash(justify))
    signature = vote(2, 3, NOTARIZE, header_hash(header)).signature
    bad = type(proposal)(header, proposal.txids, justify, signature)
    effects = follower.step(ProposalReceived(bad), 0.0)
    assert of(Refused, effects)[0].what == "proposal: unjustified views"


def test_a_far_view_without_justify_costs_nothing():
    proposal = first_block()
    view = 4 * 2**49 + 1
    header = msgspec.structs.replace(proposal.header, view=view)
    signature = vote(0, view, NOTARIZE, header_hash(header)).signature
    far = msgspec.structs.replace(proposal, header=header, signature=signature)
    assert of(Refused, started(1).step(ProposalReceived(far), 0.0))


def test_a_certificate_without_a_quorum_in_a_justify_is_refused():
    leader, follower = started(1), started(2)
    leader.step(CertificateReceived(certificate(1, NULLIFY)), 0.0)
    _, proposal = propose(leader)
    weak = Justify(None, (make_certificate([vote(0, 1, NULLIFY), vote(1, 1, NULLIFY)]),))
    header = msgspec.structs.replace(proposal.header, justify_hash=justify_hash(weak))
    signature = vote(1, 2, NOTARIZE, header_hash(header)).signature
    bad = type(proposal)(header, proposal.txids, weak, signature)
    effects = follower.step(ProposalReceived(bad), 0.0)
    assert of(Refused, effects)[0].what == "proposal: certificate in the justify"
    assert follower.view == 1


# --- Votes ----------------------------------------------------------------------------------------


def test_strangers_and_forgers_are_refused_by_name():
    core = started(1)
    good = vote(2, 1, NULLIFY)
    for changes, reason in (
        ({"validator": 9}, Refusal.UNKNOWN_SENDER),
        ({"validator": 3}, Refusal.BAD_SIGNATURE),
        ({"view": 0}, Refusal.MALFORMED),
        ({"block_hash": b"\x01" * 32}, Refusal.MALFORMED),
    ):
        bad = msgspec.structs.replace(good, **changes)
        (refused,) = of(Refused, core.step(VoteReceived(bad), 0.0))
        assert refused.reason is reason


def test_contradicting_votes_are_evidence_and_harmless_pairs_are_not():
    for first, second, guilty in (
        (vote(2, 1, NOTARIZE, b"\x01" * 32), vote(2, 1, NOTARIZE, b"\x02" * 32), True),
        (vote(2, 1, FINALIZE, b"\x01" * 32), vote(2, 1, FINALIZE, b"\x02" * 32), True),
        (vote(2, 1, FINALIZE, b"\x01" * 32), vote(2, 1, NULLIFY), True),
        (vote(2, 1, NOTARIZE, b"\x01" * 32), vote(2, 1, NULLIFY), False),
        (vote(2, 1, NOTARIZE, b"\x01" * 32), vote(2, 1, FINALIZE, b"\x01" * 32), False),
        (vote(2, 1, NULLIFY), vote(2, 2, NULLIFY), False),
    ):
        core = started(1)
        core.step(VoteReceived(first), 0.0)
        evidence = of(Evidence, core.step(VoteReceived(second), 0.0))
        assert evidence == ([Evidence(first, second)] if guilty else [])


def test_a_third_contradiction_is_not_kept():
    core = started(1)
    for number in (1, 2):
        core.step(VoteReceived(vote(2, 1, NOTARIZE, bytes([number]) * 32)), 0.0)
    (refused,) = of(Refused, core.step(VoteReceived(vote(2, 1, NOTARIZE, b"\x03" * 32)), 0.0))
    assert refused.reason is Refusal.RATE_LIMITED


def test_votes_for_views_ahead_are_kept_and_make_a_certificate():
    core = started(1)
    for index in (0, 2):
        core.step(VoteReceived(vote(index, 7, NULLIFY)), 0.0)
    assert core.view == 1
    core.step(VoteReceived(vote(3, 7, NULLIFY)), 0.0)
    assert core.view == 8


def test_a_flood_of_views_ahead_is_bounded():
    core = started(1)
    for view in range(100, 300):
        core.step(VoteReceived(vote(2, view, NULLIFY)), 0.0)
    held = core._pool._views
    assert sum(2 in cell for view in held.values() for cell in view.votes.values()) <= 64


def test_a_certificate_of_known_votes_is_not_verified_again():
    class Counting(KeyCrypto):
        calls = 0

        def verify(self, *args):
            Counting.calls += 1
            return super().verify(*args)

    core = Core(EPOCH, 1, Counting(CHAIN, VALIDATORS, KEYS[1]))
    core.step(Start(), 0.0)
    block_hash = b"\x07" * 32
    for index in (0, 2):
        core.step(VoteReceived(vote(index, 1, NOTARIZE, block_hash)), 0.0)
    core.step(CertificateReceived(certificate(1, NOTARIZE, block_hash, (0, 2, 3))), 0.0)
    assert Counting.calls == 3, "two votes, and the one signature that was new"


def test_an_observer_follows_and_says_nothing():
    core, proposal = started(None), first_block()
    block_hash = header_hash(proposal.header)
    effects = accept(core, proposal)
    effects += core.step(WorkAvailable(True), 0.0)
    effects += core.step(TimerFired(Timer.VIEW, 1), 0.0)
    effects += core.step(CertificateReceived(certificate(1, FINALIZE, block_hash)), 0.0)
    assert said(effects) == []
    assert of(Finalized, effects)


# --- R6, catching up ------------------------------------------------------------------------------


def test_the_stuck_say_everything_again():
    core, proposal = started(1), first_block()
    accept(core, proposal)
    effects = core.step(TimerFired(Timer.REPAIR, 1), 1.0)
    assert said(effects) == [(1, NOTARIZE)]
    assert of(SetTimer, effects)[0].timer is Timer.REPAIR


def test_a_stuck_leader_publishes_its_proposal_again():
    core = started(0)
    _, proposal = propose(core)
    effects = core.step(TimerFired(Timer.REPAIR, 1), 1.0)
    assert of(BroadcastProposal, effects) == [BroadcastProposal(proposal)]


def test_who_repeats_an_old_vote_is_shown_the_way_but_not_too_often():
    core = started(1)
    entry = certificate(1, NULLIFY)
    core.step(CertificateReceived(entry), 5.0)
    core.step(VoteReceived(vote(3, 1, NULLIFY)), 5.0)
    effects = core.step(VoteReceived(vote(3, 1, NULLIFY)), 6.0)
    assert of(BroadcastCertificate, effects) == [BroadcastCertificate(entry)]
    assert core.step(VoteReceived(vote(3, 1, NULLIFY)), 6.5) == []


def test_a_finalization_of_an_unknown_block_is_asked_for_and_then_used():
    core, proposal = started(1), first_block()
    block_hash = header_hash(proposal.header)
    final = certificate(1, FINALIZE, block_hash)
    effects = core.step(CertificateReceived(final), 0.0)
    assert of(RequestMissing, effects) == [RequestMissing(block_hash, 0)]
    assert of(Finalized, core.step(ProposalReceived(proposal), 0.0))


def test_jump_goes_on_from_a_fetched_block():
    core, proposal = started(1), first_block()
    final = certificate(1, FINALIZE, header_hash(proposal.header))
    core.jump(proposal.header, final)
    assert (core.view, core.tree.final_height) == (2, 1)
    _, second = propose(core, time_ms=3000)
    assert second.justify.notarization == final
    follower = started(2)
    accept(follower, proposal)
    assert said(accept(follower, second)) == [(2, NOTARIZE)]


def test_a_later_epoch_means_we_are_behind():
    core = started(1)
    ahead = vote(2, 1, NULLIFY, epoch=4)
    assert core.step(VoteReceived(ahead), 5.0) == [RequestMissing(b"", 0)]
    assert core.step(VoteReceived(ahead), 5.1) == []


# --- Epochs ---------------------------------------------------------------------------------------


def test_after_a_seal_only_empty_blocks_and_the_seal_ends_the_epoch():
    seal = first_block(seal=True, next_validators_hash=VALIDATORS.hash)
    seal_hash = header_hash(seal.header)
    leader, follower = started(1), started(2)
    for core in (leader, follower):
        accept(core, seal)
        core.step(CertificateReceived(certificate(1, NOTARIZE, seal_hash, (0, 2, 3))), 0.0)
    (request,) = of(RequestProposal, leader.step(WorkAvailable(True), 0.0))
    assert request.empty
    effects = leader.step(ProposalBuilt(2, seal_hash, content(3000)), 0.0)
    child = of(BroadcastProposal, effects)[0].proposal
    accept(follower, child)
    effects = follower.step(
        CertificateReceived(certificate(2, FINALIZE, header_hash(child.header))), 0.0
    )
    (final,) = of(Finalized, effects)
    assert final.blocks == (seal,)
    assert final.beyond == (child.header,)
    assert verify_finality(seal_hash, final.finality(0), VALIDATORS, CHAIN)
    assert follower.ended
    assert said(follower.step(TimerFired(Timer.VIEW, follower.view), 0.0)) == []


def test_a_full_block_after_a_seal_is_nullified():
    seal = first_block(seal=True, next_validators_hash=VALIDATORS.hash)
    seal_hash = header_hash(seal.header)
    leader, follower = started(1), started(2)
    for core in (leader, follower):
        accept(core, seal)
        core.step(CertificateReceived(certificate(1, NOTARIZE, seal_hash, (0, 2, 3))), 0.0)
    _, child = propose(leader, time_ms=3000)
    header = msgspec.structs.replace(child.header, seal=True, next_validators_hash=VALIDATORS.hash)
    signature = vote(1, 2, NOTARIZE, header_hash(header)).signature
    effects = follower.step(
        ProposalReceived(type(child)(header, (), child.justify, signature)), 0.0
    )
    assert of(Refused, effects)[0].what == "proposal: not empty after the seal"
    assert said(effects) == [(2, NULLIFY)]


# --- Restart --------------------------------------------------------------------------------------


def restarted(core_effects, me):
    """A core restored from what `core_effects` logged durably, through the log's own bytes."""
    logged = of(Persist, core_effects)
    last = max((i for i, one in enumerate(logged) if one.durable), default=-1)
    core = make_core(me)
    core.restore([decode_record(encode_record(one.record)) for one in logged[: last + 1]])
    return core, core.step(Start(), 0.0)


def test_a_restarted_validator_does_not_vote_twice():
    core, proposal = started(1), first_block()
    effects = accept(core, proposal)
    again, _ = restarted(effects, 1)
    other = propose(started(0), time_ms=2500)[1]
    assert said(accept(again, other)) == []
    repeated = again.step(TimerFired(Timer.REPAIR, 1), 1.0)
    assert of(BroadcastVote, repeated) == of(BroadcastVote, effects)


def test_a_restarted_leader_does_not_propose_twice_but_repeats_itself():
    effects, proposal = propose(started(0))
    again, _ = restarted(effects, 0)
    assert of(RequestProposal, again.step(WorkAvailable(True), 0.0)) == []
    assert of(BroadcastProposal, again.step(TimerFired(Timer.REPAIR, 1), 1.0)) == [
        BroadcastProposal(proposal)
    ]


def test_a_restarted_validator_still_has_what_it_voted_for():
    effects = accept(started(1), first_block())
    again, restart = restarted(effects, 1)
    (ask,) = of(ValidateProposal, restart)
    assert again.proposal(ask.block_hash) == first_block()


def test_a_validator_that_nullified_does_not_finalize_after_a_restart():
    core, proposal = started(1), first_block()
    core.step(ProposalReceived(proposal), 0.0)
    effects = core.step(TimerFired(Timer.VIEW, 1), 0.0)
    again, _ = restarted(effects, 1)
    block_hash = header_hash(proposal.header)
    accept(again, proposal)
    effects = again.step(CertificateReceived(certificate(1, NOTARIZE, block_hash, (0, 2, 3))), 0.0)
    assert said(effects) == []


def test_nothing_is_signed_up_to_a_mark_or_in_an_epoch_that_is_over():
    core = make_core(1)
    core.restore([MarkRecord(3, 5)])
    core.step(Start(), 0.0)
    assert core.view == 6
    over = make_core(1)
    over.restore([MarkRecord(4, 0)])
    over.step(Start(), 0.0)
    over.step(WorkAvailable(True), 0.0)
    assert said(over.step(TimerFired(Timer.VIEW, 1), 0.0)) == []


def test_the_shortened_log_restores_the_same_state():
    core, proposal = started(1), first_block()
    block_hash = header_hash(proposal.header)
    accept(core, proposal)
    core.step(CertificateReceived(certificate(1, NOTARIZE, block_hash, (0, 2, 3))), 0.0)
    again = make_core(1)
    again.restore(core.records())
    assert again.view == core.view == 2
    assert again.records() == core.records()
    assert CertificateRecord(certificate(1, NOTARIZE, block_hash, (0, 2, 3))) in core.records()
