"""A certificate that ends while `hem run` runs: a real home, a real broker, a real CSM-DB."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from support.homes import Site, log_lines
from support.patience import PATIENCE_S

from csmdb import core

pytestmark = pytest.mark.long
LIFE_MS = 24_000
"""A year takes too long for a test; the home asks in the last third of it."""


@pytest.fixture
async def site(tmp_path, monkeypatch):
    monkeypatch.setattr(core, "CERTIFICATE_DAYS", 1)
    monkeypatch.setattr(core, "SKEW_MS", 0)
    opened = await Site.open(tmp_path)
    monkeypatch.setattr(core, "DAY_MS", LIFE_MS)  # the services' own last a day
    yield opened
    await opened.close()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S + 2 * LIFE_MS / 1000):
        while not condition():
            await asyncio.sleep(0.1)


async def test_a_certificate_that_ends_while_the_home_runs_is_renewed_in_time(site):
    """Twice, so that the renewed one is used and renewed too; the home is never gone."""
    home = await site.home("home-01", load_w=1_000)
    await home.start()
    await until(lambda: site.named("home-01"))
    (identity,) = site.states
    ends_ms = [site.csmdb.repository.certificate_of(identity).not_after_ms]

    def renewed():
        lines = [one for one in log_lines(home) if one["event"] == "renewed"]
        moments = [datetime.fromisoformat(one["timestamp"]) for one in lines]
        return [int(moment.timestamp() * 1000) for moment in moments]

    for number in range(2):
        await until(lambda n=number: len(renewed()) > n)
        assert renewed()[number] < ends_ms[number], "in time"
        ends_ms.append(site.csmdb.repository.certificate_of(identity).not_after_ms)
        assert ends_ms[number + 1] > ends_ms[number] + LIFE_MS // 2
    clock = site.authority.clock
    await until(lambda: clock.now_ms() > ends_ms[1] + 1_000)
    told = len(site.named("home-01"))
    await until(lambda: len(site.named("home-01")) > told)
    assert all(state["online"] for state in site.named("home-01"))
    assert not [one for one in log_lines(home) if one["event"] == "not renewed, asked again"]
    assert await home.stop() == 0
