"""
Mutations of valid messages, as a list of small numbered steps, so that a find can be shrunk.

A step is (kind, where, what). Byte steps flip, insert, delete, repeat, cut or splice; tree steps
parse the message (JSON or msgpack), change one node of it and write it again, so that what is
behind the parser is reached too. A step that does not apply leaves the message as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

import msgspec

MAX_BYTES = 160 * 1024
Step = tuple[int, int, int]

TOKENS = (
    b"null", b"NaN", b"-Infinity", b"1e999", b"1.5", b"-0", b"0", b"-1", b"9" * 17, b"9" * 5000,
    b'"\\ud800"', b'"\\u0000"', b'"' + b"\xff" + b'"', b'"' + "\u00e9".encode() + b'"', b'""',
    b"[]", b"{}", b"true", b" ", b"[" * 2000, b'{"a":' * 2000, b"[" * 20 + b"]" * 20, b",", b":",
    b"A" * 70_000, b"\x00", b"\xc0", b"\xc1", b"\xc2", b"\x90" * 2000, b"\x91" * 2000,
    b"\x81" * 2000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7,
    b"\xcb\x7f\xf8" + b"\x00" * 6, b"\xcc\x01", b"\xcd\x00\x01", b"\xc4\x20", b"\xd9\x05",
    b"\xa3\xff\xfe\xfd", b"\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x80", b"\x80\x00", b"\xff\xff",
)  # fmt: skip
"""What parsers trip over: other numbers, nesting, lengths, spellings, text that is none."""

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**53 - 1, -(2**53 - 1), 2**53, 2**63 - 1, -(2**63),
    2**64 - 1, 10**30, 0.5, float("nan"), float("inf"), "", "\0", "é", "hg1" + "a" * 32,
    "A" * 300, "A" * 43, "A" * 86, "../..", "9" * 300, "0/0/0", [], {}, [[]], [None], {"": 0},
    {"op": []}, b"", b"\0" * 32, b"\xff" * 64,
)  # fmt: skip


def mutated(data: bytes, steps: list[Step]) -> bytes:
    """Apply all steps."""
    for kind, where, what in steps:
        data = _STEPS[kind % len(_STEPS)](data, where, what)[:MAX_BYTES]
    return data


def random_steps(rng: Random, most: int = 4) -> list[Step]:
    """One to `most` steps."""
    return [
        (rng.randrange(256), rng.randrange(2**32), rng.randrange(2**32))
        for _ in range(rng.randint(1, most))
    ]


# --- Bytes ----------------------------------------------------------------------------------------


def _flip(data: bytes, where: int, what: int) -> bytes:
    if not data:
        return data
    at = where % len(data)
    return data[:at] + bytes((data[at] ^ (1 << what % 8),)) + data[at + 1 :]


def _set(data: bytes, where: int, what: int) -> bytes:
    if not data:
        return data
    at = where % len(data)
    return data[:at] + bytes((what % 256,)) + data[at + 1 :]


def _insert(data: bytes, where: int, what: int) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + TOKENS[what % len(TOKENS)] + data[at:]


def _overwrite(data: bytes, where: int, what: int) -> bytes:
    at = where % (len(data) + 1)
    token = TOKENS[what % len(TOKENS)]
    return data[:at] + token + data[at + len(token) :]


def _delete(data: bytes, where: int, what: int) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + data[at + 1 + what % 32 :]


def _repeat(data: bytes, where: int, what: int) -> bytes:
    at = where % (len(data) + 1)
    return data[:at] + data[at : at + 1 + what % 64] * (2 + what % 5) + data[at:]


def _cut(data: bytes, where: int, _what: int) -> bytes:
    return data[: where % (len(data) + 1)]


# --- Trees ----------------------------------------------------------------------------------------


def _change_json(data: bytes, where: int, what: int) -> bytes:
    """Change one node; the outcome is canonical where the new value has a canonical form."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    try:
        tree = _changed(tree, where, what)
        return msgspec.json.encode(tree, order="sorted")
    except RecursionError:
        return data
    except (ValueError, OverflowError, TypeError):  # what only others can write, like 2**64
        text = json.dumps(tree, separators=(",", ":"), sort_keys=True, default=repr)
        return text.encode(errors="replace")


def _change_msgpack(data: bytes, where: int, what: int) -> bytes:
    try:
        tree = msgspec.msgpack.decode(data, strict=False)
        return msgspec.msgpack.encode(_changed(tree, where, what))
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError, RecursionError):
        return data


def _changed(tree: Any, where: int, what: int) -> Any:
    holder = [tree]
    nodes = list(_places(holder))
    parent, key = nodes[where % len(nodes)]
    how, number = what % 8, what // 8
    if how == 0 and parent is not holder:
        del parent[key]
    elif how == 1:
        other, name = nodes[number % len(nodes)]
        parent[key] = deepcopy(other[name])
    elif how == 2 and isinstance(parent, list) and parent is not holder:
        parent.insert(key, parent[key])
    elif how == 3 and isinstance(parent, dict):
        parent["x" * (number % 5)] = ODD_VALUES[number % len(ODD_VALUES)]
    elif how == 4 and type(parent[key]) is int:
        parent[key] += (1, -1, 2**32, -(2**32), 2**52, -(2**52), 1000, 96)[number % 8]
    elif how == 5 and isinstance(parent[key], str | bytes) and parent[key]:
        text, at = parent[key], number % len(parent[key])
        parent[key] = text[:at] + text[at + 1 :] if number % 3 else text[:at] + text[at:] * 2
    else:
        parent[key] = ODD_VALUES[number % len(ODD_VALUES)]
    return holder[0]


def _places(parent: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [parent]
    while waiting:
        parent = waiting.pop()
        keys: Any = list(parent) if isinstance(parent, dict) else range(len(parent))
        for key in keys:
            yield parent, key
            if isinstance(parent[key], list | dict):
                waiting.append(parent[key])


_STEPS: tuple[Callable[[bytes, int, int], bytes], ...] = (
    _flip, _set, _insert, _overwrite, _delete, _repeat, _cut,
    _change_json, _change_json, _change_json, _change_msgpack, _change_msgpack, _change_msgpack,
)  # fmt: skip
