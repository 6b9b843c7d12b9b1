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
import shutil
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import structlog

from hem.config import Provisioning
from hem.controller.battery import Battery
from hem.controller.forecast import Forecaster
from hem.controller.limits import GridSide, Limit
from hem.controller.plan import to_json
from hem.controller.policy import Policy
from hem.controller.setpoint import setpoint_w
from hem.ems.addresses import AddressBook, Addresses, OneAddress
from hem.ems.ban_watch import BanWatch
from hem.ems.closing import (
    DELIVERED,
    LATE_SLOTS,
    PASSING,
    WAITING,
    SlotsToClose,
    last_attempt,
    receipt_key,
)
from hem.ems.daylog import DayLog
from hem.ems.decisions import DecisionLog
from hem.ems.enrolment import Enrolment
from hem.ems.firmware import Firmware
from hem.ems.funds import AddressFunds, Funds
from hem.ems.health import Facts, Health, assess
from hem.ems.home_assistant import HomeAssistant
from hem.ems.keyring import Keyring
from hem.ems.lanes import SENDERS, Lane, Lanes
from hem.ems.light import HomeLight, LightView, trusted_point
from hem.ems.limit_book import LimitBook
from hem.ems.planner import PLAN, Planner
from hem.ems.policy_file import PolicyFile
from hem.ems.readings import ReadingOutbox
from hem.ems.renewal import Renewal
from hem.ems.rotation import ems_key_at_start
from hem.ems.schedule import Phase, Timetable
from hem.ems.solver import Solver
from hem.ems.standing import Standings
from hem.ems.starts import Starts
from hem.ems.state_message import state_to_tell
from hem.ems.tls import home_tls
from hem.ems.turning import Parts as TurningParts
from hem.ems.turning import Turning
from hem.ems.wallet import Wallet
from hem.foresight import Foresight, Home
from hem.gateway.client import GatewayClient, GatewayError
from hem.private import make_data_folder
from hem.trader import WATCH_EVERY_MS, Parts, Trader, battery_of
from ledger.asking import Asker
from ledger.client import LedgerClient, QueryError, Validators
from ledger.genesis import load_genesis
from ledger.light_sync import LightFollower
from runtime.bus import MqttBus, lane
from runtime.cpf_folder import put_attestation
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError, RequestLane
from runtime.dso_client import DsoClient
from runtime.outbox import OperationOutbox
from runtime.ports import Bus, Clock, Rng
from runtime.sdnotify import Progress
from runtime.store import PartOfStore, SqliteStore
from wire import topics
from wire.canonical import decode, encode
from wire.certificates import AddressGrant, ValidatorGrant, dump
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import HearthgridError, Refusal, WireError
from wire.keys import KEY_BYTES, Domain, SigningKey, from_text, to_text
from wire.metering import Reading, load_record
from wire.rotation import Rotation, public_ms
from wire.transactions import Transaction
from wire.withdrawal import portioned

if TYPE_CHECKING:
    from hem.web.port import PlanRow

LOOK_AFTER_S = 20
AHEAD_AFTER_S = 60
AHEAD_SPREAD_S = 50
BID_AFTER_S = 120
WATCH_FROM_S = 185
"""Rules are looked at from here on: the bid's minute is over, and nobody steers [s]."""
STEER_EVERY_S = 180
GATEWAY_WAIT_S = 60.0
LEASE_PERIODS = 3
"""A battery lease outlives two missed renewals."""
HOUSEKEEPING_S = 1.0
PLACE_KEPT_S = 60.0
"""How far the ledger was read is kept so often: after a crash, so much is read once more [s]."""
READ_AGAIN_S = 0.2
BANNED_RETRY_S = 10.0
"""A banned home asks for a grant again so often [real s]."""
RELEASE_S = 1.0
"""How long the gateway may take to release the battery when we stop [s]."""
HOUSEKEEPING_WITHIN_S = 60.0
SENDING_WITHIN_S = 300.0
"""A loop that has not come round within this is stuck (`runtime.sdnotify.Progress`)."""
AWAY = frozenset({"UNAVAILABLE", "TIMEOUT", "DEVICE_LOST", "TOO_EARLY"})
"""Gateway errors that may pass."""
NEVER = frozenset({"TOO_LATE", "OUT_OF_ORDER", "GAP", "OTHER_ADDRESS"})
"""Gateway errors that will not pass: this slot's energy cannot be confirmed any more."""

log = structlog.get_logger(component="hem")


def _no_beat() -> None:
    """An address that comes and goes is nothing to be waited for."""


