"""What the operators' HTTP API takes and answers, as models; `openapi.json` is made from them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from csmdb.core import CLAIM_DAYS
from csmdb.privacy import MAX_CHARS


class Model(BaseModel):
    """A JSON object of the API."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


class Code(StrEnum):
    """Why a call was refused."""

    BAD_PARAMETER = "BAD_PARAMETER"
    BAD_BODY = "BAD_BODY"
    MALFORMED = "MALFORMED"
    """Not a CSAF document that we read."""
    ROLLED_BACK = "ROLLED_BACK"
    """A later revision of the advisory is known."""
    FUTURE_DATED = "FUTURE_DATED"
    OVERSIZED = "OVERSIZED"
    NO_TOKEN = "NO_TOKEN"  # noqa: S105  (a name, no secret)
    """None, or one that is unknown, ended or revoked."""
    NOT_ALLOWED = "NOT_ALLOWED"
    """The token's role may not."""
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    RATE_LIMITED = "RATE_LIMITED"
    BUSY = "BUSY"
    """The database cannot be reached or is busy; what the call was to do may be done by half."""


class Problem(Model):
    """A refusal (RFC 9457, `application/problem+json`)."""

    title: str
    status: int
    code: Code
    detail: str


class Health(Model):
    """The database answers."""

    status: Literal["ok"]
    market: str


class ParticipantFacts(Model):
    """A participant, without who it is."""

    id: str
    roles: list[str]
    feeder: str
    max_import_w: int
    max_export_w: int
    validator: str
    enrolled_ms: int
    banned: bool


class ParticipantPage(Model):
    """Participants by id."""

    participants: list[ParticipantFacts]
    next: str
    """To be given as `after`; empty on the last page."""


class PersonFacts(Model):
    """Who a participant is."""

    name: str = Field("", max_length=MAX_CHARS)
    contact: str = Field("", max_length=MAX_CHARS)
    address: str = Field("", max_length=MAX_CHARS)
    meter_location: str = Field("", max_length=MAX_CHARS)


class AdvisoryFacts(Model):
    """An advisory of the knowledge base."""

    id: str
    version: str
    released_ms: int
    digest: str
    title: str
    publisher: str
    status: str
    imported_ms: int


class AdvisoryList(Model):
    """All advisories, each at its newest revision."""

    advisories: list[AdvisoryFacts]


class FindingFacts(Model):
    """An advisory names a meter."""

    advisory: str
    revision: str
    cve: str
    product: str
    versions: str
    certain: bool
    """False: the meter's version cannot be compared with these."""
    bans: bool
    """False: under investigation."""
    fixed_in: list[str]
    remedies: list[str]


class ReviewFacts(Model):
    """A meter that was looked at."""

    participant: str
    banned: bool
    """By advisories."""
    changed: bool
    findings: list[FindingFacts]


class ReviewList(Model):
    """Meters that an advisory names, or named until now."""

    meters: list[ReviewFacts]


class ImportFacts(Model):
    """What became of a document, and of the meters."""

    advisory: str
    revision: str
    outcome: Literal["new", "updated", "known"]
    meters: list[ReviewFacts]


class MakeOrder(Model):
    """What a meter is and runs."""

    firmware: str = Field(max_length=64)
    vendor: str = Field("", max_length=64)
    """Empty: as it is known."""
    model: str = Field("", max_length=64)
    """Empty: as it is known."""


class AliasFacts(Model):
    """What an operator knows of a plate's names and an advisory's."""

    plate_vendor: str = Field(min_length=1, max_length=128)
    plate_model: str = Field(min_length=1, max_length=128)
    vendor: str = Field(min_length=1, max_length=128)
    model: str = Field(min_length=1, max_length=128)
    same: bool = True
    """False: they are two products."""


class AliasList(Model):
    """All that was said of names."""

    aliases: list[AliasFacts]


class BanOrder(Model):
    """Why somebody is banned."""

    reason: str = Field(min_length=1, max_length=MAX_CHARS)


class ClaimOrder(Model):
    """What the holder of a claim may become."""

    roles: list[str] = Field(min_length=1, max_length=9)
    max_import_w: int = Field(ge=0)
    max_export_w: int = Field(ge=0)
    feeder: str = Field(max_length=64, pattern=r"^[^\x00]*$")
    validator: str = Field("", max_length=64)
    days: int = Field(CLAIM_DAYS, ge=1, le=365)


class ClaimCode(Model):
    """A one-time code; it is shown once."""

    claim_code: str


class RevocationOrder(Model):
    """Why a key is revoked."""

    reason: Literal["lost", "stolen", "rotated", "retired"]


class Revoked(Model):
    """A key is revoked."""

    number: int
    """Of the newest entry of the list."""


class ClaimFacts(Model):
    """A claim, never its code."""

    code_hash: str
    roles: list[str]
    max_import_w: int
    max_export_w: int
    feeder: str
    validator: str
    expires_ms: int
    used_by: str
    used_ms: int


class ClaimList(Model):
    """All claims."""

    claims: list[ClaimFacts]


class ErasedFacts(Model):
    """What an erasure took."""

    certificates: int
    log_rows: int
    grants: int


class AuditFacts(Model):
    """A row of the audit log."""

    seq: int
    time_ms: int
    actor: str
    action: str
    subject: str
    outcome: str
    detail: str
    digest: str
    personal: dict[str, Any]


class AuditPage(Model):
    """Rows of the audit log, the oldest first."""

    rows: list[AuditFacts]


class AuditHead(Model):
    """The chain is whole up to here."""

    seq: int
    digest: str


class Done(Model):
    """It is done."""

    done: Literal[True] = True
