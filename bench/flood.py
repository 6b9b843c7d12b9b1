"""
How long the others wait while one home floods: from sending a bid to hearing that it is final.

    python -m bench.flood [--kinds bids,look-ups,…] [--addresses 32] [--seconds 15] [--json]

A broker with its quotas and four validators in this process; the flooder is another process with a
valid grant for each of its addresses (a home may have 32) and sends as fast as the broker takes it.
Meanwhile another home sends bids. Exit code 1 when one of them took longer than the bound.

The bound (docs/concepts/limits.md): what the flooder may say at once and until the bid is final, at
`MESSAGE_S` of work for each message and `OPERATION_S` for each operation, on top of the time
without it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.report import progress
from broker.quota import ADDRESS, HOME
from runtime.bus import lane
from runtime.clock import SystemClock
from runtime.log import configure
from runtime.rng import SystemRng
from sim.stage import Actor, Stage, stage
from wire import topics
from wire.canonical import encode
from wire.certificates import AddressGrant, Certificate, dump, dump_text, make_token, parse
from wire.envelope import new_req_id
from wire.keys import SigningKey, to_text
from wire.transactions import make_transaction

MESSAGE_S = 0.005
"""Work of broker and four validators on one message, all on two busy cores, generously."""
OPERATION_S = 0.002
"""The same, on one operation of a transaction, with what is said of it to everybody."""
OPERATIONS = 64
LARGE_BYTES = 60_000
SMALL_BYTES = 100
TRANSACTIONS = 200
READY_S = 300.0
PAUSE_S = 0.2
Message = tuple[str, bytes, bool]
"""Topic, payload, retained."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of flood; times in milliseconds."""

    kind: str
    bids: int
    usual_ms: int
    """Longest without the flood."""
    median_ms: int
    longest_ms: int
    bound_ms: int
    taken: int
    """Messages of the flooder that the broker took."""

    @property
    def within(self) -> bool:
        """True when nobody waited longer than the bound."""
        return self.longest_ms <= self.bound_ms


# --- What is sent ---------------------------------------------------------------------------------


def _transactions(s: Stage, actor: Actor, operations: list[dict[str, Any]]) -> list[Message]:
    now_ms = s.clock.now_ms()
    expires = s.genesis.grid.slot_at(now_ms) + 4
    topic = topics.build(s.genesis.market, topics.TX, actor.id)
    made = (
        make_transaction(
            actor.key, s.genesis.chain_id, actor.nonce + number, expires, operations,
            new_req_id(now_ms, SystemRng().bytes(10)), now_ms,
        )
        for number in range(TRANSACTIONS)
    )  # fmt: skip
    return [(topic, tx.raw, False) for tx in made]


def _bid(s: Stage) -> dict[str, Any]:
    return {
        "op": "bid-offer", "side": "buy", "slot": s.slot0 + 1, "energyWh": 1,
        "priceUcPerKwh": 100_000,
    }  # fmt: skip


def _bids(s: Stage, a: Actor) -> list[Message]:
    return _transactions(s, a, [_bid(s)])


def _bundles(s: Stage, a: Actor) -> list[Message]:
    return _transactions(s, a, [_bid(s)] * OPERATIONS)


def _large(s: Stage, a: Actor) -> list[Message]:
    return _transactions(s, a, [{"op": "bid-offer", "pad": "x" * LARGE_BYTES}])


def _offers(s: Stage, a: Actor) -> list[Message]:
    offer = {"op": "post-offer", "kind": "production", "energyWh": 1, "startSlot": s.slot0 + 1,
             "endSlot": s.slot0 + 1, "priceUcPerKwh": 1}  # fmt: skip
    return _transactions(s, a, [offer])


def _commitments(s: Stage, a: Actor) -> list[Message]:
    said = {"op": "commit-bid", "slot": s.slot0 + 1, "commitment": to_text(bytes(32))}
    return _transactions(s, a, [said])


