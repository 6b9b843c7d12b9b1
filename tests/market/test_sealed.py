"""Commitments bind, hide, and belong to one bidder and one auction."""

import hashlib

import pytest
from msgspec.structs import replace

from market import SealedBid, commitment
from wire.errors import MalformedError

BID = SealedBid(
    address="hg1a", slot=7, auction="", side="buy", energy_wh=100, price_uc_per_kwh=200_000
)
SALT = bytes(range(32))


def test_a_commitment_is_the_hash_of_domain_salt_and_canonical_bid():
    """Computed by hand with sha256sum over the bytes that the docstring names."""
    raw = (
        b"hearthgrid-sealed-bid-v1" + SALT + b'{"address":"hg1a","auction":"","energyWh":100,'
        b'"priceUcPerKwh":200000,"side":"buy","slot":7}'
    )
    assert commitment(SALT, BID) == hashlib.sha256(raw).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"address": "hg1b"}, {"slot": 8}, {"auction": "flex"}, {"side": "sell"},
        {"energy_wh": 101}, {"price_uc_per_kwh": 200_001},
    ],
)  # fmt: skip
def test_every_field_and_the_salt_are_bound(change):
    assert commitment(SALT, replace(BID, **change)) != commitment(SALT, BID)
    assert commitment(bytes(32), BID) != commitment(SALT, BID)


def test_a_short_salt_and_a_bid_beyond_the_wire_are_refused():
    with pytest.raises(MalformedError):
        commitment(b"short", BID)
    with pytest.raises(MalformedError):
        commitment(SALT, replace(BID, energy_wh=2**53))
