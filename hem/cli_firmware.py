"""`hem firmware …`: what there is for the meter, install it, how it stands."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wire.errors import ConfigError

if TYPE_CHECKING:
    from hem.config import Firmware, Provisioning
    from hem.ems.firmware_status import FirmwareView

firmware_app = typer.Typer(help="Signed firmware of the meter.", no_args_is_help=True)

Provisioned = Annotated[Path, typer.Argument(help="Provisioning file of the home (TOML).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@firmware_app.command("check")
def firmware_check(provisioning: Provisioned, as_json: Json = False) -> None:
    """Ask the repository now; installs nothing. Exit code 1 names what is not believed."""
    from hem.ems.firmware import look_only  # noqa: PLC0415  (help should not wait for imports)
    from hem.ems.firmware_status import FirmwareView  # noqa: PLC0415
    from hem.firmware_client import RepositoryAwayError  # noqa: PLC0415
    from hem.gateway.client import GatewayClient, GatewayError  # noqa: PLC0415
    from wire.errors import FirmwareRefusedError  # noqa: PLC0415

    config, section = _configured(provisioning)

    async def look() -> FirmwareView:
        gateway = GatewayClient(config.gateway.socket)
        try:
            return await look_only(section, config.home.data_dir, gateway)
        finally:
            await gateway.close()

    try:
        view = asyncio.run(look())
    except FirmwareRefusedError as error:
        view = FirmwareView(state="refused", refusal=error.refusal.value, detail=error.detail)
    except (RepositoryAwayError, GatewayError, TimeoutError) as error:
        view = FirmwareView(state="away", detail=str(error))
    _print(view, as_json)
    if view.state in ("refused", "away"):
        raise typer.Exit(1)


@firmware_app.command("install")
def firmware_install(
    provisioning: Provisioned,
    name: Annotated[
        str, typer.Argument(help="File of the repository; without, the highest version that fits.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Ask the running home to install; `hem firmware status` shows what becomes of it."""
    from hem.ems.firmware_status import Wish, write_wish  # noqa: PLC0415

    config, _ = _configured(provisioning)
    write_wish(config.home.data_dir, Wish(name))
    print(
        json.dumps({"asked": name or "what fits"})
        if as_json
        else "asked; see `hem firmware status`"
    )


@firmware_app.command("status")
def firmware_status(provisioning: Provisioned, as_json: Json = False) -> None:
    """Show installed, attested and available versions, and what was refused last."""
    from hem.config import load_provisioning  # noqa: PLC0415
    from hem.ems.firmware_status import read_view  # noqa: PLC0415

    _print(read_view(load_provisioning(provisioning).home.data_dir), as_json)


def _configured(provisioning: Path) -> tuple[Provisioning, Firmware]:
    from hem.config import load_provisioning  # noqa: PLC0415

    config = load_provisioning(provisioning)
    if config.firmware is None:
        raise ConfigError(f"{provisioning}: firmware: is missing; add [firmware] with url and root")
    return config, config.firmware


def _print(view: FirmwareView, as_json: bool) -> None:
    import msgspec  # noqa: PLC0415

    facts = msgspec.to_builtins(view)
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if value:
            print(f"{name}: {value}")
