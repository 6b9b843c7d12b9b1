"""
The votes and certificates of one epoch that this validator has seen and checked.

Every signature is checked once: a certificate made of votes already here costs only comparisons.
Memory is bounded per validator: two blocks per kind and view (the second is evidence), and a window
of views ahead, of which the oldest is dropped first.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum

from ledger.protocol import Crypto, conflict
from ledger.types import (
    Certificate,
    ValidatorSet,
    Vote,
    VoteKind,
    certificate_votes,
    make_certificate,
    vote_message,
    well_formed,
)
from wire.errors import Refusal

MAX_VIEWS_AHEAD = 64
"""Views in which one validator's votes are kept at a time."""


class Seen(Enum):
    """What became of a vote."""

    NEW = "new"
    AGAIN = "again"


@dataclass(slots=True)
class _View:
    votes: dict[tuple[VoteKind, bytes], dict[int, Vote]] = field(default_factory=dict)
    certificates: dict[VoteKind, Certificate] = field(default_factory=dict)


class VotePool:
    """Checked votes, and the certificates they make."""

    def __init__(self, epoch: int, validators: ValidatorSet, crypto: Crypto) -> None:
        self._epoch = epoch
        self._validators = validators
        self._crypto = crypto
        self._views: dict[int, _View] = {}
        self._highest: dict[VoteKind, int] = {}
        """The highest view with a certificate of each kind."""
        self._ended = self._parent = 0
        self._final: Certificate | None = None
        self._active: dict[int, set[int]] = defaultdict(set)
        self.evidence: list[tuple[Vote, Vote]] = []
        """Conflicting votes found since the caller last emptied the list."""
        self.formed: list[Certificate] = []
        """Certificates formed from single votes since the caller last emptied the list."""

    def add(self, vote: Vote, *, trusted: bool = False) -> Seen | Refusal:
        """
        Check and keep a vote of this epoch.

        Args:
            vote: from anyone
            trusted: its signature is known to be good (it is mine)

        Returns:
            Whether it is new, or why it was refused.
        """
        if vote.validator >= self._validators.n:
            return Refusal.UNKNOWN_SENDER
        if vote.epoch != self._epoch or vote.view < 1 or not well_formed(vote):
            return Refusal.MALFORMED
        if self._has(vote):
            return Seen.AGAIN
        if not trusted and not self._signed(vote):
            return Refusal.BAD_SIGNATURE
        return self._keep(vote)

    def check(self, certificate: Certificate) -> bool:
        """Check a certificate of this epoch; keep it and the votes in it when it is good."""
        if certificate.epoch != self._epoch or certificate.view < 1:
            return False
        if self.certificate(certificate.view, certificate.kind) == certificate:
            return True
        votes = certificate_votes(certificate, self._validators)
        if not votes:
            return False
        known = self._cell(certificate)
        fresh = [vote for vote in votes if known.get(vote.validator) != vote]
        if not all(self._signed(vote) for vote in fresh):
            return False
        # First the certificate: forming it again from its own votes would be waste.
        self._hold(certificate)
        for vote in fresh:
            self._keep(vote)
        return True

    def certificate(self, view: int, kind: VoteKind) -> Certificate | None:
        """The certificate of this kind for a view."""
        held = self._views.get(view)
        return held.certificates.get(kind) if held else None

    def certificates(self) -> list[Certificate]:
        """All certificates held, by view."""
        return [
            certificate
            for view in sorted(self._views)
            for certificate in self._views[view].certificates.values()
        ]

    def entry(self, view: int) -> Certificate | None:
        """The certificate that ends a view: notarization (or finalization) before nullification."""
        return self.parent(view) or self.certificate(view, VoteKind.NULLIFY)

    def parent(self, view: int) -> Certificate | None:
        """The certificate that lets a block of this view be extended."""
        return self.certificate(view, VoteKind.NOTARIZE) or self.certificate(
            view, VoteKind.FINALIZE
        )

    def not_nullified(self, first: int, last: int) -> int | None:
        """The first view from `first` to `last` without a nullification here."""
        for view in range(first, last + 1):
            if self.certificate(view, VoteKind.NULLIFY) is None:
                return view
        return None

    def last_ended(self) -> int:
        """The highest view that ended, 0 when none did."""
        return self._ended

    def last_parent(self) -> int:
        """The highest view with a notarized block, 0 when there is none."""
        return self._parent

    def best_finalization(self) -> Certificate | None:
        """The finalization of the highest view."""
        return self._final

    def prune(self, below_view: int) -> None:
        """Forget the views before `below_view`."""
        self._views = {view: held for view, held in self._views.items() if view >= below_view}
        self._highest = {kind: view for kind, view in self._highest.items() if view >= below_view}
        for views in self._active.values():
            views.difference_update([view for view in views if view < below_view])
        self._look_up()

    def _look_up(self) -> None:
        """Keep at hand what is asked for at every event, after a change of the certificates."""
        highest = self._highest
        final = highest.get(VoteKind.FINALIZE, 0)
        self._ended = max(highest.values(), default=0)
        self._parent = max(highest.get(VoteKind.NOTARIZE, 0), final)
        self._final = self.certificate(final, VoteKind.FINALIZE)

    def _hold(self, certificate: Certificate) -> None:
        self._view(certificate.view).certificates.setdefault(certificate.kind, certificate)
        highest = self._highest.get(certificate.kind, 0)
        self._highest[certificate.kind] = max(highest, certificate.view)
        self._look_up()

    def _view(self, view: int) -> _View:
        return self._views.setdefault(view, _View())

    def _cell(self, like: Vote | Certificate) -> dict[int, Vote]:
        held = self._views.get(like.view)
        return held.votes.get((like.kind, like.block_hash), {}) if held else {}

    def _has(self, vote: Vote) -> bool:
        return self._cell(vote).get(vote.validator) == vote

    def _signed(self, vote: Vote) -> bool:
        message = vote_message(vote.epoch, vote.view, vote.kind, vote.block_hash)
        return self._crypto.verify(vote.validator, message, vote.signature)

    def _keep(self, vote: Vote) -> Seen | Refusal:
        held = self._view(vote.view)
        said = [cell[vote.validator] for cell in held.votes.values() if vote.validator in cell]
        if any(other.kind == vote.kind and other.block_hash == vote.block_hash for other in said):
            return Seen.AGAIN  # a second good signature under the same words
        if sum(other.kind == vote.kind for other in said) >= 2:
            return Refusal.RATE_LIMITED
        clash = next((other for other in said if conflict(other, vote)), None)
        if clash is not None:
            self.evidence.append((clash, vote))
        cell = held.votes.setdefault((vote.kind, vote.block_hash), {})
        cell[vote.validator] = vote
        if len(cell) >= self._validators.quorum and vote.kind not in held.certificates:
            certificate = make_certificate(list(cell.values()))
            self._hold(certificate)
            self.formed.append(certificate)
        self._bound(vote)
        return Seen.NEW

    def _bound(self, vote: Vote) -> None:
        views = self._active[vote.validator]
        views.add(vote.view)
        if len(views) <= MAX_VIEWS_AHEAD:
            return
        oldest = min(views)
        views.remove(oldest)
        held = self._views.get(oldest)
        if held is not None:
            for cell in held.votes.values():
                cell.pop(vote.validator, None)
            held.votes = {words: cell for words, cell in held.votes.items() if cell}
            if not held.votes and not held.certificates:
                del self._views[oldest]
