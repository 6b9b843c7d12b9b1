"""
The fast core and the readable specification, side by side on the same random schedules.

Every correct validator is a `Core` with a specification beside it that hears the same. Messages
are delivered in any order, twice, or never; views time out at any moment; Byzantine validators lead
with two blocks, bad blocks and unjustified blocks, and say anything. After every event both must
have said the same, stand in the same view and have the same final chain.
"""

from collections import Counter, deque
from random import Random

import msgspec
import pytest
from simulation import specification as spec

from ledger.protocol import (
    BodiesReady,
    BroadcastCertificate,
    BroadcastProposal,
    BroadcastVote,
    CertificateReceived,
    Content,
    Epoch,
    Finalized,
    ProposalBuilt,
    ProposalReceived,
    RequestMissing,
    RequestProposal,
    Start,
    Timer,
    TimerFired,
    ValidateProposal,
    VoteReceived,
    WorkAvailable,
)
from ledger.simplex import Core
from ledger.types import (
    ZERO_HASH,
    Justify,
    ValidatorSet,
    Vote,
    VoteKind,
    certificate_votes,
    genesis_hash,
    header_hash,
    justify_hash,
    proposal_vote,
    vote_message,
)
from sim.byzantine import BelievesUnjustified, FinalizesAfterNullify
from sim.consensus import SimCrypto

CHAIN = "hg-spec"
GOOD, BAD = b"\1" * 32, b"\2" * 32
"""State roots: what the application finds right, and what it does not."""
STEPS_PER_VALIDATOR = 170
WAITING_MAX = 120


class Schedule:
    """One random run of n validators, some of them Byzantine."""

    def __init__(self, seed, n, byzantine, core=Core):
        self.rng = Random(seed)
        self.n = n
        self.order = self.rng.uniform(0.3, 0.95)
        self.loss = self.rng.uniform(0.0, 0.15)
        self.validators = ValidatorSet(
            tuple(f"v{i}" for i in range(n)), tuple(bytes([i]) * 32 for i in range(n))
        )
        self.epoch = Epoch(CHAIN, 0, self.validators, tuple(range(n)), genesis_hash(CHAIN))
        self.byzantine = byzantine
        self.pairs = [Pair(self, index, core) for index in range(n)]
        self.waiting = []
        """(receiver, message) on their way."""
        self.proposals = {}
        self.others = {}
        """What a Byzantine leader proposes beside its block, by view."""
        self.happened = Counter()

    def run(self):
        for pair in self.pairs:
            pair.take(Start())
            pair.take(WorkAvailable(True))
        for _ in range(STEPS_PER_VALIDATOR * self.n):
            self.step()
        return self

    def step(self):
        rng = self.rng
        chance = rng.random()
        if chance < 0.03 or not self.waiting:
            pair = rng.choice(self.pairs)
            timer = rng.choice((Timer.VIEW, Timer.REPAIR, Timer.REPAIR))
            pair.take(TimerFired(timer, pair.core.view))
        elif chance < 0.08 and self.byzantine and self.proposals:
            self.lie()
        else:
            # Mostly the oldest: in an entirely random order nothing would ever be final.
            place = 0 if rng.random() < self.order else rng.randrange(len(self.waiting))
            receiver, message = self.waiting.pop(place)
            if rng.random() < 0.05:
                self.waiting.append((receiver, message))  # again, later
            if rng.random() >= self.loss:
                self.pairs[receiver].take(message)
            del self.waiting[:-WAITING_MAX]

    def lie(self):
        """A Byzantine validator says something about a block or a view."""
        rng = self.rng
        block_hash, proposal = rng.choice(list(self.proposals.items())[-4:])
        kind = rng.choice(list(VoteKind))
        named = ZERO_HASH if kind == VoteKind.NULLIFY else block_hash
        vote = signed(rng.choice(sorted(self.byzantine)), proposal.header.view, kind, named)
        self.send(rng.randrange(self.n), VoteReceived(vote))

    def send(self, receiver, message):
        self.waiting.append((receiver, message))

    def publish(self, sender, message):
        for receiver in range(self.n):
            if receiver != sender:
                self.send(receiver, message)

    def publish_proposal(self, sender, proposal):
        self.proposals[header_hash(proposal.header)] = proposal
        if sender not in self.byzantine:
            self.publish(sender, ProposalReceived(proposal))
            return
        # Two blocks at most: of a third one the core's bounded memory keeps no vote.
        other = self.others.setdefault(
            proposal.header.view,
            self.rng.choice((changed, corrupted, unjustified))(proposal),
        )
        self.happened[other.header.state_root, other.justify == proposal.justify] += 1
        variants = [proposal, other]
        for one in variants:
            self.proposals[header_hash(one.header)] = one
        for receiver in range(self.n):
            for one in self.rng.sample(variants, self.rng.randint(0, 2)):
                self.send(receiver, ProposalReceived(one))


