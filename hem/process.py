"""The home's process: starts the gateway as a child, keeps it alive, runs the HEM."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
from pathlib import Path

from hem.config import load_provisioning
from hem.service import HomeEnergyManager
from runtime.clock import clock_from_environment
from runtime.log import configure
from runtime.process import run_until_stopped
from runtime.rng import SystemRng

PR_SET_PDEATHSIG = 1
RESTART_S = 1.0
STOP_WAIT_S = 3.0


def run_home(path: Path, *, with_gateway: bool) -> None:
    """
    Run a home until SIGTERM or SIGINT.

    Raises:
        ConfigError: the provisioning file, the genesis or the policy is wrong.
    """
    config = load_provisioning(path)
    configure("hem")
    home = HomeEnergyManager(config, clock_from_environment(), SystemRng())

    async def main() -> None:
        keeper = asyncio.create_task(_keep_gateway(path)) if with_gateway else None
        try:
            await home.run()
        finally:
            if keeper is not None:
                keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeper

    run_until_stopped(main)


async def _keep_gateway(path: Path) -> None:
    """
    The gateway as a child process: started again when it ends, told to stop when we do.

    It holds the meter key and the device connections, so that a fault in what trades cannot reach
    them.
    """
    log = configure("hem")
    while True:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hem.cli", "gateway", str(path), preexec_fn=_die_with_parent
        )
        try:
            code = await child.wait()
        except asyncio.CancelledError:
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), STOP_WAIT_S)
            except TimeoutError:
                child.kill()
            raise
        log.warning("gateway ended, started again", exit_code=code)
        await asyncio.sleep(RESTART_S)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
