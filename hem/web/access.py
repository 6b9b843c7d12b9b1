"""
Who may see the page: one password, sessions, tokens against forged forms, and limits on guessing.

Time and randomness are arguments. The password is kept as argon2id (RFC 9106, the parameters that
OWASP gives for 19 MiB: a home has little memory to spare); nothing here keeps it in clear.

- **First start.** Until a password is set, whoever has the one-time code may set it, and nobody may
  do anything else. The code is in the log and in the home's own folder: to have it, one must be on
  the machine, not only in its network.
- **Sessions** are known by the hash of their cookie, end after a week, and when the password is
  another than the one they began with.
- **A form's token** is an HMAC of the visitor's cookie, so that nothing is kept for strangers.
- **The Host** is an address or a name that is ours: a page that points its own name at us
  (DNS rebinding) is not answered. An address cannot be rebound.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from nacl import pwhash
from nacl.exceptions import CryptoError

from runtime.ports import Store
from runtime.rate_limit import RateLimit

PASSWORD_CHARACTERS_MIN = 10
PASSWORD_BYTES_MAX = 512
OPERATIONS, MEMORY_BYTES = 2, 19 * 2**20
"""OWASP's password storage cheat sheet: argon2id with 19 MiB, 2 passes."""
TOKEN_BYTES = 32
CODE_BYTES = 8
CODE_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base32: no letter that looks like a digit."""
CODE_LENGTH = 12
SESSION_S = 7 * 86_400
SESSIONS_MAX = 32
GUESSES, GUESS_EVERY_S = 5, 30
"""From one address: so many at once, then one in so many seconds."""
ALL_GUESSES, ALL_GUESS_EVERY_S = 20, 10
"""From everywhere: one with many addresses does not guess faster than this."""
ADDRESSES_MAX = 1_000
_PASSWORD, _CODE = "page/password", "page/code"


class Credentials:
    """The password's hash and the one-time code, in the home's store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def password(self) -> bytes | None:
        """The hash; None until a password is set."""
        return self._store.get(_PASSWORD)

    @property
    def code(self) -> str:
        """The one-time code; empty when there is none."""
        return (self._store.get(_CODE) or b"").decode()

    def ensure_code(self, random: bytes) -> str:
        """
        The code with which the first password is set; empty when one is set.

        Args:
            random: `CODE_BYTES`, for a new code
        """
        with self._store.atomic():
            if self.password is not None:
                return ""
            if not self.code:
                self._store.put(_CODE, new_code(random).encode())
        return self.code

    def set_password(self, hashed: bytes) -> None:
        """Set a hash; the code is used up."""
        with self._store.atomic():
            self._store.put(_PASSWORD, hashed)
            self._store.delete(_CODE)

    def forget_password(self) -> None:
        """Let the password be set anew, with a new code."""
        with self._store.atomic():
            self._store.delete(_PASSWORD)
            self._store.delete(_CODE)


def new_code(random: bytes) -> str:
    """A code of twelve characters (60 bits) from `CODE_BYTES`, in groups of four."""
    number = int.from_bytes(random[:CODE_BYTES], "big")
    letters = "".join(CODE_ALPHABET[number >> 5 * i & 31] for i in range(CODE_LENGTH))
    return f"{letters[:4]}-{letters[4:8]}-{letters[8:]}"


def code_holds(code: str, given: str) -> bool:
    """Whether a code is the right one, however it is grouped or spelt."""
    plain = "".join(c for c in given.upper() if c.isalnum())
    plain = plain.replace("O", "0").replace("I", "1").replace("L", "1")
    right = code.replace("-", "")
    return bool(right) and hmac.compare_digest(right.encode(), plain.encode())


def why_unfit(password: str, again: str) -> str:
    """Why a password cannot be taken; empty: it can."""
    if len(password) < PASSWORD_CHARACTERS_MIN:
        return f"Please use at least {PASSWORD_CHARACTERS_MIN} characters."
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        return "That password is too long."
    if password != again:
        return "The two passwords differ."
    return ""


def hash_password(password: str) -> bytes:
    """Slow by intent: call it in a thread."""
    return pwhash.argon2id.str(
        password.encode(), opslimit=OPERATIONS, memlimit=MEMORY_BYTES
    )  # fmt: skip


def password_holds(hashed: bytes, given: str) -> bool:
    """Whether a password is the right one. Slow by intent: call it in a thread."""
    raw = given.encode(errors="replace")
    if len(raw) > PASSWORD_BYTES_MAX:
        return False
    try:
        return bool(pwhash.verify(hashed, raw))
    except CryptoError:
        return False


@dataclass(frozen=True, slots=True)
class _Session:
    ends_s: float
    mark: bytes
    """Of the password it began with."""


class Sessions:
    """
    Who is logged in.

    Args:
        secret: random, `TOKEN_BYTES`; form tokens are made with it
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._open: OrderedDict[bytes, _Session] = OrderedDict()

    def open(self, cookie: str, password: bytes, now_s: float) -> None:
        """Begin a session; of too many the oldest ends."""
        self._open[_digest(cookie)] = _Session(now_s + SESSION_S, hashlib.sha256(password).digest())
        while len(self._open) > SESSIONS_MAX:
            self._open.popitem(last=False)

    def holds(self, cookie: str, password: bytes | None, now_s: float) -> bool:
        """Whether a cookie is one of a session, under the password of today."""
        found = self._open.get(_digest(cookie))
        if found is None or password is None:
            return False
        if now_s >= found.ends_s or found.mark != hashlib.sha256(password).digest():
            del self._open[_digest(cookie)]
            return False
        return True

    def close(self, cookie: str) -> None:
        """End a session, if it is one."""
        self._open.pop(_digest(cookie), None)

    def form_token(self, cookie: str) -> str:
        """What a form that was made for the bearer of a cookie brings back."""
        return hmac.new(self._secret, cookie.encode(errors="replace"), "sha256").hexdigest()

    def form_token_holds(self, cookie: str, given: str) -> bool:
        """Whether a form was made for the bearer of this cookie."""
        right = self.form_token(cookie).encode()
        return bool(cookie) and hmac.compare_digest(right, given.encode(errors="replace"))


class Guesses:
    """How often a password or a code may be tried."""

    def __init__(self) -> None:
        self._one = RateLimit(GUESSES, 1 / GUESS_EVERY_S, ADDRESSES_MAX)
        self._all = RateLimit(ALL_GUESSES, 1 / ALL_GUESS_EVERY_S, 1)

    def admit(self, address: str, now_s: float) -> bool:
        """Whether this address may try once more now."""
        return self._one.admit(address, now_s) and self._all.admit("", now_s)


def host_allowed(host: str, names: Collection[str]) -> bool:
    """
    Whether a Host header names us: an address, or one of our names.

    Args:
        host: as it came, with or without a port
        names: in lower case
    """
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host.strip().lower(), ""
    if port and not (port.isascii() and port.isdecimal()):
        return False
    if name.startswith("["):
        name = name.removeprefix("[").removesuffix("]")
    elif name.removesuffix(".") in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def origin_allowed(origin: str, host: str) -> bool:
    """Whether a form came from our own page; browsers always say where one comes from."""
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode(errors="replace")).digest()
