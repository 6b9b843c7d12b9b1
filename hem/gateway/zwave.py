"""
Z-Wave meters through a running zwave-js-server: the values of the Meter command class.

One command is all that is needed: `node.poll_value` has the server ask the meter over the air and
answers with what it said, so every value is as old as its answer. (Listening instead begins with a
dump of the whole network, megabytes that a small computer has to hold, of values as old as nobody
knows; the client library of that name does so, and speaks one schema version only.) The air is
shared and slow, so a meter is asked every `poll_every_s` seconds; in between `read` hands out the
last answers.

Sources: zwave-js-server README ("Poll value", schema 1 and up); Z-Wave Meter command class, version
4: a value's key is meter type (1, electric) · 65,536 + scale (0 kWh, 2 W) · 256 + rate type (1
consumed, 2 produced).
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from hem.config import Name, Port, Section
from hem.gateway.background import BackgroundReader
from hem.gateway.figures import (
    Quantity,
    Registers,
    Role,
    Unit,
    needed_by,
    quantity_of,
    sample_of,
)
from hem.gateway.modbus import DeviceError, DeviceLostError, DeviceRefusedError
from hem.gateway.source import Sample
from wire.errors import ConfigError

METER_CC = 0x32
KWH_CONSUMED = 0x01_00_01
KWH_PRODUCED = 0x01_00_02
W_CONSUMED = 0x01_02_01
"""Signed in meters that know two directions."""
SCHEMA_MAX = 44
"""The newest protocol version that was looked at; the one command is the same in all."""
MESSAGE_BYTES_MAX = 64 * 1024
INSTALL = "kind 'zwave' needs websockets: pip install 'hearthgrid[zwave]'"


class ZwaveConfig(Section):
    """A `[[devices]]` entry of kind "zwave"."""

    kind: Literal["zwave"] = "zwave"
    name: Name
    host: str = "127.0.0.1"
    """Of the zwave-js-server."""
    port: Port = 3000
    """Of that server."""
    node: int = Field(ge=1, le=4_000)
    """The meter's node id (Z-Wave Long Range goes up to 4,000)."""
    endpoint: int = Field(default=0, ge=0, le=127)
    """Of a node with several meters."""
    role: Role = "grid"
    """Which line the meter measures: the connection, a generator's, or a user's."""
    is_reversed: bool = False
    """Mounted the other way round: power changes its sign, the registers their places."""
    power_key: int = Field(default=W_CONSUMED, ge=0, le=0xFF_FF_FF)
    """Property key of the power, where the meter has it elsewhere."""
    forward_key: int = Field(default=KWH_CONSUMED, ge=0, le=0xFF_FF_FF)
    """As `power_key`, of the register of import or generation."""
    backward_key: int = Field(default=KWH_PRODUCED, ge=0, le=0xFF_FF_FF)
    """As `power_key`, of the register of export."""
    poll_every_s: float = Field(default=10, ge=1, le=600)
    """Pause between two rounds of questions over the air [s]."""
    answer_s_max: float = Field(default=10, ge=1, le=60)
    """How long the server and the meter may take to answer one question [s]."""
    stale_after_s: float = Field(default=60, ge=2, le=3_600)
    """Answers older than this are not handed out [s]."""
    wait_s: float = Field(default=1.0, ge=0, le=30)
    """How long a read waits for answers when there are no young ones [s]."""


