"""
The local HTTP API of a ledger node, for wallets and explorers, and the explorer's page at `/`.

Read-only, and without secrets: what a chain folder holds is known to the whole market. What may be
asked stands in `ledger.api_table`; `/openapi.json` says it to programs.

A request must not hold up consensus, which runs in the same process. Files are read by two threads,
through connections of their own that are open for reading only; what is asked at once, how often,
and how much one answer holds is bounded. Refusals are `application/problem+json` with a name.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ledger import chain_reader, proofs
from ledger.allowance import Allowance
from ledger.api_models import Code, Health, Model, NodeFacts, PeerFacts, PeerList
from ledger.api_table import ENDPOINTS, Endpoint, RefusedError, openapi
from ledger.genesis import Genesis, genesis_json
from ledger.node_view import Live
from ledger.proof_facts import facts_of
from ledger.prover import NotProvableError, Prover
from ledger.store import LedgerStore
from runtime.http import SecurityHeaders
from runtime.ports import Clock
from wire.errors import WireError

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
READERS = 2
MAX_WAITING = 32
"""Requests that may wait for a reader."""
PER_S, BURST = 50.0, 200.0
"""Allowance of one address; a page of the explorer takes about ten."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
T = TypeVar("T")
Answer = Model | Response | dict[str, Any]


def build_app(
    genesis: Genesis,
    folder: Path,
    clock: Clock,
    live: Live | None = None,
    *,
    anywhere: bool = False,
) -> Starlette:
    """
    The API and the explorer as an ASGI application.

    Args:
        folder: of the chain; only read
        live: the running node; without one, peers and proofs of the state are refused
        anywhere: answer under any host name, for a page off the loopback interface
    """
    api = _Api(genesis, folder, clock, live)
    return Starlette(
        routes=[
            Route("/", api.page),
            *(Route(one.route, api.endpoint(one), methods=["GET"]) for one in ENDPOINTS),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(SecurityHeaders, headers=HEADERS),
            Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if anywhere else LOOPBACK),
        ],
        exception_handlers={HTTPException: _http_problem, RefusedError: _refused},
    )


