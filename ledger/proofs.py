"""
Proofs: believe a row of the state, a receipt or an inclusion without holding the chain.

A proof carries a header, the finality of that header, and a Merkle path from what is claimed to a
root in it. Whoever knows the genesis (or a newer `Checkpoint`) checks it alone, offline:

- `StateProof`: compressed sparse Merkle path (`ledger.smt`) to the header's `state_root`;
- `ReceiptProof`: RFC 6962 path to its `receipts_root`;
- `InclusionProof`: RFC 6962 path to its `tx_root`.

**Which height.** A header of height h carries the state root after executing `exec_height` ≤ h − 1,
and the root of the receipts of all blocks for which its parent did not answer, up to that height.
State and receipts are therefore proved by a *later* final header: the state of every height that
some header names, every receipt. Inclusion is proved by the block's own header.

**Seals.** Descendants of an epoch's seal are voted on but dropped (`ledger.simplex`, deviation 9),
so a quorum can have finalised a header that is no block of the chain. Such a header is empty and
its roots are true ones: no proof through it is wrong. `ledger.light` keeps a client from taking it
for a fork.

Proofs, anchors and steps are canonical msgpack arrays; `decode` takes only what `encode` would have
written. Pure. Source: ledger.md §6; RFC 6962 §2.1.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from ledger import merkle, smt, types
from ledger.checkpoint import Checkpoint, UnknownValidatorsError
from wire import canonical
from wire.errors import CertificateError, MalformedError, OversizedError
from wire.keys import id_of

RECEIPT = "receipt-of/"
INCLUSION = "inclusion-of/"
"""What light clients ask for, followed by a txid in hex; anything else is a key of the state."""
NEXT = "next/"
AT = "at/"

MAX_PROOF_BYTES = 256 * 1024
"""Headers on the way to a finalised descendant dominate; without them a proof is near 1 kB."""
MAX_VALUE_BYTES = 64 * 1024

MAX_KEY_LENGTH = 256

Text = Annotated[str, msgspec.Meta(max_length=MAX_KEY_LENGTH)]
Value = Annotated[bytes, msgspec.Meta(max_length=MAX_VALUE_BYTES)]
Siblings = Annotated[bytes, msgspec.Meta(max_length=smt.DEPTH * 32)]
"""Hashes of 32 bytes, one after the other."""
OneHash = Annotated[bytes, msgspec.Meta(max_length=32)]


class OtherChainError(MalformedError):
    """Of a chain with another genesis."""


class NotFinalError(CertificateError):
    """No quorum of the trusted validators finalised the header."""


class BadPathError(MalformedError):
    """The Merkle path does not lead from what is claimed to the root in the header."""


class _Object(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what is exchanged or kept."""


class Anchor(_Object, frozen=True, tag="anchor"):
    """A header and why it is final."""

    header: types.Header
    finality: types.Finality


class Evidence(_Object, frozen=True, tag="evidence"):
    """Two final headers that exclude each other; `ledger.light.contradict` says whether so."""

    first: Anchor
    second: Anchor


class StateProof(_Object, frozen=True, tag="state"):
    """A row of the state after the header's `exec_height`, or that there is none."""

    header: types.Header
    finality: types.Finality
    key: Text
    """As in `ledger.contracts.keys`, e.g. `account/<address>`."""
    value: Value
    """Canonical JSON of the row; empty: there is no such row."""
    siblings: Siblings
    """Beside the path, from the root down."""
    other_path: OneHash = b""
    """Absence: the leaf that stands where the key would; empty when nothing does."""
    other_value_hash: OneHash = b""


class ReceiptProof(_Object, frozen=True, tag="receipt"):
    """What became of a transaction of a block up to the header's `exec_height`."""

    header: types.Header
    finality: types.Finality
    receipt: Value
    """Canonical JSON of the receipt."""
    turns: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    """Bit i: sibling i, from the lowest, is on the left. (The number of leaves is in no header, so
    index and size would prove nothing more.)"""
    siblings: Annotated[bytes, msgspec.Meta(max_length=32 * 32)]
    """From the leaf up."""


