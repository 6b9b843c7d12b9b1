"""What a home or a repository says of firmware is a record or a named refusal, whatever it is."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import BadSignatureError, MalformedError, UnsignedError
from wire.firmware import (
    Attestation,
    Target,
    attestation_json,
    check_attestation,
    is_file_name,
    is_lower,
    load_attestation,
    read_target,
    sign_attestation,
    version_of,
)
from wire.keys import SigningKey

KEY = SigningKey(bytes(range(32)))
RECORD = Attestation(
    meter=KEY.id, vendor="V", model="M", serial="S", firmware="1.0", digest="", slot=1, time_ms=1,
    nonce="1." + "0" * 64,
)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(dict.fromkeys(Attestation.__struct_fields__, ANYTHING))


@given(ANYTHING | FIELDS)
def test_anything_is_an_attestation_or_malformed(value):
    try:
        record = load_attestation(value)
    except MalformedError:
        return
    assert load_attestation(attestation_json(record)) == record


@given(ANYTHING)
def test_anything_is_a_target_or_malformed(value):
    with contextlib.suppress(MalformedError):
        assert isinstance(read_target(value), Target)


def test_every_field_of_an_attestation_is_signed():
    signed = sign_attestation(RECORD, KEY, "market")
    check_attestation(signed, KEY.public, "market")
    with pytest.raises(UnsignedError):
        check_attestation(RECORD, KEY.public, "market")
    for name in set(Attestation.__struct_fields__) - {"signature"}:
        value = getattr(signed, name)
        other = value + 1 if isinstance(value, int) else value + "x"
        with pytest.raises(BadSignatureError):
            check_attestation(
                msgspec.structs.replace(signed, **{name: other}), KEY.public, "market"
            )


def test_a_file_s_name_is_one_part_without_surprises():
    assert is_file_name("RM-1-2.0.0.bin")
    for name in ("", ".", "..", "../x", "a/b", ".hidden", "a b", "a\0", "x" * 101, "-rf", "ü"):
        assert not is_file_name(name), name


def test_a_build_number_counts_after_all_other_numbers():
    rising = ["3.03", "3.03 BN 829", "3.3 build 830", "3.03.1", "3.03.1 BN 1", "3.04"]
    assert sorted(rising, key=version_of) == rising
    assert is_lower("3.03 BN 829", "3.03 BN 830") and not is_lower("3.03 BN 830", "3.03 BN 830")
    for odd in ("3.03 RC 1", "3.03 BN", "3.03BN 830", "3.03 BN 830 1", "3.03 BN -1"):
        with pytest.raises(MalformedError):
            version_of(odd)
