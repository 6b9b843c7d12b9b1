"""
Simplex consensus, one epoch, without I/O: the rules R1 to R6 of the protocol.

The protocol on one page
------------------------
Validators go through **views** 1, 2, 3 …; each has one leader. In a view a validator may say three
things, each signed and logged to disk before it is published:

    NOTARIZE b   "b is valid here"           at most one block per view
    NULLIFY      "skip this view"            after a timeout or a bad proposal; never after FINALIZE
    FINALIZE b   "b was notarized in time"   never after NULLIFY

A quorum of one of these is a certificate. A notarization or a nullification ends the view; a
finalization makes the block and all its ancestors final.

    leader             others                     everyone
      │  proposal b      │                            │
      ├────────────────► │  NOTARIZE b  ────────────► │ q of them: enter the next view
      │                  │                            │ and FINALIZE b ──────► q of them: b is final
      (silence, 2Δ / 3Δ) │  NULLIFY     ────────────► │ q of them: enter the next view

A proposal carries its own right to exist (`Justify`): the notarization of its parent, and the
nullification of every view in between. So nobody needs a lock or a view-change message:

- Two quorums share an honest validator, who notarizes one block per view and never both finalizes
  and nullifies a view. Hence one notarization per view, and no view both finalized and nullified.
- A block notarized later than a final b must have a parent at b's view or later, because skipping
  b's view would need its nullification. By induction it descends from b.

Nothing of this depends on time. Time is for progress only: Δ grows by half with every view that
ends without a notarization, and falls back to Δ0 with the next one.

Deviations from the paper (B. Chan and R. Pass, "Simplex Consensus: A Simple and Fast Consensus
Protocol", TCC 2023)
------------------------------------------------------------------------------------------------
1. Leaders come from a schedule (Proof of Energy) instead of a hash of the view number.
2. A proposal carries a notarization and the nullifications since, instead of the whole notarized
   chain; its hash is in the header. Of very many nullifications it carries the last ones: who lacks
   the others asks for them before judging, so that a proposal never outgrows a message.
3. The finalize vote names its block, and a finalization certificate is kept and shown; a
   finalization may stand for its block's notarization in a later justify (a quorum that finalizes
   contains an honest validator that saw the notarization).
4. FINALIZE may be signed after the view has ended (the body came late), if the view was not and
   will never be nullified by this validator.
5. Two timers (2Δ for the proposal, 3Δ for the view) instead of one, growing Δ, none while idle:
   they run only when this validator has work, saw a message of the view, or knows an unfinalised
   block. A leader that was silent in its last turns gets no time until it is heard again.
6. A leader that nullifies its own view is followed at once.
7. The paper's players forward every certificate. Here votes reach everybody through the broker,
   and what is lost is repaired: the stuck republish what they said, the others answer with
   certificates.
8. Votes, and the proposals and certificates they rest on, are logged, so that a validator may crash
   and come back without contradicting itself.
9. Epochs: a final *seal* block ends the instance. Its descendants must be empty and are dropped: if
   one is finalized, that finalization is the proof of the seal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ledger import merkle
from ledger.blocktree import Block, BlockTree, ForkError
from ledger.faults import form_fault, justify_fault, linkage_fault
from ledger.protocol import (
    BodiesReady,
    BroadcastCertificate,
    BroadcastProposal,
    BroadcastVote,
    CertificateReceived,
    CertificateRecord,
    Content,
    Crypto,
    Effect,
    EnterView,
    Epoch,
    Event,
    Evidence,
    Finalized,
    KeyCrypto,
    MarkRecord,
    Persist,
    ProposalBuilt,
    ProposalReceived,
    ProposalRecord,
    Record,
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
)
from ledger.types import (
    ZERO_HASH,
    Certificate,
    Header,
    Justify,
    Proposal,
    Vote,
    VoteKind,
    header_hash,
    justify_hash,
    proposal_vote,
    vote_message,
)
from ledger.votes import Seen, VotePool
from wire.errors import Refusal

LEAD_DELTAS = 2
VIEW_DELTAS = 3
GROWTH = 1.5
GROWTH_STEPS_MAX = 6
LAG_FREE_VIEWS = 4
"""So many views may be notarized and not final before Δ grows: two are on their way, always."""
SILENT_TURNS = 2
"""Turns without a word after which a leader gets no time."""
MAX_PROPOSALS_PER_VIEW = 2
"""Kept unasked; more only when a quorum notarized them."""
MAX_WAITING = 4
"""Proposals kept aside until the nullifications that they leave out have come."""
MAX_REPAIR = 8
"""Views whose votes, and certificates, are said again in one repair."""

__all__ = ["Core", "Crypto", "Epoch", "ForkError", "KeyCrypto"]


class Core:
    """One validator's (or observer's) part in one epoch."""

    def __init__(self, epoch: Epoch, me: int | None, crypto: Crypto) -> None:
        """
        Args:
            epoch: what all agree on
            me: my index in the validator set; None observes without voting
            crypto: signs for `me` and checks everybody
        """
        self.epoch = epoch
        self.me = me
        self.view = 1
        self.ended = False
        """True once a seal is final: this core only answers those who lag."""
        self.tree = BlockTree(epoch.base_hash, epoch.base_height, epoch.base_time_ms)
        self._crypto = crypto
        self._pool = VotePool(epoch.epoch, epoch.validators, crypto)
        self._mine: dict[int, dict[VoteKind, Vote]] = defaultdict(dict)
        self._mark = 0
        self._high = 0
        self._out: list[Effect] = []
        self._now_s = 0.0
        self._work = False
        self._stirred = False
        self._started = False
        self._timing = False
        self._requested = False
        self._failed_views = self._lagging_views = 0
        self._silent: dict[int, int] = defaultdict(int)
        self._wanted: dict[bytes, float] = {}
        self._waiting: dict[bytes, Proposal] = {}
        self._nullifications_asked_s = float("-inf")
        self._shown = (-1, 0)
        self._resting = (-1, 0)
        self._answered_s = float("-inf")
        self._behind_s = float("-inf")

    # --- What the shell asks ----------------------------------------------------------------------

    @property
    def leader(self) -> int:
        """Index of the present leader."""
        return self.epoch.leader(self.view)

    @property
    def best_finalization(self) -> Certificate | None:
        """The newest finalization, of the epoch before if this one has none."""
        return self._pool.best_finalization() or self.epoch.base_certificate

    @property
    def delta_s(self) -> float:
        """Δ, grown by the views that failed in a row, or by those that finality lags behind [s]."""
        steps = max(self._failed_views, self._lagging_views - LAG_FREE_VIEWS)
        return self.epoch.delta_s * GROWTH ** min(steps, GROWTH_STEPS_MAX)

    @property
    def lagging(self) -> bool:
        """True when more views than usual notarized a block and none became final."""
        return self._lagging_views > LAG_FREE_VIEWS

    @property
    def busy(self) -> bool:
        """True while there is something to be done, so that time counts."""
        return not self.ended and (
            self._work
            or self._stirred
            or bool(self._wanted)
            or self._pool.last_parent() > self.tree.final_view
        )

    def proposal(self, block_hash: bytes) -> Proposal | None:
        """An unfinalised block, to serve to others."""
        block = self.tree.get(block_hash)
        return block.proposal if block else None

    def nullifications(self, first_view: int, last_view: int, limit: int) -> list[Certificate]:
        """Those known of these views, the first `limit`, to serve to others."""
        found: list[Certificate] = []
        for view in range(first_view, min(last_view, self.view) + 1):
            certificate = self._pool.certificate(view, VoteKind.NULLIFY)
            if certificate is not None:
                found.append(certificate)
            if len(found) == limit:
                break
        return found

    def restore(self, records: Iterable[Record]) -> None:
        """
        Take back what the log says (before `jump` and `Start`).

        What was signed is known again; nothing new is signed in a view below the last one voted in,
        or up to a mark. Records of other epochs are skipped, but a mark of a later epoch means that
        this one is over for us: we only observe.
        """
        for record in records:
            match record:
                case MarkRecord(epoch=epoch, view=view):
                    if epoch > self.epoch.epoch:
                        self.me = None
                    elif epoch == self.epoch.epoch:
                        self._mark = max(self._mark, view)
                case VoteRecord(vote=vote) if vote.epoch == self.epoch.epoch:
                    self._recall(vote)
                case ProposalRecord(proposal=proposal):
                    header = proposal.header
                    if header.epoch == self.epoch.epoch:
                        self.tree.add(proposal)
                        leader = self.epoch.leader(header.view)
                        if leader == self.me:
                            self._recall(proposal_vote(proposal, leader))
                case CertificateRecord(certificate=certificate):
                    self._pool.check(certificate)
        self._high = max(self._mine, default=0)
        self._pool.formed.clear()
        self.view = max(self._pool.last_ended(), self._mark) + 1

    def records(self) -> list[Record]:
        """What the log must keep, to replace all that was appended so far."""
        kept: list[Record] = [MarkRecord(self.epoch.epoch, self.tree.final_view)]
        kept += [CertificateRecord(certificate) for certificate in self._pool.certificates()]
        kept += [ProposalRecord(block.proposal) for block in self.tree.blocks()]
        kept += [VoteRecord(vote) for view in sorted(self._mine) for vote in self._my_votes(view)]
        return kept

    def jump(self, header: Header, certificate: Certificate) -> list[Effect]:
        """
        Go on from a block that was fetched as final, checked and executed by the shell.

        Args:
            header: of the newest such block in this epoch
            certificate: its finalization, or that of a descendant (the rest is then asked for)
        """
        self._begin(self._now_s)
        block_hash = header_hash(header)
        assert header.epoch == self.epoch.epoch
        if header.height > self.tree.final_height and self._pool.check(certificate):
            self._make_final(header, block_hash)
            if self._started:
                self._progress()
        return self._out

    # --- One event --------------------------------------------------------------------------------

    def step(self, event: Event, now_s: float) -> list[Effect]:
        """
        Take in one event.

        Args:
            event: what happened
            now_s: process time, only used to not repeat answers too often [s]

        Returns:
            What to do, in this order.

        Raises:
            ForkError: consensus is broken; stop.
        """
        self._begin(now_s)
        match event:
            case VoteReceived(vote=vote):
                if not self._on_vote(vote):
                    return self._out  # most votes are repeated: nothing can follow from them
            case BodiesReady(block_hash=block_hash, valid=valid):
                self._on_bodies(block_hash, valid)
            case ProposalReceived(proposal=proposal):
                self._on_proposal(proposal)
            case CertificateReceived(certificate=certificate):
                self._on_certificate(certificate)
            case TimerFired(timer=timer, view=view):
                self._on_timer(timer, view)
            case WorkAvailable(pending=pending):
                self._on_work(pending)
            case ProposalBuilt(view=view, parent_hash=parent_hash, content=content):
                self._on_built(view, parent_hash, content)
            case Start():
                self._started = True
                self._answered_s = (
                    now_s  # the last votes of the epoch before are still on their way
                )
                self._enter(self.view, nullified=False)
        self._progress()
        return self._out

    def _begin(self, now_s: float) -> None:
        self._out = []
        self._now_s = now_s

    def _on_vote(self, vote: Vote) -> bool:
        """Take a vote; False when it says nothing new."""
        if vote.epoch != self.epoch.epoch:
            self._other_epoch(vote.epoch)
            return False
        if self.ended or vote.view < self.tree.final_view:
            self._answer()
            return False
        return self._count(vote) is Seen.NEW

    def _count(self, vote: Vote) -> Seen | Refusal:
        """Put a vote into the pool."""
        seen = self._pool.add(vote)
        if isinstance(seen, Refusal):
            self._out.append(Refused(seen, f"vote of validator {vote.validator}"))
            return seen
        if seen is Seen.AGAIN:
            if vote.view < self.view:
                self._answer()
            return seen
        self._silent[vote.validator] = 0
        if vote.view >= self.view:
            self._stir()
        if (
            vote.kind == VoteKind.NULLIFY
            and vote.view == self.view
            and vote.validator == self.leader
        ):
            self._nullify()
        return seen

    def _on_certificate(self, certificate: Certificate) -> None:
        base = self.epoch.base_certificate
        if base is not None and _says(certificate) == _says(base):
            self._saw_shown(certificate)
        elif certificate.epoch != self.epoch.epoch:
            self._other_epoch(certificate.epoch)
        elif self.ended or certificate.view < self.tree.final_view:
            self._answer()
        elif self._accept(certificate):
            self._saw_shown(certificate)
        else:
            self._out.append(Refused(Refusal.BAD_SIGNATURE, "certificate"))

    def _accept(self, certificate: Certificate) -> bool:
        """Check a certificate; log it if it says something new."""
        known = self._pool.certificate(certificate.view, certificate.kind)
        if not self._pool.check(certificate):
            return False
        if known is None:
            self._out.append(Persist(CertificateRecord(certificate), durable=False))
        return True

    def _other_epoch(self, epoch: int) -> None:
        if epoch < self.epoch.epoch:
            self._answer()
        elif self._now_s - self._behind_s >= self.delta_s:
            self._behind_s = self._now_s
            self._out.append(RequestMissing(b"", self.tree.final_height))

    # --- Proposals --------------------------------------------------------------------------------

    def _on_proposal(self, proposal: Proposal) -> None:
        header = proposal.header
        if header.epoch != self.epoch.epoch:
            self._other_epoch(header.epoch)
            return
        block_hash = header_hash(header)
        if self.ended or header.view <= self.tree.final_view:
            if header.view < self.tree.final_view or self.ended:
                self._answer()
            return
        if header.view < 1 or not self._is_leaders(proposal):
            self._out.append(Refused(Refusal.NOT_ALLOWED, "proposal not the leader's"))
            return
        crowd = len(self.tree.of_view(header.view)) >= MAX_PROPOSALS_PER_VIEW
        if crowd and block_hash not in self._wanted:
            self._out.append(Refused(Refusal.RATE_LIMITED, "proposal"))
            return
        said = self._count(proposal_vote(proposal, self.epoch.leader(header.view)))
        if isinstance(said, Refusal):
            return
        if self.tree.get(block_hash) is None:
            self._judge_form(proposal)

    def _is_leaders(self, proposal: Proposal) -> bool:
        header = proposal.header
        return header.proposer == self.epoch.validators.ids[self.epoch.leader(header.view)]

    def _judge_form(self, proposal: Proposal) -> None:
        """Take a signed proposal into the tree if form and justify are good."""
        header = proposal.header
        fault = form_fault(proposal, self.epoch) or justify_fault(
            header.view, header.parent_hash, proposal.justify, self.epoch
        )
        if fault is None and not self._accept_justify(proposal.justify):
            fault = "certificate in the justify"
        if fault is not None:
            self._out.append(Refused(Refusal.MALFORMED, f"proposal: {fault}"))
            if header.view == self.view:
                self._nullify()
            return
        if header.view <= self.tree.final_view:
            return  # the justify told us of something newer
        if self._left_out(proposal) is not None:
            self._waiting[header_hash(header)] = proposal
            while len(self._waiting) > MAX_WAITING:
                self._waiting.pop(min(self._waiting, key=lambda h: self._waiting[h].header.view))
            return
        self._take_in(proposal)

    def _take_in(self, proposal: Proposal) -> None:
        """Put a justified proposal into the tree."""
        header = proposal.header
        block = self.tree.add(proposal)
        self._wanted.pop(block.hash, None)
        if header.view >= self.view:
            self._stir()

    def _left_out(self, proposal: Proposal) -> tuple[int, int] | None:
        """First and last of the views whose nullification is neither in the justify nor here."""
        justify = proposal.justify
        parent_view = justify.notarization.view if justify.notarization else 0
        last = proposal.header.view - len(justify.nullifications) - 1
        first = self._pool.not_nullified(parent_view + 1, last)
        return None if first is None else (first, last)

    def _take_in_waiting(self) -> None:
        """Take in what waited for nullifications; ask for those that are still missing."""
        for block_hash, proposal in list(self._waiting.items()):
            if self.ended or proposal.header.view <= self.tree.final_view:
                del self._waiting[block_hash]
                continue
            missing = self._left_out(proposal)
            if missing is None:
                del self._waiting[block_hash]
                self._take_in(proposal)
            elif self._now_s - self._nullifications_asked_s >= self.epoch.delta_s / 2:
                self._nullifications_asked_s = self._now_s
                self._out.append(RequestNullifications(*missing))

    def _accept_justify(self, justify: Justify) -> bool:
        certificates = [*justify.nullifications]
        if justify.notarization is not None:
            certificates.append(justify.notarization)
        return all(self._accept(one) for one in certificates)

    def _judge_linkage(self, block: Block) -> None:
        """Ask the shell about a block once its ancestors are known."""
        chain = self.tree.chain(block.hash)
        if isinstance(chain, bytes):
            self._want(chain)
            return
        block.asked = True
        ancestors = chain[:-1]
        fault = linkage_fault(block, ancestors, self.tree.final_height, self.tree.final_time_ms)
        if fault is not None:
            self._out.append(Refused(Refusal.MALFORMED, f"proposal: {fault}"))
            self._on_bodies(block.hash, valid=False)
            return
        self._out.append(
            ValidateProposal(
                block.hash,
                block.proposal,
                ancestors[-1].header if ancestors else self.tree.final_header,
                tuple(one.proposal for one in ancestors),
                any(one.header.seal for one in ancestors),
            )
        )

    def _on_bodies(self, block_hash: bytes, valid: bool) -> None:
        block = self.tree.get(block_hash)
        if block is None or block.valid is not None:
            return
        block.valid = valid
        if not valid and block.header.view == self.view:
            self._nullify()

    # --- R1: propose ------------------------------------------------------------------------------

    def _request(self, *, must: bool) -> None:
        if self.leader != self.me or not self._may_notarize():
            return
        justified = self._best_parent()
        if justified is None:
            return
        parent_hash, _ = justified
        chain = self.tree.chain(parent_hash)
        if isinstance(chain, bytes):
            self._want(chain)
            return
        self._requested = True
        self._out.append(
            RequestProposal(
                self.view,
                parent_hash,
                chain[-1].header if chain else self.tree.final_header,
                tuple(one.proposal for one in chain),
                any(one.header.seal for one in chain),
                must,
            )
        )

    def _best_parent(self) -> tuple[bytes, Justify] | None:
        """The highest notarized parent from which every view since is nullified."""
        parent_view = self._pool.last_parent()
        assert parent_view < self.view, "a notarization ends its view"
        if self._pool.not_nullified(parent_view + 1, self.view - 1) is not None:
            return None
        first = max(parent_view + 1, self.view - self.epoch.validators.inline_views)
        shown = tuple(self.nullifications(first, self.view - 1, self.view))
        parent = self._pool.parent(parent_view)
        if parent is None:
            return self.epoch.base_hash, Justify(None, shown)
        return parent.block_hash, Justify(parent, shown)

    def _on_built(self, view: int, parent_hash: bytes, content: Content) -> None:
        justified = self._best_parent()
        if view != self.view or self.leader != self.me or not self._may_notarize():
            return
        chain = self.tree.chain(parent_hash)
        if justified is None or justified[0] != parent_hash or isinstance(chain, bytes):
            return
        proposal = self._assemble(justified[1], parent_hash, chain, content)
        block = self.tree.add(proposal)
        fault = linkage_fault(block, chain, self.tree.final_height, self.tree.final_time_ms)
        assert fault is None, f"the shell built a bad block: {fault}"
        block.valid = block.asked = True
        vote = proposal_vote(proposal, self.leader)
        self._out.append(Persist(ProposalRecord(proposal), durable=True))
        self._out.append(BroadcastProposal(proposal))
        self._remember(vote)
        self._stir()

    def _assemble(
        self, justify: Justify, parent_hash: bytes, chain: list[Block], content: Content
    ) -> Proposal:
        assert self.me is not None
        height = chain[-1].header.height if chain else self.tree.final_height
        header = Header(
            chain_id=self.epoch.chain_id,
            epoch=self.epoch.epoch,
            view=self.view,
            height=height + 1,
            parent_hash=parent_hash,
            justify_hash=justify_hash(justify),
            tx_root=merkle.root(content.txids),
            n_tx=len(content.txids),
            exec_height=content.exec_height,
            state_root=content.state_root,
            receipts_root=content.receipts_root,
            validators_hash=self.epoch.validators.hash,
            schedule_root=self.epoch.schedule_root,
            time_ms=content.time_ms,
            proposer=self.epoch.validators.ids[self.me],
            seal=content.seal,
            next_validators_hash=content.next_validators_hash,
        )
        block_hash = header_hash(header)
        message = vote_message(self.epoch.epoch, self.view, VoteKind.NOTARIZE, block_hash)
        return Proposal(header, content.txids, justify, self._crypto.sign(message))

    # --- R2, R3, R5: what follows from what is known ----------------------------------------------

    def _progress(self) -> None:
        """Apply the rules until nothing changes."""
        effects = -1
        while len(self._out) != effects:
            effects = len(self._out)
            for certificate in self._pool.formed:
                self._out.append(Persist(CertificateRecord(certificate), durable=False))
            self._pool.formed.clear()
            self._finalize_known()
            self._advance()
            self._take_in_waiting()
            self._notarize()
            self._finalize_votes()
            self._ask_shell()
        self._out.extend(Evidence(first, second) for first, second in self._pool.evidence)
        self._pool.evidence.clear()
        if not self.busy:
            self._rest()

    def _advance(self) -> None:
        ended = self._pool.last_ended()
        if ended < self.view or self.ended:
            return
        certificate = self._pool.entry(ended)
        assert certificate is not None
        # Finalize what this view notarized before leaving it, if the body is here already.
        self._finalize_votes()
        nullified = certificate.kind == VoteKind.NULLIFY
        if nullified:
            leader = self.epoch.leader(ended)
            spoke = leader == self.me or bool(self.tree.of_view(ended))
            self._silent[leader] = 0 if spoke else self._silent[leader] + 1
            self._failed_views += 1
        else:
            self._failed_views = 0
            self._lagging_views += 1
        self._enter(ended + 1, nullified=nullified)

    def _enter(self, view: int, *, nullified: bool) -> None:
        self.view = view
        self._timing = self._requested = self._stirred = False
        self._out.append(EnterView(view, self.leader, nullified))
        self._arm()

    def _notarize(self) -> None:
        if not self._may_notarize():
            return
        first = next(iter(self.tree.of_view(self.view)), None)
        if first is not None and first.valid and self.leader != self.me:
            self._out.append(Persist(ProposalRecord(first.proposal), durable=False))
            self._sign(self.view, VoteKind.NOTARIZE, first.hash)

    def _may_notarize(self) -> bool:
        said = self._mine.get(self.view, {})
        return (
            self._may_sign(self.view)
            and VoteKind.NOTARIZE not in said
            and VoteKind.NULLIFY not in said
        )

    def _finalize_votes(self) -> None:
        for block in self.tree.blocks():
            view = block.header.view
            notarization = self._pool.certificate(view, VoteKind.NOTARIZE)
            said = self._mine.get(view, {})
            if (
                block.valid
                and notarization is not None
                and notarization.block_hash == block.hash
                and VoteKind.NULLIFY not in said
                and VoteKind.FINALIZE not in said
                and self._may_sign(view)
            ):
                self._sign(view, VoteKind.FINALIZE, block.hash)

    def _finalize_known(self) -> None:
        certificate = self._pool.best_finalization()
        if certificate is None or certificate.view <= self.tree.final_view or self.ended:
            return
        chain = self.tree.chain(certificate.block_hash)
        if isinstance(chain, bytes):
            self._want(chain)
            return
        # Before `Finalized`: at a seal, this core is gone once that is carried out.
        if self.epoch.leader(certificate.view) == self.me:
            self._show(certificate)
        seal = next((number for number, one in enumerate(chain) if one.header.seal), len(chain))
        blocks, beyond = chain[: seal + 1], chain[seal + 1 :]
        self._out.append(
            Finalized(
                tuple(block.proposal for block in blocks),
                certificate,
                tuple(block.header for block in beyond),
            )
        )
        self._make_final(blocks[-1].header, blocks[-1].hash)

    def _make_final(self, header: Header, block_hash: bytes) -> None:
        self.tree.finalize(header, block_hash)
        self._pool.prune(header.view)
        self._wanted.clear()
        self._lagging_views = 0
        for view in [view for view in self._mine if view <= header.view]:
            del self._mine[view]
        self._mark = max(self._mark, header.view)
        self.ended = header.seal

    def _ask_shell(self) -> None:
        """Judge what can be judged, ask for what is missing, propose if it is my turn."""
        if self.ended:
            return
        for block in self.tree.blocks():
            if not block.asked:
                self._judge_linkage(block)
        for view in range(self.tree.final_view + 1, self.view):
            notarization = self._pool.certificate(view, VoteKind.NOTARIZE)
            if notarization is not None and self.tree.get(notarization.block_hash) is None:
                self._want(notarization.block_hash)
        if not self._requested:
            self._request(must=False)
        if self.busy:
            self._arm()

    def _want(self, block_hash: bytes) -> None:
        asked_s = self._wanted.get(block_hash)
        if asked_s is None or self._now_s - asked_s >= self.delta_s:
            self._wanted[block_hash] = self._now_s
            self._out.append(RequestMissing(block_hash, self.tree.final_height))

    # --- R4: time ---------------------------------------------------------------------------------

    def _on_work(self, pending: bool) -> None:
        self._work = pending
        if pending and not self.ended:
            self._arm()
            self._request(must=False)

    def _stir(self) -> None:
        """Something was said in this view: time counts from now."""
        self._stirred = True
        self._arm()

    def _arm(self) -> None:
        if self._timing or not self.busy:
            return
        self._timing = True
        delta_s = self.delta_s
        lead_s = 0.0 if self._silent[self.leader] >= SILENT_TURNS else LEAD_DELTAS * delta_s
        self._out.append(SetTimer(Timer.LEAD, self.view, lead_s))
        self._out.append(SetTimer(Timer.VIEW, self.view, VIEW_DELTAS * delta_s))
        self._out.append(SetTimer(Timer.REPAIR, self.view, delta_s))

    def _on_timer(self, timer: Timer, view: int) -> None:
        if view != self.view or self.ended:
            return
        if not self.busy:
            if timer is Timer.REPAIR and self._unshown():
                self._show_certificates()
            return
        match timer:
            case Timer.LEAD if not self.tree.of_view(view):
                self._nullify()
            case Timer.VIEW:
                self._nullify()
            case Timer.REPAIR:
                self._repair()
                self._out.append(SetTimer(Timer.REPAIR, view, self.delta_s))
            case _:
                pass

    def _rest(self) -> None:
        """
        Nothing to do: stop the clock, but see to it that the last finalization is on show.

        Its leader publishes it. Should it be silent, the others do, one after the other, until one
        was seen to: a validator that missed the end would not know, because nobody speaks.
        """
        self._timing = False
        if self.me is not None and self._started and not self.ended and self._unshown():
            best = self.best_finalization
            if best is not None and self._resting != (best.epoch, best.view):
                self._resting = (best.epoch, best.view)
                wait_s = (LEAD_DELTAS + self.me) * self.epoch.delta_s
                self._out.append(SetTimer(Timer.REPAIR, self.view, wait_s))

    def _unshown(self) -> bool:
        best = self.best_finalization
        return best is not None and (best.epoch, best.view) > self._shown

    def _show(self, certificate: Certificate) -> None:
        self._saw_shown(certificate)
        self._out.append(BroadcastCertificate(certificate))

    def _saw_shown(self, certificate: Certificate) -> None:
        if certificate.kind == VoteKind.FINALIZE:
            self._shown = max(self._shown, (certificate.epoch, certificate.view))

    def _nullify(self) -> None:
        said = self._mine.get(self.view, {})
        if VoteKind.FINALIZE in said or VoteKind.NULLIFY in said or not self._may_sign(self.view):
            return
        self._sign(self.view, VoteKind.NULLIFY, ZERO_HASH)
        self._stir()

    # --- R6: repair -------------------------------------------------------------------------------

    def _repair(self) -> None:
        """Say again what others may have missed, and ask again for what I miss."""
        for view in sorted(self._mine)[-MAX_REPAIR:]:
            if view > self.tree.final_view:
                for vote in self._my_votes(view):
                    self._republish(vote)
        self._show_certificates()
        self._ask_holes()
        self._request(must=self._pool.last_parent() > self.tree.final_view)

    def _ask_holes(self) -> None:
        """Ask for nullifications that I missed: with a hole in them nobody can propose."""
        last = self.view - 1
        first = self._pool.not_nullified(self._pool.last_parent() + 1, last)
        if first is not None:
            self._out.append(RequestNullifications(first, last))

    def _republish(self, vote: Vote) -> None:
        block = self.tree.get(vote.block_hash)
        leads = vote.kind == VoteKind.NOTARIZE and self.epoch.leader(vote.view) == self.me
        # a quorum has what it notarized: whoever lacks it asks for it
        notarized = self._pool.certificate(vote.view, VoteKind.NOTARIZE) is not None
        if not leads or notarized:
            self._out.append(BroadcastVote(vote))
        elif block is not None:
            self._out.append(BroadcastProposal(block.proposal))

    def _answer(self) -> None:
        """Somebody lags: show how far we are, not too often."""
        if self._now_s - self._answered_s >= self.epoch.delta_s:
            self._answered_s = self._now_s
            self._show_certificates()

    def _show_certificates(self) -> None:
        """The best finalization, and what justifies a block in this view."""
        best = self.best_finalization
        shown = [best] if best is not None else []
        justified = None if self.ended else self._best_parent()
        if justified is not None:
            _, justify = justified
            shown += [justify.notarization] if justify.notarization is not None else []
            shown += justify.nullifications[-MAX_REPAIR:]
        elif not self.ended and (entry := self._pool.entry(self.view - 1)) is not None:
            shown.append(entry)
        for one in dict.fromkeys(shown):
            self._show(one)

    # --- Signing ----------------------------------------------------------------------------------

    def _may_sign(self, view: int) -> bool:
        """Nothing up to the mark, and nothing new below what was voted before a crash."""
        return self.me is not None and not self.ended and view > self._mark and view >= self._high

    def _sign(self, view: int, kind: VoteKind, block_hash: bytes) -> None:
        """Sign, log, publish and count a vote of mine."""
        assert self.me is not None and kind not in self._mine[view]
        message = vote_message(self.epoch.epoch, view, kind, block_hash)
        signature = self._crypto.sign(message)
        vote = Vote(self.epoch.epoch, view, kind, block_hash, self.me, signature)
        self._out.append(Persist(VoteRecord(vote), durable=True))
        self._out.append(BroadcastVote(vote))
        self._remember(vote)

    def _remember(self, vote: Vote) -> None:
        self._mine[vote.view][vote.kind] = vote
        self._pool.add(vote, trusted=True)

    def _recall(self, vote: Vote) -> None:
        if vote.validator == self.me:
            self._mine[vote.view].setdefault(vote.kind, vote)
            self._pool.add(vote, trusted=True)

    def _my_votes(self, view: int) -> list[Vote]:
        return list(self._mine.get(view, {}).values())


def _says(certificate: Certificate) -> tuple[VoteKind, int, int, bytes]:
    return certificate.kind, certificate.epoch, certificate.view, certificate.block_hash
