"""Write types.json: one of each wire object with fixed keys, its bytes and its hash."""

import json
from pathlib import Path

from ledger.types import (
    Header,
    Justify,
    Proposal,
    ValidatorSet,
    VoteKind,
    encode,
    genesis_hash,
    header_hash,
    justify_hash,
    make_certificate,
    make_vote,
    schedule_hash,
)
from wire.keys import SigningKey

CHAIN_ID = "hg-vectors"
KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 5)]
VALIDATORS = ValidatorSet(tuple(key.id for key in KEYS), tuple(key.public for key in KEYS))


def make_header(**changes: object) -> Header:
    """A first block."""
    fields: dict[str, object] = {
        "chain_id": CHAIN_ID,
        "epoch": 0,
        "view": 1,
        "height": 1,
        "parent_hash": genesis_hash(CHAIN_ID),
        "justify_hash": justify_hash(Justify(None)),
        "tx_root": b"\x01" * 32,
        "n_tx": 1,
        "exec_height": 0,
        "state_root": b"\x02" * 32,
        "receipts_root": b"\x03" * 32,
        "validators_hash": VALIDATORS.hash,
        "schedule_root": schedule_hash((0, 1, 2, 3)),
        "time_ms": 1_780_000_000_000,
        "proposer": KEYS[0].id,
    }
    return Header(**(fields | changes))  # type: ignore[arg-type]


def make_vectors() -> dict[str, str]:
    """Hex by name."""
    header = make_header()
    block_hash = header_hash(header)
    votes = [
        make_vote(key, CHAIN_ID, index, 0, 1, VoteKind.NOTARIZE, block_hash)
        for index, key in enumerate(KEYS)
    ]
    proposal = Proposal(header, (b"\x04" * 32,), Justify(None), votes[0].signature)
    return {
        "genesis_hash": genesis_hash(CHAIN_ID).hex(),
        "validators_hash": VALIDATORS.hash.hex(),
        "header": encode(header).hex(),
        "header_hash": block_hash.hex(),
        "vote": encode(votes[1]).hex(),
        "certificate": encode(make_certificate(votes[1:])).hex(),
        "proposal": encode(proposal).hex(),
    }


if __name__ == "__main__":
    text = json.dumps(make_vectors(), indent=1) + "\n"
    Path(__file__).with_name("types.json").write_text(text)
