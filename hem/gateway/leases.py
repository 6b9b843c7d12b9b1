"""
The lease book: what must be undone on devices that have no reversion timer of their own.

Before the gateway writes a setpoint to such a device it puts a lease here: where the device is,
which writes restore neutral, how to see that they did, and when it ends. The watchdog
(`hem.gateway.watchdog`), a process of its own, restores neutral when a lease ends, or when the
gateway dies.

    book = LeaseBook(folder / BOOK)
    await book.put(lease)       # before every setpoint, and to renew; refused where nobody watches
    await book.clear(device)    # after neutral was read back
    await book.alive()          # is the watchdog there? else `book.trouble` says what is wrong
    await book.keep_beating(restore)    # for as long as the gateway runs

On disk (SQLite, synchronous=FULL) is what a new watchdog must know: it is written when a device
gets its first lease and removed when it is neutral. Renewals go to the watchdog's memory over a
Unix socket, for a flash card must not be written to every few seconds; its answer is the sign that
it lives. Times are CLOCK_BOOTTIME, which no clock step moves and which runs while the machine
sleeps; a lease of another boot has ended.

Beside the book lie files that are only locked (flock ends with its process, however it ends):
`.owner` by the gateway, `.watchdog` by the watchdog, `.DEVICE.acting` by whoever is about to act on
the device, so that no new lease slips in between the watchdog's writes.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hem.gateway.links import WRITE_REGISTERS_MAX, Connection
from hem.gateway.modbus import DeviceError, DeviceRefusedError
from hem.locks import lock, lock_within
from runtime.store import SqliteStore

STDERR = 2
"""Where a watchdog talks: who reads our output to its end does not wait for it."""
BOOK = "leases.sqlite"
"""Its usual name, in the gateway's folder."""
LEASE_S_MAX = 45.0
"""Longest lease: ended, noticed and restored it is within 60 s."""
ANSWER_S = 3.0
"""How long the watchdog may take to answer [real s]."""
BEAT_S = 2.0
OWNER_WAIT_S = 5.0
LINE_BYTES_MAX = 4_096
SOCKET_PATH_BYTES_MAX = 107
TIMEOUT_S_MAX = 30.0
PREFIX = "lease:"
EPOCH = "epoch"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

Writes = tuple[tuple[int, tuple[int, ...]], ...]
"""Addresses, each with the values from there on."""


class LeaseRefusedError(DeviceRefusedError):
    """No lease, so no setpoint: the message says why."""


class WatchdogLostError(LeaseRefusedError):
    """Nobody would restore neutral if we died."""


