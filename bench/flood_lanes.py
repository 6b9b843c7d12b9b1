"""
What a flooding home sends, and the process that sends it.

Each kind is made beforehand, so that sending costs the flooder little. A lane keeps a few messages
under way: the broker never has to wait for it, and it does not lose its own connection, in which
case it would flood less.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.synchronize import Event
from typing import Any, Protocol

from ledger.genesis import Genesis
from runtime.bus import lane
from runtime.clock import SystemClock
from runtime.ports import Clock
from runtime.rng import SystemRng
from sim.sender import Sender
from sim.stage import Issuer
from wire import topics
from wire.canonical import encode
from wire.certificates import AddressGrant, Certificate, dump, make_token, parse
from wire.envelope import new_req_id
from wire.keys import SigningKey, to_text
from wire.transactions import make_transaction

OPERATIONS = 64
LARGE_BYTES = 60_000
TRANSACTIONS = 200
ORDERS_PER_SLOT, SLOTS = 8, 80
PIPELINE = 4
READY_S = 300.0
AGAIN_S = 0.05
Message = tuple[str, bytes, bool]
"""Topic, payload, retained."""


class Market(Protocol):
    """What is flooded."""

    genesis: Genesis
    clock: Clock
    issuer: Issuer

    @property
    def slot0(self) -> int:
        """The first slot that can be traded."""
        ...


def _transactions(
    s: Market, actor: Sender, operations: Callable[[int], list[dict[str, Any]]]
) -> list[Message]:
    now_ms = s.clock.now_ms()
    expires = s.genesis.grid.slot_at(now_ms) + 4
    topic = topics.build(s.genesis.market, topics.TX, actor.id)
    made = (
        make_transaction(
            actor.key, s.genesis.chain_id, actor.nonce + number, expires, operations(number),
            new_req_id(now_ms, SystemRng().bytes(10)), now_ms,
        )
        for number in range(TRANSACTIONS)
    )  # fmt: skip
    return [(topic, tx.raw, False) for tx in made]


def _bid(s: Market, number: int) -> dict[str, Any]:
    """One that is taken: eight for each slot."""
    slot = s.slot0 + 1 + number // ORDERS_PER_SLOT % SLOTS
    return {
        "op": "bid-offer", "side": "buy", "slot": slot, "energyWh": 1, "priceUcPerKwh": 100_000,
    }  # fmt: skip


def _bids(s: Market, a: Sender) -> list[Message]:
    return _transactions(s, a, lambda n: [_bid(s, n)])


def _bundles(s: Market, a: Sender) -> list[Message]:
    return _transactions(s, a, lambda n: [_bid(s, n * OPERATIONS + i) for i in range(OPERATIONS)])


def _refused_bundles(s: Market, a: Sender) -> list[Message]:
    return _transactions(s, a, lambda _: [_bid(s, 0) | {"energyWh": 0}] * OPERATIONS)


def _large(s: Market, a: Sender) -> list[Message]:
    return _transactions(s, a, lambda _: [{"op": "bid-offer", "pad": "x" * LARGE_BYTES}])


def _offers(s: Market, a: Sender) -> list[Message]:
    offer = {"op": "post-offer", "kind": "production", "energyWh": 1, "startSlot": s.slot0 + 1,
             "endSlot": s.slot0 + 1, "priceUcPerKwh": 1}  # fmt: skip
    return _transactions(s, a, lambda _: [offer])


def _commitments(s: Market, a: Sender) -> list[Message]:
    said = {"op": "commit-bid", "slot": s.slot0 + 1, "commitment": to_text(bytes(32))}
    return _transactions(s, a, lambda _: [said])


def _reveals(s: Market, a: Sender) -> list[Message]:
    said = {"op": "reveal-bid", "slot": s.slot0 + 1, "side": "buy", "energyWh": 1,
            "priceUcPerKwh": 1, "salt": to_text(bytes(32))}  # fmt: skip
    return _transactions(s, a, lambda _: [said])


def _registrations(s: Market, a: Sender) -> list[Message]:
    now = s.genesis.grid.slot_at(s.clock.now_ms())
    grant = s.issuer.grant(a.key, now, now + 100, 10, 10)
    return _transactions(s, a, lambda _: [{"op": "register-address", "grant": dump(grant)}])


def _questions(kind: str, key: str) -> Callable[[Market, Sender], list[Message]]:
    def make(s: Market, a: Sender) -> list[Message]:
        topic = topics.build(s.genesis.market, topics.SYNC_REQ, a.id)
        return [
            (topic, encode({"reqId": f"q{n}", "kind": kind, "key": key or a.id}), False)
            for n in range(TRANSACTIONS)
        ]

    return make


def _on(
    kind: str, size: int, *, retained: bool = False
) -> Callable[[Market, Sender], list[Message]]:
    def make(s: Market, a: Sender) -> list[Message]:
        return [(topics.build(s.genesis.market, kind, a.id), os.urandom(size), retained)]

    return make


KINDS: dict[str, Callable[[Market, Sender], list[Message]]] = {
    "bids": _bids,
    "bundles of 64 bids": _bundles,
    "bundles that are refused": _refused_bundles,
    "transactions of 60 kB": _large,
    "offers": _offers,
    "commitments": _commitments,
    "reveals": _reveals,
    "registrations": _registrations,
    "rubbish": _on(topics.TX, 200),
    "look-ups": _questions("account", ""),
    "sync requests": _questions("blocks", "0"),
    "requests for grants": _on(topics.CSMDB_REQ, 600),
    "requests to the DSO": _on(topics.DSO_REQ, 600),
    "votes": _on(topics.CONSENSUS_VOTE, 200),
    "large retained messages": _on(topics.TX, LARGE_BYTES, retained=True),
    "connects": lambda _s, _a: [],
    "subscriptions": lambda _s, _a: [],
    "slow readers": lambda _s, _a: [],
    "addresses at rest": lambda _s, _a: [],
}
CERTIFIED = {"requests to the DSO"}
"""Sent from a home's own lane, of which it has one."""
AT_REST = {"addresses at rest"}
"""Sent from many addresses whose slots are far."""
RAW = {"connects", "subscriptions", "slow readers"}


