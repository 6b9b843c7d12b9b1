"""Guests share our connection to a device that accepts one client; we go first (real sockets)."""

import asyncio
import random
import struct
import time
from contextlib import asynccontextmanager, suppress

import pytest
from modbus_rig import PATIENT_S, honest, mute, rig_of
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.constants import ExcCodes
from support.patience import PATIENCE_S

from hem.gateway.modbus import DeviceLostError, DeviceRefusedError
from hem.gateway.proxy import Proxy, ProxyRules, SharedLink, _Turns

FAST = 10_000.0


class Notes:
    """A log that remembers."""

    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append(event)

    warning = info


class House:
    """A device that accepts one client, our link to it, the proxy, and its guests."""

    def __init__(self, rig, link, proxy, port, notes):
        self.rig, self.ours, self.proxy, self.port, self.notes = rig, link, proxy, port, notes
        self.guests = []

    async def guest(self):
        client = AsyncModbusTcpClient(
            "127.0.0.1", port=self.port, timeout=PATIENCE_S, retries=0, reconnect_delay=0
        )
        assert await client.connect()
        self.guests.append(client)
        return client

    async def raw(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return reader, writer


@asynccontextmanager
async def house(folder, timeout_s=PATIENT_S, permit=None, **rules):
    async with rig_of("tcp", folder) as rig:
        rig.cable.clients_max = 1
        link = SharedLink(rig.link(timeout_s))
        given = {"device_ids": frozenset({1, 2}), "port": 0, "requests_per_s": FAST} | rules
        notes = Notes()
        more = {"permit": permit} if permit else {}
        proxy = Proxy(ProxyRules(**given), link, notes, **more)
        made = House(rig, link, proxy, await proxy.start(), notes)
        try:
            yield made
        finally:
            for client in made.guests:
                client.close()
            await proxy.stop()


def question(transaction, unit, pdu):
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu


def read_pdu(address, count, function=3):
    return struct.pack(">BHH", function, address, count)


async def answer(reader):
    transaction, protocol, length, unit = struct.unpack(">HHHB", await reader.readexactly(7))
    assert protocol == 0
    return transaction, unit, await reader.readexactly(length - 1)


async def gone(reader):
    """The proxy hung up."""
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


async def test_two_guests_and_we_share_the_only_connection(tmp_path):
    async with house(tmp_path) as home:
        first, second = await home.guest(), await home.guest()

        async def guest_reads(client, unit):
            for n in range(20):
                found = await client.read_holding_registers(100 + n % 10, count=2, device_id=unit)
                assert found.registers == [unit * 1000 + n % 10, unit * 1000 + n % 10 + 1]

        async def we_read():
            for n in range(20):
                assert await home.ours.read(1, 100 + n % 10, 1) == [1000 + n % 10]

        await asyncio.gather(guest_reads(first, 1), guest_reads(second, 2), we_read())
        found = await first.read_input_registers(103, count=1, device_id=2)
        assert found.registers == [2003]
        assert home.rig.cable.connections == 1


async def test_transaction_numbers_come_back_also_for_questions_in_one_segment(tmp_path):
    async with house(tmp_path) as home:
        reader, writer = await home.raw()
        numbers = [7, 65_535, 7, 0]
        writer.write(b"".join(question(n, 2, read_pdu(100 + i, 1)) for i, n in enumerate(numbers)))
        for i, number in enumerate(numbers):
            expected = struct.pack(">BBH", 3, 2, 2000 + i)
            assert await answer(reader) == (number, 2, expected)
        writer.close()


async def test_guests_do_not_write_unless_they_are_allowed(tmp_path):
    async with house(tmp_path) as home:
        guest = await home.guest()
        for refused in (
            await guest.write_register(101, 5, device_id=1),
            await guest.write_registers(101, [5, 6], device_id=1),
        ):
            assert refused.exception_code == ExcCodes.ILLEGAL_FUNCTION
        assert home.rig.units[1].registers[1] == 1001


async def test_guests_that_are_allowed_write_unless_we_hold_a_setpoint(tmp_path):
    held = set()
    async with house(
        tmp_path, allow_writes=True, permit=lambda unit, address, values: unit not in held
    ) as home:
        guest = await home.guest()
        written = await guest.write_register(101, 5, device_id=1)
        assert (written.address, written.registers) == (101, [5])
        written = await guest.write_registers(102, [6, 7], device_id=1)
        assert (written.address, written.count) == (102, 2)
        assert home.rig.units[1].registers[1:4] == [5, 6, 7]
        held.add(1)
        refused = await guest.write_registers(102, [8], device_id=1)
        assert refused.exception_code == ExcCodes.DEVICE_BUSY
        assert home.rig.units[1].registers[2] == 6
        assert (await guest.read_holding_registers(102, device_id=1)).registers == [6]


@pytest.mark.parametrize(
    ("unit", "pdu", "code"),
    [
        (1, read_pdu(500, 2), ExcCodes.ILLEGAL_ADDRESS),
        (1, struct.pack(">BHHBH", 16, 115, 1, 2, 1), ExcCodes.ILLEGAL_VALUE),
        (1, read_pdu(100, 0), ExcCodes.ILLEGAL_VALUE),
        (1, read_pdu(100, 126), ExcCodes.ILLEGAL_VALUE),
        (1, read_pdu(65_535, 2), ExcCodes.ILLEGAL_ADDRESS),
        (1, read_pdu(100, 1, function=1), ExcCodes.ILLEGAL_FUNCTION),
        (1, b"\x08\0\0\0\0", ExcCodes.ILLEGAL_FUNCTION),
        (1, b"\x2b\x0e\x01\0", ExcCodes.ILLEGAL_FUNCTION),
        (1, b"\x03\0", ExcCodes.ILLEGAL_VALUE),
        (1, b"\x83\x01", ExcCodes.ILLEGAL_FUNCTION),
        (1, struct.pack(">BHHBH", 16, 100, 2, 2, 1), ExcCodes.ILLEGAL_VALUE),
        (1, struct.pack(">BHHB", 16, 100, 0, 0), ExcCodes.ILLEGAL_VALUE),
        (9, read_pdu(100, 1), ExcCodes.GATEWAY_PATH_UNAVIABLE),
    ],
)
async def test_what_goes_wrong_is_told_by_its_code(tmp_path, unit, pdu, code):
    async with house(tmp_path, allow_writes=True) as home:
        reader, writer = await home.raw()
        writer.write(question(3, unit, pdu))
        assert await answer(reader) == (3, unit, bytes([pdu[0] | 0x80, code]))
        writer.write(question(4, 1, read_pdu(100, 1)))
        assert (await answer(reader))[0] == 4
        writer.close()


async def test_a_cut_upstream_is_told_as_no_response_and_comes_back(tmp_path):
    async with house(tmp_path, timeout_s=1.0) as home:
        guest = await home.guest()
        home.rig.cable.unplug()
        refused = await guest.read_holding_registers(100, device_id=1)
        assert refused.exception_code == ExcCodes.GATEWAY_NO_RESPONSE
        with pytest.raises(DeviceLostError):
            await home.ours.read(1, 100, 1)
        await home.rig.plug_in()
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with suppress(DeviceLostError):
                await home.ours.read(1, 100, 1)
                break
            assert time.monotonic() < deadline_s
        found = await guest.read_holding_registers(100, device_id=1)
        assert found.registers == [1000], "we are through, so guests are too"


async def test_a_guest_that_asks_what_the_device_does_not_answer_holds_up_guests_only(tmp_path):
    async with house(tmp_path, timeout_s=1.0) as home:
        guest = await home.guest()
        home.rig.cable.pass_on = mute
        for _ in range(5):
            refused = await guest.read_holding_registers(100, device_id=2)
            assert refused.exception_code == ExcCodes.GATEWAY_NO_RESPONSE
        home.rig.cable.pass_on = honest
        connections = home.rig.cable.connections
        assert connections <= 3, "it was asked once, the rest was answered without it"
        refused = await guest.read_holding_registers(100, device_id=2)
        assert refused.exception_code == ExcCodes.GATEWAY_NO_RESPONSE
        assert (await guest.read_holding_registers(100, device_id=1)).registers == [1000]


class SlowLink:
    """A link on which every question takes as long as the test wants."""

    def __init__(self):
        self.asked = []
        self.gates = asyncio.Queue()

    async def read(self, device_id, address, count, table="holding"):
        self.asked.append(address)
        await self.gates.get()
        return [0] * count

    async def write(self, device_id, address, values):
        await self.read(device_id, address, 1)

    def close(self):
        pass


async def turns():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_our_question_waits_for_one_guest_at_most():
    link = SlowLink()
    shared = SharedLink(link)

    async def guest(number):
        async with shared.for_guest(1, PATIENCE_S) as lent:
            await lent.read(1, number, 1)

    guests = [asyncio.create_task(guest(n)) for n in (1, 2, 3)]
    await turns()
    ours = [
        asyncio.create_task(shared.read(1, 100, 1)),
        asyncio.create_task(shared.write(1, 101, [1])),
    ]
    await turns()
    for _ in range(5):
        link.gates.put_nowait(None)
        await turns()
    await asyncio.gather(*guests, *ours)
    assert link.asked == [1, 100, 101, 2, 3]


async def test_who_gives_up_waiting_leaves_no_hole():
    link = SlowLink()
    shared = SharedLink(link)
    first = asyncio.create_task(shared.read(1, 1, 1))
    await turns()
    second = asyncio.create_task(shared.read(1, 2, 1))
    third = asyncio.create_task(shared.read(1, 3, 1))
    await turns()
    with pytest.raises(TimeoutError):
        async with shared.for_guest(1, 0.01):
            pytest.fail("it was not its turn")
    link.gates.put_nowait(None)
    await first
    second.cancel()  # its turn has come, and it does not know yet
    link.gates.put_nowait(None)
    await third
    link.gates.put_nowait(None)
    assert await asyncio.wait_for(shared.read(1, 4, 1), PATIENCE_S) == [0]


async def test_a_turn_that_comes_to_one_who_is_just_leaving_is_passed_on():
    turns_ = _Turns()

    async def take():
        async with turns_.take(guest=True):
            pass

    async with turns_.take(guest=False):
        leaving, next_one = asyncio.create_task(take()), asyncio.create_task(take())
        await turns()
    leaving.cancel()  # it has the turn, and does not know yet
    await asyncio.wait_for(next_one, PATIENCE_S)
    assert leaving.cancelled()


async def test_a_guest_waits_for_its_turn_only_so_long(tmp_path):
    async with house(tmp_path, wait_s_max=0.2) as home:
        guest = await home.guest()
        assert not (await guest.read_holding_registers(100, device_id=1)).isError()
        home.rig.cable.pass_on = lambda data: [(1.0, data)]
        ours = asyncio.create_task(home.ours.read(1, 100, 1))
        await turns()
        refused = await guest.read_holding_registers(100, device_id=1)
        assert refused.exception_code == ExcCodes.DEVICE_BUSY
        assert await ours == [1000]


async def test_a_guest_that_hangs_up_costs_us_nothing(tmp_path):
    async with house(tmp_path) as home:
        await home.ours.read(1, 100, 1)
        home.rig.cable.pass_on = lambda data: [(0.3, data)]
        for _ in range(3):
            home.rig.cable.asked.clear()
            _, writer = await home.raw()
            writer.write(question(1, 1, read_pdu(110, 2)))
            await asyncio.wait_for(home.rig.cable.asked.wait(), PATIENCE_S)
            writer.transport.abort()
        assert await home.ours.read(1, 100, 1) == [1000]
        assert home.rig.cable.connections == 1


async def test_more_guests_than_there_is_room_for_are_turned_away_with_one_line(tmp_path):
    async with house(tmp_path, clients_max=2) as home:
        first, second = await home.guest(), await home.guest()
        for client in (first, second):
            assert not (await client.read_holding_registers(100, device_id=1)).isError()
        for _ in range(3):
            reader, writer = await home.raw()
            await gone(reader)
            writer.close()
        assert home.notes.lines == ["proxy ready", "proxy full, guests turned away"]
        first.close()
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            reader, writer = await home.raw()
            writer.write(question(1, 1, read_pdu(100, 1)))
            with suppress(EOFError, ConnectionError):
                assert (await answer(reader))[2] == b"\x03\x02\x03\xe8"
                break
            assert time.monotonic() < deadline_s
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"\0\1\0", question(1, 1, read_pdu(100, 1))[:-1]])
async def test_a_silent_or_slow_guest_is_dropped(tmp_path, sent):
    async with house(tmp_path, idle_s=0.5) as home:
        reader, writer = await home.raw()
        writer.write(sent)
        await gone(reader)
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\1\0\0\0\1\1",
        b"\0\1\0\0\xff\xff\1",
        b"\0\1\0\7\0\6\1" + bytes(5),
    ],
)
async def test_what_does_not_speak_modbus_is_dropped(tmp_path, sent):
    async with house(tmp_path) as home:
        reader, writer = await home.raw()
        writer.write(sent)
        await gone(reader)
        writer.close()


