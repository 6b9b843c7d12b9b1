"""
The gateway process: devices on one side, the EMS's socket on the other, the meter key inside.

It runs as its own process (under systemd as its own user), so that a trading program that was
broken into cannot forge a reading. It polls when asked, and never oftener than its cache allows.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

from hem.config import MarketFacts, Provisioning, load_market_facts, load_provisioning
from hem.gateway.connected import Log
from hem.gateway.devices import Site, SiteState
from hem.gateway.firmware import FirmwareKeeper
from hem.gateway.leases import BOOK, LeaseBook, start_watchdog
from hem.gateway.meterbook import MeterBook, load_meter_key
from hem.gateway.modbus import DeviceError, DeviceLostError
from hem.gateway.protocol import (
    FIRMWARE_METHODS,
    AttestParams,
    BatteryParams,
    CpfParams,
    InstallParams,
    Params,
    PartParams,
    PseudonymParams,
    ReadingParams,
    ReceiptParams,
    RpcError,
)
from hem.gateway.roles import Battery
from hem.gateway.server import RpcServer
from hem.gateway.sharing import SharedLine
from hem.gateway.signer import Registers, SigningRefusedError
from hem.gateway.template import DETAILS
from hem.locks import lock_within
from runtime.clock import clock_from_environment
from runtime.log import configure
from runtime.ports import Clock, Store
from runtime.sdnotify import alive
from runtime.store import SqliteStore
from wire.errors import ConfigError
from wire.keys import to_text

LEASE_SLACK_S = 0.5
"""The device ends a lease itself; this much later we look whether it did."""
ALONE_S = 5.0
"""A lease outlives its last caller by so much: it may just be starting anew [real s]."""
WATCH_EVERY_S = 2.0
"""Between two looks whether a watchdog answers [real s]."""
LOCK_WAIT_S = 5.0
STOP_TIMEOUT_S = 3.0


class Gateway:
    """Answers the RPC of one home."""

    def __init__(
        self,
        config: Provisioning,
        book: MeterBook,
        clock: Clock,
        log: Log,
        store: Store | None = None,
        leases: LeaseBook | None = None,
    ) -> None:
        self._config = config.gateway
        self._book = book
        self._clock = clock
        self._log = log
        self._leases = leases
        self._site = Site(
            config.devices,
            config.gateway.timeout_s,
            log,
            store,
            leases,
            config.home.data_dir.parent,
            [section.device for section in config.proxy],
            config.gateway.still_s,
        )
        self._lines = [
            SharedLine(section, self._site, log, clock.monotonic_s) for section in config.proxy
        ]
        self.firmware = FirmwareKeeper(
            config.home.data_dir / "gateway" / "firmware",
            config.firmware.root if config.firmware is not None else None,
            self._site,
            log,
        )
        self._market = config.market.name
        self._polled_at_s = -1e9
        self._state = SiteState()
        self._polling: asyncio.Task[SiteState] | None = None
        self._signing = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._commanding = asyncio.Lock()  # a setpoint is several writes: never mix two

    async def dispatch(self, method: str, params: Params) -> Any:
        """
        Answer one request.

        Raises:
            RpcError: by code.
        """
        if self._farewell is not None:
            self._farewell.cancel()
        try:
            return await self._dispatch(method, params)
        except SigningRefusedError as error:
            raise RpcError(error.code, str(error)) from None
        except DeviceLostError as error:
            raise RpcError("DEVICE_LOST", str(error)) from None
        except DeviceError as error:
            raise RpcError("REJECTED", str(error)) from None

    async def _dispatch(self, method: str, params: Params) -> Any:
        match params:
            case PseudonymParams(label=label):
                return {"key": to_text(self._book.pseudonym(label))}
            case ReadingParams(slot=slot):
                return await self._sign_reading(slot)
            case ReceiptParams(address=address, slot=slot):
                return self._book.sign_receipt(address, slot)
            case CpfParams(validator=validator, start_slot=start, end_slot=end):
                return self._book.attest_cpf(validator, start, end)
            case BatteryParams(power_w=power_w, lease_s=lease_s):
                return await self._set_battery(power_w, lease_s)
        if method in FIRMWARE_METHODS:
            return await self._firmware(params)
        match method:
            case "public_keys":
                return {"meter": to_text(self._book.public)}
            case "nameplate":
                return await self._nameplate()
            case "state":
                return self._state_json(await self._poll(fresh=False))
            case "release_battery":
                return await self._release()
        raise RpcError("UNKNOWN_METHOD", method)

    async def close(self) -> None:
        """Leave the battery neutral, drop the connections."""
        if self._farewell is not None:
            self._farewell.cancel()
        await self.firmware.close()
        with suppress(DeviceError, TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._restore()
        self._site.close()

    async def serve_guests(self) -> None:
        """Share the lines that the file says; cancel to stop."""
        async with asyncio.TaskGroup() as group:
            for line in self._lines:
                group.create_task(line.serve())

    def left_alone(self) -> None:
        """The last caller hung up: one that holds the battery is dead, unless it is back soon."""
        if self._farewell is not None:
            self._farewell.cancel()
        self._farewell = asyncio.get_running_loop().call_later(ALONE_S, self._end_lease)

    def _end_lease(self) -> None:
        if self._keeper is not None and not self._keeper.done():
            self._log.warning("battery lease ended", why="whoever took it hung up")
            self._ending = asyncio.create_task(self._restore_quietly())

    async def _restore_quietly(self) -> None:
        with suppress(DeviceError):  # the loss is logged; its own timer, or the watchdog, counts
            await self._restore()

    async def watch_over_leases(self) -> None:
        """Keep a watchdog running while a battery needs one; cancel to stop."""
        leases = self._leases
        if leases is None or not self._site.watched:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(leases.keep_beating(self._give_back))
            await self._keep_watchdog(leases)

    async def _keep_watchdog(self, leases: LeaseBook) -> None:
        """Start one whenever none answers; what cannot be started now is tried again."""
        process: Popen[bytes] | None = None
        said = False
        while True:
            gone = process is None or process.poll() is not None
            if not await leases.alive() and gone:
                try:
                    process = start_watchdog(leases.path)
                except OSError as error:  # no memory or process is left: that may pass
                    if not said:
                        self._log.warning("watchdog not started, tried again", why=str(error))
                    said = True
                else:
                    self._log.info("watchdog started", why=leases.trouble)
                    said = False
            await asyncio.sleep(WATCH_EVERY_S)

    async def _give_back(self, device: str) -> None:
        """What the watchdog has to restore and cannot reach."""
        storage = self._site.watched.get(device)
        if storage is not None:
            await storage.restore_neutral()

    async def _poll(self, *, fresh: bool) -> SiteState:
        """The site's state, at most `cache_s` old, or read from now on when `fresh`."""
        if fresh and self._polling is not None:
            await asyncio.shield(self._polling)  # it may have asked before now
        if self._polling is None:
            age_s = self._clock.monotonic_s() - self._polled_at_s
            if not fresh and age_s < self._config.cache_s:
                return self._state
            self._polling = asyncio.create_task(self._site.poll(self._clock.monotonic_s()))
            self._polling.add_done_callback(self._polled)
        return await asyncio.shield(self._polling)

    def _polled(self, task: asyncio.Task[SiteState]) -> None:
        self._polling = None
        if not task.cancelled() and task.exception() is None:
            self._state = task.result()
            self._polled_at_s = self._clock.monotonic_s()

    def _state_json(self, state: SiteState) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "time_ms": self._clock.now_ms(),
            "grid_w": state.grid_w,
            "pv_w": state.pv_w,
            "battery_w": state.battery_w,
            "load_w": state.load_w,
            "soc_permille": state.soc_permille,
            "import_wh": state.import_wh or 0,
            "export_wh": state.export_wh or 0,
            "generation_wh": state.generation_wh or 0,
            "devices": state.devices,
        }
        if state.battery is not None:
            answer["battery"] = {
                "capacity_wh": state.battery.capacity_wh,
                "max_charge_w": state.battery.max_charge_w,
                "max_discharge_w": state.battery.max_discharge_w,
            }
        return answer

    async def _sign_reading(self, slot: int) -> dict[str, Any]:
        async with self._signing:
            known = self._book.signed(slot)
            if known is not None:
                return known
            if self._clock.now_ms() < self._book.end_ms(slot):
                raise RpcError("TOO_EARLY", f"slot {slot} has not ended")
            state = await self._poll(fresh=True)
            registers = self._registers(state)
            return self._book.sign_reading(slot, self._clock.now_ms(), registers)

    def _registers(self, state: SiteState) -> Registers:
        meter = self._site.meter
        if meter is None:
            raise RpcError("NO_METER", "no device is configured as the grid's meter")
        if not meter.ok or state.import_wh is None or state.export_wh is None:
            raise RpcError("DEVICE_LOST", f"the meter {meter.name!r} does not answer")
        if state.generation_wh is None:
            # An inverter asleep has produced nothing since; one never met may have.
            raise RpcError("DEVICE_LOST", "an inverter has not answered yet")
        return Registers(state.import_wh, state.export_wh, state.generation_wh)

    async def _nameplate(self) -> dict[str, str]:
        await self._poll(fresh=False)
        meter = self._site.meter
        if meter is None or not meter.device.met:
            raise RpcError("DEVICE_LOST", "the meter has not answered yet")
        known = {name: meter.nameplate.get(name, "") for name in DETAILS}  # many say less
        return {"type": meter.device.product, **known}

    async def _firmware(self, params: Params) -> dict[str, Any]:
        match params:
            case PartParams(name=name, offset=offset, data=data):
                return dict(self.firmware.take_part(name, offset, data))
            case InstallParams(name=name):
                return await self.firmware.install(name)
            case AttestParams(nonce=nonce):
                return await self._attest(nonce)
        return self.firmware.status()

    async def _attest(self, nonce: str) -> dict[str, Any]:
        """What the plate says now; what is cached could be from before a restart."""
        plate = await self.firmware.plate()
        digest = self.firmware.digest_of(plate.firmware)
        now_ms = self._clock.now_ms()
        return self._book.attest_firmware(plate, digest, now_ms, nonce, self._market)

    async def _set_battery(self, power_w: int, lease_s: int) -> dict[str, int]:
        battery = self._site.battery
        if battery is None:
            raise RpcError("NO_BATTERY", "no device is configured as the battery")
        async with self._commanding:  # no write of the keeper's is cut off
            self._stop_keeper()  # also where the new order fails: what is not wanted is not renewed
        accepted_w = await self._command(battery, power_w, lease_s)
        self._stop_keeper()  # another order came meanwhile
        ends_at_s = self._clock.monotonic_s() + lease_s
        self._keeper = asyncio.create_task(self._keep(battery, power_w, ends_at_s))
        return {"accepted_w": accepted_w}

    async def _command(self, battery: Battery, power_w: int, lease_s: float) -> int:
        """Write a setpoint with a device lease of at most `device_lease_s`."""
        if not battery.ok:
            await self._poll(fresh=True)
        if not battery.ok:
            raise RpcError("DEVICE_LOST", f"the battery {battery.name!r} does not answer")
        device_lease_s = min(math.ceil(lease_s), self._config.device_lease_s)
        self._polled_at_s = -1e9  # what we knew of its power is old news
        async with self._commanding:
            return await battery.command(power_w, device_lease_s, self._clock.monotonic_s())

    async def _keep(self, battery: Battery, power_w: int, ends_at_s: float) -> None:
        """
        Renew the device's short lease until the EMS's lease ends, then restore neutral.

        If we die the device's own timer restores it; if that fails too, we do. What goes wrong is
        logged once, and not at all where the loss of the device is logged.
        """
        pause_s, said = self._config.device_lease_s / 2, False
        while (left_s := ends_at_s - self._clock.monotonic_s()) > pause_s:
            await asyncio.sleep(pause_s)
            try:
                await self._command(battery, power_w, left_s - pause_s)
            except Exception as error:  # whatever it is, the lease still has its end
                if battery.ok and not said:
                    self._log.warning("battery lease not renewed", why=str(error) or repr(error))
                    said = True
            else:
                said = False
        await asyncio.sleep(left_s + LEASE_SLACK_S)
        try:
            async with self._commanding:  # a new lease that comes first cancels us here
                await battery.restore_neutral(self._clock.monotonic_s())
        except Exception as error:  # nobody awaits us: the log is who hears of it
            if battery.ok:
                self._log.warning("battery not restored by us", why=str(error) or repr(error))

    async def _release(self) -> dict[str, int]:
        if self._site.battery is None:
            raise RpcError("NO_BATTERY", "no device is configured as the battery")
        await self._restore()
        self._polled_at_s = -1e9
        return {}

    def _stop_keeper(self) -> bool:
        """Stop renewing; True where there was a lease."""
        keeper, self._keeper = self._keeper, None
        return keeper.cancel() if keeper is not None else False

    async def _restore(self) -> None:
        battery = self._site.battery
        async with self._commanding:
            if self._stop_keeper() and battery is not None:
                await battery.restore_neutral(self._clock.monotonic_s())