def _reveals(s: Stage, a: Actor) -> list[Message]:
    said = {"op": "reveal-bid", "slot": s.slot0 + 1, "side": "buy", "energyWh": 1,
            "priceUcPerKwh": 1, "salt": to_text(bytes(32))}  # fmt: skip
    return _transactions(s, a, [said])


def _registrations(s: Stage, a: Actor) -> list[Message]:
    now = s.genesis.grid.slot_at(s.clock.now_ms())
    grant = s.issuer.grant(a.key, now, now + 100, 10, 10)
    return _transactions(s, a, [{"op": "register-address", "grant": dump(grant)}])


def _questions(kind: str, key: str) -> Callable[[Stage, Actor], list[Message]]:
    def make(s: Stage, a: Actor) -> list[Message]:
        topic = topics.build(s.genesis.market, topics.SYNC_REQ, a.id)
        return [
            (topic, encode({"reqId": f"q{n}", "kind": kind, "key": key or a.id}), False)
            for n in range(TRANSACTIONS)
        ]

    return make


def _on(kind: str, size: int, *, retained: bool = False) -> Callable[[Stage, Actor], list[Message]]:
    def make(s: Stage, a: Actor) -> list[Message]:
        return [(topics.build(s.genesis.market, kind, a.id), os.urandom(size), retained)]

    return make


KINDS: dict[str, Callable[[Stage, Actor], list[Message]]] = {
    "bids": _bids,
    "bundles of 64 bids": _bundles,
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
}
CERTIFIED = {"requests to the DSO"}
"""Sent from a home's own lane, of which it has one."""
BUNDLES = {"bundles of 64 bids"}
RAW = {"connects", "subscriptions", "slow readers"}


# --- The flooder, a process of its own ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane:
    """One identity of the flooder, as it is handed to its process."""

    seed: bytes
    credential: str
    certified: bool
    messages: list[Message]


def _flood(kind: str, market: str, port: int, lanes: list[Lane], go: Event, taken: Any) -> None:
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
                with suppress(ConnectionError):
                    await bus.publish(topic, payload, retain=retained)
                    taken.value += 1

        await asyncio.gather(*(say() for _ in range(64)))

    await asyncio.gather(*(one(each) for each in lanes))


async def _flood_raw(
    kind: str, market: str, port: int, lanes: list[Lane], go: Event, taken: Any
) -> None:
    """Connections that do nothing right, as fast as they are let."""

    async def one(each: Lane) -> None:
        key, credential = SigningKey(each.seed), parse(AddressGrant, each.credential)
        everything = topics.build(market, topics.TX, "+")
        number = 0
        while True:
            token = make_token(
                key, market, SystemClock().wall_ms(), os.urandom(8).hex(), credential
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_connect(key.id, token))
            with suppress(OSError, asyncio.IncompleteReadError):
                while (await reader.readexactly(4))[3] == 0:
                    go.set()
                    taken.value += 1
                    if kind == "connects":
                        break
                    while True:
                        number = number % 60_000 + 1
                        writer.write(_subscribe(number, everything))
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


# --- Measuring ------------------------------------------------------------------------------------


def bound_ms(kind: str, addresses: int, usual_ms: int, size: int) -> int:
    """The longest time from sending to final beside such a flood, of messages of a size [ms]."""
    rates = HOME if kind in CERTIFIED else ADDRESS
    lanes = 1 if kind in CERTIFIED else addresses
    work_s = MESSAGE_S + OPERATION_S * (OPERATIONS if kind in BUNDLES else 1)
    burst = lanes * min(rates.messages_burst, rates.bytes_burst / size)
    load = lanes * min(rates.messages_per_s, rates.bytes_per_s / size) * work_s
    # while the burst is worked off more comes in, for which half of the machine is left
    return round(usual_ms + 1000 * burst * work_s / (1 - min(0.5, load)))


