"""
What fails on a line or in a device, before the real `hem gateway`: real processes, real Modbus TCP.

The watchdog's own faults are in `test_watchdog`, a link's in `test_links`; here it is the whole
gateway: the battery is neutral in time, a loss is one line and a return another, the rest of the
site goes on at its pace, and what is well again is soon used again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace

import pytest
from faulty_site import (
    FAULTS,
    METER,
    METER_AT,
    PV,
    end,
    end_watchdog,
    site_of,
    sunspec_battery,
    sunspec_line,
    template_battery,
    template_line,
    until,
)
from support.homes import Site as Market
from support.patience import PATIENCE_S

from hem.gateway.client import GatewayClient, GatewayError

pytestmark = pytest.mark.slow

NEUTRAL_S = 60.0
"""The promise, with the leases that the gateway gives by default."""
BACK_S = 10.0
"""The promise: so long after a device is well again it is used again."""
LEASE_S = 3
WATCHDOG_S = 4.0
"""What the watchdog adds to a lease: the gateway goes first, and it looks every second."""
SLACK_S = 8.0
"""For busy machines."""
BATTERIES = {
    "sunspec-124": sunspec_battery,
    "register": lambda: template_battery("foxess-h3", seconds_at=44_001),
    "keepalive": lambda: template_battery("kostal-plenticore", revert_s=LEASE_S),
    "none": lambda: template_battery("marstek-venus"),
}
"""A battery of each way of reversion."""
QUICK = f"device_lease_s = {LEASE_S}\ntimeout_s = 0.5"


async def watching(client, seen):
    """Ask for the state as the EMS does, and note how long that took and what it said."""
    while True:
        began_s = time.monotonic()
        state = await client.state()
        seen.append((began_s, time.monotonic() - began_s, state))
        await asyncio.sleep(0.1)


async def test_a_lost_device_is_two_lines_and_nothing_to_the_others():
    """Every fault at once, each on a template's device and on a SunSpec device."""
    async with AsyncExitStack() as stack:
        lines = {}
        for number, fault in enumerate(FAULTS):
            for make in (
                template_line(f"t-{number}", "eastron-sdm630", "pv"),
                sunspec_line(f"s-{number}", "inverter", PV),
            ):
                line = await stack.enter_async_context(make)
                lines[line.name] = (line, FAULTS[fault])
        site = await stack.enter_async_context(
            site_of([line for line, _ in lines.values()], extra="timeout_s = 2.0")
        )
        gateway = await site.start()
        seen = []
        asking = asyncio.create_task(watching(gateway.client, seen))
        await until(lambda: seen and set(seen[-1][2]["devices"].values()) == {"ok"}, site.lines)
        for line, fault in lines.values():
            fault.strike(line.cable)
        await until(lambda: len(site.lines("device lost")) == len(lines), site.lines)
        lost_at_s = time.monotonic()
        await until(lambda: time.monotonic() > lost_at_s + 6)  # asked again in vain, twice
        mended_at_s = time.monotonic()
        for line, fault in lines.values():
            await fault.mend(line.cable)
        await until(lambda: set(seen[-1][2]["devices"].values()) == {"ok"}, site.lines)
        back_s = time.monotonic() - mended_at_s
        asking.cancel()

        assert back_s < BACK_S
        for name in lines:
            assert (site.told("device lost", name), site.told("device back", name)) == (1, 1), name
        assert {one["event"] for one in site.lines()} <= {
            "gateway ready", "device lost", "device back",
        }  # fmt: skip
        during = [one for one in seen if lost_at_s < one[0] < mended_at_s]
        took_s = sorted(one[1] for one in during)
        assert took_s[-1] < 1.5, "nobody waits for the 2 s that a mute device may take"
        assert took_s[len(took_s) // 2] < 0.5
        states = [one[2] for one in during]
        assert all(one["devices"][name] == "ok" for one in states for name in ("meter", "pv"))
        assert states[-1]["import_wh"] > states[0]["import_wh"]
        assert {one["pv_w"] for one in states} == {20_000}
        await gateway.client.close()


@pytest.mark.parametrize("way", BATTERIES)
async def test_a_battery_behind_a_broken_line_is_neutral_in_time_and_can_be_held_again(way):
    """One after the other, and a lease before each."""
    async with BATTERIES[way]() as battery, site_of([battery], extra=QUICK) as site:
        gateway = await site.start()
        asking = asyncio.create_task(watching(gateway.client, seen := []))
        for number, name in enumerate(("unplugged", "vanished", "mute", "noise"), 1):
            await hold(gateway, battery, LEASE_S)
            FAULTS[name].strike(battery.cable)
            if way != "none":  # the device does it; the line is dead
                assert await until(battery.neutral, site.lines) < LEASE_S + SLACK_S, name
            await until(partial(times, site, "device lost", number), site.lines)
            await FAULTS[name].mend(battery.cable)
            back_s = await until(partial(times, site, "device back", number), site.lines)
            assert back_s < BACK_S, name
            # without a timer of its own it is given back as soon as it is in reach
            neutral_s = await until(battery.neutral, site.lines)
            assert back_s + neutral_s < LEASE_S + WATCHDOG_S + SLACK_S, name
        asking.cancel()
        assert all(one[2]["devices"]["meter"] == "ok" for one in seen)
        assert seen[-1][2]["import_wh"] > seen[0][2]["import_wh"]
        assert not site.lines("battery lease not renewed") + site.lines(
            "battery not restored by us"
        )
        assert site.told("device lost", "battery") == site.told("device back", "battery") == 4
        await gateway.client.close()


@pytest.mark.parametrize("way", BATTERIES)
async def test_kill_9_of_the_gateway_frees_the_battery(way):
    async with BATTERIES[way]() as battery, site_of([battery], extra=QUICK) as site:
        gateway = await site.start()
        await hold(gateway, battery, 600)
        await asyncio.sleep(LEASE_S + 1)
        assert not battery.neutral(), "its lease is renewed"
        await end(gateway.process)
        assert await until(battery.neutral, site.lines) < LEASE_S + WATCHDOG_S + SLACK_S
        await gateway.client.close()


METERS = {
    "template": (
        lambda: template_line("grid", "eastron-sdm630", "grid"),
        lambda on: on.put("input", 52, "4974 2400"),  # 1 MW
        lambda on: on.put("input", 52, "7FC0 0000"),
        lambda on: on.put("input", 72, "4200 0000"),
    ),
    "sunspec": (
        lambda: sunspec_line("grid", "meter", METER),
        lambda on: on.put("holding", METER_AT + 18, "2710"),
        lambda on: on.put("holding", METER_AT + 18, "8000"),
        lambda on: on.put("holding", METER_AT + 47, "2000"),
    ),
}
"""Meters: how they are made, say a megawatt, know no power, and count on."""


@pytest.mark.parametrize("kind", METERS)
async def test_a_value_not_available_and_one_that_stands_still_are_a_loss_until_they_are_over(kind):
    """Energy must flow and no counter moves: the meter is frozen, though it answers."""
    make, megawatt, nothing, count = METERS[kind]
    extra = "still_s = 2\ntimeout_s = 2.0"
    async with make() as meter, site_of([meter], healthy=("inverter",), extra=extra) as site:
        gateway = await site.start()
        asking = asyncio.create_task(watching(gateway.client, seen := []))

        def state():
            return seen[-1][2] if seen else {"devices": {}}

        def told(event, number):
            return site.told(f"device {event}", "grid") >= number

        await until(lambda: state()["devices"].get("grid") == "ok", site.lines)
        nothing(meter.registers)
        await until(lambda: told("lost", 1), site.lines)
        await until(lambda: state()["grid_w"] == 0, site.lines)
        megawatt(meter.registers)
        assert await until(lambda: told("back", 1), site.lines) < BACK_S
        await until(lambda: told("lost", 2), site.lines)
        assert "nothing has moved" in site.lines("device lost")[-1]["why"]
        with pytest.raises(GatewayError) as refused:
            await gateway.client.sign_reading(1)
        assert refused.value.code == "DEVICE_LOST"
        count(meter.registers)
        assert await until(lambda: told("back", 2), site.lines) < BACK_S
        asking.cancel()
        assert (site.told("device lost", "grid"), site.told("device back", "grid")) == (2, 2)
        assert all(one[2]["devices"]["pv"] == "ok" for one in seen)
        assert {one[2]["pv_w"] for one in seen} == {20_000}
        assert seen[-1][2]["generation_wh"] > seen[0][2]["generation_wh"]
        await gateway.client.close()


def times(site, event, number):
    """Has this been logged of the battery so many times?"""
    return site.told(event, "battery") == number


async def hold(gateway, battery, lease_s):
    """Hold the battery; right after a loss, or while the watchdog is at it, that takes a moment."""

    async def held():
        try:
            await gateway.client.set_battery(-1_500, lease_s)
        except Exception as error:
            if getattr(error, "code", "") not in ("DEVICE_LOST", "REJECTED"):
                raise
            return False
        return True

    await until(held)
    assert not battery.neutral()


@pytest.mark.parametrize("way", ["sunspec-124", "none"])
async def test_kill_9_of_hem_and_gateway_together_frees_the_battery(way, tmp_path):
    """`hem run`, whose gateway is its child: both at once, so that neither can tidy up."""
    market = await Market.open(tmp_path)
    try:
        home = await market.home("home-01", load_w=1_000)
        async with BATTERIES[way]() as battery:
            text = home.file.read_text().replace("cache_s = 0.05", QUICK)
            home.file.write_text(text + battery.section)
            process = await home.start()
            client = GatewayClient(home.folder / "gw.sock")
            await client.wait_ready(PATIENCE_S)
            await hold(SimpleNamespace(client=client), battery, 600)
            await asyncio.sleep(LEASE_S + 1)
            assert not battery.neutral(), "its lease is renewed"
            (gateway,) = home.children()
            process.kill()
            os.kill(gateway, signal.SIGKILL)
            assert await until(battery.neutral) < LEASE_S + WATCHDOG_S + SLACK_S
            await client.close()
    finally:
        end_watchdog(home.folder / "data/gateway")
        await market.close()


async def test_kill_9_of_the_ems_alone_ends_its_lease():
    """Under systemd the gateway has a unit of its own and outlives it; the lease is long."""
    async with sunspec_battery() as battery, site_of([battery], extra=QUICK) as site:
        gateway = await site.start()
        await hold(gateway, battery, 600)
        await gateway.client.close()  # as the kernel does it
        assert await until(battery.neutral, site.lines) < NEUTRAL_S
        assert len(site.lines("battery lease ended")) == 1


@pytest.mark.long
@pytest.mark.parametrize("way", BATTERIES)
@pytest.mark.parametrize("fault", ["killed", "vanished"])
async def test_with_the_leases_of_a_home_the_battery_is_neutral_within_a_minute(way, fault):
    """Nothing is set: the defaults keep the promise. Out of reach, its own timer has to."""
    if (way, fault) == ("none", "vanished"):
        pytest.skip("a battery without a timer, out of reach, stays as it is for anybody")
    default = {"keepalive": lambda: template_battery("kostal-plenticore", revert_s=58.0)}
    async with (BATTERIES | default)[way]() as battery, site_of([battery]) as site:
        gateway = await site.start()
        await hold(gateway, battery, 540)
        if fault == "killed":
            await end(gateway.process)
        else:
            FAULTS[fault].strike(battery.cable)
        began_s = time.monotonic()
        while not battery.neutral():
            await asyncio.sleep(0.05)
            assert time.monotonic() < began_s + NEUTRAL_S, site.lines()
        await gateway.client.close()
