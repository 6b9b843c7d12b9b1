"""
Firmware versions and the ranges in which advisories name them.

Firmware versions follow no standard: `2.5.4`, `3.03 BN 830`, `D7.0.88`. A version is read as a row
of numbers and words. Numbers compare as numbers, missing ones are 0; words compare as text. What
then stays open is open: a number against a word, one release's suffix against none (`1.2-rc1` or
`1.2 hotfix`?), two leading words (two product lines). The answer is None, and whoever asks decides;
the CSM-DB takes an open question for a vulnerable meter.

A range is `vers:` (constraints between bars), or what advisories really hold: `< 3.03 BN 830`,
`<= 1.6`, `>=2.0 <2.5`, `prior to 4.0`, `1.6 and earlier`, `all versions`, `*`.

References:
    CSAF 2.0, 3.1.2.2 (branch categories); the VERS specification (`vers:`, containment).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cmp_to_key, lru_cache
from itertools import pairwise
from typing import TypeAlias
from urllib.parse import unquote

from wire.errors import MalformedError

MAX_CHARS = 400
MAX_PARTS = 32
MAX_CONSTRAINTS = 64
MAX_DIGITS = 18
CACHED = 4096

Version: TypeAlias = tuple[int | str, ...]

_PART = re.compile(r"[0-9]+|[a-z]+")
_LEADING_NOISE = re.compile(r"^(?:version|firmware|ver|v|fw)[\s.:_-]*(?=[0-9])")
_CONSTRAINT = re.compile(r"(<=|>=|!=|==|<|>|=|≤|≥)?([^<>=!≤≥|,&]+)")
_SIGNS = {"≤": "<=", "≥": ">=", "==": "="}
_ALL = re.compile(r"(?:vers:[^/]*/)?\*|all(?: (?:known )?versions?)?|any(?: versions?)?")
_BEFORE = re.compile(r"(?:all )?(?:versions? )?(?:prior to|before|earlier than|older than) (.+)")
_UP_TO = re.compile(
    r"(?:all )?(?:versions? )?(.+?) (?:and|or) (?:prior|earlier|below|older)(?: versions?)?"
)
_WORDS = frozenset(
    ["after", "all", "and", "any", "before", "earlier", "from", "later", "newer", "older", "or",
     "other", "prior", "than", "through", "to", "until", "up", "versions", "with", "without", "x"]
)  # fmt: skip
"""What is not a part of one version, but says something of several."""


def read_version(text: str) -> Version:
    """
    The numbers and words of a version; without a leading `v` or `firmware`, and without zeros at
    the end.

    Raises:
        MalformedError: too long.
    """
    if len(text) > MAX_CHARS:
        raise MalformedError("a version is too long", characters=len(text))
    plain = _LEADING_NOISE.sub("", text.strip().lower())
    parts = _PART.findall(plain)
    if len(parts) > MAX_PARTS or any(len(part) > MAX_DIGITS for part in parts):
        raise MalformedError("a version has too many parts", parts=len(parts))
    version: list[int | str] = [int(part) if part.isdigit() else part for part in parts]
    while version and version[-1] == 0:
        version.pop()
    return tuple(version)


def compare(left: Version, right: Version) -> int | None:
    """
    Which of two versions is earlier.

    Returns:
        −1, 0 or 1 as `left` is earlier, the same or later; None: it cannot be told.
    """
    for at in range(max(len(left), len(right))):
        a: int | str = left[at] if at < len(left) else 0
        b: int | str = right[at] if at < len(right) else 0
        if a == b:
            continue
        if isinstance(a, int) and isinstance(b, int):
            return -1 if a < b else 1
        if isinstance(a, str) and isinstance(b, str) and at > 0:
            return -1 if a < b else 1
        return None
    return 0


@dataclass(frozen=True, slots=True)
class Constraint:
    """One bound."""

    sign: str
    """One of = != < <= > >=."""
    version: Version


@dataclass(frozen=True, slots=True)
class Range:
    """
    The versions that an advisory means.

    Args:
        text: as it stood there
        constraints: in order of their versions; none: every version
        readable: False when the text could not be understood, so nothing is known of it
    """

    text: str
    constraints: tuple[Constraint, ...] = ()
    readable: bool = True

    def holds(self, firmware: str) -> bool | None:
        """
        Is a version of the range?

        Returns:
            Yes or no; None when that cannot be told, as of a firmware without a name.
        """
        if self.readable and not self.constraints:
            return True
        try:
            version = read_version(firmware)
        except MalformedError:
            return None
        if not self.readable or not _PART.search(firmware.lower()):
            return None
        return _within(self.constraints, version)


def every_version() -> Range:
    """The range of a product that is named without a version."""
    return Range("*")


@lru_cache(CACHED)
def read_range(text: str) -> Range:
    """
    The range that a text of an advisory means; not readable where it says nothing we know.

    Raises:
        MalformedError: too long, or too many bounds.
    """
    if len(text) > MAX_CHARS:
        raise MalformedError("a version range is too long", characters=len(text))
    plain = _plain(text)
    if _ALL.fullmatch(plain):
        return Range(text)
    plain = unquote(plain.partition("/")[2]) if plain.startswith("vers:") else plain
    for pattern, sign in ((_BEFORE, "<"), (_UP_TO, "<=")):
        found = pattern.fullmatch(plain)
        if found:
            plain = sign + found[1]
    constraints = _constraints(plain)
    if constraints is None:
        return Range(text, readable=False)
    return Range(text, constraints)


def read_exact(text: str) -> Range:
    """
    The range of one version; of more, where a `product_version` holds a range all the same.

    Raises:
        MalformedError: too long.
    """
    plain = _plain(text)
    if plain.startswith("vers:") or re.search(r"[<>=!*≤≥|,&]", plain):
        return read_range(text)
    if any(pattern.fullmatch(plain) for pattern in (_ALL, _BEFORE, _UP_TO)):
        return read_range(text)
    version = read_version(text)
    if not _names_one(version, plain):
        return Range(text, readable=False)
    return Range(text, (Constraint("=", version),))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _names_one(version: Version, plain: str) -> bool:
    """Does a text name one version: with a number, and without a word about several?"""
    several = re.search(r"\s[-–—]\s", plain) or not _WORDS.isdisjoint(map(str, version))
    return bool(re.search("[0-9]", plain)) and not several


def _constraints(plain: str) -> tuple[Constraint, ...] | None:
    """The bounds in a text, sorted; None when it is none of ours, or they have no order."""
    found: list[Constraint] = []
    for sign, named in _CONSTRAINT.findall(plain):
        if not named.strip():
            continue
        version = read_version(named)
        if not _names_one(version, named) or (not sign and " " in named.strip()):
            return None
        found.append(Constraint(_SIGNS.get(sign, sign) or "=", version))
        if len(found) > MAX_CONSTRAINTS:
            raise MalformedError("a version range has too many bounds")
    if not found or "".join(_CONSTRAINT.sub("", plain).split()).strip("|,&"):
        return None
    try:
        return tuple(sorted(found, key=cmp_to_key(_order)))
    except ArithmeticError:
        return None


def _order(left: Constraint, right: Constraint) -> int:
    found = compare(left.version, right.version)
    if found is None:
        raise ArithmeticError("two bounds have no order")
    return found


def _within(constraints: tuple[Constraint, ...], version: Version) -> bool | None:
    """Containment by VERS: named versions first, then the intervals between lower and upper."""
    bounds = []
    open_question = False
    for one in constraints:
        if one.sign not in ("=", "!="):
            bounds.append(one)
            continue
        same = _is_same(version, one.version)
        if same:
            return one.sign == "="
        open_question |= same is None
    answers = [_between(low, high, version) for low, high in _intervals(bounds)]
    if True in answers:
        return True
    if None in answers or (open_question and not bounds):
        return None
    if not bounds and all(one.sign == "!=" for one in constraints):
        return True
    return None if open_question else False


def _intervals(bounds: list[Constraint]) -> list[tuple[Constraint | None, Constraint | None]]:
    if not bounds:
        return []
    found: list[tuple[Constraint | None, Constraint | None]] = []
    if bounds[0].sign.startswith("<"):
        found.append((None, bounds[0]))
    found += [
        (low, high)
        for low, high in pairwise(bounds)
        if low.sign.startswith(">") and high.sign.startswith("<")
    ]
    if bounds[-1].sign.startswith(">"):
        found.append((bounds[-1], None))
    return found


def _between(low: Constraint | None, high: Constraint | None, version: Version) -> bool | None:
    answers = [_meets(one, version) for one in (low, high) if one is not None]
    if False in answers:
        return False
    return None if None in answers else True


def _meets(bound: Constraint, version: Version) -> bool | None:
    order = compare(version, bound.version)
    if order is None:
        return None
    return {"<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}[bound.sign]


def _is_same(left: Version, right: Version) -> bool | None:
    """Are two versions one? None where only one of them tells its product line (`D7.0`, `7.0`)."""
    if left == right:
        return True
    bare_left, bare_right = _bare(left), _bare(right)
    if bare_left == bare_right and (left == bare_left or right == bare_right):
        return None
    return False


def _bare(version: Version) -> Version:
    return version[1:] if version and isinstance(version[0], str) else version
