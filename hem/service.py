"""
The Home Energy Manager: gateway, controller, EMS and ledger client of one home, at work.

    enrol ─► grant ─► register the address ─► then, slot by slot:

    slot end        read and sign the registers; reading to the DSO, receipt (and CPF) to the ledger
    then, and every 180 s
                    steer the battery toward the contracted position; tell our state
    + 60…110 s      trade some slots ahead, look after the wallet (`hem.trader`, `hem.ems.funds`)
    + 120 s         forecast the next slot, decide, bid

Everything that must not be lost is in SQLite before it is sent: the slots still to be closed,
readings in their outbox, operations in theirs, the wallet from finalised events only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import zlib
from dataclasses import dataclass
from typing import Any

import structlog

from hem.config import Provisioning
from hem.controller.forecast import Forecaster
from hem.controller.policy import load_policy
from hem.controller.setpoint import setpoint_w
from hem.ems.closing import (
    DELIVERED,
    LATE_SLOTS,
    PASSING,
    WAITING,
    SlotsToClose,
    last_attempt,
    receipt_key,
)
from hem.ems.decisions import DecisionLog
from hem.ems.enrolment import Enrolment
from hem.ems.funds import Funds
from hem.ems.keyring import Keyring
from hem.ems.readings import ReadingOutbox
from hem.ems.schedule import Phase, Timetable
from hem.ems.wallet import Wallet
from hem.gateway.client import GatewayClient, GatewayError
from hem.trader import Parts, Trader, battery_of
from ledger.client import LedgerClient, QueryError, Validators
from ledger.genesis import load_genesis
from runtime.bus import MqttBus, lane
from runtime.csmdb_client import CsmDbClient
from runtime.dso_client import DsoClient
from runtime.outbox import OperationOutbox
from runtime.ports import Clock, Rng
from runtime.store import SqliteStore
from wire import topics
from wire.canonical import decode, encode
from wire.certificates import dump
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import WireError
from wire.keys import KEY_BYTES, Domain, SigningKey, from_text, to_text
from wire.metering import Reading, load_record

AHEAD_AFTER_S = 60
AHEAD_SPREAD_S = 50
BID_AFTER_S = 120
STEER_EVERY_S = 180
GATEWAY_WAIT_S = 60.0
LEASE_PERIODS = 3
"""A battery lease outlives two missed renewals."""
HOUSEKEEPING_S = 1.0
READ_AGAIN_S = 0.2
AWAY = frozenset({"UNAVAILABLE", "TIMEOUT", "DEVICE_LOST"})
"""Gateway errors that may pass."""
NEVER = frozenset({"TOO_LATE", "OUT_OF_ORDER", "GAP", "OTHER_ADDRESS"})
"""Gateway errors that will not pass: this slot's energy cannot be confirmed any more."""

log = structlog.get_logger(component="hem")


@dataclass(frozen=True, slots=True)
class _Opening:
    """Registers at the beginning of a slot [Wh]."""

    slot: int
    import_wh: int
    export_wh: int
    generation_wh: int


