"""The `ledger` command: begin a chain, run a node, verify a chain, look at it, prove from it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ledger import cli_export, cli_init, cli_look, cli_proofs
from ledger.roles import Role
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
    door: Annotated[
        str, typer.Option(help="The CSM-DB's https://HOST:PORT: --tls needs ca.crt only then.")
    ] = "",
    role: Annotated[
        Role | None,
        typer.Option(
            help="`validator`: votes when its key has a seat. `full`: executes and answers, never "
            "votes. `light`: headers only, the place kept in checkpoint.json. Default: what the "
            "key is for."
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve the read-only API and the explorer there, e.g. 127.0.0.1:8334. The "
            "address is in DIR/http.url while it runs.",
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            metavar="all|EPOCHS",
            help="How many ended epochs (slots with trade) stay on the disk; older bodies, "
            "receipts and events are dropped.",
        ),
    ] = "all",
    replay: Annotated[
        bool,
        typer.Option(help="Begin an empty folder by executing every block, not with a snapshot."),
    ] = False,
) -> None:
    """
    Follow the chain until stopped.

    The key must fit the role: `--role full` refuses a validator's key, which would vote;
    `--role validator` with another key says so, and watches until the chain seats it.
    """
    if role is Role.LIGHT:
        if http is not None:
            raise ConfigError("--http: a light client holds no chain to show; use --role full")
        import runtime.log  # noqa: F401, PLC0415  (before structlog is imported)
        from ledger.light_process import run_light  # noqa: PLC0415

        run_light(folder, key_file, certificate, host, port, tls, door)
        return
    from ledger.process import run_node  # noqa: PLC0415  (help should not wait for imports)

    run_node(
        folder, key_file, certificate, host, port, block_interval_ms / 1000, tls,
        role=role, http=http, door=door, keep_epochs=_epochs(keep), replay=replay,
    )  # fmt: skip


def _epochs(keep: str) -> int | None:
    if keep == "all":
        return None
    if not keep.isdecimal() or not 2 <= int(keep) <= 1_000_000:
        raise ConfigError(f"--keep: {keep!r} is neither `all` nor a number of epochs from 2 on")
    return int(keep)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of a chain.")],
    as_json: Json = False,
    from_genesis: Annotated[
        bool, typer.Option("--from-genesis", help="Refuse a folder without the whole chain.")
    ] = False,
) -> None:
    """
    Re-execute a chain from its genesis and check everything in it.

    A folder that has dropped old blocks, or began with a snapshot, is executed from its oldest
    snapshot (`executed_from`); the way there is checked by the headers of seals.

    Signatures, links, finality, Merkle roots, receipts, money and energy. Exit code 1 names the
    block at which the chain is wrong.
    """
    from ledger.verify import ChainError, verify_folder  # noqa: PLC0415

    try:
        report = verify_folder(folder, from_genesis=from_genesis)
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


for module in (cli_init, cli_look, cli_export, cli_proofs):
    module.add_commands(app)


def main() -> None:
    """Console script; a mistake is one line and exit code 2."""
    try:
        app()
    except ConfigError as error:
        print(f"ledger: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
