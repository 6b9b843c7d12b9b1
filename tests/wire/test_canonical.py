"""Canonical JSON: RFC 8785 for what we sign, and nothing else gets in."""

import json
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.canonical import MAX_DEPTH, MAX_MESSAGE_BYTES, decode, encode
from wire.errors import MalformedError, OversizedError
from wire.units import MAX_SAFE_INT

VECTORS = Path(__file__).parents[2].parent / "shared" / "data" / "jcs_rfc8785"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(max_codepoint=127), max_size=6)
SCALARS = st.booleans() | st.integers(-MAX_SAFE_INT, MAX_SAFE_INT) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def nested(depth, kind):
    value = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


@settings(max_examples=300)
@given(VALUES)
def test_the_bytes_are_those_of_rfc8785(value):
    assert encode(value) == rfc8785.dumps(value)


@settings(max_examples=200)
@given(VALUES)
def test_what_is_encoded_decodes_to_the_same_value(value):
    assert decode(encode(value)) == value


@pytest.mark.parametrize("code", [*range(0x80), 0x2028, 0x2029, 0xFFFE, 0xFFFF, 0x10FFFF])
def test_every_control_character_has_the_one_escape(code):
    text = f"a{chr(code)}b"
    assert encode(text) == rfc8785.dumps(text)


def test_there_is_one_accepted_spelling_of_each_value():
    """Any way of writing that Python's own encoder knows is refused unless it is the canonical."""
    value = {"b": [1, "é\n"], "a": True}
    spellings = {
        json.dumps(value, indent=indent, sort_keys=ordered, ensure_ascii=ascii_only,
                   separators=separators).encode()
        for indent in (None, 1) for ordered in (True, False) for ascii_only in (True, False)
        for separators in (None, (",", ":"))
    }  # fmt: skip
    accepted = []
    for raw in spellings:
        try:
            decode(raw)
            accepted.append(raw)
        except MalformedError:
            pass
    assert accepted == [encode(value)]


@pytest.mark.parametrize(
    "raw",
    [
        b"1.0", b"1e3", b"1E3", b"-0", b"0.5", b"NaN", b"Infinity", b"1e400",  # floats
        b"null", b'{"a":null}', b"[null]",
        b'{"a":1,"a":1}', b'{"a":1,"a":2}', b'{"b":1,"a":2}',  # twice, or out of order
        b" 1", b"1 ", b"[1, 2]", b'{"a": 1}', b"[1]\n", b"\t1",  # white space
        b"9007199254740992", b"-9007199254740992", b"100000000000000000000",  # wide
        b'"\\u0041"', b'"\\/"', b'"\\u001F"', b'"\\u000a"', b'"\\u00e9"',  # wrong escape
        b'"\\ud800"', b'"\\udc00"', b'"\xed\xa0\x80"',  # lone surrogates
        b'"\xff"', b'"\x01"', b'"a', b"", b"nul", b"[1,]", b"{", b"}", b"[1]2", b"'a'",
        b"\xef\xbb\xbf1", b'{"\xc3\xa9":1}', b"{1:2}", b"01", b"+1",
    ],
)  # fmt: skip
def test_other_spellings_are_malformed(raw):
    with pytest.raises(MalformedError):
        decode(raw)


@pytest.mark.parametrize(
    "value",
    [
        1.0, float("nan"), None, [None], {"a": None}, {1: 2}, {"é": 1}, b"bytes", {1, 2},
        MAX_SAFE_INT + 1, -MAX_SAFE_INT - 1, "\ud800", ["\udfff"], {"a": {"b": 0.5}}, object(),
    ],
)  # fmt: skip
def test_what_may_not_be_signed_is_not_encoded(value):
    with pytest.raises(MalformedError):
        encode(value)


@pytest.mark.parametrize("kind", [list, dict])
def test_nesting_ends_at_sixteen(kind):
    assert decode(encode(nested(MAX_DEPTH, kind))) == nested(MAX_DEPTH, kind)
    with pytest.raises(MalformedError, match="nested"):
        encode(nested(MAX_DEPTH + 1, kind))


@pytest.mark.parametrize("raw", [b"[" * 30_000, b"[" * 20_000 + b"]" * 20_000, b'{"a":' * 9_000])
def test_a_very_deep_message_is_refused_and_crashes_nothing(raw):
    with pytest.raises(MalformedError):
        decode(raw)


def test_a_value_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(MalformedError, match="nested"):
        encode(loop)


def test_a_message_of_the_limit_is_read_and_one_byte_more_is_oversized():
    raw = encode("x" * (MAX_MESSAGE_BYTES - 2))
    assert len(decode(raw)) == MAX_MESSAGE_BYTES - 2
    with pytest.raises(OversizedError):
        decode(raw + b"x")
    with pytest.raises(OversizedError):
        decode(b"[1]", max_bytes=2)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_decoded_or_refused_by_name(raw):
    try:
        value = decode(raw)
    except MalformedError:
        return
    assert encode(value) == raw


@pytest.mark.parametrize("name", ["arrays", "french", "structures", "unicode", "values", "weird"])
def test_the_rfc_authors_vectors_within_our_restriction(name):
    """Vectors with null, float or keys outside ASCII must be refused; the rest must agree."""
    if not VECTORS.is_dir():
        pytest.skip("the RFC author's vectors are not at ../shared/data/jcs_rfc8785")
    value = json.loads((VECTORS / "input" / f"{name}.json").read_bytes())
    raw = (VECTORS / "output" / f"{name}.json").read_bytes().strip()
    if name == "unicode":
        assert encode(value) == raw
        assert decode(raw) == value
        return
    with pytest.raises(MalformedError):
        encode(value)
    if name != "structures":  # 56.0 is a float as it comes in; its canonical form is an integer
        with pytest.raises(MalformedError):
            decode(raw)
    else:
        assert encode(decode(raw)) == raw
