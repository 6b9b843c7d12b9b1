"""
Fetching what was missed: proposals, bodies and final blocks, by hash or height.

A question goes to one validator at a time, another one each time, because every answer is checked
and a wrong one costs only time. Final blocks come with their `Finality`, so one honest answer is
enough to catch up: header by header, body by body, root by root.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import structlog

from ledger.mempool import Mempool
from ledger.merkle import root
from ledger.store import LedgerStore
from ledger.types import (
    Finality,
    Header,
    Proposal,
    decode,
    encode,
    header_hash,
    verify_finality,
)
from runtime.metrics import count_refusal
from runtime.ports import BusDownError, Message
from wire import canonical, topics
from wire.envelope import new_req_id
from wire.errors import MalformedError, WireError

if TYPE_CHECKING:
    from ledger.node import Node

MAX_ANSWER_BYTES = 110 * 1024
MAX_TXIDS_ASKED = 128
MAX_BLOCKS = 64
ASK_AGAIN_S = 0.4
"""Real time after which a question goes to the next validator."""

log = structlog.get_logger(component="ledger")


class _Block(msgspec.Struct, array_like=True, frozen=True):
    header: bytes
    txids: list[bytes]
    finality: bytes
    bodies: list[bytes]


class _Blocks(msgspec.Struct, array_like=True, frozen=True, tag="blocks"):
    blocks: Annotated[list[_Block], msgspec.Meta(max_length=MAX_BLOCKS)]


class _Bodies(msgspec.Struct, array_like=True, frozen=True, tag="bodies"):
    bodies: Annotated[list[bytes], msgspec.Meta(max_length=MAX_TXIDS_ASKED)]


class _Proposal(msgspec.Struct, array_like=True, frozen=True, tag="proposal"):
    proposal: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[_Blocks | _Bodies | _Proposal] = msgspec.msgpack.Decoder(
    _Blocks | _Bodies | _Proposal
)


def answer_blocks(store: LedgerStore, key: str) -> bytes | None:
    """Final blocks above a height, as many as fit."""
    if not key.isdecimal() or len(key) > 15:
        raise MalformedError("expected a height")
    blocks: list[_Block] = []
    size = 0
    height = int(key) + 1
    while len(blocks) < MAX_BLOCKS and (stored := store.get_block(height)) is not None:
        bodies = [body for txid in stored.txids if (body := store.get_body(txid)) is not None]
        size += sum(len(body) for body in bodies) + len(stored.certificate) + 1024
        if blocks and size > MAX_ANSWER_BYTES:
            break
        blocks.append(_Block(stored.header_bytes, list(stored.txids), stored.certificate, bodies))
        height += 1
    return _ENCODER.encode(_Blocks(blocks)) if blocks else None


def answer_bodies(mempool: Mempool, store: LedgerStore, key: str) -> bytes | None:
    """Bodies of the transactions asked for (comma-separated hex ids), as many as fit."""
    found: list[bytes] = []
    size = 0
    for text in key.split(",")[:MAX_TXIDS_ASKED]:
        txid = _hash(text)
        tx = mempool.get(txid)
        body = tx.raw if tx is not None else store.get_body(txid)
        if body is not None and size + len(body) < MAX_ANSWER_BYTES:
            found.append(body)
            size += len(body)
    return _ENCODER.encode(_Bodies(found)) if found else None


def answer_proposal(node: Node, key: str) -> bytes | None:
    """An unfinalised proposal by its hash."""
    proposal = node.find_proposal(_hash(key))
    return _ENCODER.encode(_Proposal(encode(proposal))) if proposal is not None else None


class Fetcher:
    """Asks for a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._bodies: dict[bytes, float] = {}
        """Wanted bodies, and the real time from which they are asked for."""
        self._proposal: bytes = b""
        self._behind = False
        self._turn = 0
        self._wake = asyncio.Event()

    def missing(self, block_hash: bytes, above_height: int) -> None:
        """The core wants a proposal, or is behind."""
        self._proposal = block_hash
        self._behind = True
        log.info("behind", above_height=above_height, executed=self._node.executed_height)
        self._wake.set()

    def bodies_wanted(self, txids: list[bytes], wait_s: float) -> None:
        """Bodies that a block needs; asked for if they have not come by themselves in `wait_s`."""
        due_s = self._node.clock.monotonic_s() + wait_s
        for txid in txids:
            self._bodies.setdefault(txid, due_s)
        self._wake.set()

    async def run(self) -> None:
        """Ask until nothing is missing; then sleep."""
        while True:
            if not (self._bodies or self._behind):
                self._wake.clear()
                await self._wake.wait()
            await self._ask_bodies()
            if self._behind:
                self._behind = False
                if self._proposal:
                    await self._ask("proposal", self._proposal.hex())
                await self._ask("blocks", str(self._node.executed_height))
            await asyncio.sleep(ASK_AGAIN_S / 4)

    async def take_answer(self, message: Message) -> None:
        """Check an answer and use it."""
        if message.payload[:1] == b"{":
            return  # an answer to a client on the same lane
        if len(message.payload) > 2 * MAX_ANSWER_BYTES:
            raise MalformedError("answer too long")
        try:
            answer = _DECODER.decode(message.payload)
        except (msgspec.DecodeError, RecursionError) as error:
            raise MalformedError(f"not an answer: {error}") from None
        match answer:
            case _Bodies(bodies):
                self._use_bodies(bodies)
            case _Proposal(raw):
                self._node.take_proposal(decode(Proposal, raw))
            case _Blocks(blocks):
                self._use_blocks(blocks)

    def _use_bodies(self, bodies: list[bytes]) -> None:
        for raw in bodies:
            try:
                tx = self._node.mempool.add_fetched(raw)
            except WireError as error:
                count_refusal("fetch", error.refusal)
                continue
            self._bodies.pop(tx.txid, None)
        self._node.bodies_came()

    def _use_blocks(self, blocks: list[_Block]) -> None:
        """Execute final blocks from a peer, each proven final before it is touched."""
        node = self._node
        last: tuple[Header, Finality] | None = None
        for block in blocks:
            header = decode(Header, block.header)
            if header.height != node.executed_height + 1:
                continue
            finality = decode(Finality, block.finality)
            self._check(header, block, finality)
            for raw in block.bodies:
                node.mempool.add_fetched(raw)
            if node.mempool.missing(block.txids):
                raise MalformedError("a body is missing", height=header.height)
            node.execute(header, block.txids, finality)
            last = (header, finality)
        if last is not None:
            log.info("caught up", height=node.executed_height)
            node.jumped(*last)
            self._behind = True  # there may be more
            self._wake.set()

    def _check(self, header: Header, block: _Block, finality: Finality) -> None:
        """
        Raise unless the block is final and follows ours.

        Raises:
            MalformedError: and why.
        """
        node = self._node
        if header.parent_hash != node.ledger.tip_hash:
            raise MalformedError("block does not follow ours", height=header.height)
        if header.tx_root != root(block.txids):
            raise MalformedError("transactions are not the block's", height=header.height)
        if not verify_finality(
            header_hash(header), finality, node.epochs.validators, node.genesis.chain_id
        ):
            raise MalformedError("block is not final", height=header.height)

    async def _ask_bodies(self) -> None:
        now_s = self._node.clock.monotonic_s()
        still = self._node.mempool.missing(list(self._bodies))
        self._bodies = {txid: self._bodies[txid] for txid in still}
        due = [txid for txid, due_s in self._bodies.items() if due_s <= now_s]
        if due:
            chosen = due[:MAX_TXIDS_ASKED]
            for txid in chosen:
                self._bodies[txid] = now_s + ASK_AGAIN_S
            await self._ask("bodies", ",".join(txid.hex() for txid in chosen))

    async def _ask(self, kind: str, key: str) -> None:
        node = self._node
        others = [v.id for v in node.genesis.validators if v.id != node.key.id]
        if not others:
            return
        self._turn += 1
        request: dict[str, Any] = {
            "reqId": new_req_id(node.clock.wall_ms(), self._turn.to_bytes(10, "big")),
            "kind": kind,
            "key": key,
            "to": others[self._turn % len(others)],
        }
        topic = topics.build(node.genesis.market, topics.SYNC_REQ, node.key.id)
        try:
            await node.bus.publish(topic, canonical.encode(request))
        except BusDownError:
            return


def _hash(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise MalformedError("not a hash in hex") from None
    if len(value) != 32:
        raise MalformedError("a hash has 32 bytes")
    return value
