"""
A battery without a reversion timer, held under leases of the lease book.

It is a `Storage` like the one it wraps, so that nobody else has to think of the book: no setpoint
is written before its lease is put, and no lease is cleared before neutral was read back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from hem.gateway.leases import LEASE_S_MAX, Lease, LeaseBook, WatchdogLostError, lease_end
from hem.gateway.modbus import DeviceError
from hem.gateway.source import Storage


class LeasedStorage:
    """
    A battery that the watchdog restores if we do not.

    Args:
        storage: the battery itself
        book: the gateway's
        device: its name in the provisioning file
        lease: makes the lease that ends then (CLOCK_BOOTTIME); what restores neutral may depend on
            what is known of the device at the moment
    """

    def __init__(
        self, storage: Storage, book: LeaseBook, device: str, lease: Callable[[float], Lease]
    ) -> None:
        self._storage = storage
        self._book = book
        self._device = device
        self._lease = lease

    async def hold(self, power_w: int, lease_s: int) -> int:
        """
        Hold the battery's power for `lease_s`, or `LEASE_S_MAX` if that is shorter.

        Returns:
            The power that will flow, within the limits [W], + discharge.

        Raises:
            WatchdogLostError: nobody would end the lease if we died; the battery is made neutral.
            LeaseRefusedError: neutral has to be restored first.
            DeviceLostError, DeviceRefusedError.
        """
        lease_s = min(lease_s, int(LEASE_S_MAX))
        try:
            await self._book.put(self._lease(lease_end(lease_s)))
        except WatchdogLostError:
            with suppress(DeviceError):  # the reason that counts is the watchdog's
                await self.restore_neutral()
            raise
        return await self._storage.hold(power_w, lease_s)

    async def restore_neutral(self) -> None:
        """
        Give the device back to its own mode, and clear its lease.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        await self._storage.restore_neutral()
        await self._book.clear(self._device)

    async def is_neutral(self) -> bool:
        """
        Is it in its own mode?

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        return await self._storage.is_neutral()