class _Api:
    def __init__(self, genesis: Genesis, folder: Path, clock: Clock, live: Live | None) -> None:
        self._genesis = genesis
        self._folder = folder
        self._clock = clock
        self._live = live
        self._allowance = Allowance(PER_S, BURST)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-api")
        self._waiting = 0

    def endpoint(self, one: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The handler of an endpoint: allowance and parameters first, then what it answers."""
        answer: Callable[..., Awaitable[Answer]] = getattr(self, one.name)

        async def handle(request: Request) -> Response:
            asker = request.client.host if request.client is not None else ""
            wait_s = self._allowance.take(asker, one.cost, self._clock.monotonic_s())
            if wait_s:
                raise RefusedError(429, Code.RATE_LIMITED, f"ask again in {math.ceil(wait_s)} s")
            query = dict(request.query_params)
            values = one.read(request.path_params, query)
            return _response(await answer(**{f"{name}_": v for name, v in values.items()}))

        return handle

    async def page(self, _request: Request) -> Response:
        """The explorer."""
        return FileResponse(STATIC / "explorer.html", media_type="text/html; charset=utf-8")

    # --- Endpoints; parameters end in _ because `from` is a word of the language ------------------

    async def status(self) -> Answer:
        node = self._live.facts() if self._live is not None else None
        return await self._read(lambda store: chain_reader.status(self._genesis, store, node))

    async def healthz(self) -> Answer:
        facts = self._live.facts() if self._live is not None else None
        reasons = [] if facts is None or facts.connected else ["no connection to the broker"]
        height = 0
        try:
            height = await self._read(lambda store: store.height)
        except RefusedError as error:
            reasons.append(error.problem.detail)
        health = Health(state="down" if reasons else "ok", reasons=reasons, height=height)
        return _response(health, 503 if reasons else 200)

    async def genesis(self) -> Answer:
        return genesis_json(self._genesis)

    async def openapi(self) -> Answer:
        return openapi()

    async def blocks(self, from_: int | None, limit_: int) -> Answer:
        return await self._read(lambda store: chain_reader.blocks(store, from_, limit_))

    async def block(self, height_: int, offset_: int) -> Answer:
        found = await self._read(lambda store: chain_reader.block(store, height_, offset_))
        return _there(
            found, f"block {height_}: not here; /status says from where to where they are"
        )

    async def transaction(self, txid_: str) -> Answer:
        txid = bytes.fromhex(txid_)
        found = await self._read(lambda store: chain_reader.transaction(store, txid))
        return _there(found, f"transaction {txid_}: not in a block; was it refused or expired?")

    async def account(self, address_: str) -> Answer:
        return await self._read(lambda store: chain_reader.account(store, address_))

    async def validators(self) -> Answer:
        return await self._read(lambda store: chain_reader.validators(self._genesis, store))

    async def epoch(self) -> Answer:
        return await self._read(lambda store: chain_reader.epoch(self._genesis, store))

    async def evidence(self) -> Answer:
        return await self._read(chain_reader.evidence)

    async def peers(self) -> Answer:
        live, now_ms = self._node(), self._clock.wall_ms()
        heard = live.peers()
        wanted = await self._read(lambda store: chain_reader.validator_ids(self._genesis, store))
        known = {one.id for one in heard}
        facts: NodeFacts = live.facts()
        return PeerList(
            node=facts.id,
            peers=[
                PeerFacts(
                    id=one.id,
                    last_heard_ms=one.heard_ms,
                    silent_ms=max(0, now_ms - one.heard_ms),
                    votes=one.votes,
                    kind=one.kind,
                    epoch=one.epoch,
                    view=one.view,
                    height=one.height,
                )
                for one in heard
            ],
            silent=[name for name in wanted if name not in known],
        )

    async def prove_state(self, key_: str, format_: str) -> Answer:
        live = self._node()
        try:
            proof = live.prove_row(key_)
        except NotProvableError as error:
            raise RefusedError(409, Code.NOT_PROVABLE, str(error)) from None
        return _proof(proof, format_)

    async def prove_receipt(self, txid_: str, format_: str) -> Answer:
        txid = bytes.fromhex(txid_)
        return _proof(await self._read(lambda store: Prover(store).receipt(txid)), format_)

    async def prove_inclusion(self, txid_: str, format_: str) -> Answer:
        txid = bytes.fromhex(txid_)
        return _proof(await self._read(lambda store: Prover(store).inclusion(txid)), format_)

    # --- Reading ----------------------------------------------------------------------------------

    def _node(self) -> Live:
        if self._live is None:
            raise RefusedError(503, Code.NO_NODE, "no node is running here: ledger run --http")
        return self._live

    async def _read(self, question: Callable[[LedgerStore], T]) -> T:
        """
        Ask the store in a thread.

        Raises:
            RefusedError: too many wait, the file cannot be read, or it is not provable.
        """
        if self._waiting >= MAX_WAITING:
            raise RefusedError(503, Code.BUSY, "too much is asked at once; ask again")
        self._waiting += 1
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._ask, question)
        except NotProvableError as error:
            raise RefusedError(409, Code.NOT_PROVABLE, str(error)) from None
        except (sqlite3.Error, WireError) as error:
            raise RefusedError(503, Code.UNREADABLE, f"the chain's file: {error}") from None
        finally:
            self._waiting -= 1

    def _ask(self, question: Callable[[LedgerStore], T]) -> T:
        with chain_reader.reading(self._folder) as store:
            return question(store)


def _there(found: T | None, detail: str) -> T:
    if found is None:
        raise RefusedError(404, Code.NOT_FOUND, detail)
    return found


def _proof(proof: proofs.Proof, form: str) -> Answer:
    facts = facts_of(proof)
    if form == "json":
        return facts
    name = f"{facts.kind}-{facts.height}.proof"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(proofs.encode(proof), 200, headers, media_type="application/octet-stream")


def _response(answer: Answer, status: int = 200) -> Response:
    if isinstance(answer, Response):
        return answer
    if isinstance(answer, Model):
        body: str | bytes = answer.model_dump_json(by_alias=True)
    else:
        body = msgspec.json.encode(answer)
    return Response(body, status, media_type="application/json")


def _problem(error: RefusedError) -> Response:
    problem = error.problem
    headers = {"Retry-After": "1"} if problem.status in (429, 503) else {}
    body = problem.model_dump_json(by_alias=True)
    return Response(body, problem.status, headers, media_type="application/problem+json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _problem(error)


async def _http_problem(request: Request, error: Exception) -> Response:
    """What starlette refuses: no such path, another method than GET."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return _problem(RefusedError(405, Code.METHOD_NOT_ALLOWED, "this API only answers GET"))
    if error.status_code == 404:
        detail = f"{request.url.path[:80]}: not here; /openapi.json says what is"
        return _problem(RefusedError(404, Code.NOT_FOUND, detail))
    return _problem(RefusedError(error.status_code, Code.BAD_PARAMETER, error.detail))
