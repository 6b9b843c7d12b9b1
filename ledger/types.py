"""
The words of consensus: headers, votes, certificates, proposals; how they are hashed and checked.

All are msgpack arrays (`msgspec.Struct(array_like=True)`). `decode` accepts only the bytes that
`encode` would have written, so an object has one spelling and one hash.

- Validators are named by their index in the epoch's `ValidatorSet`; only `Header.proposer` carries
  the identity itself, because it is read long after the epoch.
- Height 0 is the genesis, a hash without a header (`genesis_hash`); the first block has height 1.
- Views count from 1 in every epoch; the block an epoch starts from is its "view 0".
- A proposal is signed with its leader's NOTARIZE vote: publishing it is voting for it, and two
  proposals of one view are two conflicting votes, which is evidence.
- A finalization proves its block and, through the linked headers of `Finality`, an ancestor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Annotated, TypeVar

import msgspec

from wire.errors import MalformedError, OversizedError
from wire.keys import SIGNATURE_BYTES, Domain, SigningKey, verify
from wire.units import MAX_SAFE_INT

VERSION = 1
HASH_BYTES = 32
ZERO_HASH = bytes(HASH_BYTES)
"""The block hash of a NULLIFY vote: it names no block."""
MAX_VALIDATORS = 128
MAX_TXIDS = 4096
MAX_NULLIFICATIONS = 128
"""In one justify; `ValidatorSet.inline_views` says how many."""
INLINE_BYTES = 32 * 1024
"""What the nullifications in one proposal may weigh."""
MAX_PATH = 1024
MAX_OBJECT_BYTES = 1024 * 1024

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INT)]
Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_VALIDATORS)]


class VoteKind(IntEnum):
    """What a vote says about its view."""

    NOTARIZE = 1
    """This block is valid and justified."""
    NULLIFY = 2
    """This view may be skipped."""
    FINALIZE = 3
    """I saw the notarization and have not nullified."""


class _Object(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of the wire objects."""


class Header(_Object, frozen=True, kw_only=True):
    """A block, but for the list of its transactions."""

    version: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)] = VERSION
    chain_id: Annotated[str, msgspec.Meta(max_length=64)]
    epoch: Count
    view: Count
    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAFE_INT)]
    parent_hash: Hash
    justify_hash: Hash
    """Hash of the proof that the parent may be extended in this view."""
    tx_root: Hash
    """RFC 6962 root over the txids."""
    n_tx: Count
    exec_height: Count
    """Height after whose execution the two roots were taken; at most height − 1."""
    state_root: Hash
    receipts_root: Hash
    """RFC 6962 root over the receipts of all blocks above the parent's `exec_height`, up to this
    one's: every receipt is under one header's root."""
    validators_hash: Hash
    schedule_root: Hash
    time_ms: Count
    """Market time of the proposal, UTC milliseconds; later than the parent's."""
    proposer: Annotated[str, msgspec.Meta(max_length=64)]
    """Identity of the leader."""
    seal: bool = False
    """True for the last block of an epoch."""
    next_validators_hash: Annotated[bytes, msgspec.Meta(max_length=HASH_BYTES)] = b""
    """Validators of the next epoch when sealing, else empty."""


class Vote(_Object, frozen=True):
    """One validator's signed word about one view."""

    epoch: Count
    view: Count
    kind: VoteKind
    block_hash: Hash
    """`ZERO_HASH` for NULLIFY."""
    validator: Index
    signature: Signature


class Certificate(_Object, frozen=True):
    """A quorum of votes that say the same."""

    kind: VoteKind
    epoch: Count
    view: Count
    block_hash: Hash
    bitmap: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_VALIDATORS // 8)]
    """Signers: validator i is bit i % 8 (lowest first) of byte i // 8; no trailing zero byte."""
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=MAX_VALIDATORS)]
    """In the order of the signers' indexes."""


class Justify(_Object, frozen=True):
    """Why a block may extend its parent in its view."""

    notarization: Certificate | None
    """Of the parent (its finalization serves too); None when the parent starts the epoch."""
    nullifications: Annotated[
        tuple[Certificate, ...], msgspec.Meta(max_length=MAX_NULLIFICATIONS)
    ] = ()
    """Of the views just below the block's, in order: of all since the parent's, or of the last
    `ValidatorSet.inline_views`. Older ones must be known already, or be asked for: a proposal must
    stay small however long nothing was agreed."""


