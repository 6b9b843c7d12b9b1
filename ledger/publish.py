"""
What a node says to others: events of executed blocks, refusals, and answers to questions.

Every statement is signed with the node's key. Events of a contract are the same, byte for byte, on
every honest node, so that clients can count them (`ledger.client`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import structlog

from ledger.client import CONTRACTS, LOCAL_CONTRACTS, sign_message
from ledger.contracts.keys import account as account_key
from ledger.execution import BlockResult, contract_of
from ledger.fetch import answer_blocks, answer_bodies, answer_proposal
from ledger.types import Header, header_hash
from runtime.metrics import refusals
from runtime.ports import Message
from wire import topics
from wire.canonical import decode, encode
from wire.errors import MalformedError, Refusal

if TYPE_CHECKING:
    from ledger.node import Node

MAX_REQUEST_BYTES = 16 * 1024
MAX_MESSAGES_PER_ANSWER = 16
MAX_ANSWER_BYTES = 96 * 1024
RATE_PER_S = 50.0
"""Questions a second that one asker may put."""
MAX_ASKERS = 4096

log = structlog.get_logger(component="ledger")


class Publisher:
    """Speaks for a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: dict[str, int] = {}
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def block_executed(self, header: Header, result: BlockResult, finality_ms: int) -> None:
        """Publish the events of a block, one message per contract."""
        for contract in sorted({contract_of(event["event"]) for event in result.events}):
            self._publish(contract, self._event_message(contract, header.height))
        block = {
            "event": "block",
            "height": header.height,
            "epoch": header.epoch,
            "view": header.view,
            "proposer": header.proposer,
            "nTx": header.n_tx,
            "timeMs": header.time_ms,
            "finalityMs": finality_ms,
            "blockHash": header_hash(header).hex(),
            "seal": header.seal,
        }
        self._publish("block", self._own_words("block", block))

    def tell_refusals(self) -> None:
        """Publish this node's counts of refused messages when they have changed."""
        counts = refusals("mempool")
        if counts != self._told:
            self._told = counts
            event = {"event": "refused", "component": "mempool", "counts": counts}
            self._publish("refused", self._own_words("refused", event))

    async def take_request(self, message: Message) -> None:
        """
        Answer a question of a wallet or a peer.

        Raises:
            WireError: not a question.
        """
        asker = topics.parse(message.topic).leaf
        if not self._allowed(asker):
            raise MalformedError(Refusal.RATE_LIMITED.value, asker=asker)
        request = decode(message.payload, MAX_REQUEST_BYTES)
        if not isinstance(request, dict) or not all(
            isinstance(request.get(k), str) for k in ("reqId", "kind", "key")
        ):
            raise MalformedError("a question has reqId, kind and key")
        if request.get("to", self._node.key.id) != self._node.key.id or asker == self._node.key.id:
            return
        answer = self._answer(request)
        if answer is not None:
            topic = topics.build(self._node.genesis.market, topics.SYNC_RSP, asker)
            self._node.bus.publish_soon(topic, answer)

    def _answer(self, request: dict[str, Any]) -> bytes | None:
        node, kind, key = self._node, request["kind"], request["key"]
        match kind:
            case "blocks":
                return answer_blocks(node.store, key)
            case "bodies":
                return answer_bodies(node.mempool, node.store, key)
            case "proposal":
                return answer_proposal(node, key)
            case "events":
                value: Any = {"messages": self._missed(key)}
            case "account":
                value = node.ledger.query(account_key(key)) or {}
            case "tip":
                value = {"height": node.executed_height}
            case _:
                raise MalformedError("no such question", kind=kind[:32])
        statement = {"reqId": request["reqId"], "kind": kind, "value": value}
        return sign_message(statement, node.key, node.genesis.chain_id)

    def _missed(self, key: str) -> list[dict[str, Any]]:
        """Event messages of a contract after a height, as they were published."""
        contract, _, after = key.partition("/")
        if contract not in CONTRACTS or not after.isdecimal() or len(after) > 15:
            raise MalformedError("expected contract/height")
        found: list[dict[str, Any]] = []
        size = 0
        for height in self._node.store.event_heights(contract, int(after), MAX_MESSAGES_PER_ANSWER):
            message = self._event_message(contract, height)
            size += len(encode(message))
            if found and size > MAX_ANSWER_BYTES:
                break
            found.append(message)
        return found

    def _event_message(self, contract: str, height: int) -> dict[str, Any]:
        """What every honest node says of a contract's events in a block."""
        store = self._node.store
        block = store.get_block(height)
        assert block is not None
        return {
            "chainId": self._node.genesis.chain_id,
            "contract": contract,
            "height": height,
            "prevHeight": store.previous_event_height(contract, height),
            "timeMs": block.header.time_ms,
            "events": store.events(height, contract),
        }

    def _own_words(self, contract: str, event: dict[str, Any]) -> dict[str, Any]:
        """A statement that is this node's alone."""
        return {
            "chainId": self._node.genesis.chain_id,
            "contract": contract,
            "height": self._node.executed_height,
            "events": [event],
        }

    def _publish(self, contract: str, message: dict[str, Any]) -> None:
        assert contract in CONTRACTS + LOCAL_CONTRACTS
        topic = topics.build(self._node.genesis.market, topics.EVENTS, contract)
        payload = sign_message(message, self._node.key, self._node.genesis.chain_id)
        self._node.bus.publish_soon(topic, payload)

    def _allowed(self, asker: str) -> bool:
        """A bucket of one second's questions per asker."""
        now_s = self._node.clock.monotonic_s()
        left, seen_s = self._allowance.pop(asker, (RATE_PER_S, now_s))
        left = min(RATE_PER_S, left + (now_s - seen_s) * RATE_PER_S)
        allowed = left >= 1
        self._allowance[asker] = (left - 1 if allowed else left, now_s)
        while len(self._allowance) > MAX_ASKERS:
            self._allowance.popitem(last=False)
        return allowed
