"""Keys: a signature is for one purpose, one market and one message."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import MalformedError
from wire.keys import (
    BoxKey,
    Domain,
    SigningKey,
    from_text,
    id_of,
    is_id,
    preimage,
    seal_to,
    to_text,
    verify,
)

KEY = SigningKey(bytes(32))
OTHER = SigningKey(b"\1" * 32)


@pytest.mark.parametrize("domain", list(Domain))
def test_a_signature_counts_in_its_own_domain_only(domain):
    signature = KEY.sign(domain, "chain", b"message")
    accepted = [d for d in Domain if verify(KEY.public, d, "chain", b"message", signature)]
    assert accepted == [domain]


def test_domains_have_different_names_and_none_begins_another():
    names = sorted(domain.value for domain in Domain)
    assert all(not later.startswith(earlier) for earlier, later in pairwise(names))


def test_a_signature_of_one_chain_is_nothing_on_another():
    signature = KEY.sign(Domain.TX, "chain-a", b"message")
    assert verify(KEY.public, Domain.TX, "chain-a", b"message", signature)
    assert not verify(KEY.public, Domain.TX, "chain-b", b"message", signature)
    assert not verify(OTHER.public, Domain.TX, "chain-a", b"message", signature)


@given(st.binary(max_size=40), st.integers(0, 511))
def test_one_changed_bit_breaks_a_signature(message, bit):
    signature = bytearray(KEY.sign(Domain.TX, "c", message))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(KEY.public, Domain.TX, "c", message, bytes(signature))


def test_the_preimage_separates_chain_and_message():
    assert preimage(Domain.TX, "a", b"bc") != preimage(Domain.TX, "ab", b"c")


@pytest.mark.parametrize("public", [b"", b"\0" * 31, b"\0" * 32, b"\xff" * 32, b"\0" * 33])
@pytest.mark.parametrize("signature", [b"", b"\0" * 63, b"\0" * 64, b"\xff" * 64])
def test_a_bad_key_or_signature_is_false_not_a_crash(public, signature):
    assert not verify(public, Domain.TX, "c", b"m", signature)


def test_a_key_of_low_order_signs_nothing():
    """The identity point verifies every message in careless libraries."""
    identity = b"\1" + bytes(31)
    assert not verify(identity, Domain.TX, "c", b"m", identity + bytes(32))


def test_an_identity_is_the_hash_of_its_key_and_fits_a_topic():
    assert is_id(KEY.id)
    assert KEY.id == id_of(KEY.public) != OTHER.id
    assert KEY.id.isalnum()
    assert KEY.id == KEY.id.lower()


@pytest.mark.parametrize(
    "text", ["", "hg1", "hg1" + "a" * 31, "hg1" + "a" * 33, "hg1" + "A" * 32, "hg2" + "a" * 32,
             "hg1" + "1" * 32, "a" * 35, "hg1" + "a" * 31 + "\n"],
)  # fmt: skip
def test_other_texts_are_not_identities(text):
    assert not is_id(text)


def test_children_of_a_key_repeat_and_differ():
    assert KEY.derive("a") == KEY.derive("a")
    assert len({KEY.derive("a").id, KEY.derive("b").id, OTHER.derive("a").id, KEY.id}) == 4


def test_a_key_does_not_print_its_seed():
    assert KEY.seed.hex() not in repr(KEY)
    secret = BoxKey(b"\7" * 32)
    assert "7" not in repr(secret)


def test_a_seed_has_32_bytes():
    with pytest.raises(MalformedError):
        SigningKey(b"short")


@given(st.binary(max_size=70))
def test_base64url_has_one_spelling(data):
    text = to_text(data)
    assert from_text(text) == data
    for other in (text + "=", text + "\n", " " + text, text + "*"):
        with pytest.raises(MalformedError):
            from_text(other)


@pytest.mark.parametrize("text", ["+w", "/w", "AB", "é", "A", "AAAA="])
def test_second_spellings_of_base64url_are_refused(text):
    """`AB` has bits set that no byte uses; `+` and `/` are the other alphabet."""
    with pytest.raises(MalformedError):
        from_text(text)


def test_a_text_of_the_wrong_size_is_refused():
    with pytest.raises(MalformedError):
        from_text(to_text(b"\0" * 31), 32)


def test_a_sealed_box_opens_for_its_receiver_only():
    box = BoxKey(b"\3" * 32)
    sealed = seal_to(box.public, b"reading")
    assert box.open(sealed) == b"reading"
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for raw in (changed, b"", b"x" * 10, sealed[:-1]):
        with pytest.raises(MalformedError):
            box.open(raw)
    with pytest.raises(MalformedError):
        BoxKey(b"\4" * 32).open(sealed)


@pytest.mark.parametrize("public", [b"", b"\0" * 31, b"\0" * 32, b"\1" + b"\0" * 31])
def test_nothing_is_sealed_to_a_bad_key(public):
    """An asker chooses the box key of its answer; a bad one must not stop the service."""
    with pytest.raises(MalformedError):
        seal_to(public, b"reading")
