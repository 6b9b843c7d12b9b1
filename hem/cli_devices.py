"""`hem detect`, `hem device …` and `hem setup`: find devices, try them out, add them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from wire.errors import ConfigError

device_app = typer.Typer(help="The home's devices.", no_args_is_help=True)

Provisioned = Annotated[Path, typer.Argument(help="Provisioning file of the home (TOML).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TIMEOUT_S = 1.0


def detect(
    place: Annotated[
        str, typer.Argument(help="A network (192.168.1.0/24), an address, or a serial port.")
    ],
    port: Annotated[
        list[int] | None, typer.Option(help="TCP port, as often as wanted (502 and 1502).")
    ] = None,
    units: Annotated[str | None, typer.Option(help="Unit ids, such as 1-10,100,126.")] = None,
    baud: Annotated[int | None, typer.Option(help="Of a serial port; all usual ones.")] = None,
    parity: Annotated[str | None, typer.Option(help="Of a serial port: N, E or O.")] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The hosts are adapters of serial lines.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Addresses that are not private are meant.")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.05, max=30, help="Of every question [s].")
    ] = TIMEOUT_S,
    out: Annotated[Path | None, typer.Option(help="File for the entries; must not exist.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bar on standard error.")] = False,
    as_json: Json = False,
) -> None:
    """Look for devices. Reads only. Exit code 1 when nothing answers."""
    from hem.gateway import detect as finder  # noqa: PLC0415  (help should not wait for imports)
    from hem.gateway.places import (  # noqa: PLC0415
        PORTS,
        UNITS,
        network_places,
        serial_places,
        units_of,
    )
    from hem.gateway.proposal import proposal, to_json  # noqa: PLC0415

    serial = place.startswith("/")
    if serial:
        places = serial_places(place, baud, parity)
    else:
        places = network_places(place, port or PORTS, public=public, adapter=adapter)
    asked = units_of(units or UNITS, serial=serial or adapter)
    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} is there already; give another file")
    with _bar(len(places.hosts), quiet or as_json) as tell:
        found = asyncio.run(finder.detect(places, asked, timeout_s, tell))
    if not found:
        typer.echo(f"hem: nothing on {place} answered as a Modbus device", err=True)
        if as_json:
            typer.echo("[]")
        raise typer.Exit(1)
    text = json.dumps(to_json(found)) + "\n" if as_json else proposal(found)
    if out is None:
        typer.echo(text, nl=False)
        return
    _write_new(out, text)
    typer.echo(f"hem: {len(found)} devices, see {out}", err=True)


@device_app.command("test")
def device_test(
    provisioning: Provisioned,
    name: Annotated[str, typer.Argument(help="Of the device; all of them if left out.")] = "",
    control: Annotated[
        bool, typer.Option("--control", help="Hold a battery for some seconds, too (writes).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read devices three times and judge what they say. Exit code 1 when one fails."""
    from hem.config import load_provisioning  # noqa: PLC0415
    from hem.gateway.check import (  # noqa: PLC0415
        Report,
        alone,
        can_hold,
        chosen,
        hold_device,
        read_device,
    )

    config = load_provisioning(provisioning)
    devices = chosen(config, name, provisioning)

    async def all_of(folder: Path) -> list[Report]:
        reports = []
        for device in devices:
            report = await read_device(device, config)
            if control and report.ok and can_hold(device, report):
                held = await hold_device(device, config, folder, _say)
                report.checks.extend(held.checks)
            reports.append(report)
        if control and not any(c.name in _CONTROL for r in reports for c in r.checks):
            if all(report.ok for report in reports):
                raise ConfigError(
                    f"{provisioning}: no battery that can be commanded; --control needs one"
                )
            _say("no battery that can be commanded answered well, so none was held")
        return reports

    with alone(config) as folder:
        reports = asyncio.run(all_of(folder))
    if as_json:
        typer.echo(json.dumps([report.to_json() for report in reports]))
    else:
        typer.echo("\n".join(line for report in reports for line in report.to_text()))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@device_app.command("list")
def device_list(as_json: Json = False) -> None:
    """Show the products that can be set up."""
    from hem.gateway.form import products  # noqa: PLC0415

    found = products()
    if as_json:
        typer.echo(json.dumps([each.to_json() for each in found]))
        return
    for each in found:
        joined = (" or " if each.one_of else ", ").join(each.capabilities)
        control = ", commanded" if each.controllable else ""
        typer.echo(f"{each.id:<22} {each.vendor}: {', '.join(each.products)} ({joined}{control})")


@device_app.command("schema")
def device_schema() -> None:
    """Print the JSON Schema of a `[[devices]]` entry."""
    from hem.gateway import form  # noqa: PLC0415

    typer.echo(json.dumps(form.device_schema(), indent=2))


def setup(
    provisioning: Provisioned,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8_101,
    host: Annotated[
        str, typer.Option(help="Address to serve at; the page is plain HTTP.")
    ] = "127.0.0.1",
) -> None:
    """Serve a page on which devices are chosen, tried out and added."""
    import runtime.log  # noqa: F401, PLC0415  (before structlog is imported)
    from hem.setup_page import run_setup  # noqa: PLC0415

    run_setup(provisioning, host, port, lambda url: typer.echo(f"open {url}"))


_CONTROL = ("control", "held", "neutral")


def _say(text: str) -> None:
    typer.echo(f"hem: {text}", err=True)


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"--out: {path} cannot be written: {reason}; give another") from None


@contextmanager
def _bar(hosts: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar on standard error, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _text: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=hosts)
        yield lambda done, text: bar.update(task, completed=done, description=text)
