"""
Read-only MQTT devices on the household's own broker: Tasmota, Shelly, Zigbee2MQTT, and others.

What a make publishes is data (`MAKES`): topic, path into the JSON, unit, sign, and which quantity
it is. Entries of the same quantity are added up (three single-phase channels are one meter). A
device that is not in the table is described in the provisioning file with the same words.

We subscribe to what is configured, never publish, and believe nothing: a payload is bounded, its
numbers are decimals within a household's reach, registers do not go back, and values are handed out
only while every topic they come from has spoken lately. A retained message has an age that nobody
knows, so it is not taken.

Sources: Tasmota docs "MQTT" (tele/…/SENSOR, default period 300 s: set `TelePeriod 10`); Shelly
Gen2+ API docs "EM", "EMData", "EM1Data", "Switch" with "Generic status update over MQTT" switched
on; Zigbee2MQTT docs "MQTT topics and messages".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from pydantic import Field, model_validator

from hem.config import Name, Port, Section
from hem.gateway.figures import (
    Quantity,
    Registers,
    Role,
    Unit,
    needed_by,
    quantity_of,
    sample_of,
)
from hem.gateway.modbus import DeviceLostError, DeviceRefusedError
from hem.gateway.source import Sample
from runtime.listener import Listener
from runtime.ports import Message, Rng
from runtime.rng import SystemRng
from wire.errors import ConfigError

PAYLOAD_BYTES_MAX = 8 * 1024
POINTS_MAX = 32
ENERGY_UNITS = {"Wh", "kWh"}


class Point(Section):
    """Where one number is, and what it means."""

    quantity: Quantity
    """power; forward (import, generation) or backward (export) energy register."""
    topic: str = Field(min_length=1, max_length=256, pattern=r"^[^#+\x00]+$")
    """Without wildcards; "{topic}" stands for the device's own part."""
    path: str = Field(min_length=1, max_length=256)
    """Keys of the JSON from outside in, with dots; a number is a place in a list."""
    unit: Unit
    """Of the number: W or kW for a power, Wh or kWh for a register."""
    sign: Literal[1, -1] = 1
    """−1 where the device counts the other way (power only)."""

    @model_validator(mode="after")
    def _unit_fits(self) -> Point:
        if (self.quantity != "power") != (self.unit in ENERGY_UNITS):
            raise ValueError(f"{self.quantity} cannot be in {self.unit}")
        if self.unit in ENERGY_UNITS and self.sign != 1:
            raise ValueError("a register has no sign; set is_reversed to swap its directions")
        return self


def _points(*rows: tuple[Quantity, str, str, Unit]) -> tuple[Point, ...]:
    return tuple(Point(quantity=q, topic=t, path=p, unit=u) for q, t, p, u in rows)


MAKES: Mapping[str, tuple[Point, ...]] = MappingProxyType(
    {
        "tasmota": _points(
            ("power", "tele/{topic}/SENSOR", "ENERGY.Power", "W"),
            ("forward", "tele/{topic}/SENSOR", "ENERGY.Total", "kWh"),
            ("backward", "tele/{topic}/SENSOR", "ENERGY.ExportActive", "kWh"),
        ),
        "shelly-em": _points(  # Pro 3EM, 3EM Gen3: three phases, added up by the device
            ("power", "{topic}/status/em:0", "total_act_power", "W"),
            ("forward", "{topic}/status/emdata:0", "total_act", "Wh"),
            ("backward", "{topic}/status/emdata:0", "total_act_ret", "Wh"),
        ),
        "shelly-em1": _points(  # Pro EM, EM Gen3: channel 0
            ("power", "{topic}/status/em1:0", "act_power", "W"),
            ("forward", "{topic}/status/em1data:0", "total_act_energy", "Wh"),
            ("backward", "{topic}/status/em1data:0", "total_act_ret_energy", "Wh"),
        ),
        "shelly-switch": _points(  # Plug S, 1PM and other switches that measure
            ("power", "{topic}/status/switch:0", "apower", "W"),
            ("forward", "{topic}/status/switch:0", "aenergy.total", "Wh"),
            ("backward", "{topic}/status/switch:0", "ret_aenergy.total", "Wh"),
        ),
        "zigbee2mqtt": _points(
            ("power", "zigbee2mqtt/{topic}", "power", "W"),
            ("forward", "zigbee2mqtt/{topic}", "energy", "kWh"),
            ("backward", "zigbee2mqtt/{topic}", "produced_energy", "kWh"),
        ),
    }
)


