"""
ETSE's scenario with its security layer: an advisory names n3's meter while its offer stands.

    n1 asks for 12 Ah, n3 and n5 offer    |  a CSAF file appears in the CSM-DB's folder
    the CSM-DB bans n3, signs revocations |  the DSO forwards them  |  n3's offer is taken out
    the auction clears: n5, the runner-up, wins
    n3's meter gets a fixed firmware -> let in, offers again, wins;  there is none -> n5 wins again

Everything that the machines say to each other goes through the broker: the DSO asks the CSM-DB for
revocations as the aggregator does (`aggregator.revocations`), validators execute them. By hand is
only what the CSM-DB is told of n3's new firmware.

The document is our own, or any CSAF file: n3's meter is then the first product that it names, in a
version that it names.

Source: Lombardi et al. (2018), "Illustrative scenario" and security layer.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aggregator.core import KeyedOperation
from aggregator.revocations import Revocations
from csmdb.advisories import set_make
from csmdb.advisory_watch import AdvisoryWatch
from csmdb.csaf import Advisory, read_advisory
from csmdb.records import Refused
from csmdb.service import CsmDbService
from csmdb.versions import Range
from runtime.bus import lane
from runtime.csmdb_client import CsmDbClient
from runtime.rng import SystemRng
from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.delivery import deliver, settle
from sim.scenarios.etse import (
    CAP,
    N3_ASKS,
    N5_ASKS,
    PAPER,
    VOLTS,
    Desk,
    Node,
    pounds,
    wanted_ah,
)
from sim.stage import CONNECT_S, Actor, Stage
from wire.keys import BoxKey

NAME = "vulnerable-meter"
LOOK_S = 1.0
"""How often the CSM-DB looks into its folder here [s]."""


@dataclass(frozen=True, slots=True)
class Make:
    """A meter that an advisory names."""

    vendor: str
    model: str
    vulnerable: str
    fixed: str
    """A version that the advisory does not name; empty: there is none."""


def made_up() -> bytes:
    """A small CSAF 2.0 document of our own: firmware below 1.1 of a meter is vulnerable."""
    released = "2026-01-05T00:00:00Z"
    named = {"product_id": "P1", "name": "Made up M1 < 1.1"}
    fixed = {"product_id": "P2", "name": "Made up M1 1.1"}
    versions = [
        {"category": "product_version_range", "name": "vers:generic/<1.1", "product": named},
        {"category": "product_version", "name": "1.1", "product": fixed},
    ]
    model = {"category": "product_name", "name": "M1", "branches": versions}
    return json.dumps(
        {
            "document": {
                "category": "csaf_security_advisory",
                "csaf_version": "2.0",
                "title": "Readings can be forged over the local port",
                "publisher": {
                    "category": "vendor", "name": "Made up", "namespace": "https://made-up.example",
                },
                "tracking": {
                    "id": "MADE-UP-2026-01", "version": "1", "status": "final",
                    "initial_release_date": released, "current_release_date": released,
                    "revision_history": [{"date": released, "number": "1", "summary": "first"}],
                },
            },
            "product_tree": {
                "branches": [{"category": "vendor", "name": "Made up", "branches": [model]}]
            },
            "vulnerabilities": [
                {
                    "title": "No authentication",
                    "product_status": {"known_affected": ["P1"], "fixed": ["P2"]},
                    "remediations": [
                        {"category": "vendor_fix", "details": "1.1", "product_ids": ["P1"]}
                    ],
                }
            ],
        }
    ).encode()  # fmt: skip


@scenario(
    NAME,
    paper=PAPER,
    claim="An advisory names n3's meter: banned within a slot, n5 wins; updated, n3 trades again.",
)
async def vulnerable_meter(stage: Stage, tell: Tell) -> Outcome:
    """With our own document, and an update."""
    return await play(stage, tell, raw=made_up(), can_update=True)


async def play(stage: Stage, tell: Tell, *, raw: bytes, can_update: bool) -> Outcome:
    """
    The scenario with any document.

    Args:
        raw: a CSAF document that names a product
        can_update: False: n3's meter stays as it is, whatever the document says
    """
    advisory = read_advisory(raw)
    make = choose(advisory)
    can_update = can_update and bool(make.fixed)
    tell(f"{advisory.id} {advisory.version_text}: {advisory.publisher}, {advisory.title}")
    tell(f"n3's meter: {make.vendor} {make.model}, firmware {make.vulnerable}")
    desk = Desk(stage, stage.folder / "csmdb")
    try:
        async with _Site.running(stage, desk) as site:
            cast = await _cast(stage, desk, make)
            return await _Play(stage, tell, desk, site, cast, make).run(raw, advisory, can_update)
    finally:
        desk.csmdb.close()


def choose(advisory: Advisory) -> Make:
    """The first product of an advisory whose version can be told, vulnerable and, maybe, fixed."""
    for weakness in advisory.vulnerabilities:
        for product in weakness.affected:
            bounds = _versions_in(product.versions)
            named = [text for one in weakness.fixed for text in _versions_in(one.versions)]
            tried = [*named, *bounds, "999.0"]
            bad = next((one for one in (*bounds, "0.1") if product.versions.holds(one)), None)
            good = next((one for one in tried if product.versions.holds(one) is False), "")
            if bad is not None:
                return Make(product.vendor, product.models[0], bad, good)
    raise ValueError(f"{advisory.id} names no product as affected")


def _versions_in(named: Range) -> list[str]:
    return re.findall(r"[A-Za-z]?[0-9][\w.]*(?: [\w.]+)*", named.text)


class _Site:
    """The CSM-DB on the broker, and the DSO's line to it."""

    def __init__(self, stage: Stage, desk: Desk) -> None:
        self._stage, self._csmdb = stage, desk.csmdb
        self.folder = stage.folder / "advisories"
        self.folder.mkdir()
        self._sent: set[asyncio.Task[dict[str, Any]]] = set()

    @classmethod
    @asynccontextmanager
    async def running(cls, stage: Stage, desk: Desk) -> AsyncIterator[_Site]:
        """At work while the block runs."""
        site, csmdb, supervisor = cls(stage, desk), desk.csmdb, stage.supervisor
        bus = lane(
            csmdb.issuing_key, csmdb.market, stage.issuer.certificate(csmdb.issuing_key, {"csmdb"}),
            "127.0.0.1", stage.broker.port, stage.clock, SystemRng(),
        )  # fmt: skip
        csmdb.issue_service_certificate(supervisor.key.public, ["aggregator", "dso"], "dso")
        CsmDbService.on(csmdb, bus).start()
        await bus.start()
        await bus.wait_connected(CONNECT_S)
        client = CsmDbClient(
            supervisor.bus, supervisor.key, BoxKey(supervisor.key.derive("box").seed),
            csmdb.market, csmdb.issuing_key.public, csmdb.box.public, stage.clock, SystemRng(),
        )  # fmt: skip
        forwarding = asyncio.create_task(Revocations(supervisor.bus, client, site).run())
        try:
            async with AdvisoryWatch(csmdb, site.folder, LOOK_S).running():
                yield site
        finally:
            forwarding.cancel()
            await asyncio.gather(forwarding, *site._sent, return_exceptions=True)
            await bus.stop()

    def add(self, operations: list[KeyedOperation]) -> None:
        """Submit as the DSO; stands in for the aggregator's outbox."""
        submitted = self._stage.supervisor.submit(*(operation for _, operation in operations))
        task = asyncio.create_task(submitted)
        self._sent.add(task)
        task.add_done_callback(self._sent.discard)


