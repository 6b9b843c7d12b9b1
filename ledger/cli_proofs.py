"""Commands about proofs: make one from a chain folder, check one offline, make a checkpoint."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wire.errors import ConfigError, WireError
from wire.keys import is_id

if TYPE_CHECKING:  # help should not wait for imports
    from ledger.genesis import Genesis
    from ledger.proofs import Proof
    from ledger.store import LedgerStore

Folder = Annotated[
    Path, typer.Option(help="Chain folder (genesis.json, ledger.sqlite); only read.")
]
Out = Annotated[Path | None, typer.Option(help="Where to write; by default standard output, hex.")]
Txid = Annotated[str, typer.Argument(help="The transaction's id, 64 hex digits.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

HERE = Path()
prove_app = typer.Typer(
    help="Make a proof that anybody can check with `ledger check-proof`, without this folder.",
    no_args_is_help=True,
)


def add_commands(app: typer.Typer) -> None:
    """Add `prove`, `check-proof` and `checkpoint` to the `ledger` command."""
    app.add_typer(prove_app, name="prove")
    app.command("check-proof")(check_proof)
    app.command("checkpoint")(checkpoint)


@prove_app.command()
def balance(
    address: Annotated[str, typer.Argument(help="Whose account (hg1…).")],
    folder: Folder = HERE,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """
    Prove an account: balance, locked money and nonce; or that there is none.

    The chain is executed again in memory up to the newest state that a header carries.
    """
    from ledger.prover import prove_row  # noqa: PLC0415

    if not is_id(address):
        raise ConfigError(f"{address}: not an address; it begins with hg1")
    with _opened(folder) as (genesis, store):
        _write(prove_row(genesis, store, f"account/{address}", None), out, as_json)


@prove_app.command()
def receipt(txid: Txid, folder: Folder = HERE, out: Out = None, as_json: Json = False) -> None:
    """Prove what became of a transaction: its code, and one for each of its operations."""
    from ledger.prover import Prover  # noqa: PLC0415

    with _opened(folder) as (_, store):
        _write(Prover(store).receipt(_txid(txid)), out, as_json)


@prove_app.command()
def inclusion(txid: Txid, folder: Folder = HERE, out: Out = None, as_json: Json = False) -> None:
    """Prove that a transaction is in a final block."""
    from ledger.prover import Prover  # noqa: PLC0415

    with _opened(folder) as (_, store):
        _write(Prover(store).inclusion(_txid(txid)), out, as_json)


def check_proof(
    file: Annotated[Path, typer.Argument(help="A proof, as `ledger prove` writes it.")],
    genesis: Annotated[Path, typer.Option(help="The chain's genesis file, from who you trust.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A newer point to trust (checkpoint.json); default: the genesis."),
    ] = None,
    as_json: Json = False,
) -> None:
    """
    Check a proof offline; print what it proves, one line per fact.

    Nothing in the file is believed, nor who sent it. Exit code 1: it proves nothing, and why.
    """
    from ledger.checkpoint import genesis_checkpoint, read_checkpoint  # noqa: PLC0415
    from ledger.genesis import load_genesis  # noqa: PLC0415
    from ledger.light import check_offline  # noqa: PLC0415

    chain = load_genesis(genesis)
    trust = genesis_checkpoint(chain) if checkpoint is None else read_checkpoint(checkpoint)
    if trust.chain_id != chain.chain_id:
        raise ConfigError(f"{checkpoint}: of chain {trust.chain_id}, not of {chain.chain_id}")
    try:
        fact = check_offline(_read(file), trust)
    except WireError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "error": str(error)}))
        typer.echo(f"ledger: {file}: proves nothing: {error}", err=True)
        raise typer.Exit(1) from None
    facts = fact.to_json()
    if as_json:
        typer.echo(json.dumps({"ok": True, **facts}))
        return
    for name, value in facts.items():
        for line in _lines(name, value):
            typer.echo(line)
    typer.echo("proof is valid")


def checkpoint(
    folder: Annotated[Path, typer.Argument(help="Chain folder that you trust.")],
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("checkpoint.json"),
    as_json: Json = False,
) -> None:
    """
    Write a checkpoint of the newest seal, for light clients that trust you.

    Run `ledger verify` before: this believes what is in the folder.
    """
    from ledger.checkpoint import write_checkpoint  # noqa: PLC0415
    from ledger.prover import newest_checkpoint  # noqa: PLC0415

    with _opened(folder) as (genesis, store):
        made = newest_checkpoint(genesis, store)
    write_checkpoint(made, out)
    facts = {"height": made.height, "blockHash": made.block_hash.hex(), "written": str(out)}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        typer.echo(f"{name}: {value}")


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[Genesis, LedgerStore]]:
    """
    A chain folder, read-only; what cannot be proved ends the command in one line.

    Raises:
        ConfigError: not a chain folder.
        typer.Exit: 1, after the reason.
    """
    from ledger.execution import ChainError  # noqa: PLC0415
    from ledger.genesis import load_genesis  # noqa: PLC0415
    from ledger.prover import NotProvableError  # noqa: PLC0415
    from ledger.store import FILE_NAME, LedgerStore  # noqa: PLC0415

    genesis = load_genesis(folder / "genesis.json")
    if not (folder / FILE_NAME).exists():
        raise ConfigError(f"{folder}: no chain here; give a node's folder with --folder")
    try:
        with closing(LedgerStore.in_folder(folder, read_only=True)) as store:
            store.snapshot()
            yield genesis, store
    except sqlite3.Error as error:
        raise ConfigError(f"{folder}: {FILE_NAME} cannot be read ({error})") from None
    except (NotProvableError, ChainError) as error:
        typer.echo(f"ledger: {folder}: {error}", err=True)
        raise typer.Exit(1) from None


def _write(proof: Proof, out: Path | None, as_json: bool) -> None:
    from ledger.proof_facts import facts_of  # noqa: PLC0415
    from ledger.proofs import encode  # noqa: PLC0415

    raw = encode(proof)
    if as_json:
        if out is not None:
            out.write_bytes(raw)
        typer.echo(facts_of(proof).model_dump_json(by_alias=True))
        return
    if out is None:
        typer.echo(raw.hex())
        return
    out.write_bytes(raw)
    typer.echo(f"{out}: {len(raw)} B")


def _read(file: Path) -> Proof:
    """
    A proof from a file, binary or in hex.

    Raises:
        ConfigError: it cannot be read.
        WireError: it holds no proof.
    """
    from ledger.proofs import MAX_PROOF_BYTES, decode_proof  # noqa: PLC0415

    try:
        with file.open("rb") as opened:
            raw = opened.read(2 * MAX_PROOF_BYTES + 2)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error}); give a proof file") from None
    with suppress(ValueError):  # not hex: the proof itself
        raw = bytes.fromhex(raw.decode("ascii"))
    return decode_proof(raw)


def _lines(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lines(f"{name}.{key}", inner)
    elif value is None:
        yield f"{name}: none"
    else:
        yield f"{name}: {json.dumps(value) if isinstance(value, list) else value}"


def _txid(text: str) -> bytes:
    try:
        txid = bytes.fromhex(text)
    except ValueError:
        txid = b""
    if len(txid) != 32:
        raise ConfigError(f"{text[:80]}: not a transaction id; it has 64 hex digits")
    return txid
