"""`hem run` as a real process: with broker, CSM-DB, devices and four validators around it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

import pytest
from support.homes import DSO_BOX, Site, log_lines
from support.patience import PATIENCE_S

from wire.canonical import decode
from wire.metering import Reading, load_record

pytestmark = pytest.mark.slow


@pytest.fixture
async def site(tmp_path):
    opened = await Site.open(tmp_path)
    yield opened
    await opened.close()


async def until(condition, timeout_s=PATIENCE_S):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.05)


def online(site, name):
    return [state for state in site.named(name) if state["online"]]


async def wallet_of(home):
    """What `hem wallet --json` says of the light client."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hem.cli", "wallet", str(home.file), "--json",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return json.loads(out)["light"]


async def test_a_home_enrols_trades_and_confirms_what_flowed(site):
    """
    From a claim code to accepted receipts and bids, with money and assets from the desk; what it
    has in the end is proved.
    """
    ledger = await site.ledger()
    desk = await ledger.supervisor()

    async def fund(_height, event):
        if event["event"] != "address-registered":
            return
        slot = site.genesis.grid.slot_at(site.authority.clock.now_ms())
        asset = {"op": "add-energy-asset", "address": event["address"], "energyWh": 40}
        asset |= {"kind": "consumption", "startSlot": slot, "endSlot": slot + 1000}
        money = {"op": "add-financial-balance", "address": event["address"], "amountUc": 10**8}
        tasks.append(asyncio.create_task(desk.submit(asset, money)))

    tasks: list[asyncio.Task[dict]] = []
    desk.client.on_event(fund)
    home = await site.home("home-01", load_w=30_000)
    home.file.write_text(home.file.read_text() + "[light]\nperiod_s = 1\n")
    await home.start()

    def told(name):
        return [event for _, event in desk.events if event["event"] == name]

    await until(lambda: len(told("receipt")) >= 2 and told("bid-accepted"))
    address = told("address-registered")[0]["address"]
    assert (await tasks[0])["codes"] == ["OK", "OK"]
    assert {event["address"] for event in told("receipt") + told("bid-accepted")} == {address}
    codes = {code for one in told("tx") if one["sender"] == address for code in one["codes"]}
    assert codes == {"OK"}, "none of its bids was refused"
    # 30 kW for 4 s are 33 Wh; the registers are whole Wh, and are read a little late
    nets = [event["netWh"] for event in told("receipt")]
    assert all(25 <= net_wh <= 42 for net_wh in nets), nets

    ((sealed, *_),) = site.readings.values()
    reading = load_record(Reading, decode(DSO_BOX.open(sealed)))
    assert reading.import_wh >= 0
    state = online(site, "home-01")[-1]
    assert state["grid_w"] == 30_000
    async with asyncio.timeout(PATIENCE_S):
        while (light := await wallet_of(home))["state"] != "same" or not light["provedBalanceUc"]:
            await asyncio.sleep(0.5)
    assert light["verifiedHeight"] >= light["provedHeight"] > 0
    assert await home.stop() == 0
    failures = [line for line in log_lines(home) if line.get("level") == "error"]
    assert not failures


async def test_a_killed_gateway_is_started_again_and_everything_stops_in_time(site):
    home = await site.home("home-02", load_w=1_000, pv_w=3_000, soc_wh=4_000)
    await home.start()
    await until(lambda: online(site, "home-02"))
    (first,) = home.children()
    os.kill(first, signal.SIGKILL)
    await until(lambda: home.children() not in ([], [first]))
    told = len(online(site, "home-02"))
    await until(lambda: len(online(site, "home-02")) > told + 1)

    (gateway,) = home.children()
    began_s = time.monotonic()
    assert await home.stop() == 0
    assert time.monotonic() - began_s < PATIENCE_S / 2, "systemd would kill it"
    assert not _alive(gateway)
    await until(lambda: site.named("home-02")[-1]["online"] is False)


async def test_one_hem_per_folder_and_a_killed_one_comes_back_as_the_same_participant(site):
    home = await site.home("home-03", load_w=1_000)
    first = await home.start()
    await until(lambda: online(site, "home-03"))
    (gateway,) = home.children()

    second = await home.start()
    assert await asyncio.wait_for(second.wait(), PATIENCE_S) == 2
    last = home.log.read_text().splitlines()[-1]
    assert last.startswith("hem: ")
    assert "running already" in last

    first.kill()
    await first.wait()
    await until(lambda: site.named("home-03")[-1]["online"] is False)
    await until(lambda: not _alive(gateway))
    told = len(online(site, "home-03"))
    await home.start()
    await until(lambda: len(online(site, "home-03")) > told)
    assert len(site.states) == 1, "one identity"


async def test_a_wrong_claim_code_ends_in_one_line(site):
    home = await site.home("home-05", load_w=1_000, code="XXXX-XXXX-XXXX-XXXX")
    process = await home.start()
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 2
    last = home.log.read_text().splitlines()[-1]
    assert last.startswith("hem: ")
    assert "BAD_CLAIM" in last


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
