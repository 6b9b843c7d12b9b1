"""
n3's home: a simulated meter that takes firmware, a real gateway before it, and its keeper.

    maker ── TUF repository, HTTP ──► the EMS's keeper ──► `hem gateway` ── Modbus TCP ──► meter
    ledger: `banned` ──► the keeper looks at once            │
    CSM-DB ◄── attestation, signed by the meter key ◄────────┘

The gateway is a process of its own with a meter key of its own; enrolment, nonce and attestation go
over the broker. What trades under n3's address, and signs its receipts, is the scenario's `Actor`,
as for every other home.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from csmdb.advisories import say_alias
from csmdb.firmware_http import build_app
from csmdb.firmware_repository import FirmwareRepository
from csmdb.product_names import Alias
from csmdb.setup import CsmDb
from hem.config import load_provisioning
from hem.ems.addresses import OneAddress
from hem.ems.ban_watch import BanWatch
from hem.ems.enrolment import Enrolment
from hem.ems.firmware import Firmware
from hem.ems.keyring import Keyring
from hem.gateway.client import GatewayClient
from hem.private import make_data_folder
from runtime.bus import MqttBus, lane
from runtime.clock import write_clock
from runtime.csmdb_client import CsmDbClient
from runtime.http import listen, serving
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from sim.firmware_meter import FirmwareMeter, make_image
from sim.scenarios.etse import CONNECTION_W, Desk, Node
from sim.stage import CONNECT_S, Actor, Stage
from wire.certificates import AddressGrant
from wire.firmware import Target
from wire.keys import BoxKey, to_text

VENDOR, MODEL, TEMPLATE = "Hearthgrid", "RM-1", "hearthgrid-rm1"
"""What is on the simulated meter's plate."""
logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # it prints what a restart cuts off
VERSION_CHARS = 16
"""A version's length on the plate."""
RESTART_S = 5.0
"""The meter is away for so long when it changes its firmware [real s]."""


class Maker:
    """
    Who makes the meter's firmware: a repository in the CSM-DB's folder, and its offline keys.

    Args:
        folder: for both
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._drawer = folder / "csmdb", folder / "drawer"
        self.root = self.repository.init([self._drawer])

    @property
    def repository(self) -> FirmwareRepository:
        """As of now."""
        return FirmwareRepository(self._folder, datetime.now(UTC))

    def publish(self, version: str) -> None:
        """Sign a file and show it to everybody."""
        file = self._folder / f"{MODEL}-{version.replace(' ', '-')}.bin"
        file.write_bytes(make_image(MODEL, version))
        meant = Target(
            vendor=VENDOR, model=MODEL, version=version, template=TEMPLATE, installs_by="registers"
        )
        self.repository.add(file, meant)
        self.repository.publish([self._drawer])


@dataclass(slots=True)
class MeteredHome:
    """n3's home at work."""

    stage: Stage
    node: Node
    maker: Maker
    meter: FirmwareMeter
    firmware: Firmware

    @classmethod
    @asynccontextmanager
    async def running(cls, stage: Stage, desk: Desk, version: str) -> AsyncIterator[MeteredHome]:
        """
        Meter, gateway and keeper, enrolled; at work while the block runs.

        Args:
            version: that the meter runs at first
        """
        async with AsyncExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="hg"))  # short: for the socket's path
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            maker = Maker(stage.folder)
            app = build_app(maker.repository, stage.clock.monotonic_s)
            listener = listen("127.0.0.1", 0, "port")
            url = await stack.enter_async_context(serving(app, listener, folder / "url"))
            meter = FirmwareMeter(MODEL, make_image(MODEL, version), restart_s=RESTART_S)
            await meter.start()
            stack.push_async_callback(meter.stop)
            file = _provision(folder, stage, desk, meter, maker.root, url)
            await stack.enter_async_context(_gateway(file, stage))
            node, firmware = await _ems(stack, stage, desk, file)
            stack.push_async_callback(_end, asyncio.create_task(firmware.run()))
            yield cls(stage, node, maker, meter, firmware)

    def watch_bans(self, actor: Actor, grant: AddressGrant) -> None:
        """Let the keeper hear what the ledger says of our address."""
        actor.client.on_event(BanWatch(OneAddress(grant), self.firmware).take_event)

    async def first_look(self) -> None:
        """Wait until the keeper has looked once: there is nothing yet."""
        await self.stage.until(
            lambda: self.firmware.view.state == "current", "n3 did not look for firmware"
        )

    async def look_after(self, wall_ms: int) -> None:
        """Wait until the keeper has looked again, and has found nothing."""
        await self.stage.until(
            lambda: self.firmware.view.checked_ms >= wall_ms, "n3's home did not look for firmware"
        )
        await self.first_look()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def name_meter(csmdb: CsmDb, vendor: str, model: str) -> None:
    """Say, as an operator does, that an advisory's product is what our meter's plate says."""
    if (vendor, model) != (VENDOR, MODEL):
        say_alias(csmdb, Alias(VENDOR, MODEL, vendor, model, same=True))