class MqttConfig(Section):
    """A `[[devices]]` entry of kind "mqtt"."""

    kind: Literal["mqtt"] = "mqtt"
    name: Name
    host: str = "127.0.0.1"
    """Of the household's broker."""
    port: Port = 1883
    """Of the broker."""
    user: str | None = None
    """The broker asks for none if left out."""
    password_file: Path | None = None
    """A file with the password alone, readable by its owner only."""
    make: Literal["tasmota", "shelly-em", "shelly-em1", "shelly-switch", "zigbee2mqtt", "other"]
    """What publishes; "other" is described by `points`."""
    topic: str = Field(default="", max_length=128, pattern=r"^[^#+\x00]*$")
    """The device's own part of its topics: Tasmota topic, Shelly prefix, Zigbee2MQTT name."""
    points: tuple[Point, ...] = Field(default=(), max_length=POINTS_MAX)
    """Only for make "other"."""
    role: Role = "grid"
    """Which line the device measures: the connection, a generator's, or a user's."""
    is_reversed: bool = False
    """Mounted the other way round: power changes its sign, the registers their places."""
    stale_after_s: float = Field(default=90, ge=2, le=3_600)
    """A topic that is silent for longer makes the device lost [s]."""
    wait_s: float = Field(default=1.0, ge=0, le=30)
    """How long a read waits for what is missing or stale [s]."""

    @model_validator(mode="after")
    def _is_complete(self) -> MqttConfig:
        if (self.make == "other") != bool(self.points):
            raise ValueError('give points with make "other", and only then')
        if any("{topic}" in point.topic for point in self.points_needed) and not self.topic:
            raise ValueError("topic is missing; give the device's own part of its topics")
        has = {point.quantity for point in self.points_needed}
        for quantity in needed_by(self.role, self.is_reversed):
            if quantity not in has:
                raise ValueError(f"role {self.role!r} needs a point for {quantity!r}")
        if self.password_file is not None and self.user is None:
            raise ValueError("password_file without a user; add user")
        return self

    @property
    def points_needed(self) -> tuple[Point, ...]:
        """The points that the role needs, with their whole topics."""
        needed = needed_by(self.role, self.is_reversed)
        described = MAKES.get(self.make, self.points)
        return tuple(
            point.model_copy(update={"topic": point.topic.replace("{topic}", self.topic)})
            if self.topic
            else point
            for point in described
            if point.quantity in needed
        )


