"""Health: each thing that is wrong has a name; served for monitoring and told to systemd."""

from __future__ import annotations

import asyncio
import math
import socket
from dataclasses import replace

import pytest
from home_at_hand import SLOT, begin, register
from prometheus_client.parser import text_string_to_metric_families
from support.http import get, serving
from support.patience import PATIENCE_S

from hem import process
from hem.config import load_provisioning
from hem.ems.closing import LATE_SLOTS
from hem.ems.health import Facts, assess
from hem.ems.health_page import application
from hem.ems.light import LightState, LightView
from hem.ems.renewal import CertificateState
from hem.service import GrantEndedError
from runtime.http import listen
from runtime.http import serving as serving_beside
from runtime.sdnotify import Progress, keep_alive
from wire.errors import ConfigError

WELL = Facts(
    trading=True,
    home_connected=True,
    trade_connected=True,
    state_age_slots=0.1,
    devices={"meter": "ok", "battery": "ok"},
    last_read_slot=SLOT,
    slots_unread=0,
    height=77,
    block_age_slots=0.1,
    certificate=CertificateState.VALID,
    certificate_days=300.0,
    grant_slots_left=100,
    waiting_readings=0,
    waiting_operations=2,
    disk_free_bytes=10**10,
    light=LightView(state=LightState.SAME, verified_height=76, balance_uc=5_000_000),
    figures={"grid_w": -420, "import_wh": 12_345, "balance_uc": 5_000_000},
)


def test_a_home_that_is_well_is_ok():
    assert assess(WELL).level == "ok"
    assert assess(WELL).reasons == ()


@pytest.mark.parametrize(
    ("change", "name", "level"),
    [
        ({"home_connected": False}, "broker", "degraded"),
        ({"trade_connected": False}, "broker", "degraded"),
        ({"trading": False}, "starting", "degraded"),
        ({"state_age_slots": 2.5}, "gateway", "degraded"),
        ({"state_age_slots": math.inf}, "gateway", "failing"),
        ({"devices": {"meter": "ok", "pv": "lost"}}, "device:pv", "degraded"),
        ({"slots_unread": 2}, "reading", "degraded"),
        ({"slots_unread": 4}, "reading", "failing"),
        ({"block_age_slots": 3}, "ledger", "degraded"),
        ({"block_age_slots": 9}, "ledger", "failing"),
        ({"certificate": CertificateState.NONE}, "certificate", "failing"),
        ({"certificate": CertificateState.EXPIRED}, "certificate", "failing"),
        ({"certificate": CertificateState.REFUSED}, "certificate", "degraded"),
        ({"certificate": CertificateState.DUE, "certificate_days": 9.0}, "certificate", "degraded"),
        ({"grant_slots_left": -1}, "grant", "failing"),
        ({"waiting_readings": 60}, "outbox", "degraded"),
        ({"disk_free_bytes": 50 * 2**20}, "disk", "degraded"),
        ({"disk_free_bytes": 2**20}, "disk", "failing"),
        ({"stuck": ("timetable",)}, "stuck", "failing"),
        ({"light": LightView(state=LightState.DIFFERS)}, "light", "degraded"),
        ({"light": LightView(state=LightState.SILENT)}, "light", "degraded"),
        ({"light": LightView(state=LightState.EXPIRED)}, "light", "degraded"),
        ({"light": LightView(state=LightState.CONFLICT)}, "light", "failing"),
    ],
)
def test_what_is_wrong_has_a_name_and_a_level(change, name, level):
    found = assess(replace(WELL, **change))
    assert [(one.name, one.level) for one in found.reasons] == [(name, level)]
    assert found.level == level


def test_a_certificate_that_is_being_renewed_in_time_is_no_trouble():
    due = replace(WELL, certificate=CertificateState.DUE, certificate_days=100.0)
    assert assess(due).level == "ok"


