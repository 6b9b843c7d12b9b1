"""
The CSM-DB's HTTP API for operators. What may be asked stands in `csmdb.api_table`.

A call passes, in this order: rate limit by address, route, token, role, parameters, body. Every
call under a token, and every one refused for want of one, is a row of the audit log; a change and
the row of its call are one transaction. What the rate limit refuses is counted, not logged: a flood
must not fill the log. Refusals are `application/problem+json` with a name.

It runs on the loop and the connection of the service, so that both see one database.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from csmdb import advisories, privacy
from csmdb import api_models as models
from csmdb.api_models import Code, Model, Problem
from csmdb.api_table import ENDPOINTS, MAX_BODY_BYTES, QUERY, Endpoint, openapi
from csmdb.audit import AuditBrokenError
from csmdb.knowledge_rows import KnowledgeRows
from csmdb.product_names import Alias
from csmdb.records import Participant, Person
from csmdb.revoked_keys import revoke
from csmdb.setup import CsmDb
from csmdb.storage import StorageDownError
from csmdb.succession import re_enrol
from csmdb.tokens import find_token
from runtime.http import SecurityHeaders
from runtime.metrics import count_refusal
from runtime.rate_limit import RateLimit
from wire.errors import ConfigError, Refusal, WireError
from wire.keys import is_id

COMPONENT = "csmdb"
BURST, PER_S, MAX_ASKERS = 60.0, 10.0, 10_000
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
NOBODY = "http"
"""The actor of a call without a token that counts."""
_STATUS = {
    Refusal.MALFORMED: (400, Code.MALFORMED),
    Refusal.FUTURE_DATED: (400, Code.FUTURE_DATED),
    Refusal.ROLLED_BACK: (409, Code.ROLLED_BACK),
    Refusal.OVERSIZED: (413, Code.OVERSIZED),
}
"""Of documents that are refused."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """A call that is not answered; carries the problem."""

    def __init__(self, status: int, code: Code, detail: str) -> None:
        super().__init__(detail)
        title = code.value.replace("_", " ").capitalize()
        self.problem = Problem(title=title, status=status, code=code, detail=detail)


def build_app(
    csmdb: CsmDb, names: tuple[str, ...] = (), *, burst: float = BURST, per_s: float = PER_S
) -> Starlette:
    """
    The API as an ASGI application.

    Args:
        names: host names it answers under, beside those of the loopback interface
    """
    api = _Api(csmdb, RateLimit(burst, per_s, MAX_ASKERS))
    return Starlette(
        routes=[Route(one.path, api.endpoint(one), methods=[one.method]) for one in ENDPOINTS],
        middleware=[
            Middleware(SecurityHeaders, headers=HEADERS),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *names]),
        ],
        exception_handlers={HTTPException: api.no_route},
    )


class _Api:
    def __init__(self, csmdb: CsmDb, rate: RateLimit) -> None:
        self._csmdb = csmdb
        self._rows = csmdb.repository
        self._rate = rate

    def endpoint(self, one: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The handler of an endpoint."""

        async def handle(request: Request) -> Response:
            try:
                return await take(request)
            except StorageDownError as error:
                return _problem(RefusedError(503, Code.BUSY, str(error)))

        async def take(request: Request) -> Response:
            actor = NOBODY
            try:
                self._admit(request)
                actor = self._actor(request, one)
                words = _parameters(request, one)
                if one.body is not None:
                    words["body"] = await _body(request, one.body)
                if one.document:
                    words["document"] = await _raw(request, one.document)
                return self._do(one, actor, words, _subject(request))
            except RefusedError as error:
                return self._refuse(one, actor, _subject(request), error)

        return handle

    async def no_route(self, request: Request, error: Exception) -> Response:
        """What starlette refuses: no such path, another method."""
        assert isinstance(error, HTTPException)
        code = Code.METHOD_NOT_ALLOWED if error.status_code == 405 else Code.NOT_FOUND
        try:
            self._admit(request)
        except RefusedError as refused:
            return _problem(refused)
        self._log(NOBODY, "http unknown", code.value, "")
        return _problem(RefusedError(error.status_code, code, "/openapi.json says what is here"))

    # --- the course of a call -------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        asker = request.client.host if request.client is not None else ""
        if not self._rate.admit(asker, self._csmdb.clock.monotonic_s()):
            count_refusal(COMPONENT, Refusal.RATE_LIMITED)
            raise RefusedError(429, Code.RATE_LIMITED, "ask again in a second")

    def _actor(self, request: Request, one: Endpoint) -> str:
        if not one.roles:
            return NOBODY
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        token = find_token(self._csmdb, text) if scheme.lower() == "bearer" else None
        if token is None:
            raise RefusedError(401, Code.NO_TOKEN, "a token of `csmdb token new` is needed")
        if token.role not in one.roles:
            code = Code.NOT_ALLOWED.value
            self._log(f"token/{token.id}", _action(one), code, _subject(request))
            raise RefusedError(403, Code.NOT_ALLOWED, f"for {', '.join(one.roles)}")
        return f"token/{token.id}"

    def _do(self, one: Endpoint, actor: str, words: dict[str, Any], subject: str) -> Response:
        """Answer, with the row of the call in the same transaction where that can be."""
        answer: Callable[..., Model | dict[str, Any]] = getattr(self, one.name)
        if one.roles:
            words["actor"] = actor
        try:
            if not one.roles:
                found = answer(**words)
            elif one.own_transaction:
                found = answer(**words)
                self._log(actor, _action(one), "OK", subject)
            else:
                with self._rows.atomic():
                    found = answer(**words)
                    self._log(actor, _action(one), "OK", subject)
        except ConfigError as error:
            raise RefusedError(400, Code.BAD_PARAMETER, str(error)) from None
        except WireError as error:
            raise RefusedError(*_STATUS[error.refusal], str(error)[:300]) from None
        except (StorageDownError, AuditBrokenError) as error:
            raise RefusedError(503, Code.BUSY, str(error)) from None
        return _response(found, one.status)

    def _refuse(self, one: Endpoint, actor: str, subject: str, error: RefusedError) -> Response:
        code = error.problem.code
        # 403 was logged with its token; 429 must not be
        if one.roles and code not in (Code.NOT_ALLOWED, Code.RATE_LIMITED):
            self._log(actor, _action(one), code.value, subject)
        return _problem(error)

    def _log(self, actor: str, action: str, outcome: str, subject: str) -> None:
        now_ms = self._csmdb.clock.now_ms()
        with self._rows.atomic():
            self._rows.audit(now_ms, actor, action, outcome, "", subject=subject)

    # --- endpoints ------------------------------------------------------------------------------

    def healthz(self) -> Model:
        self._rows.next_serial_no()
        return models.Health(status="ok", market=self._csmdb.market)

    def openapi(self) -> dict[str, Any]:
        return openapi()

    def participants(self, after: str, limit: int, actor: str) -> Model:
        page = self._rows.participant_page(after, limit)
        last = page[-1].id if len(page) == limit else ""
        return models.ParticipantPage(participants=[_facts(one) for one in page], next=last)

    def participant(self, participant: str, actor: str) -> Model:
        return _facts(self._known(participant))

    def export(self, participant: str, actor: str) -> dict[str, Any]:
        self._known(participant)
        return privacy.export(self._csmdb, participant, actor)

    def put_person(self, participant: str, body: models.PersonFacts, actor: str) -> Model:
        self._known(participant)
        privacy.set_person(self._csmdb, participant, Person(**body.model_dump()), actor)
        return models.Done()

    def erase(self, participant: str, actor: str) -> Model:
        self._known(participant)
        return models.ErasedFacts(**asdict(privacy.erase(self._csmdb, participant, actor)))

    def ban(self, participant: str, body: models.BanOrder, actor: str) -> Model:
        self._known(participant)
        self._csmdb.ban(participant, body.reason, actor)
        return models.Done()

    def unban(self, participant: str, actor: str) -> Model:
        self._known(participant)
        self._csmdb.ban(participant, "", actor)
        return models.Done()

    def set_meter(self, participant: str, body: models.MakeOrder, actor: str) -> Model:
        self._known(participant)
        told = body.model_dump()
        return _review(advisories.set_make(self._csmdb, participant, **told, actor=actor))

    def advisories(self, actor: str) -> Model:
        shown = models.AdvisoryFacts.model_fields
        found = KnowledgeRows(self._rows.db).advisories()
        rows = [models.AdvisoryFacts(**{n: getattr(one, n) for n in shown}) for one in found]
        return models.AdvisoryList(advisories=rows)

    def import_advisory(self, document: bytes, actor: str) -> Model:
        done = advisories.import_document(self._csmdb, document, actor)
        facts = {"advisory": done.advisory, "revision": done.revision, "outcome": done.outcome}
        return models.ImportFacts.model_validate({**facts, "meters": self._look(actor).meters})

    def review(self, actor: str) -> Model:
        return self._look(actor)

    def aliases(self, actor: str) -> Model:
        found = KnowledgeRows(self._rows.db).aliases()
        return models.AliasList(aliases=[models.AliasFacts(**asdict(one)) for one in found])

    def put_alias(self, body: models.AliasFacts, actor: str) -> Model:
        advisories.say_alias(self._csmdb, Alias(**body.model_dump()), actor=actor)
        return self._look(actor)

    def drop_alias(self, body: models.AliasFacts, actor: str) -> Model:
        said = Alias(**body.model_dump())
        advisories.say_alias(self._csmdb, said, remove=True, actor=actor)
        return self._look(actor)

    def _look(self, actor: str) -> models.ReviewList:
        found = advisories.review_all(self._csmdb, actor)
        return models.ReviewList(meters=[_review(one) for one in found])

    def re_enrol(self, participant: str, body: models.RevocationOrder, actor: str) -> Model:
        self._known(participant)
        return models.ClaimCode(claim_code=re_enrol(self._csmdb, participant, body.reason, actor))

    def revoke(self, identity: str, body: models.RevocationOrder, actor: str) -> Model:
        if not is_id(identity):
            raise RefusedError(404, Code.NOT_FOUND, "nobody has this identity")
        return models.Revoked(number=revoke(self._csmdb, identity, body.reason, actor))

    def claims(self, actor: str) -> Model:
        found = self._rows.list_claims()
        return models.ClaimList(claims=[models.ClaimFacts(**one) for one in found])

    def add_claim(self, body: models.ClaimOrder, actor: str) -> Model:
        code = self._csmdb.add_claim(**body.model_dump(), actor=actor)
        return models.ClaimCode(claim_code=code)

    def audit(self, seq: int, limit: int, actor: str) -> Model:
        found = self._rows.audit_page(seq, limit)
        shown = models.AuditFacts.model_fields
        rows = [models.AuditFacts(**{name: row[name] for name in shown}) for row in found]
        return models.AuditPage(rows=rows)

    def audit_head(self, actor: str) -> Model:
        head = self._rows.check_audit()
        return models.AuditHead(seq=head.seq, digest=head.digest)

    def _known(self, participant: str) -> Participant:
        who = self._rows.participant(participant) if is_id(participant) else None
        if who is None:
            raise RefusedError(404, Code.NOT_FOUND, "nobody has this identity")
        return who


