"""
One Modbus TCP connection, with bounded waits and two named errors.

pymodbus waits 3 s a try and reconnects with up to 300 s between tries; a home has to know sooner.
Here a request waits `timeout_s` once (TCP already repeats what is lost), a silent connection is
closed so that a late answer cannot meet the next question, and the next request connects anew.
Devices of one host and port share a connection: many inverters accept only one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from wire.errors import HearthgridError

REGISTERS_MAX = 125
"""Most registers of one read (Modbus application protocol 6.3)."""

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # we log a loss once, it does per request


class DeviceError(HearthgridError):
    """A device did not do what we asked."""


class DeviceLostError(DeviceError):
    """No connection, or no answer in time."""


class DeviceRefusedError(DeviceError):
    """The device answered with an exception, or with something else than was asked."""


class ModbusLink:
    """
    A connection to `host`:`port`, made when first needed.

    Args:
        timeout_s: how long to wait for a connection or an answer [real s]
    """

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._client = AsyncModbusTcpClient(
            host, port=port, timeout=timeout_s, retries=0, reconnect_delay=0
        )
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()

    async def read(
        self,
        device_id: int,
        address: int,
        count: int,
        table: Literal["holding", "input"] = "holding",
    ) -> list[int]:
        """
        Holding or input registers.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        holding = table == "holding"
        client = self._client
        call = client.read_holding_registers if holding else client.read_input_registers
        response = await self._ask(call, address, count=count, device_id=device_id)
        registers: list[int] = response.registers
        if len(registers) != count:
            raise DeviceRefusedError(f"asked for {count} registers, got {len(registers)}")
        return registers

    async def write(self, device_id: int, address: int, values: list[int]) -> None:
        """
        Write holding registers in one request.

        Raises:
            DeviceLostError, DeviceRefusedError.
        """
        await self._ask(self._client.write_registers, address, values, device_id=device_id)

    def close(self) -> None:
        """Drop the connection."""
        self._client.close()

    async def _ask(self, call: Any, *arguments: Any, **options: Any) -> Any:
        async with self._lock:
            try:
                async with asyncio.timeout(2 * self._timeout_s):  # connecting and asking
                    if not self._client.connected and not await self._client.connect():
                        raise DeviceLostError("no connection")
                    response = await call(*arguments, **options)
            except (ModbusException, TimeoutError, OSError) as error:
                self._client.close()
                raise DeviceLostError(str(error) or type(error).__name__) from None
        if response is None or response.isError():
            raise DeviceRefusedError(f"the device answered {response}")
        return response
