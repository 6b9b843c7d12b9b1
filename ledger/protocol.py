"""
What goes into the consensus core and what comes out: events, effects, and what an epoch is.

The core does no I/O. Its shell (the node, or the simulator) feeds it one event at a time and
carries out the effects **in order**. One rule makes voting safe across crashes: whatever a
`Persist` holds with `durable` set must be on disk (fdatasync) before any later effect of the list
leaves the machine. Several steps may share one fdatasync if all their publishing waits for it.

What the shell promises:
- `SetTimer(timer, view, s)` replaces the running timer of the same name; when it ends, the shell
  sends `TimerFired(timer, view)`. The core ignores what has become stale.
- `RequestProposal` is answered with `ProposalBuilt` when there is something to put into a block,
  and not at all otherwise. It is asked again at the next `WorkAvailable(True)`.
- `ValidateProposal` is answered with `BodiesReady` once all bodies are present and durable and
  roots, time (not in the future), seal flag and "no txid executed before" are judged. Form,
  linkage, justify, hashes, emptiness after a seal, time after the parent's, and "no txid in an
  unfinalised ancestor" the core has judged already.
- `WorkAvailable` tells whether something waits for a block here: transactions neither executed nor
  expired, or begin-block work that is due. An idle chain does not grow.
- `Finalized` is executed in order; when its last header is a seal, this core has ended and the
  shell makes the next one (`Epoch.base_*` from the seal, `base_certificate` from the effect). Only
  the blocks listed belong to the chain: descendants of a seal in its own epoch are dropped.
- `RequestMissing` is answered by whatever can be fetched: a `ProposalReceived` for that hash, or,
  when peers have finalised it, blocks above `above_height` with their `Finality`: the shell checks
  (`types.verify_finality`), executes them, and calls `Core.jump`.
- `RequestNullifications` is answered with a `CertificateReceived` for each that a peer has
  (`Core.nullifications`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

import msgspec

from ledger.types import (
    MAX_PATH,
    Certificate,
    Finality,
    Header,
    Proposal,
    ValidatorSet,
    Vote,
    VoteKind,
    schedule_hash,
    vote_message,
)
from wire.errors import MalformedError, Refusal
from wire.keys import Domain, SigningKey, verify

KEPT_PATH = 128
"""Headers on the path of a proof that is stored with its block: 42 kB."""


class Timer(StrEnum):
    """The three timers of a view."""

    LEAD = "lead"
    """2Δ: no proposal came."""
    VIEW = "view"
    """3Δ: the view did not end."""
    REPAIR = "repair"
    """Δ, again and again while stuck."""


# --- What an epoch is -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """All that the instances of one epoch agree on before its first vote."""

    chain_id: str
    epoch: int
    validators: ValidatorSet
    schedule: tuple[int, ...]
    """Leaders' indexes; view v is led by `schedule[(v − 1) % len]`."""
    base_hash: bytes
    """The block the epoch starts from: the genesis hash, or the seal of the epoch before."""
    base_height: int = 0
    base_time_ms: int = 0
    base_certificate: Certificate | None = None
    """Finalization that ended the epoch before; shown to validators that are still in it."""
    delta_s: float = 0.2
    """Δ0: the time a message is expected to take, at most [s]."""
    next_validators: ValidatorSet | None = None
    """Of the epoch after this one, when they are others."""

    def leader(self, view: int) -> int:
        """Index of the validator that leads a view."""
        return self.schedule[(view - 1) % len(self.schedule)]

    @property
    def next_validators_hash(self) -> bytes:
        """What `Header.next_validators_hash` of the seal must hold."""
        return (self.next_validators or self.validators).hash

    @cached_property
    def schedule_root(self) -> bytes:
        """What `Header.schedule_root` must hold."""
        return schedule_hash(self.schedule)


