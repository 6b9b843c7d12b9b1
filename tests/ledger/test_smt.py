"""The compressed sparse Merkle tree: one root per content, proofs that cannot be bent."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import smt

KEYS = st.integers(0, 40).map(lambda n: smt.path_of(f"key {n}"))
# Paths that share long prefixes, which hashed keys hardly ever do.
NEAR = st.tuples(st.integers(0, 3), st.integers(0, 255)).map(
    lambda t: bytes([0xAA] * (8 * t[0])) + bytes([t[1]]) + bytes(31 - 8 * t[0])
)
PATHS = st.one_of(KEYS, NEAR)
VALUES = st.integers(0, 5).map(lambda n: hashlib.sha256(bytes([n])).digest())
CONTENTS = st.dictionaries(PATHS, VALUES, max_size=24)


def tree(content: dict[bytes, bytes]) -> smt.Node:
    return smt.update(None, content.items())


def reference(content: dict[bytes, bytes], depth: int = 0) -> bytes:
    """The definition, written down directly."""
    if not content:
        return bytes(32)
    if len(content) == 1:
        ((path, value),) = content.items()
        return hashlib.sha256(b"\0" + path + value).digest()
    sides: list[dict[bytes, bytes]] = [{}, {}]
    for path, value in content.items():
        sides[int.from_bytes(path, "big") >> (255 - depth) & 1][path] = value
    left, right = (reference(side, depth + 1) for side in sides)
    return hashlib.sha256(b"\1" + left + right).digest()


@given(CONTENTS)
def test_root_is_the_definition(content):
    assert smt.node_hash(tree(content)) == reference(content)


@given(CONTENTS, st.lists(st.dictionaries(PATHS, st.none() | VALUES, max_size=8), max_size=6))
def test_updates_in_batches_give_the_root_of_what_is_left(content, batches):
    node = tree(content)
    for batch in batches:
        before = smt.node_hash(node)
        after = smt.update(node, batch.items())
        assert smt.node_hash(node) == before, "the tree before stays as it is"
        node = after
        content = {k: v for k, v in {**content, **batch}.items() if v is not None}
    assert smt.node_hash(node) == reference(content)


@given(CONTENTS, PATHS)
def test_presence_and_absence_are_proven(content, path):
    node = tree(content)
    root, proof, value = smt.node_hash(node), smt.prove(node, path), content.get(path)
    assert smt.verify(root, path, value, proof)
    other = hashlib.sha256(b"another value").digest()
    assert not smt.verify(root, path, other, proof)
    assert smt.verify(root, path, None, proof) == (value is None)


@settings(max_examples=60)
@given(CONTENTS.filter(bool), PATHS, st.data())
def test_a_bent_proof_convinces_nobody(content, path, data):
    node = tree(content)
    root, proof, value = smt.node_hash(node), smt.prove(node, path), content.get(path)
    siblings = list(proof.siblings)
    if siblings and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(siblings) - 1))
        flipped = bytearray(siblings[place])
        flipped[data.draw(st.integers(0, 31))] ^= 1
        siblings[place] = bytes(flipped)
    else:
        siblings.append(bytes(32))
    bent = smt.Proof(tuple(siblings), proof.other_path, proof.other_value_hash)
    assert not smt.verify(root, path, value, bent)


def test_a_leaf_elsewhere_does_not_prove_absence():
    """An absence proof must show the leaf that stands in the key's own place."""
    paths = [bytes([first]) + bytes(31) for first in (0x00, 0x80)]
    value = hashlib.sha256(b"value").digest()
    node = tree(dict.fromkeys(paths, value))
    proof = smt.prove(node, paths[0])
    for asked, other in ((paths[0], paths[1]), (paths[0], paths[0])):
        forged = smt.Proof(proof.siblings, other, value)
        assert not smt.verify(smt.node_hash(node), asked, None, forged)


@pytest.mark.parametrize(
    "proof",
    [
        smt.Proof((bytes(31),)),
        smt.Proof((bytes(32),) * 257),
        smt.Proof((), b"short", bytes(32)),
        smt.Proof((), bytes(32), b"short"),
    ],
)
def test_malformed_proofs_are_refused(proof):
    assert not smt.verify(bytes(32), smt.path_of("key"), None, proof)
    assert not smt.verify(bytes(32), smt.path_of("key"), bytes(32), proof)


def test_paths_that_differ_in_the_last_bit_work():
    low, high = bytes(32), bytes(31) + b"\1"
    value = hashlib.sha256(b"value").digest()
    node = tree({low: value, high: value})
    proof = smt.prove(node, low)
    assert len(proof.siblings) == 256
    assert smt.verify(smt.node_hash(node), low, value, proof)
    assert isinstance(smt.update(node, [(high, None)]), smt.Leaf)