async def measure(kind: str, folder: Path, addresses: int, seconds: float) -> Row:
    """
    One flood on a market of its own.

    Raises:
        StageError: something that had to happen did not within a minute.
    """
    async with stage(folder) as s:
        honest = await s.home("honest")
        lanes = [await _lane(s, kind, n) for n in range(1 if kind in CERTIFIED else addresses)]
        usual = await _bids_for(s, honest, 1.0)
        spawn = multiprocessing.get_context("spawn")
        go, taken = spawn.Event(), spawn.Value("q", 0, lock=False)
        arguments = (kind, s.genesis.market, s.broker.port, lanes, go, taken)
        flooder = spawn.Process(target=_flood, args=arguments, daemon=True)
        flooder.start()
        try:
            await s.until(go.is_set, "the flooder did not connect")
            found = await _bids_for(s, honest, seconds)
        finally:
            flooder.kill()
            flooder.join()
    usual_ms = max(usual)
    found.sort()
    return Row(
        kind, len(found), usual_ms, found[len(found) // 2], found[-1],
        bound_ms(kind, addresses, usual_ms, _size_of(lanes[0].messages)), taken.value,
    )  # fmt: skip


def _size_of(messages: list[Message]) -> int:
    return len(messages[0][1]) if messages else SMALL_BYTES


async def _lane(s: Stage, kind: str, number: int) -> Lane:
    if kind in CERTIFIED:
        key = s.issuer.key.derive("flooder")
        certificate = s.issuer.certificate(key, {"prosumer"})
        topic = topics.build(s.genesis.market, topics.DSO_REQ, key.id)
        return Lane(key.seed, dump_text(certificate), True, [(topic, os.urandom(600), False)])
    actor = await s.home(f"flooder {number}")
    await actor.stop()  # another process goes on under its name
    now = s.genesis.grid.slot_at(s.clock.now_ms())
    grant = s.issuer.grant(actor.key, now, now + 100, 10_000, 10_000)
    return Lane(actor.key.seed, dump_text(grant), False, KINDS[kind](s, actor))


async def _bids_for(s: Stage, honest: Actor, seconds: float) -> list[int]:
    """Times of bids that follow each other, at least three [ms]."""
    found: list[int] = []
    end_s = time.monotonic() + seconds
    while len(found) < 3 or time.monotonic() < end_s:
        began_s = time.monotonic()
        async with asyncio.timeout(READY_S):
            await (await honest.send(_bid(s)))
        found.append(round((time.monotonic() - began_s) * 1000))
        await asyncio.sleep(PAUSE_S)
    return found


def measure_all(
    kinds: Iterable[str], addresses: int, seconds: float, *, quiet: bool = True
) -> list[Row]:
    """Each kind in turn."""
    rows = []
    with progress(quiet) as tell:
        for kind in kinds:
            tell(kind)
            with tempfile.TemporaryDirectory(prefix="hearthgrid-flood-") as folder:
                rows.append(asyncio.run(measure(kind, Path(folder), addresses, seconds)))
    return rows


def main(
    kinds: Annotated[str, typer.Option(help="Comma-separated; all of them if left out.")] = "",
    addresses: Annotated[int, typer.Option(help="Of the home that floods.", min=1)] = 32,
    seconds: Annotated[float, typer.Option(help="Of each flood.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Flood a market in every way, and see how long the others wait."""
    wanted = kinds.split(",") if kinds else list(KINDS)
    unknown = set(wanted) - KINDS.keys()
    if unknown:
        sys.stderr.write(f"flood: no kind {sorted(unknown)[0]!r}; there are {', '.join(KINDS)}\n")
        raise typer.Exit(2)
    configure("flood", "critical")
    rows = measure_all(wanted, addresses, seconds, quiet=as_json)
    if as_json:
        print(json.dumps({"addresses": addresses, "floods": [asdict(row) for row in rows]}))
    else:
        print(f"{'flood':<24} {'usual':>7} {'median':>7} {'longest':>8} {'bound':>7}   taken")
        for row in rows:
            print(
                f"{row.kind:<24} {row.usual_ms:>7} {row.median_ms:>7} {row.longest_ms:>8}"
                f" {row.bound_ms:>7} {row.taken:>7}" + ("" if row.within else "   TOO LONG")
            )
    if not all(row.within for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
