"""
Where the audit of a folder begins that does not hold its whole chain.

That is the oldest snapshot whose next header is there. The way to it is checked by headers alone:
from the genesis (or the checkpoint that a joiner trusted) over the kept seals, each final by the
validators whom the one before names. What lies between the folder's first block and the snapshot is
checked for links and transaction ids, not executed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ledger import merkle, types
from ledger.checkpoint import (
    Checkpoint,
    UnknownValidatorsError,
    checkpoint_from_json,
    checkpoint_json,
    genesis_checkpoint,
)
from ledger.execution import ChainError, Ledger
from ledger.genesis import Genesis
from ledger.joining import restore
from ledger.proofs import Anchor, Step, verify_anchor
from ledger.prover import Prover, keys_of
from ledger.snapshot import Offer, check_chunk, check_offer
from ledger.snapshots import Snapshots, offer_of
from ledger.store import LedgerStore
from wire.canonical import encode
from wire.transactions import parse_transaction


@dataclass(frozen=True, slots=True)
class Base:
    """A ledger as it was at a snapshot that was checked."""

    ledger: Ledger
    seal: types.Header
    trusted: str
    """What the way to it was checked from."""


def base_of(genesis: Genesis, stored: LedgerStore, replay: LedgerStore) -> Base:
    """
    Restore the oldest snapshot of a folder into an empty store, and check the way to it.

    Raises:
        ChainError: there is none, or something about it is wrong.
        WireError: what is stored has no valid form, or is not final.
    """
    snapshots = Snapshots.beside(stored)
    offers = (offer_of(stored, one) for one in (snapshots.heights() if snapshots else []))
    offer = next((one for one in offers if one is not None), None)
    if offer is None or snapshots is None:
        raise ChainError(
            stored.floor + 1,
            "blocks before it are not here, and no snapshot to begin at either: run a node on the "
            "folder until it has taken one, or join again (empty folder)",
        )
    manifest = offer.manifest
    trust = _trust(genesis, stored)
    validators = _walk(stored, trust, manifest.height)
    check_offer(offer, trust, lambda height: validators[height > manifest.height])
    chunks = list(snapshots.chunks(manifest.height))
    if len(chunks) != len(manifest.hashes):
        raise ChainError(manifest.height, "its snapshot is cut short")
    for number, chunk in enumerate(chunks):
        check_chunk(manifest, number, chunk)
    ledger = restore(replay, genesis, offer, chunks, trust=checkpoint_json(trust))
    _check_links(stored, offer)
    trusted = f"checkpoint at block {trust.height}" if trust.height else "genesis"
    return Base(ledger, offer.seal.header, trusted)


def _trust(genesis: Genesis, stored: LedgerStore) -> Checkpoint:
    """The checkpoint that a joiner began with, else the genesis."""
    kept: dict[str, Any] | None = stored.joined_at
    trust = genesis_checkpoint(genesis) if kept is None else checkpoint_from_json(encode(kept))
    if trust.chain_id != genesis.chain_id:
        raise ChainError(0, "the folder began with a checkpoint of another chain")
    return trust


def _walk(
    stored: LedgerStore, trust: Checkpoint, height: int
) -> tuple[types.ValidatorSet, types.ValidatorSet]:
    """Over all kept seals: who finalised the seal of a height, and who its next block."""
    before = after = trust.validators
    for step in _steps(stored, trust.height, height):
        header = step.anchor.header
        verify_anchor(step.anchor, replace(trust, validators=after))
        before = after
        if header.next_validators_hash != after.hash:
            following = step.following()
            if following is None or following.hash != header.next_validators_hash:
                raise UnknownValidatorsError("a seal begins another set", epoch=header.epoch + 1)
            after = following
        if header.height == height:
            return before, after
    return after, after


def _steps(stored: LedgerStore, above: int, up_to: int) -> list[Step]:
    """The seals that are kept, of blocks that are here and that are not."""
    prover = Prover(stored)
    found = {
        seal.header.height: Step(Anchor(seal.header, seal.finality), seal.keys)
        for seal in stored.old_seals()
    }
    for height in range(stored.floor + 1, up_to + 1):
        block = stored.get_block(height)
        if block is not None and block.header.seal:
            found[height] = Step(prover.anchor(height), keys_of(stored, height))
    return [found[height] for height in sorted(found) if above < height <= up_to]


def _check_links(stored: LedgerStore, offer: Offer) -> None:
    """Blocks that are here, but older than the snapshot: linked, with their transactions."""
    child = offer.cover.header
    for height in range(offer.manifest.height, stored.floor, -1):
        block = stored.get_block(height)
        if block is None:
            raise ChainError(height, "it is missing")
        if types.header_hash(block.header) != child.parent_hash or block.hash != child.parent_hash:
            raise ChainError(height, "it is not linked to the next")
        if merkle.root(block.txids) != block.header.tx_root:
            raise ChainError(height, "its transactions are not those of its root")
        for txid in block.txids:
            body = stored.get_body(txid)
            if body is None or parse_transaction(body).txid != txid:
                raise ChainError(height, f"body {txid.hex()[:16]} is not here")
        child = block.header
