"""
A market whose broker takes certificates: a CSM-DB with authority and door, a broker of either make.

    async with tls_site(tmp_path, "mosquitto") as site:
        home = await site.home("one")              # enrolled through the door, TLS key and all
        bus = await site.lane(home.ems, home.certificate)
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.enrolment import AskingHome
from support.patience import PATIENCE_S

from bench.brokers import INSTALL, find_mosquitto, free_port, wait_for_port
from broker.access import Trust
from broker.embedded import EmbeddedBroker
from broker.mosquitto import render_acl, render_config
from broker.revocations import Revocations, follow, opened
from broker.sync import MosquittoSync
from csmdb.door import CERTIFICATE, KEY, build_door, write_door_certificate
from csmdb.service import CsmDbService
from csmdb.setup import CsmDb, create
from csmdb.tls import CA_CERTIFICATE, init_authority, write_own, write_server
from runtime.bus import MqttBus, lane
from runtime.csmdb_client import CsmDbClient
from runtime.door import Door, DoorBus
from runtime.http import listen, serving
from runtime.lane_tls import LaneTls
from runtime.rng import SystemRng
from runtime.tls import Tls, client_context
from sim.processes import Processes
from wire.certificates import AddressGrant, Certificate, Signed, load
from wire.enrolment import ENROLL, GRANT_ADDRESSES
from wire.keys import SigningKey

HOST = "127.0.0.1"
LOOK_S = 0.2
"""Between two looks at the list of revoked keys: 10 s where nobody waits for a test."""


@dataclass
class TlsHome(AskingHome):
    """A home that was enrolled through the door."""

    client: Any = None  # type: ignore[assignment]
    tls: Any = None
    certificate: Any = None


@dataclass
class TlsSite:
    """What runs."""

    csmdb: CsmDb
    folder: Path
    url: str = ""
    port: int = 0
    service: Any = None
    broker: Any = None
    """The embedded one, or None."""
    services: dict[str, frozenset[str]] = field(default_factory=dict)
    lanes: list[MqttBus] = field(default_factory=list)

    @property
    def ca(self) -> Path:
        return self.csmdb.folder / CA_CERTIFICATE

    async def home(self, name: str) -> TlsHome:
        home = TlsHome(name)
        door, csmdb = Door(self.url, self.ca), self.csmdb
        home.client = CsmDbClient(
            DoorBus(door, csmdb.market, home.ems.id), home.ems, home.box, csmdb.market,
            csmdb.issuing_key.public, csmdb.box.public, csmdb.clock, SystemRng(),
        )  # fmt: skip
        code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
        enrolment = home.enrolment(code)
        answer = await home.client.ask(ENROLL, enrolment)
        key = csmdb.issuing_key.public
        home.certificate = load(Certificate, answer["certificate"], key, csmdb.market)

        async def line() -> CsmDbClient:
            return home.client  # type: ignore[no-any-return]

        tls = Tls(self.folder / name, self.ca, csmdb.clock)
        home.tls = LaneTls(tls, line, SystemRng())
        await home.tls.ensure(home.ems.id)
        return home

    async def grant(self, home: TlsHome, number: int) -> tuple[SigningKey, AddressGrant]:
        """An address of a home, with its own TLS certificate."""
        answer = await home.client.ask(GRANT_ADDRESSES, {"addresses": [home.address_row(number)]})
        csmdb, key = self.csmdb, home.address(number)
        grant = load(AddressGrant, answer["grants"][0], csmdb.issuing_key.public, csmdb.market)
        await home.tls.ensure(key.id)
        return key, grant

    def bus(self, key: SigningKey, credential: Signed | None, context: Any) -> MqttBus:
        csmdb = self.csmdb
        bus = lane(key, csmdb.market, credential, HOST, self.port, csmdb.clock, SystemRng(),
                   tls=context)  # fmt: skip
        self.lanes.append(bus)
        return bus

    async def open(self, key: SigningKey, credential: Signed | None, context: Any) -> MqttBus:
        bus = self.bus(key, credential, context)
        await bus.start()
        await bus.wait_connected(PATIENCE_S)
        return bus


@asynccontextmanager
async def tls_site(
    folder: Path, make: str, services: dict[SigningKey, tuple[str, ...]] | None = None
) -> AsyncIterator[TlsSite]:
    """A running site; `make` is embedded or mosquitto."""
    if make == "mosquitto" and find_mosquitto() is None:
        pytest.skip(INSTALL)
    async with AsyncExitStack() as stack:
        csmdb = stack.enter_context(create(folder / "csmdb", "test"))
        init_authority(csmdb)
        site = TlsSite(csmdb, folder)
        site.services = {csmdb.id: frozenset({"csmdb"})}
        for key, roles in (services or {}).items():
            csmdb.issue_service_certificate(key.public, roles)
            site.services[key.id] = frozenset(roles)
        site.port = free_port()
        bus = lane(
            csmdb.issuing_key, "test", csmdb.certificate, HOST, site.port, csmdb.clock,
            SystemRng(), tls=client_context(write_own(csmdb)),
        )  # fmt: skip
        site.service = CsmDbService.on(csmdb, bus, burst=1_000)
        site.service.start()
        write_door_certificate(csmdb, (HOST,))
        files = csmdb.folder / CERTIFICATE, csmdb.folder / KEY
        served = serving(
            build_door(site.service, burst=1_000), listen(HOST, 0, "door"), folder / "url", files
        )
        site.url = (await stack.enter_async_context(served)).rstrip("/")
        trust = Trust("test", csmdb.issuing_key.public)
        write_server(csmdb, [HOST], folder / "broker")
        if make == "embedded":
            following = await _embedded(stack, site, trust)
        else:
            following = _mosquitto(stack, site, trust)
        await bus.start()
        await bus.wait_connected(PATIENCE_S)
        try:
            yield site
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            for one in (bus, *site.lanes):
                await one.stop()


async def _embedded(stack: AsyncExitStack, site: TlsSite, trust: Trust) -> asyncio.Task[None]:
    own = site.folder / "broker"
    revocations = Revocations(trust, own / "list")
    site.broker = EmbeddedBroker(
        trust, site.csmdb.clock, HOST, site.port, certfile=own / "server.crt",
        keyfile=own / "server.key", cafile=own / "ca.crt", revocations=revocations,
    )  # fmt: skip
    await site.broker.start()
    stack.push_async_callback(site.broker.shutdown)
    fetch = opened(site.url, site.ca)
    return asyncio.create_task(follow(revocations, fetch, site.broker.end_revoked, LOOK_S))


def _mosquitto(stack: AsyncExitStack, site: TlsSite, trust: Trust) -> asyncio.Task[None]:
    own, processes = site.folder / "broker", Processes(site.folder / "logs")
    stack.callback(processes.stop)
    (own / "state").mkdir()
    acl = own / "acl"
    acl.write_text(render_acl("test", site.services))
    acl.chmod(0o600)
    config = render_config(str(own), str(acl), str(own / "state"), site.port, HOST)
    (own / "mosquitto.conf").write_text(f"{config}user {getpass.getuser()}\n")
    binary = find_mosquitto()
    processes.start_command("mosquitto", [binary, "-c", str(own / "mosquitto.conf")])
    wait_for_port(processes, site.port)
    sync = MosquittoSync(
        trust, site.url, site.ca, own / "crl.pem", acl, own / "state" / "mosquitto.pid",
        site.services,
    )  # fmt: skip
    return asyncio.create_task(sync.run(LOOK_S))
