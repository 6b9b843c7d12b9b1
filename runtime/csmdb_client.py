"""
Asking the CSM-DB (or the DSO) over a lane: send, wait for the answer that fits, repeat until it is
there.

The forms are in `wire.enrolment`. Every operation may be repeated without a second effect, so a
lost answer costs one more round trip and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from runtime.metrics import count_refusal
from runtime.ports import BusDownError, Clock, Handler, Message, Rng
from wire import topics
from wire.enrolment import make_request, read_answer
from wire.envelope import new_req_id
from wire.errors import Refusal, WireError
from wire.keys import BoxKey, SigningKey, to_text

RETRY_S = 3.0
MAX_PATIENCE_S = 30.0


class RequestLane(Protocol):
    """What is needed of a lane to ask over it: a bus, or `runtime.door`."""

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Answers go to the handler."""
        ...

    async def publish(self, topic: str, payload: bytes) -> None:
        """Send a request; raises BusDownError."""
        ...


class CsmDbRefusedError(WireError):
    """The CSM-DB said no; `reason` is the refusal's name (permanent until something changes)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail, reason=reason)
        self.reason = reason


class CsmDbClient:
    """
    One asker's line to the CSM-DB.

    Args:
        bus: the asker's own lane
        key, box: what the asker signs with, and what answers are sealed to
        issuing_key, csmdb_box: public keys of the service that is asked
        kinds: topics on which it is asked and answers
    """

    def __init__(
        self,
        bus: RequestLane,
        key: SigningKey,
        box: BoxKey,
        market: str,
        issuing_key: bytes,
        csmdb_box: bytes,
        clock: Clock,
        rng: Rng,
        *,
        kinds: tuple[str, str] = (topics.CSMDB_REQ, topics.CSMDB_RSP),
    ) -> None:
        self._bus, self._clock, self._rng = bus, clock, rng
        self._key, self._box = key, box
        self._market = market
        self._issuing_key, self._csmdb_box = issuing_key, csmdb_box
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._topic = topics.build(market, kinds[0], key.id)
        bus.subscribe(topics.build(market, kinds[1], key.id), self._take)

    async def ask(
        self, operation: str, parameters: dict[str, Any], timeout_s: float = MAX_PATIENCE_S
    ) -> dict[str, Any]:
        """
        Send a request until it is answered; our box key is added to `parameters`.

        Args:
            timeout_s: real seconds in all

        Returns:
            The result's parameters.

        Raises:
            CsmDbRefusedError: it was refused, and why.
            TimeoutError: no answer.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await self._ask_once(operation, parameters)
                except (BusDownError, TimeoutError):
                    await asyncio.sleep(self._rng.uniform(0.1, 0.5))

    async def _ask_once(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        req_id = new_req_id(self._clock.wall_ms(), self._rng.bytes(10))
        future = self._waiting[req_id] = asyncio.get_running_loop().create_future()
        request = make_request(
            self._key,
            self._market,
            self._csmdb_box,
            operation,
            {**parameters, "boxKey": to_text(self._box.public)},
            req_id,
            self._clock.wall_ms(),
        )
        try:
            await self._bus.publish(self._topic, request)
            async with asyncio.timeout(RETRY_S):
                answer: dict[str, Any] = await future
        finally:
            del self._waiting[req_id]
        if "refusal" in answer:
            reason = str(answer["refusal"])
            if reason == Refusal.RATE_LIMITED.value:
                raise TimeoutError  # temporary: asked again
            raise CsmDbRefusedError(reason, str(answer.get("detail", "")))
        return answer

    async def _take(self, message: Message) -> None:
        try:
            answer = read_answer(message.payload, self._box, self._market, self._issuing_key)
        except WireError as error:
            count_refusal("csmdb-client", error.refusal)
            return
        future = self._waiting.get(answer.req_id)
        if future is not None and not future.done():
            future.set_result(answer.parameters)
