"""
Fetching what was missed: proposals, bodies and final blocks, by hash or height.

A question goes to one validator at a time, another one each time, because every answer is checked
and a wrong one costs only time. Final blocks come with their `Finality`, so one honest answer is
enough to catch up: header by header, body by body, root by root.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import structlog

from ledger.mempool import Mempool
from ledger.merkle import root
from ledger.store import LedgerStore
from ledger.types import (
    Certificate,
    Finality,
    Header,
    Proposal,
    decode,
    encode,
    header_hash,
    verify_finality,
)
from runtime.bus import MAX_PAYLOAD_BYTES
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
MAX_CERTIFICATES = 512
MAX_RUN = 1024
"""Headers in one answer, at the most; what fits into a message is less."""
MAX_PROPOSALS_WANTED = 16
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


class _Certificates(msgspec.Struct, array_like=True, frozen=True, tag="certificates"):
    certificates: Annotated[list[bytes], msgspec.Meta(max_length=MAX_CERTIFICATES)]


class _Run(msgspec.Struct, array_like=True, frozen=True, tag="run"):
    """Headers that follow each other; the last one has a finality, which proves them all."""

    headers: Annotated[list[bytes], msgspec.Meta(max_length=MAX_RUN)]
    finality: bytes


_Answer = _Run | _Blocks | _Bodies | _Proposal | _Certificates


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[_Answer] = msgspec.msgpack.Decoder(_Answer)


def answer_blocks(store: LedgerStore, key: str) -> bytes | None:
    """Final blocks above a height, as many as fit. Of the first one bodies may be left out."""
    (height,) = _numbers(key, 1)
    blocks: list[_Block] = []
    left = MAX_ANSWER_BYTES
    while len(blocks) < MAX_BLOCKS and (stored := store.get_block(height + 1)) is not None:
        bodies = [body for txid in stored.txids if (body := store.get_body(txid)) is not None]
        left -= len(stored.header_bytes) + len(stored.certificate) + 36 * len(stored.txids) + 64
        if blocks and left < sum(len(body) + 8 for body in bodies):
            break
        bodies, left = _fitting(bodies, left)
        blocks.append(_Block(stored.header_bytes, list(stored.txids), stored.certificate, bodies))
        height += 1
    return _ENCODER.encode(_Blocks(blocks)) if blocks else None


def answer_run(store: LedgerStore, key: str) -> bytes | None:
    """The headers above a height, to the first block that has a finality of its own."""
    (height,) = _numbers(key, 1)
    headers: list[bytes] = []
    left = MAX_PAYLOAD_BYTES - 1024
    while len(headers) < MAX_RUN and (stored := store.get_block(height + 1)) is not None:
        left -= len(stored.header_bytes) + len(stored.certificate) + 8
        if left < 0:
            return None
        headers.append(stored.header_bytes)
        height += 1
        if stored.certificate:
            return _ENCODER.encode(_Run(headers, stored.certificate))
    return None


def answer_bodies(mempool: Mempool, store: LedgerStore, key: str) -> bytes | None:
    """Bodies of the transactions asked for (comma-separated hex ids), as many as fit."""
    found: list[bytes] = []
    for text in key.split(",")[:MAX_TXIDS_ASKED]:
        txid = _hash(text)
        tx = mempool.get(txid)
        body = tx.raw if tx is not None else store.get_body(txid)
        if body is not None:
            found.append(body)
    bodies, _ = _fitting(found, MAX_ANSWER_BYTES)
    return _ENCODER.encode(_Bodies(bodies)) if bodies else None


def answer_proposal(node: Node, key: str) -> bytes | None:
    """An unfinalised proposal by its hash."""
    proposal = node.find_proposal(_hash(key))
    return _ENCODER.encode(_Proposal(encode(proposal))) if proposal is not None else None


def answer_nullifications(node: Node, key: str) -> bytes | None:
    """Nullifications of views of the running epoch (`epoch/first/last`), the first that fit."""
    epoch, first, last = _numbers(key, 3)
    found = [encode(one) for one in node.nullifications(epoch, first, last, MAX_CERTIFICATES)]
    fitting, _ = _fitting(found, MAX_ANSWER_BYTES)
    return _ENCODER.encode(_Certificates(fitting)) if fitting else None


class Fetcher:
    """Asks for a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._bodies: dict[bytes, float] = {}
        """Wanted bodies, and the real time from which they are asked for."""
        self._catching: list[bytes] = []
        """Bodies without which the next final block cannot be executed."""
        self._proposals: OrderedDict[bytes, None] = OrderedDict()
        self._nullifications = ""
        self._run: frozenset[bytes] = frozenset()
        """Hashes of headers that a later block's finality proves."""
        self._run_wanted = self._behind = False
        self._turns: Counter[str] = Counter()
        self._wake = asyncio.Event()

    def missing(self, block_hash: bytes, above_height: int) -> None:
        """The core wants a proposal, or is behind."""
        if block_hash:
            self._proposals[block_hash] = None
            while len(self._proposals) > MAX_PROPOSALS_WANTED:
                self._proposals.popitem(last=False)
        self._behind = True
        log.info("behind", above_height=above_height, executed=self._node.executed_height)
        self._wake.set()

    def nullifications_wanted(self, epoch: int, first_view: int, last_view: int) -> None:
        """The core cannot judge a proposal without the nullifications of these views."""
        self._nullifications = f"{epoch}/{first_view}/{last_view}"
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
            if not (
                self._bodies
                or self._behind
                or self._proposals
                or self._nullifications
                or self._run_wanted
            ):
                self._wake.clear()
                await self._wake.wait()
            await self._ask_bodies()
            if self._nullifications:
                key, self._nullifications = self._nullifications, ""
                await self._ask("nullified", key)
            if self._run_wanted:
                self._run_wanted = False
                await self._ask("run", str(self._node.executed_height))
            while self._proposals:
                block_hash, _ = self._proposals.popitem(last=False)
                await self._ask("proposal", block_hash.hex())
            if self._behind:
                self._behind = False
                await self._ask("blocks", str(self._node.executed_height))
            await asyncio.sleep(ASK_AGAIN_S / 4)

    async def take_answer(self, message: Message) -> None:
        """
        Read an answer; the node uses it in its next turn.

        Raises:
            WireError: not an answer.
        """
        if message.payload[:1] == b"{":
            return  # an answer to a client on the same lane
        if len(message.payload) > 2 * MAX_ANSWER_BYTES:
            raise MalformedError("answer too long")
        try:
            answer = _DECODER.decode(message.payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedError(f"not an answer: {error}") from None
        self._node.do_soon(lambda: self._use(answer))

    def _use(self, answer: _Answer) -> None:
        """
        Check an answer and use it.

        Raises:
            WireError: and what is wrong with it.
        """
        match answer:
            case _Bodies(bodies):
                self._use_bodies(bodies)
            case _Proposal(raw):
                self._node.take_proposal(decode(Proposal, raw))
            case _Certificates(certificates):
                for raw in certificates:
                    self._node.take_certificate(decode(Certificate, raw))
            case _Blocks(blocks):
                self._use_blocks(blocks)
            case _Run(headers, finality):
                self._use_run([decode(Header, raw) for raw in headers], decode(Finality, finality))

    def _use_bodies(self, bodies: list[bytes]) -> None:
        self._keep(bodies)
        for txid in self._bodies:
            self._bodies[txid] = 0.0  # what did not fit into this answer is asked for at once
        if self._catching and not self._node.mempool.missing(self._catching):
            self._catching = []
            self._behind = True
        self._wake.set()
        self._node.look()

    def _keep(self, bodies: list[bytes]) -> None:
        """Put bodies aside; a bad one among them harms only itself."""
        for raw in bodies:
            try:
                tx = self._node.mempool.add_fetched(raw)
            except WireError as error:
                count_refusal("fetch", error.refusal)
                continue
            self._bodies.pop(tx.txid, None)

    def _use_blocks(self, blocks: list[_Block]) -> None:
        """Execute final blocks from a peer, each proven final before it is touched."""
        node = self._node
        last: tuple[Header, Finality] | None = None
        before = node.executed_height
        try:
            for block in blocks:
                header = decode(Header, block.header)
                if header.height != node.executed_height + 1:
                    continue
                finality = decode(Finality, block.finality) if block.finality else None
                if finality is None and header_hash(header) not in self._run:
                    self._run_wanted = True
                    self._wake.set()
                    break
                self._check(header, block, finality)
                self._keep(block.bodies)
                missing = node.mempool.missing(block.txids)
                if missing:
                    self._catching = missing
                    self.bodies_wanted(missing, 0.0)
                    break
                node.execute(header, block.txids, finality)
                last = (header, finality) if finality is not None else last
        finally:
            if last is not None:
                node.jumped(*last)
            if node.executed_height > before:
                log.info("caught up", height=node.executed_height)
                self._behind = not self._catching  # there may be more
                self._wake.set()

    def _use_run(self, headers: list[Header], finality: Finality) -> None:
        """
        Note which blocks above ours a later finality proves; then they can be fetched.

        Raises:
            MalformedError: the headers do not follow our tip and each other, or are not final.
        """
        node, tip = self._node, self._node.ledger.tip_hash
        hashes: list[bytes] = []
        for header in headers:
            if header.parent_hash != tip or header.epoch != node.epoch.epoch:
                raise MalformedError("headers do not follow ours", height=header.height)
            tip = header_hash(header)
            hashes.append(tip)
        validators = node.epochs.validators
        if not verify_finality(tip, finality, validators, node.genesis.chain_id):
            raise MalformedError("headers are not final")
        self._run = frozenset(hashes)
        self._behind = True
        self._wake.set()

    def _check(self, header: Header, block: _Block, finality: Finality | None) -> None:
        """
        Raise unless the block is final and follows ours.

        Args:
            finality: None for a block of which a run of headers has proven that it is final

        Raises:
            MalformedError: and why.
        """
        node = self._node
        if header.epoch != node.epoch.epoch:  # what follows a seal in its epoch is dropped
            raise MalformedError("block is of another epoch", height=header.height)
        if header.parent_hash != node.ledger.tip_hash:
            raise MalformedError("block does not follow ours", height=header.height)
        if header.tx_root != root(block.txids):
            raise MalformedError("transactions are not the block's", height=header.height)
        if finality is None and header.seal:
            raise MalformedError("a seal needs its own finalization", height=header.height)
        validators = node.epochs.validators
        if finality is not None and not verify_finality(
            header_hash(header), finality, validators, node.genesis.chain_id
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
        """Ask one of the others; the same thing of the next one when it is asked again."""
        node = self._node
        others = [one for one in node.epochs.validators.ids if one != node.key.id]
        if not others:
            return
        self._turns[kind] += 1
        turn = self._turns.total()
        request: dict[str, Any] = {
            "reqId": new_req_id(node.clock.wall_ms(), turn.to_bytes(10, "big")),
            "kind": kind,
            "key": key,
            "to": others[self._turns[kind] % len(others)],
        }
        topic = topics.build(node.genesis.market, topics.SYNC_REQ, node.key.id)
        try:
            await node.bus.publish(topic, canonical.encode(request))
        except BusDownError:
            return


def _fitting(parts: list[bytes], limit_bytes: int) -> tuple[list[bytes], int]:
    """The first parts that fit together, and how many bytes are left."""
    for number, part in enumerate(parts):
        if len(part) + 8 > limit_bytes:
            return parts[:number], limit_bytes
        limit_bytes -= len(part) + 8
    return parts, limit_bytes


def _numbers(key: str, count: int) -> list[int]:
    parts = key.split("/")
    if len(parts) != count or not all(p.isascii() and p.isdecimal() and len(p) < 16 for p in parts):
        raise MalformedError("expected numbers", count=count)
    return [int(part) for part in parts]


def _hash(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise MalformedError("not a hash in hex") from None
    if len(value) != 32:
        raise MalformedError("a hash has 32 bytes")
    return value
