"""
Certificates for the lanes of one process: got before they open, renewed while it runs.

    own = LaneTls(Tls(folder, ca, clock), line, rng)
    await own.ensure(key.id)                        # waits until there is one that holds
    bus = lane(key, …, tls=own.context_for(key.id))
    asyncio.create_task(own.run())                  # renews what was asked for

A renewed certificate is shown from the next connection on; one that stands is left standing. The
CSM-DB is asked through its door, so that a process whose certificate has ended finds back in.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.door import Door, DoorBus, DoorDownError, csmdb_box_at
from runtime.ports import BusDownError, Clock, Rng
from runtime.tls import Asker, Tls
from wire.errors import ConfigError, WireError
from wire.keys import KEY_BYTES, BoxKey, SigningKey

LOOK_S = 3_600.0
"""So often we look whether one is due [real s]."""
RETRY_MIN_S, RETRY_MAX_S = 1.0, 300.0

log = structlog.get_logger(component="tls")


class LaneTls:
    """
    TLS for every lane of a process.

    Args:
        line: opens a line to the CSM-DB
    """

    def __init__(self, tls: Tls, line: Callable[[], Awaitable[Asker]], rng: Rng) -> None:
        self._tls, self._line, self._rng = tls, line, rng
        self._watched: dict[str, None] = {}

    def context_for(self, identity: str) -> ssl.SSLContext:
        """The context of an identity's lane; its certificate is renewed from now on."""
        self._watched[identity] = None
        return self._tls.context_for(identity)

    def forget(self, identity: str) -> None:
        """An address has ended: delete its TLS key."""
        self._watched.pop(identity, None)
        self._tls.forget(identity)

    async def obtain(self, *identities: str) -> None:
        """
        Ask once for what is due of these.

        Raises:
            CsmDbRefusedError: NOT_ALLOWED, REVOKED, … TimeoutError, BusDownError: no answer.
            WireError: an answer that is none.
        """
        if any(self._tls.due(identity) for identity in identities):
            await self._tls.obtain(await self._line(), identities)

    async def ensure(self, *identities: str) -> None:
        """
        Return when each of these has a certificate that holds; the CSM-DB may be away for long.

        Raises:
            CsmDbRefusedError: it gives us none.
        """
        pause_s, said = RETRY_MIN_S, False
        while any(self._tls.has_ended(identity) for identity in identities):
            try:
                await self.obtain(*identities)
            except CsmDbRefusedError:
                raise
            except (TimeoutError, BusDownError, DoorDownError, WireError) as error:
                if not said:
                    log.warning("waiting for a TLS certificate", reason=str(error) or "no answer")
                said = True
                await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
                pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def run(self, look_s: float = LOOK_S) -> None:
        """Renew for ever; cancel to stop."""
        while True:
            await asyncio.sleep(look_s * self._rng.uniform(0.5, 1.0))
            try:
                await self.obtain(*self._watched)
            except (TimeoutError, BusDownError, DoorDownError, WireError) as error:
                log.warning("TLS certificate not renewed", reason=(str(error) or "no answer")[:200])


@asynccontextmanager
async def certified(own: LaneTls | None, *identities: str) -> AsyncIterator[None]:
    """Inside, these identities have certificates that hold; nothing happens without TLS."""
    if own is None:
        yield
        return
    await own.ensure(*identities)
    renewing = asyncio.create_task(own.run())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


def service_tls(
    ca: Path | None,
    door: str,
    folder: Path,
    key: SigningKey,
    market: str,
    issuing_key: bytes,
    clock: Clock,
    rng: Rng,
) -> LaneTls | None:
    """
    TLS of a service that is configured with `ca` and `door`; None without both.

    Raises:
        ConfigError: one without the other, or not what they should be.
    """
    if not check_pair(ca, door) or ca is None:
        return None
    opened = Door(door, ca)
    box = BoxKey(os.urandom(KEY_BYTES))

    async def line() -> CsmDbClient:
        csmdb_box = await asyncio.to_thread(csmdb_box_at, opened, issuing_key)
        bus = DoorBus(opened, market, key.id)
        return CsmDbClient(bus, key, box, market, issuing_key, csmdb_box, clock, rng)

    return LaneTls(Tls(folder, ca, clock), line, rng)


def check_pair(ca: Path | None, door: str) -> bool:
    """
    Is TLS wanted?

    Raises:
        ConfigError: half of it is.
    """
    if (ca is None) != (not door):
        raise ConfigError("broker: ca and door belong together; add the other, or drop both")
    return ca is not None
