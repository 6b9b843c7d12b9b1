"""
The DSO's limit for one home, on the home's own lane (`hem/<id>/command`).

    {"operation": "limit-grid",
     "parameters": {"home": "hg1…", "side": "import", "powerW": 4200,
                    "fromMs": 0, "untilMs": 1780272900000}}

One message limits one side; a later one of the same side takes its place, and one that ends at its
beginning lifts it. Signed with the supervisor's key, which the genesis names.

Source: § 14a EnWG (import), § 9 EEG (export); docs/reference/policy.md.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import MalformedError
from wire.keys import Domain, SigningKey

LIMIT_GRID = "limit-grid"
TIME_MAX_MS = 2**53 - 1


class GridLimit(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Not more than so much, from one market time to another [ms]."""

    home: str
    """Whose limit: a message for one home says nothing to another."""
    side: Literal["import", "export"]
    power_w: int
    from_ms: int
    until_ms: int


def read_grid_limit(parameters: dict[str, Any]) -> GridLimit:
    """
    Read a limit without believing it.

    Raises:
        MalformedError: not one.
    """
    try:
        limit = msgspec.convert(parameters, GridLimit, strict=True)
    except msgspec.ValidationError as error:
        raise MalformedError("not a grid limit", reason=str(error)[:120]) from None
    if not (
        0 <= limit.power_w <= TIME_MAX_MS and 0 <= limit.from_ms <= limit.until_ms <= TIME_MAX_MS
    ):
        raise MalformedError("a grid limit out of range")
    return limit


def make_grid_limit(
    limit: GridLimit, key: SigningKey, market: str, wall_ms: int, random_80: bytes
) -> bytes:
    """
    The DSO's message.

    Args:
        key: the supervisor's
        wall_ms: real time, as every message has
        random_80: ten random bytes, for the message's identifier
    """
    envelope = Envelope(
        key.id, new_req_id(wall_ms, random_80), wall_ms, LIMIT_GRID, msgspec.to_builtins(limit)
    )
    return seal_envelope(envelope, key, Domain.MESSAGE, market)
