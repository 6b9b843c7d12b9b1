"""
What the rest of the house uses to follow the ledger: finalised events and state queries.

A client trusts no single node. An event message counts once f + 1 validators have signed the same
one: at least one of them is honest, and honest nodes speak only of finalised, executed blocks.
Messages of a contract are chained by `prevHeight` and long ones come in numbered parts, so a client
notices what is missing (a broker restart, days offline) and asks for it, part by part.

Every handler sees every event of a contract in order and once it has succeeded never again: one
that raises is called again, with growing pauses, and the contract waits for it. A `WireError` says
"not for me": it is counted, and the next event comes.

When the validators change, by a finalised `validators` event, the client counts the new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from ledger.asking import QUERY_TIMEOUT_S, Asker, QueryError
from ledger.event_chain import EventChain
from ledger.genesis import Genesis
from ledger.statements import (
    CONTRACTS,
    LOCAL_CONTRACTS,
    read_message,
    read_own_words,
    read_part,
    sign_message,
)
from runtime.metrics import count_refusal
from runtime.ports import Bus, BusDownError, Clock, Message, Rng
from runtime.rng import SystemRng
from wire import topics
from wire.canonical import encode
from wire.envelope import new_req_id
from wire.errors import MalformedError, WireError
from wire.keys import KEY_BYTES, from_text, id_of, to_text
from wire.transactions import Transaction

__all__ = [
    "CONTRACTS", "LOCAL_CONTRACTS", "LedgerClient", "QueryError", "Validators", "read_message",
    "sign_message",
]  # fmt: skip

GAP_WAIT_S = 1.0
ASK_WAIT_S = 0.5
"""How long an answer is waited for before the question is put again."""
ASK_PAUSE_S = 0.1
"""Least time between two questions: nodes answer only so many."""
QUIET_S = 60.0
"""A contract that nobody spoke of for so long is asked about: its last message may be lost."""
RETRY_MIN_S = 0.5
RETRY_MAX_S = 30.0
MAX_MESSAGES_PER_ANSWER = 64

EventHandler = Callable[[int, dict[str, Any]], Awaitable[None]]

log = structlog.get_logger(component="ledger.client")


@dataclass(frozen=True, slots=True)
class Validators:
    """Whose statements count. Keep it with `delivered()`, and hand it in after a restart."""

    epoch: int
    keys: dict[str, bytes]
    """Public keys by id."""

    @classmethod
    def of_genesis(cls, genesis: Genesis) -> Validators:
        """Those of the first epoch."""
        return cls(0, {v.id: from_text(v.key) for v in genesis.validators})

    @classmethod
    def kept(cls, value: dict[str, Any]) -> Validators | None:
        """What was kept by `to_json`; None of an empty object."""
        return cls.from_json(value) if value else None

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        rows = [{"id": name, "key": to_text(key)} for name, key in self.keys.items()]
        return {"epoch": self.epoch, "validators": rows}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Validators:
        """
        Read `to_json`, or a `validators` event.

        Raises:
            MalformedError: not a set of validators.
        """
        epoch, rows = value.get("epoch"), value.get("validators")
        if type(epoch) is not int or not isinstance(rows, list) or not rows:
            raise MalformedError("validators have an epoch and are not none")
        keys: dict[str, bytes] = {}
        for row in rows:
            text = row.get("key") if isinstance(row, dict) else None
            if not isinstance(text, str) or row.get("id") != id_of(from_text(text, KEY_BYTES)):
                raise MalformedError("a validator has a key, and the id of that key")
            keys[row["id"]] = from_text(text, KEY_BYTES)
        return cls(epoch, keys)

    @property
    def enough(self) -> int:
        """f + 1: so many cannot all be faulty."""
        return (len(self.keys) - 1) // 3 + 1


@dataclass(slots=True)
class _Follower:
    """One contract as it is followed."""

    name: str
    chain: EventChain
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Something became agreed."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Something came in or was dealt with, for whoever fetches what is missing."""
    caught_up: bool = False
    """f + 1 validators had nothing more since we connected."""
    question: str = ""
    idle: set[str] = field(default_factory=set)
    """Validators that had nothing to answer to the question."""
    heard_s: float = 0.0


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
        validators: who speaks for the ledger, as kept before a restart; by default the genesis'
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
        validators: Validators | None = None,
    ) -> None:
        self._bus = bus
        self._genesis = genesis
        self._clock = clock
        self._client_id = client_id
        self._rng = rng or SystemRng()
        self._validators = validators or Validators.of_genesis(genesis)
        self._keys, self._enough = self._validators.keys, self._validators.enough
        start = 0 if from_start else None
        self._followers = {
            name: _Follower(name, EventChain((resume or {}).get(name, start))) for name in CONTRACTS
        }
        self._handlers: list[EventHandler] = []
        self._local_handlers: list[EventHandler] = []
        self._asker = Asker(bus, genesis, clock, client_id, self._rng, lambda: self._validators)
        self._tasks: list[asyncio.Task[None]] = []

    def on_event(self, handler: EventHandler) -> None:
        """Call `handler(height, event)` for every finalised event, in height order."""
        self._handlers.append(handler)

    def on_local_event(self, handler: EventHandler) -> None:
        """Call `handler(height, event)` for `block` and `refused` statements of single nodes."""
        self._local_handlers.append(handler)

    async def start(self) -> None:
        """Subscribe; works before the bus is connected."""
        market = self._genesis.market
        for follower in self._followers.values():
            topic = topics.build(market, topics.EVENTS, follower.name)
            self._bus.subscribe(topic, self._take_event)
            follower.heard_s = self._clock.monotonic_s()
            self._tasks.append(asyncio.create_task(self._deliver(follower)))
        if self._local_handlers:
            for contract in LOCAL_CONTRACTS:
                self._bus.subscribe(topics.build(market, topics.EVENTS, contract), self._take_local)
        if self._client_id:
            self._bus.subscribe(
                topics.build(market, topics.SYNC_RSP, self._client_id), self._take_answer
            )
            for follower in self._followers.values():
                self._tasks.append(asyncio.create_task(self._keep_whole(follower)))

    async def stop(self) -> None:
        """Hand on no more events, and ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def delivered(self) -> dict[str, int]:
        """Per contract, the height up to which handlers are done (to resume from)."""
        handled = {name: f.chain.handled for name, f in self._followers.items()}
        return {name: height for name, height in handled.items() if height is not None}

    @property
    def caught_up(self) -> bool:
        """Do we know what is final? False while we are away, and until we have read on after it."""
        return self._bus.connected and all(f.caught_up for f in self._followers.values())

    def validators(self) -> Validators:
        """Whose statements count, as of the events handled so far."""
        return self._validators

    async def query(self, kind: str, key: str, timeout_s: float = QUERY_TIMEOUT_S) -> Any:
        """
        Ask the validators for something in the executed state, e.g. `("account", address)`.

        Returns:
            The value on which f + 1 validators agree; `{}` when there is no such thing.

        Raises:
            QueryError: no agreement within `timeout_s` real seconds.
        """
        assert self._client_id, "queries need an identity"
        return await self._asker.query(kind, key, timeout_s)

    async def receipt(self, transaction: Transaction) -> dict[str, Any]:
        """
        What became of a transaction, as f + 1 validators have it.

        Returns:
            `{"height", "code", "codes"}` when it was executed; with code WRONG_NONCE and height 0
            when it never will be, because another one has used its nonce; `{}` while it may be.

        Raises:
            QueryError: no agreement in time.
        """
        return await self._asker.receipt(transaction)

    # --- what comes in ----------------------------------------------------------------------------

    async def _take_event(self, message: Message) -> None:
        validator, digest, said = read_message(message.payload, self._keys, self._genesis.chain_id)
        self._count(validator, digest, said)

    def _count(self, validator: str, digest: bytes, said: Any) -> None:
        part = read_part(said, self._genesis.chain_id)
        follower = self._followers[part.contract]
        if follower.chain.count(validator, digest, part, self._enough):
            follower.heard_s = self._clock.monotonic_s()
            follower.ready.set()
            follower.moved.set()

    async def _take_local(self, message: Message) -> None:
        chain_id = self._genesis.chain_id
        validator, _, said = read_message(message.payload, self._keys, chain_id)
        height, events = read_own_words(said, chain_id)
        for event in events:
            for handler in self._local_handlers:
                await _tell(handler, height, {**event, "validator": validator})

    async def _take_answer(self, message: Message) -> None:
        validator, _, said = read_message(message.payload, self._keys, self._genesis.chain_id)
        if said.get("kind") == "events" and isinstance(said.get("reqId"), str):
            self._take_missed(validator, said["reqId"], said.get("value"))
        else:
            self._asker.count(validator, said)

    def _take_missed(self, validator: str, req_id: str, value: Any) -> None:
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or len(messages) > MAX_MESSAGES_PER_ANSWER:
            raise MalformedError("an answer about events is a list of messages")
        # each message counts by itself: nodes at different heights know different tails
        for each in messages:
            self._count(validator, hashlib.sha256(encode(each)).digest(), each)
        for follower in self._followers.values():
            if follower.question == req_id and not messages:
                follower.idle.add(validator)
                if len(follower.idle) >= self._enough:
                    follower.caught_up = True
                    follower.moved.set()

    # --- handing on -------------------------------------------------------------------------------

    async def _deliver(self, follower: _Follower) -> None:
        """Hand on a contract's messages in order, each when every handler had the one before."""
        chain = follower.chain
        while True:
            follower.ready.clear()
            try:
                message = chain.take()
            except WireError as error:
                count_refusal("ledger.client", error.refusal)
                log.error("agreed parts make no message", contract=follower.name, error=str(error))
                follower.caught_up = False
                continue
            if message is None:
                await follower.ready.wait()
                continue
            height, events = message
            for event in events:
                for handler in self._handlers:
                    await _insist(handler, height, event)
                if follower.name == "poe" and event["event"] == "validators":
                    self._take_validators(event)
            chain.finish()
            follower.moved.set()
            await asyncio.sleep(0)  # a long history must not keep others from their turn

    def _take_validators(self, event: dict[str, Any]) -> None:
        """From now on others speak for the ledger."""
        try:
            found = Validators.from_json(event)
        except WireError as error:
            count_refusal("ledger.client", error.refusal)
            log.error("validators not changed", reason=str(error))
            return
        if found.epoch <= self._validators.epoch:
            return  # an old change, seen again after a restart with a newer set
        self._validators, self._keys, self._enough = found, found.keys, found.enough
        for follower in self._followers.values():
            follower.chain.keep_validators(found.keys)
            follower.idle &= found.keys.keys()
        log.info("validators changed", epoch=found.epoch, validators=len(found.keys))

    # --- fetching what is missing -----------------------------------------------------------------

    async def _keep_whole(self, follower: _Follower) -> None:
        """Ask for what was missed: after each connect, after a long silence, while a gap stands."""
        chain = follower.chain
        while True:
            await asyncio.sleep(GAP_WAIT_S)
            if self._clock.monotonic_s() - follower.heard_s > QUIET_S:
                follower.caught_up = False
                follower.heard_s = self._clock.monotonic_s()
            while (
                chain.taken is not None
                and self._bus.connected
                and (chain.gap or not follower.caught_up)
            ):
                before = (chain.taken, chain.missing())
                follower.moved.clear()
                if before[1] is not None:
                    await self._ask_missed(follower, *before[1])
                await _wait(follower.moved, ASK_WAIT_S)
                if before == (chain.taken, chain.missing()):
                    break
                await asyncio.sleep(ASK_PAUSE_S)
            if not self._bus.connected:
                follower.caught_up = False

    async def _ask_missed(self, follower: _Follower, height: int, part: int) -> None:
        """Ask all validators for what comes after a height, from a part of the next message on."""
        follower.question = new_req_id(self._clock.wall_ms(), self._rng.bytes(10))
        follower.idle.clear()
        request = {
            "reqId": follower.question,
            "kind": "events",
            "key": f"{follower.name}/{height}/{part}",
        }
        topic = topics.build(self._genesis.market, topics.SYNC_REQ, self._client_id)
        with contextlib.suppress(BusDownError):
            await self._bus.publish(topic, encode(request))


async def _insist(handler: EventHandler, height: int, event: dict[str, Any]) -> None:
    """Call a handler until it has taken the event, or says that it never will (`WireError`)."""
    pause_s = RETRY_MIN_S
    while True:
        try:
            await handler(height, event)
        except WireError as error:
            count_refusal("ledger.client", error.refusal)
        except Exception as error:
            facts = {"name": event["event"], "height": height, "handler": _name(handler)}
            if pause_s == RETRY_MIN_S:
                log.exception("event handler failed, it is tried again", **facts)
            else:
                log.debug("event handler failed again", error=repr(error), **facts)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)
            continue
        if pause_s != RETRY_MIN_S:
            log.info("event handler recovered", name=event["event"], height=height)
        return


async def _tell(handler: EventHandler, height: int, event: dict[str, Any]) -> None:
    """Call a handler once: what a node says for itself is replaced by what it says next."""
    try:
        await handler(height, event)
    except WireError as error:
        count_refusal("ledger.client", error.refusal)
    except Exception:
        log.exception("event handler failed", name=event["event"], height=height)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _name(handler: EventHandler) -> str:
    return getattr(handler, "__qualname__", repr(handler))
