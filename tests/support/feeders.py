"""
A ledger for tests: a genesis, four validators as nodes in this process, homes with grants.

    async with running_ledger(authority, port, tmp_path) as chain:
        home = await chain.home("alice")
        code = await home.submit({"op": "bid-offer", …})
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from support.brokers import Authority, make_key
from support.patience import PATIENCE_S

from ledger.client import LedgerClient
from ledger.genesis import Genesis, GenesisValidator, Supervisor, genesis_bytes, seal_genesis
from ledger.node import Node
from runtime.bus import MqttBus
from runtime.clock import SystemClock
from runtime.rng import SystemRng
from wire import topics
from wire.certificates import dump, seal
from wire.envelope import new_req_id
from wire.keys import SigningKey, to_text
from wire.transactions import Transaction, make_transaction

VALIDATORS = [make_key(f"validator-{number}") for number in range(4)]
SUPERVISOR = make_key("supervisor")


def make_genesis(authority: Authority, **rules: Any) -> Genesis:
    """A genesis with four validators and a rich supervisor, an hour old."""
    return seal_genesis(
        Genesis(
            market=authority.market,
            start_ms=authority.clock.now_ms() - 3_600_000,
            issuing_key=to_text(authority.key.public),
            supervisor=Supervisor(
                address=SUPERVISOR.id, key=to_text(SUPERVISOR.public), balance_uc=10**12
            ),
            validators=tuple(
                GenesisValidator(id=k.id, key=to_text(k.public), controller=f"c{number}")
                for number, k in enumerate(VALIDATORS)
            ),
            **rules,
        )
    )


@dataclass(slots=True)
class Actor:
    """Somebody with an address who sends transactions and waits for their fate."""

    key: SigningKey
    bus: MqttBus
    client: LedgerClient
    genesis: Genesis
    nonce: int = 0
    fates: dict[str, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    sent: list[Transaction] = field(default_factory=list)

    async def take(self, height: int, event: dict[str, Any]) -> None:
        """Remember events; tell who waits for a transaction."""
        self.events.append((height, event))
        if event["event"] == "tx" and event["txid"] in self.fates:
            future = self.fates[event["txid"]]
            if not future.done():
                future.set_result(event)

    async def submit(
        self, *operations: dict[str, Any], timeout_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """Send one transaction; its `tx` event, once final."""
        clock = SystemClock()
        tx = make_transaction(
            self.key, self.genesis.chain_id, self.nonce,
            self.genesis.grid.slot_at(clock.now_ms()) + 4, list(operations),
            new_req_id(clock.wall_ms(), SystemRng().bytes(10)), clock.now_ms(),
        )  # fmt: skip
        self.nonce += 1
        self.sent.append(tx)
        future = self.fates[tx.txid.hex()] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(timeout_s):
            await self._publish(tx)
            return await future

    async def send_again(self) -> None:
        """Send all again whose fate is not known, as an outbox does."""
        for tx in self.sent:
            if not self.fates[tx.txid.hex()].done():
                await self._publish(tx)

    async def _publish(self, tx: Transaction) -> None:
        await self.bus.publish(topics.build(self.genesis.market, topics.TX, self.key.id), tx.raw)


@dataclass(slots=True)
class RunningLedger:
    """Four nodes and the actors on top of them."""

    authority: Authority
    genesis: Genesis
    port: int
    folder: Path
    node_ports: Mapping[int, int] = field(default_factory=dict)
    """Where a validator finds the broker, when that is not `port`."""
    nodes: dict[int, Node] = field(default_factory=dict)
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    actors: list[Actor] = field(default_factory=list)

    def start_node(self, number: int) -> Node:
        """Start (again) one validator."""
        key = VALIDATORS[number]
        folder = self.folder / f"validator-{number}"
        folder.mkdir(exist_ok=True)
        (folder / "genesis.json").write_bytes(genesis_bytes(self.genesis))
        port = self.node_ports.get(number, self.port)
        bus = self.authority.bus(port, key, {"validator"})
        node = Node(self.genesis, folder, key, bus, self.authority.clock)
        self.nodes[number] = node
        self.tasks[number] = asyncio.create_task(node.run())
        return node

    async def stop_node(self, number: int) -> None:
        """Stop one validator."""
        task = self.tasks.pop(number)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def actor(self, key: SigningKey, roles: set[str]) -> Actor:
        """Somebody connected under `key`."""
        bus = self.authority.bus(self.port, key, roles)
        client = LedgerClient(bus, self.genesis, self.authority.clock, key.id, from_start=True)
        actor = Actor(key, bus, client, self.genesis)
        client.on_event(actor.take)
        await client.start()
        await bus.start()
        await bus.wait_connected(PATIENCE_S)
        self.actors.append(actor)
        return actor

    async def home(self, name: str, grid_slots: int = 900) -> Actor:
        """A home whose address is registered; `grid_slots` is the market's slot length [s]."""
        key = make_key(name)
        slot = self.authority.clock.now_ms() // (grid_slots * 1000)
        unsigned = replace(
            self.authority.grant(key), start_slot=slot - 4, end_slot=slot + 1000, signature=""
        )
        credential = seal(unsigned, self.authority.key, self.authority.market)
        actor = await self.actor(key, {"address"})
        grant = dump(credential)
        event = await actor.submit({"op": "register-address", "grant": grant})
        assert event["codes"] == ["OK"], event
        return actor

    async def supervisor(self) -> Actor:
        """The aggregator's desk."""
        return await self.actor(SUPERVISOR, {"aggregator", "dso"})

    async def heights(self, least: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every running node has executed a height."""
        async with asyncio.timeout(timeout_s):
            while any(self.nodes[n].executed_height < least for n in self.tasks):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running_ledger(
    authority: Authority,
    port: int,
    folder: Path,
    node_ports: Mapping[int, int] | None = None,
    **rules: Any,
) -> AsyncIterator[RunningLedger]:
    """Four validators on the broker at `port`."""
    genesis = make_genesis(authority, **rules)
    chain = RunningLedger(authority, genesis, port, folder, node_ports or {})
    for number in range(len(VALIDATORS)):
        chain.start_node(number)
    try:
        for node in chain.nodes.values():
            await node.bus.wait_connected(PATIENCE_S)  # what is said before would reach nobody
        yield chain
    finally:
        for actor in chain.actors:
            await actor.client.stop()
            await actor.bus.stop()
        for number in list(chain.tasks):
            await chain.stop_node(number)
