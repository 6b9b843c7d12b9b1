"""Write merkle.json: RFC 6962 trees over known leaves, by the RFC's recursive definition."""

import hashlib
import json
from pathlib import Path

LEAVES = [b"", b"\x00", b"\x10", b" !", b"01", b"@ABC", b"PQRSTUVW", b"`abcdefghijklmno"]


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), tree_hash(leaves[k:])]
    return [*path(m - k, leaves[k:]), tree_hash(leaves[:k])]


if __name__ == "__main__":
    vectors = [
        {
            "leaves": [leaf.hex() for leaf in LEAVES[:n]],
            "root": tree_hash(LEAVES[:n]).hex(),
            "paths": [[node.hex() for node in path(m, LEAVES[:n])] for m in range(n)],
        }
        for n in range(len(LEAVES) + 1)
    ]
    Path(__file__).with_name("merkle.json").write_text(json.dumps(vectors, indent=1) + "\n")
