"""
Sealed bids: commit, then reveal.

    commitment = SHA-256(domain ‖ salt ‖ canonical bid)

The salt has 32 random bytes, so nobody finds a bid by trying all prices. The bid names its address
and its auction, so a commitment copied by somebody else, or for another auction, opens to nothing.
A revealed bid keeps the place in the ledger at which it was committed: who reveals when changes
nothing.

Source: the commit-reveal scheme as in every textbook; docs/concepts/auctions.md says what an open
bid gives away.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from wire.canonical import encode
from wire.errors import MalformedError

DOMAIN = b"hearthgrid-sealed-bid-v1"
SALT_BYTES = 32
COMMITMENT_BYTES = 32


class SealedBid(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is committed to."""

    address: str
    slot: int
    auction: str
    """A deployed auction's name; empty: the slot's double auction."""
    side: Literal["buy", "sell"]
    energy_wh: int
    price_uc_per_kwh: int


def commitment(salt: bytes, bid: SealedBid) -> bytes:
    """
    The 32 bytes that stand for a bid until it is revealed.

    Args:
        salt: 32 random bytes, used once and kept until the reveal
        bid: as it will be revealed

    Raises:
        MalformedError: the salt has another length, or the bid cannot stand on the wire.
    """
    if len(salt) != SALT_BYTES:
        raise MalformedError("a salt has 32 bytes", size=len(salt))
    return hashlib.sha256(DOMAIN + salt + encode(msgspec.to_builtins(bid))).digest()
