"""
The home in Home Assistant: MQTT discovery on the household's own broker.

    <prefix>/sensor/hearthgrid_<home>/<key>/config     what each sensor is (retained)
    hearthgrid/<home>/state                            all their states, one JSON object (retained)
    hearthgrid/<home>/availability                     online | offline (retained; offline by will)

Only what the household sees of itself is told: no identity, no address, no key. A sensor is made
known when there is something to show, so a home without a battery has none. States are told at most
once in a period, and only when they have changed.

Source: Home Assistant, "MQTT Sensor", "MQTT Discovery" (home-assistant.io/integrations).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from hem.config import LocalBroker
from runtime.bus import MqttBus
from runtime.ports import Bus, BusDownError, Rng
from wire.errors import ConfigError

ONLINE, OFFLINE = b"online", b"offline"
PASSWORD_MAX_BYTES = 1_024

log = structlog.get_logger(component="home-assistant")

Figures = Callable[[], Awaitable[Mapping[str, Any]]]
"""Tells the home's figures by now (`HomeEnergyManager`); what is unknown is left out or None."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One entity."""

    key: str
    name: str
    source: str
    """Name of the figure."""
    unit: str
    device_class: str = ""
    total: bool = False
    """A register that only rises."""
    divisor: int = 1
    """Of the figure, for the unit that people read."""

    def discovery(self, home: str) -> dict[str, Any]:
        """What Home Assistant has to know."""
        found: dict[str, Any] = {
            "name": self.name,
            "unique_id": f"hearthgrid_{home}_{self.key}",
            "object_id": f"hearthgrid_{home}_{self.key}",
            "state_topic": state_topic(home),
            "value_template": f"{{{{ value_json.{self.key} }}}}",
            "availability_topic": availability_topic(home),
            "state_class": "total_increasing" if self.total else "measurement",
            "unit_of_measurement": self.unit,
            "device": {
                "identifiers": [f"hearthgrid_{home}"],
                "name": f"Hearthgrid {home}",
                "manufacturer": "Hearthgrid",
                "model": "Home Energy Manager",
            },
        }
        if self.device_class:
            found["device_class"] = self.device_class
        return found

    def value(self, figures: Mapping[str, Any]) -> float | int | None:
        """Its state, or None: unknown."""
        raw = figures.get(self.source)
        if not isinstance(raw, int) or (self.key == "soc" and raw < 0):
            return None
        return raw if self.divisor == 1 else round(raw / self.divisor, 6)


SENSORS = (
    Sensor("grid", "Grid power", "grid_w", "W", "power"),
    Sensor("pv", "PV power", "pv_w", "W", "power"),
    Sensor("battery", "Battery power", "battery_w", "W", "power"),
    Sensor("load", "Load power", "load_w", "W", "power"),
    Sensor("soc", "State of charge", "soc_permille", "%", "battery", divisor=10),
    Sensor("import", "Imported energy", "import_wh", "Wh", "energy", total=True),
    Sensor("export", "Exported energy", "export_wh", "Wh", "energy", total=True),
    Sensor("generation", "Generated energy", "generation_wh", "Wh", "energy", total=True),
    Sensor("price", "Clearing price", "price_uc_per_kwh", "¤/kWh", divisor=1_000_000),
    Sensor("balance", "Balance", "balance_uc", "¤", divisor=1_000_000),
    Sensor("position", "Position", "position_wh", "Wh"),
    Sensor("cpf", "Consumption-production function", "cpf_q16", "1", divisor=65_536),
)
BATTERY_ONLY = frozenset({"soc", "battery"})


def state_topic(home: str) -> str:
    """Where the states are."""
    return f"hearthgrid/{home}/state"


def availability_topic(home: str) -> str:
    """Where it says whether they are true."""
    return f"hearthgrid/{home}/availability"


class HomeAssistant:
    """
    Tells Home Assistant.

    Args:
        bus: a lane to the household's broker, with our last will
        home: the home's name
        prefix: Home Assistant's discovery prefix
        period_s: least time between two states [real s]
    """

    def __init__(self, bus: Bus, home: str, prefix: str, period_s: float) -> None:
        self._bus, self._home, self._prefix, self._period_s = bus, home, prefix, period_s
        self._known: set[str] = set()
        """Sensors made known on this connection."""
        self._told: dict[str, Any] = {}
        self._greeted = False

    @classmethod
    def on(cls, config: LocalBroker, home: str, rng: Rng) -> HomeAssistant:
        """
        With a lane of its own.

        Raises:
            ConfigError: the password file cannot be used.
        """
        bus = local_bus(config, home, rng)
        made = cls(bus, home, config.discovery_prefix, config.period_s)
        bus.on_connected(made.forget)
        return made

    async def forget(self) -> None:
        """A new connection: say everything again (the broker may have lost what was retained)."""
        self._known.clear()
        self._told, self._greeted = {}, False

    async def run(self, figures: Figures) -> None:
        """Tell until cancelled, then say that we are gone."""
        await self._bus.start()
        try:
            while True:
                if self._bus.connected:
                    with contextlib.suppress(BusDownError):
                        await self.tell(await figures())
                await asyncio.sleep(self._period_s)
        finally:
            self._bus.publish_soon(availability_topic(self._home), OFFLINE, retain=True)
            await self._bus.stop()

    async def tell(self, figures: Mapping[str, Any]) -> None:
        """
        Publish what is new.

        Raises:
            BusDownError: the connection was lost; all is said again on the next.
        """
        states = {sensor.key: sensor.value(figures) for sensor in SENSORS}
        has_battery = states["soc"] is not None
        for sensor in SENSORS:
            hidden = sensor.key in BATTERY_ONLY and not has_battery
            if sensor.key in self._known or states[sensor.key] is None or hidden:
                continue
            topic = f"{self._prefix}/sensor/hearthgrid_{self._home}/{sensor.key}/config"
            await self._publish(topic, json.dumps(sensor.discovery(self._home)).encode())
            self._known.add(sensor.key)
        if not self._greeted:
            await self._publish(availability_topic(self._home), ONLINE)
            self._greeted = True
        shown = {key: value for key, value in states.items() if key in self._known}
        if shown and shown != self._told:
            await self._publish(state_topic(self._home), json.dumps(shown).encode())
            self._told = shown

    async def _publish(self, topic: str, payload: bytes) -> None:
        await self._bus.publish(topic, payload, retain=True)


def local_bus(config: LocalBroker, home: str, rng: Rng) -> MqttBus:
    """
    A lane to the household's broker under a client id of its own.

    Raises:
        ConfigError: the password file cannot be read, or others may read it.
    """
    client_id, password = f"hearthgrid-{home}", _password(config)
    return MqttBus(
        config.host, config.port, lambda: (client_id, password), rng,
        will=(availability_topic(home), OFFLINE, True), user=config.user,
    )  # fmt: skip


def _password(config: LocalBroker) -> str:
    path = config.password_file
    if path is None:
        return ""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read local_broker.password_file; chmod 600 it")
        text = path.read_bytes()[: PASSWORD_MAX_BYTES + 1].decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: local_broker.password_file cannot be read ({error}); write the password there"
        ) from None
    if not text or len(text) > PASSWORD_MAX_BYTES:
        raise ConfigError(f"{path}: local_broker.password_file holds no password; write it there")
    return text
