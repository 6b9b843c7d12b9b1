"""
Statements: what validators sign for those who follow the ledger, and how they are read.

A statement is a canonical JSON object with `validator` and `signature` (domain EVENT, over the
rest). Three kinds exist: events of a contract, answers to questions, and a node's own words.

The events of a contract in a block are one message. Where it is longer than a broker takes it is
cut into numbered parts, each a statement of its own, at the same places on every honest node:

    {"chainId","contract","height","prevHeight","timeMs","part":0,"parts":1,"events":[…]}
    {"chainId","contract","height","prevHeight","timeMs","part":i,"parts":n,"digest","chunk"}

`chunk` is the i-th slice of `PART_BYTES` of the canonical bytes of the event list (base64url),
`digest` the SHA-256 of all of them (hex).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from wire.canonical import decode, encode, encode_checked
from wire.errors import BadSignatureError, MalformedError, UnknownSenderError
from wire.keys import SIGNATURE_BYTES, Domain, SigningKey, from_text, to_text, verify

CONTRACTS = ("market", "wallet", "poe")
"""Contracts whose events are agreed; `block` and `refused` are one node's own words."""
LOCAL_CONTRACTS = ("block", "refused")
MAX_STATEMENT_BYTES = 127 * 1024
PART_BYTES = 48 * 1024
"""Canonical bytes of events in one part; base64url makes 64 KiB of them."""
MAX_PARTS = 1365
"""64 MiB, the longest row that the ledger's store reads."""
MAX_LOCAL_EVENTS = 64


def sign_message(message: dict[str, Any], key: SigningKey, chain_id: str) -> bytes:
    """A node's signed statement (events, answers): canonical JSON with validator and signature."""
    signature = key.sign(Domain.EVENT, chain_id, encode_checked(message))
    return encode_checked({**message, "validator": key.id, "signature": to_text(signature)})


def read_message(
    raw: bytes, keys: dict[str, bytes], chain_id: str
) -> tuple[str, bytes, dict[str, Any]]:
    """
    Check a node's statement.

    Returns:
        The validator's id, the digest of what it said, and what it said.

    Raises:
        WireError: malformed, not a validator's, or badly signed.
    """
    message = decode(raw, MAX_STATEMENT_BYTES)
    if not isinstance(message, dict):
        raise MalformedError("a statement is a JSON object")
    validator, signature = message.pop("validator", None), message.pop("signature", None)
    if not isinstance(validator, str) or not isinstance(signature, str):
        raise MalformedError("a statement names its validator and carries a signature")
    public = keys.get(validator)
    if public is None:
        raise UnknownSenderError("not a validator", sender=validator[:64])
    said = encode(message)
    if not verify(public, Domain.EVENT, chain_id, said, from_text(signature, SIGNATURE_BYTES)):
        raise BadSignatureError("statement is not the validator's", sender=validator)
    return validator, hashlib.sha256(said).digest(), message


@dataclass(frozen=True, slots=True)
class EventHead:
    """What the parts of a message share, before it is cut."""

    chain_id: str
    contract: str
    height: int
    previous: int
    """The height below with events of this contract; 0 if there is none."""
    time_ms: int


@dataclass(frozen=True, slots=True)
class EventPart:
    """One part of a message, its form checked."""

    contract: str
    height: int
    previous: int
    part: int
    parts: int
    digest: str
    """Of the whole; empty where there is one part only."""
    slice: bytes
    """Canonical bytes of the event list, or of this part of it."""


def count_parts(size: int) -> int:
    """How many parts an event list of `size` canonical bytes has."""
    return max(1, -(-size // PART_BYTES))


def event_message(head: EventHead, events: bytes, part: int) -> dict[str, Any]:
    """
    What every honest node says of a contract's events in a block.

    Args:
        head: which block and contract
        events: canonical bytes of the event list
        part: which part of it, from 0
    """
    parts = count_parts(len(events))
    message: dict[str, Any] = {
        "chainId": head.chain_id, "contract": head.contract, "height": head.height,
        "prevHeight": head.previous, "timeMs": head.time_ms, "part": part, "parts": parts,
    }  # fmt: skip
    if parts == 1:
        return {**message, "events": decode(events, PART_BYTES)}
    chunk = events[part * PART_BYTES : (part + 1) * PART_BYTES]
    return {**message, "digest": hashlib.sha256(events).hexdigest(), "chunk": to_text(chunk)}


def read_part(said: Any, chain_id: str) -> EventPart:
    """
    The form of an event message, or of a part of one.

    Raises:
        MalformedError: of another chain, or not what `event_message` makes.
    """
    if not isinstance(said, dict) or said.get("chainId") != chain_id:
        raise MalformedError("not an event message of this chain")
    contract, digest = said.get("contract"), said.get("digest", "")
    numbers = [said.get(name) for name in ("height", "prevHeight", "part", "parts")]
    if not isinstance(contract, str) or contract not in CONTRACTS or not isinstance(digest, str):
        raise MalformedError("an event message names its contract")
    if any(type(number) is not int for number in numbers):
        raise MalformedError("heights and parts are numbers")
    height, previous, part, parts = (int(number or 0) for number in numbers)
    if not 0 <= previous < height or not 0 <= part < parts <= MAX_PARTS:
        raise MalformedError("heights or parts out of range")
    if parts == 1:
        events = encode(_checked_events(said.get("events")))
        return EventPart(contract, height, previous, part, parts, "", events)
    chunk = said.get("chunk")
    if not isinstance(chunk, str) or len(digest) != hashlib.sha256().digest_size * 2:
        raise MalformedError("a part carries the digest of the whole and a slice of it")
    cut = from_text(chunk)
    if not 1 <= len(cut) <= PART_BYTES:
        raise MalformedError("a slice of the wrong size", size=len(cut))
    return EventPart(contract, height, previous, part, parts, digest, cut)


def join_parts(slices: Iterable[bytes], digest: str) -> list[dict[str, Any]]:
    """
    The events that were cut.

    Args:
        slices: of all parts, in order
        digest: of the whole; empty where there is one part only

    Raises:
        MalformedError: they do not make the whole, or it is not a list of events.
    """
    whole = b"".join(slices)
    if digest and hashlib.sha256(whole).hexdigest() != digest:
        raise MalformedError("the parts do not make the whole")
    return _checked_events(decode(whole, MAX_PARTS * PART_BYTES))


def read_own_words(said: dict[str, Any], chain_id: str) -> tuple[int, list[dict[str, Any]]]:
    """
    Height and events of a statement that is one node's alone.

    Raises:
        MalformedError: not such a statement.
    """
    height, contract = said.get("height"), said.get("contract")
    if said.get("chainId") != chain_id or contract not in LOCAL_CONTRACTS:
        raise MalformedError("not a node's own words on this chain")
    events = _checked_events(said.get("events"))
    if type(height) is not int or height < 0 or len(events) > MAX_LOCAL_EVENTS:
        raise MalformedError("a node's own words have a height and few events")
    return height, events


def _checked_events(events: Any) -> list[dict[str, Any]]:
    if not isinstance(events, list) or not all(
        isinstance(event, dict) and isinstance(event.get("event"), str) for event in events
    ):
        raise MalformedError("not a list of events")
    return events
