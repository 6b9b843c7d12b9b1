"""
The papers' examples, played on a real market (`sim.stage`): `hearthgrid scenario run NAME`.

A scenario is an async function of a stage and of `tell`, which prints a line of its story. It
checks the paper's outcome itself, with `expect`, and returns what came out as a JSON object.

    @scenario("petra-sequence", paper="PETra 2017, Figure 2", claim="…")
    async def sequence(stage: Stage, tell: Tell) -> Outcome: …
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

from sim.stage import Stage

Outcome = dict[str, Any]
Tell = Callable[[str], None]
Play = Callable[[Stage, Tell], Awaitable[Outcome]]


class ScenarioError(Exception):
    """
    What came out is not what the paper says.

    Args:
        what: that was compared
        wanted: the paper's value
        found: ours
    """

    def __init__(self, what: str, wanted: object, found: object) -> None:
        super().__init__(f"{what}: the paper's outcome is {wanted!r}, this one is {found!r}")
        self.what, self.wanted, self.found = what, wanted, found


@dataclass(frozen=True, slots=True)
class Scenario:
    """One example."""

    name: str
    paper: str
    claim: str
    play: Play
    genesis: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Changes of the stage's genesis."""


_FOUND: dict[str, Scenario] = {}


def scenario(
    name: str, *, paper: str, claim: str, **genesis_changes: Any
) -> Callable[[Play], Play]:
    """
    Register a function as a scenario.

    Args:
        name: on the command line
        paper: whose example it is, and where it stands there
        claim: what is shown, in one sentence
        genesis_changes: arguments of `sim.stage.stage` (`start_ms`, or fields of `Genesis`)
    """

    def register(play: Play) -> Play:
        assert name not in _FOUND, f"two scenarios are named {name}"
        _FOUND[name] = Scenario(name, paper, claim, play, MappingProxyType(genesis_changes))
        return play

    return register


def scenarios() -> dict[str, Scenario]:
    """All scenarios by name, in order of names."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return dict(sorted(_FOUND.items()))


def expect(what: str, wanted: object, found: object) -> None:
    """
    Compare with the paper.

    Raises:
        ScenarioError: they differ.
    """
    if wanted != found:
        raise ScenarioError(what, wanted, found)
