"""Whoever dies, the battery is neutral within a minute: real processes and a real Modbus server."""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from gateway_stand_in import lease_of
from modbus_rig import TcpCable, mute, rig_of
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from support.patience import PATIENCE_S

from hem.gateway.leased import LeasedStorage
from hem.gateway.leases import (
    BOOK,
    LEASE_S_MAX,
    Lease,
    LeaseBook,
    LeaseBookBusyError,
    LeaseRefusedError,
    Row,
    WatchdogLostError,
    lease_end,
    short_path,
    socket_file,
    watchdog_file,
)
from hem.gateway.links import Connection
from hem.gateway.watchdog import Watchdog, book_of
from runtime.store import SqliteStore
from wire.errors import ConfigError

NEUTRAL_S = 60.0
"""The promise."""
ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "gateway_stand_in.py"
HELD, NEUTRAL = [2, 1500], [0, 0]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
STEPPING = """
import sys, time
from hem.gateway import watchdog
real_s, began_s = time.time, time.monotonic()
def stepping_s():  # a day ahead, two days back, and so on
    return real_s() + 86_400 * (-2 if int(time.monotonic() - began_s) % 2 else 1)
time.time = stepping_s
time.time_ns = lambda: int(stepping_s() * 1e9)
sys.exit(watchdog.main(sys.argv[1:]))
"""


class Battery:
    """Registers 100 (mode) and 101 (power) behind a cable; whoever is dead, it stays as it is."""

    def __init__(self):
        self.registers = list(NEUTRAL)
        self.writes = 0
        self.obeys = True
        self.cable = None
        self.port = 0

    async def action(self, function, start, address, count, registers, values):
        if function in (6, 16):
            self.writes += 1
            if self.obeys:
                self.registers[address - start : address - start + count] = values
        registers[:2] = self.registers


class Process:
    """A program and what it says."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self):
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode().rstrip())

    def events(self):
        """What a program with our log said, without the usual."""
        said = [json.loads(line)["event"] for line in self.lines if line.startswith("{")]
        return [event for event in said if event not in ("watchdog ready", "watchdog stopped")]

    async def kill(self, number=signal.SIGKILL):
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    async def close(self):
        await self.kill()
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        self.process._transport.close()


class Bench:
    """A folder, a battery, and the processes of a test."""

    def __init__(self, folder, battery):
        self.folder, self.battery = folder, battery
        self.processes = []

    @property
    def book(self):
        return self.folder / BOOK

    async def run(self, *command, **options):
        made = Process(
            await asyncio.create_subprocess_exec(
                sys.executable,
                *map(str, command),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=ENVIRONMENT,
                cwd=ROOT,
                **options,
            )
        )
        self.processes.append(made)
        return made

    async def watchdog(self, *command):
        made = await self.run(*(command or ("-m", "hem.gateway.watchdog")), self.folder)
        await until(lambda: any("watchdog ready" in line for line in made.lines), made.lines)
        await until(socket_file(self.book).exists, made.lines)
        return made

    async def gateway(self, lease_s, how):
        made = await self.run(STAND_IN, self.folder, self.battery.port, lease_s, how)
        await until(lambda: "held" in made.lines, made.lines)
        assert self.battery.registers == HELD
        return made

    async def neutral(self):
        """Wait until the battery is neutral, and say how long that took."""
        began_s = time.monotonic()
        await until(lambda: self.battery.registers == NEUTRAL, [p.lines for p in self.processes])
        return time.monotonic() - began_s

    def row(self):
        store = SqliteStore(self.book)
        raw = store.get("lease:battery")
        store.close()
        return raw

    def write_row(self, **changes):
        store = SqliteStore(self.book)
        value = json.loads(Row.make(lease_of(self.battery.port, 30), 0).raw) | changes
        with store.atomic():
            store.put("lease:battery", json.dumps(value).encode())
        store.close()


async def until(condition, told=()):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, told
        await asyncio.sleep(0.05)


@pytest.fixture
async def bench(tmp_path):
    async with bench_in(tmp_path) as made:
        yield made


@asynccontextmanager
async def bench_in(folder):
    battery = Battery()
    device = SimDevice(
        1, [SimData(100, values=[0, 0], datatype=DataType.REGISTERS)], action=battery.action
    )
    server = ModbusTcpServer([device], address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    battery.cable = TcpCable(server.transport.sockets[0].getsockname()[1])
    await battery.cable.plug_in()
    battery.port = battery.cable.port
    made = Bench(folder, battery)
    try:
        yield made
    finally:
        for process in made.processes:
            await process.close()
        battery.cable.unplug()
        await server.shutdown()


DONE = ["restoring neutral", "neutral restored"]


@pytest.mark.slow
async def test_a_killed_gateway_leaves_a_neutral_battery_and_two_lines(bench):
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(40, "hold")
    await gateway.kill()
    assert await bench.neutral() < NEUTRAL_S
    await until(lambda: watchdog.events() == DONE, watchdog.lines)
    assert bench.row() is None
    (acting,) = [json.loads(line) for line in watchdog.lines if "restoring" in line]
    assert (acting["device"], acting["why"]) == ("battery", "the gateway is dead")


@pytest.mark.slow
async def test_the_watchdog_outlives_the_hem_that_started_it(bench):
    """`kill -9` of the HEM ends its gateway; the watchdog is nobody's child."""
    hem = f"""
import subprocess, sys, time
from pathlib import Path
from hem.gateway.leases import socket_file, start_watchdog
from runtime.process import die_with_parent
book = Path({str(bench.book)!r})
start_watchdog(book)
while not socket_file(book).exists():
    time.sleep(0.05)
gateway = [{str(STAND_IN)!r}, str(book.parent), "{bench.battery.port}", "40", "hold"]
subprocess.Popen([sys.executable, *gateway], preexec_fn=die_with_parent())
time.sleep(3600)
"""
    process = await bench.run("-c", hem)
    await until(lambda: bench.battery.registers == HELD, process.lines)
    process.process.kill()
    assert await bench.neutral() < NEUTRAL_S
    await until(lambda: bench.row() is None)
    os.kill(int(watchdog_file(bench.book).read_text()), signal.SIGTERM)
    await until(lambda: any("watchdog stopped" in line for line in process.lines), process.lines)