class LeaseBookBusyError(LeaseRefusedError):
    """Another gateway uses the book."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """
    What to undo, and when.

    Raises:
        ValueError: names the field and what would be right.
    """

    device: str
    """Its name in the provisioning file."""
    connection: Connection
    device_id: int
    neutral: Writes
    """What to write, in this order."""
    proof: Writes
    """What holding registers say once it is neutral; none where they cannot be read."""
    ends_at_s: float
    """CLOCK_BOOTTIME, see `lease_end`."""
    timeout_s: float = 1.0
    """How long the device may take to answer [real s]."""

    def __post_init__(self) -> None:
        if not isinstance(self.device, str) or not _NAME.fullmatch(self.device):
            raise ValueError(f"device: {self.device!r} is not a device's name")
        if type(self.device_id) is not int or not 0 <= self.device_id <= 255:
            raise ValueError(f"device_id: {self.device_id!r} is not within 0…255")
        if not self.neutral:
            raise ValueError("neutral: nothing to write would restore nothing")
        for address, values in (*self.neutral, *self.proof):
            if not 0 <= address <= 0x10000 - len(values) or not values:
                raise ValueError(f"neutral, proof: {len(values)} registers at {address}")
            if len(values) > WRITE_REGISTERS_MAX:
                raise ValueError(f"neutral, proof: {len(values)} registers in one request")
            if not all(type(value) is int and 0 <= value <= 0xFFFF for value in values):
                raise ValueError(f"neutral, proof: {values!r} are not registers")
        if not 0 < self.timeout_s <= TIMEOUT_S_MAX or not math.isfinite(self.ends_at_s):
            raise ValueError(f"timeout_s, ends_at_s: {self.timeout_s!r}, {self.ends_at_s!r}")


@dataclass(frozen=True, slots=True)
class Row:
    """A lease as it stands in the book."""

    lease: Lease
    epoch: int
    """Which gateway put it: each start of one has its own."""
    boot: str
    raw: bytes

    @staticmethod
    def load(raw: bytes) -> Row:
        """
        Read a row.

        Raises:
            ValueError: it is none.
        """
        try:
            value = json.loads(raw)
            fields = dict(value["lease"])
            fields["connection"] = Connection.from_json(fields["connection"])
            fields["neutral"] = _writes(fields["neutral"])
            fields["proof"] = _writes(fields["proof"])
            return Row(Lease(**fields), int(value["epoch"]), str(value["boot"]), raw)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a lease: {error!r}") from None

    @staticmethod
    def make(lease: Lease, epoch: int) -> Row:
        """A row of this boot."""
        fields = {
            "device": lease.device,
            "connection": lease.connection.to_json(),
            "device_id": lease.device_id,
            "neutral": lease.neutral,
            "proof": lease.proof,
            "ends_at_s": lease.ends_at_s,
            "timeout_s": lease.timeout_s,
        }
        boot = boot_id()
        raw = json.dumps({"lease": fields, "epoch": epoch, "boot": boot}).encode()
        return Row(lease, epoch, boot, raw)

    def says(self, lease: Lease) -> bool:
        """Is it this lease, but for its end?"""
        mine = self.lease
        return (mine.connection, mine.device_id, mine.neutral, mine.proof, mine.timeout_s) == (
            (lease.connection, lease.device_id, lease.neutral, lease.proof, lease.timeout_s)
        )


class Answer(NamedTuple):
    """What the watchdog says."""

    text: str
    """`ok`, or why not."""
    stuck: list[str]
    """Devices that it has to restore and cannot reach."""


Restore = Callable[[str], Awaitable[None]]
"""Restores neutral on the device of this name and clears its lease, or raises DeviceError."""


class LeaseBook:
    """
    The gateway's side. One gateway at a time.

    Args:
        path: of the SQLite file; its folder must exist

    Raises:
        LeaseBookBusyError: another gateway has it.
        OSError, sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.trouble = ""
        """Why `alive` said no."""
        self.path = self._path = path
        self._owner = _own(owner_file(path))
        try:
            self._store = SqliteStore(path)
            with self._store.atomic():
                self._epoch = int(self._store.get(EPOCH) or 0) + 1
                self._store.put(EPOCH, str(self._epoch).encode())
        except BaseException:
            os.close(self._owner)
            raise
        os.ftruncate(self._owner, 0)
        os.pwrite(self._owner, f"{self._epoch} {os.getpid()}\n".encode(), 0)

    async def put(self, lease: Lease) -> None:
        """
        Put or renew a lease. The setpoint may be written when this has returned, and not before.

        Raises:
            WatchdogLostError: nobody watches: write no setpoint, and restore neutral.
            LeaseRefusedError: neutral has to be restored first, or the book cannot be written.
        """
        length_s = lease.ends_at_s - boottime_s()
        if length_s > LEASE_S_MAX + 1:
            raise LeaseRefusedError(f"a lease of {length_s:.0f} s; {LEASE_S_MAX:.0f} s at most")
        with acting(self._path, lease.device) as free:
            if not free:
                raise LeaseRefusedError("the watchdog is restoring neutral")
            try:
                row = self._row(lease.device)
            except sqlite3.Error as error:
                raise LeaseRefusedError(f"the lease book cannot be read: {error}") from None
            if row is not None and row.epoch != self._epoch:
                raise LeaseRefusedError("an earlier gateway's setpoint is not undone yet")
            answer = await self._ask("renew", device=lease.device, ends_at_s=lease.ends_at_s)
            if answer.text != "ok":
                raise LeaseRefusedError(answer.text)
            if row is not None and row.says(lease):
                return
            try:
                with self._store.atomic():
                    self._store.put(PREFIX + lease.device, Row.make(lease, self._epoch).raw)
            except sqlite3.Error as error:
                raise LeaseRefusedError(f"the lease book cannot be written: {error}") from None

    async def clear(self, device: str) -> None:
        """
        Forget a device's lease, whoever put it: its neutral state was read back.

        Raises:
            LeaseRefusedError: the book cannot be written (the watchdog will look for itself).
        """
        try:
            if self._store.get(PREFIX + device) is not None:
                with self._store.atomic():
                    self._store.delete(PREFIX + device)
        except sqlite3.Error as error:
            raise LeaseRefusedError(f"the lease book cannot be written: {error}") from None

    async def alive(self) -> bool:
        """Is there a watchdog that answers? If not, `trouble` says why."""
        try:
            await self._ask("beat")
        except WatchdogLostError as error:
            self.trouble = str(error)
            return False
        self.trouble = ""
        return True

    async def keep_beating(self, restore: Restore) -> None:
        """
        Tell the watchdog that our event loop runs, until cancelled.

        Whoever does this promises to go on: a gateway that falls silent while it keeps the watchdog
        from a device, whose lease has ended, is ended.

        Args:
            restore: restores neutral on a device over our own connection, and clears its lease:
                asked for what the watchdog has to restore and cannot reach, as a device that
                accepts one client, or a serial port, is ours while we live
        """
        while True:
            stuck: list[str] = []
            with suppress(WatchdogLostError):
                stuck = (await self._ask("beat", promised=True)).stuck
            for device in stuck:
                with suppress(DeviceError):  # asked again with the next beat
                    await restore(device)
            await asyncio.sleep(BEAT_S)

    def held(self) -> list[Lease]:
        """The leases that are not cleared."""
        return [row.lease for row in rows(self._store)]

    def orphans(self) -> list[Lease]:
        """What earlier gateways left: restore these and clear them, or let the watchdog do it."""
        return [row.lease for row in rows(self._store) if row.epoch != self._epoch]

    def close(self) -> None:
        """Leave. The watchdog restores what is still leased."""
        self._store.close()
        os.close(self._owner)

    def _row(self, device: str) -> Row | None:
        raw = self._store.get(PREFIX + device)
        with suppress(ValueError):
            return Row.load(raw) if raw is not None else None
        return None

    async def _ask(self, what: str, **facts: Any) -> Answer:
        question = {"do": what, "epoch": self._epoch, **facts}
        try:
            async with asyncio.timeout(ANSWER_S):
                with short_path(socket_file(self._path)) as address:
                    reader, writer = await asyncio.open_unix_connection(address)
                try:
                    writer.write(json.dumps(question).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                    return Answer(str(answer["answer"]), [str(one) for one in answer["stuck"]])
                finally:
                    writer.close()
        except TimeoutError:
            raise WatchdogLostError("the watchdog does not answer") from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise WatchdogLostError(f"the watchdog is not running ({error})") from None


def boottime_s() -> float:
    """Seconds since the machine started, asleep or not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def lease_end(lease_s: float) -> float:
    """When a lease of `lease_s` real seconds ends."""
    return boottime_s() + lease_s


def boot_id() -> str:
    """This start of the machine (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def owner_file(path: Path) -> Path:
    """Locked by the gateway that has the book; says its epoch and process."""
    return path.with_name(path.name + ".owner")


def watchdog_file(path: Path) -> Path:
    """Locked by the watchdog."""
    return path.with_name(path.name + ".watchdog")


def socket_file(path: Path) -> Path:
    """Where the watchdog listens."""
    return path.with_name(path.name + ".sock")


def rows(store: SqliteStore, broken: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """The leases of a book; `broken` is told the keys of those that cannot be read."""
    for key, raw in store.scan(PREFIX):
        try:
            row = Row.load(raw)
        except ValueError:
            broken(key)
        else:
            yield row


@contextmanager
def acting(path: Path, device: str) -> Iterator[bool]:
    """Be the only one who is about to write to a device; False where another is."""
    descriptor = lock(path.with_name(f"{path.name}.{device}.acting"), exclusive=True)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of this socket that fits into its address (unix(7))."""
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def start_watchdog(path: Path) -> subprocess.Popen[bytes]:
    """
    Start a watchdog for a book where no service manager does.

    It outlives us, ends when the book has had neither owner nor lease for a while, and ends at once
    where another one runs.
    """
    command = [sys.executable, "-m", "hem.gateway.watchdog", str(path.parent), "--while-needed"]
    return subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.DEVNULL, stdout=STDERR, start_new_session=True
    )


def _own(path: Path) -> int:
    """Lock the owner's file; the watchdog looks at it now and then, so try for a while."""
    descriptor = lock_within(path, OWNER_WAIT_S)
    if descriptor is None:
        raise LeaseBookBusyError(f"{path}: another gateway uses this lease book")
    return descriptor


def _writes(value: Any) -> Writes:
    return tuple((int(address), tuple(values)) for address, values in value)
