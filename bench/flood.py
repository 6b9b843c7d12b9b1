"""
How long the others wait while one home floods: from sending a bid to hearing that it is final.

    python -m bench.flood [--kinds bids,look-ups,…] [--addresses 16] [--seconds 15] [--json]

A broker with its quotas and four validators, each a process, and the flooder another: it has a
valid grant for each of its addresses (`csmdb.requests.MAX_AT_WORK` at a time) and sends as fast as
the broker takes it. Meanwhile another home sends bids. Exit code 1 when one of them took longer
than the bound (docs/concepts/limits.md).
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from bench.flood_lanes import AT_REST, CERTIFIED, KINDS, READY_S, Lane, Market, flood
from bench.flood_market import flood_market
from bench.report import progress
from broker.quota import ADDRESS, HOME, RESTING
from csmdb.requests import MAX_AT_WORK
from ledger.judging import BLOCK_BUDGET
from runtime.log import configure
from sim.sender import Sender
from wire import topics
from wire.certificates import dump_text

MESSAGE_S = 0.005
"""Work of broker and four validators on one message, all on two busy cores, generously."""
OPERATION_S = 0.002
"""The same, on one operation in a block, with what is said of it to everybody."""
BLOCKS = 3
"""The one that is executed, the one that is voted on, and ours."""
SMALL_BYTES = 100
RESTING_ADDRESSES = 64
PAUSE_S = 0.2


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


class Flooded(Market, Protocol):
    """A market in which homes come to be."""

    @property
    def port(self) -> int:
        """Of the broker."""
        ...

    async def home(self, name: str) -> Sender:
        """One that may trade."""
        ...

    def check(self) -> None:
        """Raise when it has broken."""
        ...


def bound_ms(kind: str, addresses: int, usual_ms: int, size_bytes: int) -> int:
    """
    The longest time from sending to final beside such a flood.

    What the flooder may say at once is before us, and while it is worked off more comes in, for
    which half of the machine is left at least; then come so many blocks, full of operations.

    Args:
        kind: one of `KINDS`
        addresses: of the flooder
        usual_ms: time without it [ms]
        size_bytes: of its messages

    Returns:
        The time [ms].
    """
    rates, lanes = (HOME, 1) if kind in CERTIFIED else (ADDRESS, addresses)
    if kind in AT_REST:
        rates, lanes = RESTING, 1
    burst = lanes * min(rates.messages_burst, rates.bytes_burst / size_bytes)
    load = lanes * min(rates.messages_per_s, rates.bytes_per_s / size_bytes) * MESSAGE_S
    blocks_s = BLOCKS * BLOCK_BUDGET.operations * OPERATION_S
    return round(usual_ms + 1000 * (burst * MESSAGE_S / (1 - min(0.5, load)) + blocks_s))


async def measure(
    market: Flooded, kind: str, addresses: int, seconds: float, pause_s: float = PAUSE_S
) -> Row:
    """
    One flood of a fresh market.

    Raises:
        TimeoutError: something that had to happen did not.
    """
    honest = await market.home("honest")
    number = 1 if kind in CERTIFIED else RESTING_ADDRESSES if kind in AT_REST else addresses
    lanes = await asyncio.gather(*(_lane(market, kind, n) for n in range(number)))
    usual = await _bids_for(market, honest, 0.0, pause_s)
    spawn = multiprocessing.get_context("spawn")
    go, taken = spawn.Event(), spawn.Value("q", 0, lock=False)
    arguments = (kind, market.genesis.market, market.port, lanes, go, taken)
    flooder = spawn.Process(target=flood, args=arguments, daemon=True)
    flooder.start()
    try:
        async with asyncio.timeout(READY_S):
            while not go.is_set():
                await asyncio.sleep(0.01)
        found = await _bids_for(market, honest, seconds, pause_s)
    finally:
        flooder.kill()
        flooder.join()
    usual_ms = max(usual)
    found.sort()
    messages = lanes[0].messages
    size_bytes = len(messages[0][1]) if messages else SMALL_BYTES
    return Row(
        kind, len(found), usual_ms, found[len(found) // 2], found[-1],
        bound_ms(kind, addresses, usual_ms, size_bytes), taken.value,
    )  # fmt: skip


async def _lane(market: Flooded, kind: str, number: int) -> Lane:
    issuer = market.issuer
    if kind in CERTIFIED:
        key = issuer.key.derive("flooder")
        certificate = issuer.certificate(key, {"prosumer"})
        topic = topics.build(market.genesis.market, topics.DSO_REQ, key.id)
        return Lane(key.seed, dump_text(certificate), True, [(topic, os.urandom(600), False)])
    now = market.genesis.grid.slot_at(market.clock.now_ms())
    if kind in AT_REST:
        key = issuer.key.derive(f"at rest {number}")
        grant = issuer.grant(key, now + 300, now + 300, 10, 10)
        topic = topics.build(market.genesis.market, topics.SYNC_REQ, key.id)
        return Lane(key.seed, dump_text(grant), False, [(topic, os.urandom(200), False)])
    home = await market.home(f"flooder {number}")
    await home.stop()  # another process goes on under its name
    grant = issuer.grant(home.key, now, now + 100, 10_000, 10_000)
    return Lane(home.key.seed, dump_text(grant), False, KINDS[kind](market, home))


async def _bids_for(market: Flooded, honest: Sender, seconds: float, pause_s: float) -> list[int]:
    """Times of bids that follow each other, at least three [ms]."""
    found: list[int] = []
    end_s = time.monotonic() + seconds
    bid: dict[str, Any] = {
        "op": "bid-offer", "side": "buy", "slot": market.slot0 + 1, "energyWh": 1,
        "priceUcPerKwh": 100_000,
    }  # fmt: skip
    while len(found) < 3 or time.monotonic() < end_s:
        market.check()
        began_s = time.monotonic()
        async with asyncio.timeout(READY_S):
            await (await honest.send(bid))
        found.append(round((time.monotonic() - began_s) * 1000))
        await asyncio.sleep(pause_s)
    return found


async def measure_apart(kind: str, folder: Path, addresses: int, seconds: float) -> Row:
    """One flood of a market of processes that is set up for it."""
    async with flood_market(folder) as market:
        return await measure(market, kind, addresses, seconds)


def measure_all(
    kinds: Iterable[str], addresses: int, seconds: float, *, quiet: bool = True
) -> list[Row]:
    """Each kind in turn."""
    rows = []
    with progress(quiet) as tell:
        for kind in kinds:
            tell(kind)
            with tempfile.TemporaryDirectory(prefix="hearthgrid-flood-") as folder:
                rows.append(asyncio.run(measure_apart(kind, Path(folder), addresses, seconds)))
    return rows


def main(
    kinds: Annotated[str, typer.Option(help="Comma-separated; all of them if left out.")] = "",
    addresses: Annotated[int, typer.Option(help="Of the home that floods.", min=1)] = MAX_AT_WORK,
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
