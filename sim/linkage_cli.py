"""`hearthgrid linkage`: which addresses are one home's? Attacks, baselines, a table, a plot."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wire.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from sim.linkage import Result

TRAIN_SEED = 1_000_003
"""Added to the seed of the month on which the attacker learns."""


def linkage(
    homes: Annotated[int, typer.Option(min=4, max=60, help="Homes on the feeder.")] = 12,
    days: Annotated[
        int, typer.Option(min=2, max=60, help="Days of each attacked month; intervals are of days.")
    ] = 30,
    train_days: Annotated[
        int, typer.Option(min=1, max=60, help="Days of the month on which the attacker learns.")
    ] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the first attacked month.")] = 1,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="Months to attack.")] = 1,
    address_slots: Annotated[
        int, typer.Option(min=1, max=96, help="Slots that a fresh address is for.")
    ] = 4,
    study: Annotated[
        bool, typer.Option("--study", help="Amounts alone, by number of homes and slots, too.")
    ] = False,
    observation: Annotated[
        Path | None,
        typer.Option(help="Attack what is recorded in this folder, or a finished demo's chain."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the attacked months' observations in this folder.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Write a plot (SVG) to this file.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Months at a time.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """
    Link the trading addresses of a month's homes, from all that is public.

    Runs a month under one address for each home and a month under fresh ones, attacks both in
    several ways, and compares with chance and with what the market's content would give
    (docs/concepts/privacy.md).

    Exit code 0: fixed addresses are linked, and fresh ones no better than the market's content
    allows by itself (within both intervals). 1: not so. 2: something given is wrong.
    """
    _need_scipy()
    started_s = time.monotonic()
    if observation is not None:
        told = attack_recorded(observation, homes, train_days, seed, address_slots)
        typer.echo(json.dumps(told) if as_json else _describe(told))
        return
    found = measure(
        homes=homes, days=days, train_days=train_days, seed=seed, seeds=seeds,
        address_slots=address_slots, with_study=study, out=out, jobs=jobs,
    )  # fmt: skip
    if chart is not None:
        _write_chart(found, chart)
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _tell(found, time.monotonic() - started_s)
    raise typer.Exit(0 if found["ok"] else 1)


def measure(
    *,
    homes: int,
    days: int,
    train_days: int,
    seed: int,
    seeds: int,
    address_slots: int,
    with_study: bool = False,
    out: Path | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """All numbers, by mode and attack; `ok` when fixed is linked and fresh is not."""
    from sim import linkage as attacks  # noqa: PLC0415  (help should not wait for the imports)
    from sim.month_habits import FIXED, FRESH  # noqa: PLC0415
    from sim.observation import save  # noqa: PLC0415

    habits = {"fixed": FIXED, "fresh": replace(FRESH, address_slots=address_slots)}
    tasks = [
        attacks.Task(homes=homes, days=length, seed=one, habits=mode)
        for mode in habits.values()
        for one, length in (
            (seed + TRAIN_SEED, train_days), *((seed + n, days) for n in range(seeds)),
        )
    ]  # fmt: skip
    ran = attacks.run_all(tasks, jobs)
    results: dict[str, Result] = {}
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(habits):
        runs = ran[number * (1 + seeds) : (number + 1) * (1 + seeds)]
        if out is not None:
            for index, (observed, _) in enumerate(runs[1:]):
                save(observed, out / f"{name}-{seed + index}")
        months = [attacks.Month.of(*run) for run in runs]
        results[name] = attacks.attack(months[0], months[1:], address_slots)
        if with_study and name == "fixed":
            sizes = sorted({max(homes // 4, 2), max(homes // 2, 2), homes})
            rows = attacks.study(months[0], months[1:], sizes)
    return {
        "homes": homes, "days": days, "seed": seed, "seeds": seeds, "trainDays": train_days,
        "addressSlots": address_slots, "chance": 1 / homes, "ok": holds(results),
        "baselines": list(attacks.BASELINES),
        "modes": {name: one.to_json() for name, one in results.items()}, "study": rows,
    }  # fmt: skip


def holds(results: dict[str, Result]) -> bool:
    """Is fixed linked, and fresh no better than by content, within both intervals?"""
    fixed, fresh = results["fixed"].linked, results["fresh"].linked
    combined, market = fresh["combined"], fresh["market"]
    return (
        fixed["combined"].mean > 0.95
        and combined.mean - combined.margin <= market.mean + market.margin
    )


def attack_recorded(
    folder: Path, homes: int, train_days: int, seed: int, address_slots: int
) -> dict[str, Any]:
    """
    Chain the addresses of a recorded observation; nobody says whether it is right.

    Raises:
        ConfigError: the folder has no observation and no chain.
    """
    from sim import linkage as attacks  # noqa: PLC0415
    from sim.linkage_attack import learn  # noqa: PLC0415
    from sim.linkage_tracks import read  # noqa: PLC0415
    from sim.month_habits import FIXED, FRESH  # noqa: PLC0415
    from sim.observation import load  # noqa: PLC0415

    reading = read(load(folder))
    kept = any(len(track.nets_wh) > address_slots for track in reading.tracks.values())
    # what an address is worth as a clue is learned where homes do as these do
    habits = FIXED if kept else replace(FRESH, address_slots=address_slots)
    task = attacks.Task(homes=homes, days=train_days, seed=seed + TRAIN_SEED, habits=habits)
    train = attacks.Month.of(*task.run())
    weights = learn(train.reading, train.truth.home_of, address_slots, ["combined"])
    chains = attacks.clusters(reading, weights)
    return {
        "addresses": len(reading.tracks), "slots": len(reading.slots),
        "addressSlots": address_slots, "chains": chains,
    }  # fmt: skip


def _need_scipy() -> None:
    try:
        import scipy  # type: ignore[import-untyped]  # noqa: F401, PLC0415
    except ImportError:
        raise ConfigError(
            "hearthgrid linkage: needs scipy; pip install 'hearthgrid[linkage]'"
        ) from None


def _write_chart(found: dict[str, Any], chart: Path) -> None:
    from sim.linkage_plot import svg  # noqa: PLC0415

    try:
        chart.parent.mkdir(parents=True, exist_ok=True)
        chart.write_text(svg(found), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{chart}: cannot be written: {error.strerror}") from None


def _describe(told: dict[str, Any]) -> str:
    lines = [f"{told['addresses']} addresses in {told['slots']} slots; believed to be one home's:"]
    lines += [" ".join(chain) for chain in told["chains"]]
    return "\n".join(lines)


def _tell(found: dict[str, Any], took_s: float) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    console.print(_linked_table(found))
    console.print(_followed_table(found))
    if found["study"]:
        console.print(_study_table(found))
    verdict = "holds" if found["ok"] else "DOES NOT HOLD"
    console.print(
        f"Fixed addresses are linked, fresh ones no better than by content: {verdict}."
        f" {took_s:.0f} s."
    )


def _linked_table(found: dict[str, Any]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        title=f"{found['homes']} homes, {found['days']} days, addresses for"
        f" {found['addressSlots']} slots: % linked over a boundary by who knows the past",
        title_justify="left",
    )
    table.add_column("attack", no_wrap=True)
    for mode in found["modes"]:
        table.add_column(mode, justify="right")
    table.add_row("(chance)", *[f"{100 * found['chance']:.1f}"] * len(found["modes"]))
    for attack in found["modes"]["fresh"]["linked"]:
        label = f"({attack})" if attack in found["baselines"] else attack
        shares = (one["linked"][attack] for one in found["modes"].values())
        table.add_row(label, *map(_percent, shares))
    return table


def _followed_table(found: dict[str, Any]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Chains over the month, from nothing", title_justify="left")
    table.add_column("addresses, attack", no_wrap=True)
    for name in ("attributed %", "daily error %", "profile corr. %", "load corr. %"):
        table.add_column(name, justify="right")
    for mode, one in found["modes"].items():
        for attack, row in one["followed"].items():
            table.add_row(f"{mode}, {attack}", *map(_percent, row.values()))
    return table


def _study_table(found: dict[str, Any]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Amounts alone", title_justify="left")
    for name in ("homes", "slots of an address", "chance %", "linked %", "attributed %"):
        table.add_column(name, justify="right")
    for row in found["study"]:
        table.add_row(
            str(row["homes"]), str(row["addressSlots"]), f"{100 * row['chance']:.1f}",
            _percent(row["linked"]), _percent(row["attributed"]),
        )  # fmt: skip
    return table


def _percent(one: dict[str, float]) -> str:
    return f"{100 * one['mean']:.1f} ± {100 * one['margin']:.1f}"
