"""
A stage for the papers' examples: one broker, four validators, homes, and a clock that is moved.

Everything on it is real but for the clock: the embedded broker listens on TCP, validators vote and
execute into SQLite files of their own, homes show grants that an issuing key signed, and what an
actor is told are finalised events, which f + 1 validators stated alike.

    async with stage(folder) as s:
        ann = await s.home("ann", production_wh=2_000)
        event = await ann.submit({"op": "bid-offer", …})
        await s.to_slot(s.slot0)                    # its gate has closed: it is cleared
        print(await ann.balance(), s.events("cleared"))
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.access import Trust
from broker.embedded import EmbeddedBroker
from ledger.client import LedgerClient
from ledger.execution import contract_of
from ledger.genesis import Genesis, GenesisValidator, Supervisor, genesis_bytes, seal_genesis
from ledger.node import Node
from runtime.bus import MqttBus, lane
from runtime.ports import Clock, Handler
from runtime.rng import SystemRng
from sim.movable_clock import MovableClock
from sim.sender import Sender
from wire import topics
from wire.canonical import encode
from wire.certificates import AddressGrant, Certificate, Signed, dump, seal
from wire.keys import SigningKey, to_text
from wire.metering import Receipt, record_json, sign_record

MARKET = "stage"
SLOT_MS = 900_000
FIRST_SLOT = 1_978_608
"""2026-06-06T12:00:00Z, in slots of 900 s."""
START_MS = FIRST_SLOT * SLOT_MS
DAY_MS = 86_400_000
VALIDATORS = 4
SUPERVISOR_UC = 10**12
DEPOSIT_UC = 100_000_000
LIMIT_WH = 10_000
GRANT_SLOTS = 1_000
HOME_SLOTS = 96
CONNECT_S = FINAL_S = 60.0
"""Real time given to what must come: far longer than it takes, as machines are busy."""
POLL_S = 0.01


class StageError(RuntimeError):
    """The stage itself did not work: something that had to happen did not, or was refused."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """The CSM-DB's issuing key of a market, and what it signs."""

    key: SigningKey
    market: str
    clock: Clock

    def certificate(self, key: SigningKey, roles: Iterable[str]) -> Certificate:
        """A service's certificate, for a month of market time."""
        now_ms = self.clock.now_ms()
        unsigned = Certificate(
            subject=key.id,
            key=to_text(key.public),
            roles=sorted(roles),
            feeder="feeder-1",
            max_import_w=40_000,
            max_export_w=40_000,
            not_before_ms=now_ms - DAY_MS,
            not_after_ms=now_ms + 30 * DAY_MS,
            serial_no=1,
            meter=[],
        )
        return seal(unsigned, self.key, self.market)

    def grant(
        self, key: SigningKey, first_slot: int, last_slot: int, max_buy_wh: int, max_sell_wh: int
    ) -> AddressGrant:
        """Permission to trade under the address of `key`, metered by `meter_of(key)`."""
        unsigned = AddressGrant(
            address=key.id,
            key=to_text(key.public),
            meter_key=to_text(meter_of(key).public),
            can_buy=max_buy_wh > 0,
            can_sell=max_sell_wh > 0,
            max_buy_wh=max_buy_wh,
            max_sell_wh=max_sell_wh,
            start_slot=first_slot,
            end_slot=last_slot,
        )
        return seal(unsigned, self.key, self.market)


def meter_of(key: SigningKey) -> SigningKey:
    """The pseudonymous meter key behind an address."""
    return key.derive("meter")


@dataclass(slots=True, eq=False, kw_only=True)
class Actor(Sender):
    """Somebody on the stage."""

    name: str
    stage: Stage
    seen: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Finalised events with their heights, since the actor came."""

    async def take(self, height: int, event: dict[str, Any]) -> None:
        """Remember an event."""
        self.seen.append((height, event))
        await Sender.take(self, height, event)

    async def submit(
        self, *operations: dict[str, Any], timeout_s: float = FINAL_S
    ) -> dict[str, Any]:
        """
        Send one transaction and wait until it is final, and its block's events are in
        `Stage.events`.

        Returns:
            Its `tx` event: code of the transaction, codes of its operations.

        Raises:
            StageError: not final in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                height, event = await (await self.send(*operations))
        except TimeoutError:
            raise StageError(f"{self.name}: not final within {timeout_s} s") from None
        await self.stage.caught_up(height)
        return event

    async def balance(self) -> tuple[int, int]:
        """Free and locked money, as f + 1 validators have it [µ¤]."""
        row = await self.client.query("account", self.id, FINAL_S)
        return row.get("balanceUc", 0), row.get("lockedUc", 0)


