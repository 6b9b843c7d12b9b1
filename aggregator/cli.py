"""The `aggregator` command: run the desk, look at its books."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from wire.errors import HearthgridError

app = typer.Typer(
    help="The aggregator: DSO desk, grid supervisor, flexibility auctions, audit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Config = Annotated[Path, typer.Argument(help="The configuration file (TOML).")]


@app.command()
def run(
    config: Config,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The broker's port, if another.")
    ] = None,
) -> None:
    """Fund addresses, open auctions, keep books and audit readings until stopped."""
    from aggregator.process import run_aggregator  # noqa: PLC0415  (help should not wait)

    run_aggregator(config, port)


@app.command()
def status(
    config: Config,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show counts, the supervisor's totals, auctions and evidence."""
    from aggregator.process import read_status  # noqa: PLC0415

    found = read_status(config)
    if as_json:
        print(json.dumps(found))
        return
    for section in ("counts", "totals"):
        for name, value in found[section].items():
            print(f"{name.replace('_', ' ')}: {value}")
    for row in found["auctions"]:
        state = "open" if row["boughtWh"] < 0 else f"bought {row['boughtWh']} Wh"
        print(f"auction {row['auction']}: slot {row['slot']}, {state}")
    for row in found["evidence"]:
        print(f"evidence {row['kind']} {row['subject']}: {row['detail']}")


@app.command()
def schedule(
    config: Annotated[
        Path, typer.Argument(help="The configuration file, or the folder with aggregator.toml.")
    ],
    day: Annotated[
        str, typer.Option(help="UTC date, YYYY-MM-DD; today, or else the last with a schedule.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a day's schedule: asked, approved by the DSO, measured, deviation."""
    from aggregator.process import read_schedule  # noqa: PLC0415

    found = read_schedule(config, day)
    if as_json:
        print(json.dumps(found))
        return
    if not found["slots"]:
        print(f"{found['day']}: no schedule")
        return
    print(f"{found['day']}, net energy in Wh (+ import)")
    print(f"{'UTC':5} {'asked':>9} {'approved':>9} {'measured':>9} {'deviation':>9}")
    for row in found["slots"]:
        names = ("askedWh", "approvedWh", "measuredWh", "deviationWh")
        cells = ("–" if row[name] is None else str(row[name]) for name in names)
        line = " ".join([row["start"][11:16], *(f"{cell:>9}" for cell in cells)])
        print(f"{line}  {row['reason']}".rstrip())


@app.command()
def accounts(
    config: Config,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the participants' private accounts; one below zero is a bill."""
    from aggregator.process import read_accounts  # noqa: PLC0415

    rows = read_accounts(config)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        owed = f", its addresses owe {row['owedUc']}" if row["owedUc"] else ""
        print(f"{row['participant']}: {row['balanceUc']} µ¤{owed}")


@app.command(context_settings={"ignore_unknown_options": True})
def pay(
    config: Config,
    participant: Annotated[str, typer.Argument(help="Its identity, hg1….")],
    amount_uc: Annotated[
        int, typer.Argument(help="What it paid; below zero: what it was paid [µ¤].")
    ],
    reference: Annotated[str, typer.Option(help="Of the payment; the same one is booked once.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Book a payment between a participant and the DSO, also while the aggregator runs."""
    from aggregator.process import book_payment  # noqa: PLC0415

    booked = book_payment(config, participant, amount_uc, reference)
    if as_json:
        print(json.dumps({"booked": booked}))
    else:
        print("booked" if booked else f"{reference}: was booked before; nothing changed")


def main() -> None:
    """Console script; a mistake is one line and exit code 2."""
    try:
        app()
    except HearthgridError as error:
        print(f"aggregator: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
