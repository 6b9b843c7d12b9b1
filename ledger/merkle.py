"""
Merkle trees of RFC 6962, section 2.1: roots, inclusion proofs, consistency proofs.

A leaf is hashed behind 0x00 and a node behind 0x01, so a node can never pass for a leaf. A tree of
n > 1 leaves splits at the largest power of two smaller than n. The empty tree's root is the hash of
nothing.

Proofs are verified as in RFC 9162, sections 2.1.3.2 and 2.1.4.2, which spell out the walk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The tree's root over the leaves' data."""
    if not leaves:
        return EMPTY_ROOT
    # Pairing level by level, an odd last node moving up as it is, gives the RFC's split.
    level = [leaf_hash(data) for data in leaves]
    while len(level) > 1:
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """
    The siblings on the way from leaf `index` to the root, lowest first (the RFC's PATH).

    Raises:
        IndexError: no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(leaves[:split], index), root(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), root(leaves[:split])]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> bool:
    """
    True when the leaf of hash `leaf` stands at `index` in the tree of `size` leaves.

    Args:
        leaf: `leaf_hash` of the data
        index: position, from 0
        size: number of leaves
        proof: as made by `inclusion_proof`
        expected_root: the tree's root
    """
    if not 0 <= index < size or not _are_hashes([leaf, expected_root, *proof]):
        return False
    position, last = index, size - 1
    value = leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            value = node_hash(sibling, value)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and value == expected_root


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """
    What shows that the tree of the first `old_size` leaves is a prefix of this one (PROOF).

    Raises:
        IndexError: `old_size` is not between 1 and the number of leaves.
    """
    if not 1 <= old_size <= len(leaves):
        raise IndexError(f"size {old_size} of {len(leaves)}")
    return _subproof(leaves, old_size, known=True)


def verify_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """
    True when the tree of `old_root` is a prefix of the tree of `new_root`.

    The empty tree is a prefix of every tree, and every tree of itself, without a proof.
    """
    if not 0 <= old_size <= new_size or not _are_hashes([old_root, new_root, *proof]):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _subproof(leaves: Sequence[bytes], old_size: int, *, known: bool) -> list[bytes]:
    if old_size == len(leaves):
        return [] if known else [root(leaves)]
    split = _split(len(leaves))
    if old_size <= split:
        return [*_subproof(leaves[:split], old_size, known=known), root(leaves[split:])]
    return [*_subproof(leaves[split:], old_size - split, known=False), root(leaves[:split])]


def _are_hashes(values: Sequence[bytes]) -> bool:
    return all(len(value) == HASH_BYTES for value in values)


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)
