"""
Validators that do not follow the protocol, and cores with one rule broken.

The first show that the protocol withstands up to f of them. The second (mutants) show that the
simulator would notice if the rule were not there.
"""

from __future__ import annotations

import msgspec

from ledger.protocol import (
    BroadcastProposal,
    BroadcastVote,
    Content,
    Effect,
    Event,
    ProposalReceived,
    RequestProposal,
    VoteReceived,
)
from ledger.simplex import Core
from ledger.types import (
    ZERO_HASH,
    Header,
    Justify,
    Proposal,
    ValidatorSet,
    Vote,
    VoteKind,
    header_hash,
    vote_message,
)
from sim.consensus import MAX_BLOCK_TXS, Node
from wire.cpf import Q16

REPEATED_BLOCKS = 3
"""From how many of the last blocks a repeater takes its transactions."""


class Silent(Node):
    """Never says anything."""

    def do(self, effect: Effect) -> None:
        """Follow the chain, keep quiet."""
        if not isinstance(effect, BroadcastProposal | BroadcastVote):
            super().do(effect)


class Lazy(Node):
    """Votes, but never proposes."""

    def do(self, effect: Effect) -> None:
        """Skip the work of leading."""
        if not isinstance(effect, RequestProposal):
            super().do(effect)


class Equivocator(Node):
    """Leads with two blocks, one for each half, and says everything about every block it sees."""

    def take(self, event: Event) -> None:
        """Vote for whatever is proposed, in every way."""
        super().take(event)
        if isinstance(event, ProposalReceived):
            self._say_everything(event.proposal.header)

    def do(self, effect: Effect) -> None:
        """Double every proposal; nullify beside every finalize."""
        match effect:
            case BroadcastProposal(proposal):
                other = self._other(proposal)
                for node in self.world.nodes:
                    if node is not self:
                        chosen = proposal if node.place % 2 else other
                        self.world.send(self, node, ProposalReceived(chosen))
                self._say_everything(proposal.header)
                self._say_everything(other.header)
            case _:
                super().do(effect)

    def _other(self, proposal: Proposal) -> Proposal:
        header = msgspec.structs.replace(proposal.header, time_ms=proposal.header.time_ms + 1)
        vote = self._vote(header.epoch, header.view, VoteKind.NOTARIZE, header_hash(header))
        return msgspec.structs.replace(proposal, header=header, signature=vote.signature)

    def _say_everything(self, header: Header) -> None:
        block_hash = header_hash(header)
        for kind in VoteKind:
            named = ZERO_HASH if kind == VoteKind.NULLIFY else block_hash
            vote = self._vote(header.epoch, header.view, kind, named)
            self.world.broadcast(self, VoteReceived(vote))

    def _vote(self, epoch: int, view: int, kind: VoteKind, block_hash: bytes) -> Vote:
        signature = self.crypto.sign(vote_message(epoch, view, kind, block_hash))
        return Vote(epoch, view, kind, block_hash, self.seat, signature)


class TwoFaced(Equivocator):
    """
    Leads with two blocks and stands by both: each half hears only of the one that it was shown.

    With a broker in league, which alone knows that there were two.
    """

    def take(self, event: Event) -> None:
        """Follow the protocol in the views of others."""
        super(Equivocator, self).take(event)

    def do(self, effect: Effect) -> None:
        """Say of one's own blocks to each half what it wants to hear."""
        match effect:
            case BroadcastProposal(proposal):
                for number, one in enumerate((self._other(proposal), proposal)):
                    for node in self._half(number):
                        self.world.send(self, node, ProposalReceived(one))
                        for kind in (VoteKind.NOTARIZE, VoteKind.FINALIZE):
                            header = one.header
                            named = header_hash(header)
                            vote = self._vote(header.epoch, header.view, kind, named)
                            self.world.send(self, node, VoteReceived(vote))
            case BroadcastVote(vote) if self.epoch.leader(vote.view) == self.seat:
                pass  # all is said
            case _:
                super(Equivocator, self).do(effect)

    def _half(self, number: int) -> list[Node]:
        return [n for n in self.world.nodes if n is not self and n.place % 2 == number]


class Forker(Node):
    """As a leader, builds beside the newest block instead of on it, and hides what it skips."""

    def build(self, request: RequestProposal) -> None:
        """Publish a block on the grandparent, as if nothing had been notarized since."""
        core = self.core
        tree = core.tree
        if not request.ancestors or request.view != core.view:
            super().build(request)
            return
        skipped = request.ancestors[-1]
        chain = [
            block for one in request.ancestors[:-1] if (block := tree.get(header_hash(one.header)))
        ]
        content = self._empty(request)
        justify = Justify(skipped.justify.notarization)
        proposal = core._assemble(justify, skipped.header.parent_hash, chain, content)
        self.world.broadcast(self, ProposalReceived(proposal))

    def _empty(self, _request: RequestProposal) -> Content:
        """A block without transactions."""
        return Content(
            txids=(),
            exec_height=self.height,
            state_root=self.roots[-1],
            receipts_root=self.roots[-1],
            time_ms=self.world.market_ms,
        )


class Repeater(Node):
    """As a leader, puts transactions into its blocks that have been executed before."""

    def choose(self, taken: set[bytes]) -> list[bytes]:
        """The newest executed ones first."""
        executed = [txid for block in self.chain[-REPEATED_BLOCKS:] for txid in block[2]]
        return [*executed, *super().choose(taken)][:MAX_BLOCK_TXS]


class FalseCpf(Equivocator):
    """Claims the best CPF there is, so that it leads first in every epoch, and equivocates then."""

    claims_cpf_q16 = Q16


# --- Mutants --------------------------------------------------------------------------------------


class WeakQuorum(ValidatorSet):
    """A quorum of 2f: two of them need not share an honest validator."""

    @property
    def quorum(self) -> int:
        """Too few."""
        return 2 * self.f


class FinalizesAfterNullify(Core):
    """Does not remember that it gave up a view when it could finalize it."""

    def _finalize_votes(self) -> None:
        hidden = {
            view: said.pop(VoteKind.NULLIFY)
            for view, said in self._mine.items()
            if VoteKind.NULLIFY in said
        }
        super()._finalize_votes()
        for view, vote in hidden.items():
            self._mine[view][VoteKind.NULLIFY] = vote


class NeverRepairs(Core):
    """Says everything once."""

    def _repair(self) -> None:
        pass

    def _answer(self) -> None:
        pass


class BelievesUnjustified(Core):
    """Takes a proposal without looking at its justify."""

    def _judge_form(self, proposal: Proposal) -> None:
        self.tree.add(proposal)
        self._stir()


class Reexecutes(Node):
    """A shell that forgets what it has executed when it judges a block."""

    def is_fresh(self, txids: tuple[bytes, ...]) -> bool:
        """Everything is."""
        return True
