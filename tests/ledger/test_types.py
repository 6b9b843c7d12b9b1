"""Consensus objects have one spelling, one hash, and believe only a quorum."""

import importlib.util
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.types import (
    MAX_OBJECT_BYTES,
    ZERO_HASH,
    Certificate,
    Finality,
    Header,
    Justify,
    Proposal,
    ValidatorSet,
    Vote,
    VoteKind,
    decode,
    encode,
    header_hash,
    make_certificate,
    make_vote,
    proposal_vote,
    signers,
    verify_certificate,
    verify_finality,
    verify_vote,
)
from wire.errors import MalformedError, OversizedError

VECTORS = Path(__file__).parents[1] / "vectors" / "ledger"
_spec = importlib.util.spec_from_file_location("make_types", VECTORS / "make_types.py")
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)
CHAIN_ID, KEYS, VALIDATORS = made.CHAIN_ID, made.KEYS, made.VALIDATORS
HASH = b"\x07" * 32


def vote(index, kind=VoteKind.NOTARIZE, block_hash=HASH, view=1):
    return make_vote(KEYS[index], CHAIN_ID, index, 0, view, kind, block_hash)


def test_bytes_and_hashes_equal_the_golden_vectors():
    assert json.loads((VECTORS / "types.json").read_text()) == made.make_vectors()


@pytest.mark.parametrize(
    ("n", "f", "quorum"),
    [(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 1, 3), (5, 1, 4), (6, 1, 4), (7, 2, 5)],
)
def test_the_quorum_table(n, f, quorum):
    validators = ValidatorSet(tuple(str(i) for i in range(n)), (b"",) * n)
    assert (validators.f, validators.quorum) == (f, quorum)


@given(st.integers(1, 128))
def test_two_quorums_share_more_than_f_and_the_honest_make_one(n):
    validators = ValidatorSet(tuple(str(i) for i in range(n)), (b"",) * n)
    assert 2 * validators.quorum - n > validators.f
    assert n - validators.f >= validators.quorum


def test_objects_survive_the_wire():
    header = made.make_header()
    certificate = make_certificate([vote(i) for i in (0, 2, 3)])
    proposal = Proposal(header, (HASH,), Justify(certificate), vote(0).signature)
    for value in (header, certificate, proposal, vote(1), Finality(certificate, (header,))):
        assert decode(type(value), encode(value)) == value


@pytest.mark.parametrize("kind", [Header, Vote, Certificate, Justify, Proposal, Finality])
@given(raw=st.binary(max_size=200))
def test_noise_is_refused_by_name(kind, raw):
    with pytest.raises(MalformedError):
        decode(kind, raw)


def test_a_second_spelling_is_refused():
    raw = encode(vote(1))
    assert raw[1] == 0  # epoch, one byte; the same number in two
    with pytest.raises(MalformedError, match="canonical"):
        decode(Vote, raw[:1] + b"\xcc\x00" + raw[2:])


def test_an_oversized_object_is_refused():
    with pytest.raises(OversizedError):
        decode(Vote, bytes(MAX_OBJECT_BYTES + 1))


def test_fields_out_of_range_are_refused():
    for changes in ({"height": 0}, {"parent_hash": b"short"}, {"time_ms": -1}, {"n_tx": 2**60}):
        with pytest.raises(MalformedError):
            decode(Header, encode(made.make_header(**changes)))


def test_every_field_of_a_header_changes_its_hash():
    header = made.make_header()
    changes = {"chain_id": "x", "version": 2, "proposer": "x", "seal": True}
    for field in msgspec.structs.fields(header):
        old = getattr(header, field.name)
        new = changes.get(field.name, old + 1 if isinstance(old, int) else HASH)
        changed = msgspec.structs.replace(header, **{field.name: new})
        assert header_hash(changed) != header_hash(header), field.name


def test_a_vote_is_its_validators_for_one_chain_view_and_block():
    good = vote(1)
    assert verify_vote(good, VALIDATORS, CHAIN_ID)
    assert not verify_vote(good, VALIDATORS, "another-chain")
    for changes in (
        {"validator": 2}, {"validator": 9}, {"view": 2}, {"epoch": 1},
        {"kind": VoteKind.FINALIZE}, {"block_hash": b"\x08" * 32},
    ):  # fmt: skip
        assert not verify_vote(msgspec.structs.replace(good, **changes), VALIDATORS, CHAIN_ID)


def test_a_nullify_names_no_block_and_the_others_do():
    assert verify_vote(vote(0, VoteKind.NULLIFY, ZERO_HASH), VALIDATORS, CHAIN_ID)
    assert not verify_vote(vote(0, VoteKind.NULLIFY, HASH), VALIDATORS, CHAIN_ID)
    assert not verify_vote(vote(0, VoteKind.FINALIZE, ZERO_HASH), VALIDATORS, CHAIN_ID)


def test_a_certificate_needs_a_quorum_of_distinct_validators():
    good = make_certificate([vote(i) for i in (3, 0, 1)])
    assert signers(good) == (0, 1, 3)
    assert verify_certificate(good, VALIDATORS, CHAIN_ID)
    a, b, c = good.signatures
    replace = msgspec.structs.replace
    for bad in (
        make_certificate([vote(0), vote(1)]),
        replace(good, signatures=(a, b)),
        replace(good, signatures=(a, a, c)),
        replace(good, signatures=(a, b, c, c)),
        replace(good, bitmap=bytes([0b0111])),
        replace(good, bitmap=bytes([0b1011, 0])),
        replace(good, bitmap=bytes([0b11011])),
        replace(good, kind=VoteKind.FINALIZE),
    ):
        assert not verify_certificate(bad, VALIDATORS, CHAIN_ID)


def test_a_proposal_is_its_leaders_vote():
    header = made.make_header()
    signature = vote(0, block_hash=header_hash(header)).signature
    said = proposal_vote(Proposal(header, (), Justify(None), signature), 0)
    assert verify_vote(said, VALIDATORS, CHAIN_ID)


def test_finality_reaches_back_along_the_headers_only():
    first = made.make_header()
    second = made.make_header(height=2, view=2, parent_hash=header_hash(first))
    stray = made.make_header(height=2, view=2, parent_hash=HASH)

    def final(header):
        block_hash = header_hash(header)
        return make_certificate(
            [vote(i, VoteKind.FINALIZE, block_hash, header.view) for i in range(3)]
        )

    def proves(header, finality):
        return verify_finality(header_hash(header), finality, VALIDATORS, CHAIN_ID)

    assert proves(first, Finality(final(first)))
    assert proves(first, Finality(final(second), (second,)))
    assert not proves(first, Finality(final(second)))
    assert not proves(first, Finality(final(stray), (stray,)))
    assert not proves(first, Finality(final(first), (second,)))
    notarized = make_certificate([vote(i, block_hash=header_hash(first)) for i in range(3)])
    assert not proves(first, Finality(notarized))
