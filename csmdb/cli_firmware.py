"""`csmdb firmware …`: the repository, and which version of a meter is taken as known."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wire.errors import ConfigError

if TYPE_CHECKING:
    from csmdb.firmware_repository import FirmwareRepository, Listed

firmware_app = typer.Typer(help="Signed firmware of meters.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the CSM-DB.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Keys = Annotated[
    list[Path], typer.Option("--keys", help="Folder of offline keys; as often as there are some.")
]


@firmware_app.command("init")
def firmware_init(
    folder: Folder,
    keys: Keys,
    root_keys: Annotated[int, typer.Option(min=1, max=16, help="Root keys in all.")] = 3,
    threshold: Annotated[int, typer.Option(min=1, max=16, help="How many of them sign.")] = 2,
    as_json: Json = False,
) -> None:
    """Make a repository; the root's and the targets' keys go into the folders, take them away."""
    root = _repository(folder).init(keys, root_keys, threshold)
    facts = {"root": str(root), "rootKeys": root_keys, "threshold": threshold}
    _print(facts, as_json, f"{root}: give this file to homes; take {_names(keys)} off this machine")


@firmware_app.command("add")
def firmware_add(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="The maker's file.")],
    vendor: Annotated[str, typer.Option(help="As the meter's plate says.")],
    model: Annotated[str, typer.Option(help="As the meter's plate says.")],
    version: Annotated[str, typer.Option(help="What the plate says afterwards.")],
    template: Annotated[str, typer.Option(help="Device template with a [firmware] section.")],
    installs_by: Annotated[str, typer.Option(help="file-records or registers.")],
    from_version: Annotated[
        list[str] | None, typer.Option(help="May follow this one only; as often as wanted.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take a file into the draft; homes see it after `publish`."""
    import msgspec  # noqa: PLC0415  (help should not wait for imports)

    from wire.firmware import Target  # noqa: PLC0415

    try:
        target = msgspec.convert(
            {
                "vendor": vendor, "model": model, "version": version, "template": template,
                "installsBy": installs_by, "fromVersions": from_version or [],
            },
            Target,
        )  # fmt: skip
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from None
    listed = _repository(folder).add(file, target)
    _print(_facts(listed), as_json, _line(listed))


@firmware_app.command("publish")
def firmware_publish(folder: Folder, keys: Keys, as_json: Json = False) -> None:
    """Sign what was added (with the targets' key); also once in a while, as targets expire."""
    version = _repository(folder).publish(keys)
    _print({"targetsVersion": version}, as_json, f"targets version {version} published")


@firmware_app.command("rotate")
def firmware_rotate(
    folder: Folder,
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")],
    keys: Keys,
    as_json: Json = False,
) -> None:
    """Give a role a new key in the place of its oldest; enough root keys have to be there."""
    match role:
        case "root" | "targets" | "snapshot" | "timestamp":
            keyid = _repository(folder).rotate(role, keys)
        case _:
            raise ConfigError(f"ROLE: root, targets, snapshot or timestamp, not {role!r}")
    _print({"role": role, "key": keyid}, as_json, f"{role} has a new key {keyid}")


@firmware_app.command("list")
def firmware_list(folder: Folder, as_json: Json = False) -> None:
    """List files and what they are for."""
    rows = _repository(folder).listing()
    if as_json:
        print(json.dumps([_facts(row) for row in rows]))
        return
    for row in rows:
        print(_line(row))


@firmware_app.command("allow")
def firmware_allow(
    folder: Folder,
    participant: Annotated[str, typer.Argument(help="Identity of the home.")],
    version: Annotated[str, typer.Argument(help="Lower version that its meter may go back to.")],
) -> None:
    """Let a meter attest a lower version than the one that is known."""
    from csmdb.setup import open_csmdb  # noqa: PLC0415

    with open_csmdb(folder) as csmdb:
        csmdb.firmware_desk().allow(participant, version, csmdb.clock.now_ms())


def _repository(folder: Path) -> FirmwareRepository:
    from csmdb.firmware_repository import FirmwareRepository  # noqa: PLC0415
    from csmdb.setup import FACTS  # noqa: PLC0415

    if not (folder / FACTS).exists():
        raise ConfigError(f"{folder}: no CSM-DB here; make one with `csmdb init`")
    return FirmwareRepository(folder, datetime.now(UTC))


def _facts(row: Listed) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415

    return {
        "name": row.name, "length": row.length, "sha256": row.sha256, "published": row.published,
        **msgspec.to_builtins(row.target),
    }  # fmt: skip


def _line(row: Listed) -> str:
    target = row.target
    after = f" after {', '.join(target.from_versions)}" if target.from_versions else ""
    state = "" if row.published else "  (not published)"
    return (
        f"{row.name}  {target.vendor} {target.model} {target.version}{after},"
        f" {row.length} bytes, {target.template} by {target.installs_by}{state}"
    )


def _names(keys: list[Path]) -> str:
    return ", ".join(str(key) for key in keys)


def _print(facts: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(facts) if as_json else text)
