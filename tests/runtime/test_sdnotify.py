"""systemd hears from us: ready, alive, stopping; without it nothing happens."""

import asyncio
import os
import socket

import pytest

from runtime import sdnotify
from runtime.sdnotify import keep_alive, notify, watchdog_period_s


@pytest.fixture(params=["file", "abstract"])
def listener(request, tmp_path):
    address = str(tmp_path / "n.sock") if request.param == "file" else f"@hearthgrid-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(address.replace("@", "\0", 1))
        line.settimeout(2)
        yield address, line


def test_states_arrive_in_one_message(listener):
    address, line = listener
    assert notify("READY=1", "STATUS=trading", environment={"NOTIFY_SOCKET": address})
    assert line.recv(1000) == b"READY=1\nSTATUS=trading"


@pytest.mark.parametrize(
    "environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"},
                    {"NOTIFY_SOCKET": "/nobody/listens"}],
)  # fmt: skip
def test_without_systemd_nothing_is_sent_and_nothing_fails(environment):
    assert notify("READY=1", environment=environment) is False


@pytest.mark.parametrize(
    ("environment", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_told_twice_within_its_patience(environment, period_s):
    assert watchdog_period_s(environment) == period_s


async def test_a_service_says_ready_then_alive_then_stopping(monkeypatch):
    said = []
    monkeypatch.setattr(sdnotify, "notify", lambda *states: said.extend(states))
    monkeypatch.setattr(sdnotify, "watchdog_period_s", lambda: 0.01)
    task = asyncio.create_task(keep_alive())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert said[0] == "READY=1"
    assert said.count("WATCHDOG=1") >= 3
    assert said[-1] == "STOPPING=1"
