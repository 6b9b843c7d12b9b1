"""
Simplex as a specification that runs: rules R1 to R5 of one epoch, written to be read.

No signatures, no logs, no clocks, no limits on memory, no repair of what the network lost: one
validator, the words it hears, and what it says. `ledger.simplex.Core` must say the same words and
make the same blocks final, whatever it hears in whatever order (`test_specification.py`).

B. Chan and R. Pass, "Simplex Consensus: A Simple and Fast Consensus Protocol", TCC 2023, with the
deviations 1 to 4 and 6 named in `ledger/simplex.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["NOTARIZE", "NULLIFY", "FINALIZE"]
Name = bytes
NOTHING = b""
"""What a NULLIFY names."""


@dataclass(frozen=True)
class Vote:
    """One validator's word about one view."""

    kind: Kind
    view: int
    block: Name
    validator: int


@dataclass(frozen=True)
class Block:
    """A proposed block, as far as the protocol cares."""

    name: Name
    view: int
    parent: Name
    good: bool
    """What the application thinks of its content."""
    why: frozenset[Vote]
    """The votes that give it the right to stand on its parent."""


class Words:
    """Votes heard, counted."""

    def __init__(self, quorum: int, votes: Iterable[Vote] = ()) -> None:
        self._quorum = quorum
        self._said: defaultdict[tuple[Kind, int, Name], set[int]] = defaultdict(set)
        for vote in votes:
            self.add(vote)

    def add(self, vote: Vote) -> bool:
        """Hear a vote; False when it had been heard before."""
        sayers = self._said[vote.kind, vote.view, vote.block]
        is_new = vote.validator not in sayers
        sayers.add(vote.validator)
        return is_new

    def certified(self) -> Iterator[tuple[Kind, int, Name]]:
        """Everything that a quorum said."""
        return (words for words, sayers in self._said.items() if len(sayers) >= self._quorum)

    def has(self, kind: Kind, view: int, block: Name = NOTHING) -> bool:
        """True when a quorum said this."""
        return len(self._said.get((kind, view, block), ())) >= self._quorum

    def notarized(self, view: int) -> Name | None:
        """The block of a view that may be built upon."""
        blocks = (
            block
            for kind, its_view, block in self.certified()
            if its_view == view and kind != "NULLIFY"
        )
        return next(blocks, None)


