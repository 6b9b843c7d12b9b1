"""
The home's process: starts the gateway as a child, keeps it alive, runs the HEM.

SIGTERM and SIGINT stop HEM and gateway side by side, within three seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import structlog

from hem.config import load_provisioning
from hem.ems.rotation import finish, rotate
from hem.gateway.client import GatewayError
from hem.locks import only_one
from hem.service import GATEWAY_WAIT_S, GrantEndedError, HomeEnergyManager
from runtime.clock import clock_from_environment
from runtime.csmdb_client import CsmDbRefusedError
from runtime.log import configure
from runtime.process import die_with_parent, run_until_stopped
from runtime.rng import SystemRng
from runtime.sdnotify import Progress, keep_alive
from wire.errors import ConfigError

RESTART_MIN_S = 1.0
RESTART_MAX_S = 30.0
STABLE_AFTER_S = 60.0
"""A gateway that ran this long is started again at once."""
GATEWAY_STOP_S = 2.0
STOP_S = 2.5

log = structlog.get_logger(component="hem")


def run_home(path: Path, *, with_gateway: bool) -> None:
    """
    Run a home until SIGTERM or SIGINT.

    Raises:
        ConfigError: the provisioning file, the genesis or the policy is wrong, the home runs
            already, or the CSM-DB refuses it.
    """
    config = load_provisioning(path)
    configure("hem")
    with only_one(config.home.data_dir):
        clock = clock_from_environment()

        async def main() -> None:
            ready, progress = asyncio.Event(), Progress()
            # made before anything runs: what is wrong in a file is said at once
            home = HomeEnergyManager(config, clock, SystemRng(), ready, progress)
            parts = [_live(home), keep_alive(ready, progress, "trading")]
            if with_gateway:
                parts.append(_keep_gateway(path))
            await _side_by_side(parts)

        try:
            run_until_stopped(main)
        except* CsmDbRefusedError as errors:
            reason = str(next(_leaves(errors)))
            raise ConfigError(f"{path}: the CSM-DB refuses this home: {reason}") from None


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    """The errors of a group and of the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def enrol_home(path: Path, *, with_gateway: bool) -> dict[str, Any]:
    """
    Get certificate and grants, and end.

    Returns:
        Who the home is by now.

    Raises:
        ConfigError: as `run_home`.
    """
    unfinished = "stopped before the home was enrolled"
    return _do(path, HomeEnergyManager.enrol, unfinished, with_gateway=with_gateway)


def rotate_home(path: Path, *, with_gateway: bool) -> dict[str, Any]:
    """
    Replace the EMS and box keys of a home that does not run.

    Returns:
        Who the home was, and is.

    Raises:
        ConfigError: the home runs, is not enrolled, or the CSM-DB refuses it.
    """

    async def work(home: HomeEnergyManager) -> dict[str, Any]:
        await home.gateway.wait_ready(GATEWAY_WAIT_S)
        new = await rotate(home.config, home.enrolment, home.clock, home.rng)
        return {"before": home.ems_key.id, "participant": new.subject}

    unfinished = "stopped before the keys were replaced"
    try:
        return _do(path, work, unfinished, with_gateway=with_gateway)
    except (TimeoutError, GatewayError) as error:
        what = str(error) or "the CSM-DB does not answer"
        raise ConfigError(f"{path}: {what}; run it again") from None


def _do(
    path: Path,
    work: Callable[[HomeEnergyManager], Awaitable[dict[str, Any]]],
    unfinished: str,
    *,
    with_gateway: bool,
) -> dict[str, Any]:
    """
    Do one thing with a home that does not run, beside its gateway where there is none yet.

    Returns:
        What `work` told.

    Raises:
        ConfigError: the home runs, the CSM-DB refuses it, or somebody stopped us (`unfinished`).
    """
    config = load_provisioning(path)
    configure("hem")
    done: dict[str, Any] = {}
    with only_one(config.home.data_dir):
        home = HomeEnergyManager(config, clock_from_environment(), SystemRng())

        async def main() -> None:
            gateway = asyncio.create_task(_keep_gateway(path)) if with_gateway else None
            try:
                done.update(await work(home))
            finally:
                if gateway is not None:
                    gateway.cancel()
                    await asyncio.wait([gateway], timeout=STOP_S)

        try:
            run_until_stopped(main)
        except CsmDbRefusedError as error:
            raise ConfigError(f"{path}: the CSM-DB refuses this home: {error}") from None
    if not done:
        raise ConfigError(f"{path}: {unfinished}; run it again")
    return done


async def _live(home: HomeEnergyManager) -> None:
    """Run a home; once more from the beginning whenever it needs a fresh address."""
    if await finish(home.config, home.enrolment, home.clock, home.rng):
        home.close()
        home = _anew(home)
    while True:
        try:
            await home.run()
        except* GrantEndedError:
            log.warning("the grant has ended; starting anew under a fresh address")
        home = _anew(home)


def _anew(home: HomeEnergyManager) -> HomeEnergyManager:
    return HomeEnergyManager(home.config, home.clock, home.rng, home.ready, home.progress)


async def _side_by_side(parts: list[Coroutine[Any, Any, None]]) -> None:
    """Run until one fails or we are cancelled; then stop all of them at the same time."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            if not task.cancelling():  # a second cancel would cut its clean-up short
                task.cancel()
        await asyncio.wait(tasks, timeout=STOP_S)


async def _keep_gateway(path: Path) -> None:
    """
    The gateway as a child process: started again when it ends, told to stop when we do.

    It holds the meter key and the device connections, so that a fault in what trades cannot reach
    them.
    """
    loop = asyncio.get_running_loop()
    pause_s = RESTART_MIN_S
    while True:
        began_s = loop.time()
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hem.cli", "gateway", str(path), preexec_fn=die_with_parent()
        )
        try:
            code = await child.wait()
        finally:
            if child.returncode is None:
                await _end(child)
        if loop.time() - began_s > STABLE_AFTER_S:
            pause_s = RESTART_MIN_S
        log.warning("gateway ended, started again", exit_code=code, in_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, RESTART_MAX_S)


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
        try:
            async with asyncio.timeout(GATEWAY_STOP_S):
                await child.wait()
        except TimeoutError:
            child.kill()
