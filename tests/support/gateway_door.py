"""
A gateway behind its real socket, without devices, for what is refused before any is asked.

    async with door(folder) as gateway:
        await gateway.ask("sign_receipt", {"address": …, "slot": 5})    # the error's code, or "OK"
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from support.brokers import make_key

from hem.config import MarketFacts, load_market_facts, load_provisioning
from hem.gateway.meterbook import MeterBook
from hem.gateway.server import RpcServer
from hem.gateway.service import Gateway
from hem.gateway.signer import Registers
from runtime.clock import SystemClock
from runtime.store import MemoryStore
from wire.keys import BoxKey, to_text

MAX_POWER_W = 10_000
_FILE = """
[home]
name = "home"
claim_code = "x"
data_dir = "data"
[broker]
port = 1
[market]
name = "test"
genesis = "genesis.json"
csmdb = "{id}"
csmdb_key = "{key}"
csmdb_box = "{key}"
[gateway]
socket = "gw.sock"
[[devices]]
name = "meter"
kind = "sunspec-meter"
port = 1
"""


class Door:
    """The socket, and the book behind it."""

    def __init__(self, socket: Path, book: MeterBook, facts: MarketFacts) -> None:
        self._socket, self.book, self.grid = socket, book, facts.grid

    def meter(self, first: int, last: int) -> None:
        """Readings of slots, each as it ended."""
        for slot in range(first, last + 1):
            self.book.sign_reading(slot, self.grid.end_ms(slot), Registers(slot, 0, 0))

    async def ask(self, method: str, params: dict[str, Any]) -> str:
        """The code of the answer."""
        return await self.send({"id": 1, "method": method, "params": params})

    async def send(self, said: dict[str, Any]) -> str:
        """As `ask`, of any request."""
        reader, writer = await asyncio.open_unix_connection(self._socket)
        writer.write(json.dumps(said).encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        return str(answer["error"]["code"]) if "error" in answer else "OK"


def write_files(folder: Path) -> Path:
    """A provisioning file and its genesis."""
    key = make_key("meter")
    text = to_text(key.public)
    (folder / "home.toml").write_text(_FILE.format(id=key.id, key=text))
    box = to_text(BoxKey(key.seed).public)
    genesis = {"chainId": "hg-test", "slotLengthS": 900, "dsoBoxKey": box}
    (folder / "genesis.json").write_text(json.dumps(genesis))
    return folder / "home.toml"


@asynccontextmanager
async def door(folder: Path, *, uid: int | None = None) -> AsyncIterator[Door]:
    """
    Open it.

    Args:
        uid: who may ask; by default we
    """
    key = make_key("meter")
    config = load_provisioning(write_files(folder))
    facts = load_market_facts(config.market.genesis)
    book = MeterBook(key, MemoryStore(), facts, MAX_POWER_W, 4)
    gateway = Gateway(config, book, SystemClock(), structlog.get_logger())
    server = RpcServer(
        config.gateway.socket,
        frozenset({os.getuid() if uid is None else uid}),
        gateway.dispatch,
        lambda _, error: (_ for _ in ()).throw(error),
    )
    await server.start()
    try:
        yield Door(config.gateway.socket, book, facts)
    finally:
        await server.stop()
        await gateway.close()
