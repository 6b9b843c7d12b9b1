"""
The light client: follows a chain by a header now and then, and checks proofs (`ledger.proofs`).

It starts from the genesis or from a checkpoint of somebody it trusts. It takes only final headers
of its chain that are newer than what it has, and none at all once it was away for longer than the
trust period: by then, keys of former validators may have been sold. It never believes one server:
shown two final headers that exclude each other, it keeps both as evidence.

A quorum may also finalise headers that are dropped after a seal (`ledger.proofs`);
`Checkpoint.firm_height` and `contradict` know them. Pure: market time is an argument. Source:
ledger.md §6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ledger import types
from ledger.checkpoint import Checkpoint, UnknownValidatorsError, checkpoint_at
from ledger.proofs import Anchor, Fact, Proof, RowFact, verify, verify_anchor
from wire.errors import CertificateError, ExpiredError, FutureDatedError, ReplayedError

DAY_MS = 24 * 3600 * 1000
TRUST_PERIOD_MS = 14 * DAY_MS
"""How long after its newest header a client may go on without a new checkpoint [market ms]."""
DRIFT_MS = 10_000
"""How far a header may lie ahead of the client's clock [market ms]."""


class RollbackError(ReplayedError):
    """Older than what the client already trusts."""


class TrustExpiredError(ExpiredError):
    """The client was offline for too long: it needs a checkpoint from somebody it trusts."""


