"""Whoever opens connections to one of our HTTP servers and says nothing shuts nobody out."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from support.patience import PATIENCE_S

from runtime import http_protocol
from runtime.http import MAX_CONNECTIONS, listen, serving
from runtime.http_protocol import PER_HOST

STRANGER, NEIGHBOUR, PROXY = "127.0.0.2", "127.0.0.3", "127.0.0.1"
ASK = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HALF = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"


@pytest.fixture
async def port(tmp_path):
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{len(await request.body())}")

    listener = listen("127.0.0.1", 0, "test")
    number = listener.getsockname()[1]
    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    async with serving(app, listener, tmp_path / "url"):
        yield number


async def opened(port, source, said=b""):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(said)
    return reader, writer


async def status(port, source):
    reader, writer = await opened(port, source, ASK)
    async with asyncio.timeout(PATIENCE_S):
        line = await reader.readline()
    writer.close()
    return line.split(b" ")[1:2]


async def test_who_keeps_connections_open_has_a_share_of_them(port):
    silent = [await opened(port, STRANGER) for _ in range(MAX_CONNECTIONS + 10)]
    assert await status(port, NEIGHBOUR) == [b"200"]
    async with asyncio.timeout(PATIENCE_S):
        ended = [await reader.read() for reader, _ in silent[PER_HOST:]]
    assert ended == [b""] * len(ended)
    for _, writer in silent:
        writer.close()


async def test_silent_connections_from_many_addresses_make_room_for_who_asks(port):
    sources = [f"127.0.0.{number}" for number in range(10, 20)]
    silent = [await opened(port, source) for source in sources for _ in range(PER_HOST)]
    assert len(silent) > 2 * MAX_CONNECTIONS
    assert [await status(port, NEIGHBOUR) for _ in range(3)] == [[b"200"]] * 3
    for _, writer in silent:
        writer.close()


@pytest.mark.parametrize("said", [b"", b"G", HALF], ids=["nothing", "a letter", "half a body"])
async def test_a_request_that_does_not_come_is_not_waited_for(port, said, monkeypatch):
    """Also where one address is all there is, as behind a proxy."""
    monkeypatch.setattr(http_protocol, "REQUEST_WAIT_S", 0.5)
    silent = [await opened(port, PROXY, said) for _ in range(MAX_CONNECTIONS + 5)]
    async with asyncio.timeout(PATIENCE_S):
        for reader, _ in silent:
            await reader.read()
        while await status(port, PROXY) != [b"200"]:
            await asyncio.sleep(0.05)


async def test_requests_one_after_the_other_keep_their_connection(port):
    reader, writer = await opened(port, NEIGHBOUR)
    for _ in range(PER_HOST + 5):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(1)
    writer.close()
