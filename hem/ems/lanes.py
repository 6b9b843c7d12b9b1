"""
Lanes: a connection of its own for each address that is in use, and what leaves on it.

The broker, the validators and whoever reads the public topics see an address by its lane only: its
transactions, and its questions for a nonce or a receipt. So nothing of one address is said on the
lane of another, nor on the home's own.

All lanes share the memory of what was sent under which key (`runtime.outbox`): an operation is done
once, under one address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from hem.ems.addresses import Addresses
from runtime.outbox import OperationOutbox
from runtime.ports import Bus, Store
from wire.certificates import AddressGrant

SENDERS = "of/"
"""Where each address that changes has its part of the outbox' file: `of/<address>/`."""
NOT_REGISTERED = "NOT_REGISTERED"
"""What became of an operation under an address that the ledger never came to know."""

log = structlog.get_logger(component="hem")


@dataclass(slots=True)
class Lane:
    """One address at work."""

    bus: Bus
    outbox: OperationOutbox
    sending: asyncio.Task[None] | None = None


class Lanes:
    """
    The lanes that are open.

    Args:
        addresses: which address is for a slot
        make: makes the lane of a grant's address, not yet connected
        keys: the outbox' file, where it is remembered what was sent
        spread_s: what is left here leaves within so long, at a random moment [market s]
        certify: where the broker wants a certificate for a lane: waits until the address has one
        ended: told of an address that is over
    """

    def __init__(
        self,
        addresses: Addresses,
        make: Callable[[AddressGrant], Lane],
        keys: Store,
        spread_s: float = 0.0,
        certify: Callable[[str], Awaitable[None]] | None = None,
        ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._addresses = addresses
        self._make, self._keys, self._spread_s = make, keys, spread_s
        self._certify, self._ended = certify, ended
        self._open: dict[str, Lane] = {}

    async def open(self, grant: AddressGrant) -> Lane:
        """The lane of an address, connecting and sending from now on."""
        lane = self._open.get(grant.address)
        if lane is None:
            lane = self._open[grant.address] = self._make(grant)
            if self._certify is None:
                await lane.bus.start()
            lane.sending = asyncio.create_task(self._work(grant.address, lane))
        return lane

    async def _work(self, address: str, lane: Lane) -> None:
        if self._certify is not None:
            await self._certify(address)
            await lane.bus.start()
        await lane.outbox.run()

    async def close(self, address: str, code: str = "") -> None:
        """
        Close the lane of an address that is over; what waits there stays for the next time.

        Args:
            code: what waits is final with this, and never sent
        """
        await self._shut(address, code)
        self._ended(address)

    async def _shut(self, address: str, code: str = "") -> None:
        lane = self._open.pop(address, None)
        if lane is None:
            return
        if lane.sending is not None:
            lane.sending.cancel()
            await asyncio.gather(lane.sending, return_exceptions=True)
        if code:
            lane.outbox.abandon(code)
        await lane.bus.stop()

    async def stop(self) -> None:
        """Close all lanes."""
        await asyncio.gather(*(self._shut(address) for address in list(self._open)))

    def of(self, slot: int) -> Lane | None:
        """The open lane of the address that is for a slot."""
        grant = self._addresses.grant_of(slot)
        return None if grant is None else self._open.get(grant.address)

    def of_address(self, address: str) -> Lane | None:
        """The open lane of an address."""
        return self._open.get(address)

    # --- What leaves -----------------------------------------------------------------------------

    def add(self, operations: list[tuple[str, dict[str, Any]]], slot: int) -> int:
        """
        Leave operations, each under its key, once; they are for a slot, and of its address.

        Returns:
            How many were new; none where there is no lane for the slot.
        """
        if not operations:
            return 0
        lane = self.of(slot)
        if lane is None:
            log.warning("not sent: no address for the slot", slot=slot, key=operations[0][0])
            return 0
        return lane.outbox.add(operations, self._spread_s)

    def state_of(self, key: str) -> str:
        """`waiting`, the code it became final with, or empty: never heard of."""
        value = self._keys.get("key/" + key)
        return "" if value is None else value.decode()

    @property
    def waiting(self) -> int:
        """Operations that are not final yet."""
        return sum(lane.outbox.waiting for lane in self._open.values())

    async def take_event(self, height: int, event: dict[str, Any]) -> None:
        """Handler for finalised events."""
        for lane in list(self._open.values()):
            await lane.outbox.take_event(height, event)