class ConflictError(CertificateError):
    """Two sources finalised what excludes each other; `conflict` is the evidence."""

    def __init__(self, conflict: Conflict) -> None:
        self.conflict = conflict
        super().__init__("two final headers exclude each other", height=conflict.height)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two final headers that cannot both be: more than f validators broke the rules."""

    first: Anchor
    second: Anchor
    height: int
    """The lower of the two."""
    guilty: tuple[str, ...]
    """Who signed both finalizations of one view. Empty when they are of different views: then the
    votes of those views name the guilty."""


class LightClient:
    """
    Follows a chain by headers.

    Args:
        trust: of a genesis (`genesis_checkpoint`), or kept from before (`LightClient.trust`)
        trust_period_ms: how long after the newest header it may go on alone [market ms]
    """

    def __init__(self, trust: Checkpoint, trust_period_ms: int = TRUST_PERIOD_MS) -> None:
        self.trust = trust
        self._trust_period_ms = trust_period_ms
        self.newest: Anchor | None = None
        """The newest header taken since it began; the evidence if another one excludes it."""
        self._row_height = 0
        """The newest state a row was shown of."""

    def advance(
        self, anchor: Anchor, now_ms: int, following: types.ValidatorSet | None = None
    ) -> bool:
        """
        Take a newer final header.

        Between two changes of the validators, any header may follow any older one; a change needs
        its seal header, and the set that begins with it in `following`. A seal may lie below what
        is trusted: that was dropped after it.

        Returns:
            False when it is the trusted header itself; how it is final is not looked at again.

        Raises:
            TrustExpiredError: the newest header is older than the trust period.
            OtherChainError, UnknownValidatorsError, NotFinalError: see `verify_anchor`.
            FutureDatedError: dated after the client's clock.
            ConflictError: it and the newest header exclude each other.
            RollbackError: not newer than what is trusted.
        """
        self._check_period(now_ms)
        header, trust = anchor.header, self.trust
        if types.header_hash(header) == trust.block_hash:
            return False  # a seal that changes the validators is not of those who decide now
        verify_anchor(anchor, trust)
        _check_not_ahead(header.time_ms, now_ms)
        self._expose(anchor)
        self._check_newer(header)
        validators = trust.validators
        if header.seal and header.next_validators_hash != validators.hash:
            if following is None:
                raise UnknownValidatorsError("a seal begins another set", epoch=header.epoch + 1)
            validators = following
        taken = checkpoint_at(header, validators, trust.firm_height)
        # A seal below what is trusted may name an older state, but rows of it stay refused.
        self.trust = replace(taken, exec_height=max(taken.exec_height, trust.exec_height))
        self.newest = anchor
        return True

    def check(self, proof: Proof, now_ms: int) -> Fact:
        """
        Check a proof; a row of the state must not be older than what the client has seen.

        Raises:
            RollbackError: an old row.
            FutureDatedError: proved by a header dated after the client's clock.
            Everything that `verify` raises, and TrustExpiredError.
        """
        self._check_period(now_ms)
        fact = verify(proof, self.trust)
        _check_not_ahead(fact.time_ms, now_ms)
        if isinstance(fact, RowFact):
            seen = max(self.trust.exec_height, self._row_height)
            if fact.height < seen:
                raise RollbackError("the row is old", height=fact.height, seen=seen)
            self._row_height = fact.height
        return fact

    def expose(self, other: Anchor) -> None:
        """
        Compare what another source calls final with the newest header.

        Raises:
            OtherChainError, UnknownValidatorsError, NotFinalError: it is not final at all.
            ConflictError: they exclude each other. (Silence is no proof of agreement: they may be
                of different heights.)
        """
        verify_anchor(other, self.trust)
        self._expose(other)

    def _expose(self, other: Anchor) -> None:
        if self.newest is not None:
            conflict = contradict(self.newest, other, self.trust.validators)
            if conflict is not None:
                raise ConflictError(conflict)

    def _check_period(self, now_ms: int) -> None:
        age_ms = now_ms - self.trust.time_ms
        if age_ms > self._trust_period_ms:
            raise TrustExpiredError("a newer checkpoint is needed", days=age_ms // DAY_MS)

    def _check_newer(self, header: types.Header) -> None:
        trust = self.trust
        # An epoch has one seal. When it lies below what is trusted, that was dropped after it. It
        # leads on all the same, to the next epoch, and its time and state may be the older ones.
        below = trust.firm_height < header.height < trust.height
        if header.seal and header.epoch == trust.epoch and below:
            return
        # An empty header of an older epoch may have been dropped after its seal: the next epoch
        # may then begin below it, but never below a block, nor with an older state.
        floor = trust.height if header.epoch == trust.epoch else trust.firm_height
        if (
            header.epoch < trust.epoch
            or header.height <= floor
            or header.exec_height < trust.exec_height
            or (header.epoch == trust.epoch and header.time_ms <= trust.time_ms)
        ):
            raise RollbackError(
                "not newer than what is trusted", height=header.height, trusted=trust.height
            )


def _check_not_ahead(time_ms: int, now_ms: int) -> None:
    if time_ms > now_ms + DRIFT_MS:
        raise FutureDatedError("header of the future", time_ms=time_ms)


def check_offline(proof: Proof, trust: Checkpoint) -> Fact:
    """
    Check a proof without a clock: the trust period is counted up to the proof's own header.

    Whether that header is new enough is for the reader, who sees its time in the fact.

    Raises:
        TrustExpiredError: the header is too far from what is trusted.
        Everything that `ledger.proofs.verify` raises.
    """
    age_ms = proof.header.time_ms - trust.time_ms
    if age_ms > TRUST_PERIOD_MS:
        raise TrustExpiredError("a newer checkpoint is needed", days=age_ms // DAY_MS)
    return verify(proof, trust)


def contradict(first: Anchor, second: Anchor, validators: types.ValidatorSet) -> Conflict | None:
    """
    Evidence when two final headers (checked by `verify_anchor`) exclude each other.

    In one epoch every finalised header is on one line, so two at one height must be the same.
    Across epochs, a later epoch begins above everything of an earlier one but what was dropped
    after its seal, and that is empty. Never accuses when the rules were kept.
    """
    older, newer = sorted((first, second), key=lambda one: (one.header.epoch, one.header.height))
    low, high = older.header, newer.header
    height = min(low.height, high.height)
    if low.epoch != high.epoch:
        forked = low.height >= high.height and (low.seal or low.n_tx > 0)
    else:
        line = _line(older)
        forked = any(line.get(height, found) != found for height, found in _line(newer).items())
        # after a seal there is nothing but what is dropped
        forked = forked or (low.seal and low.height < high.height and (high.seal or high.n_tx > 0))
    if not forked:
        return None
    return Conflict(first, second, height, _double_signers(first, second, validators))


def _line(anchor: Anchor) -> dict[int, bytes]:
    """Hashes of the final headers that an anchor shows, by height, and of its parent."""
    header = anchor.header
    line = {header.height - 1: header.parent_hash, header.height: types.header_hash(header)}
    for one in anchor.finality.path:
        line[one.height] = types.header_hash(one)
    return line


def _double_signers(
    first: Anchor, second: Anchor, validators: types.ValidatorSet
) -> tuple[str, ...]:
    """Identities that finalised two blocks in one view."""
    one, two = first.finality.certificate, second.finality.certificate
    if (one.epoch, one.view) != (two.epoch, two.view) or one.block_hash == two.block_hash:
        return ()
    both = set(types.signers(one)) & set(types.signers(two))
    return tuple(validators.ids[index] for index in sorted(both))
