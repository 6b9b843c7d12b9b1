"""
Questions about the executed state, and the answer on which f + 1 validators agree.

Who asks does so under an identity of its own: a home asks for an address' nonce under that address,
or the question would tell whose it is (`ledger.client` follows events under another).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ledger.genesis import Genesis
from ledger.statements import read_message
from runtime.ports import Bus, BusDownError, Clock, Message, Rng
from wire import topics
from wire.canonical import encode
from wire.envelope import new_req_id
from wire.errors import MalformedError
from wire.transactions import Transaction

if TYPE_CHECKING:
    from ledger.client import Validators

QUERY_TIMEOUT_S = 5.0


class QueryError(ConnectionError):
    """Too few validators gave the same answer in time (temporary)."""


@dataclass(slots=True)
class _Query:
    answers: dict[str, tuple[bytes, Any]] = field(default_factory=dict)
    """One per validator, its last."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    value: Any = None


class Asker:
    """
    Asks under one identity.

    Args:
        bus: a lane whose identity may ask on `sync/req/<client_id>`
        client_id: identity of the lane
        validators: whose answers count, now
        dated: the time that a question's `reqId` names, by default the real one [ms]
    """

    def __init__(
        self,
        bus: Bus,
        genesis: Genesis,
        clock: Clock,
        client_id: str,
        rng: Rng,
        validators: Callable[[], Validators],
        dated: Callable[[], int] | None = None,
    ) -> None:
        self._bus, self._genesis, self._clock, self._rng = bus, genesis, clock, rng
        self._client_id, self._validators = client_id, validators
        self._dated = dated or clock.wall_ms
        self._queries: dict[str, _Query] = {}

    def start(self) -> None:
        """Subscribe; works before the bus is connected."""
        topic = topics.build(self._genesis.market, topics.SYNC_RSP, self._client_id)
        self._bus.subscribe(topic, self._take_answer)

    async def query(self, kind: str, key: str, timeout_s: float = QUERY_TIMEOUT_S) -> Any:
        """
        Ask the validators for something in the executed state, e.g. `("account", address)`.

        Returns:
            The value on which f + 1 validators agree; `{}` when there is no such thing.

        Raises:
            QueryError: no agreement within `timeout_s` real seconds.
        """
        req_id = new_req_id(self._dated(), self._rng.bytes(10))
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

    async def receipt(self, transaction: Transaction) -> dict[str, Any]:
        """
        What became of a transaction, as f + 1 validators have it.

        Returns:
            `{"height", "code", "codes"}` when it was executed; with code WRONG_NONCE and height 0
            when it never will be, because another one has used its nonce; `{}` while it may be.

        Raises:
            QueryError: no agreement in time.
        """
        key = f"{transaction.txid.hex()}/{transaction.sender}/{transaction.nonce}"
        found = await self.query("tx", key)
        return found if isinstance(found, dict) else {}

    def count(self, validator: str, said: dict[str, Any]) -> None:
        """
        Count a validator's answer.

        Raises:
            MalformedError: it is not one.
        """
        req_id, kind = said.get("reqId"), said.get("kind")
        if not isinstance(req_id, str) or not isinstance(kind, str) or "value" not in said:
            raise MalformedError("an answer has reqId, kind and value")
        pending = self._queries.get(req_id)
        if pending is None:
            return
        digest = hashlib.sha256(encode(said["value"])).digest()
        pending.answers[validator] = (digest, said["value"])
        now = self._validators()
        tally = Counter(d for who, (d, _) in pending.answers.items() if who in now.keys)
        if tally[digest] >= now.enough:
            pending.value = said["value"]
            pending.done.set()

    async def _take_answer(self, message: Message) -> None:
        keys, chain_id = self._validators().keys, self._genesis.chain_id
        validator, _, said = read_message(message.payload, keys, chain_id)
        self.count(validator, said)