@dataclass(slots=True)
class Stage:
    """A running market."""

    folder: Path
    clock: MovableClock
    issuer: Issuer
    genesis: Genesis
    broker: EmbeddedBroker
    keys: list[SigningKey]
    """Of the validators."""
    supervisor_key: SigningKey
    nodes: list[Node] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)

    # --- who is on it -----------------------------------------------------------------------------

    @property
    def supervisor(self) -> Actor:
        """The grid supervisor: aggregator and DSO desk in one."""
        return self.actors[0]

    async def home(
        self,
        name: str,
        *,
        max_buy_wh: int = LIMIT_WH,
        max_sell_wh: int = LIMIT_WH,
        deposit_uc: int = DEPOSIT_UC,
        production_wh: int | None = None,
        consumption_wh: int | None = None,
        slots: tuple[int, int] | None = None,
        key: SigningKey | None = None,
        grant: AddressGrant | None = None,
        watch: Handler | None = None,
    ) -> Actor:
        """
        A home whose fresh address is registered, and has money and energy to trade.

        Args:
            name: for people; the ledger does not learn it
            max_buy_wh, max_sell_wh: what its grant allows per slot; 0: not at all
            deposit_uc: money that the DSO puts there
            production_wh, consumption_wh: energy to sell and to buy per slot (default: all that
                the grant allows)
            slots: first and last slot of that energy (default: a day from `slot0` on)
            key, grant: of the address, where a CSM-DB granted it (default: the stage does)
            watch: gets every transaction of anybody from the public topic, as soon as it is sent
        """
        key = key or self.issuer.key.derive(f"home {len(self.actors)} {name}")
        now_slot = self.genesis.grid.slot_at(self.clock.now_ms())
        last_slot = now_slot + GRANT_SLOTS
        grant = grant or self.issuer.grant(key, now_slot, last_slot, max_buy_wh, max_sell_wh)
        actor = await self._actor(name, key, grant, watch)
        _must(await actor.submit({"op": "register-address", "grant": dump(grant)}))
        first, last = slots or (self.slot0, self.slot0 + HOME_SLOTS - 1)
        held = {
            "production": max_sell_wh if production_wh is None else production_wh,
            "consumption": max_buy_wh if consumption_wh is None else consumption_wh,
        }
        operations: list[dict[str, Any]] = [
            {
                "op": "add-energy-asset", "address": key.id, "kind": kind, "energyWh": energy_wh,
                "startSlot": first, "endSlot": last,
            }
            for kind, energy_wh in held.items()
            if energy_wh > 0
        ]  # fmt: skip
        if deposit_uc > 0:
            operations.append(
                {"op": "add-financial-balance", "address": key.id, "amountUc": deposit_uc}
            )
        if operations:
            _must(await self.supervisor.submit(*operations))
        return actor

    def name_of(self, address: str) -> str:
        """Whose an address is."""
        return next((one.name for one in self.actors if one.id == address), address)

    def validator_folder(self, number: int) -> Path:
        """What a validator's operator looks after; validators are numbered from 0."""
        return self.folder / f"validator-{number}"

    def receipt(self, actor: Actor, slot: int, net_wh: int) -> dict[str, Any]:
        """The operation in which an actor's meter says what flowed (import − export) [Wh]."""
        said = Receipt(address=actor.id, slot=slot, net_wh=net_wh, reading="0" * 64)
        signed = sign_record(said, meter_of(actor.key), self.genesis.chain_id)
        return {"op": "receipt", "receipt": record_json(signed)}

    # --- time -------------------------------------------------------------------------------------

    @property
    def slot0(self) -> int:
        """The first slot that could be traded when the market began."""
        slot = int(self.genesis.grid.slot_at(self.genesis.start_ms))
        while self.genesis.gate_ms(slot) <= self.genesis.start_ms + 1_000:
            slot += 1
        return slot

    async def to_slot(self, slot: int, offset_s: float = 0) -> None:
        """
        Make it the start of a slot (plus seconds), and wait until what is due by then is done.

        At `genesis.gate_ms(slot)` a slot is cleared, at `genesis.settle_ms(slot)` settled.
        """
        await self.to_ms(self.genesis.grid.start_ms(slot) + int(offset_s * 1000))

    async def to_ms(self, market_ms: int) -> None:
        """Make it a market time; see `to_slot`."""
        self.clock.move_to(max(market_ms, self.clock.now_ms()))
        await self.until(self._nothing_due, "what is due was not done")
        await self.caught_up(max(node.executed_height for node in self.nodes))

    def _nothing_due(self) -> bool:
        now_ms = self.clock.now_ms()
        dues = [node.ledger.next_due_ms() for node in self.nodes]
        return all(due_ms is None or due_ms > now_ms for due_ms in dues)

    # --- what is known ----------------------------------------------------------------------------

    def events(self, name: str) -> list[dict[str, Any]]:
        """All finalised events of a name, in their order."""
        return [event for _, event in self.supervisor.seen if event["event"] == name]

    def state(self, key: str) -> Any:
        """
        A row of the executed state, as most validators have it (`ledger.contracts.keys`); None when
        there is no such row.
        """
        rows = [node.ledger.query(key) for node in self.nodes]
        counted = Counter(_bytes_of(row) for row in rows)
        best, count = counted.most_common(1)[0]
        if count <= VALIDATORS // 3:
            raise StageError(f"the validators do not agree on {key}")
        return next(row for row in rows if _bytes_of(row) == best)

    async def caught_up(self, height: int) -> None:
        """Wait until every validator has executed a height, and its events are in `events`."""
        await self.until(
            lambda: all(node.executed_height >= height for node in self.nodes),
            f"not every validator executed block {height}",
        )
        last: dict[str, int] = {}
        for each in range(height, max(0, height - 50), -1):
            for event in self.nodes[0].store.events(each):
                last.setdefault(contract_of(event["event"]), each)

        def heard() -> bool:
            handled = self.supervisor.client.delivered()
            return all(handled.get(contract, 0) >= least for contract, least in last.items())

        await self.until(heard, f"the events of block {height} did not come")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """
        Wait for something.

        Raises:
            StageError: it did not come, or a validator stopped.
        """
        deadline_s = self.clock.monotonic_s() + FINAL_S
        while not condition():
            for task in self.tasks:
                if task.done():
                    raise StageError("a validator stopped") from task.exception()
            if self.clock.monotonic_s() > deadline_s:
                raise StageError(f"{what} within {FINAL_S} s")
            await asyncio.sleep(POLL_S)

    # --- setting up and down ----------------------------------------------------------------------

    def _bus(self, key: SigningKey, credential: Signed) -> MqttBus:
        return lane(
            key, self.genesis.market, credential, "127.0.0.1", self.broker.port, self.clock,
            SystemRng(),
        )  # fmt: skip

    async def _actor(
        self, name: str, key: SigningKey, credential: Signed, watch: Handler | None = None
    ) -> Actor:
        bus = self._bus(key, credential)
        if watch is not None:
            bus.subscribe(topics.build(self.genesis.market, topics.TX, "+"), watch)
        client = LedgerClient(bus, self.genesis, self.clock, key.id, from_start=not self.actors)
        actor = Actor(key, bus, client, self.genesis, self.clock, name=name, stage=self)
        await actor.start(CONNECT_S)
        self.actors.append(actor)
        return actor

    async def start(self) -> None:
        """Start the validators and connect the supervisor."""
        for number, key in enumerate(self.keys):
            folder = self.validator_folder(number)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "genesis.json").write_bytes(genesis_bytes(self.genesis))
            bus = self._bus(key, self.issuer.certificate(key, {"validator"}))
            node = Node(self.genesis, folder, key, bus, self.clock)
            self.nodes.append(node)
            self.tasks.append(asyncio.create_task(node.run()))
        for node in self.nodes:
            await node.bus.wait_connected(CONNECT_S)  # what is said before would reach nobody
        own = self.issuer.certificate(self.supervisor_key, {"aggregator", "dso"})
        await self._actor("supervisor", self.supervisor_key, own)

    async def stop(self) -> None:
        """Disconnect everybody, stop the validators and the broker."""
        for actor in self.actors:
            await actor.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        with contextlib.suppress(ConnectionError):
            await self.broker.shutdown()


