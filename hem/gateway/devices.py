"""
The devices of a site as engineering values: grid + import, battery + discharge.

Whatever its make, a device is a `Source` (hem/gateway/source.py); what it can do makes it the
site's meter, one of its inverters, its battery, a load, or several of these over one connection.
Each device is polled on its own: one that is lost, mute or of an unknown kind never stops the
others. A loss is logged once when it happens and once when it is over; in between the device is
asked again every few seconds only, so that a mute one costs little.

A power that a battery holds when we meet it, and that is not ours, outlived whoever wrote it: it is
given back to its own mode. A power that is changed while we hold it is reported once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from hem.config import Device as DeviceConfig
from hem.gateway.leased import LeasedStorage
from hem.gateway.leases import Lease, LeaseBook
from hem.gateway.links import Connection, Link, link_for
from hem.gateway.modbus import DeviceError, DeviceRefusedError
from hem.gateway.source import Sample, Source, Storage
from hem.gateway.sunspec_device import SunSpecSource, Wire
from hem.gateway.template import Hold, Template, load_template
from hem.gateway.template_device import TemplateSource, new_budget
from hem.gateway.write_budget import WriteBudget
from runtime.ports import Store
from runtime.store import MemoryStore
from wire.errors import ConfigError

RETRY_S = 3.0
"""Pause before a lost device is asked again [real s]."""


class Log(Protocol):
    """The two lines a device writes."""

    def info(self, event: str, **facts: Any) -> Any:
        """Something is well again."""
        ...

    def warning(self, event: str, **facts: Any) -> Any:
        """Something is lost."""
        ...


class Connected:
    """A source that is polled: whether it is there, and who takes what it says."""

    def __init__(self, config: DeviceConfig, source: Source, log: Log) -> None:
        self.name = config.name
        self.status = "lost"
        self.nameplate: dict[str, str] = {}
        self.source = source
        self.storage = cast(Storage, source) if hasattr(source, "hold") else None
        """Who holds the battery's power: the source, or one that wraps it."""
        self.roles: list[Role] = []
        self.on_arrival: Callable[[], None] = lambda: None
        self.met = False
        """True once it was reached: until then nobody knows what it has."""
        self._address = _where(config)
        self._log = log
        self._reported = False
        self._retry_at_s = 0.0

    @property
    def ok(self) -> bool:
        """True when the last poll succeeded."""
        return self.status == "ok"

    async def poll(self, now_s: float) -> None:
        """Read the device unless it is lost and its pause is not over. Never raises."""
        if not self.ok and now_s < self._retry_at_s:
            return
        try:
            sample = await self.source.read()
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


class Role:
    """What a device is to the site. A link in the place of a source is a SunSpec device's."""

    capability: ClassVar[str]

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        if not isinstance(source, Connected):
            source = Connected(config, _as_source(source, config, self.capability), log)
        self.device = source
        self.device.roles.append(self)
        self._log = log

    @property
    def name(self) -> str:
        """Of the device."""
        return self.device.name

    @property
    def ok(self) -> bool:
        """True when the last poll succeeded."""
        return self.device.ok

    @property
    def status(self) -> str:
        """`ok` or `lost`."""
        return self.device.status

    @property
    def nameplate(self) -> dict[str, str]:
        """Vendor, model, firmware, serial."""
        return self.device.nameplate

    async def poll(self, now_s: float) -> None:
        """Read the device. Never raises."""
        await self.device.poll(now_s)

    async def arrive(self) -> None:
        """Done once after every (re)discovery, before the first values are taken."""

    def take(self, sample: Sample) -> None:
        """
        Keep what concerns this role.

        Raises:
            DeviceRefusedError: a value we cannot do without is not available.
        """
        raise NotImplementedError

    def lose(self) -> None:
        """Forget the last values that are not registers."""


class Meter(Role):
    """The meter at the connection point."""

    capability = "grid"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.grid_w = 0
        self.import_wh: int | None = None
        self.export_wh: int | None = None

    def take(self, sample: Sample) -> None:
        """Power and both registers, or the meter is of no use."""
        if sample.grid_w is None or sample.import_wh is None or sample.export_wh is None:
            raise DeviceRefusedError("power, or a register of import or export, is not available")
        self.grid_w, self.import_wh, self.export_wh = (
            sample.grid_w,
            sample.import_wh,
            sample.export_wh,
        )

    def lose(self) -> None:
        """Power is unknown; the registers stay where they were."""
        self.grid_w = 0


class Inverter(Role):
    """A PV inverter. At night it may sleep, be unreachable, or know no power."""

    capability = "pv"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.pv_w = 0
        self.generation_wh: int | None = None

    def take(self, sample: Sample) -> None:
        """Power (0 while asleep) and the energy register (the last one while asleep)."""
        self.pv_w = sample.pv_w if sample.pv_w is not None else 0
        if sample.generation_wh is not None:
            self.generation_wh = sample.generation_wh
        elif self.generation_wh is None:
            raise DeviceRefusedError("the register of generated energy is not available")

    def lose(self) -> None:
        """Nothing is known to flow."""
        self.pv_w = 0


