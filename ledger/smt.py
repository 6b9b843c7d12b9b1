"""
A compressed sparse Merkle tree: one root for a set of keys and values, with proofs of presence and
of absence.

A key's place is the path of the bits of SHA-256(key), first bit first. A subtree that holds one key
only *is* that key's leaf, so the tree is about log2(n) deep, and its shape (hence its root) depends
on what it holds, not on the order in which that came:

    empty  = 32 zero bytes
    leaf   = SHA-256(0x00 ‖ SHA-256(key) ‖ SHA-256(value))
    branch = SHA-256(0x01 ‖ left ‖ right)

Nodes are immutable. An update shares all that it does not touch with the tree before, so keeping
the old root *is* the way back.

The compression (a lone leaf stands for its subtree) follows "Compact Sparse Merkle Trees" (Haider,
2018) and Diem's "Jellyfish Merkle Tree" (Gao et al., 2021); domain bytes follow RFC 6962 §2.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

EMPTY = bytes(32)
"""Root of a tree that holds nothing."""
DEPTH = 256


class Leaf:
    """One key with its value's hash."""

    __slots__ = ("hash", "path", "value_hash")

    def __init__(self, path: bytes, value_hash: bytes) -> None:
        self.path = path
        self.value_hash = value_hash
        self.hash = hashlib.sha256(b"\0" + path + value_hash).digest()


class Branch:
    """Two subtrees, at least one of which is not a lone leaf beside nothing."""

    __slots__ = ("hash", "left", "right")

    def __init__(self, left: Node, right: Node) -> None:
        self.left = left
        self.right = right
        self.hash = hashlib.sha256(b"\1" + node_hash(left) + node_hash(right)).digest()


Node: TypeAlias = "Leaf | Branch | None"
Change: TypeAlias = "tuple[bytes, bytes | None]"
"""A path and its new value hash; None removes it."""


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Why a key is, or is not, in a tree."""

    siblings: tuple[bytes, ...]
    """Hashes beside the path, from the root down."""
    other_path: bytes = b""
    """Absence: the path of the leaf that stands where the key would; empty when nothing does."""
    other_value_hash: bytes = b""


def path_of(key: str) -> bytes:
    """The path of a key."""
    return hashlib.sha256(key.encode()).digest()


def node_hash(node: Node) -> bytes:
    """The hash of a subtree."""
    return EMPTY if node is None else node.hash


def update(root: Node, changes: Iterable[Change]) -> Node:
    """
    Apply changes in one pass: each node above a changed leaf is hashed once.

    Args:
        root: the tree before; stays as it is
        changes: at most one for each path
    """
    return _update(root, sorted(changes, key=_first), 0)


def prove(root: Node, path: bytes) -> Proof:
    """Proof that `path` is in the tree, or that it is not."""
    siblings: list[bytes] = []
    node = root
    while isinstance(node, Branch):
        if _bit(path, len(siblings)):
            siblings.append(node_hash(node.left))
            node = node.right
        else:
            siblings.append(node_hash(node.right))
            node = node.left
    if node is None or node.path == path:
        return Proof(tuple(siblings))
    return Proof(tuple(siblings), node.path, node.value_hash)


def verify(root_hash: bytes, path: bytes, value_hash: bytes | None, proof: Proof) -> bool:
    """
    True when the tree with `root_hash` holds `value_hash` at `path` (None: holds nothing there).

    The proof may come from anywhere; nothing in it is trusted.
    """
    depth = len(proof.siblings)
    if depth > DEPTH or any(len(sibling) != 32 for sibling in proof.siblings):
        return False
    if value_hash is not None:
        if proof.other_path or len(value_hash) != 32:
            return False
        current = Leaf(path, value_hash).hash
    elif proof.other_path:
        if len(proof.other_path) != 32 or len(proof.other_value_hash) != 32:
            return False
        if proof.other_path == path or _prefix(proof.other_path, depth) != _prefix(path, depth):
            return False
        current = Leaf(proof.other_path, proof.other_value_hash).hash
    else:
        current = EMPTY
    for level in range(depth - 1, -1, -1):
        sibling = proof.siblings[level]
        pair = sibling + current if _bit(path, level) else current + sibling
        current = hashlib.sha256(b"\1" + pair).digest()
    return current == root_hash


def _update(node: Node, changes: list[Change], depth: int) -> Node:
    if not changes:
        return node
    if not isinstance(node, Branch):
        return _grow(node, changes, depth)
    split = _split(changes, depth)
    left = _update(node.left, changes[:split], depth + 1)
    right = _update(node.right, changes[split:], depth + 1)
    return _join(left, right)


def _grow(node: Leaf | None, changes: list[Change], depth: int) -> Node:
    """The subtree where an empty place or a lone leaf was."""
    if len(changes) == 1 and (node is None or node.path == changes[0][0]):
        path, value_hash = changes[0]
        return None if value_hash is None else Leaf(path, value_hash)
    kept = [change for change in changes if change[1] is not None]
    if node is not None and all(path != node.path for path, _ in changes):
        kept.append((node.path, node.value_hash))
        kept.sort(key=_first)
    return _build(kept, depth)


def _build(changes: list[Change], depth: int) -> Node:
    if not changes:
        return None
    if len(changes) == 1:
        path, value_hash = changes[0]
        assert value_hash is not None
        return Leaf(path, value_hash)
    split = _split(changes, depth)
    return _join(_build(changes[:split], depth + 1), _build(changes[split:], depth + 1))


def _join(left: Node, right: Node) -> Node:
    """A branch, or the leaf itself when it is alone."""
    if left is None and not isinstance(right, Branch):
        return right
    if right is None and not isinstance(left, Branch):
        return left
    return Branch(left, right)


def _split(changes: list[Change], depth: int) -> int:
    """Index of the first change that goes to the right."""
    low, high = 0, len(changes)
    while low < high:
        middle = (low + high) // 2
        if _bit(changes[middle][0], depth):
            high = middle
        else:
            low = middle + 1
    return low


def _bit(path: bytes, depth: int) -> int:
    return path[depth >> 3] >> (7 - (depth & 7)) & 1


def _prefix(path: bytes, bits: int) -> int:
    return int.from_bytes(path, "big") >> (DEPTH - bits)


def _first(change: Change) -> bytes:
    return change[0]