async def test_a_guest_asks_no_oftener_than_it_may(tmp_path):
    async with house(tmp_path, requests_per_s=20.0) as home:
        guest = await home.guest()
        began_s = time.monotonic()
        for _ in range(41):
            await guest.read_holding_registers(100, device_id=1)
        assert time.monotonic() - began_s > 0.9, "41 questions, 20 of them from the last second"


async def test_hostile_guests_do_not_starve_us_or_a_decent_one(tmp_path):
    async with house(tmp_path, clients_max=8, requests_per_s=50.0) as home:
        decent = await home.guest()
        rng = random.Random(7)

        async def hostile(number):
            while True:
                with suppress(OSError, EOFError):
                    reader, writer = await home.raw()
                    for _ in range(50):
                        junk = question(1, rng.choice((1, 9)), rng.randbytes(rng.randint(1, 30)))
                        flood = question(2, 1, read_pdu(100, 10)) * 100
                        writer.write(rng.choice((junk, flood, flood)))
                        if number % 2:  # never reads what it is answered
                            await asyncio.sleep(0.01)
                        else:
                            await reader.read(100)
                    writer.transport.abort()
                await asyncio.sleep(0.01)

        attackers = [asyncio.create_task(hostile(n)) for n in range(6)]
        try:
            for n in range(30):
                assert await home.ours.read(1, 100 + n % 5, 1) == [1000 + n % 5]
                await asyncio.sleep(0.02)
            for n in range(5):
                found = await decent.read_holding_registers(100 + n, device_id=2)
                assert found.registers == [2000 + n]
        finally:
            for attacker in attackers:
                attacker.cancel()
            await asyncio.gather(*attackers, return_exceptions=True)
        assert home.rig.cable.connections == 1


