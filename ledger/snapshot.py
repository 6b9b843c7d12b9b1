"""
Snapshots: the state after a seal block, in chunks that anybody can check against a final header.

A snapshot is one stream of bytes, cut into chunks. It begins with what the next block needs of
those before it (`Preamble`), then come the rows of the state in key order. Every honest node makes
the same bytes, so chunks of one snapshot may come from several of them.

Why it can be believed: the first header above the seal carries the root of this state (its
`exec_height` is the seal's height) and is final; its parent hash is the seal's header. A joiner
makes the sparse Merkle tree of all rows again and compares its root. The list of chunk hashes is
believed only as far as to tell who sent a wrong chunk. When the next header does not carry that
root (a leader may name an older one), the snapshot is of no use, and an older one is taken.

Chunks have 64 KiB, not the 256 KiB of the design: an answer is one message of the bus, which takes
127 KiB (`runtime.bus.MAX_PAYLOAD_BYTES`), and base64url in a signed statement makes 88 KiB of 64.

Pure. Source: ledger.md §6.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from ledger import merkle, smt, types
from ledger.checkpoint import Checkpoint
from ledger.proofs import Anchor, verify_anchor
from wire.canonical import decode, encode
from wire.errors import CertificateError, MalformedError, OversizedError
from wire.units import MAX_SAFE_INT

CHUNK_BYTES = 64 * 1024
MAX_CHUNKS = 2048
"""Their hashes still fit into one message: 128 MiB, or about 600,000 rows."""
MAX_OFFER_BYTES = 84 * 1024
MAX_RECORD_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAFE_INT)]


class SnapshotError(CertificateError):
    """What was offered as a snapshot is not the state that a final header names."""


class _Object(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what is exchanged or kept."""


