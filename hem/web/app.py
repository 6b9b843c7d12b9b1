"""
The household's page over HTTP.

    /            now                 /trades      orders, outcome, price
    /today       charts of the day   /decisions   what was decided, and why
    /wallet      money; CSV          /rank        CPF among validators' homes
    /devices     status, nameplate   /policy      editor with check
    /backup      backup, version     /login, /start, POST /logout
    /api/now, /api/today             what the pages' scripts read

Without a password set, only `/start` is served. Every page but `/login` and `/start` needs a
session; every POST needs a form of ours (`hem.web.access`), its Origin and a bounded body. Nothing
is loaded from elsewhere: plotly.js is the installed package's own file, and the package itself is
not imported. `/api/health` and `/metrics` belong to monitoring: under our names too, but without a
session; `/metrics`, which tells the balance, to this machine only unless the owner opened it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from datetime import tzinfo
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Receive, Scope, Send

from hem.web import views
from hem.web.access import (
    CODE_BYTES,
    PASSWORD_CHARACTERS_MIN,
    SESSION_S,
    TOKEN_BYTES,
    Credentials,
    Guesses,
    Sessions,
    code_holds,
    hash_password,
    host_allowed,
    origin_allowed,
    password_holds,
    why_unfit,
)
from hem.web.policy_file import (
    check_policy_text,
    read_policy_text,
    save_policy_text,
    stamp_of,
)
from hem.web.port import Household
from runtime.http import SecurityHeaders
from runtime.ports import Rng
from wire.errors import ConfigError

HERE = Path(__file__).parent
METRICS = "/metrics"
MONITORING = frozenset({"/api/health", METRICS})
METRICS_REFUSED = PlainTextResponse(
    "Log in, ask from this home's own machine, or set http.metrics in its file.\n", 403
)
LOOPBACK = frozenset({"localhost"})
SESSION, VISIT = "hem_session", "hem_visit"
BODY_BYTES_MAX = 64 * 1024
FIELDS_MAX = 8
BODY_WITHIN_S = 20.0
CHUNK_BYTES = 256 * 1024
SETTLED_SHOWN = 96
TRADES_SHOWN = 48
DECISIONS_SHOWN = 96
MAP_STYLE = "'sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o='"
"""The one style element that plotly.js 4.1 adds as it loads, for maps; we draw none."""
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' {MAP_STYLE}; "
        "img-src 'self' data:; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: with that a browser says `Origin: null` of our own forms
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
TOO_MANY = "Too many attempts. Please wait half a minute and try again."

log = structlog.get_logger(component="page")
Handler = Callable[[Request], Awaitable[Response]]
Form = dict[str, str]


def application(
    household: Household,
    credentials: Credentials,
    rng: Rng,
    monitoring: ASGIApp,
    names: tuple[str, ...] = (),
    zone: tzinfo | None = None,
    now_s: Callable[[], float] = time.monotonic,
    *,
    metrics_open: bool = False,
) -> ASGIApp:
    """
    The page as an ASGI application.

    Args:
        monitoring: answers `/api/health` and `/metrics`, as it did without a page
        names: under which the page may be called, besides localhost and any address
        zone: in which times are shown; the machine's own when None
        now_s: seconds that never go back
        metrics_open: `/metrics` is for all, not for this machine and who is logged in only
    """
    page = _Page(household, credentials, rng, zone, now_s)
    handlers = {404: page.not_found, HTTPException: page.refused}
    inner = Starlette(routes=list(_routes(page)), exception_handlers=handlers)
    ours = LOOPBACK | {name.lower() for name in names}
    guarded = SecurityHeaders(_Guard(inner, ours), HEADERS)
    watched = _Guard(monitoring if metrics_open else page.for_monitor(monitoring), ours)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        chosen = watched if scope.get("path") in MONITORING else guarded
        await chosen(scope, receive, send)

    return answer


class _Guard:
    """Refuses other names than ours, and forms that come from other pages."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be asked here."""
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not host_allowed(host, self._names):
            text = "This home is not known under that name; see http.names in its file.\n"
            return PlainTextResponse(text, 421)
        if request.method in ("GET", "HEAD"):
            return None
        if not origin_allowed(request.headers.get("origin", ""), host):
            return PlainTextResponse("That form did not come from this page.\n", 403)
        return None


