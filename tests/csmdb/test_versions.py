"""Firmware versions and the ranges of advisories: what is inside, what is not, what is open."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csmdb.versions import MAX_CHARS, compare, read_exact, read_range, read_version
from wire.errors import MalformedError

NUMBERS = st.lists(st.integers(0, 30), min_size=1, max_size=4)
TEXTS = st.one_of(
    NUMBERS.map(lambda parts: ".".join(map(str, parts))),
    st.text(alphabet="0123456789.-+ abvxD<>=|*", max_size=24),
)


def dotted(parts):
    return ".".join(map(str, parts))


@given(NUMBERS, NUMBERS)
def test_numbers_compare_as_numbers_and_missing_ones_are_zero(left, right):
    width = max(len(left), len(right))
    padded = [parts + [0] * (width - len(parts)) for parts in (left, right)]
    wanted = (padded[0] > padded[1]) - (padded[0] < padded[1])
    assert compare(read_version(dotted(left)), read_version("v" + dotted(right))) == wanted


@given(TEXTS, TEXTS, TEXTS)
def test_comparison_is_an_order_wherever_it_answers(a, b, c):
    one, two, three = map(read_version, (a, b, c))
    first, second = compare(one, two), compare(two, three)
    assert compare(two, one) == (None if first is None else -first)
    if first is not None and second is not None and first == second:
        assert compare(one, three) == first


@given(NUMBERS, NUMBERS, st.sampled_from(["<", "<=", ">", ">=", "=", "!="]))
def test_a_bound_holds_what_its_sign_says(version, bound, sign):
    order = compare(read_version(dotted(version)), read_version(dotted(bound)))
    wanted = {
        "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0, "=": order == 0,
        "!=": order != 0,
    }[sign]  # fmt: skip
    assert read_range(f"{sign} {dotted(bound)}").holds(dotted(version)) is wanted
    assert read_range(f"vers:generic/{sign}{dotted(bound)}").holds(dotted(version)) is wanted


@given(NUMBERS, NUMBERS, NUMBERS)
def test_between_two_bounds_in_either_order(low, high, version):
    low, high, version = map(dotted, (low, high, version))
    wanted = read_range(f">={low}").holds(version) and read_range(f"<{high}").holds(version)
    if compare(read_version(low), read_version(high)) == -1:
        assert read_range(f">={low} <{high}").holds(version) is wanted
        assert read_range(f"< {high}, >= {low}").holds(version) is wanted


@given(TEXTS, TEXTS)
def test_whatever_is_read_a_range_answers_or_says_that_it_cannot(text, firmware):
    for read in (read_range, read_exact):
        try:
            assert read(text).holds(firmware) in (True, False, None)
        except MalformedError as error:
            assert error.refusal.value == "MALFORMED"


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("< 3.03 BN 830", ["3.03 BN 829", "v3.02", "1"], ["3.03 BN 830", "3.04"]),
        ("<= 1.6", ["1.6.0", "1.5.9"], ["1.6.1", "2"]),
        ("prior to 4.0.0", ["3.9.9"], ["4.0"]),
        ("versions 1.6 and earlier", ["1.6"], ["1.7"]),
        ("vers:generic/>=1.0|<2.0|>=3.0|<3.5|4.1", ["1.0", "3.4", "4.1"], ["2.0", "3.5", "4.2"]),
        ("vers:generic/1.0|1.2", ["1.0.0", "1.2"], ["1.1"]),
        ("vers:generic/%3C%3D2.5", ["2.5"], ["2.5.1"]),
        ("vers:all/*", ["1", "", "D7"], []),
        ("*", ["1", ""], []),
        ("All versions", ["1", ""], []),
    ],
)
def test_ranges_as_advisories_write_them(text, inside, outside):
    found = read_exact(text)
    assert [found.holds(one) for one in inside] == [True] * len(inside)
    assert [found.holds(one) for one in outside] == [False] * len(outside)


@pytest.mark.parametrize("text", ["see the vendor's page", "2.x", "1.0 - 2.0", "4.0 through 4.5",
                                  "< 2 and > 1", "", "<", "|", "vers:", "< 2.x"])  # fmt: skip
def test_a_range_that_says_nothing_we_know_lets_no_version_out(text):
    for read in (read_range, read_exact):
        assert read(text).holds("99.0") is None


@pytest.mark.parametrize(
    ("text", "firmware"),
    [("< 2.0", ""), ("< 2.0", "D7"), ("<= 1.2", "1.2-rc1"), ("D7.0.88", "7.0.88"), ("< D8", "R4")],
)
def test_what_cannot_be_compared_is_not_outside(text, firmware):
    assert read_exact(text).holds(firmware) is None


def test_an_exact_version_is_that_version_and_no_other():
    found = read_exact("D7.0.88")
    assert (found.holds("d7.0.88"), found.holds("D7.0.89"), found.holds("R4.10")) == (
        True, False, False,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["9" * (MAX_CHARS + 1), ".".join("1" * 40), "1" * 30,
                                  "1," * 70])  # fmt: skip
def test_too_long_a_text_is_refused(text):
    with pytest.raises(MalformedError):
        read_range(text)
