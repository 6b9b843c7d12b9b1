"""Conflicting votes ban who signed them; nobody else can be accused, least of all the honest."""

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    OTHERS,
    START_MS,
    VALIDATORS,
    Chain,
    events_of,
    join,
    key,
    make_genesis,
)

from ledger import types
from ledger.contracts.evidence import evidence_operation
from ledger.genesis import GenesisValidator, Membership
from ledger.protocol import (
    BodiesReady,
    BroadcastCertificate,
    BroadcastProposal,
    BroadcastVote,
    CertificateReceived,
    Content,
    Finalized,
    KeyCrypto,
    Persist,
    ProposalBuilt,
    ProposalReceived,
    RequestProposal,
    SetTimer,
    Start,
    TimerFired,
    ValidateProposal,
    VoteReceived,
    WorkAvailable,
)
from ledger.simplex import Core
from ledger.types import VoteKind
from wire.keys import to_text

ANN = key("ann")
GUILTY, INDEX = VALIDATORS[2], 2
NOTARIZE, NULLIFY, FINALIZE = VoteKind
A, B = bytes([1]) * 32, bytes([2]) * 32


def five(**changes):
    validators = tuple(
        GenesisValidator(id=k.id, key=to_text(k.public), controller=f"home-{i}")
        for i, k in enumerate((*VALIDATORS, OTHERS[30]))
    )
    return Chain(genesis=make_genesis(validators=validators, **changes))


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(ANN)
    return chain


def vote(chain, kind, block_hash=types.ZERO_HASH, *, by=INDEX, key=None, view=7, epoch=0, on=None):
    signer = key or (VALIDATORS[by] if by < 4 else GUILTY)
    return types.make_vote(signer, on or chain.chain_id, by, epoch, view, kind, block_hash)


def double(chain, **changes):
    return evidence_operation(
        vote(chain, NOTARIZE, A, **changes), vote(chain, NOTARIZE, B, **changes)
    )


def accuse(chain, operation, sender=VALIDATORS[0]):
    [code] = chain.codes(chain.ledger.time_ms + 1, sender, operation)
    return code


def status(chain, who=GUILTY):
    row = chain.ledger.query(f"validator/{who.id}")
    return row and row["status"]


@pytest.mark.parametrize(
    ("first", "second"),
    [((NOTARIZE, A), (NOTARIZE, B)), ((FINALIZE, A), (FINALIZE, B)),
     ((FINALIZE, A), (NULLIFY,)), ((NULLIFY,), (FINALIZE, A))],
)  # fmt: skip
def test_votes_that_exclude_each_other_ban_their_signer(chain, first, second):
    operation = evidence_operation(vote(chain, *first), vote(chain, *second))
    result = chain.block(chain.ledger.time_ms + 1, chain.tx(ANN, operation))
    assert result.receipts[0].codes == ("OK",)
    assert events_of(result, "evidence") == [
        {"event": "evidence", "validator": GUILTY.id, "epoch": 0, "view": 7}
    ]
    assert status(chain) == "banned"
    assert INDEX in chain.epoch.schedule
    chain.seal()
    assert set(chain.epoch.schedule) == {0, 1, 3}, "it leads no more"


def test_two_proposals_of_one_view_are_two_votes(chain):
    headers = [chain.header(START_MS + 10 + i, [], view=5, proposer=GUILTY.id) for i in range(2)]
    proposals = [
        types.Proposal(header, (), types.Justify(None), vote(
            chain, NOTARIZE, types.header_hash(header), view=5).signature)
        for header in headers
    ]  # fmt: skip
    votes = [types.proposal_vote(proposal, INDEX) for proposal in proposals]
    assert accuse(chain, evidence_operation(*votes)) == "OK"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((NOTARIZE, A), (NOTARIZE, A)),
        ((NULLIFY,), (NULLIFY,)),
        ((NOTARIZE, A), (NULLIFY,)),
        ((NOTARIZE, A), (FINALIZE, A)),
        ((NOTARIZE, A), (FINALIZE, B)),
    ],
)
def test_votes_that_one_may_sign_both_are_no_evidence(chain, first, second):
    operation = evidence_operation(vote(chain, *first), vote(chain, *second))
    assert accuse(chain, operation) == "NO_CONFLICT"
    assert status(chain) == "active"


@pytest.mark.parametrize("other", [{"by": 1}, {"view": 8}, {"epoch": 1}])
def test_votes_of_two_voters_views_or_epochs_are_no_evidence(chain, other):
    operation = evidence_operation(vote(chain, NOTARIZE, A), vote(chain, NOTARIZE, B, **other))
    assert accuse(chain, operation) == "NO_CONFLICT"


