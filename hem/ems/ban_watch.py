"""
What the home makes of a ban: it looks for firmware at once, and often until it is let in again.

    ledger: `banned`, one of our addresses ──┐
    an operation of ours, refused BANNED ────┼──► hem.ems.firmware: look now, then every 10 minutes
    the CSM-DB gives no grant: BANNED ───────┘
    ledger: `reinstated`, or a grant ───────────► as often as the file says

Only the home knows that the address is its own, so nobody has to be told whom a ban concerns. A
command to one home within seconds of a ban would tell the broker whose address was banned.

Source: ETSE, security layer (a vulnerable device is kept out until it is patched).
"""

from __future__ import annotations

from typing import Any

import structlog

from hem.ems.addresses import Addresses
from hem.ems.firmware import Firmware
from wire.errors import Refusal

log = structlog.get_logger(component="hem")


class BanWatch:
    """
    Tells the firmware's keeper of bans.

    Args:
        addresses: ours
        firmware: what looks for a fixed version
    """

    def __init__(self, addresses: Addresses, firmware: Firmware) -> None:
        self._addresses, self._firmware = addresses, firmware

    async def take_event(self, _height: int, event: dict[str, Any]) -> None:
        """Handler for finalised events (`ledger.client`)."""
        name = event["event"]
        if name in ("banned", "reinstated") and event["address"] in self._addresses:
            self.tell(is_banned=name == "banned")

    def operation_done(self, code: str) -> None:
        """An operation of ours became final with a code."""
        if code == Refusal.BANNED.value:
            self.tell(is_banned=True)

    def tell(self, *, is_banned: bool) -> None:
        """We are banned, or are not any longer; said once however often it is heard."""
        if self._firmware.set_banned(is_banned=is_banned):
            log.warning("banned: looking for firmware" if is_banned else "the ban has ended")