class Crypto(Protocol):
    """Signatures, so that the simulator can do without."""

    def sign(self, message: bytes) -> bytes:
        """This validator's signature, 64 bytes."""
        ...

    def verify(self, validator: int, message: bytes, signature: bytes) -> bool:
        """True when the signature is that validator's."""
        ...


class KeyCrypto:
    """
    Ed25519 under the VOTE domain.

    `prime` lets a shell check votes in a thread pool before it hands them over: what was found good
    there is not checked again here.
    """

    MAX_PRIMED = 4096

    def __init__(self, chain_id: str, validators: ValidatorSet, key: SigningKey | None) -> None:
        self._chain_id = chain_id
        self._keys = validators.keys
        self._key = key
        self._primed: dict[tuple[int, bytes, bytes], None] = {}

    def sign(self, message: bytes) -> bytes:
        """Sign with the validator's key."""
        assert self._key is not None, "an observer does not sign"
        return self._key.sign(Domain.VOTE, self._chain_id, message)

    def verify(self, validator: int, message: bytes, signature: bytes) -> bool:
        """Check one signature."""
        return (validator, message, signature) in self._primed or verify(
            self._keys[validator], Domain.VOTE, self._chain_id, message, signature
        )

    def prime(self, vote: Vote) -> bool:
        """Check a vote now (any thread) and remember it if it is good."""
        if vote.validator >= len(self._keys):
            return False
        message = vote_message(vote.epoch, vote.view, vote.kind, vote.block_hash)
        if not self.verify(vote.validator, message, vote.signature):
            return False
        self._primed[vote.validator, message, vote.signature] = None
        while len(self._primed) > self.MAX_PRIMED:
            self._primed.pop(next(iter(self._primed)), None)
        return True


# --- The log --------------------------------------------------------------------------------------


class VoteRecord(msgspec.Struct, frozen=True, array_like=True, tag="vote"):
    """A vote of mine."""

    vote: Vote


class ProposalRecord(msgspec.Struct, frozen=True, array_like=True, tag="proposal"):
    """A proposal I voted for: without it, a block could be final and nobody have it."""

    proposal: Proposal


class CertificateRecord(msgspec.Struct, frozen=True, array_like=True, tag="certificate"):
    """A certificate that let me into a view."""

    certificate: Certificate


class BornRecord(msgspec.Struct, frozen=True, array_like=True, tag="born"):
    """This log was begun at that market time; what was signed before is not in it."""

    time_ms: int
    fresh: bool
    """True when the whole folder was new: nothing was signed before."""


class MarkRecord(msgspec.Struct, frozen=True, array_like=True, tag="mark"):
    """I may have signed anything up to and including this view: sign nothing new there."""

    epoch: int
    view: int