@pytest.mark.parametrize(
    "forged", [{"key": VALIDATORS[1]}, {"on": "hg-other-chain"}, {"key": ANN}, {"view": 9}]
)
def test_nobody_is_accused_without_having_signed_both(chain, forged):
    good = vote(chain, NOTARIZE, A)
    bad = types.Vote(0, 7, NOTARIZE, B, INDEX, vote(chain, NOTARIZE, B, **forged).signature)
    for pair in ((good, bad), (bad, good)):
        assert accuse(chain, evidence_operation(*pair)) == "BAD_SIGNATURE"
    assert status(chain) == "active"


def test_a_finalization_of_no_block_is_no_vote(chain):
    operation = evidence_operation(vote(chain, FINALIZE), vote(chain, FINALIZE, A))
    assert accuse(chain, operation) == "BAD_SIGNATURE"


def test_what_cannot_be_judged_is_refused_by_name(chain):
    good = double(chain)
    assert accuse(chain, double(chain, by=4)) == "NOT_FOUND"
    assert accuse(chain, double(chain, epoch=1)) == "FUTURE_DATED"
    for bad in ("", "AAAA", good["first"][:-4], good["first"] + "AAAA", "!", "A" * 400):
        assert accuse(chain, {**good, "first": bad}) in {"MALFORMED", "OVERSIZED"}
    assert accuse(chain, {"op": "evidence", "first": good["first"]}) == "MALFORMED"
    assert status(chain) == "active"


def test_the_same_crime_is_punished_once(chain):
    assert accuse(chain, double(chain)) == "OK"
    before = chain.ledger.query(f"validator/{GUILTY.id}")
    assert accuse(chain, double(chain)) == "DUPLICATE"
    assert accuse(chain, double(chain, view=9)) == "DUPLICATE"
    assert chain.ledger.query(f"validator/{GUILTY.id}") == before


def test_of_five_the_banned_is_out_of_the_set_after_next():
    chain = five()
    assert accuse(chain, double(chain)) == "OK"
    chain.seal()
    assert GUILTY.id in chain.epoch.validators.ids, "its vote still counts"
    assert INDEX not in chain.epoch.schedule
    chain.seal()
    assert GUILTY.id not in chain.epoch.validators.ids
    assert set(chain.epoch.schedule) == {0, 1, 2, 3}


def test_of_four_the_banned_stays_until_another_has_come(chain):
    assert accuse(chain, double(chain)) == "OK"
    for _ in range(3):
        chain.seal()
        assert GUILTY.id in chain.epoch.validators.ids
        assert INDEX not in chain.epoch.schedule
    chain.block(chain.ledger.time_ms + 1, chain.tx(OTHERS[0], join(OTHERS[0])))
    for _ in range(3):
        chain.seal()
    assert GUILTY.id not in chain.epoch.validators.ids
    assert chain.epoch.validators.n == 4


def test_the_banned_may_do_nothing_and_come_back_when_the_ban_is_over():
    chain = five(membership=Membership(evidence_epochs=4, ban_epochs=4))
    operation = double(chain)
    assert accuse(chain, operation) == "OK"
    leave, tip = {"op": "leave-validator"}, to_text(bytes(32))
    assert chain.codes(
        chain.ledger.time_ms + 1, GUILTY, join(GUILTY), leave,
        {"op": "commit-seed", "tip": tip}, {"op": "reveal-seed", "preimage": tip},
    ) == ["BANNED"] * 4  # fmt: skip
    codes = []
    while status(chain) == "banned":
        codes.append(accuse(chain, operation))
        chain.seal()
    assert codes == ["DUPLICATE"] * 4 + ["EXPIRED"], "never twice for one crime"
    assert chain.codes(chain.ledger.time_ms + 1, GUILTY, join(GUILTY)) == ["OK"]
    assert accuse(chain, operation) == "EXPIRED"


def test_who_has_left_can_still_be_accused_and_does_not_come_back():
    chain = five()
    chain.codes(START_MS + 1, GUILTY, {"op": "leave-validator"})
    for _ in range(3):
        chain.seal()
    assert status(chain) is None
    assert accuse(chain, double(chain)) == "OK"
    assert status(chain) == "banned"
    assert chain.codes(chain.ledger.time_ms + 1, GUILTY, join(GUILTY)) == ["BANNED"]


