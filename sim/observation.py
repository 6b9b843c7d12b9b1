"""
What somebody sees who reads the whole chain and listens on all public topics, and the folder that
it is kept in. No truth is in it: who is who stays with `sim.month`.

A folder has `observation.json` (market, slot length, supervisor) and, gzipped, an object a line:

    messages.jsonl.gz   {"seenMs", "topic", "payload"}: a transaction as it went over the broker
    blocks.jsonl.gz     {"height", "timeMs", "txids", "events"}

`from_chain` makes one of a finished run's chain: without times of arrival, a message is then seen
when its block is.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.genesis import Genesis, load_genesis
from ledger.store import FILE_NAME, LedgerStore
from wire import topics
from wire.errors import ConfigError
from wire.transactions import parse_transaction

FACTS, MESSAGES, BLOCKS = "observation.json", "messages.jsonl.gz", "blocks.jsonl.gz"


@dataclass(frozen=True, slots=True)
class Seen:
    """A message on a public topic."""

    seen_ms: int
    """When it came past, by the observer's clock."""
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SeenBlock:
    """A final block."""

    height: int
    time_ms: int
    txids: tuple[str, ...]
    """Hexadecimal, in the block's order."""
    events: list[dict[str, Any]]


@dataclass(slots=True)
class Observation:
    """Everything public, in the order in which it was seen."""

    market: str
    slot_length_s: int
    supervisor: str
    """The grid supervisor's address: it withdraws for the homes."""
    messages: list[Seen] = field(default_factory=list)
    blocks: list[SeenBlock] = field(default_factory=list)

    @classmethod
    def of(cls, genesis: Genesis) -> Observation:
        """An empty one of a market."""
        return cls(genesis.market, genesis.slot_length_s, genesis.supervisor.address)


def save(observation: Observation, folder: Path) -> None:
    """Write an observation into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "market": observation.market,
        "slotLengthS": observation.slot_length_s,
        "supervisor": observation.supervisor,
    }
    (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    _write(
        folder / MESSAGES,
        (
            {"seenMs": one.seen_ms, "topic": one.topic, "payload": one.payload.decode()}
            for one in observation.messages
        ),
    )
    _write(
        folder / BLOCKS,
        (
            {
                "height": one.height, "timeMs": one.time_ms, "txids": one.txids,
                "events": one.events,
            }
            for one in observation.blocks
        ),
    )  # fmt: skip


def load(folder: Path) -> Observation:
    """
    Read what `save` wrote, or else the chain of a finished run (`from_chain`).

    Raises:
        ConfigError: there is neither, or it cannot be read.
    """
    if not (folder / FACTS).exists():
        return from_chain(folder)
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        found = Observation(facts["market"], facts["slotLengthS"], facts["supervisor"])
        found.messages = [
            Seen(row["seenMs"], row["topic"], row["payload"].encode())
            for row in _read(folder / MESSAGES)
        ]
        found.blocks = [
            SeenBlock(row["height"], row["timeMs"], tuple(row["txids"]), row["events"])
            for row in _read(folder / BLOCKS)
        ]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: not an observation ({error!r}); make it again") from None
    return found


def from_chain(folder: Path) -> Observation:
    """
    What the chain of a finished `hearthgrid demo` shows.

    Args:
        folder: the demo's `--out`: `genesis.json`, and below it the validators' folders

    Raises:
        ConfigError: no genesis or no chain in it.
    """
    genesis = load_genesis(folder / "genesis.json")
    chains = sorted(path.parent for path in folder.glob(f"**/{FILE_NAME}"))
    if not chains:
        raise ConfigError(f"{folder}: no observation and no chain; give --out of a finished run")
    found = Observation.of(genesis)
    store = LedgerStore.in_folder(chains[0], read_only=True)
    try:
        for height in range(store.floor + 1, store.height + 1):
            _take_block(found, store, height)
    finally:
        store.close()
    return found


def _take_block(found: Observation, store: LedgerStore, height: int) -> None:
    block = store.get_block(height)
    if block is None:
        return
    time_ms = block.header.time_ms
    found.blocks.append(
        SeenBlock(height, time_ms, tuple(one.hex() for one in block.txids), store.events(height))
    )
    for txid in block.txids:
        raw = store.get_body(txid)
        if raw is not None:
            sender = parse_transaction(raw).sender
            found.messages.append(Seen(time_ms, topics.build(found.market, topics.TX, sender), raw))


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for row in rows:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
