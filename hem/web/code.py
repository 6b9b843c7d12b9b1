"""The page's one-time code, for who is on the home's machine (`hem page-code`)."""

from __future__ import annotations

from pathlib import Path

from hem.summary import EMS_FILE
from hem.web.access import CODE_BYTES, Credentials
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.errors import ConfigError


def code_of(folder: Path, *, reset: bool) -> str:
    """
    The code of a home, whether it runs or not.

    Args:
        reset: forget the password first; who is logged in is logged out

    Raises:
        ConfigError: the home has not run yet, or it has a password.
    """
    if not (folder / EMS_FILE).exists():
        raise ConfigError(f"{folder}: this home has not run yet; start it with `hem run`")
    store = SqliteStore(folder / EMS_FILE)
    try:
        credentials = Credentials(store)
        if reset:
            credentials.forget_password()
        code = credentials.ensure_code(SystemRng().bytes(CODE_BYTES))
    finally:
        store.close()
    if not code:
        raise ConfigError(f"{folder}: the page has a password; --reset forgets it")
    return code
