"""
The audit log as a hash chain: who did what, when, to whom; each row holds the digest of the last.

Three things make it hold:

- **The chain.** A row's digest covers the row and the digest of the one before. A row that was
  altered, put in, moved or taken from the middle does not fit.
- **The sealed head.** Number and digest of the last row under a MAC whose key is derived from the
  issuing key. Rows missing at the end are found, and who can write to the database but has not that
  key cannot make the chain anew. What this cannot show is the whole database put back to an earlier
  day: keep what `csmdb audit verify` prints elsewhere, and give it with `--expect`.
- **Commitments.** What names a person stands beside the chain, and the row has a commitment to it
  (HMAC under a salt of its own). Erasing text and salt leaves the chain whole, and a guess cannot
  be tried against what is left. Such a row must be followed by an erasure of its subject.

Fields that are empty are left out of the digest if the first release did not have them, so its rows
keep theirs.

References:
    Schneier and Kelsey, "Secure Audit Logs to Support Computer Forensics" (1999).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from wire.errors import HearthgridError
from wire.metering import ZERO_DIGEST

ERASE = "erase"
"""The action after which what is personal of its subject's rows may be gone."""
SALT_BYTES = 32
_LATER = ("subject", "commitment")


class AuditBrokenError(HearthgridError):
    """A row of the audit log was changed, moved, removed or put in."""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One thing that was done, or refused."""

    seq: int
    """From 1, without gaps."""
    time_ms: int
    actor: str
    """An identity, `operator` at the command line, or `token/<id>`."""
    action: str
    outcome: str
    """OK, or the refusal's name."""
    detail: str
    """Digest of what was signed, or a sentence without names of people."""
    previous: str
    digest: str
    subject: str = ""
    """Whom or what it is about, by id."""
    commitment: str = ""
    """To what is personal about it; empty: nothing is."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log."""

    seq: int
    digest: str
    seal: str


@dataclass(frozen=True, slots=True)
class Personal:
    """What of a row names a person."""

    salt: str
    """Random, hex."""
    document: str
    """JSON."""

    @property
    def commitment(self) -> str:
        """What the chain holds of it."""
        key = bytes.fromhex(self.salt)
        return hmac.new(key, self.document.encode(), hashlib.sha256).hexdigest()


def digest_of(row: Mapping[str, Any]) -> str:
    """The digest of a row's fields; its own digest is not one of them."""
    covered = {
        name: value
        for name, value in row.items()
        if name != "digest" and not (name in _LATER and value == "")
    }
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def follow(head: Head | None, **what: Any) -> AuditRow:
    """The row after `head`, from its fields but for number and digests."""
    row = {
        **what,
        "seq": head.seq + 1 if head else 1,
        "previous": head.digest if head else ZERO_DIGEST,
    }
    return AuditRow(**row, digest=digest_of(row))


def make_head(key: bytes, seq: int, digest: str) -> Head:
    """The head that says: `seq` is the last row."""
    seal = hmac.new(key, f"hearthgrid-audit-head-v1\0{seq}\0{digest}".encode(), hashlib.sha256)
    return Head(seq, digest, seal.hexdigest())


def check(
    rows: Iterable[AuditRow], head: Head, personal: Mapping[int, Personal], key: bytes
) -> int:
    """
    Follow the chain to its head.

    Args:
        rows: by number
        personal: what is there beside the chain, by the row's number
        key: that of the head's seal

    Returns:
        How many rows there are.

    Raises:
        AuditBrokenError: what does not fit, from the oldest row on.
    """
    previous, seq = ZERO_DIGEST, 0
    erasable: dict[str, int] = {}
    opened: set[int] = set()
    for row in rows:
        seq += 1
        if row.seq != seq or row.previous != previous or digest_of(_fields(row)) != row.digest:
            raise AuditBrokenError(f"audit row {row.seq} does not follow row {seq - 1}")
        previous = row.digest
        if row.action == ERASE and row.outcome == "OK":
            erasable.pop(row.subject, None)
        if row.commitment:
            _open(row, personal.get(seq), erasable)
            opened.add(seq)
    if erasable:
        first = min(erasable.values())
        raise AuditBrokenError(f"what row {first} was about is gone, and nobody erased it")
    if set(personal) - opened:
        raise AuditBrokenError(f"audit row {min(set(personal) - opened)} has words put beside it")
    if head != make_head(key, seq, previous):
        raise AuditBrokenError(f"the log ends at row {seq}, which is not its sealed end")
    return seq


def _open(row: AuditRow, personal: Personal | None, erasable: dict[str, int]) -> None:
    if personal is None:
        erasable.setdefault(row.subject, row.seq)
    elif personal.commitment != row.commitment:
        raise AuditBrokenError(f"what is personal of audit row {row.seq} was changed")


def _fields(row: AuditRow) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(row)}
