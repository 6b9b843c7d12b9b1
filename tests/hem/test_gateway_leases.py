"""A battery without a timer of its own is held only while somebody else would give it back."""

from __future__ import annotations

import asyncio

import pytest
from register_server import device_of
from support.patience import PATIENCE_S
from test_device_check import home, of  # noqa: F401  (a fixture)

from hem.config import Device, load_provisioning
from hem.gateway import service
from hem.gateway.devices import Site
from hem.gateway.leases import BOOK, LeaseBook, start_watchdog
from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.protocol import BatteryParams, Params
from hem.gateway.service import Gateway
from hem.gateway.template import load_template
from runtime.clock import SystemClock

PRODUCT = "marstek-venus"
NAME = "battery"


class Quiet:
    def info(self, event, **facts): ...
    def warning(self, event, **facts): ...


class Notes:
    def __init__(self):
        self.events = []

    def info(self, event, **facts):
        self.events.append(event)

    warning = info


def configured(port):
    return [Device(name=NAME, kind="template", template=PRODUCT, host="127.0.0.1", port=port)]


async def polled(site):
    async with asyncio.timeout(PATIENCE_S):
        while site.battery is None or not site.battery.ok:
            await site.poll(asyncio.get_running_loop().time())


async def test_without_a_watchdog_it_is_read_and_not_commanded(tmp_path):
    assert load_template(PRODUCT).hold.reversion == "none"
    async with device_of(PRODUCT) as (_, _, port):
        site = Site(configured(port), 1.0, Quiet())
        await polled(site)
        with pytest.raises(DeviceRefusedError, match="no watchdog"):
            await site.battery.command(500, 30, 0.0)
        site.close()


async def test_a_book_without_a_watchdog_is_not_enough(tmp_path):
    async with device_of(PRODUCT) as (_, _, port):
        book = LeaseBook(tmp_path / BOOK)
        site = Site(configured(port), 1.0, Quiet(), leases=book)
        await polled(site)
        with pytest.raises(DeviceRefusedError, match="watchdog"):
            await site.battery.command(500, 30, 0.0)
        assert book.held() == []
        site.close()
        book.close()


@pytest.mark.slow
async def test_when_the_gateway_is_gone_the_watchdog_gives_the_battery_back(tmp_path):
    async with device_of(PRODUCT) as (_, _, port):
        book = LeaseBook(tmp_path / BOOK)
        watchdog = start_watchdog(book.path)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await book.alive():
                    await asyncio.sleep(0.05)
            site = Site(configured(port), 1.0, Quiet(), leases=book)
            await polled(site)
            storage = site.watched[NAME]
            assert await site.battery.command(500, 30, 0.0) == 500
            assert not await storage.is_neutral()
            assert [lease.device for lease in book.held()] == [NAME]
            site.close()
            book.close()  # as the kernel does when the gateway dies
            look = Site(configured(port), 1.0, Quiet())
            async with asyncio.timeout(PATIENCE_S):
                while not await look.watched[NAME].is_neutral():
                    await asyncio.sleep(0.2)
            look.close()
        finally:
            watchdog.terminate()
            watchdog.wait(PATIENCE_S)


@pytest.mark.slow
async def test_a_watchdog_that_cannot_be_started_is_tried_again_and_said_once(
    home,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    """A machine without room for a process has some later: the battery can be held then."""
    failures = [BlockingIOError(11, "Resource temporarily unavailable")] * 2
    said, started = Notes(), []

    def start(path):
        if failures:
            raise failures.pop()
        started.append(start_watchdog(path))
        return started[-1]

    monkeypatch.setattr(service, "start_watchdog", start)
    monkeypatch.setattr(service, "WATCH_EVERY_S", 0.05)
    async with device_of(PRODUCT) as (_, _, port):
        config = load_provisioning(home(of(PRODUCT, port, NAME)))
        book = LeaseBook(tmp_path / BOOK)
        gateway = Gateway(config, None, SystemClock(), said, leases=book)
        watching = asyncio.create_task(gateway.watch_over_leases())
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await book.alive():
                    assert not watching.done()
                    await asyncio.sleep(0.05)
            async with asyncio.timeout(PATIENCE_S):
                while (await gateway.dispatch("state", Params()))["devices"] != {NAME: "ok"}:
                    await asyncio.sleep(0.05)
            order = BatteryParams(power_w=500, lease_s=5)
            assert await gateway.dispatch("set_battery", order) == {"accepted_w": 500}
        finally:
            await gateway.close()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            book.close()
            for process in started:
                process.terminate()
                process.wait(PATIENCE_S)
    assert (failures, len(started)) == ([], 1)
    assert [event for event in said.events if "watchdog" in event] == [
        "watchdog not started, tried again", "watchdog started",
    ]  # fmt: skip