class Manifest(_Object, frozen=True):
    """What a snapshot is made of; the same at every honest node."""

    height: _Number
    """Of the seal block after which the state was like this."""
    state_root: types.Hash
    rows: _Number
    size_bytes: _Number
    hashes: Annotated[tuple[types.Hash, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]
    """SHA-256 of each chunk; all have `CHUNK_BYTES` but the last."""


class Offer(_Object, frozen=True):
    """A manifest, and why its state can be believed. Finalizations differ from node to node."""

    manifest: Manifest
    seal: Anchor
    """The seal block of the manifest's height."""
    cover: Anchor
    """The next block, whose header carries the state root."""


class PastBlock(_Object, frozen=True):
    """A block whose receipts are under no header yet when the snapshot is taken."""

    header: types.Header
    txids: Annotated[tuple[types.Hash, ...], msgspec.Meta(max_length=types.MAX_TXIDS)]
    receipts: bytes
    """Canonical JSON list."""


class Preamble(_Object, frozen=True):
    """What a node needs of the past, besides the state, to go on."""

    blocks: Annotated[tuple[PastBlock, ...], msgspec.Meta(min_length=1)]
    """Ascending, up to the seal: all whose receipts the next header answers for."""
    event_heads: dict[str, _Number]
    """By contract, the last height with events: each statement about events names the one before.
    No header vouches for it; a false one only makes the first statement of a contract differ."""


_ENCODER = msgspec.msgpack.Encoder(order="sorted")
_OFFER = msgspec.msgpack.Decoder(Offer)
_MANIFEST = msgspec.msgpack.Decoder(Manifest)
_PREAMBLE = msgspec.msgpack.Decoder(Preamble)
_ROW: msgspec.msgpack.Decoder[tuple[str, bytes]] = msgspec.msgpack.Decoder(tuple[str, bytes])


def pack(value: Offer | Manifest) -> bytes:
    """The bytes of an offer or a manifest."""
    return _ENCODER.encode(value)


def read_offer(raw: bytes) -> Offer:
    """
    Read an offer; nothing in it is believed yet.

    Raises:
        OversizedError, MalformedError: not an offer.
    """
    if len(raw) > MAX_OFFER_BYTES:
        raise OversizedError("offer too long", size=len(raw), limit=MAX_OFFER_BYTES)
    offer: Offer = _read(_OFFER, raw)
    return offer


def read_manifest(raw: bytes) -> Manifest:
    """
    Read a manifest.

    Raises:
        MalformedError: not a manifest.
    """
    manifest: Manifest = _read(_MANIFEST, raw)
    return manifest


def chunk_hash(chunk: bytes) -> bytes:
    """What a manifest names a chunk by."""
    return hashlib.sha256(chunk).digest()


# --- The stream -----------------------------------------------------------------------------------


def cut(preamble: Preamble, rows: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """
    The chunks of a snapshot.

    Args:
        preamble: what comes first
        rows: keys and canonical values, in key order
    """
    buffer = bytearray(_framed(_ENCODER.encode(preamble)))
    for row in rows:
        buffer += _framed(_ENCODER.encode(row))
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            del buffer[:CHUNK_BYTES]
    while buffer:
        yield bytes(buffer[:CHUNK_BYTES])
        del buffer[:CHUNK_BYTES]


def split(chunks: Iterable[bytes]) -> tuple[Preamble, Iterator[tuple[str, bytes]]]:
    """
    The preamble and the rows of a stream; the rows are read as they are asked for.

    Raises:
        MalformedError: now or while rows are read: cut short, wrong form, keys not ascending.
    """
    records = _records(chunks)
    first = next(records, None)
    if first is None:
        raise MalformedError("a snapshot without a preamble")
    return _read(_PREAMBLE, first), _rows(records)


def root_of(rows: Iterable[tuple[str, bytes]]) -> bytes:
    """Root of the sparse Merkle tree over keys and canonical values."""
    leaves = [(smt.path_of(key), hashlib.sha256(value).digest()) for key, value in rows]
    return smt.node_hash(smt.update(None, leaves))


def _rows(records: Iterator[bytes]) -> Iterator[tuple[str, bytes]]:
    before = ""
    for record in records:
        key, value = row = _read(_ROW, record)
        if key <= before:
            raise MalformedError("keys are not ascending", key=key[:64])
        before = key
        if not value:
            raise MalformedError("a row without a value", key=key[:64])
        yield row


def _records(chunks: Iterable[bytes]) -> Iterator[bytes]:
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_RECORD_BYTES:
                raise MalformedError("record too long", size=length)
            end = start + _LENGTH.size + length
            if end > len(buffer):
                break
            yield bytes(buffer[start + _LENGTH.size : end])
            start = end
        del buffer[:start]
    if buffer:
        raise MalformedError("the snapshot is cut short", left=len(buffer))


def _framed(payload: bytes) -> bytes:
    return _LENGTH.pack(len(payload)) + payload


# --- Checking -------------------------------------------------------------------------------------


def check_offer(
    offer: Offer, trust: Checkpoint, validators_at: Callable[[int], types.ValidatorSet]
) -> None:
    """
    Check that an offer's headers are final and that the second one names the state after the first.

    Args:
        trust: names the chain
        validators_at: who finalises the block of a height

    Raises:
        UnknownValidatorsError: of another set.
        OtherChainError, NotFinalError: a header is not final.
        SnapshotError: they do not belong together, or not to the manifest.
    """
    manifest, seal, cover = offer.manifest, offer.seal.header, offer.cover.header
    for anchor in (offer.seal, offer.cover):
        validators = validators_at(anchor.header.height)
        verify_anchor(anchor, replace(trust, validators=validators))
    if not seal.seal or cover.parent_hash != types.header_hash(seal):
        raise SnapshotError("the headers are not a seal and the next", height=seal.height)
    if cover.validators_hash != seal.next_validators_hash or cover.epoch != seal.epoch + 1:
        raise SnapshotError("the next header is not of the next epoch", height=seal.height)
    if (manifest.height, manifest.state_root) != (seal.height, cover.state_root):
        raise SnapshotError("the manifest is of another state", height=manifest.height)
    if cover.exec_height != seal.height or cover.height != seal.height + 1:
        raise SnapshotError("no header carries the root of this state", height=manifest.height)
    size = manifest.size_bytes
    if len(manifest.hashes) != -(-size // CHUNK_BYTES):
        raise SnapshotError("size and number of chunks differ", size=size)


def check_chunk(manifest: Manifest, number: int, chunk: bytes) -> None:
    """
    Raise unless a chunk is the one that the manifest names.

    Raises:
        SnapshotError: it is not.
    """
    size = min(CHUNK_BYTES, manifest.size_bytes - number * CHUNK_BYTES)
    if len(chunk) != size or chunk_hash(chunk) != manifest.hashes[number]:
        raise SnapshotError("not the chunk of the manifest", number=number)


def check_preamble(
    preamble: Preamble, seal: types.Header, cover: types.Header
) -> list[list[dict[str, Any]]]:
    """
    Check a preamble against final headers.

    Returns:
        The receipts of each of its blocks.

    Raises:
        SnapshotError: blocks, transactions or receipts are not the chain's.
        MalformedError: receipts have no valid form.
    """
    blocks = preamble.blocks
    if blocks[-1].header != seal or blocks[0].header.height != seal.exec_height + 1:
        raise SnapshotError("the preamble is of other blocks", height=blocks[-1].header.height)
    child: types.Header = cover
    for block in reversed(blocks):
        if types.header_hash(block.header) != child.parent_hash:
            raise SnapshotError("blocks are not linked", height=block.header.height)
        if merkle.root(block.txids) != block.header.tx_root:
            raise SnapshotError("transactions are not the block's", height=block.header.height)
        child = block.header
    receipts = [decode(block.receipts, MAX_RECORD_BYTES) for block in blocks]
    for block, found in zip(blocks, receipts, strict=True):
        if type(found) is not list or len(found) != len(block.txids):
            raise SnapshotError("a receipt for each transaction", height=block.header.height)
    if merkle.root([encode(one) for found in receipts for one in found]) != cover.receipts_root:
        raise SnapshotError("receipts are not those of the header", height=cover.height)
    return receipts


def _read(decoder: msgspec.msgpack.Decoder[Any], raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not of a snapshot: {error}") from None
