"""
Telling systemd how we are: ready, alive, stopping (the protocol of sd_notify(3)).

A service started with `Type=notify` finds a datagram socket in NOTIFY_SOCKET, and with
`WatchdogSec=` the time within which it must say that it lives in WATCHDOG_USEC. Without systemd
nothing is sent.

A watchdog that is fed by a timer tells only that the timer runs. `Progress` is fed by the service's
loops themselves: when one of them has not come round within its time, the pings stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping

import structlog

START_EXTENSION_S = 60
"""While a service starts it asks for so much more time, again and again [s]."""
START_PERIOD_S = 10.0

log = structlog.get_logger(component="sdnotify")


class Progress:
    """
    Whether the loops of a service come round.

    Args:
        now_s: seconds that never go back
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._within_s: dict[str, float] = {}
        self._beat_s: dict[str, float] = {}

    def expect(self, loop: str, within_s: float) -> Callable[[], None]:
        """
        Watch a loop, from its first round on.

        Returns:
            What the loop calls each time it comes round, at least once in `within_s`.
        """
        self._within_s[loop] = within_s

        def beat() -> None:
            self._beat_s[loop] = self._now_s()

        return beat

    def rest(self) -> None:
        """Watch nothing until a loop goes its first round again: the service starts anew."""
        self._beat_s.clear()

    def stuck(self) -> list[str]:
        """Loops that have not come round in their time."""
        now_s = self._now_s()
        return [
            loop for loop, beat_s in self._beat_s.items() if now_s - beat_s > self._within_s[loop]
        ]


def notify(*states: str, environment: Mapping[str, str] = os.environ) -> bool:
    """
    Send states such as `READY=1` or `STATUS=trading` in one message.

    Returns:
        Whether there was somebody to tell.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux's abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.connect(address)
            line.sendall("\n".join(states).encode())
    except OSError:
        return False  # whoever supervises us may be gone; that must not stop us
    return True


def watchdog_period_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Half the watchdog's patience [s], as sd_watchdog_enabled(3) advises; None without one."""
    patience = environment.get("WATCHDOG_USEC", "")
    meant_for = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not patience.isdecimal() or int(patience) == 0 or meant_for != str(os.getpid()):
        return None
    return int(patience) / 2_000_000


async def keep_alive(
    ready: asyncio.Event | None = None, progress: Progress | None = None, doing: str = "ready"
) -> None:
    """
    Say that we are ready, then that we live, until cancelled; a hung event loop falls silent.

    Args:
        ready: set when the service does its work; by default it does already. Until then systemd is
            asked for more time: what we wait for may be away for long.
        progress: no ping is sent while one of its loops is stuck
        doing: what to tell systemd that we do when ready
    """
    try:
        await _start(ready)
        notify("READY=1", f"STATUS={doing}")
        period_s = watchdog_period_s()
        said: list[str] = []
        while True:
            await asyncio.sleep(period_s if period_s is not None else 3600.0)
            stuck = progress.stuck() if progress is not None else []
            if stuck != said:
                said = stuck
                log.warning("loops stuck" if stuck else "loops go round again", loops=stuck)
            if period_s is not None and not stuck:
                notify("WATCHDOG=1")
    finally:
        notify("STOPPING=1")


@contextlib.asynccontextmanager
async def alive(doing: str = "ready") -> AsyncIterator[None]:
    """Say so while the block runs: for a service that is ready as soon as its loop runs."""
    saying = asyncio.create_task(keep_alive(doing=doing))
    try:
        yield
    finally:
        saying.cancel()
        await asyncio.wait([saying])


async def _start(ready: asyncio.Event | None) -> None:
    """Wait until ready, with systemd's leave."""
    while ready is not None and not ready.is_set():
        notify(f"EXTEND_TIMEOUT_USEC={START_EXTENSION_S * 1_000_000}", "STATUS=starting")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_PERIOD_S):
                await ready.wait()
