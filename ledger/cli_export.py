"""`ledger export`: what a chain holds, as lines for other programs."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wire.errors import ConfigError

if TYPE_CHECKING:  # help should not wait for imports
    from ledger.store import LedgerStore


class What(StrEnum):
    """What is exported."""

    BLOCKS = "blocks"
    TRANSACTIONS = "transactions"
    RECEIPTS = "receipts"
    EVENTS = "events"


class Format(StrEnum):
    """How it is written."""

    JSONL = "jsonl"
    CSV = "csv"


COLUMNS = {
    What.BLOCKS: (
        "height", "hash", "parentHash", "epoch", "view", "timeMs", "proposer", "nTx", "seal",
        "execHeight", "stateRoot", "receiptsRoot",
    ),
    What.TRANSACTIONS: (
        "height", "index", "txid", "sender", "nonce", "expiresSlot", "date", "operations",
    ),
    What.RECEIPTS: ("height", "index", "txid", "sender", "code", "codes"),
    What.EVENTS: ("height", "timeMs", "event", "facts"),
}  # fmt: skip
"""Of CSV; lists and objects in a cell are JSON."""


def add_commands(app: typer.Typer) -> None:
    """Add `export` to the `ledger` command."""
    app.command("export")(export)


def export(
    what: Annotated[What, typer.Argument(help="What to export.")],
    folder: Annotated[Path, typer.Argument(help="Folder of a chain; only read.")],
    first: Annotated[
        int | None, typer.Option("--from", min=1, help="First height; default: the oldest here.")
    ] = None,
    last: Annotated[
        int | None, typer.Option("--to", min=1, help="Last height; default: the tip.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="JSON lines, or CSV.")] = Format.JSONL,
    out: Annotated[
        Path | None, typer.Option(help="A new file; by default standard output.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
) -> None:
    """
    Write blocks, transactions, receipts or events of a range of heights, one line for each.

    Block by block, so a long chain needs no memory; a node may go on writing meanwhile.
    """
    from ledger.chain_reader import reading  # noqa: PLC0415
    from ledger.folders import opened_chain  # noqa: PLC0415

    opened_chain(folder)
    if last is not None and last < (first or 1):
        raise ConfigError(f"--to {last}: below --from {first}")
    if as_json and form is not Format.JSONL:
        raise ConfigError(f"--json: says JSON lines, --format {form.value} does not; give one")
    try:
        with reading(folder) as store:
            oldest = store.floor + 1
            if first is not None and first < oldest:
                raise ConfigError(
                    f"--from {first}: this folder begins at block {oldest}; give that"
                )
            first = first or oldest
            end = min(last if last is not None else store.height, store.height)
            lines = _lines(store, what, form, first, end)
            written = _write(lines, out)
    except sqlite3.Error as error:
        raise ConfigError(f"{folder}: the chain cannot be read ({error})") from None
    if out is not None:
        typer.echo(f"{out}: {written} lines, blocks {first} to {end}", err=True)


def _write(lines: Iterator[str], out: Path | None) -> int:
    if out is None:
        count = 0
        for count, line in enumerate(lines, 1):  # noqa: B007 - the last count is returned
            typer.echo(line, nl=False)
        return count
    try:
        with out.open("x", encoding="utf-8", newline="") as file:
            count = 0
            for count, line in enumerate(lines, 1):  # noqa: B007
                file.write(line)
            return count
    except FileExistsError:
        raise ConfigError(f"{out}: is there already; give another --out") from None
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None


def _lines(store: LedgerStore, what: What, form: Format, first: int, last: int) -> Iterator[str]:
    columns = COLUMNS[what]
    if form is Format.CSV:
        yield _csv(columns)
    for height in range(first, last + 1):
        for row in _ROWS[what](store, height):
            if form is Format.JSONL:
                yield json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
            else:
                yield _csv([_cell(row.get(name)) for name in columns])


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value


def _csv(cells: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _block_rows(store: LedgerStore, height: int) -> Iterator[dict[str, Any]]:
    block = store.get_block(height)
    if block is None:
        return
    header = block.header
    yield {
        "height": height,
        "hash": block.hash.hex(),
        "parentHash": header.parent_hash.hex(),
        "epoch": header.epoch,
        "view": header.view,
        "timeMs": header.time_ms,
        "proposer": header.proposer,
        "nTx": header.n_tx,
        "seal": header.seal,
        "execHeight": header.exec_height,
        "stateRoot": block.state_root.hex(),
        "receiptsRoot": block.receipts_root.hex(),
    }


def _transaction_rows(store: LedgerStore, height: int) -> Iterator[dict[str, Any]]:
    from wire.envelope import date_text  # noqa: PLC0415
    from wire.transactions import parse_transaction  # noqa: PLC0415

    block = store.get_block(height)
    for index, txid in enumerate(block.txids if block is not None else ()):
        raw = store.get_body(txid)
        if raw is None:
            continue
        tx = parse_transaction(raw)
        yield {
            "height": height,
            "index": index,
            "txid": txid.hex(),
            "sender": tx.sender,
            "nonce": tx.nonce,
            "expiresSlot": tx.expires_slot,
            "date": date_text(tx.envelope.date_ms),
            "operations": list(tx.operations),
        }


def _receipt_rows(store: LedgerStore, height: int) -> Iterator[dict[str, Any]]:
    for index, receipt in enumerate(store.receipts(height)):
        yield {"height": height, "index": index, **receipt}


def _event_rows(store: LedgerStore, height: int) -> Iterator[dict[str, Any]]:
    block = store.get_block(height)
    for event in store.events(height) if block is not None else ():
        facts = {name: value for name, value in event.items() if name != "event"}
        time_ms = block.header.time_ms if block is not None else 0
        yield {"height": height, "timeMs": time_ms, "event": event["event"], "facts": facts}


_ROWS = {
    What.BLOCKS: _block_rows,
    What.TRANSACTIONS: _transaction_rows,
    What.RECEIPTS: _receipt_rows,
    What.EVENTS: _event_rows,
}
