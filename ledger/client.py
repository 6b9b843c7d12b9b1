"""
What the rest of the house uses to follow the ledger: finalised events and state queries.

A client trusts no single node. An event message counts once f + 1 validators have signed the same
one: at least one of them is honest, and honest nodes speak only of finalised, executed blocks.
Messages of a contract are chained by `prevHeight`, so a client notices a gap (a broker restart,
days offline) and fetches what it missed; handlers see every event once, in height order.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from ledger.genesis import Genesis
from runtime.metrics import count_refusal
from runtime.ports import Bus, BusDownError, Clock, Message, Rng
from runtime.rng import SystemRng
from wire import topics
from wire.canonical import decode, encode
from wire.envelope import new_req_id
from wire.errors import BadSignatureError, MalformedError, UnknownSenderError, WireError
from wire.keys import SIGNATURE_BYTES, Domain, SigningKey, from_text, to_text, verify

CONTRACTS = ("market", "wallet", "poe")
"""Contracts whose events are agreed; `block` and `refused` are one node's own words."""
LOCAL_CONTRACTS = ("block", "refused")
MAX_EVENT_BYTES = 127 * 1024
MAX_PENDING = 512
GAP_WAIT_S = 1.0
QUERY_TIMEOUT_S = 5.0

EventHandler = Callable[[int, dict[str, Any]], Awaitable[None]]

log = structlog.get_logger(component="ledger.client")


class QueryError(ConnectionError):
    """Too few validators gave the same answer in time (temporary)."""


def sign_message(message: dict[str, Any], key: SigningKey, chain_id: str) -> bytes:
    """A node's signed statement (events, answers): canonical JSON with validator and signature."""
    signature = key.sign(Domain.EVENT, chain_id, encode(message))
    return encode({**message, "validator": key.id, "signature": to_text(signature)})


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
    message = decode(raw, MAX_EVENT_BYTES)
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


