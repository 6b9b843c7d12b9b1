"""
The gateway's door: a Unix socket for its own user (and, where configured, the EMS's).

A caller's user comes from the kernel (SO_PEERCRED), not from what it says. Lines, connections and
requests in flight are bounded; nothing a caller sends ends the process, and a caller that does not
read its answers is dropped.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hem.gateway.protocol import (
    REQUEST_BYTES_MAX,
    Params,
    RpcError,
    error_line,
    read_request,
    request_id,
    result_line,
)

CONNECTIONS_MAX = 16
IN_FLIGHT_MAX = 16
WRITE_TIMEOUT_S = 5.0
LEFTOVER_S = 0.5
LEFTOVER_BYTES_MAX = 256 * 1024
_UCRED = struct.Struct("3i")  # pid, uid, gid (socket(7))

Dispatch = Callable[[str, Params], Awaitable[Any]]
"""Answers a method, or raises RpcError."""


class RpcServer:
    """
    Serves `dispatch` on a socket.

    Args:
        path: of the socket; a stale one is replaced
        uids: users that may ask
        on_error: told of an unexpected exception of `dispatch`
        on_alone: told when the last caller has hung up
    """

    def __init__(
        self,
        path: Path,
        uids: frozenset[int],
        dispatch: Dispatch,
        on_error: Callable[[str, Exception], None],
        on_alone: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._uids = uids
        self._dispatch = dispatch
        self._on_error, self._on_alone = on_error, on_alone
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen. The socket is our user's alone, or our group's where the EMS is another user."""
        self._path.unlink(missing_ok=True)
        shared = any(uid != os.getuid() for uid in self._uids)
        before = os.umask(0o117 if shared else 0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, self._path, limit=REQUEST_BYTES_MAX
            )
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Close the door."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks: set[asyncio.Task[None]] = set()
        self._writers.add(writer)
        try:
            if _peer_uid(writer) not in self._uids:
                await _turn_away(reader, writer, RpcError("NOT_ALLOWED", "not your gateway"))
                return
            if len(self._writers) > CONNECTIONS_MAX:
                await _turn_away(reader, writer, RpcError("BUSY", "too many connections"))
                return
            await self._read_requests(reader, writer, tasks)
        except (ConnectionError, TimeoutError):
            pass  # the caller went away, or does not read: its loss
        except asyncio.CancelledError:
            pass  # we are stopping; the stream server has nobody to tell
        finally:
            self._writers.discard(writer)
            for task in tasks:
                task.cancel()
            writer.close()
            if not self._writers:
                self._on_alone()

    async def _read_requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tasks: set[asyncio.Task[None]],
    ) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than the limit: where the next line begins is unknown
                await _turn_away(reader, writer, RpcError("OVERSIZED", "request too long"))
                return
            if not line.endswith(b"\n"):
                return
            if len(tasks) >= IN_FLIGHT_MAX:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._answer(line, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            number, method, params = read_request(line)
            answer = result_line(number, await self._dispatch(method, params))
        except RpcError as error:
            answer = error_line(request_id(line), error)
        except Exception as error:
            self._on_error(line[:200].decode(errors="replace"), error)
            internal = RpcError("INTERNAL", f"the gateway failed: {type(error).__name__}")
            answer = error_line(request_id(line), internal)
        try:
            await _send(writer, answer)
        except (ConnectionError, TimeoutError):
            writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await writer.drain()


async def _turn_away(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: RpcError
) -> None:
    """
    Say why, then hang up.

    Closing with bytes unread would reset the connection and could take our answer with it, so
    what is under way is read first, for a moment and up to a limit.
    """
    await _send(writer, error_line(0, error))
    writer.write_eof()
    left = LEFTOVER_BYTES_MAX
    with suppress(TimeoutError):
        async with asyncio.timeout(LEFTOVER_S):
            while left > 0 and (data := await reader.read(left)):
                left -= len(data)


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid
