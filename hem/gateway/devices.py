"""
The devices of a site as engineering values: grid + import, battery + discharge.

Whatever its make, a device is a `Source` (hem/gateway/source.py); what it can do makes it the
site's meter, one of its inverters, its battery, a load, or several of these over one connection
(hem/gateway/roles.py). Each device is polled on its own: one that is lost, mute or of an unknown
kind never stops the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hem.config import Device as DeviceConfig
from hem.gateway.builders import BUILDERS, connection_of, places_of
from hem.gateway.connected import Connected, Log
from hem.gateway.frozen import STILL_S
from hem.gateway.leased import LeasedStorage
from hem.gateway.leases import Lease, LeaseBook
from hem.gateway.links import Connection, Link, link_for
from hem.gateway.modbus import DeviceRefusedError
from hem.gateway.proxy import SharedLink
from hem.gateway.roles import Battery, BatteryLimits, Inverter, Load, Meter, Role
from hem.gateway.source import Storage
from hem.gateway.template import Hold
from hem.gateway.template_device import TemplateSource, new_budget
from hem.gateway.write_budget import WriteBudget
from runtime.ports import Store
from runtime.store import MemoryStore
from wire.errors import ConfigError


@dataclass(slots=True)
class SiteState:
    """The site at one moment."""

    grid_w: int = 0
    pv_w: int = 0
    battery_w: int = 0
    soc_permille: int = -1
    import_wh: int | None = None
    export_wh: int | None = None
    generation_wh: int | None = None
    """None while a generator has never been reached."""
    battery: BatteryLimits | None = None
    devices: dict[str, str] = field(default_factory=dict)
    loads_w: dict[str, int] = field(default_factory=dict)
    """What each device that says so uses; part of `load_w`."""

    @property
    def load_w(self) -> int:
        """What the house uses: everything that flows in."""
        return self.grid_w + self.pv_w + self.battery_w


class Site:
    """
    All devices of a home.

    Args:
        timeout_s: how long a device may take to answer [real s]
        store: where writes to memory that wears out are counted; without one a restart forgets
        leases: where setpoints are written down for the watchdog; without, a battery that does not
            give itself back when we die is not commanded
        folder: what file names in the configuration are relative to
        shared: names of the devices whose lines are shared with guests
        still_s: a device that says the very same for so long while energy flows is lost [real s]
    """

    def __init__(
        self,
        configs: Sequence[DeviceConfig],
        timeout_s: float,
        log: Log,
        store: Store | None = None,
        leases: LeaseBook | None = None,
        folder: Path = Path(),
        shared: Collection[str] = (),
        still_s: float = STILL_S,
    ) -> None:
        self._still_s = still_s
        self._store = store or MemoryStore()
        self._leases, self.folder = leases, folder
        self.watched: dict[str, Storage] = {}
        """Batteries that need the watchdog, by name."""
        self._timeout_s = timeout_s
        self._log = log
        self.places = places_of(configs)
        """Connection and unit id of each Modbus device, by name."""
        self._shared = {self.places[name][0] for name in shared if name in self.places}
        self._links: dict[Connection, Link] = {}
        self._disabled: dict[str, str] = {}
        self._roleless: list[Connected] = []
        self.meter: Meter | None = None
        self.battery: Battery | None = None
        self.inverters: list[Inverter] = []
        self.loads: list[Load] = []
        for config in configs:
            self._add(config)

    def _add(self, config: DeviceConfig) -> None:
        build = BUILDERS.get(config.kind)
        try:
            if build is None:
                raise ConfigError(f"unknown kind {config.kind!r}")
            source = build(config, self)
        except (ConfigError, ValueError) as error:
            self._disable(config, str(error))
            return
        wanted = source.capabilities
        device = Connected(config, source, self._log, self._still_s)
        if isinstance(source, TemplateSource) and needs_watchdog(source):
            device.storage = self.watched[config.name] = self._leased(config, source)
        if not wanted:  # it will say when it is reached
            self._roleless.append(device)
            device.on_arrival = lambda: self._attach(config, device)
        elif wanted <= (taken := self._taken()).keys():
            there = " and ".join(f"{taken[each]!r} for {each}" for each in sorted(wanted))
            self._disable(config, f"the site already has {there}")
        else:
            self._attach(config, device)

    def _leased(self, config: DeviceConfig, source: TemplateSource) -> Storage:
        """A battery that somebody must give back when we die: held under leases only."""
        if self._leases is None:
            return Unwatched(source)
        return LeasedStorage(
            source,
            self._leases,
            config.name,
            lambda ends_at_s: Lease(
                device=config.name,
                connection=connection_of(config, source.template),
                device_id=source.device_id,
                neutral=source.neutral_writes(),
                proof=source.neutral_proof(),
                ends_at_s=ends_at_s,
                timeout_s=self._timeout_s,
            ),
        )

    def _attach(self, config: DeviceConfig, device: Connected) -> None:
        """Give a device the roles it can play and nobody plays yet."""
        if device in self._roleless and device.source.capabilities:
            self._roleless.remove(device)
        for capability in sorted(device.source.capabilities):
            if capability in self._taken():
                self._log.warning(
                    "capability not used",
                    device=device.name,
                    why=f"the site already has one for {capability}",
                )
                continue
            match capability:
                case "grid":
                    self.meter = Meter(config, device, self._log)
                case "battery":
                    self.battery = Battery(config, device, self._log)
                case "pv":
                    self.inverters.append(Inverter(config, device, self._log))
                case "load":
                    self.loads.append(Load(config, device, self._log))

    def _taken(self) -> dict[str, str]:
        """Who plays what one device can play only: name of the device, by capability."""
        roles = {"grid": self.meter, "battery": self.battery}
        return {capability: role.name for capability, role in roles.items() if role is not None}

    def link(self, connection: Connection) -> Link:
        """The link to a place; devices of one place share it, for many accept only one."""
        if connection not in self._links:
            link = link_for(connection, self._timeout_s)
            self._links[connection] = SharedLink(link) if connection in self._shared else link
        return self._links[connection]

    def budget(self, device: str, hold: Hold | None) -> WriteBudget:
        """How often a device's memory may be written to."""
        return new_budget(self._store, device, hold)

    def _disable(self, config: DeviceConfig, why: str) -> None:
        self._disabled[config.name] = why
        self._log.warning("device disabled", device=config.name, why=why)

    @property
    def disabled(self) -> dict[str, str]:
        """Why a device is not used, by its name."""
        return dict(self._disabled)

    @property
    def devices(self) -> list[Connected]:
        """The devices that are polled, each once."""
        roles: list[Role | None] = [self.meter, *self.inverters, self.battery, *self.loads]
        devices = [role.device for role in roles if role is not None] + self._roleless
        return list(dict.fromkeys(devices))

    async def poll(self, now_s: float) -> SiteState:
        """Read every device side by side, and say what is known."""
        await asyncio.gather(*(device.poll(now_s) for device in self.devices))
        return self.state()

    def state(self) -> SiteState:
        """What is known from the last poll; a lost device adds no power."""
        meter, battery = self.meter, self.battery
        generations = [inverter.generation_wh for inverter in self.inverters]
        known = [wh for wh in generations if wh is not None]
        # One that was never met may be a generator with a counter of its own.
        complete = len(known) == len(generations) and all(d.met for d in self._roleless)
        loads_w = {load.name: load.load_w for load in self.loads}
        return SiteState(
            grid_w=meter.grid_w if meter else 0,
            pv_w=sum(inverter.pv_w for inverter in self.inverters),
            battery_w=battery.battery_w if battery else 0,
            soc_permille=battery.soc_permille if battery else -1,
            import_wh=meter.import_wh if meter else None,
            export_wh=meter.export_wh if meter else None,
            generation_wh=sum(known) if complete else None,
            battery=battery.limits if battery else None,
            devices={d.name: d.status for d in self.devices}
            | {name: f"disabled: {why}" for name, why in self._disabled.items()},
            loads_w={name: power_w for name, power_w in loads_w.items() if power_w is not None},
        )

    def held(self, now_s: float) -> str:
        """Name of the device whose battery a lease of ours holds; empty where none does."""
        return self.battery.name if self.battery is not None and self.battery.holds(now_s) else ""

    def close(self) -> None:
        """Drop all connections."""
        for device in self.devices:
            device.close()
        for link in self._links.values():
            link.close()


def needs_watchdog(source: TemplateSource) -> bool:
    """Does the device keep a setpoint for longer than a minute when nobody writes any more?"""
    hold = source.hold_facts
    return hold is not None and hold.reversion != "register"


class Unwatched:
    """A battery that must not be held, as nobody would give it back."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def hold(self, power_w: int, lease_s: int) -> int:
        """
        Refuse.

        Raises:
            DeviceRefusedError: always.
        """
        raise DeviceRefusedError("no watchdog, and the battery has no reversion timer of its own")

    async def restore_neutral(self) -> None:
        """Raises DeviceLostError, DeviceRefusedError."""
        await self._storage.restore_neutral()

    async def is_neutral(self) -> bool:
        """Raises DeviceLostError, DeviceRefusedError."""
        return await self._storage.is_neutral()
