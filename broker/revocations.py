"""
Which keys are revoked: the CSM-DB's signed list, fetched, checked and kept.

The list comes from a file or from the CSM-DB's door (HTTPS), every few seconds. What was checked is
kept beside the broker's state, so that a broker which starts while the CSM-DB is away keeps out
whom it kept out before, and nobody can hand it an older list. A CSM-DB that is away changes
nothing: who is in stays in, who is out stays out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from broker.access import Trust
from runtime.door import Door, DoorDownError
from runtime.metrics import count_refusal
from wire.errors import ConfigError, RevokedError, WireError
from wire.revoked_keys import RevocationList, dump_list, read_list

COMPONENT = "broker"
PERIOD_S = 10.0
"""So often the list is fetched: a revoked key is out within this and a moment [s]."""
PATH = "/revoked"

log = structlog.get_logger(component=COMPONENT)


class Revocations:
    """
    The list in force.

    Args:
        kept: file of the list that was checked last; None: only in memory
    """

    def __init__(self, trust: Trust, kept: Path | None = None) -> None:
        self._trust, self._kept = trust, kept
        self._list: RevocationList | None = None
        self._identities: frozenset[str] = frozenset()
        self._serials: frozenset[str] = frozenset()
        if kept is not None and kept.exists():
            try:
                self._put(read_list(kept.read_bytes(), trust.issuing_key, trust.market))
            except (WireError, OSError) as error:
                raise ConfigError(f"{kept}: not a list of ours ({error}); delete it") from None

    @property
    def number(self) -> int:
        """Of the newest entry; -1: there is no list yet."""
        return self._list.number if self._list is not None else -1

    @property
    def identities(self) -> frozenset[str]:
        """Who is revoked."""
        return self._identities

    def take(self, raw: bytes) -> bool:
        """
        Put a list in force.

        Returns:
            Whether it has new entries.

        Raises:
            WireError: by name; the one in force stays. ROLLED_BACK: it is older.
        """
        found = read_list(raw, self._trust.issuing_key, self._trust.market, self._list)
        fresh = found.number != self.number
        if self._kept is not None and fresh:
            temporary = self._kept.with_suffix(".tmp")
            temporary.write_bytes(dump_list(found))
            temporary.replace(self._kept)
        self._put(found)
        return fresh

    def check(self, identity: str, serial: str = "") -> None:
        """Raise `RevokedError` for a revoked identity or X.509 serial number."""
        if identity in self._identities:
            raise RevokedError("key is revoked", client_id=identity)
        if serial and serial in self._serials:
            raise RevokedError("TLS certificate is revoked", client_id=identity)

    def _put(self, found: RevocationList) -> None:
        self._list = found
        self._identities, self._serials = frozenset(found.identities), frozenset(found.serials)


def opened(source: str, ca: Path | None) -> Callable[[], bytes]:
    """
    How a source is read: `https://HOST:PORT`, the CSM-DB's door, or a file.

    Raises:
        ConfigError: a door without the authority's certificate, or not an address.
    """
    if not source.startswith("https://"):
        return Path(source).read_bytes
    if ca is None:
        raise ConfigError(f"{source}: give the authority's certificate with --ca")
    door = Door(source, ca)
    return lambda: door.fetch(PATH)


async def follow(
    revocations: Revocations,
    fetch: Callable[[], bytes],
    changed: Callable[[], None],
    period_s: float = PERIOD_S,
) -> None:
    """Fetch for ever and call `changed` after new entries; cancel to stop."""
    trouble = ""
    while True:
        try:
            if revocations.take(await asyncio.to_thread(fetch)):
                log.info("revocations", number=revocations.number)
                changed()
            if trouble:
                log.info("revocations are back")
            trouble = ""
        except WireError as error:
            count_refusal(COMPONENT, error.refusal)
            trouble = _tell(trouble, str(error))
        except (OSError, DoorDownError) as error:
            trouble = _tell(trouble, str(error))
        await asyncio.sleep(period_s)


def _tell(known: str, reason: str) -> str:
    """Say a kind of trouble once."""
    if reason != known:
        log.warning("no new revocations", reason=reason[:200])
    return reason
