"""
One contract's chain of event messages, as a client counts it: no I/O, no clock.

    statements of validators ──► votes (bounded for each validator)
        ── f + 1 equal ──► agreed parts ── all parts, in `prevHeight` order ──► `take`

Honest validators say the same of a height, and there is one among any f + 1: so a part that f + 1
signed is the ledger's. Of what a validator says alone only the digest is kept, in a share of its
own; when that is full its farthest statement is forgotten, so the next message always finds room.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ledger.statements import EventPart, join_parts
from wire.errors import MalformedError

MAX_PENDING = 2048
"""Statements of one validator that too few others have made."""
MAX_AGREED_BYTES = 16 * 1024 * 1024
"""Of agreed messages that wait for those before them. The next one is kept at any size."""
MESSAGE_OVERHEAD_BYTES = 512

_Place = tuple[int, int]
"""Height and part."""


@dataclass(slots=True)
class _Agreed:
    """A message of which some parts are agreed."""

    height: int
    parts: int
    digest: str
    slices: dict[int, bytes] = field(default_factory=dict)
    size: int = MESSAGE_OVERHEAD_BYTES

    @property
    def whole(self) -> bool:
        return len(self.slices) == self.parts


class EventChain:
    """
    Counts statements of one contract and gives out its messages in order, each once.

    Args:
        start: height up to which messages are known already; None: begin with what comes first
    """

    def __init__(self, start: int | None) -> None:
        self.taken = start
        """Height of the last message given out."""
        self.handled = start
        """Height of the last message that was dealt with."""
        self._votes: dict[str, dict[_Place, bytes]] = {}
        """Per validator the digests of what it said that is not agreed."""
        self._agreed: dict[int, _Agreed] = {}
        """By `prevHeight`."""
        self._agreed_bytes = 0

    def count(self, validator: str, digest: bytes, part: EventPart, enough: int) -> bool:
        """
        Count a validator's statement.

        Args:
            validator: who said it, its signature checked
            digest: of all that was said
            part: what was said
            enough: how many validators must say the same

        Returns:
            True when it made the part agreed.

        Raises:
            MalformedError: agreed, but it does not belong to the other parts of its height.
        """
        place = (part.height, part.part)
        if self.taken is not None and part.height <= self.taken:
            return False
        known = self._agreed.get(part.previous)
        if known is not None and known.height == part.height and part.part in known.slices:
            return False
        others = sum(
            said.get(place) == digest for who, said in self._votes.items() if who != validator
        )
        if others + 1 < enough:
            own = self._votes.setdefault(validator, {})
            own[place] = digest
            if len(own) > MAX_PENDING:
                del own[max(own)]
            return False
        for said in self._votes.values():
            said.pop(place, None)
        self._agree(part)
        return True

    def take(self) -> tuple[int, list[dict[str, Any]]] | None:
        """
        The next message (height and events), once; None while it is not whole.

        Raises:
            MalformedError: its parts do not make a list of events; they are forgotten.
        """
        if self.taken is None:
            return None
        found = self._agreed.get(self.taken)
        if found is None or not found.whole:
            return None
        self._forget(self.taken)
        events = join_parts((found.slices[n] for n in range(found.parts)), found.digest)
        self.taken = found.height
        for said in self._votes.values():
            for place in [p for p in said if p[0] <= found.height]:
                del said[place]
        for previous in [p for p in self._agreed if p < found.height]:
            self._forget(previous)
        return found.height, events

    def finish(self) -> None:
        """Everybody is done with the message taken last."""
        self.handled = self.taken

    def missing(self) -> _Place | None:
        """(h, i): part i of the message after height h is not there; None when it is whole."""
        if self.taken is None:
            return None
        found = self._agreed.get(self.taken)
        if found is None:
            return self.taken, 0
        if found.whole:
            return None
        return self.taken, next(n for n in range(found.parts) if n not in found.slices)

    @property
    def gap(self) -> bool:
        """Something is agreed, and something before it is missing."""
        return bool(self._agreed) and self.missing() is not None

    @property
    def pending(self) -> dict[str, int]:
        """How many statements each validator made alone."""
        return {validator: len(said) for validator, said in self._votes.items()}

    def keep_validators(self, validators: Collection[str]) -> None:
        """Forget what others said: they are validators no more."""
        for validator in [v for v in self._votes if v not in validators]:
            del self._votes[validator]

    def _agree(self, part: EventPart) -> None:
        if self.taken is None:
            self.taken = self.handled = part.previous
        message = self._agreed.get(part.previous)
        if message is None:
            message = _Agreed(part.height, part.parts, part.digest)
            self._agreed[part.previous] = message
            self._agreed_bytes += message.size
        head = (message.height, message.parts, message.digest)
        if head != (part.height, part.parts, part.digest):
            raise MalformedError("parts of one height do not belong together", height=part.height)
        message.slices[part.part] = part.slice
        message.size += len(part.slice)
        self._agreed_bytes += len(part.slice)
        while len(self._agreed) > 1 and self._agreed_bytes > MAX_AGREED_BYTES:
            self._forget(max(self._agreed))

    def _forget(self, previous: int) -> None:
        self._agreed_bytes -= self._agreed.pop(previous).size
