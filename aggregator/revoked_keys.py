"""
Keys that the CSM-DB revoked, as the DSO needs to know them.

Its desk serves no revoked key, though the broker may not have heard of it yet. What is asked for is
only what came since the last time; after a start, all of it.
"""

from __future__ import annotations

import asyncio

import structlog

from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from wire.enrolment import LIST_REVOKED_KEYS
from wire.errors import MalformedError, RevokedError, WireError

PERIOD_S = 10.0

log = structlog.get_logger(component="dso")


class RevokedKeys:
    """The identities that are good no more."""

    def __init__(self, csmdb: CsmDbClient) -> None:
        self._csmdb = csmdb
        self._number = 0
        self._identities: set[str] = set()

    def check(self, identity: str) -> None:
        """Raise `RevokedError` for a revoked identity."""
        if identity in self._identities:
            raise RevokedError("this key was lost, stolen or replaced", sender=identity)

    async def look(self) -> None:
        """
        Ask for what was revoked since.

        Raises:
            CsmDbRefusedError: we are not the DSO. TimeoutError: no answer. MalformedError.
        """
        while True:
            page = await self._csmdb.ask(LIST_REVOKED_KEYS, {"after": self._number})
            keys, number = page.get("keys"), page.get("number")
            if type(keys) is not list or type(number) is not int:
                raise MalformedError("not a list of revoked keys")
            self._identities.update(str(one.get("identity")) for one in keys)
            if number == self._number:
                return
            self._number = number

    async def run(self) -> None:
        """Look for ever; cancel to stop."""
        said = False
        while True:
            try:
                await self.look()
                said = False
            except (CsmDbRefusedError, TimeoutError, WireError) as error:
                if not said:
                    log.warning("revoked keys not listed", reason=str(error) or "no answer")
                said = True
            await asyncio.sleep(PERIOD_S)