def test_were_all_banned_all_would_lead(chain):
    for index in range(4):
        assert accuse(chain, double(chain, by=index), ANN) == "OK"
    chain.seal()
    assert set(chain.epoch.schedule) == {0, 1, 2, 3}
    assert chain.epoch.validators.n == 4


# --- The honest -----------------------------------------------------------------------------------


class Cores:
    """Four honest cores on a network that loses, delays and repeats, and that crash."""

    def __init__(self, epoch, seed):
        self.random = random.Random(seed)
        self.epoch = epoch
        self.logs = [[] for _ in range(4)]
        self.cores = [self.start(i) for i in range(4)]
        self.mail, self.timers = [], {}
        self.votes, self.finalized = [], 0
        self.proposals = {}
        for index in range(4):
            self.perform(index, self.cores[index].step(Start(), 0.0))
            self.perform(index, self.cores[index].step(WorkAvailable(True), 0.0))

    def start(self, index):
        crypto = KeyCrypto(self.epoch.chain_id, self.epoch.validators, VALIDATORS[index])
        return Core(self.epoch, index, crypto)

    def perform(self, index, effects):
        for effect in effects:
            match effect:
                case Persist(record):
                    self.logs[index].append(record)
                case BroadcastVote(vote):
                    self.votes.append(vote)
                    self.post(index, VoteReceived(vote))
                case BroadcastProposal(proposal):
                    self.votes.append(types.proposal_vote(proposal, index))
                    self.post(index, ProposalReceived(proposal))
                case BroadcastCertificate(certificate):
                    self.post(index, CertificateReceived(certificate))
                case RequestProposal(view, parent_hash):
                    time_ms = START_MS + view
                    roots = (types.ZERO_HASH, types.ZERO_HASH)
                    content = Content((), 0, *roots, time_ms)
                    self.mail.append((index, ProposalBuilt(view, parent_hash, content)))
                case ValidateProposal(block_hash):
                    good = self.random.random() < 0.9
                    self.mail.append((index, BodiesReady(block_hash, good)))
                case SetTimer(timer, view, _):
                    self.timers[index, timer] = TimerFired(timer, view)
                case Finalized():
                    self.finalized += 1

    def post(self, sender, event):
        self.mail += [(other, event) for other in range(4) if other != sender]

    def run(self, steps):
        for _ in range(steps):
            luck = self.random.random()
            if luck < 0.04:
                self.crash(self.random.randrange(4))
            elif (luck < 0.15 or not self.mail) and self.timers:
                (index, name), event = self.random.choice(sorted(self.timers.items()))
                del self.timers[index, name]
                self.perform(index, self.cores[index].step(event, 0.0))
            elif self.mail:
                place = self.random.randrange(min(len(self.mail), 12))
                index, event = self.mail[place] if luck > 0.95 else self.mail.pop(place)
                if luck > 0.2:
                    self.perform(index, self.cores[index].step(event, 0.0))

    def crash(self, index):
        self.timers = {name: event for name, event in self.timers.items() if name[0] != index}
        self.cores[index] = self.start(index)
        self.cores[index].restore(self.logs[index])
        self.perform(index, self.cores[index].step(Start(), 0.0))
        self.perform(index, self.cores[index].step(WorkAvailable(True), 0.0))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32))
def test_no_two_votes_of_an_honest_core_are_evidence(seed):
    chain = Chain()
    chain.settle_in(ANN)
    cores = Cores(chain.epoch, seed)
    cores.run(250)
    said = {}
    for one in cores.votes:
        said.setdefault((one.validator, one.view), {})[types.encode(one)] = one
    pairs = [pair for votes in said.values() for pair in combinations(votes.values(), 2)]
    operations = [evidence_operation(*pair) for pair in pairs]
    for first in range(0, len(operations), 64):
        codes = chain.codes(chain.ledger.time_ms + 1, ANN, *operations[first : first + 64])
        assert set(codes) == {"NO_CONFLICT"}
    assert all(status(chain, who) == "active" for who in VALIDATORS)


def test_the_honest_cores_above_do_all_a_core_can_do():
    """Otherwise the property would be an empty one."""
    kinds, finalized = set(), 0
    for seed in range(6):
        cores = Cores(Chain().epoch, seed)
        cores.run(250)
        kinds |= {one.kind for one in cores.votes}
        finalized += cores.finalized
        assert all(types.verify_vote(one, cores.epoch.validators, cores.epoch.chain_id)
                   for one in cores.votes)  # fmt: skip
    assert kinds == set(VoteKind)
    assert finalized > 0
