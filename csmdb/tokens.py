"""
Tokens of operators for the HTTP API: a role each, kept as a hash, shown once.

    viewer      looks: participants and claims, without who they are
    registrar   also hands out claims and keeps who a participant is
    security    looks, and bans, exports, erases, reads the audit log; hands out nothing

A token has 256 random bits, so a plain hash is enough and nobody guesses one.
"""

from __future__ import annotations

import hashlib
import hmac

from csmdb.core import DAY_MS, OPERATOR
from csmdb.records import Token
from csmdb.setup import CsmDb
from wire.errors import ConfigError
from wire.keys import to_text

ROLES = ("viewer", "registrar", "security")
TOKEN_DAYS = 90
PREFIX = "hgt"
ID_BYTES = 6
SECRET_BYTES = 32


def make_token(
    csmdb: CsmDb, role: str, name: str = "", days: int = TOKEN_DAYS, actor: str = OPERATOR
) -> str:
    """
    Let somebody use the HTTP API.

    Returns:
        The token. It is not kept: only its hash is.

    Raises:
        ConfigError: no such role.
    """
    if role not in ROLES:
        raise ConfigError(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
    random, now_ms = csmdb.rng.bytes(ID_BYTES + SECRET_BYTES), csmdb.clock.now_ms()
    token_id, secret = random[:ID_BYTES].hex(), to_text(random[ID_BYTES:])
    token = Token(token_id, role, name, _digest(secret), now_ms, now_ms + days * DAY_MS)
    with csmdb.repository.atomic():
        csmdb.repository.add_token(token)
        csmdb.repository.audit(now_ms, actor, "token-new", "OK", role, subject=f"token/{token_id}")
    return f"{PREFIX}.{token_id}.{secret}"


def revoke_token(csmdb: CsmDb, token_id: str, actor: str = OPERATOR) -> None:
    """
    End a token now.

    Raises:
        ConfigError: there is none of this id.
    """
    now_ms = csmdb.clock.now_ms()
    with csmdb.repository.atomic():
        if not csmdb.repository.end_token(token_id, now_ms):
            raise ConfigError(f"{token_id}: no such token; see `csmdb token list`")
        csmdb.repository.audit(now_ms, actor, "token-revoke", "OK", "", subject=f"token/{token_id}")


def find_token(csmdb: CsmDb, text: str) -> Token | None:
    """The token of somebody who shows it; None: unknown, wrong or ended."""
    prefix, _, rest = text.partition(".")
    token_id, _, secret = rest.partition(".")
    if prefix != PREFIX or not text.isascii() or "\0" in text:
        return None
    token = csmdb.repository.token(token_id)
    if token is None or not hmac.compare_digest(token.digest, _digest(secret)):
        return None
    return token if csmdb.clock.now_ms() < token.expires_ms else None


def _digest(secret: str) -> str:
    return hashlib.sha256(b"hearthgrid-csmdb-token-v1\0" + secret.encode()).hexdigest()
