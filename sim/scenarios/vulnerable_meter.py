"""
ETSE's scenario with its security layer: an advisory names n3's meter while its offer stands.

    n1 asks for 12 Ah, n3 and n5 offer    |  a CSAF file appears in the CSM-DB's folder
    the CSM-DB bans n3, signs revocations |  the DSO forwards them  |  n3's offer is taken out
    n3's home hears of it and looks for firmware
        there is a fixed one: fetched, verified, written, attested -> let in, offers again, wins
        there is none -> n5, the runner-up, wins

Nothing is done by hand: the DSO asks the CSM-DB for revocations as the aggregator does
(`aggregator.revocations`), validators execute them, and n3's home (`sim.scenarios.vulnerable_home`)
keeps its meter patched as every home does. What it installs is the version that the advisory names
as fixed, or the first one that its range leaves out.

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
    pounds,
    wanted_ah,
)
from sim.scenarios.vulnerable_home import VERSION_CHARS, MeteredHome, name_meter
from sim.stage import CONNECT_S, Actor, Stage
from wire.certificates import AddressGrant
from wire.errors import MalformedError
from wire.firmware import version_of
from wire.keys import BoxKey

NAME = "vulnerable-meter"
AUCTION = "n1-1"
LOOK_S = 1.0
"""How often the CSM-DB looks into its folder here [s]."""


@dataclass(frozen=True, slots=True)
class Make:
    """A meter that an advisory names."""

    vendor: str
    model: str
    vulnerable: str
    fixed: str
    """The version that the advisory names as fixed, or its range leaves out; empty: none."""


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
    claim="An advisory names n3's meter: banned within a slot, updated, attested, n3 trades again.",
)
async def vulnerable_meter(stage: Stage, tell: Tell) -> Outcome:
    """With our own document, and an update."""
    return await play(stage, tell, raw=made_up(), can_update=True)


async def play(stage: Stage, tell: Tell, *, raw: bytes, can_update: bool) -> Outcome:
    """
    The scenario with any document.

    Args:
        raw: a CSAF document that names a product
        can_update: False: the meter's maker publishes nothing, whatever the document says
    """
    advisory = read_advisory(raw)
    make = choose(advisory)
    can_update = can_update and bool(make.fixed)
    tell(f"{advisory.id} {advisory.version_text}: {advisory.publisher}, {advisory.title}")
    tell(f"n3's meter: {make.vendor} {make.model}, firmware {make.vulnerable}")
    desk = Desk(stage, stage.folder / "csmdb")
    try:
        async with (
            _Site.running(stage, desk) as site,
            MeteredHome.running(stage, desk, make.vulnerable) as home,
        ):
            name_meter(desk.csmdb, make.vendor, make.model)
            cast = await _cast(stage, desk, home)
            return await _Play(stage, tell, desk, site, cast, make).run(raw, advisory, can_update)
    finally:
        desk.csmdb.close()


def choose(advisory: Advisory) -> Make:
    """The first product of an advisory whose version can be told, vulnerable and, maybe, fixed."""
    for weakness in advisory.vulnerabilities:
        for product in weakness.affected:
            bounds = _versions_in(product.versions)
            named = [text for one in weakness.fixed for text in _versions_in(one.versions)]
            tried = [text for text in (*named, *bounds) if _can_be_installed(text)]
            bad = next((one for one in (*bounds, "0.1") if product.versions.holds(one)), None)
            good = next((one for one in tried if product.versions.holds(one) is False), "")
            if bad is not None:
                return Make(product.vendor, product.models[0], bad, good)
    raise ValueError(f"{advisory.id} names no product as affected")


def _can_be_installed(version: str) -> bool:
    """Does a repository take it, and the simulated meter's plate?"""
    try:
        version_of(version)
    except MalformedError:
        return False
    return len(version) <= VERSION_CHARS


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
    n3_home: MeteredHome


async def _cast(stage: Stage, desk: Desk, home: MeteredHome) -> _Cast:
    n1, n5 = desk.enrol("n1", model="M2"), desk.enrol("n5", model="M2")
    wh = wanted_ah() * VOLTS
    grant = desk.ask(home.node)
    assert isinstance(grant, AddressGrant), grant
    buyer, seller, runner_up = [await desk.join(stage, node, wh) for node in (n1, home.node, n5)]
    home.watch_bans(seller, grant)
    return _Cast(buyer, seller, runner_up, home)


