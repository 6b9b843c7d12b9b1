"""Somebody with an address who sends transactions and hears what became of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ledger.client import LedgerClient
from ledger.genesis import Genesis
from runtime.bus import MqttBus
from runtime.ports import Clock
from runtime.rng import SystemRng
from wire import topics
from wire.envelope import new_req_id
from wire.keys import SigningKey
from wire.transactions import make_transaction

EXPIRY_SLOTS = 4
Fate = tuple[int, dict[str, Any]]
"""Height and `tx` event of a transaction."""


@dataclass(slots=True, eq=False)
class Sender:
    """
    A lane, the ledger as it is seen over it, and the nonce.

    What is told comes from finalised events that f + 1 validators stated alike.
    """

    key: SigningKey
    bus: MqttBus
    client: LedgerClient
    genesis: Genesis
    clock: Clock
    nonce: int = 0
    fates: dict[str, asyncio.Future[Fate]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The address."""
        return self.key.id

    async def start(self, connect_s: float) -> None:
        """
        Connect.

        Raises:
            TimeoutError: not within `connect_s` seconds.
        """
        self.client.on_event(self.take)
        await self.client.start()
        await self.bus.start()
        await self.bus.wait_connected(connect_s)

    async def stop(self) -> None:
        """Disconnect."""
        await self.client.stop()
        await self.bus.stop()

    async def take(self, height: int, event: dict[str, Any]) -> None:
        """Tell who waits for a transaction."""
        if event["event"] == "tx":
            future = self.fates.pop(event["txid"], None)
            if future is not None and not future.done():
                future.set_result((height, event))

    async def send(self, *operations: dict[str, Any]) -> asyncio.Future[Fate]:
        """Publish one transaction; its fate comes once it is final."""
        now_ms = self.clock.now_ms()
        tx = make_transaction(
            self.key, self.genesis.chain_id, self.nonce,
            self.genesis.grid.slot_at(now_ms) + EXPIRY_SLOTS, list(operations),
            new_req_id(self.clock.wall_ms(), SystemRng().bytes(10)), now_ms,
        )  # fmt: skip
        self.nonce += 1
        future = self.fates[tx.txid.hex()] = asyncio.get_running_loop().create_future()
        await self.bus.publish(topics.build(self.genesis.market, topics.TX, self.id), tx.raw)
        return future
