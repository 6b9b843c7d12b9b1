"""
A validator's consent to changes of the rules: what its operator wrote into `approvals.toml`.

    [[approve]]
    path = "prices.*"
    most = 400000

The file lies in the node's folder and is read again whenever a change stands on the chain that this
validator has not approved, so an operator who has read a proposal can still write it down. A file
that is wrong approves nothing and is logged once, until it changes.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from ledger.approvals import PROPOSED, Approval, approves
from ledger.contracts import keys, validators
from ledger.execution import Ledger

APPROVALS_FILE = "approvals.toml"

log = structlog.get_logger(component="ledger")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    approve: tuple[Approval, ...] = ()


class Consent:
    """
    Approves for one validator, each change once: what the ledger refused it would refuse again.

    Args:
        folder: the node's
        validator: its address
    """

    def __init__(self, folder: Path, validator: str) -> None:
        self._path, self._validator = folder / APPROVALS_FILE, validator
        self._wrong = ""
        self._said: set[str] = set()

    def operations(self, ledger: Ledger) -> list[dict[str, Any]]:
        """The `approve-change` for each standing change that the operator agrees to."""
        members = validators.members(ledger.state, ledger.epoch) or ()
        if self._validator not in {name for name, _, _ in members}:
            return []
        standing = [
            (key.removeprefix(keys.CHANGE), row)
            for key, row in ledger.state.scan(keys.CHANGE)
            if self._validator not in row["approvals"]["validators"]
        ]
        self._said &= {name for name, _ in standing}
        fresh = [(name, row) for name, row in standing if name not in self._said]
        if not fresh:
            return []
        rules = self._rules()
        agreed = [
            name
            for name, row in fresh
            if approves(rules, {"event": PROPOSED, "path": row["path"], "value": row["value"]})
        ]
        return [{"op": "approve-change", "change": name} for name in agreed]

    def landed(self, change: str) -> None:
        """An approval was executed, whatever came of it: it is not said again."""
        self._said.add(change)

    def _rules(self) -> tuple[Approval, ...]:
        try:
            text = self._path.read_text(encoding="utf-8")
            return _File.model_validate(tomllib.loads(text)).approve
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
            if str(error) != self._wrong:
                self._wrong = str(error)
                log.warning("approvals cannot be read", file=APPROVALS_FILE, reason=self._wrong)
            return ()