def _facts(who: Participant) -> models.ParticipantFacts:
    names = models.ParticipantFacts.model_fields
    known = {name: getattr(who, name) for name in names}
    return models.ParticipantFacts(
        **{**known, "roles": list(who.roles), "banned": bool(who.banned)}
    )


def _review(one: advisories.Review) -> models.ReviewFacts:
    shown = models.FindingFacts.model_fields
    findings = [models.FindingFacts(**{n: getattr(f, n) for n in shown}) for f in one.findings]
    return models.ReviewFacts(
        participant=one.participant, banned=one.banned, changed=one.changed, findings=findings
    )


def _action(one: Endpoint) -> str:
    return f"http {one.method} {one.path}"


def _subject(request: Request) -> str:
    """Whom a call is about, when that is an identity."""
    named = str(request.path_params.get("participant", ""))
    return named if is_id(named) else ""


def _parameters(request: Request, one: Endpoint) -> dict[str, Any]:
    words: dict[str, Any] = dict(request.path_params)
    for name in request.query_params:
        if name not in one.query:
            raise RefusedError(400, Code.BAD_PARAMETER, f"{name[:32]}: not a parameter here")
    for name in one.query:
        text = request.query_params.get(name)
        words[name] = QUERY[name]["default"] if text is None else _value(name, text)
    return words


