"""
A device that is polled: whether it is there, and who takes what it says.

A loss is logged once when it happens and once when it is over; in between the device is asked again
every few seconds only, and nobody waits for a mute one. One that answers with the same for too long
while energy flows is lost, too (hem/gateway/frozen.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from hem.config import Device as DeviceConfig
from hem.gateway.frozen import STILL_S, Frozen
from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.source import Sample, Source, Storage

RETRY_S = 3.0
"""Pause before a lost device is asked again [real s]."""
LOST_WAIT_S = 0.3
"""A poll waits no longer for a device known to be lost: one that is back is quicker [real s]."""


class Log(Protocol):
    """The two lines a device writes."""

    def info(self, event: str, **facts: Any) -> Any:
        """Something is well again."""
        ...

    def warning(self, event: str, **facts: Any) -> Any:
        """Something is lost."""
        ...


class Taker(Protocol):
    """Who takes what a device says (hem/gateway/roles.py)."""

    async def arrive(self) -> None:
        """It was (re)discovered; its first values come next."""
        ...

    def take(self, sample: Sample) -> None:
        """Keep what concerns you; raises DeviceRefusedError where something needed is missing."""
        ...

    def lose(self) -> None:
        """It is lost."""
        ...


class Connected:
    """A source that is polled: whether it is there, and who takes what it says."""

    def __init__(
        self, config: DeviceConfig, source: Source, log: Log, still_s: float = STILL_S
    ) -> None:
        self.name = config.name
        self.product = config.template or config.kind
        """What the file says it is: a template, or the kind that needs none."""
        self.status = "lost"
        self.nameplate: dict[str, str] = {}
        self.source = source
        self.storage = cast(Storage, source) if hasattr(source, "hold") else None
        """Who holds the battery's power: the source, or one that wraps it."""
        self.roles: list[Taker] = []
        self.on_arrival: Callable[[], None] = lambda: None
        self.met = False
        """True once it was reached: until then nobody knows what it has."""
        self.turn = asyncio.Lock()
        """A read between the writes of a setpoint would take ours for a stranger's."""
        self._address = _where(config)
        self._log = log
        self._reported = False
        self._retry_at_s = 0.0
        self._frozen = Frozen(still_s)
        self._asking: asyncio.Task[None] | None = None

    @property
    def ok(self) -> bool:
        """True when the last poll succeeded."""
        return self.status == "ok"

    async def poll(self, now_s: float) -> None:
        """
        Read the device unless it is lost and its pause is not over. Never raises.

        One that is known to be lost is asked in the background.
        """
        if self._asking is not None or (not self.ok and now_s < self._retry_at_s):
            return
        self._asking = asyncio.create_task(self._ask(now_s))
        self._asking.add_done_callback(self._asked)
        await asyncio.wait({self._asking}, timeout=LOST_WAIT_S if self._reported else None)

    def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
        self.source.close()

    def _asked(self, _: asyncio.Task[None]) -> None:
        self._asking = None

    async def _ask(self, now_s: float) -> None:
        async with self.turn:
            await self._look(now_s)

    async def _look(self, now_s: float) -> None:
        try:
            sample = await self.source.read()
            why = self._frozen.look(sample, now_s)
            if why:
                raise DeviceRefusedError(why)
            if not self.ok:
                await self._arrive(sample)
            for role in self.roles:
                role.take(sample)
        except Exception as error:  # whatever nonsense it sent, the others go on
            self.lose(error, now_s)
        else:
            self._find()

    def lose(self, error: Exception, now_s: float) -> None:
        """The device is lost: forget what it said, and say so once."""
        self._retry_at_s = now_s + RETRY_S
        self.status = "lost"
        for role in self.roles:
            role.lose()
        if not self._reported:
            self._reported = True
            self._log.warning(
                "device lost",
                device=self.name,
                address=self._address,
                why=str(error) or repr(error),
            )

    async def _arrive(self, sample: Sample) -> None:
        self.nameplate = dict(sample.details)
        if not self.met:
            self.met = True
            self.on_arrival()
        for role in self.roles:
            await role.arrive()

    def _find(self) -> None:
        if self._reported:
            self._log.info("device back", device=self.name, address=self._address)
        self._reported = False
        self.status = "ok"


def _where(config: DeviceConfig) -> str:
    place = config.path if config.connection == "rtu" else f"{config.host}:{config.port}"
    return f"{place}/{config.device_id}"
