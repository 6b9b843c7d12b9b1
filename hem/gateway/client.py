"""
The EMS's side of the gateway's socket.

    gateway = GatewayClient(provisioning.gateway.socket)
    state = await gateway.state()

One connection, many questions in flight; a lost connection is made anew by the next question. Every
failure is a `GatewayError` with the gateway's code, or UNAVAILABLE / TIMEOUT of our own.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from hem.gateway.protocol import PART_CHARS_MAX, RESPONSE_BYTES_MAX
from wire.errors import HearthgridError

TIMEOUT_S = 10.0
PART_BYTES = PART_CHARS_MAX // 4 * 3
VERIFY_S = 120.0
"""The gateway checks a repository's metadata anew before it installs [real s]."""


class GatewayError(HearthgridError):
    """The gateway did not do what was asked; `code` says why."""

    def __init__(self, code: str, message: str = "") -> None:
        self.code = code
        super().__init__(f"{code}: {message}" if message else code)


class GatewayClient:
    """
    Asks a gateway.

    Args:
        path: its socket
        timeout_s: how long an answer may take [real s]
    """

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._next_id = 1
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def public_keys(self) -> dict[str, str]:
        """`{"meter": key}`: the meter key's public half, base64url."""
        return await self._dict("public_keys")

    async def pseudonym(self, label: str) -> dict[str, str]:
        """`{"key": key}`: the meter's pseudonym for an address or `validator:<id>`."""
        return await self._dict("pseudonym", label=label)

    async def nameplate(self) -> dict[str, str]:
        """The meter's type, vendor, model, serial and firmware, as it tells them itself."""
        return await self._dict("nameplate")

    async def state(self) -> dict[str, Any]:
        """Powers [W], registers [Wh], state of charge, battery limits, health of the devices."""
        return await self._dict("state")

    async def sign_reading(self, slot: int) -> dict[str, Any]:
        """`{"reading", "sealed"}` of a slot that has ended; the same answer every time."""
        return await self._dict("sign_reading", slot=slot)

    async def sign_receipt(self, address: str, slot: int) -> dict[str, Any]:
        """The receipt (JSON) of a slot for an address."""
        return await self._dict("sign_receipt", address=address, slot=slot)

    async def attest_cpf(self, validator: str, start_slot: int, end_slot: int) -> dict[str, Any]:
        """The CPF attestation (JSON) of a window, both ends inclusive."""
        return await self._dict(
            "attest_cpf", validator=validator, start_slot=start_slot, end_slot=end_slot
        )

    async def set_battery(self, power_w: int, lease_s: int) -> dict[str, int]:
        """Fix the battery's power (+ discharge) for real seconds; `{"accepted_w"}`."""
        return await self._dict("set_battery", power_w=power_w, lease_s=lease_s)

    async def release_battery(self) -> None:
        """End the lease now: the battery is back in its own mode."""
        await self._dict("release_battery")

    async def hand_over(self, name: str, content: bytes) -> None:
        """Give the gateway a file of a firmware repository, part by part."""
        for offset in range(0, max(1, len(content)), PART_BYTES):
            part = base64.b64encode(content[offset : offset + PART_BYTES]).decode()
            await self._dict("firmware_part", name=name, offset=offset, data=part)

    async def install_firmware(self, name: str) -> dict[str, Any]:
        """Verify what was handed over and begin to write it: `firmware_status`."""
        return _facts("firmware_install", await self.call("firmware_install", VERIFY_S, name=name))

    async def firmware_status(self) -> dict[str, Any]:
        """`{state: none|writing|starting|done|failed, version, written, length, why}`."""
        return await self._dict("firmware_status")

    async def attest_firmware(self, nonce: str) -> dict[str, Any]:
        """The attestation (JSON) of the firmware on the meter's plate, read now."""
        return await self._dict("attest_firmware", nonce=nonce)

    async def wait_ready(self, timeout_s: float) -> None:
        """
        Return once the gateway answers (it may be starting).

        Raises:
            GatewayError: not within `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while True:
            try:
                await self.public_keys()
            except GatewayError as error:
                if error.code not in ("UNAVAILABLE", "TIMEOUT") or loop.time() > deadline_s:
                    raise
                await asyncio.sleep(0.05)
            else:
                return

    async def close(self) -> None:
        """Hang up."""
        if self._listener is not None:
            self._listener.cancel()
            with suppress(asyncio.CancelledError):
                await self._listener
        self._drop("UNAVAILABLE", "closed")

    async def call(self, method: str, timeout_s: float | None = None, **params: Any) -> Any:
        """
        Ask anything.

        Args:
            timeout_s: where an answer may take longer than usual [real s]

        Raises:
            GatewayError: by code.
        """
        await self._connect()
        assert self._writer is not None
        number, self._next_id = self._next_id, self._next_id + 1
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        question = {"id": number, "method": method, "params": params}
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                self._writer.write(msgspec.json.encode(question) + b"\n")
                await self._writer.drain()
                return await future
        except TimeoutError:
            raise GatewayError(
                "TIMEOUT", f"{method} took longer than {timeout_s or self._timeout_s} s"
            ) from None
        except (ConnectionError, RuntimeError) as error:
            raise GatewayError("UNAVAILABLE", str(error)) from None
        finally:
            self._waiting.pop(number, None)

    async def _dict(self, method: str, **params: Any) -> dict[str, Any]:
        return _facts(method, await self.call(method, **params))

    async def _connect(self) -> None:
        async with self._connecting:
            if self._writer is not None and not self._writer.is_closing():
                return
            try:
                reader, writer = await asyncio.open_unix_connection(
                    self._path, limit=RESPONSE_BYTES_MAX
                )
            except OSError as error:
                raise GatewayError("UNAVAILABLE", str(error)) from None
            self._writer = writer
            self._listener = asyncio.create_task(self._listen(reader, writer))

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                self._take(msgspec.json.decode(line))
        except (ConnectionError, ValueError, RecursionError, msgspec.DecodeError):
            pass  # a broken stream is a lost connection
        if writer is self._writer:
            self._drop("UNAVAILABLE", "the gateway hung up")

    def _take(self, answer: Any) -> None:
        if not isinstance(answer, dict):
            return
        number = answer.get("id", 0)
        future = self._waiting.get(number) if type(number) is int else None
        error = answer.get("error")
        if future is None or future.done():
            if isinstance(error, dict) and answer.get("id") == 0:
                self._drop(str(error.get("code")), str(error.get("message")))
        elif isinstance(error, dict):
            failure = GatewayError(str(error.get("code")), str(error.get("message")))
            future.set_exception(failure)
        else:
            future.set_result(answer.get("result"))

    def _drop(self, code: str, message: str) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(GatewayError(code, message))


def _facts(method: str, result: Any) -> dict[str, Any]:
    if not isinstance(result, dict):
        raise GatewayError("BAD_ANSWER", f"{method} answered {type(result).__name__}")
    return result