@pytest.mark.slow
async def test_a_lease_that_is_not_renewed_ends_though_its_gateway_lives(bench):
    await bench.watchdog()
    await bench.gateway(3, "hold")
    assert await bench.neutral() < NEUTRAL_S


@pytest.mark.slow
async def test_a_renewed_lease_goes_on_and_a_cleared_one_is_left_alone(bench):
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(6, "renew")
    row = bench.row()
    await asyncio.sleep(10)
    assert bench.battery.registers == HELD
    assert bench.row() == row, "renewals are not written to the disk"
    assert gateway.lines == ["held"]
    assert watchdog.events() == []
    await gateway.kill()
    await bench.neutral()


@pytest.mark.slow
async def test_without_its_watchdog_a_gateway_restores_neutral_and_says_why(bench):
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(30, "renew")
    await watchdog.kill()
    assert await bench.neutral() < NEUTRAL_S
    await until(lambda: "neutral" in gateway.lines)
    assert gateway.lines[1].startswith("refused: the watchdog is not running")
    assert bench.row() is None
    book = LeaseBook(bench.folder / "other.sqlite")
    assert not await book.alive()
    assert "not running" in book.trouble
    with pytest.raises(WatchdogLostError):
        await book.put(lease_of(bench.battery.port, 30))
    assert book.held() == []
    book.close()


@pytest.mark.slow
async def test_a_new_watchdog_takes_over_what_the_killed_one_watched(bench):
    watchdog = await bench.watchdog()
    await bench.gateway(40, "hold")
    await watchdog.kill()
    second = await bench.watchdog()
    await asyncio.sleep(3)
    assert bench.battery.registers == HELD, "the gateway lives, and its lease has not ended"
    assert second.events() == []
    await bench.processes[1].kill()
    assert await bench.neutral() < NEUTRAL_S


@pytest.mark.slow
async def test_a_hung_watchdog_is_noticed(bench):
    watchdog = await bench.watchdog()
    book = LeaseBook(bench.book)
    assert await book.alive()
    watchdog.process.send_signal(signal.SIGSTOP)
    assert not await book.alive()
    assert book.trouble == "the watchdog does not answer"
    watchdog.process.send_signal(signal.SIGCONT)
    assert await book.alive()
    book.close()


@pytest.mark.slow
async def test_a_cut_cable_is_waited_for(bench):
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(40, "hold")
    bench.battery.cable.unplug()
    await gateway.kill()
    await until(lambda: len(watchdog.events()) == 2, watchdog.lines)
    await asyncio.sleep(8)
    await bench.battery.cable.plug_in()
    assert await bench.neutral() < NEUTRAL_S
    expected = ["restoring neutral", "neutral not restored yet", "neutral restored"]
    await until(lambda: watchdog.events() == expected, watchdog.lines)