class GrantEndedError(HearthgridError):
    """The grant we traded under has ended: another start gets us a fresh address."""


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
        ready: set while the home trades
        progress: told that the home's loops come round
    """

    def __init__(
        self,
        config: Provisioning,
        clock: Clock,
        rng: Rng,
        ready: asyncio.Event | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.clock, self.rng = config, clock, rng
        self.genesis = load_genesis(config.market.genesis)
        self.grid = self.genesis.grid
        folder = config.home.data_dir
        make_data_folder(folder)
        self.policy_file = PolicyFile(config.policy.file, folder)
        self.gateway = GatewayClient(config.gateway.socket)
        self.keyring, self.store = Keyring(folder / "keys", rng), SqliteStore(folder / "ems.sqlite")
        self._queue = SqliteStore(folder / "outbox.sqlite")
        self.decisions = DecisionLog(self.store)
        self.day, self.standings = DayLog(self.store), Standings(self.store)
        self.enrolment = Enrolment(
            self.store, self.keyring, self.gateway, config.market.name,
            from_text(config.market.csmdb_key, KEY_BYTES),
        )  # fmt: skip
        self.ems_key = ems_key_at_start(self.enrolment, rng)
        self.tls = home_tls(config, self.keyring, clock, rng)
        self.home_bus = self._home_lane()
        self._home_csmdb, self.limits = self._csmdb(self.home_bus), self._limit_book(folder)
        self.renewal = Renewal(
            self.enrolment, clock, self.grid, rng, self._line, config.market.last_slot,
            config.validator.id if config.validator is not None else "", self._renewed,
        )  # fmt: skip
        self.firmware = Firmware(
            config.firmware, folder, self.gateway, self.enrolment, self._line, clock,
            lambda: self._renewed("certificate"),
        )  # fmt: skip
        self.ready, self.progress = ready or asyncio.Event(), progress or Progress()
        self.readings = ReadingOutbox(
            self.store, self.home_bus, self._topic(topics.READING, self.ems_key.id),
            self.progress.expect("readings", SENDING_WITHIN_S),
        )  # fmt: skip
        self.renewal.changing = self.rotation is not None
        self.addresses, self.trading = self._addresses(), False
        """There are an address, its wallet and its lane."""
        self._state: dict[str, Any] = {}
        self._state_ms = 0
        """What the gateway told last, and when."""
        self._last_read_slot, self._heights = -1, dict[str, int]()
        self._block_ms = 0
        """How far the ledger was read, and when it got further last."""
        self._cpf_q16 = -1
        """Of the last attestation; negative: there is none."""
        self.home_assistant = (
            HomeAssistant.on(config.local_broker, config.home.name, rng)
            if config.local_broker is not None else None
        )  # fmt: skip
        self.forecaster = self._restored_forecaster()
        self.planner = Planner(
            self.store, 86_400 // self.grid.length_s, self.grid.length_s,
            zone=config.home.timezone,
        )  # fmt: skip
        self._samples: list[int] = []
        self._opening: _Opening | None = None
        self.to_close = SlotsToClose(self.store)
        self._closing = asyncio.Lock()
        self._said_open: set[int] = set()
        """Slots of which the log says that they could not be closed yet."""
        self._steering = False
        self._light_from = trusted_point(folder, config.light, self.genesis)
        self.light: HomeLight | None = None
        self.wallet: Wallet
        self.outbox: Lanes
        self.client: LedgerClient
        self.trader: Trader
        self.foresight: Foresight
        self.funds: Funds | None = None
        """Of our one address; each of several has its own (`hem.ems.turning`)."""

    def _addresses(self) -> AddressBook | OneAddress:
        if self.rotation is None:
            return OneAddress()
        return AddressBook(
            self.store, self.keyring, self.genesis.chain_id, self.rotation,
            self.config.market.last_slot,
        )  # fmt: skip

    @property
    def bans(self) -> BanWatch:
        """What we make of a ban; it is kept with the firmware."""
        return BanWatch(self.addresses, self.firmware)

    @property
    def rotation(self) -> Rotation | None:
        """When our addresses change, by the genesis; None: they do not."""
        return self.genesis.rotation

    @property
    def grant(self) -> AddressGrant | None:
        """Under which we trade now; None before."""
        if isinstance(self.addresses, OneAddress):
            return self.addresses.grant
        slot = self.grid.slot_at(self.clock.now_ms())
        return self.addresses.grant_of(slot) if self.trading else None

    @property
    def policy(self) -> Policy:
        """The owner's, as it is in force."""
        return self.policy_file.policy

    async def run(self) -> None:
        """
        Work until cancelled.

        Raises:
            CsmDbRefusedError, GrantEndedError: also in a group.
        """
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._stop)
            await stack.enter_async_context(self._serving())
            await self._wait_for_gateway()
            await self._enrol()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.readings.run())
                group.create_task(self.firmware.run())
                if self.tls is not None:
                    group.create_task(self.tls.run())
                if self.home_assistant is not None:
                    group.create_task(self.home_assistant.run(self._figures))
                await self._admitted()
                await self._open_trading_lane()
                await self._catch_up()
                timetable = Timetable(
                    self.clock, self.grid, self._phases(),
                    self.progress.expect("timetable", HOUSEKEEPING_WITHIN_S),
                )  # fmt: skip
                for work in (
                    self.trader.reveal(),
                    timetable.run(),
                    self._housekeep(),
                    self.renewal.run(),
                    *self._turning(),
                ):
                    group.create_task(work)
                if self.light is not None:
                    group.create_task(self.light.run(self._trades))
                self.ready.set()

    async def enrol(self) -> dict[str, Any]:
        """Get certificate and grants where they are missing; who we are then (`hem enroll`)."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._stop)
            await self._wait_for_gateway()
            await self._enrol()
            await self._obtain_grants()
            return self._papers()

    def _papers(self) -> dict[str, Any]:
        """Who we are, by certificate and grants."""
        certificate, grant = self.enrolment.certificate, self._first_grant()
        assert certificate is not None and grant is not None
        spoken = self.enrolment.validator_grant
        return {
            "participant": certificate.subject,
            "roles": certificate.roles,
            "certificateDaysLeft": round(self.renewal.days_left, 1),
            "address": grant.address,
            "grantEndSlot": grant.end_slot,
            "validator": "" if spoken is None else spoken.validator,
        }

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
        """The certificate, where there is none yet."""
        if self.enrolment.certificate is None:
            async with self._stranger() as csmdb:
                await self.enrolment.enrol(csmdb, self.config.home.claim_code)
        if self.tls is not None:
            await self.tls.ensure(self.ems_key.id)
        await self.home_bus.start()

    async def _obtain_grants(self) -> None:
        """
        Grants to trade with, where they are missing or have ended.

        The CSM-DB may be away for long: meanwhile the meter is read, and what it says is kept.
        """
        metering = asyncio.create_task(self._only_meter())
        try:
            first, last = self._window()
            validator = self.config.validator
            await self._obtain_addresses(first, last)
            if validator is not None:
                spoken = self.enrolment.validator_grant
                if spoken is None or spoken.end_slot < first or spoken.validator != validator.id:
                    await self._reach_csmdb()
                await self.enrolment.obtain_validator_grant(
                    self._home_csmdb, validator.id, first, last
                )
        finally:
            metering.cancel()
            await asyncio.gather(metering, return_exceptions=True)

    async def _admitted(self) -> None:
        """
        Grants to trade with; a ban is waited out: firmware may lift it, and meanwhile we meter.

        Raises:
            CsmDbRefusedError: another refusal.
        """
        said = False
        while True:
            try:
                await self._obtain_grants()
            except CsmDbRefusedError as error:
                if error.reason not in (Refusal.BANNED.value, Refusal.UNKNOWN_MAKE.value):
                    raise
                if not said:
                    log.warning("kept out: no grant to trade with, asked again", reason=str(error))
                said = True
                self.bans.tell(is_banned=True)
                await asyncio.sleep(BANNED_RETRY_S)
            else:
                self.bans.tell(is_banned=False)
                return

    async def _obtain_addresses(self, first: int, last: int | None) -> None:
        """Something to trade under."""
        if isinstance(self.addresses, OneAddress):
            known = self.enrolment.grant
            if known is None or known.end_slot < first:
                await self._reach_csmdb()
                await self.enrolment.obtain_grant(self._home_csmdb, first, last)
            return
        while self.addresses.is_urgent(self.grid.slot_at(self.clock.now_ms())):
            await self._reach_csmdb()
            with contextlib.suppress(TimeoutError):
                await self._ask_addresses()

    async def _ask_addresses(self) -> None:
        assert isinstance(self.addresses, AddressBook)
        slot = self.grid.slot_at(self.clock.now_ms())
        async with self._line() as csmdb:
            await self.enrolment.obtain_addresses(csmdb, self.addresses, slot)

    def _first_grant(self) -> AddressGrant | None:
        """Of the address that is used now, or first."""
        if isinstance(self.addresses, OneAddress):
            return self.enrolment.grant
        return next((grant for _, grant in self.addresses.live()), None)

    async def _reach_csmdb(self) -> None:
        """Be let in by the broker, with a certificate that holds."""
        await self.renewal.renew_now()
        await self.home_bus.wait_connected(None)

    async def _only_meter(self) -> None:
        """Read the meter at each slot's end, while there is no grant to trade under."""
        while True:
            next_slot = self.grid.slot_at(self.clock.now_ms()) + 1
            await self.clock.sleep_until(self.grid.start_ms(next_slot))
            await self._close_slot(next_slot)

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[CsmDbClient]:
        """A line to the CSM-DB, also when the broker does not take our certificate any more."""
        if not self.renewal.expired:
            yield self._home_csmdb
            return
        async with self._stranger() as csmdb:
            yield csmdb

    @asynccontextmanager
    async def _stranger(self) -> AsyncIterator[CsmDbClient]:
        """Without a certificate the broker lets us ask for one, and nothing else: no last will."""
        if self.tls is not None:
            yield self._csmdb(self.tls.door_bus())
            return
        bus = lane(
            self.ems_key, self.config.market.name, None, self.config.broker.host,
            self.config.broker.port, self.clock, self.rng,
        )  # fmt: skip
        csmdb = self._csmdb(bus)
        await bus.start()
        try:
            yield csmdb
        finally:
            await bus.stop()

    def _renewed(self, what: str) -> None:
        """Use what the CSM-DB gave us."""
        if what == "certificate":
            self.home_bus.reconnect()
        grant, one = self.enrolment.grant, self.addresses
        if what == "grant" and isinstance(one, OneAddress) and grant and one.grant:
            one.grant = grant
            self._register(grant)

    def _home_lane(self) -> MqttBus:
        return lane(
            self.ems_key, self.config.market.name, lambda: self.enrolment.certificate,
            self.config.broker.host, self.config.broker.port, self.clock, self.rng,
            will=self._will(), tls=self._context_for(self.ems_key.id),
        )  # fmt: skip

    def _context_for(self, identity: str) -> ssl.SSLContext | None:
        """Of the lane of an identity; it may be filled later. None: the broker has no TLS."""
        return self.tls.context_for(identity) if self.tls is not None else None

    def _limit_book(self, folder: Path) -> LimitBook:
        """Limits from outside: the connection's are in the provisioning file."""
        sides: tuple[tuple[GridSide, int | None], ...] = (
            ("import", self.config.grid.import_max_w), ("export", self.config.grid.export_max_w),
        )  # fmt: skip
        connection = tuple(
            Limit(side, power_w, "connection") for side, power_w in sides if power_w is not None
        )
        book = LimitBook(
            self.store, folder, connection, self.ems_key.id, self.config.market.name,
            from_text(self.genesis.supervisor.key, KEY_BYTES), self.clock,
            nudged=lambda: self.firmware.nudge(),  # noqa: PLW0108 (made below)
        )  # fmt: skip
        self.home_bus.subscribe(self._topic(topics.COMMAND, self.ems_key.id), book.take)
        return book

    def _csmdb(self, bus: RequestLane) -> CsmDbClient:
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

    async def _open_trading_lane(self) -> None:
        """Connect under our address; wallet, outbox and ledger client on top of it."""
        grant = self._first_grant()
        assert grant is not None
        one = self.addresses if isinstance(self.addresses, OneAddress) else None
        bus = self.home_bus
        if one is not None:
            one.grant, key = grant, self.keyring.address(self.enrolment.address_number)
            bus = self._lane_bus(key, lambda: self.enrolment.grant)
        self.wallet = Wallet(self.store, grant.address, self.addresses)
        # with addresses that change, events are followed under none of them
        asker = grant.address if one is not None else self.ems_key.id
        self.client = LedgerClient(
            bus, self.genesis, self.clock, asker, resume=self.wallet.resume(), from_start=True,
            rng=self.rng, validators=Validators.kept(self.wallet.validators()),
        )  # fmt: skip
        if one is not None:
            lane = Lane(bus, self._make_outbox(key, bus))
            self.outbox = self._lanes(one, lambda _: lane)
        else:
            self.outbox = self._changing_lanes()
        self.take_up_trade()
        self.client.on_event(self.wallet.take_event)
        self.client.on_event(self.outbox.take_event)
        self.client.on_event(self.trader.take_event)
        self.client.on_event(self.standings.take_event)
        self.client.on_event(self.bans.take_event)
        await self.client.start()
        self.light = self._light_client(asker, bus)
        if self.light is not None:
            await self.light.start()
        if one is not None:
            await self.outbox.open(grant)
            self._register(grant)
        await self._reopen_lanes()
        self.trading = True
        self._write_identity(grant.address)
        log.info("trading", home=self.config.home.name, address=grant.address)

    async def _reopen_lanes(self) -> None:
        """Of addresses that are known already: the slots that ended while we were away have one."""
        if isinstance(self.addresses, AddressBook):
            for _, grant in self.addresses.live():
                if self.wallet.is_registered(grant.address):
                    await self.outbox.open(grant)

    def _lane_bus(self, key: SigningKey, credential: Callable[[], AddressGrant | None]) -> MqttBus:
        return lane(
            key, self.config.market.name, credential, self.config.broker.host,
            self.config.broker.port, self.clock, self.rng, tls=self._context_for(key.id),
        )  # fmt: skip

    async def _certify(self, address: str) -> None:
        """Wait until the lane of an address has a TLS certificate, however long that takes."""
        assert self.tls is not None
        said = False
        while True:
            try:
                await self.tls.ensure(address)
            except CsmDbRefusedError as error:
                if not said:
                    log.warning("no TLS certificate for an address, asked again", reason=str(error))
                said = True
                await asyncio.sleep(BANNED_RETRY_S)
            else:
                return

    def _lanes(
        self, addresses: Addresses, make: Callable[[AddressGrant], Lane], spread_s: float = 0.0
    ) -> Lanes:
        if self.tls is None:
            return Lanes(addresses, make, self._queue, spread_s)
        return Lanes(addresses, make, self._queue, spread_s, self._certify, self.tls.forget)

    def _changing_lanes(self) -> Lanes:
        """A lane for each address in turn, which tells nothing of our clock."""
        rule, book = self.rotation, self.addresses
        assert rule is not None and isinstance(book, AddressBook)

        def dated(now_ms: int) -> int:
            return public_ms(self.grid, now_ms)

        def make(grant: AddressGrant) -> Lane:
            key = book.key(rule.period(grant.start_slot))
            bus = self._lane_bus(key, lambda: grant)
            asker = Asker(
                bus, self.genesis, self.clock, key.id, self.rng, self.client.validators,
                lambda: dated(self.clock.now_ms()),
            )  # fmt: skip
            asker.start()
            return Lane(bus, self._make_outbox(key, bus, asker, dated))

        return self._lanes(book, make, rule.spread_s)

    def _turning(self) -> list[Coroutine[Any, Any, None]]:
        """What changes our addresses, where they change."""
        if not isinstance(self.addresses, AddressBook):
            return []
        turning = Turning(
            TurningParts(
                genesis=self.genesis, book=self.addresses, lanes=self.outbox, wallet=self.wallet,
                funds=AddressFunds(self.store, self._dso(), self._withdrawable),
                to_close=self.to_close,
                clock=self.clock, rng=self.rng, caught_up=lambda: self.client.caught_up,
                ask=self._ask_addresses, turned=self._turn_to,
            )
        )  # fmt: skip
        return [turning.run()]

    async def _turn_to(self, address: str) -> None:
        """Another address is in use."""
        self._write_identity(address)
        lane = self.outbox.of_address(address)
        if self.light is not None and lane is not None:
            await self.light.prove_on(lane.bus, address)

    def _light_client(self, asker: str, bus: MqttBus) -> HomeLight | None:
        """The light client on the trading lane, where the owner wants it."""
        if not self.config.light.enabled:
            return None
        follower = LightFollower(
            bus, self.genesis, self.clock, asker, trust=self._light_from, rng=self.rng
        )
        return HomeLight(
            follower, self.wallet, self.store, self.config.home.data_dir, self.clock,
            lambda: self.client.caught_up, self.config.light.period_s,
        )  # fmt: skip

    def _register(self, grant: AddressGrant) -> None:
        """Tell the ledger of our grant, and again when it was made longer."""
        name = f"register/{grant.address}"
        if self.outbox.state_of(name) not in ("", WAITING):
            name = f"{name}/{grant.end_slot}"
        operation = {"op": "register-address", "grant": dump(grant)}
        self.outbox.add([(name, operation)], grant.end_slot)

    def take_up_trade(self) -> None:
        """Make what trades; wallet and outbox are there."""
        zone = ZoneInfo(self.config.home.timezone)
        self.foresight = Foresight(
            self.planner, Starts(self.store, self.grid, Solver().plan, zone), self.grid,
            Home(
                policy=lambda: self.policy,
                tariff=lambda slot: self.trader.rules.tariff(slot),  # noqa: PLW0108 (made below)
                price=self.wallet.price, caps=self.limits.between,
                day_s=lambda slot: self.trader.day_s(slot),  # noqa: PLW0108
            ),
            self.clock.speed,
        )  # fmt: skip
        self.trader = Trader(
            Parts(
                genesis=self.genesis, addresses=self.addresses, policy=self.policy,
                wallet=self.wallet, outbox=self.outbox, decisions=self.decisions,
                forecaster=self.forecaster, store=self.store, clock=self.clock, rng=self.rng,
                state=self.gateway.state,
                caught_up=lambda: self.client.caught_up, zone=zone,
                caps=self.limits.between, policy_error=lambda: self.policy_file.error,
                value_after=self.foresight.value_after,
                discreet=isinstance(self.addresses, AddressBook),
            )
        )  # fmt: skip
        if isinstance(self.addresses, OneAddress):
            self.funds = Funds(
                self.policy.wallet,
                self.wallet,
                self.addresses,
                self.store,
                self._dso(),
                self._withdrawable,
            )

    def _dso(self) -> DsoClient:
        return DsoClient(
            self.home_bus, self.ems_key, self.keyring.box, self.config.market.name,
            from_text(self.genesis.supervisor.key, KEY_BYTES),
            from_text(self.genesis.dso_box_key, KEY_BYTES), self.clock, self.rng,
        )  # fmt: skip

    def _withdrawable(self, grant: AddressGrant) -> AddressGrant:
        """The grant with limits that the DSO allows us, not only our class of connections."""
        certificate = self.enrolment.certificate
        if certificate is None:
            return grant
        return portioned(grant, certificate, self.grid.length_s)

    def _write_identity(self, address: str) -> None:
        """Who we are, for the household's own tools; the folder is readable by us only."""
        facts = {"participant": self.ems_key.id, "address": address}
        path = self.config.home.data_dir / "identity.json"
        path.write_bytes(encode(facts) + b"\n")

    def _make_outbox(
        self,
        key: SigningKey,
        bus: Bus,
        own: Asker | None = None,
        dated: Callable[[int], int] | None = None,
    ) -> OperationOutbox:
        """
        The outbox of an address.

        Args:
            own: asks under this address, one of several
            dated: the time that its transactions name
        """

        async def next_nonce() -> int:
            try:
                account = await (own or self.client).query("account", key.id)
            except QueryError as error:
                raise TimeoutError(str(error)) from None
            return int(account.get("nonce", 0))

        async def receipt(transaction: Transaction) -> dict[str, Any]:
            return await (own or self.client).receipt(transaction)

        rule = self.rotation
        part = self._queue if rule is None else PartOfStore(self._queue, f"{SENDERS}{key.id}/")
        return OperationOutbox(
            part, key, self.config.market.name, self.genesis.chain_id, self.grid, bus,
            self.clock, self.rng, next_nonce, receipt, self._operation_done,
            beat=self.progress.expect("operations", SENDING_WITHIN_S) if own is None else _no_beat,
            keys=self._queue, spread_s=rule.spread_s if rule is not None else 0.0, dated=dated,
        )  # fmt: skip

    def _phases(self) -> list[Phase]:
        length_s = self.grid.length_s
        steering = range(STEER_EVERY_S, length_s, STEER_EVERY_S)
        watching = range(WATCH_FROM_S, length_s, WATCH_EVERY_MS // 1000)
        # spread over the homes, or all would look at the board at once and take the same offers
        fixed = self.rotation is None
        spread_s = zlib.crc32(self.wallet.address.encode()) % AHEAD_SPREAD_S if fixed else 0
        ahead_s = min(AHEAD_AFTER_S + spread_s, length_s // 8)
        return [
            Phase("begin", 0, self._begin_slot, again=True),
            Phase("look", min(LOOK_AFTER_S, length_s // 16), self._look_ahead),
            Phase("ahead", ahead_s, self._trade_ahead),
            Phase("bid", min(BID_AFTER_S, length_s // 4), self.trader.bid),
            *(Phase(f"rules-{at}", at, self.trader.watch) for at in watching),
            *(Phase(f"steer-{at}", at, self._tick, again=True) for at in steering),
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

    async def _look_ahead(self, slot: int) -> None:
        """Forecast, and value what is stored, from what was metered up to now."""
        battery, soc_wh = battery_of(self._state, self.policy) if self._fresh() else (None, None)
        await self.foresight.look(slot, battery, soc_wh)
        if self.foresight.plan is not None:
            with self.store.atomic():
                self.store.put(PLAN, to_json(self.foresight.plan))

    async def _trade_ahead(self, slot: int) -> None:
        if self.rotation is not None:  # a moment of our own, another one in each slot
            wait_s = self.rng.uniform(0, min(AHEAD_SPREAD_S, self.grid.length_s / 16))
            await asyncio.sleep(wait_s / self.clock.speed)
        await self.trader.trade_ahead(slot)
        if self.funds is not None:
            assert self.grant is not None
            self.outbox.add(await self.funds.tend(slot), min(slot, self.grant.end_slot))

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
        if not self._trades_yet:
            await self._read(ended)
            kept = self.enrolment.grant
            waits = self.rotation is not None or (
                kept is not None and kept.start_slot <= ended <= kept.end_slot
            )
            if not waits:
                self._closed(ended)  # else its receipt is made as soon as we trade
            return
        if self.addresses.is_over(ended):
            await self._read(ended)
            self._give_up(ended, "its address was never registered, or is over")
            return
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
        await self._read(ended)
        grant = self.addresses.grant_of(ended)
        operations = await self._attestation(ended)
        if grant is None:
            self._closed(ended)
            return
        try:
            receipt = await self.gateway.sign_receipt(grant.address, ended)
            operation = {"op": "receipt", "receipt": receipt}
            operations.insert(0, (receipt_key(ended, attempt), operation))
        finally:
            self.outbox.add(operations, ended)

    async def _read(self, ended: int) -> None:
        """Let the gateway sign the registers at a slot's end; the reading is on its way."""
        signed = await self.gateway.sign_reading(ended)
        self.readings.add(ended, from_text(signed["sealed"]))
        self._observe(ended, load_record(Reading, signed["reading"]))
        self._last_read_slot = max(ended, self._last_read_slot)

    def _closed(self, slot: int) -> None:
        self.to_close.done(slot)
        self._said_open.discard(slot)

    def _give_up(self, slot: int, reason: str) -> None:
        log.warning("no receipt for a slot", slot=slot, reason=reason)
        self._closed(slot)

    async def _attestation(self, ended: int) -> list[tuple[str, dict[str, Any]]]:
        """The CPF of the window that ends here, where we host a validator and want rewards."""
        grant = self.enrolment.validator_grant
        if grant is None or not grant.start_slot <= ended <= grant.end_slot:
            return []
        start = ended - self.genesis.poe.window_slots + 1
        try:
            attestation = await self.gateway.attest_cpf(grant.validator, start, ended)
        except GatewayError:
            return []
        self._cpf_q16 = int(attestation["cpf_q16"])
        if self.rotation is not None:
            self._hand_over(grant, attestation)
            return []
        return [(f"cpf/{ended}", {"op": "cpf", "grant": dump(grant), "attestation": attestation})]

    def _hand_over(self, grant: ValidatorGrant, attestation: dict[str, Any]) -> None:
        """Leave it to our validator: from an address it would say whose address that is."""
        folder = self.config.validator.folder if self.config.validator is not None else None
        if folder is None:
            return
        try:
            put_attestation(folder, int(attestation["end_slot"]), dump(grant), attestation)
        except OSError as error:
            log.warning("attestation not handed to the validator", reason=str(error))

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
        if not on_time or opening is None or opening.slot != slot:
            self.day.skip()
            return
        flowed_wh = (
            reading.import_wh - opening.import_wh, reading.export_wh - opening.export_wh,
            reading.generation_wh - opening.generation_wh,
        )  # fmt: skip
        expected = self.forecaster.forecast(slot)  # as it was before we knew
        price = self.wallet.price(slot) if self._trades_yet else None
        self.day.close(slot, self.grid.length_s, flowed_wh, expected, price)
        if samples:
            load_w = max(0, sum(samples) // len(samples))
            pv_wh = max(0, flowed_wh[2])
            load_wh = load_w * self.grid.length_s // 3600
            self.forecaster.observe(slot, load_wh, pv_wh)
            self.planner.observe(slot, load_wh, pv_wh)

    async def _steer(self, slot: int) -> None:
        """Sample the home, steer the battery toward the contracted position, tell our state."""
        try:
            state = await self._ask_state()
        except GatewayError as error:
            log.warning("no state", reason=str(error))
            return
        self._samples.append(int(state["load_w"]))
        self.day.sample(int(state["battery_w"]), int(state["soc_permille"]))
        with contextlib.suppress(GatewayError):
            await self._set_battery(slot, state)
        self._tell_state(state)

    async def _ask_state(self) -> dict[str, Any]:
        self._state = await self.gateway.state()
        self._state_ms = self.clock.now_ms()
        return self._state

    async def _set_battery(self, slot: int, state: dict[str, Any]) -> None:
        battery, soc_wh = battery_of(state, self.policy)
        opening = self._opening
        if battery is None or soc_wh is None or opening is None or opening.slot != slot:
            return
        position = self.wallet.position(slot)
        now_ms = self.clock.now_ms()
        caps = self.limits.between(now_ms, now_ms + 1)
        seconds_left = max(1, (self.grid.end_ms(slot) - now_ms) // 1000)
        reserve_wh = battery.capacity_wh * self.trader.reserve_permille(slot, state) // 1000
        if position is None:
            await self._by_value(slot, state, soc_wh, battery, seconds_left, reserve_wh)
            return
        net_so_far_wh = (
            state["import_wh"] - opening.import_wh - state["export_wh"] + opening.export_wh
        )  # fmt: skip
        power_w = setpoint_w(
            position.net_wh, net_so_far_wh, seconds_left, state["load_w"], state["pv_w"],
            soc_wh, battery, True, reserve_wh, caps,
        )  # fmt: skip
        await self._hold(power_w)

    async def _by_value(
        self, slot: int, state: dict[str, Any], soc_wh: int, battery: Battery, seconds_left: int,
        reserve_wh: int,
    ) -> None:  # fmt: skip
        """Without a contract the battery goes by what stored energy is worth, or by itself."""
        power_w = self.foresight.steer_w(
            slot, state["load_w"], state["pv_w"], soc_wh, battery, seconds_left, reserve_wh
        )
        if power_w is not None:
            await self._hold(power_w)
        elif self._steering:
            self._steering = False
            await self.gateway.release_battery()

    async def _hold(self, power_w: int) -> None:
        self._steering = True
        period_s = STEER_EVERY_S / self.clock.speed
        await self.gateway.set_battery(power_w, max(1, math.ceil(LEASE_PERIODS * period_s)))

    # --- Telling ---------------------------------------------------------------------------------

    def _tell_state(self, state: dict[str, Any]) -> None:
        """Our state, for the operators; what the household calls its home is not theirs to know."""
        told = state_to_tell(state, self.rotation is None or self.config.home.share_powers)
        body = {
            "online": True,
            "key": to_text(self.ems_key.public),
            "waiting": self.readings.waiting + self.outbox.waiting,
            **told,
        }
        payload = self._envelope("state", body)
        self.home_bus.publish_soon(self._topic(topics.STATE, self.ems_key.id), payload, retain=True)

    def _will(self) -> tuple[str, bytes, bool]:
        """What the broker says for us when we vanish."""
        body = {
            "online": False,
            "key": to_text(self.ems_key.public),
        }
        return self._topic(topics.STATE, self.ems_key.id), self._envelope("state", body), True

    async def _stop(self) -> None:
        """Say goodbye, leave the battery to the home; whatever was not sent stays for later."""
        self.ready.clear()
        self.progress.rest()
        topic, payload, retain = self._will()
        self.home_bus.publish_soon(topic, payload, retain=retain)
        parts: list[Coroutine[Any, Any, None]] = [self._release_battery(), self.home_bus.stop()]
        if self.trading:
            parts += [self.client.stop(), self.outbox.stop()]
        await asyncio.gather(*parts, return_exceptions=True)
        if self.trading:
            self._keep_place()
        if self.light is not None:
            self.light.keep()
        self.close()

    def close(self) -> None:
        """Close the files of a home that does not run."""
        self.store.close()
        self._queue.close()

    async def _release_battery(self) -> None:
        """The gateway does so by itself when it stops, too, and when our lease ends."""
        if self._steering:
            async with asyncio.timeout(RELEASE_S):
                await self.gateway.release_battery()

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        """The household's page, health and metrics over HTTP, where the owner wants them."""
        if self.config.http is None:
            yield
            return
        # a home without it is smaller
        from hem.ems import health_page  # noqa: PLC0415
        from hem.web.access import Credentials  # noqa: PLC0415
        from hem.web.app import application  # noqa: PLC0415
        from hem.web.living_home import LivingHome  # noqa: PLC0415
        from runtime.http import listen, serving  # noqa: PLC0415

        where = self.config.http
        url_file = self.config.home.data_dir / "http.url"
        listener = listen(where.host, where.port, "http.port", "http.host")
        page = application(
            LivingHome(self, self._plan_rows), Credentials(self.store), self.rng,
            health_page.application(self.facts), where.names,
            metrics_open=where.metrics == "open",
        )  # fmt: skip
        async with serving(page, listener, url_file):
            yield

    def _plan_rows(self) -> list[PlanRow]:
        """What the home will do if all comes as expected, for its page."""
        from hem.web.port import PlanRow  # noqa: PLC0415  (only where there is a page)

        plan = self.foresight.plan if self._trades_yet else None
        return [
            PlanRow(
                one.slot, one.load_wh, one.pv_wh, one.charge_wh, one.discharge_wh, one.import_wh,
                one.export_wh, one.soc_wh, one.import_price_uc_per_kwh,
                one.export_price_uc_per_kwh,
            )
            for one in (plan.slots if plan is not None else ())
        ]  # fmt: skip

    async def _figures(self) -> dict[str, Any]:
        """What the household may see of its home, for Home Assistant."""
        figures = dict(self._state) if await self.look() else {}
        slot = self.grid.slot_at(self.clock.now_ms())
        if self._trades_yet:
            position = self.wallet.position(slot)
            figures |= {
                "balance_uc": self.wallet.balance["balanceUc"],
                "position_wh": 0 if position is None else position.net_wh,
                "price_uc_per_kwh": self.wallet.price(slot),
            }
        if self._cpf_q16 >= 0:
            figures["cpf_q16"] = self._cpf_q16
        return figures

    # --- How we are ------------------------------------------------------------------------------

    @property
    def state(self) -> dict[str, Any]:
        """What the gateway told last; empty before."""
        return self._state

    async def look(self) -> bool:
        """Ask the gateway how the home is; False when it has not told lately."""
        with contextlib.suppress(GatewayError):
            await self._ask_state()
        return self._fresh()

    def health(self) -> Health:
        """How the home is, with reasons."""
        return assess(self.facts())

    def facts(self) -> Facts:
        """What health and metrics are made of."""
        now_ms = self.clock.now_ms()
        slot_ms = self.grid.length_s * 1000
        waiting = self.readings.waiting
        trading = self.trading
        return Facts(
            trading=self.ready.is_set(),
            home_connected=self.home_bus.connected,
            trade_connected=self._trades(),
            state_age_slots=(now_ms - self._state_ms) / slot_ms if self._state_ms else math.inf,
            devices=dict(self._state.get("devices", {})),
            last_read_slot=self._last_read_slot,
            slots_unread=max(self.grid.slot_at(now_ms) - 1 - self._last_read_slot, 0)
            if self._last_read_slot >= 0 else -1,
            height=max(self._heights.values(), default=-1),
            block_age_slots=(now_ms - self._block_ms) / slot_ms if self._block_ms else math.inf,
            certificate=self.renewal.state,
            certificate_days=self.renewal.days_left,
            grant_slots_left=self._grant_slots_left(self.grid.slot_at(now_ms)),
            waiting_readings=waiting,
            waiting_operations=self.outbox.waiting if trading else 0,
            disk_free_bytes=shutil.disk_usage(self.config.home.data_dir).free,
            stuck=tuple(self.progress.stuck()),
            policy_error=self.policy_file.error,
            limits_error=self.limits.error,
            light=LightView() if self.light is None else self.light.view,
            figures={
                **{k: v for k, v in self._state.items() if isinstance(v, int)},
                **self.planner.accuracy.figures(),
                **({"balance_uc": self.wallet.balance["balanceUc"],
                    "locked_uc": self.wallet.balance["lockedUc"]} if trading else {}),
            },
        )  # fmt: skip

    def _trades(self) -> bool:
        """The trading lane stands."""
        if not self.trading:
            return False
        slot = self.grid.slot_at(self.clock.now_ms())
        lane = self.outbox.of(slot) or self.outbox.of(slot + 1)  # the first one is for the next
        return lane is not None and lane.bus.connected

    @property
    def _trades_yet(self) -> bool:
        """There are a wallet, and an address, now or before."""
        if isinstance(self.addresses, OneAddress):
            return self.addresses.grant is not None
        return self.trading

    def _grant_slots_left(self, slot: int) -> int:
        if isinstance(self.addresses, AddressBook):
            return max(self.addresses.end_slot - slot, 0)
        return self.addresses.grant.end_slot - slot if self.addresses.grant is not None else 0

    def _fresh(self) -> bool:
        """The gateway has answered within a slot."""
        return self.clock.now_ms() - self._state_ms < self.grid.length_s * 1000

    def _envelope(self, operation: str, parameters: dict[str, Any]) -> bytes:
        req_id = new_req_id(self.clock.wall_ms(), self.rng.bytes(10))
        envelope = Envelope(self.ems_key.id, req_id, self.clock.now_ms(), operation, parameters)
        return seal_envelope(envelope, self.ems_key, Domain.MESSAGE, self.genesis.chain_id)

    def _topic(self, kind: str, leaf: str = "") -> str:
        return topics.build(self.config.market.name, kind, leaf)

    # --- Keeping ---------------------------------------------------------------------------------

    def _operation_done(self, key: str, operation: dict[str, Any], code: str) -> None:
        self.bans.operation_done(code)
        self.trader.operation_done(key, operation, code)

    async def _housekeep(self) -> None:
        """Keep the forecaster and how far the ledger was read; drop what is long past."""
        slot_kept, kept_at_s = 0, self.clock.monotonic_s()
        beat = self.progress.expect("housekeeping", HOUSEKEEPING_WITHIN_S)
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            beat()
            self._look_at_wishes()
            heights = self.client.delivered()
            if heights != self._heights:
                self._heights, self._block_ms = heights, self.clock.now_ms()
            if self.clock.monotonic_s() - kept_at_s >= PLACE_KEPT_S:
                kept_at_s = self.clock.monotonic_s()
                self._keep_place()
            slot = self.grid.slot_at(self.clock.now_ms())
            if slot != slot_kept:
                slot_kept = slot
                self._check_grant(slot)
                with self.store.atomic():
                    self.store.put("forecaster", encode(self.forecaster.to_json()))
                self.wallet.forget_before(slot)
                self.decisions.forget_before(slot)
                self.day.forget_before(slot)
                self.standings.forget_before(slot)
                self.trader.forget_before(slot)

    def _look_at_wishes(self) -> None:
        """Take up what the owner, or somebody at this machine, has changed."""
        self.limits.look()
        if self.policy_file.look():
            self.trader.renew_policy(self.policy)
            if self.funds is not None:
                self.funds.renew_policy(self.policy.wallet)

    def _keep_place(self) -> None:
        """
        Write down how far the ledger was read.

        A crash before it costs reading on from the place before, and changes nothing: whoever takes
        events takes one that was taken already as often as it comes.
        """
        self.wallet.keep_place(self.client.delivered(), self.client.validators().to_json())

    def _check_grant(self, slot: int) -> None:
        """
        Go on while we may trade, or may still send receipts for what we traded.

        Raises:
            GrantEndedError: both are over, though the trial is not.
        """
        if self.rotation is not None:
            return
        assert self.grant is not None
        end_slot, last_slot = self.grant.end_slot, self.config.market.last_slot
        if slot > end_slot + LATE_SLOTS and (last_slot is None or end_slot < last_slot):
            raise GrantEndedError(f"the address' grant ended with slot {end_slot}")

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
