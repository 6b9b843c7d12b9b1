"""
The CSM-DB's door: HTTPS for those whom the broker does not let in yet, and for brokers.

    POST /requests/<identity>   a sealed request (`wire.enrolment`); the sealed answer, or 204
    GET  /facts                 market and the public keys that requests are sealed to
    GET  /ca.crt                the authority's certificate
    GET  /revoked               the signed list of revoked keys (`wire.revoked_keys`)
    GET  /crl.pem               the same for X.509

Nobody says who he is here: a request proves that by itself, and what is fetched is public. A
request passes limits by network address, and none that is named by what the request claims: else
anybody could use up a home's allowance in its name. No broker needs a client without a certificate
for a home to get its first one (ADR 0011).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from csmdb.pki import pem_of
from csmdb.revoked_keys import revocation_list
from csmdb.service import CsmDbService
from csmdb.setup import FACTS, CsmDb
from csmdb.tls import CA_CERTIFICATE, open_authority, render_crl
from runtime.http import SecurityHeaders
from runtime.metrics import count_refusal
from runtime.rate_limit import RateLimit
from runtime.tls import write_key
from wire.canonical import MAX_MESSAGE_BYTES, encode
from wire.errors import Refusal
from wire.keys import is_id
from wire.revoked_keys import dump_list

COMPONENT = "csmdb-door"
BURST, PER_S, MAX_ASKERS = 60.0, 10.0, 10_000
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
CERTIFICATE, KEY = "tls-door.crt", "tls-door.key"


def build_door(service: CsmDbService, *, burst: float = BURST) -> Starlette:
    """The door as an ASGI application, before a running service."""
    door = _Door(service, RateLimit(burst, PER_S, MAX_ASKERS))
    return Starlette(
        routes=[
            Route("/requests/{identity}", door.take, methods=["POST"]),
            Route("/facts", door.show(_facts, "application/json")),
            Route("/ca.crt", door.show(_authority, "application/x-pem-file")),
            Route("/revoked", door.show(_revoked, "application/json")),
            Route("/crl.pem", door.show(render_crl, "application/x-pem-file")),
        ],
        middleware=[Middleware(SecurityHeaders, headers=HEADERS)],
    )


def write_door_certificate(csmdb: CsmDb, names: tuple[str, ...]) -> None:
    """Key and certificate of the door, made anew at every start."""
    key = Ed25519PrivateKey.generate()
    authority = open_authority(csmdb.folder)
    certificate = authority.server(key.public_key(), names, csmdb.clock.wall_ms())
    (csmdb.folder / CERTIFICATE).write_bytes(pem_of(certificate))
    write_key(csmdb.folder / KEY, key)


class _Door:
    def __init__(self, service: CsmDbService, rate: RateLimit) -> None:
        self._service, self._csmdb, self._rate = service, service.csmdb, rate

    async def take(self, request: Request) -> Response:
        if not self._admit(request):
            return _too_often()
        asker = str(request.path_params["identity"])
        raw = await _body(request)
        if raw is None or not is_id(asker):
            refusal = Refusal.OVERSIZED if raw is None else Refusal.MALFORMED
            count_refusal(COMPONENT, refusal)
            return Response(refusal.value, 413 if raw is None else 400)
        sealed = self._service.answer(asker, raw, f"{_host(request)} {asker}")
        if sealed is None:
            return Response(status_code=204)
        return Response(sealed, media_type="application/octet-stream")

    def show(
        self, made: Callable[[CsmDb], bytes], kind: str
    ) -> Callable[[Request], Awaitable[Response]]:
        """The handler of something public."""

        async def handle(request: Request) -> Response:
            if not self._admit(request):
                return _too_often()
            return Response(made(self._csmdb), media_type=kind)

        return handle

    def _admit(self, request: Request) -> bool:
        if self._rate.admit(_host(request), self._csmdb.clock.monotonic_s()):
            return True
        count_refusal(COMPONENT, Refusal.RATE_LIMITED)
        return False


def _host(request: Request) -> str:
    return request.client.host if request.client is not None else ""


async def _body(request: Request) -> bytes | None:
    """The body, bounded while it comes; None: too long."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_MESSAGE_BYTES:
            return None
    return bytes(raw)


def _too_often() -> Response:
    return Response(Refusal.RATE_LIMITED.value, 429, {"Retry-After": "1"})


def _facts(csmdb: CsmDb) -> bytes:
    facts = json.loads((csmdb.folder / FACTS).read_text())
    return encode({name: facts[name] for name in ("market", "issuingKey", "boxKey")})


def _authority(csmdb: CsmDb) -> bytes:
    return (csmdb.folder / CA_CERTIFICATE).read_bytes()


def _revoked(csmdb: CsmDb) -> bytes:
    return dump_list(revocation_list(csmdb))
