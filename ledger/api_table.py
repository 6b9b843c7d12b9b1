"""
The HTTP API as a table: paths, parameters with their bounds, models of the answers.

`ledger.api` routes and checks requests by it, `openapi` describes it, so the two cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic.json_schema import models_json_schema

from ledger import api_models as models
from ledger.api_models import Code, Model, Problem
from ledger.proofs import MAX_KEY_LENGTH
from wire.units import MAX_SAFE_INT

MAX_BLOCKS = 100
_DIGITS = re.compile(r"[0-9]{1,16}")


class RefusedError(Exception):
    """A request that is not answered; carries the problem."""

    def __init__(self, status: int, code: Code, detail: str) -> None:
        super().__init__(detail)
        title = code.value.replace("_", " ").capitalize()
        self.problem = Problem(title=title, status=status, code=code, detail=detail)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a path or a query."""

    name: str
    about: str
    place: str = "path"
    low: int | None = None
    """With `high`: an integer within these bounds; without: text."""
    high: int = 0
    pattern: str = r".+"
    max_length: int = 64
    choices: tuple[str, ...] = ()
    default: int | str | None = None

    def read(self, text: str) -> int | str:
        """
        The value of a text.

        Raises:
            RefusedError: outside the bounds.
        """
        if self.low is not None:
            value = int(text) if _DIGITS.fullmatch(text) else -1
            if not self.low <= value <= self.high:
                raise self._refusal(f"an integer from {self.low} to {self.high}")
            return value
        if self.choices and text not in self.choices:
            raise self._refusal(" or ".join(self.choices))
        if len(text) > self.max_length or not re.fullmatch(self.pattern, text, re.ASCII):
            raise self._refusal(f"at most {self.max_length} characters like {self.pattern}")
        return text

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        found: dict[str, Any]
        if self.low is not None:
            found = {"type": "integer", "minimum": self.low, "maximum": self.high}
        elif self.choices:
            found = {"type": "string", "enum": list(self.choices)}
        else:
            pattern = f"^{self.pattern}$"
            found = {"type": "string", "pattern": pattern, "maxLength": self.max_length}
        if self.default is not None:
            found["default"] = self.default
        return found

    def _refusal(self, right: str) -> RefusedError:
        return RefusedError(400, Code.BAD_PARAMETER, f"{self.name}: expected {right}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something that can be asked."""

    path: str
    name: str
    """Of the method that answers, and the `operationId`."""
    about: str
    model: type[Model] | None
    """None: a JSON object that is described elsewhere."""
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[int, ...] = ()
    """Beside those that any endpoint may give."""
    binary: bool = False
    """Also gives bytes, with `format=binary`."""
    cost: int = 1
    """What it takes from the asker's allowance."""

    @property
    def route(self) -> str:
        """The path as starlette writes it: a key of the state has slashes in it."""
        return self.path.replace("{key}", "{key:path}")

    def read(self, path: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
        """
        The parameters of a request.

        Raises:
            RefusedError: one is missing, unknown or outside its bounds.
        """
        known = {one.name for one in self.parameters if one.place == "query"}
        for name in query:
            if name not in known:
                expected = ", ".join(sorted(known)) or "none"
                raise RefusedError(
                    400, Code.BAD_PARAMETER, f"{name[:32]}: not a parameter here; has {expected}"
                )
        values: dict[str, Any] = {}
        for one in self.parameters:
            text = (path if one.place == "path" else query).get(one.name)
            values[one.name] = one.default if text is None else one.read(text)
        return values


_HEIGHT = Parameter("height", "Height of the block.", low=1, high=MAX_SAFE_INT)
_TXID = Parameter(
    "txid", "The transaction's id: 64 hex digits.", pattern="[0-9a-f]{64}", max_length=64
)
_FORMAT = Parameter(
    "format", "The facts as JSON, or the bytes that `ledger check-proof` reads.",
    place="query", choices=("json", "binary"), default="json",
)  # fmt: skip
_PROOF_COST = 10

ENDPOINTS = (
    Endpoint("/status", "status", "Where the chain stands, and the node that answers.",
             models.Status),
    Endpoint("/healthz", "healthz", "200 when the node can do its work, else 503 with reasons.",
             models.Health, refusals=(503,)),
    Endpoint("/genesis", "genesis", "What the market agreed on: the content of genesis.json.",
             None),
    Endpoint("/blocks", "blocks", "Blocks from a height down, the newest first.",
             models.BlockPage, (
                 Parameter("from", "Highest height; default: the tip.", "query", 1, MAX_SAFE_INT),
                 Parameter("limit", "How many.", "query", 1, MAX_BLOCKS, default=20),
             )),
    Endpoint("/blocks/{height}", "block", "A block: header, finality, transactions, events.",
             models.BlockDetail, (
                 _HEIGHT,
                 Parameter("offset", "First transaction of the list; it holds 100.", "query",
                           0, 4096, default=0),
             ), (404,)),
    Endpoint("/transactions/{txid}", "transaction",
             "A transaction, its operations decoded, and the code of each.",
             models.TransactionDetail, (_TXID,), (404,)),
    Endpoint("/accounts/{address}", "account",
             "Money, nonce, grant and assets of an address; `known` says whether there is any.",
             models.Account,
             (Parameter("address", "An address, hg1…", pattern="hg1[a-z2-7]{32}"),)),
    Endpoint("/validators", "validators",
             "Validators of the running epoch: CPF, share in the schedule, status.",
             models.ValidatorList),
    Endpoint("/epochs/current", "epoch", "The running epoch and its schedule of leaders.",
             models.EpochFacts),
    Endpoint("/evidence", "evidence",
             "Pairs of votes that exclude each other, found by this node, judged or not.",
             models.EvidenceList),
    Endpoint("/peers", "peers", "Which validators were heard, when, and about which view.",
             models.PeerList, refusals=(503,)),
    Endpoint("/proofs/state/{key}", "prove_state",
             "Proof of a row of the newest covered state, or that there is none;"
             " for a balance: account/<address>.",
             models.ProofFacts,
             (Parameter("key", "Key of the row.", pattern="[!-~]+", max_length=MAX_KEY_LENGTH),
              _FORMAT), (409, 503), binary=True, cost=_PROOF_COST),
    Endpoint("/proofs/receipt/{txid}", "prove_receipt", "Proof of what became of a transaction.",
             models.ProofFacts, (_TXID, _FORMAT), (409,), binary=True, cost=_PROOF_COST),
    Endpoint("/proofs/inclusion/{txid}", "prove_inclusion",
             "Proof that a transaction is in a final block.",
             models.ProofFacts, (_TXID, _FORMAT), (409,), binary=True, cost=_PROOF_COST),
    Endpoint("/openapi.json", "openapi", "This description.", None),
)  # fmt: skip

_ALWAYS = {
    400: "A parameter is unknown or outside its bounds.",
    429: "This address asks too often; see Retry-After.",
    503: "Too much is asked at once, the file cannot be read now, or no node is running.",
}
_SOMETIMES = {404: "There is no such thing.", 409: "Not provable: no final header covers it yet."}
_ANY_OBJECT = {"type": "object", "additionalProperties": True}


@cache
def openapi() -> dict[str, Any]:
    """The API as OpenAPI 3.1."""
    used = {one.model for one in ENDPOINTS if one.model is not None} | {Problem}
    _, schemas = models_json_schema(
        [(model, "serialization") for model in sorted(used, key=lambda one: one.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hearthgrid ledger node",
            "summary": "What a node of the market's ledger knows; read-only.",
            "description": "Everything here is public to the market. Do not believe a node: ask"
            " for proofs, and check them with `ledger check-proof`.",
            "version": _version(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {one.path: {"get": _operation(one)} for one in ENDPOINTS},
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(one: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _schema_of(one.model)}}
    if one.binary:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    problem = {"application/problem+json": {"schema": _schema_of(Problem)}}
    codes = {**_ALWAYS, **{code: _SOMETIMES.get(code, _ALWAYS[503]) for code in one.refusals}}
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for code, about in sorted(codes.items()):
        answers[str(code)] = {"description": about, "content": problem}
    if one.name == "healthz":
        answers["503"] = {"description": "It cannot, and why.", "content": content}
    return {
        "operationId": one.name,
        "summary": one.about,
        "parameters": [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.about,
                "schema": parameter.schema(),
            }
            for parameter in one.parameters
        ],
        "responses": answers,
    }


def _schema_of(model: type[Model] | None) -> dict[str, Any]:
    if model is None:
        return _ANY_OBJECT
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _version() -> str:
    try:
        return version("hearthgrid")
    except PackageNotFoundError:  # run from a source tree
        return "0"