def test_health_and_metrics_are_served_with_proper_codes():
    known = [WELL]
    with serving(application(lambda: known[0])) as url:
        reply = get(f"{url}/api/health")
        assert (reply.status, reply.json()["status"]) == (200, "ok")
        assert reply.headers["cache-control"] == "no-store"
        known[0] = replace(WELL, home_connected=False)
        reply = get(f"{url}/api/health")
        assert (reply.status, reply.json()["status"]) == (200, "degraded")
        known[0] = replace(WELL, slots_unread=5)
        reply = get(f"{url}/api/health")
        assert (reply.status, reply.json()["status"]) == (503, "failing")
        assert [one["name"] for one in reply.json()["reasons"]] == ["reading"]
        text = get(f"{url}/metrics").body.decode()
        assert get(f"{url}/nothing").status == 404
        assert get(f"{url}/metrics", method="POST").status == 405
    values = {
        (sample.name, sample.labels.get("device", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["hearthgrid_hem_health", ""] == 2
    assert values["hearthgrid_hem_grid_watts", ""] == -420
    assert values["hearthgrid_hem_device_ok", "battery"] == 1
    assert values["hearthgrid_hem_slots_unread", ""] == 5
    assert values["hearthgrid_hem_verified_height", ""] == 76
    assert values["hearthgrid_hem_balance_proved", ""] == 1


async def test_it_listens_on_the_loopback_interface_unless_told_otherwise(home, tmp_path):
    file = tmp_path / "provisioning.toml"
    assert load_provisioning(file).http is None, "off by default"
    file.write_text(file.read_text() + "[http]\nport = 0\n")
    where = load_provisioning(file).http
    assert where.host == "127.0.0.1"
    url_file = tmp_path / "http.url"
    listener = listen(where.host, where.port, "http.port")
    async with serving_beside(application(lambda: WELL), listener, url_file) as url:
        assert url_file.read_text().strip() == url
        reply = await asyncio.to_thread(get, url + "api/health")
        assert reply.status == 200
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=r"http\.port"):
            listen(where.host, port, "http.port")
    assert not url_file.exists()


async def test_a_homes_facts_follow_what_happens(home):
    await register(home)
    assert assess(home.facts()).level == "failing", "nothing is known yet"
    await begin(home, SLOT)
    facts = home.facts()
    assert (facts.last_read_slot, facts.slots_unread) == (SLOT - 1, 0)
    assert facts.state_age_slots == 0
    assert facts.figures["load_w"] == 2_000
    assert facts.waiting_readings == 1
    home.clock.to(SLOT + 3)
    later = home.facts()
    assert (later.slots_unread, later.state_age_slots) == (3, 3.0)
    names = {one.name for one in assess(later).reasons}
    assert {"reading", "gateway", "broker", "starting", "certificate"} <= names


# --- systemd -------------------------------------------------------------------------------------


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path):
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.line.bind(str(path))
        self.line.setblocking(False)
        self.said = []

    def hear(self):
        while True:
            try:
                self.said += self.line.recv(1_000).decode().splitlines()
            except BlockingIOError:
                return self.said

    def count(self, state):
        return self.hear().count(state)


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    listening = Systemd(tmp_path / "n.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n.sock"))
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield listening
    listening.line.close()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_ready_is_said_when_the_home_trades_and_not_before(systemd):
    ready = asyncio.Event()
    task = asyncio.create_task(keep_alive(ready, Progress(), "trading"))
    await until(lambda: systemd.count("STATUS=starting"))
    assert any(state.startswith("EXTEND_TIMEOUT_USEC=") for state in systemd.said)
    assert not systemd.count("READY=1")
    ready.set()
    await until(lambda: systemd.count("READY=1"))
    assert systemd.count("STATUS=trading")
    await until(lambda: systemd.count("WATCHDOG=1") > 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert systemd.hear()[-1] == "STOPPING=1"


async def test_a_loop_that_is_stuck_silences_the_watchdog_until_it_goes_on(systemd):
    now_s = [0.0]
    progress = Progress(lambda: now_s[0])
    beat, other = progress.expect("timetable", 60.0), progress.expect("outbox", 300.0)
    beat(), other()
    task = asyncio.create_task(keep_alive(None, progress))
    await until(lambda: systemd.count("WATCHDOG=1") > 1)
    now_s[0] = 61.0
    assert progress.stuck() == ["timetable"]
    await asyncio.sleep(0.05)  # a ping that was due is out
    silent_since = systemd.count("WATCHDOG=1")
    await asyncio.sleep(0.1)
    assert systemd.count("WATCHDOG=1") <= silent_since + 1
    beat()
    heard = systemd.count("WATCHDOG=1")
    await until(lambda: systemd.count("WATCHDOG=1") > heard + 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_job_that_hangs_stops_the_timetables_beat(home, monkeypatch):
    from hem.ems import schedule  # noqa: PLC0415

    monkeypatch.setattr(schedule, "JOB_MIN_S", 0.0)
    beats = []
    hangs = asyncio.Event()

    async def job(_slot):
        await hangs.wait()

    table = schedule.Timetable(
        home.clock, home.grid, [schedule.Phase("p", 0, job)], lambda: beats.append(1)
    )
    table._clock = clock = _Fast(home.clock)
    task = asyncio.create_task(table._fire(table._phases[0]))
    await asyncio.sleep(0)
    assert not table._overdue()
    clock.monotonic += 2 * home.grid.length_s + 1
    assert table._overdue()
    hangs.set()
    await task
    assert not table._overdue()


class _Fast:
    """A clock whose own time is set."""

    def __init__(self, clock):
        self._clock, self.monotonic, self.speed = clock, 0.0, 1.0

    def monotonic_s(self):
        return self.monotonic

    def __getattr__(self, name):
        return getattr(self._clock, name)


# --- Stopping and starting anew ------------------------------------------------------------------


async def test_stopping_leaves_the_battery_to_the_home_and_nothing_is_lost(home):
    await begin(home, SLOT)
    home._steering = True
    async with asyncio.timeout(PATIENCE_S):
        await home._stop()
    assert home.gateway.released == 1


async def test_a_gateway_that_hangs_does_not_keep_the_home_from_stopping(home, monkeypatch):
    async def never():
        await asyncio.Event().wait()

    monkeypatch.setattr("hem.service.RELEASE_S", 0.01)
    home.gateway.release_battery = never
    home._steering = True
    async with asyncio.timeout(PATIENCE_S):
        await home._stop()


async def test_a_home_whose_grant_has_ended_starts_anew(home):
    last = home.grant.end_slot
    home._check_grant(last + LATE_SLOTS)  # receipts may still go out
    with pytest.raises(GrantEndedError):
        home._check_grant(last + LATE_SLOTS + 1)


async def test_the_process_makes_a_new_home_when_the_grant_has_ended(monkeypatch):
    lives = []

    class Home:
        config = clock = rng = ready = progress = enrolment = None

        def __init__(self, *_):
            lives.append(self)

        async def run(self):
            if len(lives) < 3:
                raise ExceptionGroup("tasks", [GrantEndedError("over")])
            raise ConfigError("the third life ends the test")

    async def nothing_cut_off(*_):
        return False

    monkeypatch.setattr(process, "HomeEnergyManager", Home)
    monkeypatch.setattr(process, "finish", nothing_cut_off)
    with pytest.raises(ConfigError):
        await process._live(Home())
    assert len(lives) == 3