class Proposal(_Object, frozen=True):
    """A block as its leader publishes it; bodies travel on their own."""

    header: Header
    txids: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=MAX_TXIDS)]
    justify: Justify
    signature: Signature
    """The leader's NOTARIZE vote for this header."""


class Finality(_Object, frozen=True):
    """Proof that a block is final: a finalization, of it or of a descendant."""

    certificate: Certificate
    path: Annotated[tuple[Header, ...], msgspec.Meta(max_length=MAX_PATH)] = ()
    """Headers from the block's child to the certified block; empty when it is the block itself."""


@dataclass(frozen=True)
class ValidatorSet:
    """
    The validators of an epoch, in the order that gives them their index.

    One key, one vote. With n validators, f = ⌊(n−1)/3⌋ may be Byzantine, and a quorum is
    ⌊(n+f)/2⌋ + 1: two quorums then share more than f validators at every n. (2f+1 does not: at
    n = 6 two disjoint groups of three exist.)
    """

    ids: tuple[str, ...]
    keys: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.ids) <= MAX_VALIDATORS:
            raise MalformedError("number of validators out of range", n=len(self.ids))
        if len(self.keys) != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise MalformedError("each validator has one identity and one key", n=len(self.ids))

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.ids)

    @property
    def f(self) -> int:
        """How many may be Byzantine."""
        return (self.n - 1) // 3

    @cached_property
    def quorum(self) -> int:
        """How many votes make a certificate."""
        return (self.n + self.f) // 2 + 1

    @cached_property
    def inline_views(self) -> int:
        """How many nullifications a justify carries at most; the rest is fetched."""
        certificate_bytes = 64 + self.quorum * (SIGNATURE_BYTES + 2) + MAX_VALIDATORS // 8
        return min(MAX_NULLIFICATIONS, INLINE_BYTES // certificate_bytes)

    @cached_property
    def hash(self) -> bytes:
        """What `Header.validators_hash` holds."""
        return _digest(b"hearthgrid-validators-v1", _ENCODER.encode([self.ids, self.keys]))

    def index(self, validator_id: str) -> int | None:
        """The index of an identity, or None."""
        return self._index.get(validator_id)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids)}


T = TypeVar("T", bound=_Object)

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[type[_Object], msgspec.msgpack.Decoder[_Object]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (Header, Vote, Certificate, Justify, Proposal, Finality)
}


def encode(value: _Object) -> bytes:
    """The one spelling of an object."""
    return _ENCODER.encode(value)


def decode(kind: type[T], raw: bytes, max_bytes: int = MAX_OBJECT_BYTES) -> T:
    """
    Read an object of `kind`.

    Raises:
        OversizedError: more than `max_bytes`.
        MalformedError: not the schema, or not the one spelling.
    """
    if len(raw) > max_bytes:
        raise OversizedError("message too long", size=len(raw), limit=max_bytes)
    try:
        value = _DECODERS[kind].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a {kind.__name__}: {error}") from None
    assert type(value) is kind
    if _ENCODER.encode(value) != raw:
        raise MalformedError("not in canonical form", kind=kind.__name__)
    return value


def genesis_hash(chain_id: str) -> bytes:
    """The hash that stands for height 0."""
    return _digest(b"hearthgrid-genesis-v1", chain_id.encode())


def header_hash(header: Header) -> bytes:
    """The hash of a block."""
    return _digest(Domain.HEADER.value, _ENCODER.encode(header))


def justify_hash(justify: Justify) -> bytes:
    """What `Header.justify_hash` holds."""
    return _digest(b"hearthgrid-justify-v1", _ENCODER.encode(justify))


def schedule_hash(schedule: Sequence[int]) -> bytes:
    """What `Header.schedule_root` holds: the hash of the epoch's order of leaders."""
    return _digest(b"hearthgrid-schedule-v1", _ENCODER.encode(list(schedule)))


def vote_message(epoch: int, view: int, kind: VoteKind, block_hash: bytes) -> bytes:
    """The bytes a vote signs (after domain and chain id)."""
    return epoch.to_bytes(8, "big") + view.to_bytes(8, "big") + bytes((kind,)) + block_hash


