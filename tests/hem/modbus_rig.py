"""
A Modbus server and a cable to it that can be cut, delayed, or made to lie: real ptys and sockets.

    async with rig_of("rtu", tmp_path) as rig:
        link = rig.link()
        rig.cable.pass_on = lambda data: []     # what the server says never arrives
        rig.cable.unplug(); await rig.plug_in()
"""

import asyncio
import os
import socket
import tty
from contextlib import asynccontextmanager, suppress

from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from hem.gateway.links import Connection, link_for

PATIENT_S = 20.0


def honest(data):
    """Pass on what the server says, at once."""
    return [(0.0, data)]


def mute(_data):
    """Pass nothing on."""
    return []


class Unit:
    """A device with 20 registers from 100 on; 115 and later may not be written."""

    def __init__(self, unit):
        self.registers = [unit * 1_000 + i for i in range(20)]
        self.device = SimDevice(
            unit,
            [SimData(100, values=list(self.registers), datatype=DataType.REGISTERS)],
            action=self.action,
        )

    async def action(self, function, start, address, count, registers, values):
        offset = address - start
        if function in (6, 16):
            if offset + count > 15:
                return ExcCodes.ILLEGAL_VALUE
            self.registers[offset : offset + count] = values
        registers[: len(self.registers)] = self.registers
        return None


class Cable:
    """
    What lies between a link and its server. `pass_on` says what becomes of the server's bytes.

    For a serial line it is two ptys, for an adapter two TCP connections.
    """

    def __init__(self):
        self.pass_on = honest
        self.asked = asyncio.Event()

    def up(self, data, send):
        self.asked.set()
        send(data)

    def down(self, data, send):
        loop = asyncio.get_running_loop()
        for delay_s, part in self.pass_on(data):
            if delay_s:
                loop.call_later(delay_s, send, part)
            else:
                send(part)


class SerialCable(Cable):
    def __init__(self, folder):
        super().__init__()
        self.path = folder / "ttyTEST"
        self.master = self.slave = -1
        self.far_master, self.far_slave = self._pty()
        self.far_path = os.ttyname(self.far_slave)
        self.plug_in()

    @staticmethod
    def _pty():
        master, slave = os.openpty()
        tty.setraw(master)
        tty.setraw(slave)
        os.set_blocking(master, False)
        return master, slave

    def plug_in(self):
        self.master, self.slave = self._pty()
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(self.slave))
        loop = asyncio.get_running_loop()
        loop.add_reader(self.master, self._pump, self.master, self.up, self._to_far)
        loop.add_reader(self.far_master, self._pump, self.far_master, self.down, self._to_near)

    def unplug(self):
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.master)
        loop.remove_reader(self.far_master)
        os.close(self.slave)
        os.close(self.master)
        self.master = -1
        self.path.unlink()

    def _pump(self, descriptor, way, send):
        with suppress(OSError):
            way(os.read(descriptor, 4096), send)

    def _to_far(self, data):
        os.write(self.far_master, data)

    def _to_near(self, data):
        if self.master >= 0:
            os.write(self.master, data)

    def close(self):
        if self.master >= 0:
            self.unplug()
        os.close(self.far_slave)
        os.close(self.far_master)


class TcpCable(Cable):
    def __init__(self, far_port):
        super().__init__()
        self.far_port = far_port
        self.port = 0
        self.writers = set()
        self.server = None
        self.carry_up = True
        self.hole, self.fillers = None, []
        self.clients_max = 99
        self.clients = self.connections = 0
        """How many are connected; those above `clients_max` are turned away."""

    def up(self, data, send):
        if self.carry_up:
            super().up(data, send)

    async def plug_in(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    def vanish(self):
        """No packet arrives any more, and nobody says so: neither answers, nor RST, nor SYN-ACK."""
        self.pass_on, self.carry_up = mute, False
        self.server.close()
        self.hole = socket.socket()
        self.hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.hole.bind(("127.0.0.1", self.port))
        self.hole.listen(0)
        for _ in range(2):  # the kernel drops every SYN above the backlog
            self.fillers.append(filler := socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))

    async def reappear(self):
        """What `vanish` took away; connections of before stay dead."""
        for one in (*self.fillers, self.hole):
            one.close()
        self.fillers.clear()
        for writer in self.writers:
            writer.transport.abort()
        self.pass_on, self.carry_up = honest, True
        await self.plug_in()

    def unplug(self):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def _serve(self, reader, writer):
        if self.clients >= self.clients_max:
            writer.transport.abort()
            return
        self.clients += 1
        self.connections += 1
        try:
            await self._carry(reader, writer)
        finally:
            self.clients -= 1

    async def _carry(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.far_port)
        self.writers |= {writer, far_writer}
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, far_writer, self.up), self._pump(far_reader, writer, self.down)
            )

    async def _pump(self, reader, writer, way):
        def send(data):
            if not writer.is_closing():
                writer.write(data)

        while data := await reader.read(4096):
            way(data, send)
        writer.close()


class Rig:
    """A cable, the server at its end, and how to reach it."""

    def __init__(self, units, cable, connection, replug):
        self.units, self.cable, self.connection, self._replug = units, cable, connection, replug
        self.links = []

    def link(self, timeout_s=PATIENT_S):
        self.links.append(made := link_for(self.connection, timeout_s))
        return made

    async def plug_in(self):
        await self._replug()


@asynccontextmanager
async def rig_of(kind, folder):
    units = {number: Unit(number) for number in (1, 2)}
    devices = [unit.device for unit in units.values()]
    if kind == "rtu":
        cable = SerialCable(folder)
        server = ModbusSerialServer(
            devices, port=cable.far_path, baudrate=115_200, ignore_missing_devices=True
        )
        await server.serve_forever(background=True)
        connection = Connection(kind="rtu", path=str(cable.path), baud=115_200)

        async def replug():
            cable.plug_in()
    else:
        framer = FramerType.SOCKET if kind == "tcp" else FramerType.RTU
        server = ModbusTcpServer(
            devices, address=("127.0.0.1", 0), framer=framer, ignore_missing_devices=True
        )
        await server.serve_forever(background=True)
        cable = TcpCable(server.transport.sockets[0].getsockname()[1])
        await cable.plug_in()
        connection = Connection(kind=kind, host="127.0.0.1", port=cable.port)
        replug = cable.plug_in
    rig = Rig(units, cable, connection, replug)
    try:
        yield rig
    finally:
        for link in rig.links:
            link.close()
        await asyncio.sleep(0)
        await server.shutdown()
        with suppress(OSError):
            cable.close() if kind == "rtu" else cable.unplug()
