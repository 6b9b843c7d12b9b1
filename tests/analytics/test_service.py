"""The service behind a real broker, with four validators' keys speaking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.brokers import Authority, make_key, running_broker
from support.made_up_day import identity, key
from support.patience import PATIENCE_S

from analytics.facts import facts_of
from analytics.service import AnalyticsService
from ledger.client import sign_message
from ledger.genesis import Genesis, GenesisValidator, Supervisor, seal_genesis
from runtime.clock import SystemClock
from runtime.rng import SystemRng
from wire import topics
from wire.envelope import Envelope, seal_envelope
from wire.keys import Domain, to_text

VALIDATORS = [key(f"validator {n}") for n in range(4)]
HOME = key("a home")
OURS = make_key("analytics")
SLOT_MS = 900_000


def make_genesis() -> Genesis:
    supervisor = key("supervisor")
    return seal_genesis(
        Genesis(
            market="test",
            start_ms=SystemClock().now_ms() // SLOT_MS * SLOT_MS - 4 * SLOT_MS,
            issuing_key=to_text(key("issuing").public),
            supervisor=Supervisor(
                address=supervisor.id, key=to_text(supervisor.public), balance_uc=10**9
            ),
            validators=tuple(
                GenesisValidator(id=v.id, key=to_text(v.public), controller=f"home-{n}")
                for n, v in enumerate(VALIDATORS)
            ),
        )
    )


class World:
    """A broker, a genesis, and the buses of validators and a home."""

    def __init__(self, authority: Authority, port: int) -> None:
        self.authority, self.port = authority, port
        self.genesis = make_genesis()
        self.node = authority.bus(port, VALIDATORS[0], {"validator"})
        self.home = authority.bus(port, HOME, {"prosumer"})
        self.now_ms = SystemClock().now_ms()

    async def say(self, contract: str, validators: list[int], height: int, **more: Any) -> None:
        message = {
            "chainId": self.genesis.chain_id, "contract": contract, "height": height,
            "timeMs": self.now_ms, "part": 0, "parts": 1, **more,
        }  # fmt: skip
        for n in validators:
            raw = sign_message(message, VALIDATORS[n], self.genesis.chain_id)
            await self.node.publish(topics.build("test", topics.EVENTS, contract), raw)

    async def tell_state(self, **more: Any) -> None:
        body = {
            "online": True, "name": "home-07", "key": to_text(HOME.public), "grid_w": 400,
            "pv_w": 0, "battery_w": 0, "load_w": 400, "soc_permille": -1, **more,
        }  # fmt: skip
        envelope = Envelope(HOME.id, "r", SystemClock().now_ms(), "state", body)
        raw = seal_envelope(envelope, HOME, Domain.MESSAGE, self.genesis.chain_id)
        await self.home.publish(topics.build("test", topics.STATE, HOME.id), raw, retain=True)

    @asynccontextmanager
    async def service(self, folder: Path) -> AsyncIterator[AnalyticsService]:
        bus = self.authority.bus(self.port, OURS, {"analytics"})
        service = AnalyticsService(
            facts_of(self.genesis), self.genesis, bus, SystemClock(), SystemRng(), folder, OURS.id
        )
        await service.start()
        await bus.start()
        await bus.wait_connected(PATIENCE_S)
        try:
            yield service
        finally:
            await bus.stop()
            await service.stop()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    authority = Authority()
    async with running_broker(authority) as broker:
        made = World(authority, broker.port)
        for bus in (made.node, made.home):
            await bus.start()
            await bus.wait_connected(PATIENCE_S)
        yield made
        for bus in (made.node, made.home):
            await bus.stop()


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen in time"
        await asyncio.sleep(0.02)


def cleared(slot: int, traded: int) -> dict[str, Any]:
    return {
        "event": "cleared", "slot": slot, "priceUcPerKwh": 200_000, "tradedWh": traded, "bids": 1,
        "offers": 1, "welfareUc": 0, "awards": [],
    }  # fmt: skip


async def test_finalised_events_blocks_states_and_readings_arrive(world: World, tmp_path: Path):
    slot = world.now_ms // SLOT_MS
    async with world.service(tmp_path) as service:
        await world.say("market", [0], 1, prevHeight=0, events=[cleared(slot, 9999)])
        await world.say("market", [1, 2], 1, prevHeight=0, events=[cleared(slot, 500)])
        block = {
            "event": "block", "height": 1, "epoch": 0, "view": 1, "nTx": 2, "finalityMs": 31,
            "proposer": identity("validator 2"), "timeMs": world.now_ms,
        }  # fmt: skip
        await world.say("block", [0, 3], 1, events=[block])
        counts = {"event": "refused", "component": "mempool", "counts": {"REPLAYED": 2}}
        await world.say("refused", [1], 1, events=[counts])
        await world.tell_state()
        await world.home.publish(topics.build("test", topics.READING, HOME.id), b"sealed")
        await until(lambda: len(service.rollup.homes) == 1 and len(service.rollup.slots) > 0)
        await until(lambda: len(service.rollup.blocks) == 1 and service.rollup.refusals != {})
        await until(lambda: service.store.rows("readings") != [])
        summary = service.view.summary(service.situation())
        assert (summary["tradedWh"], summary["height"], summary["refused"]) == (500, 1, 2)
        assert service.store.rows("readings")[0]["size_bytes"] == len(b"sealed")
        assert service.store.rows("blocks")[0]["finality_ms"] == 31


async def test_a_forged_state_is_refused_counted_and_shown(world: World, tmp_path: Path):
    async with world.service(tmp_path) as service:
        envelope = Envelope(HOME.id, "r", world.now_ms, "state", {"key": to_text(HOME.public)})
        forged = seal_envelope(envelope, key("thief"), Domain.MESSAGE, world.genesis.chain_id)
        await world.home.publish(topics.build("test", topics.STATE, HOME.id), forged)
        await until(lambda: ("analytics", "BAD_SIGNATURE") in service.rollup.refusals)
        assert len(service.rollup.homes) == 0


async def test_a_restart_goes_on_where_it_stopped(world: World, tmp_path: Path):
    slot = world.now_ms // SLOT_MS
    async with world.service(tmp_path) as service:
        await world.say("market", [0, 1], 1, prevHeight=0, events=[cleared(slot, 500)])
        await until(lambda: service.rollup.height == 1)
    async with world.service(tmp_path) as service:
        assert service.view.summary(service.situation())["tradedWh"] == 500
        await world.say("market", [0, 1], 1, prevHeight=0, events=[cleared(slot, 500)])
        await world.say("market", [0, 1], 4, prevHeight=1, events=[cleared(slot + 1, 70)])
        await until(lambda: service.rollup.height == 4)
        assert len(service.rollup.slots) == 2
    async with world.service(tmp_path) as service:
        assert len([r for r in service.store.rows("events") if r["name"] == "cleared"]) == 2


async def test_a_home_that_vanishes_is_shown_offline(world: World, tmp_path: Path):
    async with world.service(tmp_path) as service:
        await world.tell_state()
        await until(lambda: len(service.rollup.homes) == 1)
        await world.tell_state(online=False)
        await until(lambda: not next(service.rollup.homes.values())["online"])
        assert service.view.answer_health(service.situation())["reasons"] == [
            "1 of 1 homes offline"
        ]