Record = VoteRecord | ProposalRecord | CertificateRecord | MarkRecord | BornRecord

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The payload of a log entry."""
    return _ENCODER.encode(record)


def decode_record(raw: bytes) -> Record:
    """
    Read a log entry of our own.

    Raises:
        MalformedError: not a record (the log's checksum passed, so this is our own mistake).
    """
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a record of the vote log: {error}") from None


# --- Events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Begin, or go on after `restore`. Once, before any other event."""


@dataclass(frozen=True, slots=True)
class ProposalReceived:
    """A proposal arrived, published or fetched."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class VoteReceived:
    """A vote arrived."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class CertificateReceived:
    """A certificate arrived."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer ended."""

    timer: Timer
    view: int


@dataclass(frozen=True, slots=True)
class BodiesReady:
    """The answer to `ValidateProposal`."""

    block_hash: bytes
    valid: bool


@dataclass(frozen=True, slots=True)
class WorkAvailable:
    """Whether something waits for a block here."""

    pending: bool


@dataclass(frozen=True, slots=True)
class Content:
    """What the shell puts into a block; the rest of the header is the core's."""

    txids: tuple[bytes, ...]
    exec_height: int
    state_root: bytes
    receipts_root: bytes
    time_ms: int
    seal: bool = False
    next_validators_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class ProposalBuilt:
    """The answer to `RequestProposal`, with its view and parent."""

    view: int
    parent_hash: bytes
    content: Content


Event = (
    Start
    | ProposalReceived
    | VoteReceived
    | CertificateReceived
    | TimerFired
    | BodiesReady
    | WorkAvailable
    | ProposalBuilt
)

# --- Effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Append to the log; when `durable`, fdatasync before any later effect is carried out."""

    record: Record
    durable: bool


@dataclass(frozen=True, slots=True)
class BroadcastProposal:
    """Publish on `consensus/prop`. It is the leader's NOTARIZE vote too."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class BroadcastVote:
    """Publish on `consensus/vote/<me>`."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class BroadcastCertificate:
    """Publish on `consensus/cert`; retained when it is a finalization."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Start (or replace) a timer."""

    timer: Timer
    view: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RequestProposal:
    """I lead this view: build a block, if there is something to put into it."""

    view: int
    parent_hash: bytes
    parent: Header | None
    """None when the parent is the epoch's base."""
    ancestors: tuple[Proposal, ...]
    """Unfinalised blocks from the oldest to the parent: their txids must not be repeated."""
    empty: bool
    """True when an ancestor seals the epoch: no transactions, no seal."""
    must: bool
    """True when an empty block is wanted too, to make an ancestor final."""


@dataclass(frozen=True, slots=True)
class ValidateProposal:
    """Judge this proposal's content; answer with `BodiesReady`."""

    block_hash: bytes
    proposal: Proposal
    parent: Header | None
    ancestors: tuple[Proposal, ...]
    empty: bool


@dataclass(frozen=True, slots=True)
class EnterView:
    """A new view began (for the log and the pages)."""

    view: int
    leader: int
    nullified: bool
    """True when the view before was nullified."""


@dataclass(frozen=True, slots=True)
class Finalized:
    """These blocks are final, in order; execute them."""

    blocks: tuple[Proposal, ...]
    certificate: Certificate
    beyond: tuple[Header, ...]
    """Headers from the last block's child to the certified one: empty except after a seal."""

    def finality(self, number: int) -> Finality | None:
        """
        The proof for `blocks[number]`, to be stored with it.

        None when more than `KEPT_PATH` headers lie between it and the certified one: the proof of a
        later block covers it. A seal always has its own, however long.
        """
        later = tuple(block.header for block in self.blocks[number + 1 :])
        path = later + self.beyond
        if self.blocks[number].header.seal:
            assert len(path) <= MAX_PATH, "leaders wait when finality lags: no run is so long"
        elif len(path) > KEPT_PATH:
            return None
        return Finality(self.certificate, path)


@dataclass(frozen=True, slots=True)
class RequestMissing:
    """
    Fetch what others have: the proposal of this hash, or final blocks above a height.

    An empty hash means only the latter: the validator is an epoch behind.
    """

    block_hash: bytes
    above_height: int


@dataclass(frozen=True, slots=True)
class RequestNullifications:
    """Fetch the nullifications of these views: a proposal that leaves them out waits for them."""

    first_view: int
    last_view: int
    """Inclusive."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two votes that no honest validator signs both."""

    first: Vote
    second: Vote


@dataclass(frozen=True, slots=True)
class Refused:
    """Something from outside was not accepted; count it."""

    reason: Refusal
    what: str


Effect = (
    Persist
    | BroadcastProposal
    | BroadcastVote
    | BroadcastCertificate
    | SetTimer
    | RequestProposal
    | ValidateProposal
    | EnterView
    | Finalized
    | RequestMissing
    | RequestNullifications
    | Evidence
    | Refused
)


def conflict(first: Vote, second: Vote) -> bool:
    """True when signing both votes (of one validator, epoch and view) is a Byzantine act."""
    if first.kind == second.kind:
        return first.kind != VoteKind.NULLIFY and first.block_hash != second.block_hash
    return {first.kind, second.kind} == {VoteKind.NULLIFY, VoteKind.FINALIZE}
