"""
Snapshots on disk: taken beside a running node, given to joiners, the last two kept.

    <chain folder>/snapshots/<height>.chunks      the stream (`ledger.snapshot`), chunk after chunk
                             <height>.manifest    written last: without it there is no snapshot

A snapshot is taken in a thread, from a read transaction of its own on the SQLite file that is begun
before the next block is written: the node goes on at once, the reader sees the state as it was.
Files rather than tables, because SQLite has one writer, and the node must not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from ledger.genesis import Genesis
from ledger.prover import NotProvableError, Prover
from ledger.snapshot import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_OFFER_BYTES,
    Manifest,
    Offer,
    PastBlock,
    Preamble,
    chunk_hash,
    cut,
    pack,
    read_manifest,
)
from ledger.statements import CONTRACTS
from ledger.store import LedgerStore
from ledger.types import Header
from wire.canonical import encode
from wire.errors import HearthgridError, MalformedError

FOLDER = "snapshots"
KEPT = 2
DAY_S = 24 * 3600
PAUSE_EVERY_ROWS = 256
PAUSE_S = 0.0005
"""The thread shares the interpreter with the node: it steps aside now and then."""

log = structlog.get_logger(component="ledger.snapshot")


class SnapshotTooLargeError(HearthgridError):
    """The state does not fit into a snapshot."""


class Snapshots:
    """The snapshots in a folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, store: LedgerStore) -> Snapshots | None:
        """Those of a chain folder; None for a store in memory."""
        return None if store.path is None else cls(store.path.parent / FOLDER)

    def heights(self) -> list[int]:
        """Heights of whole snapshots, ascending."""
        names = self.folder.glob("*.manifest")
        return sorted(int(one.stem) for one in names if one.stem.isdecimal())

    def manifest(self, height: int) -> Manifest | None:
        """The manifest of a snapshot; None when there is none, or it is damaged."""
        try:
            return read_manifest(self._file(height, "manifest").read_bytes())
        except (OSError, MalformedError):
            return None

    def chunk(self, height: int, number: int) -> bytes:
        """A chunk; nothing when there is none."""
        try:
            with self._file(height, "chunks").open("rb") as file:
                file.seek(number * CHUNK_BYTES)
                return file.read(CHUNK_BYTES)
        except OSError:
            return b""

    def chunks(self, height: int) -> Iterator[bytes]:
        """All chunks, in order."""
        number = 0
        while chunk := self.chunk(height, number):
            yield chunk
            number += 1

    def write(
        self, height: int, state_root: bytes, chunks: Iterable[bytes], rows: Callable[[], int]
    ) -> Manifest:
        """
        Write a snapshot; it is there when its manifest is.

        Args:
            rows: tells how many rows went by, once all chunks have been taken

        Raises:
            SnapshotTooLargeError: too many chunks.
            OSError: the disk refused.
        """
        self.folder.mkdir(exist_ok=True)
        hashes: list[bytes] = []
        size = 0
        part = self._file(height, "part")
        try:
            with part.open("wb") as file:
                for chunk in chunks:
                    if len(hashes) == MAX_CHUNKS:
                        raise SnapshotTooLargeError(f"more than {MAX_CHUNKS} chunks")
                    hashes.append(chunk_hash(chunk))
                    size += len(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            manifest = Manifest(height, state_root, rows(), size, tuple(hashes))
            part.replace(self._file(height, "chunks"))
            part.write_bytes(pack(manifest))
            part.replace(self._file(height, "manifest"))
        finally:
            part.unlink(missing_ok=True)
        return manifest

    def keep_last(self, count: int = KEPT) -> None:
        """Drop all but the newest."""
        for height in self.heights()[:-count]:
            self.drop(height)

    def drop(self, height: int) -> None:
        """Drop one."""
        for kind in ("manifest", "chunks", "part"):
            self._file(height, kind).unlink(missing_ok=True)

    def _file(self, height: int, kind: str) -> Path:
        return self.folder / f"{height}.{kind}"


class _CountedRows:
    """Rows of the state as they lie on disk, counted while they pass."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self.count = 0

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for key, value in self._store.raw_rows("state"):
            self.count += 1
            if self.count % PAUSE_EVERY_ROWS == 0:
                time.sleep(PAUSE_S)
            yield key, bytes(value)


def take(reader: LedgerStore, snapshots: Snapshots) -> Manifest:
    """
    Write a snapshot of a store whose tip is a seal.

    Args:
        reader: reads as of the seal (`LedgerStore.snapshot`) for as long as this takes

    Raises:
        SnapshotTooLargeError: the state is too large.
    """
    tip = reader.tip
    assert tip is not None and tip.header.seal, "snapshots are taken at seals"
    rows = _CountedRows(reader)
    chunks = cut(preamble_of(reader, tip.header), rows)
    return snapshots.write(tip.height, tip.state_root, chunks, lambda: rows.count)


def preamble_of(store: LedgerStore, seal: Header) -> Preamble:
    """What a joiner needs besides the state (`ledger.snapshot.Preamble`)."""
    blocks = []
    for height in range(seal.exec_height + 1, seal.height + 1):
        block = store.get_block(height)
        assert block is not None
        blocks.append(PastBlock(block.header, block.txids, encode(store.receipts(height))))
    heads = {one: store.previous_event_height(one, seal.height + 1) for one in CONTRACTS}
    return Preamble(tuple(blocks), heads)


class SnapshotTaker:
    """
    Takes snapshots beside a running node.

    Args:
        store: the node's, a file
        every_epochs: at the seal before each epoch whose number this divides
    """

    def __init__(self, store: LedgerStore, every_epochs: int) -> None:
        self._store = store
        self._every_epochs = every_epochs
        self._snapshots = Snapshots.beside(store)
        self._thread = ThreadPoolExecutor(1, "snapshot")
        self._running: Future[None] | None = None
        tip = store.tip
        if tip is not None:
            self.executed(tip.header)  # it may have stopped before the snapshot was whole

    def executed(self, header: Header) -> bool:
        """
        A block was executed, and the next one was not yet.

        Returns:
            True when a snapshot of the state after it was begun.
        """
        if not header.seal or (header.epoch + 1) % self._every_epochs or self._snapshots is None:
            return False
        if self._running is not None and not self._running.done():
            log.warning("no snapshot: the one before is not whole yet", height=header.height)
            return False
        if self._snapshots.manifest(header.height) is not None:
            return False
        assert self._store.path is not None
        reader = LedgerStore(self._store.path, read_only=True)
        reader.snapshot()
        self._running = self._thread.submit(self._take, reader, self._snapshots)
        return True

    def wait(self) -> None:
        """Until the snapshot that was begun is whole, or was given up."""
        if self._running is not None:
            self._running.result()

    def close(self) -> None:
        """Wait, and begin no more."""
        self._thread.shutdown()

    def _take(self, reader: LedgerStore, snapshots: Snapshots) -> None:
        started_s = time.monotonic()
        with contextlib.closing(reader):
            try:
                manifest = take(reader, snapshots)
            except (SnapshotTooLargeError, OSError) as error:
                log.warning("no snapshot", reason=str(error))
                return
        snapshots.keep_last()
        log.info(
            "snapshot", height=manifest.height, rows=manifest.rows, bytes=manifest.size_bytes,
            seconds=round(time.monotonic() - started_s, 2),
        )  # fmt: skip


def default_every_epochs(genesis: Genesis) -> int:
    """As many epochs as a day has slots."""
    return max(1, DAY_S // genesis.slot_length_s)


# --- Answers to joiners ---------------------------------------------------------------------------


def answer_snapshot(store: LedgerStore) -> bytes:
    """A node's answer to "snapshot": the newest that can be believed; nothing when it has none."""
    snapshots = Snapshots.beside(store)
    for height in reversed(snapshots.heights() if snapshots is not None else []):
        offer = offer_of(store, height)
        if offer is not None and len(raw := pack(offer)) <= MAX_OFFER_BYTES:
            return raw
    return b""


def answer_chunk(store: LedgerStore, key: str) -> bytes:
    """
    A node's answer to "chunk" (`height/number`); nothing when it does not have it.

    Raises:
        MalformedError: not a chunk's name.
    """
    parts = key.split("/")
    if len(parts) != 2 or not all(p.isascii() and p.isdecimal() and len(p) < 16 for p in parts):
        raise MalformedError("expected height/number")
    snapshots = Snapshots.beside(store)
    return b"" if snapshots is None else snapshots.chunk(int(parts[0]), int(parts[1]))


def offer_of(store: LedgerStore, height: int) -> Offer | None:
    """A snapshot with its headers; None while, or if, the next header does not carry its root."""
    snapshots = Snapshots.beside(store)
    manifest = snapshots.manifest(height) if snapshots is not None else None
    following = store.get_block(height + 1)
    if manifest is None or following is None or following.header.exec_height != height:
        return None
    prover = Prover(store)
    try:
        seal, cover = prover.anchor(height), prover.anchor(height + 1)
    except NotProvableError:
        return None
    return Offer(manifest, seal, cover)