class ZwaveSource(BackgroundReader[Sample]):
    """
    A meter behind a zwave-js-server; the questions begin with the first `read`.

    Args:
        monotonic_s: process time, for ages

    Raises:
        ConfigError: websockets is not installed.
    """

    def __init__(
        self, config: ZwaveConfig, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        try:
            self._connect: Callable[..., Any] = importlib.import_module(
                "websockets.asyncio.client"
            ).connect
        except ImportError:
            raise ConfigError(INSTALL) from None
        super().__init__(config.stale_after_s, config.wait_s, monotonic_s)
        self._config = config
        self._registers = Registers()
        self._trouble: DeviceError | None = None

    @property
    def capabilities(self) -> frozenset[str]:
        """What the meter's line is."""
        return frozenset({self._config.role})

    async def read(self) -> Sample:
        """
        The last answers, all of one round.

        Raises:
            DeviceLostError: no server, or no answer lately.
            DeviceRefusedError: the server refuses the question, or the last answer cannot be
                (WentBackError: a register that went back).
        """
        self._begin()
        if not self._is_young() and not isinstance(self._trouble, DeviceRefusedError):
            await self._wait()
        if isinstance(self._trouble, DeviceRefusedError):
            raise self._trouble.with_traceback(None)  # it may be raised many times
        if not self._is_young():
            why = self._trouble or "the meter has not answered yet"
            raise DeviceLostError(f"nothing for {self._config.stale_after_s} s: {why}")
        assert self._newest is not None, "what is young is there"
        return self._newest

    def _lose(self, error: Exception) -> None:
        if isinstance(error, DeviceRefusedError):
            self._trouble = error
        else:
            self._trouble = DeviceLostError(str(error) or type(error).__name__)
        self._came.set()

    async def _talk(self) -> None:
        """
        Ask round after round on one connection.

        Raises:
            DeviceRefusedError: an answer that is not one. Anything else: the connection is gone.
        """
        config = self._config
        uri = f"ws://{config.host}:{config.port}"
        options: dict[str, Any] = {
            "max_size": MESSAGE_BYTES_MAX,
            "max_queue": 4,
            "open_timeout": config.answer_s_max,
            "close_timeout": 1,
            "proxy": None,
            "compression": None,
        }
        async with self._connect(uri, **options) as socket:
            exchange = _Exchange(socket, config.answer_s_max)
            await exchange.greet()
            while True:
                try:
                    await self._round(exchange)
                    self._trouble = None
                except _UnansweredError as error:  # the meter sleeps or is away; the server is not
                    self._trouble = DeviceLostError(str(error))
                except DeviceRefusedError as error:
                    self._trouble = error
                self._came.set()
                await asyncio.sleep(config.poll_every_s)

    async def _round(self, exchange: _Exchange) -> None:
        config = self._config
        points: dict[Quantity, tuple[int, Unit]] = {
            "power": (config.power_key, "W"),
            "forward": (config.forward_key, "kWh"),
            "backward": (config.backward_key, "kWh"),
        }
        quantities: dict[Quantity, Decimal] = {}
        for quantity in needed_by(config.role, config.is_reversed):
            key, unit = points[quantity]
            result = await exchange.ask(
                "node.poll_value",
                nodeId=config.node,
                valueId={
                    "commandClass": METER_CC,
                    "endpoint": config.endpoint,
                    "property": "value",
                    "propertyKey": key,
                },
            )
            if not isinstance(result, dict) or "value" not in result:
                raise DeviceRefusedError(f"the meter has no {quantity} value (key {key})")
            quantities[quantity] = quantity_of(result["value"], unit, f"{quantity} (key {key})")
        self._registers.check(quantities)
        details = {"model": f"Z-Wave node {config.node}"}
        self._keep(sample_of(config.role, quantities, config.is_reversed, details))


class _UnansweredError(DeviceLostError):
    """The server says that the meter did not answer."""


class _Exchange:
    """Questions and answers on one websocket, one at a time."""

    def __init__(self, socket: Any, answer_s_max: float) -> None:
        self._socket = socket
        self._answer_s_max = answer_s_max
        self._asked = 0

    async def greet(self) -> None:
        """
        Agree on a protocol version.

        Raises:
            DeviceRefusedError: this is not a zwave-js-server, or one from the future.
        """
        async with asyncio.timeout(self._answer_s_max):
            version = await self._receive()
        oldest, newest = version.get("minSchemaVersion"), version.get("maxSchemaVersion")
        if version.get("type") != "version" or not isinstance(oldest, int):
            raise DeviceRefusedError("the server did not greet as a zwave-js-server does")
        if oldest > SCHEMA_MAX or not isinstance(newest, int):
            raise DeviceRefusedError(f"the server speaks schema {oldest} and up, not {SCHEMA_MAX}")
        await self.ask("set_api_schema", schemaVersion=min(newest, SCHEMA_MAX))

    async def ask(self, command: str, **arguments: Any) -> Any:
        """
        The result of a command; what is said meanwhile is skipped.

        Raises:
            TimeoutError: no answer. DeviceRefusedError: a refusal, or nonsense.
            _UnansweredError: the server asked in vain.
        """
        self._asked += 1
        message_id = str(self._asked)
        question = {"messageId": message_id, "command": command, **arguments}
        async with asyncio.timeout(self._answer_s_max):
            await self._socket.send(json.dumps(question))
            while True:
                answer = await self._receive()
                if answer.get("messageId") == message_id:
                    break
        if answer.get("success") is True:
            return answer.get("result")
        code = str(answer.get("errorCode", "unknown_error"))[:40]
        why = str(answer.get("zwaveErrorMessage", answer.get("message", "")))[:120]
        if code == "zwave_error":
            raise _UnansweredError(f"the meter did not answer: {why}")
        raise DeviceRefusedError(f"the server refuses {command}: {code} {why}".strip())

    async def _receive(self) -> dict[str, Any]:
        text = await self._socket.recv()
        try:
            said = json.loads(text, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise DeviceRefusedError(f"not JSON: {str(error)[:80]}") from None
        if not isinstance(said, dict):
            raise DeviceRefusedError("not a JSON object")
        return said


def source_for(config: ZwaveConfig) -> ZwaveSource:
    """
    The driver of a `[[devices]]` entry; connects with its first read.

    Raises:
        ConfigError: websockets is not installed.
    """
    return ZwaveSource(config)