class HomeEnergyManager:
    """
    One home.

    Args:
        config: the provisioning file
        clock, rng: market time; randomness for keys and identifiers
    """

    def __init__(self, config: Provisioning, clock: Clock, rng: Rng) -> None:
        self.config = config
        self.clock = clock
        self.rng = rng
        self.genesis = load_genesis(config.market.genesis)
        self.grid = self.genesis.grid
        folder = config.home.data_dir
        folder.mkdir(parents=True, exist_ok=True)
        self.gateway = GatewayClient(config.gateway.socket)
        self.keyring = Keyring(folder / "keys", rng)
        self.store = SqliteStore(folder / "ems.sqlite")
        self._queue = SqliteStore(folder / "outbox.sqlite")
        self.decisions = DecisionLog(self.store)
        self.policy = load_policy(config.policy.file)
        self.enrolment = Enrolment(
            self.store, self.keyring, self.gateway, config.market.name,
            from_text(config.market.csmdb_key, KEY_BYTES),
        )  # fmt: skip
        self.ems_key = self.keyring.ems
        self.home_bus = self._home_lane()
        self.readings = ReadingOutbox(
            self.store, self.home_bus, self._topic(topics.READING, self.ems_key.id)
        )
        self.forecaster = self._restored_forecaster()
        self._samples: list[int] = []
        self._opening: _Opening | None = None
        self.to_close = SlotsToClose(self.store)
        self._closing = asyncio.Lock()
        self._said_open: set[int] = set()
        """Slots of which the log says that they could not be closed yet."""
        self._steering = False
        self.wallet: Wallet
        self.outbox: OperationOutbox
        self.client: LedgerClient
        self.trader: Trader
        self.funds: Funds

    async def run(self) -> None:
        """Work until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._say_goodbye)
            await self._wait_for_gateway()
            await self._enrol()
            trade_bus = await self._open_trading_lane()
            stack.push_async_callback(trade_bus.stop)
            stack.push_async_callback(self.client.stop)
            await self._catch_up()
            timetable = Timetable(self.clock, self.grid, self._phases())
            async with asyncio.TaskGroup() as group:
                for work in (
                    self.readings.run(), self.outbox.run(), self.trader.reveal(), timetable.run(),
                    self._housekeep(),
                ):  # fmt: skip
                    group.create_task(work)

    # --- Beginning -------------------------------------------------------------------------------

    async def _wait_for_gateway(self) -> None:
        while True:
            try:
                await self.gateway.wait_ready(GATEWAY_WAIT_S)
            except GatewayError as error:
                log.warning("the gateway does not answer", reason=str(error))
                await asyncio.sleep(1.0)  # a refusal comes at once
            else:
                return

    async def _enrol(self) -> None:
        """Certificate, grants: whatever is not there yet."""
        if self.enrolment.certificate is None:
            # without a certificate the broker lets us ask for one, and nothing else: no last will
            bus = lane(
                self.ems_key, self.config.market.name, None, self.config.broker.host,
                self.config.broker.port, self.clock, self.rng,
            )  # fmt: skip
            csmdb = self._csmdb(bus)
            await bus.start()
            try:
                await bus.wait_connected(None)
                await self.enrolment.enrol(csmdb, self.config.home.claim_code)
            finally:
                await bus.stop()
        csmdb = self._csmdb(self.home_bus)
        await self.home_bus.start()
        await self.home_bus.wait_connected(None)
        first, last = self._window()
        await self.enrolment.obtain_grant(csmdb, first, last)
        if self.config.validator is not None:
            await self.enrolment.obtain_validator_grant(
                csmdb, self.config.validator.id, first, last
            )

    def _home_lane(self) -> MqttBus:
        return lane(
            self.ems_key, self.config.market.name, lambda: self.enrolment.certificate,
            self.config.broker.host, self.config.broker.port, self.clock, self.rng,
            will=self._will(),
        )  # fmt: skip

    def _csmdb(self, bus: MqttBus) -> CsmDbClient:
        return CsmDbClient(
            bus, self.ems_key, self.keyring.box, self.config.market.name,
            from_text(self.config.market.csmdb_key, KEY_BYTES),
            from_text(self.config.market.csmdb_box, KEY_BYTES), self.clock, self.rng,
        )  # fmt: skip

    def _window(self) -> tuple[int, int | None]:
        """Slots to trade in: from the next one, to the last one when the trial has an end."""
        first = self.grid.slot_at(self.clock.now_ms()) + 1
        last = self.config.market.last_slot
        return (first, None) if last is None else (min(first, last), last)

    async def _open_trading_lane(self) -> MqttBus:
        """Connect under our address; wallet, outbox and ledger client on top of it."""
        grant = self.enrolment.grant
        assert grant is not None
        self.grant = grant
        key = self.keyring.address(self.enrolment.address_number)
        bus = lane(
            key, self.config.market.name, grant, self.config.broker.host,
            self.config.broker.port, self.clock, self.rng,
        )  # fmt: skip
        self.wallet = Wallet(self.store, key.id)
        self.client = LedgerClient(
            bus, self.genesis, self.clock, key.id, resume=self.wallet.resume(), from_start=True,
            rng=self.rng, validators=Validators.kept(self.wallet.validators()),
        )  # fmt: skip
        self.outbox = self._make_outbox(key, bus)
        self.take_up_trade()
        self.client.on_event(self.wallet.take_event)
        self.client.on_event(self.outbox.take_event)
        self.client.on_event(self.trader.take_event)
        await self.client.start()
        await bus.start()
        await bus.wait_connected(None)
        self.outbox.add([(f"register/{key.id}", {"op": "register-address", "grant": dump(grant)})])
        self._write_identity(key.id)
        log.info("trading", home=self.config.home.name, address=key.id)
        return bus

    def take_up_trade(self) -> None:
        """Make what trades under the present grant; wallet and outbox are there."""
        self.trader = Trader(
            Parts(
                genesis=self.genesis, grant=self.grant, policy=self.policy, wallet=self.wallet,
                outbox=self.outbox, decisions=self.decisions, forecaster=self.forecaster,
                store=self.store, clock=self.clock, rng=self.rng, state=self.gateway.state,
            )
        )  # fmt: skip
        dso = DsoClient(
            self.home_bus, self.ems_key, self.keyring.box, self.config.market.name,
            from_text(self.genesis.supervisor.key, KEY_BYTES),
            from_text(self.genesis.dso_box_key, KEY_BYTES), self.clock, self.rng,
        )  # fmt: skip
        self.funds = Funds(self.policy.wallet, self.wallet, self.grant, self.store, dso)

    def _write_identity(self, address: str) -> None:
        """Who we are, for the household's own tools; the folder is readable by us only."""
        facts = {"participant": self.ems_key.id, "address": address}
        path = self.config.home.data_dir / "identity.json"
        path.write_bytes(encode(facts) + b"\n")

    def _make_outbox(self, key: SigningKey, bus: MqttBus) -> OperationOutbox:
        async def next_nonce() -> int:
            try:
                account = await self.client.query("account", key.id)
            except QueryError as error:
                raise TimeoutError(str(error)) from None
            return int(account.get("nonce", 0))

        return OperationOutbox(
            self._queue, key, self.config.market.name, self.genesis.chain_id, self.grid, bus,
            self.clock, self.rng, next_nonce, self.client.receipt, self._operation_done,
        )  # fmt: skip

    def _phases(self) -> list[Phase]:
        length_s = self.grid.length_s
        steering = range(STEER_EVERY_S, length_s, STEER_EVERY_S)
        # spread over the homes, or all would look at the board at once and take the same offers
        spread_s = zlib.crc32(self.wallet.address.encode()) % AHEAD_SPREAD_S
        ahead_s = min(AHEAD_AFTER_S + spread_s, length_s // 8)
        return [
            Phase("begin", 0, self._begin_slot),
            Phase("ahead", ahead_s, self._trade_ahead),
            Phase("bid", min(BID_AFTER_S, length_s // 4), self.trader.bid),
            *(Phase(f"steer-{at}", at, self._tick) for at in steering),
        ]

    # --- Slot by slot ----------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """
        Close the slots that ended while we were away, as far back as the gateway still signs.

        What flowed meanwhile is then receipted for the first of them: late, but paid for.
        """
        if self.wallet.registered:
            await self._close_slot(self.grid.slot_at(self.clock.now_ms()))

    async def _begin_slot(self, slot: int) -> None:
        """Close the slot before; only then do we know what has flowed in this one."""
        await self._close_slot(slot)
        await self._steer(slot)

    async def _trade_ahead(self, slot: int) -> None:
        await self.trader.trade_ahead(slot)
        self.outbox.add(await self.funds.tend(slot))

    async def _tick(self, slot: int) -> None:
        """Between the slot's ends: try again what could not be closed, then steer."""
        if not self._closing.locked():
            async with self._closing:
                self.to_close.reach(slot - 1)
                await self._close_due()
        await self._steer(slot)

    async def _close_slot(self, slot: int) -> None:
        """
        Close the slot that has just ended, after those that could not be closed before.

        A meter that is away is asked again for a quarter of a slot: a reading a little late costs
        less than one that waits for the next tick, which puts its energy on the wrong slot.
        """
        until_ms = self.grid.start_ms(slot) + self.grid.length_s * 250
        async with self._closing:
            self.to_close.reach(slot - 1)
            while await self._close_due() in AWAY and self.clock.now_ms() < until_ms:
                await asyncio.sleep(READ_AGAIN_S)

    async def _close_due(self) -> str:
        """
        Close what is on the list, oldest first: the meter signs no slot after a later one.

        Returns:
            The gateway's error at the first slot that has to wait, and the later ones with it;
            empty when none has to.
        """
        for ended in self.to_close.waiting():
            try:
                await self._close(ended)
            except GatewayError as error:
                if error.code in NEVER:
                    self._give_up(ended, str(error))
                    continue
                if ended not in self._said_open:
                    self._said_open.add(ended)
                    log.warning("slot not closed yet", slot=ended, reason=str(error))
                return error.code
        return ""

    async def _close(self, ended: int) -> None:
        """Sign what flowed in a slot, once; reading, receipt and CPF go out."""
        attempt, state = last_attempt(self.outbox, ended)
        if state in DELIVERED:
            self._closed(ended)
        elif ended + LATE_SLOTS < self.grid.slot_at(self.clock.now_ms()):
            self._give_up(ended, "the ledger takes its receipt no longer")
        elif state in PASSING:
            await self._sign(ended, attempt + 1)
        elif state == "":
            await self._sign(ended, 0)
        elif state != WAITING:
            self._give_up(ended, state)

    async def _sign(self, ended: int, attempt: int) -> None:
        """Let the gateway sign a slot; what it signs is on its way when this returns."""
        signed = await self.gateway.sign_reading(ended)
        self.readings.add(ended, from_text(signed["sealed"]))
        self._observe(ended, load_record(Reading, signed["reading"]))
        if not self.grant.start_slot <= ended <= self.grant.end_slot:
            self._closed(ended)
            return
        operations = await self._attestation(ended)
        try:
            receipt = await self.gateway.sign_receipt(self.wallet.address, ended)
            operation = {"op": "receipt", "receipt": receipt}
            operations.insert(0, (receipt_key(ended, attempt), operation))
        finally:
            self.outbox.add(operations)

    def _closed(self, slot: int) -> None:
        self.to_close.done(slot)
        self._said_open.discard(slot)

    def _give_up(self, slot: int, reason: str) -> None:
        log.warning("no receipt for a slot", slot=slot, reason=reason)
        self._closed(slot)

    async def _attestation(self, ended: int) -> list[tuple[str, dict[str, Any]]]:
        """The CPF of the window that ends here, where we host a validator and want rewards."""
        grant = self.enrolment.validator_grant
        if grant is None:
            return []
        start = ended - self.genesis.poe.window_slots + 1
        try:
            attestation = await self.gateway.attest_cpf(grant.validator, start, ended)
        except GatewayError:
            return []
        return [(f"cpf/{ended}", {"op": "cpf", "grant": dump(grant), "attestation": attestation})]

    def _observe(self, slot: int, reading: Reading) -> None:
        """
        Teach the forecaster: load from our samples, generation from the register.

        A reading taken long after the slot's end has the energy of the slots after it, too.
        """
        opening = self._opening
        if opening is not None and opening.slot > slot:
            return  # seen before
        on_time = reading.time_ms < self.grid.end_ms(slot) + self.grid.length_s * 250
        self._opening = None if not on_time else _Opening(
            slot + 1, reading.import_wh, reading.export_wh, reading.generation_wh
        )  # fmt: skip
        samples, self._samples = self._samples, []
        if on_time and opening is not None and opening.slot == slot and samples:
            load_w = max(0, sum(samples) // len(samples))
            pv_wh = reading.generation_wh - opening.generation_wh
            self.forecaster.observe(slot, load_w * self.grid.length_s // 3600, max(0, pv_wh))

    async def _steer(self, slot: int) -> None:
        """Sample the home, steer the battery toward the contracted position, tell our state."""
        try:
            state = await self.gateway.state()
        except GatewayError as error:
            log.warning("no state", reason=str(error))
            return
        self._samples.append(int(state["load_w"]))
        with contextlib.suppress(GatewayError):
            await self._set_battery(slot, state)
        self._tell_state(state)

    async def _set_battery(self, slot: int, state: dict[str, Any]) -> None:
        battery, soc_wh = battery_of(state, self.policy)
        opening = self._opening
        if battery is None or soc_wh is None or opening is None or opening.slot != slot:
            return
        position = self.wallet.position(slot)
        if position is None:
            if self._steering:
                self._steering = False
                await self.gateway.release_battery()
            return
        net_so_far_wh = (
            state["import_wh"] - opening.import_wh - state["export_wh"] + opening.export_wh
        )  # fmt: skip
        seconds_left = max(1, (self.grid.end_ms(slot) - self.clock.now_ms()) // 1000)
        power_w = setpoint_w(
            position.net_wh, net_so_far_wh, seconds_left, state["load_w"], state["pv_w"],
            soc_wh, battery, True,
        )  # fmt: skip
        self._steering = True
        period_s = STEER_EVERY_S / self.clock.speed
        await self.gateway.set_battery(power_w, max(1, math.ceil(LEASE_PERIODS * period_s)))

    # --- Telling ---------------------------------------------------------------------------------

    def _tell_state(self, state: dict[str, Any]) -> None:
        body = {
            "online": True,
            "name": self.config.home.name,
            "key": to_text(self.ems_key.public),
            "waiting": self.readings.waiting + self.outbox.waiting,
            **{k: v for k, v in state.items() if k not in ("battery", "time_ms")},
        }
        payload = self._envelope("state", body)
        self.home_bus.publish_soon(self._topic(topics.STATE, self.ems_key.id), payload, retain=True)

    def _will(self) -> tuple[str, bytes, bool]:
        """What the broker says for us when we vanish."""
        body = {
            "online": False,
            "name": self.config.home.name,
            "key": to_text(self.ems_key.public),
        }
        return self._topic(topics.STATE, self.ems_key.id), self._envelope("state", body), True

    async def _say_goodbye(self) -> None:
        topic, payload, retain = self._will()
        self.home_bus.publish_soon(topic, payload, retain=retain)
        await self.home_bus.stop()
        self.store.close()
        self._queue.close()

    def _envelope(self, operation: str, parameters: dict[str, Any]) -> bytes:
        req_id = new_req_id(self.clock.wall_ms(), self.rng.bytes(10))
        envelope = Envelope(self.ems_key.id, req_id, self.clock.now_ms(), operation, parameters)
        return seal_envelope(envelope, self.ems_key, Domain.MESSAGE, self.genesis.chain_id)

    def _topic(self, kind: str, leaf: str = "") -> str:
        return topics.build(self.config.market.name, kind, leaf)

    # --- Keeping ---------------------------------------------------------------------------------

    def _operation_done(self, key: str, operation: dict[str, Any], code: str) -> None:
        self.trader.operation_done(key, operation, code)

    async def _housekeep(self) -> None:
        """Keep the forecaster and how far the ledger was read; drop what is long past."""
        slot_kept = 0
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self.wallet.keep_validators(self.client.validators().to_json())
            self.wallet.keep_heights(self.client.delivered())
            slot = self.grid.slot_at(self.clock.now_ms())
            if slot != slot_kept:
                slot_kept = slot
                with self.store.atomic():
                    self.store.put("forecaster", encode(self.forecaster.to_json()))
                self.wallet.forget_before(slot)
                self.decisions.forget_before(slot)
                self.trader.forget_before(slot)

    def _restored_forecaster(self) -> Forecaster:
        """The forecaster as it was kept; a fresh one where nothing (or nonsense) was."""
        slots_per_day = 86_400 // self.grid.length_s
        raw = self.store.get("forecaster")
        if raw is not None:
            try:
                return Forecaster.from_json(slots_per_day, decode(raw))
            except (ValueError, WireError) as error:
                log.warning("what was learned is lost, learning anew", reason=str(error))
        return Forecaster(slots_per_day)