@dataclass(frozen=True, slots=True)
class BatteryLimits:
    """What the battery can do."""

    capacity_wh: int
    max_charge_w: int
    max_discharge_w: int


class Battery(Role):
    """A battery, and where its source is a `Storage` the power it holds for us."""

    capability = "battery"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.battery_w = 0
        self.soc_permille = -1
        self.limits: BatteryLimits | None = None
        self._commanded = False
        self._meddled = False

    async def arrive(self) -> None:
        """A setpoint that is not ours outlived whoever wrote it: restore neutral."""
        if self._standing() == "foreign":
            await self._storage().restore_neutral()
            self._commanded = False

    def take(self, sample: Sample) -> None:
        """Power, state of charge and limits."""
        rated = [sample.capacity_wh, sample.max_charge_w, sample.max_discharge_w]
        known = [one for one in rated if one is not None and one > 0]
        if len(known) < len(rated):
            raise DeviceRefusedError("capacity or most power of the battery is not available")
        self.battery_w = sample.battery_w if sample.battery_w is not None else 0
        self.soc_permille = sample.soc_permille if sample.soc_permille is not None else -1
        self.limits = BatteryLimits(*known)
        self._watch()

    def lose(self) -> None:
        """Nothing is known."""
        self.battery_w, self.soc_permille = 0, -1

    async def command(self, power_w: int, lease_s: int, now_s: float) -> int:
        """
        Fix the battery's power for `lease_s` real seconds; the device itself ends the lease where
        it can.

        Returns:
            The power that will flow (within the limits) [W], + discharge.

        Raises:
            DeviceLostError: no answer. DeviceRefusedError: the read-back differs.
        """
        if self.limits is None or not self.ok:
            raise DeviceRefusedError("the battery has not been reached yet")
        try:
            power_w = await self._storage().hold(power_w, lease_s)
        except DeviceError as error:
            self._commanded = False
            self._settle(error, now_s)
            raise
        self._commanded, self._meddled = True, False
        return power_w

    async def restore_neutral(self, now_s: float) -> None:
        """
        End the lease: the device is back in its own mode. Writes only where that is not so yet.

        Raises:
            DeviceError: the device does not answer (its own reversion timer is then what counts).
        """
        self._commanded = False
        try:
            await self._storage().restore_neutral()
        except DeviceError as error:
            self._settle(error, now_s)
            raise

    def _settle(self, error: DeviceError, now_s: float) -> None:
        if not isinstance(error, DeviceRefusedError):
            self.device.lose(error, now_s)

    def _watch(self) -> None:
        if self._commanded and not self._meddled and self._standing() == "foreign":
            self._meddled = True
            self._log.warning("battery setpoint changed by someone else", device=self.name)

    def _standing(self) -> str:
        """Whose power the battery holds; `neutral` where the source does not know."""
        return getattr(self.device.source, "standing", "neutral")

    def _storage(self) -> Storage:
        if self.device.storage is None:
            raise DeviceRefusedError("this battery can be read, but not commanded")
        return self.device.storage


class Load(Role):
    """A device that uses energy and says how much."""

    capability = "load"

    def __init__(self, config: DeviceConfig, source: Source | Wire | Connected, log: Log) -> None:
        super().__init__(config, source, log)
        self.load_w: int | None = None

    def take(self, sample: Sample) -> None:
        """Power."""
        self.load_w = sample.load_w

    def lose(self) -> None:
        """Nothing is known."""
        self.load_w = None


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
    """

    def __init__(
        self,
        configs: Sequence[DeviceConfig],
        timeout_s: float,
        log: Log,
        store: Store | None = None,
        leases: LeaseBook | None = None,
        folder: Path = Path(),
    ) -> None:
        self._store = store or MemoryStore()
        self._leases, self.folder = leases, folder
        self.watched: dict[str, Storage] = {}
        """Batteries that need the watchdog, by name."""
        self._timeout_s = timeout_s
        self._log = log
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
        device = Connected(config, source, self._log)
        if isinstance(source, TemplateSource) and needs_watchdog(source):
            device.storage = self.watched[config.name] = self._leased(config, source)
        if not wanted:  # it will say when it is reached
            self._roleless.append(device)
            device.on_arrival = lambda: self._attach(config, device)
        elif not (wanted - self._taken()):
            kind = config.kind if len(wanted) == 1 else " and ".join(sorted(wanted))
            self._disable(config, f"the site already has a {kind}")
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

    def _taken(self) -> set[str]:
        roles = {"grid": self.meter, "battery": self.battery}
        return {capability for capability, role in roles.items() if role is not None}

    def link(self, connection: Connection) -> Link:
        """The link to a place; devices of one place share it, for many accept only one."""
        if connection not in self._links:
            self._links[connection] = link_for(connection, self._timeout_s)
        return self._links[connection]

    def budget(self, device: str, hold: Hold | None) -> WriteBudget:
        """How often a device's memory may be written to."""
        return new_budget(self._store, device, hold)

    def _disable(self, config: DeviceConfig, why: str) -> None:
        self._disabled[config.name] = f"disabled: {why}"
        self._log.warning("device disabled", device=config.name, why=why)

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
            devices={d.name: d.status for d in self.devices} | self._disabled,
            loads_w={name: power_w for name, power_w in loads_w.items() if power_w is not None},
        )

    def close(self) -> None:
        """Drop all connections."""
        for device in self.devices:
            device.source.close()
        for link in self._links.values():
            link.close()


