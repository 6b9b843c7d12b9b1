"""
Telling systemd how we are: ready, alive, stopping (the protocol of sd_notify(3)).

A service started with `Type=notify` finds a datagram socket in NOTIFY_SOCKET, and with
`WatchdogSec=` the time within which it must say that it lives in WATCHDOG_USEC. Without systemd
nothing is sent.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping


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


async def keep_alive() -> None:
    """Say that we are ready, then that we live, until cancelled; a hung event loop falls silent."""
    notify("READY=1")
    period_s = watchdog_period_s()
    try:
        while True:
            await asyncio.sleep(period_s if period_s is not None else 3600.0)
            if period_s is not None:
                notify("WATCHDOG=1")
    finally:
        notify("STOPPING=1")
