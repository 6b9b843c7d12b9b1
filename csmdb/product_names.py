"""
Is the product that an advisory names the meter that hangs on a wall?

What a plate says and what an advisory says differ: `Schneider Electric` and `Schneider Electric
Software, LLC`, `PM5560` and `PowerLogic PM5560`. Compared are words without case, punctuation and
legal forms:

- makers match when the words of one begin those of the other;
- models match when they are the same, or when one of them, written as one word with a number in it
  (`pm5560`, `8651058`), is a run of whole words of the other.

Everything else an operator says once (`Alias`): these two are one product, or, where the rules
above are wrong, are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from csmdb.csaf import Product

MIN_CODE = 3
"""A model number has this many characters; `2` is none."""
CACHED = 8192
_LEGAL = frozenset(
    ["ab", "ag", "aps", "as", "bv", "co", "company", "corp", "corporation", "gmbh", "inc",
     "incorporated", "kg", "limited", "llc", "ltd", "nv", "oy", "plc", "pty", "sa", "sarl", "se",
     "spa", "srl"]
)  # fmt: skip
_NOISE = frozenset(["firmware", "software", "model", "series", "device", "meter", "type"])


@dataclass(frozen=True, slots=True)
class Alias:
    """What an operator knows of a plate and a product of advisories."""

    plate_vendor: str
    plate_model: str
    vendor: str
    """As advisories write it."""
    model: str
    same: bool
    """False: they are two products, however alike their names."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The four names as they are compared."""
        plate = one_word(self.plate_vendor), one_word(self.plate_model)
        return (*plate, one_word(self.vendor), one_word(self.model))


def is_product(vendor: str, model: str, product: Product, aliases: Iterable[Alias]) -> bool:
    """
    Is a meter one of an advisory's products, whatever its version?

    Args:
        vendor, model: of the meter's plate
        product: of the advisory
        aliases: what an operator said; it counts before the rules
    """
    said = {alias.key: alias.same for alias in aliases}
    for name in product.models:
        key = (one_word(vendor), one_word(model), one_word(product.vendor), one_word(name))
        if key in said:
            return said[key]
    if not is_vendor(vendor, product.vendor):
        return False
    return any(is_model(model, name) for name in product.models)


def is_vendor(plate: str, named: str) -> bool:
    """Are two makers' names of one maker?"""
    left, right = _words(plate, _LEGAL), _words(named, _LEGAL)
    short = min(len(left), len(right))
    return short > 0 and left[:short] == right[:short]


def is_model(plate: str, named: str) -> bool:
    """Are two names of models of one model?"""
    left, right = _words(plate, _NOISE), _words(named, _NOISE)
    if not left or not right:
        return False
    one, other = "".join(left), "".join(right)
    return one == other or _is_code_in(one, right) or _is_code_in(other, left)


@lru_cache(CACHED)
def one_word(name: str) -> str:
    """A name without case, blanks and punctuation."""
    return "".join(_words(name, frozenset()))


def _is_code_in(code: str, words: tuple[str, ...]) -> bool:
    """Is a model number a run of whole words?"""
    if len(code) < MIN_CODE or not any(letter.isdigit() for letter in code):
        return False
    return any(
        "".join(words[start:end]) == code
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
    )


@lru_cache(CACHED)
def _words(name: str, without: frozenset[str]) -> tuple[str, ...]:
    words = re.findall(r"[^\W_]+", name.casefold())
    return tuple(word for word in words if word not in without)[:32]
