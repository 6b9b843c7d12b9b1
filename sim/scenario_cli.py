"""`hearthgrid scenario`: the papers' examples from the command line."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from sim.scenarios import Outcome, Scenario, Tell

app = typer.Typer(
    help="The papers' examples, each through a real broker and four validators.",
    no_args_is_help=True,
)


@app.command("list")
def list_all(
    names: Annotated[
        bool, typer.Option("--names", help="Print the names only, one a line.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the scenarios."""
    from rich.console import Console  # noqa: PLC0415  (help should not wait for the imports)
    from rich.table import Table  # noqa: PLC0415

    from sim.scenarios import scenarios  # noqa: PLC0415

    found = scenarios().values()
    if as_json:
        rows = [{"name": one.name, "paper": one.paper, "claim": one.claim} for one in found]
        typer.echo(json.dumps(rows))
        return
    if names:
        typer.echo("\n".join(one.name for one in found))
        return
    table = Table(show_lines=True)
    for column in ("name", "paper", "what it shows"):
        table.add_column(column, no_wrap=column == "name")
    for one in found:
        table.add_row(one.name, one.paper, one.claim)
    Console().print(table)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="As `hearthgrid scenario list` has it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    advisory: Annotated[
        Path | None,
        typer.Option(help="vulnerable-meter: a CSAF file; n3's meter is what it names first."),
    ] = None,
    patch: Annotated[
        bool, typer.Option("--patch/--no-patch", help="vulnerable-meter: n3 can be updated.")
    ] = True,
) -> None:
    """
    Play one example and compare with its paper.

    Exit code 0: the paper's outcome. 1: another one. 2: no such scenario.
    """
    from sim.scenarios import scenarios  # noqa: PLC0415  (help should not wait for the imports)

    found = scenarios().get(name)
    if found is None:
        raise typer.BadParameter(f"no scenario {name!r}; `hearthgrid scenario list` names them")
    if advisory is not None or not patch:
        found = with_advisory(found, advisory, patch)
    raise typer.Exit(_run(found, as_json=as_json))


async def play(scenario: Scenario, folder: Path, tell: Tell) -> Outcome:
    """
    Set a stage up in a folder and play a scenario on it.

    Raises:
        ScenarioError: the outcome is not the paper's.
        StageError: the stage failed.
    """
    from sim.stage import stage  # noqa: PLC0415

    async with stage(folder, **scenario.genesis) as running:
        return await scenario.play(running, tell)


def with_advisory(scenario: Scenario, file: Path | None, patch: bool) -> Scenario:
    """
    The scenario of a vulnerable meter, with a document and an ending of the caller's.

    Args:
        file: a CSAF document; None: our own
        patch: whether the meter can be updated

    Raises:
        ConfigError, WireError: the document cannot be read.
    """
    from csmdb.advisories import read_file  # noqa: PLC0415
    from sim.scenarios import vulnerable_meter  # noqa: PLC0415

    if scenario.name != vulnerable_meter.NAME:
        raise typer.BadParameter(f"--advisory and --no-patch are for {vulnerable_meter.NAME}")
    raw = vulnerable_meter.made_up() if file is None else read_file(file)
    play_it = partial(vulnerable_meter.play, raw=raw, can_update=patch)
    return replace(scenario, play=play_it)


def _run(scenario: Scenario, *, as_json: bool) -> int:
    import structlog  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    from sim.scenarios import ScenarioError  # noqa: PLC0415
    from sim.stage import StageError  # noqa: PLC0415

    # the story is told by the scenario; what nodes and broker log beside it is for their operators
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    console = Console(stderr=as_json)
    console.print(f"[bold]{scenario.name}[/bold]  {scenario.paper}\n{scenario.claim}\n")
    started_s = time.monotonic()

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    try:
        with tempfile.TemporaryDirectory(prefix="hearthgrid-") as folder:
            outcome = asyncio.run(play(scenario, Path(folder), tell))
    except (ScenarioError, StageError) as error:
        print(f"hearthgrid: {scenario.name}: {error}", file=sys.stderr)
        if as_json:
            typer.echo(json.dumps({"name": scenario.name, "passed": False, "error": str(error)}))
        return 1
    if as_json:
        facts = {"name": scenario.name, "paper": scenario.paper, "passed": True}
        typer.echo(json.dumps({**facts, "outcome": outcome}))
        return 0
    if "balances" in outcome:
        console.print(_table(outcome["balances"]))
    console.print(f"\nThe paper's outcome, in {time.monotonic() - started_s:.1f} s.")
    return 0


def _table(balances: dict[str, dict[str, Any]]) -> Table:
    """Free and locked money before and after."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Balances [¤]")
    table.add_column("who", no_wrap=True)
    for column in ("before", "locked", "after", "locked", "change"):
        table.add_column(column, justify="right")
    for name, row in balances.items():
        values = [row[key] for key in ("beforeUc", "lockedBeforeUc", "afterUc", "lockedAfterUc")]
        change_uc = values[2] + values[3] - values[0] - values[1]
        texts = [f"{value / 10**6:,.6f}" if value else "–" for value in values]
        table.add_row(name, *texts, f"{change_uc / 10**6:+,.6f}" if change_uc else "–")
    return table
