"""
Who speaks: when each validator was last heard, and about what.

Fed with the votes that come in on the bus. The broker lets nobody publish under another's id, so
the topic says who spoke; the vote itself is judged by the consensus core, not here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ledger.types import Proposal, Vote, VoteKind, decode
from runtime.ports import Message
from wire import topics

MAX_PEERS = 256
MAX_VOTE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """The last thing that a validator said."""

    id: str
    heard_ms: int
    """Real UTC milliseconds."""
    votes: int
    """Heard so far."""
    kind: str
    epoch: int
    view: int
    height: int | None
    """Of the last known block that it voted for."""


class Peers:
    """
    Remembers the last vote of each validator.

    Args:
        wall_ms: real time
        find: the proposal of a block hash, when the node has it
    """

    def __init__(
        self, wall_ms: Callable[[], int], find: Callable[[bytes], Proposal | None]
    ) -> None:
        self._wall_ms = wall_ms
        self._find = find
        self._peers: OrderedDict[str, Peer] = OrderedDict()

    async def take_vote(self, message: Message) -> None:
        """
        Handle a message on `consensus/vote/<id>`.

        Raises:
            WireError: not a vote.
        """
        vote = decode(Vote, message.payload, MAX_VOTE_BYTES)
        if not message.retained:
            self.heard(topics.parse(message.topic).leaf, vote)

    def heard(self, validator: str, vote: Vote) -> None:
        """A validator said something now."""
        before = self._peers.pop(validator, None)
        proposal = self._find(vote.block_hash) if vote.kind != VoteKind.NULLIFY else None
        height = proposal.header.height if proposal is not None else None
        if height is None and before is not None:
            height = before.height
        self._peers[validator] = Peer(
            id=validator,
            heard_ms=self._wall_ms(),
            votes=1 + (before.votes if before is not None else 0),
            kind=vote.kind.name.lower(),
            epoch=vote.epoch,
            view=vote.view,
            height=height,
        )
        if len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)

    def all(self) -> list[Peer]:
        """Everybody heard, by id."""
        return sorted(self._peers.values(), key=lambda one: one.id)