class InclusionProof(_Object, frozen=True, tag="inclusion"):
    """That a transaction is in the header's own block."""

    header: types.Header
    finality: types.Finality
    txid: types.Hash
    index: Annotated[int, msgspec.Meta(ge=0, lt=types.MAX_TXIDS)]
    """Position in the block; the number of leaves is the header's `n_tx`."""
    siblings: Annotated[bytes, msgspec.Meta(max_length=32 * 32)]
    """From the leaf up."""


class Step(_Object, frozen=True, tag="step"):
    """A final header that leads a client on, and the validators it brings in, if it does."""

    anchor: Anchor
    keys: Annotated[tuple[types.Hash, ...], msgspec.Meta(max_length=types.MAX_VALIDATORS)] = ()
    """Of the validators it brings in, by index; empty when it changes none."""

    def following(self) -> types.ValidatorSet | None:
        """The validators it brings in; their identities are made of their keys."""
        if not self.keys:
            return None
        return types.ValidatorSet(tuple(id_of(key) for key in self.keys), self.keys)


Proof: TypeAlias = StateProof | ReceiptProof | InclusionProof
T = TypeVar("T", bound=_Object)

_ENCODER = msgspec.msgpack.Encoder()
_ANY: msgspec.msgpack.Decoder[_Object] = msgspec.msgpack.Decoder(
    Anchor | Evidence | Step | StateProof | ReceiptProof | InclusionProof
)


# --- What a proof proves --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fact:
    """Something that is true of a chain."""

    chain_id: str
    height: int
    """The block after which it is true."""
    proved_by: int
    """Height of the final header."""
    time_ms: int
    """Market time of that header."""

    def to_json(self) -> dict[str, Any]:
        """For people and scripts."""
        facts = asdict(self)
        return {
            "chainId": facts.pop("chain_id"),
            "height": facts.pop("height"),
            "provedBy": facts.pop("proved_by"),
            "timeMs": facts.pop("time_ms"),
            **facts,
        }


@dataclass(frozen=True, slots=True)
class RowFact(_Fact):
    """After block `height` the state holds `value` under `key`; None: it has no such row."""

    key: str
    value: Any | None


@dataclass(frozen=True, slots=True)
class ReceiptFact(_Fact):
    """Block `height`, or one not far below, executed a transaction with this receipt."""

    receipt: dict[str, Any]
    """txid (hex), sender, code, codes."""


@dataclass(frozen=True, slots=True)
class InclusionFact(_Fact):
    """Block `height` holds this transaction (executed or refused)."""

    txid: str
    """Hex."""
    index: int


Fact: TypeAlias = RowFact | ReceiptFact | InclusionFact


# --- Bytes ----------------------------------------------------------------------------------------


def encode(value: _Object) -> bytes:
    """The one spelling of a proof, anchor or step."""
    return _ENCODER.encode(value)


def decode(kind: type[T], raw: bytes, max_bytes: int = MAX_PROOF_BYTES) -> T:
    """
    Read an object of `kind`; nothing in it is believed yet.

    Raises:
        OversizedError: more than `max_bytes`.
        MalformedError: not the schema, another kind, or not the one spelling.
    """
    value = _decode(raw, max_bytes)
    if type(value) is not kind:
        raise MalformedError(f"not a {kind.__name__}")
    return value


def decode_proof(raw: bytes, max_bytes: int = MAX_PROOF_BYTES) -> Proof:
    """
    Read a proof of any kind.

    Raises:
        OversizedError, MalformedError: see `decode`.
    """
    value = _decode(raw, max_bytes)
    if not isinstance(value, StateProof | ReceiptProof | InclusionProof):
        raise MalformedError("not a proof")
    return value


def _decode(raw: bytes, max_bytes: int) -> _Object:
    if len(raw) > max_bytes:
        raise OversizedError("proof too long", size=len(raw), limit=max_bytes)
    try:
        value = _ANY.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a proof: {error}") from None
    if _ENCODER.encode(value) != raw:
        raise MalformedError("not in canonical form")
    return value


