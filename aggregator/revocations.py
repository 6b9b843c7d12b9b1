"""
Bans on their way to the ledger: the CSM-DB signs revocations, the DSO submits them.

The CSM-DB is asked every few seconds what it has signed since the last number. What comes goes into
the outbox under its number, so it is submitted once however often it is told. After a start
everything that still matters is asked for again: the ledger refuses what it knows as REPLAYED.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import structlog

from aggregator.core import KeyedOperation
from runtime.csmdb_client import CsmDbClient, CsmDbRefusedError
from runtime.ports import Bus
from wire.enrolment import LIST_REVOCATIONS
from wire.errors import MalformedError, WireError

ASK_S = 5.0
"""Real time between two questions; a ban is on the ledger within this and a block's time."""
MAX_PAGES = 1_000

log = structlog.get_logger(component="aggregator")


class Submitter(Protocol):
    """What takes operations of the DSO: the aggregator's outbox."""

    def add(self, operations: list[KeyedOperation], /) -> object:
        """Submit each key's operation once."""
        ...


class Revocations:
    """
    Forwards what the CSM-DB revokes.

    Args:
        bus: the aggregator's lane, which `csmdb` asks on
    """

    def __init__(self, bus: Bus, csmdb: CsmDbClient, outbox: Submitter) -> None:
        self._bus, self._csmdb, self._outbox = bus, csmdb, outbox
        self._after = 0
        self._down = False

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            if self._bus.connected:
                await self._look()
            await asyncio.sleep(ASK_S)

    async def _look(self) -> None:
        try:
            operations, self._after = await fetch(self._csmdb, self._after)
        except (CsmDbRefusedError, TimeoutError, WireError) as error:
            if not self._down:
                log.warning("revocations not listed", reason=str(error))
            self._down = True
            return
        except Exception:
            log.exception("revocations not listed")
            return
        if self._down:
            log.info("revocations listed again")
        self._down = False
        if operations:
            log.info("revocations", count=len(operations))
            self._outbox.add(operations)


async def fetch(csmdb: CsmDbClient, after: int) -> tuple[list[KeyedOperation], int]:
    """
    What the CSM-DB has revoked since a number.

    Args:
        after: number of the last revocation that is known

    Returns:
        Operations for the outbox, and the number to ask after next time.

    Raises:
        CsmDbRefusedError, TimeoutError: no list.
        MalformedError: not a list of revocations.
    """
    found: list[KeyedOperation] = []
    for _ in range(MAX_PAGES):
        page = await csmdb.ask(LIST_REVOCATIONS, {"after": after})
        rows, last = page.get("revocations"), page.get("next")
        if type(rows) is not list or type(last) is not int:
            raise MalformedError("not a list of revocations")
        if not rows:
            break
        found += [_operation(row) for row in rows]
        after = max(after, last)
    return found, after


def _operation(row: Any) -> KeyedOperation:
    if type(row) is not dict or type(row.get("number")) is not int:
        raise MalformedError("not a revocation")
    return f"revocation/{row['number']}", {"op": "revoke", "revocation": row}