# --- The flooder, a process of its own ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane:
    """One identity of the flooder, as it is handed to its process."""

    seed: bytes
    credential: str
    certified: bool
    messages: list[Message]


def flood(kind: str, market: str, port: int, lanes: list[Lane], go: Event, taken: Any) -> None:
    """Send from all lanes until killed; `go` is set once connected, `taken` counts messages."""
    work = _flood_raw if kind in RAW else _flood_lanes
    with suppress(KeyboardInterrupt):
        asyncio.run(work(kind, market, port, lanes, go, taken))


async def _flood_lanes(
    _kind: str, market: str, port: int, lanes: list[Lane], go: Event, taken: Any
) -> None:
    async def one(each: Lane) -> None:
        credential = parse(Certificate if each.certified else AddressGrant, each.credential)
        key = SigningKey(each.seed)
        bus = lane(key, market, credential, "127.0.0.1", port, SystemClock(), SystemRng())
        await bus.start()
        await bus.wait_connected(READY_S)
        go.set()
        endless = cycle(each.messages)

        async def say() -> None:
            for topic, payload, retained in endless:
                try:
                    await bus.publish(topic, payload, retain=retained)
                except ConnectionError:
                    await asyncio.sleep(AGAIN_S)
                else:
                    taken.value += 1

        await asyncio.gather(*(say() for _ in range(PIPELINE)))

    await asyncio.gather(*(one(each) for each in lanes))


async def _flood_raw(
    kind: str, market: str, port: int, lanes: list[Lane], go: Event, taken: Any
) -> None:
    """Connections that do nothing right, as fast as they are let."""

    async def one(each: Lane) -> None:
        key, credential = SigningKey(each.seed), parse(AddressGrant, each.credential)
        # what comes to a slow reader is not read; the others' answers are all that is sent to them
        wanted = topics.build(market, topics.TX, "+" if kind == "slow readers" else key.id)
        number = 0
        while True:
            token = make_token(
                key, market, SystemClock().wall_ms(), os.urandom(8).hex(), credential
            )
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(AGAIN_S)
                continue
            writer.write(_connect(key.id, token))
            with suppress(OSError, asyncio.IncompleteReadError):
                while (await reader.readexactly(4))[3] == 0:
                    go.set()
                    taken.value += 1
                    if kind == "connects":
                        break
                    while True:
                        number = number % 60_000 + 1
                        writer.write(_subscribe(number, wanted))
                        if kind == "slow readers":
                            await asyncio.sleep(3_600)
                        await reader.readexactly(5)
                        taken.value += 1
                        if writer.is_closing():
                            break
            writer.close()

    await asyncio.gather(*(one(each) for each in lanes))


def _text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def _packet(first: int, body: bytes) -> bytes:
    length, head = len(body), bytearray((first,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + body


def _connect(name: str, token: str) -> bytes:
    body = _text("MQTT") + b"\x04\xc2\x00\x3c" + _text(name) + _text(name) + _text(token)
    return _packet(0x10, body)


def _subscribe(number: int, topic_filter: str) -> bytes:
    return _packet(0x82, number.to_bytes(2, "big") + _text(topic_filter) + b"\x01")