@dataclass
class Validator:
    """One validator; its methods are what can happen to it."""

    me: int
    n: int
    leader: Callable[[int], int]
    genesis: Name
    view: int = 1
    said: set[Vote] = field(default_factory=set)
    final: list[Name] = field(default_factory=list)
    """The final chain after the genesis."""

    def __post_init__(self) -> None:
        faulty = (self.n - 1) // 3
        self.quorum = (self.n + faulty) // 2 + 1
        self.heard = Words(self.quorum)
        self.blocks: dict[Name, Block] = {}
        """Justified blocks above the last final one, in the order they came."""
        self.valid: dict[Name, bool] = {}
        self.final_view = 0

    # --- What can happen --------------------------------------------------------------------------

    def hear(self, vote: Vote) -> None:
        """A vote arrives. A leader that gives up its own view is followed."""
        if vote.view >= self.final_view:
            is_new = self.heard.add(vote)
            leader = self.leader(self.view)
            if is_new and vote == Vote("NULLIFY", self.view, NOTHING, leader):
                self.give_up()
            self.follow_rules()

    def hear_certificate(self, votes: Iterable[Vote]) -> None:
        """A quorum of votes that say the same arrives at once."""
        for vote in votes:
            if vote.view >= self.final_view:
                self.heard.add(vote)
        self.follow_rules()

    def hear_proposal(self, block: Block) -> None:
        """A block arrives from its leader, and is the leader's NOTARIZE."""
        if block.view <= self.final_view:
            return
        self.heard.add(Vote("NOTARIZE", block.view, block.name, self.leader(block.view)))
        if self.is_justified(block):
            for vote in block.why:
                self.heard.add(vote)
            self.blocks.setdefault(block.name, block)
        elif block.view == self.view:
            self.give_up()
        self.follow_rules()

    def time_is_up(self, view: int) -> None:
        """R4: the view took too long."""
        if view == self.view:
            self.give_up()
        self.follow_rules()

    def lead(self, block: Block) -> None:
        """R1: propose a block, on the highest block that can be justified."""
        assert self.may_lead()
        assert (block.view, block.parent, block.good) == (self.view, self.best_parent(), True)
        assert self.is_justified(block)
        self.blocks[block.name] = block
        self.valid[block.name] = True
        self.say("NOTARIZE", self.view, block.name)
        self.follow_rules()

    # --- R1 ---------------------------------------------------------------------------------------

    def may_lead(self) -> bool:
        """My turn, nothing said yet, and I know what I would build upon."""
        parent = self.best_parent()
        return (
            self.leader(self.view) == self.me
            and not self.has_said("NOTARIZE", self.view)
            and not self.has_said("NULLIFY", self.view)
            and parent is not None
            and self.chain_to(parent) is not None
        )

    def best_parent(self) -> Name | None:
        """The newest notarized block such that every view since is nullified."""
        return parent_in(self.heard, self.view, self.genesis)

    def is_justified(self, block: Block) -> bool:
        """Its own votes prove that its parent may be built upon in its view."""
        return parent_in(Words(self.quorum, block.why), block.view, self.genesis) == block.parent

    # --- R2 to R5 ---------------------------------------------------------------------------------

    def follow_rules(self) -> None:
        """Do what the rules ask for, until they ask for nothing."""
        while (
            self.finalize() or self.vote_finalize() or self.enter_next_view()
            or self.vote_notarize() or self.judge()
        ):  # fmt: skip
            pass

    def vote_notarize(self) -> bool:
        """R2: the first valid proposal of this view, if I have not given up."""
        first = next((block for block in self.blocks.values() if block.view == self.view), None)
        if (
            first is None
            or not self.valid.get(first.name)
            or self.has_said("NOTARIZE", self.view)
            or self.has_said("NULLIFY", self.view)
        ):
            return False
        self.say("NOTARIZE", self.view, first.name)
        return True

    def vote_finalize(self) -> bool:
        """R3: a notarized block that I find valid, in a view that I have not given up."""
        for block in sorted(self.blocks.values(), key=lambda block: block.view):
            if (
                self.valid.get(block.name)
                and self.heard.has("NOTARIZE", block.view, block.name)
                and not self.has_said("NULLIFY", block.view)
                and not self.has_said("FINALIZE", block.view)
            ):
                self.say("FINALIZE", block.view, block.name)
                return True
        return False

    def enter_next_view(self) -> bool:
        """R3, R4: any certificate ends its view."""
        ended = max((view for _, view, _ in self.heard.certified()), default=0)
        if ended < self.view:
            return False
        self.view = ended + 1
        return True

    def give_up(self) -> None:
        """R4: NULLIFY, unless I said FINALIZE."""
        if not self.has_said("FINALIZE", self.view) and not self.has_said("NULLIFY", self.view):
            self.say("NULLIFY", self.view, NOTHING)

    def judge(self) -> bool:
        """Look at the content of a block once its ancestors are known; R4 if it is bad."""
        for block in sorted(self.blocks.values(), key=lambda block: block.view):
            if block.name not in self.valid and self.chain_to(block.name) is not None:
                self.valid[block.name] = block.good
                if not block.good and block.view == self.view:
                    self.give_up()
                return True
        return False

    def finalize(self) -> bool:
        """R5: the newest block with a quorum of FINALIZE, and its ancestors, are final."""
        finalized = [(view, name) for kind, view, name in self.heard.certified() if kind[0] == "F"]
        view, name = max(finalized, default=(0, NOTHING))
        chain = self.chain_to(name) if view > self.final_view else None
        if chain is None:
            return False
        self.final += [block.name for block in chain]
        self.final_view = view
        self.blocks = {name: block for name, block in self.blocks.items() if block.view > view}
        return True

    def chain_to(self, name: Name) -> list[Block] | None:
        """The blocks after the last final one up to this one, or None when one is unknown."""
        chain: list[Block] = []
        last_final = self.final[-1] if self.final else self.genesis
        while name != last_final:
            if name not in self.blocks:
                return None
            chain.insert(0, self.blocks[name])
            name = self.blocks[name].parent
        return chain

    # --- Saying -----------------------------------------------------------------------------------

    def say(self, kind: Kind, view: int, block: Name) -> None:
        """Say it to everybody, and hear it myself."""
        vote = Vote(kind, view, block, self.me)
        self.said.add(vote)
        self.heard.add(vote)

    def has_said(self, kind: Kind, view: int) -> bool:
        """True when I said this of a view, about whichever block."""
        return any((vote.kind, vote.view) == (kind, view) for vote in self.said)


def parent_in(words: Words, view: int, genesis: Name) -> Name | None:
    """What these words allow to be built upon in a view."""
    for before in range(view - 1, 0, -1):
        if (block := words.notarized(before)) is not None:
            return block
        if not words.has("NULLIFY", before):
            return None
    return genesis