@pytest.mark.slow
async def test_a_mute_device_is_waited_for(bench):
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(40, "hold")
    honest, bench.battery.cable.pass_on = bench.battery.cable.pass_on, mute
    await gateway.kill()
    await until(lambda: len(watchdog.events()) == 2, watchdog.lines)
    bench.battery.cable.pass_on = honest
    assert await bench.neutral() < NEUTRAL_S


@pytest.mark.slow
async def test_a_device_that_does_not_obey_is_asked_again(bench):
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(40, "hold")
    bench.battery.obeys = False
    await gateway.kill()
    await until(lambda: len(watchdog.events()) == 2, watchdog.lines)
    assert any("is not neutral" in line for line in watchdog.lines)
    bench.battery.obeys = True
    assert await bench.neutral() < NEUTRAL_S


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "why"),
    [({"epoch": 0}, "the gateway is dead"), ({"boot": "another"}, "the machine was started anew")],
)
async def test_what_is_found_at_the_start_is_restored(bench, changes, why):
    """The gateway and the watchdog died together, or the machine was started anew."""
    bench.battery.registers = list(HELD)
    bench.write_row(**changes)
    watchdog = await bench.watchdog()
    assert await bench.neutral() < NEUTRAL_S
    await until(lambda: watchdog.events() == DONE, watchdog.lines)
    assert any(why in line for line in watchdog.lines)
    assert bench.row() is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rtu", "rtu-over-tcp"])
async def test_a_battery_on_a_serial_line_is_restored_too(bench, tmp_path, kind):
    async with rig_of(kind, tmp_path) as rig:
        lease = replace(lease_of(1, 30), connection=rig.connection, device_id=2)
        store = SqliteStore(bench.book)
        with store.atomic():
            store.put("lease:battery", Row.make(lease, 0).raw)
        store.close()
        watchdog = await bench.watchdog()
        await until(lambda: watchdog.events() == DONE, watchdog.lines)
        assert rig.units[2].registers[:3] == [0, 0, 2002]


@pytest.mark.slow
async def test_a_new_watchdog_waits_for_a_renewal_that_only_the_old_one_knew(bench):
    watchdog = await bench.watchdog()
    book = LeaseBook(bench.book)
    for _ in range(8):
        await book.put(lease_of(bench.battery.port, 2))
        await asyncio.sleep(1)
    await watchdog.kill()
    second = await bench.watchdog()
    await asyncio.sleep(3)
    await book.put(lease_of(bench.battery.port, 2))
    assert second.events() == []
    await until(lambda: second.events() == DONE, second.lines)
    book.close()


@pytest.mark.slow
async def test_what_is_neutral_already_is_not_written(bench):
    bench.write_row()
    watchdog = await bench.watchdog()
    await until(lambda: watchdog.events() == DONE, watchdog.lines)
    assert bench.battery.writes == 0


@pytest.mark.slow
async def test_clock_steps_neither_cut_a_lease_nor_lengthen_it(bench):
    watchdog = await bench.watchdog("-c", STEPPING)
    began_s = time.monotonic()
    await bench.gateway(8, "hold")
    while time.monotonic() < began_s + 6:
        assert bench.battery.registers == HELD
        await asyncio.sleep(0.2)
    assert await bench.neutral() < NEUTRAL_S
    await until(lambda: watchdog.events() == DONE, watchdog.lines)


@pytest.mark.slow
async def test_a_hung_gateway_that_keeps_the_only_connection_is_killed(bench):
    bench.battery.cable.clients_max = 1
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(3, "beat")
    await asyncio.sleep(1)  # it has promised by now
    began_s = time.monotonic()
    gateway.process.send_signal(signal.SIGSTOP)
    await bench.neutral()
    assert time.monotonic() - began_s < NEUTRAL_S
    assert "hung gateway killed" in watchdog.events()
    assert await asyncio.wait_for(gateway.process.wait(), PATIENCE_S) == -signal.SIGKILL


