"""
Advisories at work: imported, matched with every certified meter, bans that come and go with them.

A meter is looked at when it is enrolled, when its firmware changes, when an advisory is imported,
and periodically (`[advisories]` in `csmdb.toml`). Who is banned by an advisory is banned on the
ledger too (`csmdb.revocations`), and let in again by the same look when no advisory names the
meter any longer; an operator's own ban stays.

An advisory's revision never goes back, whatever file is found: a number or a date below what is
known is refused ROLLED_BACK, and so is another text under a known number. Only an operator takes
one out (`csmdb.forgetting`).

A meter whose make was erased cannot be looked at: its ban stays until somebody says what it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from csmdb import revocations
from csmdb.core import OPERATOR
from csmdb.csaf import MAX_BYTES, Advisory, read_advisory
from csmdb.forgetting import was_forgotten
from csmdb.knowledge import Finding
from csmdb.knowledge_rows import KnowledgeRows, Known, MeterRow
from csmdb.product_names import Alias
from csmdb.requests import MAX_TEXT
from csmdb.setup import CsmDb
from wire.errors import (
    BadSignatureError,
    ConfigError,
    FutureDatedError,
    OversizedError,
    RolledBackError,
    WireError,
)

SOURCE = "advisory"
"""Who bans, in the table of bans."""
NOBODY = "advisories"
"""The actor of a look that nobody ordered, in the audit log."""
SKEW_MS = 86_400_000
"""An advisory dated later than so far ahead would keep every true one out."""


@dataclass(frozen=True, slots=True)
class Review:
    """What became of a meter that was looked at."""

    participant: str
    findings: tuple[Finding, ...]
    banned: bool
    """By advisories."""
    changed: bool


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a document."""

    source: str
    """The file, or empty."""
    advisory: str
    """Its id; empty when it was refused."""
    revision: str
    outcome: str
    """`new`, `updated`, `known`, or a refusal's name."""
    detail: str = ""


# --- importing --------------------------------------------------------------------------------


def import_document(csmdb: CsmDb, raw: bytes, actor: str = OPERATOR, source: str = "") -> Imported:
    """
    Take a CSAF document into the knowledge base. Meters are looked at by `review_all`.

    Raises:
        OversizedError, MalformedError: not a document that we read (`csmdb.csaf`).
        RolledBackError: a later revision is known, or another text under this number; or it is
            one that an operator took out, and no operator brings it back.
        FutureDatedError: released tomorrow or later.
    """
    advisory = read_advisory(raw)
    kept, rows = KnowledgeRows(csmdb.repository.db), csmdb.repository
    if advisory.released_ms > csmdb.clock.wall_ms() + SKEW_MS:
        raise FutureDatedError("an advisory of the future", released_ms=advisory.released_ms)
    with rows.atomic():
        known = kept.known(advisory.name)
        if known is not None and known.digest == advisory.digest:
            return Imported(source, advisory.id, advisory.version_text, "known")
        _check_revision(advisory, known)
        if actor == NOBODY and was_forgotten(rows.db, advisory.digest):
            raise RolledBackError(
                "an operator took it out; `csmdb advisory import` takes it in again",
                advisory=advisory.id,
            )
        kept.put_advisory(advisory, csmdb.clock.now_ms())
        detail = f"{advisory.id} {advisory.version_text} {advisory.digest}"
        rows.audit(csmdb.clock.now_ms(), actor, "import-advisory", "OK", detail)
    outcome = "new" if known is None else "updated"
    return Imported(source, advisory.id, advisory.version_text, outcome)


