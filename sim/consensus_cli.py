"""`hearthgrid sim`: the consensus simulator from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sim.schedules import Outcome

SHOWN_FAILURES = 10


def simulate(
    seed: Annotated[int | None, typer.Option(min=0, help="Replay this one schedule.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Run seeds 0 to N−1.")] = None,
    validators: Annotated[
        int, typer.Option(min=1, max=31, help="Validators, with --seed; --seeds runs 4 and 7.")
    ] = 4,
    full: Annotated[
        bool, typer.Option(help="With the real ledger and light clients; --seeds runs 4 and 5.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """
    Try to break the ledger's consensus: faults, crashes, partitions, Byzantine validators.

    A seed is one schedule: what the network loses, delays, repeats and reorders, who crashes when,
    and who lies how. Everything that must always hold is checked after every event; when the faults
    end, everything submitted must become final. With --full the nodes execute a real market: money,
    energy, evidence, a validator that joins and one that leaves are checked too.

    Exit code 0: nothing was violated. 1: something was. 2: something given is wrong.
    """
    if (seed is None) == (seeds is None):
        raise typer.BadParameter("give either --seed N or --seeds N")
    if seed is not None:
        if full and validators not in _schedules(full=True).SIZES:
            raise typer.BadParameter("with --full: 4, or 5 with one that joins")
        raise typer.Exit(_replay(seed, validators, full=full, as_json=as_json))
    assert seeds is not None
    raise typer.Exit(_run_many(seeds, full=full, as_json=as_json))


def _schedules(*, full: bool) -> ModuleType:
    """Where the seeds are schedules of the core alone, or of the whole ledger."""
    return import_module("sim.consensus_full" if full else "sim.schedules")


def _replay(seed: int, validators: int, *, full: bool, as_json: bool) -> int:
    """Play one schedule twice: it must be the same both times."""
    play: Callable[[int, int], Outcome] = _schedules(full=full).play
    first, again = play(seed, validators), play(seed, validators)
    same = first.log_hash == again.log_hash
    passed = same and not first.violations
    if as_json:
        typer.echo(_json({**_facts(first), "again": again.log_hash, "passed": passed}))
        return int(not passed)
    typer.echo(
        f"seed {seed}, {validators} validators: {first.mix} network, {first.actor} Byzantine"
    )
    typer.echo(f"views {first.views}, blocks {first.blocks}, validators caught {first.evidence}")
    typer.echo(f"event log {first.log_hash}\nagain     {again.log_hash}")
    for violation in first.violations:
        typer.echo(f"violated  {violation}")
    if not same:
        typer.echo("violated  the same seed ran differently")
    return int(not passed)


def _run_many(seeds: int, *, full: bool, as_json: bool) -> int:
    from rich.console import Console  # noqa: PLC0415

    schedules = _schedules(full=full)
    console = Console(stderr=as_json)
    started_s = time.monotonic()
    try:
        outcomes = _watch(seeds, schedules, console)
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return 130
    wall_s = round(time.monotonic() - started_s, 1)
    failed = sorted((one for one in outcomes if one.violations), key=lambda one: one.seed)
    if as_json:
        rows = [
            {"validators": n, "actor": actor, **_sums(group)} for (n, actor), group in _by(outcomes)
        ]
        total = {**_sums(outcomes), "wallSeconds": wall_s, "sizes": list(schedules.SIZES)}
        typer.echo(_json({**total, "rows": rows, "failed": [_facts(one) for one in failed]}))
        return int(bool(failed))
    console.print(_table(outcomes))
    console.print(f"{len(outcomes)} runs in {wall_s} s.")
    for one in failed[:SHOWN_FAILURES]:
        console.print(
            f"\n{one.mix} network, {one.actor} Byzantine: {one.violations[0]}", style="red"
        )
        command = "hearthgrid sim --full" if full else "hearthgrid sim"
        console.print(f"  {command} --seed {one.seed} --validators {one.validators}")
    if len(failed) > SHOWN_FAILURES:
        console.print(f"\n… and {len(failed) - SHOWN_FAILURES} more (--json lists all).")
    return int(bool(failed))


def _watch(seeds: int, schedules: ModuleType, console: Console) -> list[Outcome]:
    """Run all seeds behind a progress bar."""
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    outcomes: list[Outcome] = []
    violated = 0
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("runs", total=seeds * len(schedules.SIZES))
        for some in schedules.play_all(range(seeds)):
            outcomes += some
            violated += sum(bool(one.violations) for one in some)
            text = f"runs, {violated} violated" if violated else "runs"
            progress.update(task, advance=len(some), description=text)
    return outcomes


def _table(outcomes: list[Outcome]) -> Table:
    """One row for each number of validators and kind of Byzantine one."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Consensus under faults")
    for name in ("validators", "Byzantine"):
        table.add_column(name)
    for name in ("runs", "violations", "views", "blocks", "seconds"):
        table.add_column(name, justify="right")
    for (n, actor), group in _by(outcomes):
        sums = _sums(group)
        table.add_row(str(n), actor, *(f"{value:,}" for value in sums.values()))
    table.add_section()
    table.add_row("all", "", *(f"{value:,}" for value in _sums(outcomes).values()))
    return table


def _by(outcomes: list[Outcome]) -> list[tuple[tuple[int, str], list[Outcome]]]:
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for one in sorted(outcomes, key=lambda one: (one.validators, one.seed)):
        groups.setdefault((one.validators, one.actor), []).append(one)
    return list(groups.items())


def _sums(outcomes: Iterable[Outcome]) -> dict[str, int | float]:
    """Runs, violations, views, blocks and processor seconds, in the order of the table."""
    group = list(outcomes)
    return {
        "runs": len(group),
        "violations": sum(bool(one.violations) for one in group),
        "views": sum(one.views for one in group),
        "blocks": sum(one.blocks for one in group),
        "seconds": round(sum(one.seconds for one in group), 1),
    }


def _facts(one: Outcome) -> dict[str, Any]:
    return {
        "seed": one.seed,
        "validators": one.validators,
        "mix": one.mix,
        "actor": one.actor,
        "violations": list(one.violations),
        "views": one.views,
        "blocks": one.blocks,
        "caught": one.evidence,
        "log": one.log_hash,
    }


def _json(value: object) -> str:
    return json.dumps(value)
