"""
Which proposed changes a participant approves by itself. Pure.

A change of the rules needs the approval of several (`ledger.contracts.governance`). An operator
says beforehand, in a program's configuration, which changes it always agrees with:

    [[approve]]
    path = "prices.*"         # any of the prices
    least = 50000             # from 50000
    most = 400000             # to 400000 µ¤/kWh, both allowed

    [[approve]]
    path = "template.escrow"  # the escrow contract
    value = true              # switched on; switching it off is left to a person

What no rule covers is left to a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

PROPOSED = "change-proposed"


class Approval(BaseModel):
    """
    One kind of change that is approved: a path and, where given, what its new value may be.

    Raises:
        ValueError: (in a configuration) bounds the wrong way round, or bounds beside a value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: StrictStr = Field(min_length=1, max_length=200)
    """Of the parameter (`ledger.contracts.parameters`); `*`, `?` and `[…]` as in file names."""
    least: StrictInt | None = None
    """The value is an integer and not below this; its unit is the parameter's."""
    most: StrictInt | None = None
    """The value is an integer and not above this; its unit is the parameter's."""
    value: StrictBool | StrictStr | None = None
    """The value is exactly this."""

    @model_validator(mode="after")
    def _can_match(self) -> Approval:
        if self.value is not None and not (self.least is None and self.most is None):
            raise ValueError("give either `value` or `least` and `most`")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"`least` {self.least} is above `most` {self.most}")
        return self

    def covers(self, path: str, value: int | bool | str) -> bool:
        """Is setting this parameter to this value approved?"""
        if not fnmatchcase(path, self.path):
            return False
        if self.value is not None:
            # The type counts: in Python True equals 1, on the ledger it does not.
            return type(value) is type(self.value) and value == self.value
        if self.least is None and self.most is None:
            return True
        if type(value) is not int:
            return False
        return (self.least is None or self.least <= value) and (
            self.most is None or value <= self.most
        )


def approves(rules: Iterable[Approval], event: Mapping[str, Any]) -> bool:
    """
    Does one of the rules approve of what an event proposes?

    Args:
        rules: those of the configuration; the first that covers the change is enough
        event: of the ledger; anything but `change-proposed` is approved by nobody
    """
    if event["event"] != PROPOSED:
        return False
    return any(rule.covers(event["path"], event["value"]) for rule in rules)
