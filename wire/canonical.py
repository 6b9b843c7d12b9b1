"""
Canonical bytes: RFC 8785 (JCS), restricted to what we sign.

Allowed: ASCII keys, strings, booleans, arrays, objects, integers |x| < 2**53. No float, no null.
`decode` parses, re-encodes and compares: white space, duplicate keys, floats, escapes in the wrong
form and every other second spelling of the same message are refused in one comparison.

msgspec does the fast work; the test compares it with the `rfc8785` package. In pure ASCII, as
nearly all messages are, the restrictions are a type that msgspec checks while it parses; what that
refuses (or is nested deeper than any of our messages) is looked at again, for the reason.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from wire.errors import MalformedError, OversizedError
from wire.units import MAX_SAFE_INT

MAX_MESSAGE_BYTES = 64 * 1024
MAX_DEPTH = 16
FAST_DEPTH = 8
"""To this depth the fast decoder reads; each level more doubles its type (16 take 2 s to build)."""

_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder()


def _restricted(depth: int) -> Any:
    """The type of the values we allow, `depth` containers deep."""
    scalar = str | bool | Annotated[int, msgspec.Meta(ge=-MAX_SAFE_INT, le=MAX_SAFE_INT)]
    kind: Any = scalar
    for _ in range(depth):
        kind = scalar | list[kind] | dict[str, kind]
    return kind


_FAST_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_restricted(FAST_DEPTH))


def encode(value: Any) -> bytes:
    """
    Canonical JSON of a restricted value.

    Raises:
        MalformedError: the value holds a float, a null, a non-ASCII key, a wide integer, a lone
            surrogate, or is nested deeper than 16 levels.
    """
    _check(value, 0)
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        raise MalformedError("lone surrogate in a string") from None


def encode_checked(value: Any) -> bytes:
    """`encode` without the check: for values that consist of what `decode` or a check let pass."""
    return _ENCODER.encode(value)


def decode(raw: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """
    Parse canonical JSON, refusing every other spelling.

    Raises:
        OversizedError: more than `max_bytes`.
        MalformedError: not JSON, not restricted, or not canonical.
    """
    if len(raw) > max_bytes:
        raise OversizedError("message too long", size=len(raw), limit=max_bytes)
    if raw.isascii():
        try:
            value = _FAST_DECODER.decode(raw)
            if _ENCODER.encode(value) == raw:
                return value
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
    return _decode_slowly(raw)


def _decode_slowly(raw: bytes) -> Any:
    """`decode`, for any text, with the reason when it is refused."""
    try:
        value = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}") from None
    if encode(value) != raw:
        raise MalformedError("not in canonical form")
    return value


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str or kind is bool:
        return
    if kind is int:
        if not -MAX_SAFE_INT <= value <= MAX_SAFE_INT:
            raise MalformedError("integer out of range", digits=value.bit_length())
        return
    if depth >= MAX_DEPTH:
        raise MalformedError("nested too deep", limit=MAX_DEPTH)
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                raise MalformedError("key is not an ASCII string")
            _check(item, depth + 1)
    elif kind is list or kind is tuple:
        for item in value:
            _check(item, depth + 1)
    else:
        raise MalformedError("type not allowed on the wire", type=kind.__name__)
