"""
The operators' console: one local page, a JSON endpoint it polls, and what monitoring needs.

    /              the page                    /api/live?since=CURSOR   what changed since a poll
    /report        the report so far           /api/summary             the day in one flat object
    /healthz       200 or 503 with reasons     /api/report              the report as JSON
    /metrics       Prometheus

Read-only, and bound to the loopback interface unless a password is given. Nothing is loaded from
elsewhere: plotly.js comes from the installed plotly package, fonts from the reader's system.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import plotly
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Receive, Scope, Send

from analytics.live import LiveView, Situation
from runtime.http import SecurityHeaders
from runtime.rate_limit import RateLimit

HERE = Path(__file__).parent
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_CURSOR = 64
GUESSES, GUESS_EVERY_S, MAX_GUESSERS = 10, 10, 1_000
"""Wrong passwords from one address: so many at once, then one in so many seconds."""

# plotly.js writes style attributes and one style element; scripts stay confined to our own files
POLICY = (
    "default-src 'none'; script-src 'self'{nonce}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY.format(nonce=""),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}

ReportSource = Callable[[], dict[str, Any]]


class JsonResponse(Response):
    """JSON by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return msgspec.json.encode(content)


class Password:
    """
    HTTP Basic authentication with one password (any user name), for pages off the loopback.

    Args:
        password: the only one
        monotonic_s: real time, by which guesses are counted
    """

    def __init__(self, app: ASGIApp, password: str, monotonic_s: Callable[[], float]) -> None:
        self._app = app
        self._password = password.encode()
        self._monotonic_s = monotonic_s
        self._guesses = RateLimit(GUESSES, 1 / GUESS_EVERY_S, MAX_GUESSERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what knows the password."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        given = _given(Headers(scope=scope))
        if given is None:
            return _password_needed()
        guesser = (scope.get("client") or ("",))[0]
        # before it is compared: else the answer would tell the right one all the same
        if not self._guesses.admit(guesser, self._monotonic_s()):
            wait = {"Retry-After": str(GUESS_EVERY_S)}
            return PlainTextResponse("too many wrong passwords\n", 429, wait)
        if not hmac.compare_digest(given, self._password):
            return _password_needed()
        self._guesses.give_back(guesser)
        return None


def _given(headers: Headers) -> bytes | None:
    """The password that a request shows, or None."""
    kind, _, encoded = headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except ValueError:
        return None


def _password_needed() -> Response:
    asks = {"WWW-Authenticate": 'Basic realm="Hearthgrid"'}
    return PlainTextResponse("password needed\n", 401, asks)


def build_app(
    view: LiveView,
    situation: Callable[[], Situation],
    report: ReportSource,
    *,
    password: str = "",
    hosts: tuple[str, ...] = (),
    monotonic_s: Callable[[], float] = time.monotonic,
) -> Starlette:
    """
    The console as an ASGI application.

    Args:
        view: answers polls
        situation: the moment
        report: builds the report so far (slow; runs in a thread)
        password: asked for when not empty
        hosts: names under which the page may be called, besides the loopback's
        monotonic_s: real time
    """
    middleware = [
        Middleware(SecurityHeaders, headers=HEADERS),
        Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *hosts]),
    ]
    if password:
        middleware.append(Middleware(Password, password=password, monotonic_s=monotonic_s))
    pages = _Pages(view, situation, report)
    routes = [
        Route("/", pages.console),
        Route("/report", pages.report_page),
        Route("/api/live", pages.live),
        Route("/api/summary", pages.summary),
        Route("/api/report", pages.report_json),
        Route("/healthz", pages.healthz),
        Route("/metrics", pages.metrics),
        Route("/plotly.min.js", pages.plotly),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    return Starlette(routes=routes, middleware=middleware)


class _Pages:
    def __init__(
        self, view: LiveView, situation: Callable[[], Situation], report: ReportSource
    ) -> None:
        self._view, self._situation, self._report = view, situation, report
        self._templates = Jinja2Templates(directory=HERE / "templates")

    async def console(self, request: Request) -> Response:
        return self._templates.TemplateResponse(
            request, "console.html", {"market": self._view.facts.market}
        )

    async def live(self, request: Request) -> Response:
        cursor = request.query_params.get("since", "")[:MAX_CURSOR]
        return JsonResponse(self._view.answer(cursor, self._situation()))

    async def summary(self, _request: Request) -> Response:
        return JsonResponse(self._view.summary(self._situation()))

    async def report_json(self, _request: Request) -> Response:
        return JsonResponse(await run_in_threadpool(self._report))

    async def report_page(self, _request: Request) -> Response:
        from analytics.report_page import render_html  # noqa: PLC0415 needed by few

        nonce = secrets.token_urlsafe(16)
        text = await run_in_threadpool(lambda: render_html(self._report(), nonce=nonce))
        policy = POLICY.format(nonce=f" 'nonce-{nonce}'")
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    async def healthz(self, _request: Request) -> Response:
        state = self._view.answer_health(self._situation())
        return JsonResponse(state, 503 if state["state"] == "down" else 200)

    async def metrics(self, _request: Request) -> Response:
        body = generate_latest() + generate_latest(self._gauges())
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    async def plotly(self, _request: Request) -> Response:
        headers = {"Cache-Control": "public, max-age=86400"}
        return FileResponse(PLOTLY_JS, media_type="text/javascript", headers=headers)

    def _gauges(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        summary = self._view.summary(self._situation())
        for key, name, meaning in (
            ("height", "hearthgrid_ledger_height", "Height of the latest known block"),
            ("tradedWh", "hearthgrid_day_traded_wh", "Energy traded locally in this day [Wh]"),
            ("flexWh", "hearthgrid_day_flexibility_wh", "Energy bought in auctions today [Wh]"),
            ("finalityP50Ms", "hearthgrid_finality_p50_ms", "Median proposal to finality [ms]"),
            ("finalityP95Ms", "hearthgrid_finality_p95_ms", "95th percentile of finality [ms]"),
            ("homesOnline", "hearthgrid_homes_online", "Homes that say they are online"),
        ):
            Gauge(name, meaning, registry=registry).set(summary[key])
        by_market = Gauge(
            "hearthgrid_day_market_wh", "Energy traded today [Wh]", ["market"], registry=registry
        )
        for kind, sums in summary["markets"].items():
            by_market.labels(kind).set(sums["energyWh"])
        return registry