@pytest.mark.slow
async def test_a_gateway_that_has_the_only_connection_restores_what_the_watchdog_cannot(bench):
    bench.battery.cable.clients_max = 1
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(3, "help")
    assert await bench.neutral() < NEUTRAL_S
    expected = ["restoring neutral", "neutral not restored yet", "neutral restored by the gateway"]
    await until(lambda: watchdog.events() == expected, watchdog.lines)
    assert gateway.lines == ["held", "helped"]
    assert bench.row() is None


@pytest.mark.slow
async def test_a_gateway_that_lives_is_not_killed_for_a_cut_cable(bench):
    watchdog = await bench.watchdog()
    gateway = await bench.gateway(3, "beat")
    bench.battery.cable.unplug()
    await until(lambda: len(watchdog.events()) == 2, watchdog.lines)
    await asyncio.sleep(12)
    assert gateway.process.returncode is None
    await bench.battery.cable.plug_in()
    assert await bench.neutral() < NEUTRAL_S


@pytest.mark.slow
async def test_a_new_gateway_waits_for_neutral_or_sees_to_it_itself(bench):
    await bench.watchdog()
    bench.battery.cable.unplug()
    bench.write_row()
    book = LeaseBook(bench.book)
    (left,) = book.orphans()
    assert left.device == "battery"
    with pytest.raises(LeaseRefusedError):
        await book.put(lease_of(bench.battery.port, 30))
    await book.clear("battery")  # as if it had reached the device another way
    for _ in range(100):
        with suppress(LeaseRefusedError):
            await book.put(lease_of(bench.battery.port, 30))
            break
        await asyncio.sleep(0.2)
    assert [lease.device for lease in book.held()] == ["battery"]
    assert book.orphans() == []
    book.close()


@pytest.mark.slow
async def test_nonsense_does_not_stop_the_watchdog(bench):
    watchdog = await bench.watchdog()
    store = SqliteStore(bench.book)
    with store.atomic():
        for number, raw in enumerate((b"", b"{}", b"[]", b"null", b'{"lease":{},"epoch":1}')):
            store.put(f"lease:odd-{number}", raw)
    store.close()
    questions = (
        b"\n", b"{}\n", b"[]\n", b"x" * 10_000, b"[" * 4000 + b"\n",
        b'{"do":"renew","epoch":1}\n',
        b'{"do":"renew","epoch":1,"device":"battery","ends_at_s":NaN}\n',
        b'{"do":"renew","epoch":1e999,"device":"battery","ends_at_s":1}\n',
        b'{"do":"dance","epoch":1}\n',
    )  # fmt: skip
    for question in questions:
        reader, writer = await asyncio.open_unix_connection(socket_file(bench.book))
        writer.write(question)
        with suppress(ConnectionError):
            writer.write_eof()
            assert b'"ok"' not in await reader.read()
        writer.close()
    gateway = await bench.gateway(40, "hold")
    await gateway.kill()
    assert await bench.neutral() < NEUTRAL_S
    expected = ["a lease cannot be read"] * 5 + DONE
    await until(lambda: watchdog.events() == expected, watchdog.lines)


@pytest.mark.slow
async def test_one_watchdog_for_a_book(bench):
    await bench.watchdog()
    second = await bench.run("-m", "hem.gateway.watchdog", bench.folder)
    assert await asyncio.wait_for(second.process.wait(), PATIENCE_S) == 0
    await until(lambda: second.events() == ["another watchdog is running"], second.lines)


@pytest.mark.slow
async def test_a_stopped_watchdog_says_so(bench):
    watchdog = await bench.watchdog()
    assert await watchdog.kill(signal.SIGTERM) == 0
    await until(lambda: any("watchdog stopped" in line for line in watchdog.lines))


async def test_a_watchdog_that_nobody_needs_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("hem.gateway.watchdog.UNNEEDED_S", 2.5)
    book = LeaseBook(tmp_path / BOOK)
    watchdog = Watchdog(tmp_path / BOOK, None)
    watching = asyncio.create_task(watchdog.run(while_needed=True))
    await asyncio.sleep(5)
    assert not watching.done(), "a gateway has the book"
    book.close()
    await asyncio.wait_for(watching, PATIENCE_S)


class Storage:
    """A battery that writes down what happens to it."""

    def __init__(self, told):
        self.told = told

    async def hold(self, power_w, lease_s):
        self.told.append(("hold", power_w, lease_s))
        return power_w

    async def restore_neutral(self):
        self.told.append("neutral")

    async def is_neutral(self):
        return True


