"""
A line that a `[[proxy]]` section shares with other programs of the house.

What guests are (hem/gateway/proxy.py) knows nothing of devices; here is what a guest may write to
which of ours: nothing to a unit whose battery we hold, until our lease is over; and to a unit whose
setpoints lie in memory that wears out only what that day's budget leaves, for a guest wears it as
we do.

The site does not depend on its guests: a port that cannot be had is said once and tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from hem.config import Proxy as ProxySection
from hem.gateway.connected import Log
from hem.gateway.devices import Site
from hem.gateway.proxy import Proxy, ProxyRules, SharedLink
from hem.gateway.template_device import TemplateSource

PORT_RETRY_S = 30.0
"""Pause before a port that was taken is tried again [real s]."""


class SharedLine:
    """
    One `[[proxy]]` section at work.

    Args:
        section: what the file says
        site: made with the section's device among `shared`
        log: for what an operator wants to see
        monotonic_s: process time, as the leases are counted [real s]
    """

    def __init__(
        self, section: ProxySection, site: Site, log: Log, monotonic_s: Callable[[], float]
    ) -> None:
        self._section = section
        self._site = site
        self._log = log
        self._monotonic_s = monotonic_s
        self._reported = False

    async def serve(self) -> None:
        """Serve guests until cancelled; at once over where the device has no line to share."""
        proxy = self._proxy()
        if proxy is None:
            device = self._section.device
            self._log.warning("proxy not served", device=device, why="the device is disabled")
            return
        try:
            while not await self._started(proxy):
                await asyncio.sleep(PORT_RETRY_S)
            await asyncio.Event().wait()
        finally:
            await proxy.stop()

    def permits(self, unit: int, address: int, values: Sequence[int]) -> bool:
        """
        May a guest write to the unit now? One that may is counted where memory wears out.

        What firmware is written by is ours alone.
        """
        meant = self._meant(unit)
        if self._site.held(self._monotonic_s()) in meant:
            return False
        devices = [device for device in self._site.devices if device.name in meant]
        worn = [one.source for one in devices if isinstance(one.source, TemplateSource)]
        if any(source.firmware_covers(address, len(values)) for source in worn):
            return False
        return all(source.admits_foreign(values) for source in worn)

    def _meant(self, unit: int) -> set[str]:
        """
        Our devices that a guest's unit id may reach.

        Many on the network answer on every unit id: one that is none of ours may be any of them.
        """
        places = self._site.places
        line = places[self._section.device][0]
        here = {name: its for name, (where, its) in places.items() if where == line}
        if line.kind == "tcp" and unit not in here.values():
            return set(here)
        return {name for name, its in here.items() if its == unit}

    def _proxy(self) -> Proxy | None:
        section, places = self._section, self._site.places
        if section.device not in places:
            return None
        connection, _ = places[section.device]
        link = self._site.link(connection)
        assert isinstance(link, SharedLink), section.device
        units = section.device_ids or [
            unit for where, unit in places.values() if where == connection
        ]
        rules = ProxyRules(
            device_ids=frozenset(units),
            host=str(section.listen),
            port=section.port,
            allow_writes=section.allow_writes,
            clients_max=section.clients_max,
            requests_per_s=section.requests_per_s,
            idle_s=section.idle_s,
            wait_s_max=section.wait_s_max,
        )
        return Proxy(rules, link, self._log, self.permits)

    async def _started(self, proxy: Proxy) -> bool:
        section = self._section
        try:
            await proxy.start()
        except OSError as error:
            if not self._reported:
                self._reported = True
                self._log.warning(
                    "proxy not served yet",
                    device=section.device,
                    address=f"{section.listen}:{section.port}",
                    why=str(error),
                    remedy="free the port, or set proxy.port to another",
                )
            return False
        return True