def _value(name: str, text: str) -> int | str:
    schema = QUERY[name]
    if schema["type"] == "string":
        if len(text) <= schema["maxLength"] and re.fullmatch(schema["pattern"], text):
            return text
        raise RefusedError(400, Code.BAD_PARAMETER, f"{name}: expected a participant's id")
    low, high = schema["minimum"], schema["maximum"]
    value = int(text) if re.fullmatch(r"[0-9]{1,16}", text) else -1
    if not low <= value <= high:
        raise RefusedError(400, Code.BAD_PARAMETER, f"{name}: expected {low} to {high}")
    return value


async def _body(request: Request, model: type[Model]) -> Model:
    """The body, bounded while it comes; what is wrong with it is named without quoting it."""
    raw = await _raw(request, MAX_BODY_BYTES)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part)[:32] for part in first["loc"]) or "body"
        raise RefusedError(400, Code.BAD_BODY, f"{where}: {first['type']}") from None


async def _raw(request: Request, limit: int) -> bytes:
    """The body as it comes."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise RefusedError(413, Code.OVERSIZED, f"at most {limit} bytes")
    return bytes(raw)


def _response(found: Model | dict[str, Any], status: int) -> Response:
    if isinstance(found, Model):
        body: str | bytes = found.model_dump_json(by_alias=True)
    else:
        body = msgspec.json.encode(found)
    return Response(body, status, media_type="application/json")


def _problem(error: RefusedError) -> Response:
    problem = error.problem
    headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}
    body = problem.model_dump_json(by_alias=True)
    return Response(
        body, problem.status, headers.get(problem.status), media_type="application/problem+json"
    )