class Book:
    """A lease book that writes down what it is asked, and may refuse."""

    def __init__(self, told, error=None):
        self.told, self.error = told, error

    async def put(self, lease):
        self.told.append(("put", lease.device))
        if self.error is not None:
            raise self.error

    async def clear(self, device):
        self.told.append(("clear", device))


def leased(told, error=None):
    def lease(ends_at_s):
        return replace(lease_of(1, 1), ends_at_s=ends_at_s)

    return LeasedStorage(Storage(told), Book(told, error), "battery", lease)


async def test_the_lease_comes_before_the_setpoint_and_goes_after_neutral():
    storage = leased(told := [])
    assert await storage.hold(700, 900) == 700
    await storage.restore_neutral()
    assert await storage.is_neutral()
    hold = ("hold", 700, int(LEASE_S_MAX))
    assert told == [("put", "battery"), hold, "neutral", ("clear", "battery")]


async def test_without_a_watchdog_there_is_no_setpoint_and_the_battery_is_neutral():
    storage = leased(told := [], WatchdogLostError("gone"))
    with pytest.raises(WatchdogLostError):
        await storage.hold(700, 30)
    assert told == [("put", "battery"), "neutral", ("clear", "battery")]
    storage = leased(told := [], LeaseRefusedError("the watchdog is restoring neutral"))
    with pytest.raises(LeaseRefusedError):
        await storage.hold(700, 30)
    assert told == [("put", "battery")], "the watchdog is at it"


def test_one_gateway_for_a_book(tmp_path, monkeypatch):
    monkeypatch.setattr("hem.gateway.leases.OWNER_WAIT_S", 0.1)
    book = LeaseBook(tmp_path / BOOK)
    with pytest.raises(LeaseBookBusyError):
        LeaseBook(tmp_path / BOOK)
    book.close()
    LeaseBook(tmp_path / BOOK).close()


async def test_a_lease_longer_than_we_can_promise_is_refused(tmp_path):
    book = LeaseBook(tmp_path / BOOK)
    with pytest.raises(LeaseRefusedError, match="at most"):
        await book.put(lease_of(1, LEASE_S_MAX + 5))
    book.close()


def test_a_row_is_the_lease_that_was_put():
    lease = Lease(
        device="b-1",
        connection=Connection(kind="rtu", path="/dev/ttyUSB0", parity="E"),
        device_id=7,
        neutral=((40_000, (1, 2)), (3, (0xFFFF,))),
        proof=(),
        ends_at_s=lease_end(1),
    )
    row = Row.load(Row.make(lease, 5).raw)
    assert (row.lease, row.epoch) == (lease, 5)
    assert row.says(lease_of(1, 1)) is False


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "../../etc"},
        {"device_id": 256},
        {"neutral": ()},
        {"neutral": ((65_535, (0, 0)),)},
        {"neutral": ((-1, (0,)),)},
        {"neutral": ((0, (70_000,)),)},
        {"neutral": ((0, (0.5,)),)},
        {"neutral": ((0, (0,) * 124),)},
        {"proof": ((0, ()),)},
        {"timeout_s": 0},
        {"ends_at_s": float("nan")},
    ],
)
def test_a_lease_that_could_not_be_undone_is_refused(changes):
    fields = {
        "device": "battery",
        "connection": Connection(host="a"),
        "device_id": 1,
        "neutral": ((0, (0,)),),
        "proof": (),
        "ends_at_s": 1.0,
    }
    with pytest.raises(ValueError, match=r"^[a-z_, ]+: "):
        Lease(**(fields | changes))


def test_the_book_of_a_provisioning_file(tmp_path):
    file = tmp_path / "home.toml"
    file.write_text('[home]\ndata_dir = "data"\n[broken]\nport = -1\n')
    assert book_of(file) == tmp_path / "data" / "gateway" / BOOK
    assert book_of(tmp_path) == tmp_path / BOOK
    file.write_text("[home]\n")
    with pytest.raises(ConfigError, match=r"home\.data_dir"):
        book_of(file)
    for text in ("[[", "home = 1"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            book_of(file)
    with pytest.raises(ConfigError):
        book_of(tmp_path / "nothing.toml")


async def test_a_socket_in_a_deep_folder_is_reached(tmp_path):
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    with short_path(folder / "x.sock") as name:
        server = await asyncio.start_unix_server(lambda r, w: w.close(), name)
    with short_path(folder / "x.sock") as name:
        _, writer = await asyncio.open_unix_connection(name)
    writer.close()
    server.close()