@dataclass(slots=True)
class _Play:
    stage: Stage
    tell: Tell
    desk: Desk
    site: _Site
    cast: _Cast
    make: Make

    async def run(self, raw: bytes, advisory: Advisory, can_update: bool) -> Outcome:
        """The ban, and what comes after, while one auction is open."""
        slot, home = self.stage.slot0, self.cast.n3_home
        await self._orders(slot)
        await home.first_look()
        if can_update:
            home.maker.publish(self.make.fixed)
            self.tell(f"The maker publishes firmware {self.make.fixed}; homes look every 6 hours.")
        ban_s, slots = await self._named(raw)
        named_ms = self.stage.clock.wall_ms()
        await self._refused()
        if can_update:
            lifted_s = await self._updated()
            await self._offer("n3", N3_ASKS)
        else:
            lifted_s = -1.0
            await self._stays_out(named_ms)
        wanted = "n3" if can_update else "n5"
        winner = await self._clear(slot)
        expect("the winner", wanted, winner)
        return {
            "advisory": advisory.id,
            "revision": advisory.version_text,
            "make": f"{self.make.vendor} {self.make.model} {self.make.vulnerable}",
            "banSeconds": round(ban_s, 1),
            "banSlots": slots,
            "updatedTo": self.make.fixed if can_update else "",
            "runs": home.meter.version,
            "liftSeconds": round(lifted_s, 1),
            "winner": winner,
        }

    async def _named(self, raw: bytes) -> tuple[float, int]:
        """The advisory appears; how long until n3 is out: in seconds and slots."""
        stage, started_s, first = self.stage, time.monotonic(), self._slot
        (self.site.folder / "advisory.json").write_bytes(raw)
        await stage.until(lambda: bool(stage.events("banned")), "n3 was not banned")
        took_s, slots = time.monotonic() - started_s, self._slot - first
        [banned] = stage.events("banned")
        expect("who is banned", "n3", stage.name_of(banned["address"]))
        withdrawn = [stage.name_of(one["address"]) for one in stage.events("bid-withdrawn")]
        expect("whose orders are taken out", ["n3"], withdrawn)
        expect("banned within a slot", True, slots <= 1)
        self.tell(f"The CSM-DB finds the advisory; {took_s:.1f} s later n3 is banned on the ledger")
        self.tell("and its standing offer taken out. What it asks for is refused: BANNED.")
        return took_s, slots

    async def _refused(self) -> None:
        """n3 may neither offer nor get another address."""
        again = self._order("sell", N3_ASKS)
        expect("n3 offers again", ["BANNED"], (await self.cast.n3.submit(again))["codes"])
        answer = self.desk.ask(self.cast.n3_home.node)
        refusal = answer.refusal.value if isinstance(answer, Refused) else "OK"
        expect("n3 asks for a grant", "BANNED", refusal)

    async def _updated(self) -> float:
        """n3's home sees to its meter; how long until n3 is in again [s]."""
        stage, started_s, first = self.stage, time.monotonic(), self._slot
        home, fixed = self.cast.n3_home, self.make.fixed
        await stage.until(
            lambda: home.firmware.view.attested == fixed, f"{fixed} was not installed and attested"
        )
        took_s = time.monotonic() - started_s
        expect("what the meter runs", fixed, home.meter.version)
        self.tell(f"n3's home hears of the ban and looks at once: {took_s:.1f} s later its meter")
        self.tell(f"runs {fixed}, and the gateway has attested it to the CSM-DB.")
        await stage.until(lambda: bool(stage.events("reinstated")), "n3 was not let in again")
        took_s = time.monotonic() - started_s
        [back] = stage.events("reinstated")
        expect("who is let in again", "n3", stage.name_of(back["address"]))
        expect("let in again within a slot", True, self._slot - first <= 1)
        self.tell(f"{took_s:.1f} s after its ban n3 may trade again.")
        return took_s

    async def _stays_out(self, named_ms: int) -> None:
        home = self.cast.n3_home
        await home.look_after(named_ms)
        expect("what the meter runs", self.make.vulnerable, home.meter.version)
        why = "published yet" if self.make.fixed else "named by the advisory"
        self.tell(f"n3's home looks for firmware at once. No fixed version is {why}: it stays out.")
        await self._refused()
        expect("who was let in again", [], self.stage.events("reinstated"))

    # --- the auction --------------------------------------------------------------------------

    async def _orders(self, slot: int) -> None:
        deploy = {
            "op": "deploy-auction", "auction": AUCTION, "template": "double", "slot": slot,
            "energyWh": 0, "priceUcPerKwh": 0, "pricing": "uniform",
        }  # fmt: skip
        done = await self.stage.supervisor.submit(deploy)
        expect("the auction is opened", ["OK"], done["codes"])
        done = await self.cast.n1.submit(self._order("buy", CAP))
        expect("n1's order", ["OK"], done["codes"])
        await self._offer("n3", N3_ASKS)
        await self._offer("n5", N5_ASKS)

    async def _offer(self, name: str, asks: int) -> None:
        actor: Actor = getattr(self.cast, name)
        done = await actor.submit(self._order("sell", asks))
        expect(f"{name}'s offer", ["OK"], done["codes"])
        self.tell(f"{name} offers {self._wh} Wh at {pounds(asks)}.")

    async def _clear(self, slot: int) -> str:
        """Clear, deliver, settle; who sold."""
        stage, cast = self.stage, self.cast
        await stage.to_ms(stage.genesis.gate_ms(slot) + 1_000)
        [cleared] = stage.events("auction-cleared")
        [sold] = [award for award in cleared["awards"] if award["side"] == "sell"]
        winner = stage.name_of(sold["address"])
        self.tell(f"{winner} sells {sold['energyWh']} Wh at {pounds(sold['priceUcPerKwh'])}.")
        await stage.to_slot(slot + 1, 5)
        net_wh = {cast.n1: self._wh, cast.n3: 0, cast.n5: 0}
        net_wh[getattr(cast, winner)] = -self._wh
        await deliver(stage, slot, net_wh)
        await settle(stage, slot)
        return winner

    def _order(self, side: str, price: int) -> dict[str, Any]:
        return {
            "op": "auction-bid", "auction": AUCTION, "energyWh": self._wh,
            "priceUcPerKwh": price, "side": side,
        }  # fmt: skip

    @property
    def _slot(self) -> int:
        return self.stage.genesis.grid.slot_at(self.stage.clock.now_ms())

    @property
    def _wh(self) -> int:
        return wanted_ah() * VOLTS
