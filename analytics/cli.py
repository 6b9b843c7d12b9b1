"""The `analytics` command: run the ingest and the console, make a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from wire.errors import ConfigError, HearthgridError

app = typer.Typer(
    help="Analytics: follows the market, shows the operators' console, makes reports.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration file (TOML); options override it.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="Key file of the service.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Certificate with the role analytics.")
    ] = None,
    genesis: Annotated[Path | None, typer.Option(help="The market's genesis.json.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of analytics.sqlite.")] = None,
    host: Annotated[str | None, typer.Option(help="The broker's host.")] = None,
    port: Annotated[int | None, typer.Option(help="The broker's port.")] = None,
    web_host: Annotated[str | None, typer.Option(help="Address of the console.")] = None,
    web_port: Annotated[int | None, typer.Option(help="Port of the console; 0 takes any.")] = None,
    currency: Annotated[str | None, typer.Option(help="Sign shown with amounts.")] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the console's port here once it listens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say where as JSON.")] = False,
) -> None:
    """Follow the market and show the console until stopped."""
    from analytics.config import load_config  # noqa: PLC0415  (help should not wait)
    from analytics.process import run_analytics  # noqa: PLC0415

    options: dict[str, dict[str, Any]] = {
        "service": {"key": key_file, "certificate": certificate, "data_dir": data_dir},
        "broker": {"host": host, "port": port},
        "market": {"genesis": genesis, "currency": currency},
        "web": {"host": web_host, "port": web_port},
    }
    run_analytics(load_config(config, options), port_file, as_json=as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of analytics.sqlite.")],
    genesis: Annotated[
        Path | None, typer.Option(help="genesis.json, if not in or above the folder.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: the folder.")] = None,
    currency: Annotated[str, typer.Option(help="Sign shown with amounts.")] = "¤",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write report.html and report.json from what analytics has seen."""
    from analytics.report import build_report, write_report  # noqa: PLC0415
    from ledger.genesis import load_genesis  # noqa: PLC0415

    made = build_report(folder, load_genesis(genesis or _find_genesis(folder)), currency=currency)
    page = write_report(made, out or folder)
    if as_json:
        print(json.dumps(made))
        return
    for line in made["lines"]:
        print(line)
    print(f"Report: {page}")


def _find_genesis(folder: Path) -> Path:
    for place in (folder, folder.parent, folder.parent.parent):
        if (place / "genesis.json").is_file():
            return place / "genesis.json"
    raise ConfigError(f"{folder}: no genesis.json in or above it; give --genesis")


def main() -> None:
    """Console script; a mistake is one line and exit code 2."""
    try:
        app()
    except HearthgridError as error:
        print(f"analytics: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