def _provision(
    folder: Path, stage: Stage, desk: Desk, meter: FirmwareMeter, root: Path, url: str
) -> Path:
    """A provisioning file as an installer leaves it; the defaults are left alone."""
    csmdb = desk.csmdb
    claim = csmdb.add_claim(["prosumer"], CONNECTION_W, CONNECTION_W, "feeder-1")
    box = to_text(BoxKey(stage.issuer.key.derive("dso box").seed).public)
    (folder / "market.json").write_text(
        f'{{"chainId": "{stage.genesis.chain_id}", "dsoBoxKey": "{box}",'
        f' "slotLengthS": {stage.genesis.slot_length_s}}}'
    )
    file = folder / "provisioning.toml"
    file.write_text(f"""
[home]
name = "n3"
claim_code = "{claim}"
data_dir = "data"
[broker]
port = {stage.broker.port}
[market]
name = "{stage.genesis.market}"
genesis = "market.json"
csmdb = "{csmdb.id}"
csmdb_key = "{to_text(csmdb.issuing_key.public)}"
csmdb_box = "{to_text(csmdb.box.public)}"
[gateway]
socket = "gw.sock"
[firmware]
url = "{url}"
root = "{root}"
[[devices]]
name = "meter"
kind = "template"
template = "{TEMPLATE}"
port = {meter.port}
""")
    return file


@asynccontextmanager
async def _gateway(file: Path, stage: Stage) -> AsyncIterator[None]:
    """`hem gateway` while the block runs; its clock is the stage's, until that is moved."""
    clock = file.with_name("clock.json")
    write_clock(clock, [(time.time(), stage.clock.now_ms(), stage.clock.speed)])
    with file.with_name("gateway.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hem.cli", "gateway", str(file),
            stdout=log, stderr=log, env={**os.environ, "HEARTHGRID_CLOCK": str(clock)},
        )  # fmt: skip
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ems(
    stack: AsyncExitStack, stage: Stage, desk: Desk, file: Path
) -> tuple[Node, Firmware]:
    """Enrol over the broker, as a stranger; then a lane of our own, and the keeper on it."""
    config, rng, csmdb = load_provisioning(file), SystemRng(), desk.csmdb
    data_dir = config.home.data_dir
    make_data_folder(data_dir)
    keyring, store = Keyring(data_dir / "keys", rng), SqliteStore(data_dir / "ems.sqlite")
    stack.callback(store.close)
    gateway = GatewayClient(config.gateway.socket)
    stack.push_async_callback(gateway.close)
    await gateway.wait_ready(CONNECT_S)
    enrolment = Enrolment(store, keyring, gateway, csmdb.market, csmdb.issuing_key.public)

    def asking(bus: MqttBus) -> CsmDbClient:
        return CsmDbClient(
            bus, keyring.ems, keyring.box, csmdb.market, csmdb.issuing_key.public,
            csmdb.box.public, stage.clock, rng,
        )  # fmt: skip

    def line(bus: MqttBus) -> MqttBus:
        stack.push_async_callback(bus.stop)
        return bus

    place = ("127.0.0.1", stage.broker.port, stage.clock, rng)
    stranger = line(lane(keyring.ems, csmdb.market, None, *place))
    asked = asking(stranger)
    await stranger.start()
    await enrolment.enrol(asked, config.home.claim_code)
    await stranger.stop()
    bus = line(lane(keyring.ems, csmdb.market, lambda: enrolment.certificate, *place))
    client = asking(bus)
    await bus.start()
    await bus.wait_connected(CONNECT_S)

    @asynccontextmanager
    async def on_line() -> AsyncIterator[CsmDbClient]:
        yield client

    firmware = Firmware(
        config.firmware, data_dir, gateway, enrolment, on_line, stage.clock, bus.reconnect
    )
    return Node("n3", keyring.ems, keyring.address(enrolment.address_number)), firmware
