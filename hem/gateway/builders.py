"""
From a `[[devices]]` entry to the driver that reads it.

What a driver needs of the site is three things: the links, the budgets of writes, and the folder
that file names are relative to. Drivers for what is not Modbus are extras, loaded where a device
needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from hem.config import DEVICE_KINDS
from hem.config import Device as DeviceConfig
from hem.gateway.links import Connection, Link
from hem.gateway.source import Source
from hem.gateway.sunspec_device import SunSpecSource
from hem.gateway.template import Hold, Template, load_template
from hem.gateway.template_device import TemplateSource
from hem.gateway.write_budget import WriteBudget
from wire.errors import ConfigError


class Premises(Protocol):
    """What a driver needs of the site."""

    @property
    def folder(self) -> Path:
        """What file names in the configuration are relative to."""
        ...

    def link(self, connection: Connection) -> Link:
        """The link to a place."""
        ...

    def budget(self, device: str, hold: Hold | None) -> WriteBudget:
        """How often a device's memory may be written to."""
        ...


def sunspec_source(config: DeviceConfig, site: Premises, use: Collection[str]) -> Source:
    """
    A SunSpec device with the capabilities wanted, or those that are found.

    Raises:
        ValueError: the connection is none.
    """
    connection, device_id = place_of(config)
    return SunSpecSource(site.link(connection), device_id, use)


def template_source(config: DeviceConfig, site: Premises) -> Source:
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
    connection, device_id = place_of(config)
    link, budget = site.link(connection), site.budget(config.name, template.hold)
    return TemplateSource(template, settings, link, device_id, config.use or (), budget)


def _facts(config: DeviceConfig) -> dict[str, Any]:
    """What the file says of a device that is not on Modbus, without our defaults for that."""
    facts = config.model_dump(exclude_unset=True)
    return {key: value for key, value in facts.items() if value is not None}


def _p1_source(config: DeviceConfig, _: Premises) -> Source:
    from hem.gateway import p1  # noqa: PLC0415  (an extra, and only where there is such a port)

    return p1.source_for(p1.P1Config.model_validate(_facts(config)))


def _mqtt_source(config: DeviceConfig, site: Premises) -> Source:
    from hem.gateway import mqtt_meter  # noqa: PLC0415  (as above)

    return mqtt_meter.source_for(mqtt_meter.MqttConfig.model_validate(_facts(config)), site.folder)


def _zwave_source(config: DeviceConfig, _: Premises) -> Source:
    from hem.gateway import zwave  # noqa: PLC0415  (as above)

    return zwave.source_for(zwave.ZwaveConfig.model_validate(_facts(config)))


BUILDERS: Mapping[str, Callable[[DeviceConfig, Premises], Source]] = {
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


def place_of(config: DeviceConfig) -> tuple[Connection, int]:
    """
    The connection of a Modbus device and its unit id there.

    Raises:
        ConfigError: no such template, or not reached that way. ValueError: names the key.
    """
    template = load_template(config.template) if config.template is not None else None
    connection = connection_of(config, template)
    if template is None or "device_id" in config.model_fields_set:
        return connection, config.device_id
    return connection, template.device_id


def places_of(configs: Iterable[DeviceConfig]) -> dict[str, tuple[Connection, int]]:
    """Connection and unit id of each Modbus device by name, without those that are disabled."""
    places = {}
    for config in configs:
        if config.kind in DEVICE_KINDS:
            with suppress(ConfigError, ValueError):
                places[config.name] = place_of(config)
    return places


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