def sunspec_source(config: DeviceConfig, site: Site, use: Collection[str]) -> Source:
    """
    A SunSpec device with the capabilities wanted, or those that are found.

    Raises:
        ValueError: the connection is none.
    """
    return SunSpecSource(site.link(connection_of(config)), config.device_id, use)


def template_source(config: DeviceConfig, site: Site) -> Source:
    """
    A device that a template describes.

    Raises:
        ConfigError: no such template, a parameter is wrong, or a capability it does not have.
        ValueError: the connection is none.
    """
    if config.template is None:
        raise ConfigError("template is missing: name one of docs/reference/devices.md")
    template = load_template(config.template)
    lacking = sorted(set(config.use or ()) - set(template.capabilities))
    if lacking:
        has = ", ".join(template.capabilities)
        raise ConfigError(f"use: {template.id} has no capability {lacking[0]}; it has {has}")
    if template.one_of and len(config.use or ()) > 1:
        raise ConfigError(f"use: {template.id} is put in one place; name one capability")
    settings = template.settings(config.model_extra or {})
    link = site.link(connection_of(config, template))
    given = "device_id" in config.model_fields_set
    device_id = config.device_id if given else template.device_id
    budget = site.budget(config.name, template.hold)
    return TemplateSource(template, settings, link, device_id, config.use or (), budget)


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


def _facts(config: DeviceConfig) -> dict[str, Any]:
    """What the file says of a device that is not on Modbus, without our defaults for that."""
    facts = config.model_dump(exclude_unset=True)
    return {key: value for key, value in facts.items() if value is not None}


def _p1_source(config: DeviceConfig, _: Site) -> Source:
    from hem.gateway import p1  # noqa: PLC0415  (an extra, and only where there is such a port)

    return p1.source_for(p1.P1Config.model_validate(_facts(config)))


def _mqtt_source(config: DeviceConfig, site: Site) -> Source:
    from hem.gateway import mqtt_meter  # noqa: PLC0415  (as above)

    return mqtt_meter.source_for(mqtt_meter.MqttConfig.model_validate(_facts(config)), site.folder)


def _zwave_source(config: DeviceConfig, _: Site) -> Source:
    from hem.gateway import zwave  # noqa: PLC0415  (as above)

    return zwave.source_for(zwave.ZwaveConfig.model_validate(_facts(config)))


BUILDERS: Mapping[str, Callable[[DeviceConfig, Site], Source]] = {
    "sunspec-meter": lambda config, site: sunspec_source(config, site, ("grid",)),
    "sunspec-inverter": lambda config, site: sunspec_source(config, site, ("pv",)),
    "sunspec-battery": lambda config, site: sunspec_source(config, site, ("battery",)),
    "sunspec": lambda config, site: sunspec_source(config, site, config.use or ()),
    "template": template_source,
    "p1": _p1_source,
    "mqtt": _mqtt_source,
    "zwave": _zwave_source,
}
"""Who makes a source of a configuration, by kind."""


def connection_of(config: DeviceConfig, template: Template | None = None) -> Connection:
    """
    Where a device is reached; what the file leaves out comes from the template.

    Raises:
        ConfigError: the product is not reached that way. ValueError: names the key.
    """
    facts: dict[str, Any] = {"port": config.port, "baud": config.baud, "parity": config.parity}
    if template is not None:
        tcp, rtu = template.connection("tcp"), template.connection("rtu")
        if rtu is None and config.connection != "tcp":
            raise ConfigError(f"connection: {template.id} has no serial line; leave it at tcp")
        shown = (tcp if config.connection == "tcp" else rtu) or template.connections[0]
        given = config.model_fields_set
        defaults = {"port": shown.port, "baud": shown.baud, "parity": shown.parity}
        facts |= {key: value for key, value in defaults.items() if key not in given}
    if config.connection == "rtu":
        facts["path"] = config.path
    else:
        facts["host"] = config.host
    if config.connection == "tcp":  # a speed would make another connection of it
        facts = {"host": facts["host"], "port": facts["port"]}
    return Connection(kind=config.connection, stopbits=config.stopbits, **facts)


def _where(config: DeviceConfig) -> str:
    place = config.path if config.connection == "rtu" else f"{config.host}:{config.port}"
    return f"{place}/{config.device_id}"


def _as_source(source: Source | Wire, config: DeviceConfig, capability: str) -> Source:
    if hasattr(source, "capabilities"):
        return cast(Source, source)
    return SunSpecSource(source, config.device_id, (capability,))