class MqttSource:
    """
    A device that speaks on a foreign broker; listens from the first `read` on.

    Args:
        monotonic_s: process time, for ages
    """

    def __init__(
        self,
        config: MqttConfig,
        password: str | None = None,
        *,
        rng: Rng | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._monotonic_s = monotonic_s
        self._by_topic: dict[str, list[Point]] = {}
        for point in config.points_needed:
            self._by_topic.setdefault(point.topic, []).append(point)
        self._listener = Listener(
            config.host,
            config.port,
            list(self._by_topic),
            self._take,
            rng or SystemRng(),
            user=config.user,
            password=password,
        )
        self._heard: dict[str, dict[Quantity, Decimal]] = {}
        self._heard_at_s: dict[str, float] = {}
        self._refusals: dict[str, tuple[float, DeviceRefusedError]] = {}
        self._registers = {topic: Registers() for topic in self._by_topic}
        self._came = asyncio.Event()
        self.refused = 0
        """Messages that were dropped so far."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What the device's line is."""
        return frozenset({self._config.role})

    async def read(self) -> Sample:
        """
        The newest values of all topics together.

        Raises:
            DeviceLostError: no broker, or a topic is silent for too long.
            DeviceRefusedError: the newest message of a topic says what cannot be (WentBackError: a
                register that went back).
        """
        self._listener.start()
        if self._silent() is not None and self._refusal() is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.wait_s):
                    while self._silent() is not None:
                        self._came.clear()
                        await self._came.wait()
        refusal = self._refusal()
        if refusal is not None:
            raise refusal.with_traceback(None)  # it may be raised many times
        silent = self._silent()
        if silent is not None:
            why = self._listener.trouble or f"{silent} is silent"
            raise DeviceLostError(f"nothing for {self._config.stale_after_s} s: {why}")
        quantities: dict[Quantity, Decimal] = {}
        for heard in self._heard.values():
            for quantity, value in heard.items():
                quantities[quantity] = quantities.get(quantity, Decimal(0)) + value
        return sample_of(
            self._config.role, quantities, self._config.is_reversed, {"model": self._config.make}
        )

    def close(self) -> None:
        """Leave the broker."""
        self._listener.close()

    def _silent(self) -> str | None:
        """A topic that has not said anything lately."""
        latest_s = self._monotonic_s() - self._config.stale_after_s
        for topic in self._by_topic:
            if self._heard_at_s.get(topic, latest_s - 1) < latest_s:
                return topic
        return None

    def _refusal(self) -> DeviceRefusedError | None:
        """Why the newest message of a topic was dropped, if it is young."""
        latest_s = self._monotonic_s() - self._config.stale_after_s
        young = (error for at_s, error in self._refusals.values() if at_s >= latest_s)
        return next(young, None)

    def _take(self, message: Message) -> None:
        if message.retained or message.topic not in self._by_topic:
            return
        try:
            quantities = _read(message.payload, self._by_topic[message.topic])
            self._registers[message.topic].check(quantities)
        except DeviceRefusedError as error:
            self.refused += 1
            named = type(error)(f"{message.topic}: {error}")
            self._refusals[message.topic] = (self._monotonic_s(), named)
        else:
            self._refusals.pop(message.topic, None)
            self._heard[message.topic] = quantities
            self._heard_at_s[message.topic] = self._monotonic_s()
        self._came.set()


def source_for(config: MqttConfig, folder: Path = Path()) -> MqttSource:
    """
    The driver of a `[[devices]]` entry; connects with its first read.

    Args:
        folder: where the provisioning file is; `password_file` is relative to it

    Raises:
        ConfigError: the password cannot be read, or others may read it.
    """
    if config.password_file is None:
        return MqttSource(config)
    path = folder / config.password_file
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read the password of {config.name}; chmod 600")
        return MqttSource(config, path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the password of {config.name} cannot be read ({error}); write it there"
        ) from None


def _read(payload: bytes, points: list[Point]) -> dict[Quantity, Decimal]:
    """
    The numbers of one message, those of a quantity added up [W], [Wh].

    Raises:
        DeviceRefusedError: too long, not JSON, or a number is missing or cannot be.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise DeviceRefusedError(f"{len(payload)} bytes are more than {PAYLOAD_BYTES_MAX}")
    try:
        said = json.loads(payload, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise DeviceRefusedError(f"not JSON: {str(error)[:80]}") from None
    found: dict[Quantity, Decimal] = {}
    for point in points:
        value = quantity_of(_follow(said, point.path), point.unit, point.path) * point.sign
        found[point.quantity] = found.get(point.quantity, Decimal(0)) + value
    return found


def _follow(said: Any, path: str) -> Any:
    for key in path.split("."):
        if isinstance(said, dict) and key in said:
            said = said[key]
        elif isinstance(said, list) and key.isdecimal() and len(key) < 5 and int(key) < len(said):
            said = said[int(key)]
        else:
            raise DeviceRefusedError(f"has no {path}")
    return said


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