async def run(config: Provisioning, facts: MarketFacts, stop: asyncio.Event, clock: Clock) -> None:
    """
    Serve until `stop` is set.

    Raises:
        ConfigError: the folder or the key cannot be used, or another gateway uses them.
    """
    log = configure("gateway").bind(home=config.home.name)
    folder = config.home.data_dir / "gateway"
    lock = _lock(folder)
    try:
        store = SqliteStore(folder / "registers.sqlite", synchronous="FULL")
        key = load_meter_key(folder / "meter.key")
        book = MeterBook(key, store, facts, config.gateway.max_power_w, config.gateway.late_slots)
        leases = LeaseBook(folder / BOOK)
        gateway = Gateway(config, book, clock, log, store, leases)
        ems_uid = config.gateway.ems_uid
        uids = frozenset((os.getuid(),) if ems_uid is None else (os.getuid(), ems_uid))
        server = RpcServer(
            config.gateway.socket,
            uids,
            gateway.dispatch,
            lambda request, error: log.warning("request failed", request=request, why=repr(error)),
            gateway.left_alone,
        )
        try:
            await server.start()
        except OSError as error:
            socket = config.gateway.socket
            raise ConfigError(f"{socket}: cannot listen ({error}); check gateway.socket") from None
        gateway.firmware.go_on()
        log.info("gateway ready", meter=key.id, socket=str(config.gateway.socket))
        watching = asyncio.create_task(gateway.watch_over_leases())
        guests = asyncio.create_task(gateway.serve_guests())
        async with alive():
            await stop.wait()
        await server.stop()
        guests.cancel()  # before neutral is restored: nobody writes after that
        await asyncio.gather(guests, return_exceptions=True)
        await gateway.close()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        leases.close()
        store.close()
        log.info("gateway stopped")
    finally:
        os.close(lock)


def main(path: Path) -> None:
    """
    Run the gateway of a provisioning file until SIGTERM or SIGINT.

    Raises:
        ConfigError: before anything connects.
    """
    config = load_provisioning(Path(path))
    facts = load_market_facts(config.market.genesis)
    asyncio.run(_until_signalled(config, facts))


run_gateway = main


async def _until_signalled(config: Provisioning, facts: MarketFacts) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(config, facts, stop, clock_from_environment())


def _lock(folder: Path) -> int:
    """One gateway per folder: two would fork the chain of readings."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = lock_within(folder / "lock", LOCK_WAIT_S)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used ({error}); check home.data_dir") from None
    if descriptor is None:
        raise ConfigError(f"{folder}: another gateway is running on it; stop that one")
    return descriptor
