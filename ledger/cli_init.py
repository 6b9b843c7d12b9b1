"""Commands that begin a chain: `ledger init` and `ledger key`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wire.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Add `init` and `key` to the `ledger` command."""
    app.command("init")(init)
    app.command("key")(key)


def init(
    file: Annotated[
        Path | None, typer.Argument(help="The market's rules (TOML); see --example.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where genesis.json is written; made when it is missing.")
    ] = Path(),
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented file to begin with; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Make the genesis of a chain from a TOML file.

    Begin with `ledger init --example > genesis.toml`, fill in the public keys, agree on it with
    the others, then run `ledger init genesis.toml --folder DIR`. A genesis.json that is there is
    never overwritten: another genesis is another chain.
    """
    from ledger.genesis import genesis_bytes  # noqa: PLC0415  (help should not wait for imports)
    from ledger.genesis_file import example as example_text  # noqa: PLC0415
    from ledger.genesis_file import read_genesis_file  # noqa: PLC0415

    if example:
        text = example_text()
        typer.echo(json.dumps({"example": text}) if as_json else text, nl=as_json)
        return
    if file is None:
        raise ConfigError("init: give a TOML file, or --example to print one to begin with")
    genesis = read_genesis_file(file)
    path = folder / "genesis.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as opened:
            opened.write(genesis_bytes(genesis) + b"\n")
    except FileExistsError:
        raise ConfigError(
            f"{path}: is there already and is not overwritten; give another --folder"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    _print(
        {
            "chainId": genesis.chain_id,
            "validators": len(genesis.validators),
            "written": str(path),
        },
        as_json,
    )


def key(
    file: Annotated[Path, typer.Argument(help="Where the new private key is kept (mode 0600).")],
    as_json: Json = False,
) -> None:
    """
    Make the key of a validator, an observer or the supervisor; print its public half.

    A key that is there is never overwritten; its public half is printed again.
    """
    from ledger.duties import Seeds  # noqa: PLC0415  (help should not wait for imports)
    from runtime.keyfiles import read_key, write_secret  # noqa: PLC0415
    from runtime.rng import SystemRng  # noqa: PLC0415
    from wire.keys import KEY_BYTES, to_text  # noqa: PLC0415

    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_secret(file, SystemRng().bytes(KEY_BYTES))
        except OSError as error:
            raise ConfigError(f"{file}: cannot be written ({error.strerror})") from None
    made = read_key(file)
    _, tip = Seeds(made).after(b"")
    _print({"id": made.id, "key": to_text(made.public), "onion": to_text(tip)}, as_json)


def _print(facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")