async def test_a_port_that_is_taken_is_an_error_and_a_stopped_proxy_is_gone(tmp_path):
    async with house(tmp_path) as home:
        guest = await home.guest()
        rules = ProxyRules(device_ids=frozenset({1}), port=home.port)
        with pytest.raises(OSError, match="address"):
            await Proxy(rules, home.ours, Notes()).start()
        await home.proxy.stop()
        with pytest.raises(ConnectionError):
            await home.raw()
        assert await home.ours.read(1, 100, 1) == [1000], "the link stays ours"
        guest.close()


async def test_our_own_refusals_stay_what_they_are(tmp_path):
    async with house(tmp_path) as home:
        with pytest.raises(DeviceRefusedError):
            await home.ours.read(1, 500, 1)


@pytest.mark.parametrize(
    ("rules", "key"),
    [
        ({"device_ids": frozenset()}, "device_ids"),
        ({"device_ids": frozenset({256})}, "device_ids"),
        ({"port": -1}, "port"),
        ({"clients_max": 0}, "clients_max"),
        ({"requests_per_s": 0}, "requests_per_s"),
        ({"idle_s": 0}, "idle_s"),
        ({"wait_s_max": float("nan")}, "wait_s_max"),
    ],
)
def test_wrong_rules_are_refused_by_the_key(rules, key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        ProxyRules(**({"device_ids": frozenset({1})} | rules))