def make_vote(
    key: SigningKey,
    chain_id: str,
    validator: int,
    epoch: int,
    view: int,
    kind: VoteKind,
    block_hash: bytes = ZERO_HASH,
) -> Vote:
    """Sign a vote as validator number `validator`."""
    message = vote_message(epoch, view, kind, block_hash)
    signature = key.sign(Domain.VOTE, chain_id, message)
    return Vote(epoch, view, kind, block_hash, validator, signature)


def proposal_vote(proposal: Proposal, leader: int) -> Vote:
    """The NOTARIZE vote that a proposal is."""
    header = proposal.header
    return Vote(
        header.epoch,
        header.view,
        VoteKind.NOTARIZE,
        header_hash(header),
        leader,
        proposal.signature,
    )


def verify_vote(vote: Vote, validators: ValidatorSet, chain_id: str) -> bool:
    """True when the vote is well formed and its validator's."""
    if vote.validator >= validators.n or not well_formed(vote):
        return False
    message = vote_message(vote.epoch, vote.view, vote.kind, vote.block_hash)
    return verify(validators.keys[vote.validator], Domain.VOTE, chain_id, message, vote.signature)


def well_formed(vote: Vote | Certificate) -> bool:
    """True when it names a block exactly if its kind is about one."""
    return (vote.kind == VoteKind.NULLIFY) == (vote.block_hash == ZERO_HASH)


def make_certificate(votes: Sequence[Vote]) -> Certificate:
    """Put votes that say the same, of distinct validators, into a certificate."""
    ordered = sorted(votes, key=lambda vote: vote.validator)
    first = ordered[0]
    assert all(
        (vote.kind, vote.epoch, vote.view, vote.block_hash)
        == (first.kind, first.epoch, first.view, first.block_hash)
        for vote in ordered
    )
    return Certificate(
        first.kind,
        first.epoch,
        first.view,
        first.block_hash,
        _bitmap([vote.validator for vote in ordered]),
        tuple(vote.signature for vote in ordered),
    )


def signers(certificate: Certificate) -> tuple[int, ...]:
    """Indexes of the validators that signed, ascending."""
    bits = int.from_bytes(certificate.bitmap, "little")
    return tuple(index for index in range(bits.bit_length()) if bits >> index & 1)


def certificate_votes(certificate: Certificate, validators: ValidatorSet) -> tuple[Vote, ...]:
    """
    The votes a certificate is made of, their signatures unchecked.

    Returns:
        Nothing when the certificate's form is wrong: signers outside the set, too few, more or
        fewer signatures than signers, or a bitmap with a trailing zero byte.
    """
    indexes = signers(certificate)
    if (
        len(indexes) < validators.quorum
        or len(indexes) != len(certificate.signatures)
        or indexes[-1] >= validators.n
        or certificate.bitmap != _bitmap(indexes)
        or not well_formed(certificate)
    ):
        return ()
    return tuple(
        Vote(
            certificate.epoch,
            certificate.view,
            certificate.kind,
            certificate.block_hash,
            index,
            signature,
        )
        for index, signature in zip(indexes, certificate.signatures, strict=True)
    )


def verify_certificate(certificate: Certificate, validators: ValidatorSet, chain_id: str) -> bool:
    """True when a quorum of distinct validators signed it."""
    votes = certificate_votes(certificate, validators)
    return bool(votes) and all(verify_vote(vote, validators, chain_id) for vote in votes)


def verify_finality(
    block_hash: bytes, finality: Finality, validators: ValidatorSet, chain_id: str
) -> bool:
    """
    True when `finality` proves the block final in the epoch of `validators`.

    The path must lead from the block to the certified one by parent hashes, inside one epoch.
    """
    certificate = finality.certificate
    if certificate.kind != VoteKind.FINALIZE:
        return False
    tip = block_hash
    for header in finality.path:
        if header.parent_hash != tip or header.epoch != certificate.epoch:
            return False
        tip = header_hash(header)
    return tip == certificate.block_hash and verify_certificate(certificate, validators, chain_id)


def _bitmap(indexes: Sequence[int]) -> bytes:
    bits = 0
    for index in indexes:
        bits |= 1 << index
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _digest(label: bytes, data: bytes) -> bytes:
    return hashlib.sha256(label + b"\0" + data).digest()
