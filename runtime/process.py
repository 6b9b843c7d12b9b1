"""What every service's process does: stop on SIGTERM and Ctrl-C, with a real event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

from runtime.sdnotify import alive

PR_SET_PDEATHSIG = 1


def run_until_stopped(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """
    Run `main()` on uvloop; SIGTERM and SIGINT cancel it, and its clean-up runs.

    It says nothing to systemd: see `run_service`.

    Raises:
        Whatever `main` raises.
    """
    uvloop.run(_supervise(main))


def run_service(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """
    As `run_until_stopped`, telling systemd that we are ready and, while the loop turns, alive.

    Raises:
        Whatever `main` raises.
    """

    async def living() -> None:
        async with alive():
            await main()

    run_until_stopped(living)


async def _supervise(main: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(main())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def die_with_parent() -> Callable[[], None]:
    """
    A `preexec_fn` by which the kernel ends the child when we die, even by `kill -9` (Linux).

    A parent that dies before the child has asked is noticed by the child's new parent.
    """
    parent = os.getpid()

    def in_child() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return in_child
