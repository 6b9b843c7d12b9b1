"""A line of the site is shared with guests, and our battery stays ours (real sockets)."""

import asyncio
import json
import math
import socket
import subprocess
import time
from contextlib import asynccontextmanager

import pytest
from modbus_rig import PATIENT_S, TcpCable, rig_of
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.constants import ExcCodes
from register_server import device_of, devices_of, fixture, served
from support.patience import PATIENCE_S
from test_gateway_service import provision, rig, spawn

from hem.config import Device, Proxy
from hem.gateway import sharing
from hem.gateway.client import GatewayClient
from hem.gateway.devices import Site
from hem.gateway.sharing import SharedLine
from hem.gateway.template import load_template
from runtime.clock import SystemClock
from runtime.store import MemoryStore
from sim.sunspec_server import BASE, BATTERY_ID, METER_ID

DAY_MS = 86_400_000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def guest_of(port):
    """A client of the proxy, which may not be there yet."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        client = AsyncModbusTcpClient(
            "127.0.0.1", port=port, timeout=PATIENCE_S, retries=0, reconnect_delay=0
        )
        if await client.connect():
            break
        client.close()
        assert time.monotonic() < deadline_s, "nobody serves guests"
        await asyncio.sleep(0.05)
    try:
        yield client
    finally:
        client.close()


class Notes:
    """A log that remembers."""

    def __init__(self):
        self.lines = []

    def info(self, event, **facts):
        self.lines.append((event, facts))

    warning = info

    def events(self):
        return [event for event, _ in self.lines]


@asynccontextmanager
async def shared(devices, store=None, **keys):
    """A site with the first device's line shared: the site, the log and the proxy's port."""
    port, notes = free_port(), Notes()
    section = Proxy(device=devices[0].name, port=port, **keys)
    site = Site(devices, PATIENT_S, notes, store, shared=[section.device])
    line = SharedLine(section, site, notes, time.monotonic)
    serving = asyncio.create_task(line.serve())
    try:
        yield site, notes, port
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        site.close()


def address_of(devices, model, point):
    start, points = devices.images[BATTERY_ID]._points(model)
    return BASE + start + points[point].offset


async def test_a_guest_reads_what_we_read_and_does_not_write_to_a_battery_that_is_held():
    """The gateway's own process; the home's devices accept one client, and that is the gateway."""
    async with rig(clock=SystemClock()) as home:
        cable = TcpCable(home.devices._server.transport.sockets[0].getsockname()[1])
        cable.clients_max = 1
        await cable.plug_in()
        port = free_port()
        more = f'[[proxy]]\ndevice = "bat"\nport = {port}\nallow_writes = true\n'
        provision(home.folder, cable.port, more)
        process = spawn(home)
        gateway = GatewayClient(home.socket)
        try:
            await gateway.wait_ready(PATIENCE_S)
            async with guest_of(port) as guest:
                state = await gateway.state()
                assert state["devices"] == {"meter": "ok", "pv": "ok", "bat": "ok"}
                found = await guest.read_holding_registers(BASE, count=2, device_id=METER_ID)
                assert found.registers == [0x5375, 0x6E53]
                address = address_of(home.devices, 124, "WChaGra")

                await gateway.set_battery(2_000, 600)
                refused = await guest.write_register(address, 77, device_id=BATTERY_ID)
                assert refused.exception_code == ExcCodes.DEVICE_BUSY
                assert (await guest.read_holding_registers(address, device_id=3)).registers == [100]
                assert home.battery_w() == 2_000

                await gateway.release_battery()
                written = await guest.write_register(address, 77, device_id=BATTERY_ID)
                assert not written.isError()
                assert home.devices.images[BATTERY_ID].get(124, "WChaGra") == 77
                assert cable.connections == 1, "all of it over one connection"
        finally:
            await gateway.close()
            process.terminate()
            try:
                process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            cable.unplug()


@pytest.mark.parametrize("kind", ["tcp", "rtu-over-tcp"])
async def test_guests_may_ask_the_units_of_the_devices_on_the_line(tmp_path, kind):
    async with rig_of(kind, tmp_path) as lines:
        place = {"connection": kind, "host": "127.0.0.1", "port": lines.connection.port}
        elsewhere = Device(name="other", kind="sunspec", host="127.0.0.1", port=9, device_id=2)
        device = Device(name="inverter", kind="sunspec", device_id=1, **place)
        async with (
            shared([device, elsewhere]) as (_site, notes, port),
            guest_of(port) as guest,
        ):
            found = await guest.read_holding_registers(101, count=2, device_id=1)
            assert found.registers == [1_001, 1_002]
            refused = await guest.read_holding_registers(101, count=2, device_id=2)
            assert refused.exception_code == ExcCodes.GATEWAY_PATH_UNAVIABLE
            assert notes.events() == ["proxy ready"]


async def test_a_guest_writes_to_flash_only_what_the_day_s_budget_leaves():
    async with device_of("sungrow-sh") as (template, devices, port):
        store, today = MemoryStore(), time.time_ns() // 1_000_000 // DAY_MS
        spent = template.hold.writes_per_day * 7 // 8 - 1  # all but one; the rest is for neutral
        rows = [[day, spent] for day in (today, today + 1)]  # midnight may come
        store.put("writes:bat", json.dumps(rows).encode())
        device = Device(
            name="bat",
            kind="template",
            template=template.id,
            port=port,
            max_charge_w=5_000,
            max_discharge_w=5_000,
        )
        unit = template.device_id
        write = template.hold.write[0]
        async with (
            shared([device], store, allow_writes=True) as (_site, _notes, proxy_port),
            guest_of(proxy_port) as guest,
        ):
            values = [0] * write.size
            first = await guest.write_registers(write.address, values, device_id=unit)
            assert not first.isError()
            second = await guest.write_registers(write.address, values, device_id=unit)
            assert second.exception_code == ExcCodes.DEVICE_BUSY
            assert len(devices[unit].writes) == 1


async def test_a_battery_that_answers_on_every_unit_id_is_not_written_to_through_another():
    """Many devices on the network ignore the unit id: what guards one id guards them all."""
    template = load_template("sungrow-sh")
    devices = devices_of(template)
    devices[7] = devices[template.device_id]
    async with served(devices) as port:
        given = fixture(template.id)["parameters"]
        device = Device(name="bat", kind="template", template=template.id, port=port, **given)
        units, mode = (template.device_id, 7), 13_049
        async with (
            shared([device], allow_writes=True, device_ids=units) as (site, _notes, proxy_port),
            guest_of(proxy_port) as guest,
        ):
            await site.poll(0.0)
            site.battery._held_until_s = math.inf
            for unit in units:
                refused = await guest.write_registers(mode, [2], device_id=unit)
                assert refused.exception_code == ExcCodes.DEVICE_BUSY, unit
            site.battery._held_until_s = 0.0
            assert not (await guest.write_registers(mode, [2], device_id=7)).isError()


async def test_a_port_that_is_taken_is_said_once_and_had_when_it_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "PORT_RETRY_S", 0.02)
    async with rig_of("tcp", tmp_path) as lines:
        device = Device(name="inverter", kind="sunspec", port=lines.connection.port)
        port, notes = free_port(), Notes()
        squatter = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", port)
        site = Site([device], PATIENT_S, notes, shared=["inverter"])
        section = Proxy(device="inverter", port=port)
        serving = asyncio.create_task(SharedLine(section, site, notes, time.monotonic).serve())
        try:
            await asyncio.sleep(0.3)  # a dozen attempts
            ((event, facts),) = notes.lines
            assert (event, facts["address"]) == ("proxy not served yet", f"127.0.0.1:{port}")
            assert facts["remedy"] == "free the port, or set proxy.port to another"
            squatter.close()
            await squatter.wait_closed()
            async with guest_of(port) as guest:
                found = await guest.read_holding_registers(100, device_id=1)
                assert found.registers == [1_000]
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            site.close()


async def test_a_disabled_device_has_no_line_to_share_and_the_site_runs():
    device = Device(name="bat", kind="template", template="no-such-make")
    notes = Notes()
    site = Site([device], 1.0, notes, shared=["bat"])
    line = SharedLine(Proxy(device="bat", port=free_port()), site, notes, time.monotonic)
    await asyncio.wait_for(line.serve(), PATIENCE_S)
    assert notes.events() == ["device disabled", "proxy not served"]
    site.close()
