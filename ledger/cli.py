"""The `ledger` command: run a node, verify a chain, look at it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ledger.cli_proofs import Role, add_commands
from wire.errors import ConfigError

app = typer.Typer(
    help="The ledger: blocks, Proof of Energy, verification.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="Folder of the chain (genesis.json).")],
    key_file: Annotated[Path, typer.Option(help="The validator's (or observer's) key.")],
    certificate: Annotated[Path, typer.Option(help="Its certificate from the CSM-DB.")],
    host: Annotated[str, typer.Option(help="The broker's host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The broker's port.")] = 1883,
    block_interval_ms: Annotated[
        int, typer.Option(min=0, help="Real time a leader gathers transactions [ms].")
    ] = 20,
    tls: Annotated[
        Path | None, typer.Option(help="Folder of ca.crt, client.crt, client.key: TLS.")
    ] = None,
    role: Annotated[
        Role, typer.Option(help="`light`: headers only, the place kept in checkpoint.json.")
    ] = Role.FULL,
) -> None:
    """
    Follow the chain until stopped.

    A key named in the genesis votes; any other observes.
    """
    if role is Role.LIGHT:
        from ledger.light_process import run_light  # noqa: PLC0415

        run_light(folder, key_file, certificate, host, port, tls)
        return
    from ledger.process import run_node  # noqa: PLC0415  (help should not wait for imports)

    run_node(folder, key_file, certificate, host, port, block_interval_ms / 1000, tls)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of a chain.")], as_json: Json = False
) -> None:
    """
    Re-execute a chain from its genesis and check everything in it.

    Signatures, links, finality, Merkle roots, receipts, money and energy. Exit code 1 names the
    block at which the chain is wrong.
    """
    from ledger.verify import ChainError, verify_folder  # noqa: PLC0415

    try:
        report = verify_folder(folder)
    except ChainError as error:
        if as_json:
            print(json.dumps({"ok": False, "error": str(error)}))
        print(f"ledger: {folder}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    facts = asdict(report)
    if as_json:
        print(json.dumps({"ok": True, **facts}))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")
    print("chain is valid")


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="Folder of a chain.")], as_json: Json = False
) -> None:
    """Show a chain's tip without running a node."""
    from ledger.genesis import load_genesis  # noqa: PLC0415
    from ledger.store import LedgerStore  # noqa: PLC0415
    from wire.envelope import date_text  # noqa: PLC0415

    genesis = load_genesis(folder / "genesis.json")
    database = folder / "ledger.sqlite"
    if not database.exists():
        raise ConfigError(f"{folder}: no chain here; is this a node's folder?")
    store = LedgerStore(database)
    tip = store.tip
    facts = {
        "chainId": genesis.chain_id,
        "validators": len(genesis.validators),
        "height": tip.header.height if tip else 0,
        "epoch": tip.header.epoch if tip else 0,
        "time": date_text(tip.header.time_ms) if tip else "",
        "proposer": tip.header.proposer if tip else "",
    }
    store.close()
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")


add_commands(app)


def main() -> None:
    """Console script; a mistake is one line and exit code 2."""
    try:
        app()
    except ConfigError as error:
        print(f"ledger: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