@dataclass(frozen=True, slots=True)
class _Cast:
    n1: Actor
    n3: Actor
    n5: Actor
    n3_home: Node


async def _cast(stage: Stage, desk: Desk, make: Make) -> _Cast:
    n1, n5 = desk.enrol("n1", model="M2"), desk.enrol("n5", model="M2")
    n3 = desk.enrol("n3", make.vendor[:64], make.model[:64], make.vulnerable[:64])
    wh = wanted_ah() * VOLTS
    buyer, seller, runner_up = [await desk.join(stage, node, wh) for node in (n1, n3, n5)]
    return _Cast(buyer, seller, runner_up, n3)


@dataclass(slots=True)
class _Play:
    stage: Stage
    tell: Tell
    desk: Desk
    site: _Site
    cast: _Cast
    make: Make
    rounds: int = 0

    async def run(self, raw: bytes, advisory: Advisory, can_update: bool) -> Outcome:
        """Both halves: the ban, and what comes after."""
        slot = self.stage.slot0
        await self._orders(slot, [("n3", N3_ASKS), ("n5", N5_ASKS)])
        ban_s, slots = await self._named(raw)
        again = self._sell(N3_ASKS)
        expect("n3 offers again", ["BANNED"], (await self.cast.n3.submit(again))["codes"])
        refused = self.desk.ask(self.cast.n3_home)
        expect("n3 asks for a grant", True, isinstance(refused, Refused))
        first = await self._clear(slot)
        expect("the winner without n3", "n5", first)
        lifted_s = await self._updated() if can_update else None
        if lifted_s is None:
            why = "and it is not updated" if self.make.fixed else "and there is no fixed version"
            self.tell(f"n3's firmware is vulnerable, {why}: it stays out.")
        second = await self._second(can_update)
        return {
            "advisory": advisory.id,
            "revision": advisory.version_text,
            "make": f"{self.make.vendor} {self.make.model} {self.make.vulnerable}",
            "banSeconds": round(ban_s, 1),
            "banSlots": slots,
            "updatedTo": self.make.fixed if can_update else "",
            "liftSeconds": -1 if lifted_s is None else round(lifted_s, 1),
            "winners": [first, second],
        }

    async def _named(self, raw: bytes) -> tuple[float, int]:
        """The advisory appears; how long until n3 is out: in seconds and slots."""
        stage, started_s = self.stage, time.monotonic()
        slot = stage.genesis.grid.slot_at(stage.clock.now_ms())
        (self.site.folder / "advisory.json").write_bytes(raw)
        await stage.until(lambda: bool(stage.events("banned")), "n3 was not banned")
        took_s = time.monotonic() - started_s
        slots = stage.genesis.grid.slot_at(stage.clock.now_ms()) - slot
        [banned] = stage.events("banned")
        expect("who is banned", "n3", stage.name_of(banned["address"]))
        withdrawn = [stage.name_of(one["address"]) for one in stage.events("bid-withdrawn")]
        expect("whose orders are taken out", ["n3"], withdrawn)
        expect("banned within a slot", True, slots <= 1)
        self.tell(f"The CSM-DB finds the advisory; {took_s:.1f} s later n3 is banned on the ledger")
        self.tell("and its standing offer taken out. What it asks for is refused: BANNED.")
        return took_s, slots

    async def _updated(self) -> float:
        """The CSM-DB is told of a fixed firmware; how long until n3 is in again [s]."""
        started_s = time.monotonic()
        done = set_make(self.desk.csmdb, self.cast.n3_home.ems.id, self.make.fixed)
        expect("n3 is banned after its update", False, done.banned)
        stage = self.stage
        await stage.until(lambda: bool(stage.events("reinstated")), "n3 was not let in again")
        took_s = time.monotonic() - started_s
        self.tell(f"n3's meter runs {self.make.fixed}: {took_s:.1f} s later it may trade again.")
        return took_s

    async def _second(self, can_update: bool) -> str:
        slot = self.stage.genesis.grid.slot_at(self.stage.clock.now_ms()) + 2
        sellers = [("n3", N3_ASKS), ("n5", N5_ASKS)] if can_update else [("n5", N5_ASKS)]
        await self._orders(slot, sellers)
        if not can_update:
            late = self._sell(N3_ASKS)
            expect("n3's offer", ["BANNED"], (await self.cast.n3.submit(late))["codes"])
        winner = await self._clear(slot)
        expect("the winner", "n3" if can_update else "n5", winner)
        return winner

    # --- one auction --------------------------------------------------------------------------

    async def _orders(self, slot: int, sellers: list[tuple[str, int]]) -> None:
        self.rounds += 1
        deploy = {
            "op": "deploy-auction", "auction": self._auction, "template": "double", "slot": slot,
            "energyWh": 0, "priceUcPerKwh": 0, "pricing": "uniform",
        }  # fmt: skip
        done = await self.stage.supervisor.submit(deploy)
        expect("the auction is opened", ["OK"], done["codes"])
        buy = {**self._sell(CAP), "side": "buy"}
        expect("n1's order", ["OK"], (await self.cast.n1.submit(buy))["codes"])
        for name, asks in sellers:
            actor: Actor = getattr(self.cast, name)
            done = await actor.submit(self._sell(asks))
            expect(f"{name}'s offer", ["OK"], done["codes"])
            self.tell(f"{name} offers {self._wh} Wh at {pounds(asks)}.")

    async def _clear(self, slot: int) -> str:
        """Clear, deliver, settle; who sold."""
        stage, cast = self.stage, self.cast
        await stage.to_ms(stage.genesis.gate_ms(slot) + 1_000)
        cleared = stage.events("auction-cleared")[-1]
        [sold] = [award for award in cleared["awards"] if award["side"] == "sell"]
        winner = stage.name_of(sold["address"])
        self.tell(f"{winner} sells {sold['energyWh']} Wh at {pounds(sold['priceUcPerKwh'])}.")
        await stage.to_slot(slot + 1, 5)
        net_wh = {cast.n1: self._wh, cast.n3: 0, cast.n5: 0}
        net_wh[getattr(cast, winner)] = -self._wh
        await deliver(stage, slot, net_wh)
        await settle(stage, slot)
        return winner

    def _sell(self, price: int) -> dict[str, Any]:
        return {
            "op": "auction-bid", "auction": self._auction, "energyWh": self._wh,
            "priceUcPerKwh": price, "side": "sell",
        }  # fmt: skip

    @property
    def _auction(self) -> str:
        return f"n1-{self.rounds}"

    @property
    def _wh(self) -> int:
        return wanted_ah() * VOLTS
