"""Merkle trees follow RFC 6962, and no other proof convinces."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import merkle

TESTS = Path(__file__).parents[1]
OURS = json.loads((TESTS / "vectors" / "ledger" / "merkle.json").read_text())
THEIRS = TESTS.parents[1] / "shared" / "data" / "rfc6962_merkle"
LEAVES = st.lists(st.binary(max_size=4), min_size=1, max_size=40)


@pytest.mark.parametrize("vector", OURS, ids=lambda vector: str(len(vector["leaves"])))
def test_roots_and_paths_equal_the_golden_vectors(vector):
    leaves = [bytes.fromhex(leaf) for leaf in vector["leaves"]]
    assert merkle.root(leaves).hex() == vector["root"]
    for index, path in enumerate(vector["paths"]):
        assert [node.hex() for node in merkle.inclusion_proof(leaves, index)] == path


@given(LEAVES, st.data())
def test_every_leaf_has_a_proof_and_only_at_its_place(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = merkle.inclusion_proof(leaves, index)
    root, leaf = merkle.root(leaves), merkle.leaf_hash(leaves[index])
    assert merkle.verify_inclusion(leaf, index, len(leaves), proof, root)
    assert not merkle.verify_inclusion(leaf, index + 1, len(leaves), proof, root) or (
        leaves[index + 1] == leaves[index]
    )
    assert not merkle.verify_inclusion(leaf, index, len(leaves), [*proof, root], root)
    assert not merkle.verify_inclusion(merkle.leaf_hash(b"other"), index, len(leaves), proof, root)


@given(LEAVES, st.data())
def test_every_prefix_is_consistent_and_a_changed_one_is_not(leaves, data):
    size = data.draw(st.integers(1, len(leaves)))
    proof = merkle.consistency_proof(leaves, size)
    old, new = merkle.root(leaves[:size]), merkle.root(leaves)
    assert merkle.verify_consistency(size, len(leaves), old, new, proof)
    changed = merkle.root([b"changed", *leaves[1:size]])
    assert not merkle.verify_consistency(size, len(leaves), changed, new, proof)


def test_a_node_does_not_pass_for_a_leaf():
    leaves = [b"a", b"b", b"c", b"d"]
    left = merkle.node_hash(merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b"))
    right = merkle.node_hash(merkle.leaf_hash(b"c"), merkle.leaf_hash(b"d"))
    assert merkle.root([left, right]) != merkle.root(leaves)


def test_a_leaf_that_is_not_there_has_no_proof():
    with pytest.raises(IndexError):
        merkle.inclusion_proof([b"a"], 1)
    with pytest.raises(IndexError):
        merkle.consistency_proof([b"a"], 2)


def _cases(kind):
    if not THEIRS.exists():
        pytest.skip("the RFC 6962 vectors of transparency-dev/merkle are not beside the repository")
    files = sorted((THEIRS / kind).rglob("*.json"))
    assert len(files) > 20
    return [(str(file.relative_to(THEIRS)), json.loads(file.read_text())) for file in files]


def _bytes(text):
    return base64.b64decode(text or "")


def test_the_inclusion_vectors_of_certificate_transparency():
    for name, case in _cases("inclusion"):
        proof = [_bytes(node) for node in case["proof"] or []]
        good = merkle.verify_inclusion(
            _bytes(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, _bytes(case["root"])
        )
        assert good is not case["wantErr"], name


def test_the_consistency_vectors_of_certificate_transparency():
    for name, case in _cases("consistency"):
        proof = [_bytes(node) for node in case["proof"] or []]
        good = merkle.verify_consistency(
            case["size1"], case["size2"], _bytes(case["root1"]), _bytes(case["root2"]), proof
        )
        assert good is not case["wantErr"], name
