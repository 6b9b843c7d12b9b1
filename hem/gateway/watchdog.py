"""
The watchdog: a process of its own that restores neutral when the gateway no longer can.

    python -m hem.gateway.watchdog PROVISIONING.toml | FOLDER  [--while-needed]

It reads the lease book (`hem.gateway.leases`) and restores neutral on a device when

- its lease has ended and the gateway, which goes first, has not restored it;
- the gateway that put the lease is dead (its lock is free, or a newer gateway holds it);
- the machine was started anew since.

It reads first and writes only what is not neutral yet, reads back, and tries again for ever: every
few seconds while a device is out of reach, every half minute while it answers but stays as it is.
One line says that it acts, one that it is done; a first failure is told too.

Some devices accept one client, and a serial port has one user: the gateway. While it lives it is
told, with each sign of life that it gives, what the watchdog cannot reach, and restores that
itself. One that promised signs of life, gives none, and is in the way, is killed.

Service managers: give it a unit of its own (a crash of the gateway's must not take it along), the
gateway's user, `Restart=always` and `Type=notify`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import sqlite3
import sys
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hem.gateway.leases import (
    BOOK,
    LEASE_S_MAX,
    LINE_BYTES_MAX,
    PREFIX,
    Lease,
    Row,
    acting,
    boot_id,
    boottime_s,
    owner_file,
    rows,
    short_path,
    socket_file,
    watchdog_file,
)
from hem.gateway.links import Link, link_for
from hem.gateway.modbus import DeviceLostError, DeviceRefusedError
from hem.locks import lock
from hem.private import private_files
from runtime.log import configure
from runtime.sdnotify import keep_alive
from runtime.store import SqliteStore
from wire.errors import ConfigError

TICK_S = 1.0
GATEWAY_FIRST_S = 2.0
"""So long after the end of a lease its gateway may restore neutral itself."""
ATTEMPT_S_MAX = 10.0
PAUSE_S_MIN = 1.0
LOST_PAUSE_S_MAX = 5.0
REFUSED_PAUSE_S_MAX = 30.0
"""Longer, for the registers of a device that does not obey may wear out."""
HANGS_AFTER_S = 10.0
"""Five beats: a gateway that is silent for so long hangs."""
UNNEEDED_S = 60.0
QUESTION_S = 5.0


class Log(Protocol):
    """Where the lines go."""

    def info(self, event: str, **facts: Any) -> Any:
        """Done."""
        ...

    def warning(self, event: str, **facts: Any) -> Any:
        """Acting, or failing."""
        ...


class Owner(NamedTuple):
    """The living gateway."""

    epoch: int
    process: int


class Watchdog:
    """
    Watches one book.

    Args:
        path: of the book; its folder must exist
    """

    def __init__(self, path: Path, log: Log) -> None:
        self._path = path
        self._log = log
        self._store = SqliteStore(path)
        self._boot = boot_id()
        self._began_s = boottime_s()
        self._ends_at_s: dict[tuple[str, int], float] = {}
        """Renewals: device and epoch."""
        self._promised: dict[int, float] = {}
        """When a gateway that promised to beat was last heard, by epoch."""
        self._restoring: dict[str, asyncio.Task[None]] = {}
        self._stuck: set[str] = set()
        """Those that cannot be reached, perhaps because the gateway has the only connection."""
        self._needed_at_s = self._began_s
        self._blind = False
        self._broken: set[str] = set()

    async def run(self, *, while_needed: bool = False) -> None:
        """Watch until cancelled, or until nobody needs it."""
        path = socket_file(self._path)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with short_path(path) as address:
                server = await asyncio.start_unix_server(self._serve, address, limit=LINE_BYTES_MAX)
        finally:
            os.umask(before)
        try:
            while not (while_needed and self._unneeded()):
                self._look_again()
                await asyncio.sleep(TICK_S)
        finally:
            server.close()
            for task in self._restoring.values():
                task.cancel()
            await asyncio.gather(*self._restoring.values(), return_exceptions=True)
            self._store.close()

    def _look_again(self) -> None:
        """Look; a book that cannot be read now may be readable later."""
        try:
            self._look()
        except (OSError, sqlite3.Error) as error:
            if not self._blind:
                self._log.warning("the lease book cannot be read", why=str(error))
            self._blind = True
        else:
            self._blind = False

    def _look(self) -> None:
        """Start to restore what is due."""
        owner = self._owner()
        found = list(rows(self._store, self._cannot_read))
        if owner is not None or found:
            self._needed_at_s = boottime_s()
        for row in found:
            device = row.lease.device
            why = self._due(row, owner)
            if why and device not in self._restoring:
                task = asyncio.create_task(self._restore(device, why))
                self._restoring[device] = task
                task.add_done_callback(partial(self._restored, device))
        if owner is not None:  # what was told by gateways that are gone
            self._ends_at_s = {k: v for k, v in self._ends_at_s.items() if k[1] >= owner.epoch}
            self._promised = {k: v for k, v in self._promised.items() if k >= owner.epoch}

    def _cannot_read(self, key: str) -> None:
        if key not in self._broken:
            self._broken.add(key)
            self._log.warning("a lease cannot be read", key=key)

    def _restored(self, device: str, _: asyncio.Task[None]) -> None:
        self._restoring.pop(device)
        self._stuck.discard(device)

    def _due(self, row: Row, owner: Owner | None) -> str:
        """Why neutral has to be restored now; empty while it has not."""
        if row.boot != self._boot:
            return "the machine was started anew"
        if owner is None or owner.epoch != row.epoch:
            return "the gateway is dead"
        told_s = self._ends_at_s.get((row.lease.device, row.epoch))
        if told_s is None:  # its renewals were told to the watchdog before us
            told_s = self._began_s + LEASE_S_MAX
        if boottime_s() >= max(row.lease.ends_at_s, told_s) + GATEWAY_FIRST_S:
            return "the lease ended and was not renewed"
        return ""

    async def _restore(self, device: str, why: str) -> None:
        """Restore neutral, however long it takes, unless the gateway does."""
        self._log.warning("restoring neutral", device=device, why=why)
        began_s, tries, pause_s = boottime_s(), 0, PAUSE_S_MIN
        while True:
            tries += 1
            try:
                done = await self._attempt(device)
            except Exception as error:  # whatever it is: not neutral yet
                if tries == 1:
                    reason = str(error) or repr(error)
                    self._log.warning("neutral not restored yet", device=device, why=reason)
                lost = not isinstance(error, DeviceRefusedError)
                if lost:
                    self._stuck.add(device)
                    self._end_hung_gateway(device)
                pause_max_s = LOST_PAUSE_S_MAX if lost else REFUSED_PAUSE_S_MAX
                pause_s = min(pause_s, pause_max_s)
                await self._pause(device, pause_s)
                pause_s = 2 * pause_s
            else:
                took_s = round(boottime_s() - began_s, 1)
                self._log.info(done, device=device, tries=tries, took_s=took_s)
                return

    async def _pause(self, device: str, pause_s: float) -> None:
        """Wait, but not longer than there is a lease: the gateway may restore neutral itself."""
        until_s = boottime_s() + pause_s
        while (left_s := until_s - boottime_s()) > 0:
            await asyncio.sleep(min(left_s, TICK_S))
            with suppress(sqlite3.Error):
                if self._row(device) is None:
                    return

    async def _attempt(self, device: str) -> str:
        """
        Restore neutral once and forget the lease.

        Returns:
            What became of it, for the log.

        Raises:
            DeviceLostError, DeviceRefusedError, TimeoutError, sqlite3.Error.
        """
        with acting(self._path, device) as free:
            if not free:
                raise DeviceLostError("the gateway is about to write to it")
            row = self._row(device)
            if row is None or not self._due(row, self._owner()):
                return "neutral restored by the gateway" if row is None else "lease renewed"
            async with asyncio.timeout(ATTEMPT_S_MAX):
                link = link_for(row.lease.connection, row.lease.timeout_s)
                try:
                    await make_neutral(link, row.lease)
                finally:
                    link.close()
            with self._store.atomic():
                if self._store.get(PREFIX + device) == row.raw:
                    self._store.delete(PREFIX + device)
            return "neutral restored"

    def _row(self, device: str) -> Row | None:
        raw = self._store.get(PREFIX + device)
        with suppress(ValueError):
            return Row.load(raw) if raw is not None else None
        return None

    def _owner(self) -> Owner | None:
        """The gateway that holds the book; None where none lives."""
        descriptor = lock(owner_file(self._path), exclusive=False)
        if descriptor is not None:
            os.close(descriptor)
            return None
        try:
            epoch, process = owner_file(self._path).read_text(encoding="ascii").split()
            return Owner(int(epoch), int(process))
        except (OSError, ValueError):
            return Owner(-1, -1)  # it is just starting

    def _end_hung_gateway(self, device: str) -> None:
        """Kill a gateway that promised to give signs of life and hangs on a device's line."""
        row, owner = self._row(device), self._owner()
        if row is None or owner is None or owner.epoch != row.epoch:
            return
        heard_s = self._promised.get(owner.epoch)
        if heard_s is None or boottime_s() - heard_s < HANGS_AFTER_S:
            return
        with suppress(OSError):
            descriptor = os.pidfd_open(owner.process)
            try:
                if self._owner() == owner:  # alive, so the number is still its own
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    self._log.warning("hung gateway killed", process=owner.process, device=device)
            finally:
                os.close(descriptor)

    def _unneeded(self) -> bool:
        return boottime_s() - self._needed_at_s > UNNEEDED_S

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError, OSError, ValueError):
            async with asyncio.timeout(QUESTION_S):
                line = await reader.readline()
                answer = {"answer": self._answer(line), "stuck": self._asked_for()}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def _asked_for(self) -> list[str]:
        """What the gateway shall restore: its lease may be cleared before we have noticed."""
        with suppress(sqlite3.Error):
            return sorted(device for device in self._stuck if self._row(device) is not None)
        return sorted(self._stuck)

    def _answer(self, line: bytes) -> str:
        try:
            question = json.loads(line)
            what, epoch = question["do"], int(question["epoch"])
            if question.get("promised") or epoch in self._promised:
                self._promised[epoch] = boottime_s()
            if what == "renew":
                return self._renew(str(question["device"]), epoch, float(question["ends_at_s"]))
            return "ok" if what == "beat" else "no such question"
        except (ArithmeticError, ValueError, LookupError, TypeError, RecursionError) as error:
            return f"not a question: {type(error).__name__}"

    def _renew(self, device: str, epoch: int, ends_at_s: float) -> str:
        if device in self._restoring:
            return "the watchdog is restoring neutral"
        if not math.isfinite(ends_at_s):
            return "not a time"
        self._ends_at_s[device, epoch] = min(ends_at_s, boottime_s() + LEASE_S_MAX)
        return "ok"


