"""A battery without a timer of its own is held only while somebody else would give it back."""

from __future__ import annotations

import asyncio

import pytest
from register_server import device_of
from support.patience import PATIENCE_S

from hem.config import Device
from hem.gateway.devices import Site
from hem.gateway.leases import BOOK, LeaseBook, start_watchdog
from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.template import load_template

PRODUCT = "marstek-venus"
NAME = "battery"


class Quiet:
    def info(self, event, **facts): ...
    def warning(self, event, **facts): ...


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
