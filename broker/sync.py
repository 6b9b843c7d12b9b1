"""
Keeping a Mosquitto's files as the CSM-DB's list of revoked keys says.

What Mosquitto 2.0.11 does, tried: SIGHUP makes it read the CRL and the ACL file anew. The CRL keeps
a revoked certificate from connecting again, but a connection that stands goes on as before. A
denial in the ACL file holds for standing connections too: such a client neither speaks nor hears,
its last will included, and everybody else's connection is left alone (a restart would end them
all). So both are written, then one SIGHUP sent. Where only a TLS key was replaced its identity must
not be denied; there the owner's next connection takes the session over from the old key's.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import structlog

from broker.access import Trust
from broker.mosquitto import render_acl
from broker.revocations import Revocations, opened
from runtime.door import Door, DoorDownError
from runtime.metrics import count_refusal
from wire.errors import ConfigError, WireError

COMPONENT = "broker"
REFRESH_LOOKS = 8_640
"""An X.509 list ends after a month; it is fetched anew at the latest after so many looks."""

log = structlog.get_logger(component=COMPONENT)


class MosquittoSync:
    """
    One Mosquitto's CRL and ACL.

    Args:
        source: the CSM-DB's door
        ca: its authority's certificate
        crl, acl: files to write
        pid_file: of Mosquitto (`pid_file` in its configuration)
        services: identity -> roles, as `broker.mosquitto.render_acl` takes them

    Raises:
        ConfigError: the door's address or `ca` is not one.
    """

    def __init__(
        self,
        trust: Trust,
        source: str,
        ca: Path,
        crl: Path,
        acl: Path,
        pid_file: Path,
        services: Mapping[str, frozenset[str]],
    ) -> None:
        self._market, self._services = trust.market, services
        self._revocations = Revocations(trust, crl.with_name("revocations.json"))
        self._fetch, self._door = opened(source, ca), Door(source, ca)
        self._crl, self._acl, self._pid_file = crl, acl, pid_file
        self._looks_left = 0

    def look(self) -> bool:
        """
        Fetch once; write and signal when there is something new.

        Returns:
            Whether there was.

        Raises:
            WireError: the list is not the CSM-DB's, or an older one. DoorDownError: no answer.
            ConfigError: no Mosquitto runs under `pid_file`.
        """
        fresh = self._revocations.take(self._fetch())
        self._looks_left -= 1
        if not fresh and self._looks_left > 0:
            return False
        _replace(self._crl, self._door.fetch("/crl.pem"))
        acl = render_acl(self._market, self._services, self._revocations.identities)
        _replace(self._acl, acl.encode())
        self._signal()
        self._looks_left = REFRESH_LOOKS
        log.info("revocations written", number=self._revocations.number)
        return True

    async def run(self, period_s: float) -> None:
        """Look for ever; a door that is shut changes nothing."""
        trouble = ""
        while True:
            try:
                await asyncio.to_thread(self.look)
                trouble = ""
            except (WireError, DoorDownError, ConfigError) as error:
                if isinstance(error, WireError):
                    count_refusal(COMPONENT, error.refusal)
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("no new revocations", reason=trouble[:200])
                self._looks_left = 0
            await asyncio.sleep(period_s)

    def _signal(self) -> None:
        try:
            os.kill(int(self._pid_file.read_text().strip()), signal.SIGHUP)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._pid_file}: no Mosquitto runs under it ({error})") from None


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, as readable as the one before."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o600)
    temporary.replace(path)