@dataclass(slots=True)
class _Contract:
    """What is known of one contract's chain of event messages."""

    delivered: int | None = None
    """Height of the last message handed on; None until the first."""
    handled: int | None = None
    """Height of the last message that every handler is done with."""
    votes: dict[bytes, set[str]] = field(default_factory=lambda: defaultdict(set))
    said: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    waiting: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Agreed messages by their `prevHeight`, not yet handed on."""
    gap_since_s: float | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class _Query:
    answers: dict[bytes, set[str]] = field(default_factory=lambda: defaultdict(set))
    values: dict[bytes, Any] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    value: Any = None


class LedgerClient:
    """
    Follows one feeder's ledger over a bus.

    Args:
        bus: a lane whose identity may subscribe to events and ask on `sync/req/<client_id>`
        genesis: the chain to follow
        clock: for timeouts
        client_id: identity of the lane (queries and gap repair need it)
        resume: per contract, the height up to which events were handled before a restart; a
            contract that is not named starts with what comes next, or with everything when
            `from_start`
    """

    def __init__(
        self,
        bus: Bus,
        genesis: Genesis,
        clock: Clock,
        client_id: str = "",
        *,
        resume: dict[str, int] | None = None,
        from_start: bool = False,
        rng: Rng | None = None,
    ) -> None:
        self._bus = bus
        self._genesis = genesis
        self._clock = clock
        self._client_id = client_id
        self._rng = rng or SystemRng()
        self._keys = {v.id: from_text(v.key) for v in genesis.validators}
        self._enough = (len(self._keys) - 1) // 3 + 1
        self._contracts = {name: _Contract() for name in CONTRACTS}
        for name, contract in self._contracts.items():
            start = (resume or {}).get(name)
            contract.delivered = 0 if start is None and from_start else start
            contract.handled = contract.delivered
        self._handlers: list[EventHandler] = []
        self._local_handlers: list[EventHandler] = []
        self._queries: dict[str, _Query] = {}
        self._repair: asyncio.Task[None] | None = None

    def on_event(self, handler: EventHandler) -> None:
        """Call `handler(height, event)` for every finalised event, once, in height order."""
        self._handlers.append(handler)

    def on_local_event(self, handler: EventHandler) -> None:
        """Call `handler(height, event)` for `block` and `refused` statements of single nodes."""
        self._local_handlers.append(handler)

    async def start(self) -> None:
        """Subscribe; works before the bus is connected."""
        market = self._genesis.market
        for contract in CONTRACTS:
            self._bus.subscribe(topics.build(market, topics.EVENTS, contract), self._take_event)
        if self._local_handlers:
            for contract in LOCAL_CONTRACTS:
                self._bus.subscribe(topics.build(market, topics.EVENTS, contract), self._take_local)
        if self._client_id:
            self._bus.subscribe(
                topics.build(market, topics.SYNC_RSP, self._client_id), self._take_answer
            )
            self._repair = asyncio.create_task(self._repair_gaps())

    async def stop(self) -> None:
        """Stop repairing gaps."""
        if self._repair is not None:
            self._repair.cancel()

    def delivered(self) -> dict[str, int]:
        """Per contract, the height up to which handlers are done (to resume from)."""
        return {n: c.handled for n, c in self._contracts.items() if c.handled is not None}

    async def query(self, kind: str, key: str, timeout_s: float = QUERY_TIMEOUT_S) -> Any:
        """
        Ask the validators for something in the executed state, e.g. `("account", address)`.

        Returns:
            The value on which f + 1 validators agree; `{}` when there is no such thing.

        Raises:
            QueryError: no agreement within `timeout_s` real seconds.
        """
        assert self._client_id, "queries need an identity"
        req_id = new_req_id(self._clock.wall_ms(), self._rng.bytes(10))
        pending = self._queries[req_id] = _Query()
        request = encode({"reqId": req_id, "kind": kind, "key": key})
        topic = topics.build(self._genesis.market, topics.SYNC_REQ, self._client_id)
        deadline_s = self._clock.monotonic_s() + timeout_s
        try:
            while (left_s := deadline_s - self._clock.monotonic_s()) > 0:
                try:
                    await self._bus.publish(topic, request)
                    # nodes may stand at different heights: ask again until they agree
                    async with asyncio.timeout(min(left_s, 1.0)):
                        await pending.done.wait()
                    return pending.value
                except (TimeoutError, BusDownError):
                    await asyncio.sleep(min(0.1, max(left_s, 0.0)))
            raise QueryError(f"no agreement on {kind} {key} within {timeout_s} s")
        finally:
            del self._queries[req_id]

    async def _take_event(self, message: Message) -> None:
        validator, said_digest, said = read_message(
            message.payload, self._keys, self._genesis.chain_id
        )
        await self._count(validator, said_digest, said)

    async def _count(self, validator: str, said_digest: bytes, said: dict[str, Any]) -> None:
        if said.get("chainId") != self._genesis.chain_id:
            raise MalformedError("event of another chain")
        contract = self._contracts.get(said.get("contract", ""))
        height, previous = said.get("height"), said.get("prevHeight")
        if contract is None or type(height) is not int or type(previous) is not int:
            raise MalformedError("not an event message")
        if contract.delivered is not None and height <= contract.delivered:
            return
        contract.votes[said_digest].add(validator)
        contract.said[said_digest] = said
        if len(contract.votes[said_digest]) < self._enough:
            self._bound(contract)
            return
        del contract.votes[said_digest], contract.said[said_digest]
        contract.waiting[previous] = said
        if contract.delivered is None:
            contract.delivered = previous
        await self._deliver(contract)

    def _bound(self, contract: _Contract) -> None:
        """Forget the oldest unconfirmed statements: one liar must not fill the memory."""
        while len(contract.votes) > MAX_PENDING:
            oldest = next(iter(contract.votes))
            del contract.votes[oldest], contract.said[oldest]

    async def _deliver(self, contract: _Contract) -> None:
        async with contract.turn:
            while contract.delivered is not None and contract.delivered in contract.waiting:
                said = contract.waiting.pop(contract.delivered)
                contract.delivered = said["height"]
                for event in said["events"]:
                    await _call_all(self._handlers, said["height"], event)
                contract.handled = said["height"]
            stale = [p for p in contract.waiting if p < (contract.delivered or 0)]
            for previous in stale:
                del contract.waiting[previous]
            if not contract.waiting:
                contract.gap_since_s = None
            elif contract.gap_since_s is None:
                contract.gap_since_s = self._clock.monotonic_s()

    async def _take_local(self, message: Message) -> None:
        validator, _, said = read_message(message.payload, self._keys, self._genesis.chain_id)
        for event in said["events"]:
            await _call_all(self._local_handlers, said["height"], {**event, "validator": validator})

    async def _take_answer(self, message: Message) -> None:
        validator, _, said = read_message(message.payload, self._keys, self._genesis.chain_id)
        value = said.get("value", {})
        if said.get("kind") == "events":
            # each message counts by itself: nodes at different heights know different tails
            for each in value.get("messages", ()):
                await self._count(validator, hashlib.sha256(encode(each)).digest(), each)
            return
        pending = self._queries.get(said.get("reqId", ""))
        if pending is None:
            return
        value_digest = hashlib.sha256(encode(value)).digest()
        pending.answers[value_digest].add(validator)
        if len(pending.answers[value_digest]) >= self._enough:
            pending.value = value
            pending.done.set()

    async def _repair_gaps(self) -> None:
        """Ask for what was missed: after each connect, and as long as a gap stands."""
        caught_up: set[str] = set()
        while True:
            await asyncio.sleep(GAP_WAIT_S)
            if not self._bus.connected:
                caught_up.clear()
                continue
            for name, contract in self._contracts.items():
                if contract.delivered is None:
                    continue
                while name not in caught_up or contract.gap_since_s is not None:
                    before = contract.delivered
                    await self._ask_missed(name, contract.delivered)
                    if contract.delivered == before:
                        caught_up.add(name)
                        break

    async def _ask_missed(self, name: str, delivered: int) -> None:
        """Ask all validators for the messages after a height, and give them time to answer."""
        request = {
            "reqId": new_req_id(self._clock.wall_ms(), self._rng.bytes(10)),
            "kind": "events",
            "key": f"{name}/{delivered}",
        }
        topic = topics.build(self._genesis.market, topics.SYNC_REQ, self._client_id)
        try:
            await self._bus.publish(topic, encode(request))
        except BusDownError:
            return
        await asyncio.sleep(GAP_WAIT_S / 2)


async def _call_all(handlers: list[EventHandler], height: int, event: dict[str, Any]) -> None:
    for handler in handlers:
        try:
            await handler(height, event)
        except WireError as error:
            count_refusal("ledger.client", error.refusal)
        except Exception:
            log.exception("event handler failed", name=event.get("event"), height=height)
