"""
Who watches the chain from outside: when did which transaction become final, and what did it cost
on the wire.

An observer hears proposals (which name their transactions) and the nodes' signed statements that a
block is final and executed. A transaction counts as final when f + 1 validators have said so of its
block: one of them is honest. Its latency runs from the moment at which it was *due* to be sent, so
that a sender held up by a slow system does not flatter it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from ledger.client import read_message
from ledger.genesis import Genesis
from ledger.types import Certificate, Proposal, decode, header_hash
from runtime.bus import MqttBus
from runtime.ports import Message
from wire import topics
from wire.canonical import encode
from wire.keys import from_text

ASK_AGAIN_S = 0.2
PROPOSAL, VOTE, CERTIFICATE, EVENTS = "proposal", "vote", "certificate", "events"


@dataclass(slots=True)
class Tally:
    """What was seen since the last `Watch.begin`."""

    latencies_s: list[float] = field(default_factory=list)
    final_at_s: list[float] = field(default_factory=list)
    published_at_s: list[float] = field(default_factory=list)
    node_finality_ms: list[int] = field(default_factory=list)
    blocks: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    octets: Counter[str] = field(default_factory=Counter)


class Watch:
    """
    An observer of one chain.

    Args:
        bus: a lane with the role observer, not started
        identity: of that lane
    """

    def __init__(self, bus: MqttBus, identity: str, genesis: Genesis) -> None:
        self._bus = bus
        self._identity = identity
        self._answered: set[str] = set()
        self._genesis = genesis
        self._keys = {v.id: from_text(v.key) for v in genesis.validators}
        self._enough = (len(self._keys) - 1) // 3 + 1
        self._txids: dict[str, tuple[bytes, ...]] = {}
        self._said: defaultdict[str, set[str]] = defaultdict(set)
        self.due_s: dict[bytes, float] = {}
        """Transactions sent and not yet final, with the time at which they were due."""
        self.progress = asyncio.Event()
        """Set whenever something became final."""
        self.heights: dict[str, int] = dict.fromkeys(self._keys, 0)
        """What each validator has executed."""
        self.on_proposal: Callable[[str], None] | None = None
        """Called with the proposer of each new block."""
        self.tally = Tally()

    async def start(self) -> None:
        """Subscribe and connect."""
        market = self._genesis.market
        for kind, leaf, handler in (
            (topics.CONSENSUS_PROPOSAL, "", self._take_proposal),
            (topics.CONSENSUS_VOTE, "+", self._take_vote),
            (topics.CONSENSUS_CERT, "", self._take_certificate),
            (topics.EVENTS, "block", self._take_block),
            (topics.SYNC_RSP, self._identity, self._take_answer),
        ):
            self._bus.subscribe(topics.build(market, kind, leaf), handler)
        await self._bus.start()
        await self._bus.wait_connected(10.0)

    async def until_ready(self, timeout_s: float) -> None:
        """
        Wait until every validator answers: what is sent before it has subscribed never reaches it.

        Raises:
            TimeoutError: not all did.
        """
        topic = topics.build(self._genesis.market, topics.SYNC_REQ, self._identity)
        async with asyncio.timeout(timeout_s):
            while len(self._answered) < len(self._keys):
                request = {"reqId": "ready", "kind": "tip", "key": ""}
                await self._bus.publish(topic, encode(request))
                await asyncio.sleep(ASK_AGAIN_S)

    async def stop(self) -> None:
        """Disconnect."""
        await self._bus.stop()

    def begin(self) -> Tally:
        """Count from here on."""
        self.tally = Tally()
        return self.tally

    async def until_final(self, timeout_s: float) -> int:
        """Wait until nothing is outstanding; how many still are after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while self.due_s and time.monotonic() < deadline_s:
            self.progress.clear()
            try:
                async with asyncio.timeout(0.25):
                    await self.progress.wait()
            except TimeoutError:
                continue
        return len(self.due_s)

    async def _take_proposal(self, message: Message) -> None:
        proposal = decode(Proposal, message.payload)
        self._count(PROPOSAL, message)
        block_hash = header_hash(proposal.header).hex()
        self._txids.setdefault(block_hash, proposal.txids)
        if len(self._said[block_hash]) >= self._enough:
            self._mark(block_hash)  # the statements overtook it
        if self.on_proposal is not None:
            self.on_proposal(proposal.header.proposer)

    async def _take_vote(self, message: Message) -> None:
        self._count(VOTE, message)

    async def _take_certificate(self, message: Message) -> None:
        decode(Certificate, message.payload)
        self._count(CERTIFICATE, message)

    async def _take_answer(self, message: Message) -> None:
        validator, _, _ = read_message(message.payload, self._keys, self._genesis.chain_id)
        self._answered.add(validator)

    async def _take_block(self, message: Message) -> None:
        self._count(EVENTS, message)
        validator, _, said = read_message(message.payload, self._keys, self._genesis.chain_id)
        for event in said["events"]:
            self.heights[validator] = max(self.heights[validator], event["height"])
            if event["finalityMs"] >= 0:
                self.tally.node_finality_ms.append(event["finalityMs"])
            sayers = self._said[event["blockHash"]]
            sayers.add(validator)
            if len(sayers) == self._enough:
                self._final(event["blockHash"])

    def _final(self, block_hash: str) -> None:
        self.tally.blocks += 1
        self._mark(block_hash)

    def _mark(self, block_hash: str) -> None:
        """Nothing of a final block is outstanding."""
        now_s = time.monotonic()
        for txid in self._txids.get(block_hash, ()):
            due_s = self.due_s.pop(txid, None)
            if due_s is not None:
                self.tally.latencies_s.append(now_s - due_s)
                self.tally.published_at_s.append(due_s)
                self.tally.final_at_s.append(now_s)
        self.progress.set()

    def _count(self, kind: str, message: Message) -> None:
        self.tally.messages[kind] += 1
        self.tally.octets[kind] += len(message.payload)
