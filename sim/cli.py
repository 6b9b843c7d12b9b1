"""The `hearthgrid` command: the demo and the simulators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sim.congestion_cli import congestion
from sim.consensus_cli import simulate
from sim.linkage_cli import linkage
from sim.poe_cli import proof_of_energy
from sim.scenario_cli import app as scenario_app
from wire.errors import ConfigError

app = typer.Typer(
    help="Hearthgrid: homes trade electricity with their neighbours and their aggregator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def demo(
    homes: Annotated[int, typer.Option(min=4, max=60, help="Homes on the feeder.")] = 10,
    speed: Annotated[float, typer.Option(min=1, max=2000, help="Market seconds a second.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of load and sunshine.")] = 1,
    slots: Annotated[int, typer.Option(min=2, max=672, help="Slots of 15 minutes.")] = 96,
    profiles: Annotated[
        Path | None,
        typer.Option(help="Folder of measured profiles (CityLearn's or lemlab's layout)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report, chain and databases.")] = Path(
        "out/demo"
    ),
    start_hour: Annotated[int, typer.Option(min=0, max=23, help="First hour (UTC).")] = 0,
    markets: Annotated[
        str, typer.Option(help='Where homes trade: names with commas, or "all"; see docs.')
    ] = "",
    sealed: Annotated[bool, typer.Option("--sealed", help="Bids are sealed.")] = False,
    address_slots: Annotated[
        int, typer.Option(min=0, max=672, help="Slots traded under one address (0: all of them).")
    ] = 4,
    page_port: Annotated[int, typer.Option(help="Port of the live page (0: any free).")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """
    Run one feeder for a day, every part real, and audit it.

    Starts broker, CSM-DB, four validators, aggregator, analytics, the homes' devices and one HEM
    per home as processes of their own, shows a live page, prints a summary and leaves a report in
    --out.

    Exit code 0: audit passed. 1: audit failed or a process died. 2: something given is wrong.
    """
    from sim.demo import DemoOptions  # noqa: PLC0415  (help should not wait for the imports)
    from sim.feeder import trade_of  # noqa: PLC0415
    from sim.show import run_and_show  # noqa: PLC0415

    options = DemoOptions(
        out=out, homes=homes, speed=speed, seed=seed, slots=slots, profiles=profiles,
        page_port=page_port, start_hour=start_hour,
        trade=trade_of(markets, sealed=sealed, address_slots=address_slots),
    )  # fmt: skip
    raise typer.Exit(run_and_show(options, as_json=as_json))


app.command("congestion")(congestion)
app.command("linkage")(linkage)
app.command("sim")(simulate)
app.command("poe")(proof_of_energy)
app.add_typer(scenario_app, name="scenario")


def main() -> None:
    """Console script."""
    try:
        app()
    except ConfigError as error:
        print(f"hearthgrid: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