def _routes(page: _Page) -> Iterator[BaseRoute]:
    for path, handler in (
        ("/", page.now), ("/api/now", page.api_now), ("/today", page.today),
        ("/api/today", page.api_today), ("/wallet", page.wallet), ("/wallet.csv", page.wallet_csv),
        ("/trades", page.trades), ("/rank", page.rank), ("/devices", page.devices),
        ("/decisions", page.decisions), ("/policy", page.policy), ("/backup", page.backup),
    ):  # fmt: skip
        yield Route(path, page.for_owner(handler), methods=["GET"])
    for path, taker in (
        ("/policy", page.take_policy), ("/backup", page.take_backup), ("/logout", page.take_logout),
    ):  # fmt: skip
        yield Route(path, page.form_of_owner(taker), methods=["POST"])
    yield Route("/login", page.login, methods=["GET"])
    yield Route("/login", page.form_of_visitor(page.take_login), methods=["POST"])
    yield Route("/start", page.start, methods=["GET"])
    yield Route("/start", page.form_of_visitor(page.take_start), methods=["POST"])
    yield Route("/plotly.min.js", page.plotly, methods=["GET"])
    yield Mount("/static", StaticFiles(directory=HERE / "static"))


class _Page:
    """The handlers, and who is let in."""

    def __init__(
        self,
        household: Household,
        credentials: Credentials,
        rng: Rng,
        zone: tzinfo | None,
        now_s: Callable[[], float],
    ) -> None:
        self._home, self._credentials, self._rng = household, credentials, rng
        self._zone, self._now_s = zone, now_s
        self._sessions = Sessions(rng.bytes(TOKEN_BYTES))
        self._guesses = Guesses()
        self._hashing = asyncio.Lock()
        self._templates = Jinja2Templates(directory=HERE / "templates")
        self._templates.env.globals.update(
            home=household.name, money=views.money, kwh=views.kwh, price=views.price
        )
        self._tell_code()

    # --- Who is let in -----------------------------------------------------------------------

    def for_owner(self, handler: Handler) -> Handler:
        """Only with a session; others are shown the way in."""

        async def guarded(request: Request) -> Response:
            if self._knows(request):
                return await handler(request)
            way_in = "/login" if self._credentials.password is not None else "/start"
            if request.url.path.startswith("/api/"):
                return JSONResponse({"error": "login"}, 401)
            return RedirectResponse(way_in, 303)

        return guarded

    def form_of_owner(self, taker: Callable[[Request, Form], Awaitable[Response]]) -> Handler:
        """Only with a session, and from a form that was made for it."""

        async def guarded(request: Request) -> Response:
            if not self._knows(request):
                return RedirectResponse("/login", 303)
            return await taker(request, await self._form(request, SESSION))

        return guarded

    def form_of_visitor(self, taker: Callable[[Request, Form], Awaitable[Response]]) -> Handler:
        """From a form that was made for this visitor, who need not be known."""

        async def guarded(request: Request) -> Response:
            return await taker(request, await self._form(request, VISIT))

        return guarded

    def for_monitor(self, monitoring: ASGIApp) -> ASGIApp:
        """`/metrics` for this machine, and for who has a session."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope)
            told = scope["path"] != METRICS or on_this_machine(request) or self._knows(request)
            await (monitoring if told else METRICS_REFUSED)(scope, receive, send)

        return guarded

    def _knows(self, request: Request) -> bool:
        cookie = request.cookies.get(SESSION, "")
        return self._sessions.holds(cookie, self._credentials.password, self._now_s())

    async def _form(self, request: Request, cookie: str) -> Form:
        """
        The fields of a form of ours.

        Raises:
            HTTPException: too large, too slow, or not made for the bearer of this cookie.
        """
        try:
            async with asyncio.timeout(BODY_WITHIN_S):
                raw = await _bounded_body(request)
            fields = parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX)
        except TimeoutError:
            raise HTTPException(408, "That took too long.") from None
        except ValueError:
            raise HTTPException(400, "That form cannot be read.") from None
        form = {name: values[0] for name, values in fields.items()}
        if not self._sessions.form_token_holds(request.cookies.get(cookie, ""), form.get("t", "")):
            raise HTTPException(403, "This form is too old. Open the page anew and try again.")
        return form

    async def _guess(self, request: Request, holds: Callable[[], bool]) -> bool:
        """
        Try a secret: off the loop, one at a time, and not often.

        Raises:
            HTTPException: tried too often.
        """
        address = request.client.host if request.client else ""
        if not self._guesses.admit(address, self._now_s()):
            log.warning("too many guesses at the page's password", address=address)
            raise HTTPException(429, TOO_MANY, {"Retry-After": "30"})
        async with self._hashing:
            return await run_in_threadpool(holds)

    def _tell_code(self) -> None:
        code = self._credentials.ensure_code(self._rng.bytes(CODE_BYTES))
        if code:
            log.warning("the page has no password yet: open it and enter this code", code=code)

    # --- The way in ----------------------------------------------------------------------------

    async def login(self, request: Request) -> Response:
        if self._credentials.password is None:
            return RedirectResponse("/start", 303)
        if self._knows(request):
            return RedirectResponse("/", 303)
        return self._entrance(request, "login.html")

    async def take_login(self, request: Request, form: Form) -> Response:
        hashed = self._credentials.password
        if hashed is None:
            return RedirectResponse("/start", 303)
        given = form.get("password", "")
        if not await self._guess(request, lambda: password_holds(hashed, given)):
            return self._entrance(request, "login.html", "That is not the password.", 403)
        return self._let_in(hashed)

    async def start(self, request: Request) -> Response:
        if self._credentials.password is not None:
            return RedirectResponse("/login", 303)
        self._tell_new_code()
        return self._entrance(request, "start.html")

    async def take_start(self, request: Request, form: Form) -> Response:
        if self._credentials.password is not None:
            return RedirectResponse("/login", 303)
        code, given = self._credentials.code, form.get("code", "")
        if not await self._guess(request, lambda: code_holds(code, given)):
            return self._entrance(request, "start.html", "That is not the code.", 403)
        password = form.get("password", "")
        problem = why_unfit(password, form.get("again", ""))
        if problem:
            return self._entrance(request, "start.html", problem, 422)
        async with self._hashing:
            hashed = await run_in_threadpool(hash_password, password)
        if self._credentials.code != code:
            return RedirectResponse("/login", 303)  # somebody else with the code was faster
        self._credentials.set_password(hashed)
        log.info("the page's password is set")
        return self._let_in(hashed)

    async def take_logout(self, request: Request, _form: Form) -> Response:
        self._sessions.close(request.cookies.get(SESSION, ""))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(SESSION, httponly=True, samesite="strict")
        return answer

    def _tell_new_code(self) -> None:
        """After the password was forgotten there is no code yet."""
        if not self._credentials.code:
            self._tell_code()

    def _let_in(self, hashed: bytes) -> Response:
        cookie = self._rng.bytes(TOKEN_BYTES).hex()
        self._sessions.open(cookie, hashed, self._now_s())
        answer = RedirectResponse("/", 303)
        answer.set_cookie(SESSION, cookie, max_age=SESSION_S, httponly=True, samesite="strict")
        return answer

    def _entrance(
        self, request: Request, template: str, problem: str = "", status: int = 200
    ) -> Response:
        """A form for who is not known: its token goes with a cookie of its own."""
        cookie = request.cookies.get(VISIT, "")
        fresh = len(cookie) != 2 * TOKEN_BYTES
        if fresh:
            cookie = self._rng.bytes(TOKEN_BYTES).hex()
        facts = {
            "token": self._sessions.form_token(cookie),
            "problem": problem,
            "characters": PASSWORD_CHARACTERS_MIN,
        }
        answer = self._templates.TemplateResponse(request, template, facts, status)
        if fresh:
            answer.set_cookie(VISIT, cookie, max_age=86_400, httponly=True, samesite="strict")
        return answer

    # --- Looking -------------------------------------------------------------------------------

    async def now(self, request: Request) -> Response:
        view = views.now_view(await self._home.moment(), self._zone)
        return self._show(request, "now.html", now=view)

    async def api_now(self, _request: Request) -> Response:
        return JSONResponse(asdict(views.now_view(await self._home.moment(), self._zone)))

    async def today(self, request: Request) -> Response:
        first, last = views.today(self._home.now_ms(), self._home.grid, self._zone)
        rows = self._home.day(first, last)
        return self._show(
            request, "today.html",
            sums=views.today_sums(rows),
            slots=views.slot_lines(rows, self._home.grid, self._zone),
            has_plan=any(first <= row.slot <= last for row in self._home.plan()),
        )  # fmt: skip

    async def api_today(self, _request: Request) -> Response:
        home, now_ms = self._home, self._home.now_ms()
        first, last = views.today(now_ms, home.grid, self._zone)
        running = home.grid.slot_at(now_ms)
        prices = {slot: home.price(slot) for slot in range(first, last + 1)}
        chart = views.today_chart(
            home.day(first, last), home.expected(running, last), home.plan(),
            {slot: found for slot, found in prices.items() if found is not None},
            home.tariff, home.nameplate().battery_wh, home.grid, now_ms, self._zone,
        )  # fmt: skip
        return JSONResponse(chart)

    async def wallet(self, request: Request) -> Response:
        settled = self._home.settlements(SETTLED_SHOWN)
        lines = views.settled_lines(settled, self._home.grid, self._zone)
        return self._show(request, "wallet.html", account=self._home.account(), settled=lines)

    async def wallet_csv(self, _request: Request) -> Response:
        lines = views.settled_csv(self._home.settlements(None), self._home.grid)
        return StreamingResponse(
            lines, media_type="text/csv", headers=_attachment(f"{self._home.name}-settled.csv")
        )

    async def trades(self, request: Request) -> Response:
        found = [one for one in self._views(TRADES_SHOWN) if one.orders or one.contracted]
        return self._show(request, "trades.html", trades=found)

    async def decisions(self, request: Request) -> Response:
        return self._show(request, "decisions.html", decisions=self._views(DECISIONS_SHOWN))

    async def rank(self, request: Request) -> Response:
        lines = views.rank_lines(self._home.standings(), self._home.validator)
        ours = next((line for line in lines if line.ours), None)
        hosts = bool(self._home.validator)
        return self._show(request, "rank.html", lines=lines, ours=ours, hosts=hosts)

    async def devices(self, request: Request) -> Response:
        return self._show(
            request, "devices.html",
            devices=views.device_lines(self._home.devices()),
            plate=views.nameplate_lines(self._home.nameplate()),
        )  # fmt: skip

    def _views(self, count: int) -> list[views.TradeView]:
        home = self._home
        return [
            views.trade_view(
                row, home.contracted(row["slot"]), home.price(row["slot"]), home.grid, self._zone
            )
            for row in home.decisions(count)
        ]

    # --- The policy ----------------------------------------------------------------------------

    async def policy(self, request: Request) -> Response:
        try:
            text = await run_in_threadpool(read_policy_text, self._home.policy_file)
        except ConfigError as error:
            return self._editor(request, "", "", str(error), 500)
        return self._editor(request, text, stamp_of(text), saved="saved" in request.query_params)

    async def take_policy(self, request: Request, form: Form) -> Response:
        text = form.get("text", "").replace("\r\n", "\n")
        stamp = form.get("stamp", "")
        try:
            if form.get("do") == "save":
                await run_in_threadpool(save_policy_text, self._home.policy_file, text, stamp)
                log.info("the policy was saved from the page")
                return RedirectResponse("/policy?saved", 303)
            check_policy_text(self._home.policy_file, text)
        except ConfigError as error:
            return self._editor(request, text, stamp, str(error), 422)
        return self._editor(request, text, stamp, good=True)

    def _editor(
        self, request: Request, text: str, stamp: str, problem: str = "", status: int = 200,
        *, good: bool = False, saved: bool = False,
    ) -> Response:  # fmt: skip
        return self._show(
            request, "policy.html", status, text=text, stamp=stamp, good=good, saved=saved,
            problems=views.problem_lines(problem), file=self._home.policy_file.name,
            at_once=self._home.policy_at_once,
        )  # fmt: skip

    # --- Backup --------------------------------------------------------------------------------

    async def backup(self, request: Request) -> Response:
        return self._backup_page(request)

    async def take_backup(self, request: Request, form: Form) -> Response:
        hashed, given = self._credentials.password, form.get("password", "")
        assert hashed is not None, "there is a session"
        if not await self._guess(request, lambda: password_holds(hashed, given)):
            return self._backup_page(request, "That is not the password.", 403)
        try:
            size, chunks = await run_in_threadpool(self._make_backup)
        except ConfigError as error:
            log.warning("no backup", reason=str(error))
            return self._backup_page(request, "The backup could not be made; see the log.", 500)
        log.warning("a backup with this home's keys was downloaded from the page")
        day = views.moment_of(self._home.now_ms(), self._zone).strftime("%Y-%m-%d")
        head = {**_attachment(f"{self._home.name}-{day}.tar"), "Content-Length": str(size)}
        return StreamingResponse(chunks, media_type="application/x-tar", headers=head)

    def _make_backup(self) -> tuple[int, Iterator[bytes]]:
        """A backup's size and bytes; its file has no name any more, whatever happens then."""
        with tempfile.TemporaryDirectory(prefix="hem-backup-") as folder:
            target = Path(folder) / "backup.tar"
            self._home.back_up(target)
            return target.stat().st_size, _chunks(target.open("rb"))

    def _backup_page(self, request: Request, problem: str = "", status: int = 200) -> Response:
        return self._show(
            request, "backup.html", status, problem=problem, version=_version()
        )  # fmt: skip

    # --- Everything else -----------------------------------------------------------------------

    async def plotly(self, _request: Request) -> Response:
        headers = {"Cache-Control": "public, max-age=86400"}
        return FileResponse(_plotly_js(), media_type="text/javascript", headers=headers)

    async def not_found(self, request: Request, _error: Exception) -> Response:
        return self._templates.TemplateResponse(
            request, "message.html", {"title": "Not found", "text": "There is no such page."}, 404
        )

    async def refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        facts = {"title": "That did not work", "text": error.detail}
        return self._templates.TemplateResponse(
            request, "message.html", facts, error.status_code, error.headers
        )

    def _show(self, request: Request, template: str, status: int = 200, **facts: Any) -> Response:
        """A page of the owner's."""
        token = self._sessions.form_token(request.cookies.get(SESSION, ""))
        here = request.url.path
        return self._templates.TemplateResponse(
            request, template, {**facts, "token": token, "here": here}, status
        )


def on_this_machine(request: Request) -> bool:
    """
    Whether the request began on this machine.

    A proxy beside us speaks for others: the server takes their address from `X-Forwarded-For`.
    """
    if request.client is None:
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


async def _bounded_body(request: Request) -> bytes:
    """
    What was posted.

    Raises:
        HTTPException: more than a form of ours has.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_BYTES_MAX:
            raise HTTPException(413, "That is too much.")
    return bytes(raw)


def _attachment(name: str) -> dict[str, str]:
    """Save, not show; the name has no letter that a header minds (`hem.config.Name`)."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _plotly_js() -> Path:
    """The file of the installed package, without importing it: that would take 30 MB."""
    found = find_spec("plotly")
    assert found is not None, "a dependency of ours"
    assert found.origin is not None
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


def _version() -> str:
    try:
        return version("hearthgrid")
    except PackageNotFoundError:
        return "unknown"