# --- Verifying ------------------------------------------------------------------------------------


def verify(proof: Proof, trust: Checkpoint) -> Fact:
    """
    Check a proof against a genesis or checkpoint and the validators named there.

    It proves history: whether the header is new enough is the caller's business (`ledger.light`).

    Raises:
        OtherChainError, UnknownValidatorsError, NotFinalError: see `verify_anchor`.
        BadPathError: the header does not hold what is claimed.
        MalformedError: what is claimed has no valid form.
    """
    verify_anchor(Anchor(proof.header, proof.finality), trust)
    match proof:
        case StateProof():
            return _verify_row(proof)
        case ReceiptProof():
            return _verify_receipt(proof)
        case InclusionProof():
            return _verify_inclusion(proof)


def verify_anchor(anchor: Anchor, trust: Checkpoint) -> bytes:
    """
    Check that a header is final.

    Returns:
        Its hash.

    Raises:
        OtherChainError: another genesis.
        UnknownValidatorsError: another validator set than the checkpoint's.
        NotFinalError: no quorum of that set finalised it.
    """
    header, validators = anchor.header, trust.validators
    if header.chain_id != trust.chain_id:
        raise OtherChainError("proof of another chain", chain=header.chain_id)
    if header.validators_hash != validators.hash:
        raise UnknownValidatorsError("header of another validator set", epoch=header.epoch)
    certificate = anchor.finality.certificate
    last = anchor.finality.path[-1] if anchor.finality.path else header
    block_hash = types.header_hash(header)
    if (
        (certificate.epoch, certificate.view) != (last.epoch, last.view)
        or certificate.epoch != header.epoch
        or header.exec_height >= header.height
        or not types.verify_finality(block_hash, anchor.finality, validators, trust.chain_id)
    ):
        raise NotFinalError("header is not final", height=header.height)
    return block_hash


def _verify_row(proof: StateProof) -> RowFact:
    if bool(proof.other_path) != bool(proof.other_value_hash):
        raise BadPathError("half of another leaf")
    path = smt.path_of(proof.key)
    merkle_proof = smt.Proof(_split(proof.siblings), proof.other_path, proof.other_value_hash)
    value_hash = hashlib.sha256(proof.value).digest() if proof.value else None
    if not smt.verify(proof.header.state_root, path, value_hash, merkle_proof):
        raise BadPathError("the state does not hold this", key=proof.key)
    value = canonical.decode(proof.value) if proof.value else None
    return RowFact(*_of_execution(proof.header), proof.key, value)


def _verify_receipt(proof: ReceiptProof) -> ReceiptFact:
    siblings = _split(proof.siblings)
    if proof.turns >> len(siblings):
        raise BadPathError("more turns than siblings")
    node = merkle.leaf_hash(proof.receipt)
    for level, sibling in enumerate(siblings):
        left = proof.turns >> level & 1
        node = merkle.node_hash(sibling, node) if left else merkle.node_hash(node, sibling)
    if node != proof.header.receipts_root:
        raise BadPathError("the block does not hold this receipt")
    return ReceiptFact(*_of_execution(proof.header), canonical.decode(proof.receipt))


def _verify_inclusion(proof: InclusionProof) -> InclusionFact:
    header, leaf = proof.header, merkle.leaf_hash(proof.txid)
    siblings = _split(proof.siblings)
    if not merkle.verify_inclusion(leaf, proof.index, header.n_tx, siblings, header.tx_root):
        raise BadPathError("the block does not hold this transaction")
    height = header.height
    return InclusionFact(
        header.chain_id, height, height, header.time_ms, proof.txid.hex(), proof.index
    )


def _of_execution(header: types.Header) -> tuple[str, int, int, int]:
    return header.chain_id, header.exec_height, header.height, header.time_ms


def _split(siblings: bytes) -> tuple[bytes, ...]:
    if len(siblings) % 32:
        raise BadPathError("siblings are hashes of 32 bytes", size=len(siblings))
    return tuple(siblings[i : i + 32] for i in range(0, len(siblings), 32))