def import_path(csmdb: CsmDb, path: Path, actor: str = OPERATOR) -> list[Imported]:
    """
    Import a file, or all `*.json` of a folder; what is refused is told, not raised.

    A file `NAME.json.sha256` or `.sha512` beside one must hold its digest (CSAF 2.0, 7.1.18).

    Raises:
        ConfigError: there is no such file or folder.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return [_import_file(csmdb, file, actor) for file in files]


def _import_file(csmdb: CsmDb, file: Path, actor: str) -> Imported:
    try:
        return import_document(csmdb, read_file(file), actor, str(file))
    except WireError as error:
        return Imported(str(file), "", "", error.refusal.value, str(error)[:300])


def read_file(file: Path) -> bytes:
    """
    A document, bounded, and as the digests beside it say.

    Raises:
        ConfigError: it cannot be read. OversizedError. BadSignatureError: a digest differs.
    """
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise OversizedError("an advisory is too long", limit=MAX_BYTES)
    for kind in ("sha256", "sha512"):
        beside = file.with_name(f"{file.name}.{kind}")
        if beside.exists():
            words = beside.read_bytes()[:1024].split()
            if not words or words[0].lower() != hashlib.new(kind, raw).hexdigest().encode():
                raise BadSignatureError(f"not the file of {beside.name}")
    return raw


def _check_revision(advisory: Advisory, known: Known | None) -> None:
    if known is None:
        return
    before = tuple(int(part) for part in known.version.split("."))
    width = max(len(before), len(advisory.version))
    old, new = (number + (0,) * (width - len(number)) for number in (before, advisory.version))
    if new < old or advisory.released_ms < known.released_ms:
        raise RolledBackError(
            "a later revision is known", advisory=advisory.id, known=known.version,
            offered=advisory.version_text,
        )  # fmt: skip
    if new == old and advisory.released_ms == known.released_ms:
        raise RolledBackError(
            "another text is known under this revision's number", advisory=advisory.id
        )


# --- looking at meters ------------------------------------------------------------------------


def review(csmdb: CsmDb, participant: str, actor: str = NOBODY) -> Review:
    """
    Look at one meter: ban its home if an advisory names it, lift that ban if none does.

    Raises:
        ConfigError: nobody has this identity, or a meter.
    """
    kept = KnowledgeRows(csmdb.repository.db)
    meter = csmdb.repository.meter_of(participant)
    if meter is None:
        raise ConfigError(f"{participant}: no meter of this identity; see `csmdb list`")
    csmdb.knowledge.refresh(kept)
    return _decide(csmdb, MeterRow(participant, meter, kept.ban_reason(participant, SOURCE)), actor)


def review_all(csmdb: CsmDb, actor: str = NOBODY) -> list[Review]:
    """Look at every meter; gives those that an advisory names or named."""
    kept = KnowledgeRows(csmdb.repository.db)
    csmdb.knowledge.refresh(kept)
    looked = (_decide(csmdb, row, actor) for row in kept.meters())
    return [one for one in looked if one.findings or one.changed]


def _decide(csmdb: CsmDb, row: MeterRow, actor: str) -> Review:
    meter = row.meter
    if not (meter.vendor or meter.model):
        return Review(row.participant, (), bool(row.reason), changed=False)
    findings = tuple(csmdb.knowledge.findings(meter))
    names = sorted({f"{one.advisory} ({one.cve})" for one in findings if one.bans})
    reason = f"firmware named by {', '.join(names)}"[:200] if names else ""
    if reason != row.reason:
        _set(csmdb, row.participant, reason, findings, actor)
    changed = bool(reason) != bool(row.reason)
    return Review(row.participant, findings, bool(reason), changed)


def _set(
    csmdb: CsmDb, participant: str, reason: str, findings: tuple[Finding, ...], actor: str
) -> None:
    rows, now_ms = csmdb.repository, csmdb.clock.now_ms()
    digest = next((one.digest for one in findings if one.bans), "")
    with rows.atomic():
        rows.set_ban(participant, reason, SOURCE, now_ms)
        action = "ban-advisory" if reason else "unban-advisory"
        told = {"advisory": digest} if digest else None  # which tells the meter's make
        rows.audit(now_ms, actor, action, "OK", "", subject=participant, personal=told)
        revocations.follow(csmdb, participant, revocations.ADVISORY, digest)


def set_make(
    csmdb: CsmDb,
    participant: str,
    firmware: str,
    *,
    vendor: str = "",
    model: str = "",
    actor: str = OPERATOR,
) -> Review:
    """
    Say what firmware a meter runs, certify it anew, and look at it.

    Args:
        vendor, model: of its plate, where they were erased or wrong; empty: as they are

    Raises:
        ConfigError: nobody has this identity, or a meter; or a text is too long.
    """
    rows, now_ms = csmdb.repository, csmdb.clock.now_ms()
    meter = rows.meter_of(participant)
    if meter is None:
        raise ConfigError(f"{participant}: no meter of this identity; see `csmdb list`")
    told = {"vendor": vendor or meter.vendor, "model": model or meter.model, "firmware": firmware}
    for name, text in told.items():
        if len(text) > MAX_TEXT or not text.isprintable():
            raise ConfigError(f"{name}: expected one line of at most {MAX_TEXT} characters")
    with rows.atomic():
        KnowledgeRows(rows.db).set_make(participant, **told)
        rows.audit(now_ms, actor, "set-make", "OK", "", subject=participant, personal=told)
        csmdb.desk.certify_meter(participant, now_ms)
    return review(csmdb, participant, actor)


# --- names ------------------------------------------------------------------------------------


def say_alias(csmdb: CsmDb, alias: Alias, *, remove: bool = False, actor: str = OPERATOR) -> None:
    """
    Keep, or forget, what an operator knows of a plate's and an advisory's names.

    Raises:
        ConfigError: a name is missing or too long, or there is nothing to forget.
    """
    names = (alias.plate_vendor, alias.plate_model, alias.vendor, alias.model)
    if not all(alias.key) or any(len(name) > MAX_TEXT * 2 for name in names):
        raise ConfigError(f"an alias has four names of at most {MAX_TEXT * 2} characters")
    kept, rows = KnowledgeRows(csmdb.repository.db), csmdb.repository
    with rows.atomic():
        if not remove:
            kept.put_alias(alias)
        elif not kept.drop_alias(alias):
            raise ConfigError("nothing was said of these names; see `csmdb advisory aliases`")
        action = "drop-alias" if remove else "alias"
        detail = " | ".join((*names, "same" if alias.same else "not the same"))
        rows.audit(csmdb.clock.now_ms(), actor, action, "OK", detail)


def find(csmdb: CsmDb, name: str) -> Iterator[Known]:
    """Advisories of an id (`ICSA-24-130-02`), whoever published them."""
    kept = KnowledgeRows(csmdb.repository.db)
    return (one for one in kept.advisories() if name in (one.id, one.name))
