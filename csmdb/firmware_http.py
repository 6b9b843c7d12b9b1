"""
The firmware repository over HTTP: public, read-only, nothing to log in to.

    GET /metadata/timestamp.json   GET /metadata/N.targets.json   GET /targets/<sha256>.<name>

It has a listener of its own, so that the operators' API can stay on the loopback interface. What
is served is signed or hashed, so a mirror or a plain web server before it is as good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from csmdb.firmware_repository import FirmwareRepository
from runtime.http import SecurityHeaders
from runtime.metrics import count_refusal
from runtime.rate_limit import RateLimit
from wire.errors import ConfigError, Refusal

COMPONENT = "csmdb-firmware"
BURST, PER_S, MAX_ASKERS = 60.0, 5.0, 10_000
RENEW_EVERY_S = 600.0
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

log = structlog.get_logger(component=COMPONENT)


class Limited:
    """
    Refuses who asks too often, by address.

    Args:
        monotonic_s: real time
    """

    def __init__(self, app: ASGIApp, rate: RateLimit, monotonic_s: Callable[[], float]) -> None:
        self._app, self._rate, self._monotonic_s = app, rate, monotonic_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 429."""
        asker = (scope.get("client") or ("",))[0]
        if scope["type"] == "http" and not self._rate.admit(asker, self._monotonic_s()):
            count_refusal(COMPONENT, Refusal.RATE_LIMITED)
            busy = PlainTextResponse("RATE_LIMITED\n", 429, {"Retry-After": "1"})
            await busy(scope, receive, send)
            return
        await self._app(scope, receive, send)


def build_app(
    repository: FirmwareRepository,
    monotonic_s: Callable[[], float],
    *,
    burst: float = BURST,
    per_s: float = PER_S,
) -> Starlette:
    """The repository as an ASGI application."""
    rate = RateLimit(burst, per_s, MAX_ASKERS)
    return Starlette(
        routes=[
            Mount("/metadata", StaticFiles(directory=repository.metadata)),
            Mount("/targets", StaticFiles(directory=repository.targets)),
        ],
        middleware=[
            Middleware(SecurityHeaders, headers=HEADERS),
            Middleware(Limited, rate=rate, monotonic_s=monotonic_s),
        ],
    )


async def keep_signed(folder: Path, every_s: float = RENEW_EVERY_S) -> None:
    """Sign timestamp and snapshot anew in time; cancel to stop."""
    said = False
    while True:
        try:
            # in a thread: it waits while an operator publishes
            renewed = await asyncio.to_thread(FirmwareRepository(folder, datetime.now(UTC)).renew)
        except (ConfigError, OSError) as error:
            if not said:
                log.error("firmware metadata not signed anew", reason=str(error))
            said = True
        else:
            said = False
            if renewed:
                log.info("firmware metadata signed anew", roles=renewed)
        await asyncio.sleep(every_s)
