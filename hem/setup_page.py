"""
`hem setup`: a page for this machine on which devices are chosen, tried out and added.

    GET  /            the page; with `?token=…`, once, the way in
    GET  /api/form    the products with their fields, the devices that are there, the CSRF token
    POST /api/test    reads a device as filled in (`hem.gateway.check`); writes nothing to it
    POST /api/add     appends it to the provisioning file (`hem.setup_file`)

Who may: whoever opened the address that was printed, which works once; a cookie (HttpOnly,
SameSite=Strict) from then on. Every POST carries the CSRF token in a header, and an Origin of ours
where the browser sends one. The Host header has to be ours, or a name that is bound anew to this
address could read the page (DNS rebinding). Nothing inline, nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import secrets
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from hem.config import Device, Provisioning, load_provisioning
from hem.gateway.check import Notes, alone, label, read_device, shown
from hem.gateway.devices import Site
from hem.gateway.form import Entry, FormError, checked, products, toml_of
from hem.private import make_data_folder
from hem.setup_file import add_device
from runtime.http import SecurityHeaders, listen, serving, url_of
from runtime.log import configure
from wire.errors import ConfigError

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
COOKIE = "hem-setup"
CSRF = "x-csrf-token"
TOKEN_BYTES = 24
BODY_BYTES_MAX = 16_384
READ_PAUSE_S = 0.3
"""Between the reads of a test: somebody is waiting."""
URL_FILE = "setup.url"
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
    "Cache-Control": "no-store",
}

Handler = Callable[[Request], Awaitable[Response]]


class RefusedError(Exception):
    """An answer other than what was asked for."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


