"""
Transactions: what is ordered by the ledger.

A transaction is an envelope with operation `transaction`, whose parameters are

    {"nonce": int, "expiresSlot": int, "operations": [{"op": str, …}, …]}      1…64 operations

under one signature of the sender's address key (domain TX). Its id is the SHA-256 of the canonical
bytes *without* the signature: Ed25519 signatures can be re-randomised by their maker, ids cannot.
An operation's fields beside `op` are the contract's business (`ledger.contracts`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from wire.canonical import MAX_MESSAGE_BYTES
from wire.envelope import Envelope, parse_envelope, seal_envelope
from wire.errors import MalformedError, UnknownOperationError
from wire.keys import Domain, SigningKey
from wire.units import MAX_SAFE_INT

OPERATION = "transaction"
MAX_OPERATIONS = 64


@dataclass(frozen=True, slots=True)
class Transaction:
    """A parsed transaction. `raw` is what goes on the wire and into the body store."""

    txid: bytes
    sender: str
    nonce: int
    expires_slot: int
    operations: tuple[dict[str, Any], ...]
    raw: bytes
    envelope: Envelope
    signed: bytes
    """The canonical bytes under the signature."""


def make_transaction(
    key: SigningKey,
    chain_id: str,
    nonce: int,
    expires_slot: int,
    operations: list[dict[str, Any]],
    req_id: str,
    now_ms: int,
) -> Transaction:
    """Build and sign a transaction as the holder of `key`."""
    envelope = Envelope(
        client_id=key.id,
        req_id=req_id,
        date_ms=now_ms,
        operation=OPERATION,
        parameters={"nonce": nonce, "expiresSlot": expires_slot, "operations": operations},
    )
    return parse_transaction(seal_envelope(envelope, key, Domain.TX, chain_id))


def parse_transaction(raw: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> Transaction:
    """
    Read a transaction without believing it: form only, no signature, no state.

    Raises:
        OversizedError, MalformedError, UnsignedError, UnknownOperationError.
    """
    envelope, signed = parse_envelope(raw, max_bytes)
    if envelope.operation != OPERATION:
        raise UnknownOperationError("not a transaction", operation=envelope.operation)
    parameters = envelope.parameters
    if parameters.keys() != {"nonce", "expiresSlot", "operations"}:
        raise MalformedError("a transaction has nonce, expiresSlot and operations")
    nonce = _count(parameters["nonce"], "nonce")
    expires_slot = _count(parameters["expiresSlot"], "expiresSlot")
    operations = parameters["operations"]
    if type(operations) is not list or not 1 <= len(operations) <= MAX_OPERATIONS:
        raise MalformedError("a transaction has 1 to 64 operations")
    for operation in operations:
        if type(operation) is not dict or type(operation.get("op")) is not str:
            raise MalformedError("an operation is an object with a string op")
    return Transaction(
        txid=hashlib.sha256(signed).digest(),
        sender=envelope.client_id,
        nonce=nonce,
        expires_slot=expires_slot,
        operations=tuple(operations),
        raw=raw,
        envelope=envelope,
        signed=signed,
    )


def _count(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SAFE_INT:
        raise MalformedError("not a count", field=name)
    return value
