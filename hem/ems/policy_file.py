"""
The owner's policy file while the home runs: read again when it changes, and never half.

A change counts when two looks have seen the same file, so that one that is just being written is
not taken for an empty one. What cannot be read is refused with its line, once in the log, and the
last good one stays in force: also after a restart, from a copy in the data folder.

Source: `hem.controller.policy` for what may be in it.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from hem.controller.policy import Policy, load_policy, parse_policy
from hem.files import mark_of
from wire.errors import ConfigError

GOOD_FILE = "policy.good.toml"

log = structlog.get_logger(component="hem")


class PolicyFile:
    """
    The policy in force.

    Args:
        path: the owner's file; need not exist
        folder: the home's data, for the last good copy

    Raises:
        ConfigError: the file is broken, and there is no good copy from before.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._good = path, folder / GOOD_FILE
        self.error = ""
        """Why the file as it stands is not in force; empty: it is."""
        self._seen = self._taken = mark_of(path)
        try:
            self.policy = load_policy(path)
        except ConfigError as error:
            good = last_good(path, folder)
            if good is None:
                raise
            self.policy = good
            self._refuse(error)
        else:
            self._keep()

    def look(self) -> bool:
        """Read the file if it has changed; is another policy in force now?"""
        mark = mark_of(self._path)
        if mark != self._seen:
            self._seen = mark
            return False
        if mark == self._taken:
            return False
        self._taken = mark
        try:
            policy = load_policy(self._path)
        except ConfigError as error:
            self._refuse(error)
            return False
        if self.error:
            log.info("the policy is in order again")
        self.error = ""
        self._keep()
        changed = policy != self.policy
        if changed:
            log.info("the policy has changed")
        self.policy = policy
        return changed

    def _refuse(self, error: ConfigError) -> None:
        self.error = str(error)
        log.warning("policy refused; the last good one stays in force", reason=self.error)

    def _keep(self) -> None:
        """Keep the text as the last good one; without a file there is none to go back to."""
        draft = self._good.with_name(f"{GOOD_FILE}.new")
        try:
            text = self._path.read_bytes() if self._path.exists() else b""
            if self._good.exists() and self._good.read_bytes() == text:
                return
            with draft.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._good)
        except OSError as error:
            log.warning("the good policy could not be kept", reason=error.strerror)


def last_good(path: Path, folder: Path) -> Policy | None:
    """
    The policy that held last.

    Args:
        path: the owner's file, for what is said of it

    Returns:
        None: there is no copy, or this version does not take it.
    """
    good = folder / GOOD_FILE
    try:
        return parse_policy(good.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError):
        return None


def in_force(path: Path, folder: Path) -> tuple[Policy, str]:
    """
    What a home that starts now goes by, and what is wrong with its file (empty: nothing).

    Raises:
        ConfigError: the file is broken, and there is no good copy from before.
    """
    try:
        return load_policy(path), ""
    except ConfigError as error:
        good = last_good(path, folder)
        if good is None:
            raise
        return good, str(error)
