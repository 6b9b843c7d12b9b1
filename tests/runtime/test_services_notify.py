"""Real processes tell systemd that they are ready, that they live, and that they stop."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from support.brokers import REPOSITORY, make_key
from support.gateway_door import write_files
from support.patience import PATIENCE_S

from wire.keys import to_text

SERVICE = """
import asyncio
from runtime.process import run_service
async def main():
    await asyncio.Event().wait()
run_service(main)
"""


def service(_folder):
    return ["-c", SERVICE]


def broker(folder):
    key = folder / "issuing.key"
    key.write_text(to_text(make_key("issuing").public))
    return ["-m", "broker.cli", "run", "--port", "0", "--market", "test", "--memory",
            "--issuing-key-file", str(key)]  # fmt: skip


def gateway(folder):
    return ["-m", "hem.cli", "gateway", str(write_files(folder))]


@pytest.mark.parametrize("command", [service, broker, gateway])
def test_a_service_says_that_it_is_ready_lives_and_stops(tmp_path, command):
    """`service` is what ledger, csmdb, aggregator and analytics run in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        path = tmp_path / "notify"
        line.bind(str(path))
        line.settimeout(PATIENCE_S)
        told = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "100000",
                "PYTHONPATH": str(REPOSITORY)}  # fmt: skip
        with subprocess.Popen(
            [sys.executable, *command(tmp_path)], env={**os.environ, **told}, cwd=tmp_path
        ) as process:
            try:
                said = [line.recv(1000).split(b"\n")[0] for _ in range(3)]
                assert said == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
                process.send_signal(signal.SIGTERM)
                while (last := line.recv(1000)) == b"WATCHDOG=1":
                    pass
                assert last == b"STOPPING=1"
                assert process.wait(PATIENCE_S) == 0
            finally:
                process.kill()
