"""
An operator takes an advisory out of the knowledge base.

Revisions never go back, so a forged one with a high number would keep every true one out for ever.
Whoever finds such a one takes it out: bans that only it supports end, and the next revision that
comes is taken, whatever its number.

The audit log says what was taken out, and is what is asked: the folder that the CSM-DB watches may
still hold the very text, which comes in again only when an operator imports it.
"""

from __future__ import annotations

from csmdb.knowledge_rows import KnowledgeRows, Known
from csmdb.repository import SqlRepository
from csmdb.storage import Storage
from wire.errors import ConfigError

ACTION = "forget-advisory"


def forget(rows: SqlRepository, known: Known, now_ms: int, actor: str) -> None:
    """Take an advisory out, and say so in the audit log. Meters are looked at by `review_all`."""
    with rows.atomic():
        KnowledgeRows(rows.db).drop_advisory(known.name)
        rows.audit(now_ms, actor, ACTION, "OK", f"{known.id} {known.version} {known.digest}")


def the_one(found: list[Known], name: str) -> Known:
    """
    The only advisory of an id.

    Raises:
        ConfigError: there is none, or several publishers use it.
    """
    if not found:
        raise ConfigError(f"{name}: no such advisory; see `csmdb advisory list`")
    if len(found) > 1:
        names = ", ".join(repr(one.name) for one in found)
        raise ConfigError(f"{name}: several publishers use this id; give one of {names}")
    return found[0]


def was_forgotten(db: Storage, digest: str) -> bool:
    """Did an operator take out this very text?"""
    sql = "SELECT seq FROM audit WHERE action = ? AND detail LIKE ? LIMIT 1"
    return any(True for _ in db.query(sql, [ACTION, f"% {digest}"]))
