"""
The market that is flooded: a broker with its quotas and four validators, each a process of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.brokers import HOST
from bench.cluster import EMBEDDED, Cluster
from bench.workload import FUNDS_UC, MARKET, Market
from ledger.client import LedgerClient
from ledger.genesis import Genesis
from runtime.bus import lane
from runtime.clock import SystemClock
from runtime.ports import Clock
from runtime.rng import SystemRng
from sim.sender import Sender
from sim.stage import GRANT_SLOTS, HOME_SLOTS, LIMIT_WH, Issuer
from wire.certificates import Signed, dump
from wire.keys import SigningKey

READY_S = 300.0
SUPERVISOR = "supervisor"


@dataclass(slots=True)
class FloodMarket:
    """A running market and who is in it."""

    cluster: Cluster
    clock: Clock
    issuer: Issuer
    genesis: Genesis
    senders: dict[str, Sender] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Of the broker."""
        return self.cluster.broker.port

    @property
    def slot0(self) -> int:
        """The first slot that can be traded."""
        now_ms = self.clock.now_ms()
        slot = int(self.genesis.grid.slot_at(now_ms))
        while self.genesis.gate_ms(slot) <= now_ms + 60_000:
            slot += 1
        return slot

    async def home(self, name: str) -> Sender:
        """A home whose address is registered, and has money and energy to trade."""
        key = self.issuer.key.derive(f"home {name}")
        now = self.genesis.grid.slot_at(self.clock.now_ms())
        grant = self.issuer.grant(key, now, now + GRANT_SLOTS, LIMIT_WH, LIMIT_WH)
        home = await self.join(name, key, grant)
        await self._final(home, [{"op": "register-address", "grant": dump(grant)}])
        held = [
            {
                "op": "add-energy-asset", "address": key.id, "kind": kind, "energyWh": LIMIT_WH,
                "startSlot": now, "endSlot": now + HOME_SLOTS,
            }
            for kind in ("production", "consumption")
        ]  # fmt: skip
        money = {"op": "add-financial-balance", "address": key.id, "amountUc": FUNDS_UC}
        await self._final(self.senders[SUPERVISOR], [*held, money])
        return home

    async def join(self, name: str, key: SigningKey, credential: Signed) -> Sender:
        """Somebody with a lane."""
        bus = lane(
            key, MARKET, credential, HOST, self.port, self.clock, SystemRng()
        )  # fmt: skip
        client = LedgerClient(bus, self.genesis, self.clock, key.id, from_start=False)
        self.senders[name] = sender = Sender(key, bus, client, self.genesis, self.clock)
        await sender.start(READY_S)
        return sender

    def check(self) -> None:
        """Raise `ProcessDiedError` when a process of the market has ended."""
        self.cluster.processes.check()

    async def _final(self, sender: Sender, operations: list[dict[str, Any]]) -> None:
        async with asyncio.timeout(READY_S):
            _, event = await (await sender.send(*operations))
        assert set(event["codes"]) == {"OK"}, event


@asynccontextmanager
async def flood_market(folder: Path) -> AsyncIterator[FloodMarket]:
    """Set such a market up in a folder, and take it down again."""
    clock = SystemClock()
    keys = Market(clock.now_ms())
    genesis = keys.genesis()
    cluster = Cluster(folder, keys, genesis, EMBEDDED, quotas=True)
    market = FloodMarket(cluster, clock, Issuer(keys.issuing, MARKET, clock), genesis)
    try:
        cluster.start_validators()
        watch = cluster.watch()
        await watch.start()
        await watch.until_ready(READY_S)
        await watch.stop()
        certificate = cluster.certificate(keys.supervisor, "aggregator", "dso")
        await market.join(SUPERVISOR, keys.supervisor, certificate)
        yield market
    finally:
        for sender in market.senders.values():
            await sender.stop()
        await asyncio.to_thread(cluster.processes.stop)
