"""Commands that look at a chain or a node: `ledger status`, `evidence`, `peers`."""

from __future__ import annotations

import json
import sqlite3
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from wire.errors import ConfigError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a chain; only read.")]
TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024


def add_commands(app: typer.Typer) -> None:
    """Add `status`, `evidence` and `peers` to the `ledger` command."""
    app.command("status")(status)
    app.command("evidence")(evidence)
    app.command("peers")(peers)


def status(folder: Folder, as_json: Json = False) -> None:
    """Show where a chain stands: its tip, its epoch, its validators. No node need run."""
    from ledger import chain_reader  # noqa: PLC0415  (help should not wait for imports)
    from ledger.folders import opened_chain  # noqa: PLC0415

    genesis = opened_chain(folder)
    try:
        with chain_reader.reading(folder) as store:
            found = chain_reader.status(genesis, store)
    except sqlite3.Error as error:
        raise ConfigError(f"{folder}: the chain cannot be read ({error})") from None
    facts = found.model_dump(mode="json", by_alias=True, exclude={"node"})
    facts["url"] = _url_in(folder)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        if name != "url" or value:
            typer.echo(f"{name}: {value}")


def evidence(folder: Folder, as_json: Json = False) -> None:
    """
    List the pairs of votes that exclude each other, as this node found them.

    An honest validator never signs such a pair. "judged": the chain has decided about it (the
    signer is banned); "open": it has not, and a validator will accuse. Exit code 0 either way.
    """
    from ledger import chain_reader  # noqa: PLC0415
    from ledger.folders import opened_chain  # noqa: PLC0415

    opened_chain(folder)
    try:
        with chain_reader.reading(folder) as store:
            found = chain_reader.evidence(store)
    except sqlite3.Error as error:
        raise ConfigError(f"{folder}: the chain cannot be read ({error})") from None
    if as_json:
        typer.echo(found.model_dump_json(by_alias=True))
        return
    if not found.evidence:
        typer.echo("no evidence: this node saw no votes that exclude each other")
        return
    for one in found.evidence:
        who = one.validator or f"validator {one.index} (its epoch is forgotten)"
        first, second = one.first, one.second
        typer.echo(
            f"{'judged' if one.judged else 'open'}: {who} in epoch {one.epoch}, view {one.view}: "
            f"{first.kind} {_short(first.block_hash)} and {second.kind} {_short(second.block_hash)}"
        )
    typer.echo(f"total: {found.total}")


def peers(
    folder: Annotated[Path, typer.Argument(help="Folder of a running node.")] = Path(),
    url: Annotated[
        str, typer.Option(help="The node's HTTP API; default: what the folder says.")
    ] = "",
    as_json: Json = False,
) -> None:
    """
    Show who speaks: which validators a running node has heard, when, and about which view.

    Asks the node, which must have been started with `ledger run --http HOST:PORT`.
    """
    where = url or _url_in(folder)
    if not where:
        raise ConfigError(
            f"{folder}: no node serves its API here; start it with `ledger run --http "
            "127.0.0.1:8334`, or give --url"
        )
    answer = _ask(where, "/peers")
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(f"node: {answer['node']}")
    for one in answer["peers"]:
        height = "" if one["height"] is None else f", block {one['height']}"
        typer.echo(
            f"{one['id']}: {one['silentMs'] / 1000:.1f} s ago, {one['kind']} in epoch "
            f"{one['epoch']}, view {one['view']}{height} ({one['votes']} votes)"
        )
    for name in answer["silent"]:
        typer.echo(f"{name}: not heard since the node started")


def _ask(url: str, path: str) -> dict[str, Any]:
    """
    A JSON answer of a node.

    Raises:
        ConfigError: no answer, or a refusal.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{url}: expected an address like http://127.0.0.1:8334/")
    try:
        connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)
        connection.request("GET", path)
        response = connection.getresponse()
        answer = json.loads(response.read(MAX_ANSWER_BYTES))
        connection.close()
    except (OSError, HTTPException, ValueError) as error:
        raise ConfigError(f"{url}: no answer ({error}); is the node running?") from None
    if response.status != 200 or not isinstance(answer, dict):
        detail = answer.get("detail", "") if isinstance(answer, dict) else ""
        raise ConfigError(f"{url}: refused with {response.status}: {str(detail)[:200]}")
    return answer


def _url_in(folder: Path) -> str:
    from ledger.serving import URL_FILE  # noqa: PLC0415

    try:
        return (folder / URL_FILE).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _short(digest: str) -> str:
    return "no block" if not digest.strip("0") else f"{digest[:12]}…"
