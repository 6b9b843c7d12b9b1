"""
The operators' HTTP API as a table: methods, paths, who may, what is taken and answered.

`csmdb.api` routes and checks calls by it, `openapi` describes it, so the two cannot disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from csmdb import api_models as models
from csmdb.api_models import Model, Problem
from csmdb.csaf import MAX_BYTES
from csmdb.tokens import ROLES

MAX_BODY_BYTES = 16 * 1024
MAX_PAGE = 200
LOOKERS = ROLES
REGISTRAR = ("registrar",)
SECURITY = ("security",)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something that can be asked or ordered."""

    method: str
    path: str
    name: str
    """Of the method that answers, and the `operationId`."""
    about: str
    model: type[Model] | None
    """None: a JSON object that is described elsewhere."""
    roles: tuple[str, ...] = ()
    """Who may; empty: everybody, without a token and unlogged, as it tells nothing of anybody."""
    body: type[Model] | None = None
    query: tuple[str, ...] = ()
    """Names out of `QUERY`."""
    status: int = 200
    own_transaction: bool = False
    """It cannot be a part of the call's transaction."""
    document: int = 0
    """Most bytes of a body that is a document of its own; 0: it is none."""


QUERY: dict[str, dict[str, Any]] = {
    "after": {"type": "string", "maxLength": 64, "pattern": "^[a-z0-9]*$", "default": ""},
    "seq": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1, "default": 0},
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": MAX_PAGE},
}
"""Parameters of queries, as JSON Schema."""

_ONE = "/participants/{participant}"
ENDPOINTS = (
    Endpoint("GET", "/healthz", "healthz", "200 while the database answers.", models.Health),
    Endpoint("GET", "/openapi.json", "openapi", "This description.", None),
    Endpoint("GET", "/participants", "participants", "Participants by id, in pages.",
             models.ParticipantPage, LOOKERS, query=("after", "limit")),
    Endpoint("GET", _ONE, "participant", "One participant.", models.ParticipantFacts, LOOKERS),
    Endpoint("GET", _ONE + "/export", "export", "All that is kept about a participant.",
             None, SECURITY),
    Endpoint("PUT", _ONE + "/person", "put_person", "Keep who a participant is.",
             models.Done, REGISTRAR, models.PersonFacts),
    Endpoint("DELETE", _ONE + "/person", "erase", "Erase what is personal of a participant.",
             models.ErasedFacts, SECURITY, own_transaction=True),
    Endpoint("PUT", _ONE + "/ban", "ban", "Refuse what a participant asks for.",
             models.Done, SECURITY, models.BanOrder),
    Endpoint("DELETE", _ONE + "/ban", "unban", "Lift a ban.", models.Done, SECURITY),
    Endpoint("PUT", _ONE + "/meter", "set_meter", "Say what firmware a meter runs, and look at it.",
             models.ReviewFacts, SECURITY, models.MakeOrder),
    Endpoint("GET", "/advisories", "advisories", "The knowledge base.",
             models.AdvisoryList, LOOKERS),
    Endpoint("POST", "/advisories", "import_advisory",
             "Take a CSAF 2.0 document in, and look at every meter.",
             models.ImportFacts, SECURITY, document=MAX_BYTES),
    Endpoint("POST", "/reviews", "review", "Look at every meter now.",
             models.ReviewList, SECURITY),
    Endpoint("GET", "/aliases", "aliases", "What was said of plates' and advisories' names.",
             models.AliasList, LOOKERS),
    Endpoint("PUT", "/aliases", "put_alias", "Say that two names mean one product, or two.",
             models.ReviewList, SECURITY, models.AliasFacts),
    Endpoint("DELETE", "/aliases", "drop_alias", "Forget what was said of two names.",
             models.ReviewList, SECURITY, models.AliasFacts),
    Endpoint("GET", "/claims", "claims", "Claims and whether they were used.",
             models.ClaimList, LOOKERS),
    Endpoint("POST", "/claims", "add_claim", "A one-time code for one home.",
             models.ClaimCode, REGISTRAR, models.ClaimOrder, status=201),
    Endpoint("GET", "/audit", "audit", "The audit log after a row.",
             models.AuditPage, SECURITY, query=("seq", "limit")),
    Endpoint("GET", "/audit/head", "audit_head", "Check the audit log to its sealed end.",
             models.AuditHead, SECURITY),
    Endpoint("POST", _ONE + "/re-enrolment", "re_enrol",
             "Revoke a lost device's keys; a one-time code for its successor.",
             models.ClaimCode, SECURITY, models.RevocationOrder, status=201),
    Endpoint("PUT", "/revoked/{identity}", "revoke",
             "Revoke a participant with its live addresses, or one address.",
             models.Revoked, SECURITY, models.RevocationOrder),
)  # fmt: skip

_REFUSALS = {
    400: "A parameter or the body is not as described.",
    401: "No token, or one that is unknown, ended or revoked.",
    403: "The token's role may not.",
    404: "Nobody has this identity.",
    409: "A later revision is known.",
    413: f"The body has more than {MAX_BODY_BYTES} bytes (a document: {MAX_BYTES}).",
    429: "This address asks too often; see Retry-After.",
    503: "The database cannot be reached, is busy, or its log is broken.",
}


@cache
def openapi() -> dict[str, Any]:
    """The API as OpenAPI 3.1."""
    used = {model for one in ENDPOINTS for model in (one.model, one.body) if model} | {Problem}
    _, schemas = models_json_schema(
        [(model, "validation") for model in sorted(used, key=lambda one: one.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for one in ENDPOINTS:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hearthgrid CSM-DB",
            "summary": "For operators: who may trade, with which meter.",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(one: Endpoint) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": _schema_of(Problem)}}
    answers: dict[str, Any] = {
        str(code): {"description": about, "content": problem} for code, about in _REFUSALS.items()
    }
    content = {"application/json": {"schema": _schema_of(one.model)}}
    answers[str(one.status)] = {"description": "The answer.", "content": content}
    found: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.about,
        "parameters": [
            *(_parameter("path", name, {"type": "string"})
              for name in re.findall(r"{(\w+)}", one.path)),
            *(_parameter("query", name, QUERY[name]) for name in one.query),
        ],
        "responses": dict(sorted(answers.items())),
    }  # fmt: skip
    if one.roles:
        found["security"] = [{"token": list(one.roles)}]
    if one.document:
        schema = {"application/json": {"schema": _schema_of(None)}}
        found["requestBody"] = {"required": True, "content": schema}
    if one.body is not None:
        schema = {"application/json": {"schema": _schema_of(one.body)}}
        found["requestBody"] = {"required": True, "content": schema}
    return found


def _parameter(place: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _schema_of(model: type[Model] | None) -> dict[str, Any]:
    if model is None:
        return {"type": "object", "additionalProperties": True}
    return {"$ref": f"#/components/schemas/{model.__name__}"}