async def make_neutral(link: Link, lease: Lease) -> None:
    """
    Write what is not neutral yet, and read back.

    Raises:
        DeviceLostError: no answer. DeviceRefusedError: it answers and is not neutral.
    """
    if lease.proof:
        with suppress(DeviceRefusedError):  # what cannot be read before may be readable after
            if await _is_neutral(link, lease):
                return
    for address, values in lease.neutral:
        await link.write(lease.device_id, address, list(values))
    if not await _is_neutral(link, lease):
        raise DeviceRefusedError("the device took the writes and is not neutral")


async def _is_neutral(link: Link, lease: Lease) -> bool:
    for address, values in lease.proof:
        if await link.read(lease.device_id, address, len(values)) != list(values):
            return False
    return True


def book_of(path: Path) -> Path:
    """
    The lease book of a provisioning file, or of a gateway's folder.

    Of the file only `home.data_dir` is read: a mistake elsewhere must not stop the watchdog.

    Raises:
        ConfigError: names file, key and remedy.
    """
    folder = path
    if not path.is_dir():
        try:
            data_dir = tomllib.loads(path.read_text(encoding="utf-8"))["home"]["data_dir"]
            folder = (path.absolute().parent / data_dir).resolve() / "gateway"
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from None
        except (LookupError, TypeError):
            raise ConfigError(f"{path}: home.data_dir: is missing; add it") from None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used ({error}); check home.data_dir") from None
    return folder / BOOK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m hem.gateway.watchdog")
    parser.add_argument("config", type=Path, help="provisioning file, or the gateway's folder")
    parser.add_argument("--while-needed", action="store_true", help="end when nobody needs it")
    options = parser.parse_args(arguments)
    with private_files():
        return _watch(options.config, while_needed=options.while_needed)


def _watch(config: Path, *, while_needed: bool) -> int:
    log = configure("watchdog")
    try:
        path = book_of(config)
        mine = lock(watchdog_file(path), exclusive=True)
        if mine is None:
            log.info("another watchdog is running", book=str(path))
            return 0
        os.ftruncate(mine, 0)
        os.pwrite(mine, f"{os.getpid()}\n".encode(), 0)
        watchdog = Watchdog(path, log)
    except (ConfigError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"watchdog: {error}\n")
        return 2
    log.info("watchdog ready", book=str(path))
    asyncio.run(_until_stopped(watchdog, while_needed=while_needed))
    log.info("watchdog stopped")
    os.close(mine)
    return 0


async def _until_stopped(watchdog: Watchdog, *, while_needed: bool) -> None:
    watching = asyncio.create_task(watchdog.run(while_needed=while_needed))
    telling = asyncio.create_task(keep_alive())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, watching.cancel)
    with suppress(asyncio.CancelledError):
        await watching
    telling.cancel()


if __name__ == "__main__":
    sys.exit(main())
