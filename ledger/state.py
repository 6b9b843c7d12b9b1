"""
The state: canonical JSON values under string keys, a journal to undo changes, and one root.

Values are *values*: whoever changes an account puts a new one, never edits what `get` returned.
`begin` / `commit` / `rollback` nest (block, transaction, operation); each level remembers what its
first write to a key replaced. The Merkle tree is brought up to date when the root is asked for, for
the keys written since then only. The last blocks' trees, and what they replaced, are kept
(`State.past`), because a header carries the root of a state that is already past.

The tree's nodes live in memory and are made again from the rows when a ledger is opened (about 10
µs a key). They are immutable and named by their hash: a table hash → node can persist them without
a change to this interface.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sortedcontainers import SortedDict

from ledger import smt
from wire.canonical import encode

_ABSENT = object()
_LAST = "\U0010ffff"
PAST_BLOCKS = 64
"""How many blocks back a state can be looked at."""


@dataclass(frozen=True, slots=True)
class PastState:
    """
    A state as it was some blocks ago; good until the next write.

    Args:
        state: as it is now
        tree: its Merkle tree then
        replaced: rows that were different then
    """

    state: State
    tree: smt.Node
    replaced: dict[str, Any]

    def get(self, key: str) -> Any | None:
        """The value of `key` then, or None."""
        value = self.replaced[key] if key in self.replaced else self.state.get(key)
        return None if value is _ABSENT else value

    def prove(self, key: str) -> smt.Proof:
        """Proof of the value of `key` then, or of its absence."""
        return smt.prove(self.tree, smt.path_of(key))


class State:
    """
    A replicated key-value map.

    Args:
        rows: keys and values to start with
    """

    def __init__(self, rows: Iterable[tuple[str, Any]] = ()) -> None:
        self._rows: SortedDict[str, Any] = SortedDict(rows)
        self._journal: list[dict[str, Any]] = []
        self._stale: set[str] = set(self._rows)
        self._tree: smt.Node = None
        self._tree_before: smt.Node = None
        self._past: deque[tuple[smt.Node, dict[str, Any]]] = deque(maxlen=PAST_BLOCKS)
        """The tree before each of the last blocks, and what the block replaced."""
        self._encoded: dict[str, bytes] = {}
        """Canonical bytes made for the last root, so that a block encodes its rows once."""

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Any | None:
        """The value of `key`, or None. Not to be changed in place."""
        return self._rows.get(key)

    def put(self, key: str, value: Any) -> None:
        """Set `key` to a restricted JSON value (`wire.canonical`)."""
        self._remember(key)
        self._rows[key] = value

    def delete(self, key: str) -> None:
        """Remove `key` if it is there."""
        if key in self._rows:
            self._remember(key)
            del self._rows[key]

    def scan(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Keys with `prefix` and their values, in key order; writing meanwhile is safe."""
        for key in list(self._rows.irange(prefix, prefix + _LAST)):
            if key in self._rows:
                yield key, self._rows[key]

    def first(self, prefix: str) -> str | None:
        """The lowest key with `prefix`, or None."""
        return next(self._rows.irange(prefix, prefix + _LAST), None)

    # --- journal ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start remembering what is replaced."""
        if not self._journal:
            self.root()
            self._tree_before = self._tree
        self._journal.append({})

    def commit(self) -> None:
        """Keep what was written since the matching `begin`."""
        level = self._journal.pop()
        if not self._journal:
            self._past.append((self._tree_before, level))
        else:
            above = self._journal[-1]
            for key, before in level.items():
                above.setdefault(key, before)

    def rollback(self) -> None:
        """Take back what was written since the matching `begin`."""
        for key, before in self._journal.pop().items():
            self._stale.add(key)
            self._encoded.pop(key, None)
            if before is _ABSENT:
                self._rows.pop(key, None)
            else:
                self._rows[key] = before

    def changes(self) -> dict[str, tuple[Any | None, Any | None]]:
        """Keys written since the innermost `begin`: value before and after, in key order."""
        found = {}
        for key, before in sorted(self._journal[-1].items()):
            found[key] = (None if before is _ABSENT else before, self._rows.get(key))
        return found

    def encoded_changes(self) -> dict[str, bytes | None]:
        """Keys written since the innermost `begin` with their canonical bytes; None: removed."""
        return {
            key: self._bytes(key) if key in self._rows else None
            for key in sorted(self._journal[-1])
        }

    def _remember(self, key: str) -> None:
        self._stale.add(key)
        self._encoded.pop(key, None)
        if self._journal and key not in self._journal[-1]:
            self._journal[-1][key] = self._rows.get(key, _ABSENT)

    # --- root -------------------------------------------------------------------------------------

    def root(self) -> bytes:
        """Root of the sparse Merkle tree over the present keys and values."""
        if self._stale:
            self._encoded.clear()
            self._tree = smt.update(
                self._tree, [(smt.path_of(key), self._value_hash(key)) for key in self._stale]
            )
            self._stale = set()
        return smt.node_hash(self._tree)

    def prove(self, key: str) -> smt.Proof:
        """Proof of the value of `key`, or of its absence, against `root()`."""
        self.root()
        return smt.prove(self._tree, smt.path_of(key))

    def past(self, root: bytes) -> PastState | None:
        """The state whose root is `root`, if it is this one or one of `PAST_BLOCKS` before it."""
        replaced: dict[str, Any] = {}
        if self.root() == root:
            return PastState(self, self._tree, replaced)
        for tree, before in reversed(self._past):
            replaced.update(before)
            if smt.node_hash(tree) == root:
                return PastState(self, tree, replaced)
        return None

    def _value_hash(self, key: str) -> bytes | None:
        if key not in self._rows:
            return None
        raw = self._encoded[key] = encode(self._rows[key])
        return hashlib.sha256(raw).digest()

    def _bytes(self, key: str) -> bytes:
        raw = self._encoded.get(key)
        return encode(self._rows[key]) if raw is None else raw


def verify_proof(root: bytes, key: str, value: Any | None, proof: smt.Proof) -> bool:
    """True when the state with `root` holds `value` under `key` (None: has no such key)."""
    value_hash = None if value is None else hashlib.sha256(encode(value)).digest()
    return smt.verify(root, smt.path_of(key), value_hash, proof)