class Access:
    """One way in, one session."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._session = secrets.token_urlsafe(TOKEN_BYTES)
        self.csrf = secrets.token_urlsafe(TOKEN_BYTES)
        self._used = False

    def enter(self, token: str) -> str | None:
        """The session for the token; None where it is another, or was used."""
        if self._used or not _same(token, self.token):
            return None
        self._used = True
        return self._session

    def admits(self, request: Request) -> bool:
        """Does the request carry the session?"""
        return _same(request.cookies.get(COOKIE, ""), self._session)

    def check(self, request: Request) -> None:
        """
        Let a request with our session pass, and a POST with our CSRF token and Origin.

        Raises:
            RefusedError: it does not carry them.
        """
        if not self.admits(request):
            raise RefusedError(403, "open the address that `hem setup` printed")
        if request.method == "GET":
            return
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers.get('host', '')}":
            raise RefusedError(403, "another page's request")
        if not _same(request.headers.get(CSRF, ""), self.csrf):
            raise RefusedError(403, "the CSRF token is not this page's; load it anew")


def build_app(provisioning: Path, access: Access, hosts: tuple[str, ...] = ()) -> Starlette:
    """
    The page as an ASGI application.

    Args:
        provisioning: the file that devices are added to
        hosts: names under which the page may be called, besides the loopback's
    """
    setup = _Setup(provisioning, access)
    return Starlette(
        routes=[
            Route("/", setup.page),
            Route("/api/form", setup.guarded(setup.form)),
            Route("/api/test", setup.guarded(setup.test), methods=["POST"]),
            Route("/api/add", setup.guarded(setup.add), methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(SecurityHeaders, headers=HEADERS),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *hosts]),
        ],
    )


class _Setup:
    def __init__(self, provisioning: Path, access: Access) -> None:
        self._provisioning = provisioning
        self._access = access
        self._busy = asyncio.Lock()  # one device at a time, and one writer

    def guarded(self, handler: Handler) -> Handler:
        """Access first; what is refused is said in JSON."""

        async def handle(request: Request) -> Response:
            try:
                self._access.check(request)
                return await handler(request)
            except RefusedError as error:
                return JSONResponse({"error": str(error)}, error.status)
            except FormError as error:
                return JSONResponse({"wrong": error.wrong}, 422)
            except ConfigError as error:
                return JSONResponse({"error": str(error)}, 409)

        return handle

    async def page(self, request: Request) -> Response:
        """The page for who has the session; the way in for who has the token."""
        if self._access.admits(request):
            return FileResponse(STATIC / "setup.html", media_type="text/html; charset=utf-8")
        session = self._access.enter(request.query_params.get("token", ""))
        if session is None:
            text = "Open the address that `hem setup` printed. It works once; start it again.\n"
            return PlainTextResponse(text, 403)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, session, httponly=True, samesite="strict", path="/")
        return answer

    async def form(self, _request: Request) -> Response:
        """What can be filled in."""
        config = load_provisioning(self._provisioning)
        devices = [{"name": one.name, "kind": one.template or one.kind} for one in config.devices]
        return JSONResponse(
            {
                "home": config.home.name,
                "file": self._provisioning.name,
                "csrf": self._access.csrf,
                "devices": devices,
                "products": [each.to_json() for each in products()],
            }
        )

    async def test(self, request: Request) -> Response:
        """Read the device as it is filled in."""
        entry = await _entry(request)
        device = _device(entry)
        async with self._busy:
            config = load_provisioning(self._provisioning)
            with alone(config):
                report = await read_device(device, config, READ_PAUSE_S)
        values = [
            {"label": label(name), "text": shown(name, value)}
            for name, value in report.values.items()
        ]
        return JSONResponse({**report.to_json(), "values": values, "entry": toml_of(entry)})

    async def add(self, request: Request) -> Response:
        """Append the device to the file."""
        entry = await _entry(request)
        device = _device(entry)
        async with self._busy:
            config = load_provisioning(self._provisioning)
            if any(device.name == one.name for one in config.devices):
                raise FormError({"name": "is another device's; give it its own"})
            self._check_used(config, device)
            backup = add_device(self._provisioning, entry)
        return JSONResponse(
            {"added": entry["name"], "backup": backup.name, "entry": toml_of(entry)}
        )

    def _check_used(self, config: Provisioning, device: Device) -> None:
        """
        Let a device pass that the gateway would use, as far as that shows without its answer.

        Raises:
            ConfigError: it would be disabled.
        """
        site = Site([*config.devices, device], config.gateway.timeout_s, Notes(),
                    folder=config.home.data_dir.parent)  # fmt: skip
        site.close()
        why = site.disabled.get(device.name)
        if why is not None:
            raise ConfigError(
                f"{device.name!r} would not be used: {why}; see {self._provisioning.name}"
            )


def run_setup(provisioning: Path, host: str, port: int, tell: Callable[[str], None]) -> None:
    """
    Serve the page until SIGTERM or SIGINT.

    Args:
        host: an address of this machine
        tell: takes the address to open

    Raises:
        ConfigError: before anything is served.
    """
    config = load_provisioning(provisioning)
    log = configure("setup")
    if _is_wildcard(host):
        raise ConfigError(f"--host: {host} is every address; give the one that is to be called")
    listener = listen(host, port, "--port", "--host")
    if host not in LOOPBACK and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        log.warning("the page is plain HTTP: who listens on that network can take it over")
    access = Access()
    app = build_app(provisioning, access, (f"[{host}]" if ":" in host else host,))
    make_data_folder(config.home.data_dir)
    url_file = config.home.data_dir / URL_FILE

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with serving(app, listener, url_file):
            tell(f"{url_of(listener)}?token={access.token}")
            await stop.wait()

    asyncio.run(serve())


async def _entry(request: Request) -> Entry:
    """
    The entry that a request asks about.

    Raises:
        RefusedError: not such a request. FormError: not such an entry.
    """
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise RefusedError(415, "expected JSON")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise RefusedError(413, f"more than {BODY_BYTES_MAX} bytes")
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "not JSON") from None
    answers = asked.get("answers") if isinstance(asked, dict) else None
    if not isinstance(answers, dict) or not isinstance(asked.get("product"), str):
        raise RefusedError(400, "expected product and answers")
    return checked(asked["product"], answers)


def _device(entry: Entry) -> Device:
    """
    The entry as the home will read it.

    Raises:
        FormError: it will not.
    """
    try:
        return Device.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = str(first["loc"][0]) if first["loc"] else "product"
        raise FormError({key: first["msg"].removeprefix("Value error, ")}) from None


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(), known.encode())
