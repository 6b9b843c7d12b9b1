"""
What a node says to others: events of executed blocks, refusals, and answers to questions.

Every statement is signed with the node's key. Events of a contract are the same, byte for byte, on
every honest node, so that clients can count them (`ledger.statements`, `ledger.client`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import structlog

from ledger.allowance import Allowance
from ledger.contracts.keys import account as account_key
from ledger.execution import BlockResult, contract_of
from ledger.fetch import (
    answer_blocks,
    answer_bodies,
    answer_nullifications,
    answer_proposal,
    answer_run,
)
from ledger.prover import answer_anchor, answer_proof
from ledger.snapshots import answer_chunk, answer_snapshot
from ledger.statements import (
    CONTRACTS,
    LOCAL_CONTRACTS,
    EventHead,
    count_parts,
    event_message,
    sign_message,
)
from ledger.types import Header, header_hash
from runtime.metrics import refusals
from runtime.ports import Message
from wire import topics
from wire.canonical import decode, encode_checked
from wire.errors import MalformedError, Refusal, WireError
from wire.keys import to_text

if TYPE_CHECKING:
    from ledger.node import Node

MAX_REQUEST_BYTES = 16 * 1024
MAX_MESSAGES_PER_ANSWER = 16
MAX_ANSWER_BYTES = 96 * 1024
"""Of messages in an answer; one part (`statements.PART_BYTES`) always fits."""
TXID_BYTES = 32
RATE_PER_S = 50.0
"""Questions a second that one asker may put."""
ASKER_BYTES_PER_S, ASKER_BYTES_BURST = 512 * 1024, 4 * 1024 * 1024
"""Of answers to one asker."""
BYTES_PER_S, BYTES_BURST = 1024 * 1024, 16 * 1024 * 1024
"""Of answers to all together that are no validators."""
SMALL_KINDS = frozenset({"account", "tx", "tip"})
"""Not counted, as these answers are short: whoever waits for a nonce gets it meanwhile."""

log = structlog.get_logger(component="ledger")


class RateLimitedError(WireError):
    """More questions than one asker may put."""

    refusal = Refusal.RATE_LIMITED


class Publisher:
    """Speaks for a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: dict[str, int] = {}
        self._questions = Allowance(RATE_PER_S, RATE_PER_S)
        self._bytes_of = Allowance(ASKER_BYTES_PER_S, ASKER_BYTES_BURST)
        self._bytes_of_all = Allowance(BYTES_PER_S, BYTES_BURST)

    def block_executed(self, header: Header, result: BlockResult, finality_ms: int) -> None:
        """Publish the events of a block, for each contract one message in parts."""
        for contract in sorted({contract_of(event["event"]) for event in result.events}):
            for message in self._event_messages(contract, header.height):
                self._publish(contract, message)
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
        if self._questions.take(asker, 1, self._node.clock.monotonic_s()) > 0:
            raise RateLimitedError(asker=asker)
        request = decode(message.payload, MAX_REQUEST_BYTES)
        if not isinstance(request, dict) or not all(
            isinstance(request.get(k), str) for k in ("reqId", "kind", "key")
        ):
            raise MalformedError("a question has reqId, kind and key")
        if request.get("to", self._node.key.id) != self._node.key.id or asker == self._node.key.id:
            return
        counted = request["kind"] not in SMALL_KINDS and not self._is_validator(asker)
        if counted and self._in_debt(asker):
            raise RateLimitedError("answers are too large", asker=asker)
        answer = self._answer(request)
        if answer is not None:
            if counted:
                self._owe(asker, len(answer))
            topic = topics.build(self._node.genesis.market, topics.SYNC_RSP, asker)
            self._node.bus.publish_soon(topic, answer)

    def _answer(self, request: dict[str, Any]) -> bytes | None:  # noqa: PLR0912
        node, kind, key = self._node, request["kind"], request["key"]
        match kind:
            case "blocks":
                return answer_blocks(node.store, key)
            case "run":
                return answer_run(node.store, key)
            case "bodies":
                return answer_bodies(node.mempool, node.store, key)
            case "proposal":
                return answer_proposal(node, key)
            case "nullified":
                return answer_nullifications(node, key)
            case "events":
                value: Any = {"messages": self._missed(key)}
            case "account":
                value = node.ledger.query(account_key(key)) or {}
            case "tx":
                value = self._fate(key)
            case "tip":
                value = {"height": node.executed_height}
            case "proof":
                value = to_text(answer_proof(node.store, node.ledger, key))
            case "anchor":
                value = to_text(answer_anchor(node.store, key))
            case "snapshot":
                value = to_text(answer_snapshot(node.store))
            case "chunk":
                value = to_text(answer_chunk(node.store, key))
            case _:
                raise MalformedError("no such question", kind=kind[:32])
        statement = {"reqId": request["reqId"], "kind": kind, "value": value}
        return sign_message(statement, node.key, node.genesis.chain_id)

    def _fate(self, key: str) -> dict[str, Any]:
        """
        What became of a transaction (`txid`, or `txid/sender/nonce`).

        Whoever names sender and nonce learns also that it can never be executed: answered by f + 1
        validators, that is true whichever of them are behind. Nothing is said of nonces that were
        used in blocks that are not here any more.
        """
        text, *rest = key.split("/")
        if len(rest) not in (0, 2):
            raise MalformedError("expected txid, or txid/sender/nonce")
        found = self._node.store.receipt(_txid(text))
        if found is not None:
            height, receipt = found
            return {"height": height, "code": receipt["code"], "codes": receipt["codes"]}
        if rest and (
            self._node.store.used_nonce(rest[0])  # it may be what used that nonce
            <= _number(rest[1])
            < self._node.ledger.next_nonce(rest[0])
        ):
            return {"height": 0, "code": Refusal.WRONG_NONCE.value, "codes": []}
        return {}

    def _missed(self, key: str) -> list[dict[str, Any]]:
        """
        What was published of a contract (`contract/height/part`), as much as fits.

        That is: everything after a height, but of the first message only from a part on. There is
        always something in the answer if there is something to tell, so every asker gets on.
        """
        contract, *numbers = key.split("/")
        if contract not in CONTRACTS or len(numbers) != 2:
            raise MalformedError("expected contract/height/part")
        after, first_part = map(_number, numbers)
        found: list[dict[str, Any]] = []
        size = 0
        for height in self._node.store.event_heights(contract, after, MAX_MESSAGES_PER_ANSWER):
            for message in self._event_messages(contract, height, first_part):
                size += len(encode_checked(message))
                if found and (size > MAX_ANSWER_BYTES or len(found) == MAX_MESSAGES_PER_ANSWER):
                    return found
                found.append(message)
            first_part = 0
        return found

    def _event_messages(
        self, contract: str, height: int, first_part: int = 0
    ) -> Iterator[dict[str, Any]]:
        """What every honest node says of a contract's events in a block, part by part."""
        store = self._node.store
        block = store.get_block(height)
        assert block is not None
        head = EventHead(
            chain_id=self._node.genesis.chain_id,
            contract=contract,
            height=height,
            previous=store.previous_event_height(contract, height),
            time_ms=block.header.time_ms,
        )
        events = store.event_bytes(height, contract)
        for part in range(first_part, count_parts(len(events))):
            yield event_message(head, events, part)

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

    def _is_validator(self, asker: str) -> bool:
        return self._node.epoch.validators.index(asker) is not None

    def _in_debt(self, asker: str) -> bool:
        """Was one asker, or were all, told more than they may be? Asked before the work."""
        now_s = self._node.clock.monotonic_s()
        return self._bytes_of.owed_s(asker, now_s) + self._bytes_of_all.owed_s("", now_s) > 0

    def _owe(self, asker: str, size_bytes: int) -> None:
        """Count an answer, below zero if need be: its size is known when it is made."""
        now_s = self._node.clock.monotonic_s()
        self._bytes_of.owe(asker, size_bytes, now_s)
        self._bytes_of_all.owe("", size_bytes, now_s)


def _txid(text: str) -> bytes:
    try:
        txid = bytes.fromhex(text)
    except ValueError:
        raise MalformedError("not hex") from None
    if len(txid) != TXID_BYTES:
        raise MalformedError("not a txid")
    return txid


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 15:
        raise MalformedError("not a number")
    return int(text)