@asynccontextmanager
async def stage(
    folder: Path, *, start_ms: int = START_MS, **genesis_changes: Any
) -> AsyncIterator[Stage]:
    """
    Set a market up, and take it down again.

    Args:
        folder: for the validators' files
        start_ms: market time at which it begins (default: a noon)
        genesis_changes: fields of `Genesis`, e.g. `escrow=Escrow(fee_uc=0)`
    """
    clock = MovableClock(start_ms + 1_000)
    issuer = Issuer(SigningKey(bytes(32)).derive("stage"), MARKET, clock)
    keys = [issuer.key.derive(f"validator {number}") for number in range(VALIDATORS)]
    supervisor = issuer.key.derive("supervisor")
    fields: dict[str, Any] = {
        "market": MARKET,
        "start_ms": start_ms,
        "issuing_key": to_text(issuer.key.public),
        "supervisor": Supervisor(
            address=supervisor.id, key=to_text(supervisor.public), balance_uc=SUPERVISOR_UC
        ),
        "validators": tuple(
            GenesisValidator(id=k.id, key=to_text(k.public), controller=f"party-{number}")
            for number, k in enumerate(keys)
        ),
    }
    genesis = seal_genesis(Genesis(**{**fields, **genesis_changes}))
    broker = EmbeddedBroker(Trust(MARKET, issuer.key.public), clock, port=0)
    await broker.start()
    running = Stage(folder, clock, issuer, genesis, broker, keys, supervisor)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


def _bytes_of(row: Any) -> bytes:
    """A row for comparing; a null has no canonical form."""
    return b"" if row is None else encode([row])


def _must(event: dict[str, Any]) -> None:
    """
    Check that every operation of a transaction was done.

    Raises:
        StageError: one was refused.
    """
    if event["code"] != "OK" or set(event["codes"]) != {"OK"}:
        raise StageError(f"refused: {event['code']} {event['codes']}")