class Pair:
    """A core and its specification."""

    def __init__(self, schedule, index, core):
        self.schedule = schedule
        self.index = index
        self.core = core(schedule.epoch, index, SimCrypto(index))
        self.spec = spec.Validator(
            index, schedule.n, schedule.epoch.leader, schedule.epoch.base_hash
        )
        self.said = set()
        self.final = []

    def take(self, event):
        """Let both hear it; then they must agree."""
        correct = self.index not in self.schedule.byzantine
        if correct:
            self.tell_specification(event)
        answers = deque([event])
        while answers:
            for effect in self.core.step(answers.popleft(), 0.0):
                answers.extend(self.perform(effect))
        if not correct:
            return
        assert self.said == self.spec.said
        assert self.core.view == self.spec.view
        assert self.final == self.spec.final
        assert not self.spec.may_lead(), "the specification would propose, the core does not"

    def tell_specification(self, event):
        match event:
            case VoteReceived(vote):
                self.spec.hear(plain(vote))
            case CertificateReceived(certificate):
                self.spec.hear_certificate(self.votes(certificate))
            case ProposalReceived(proposal):
                self.spec.hear_proposal(self.block(proposal))
            case TimerFired(Timer.VIEW, view):
                self.spec.time_is_up(view)

    def perform(self, effect):
        """Carry out one effect; what the core is to be told when all of the list are."""
        schedule = self.schedule
        match effect:
            case BroadcastVote(vote):
                self.said.add(plain(vote))
                schedule.happened[vote.kind] += 1
                schedule.publish(self.index, VoteReceived(vote))
            case BroadcastProposal(proposal):
                vote = plain(proposal_vote(proposal, self.index))
                if vote not in self.said and self.index not in schedule.byzantine:
                    self.spec.lead(self.block(proposal))
                self.said.add(vote)
                schedule.publish_proposal(self.index, proposal)
            case BroadcastCertificate(certificate):
                schedule.publish(self.index, CertificateReceived(certificate))
            case RequestProposal(view=view, parent_hash=parent_hash, parent=parent):
                time_ms = (parent.time_ms if parent else 0) + 10
                content = Content((schedule.rng.randbytes(32),), 0, GOOD, GOOD, time_ms)
                return [ProposalBuilt(view, parent_hash, content)]
            case ValidateProposal(block_hash=block_hash, proposal=proposal):
                return [BodiesReady(block_hash, proposal.header.state_root == GOOD)]
            case Finalized(blocks=blocks):
                self.final += [header_hash(one.header) for one in blocks]
                schedule.happened["final"] += len(blocks)
            case RequestMissing(block_hash) if block_hash in schedule.proposals:
                schedule.send(self.index, ProposalReceived(schedule.proposals[block_hash]))
                schedule.happened["fetched"] += 1
        return []

    def votes(self, certificate):
        found = certificate_votes(certificate, self.schedule.validators)
        assert found
        return frozenset(plain(vote) for vote in found)

    def block(self, proposal):
        header, justify = proposal.header, proposal.justify
        certificates = [*justify.nullifications]
        certificates += [justify.notarization] if justify.notarization else []
        why = frozenset(vote for one in certificates for vote in self.votes(one))
        good = header.state_root == GOOD
        return spec.Block(header_hash(header), header.view, header.parent_hash, good, why)


def plain(vote):
    name = spec.NOTHING if vote.kind == VoteKind.NULLIFY else vote.block_hash
    return spec.Vote(vote.kind.name, vote.view, name, vote.validator)


def signed(validator, view, kind, block_hash):
    signature = SimCrypto(validator).sign(vote_message(0, view, kind, block_hash))
    return Vote(0, view, kind, block_hash, validator, signature)


def resigned(proposal, header, justify=None):
    leader = int(header.proposer[1:])
    vote = signed(leader, header.view, VoteKind.NOTARIZE, header_hash(header))
    return msgspec.structs.replace(
        proposal, header=header, justify=justify or proposal.justify, signature=vote.signature
    )


def changed(proposal):
    header = proposal.header
    return resigned(proposal, msgspec.structs.replace(header, time_ms=header.time_ms + 1))


def corrupted(proposal):
    return resigned(proposal, msgspec.structs.replace(proposal.header, state_root=BAD))


def unjustified(proposal):
    """Hide a nullification, or the notarization of the parent, or call a stranger the parent."""
    header, justify = proposal.header, proposal.justify
    parent_hash = header.parent_hash
    if justify.nullifications:
        justify = Justify(justify.notarization, justify.nullifications[1:])
    elif justify.notarization is not None:
        justify = Justify(None)
    else:
        parent_hash = BAD
    header = msgspec.structs.replace(
        header, justify_hash=justify_hash(justify), parent_hash=parent_hash
    )
    return resigned(proposal, header, justify)


GROUPS = [(4, frozenset()), (4, frozenset({3})), (7, frozenset({2, 5}))]
SEEDS = 24


@pytest.mark.parametrize(("n", "byzantine"), GROUPS)
def test_core_and_specification_say_and_finalize_the_same(n, byzantine):
    happened = Counter()
    for seed in range(SEEDS):
        schedule = Schedule(seed, n, byzantine).run()
        chains = [pair.final for pair in schedule.pairs if pair.index not in byzantine]
        longest = max(chains, key=len)
        assert all(chain == longest[: len(chain)] for chain in chains)
        happened += schedule.happened
    # The schedules are worth something: blocks were final, views given up, bodies came late.
    assert happened["final"] > 20 * n
    assert happened[VoteKind.NULLIFY] > 20
    assert happened["fetched"] > 5
    if byzantine:
        assert {(GOOD, True), (BAD, True), (GOOD, False)} <= set(happened)


@pytest.mark.parametrize("broken", [FinalizesAfterNullify, BelievesUnjustified])
def test_a_core_that_breaks_a_rule_differs_from_the_specification(broken):
    with pytest.raises(AssertionError):
        for seed in range(SEEDS):
            Schedule(seed, 4, frozenset({3}), broken).run()
