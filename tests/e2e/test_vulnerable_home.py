"""A feeder of `hem run` processes, one of them with a meter that an advisory names."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from support.feeders import SUPERVISOR
from support.homes import MARKET, Site, log_lines
from support.http import serving
from support.patience import PATIENCE_S

from aggregator.revocations import Revocations
from csmdb.advisory_watch import AdvisoryWatch
from csmdb.firmware_http import build_app
from hem.ems.firmware_status import read_view
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbClient
from runtime.rng import SystemRng
from sim.firmware_meter import FirmwareMeter, make_image
from sim.scenarios.vulnerable_home import TEMPLATE, Maker, name_meter
from sim.scenarios.vulnerable_meter import made_up
from wire.keys import BoxKey

LOAD_W = 30_000
TICK_S = 0.25
BUSY_S = 2 * PATIENCE_S
"""Three homes and four validators start on one machine."""


async def until(condition):
    async with asyncio.timeout(BUSY_S):
        while not condition():
            await asyncio.sleep(0.05)


class Desk:
    """The DSO: gives what registers something to trade with, and forwards revocations."""

    def __init__(self, site, actor):
        self.site, self.actor, self.tasks = site, actor, []
        actor.client.on_event(self.fund)

    async def fund(self, _height, event):
        if event["event"] == "address-registered":
            slot = self.site.genesis.grid.slot_at(self.site.authority.clock.now_ms())
            asset = {"op": "add-energy-asset", "address": event["address"], "energyWh": 40}
            asset |= {"kind": "consumption", "startSlot": slot, "endSlot": slot + 1000}
            money = {"op": "add-financial-balance", "address": event["address"], "amountUc": 10**8}
            self.send(asset, money)

    def add(self, operations):
        self.send(*(operation for _, operation in operations))

    def send(self, *operations):
        self.tasks.append(asyncio.create_task(self.actor.submit(*operations, timeout_s=BUSY_S)))

    def told(self, *names):
        return [event for _, event in self.actor.events if event["event"] in names]

    def bids_since(self, name):
        """Addresses whose bids were accepted after an event; in the order of the ledger."""
        market = self.told("bid-accepted", "banned", "reinstated")
        start = next((n for n, event in enumerate(market) if event["event"] == name), len(market))
        return [event["address"] for event in market[start:] if event["event"] == "bid-accepted"]

    @asynccontextmanager
    async def forwarding(self):
        csmdb = self.site.csmdb
        csmdb.issue_service_certificate(SUPERVISOR.public, ["aggregator", "dso"], "dso")
        client = CsmDbClient(
            self.actor.bus, SUPERVISOR, BoxKey(bytes(32)), MARKET, csmdb.issuing_key.public,
            csmdb.box.public, SystemClock(), SystemRng(),
        )  # fmt: skip
        task = asyncio.create_task(Revocations(self.actor.bus, client, self).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, *self.tasks, return_exceptions=True)


@asynccontextmanager
async def consuming(meter):
    """The meter's register goes on, whatever becomes of its firmware."""

    async def count():
        used_wms = 0
        while True:
            await asyncio.sleep(TICK_S)
            used_wms += int(LOAD_W * TICK_S * 1000)
            meter.import_wh += used_wms // 3_600_000
            used_wms %= 3_600_000

    meter.grid_w = LOAD_W
    await meter.start()
    task = asyncio.create_task(count())
    try:
        yield
    finally:
        task.cancel()
        await meter.stop()


def with_meter(home, meter, url, root):
    """The home's provisioning file with our meter instead of its own, and firmware for it."""
    head = home.file.read_text().split("[[devices]]")[0]
    home.file.write_text(
        f'{head}[firmware]\nurl = "{url}"\nroot = "{root}"\n'
        f'[[devices]]\nname = "meter"\nkind = "template"\ntemplate = "{TEMPLATE}"\n'
        f"port = {meter.port}\n"
    )


def address_of(csmdb, serial):
    (who,) = [
        row["id"] for row in csmdb.repository.list_participants() if row["meter_serial"] == serial
    ]
    (grant,) = csmdb.repository.address_grants_of(who)
    return who, grant.address


@pytest.mark.long
async def test_a_named_meter_is_banned_updated_attested_and_trades_again_and_the_rest_trade_on(
    tmp_path,
):
    """Nobody touches the home between the advisory and its next bid."""
    site = await Site.open(tmp_path)
    maker = Maker(tmp_path)
    meter = FirmwareMeter("RM-1", make_image("RM-1", "1.0"))
    try:
        ledger = await site.ledger()
        desk = Desk(site, await ledger.supervisor())
        folder = tmp_path / "advisories"
        folder.mkdir()
        app = build_app(maker.repository, lambda: 0.0)
        async with (
            consuming(meter),
            desk.forwarding(),
            AdvisoryWatch(site.csmdb, folder, 1.0).running(),
        ):
            with serving(app) as url:
                homes = [await site.home(f"home-{n}", load_w=LOAD_W) for n in (1, 2, 3)]
                with_meter(homes[0], meter, url, maker.root)
                for home in homes:
                    await home.start()
                await until(lambda: len({e["address"] for e in desk.told("bid-accepted")}) == 3)
                data = homes[0].folder / "data"
                await until(lambda: read_view(data).state == "current")
                who, address = address_of(site.csmdb, meter.serial)
                others = {e["address"] for e in desk.told("bid-accepted")} - {address}

                name_meter(site.csmdb, "Made up", "M1")
                maker.publish("1.1")
                (folder / "advisory.json").write_bytes(made_up())
                await until(lambda: desk.told("banned"))
                assert [event["address"] for event in desk.told("banned")] == [address]
                await until(lambda: desk.told("reinstated"))
                assert [event["address"] for event in desk.told("reinstated")] == [address]
                assert meter.version == "1.1"
                assert site.csmdb.repository.meter_of(who).firmware == "1.1"
                await until(lambda: address in desk.bids_since("reinstated"))
                await until(lambda: others <= set(desk.bids_since("banned")))
                meanwhile = len(desk.bids_since("banned")) - len(desk.bids_since("reinstated"))
                out = desk.bids_since("banned")[:meanwhile]
                assert address not in out, "nothing of it was taken while it was banned"
                assert read_view(data).attested == "1.1"
                for home in homes:
                    assert not [x for x in log_lines(home) if x.get("level") == "error"]
                for home in homes:
                    assert await home.stop() == 0
    finally:
        await site.close()
