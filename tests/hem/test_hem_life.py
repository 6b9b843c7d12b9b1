"""`hem enroll` and `hem run` as systemd and a monitor see them: real processes, a real broker."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time

import pytest
from support.homes import Site, log_lines
from support.http import get
from support.patience import PATIENCE_S

pytestmark = pytest.mark.slow


@pytest.fixture
async def site(tmp_path):
    opened = await Site.open(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """What systemd hears."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.bind(str(tmp_path / "n.sock"))
    line.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n.sock"))
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    said = []

    def hear():
        while True:
            try:
                said.extend(line.recv(1_000).decode().splitlines())
            except BlockingIOError:
                return said

    yield hear
    line.close()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.05)


async def run_hem(home, *arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hem.cli", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_home_enrols_first_and_trades_later(site, monkeypatch):
    home = await site.home("home-21", load_w=1_000)
    code, out, err = await run_hem(home, "enroll", str(home.file), "--json")
    assert code == 0, err
    papers = json.loads(out)
    assert papers["participant"].startswith("hg1")
    assert papers["address"] != papers["participant"]
    assert papers["certificateDaysLeft"] > 300
    code, out, _ = await run_hem(home, "enroll", str(home.file), "--json")
    assert json.loads(out)["address"] == papers["address"], "once"
    monkeypatch.setenv("HEARTHGRID_LOG_FORMAT", "text")
    await home.start("--json")
    await until(lambda: any(line.get("event") == "trading" for line in log_lines(home)))
    (line,) = [line for line in log_lines(home) if line.get("event") == "trading"]
    assert line["address"] == papers["address"]
    assert await home.stop() == 0
    said = [json.loads(line) for line in home.log.read_text().splitlines()]
    assert {line["component"] for line in said} >= {"hem", "gateway"}, "both log JSON lines"


@pytest.mark.long
async def test_systemd_and_a_monitor_see_a_home_come_and_go(site, systemd):
    await site.ledger()
    home = await site.home("home-22", load_w=1_000, pv_w=3_000, soc_wh=4_000)
    home.file.write_text(home.file.read_text() + "[http]\nport = 0\n")
    await home.start()
    url_file = home.folder / "data" / "http.url"
    await until(url_file.exists)
    url = url_file.read_text().strip()
    assert url.startswith("http://127.0.0.1:")
    await until(lambda: "READY=1" in systemd())
    assert systemd().index("STATUS=starting") < systemd().index("READY=1")
    await until(lambda: systemd().count("WATCHDOG=1") > 3)

    # not "ok" at any price: on a busy machine something is late by two slots of 4 s now and then
    found = {"lastReadSlot": -1}
    async with asyncio.timeout(PATIENCE_S):
        while not (found["lastReadSlot"] > 0 and found["gatewayAnswers"]):
            reply = await asyncio.to_thread(get, url + "api/health")
            found = reply.json()
            assert reply.status == (503 if found["status"] == "failing" else 200)
            await asyncio.sleep(0.1)
    assert found["trading"] and found["brokerConnected"]
    assert set(found["devices"].values()) == {"ok"}
    text = (await asyncio.to_thread(get, url + "metrics")).body.decode()
    assert "hearthgrid_hem_trading 1.0" in text
    assert "hg1" not in text

    began_s = time.monotonic()
    assert await home.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began_s < PATIENCE_S / 2
    assert "STOPPING=1" in systemd()
    assert not url_file.exists()
    await until(lambda: site.named("home-22")[-1]["online"] is False)
    failures = [line for line in log_lines(home) if line.get("level") == "error"]
    assert not failures
