"""A banned home looks for firmware at once and often; whose ban it is, only the home knows."""

import asyncio

import pytest
from support.brokers import make_key
from support.patience import PATIENCE_S

from hem.config import Firmware as FirmwareConfig
from hem.ems import firmware as keeper
from hem.ems.ban_watch import BanWatch
from hem.ems.firmware import Firmware
from hem.gateway.client import GatewayError
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbRefusedError

OURS, OTHERS = make_key("ours").id, make_key("others").id


class Unplugged:
    """A gateway that is asked, and does not answer."""

    def __init__(self):
        self.asked = 0

    async def nameplate(self):
        self.asked += 1
        raise GatewayError("UNAVAILABLE")


class Nowhere:
    certificate = None


@pytest.fixture
async def looking(tmp_path, monkeypatch, clock):
    """A home that looks once in six hours, and is asked to by nobody."""
    monkeypatch.setattr(keeper, "LOOK_S", 0.01)
    gateway = Unplugged()
    config = FirmwareConfig(url="http://127.0.0.1:9", root=tmp_path / "root.json")
    firmware = Firmware(config, tmp_path, gateway, Nowhere(), None, clock)
    task = asyncio.create_task(firmware.run())
    await until(lambda: gateway.asked == 1)
    yield gateway, firmware
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def clock():
    return SystemClock()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_our_ban_makes_us_look_at_once_and_anothers_does_not(looking):
    gateway, firmware = looking
    watch = BanWatch({OURS}, firmware)
    await watch.take_event(1, {"event": "banned", "address": OTHERS})
    await watch.take_event(1, {"event": "cleared"})
    watch.operation_done("OK")
    await asyncio.sleep(0.1)
    assert gateway.asked == 1
    await watch.take_event(2, {"event": "banned", "address": OURS})
    await until(lambda: gateway.asked == 2)


async def test_a_refused_operation_tells_too_and_a_hundred_of_them_are_one_look(looking):
    gateway, firmware = looking
    watch = BanWatch({OURS}, firmware)
    for _ in range(100):
        watch.operation_done("BANNED")
    await until(lambda: gateway.asked == 2)
    watch.operation_done("BANNED")
    await asyncio.sleep(0.1)
    assert gateway.asked == 2


async def test_while_banned_we_look_often_and_when_let_in_as_before(looking, monkeypatch):
    gateway, firmware = looking
    monkeypatch.setattr(keeper, "BANNED_LOOK_S", 0.02)
    watch = BanWatch({OURS}, firmware)
    await watch.take_event(1, {"event": "banned", "address": OURS})
    await until(lambda: gateway.asked >= 4)
    await watch.take_event(2, {"event": "reinstated", "address": OURS})
    await asyncio.sleep(0.1)
    seen = gateway.asked
    await asyncio.sleep(0.2)
    assert gateway.asked == seen


async def test_a_home_that_gets_no_grant_for_a_ban_looks_too(home, monkeypatch):
    monkeypatch.setattr("hem.service.BANNED_RETRY_S", 0.001)
    answers, told = ["BANNED", "BANNED", ""], []
    monkeypatch.setattr(
        home.firmware, "set_banned", lambda *, is_banned: told.append(is_banned) or False
    )

    async def obtain():
        reason = answers.pop(0)
        if reason:
            raise CsmDbRefusedError(reason, "")

    monkeypatch.setattr(home, "_obtain_grants", obtain)
    await home._admitted()
    assert told == [True, True, False]
