"""
Joining a chain by snapshot: an empty folder becomes that of a node that goes on at the newest one.

1. Follow headers from the genesis or a checkpoint (`ledger.light_sync`): now the validators are
   known, and what is final.
2. Ask every validator for its newest snapshot; check its headers.
3. Fetch the chunks from several validators at a time. A wrong one, or none, is asked of the next.
4. Write the state into a new store beside, make its Merkle root again, compare it with the
   header's, work out the running epoch, and move the store into place: the last step, so whoever is
   killed before begins again with an empty folder.

What is left, from there to the tip, a node fetches as after any absence (`ledger.fetch`). It has
no log of votes then, so it takes no seat before the next epoch begins (`ledger.node`): a validator
that lost its disk may have voted in the running one.

Source: ledger.md §6.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from ledger import merkle, types
from ledger.checkpoint import Checkpoint, checkpoint_json, genesis_checkpoint
from ledger.execution import ChainError, Ledger
from ledger.genesis import Genesis, genesis_bytes
from ledger.light import DAY_MS, TRUST_PERIOD_MS, LightClient, TrustExpiredError
from ledger.light_sync import LightFollower, NoProofError
from ledger.proofs import Anchor
from ledger.schedule import Epochs
from ledger.snapshot import (
    CHUNK_BYTES,
    Manifest,
    Offer,
    SnapshotError,
    check_chunk,
    check_offer,
    check_preamble,
    pack,
    read_offer,
    split,
)
from ledger.snapshots import FOLDER, Snapshots, default_every_epochs
from ledger.store import FILE_NAME, LedgerStore, OldSeal, StoredBlock
from runtime.metrics import count_refusal
from runtime.ports import Bus, Clock, Rng
from wire.canonical import encode
from wire.errors import ConfigError, WireError

STAGE = "joining"
AT_ONCE = 4
"""Chunks asked for at a time, each of another validator."""
CHUNK_ROUNDS = 3
"""How often all validators are asked for a chunk before a snapshot is given up."""
PAUSE_S = 0.5
CONNECT_TIMEOUT_S = 15.0

log = structlog.get_logger(component="ledger.joining")


class CannotJoinError(ConnectionError):
    """No snapshot could be had and believed; the message says what was tried (temporary)."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a folder begins with."""

    height: int
    rows: int
    size_bytes: int
    validators: int
    """Who offered this very snapshot."""


class _Remembering(LightClient):
    """A light client that keeps which validators decided where, and the seals between."""

    def __init__(self, trust: Checkpoint) -> None:
        super().__init__(trust)
        self._first = trust.validators
        self.seals: list[OldSeal] = []
        """Each ended a set of validators, and brought in the next."""
        self._sets: list[types.ValidatorSet] = []

    def validators_at(self, height: int) -> types.ValidatorSet:
        """Who finalised the block of a height; former ones may not, their keys may be sold."""
        found = self._first
        for seal, validators in zip(self.seals, self._sets, strict=True):
            if height > seal.header.height:
                found = validators
        return found

    def advance(
        self, anchor: Anchor, now_ms: int, following: types.ValidatorSet | None = None
    ) -> bool:
        before = self.trust.validators
        """As a light client does (`LightClient.advance`)."""
        newer = super().advance(anchor, now_ms, following)
        validators = self.trust.validators
        if validators.hash != before.hash:
            self._sets.append(validators)
            self.seals.append(OldSeal(anchor.header, anchor.finality, validators.keys))
        return newer


async def join(
    folder: Path,
    genesis: Genesis,
    bus: Bus,
    clock: Clock,
    client_id: str,
    *,
    trust: Checkpoint | None = None,
    every_epochs: int | None = None,
    rng: Rng | None = None,
) -> Joined | None:
    """
    Fill an empty chain folder from the newest snapshot of the validators.

    Args:
        folder: has no blocks; a vote log in it stays as it is
        bus: a fresh lane under `client_id`, used for this only; it is started and stopped here
        trust: a checkpoint, where the genesis is too old to follow from
        every_epochs: how often the chain's nodes take snapshots; by default once a day

    Returns:
        None when there is nothing to do or to join by: the folder has blocks, or the chain is too
        young for a snapshot, or no validator has one. Then start a node, which fetches the blocks.

    Raises:
        CannotJoinError: no validator answers, or none of what they offer could be fetched and
            believed. Try again, or start a node: it fetches all blocks that are still kept.
        ConfigError: the chain is older than the trust period: a checkpoint is needed.
        ConflictError: validators show headers that exclude each other.
    """
    if not is_empty(folder):
        return None
    shutil.rmtree(folder / STAGE, ignore_errors=True)
    every = every_epochs or default_every_epochs(genesis)
    if clock.now_ms() - genesis.start_ms < every * genesis.slot_length_s * 1000:
        return None  # the founders begin at once
    joiner = Joiner(folder, genesis, bus, clock, client_id, trust=trust, rng=rng)
    await joiner.start()
    await bus.start()
    try:
        await bus.wait_connected(CONNECT_TIMEOUT_S)
        return await joiner.run()
    except TrustExpiredError:
        raise ConfigError(
            f"what is trusted is older than {TRUST_PERIOD_MS // DAY_MS} days: give a newer "
            "checkpoint of somebody you trust (`ledger checkpoint DIR` on a running node)"
        ) from None
    except (TimeoutError, NoProofError) as error:
        raise CannotJoinError(f"no validator answers: {error or 'not connected'}") from None
    finally:
        await bus.stop()
        shutil.rmtree(folder / STAGE, ignore_errors=True)


def is_empty(folder: Path) -> bool:
    """True when a chain folder has no block yet."""
    if not (folder / FILE_NAME).exists():
        return True
    with contextlib.closing(LedgerStore.in_folder(folder, read_only=True)) as store:
        return store.tip is None


class Joiner:
    """
    Asks for a snapshot, piece by piece.

    Args:
        folder: the chain folder to fill
    """

    def __init__(
        self,
        folder: Path,
        genesis: Genesis,
        bus: Bus,
        clock: Clock,
        client_id: str,
        *,
        trust: Checkpoint | None = None,
        rng: Rng | None = None,
    ) -> None:
        self._folder = folder
        self._genesis = genesis
        self._trust = trust or genesis_checkpoint(genesis)
        self._client_id = client_id
        self._follower = LightFollower(bus, genesis, clock, client_id, trust=self._trust, rng=rng)
        self._light = self._follower.light = _Remembering(self._trust)

    async def start(self) -> None:
        """Subscribe."""
        await self._follower.start()

    async def run(self) -> Joined | None:
        """See `join`."""
        await self._follower.follow()
        offers = await self._offers()
        if not offers:
            return None
        for offer, sources in offers:
            stage = self._folder / STAGE
            snapshots = Snapshots(stage / FOLDER)
            try:
                await self._fetch(offer.manifest, sources, snapshots)
                await asyncio.to_thread(self._install, offer, stage, snapshots)
            except (CannotJoinError, WireError, ChainError, sqlite3.Error) as error:
                if isinstance(error, WireError):
                    count_refusal("ledger.joining", error.refusal)
                log.warning("snapshot refused", height=offer.manifest.height, reason=str(error))
                shutil.rmtree(stage, ignore_errors=True)
                continue
            manifest = offer.manifest
            done = Joined(manifest.height, manifest.rows, manifest.size_bytes, len(sources))
            log.info("joined", height=done.height, rows=done.rows, bytes=done.size_bytes)
            return done
        raise CannotJoinError(
            f"{len(offers)} snapshots were offered, none could be fetched and believed; "
            "see the log, and try again"
        )

    # --- Offers ----------------------------------------------------------------------------------

    async def _offers(self) -> list[tuple[Offer, list[str]]]:
        """
        What can be believed so far, and who offers it; the best first.

        The best is the newest that f + 1 validators offer, for one of them is honest. What fewer
        offer comes later: its root tells the truth in the end, but only when all is fetched.
        """
        found: dict[str, Offer] = {}
        asked = self._follower.in_turn()
        await asyncio.gather(*(self._ask_offer(validator, found) for validator in asked))
        sources: dict[bytes, list[str]] = {}
        by_manifest: dict[bytes, Offer] = {}
        for validator in asked:
            if validator in found:
                packed = pack(found[validator].manifest)
                sources.setdefault(packed, []).append(validator)
                by_manifest[packed] = found[validator]
        enough = self._light.trust.validators.f + 1
        ranked = sorted(
            sources,
            key=lambda one: (len(sources[one]) >= enough, by_manifest[one].manifest.height,
                             len(sources[one])),
            reverse=True,
        )  # fmt: skip
        return [(by_manifest[one], sources[one]) for one in ranked]

    async def _ask_offer(self, validator: str, found: dict[str, Offer]) -> None:
        async def ask() -> None:
            offer = read_offer(await self._follower.ask(validator, "snapshot", ""))
            check_offer(offer, self._light.trust, self._light.validators_at)
            found[validator] = offer

        await self._follower.attempt(ask(), validator)

    # --- Chunks ----------------------------------------------------------------------------------

    async def _fetch(self, manifest: Manifest, sources: list[str], snapshots: Snapshots) -> None:
        """
        Fetch all chunks into the stage.

        Raises:
            CannotJoinError: a chunk is to be had nowhere.
            OSError: the disk refused.
        """
        snapshots.folder.mkdir(parents=True, exist_ok=True)
        left = deque(range(len(manifest.hashes)))
        wrong: Counter[str] = Counter()
        with (snapshots.folder / f"{manifest.height}.chunks").open("wb") as file:

            async def work(lane: int) -> None:
                turn = lane
                while left:
                    number = left.popleft()
                    chunk = await self._fetch_chunk(manifest, number, sources, turn, wrong)
                    file.seek(number * CHUNK_BYTES)
                    file.write(chunk)
                    turn += 1

            try:
                async with asyncio.TaskGroup() as tasks:
                    for lane in range(AT_ONCE):
                        tasks.create_task(work(lane))
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
        (snapshots.folder / f"{manifest.height}.manifest").write_bytes(pack(manifest))

    async def _fetch_chunk(
        self,
        manifest: Manifest,
        number: int,
        sources: list[str],
        turn: int,
        wrong: Counter[str],
    ) -> bytes:
        """One chunk, from whoever sends the right one; who sent wrong ones is asked last."""
        got: list[bytes] = []

        async def ask(validator: str) -> None:
            key = f"{manifest.height}/{number}"
            chunk = await self._follower.ask(validator, "chunk", key)
            try:
                check_chunk(manifest, number, chunk)
            except SnapshotError:
                wrong[validator] += 1
                raise
            got.append(chunk)

        for attempt in range(CHUNK_ROUNDS):
            if attempt:
                await asyncio.sleep(PAUSE_S)
            begin = turn % len(sources)
            order = [*sources[begin:], *sources[:begin]]
            for validator in sorted(order, key=lambda one: wrong[one] > 0):
                if await self._follower.attempt(ask(validator), validator):
                    return got[0]
        raise CannotJoinError(f"chunk {number} of snapshot {manifest.height}: nobody has it")

    # --- Writing ---------------------------------------------------------------------------------

    def _install(self, offer: Offer, stage: Path, snapshots: Snapshots) -> None:
        """
        Make the store, check it, and move it into place.

        Raises:
            WireError, ChainError: the snapshot is not what the header names.
            sqlite3.Error: a row has no form that the store can take, or the disk refused.
            OSError: the disk refused.
        """
        manifest = offer.manifest
        trust = checkpoint_json(self._trust)
        with contextlib.closing(LedgerStore.in_folder(stage)) as store:
            restore(
                store, self._genesis, offer, snapshots.chunks(manifest.height),
                trust=trust, seals=self._light.seals,
            )  # fmt: skip
        place(stage, self._folder)


def restore(
    store: LedgerStore,
    genesis: Genesis,
    offer: Offer,
    chunks: Iterable[bytes],
    *,
    trust: dict[str, object],
    seals: Iterable[OldSeal] = (),
) -> Ledger:
    """
    Write a snapshot into an empty store, and check it against the offer's headers.

    Args:
        offer: checked (`ledger.snapshot.check_offer`)
        trust: the checkpoint (as JSON) that its check began with
        seals: kept for light clients

    Returns:
        The ledger as of the seal, its epoch made.

    Raises:
        SnapshotError, MalformedError: not the state that the headers name, or not a state at all.
        ChainError: the rows do not make the root, or break an invariant.
        sqlite3.Error: a row has no form that the store can take (it does so before the root is
            made), or the disk refused.
    """
    manifest, seal, cover = offer.manifest, offer.seal.header, offer.cover.header
    preamble, rows = split(chunks)
    receipts = check_preamble(preamble, seal, cover)
    kept = [one for one in seals if one.header.height <= seal.height]
    if all(one.header.height != seal.height for one in kept):
        kept.append(OldSeal(seal, offer.seal.finality))
    tip = StoredBlock(
        height=seal.height,
        hash=types.header_hash(seal),
        header_bytes=types.encode(seal),
        certificate=types.encode(offer.seal.finality),
        txids=preamble.blocks[-1].txids,
        state_root=cover.state_root,
        receipts_root=merkle.root([encode(one) for one in receipts[-1]]),
    )
    count = store.write_snapshot(
        genesis_bytes(genesis),
        rows,
        tip,
        {block.header.height: found
         for block, found in zip(preamble.blocks, receipts, strict=True)},
        event_heads=preamble.event_heads,
        trust=trust,
        seals=kept,
    )  # fmt: skip
    if count != manifest.rows:
        raise SnapshotError("the manifest counts other rows", rows=count)
    ledger = Ledger.open(genesis, store)  # makes the Merkle root and counts the money
    epochs = Epochs(genesis, ledger, store)
    for epoch, wanted in (
        (seal.epoch, seal.validators_hash),
        (cover.epoch, cover.validators_hash),
    ):
        found = ledger.validator_set(epoch)
        if found is None or found.hash != wanted:
            raise SnapshotError("the state names other validators", epoch=epoch)
    epochs.after_seal(seal, offer.seal.finality)
    return ledger


def place(stage: Path, folder: Path) -> None:
    """Move a whole store and its snapshot into the chain folder; the store comes last."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for kind in ("chunks", "manifest"):
        for file in (stage / FOLDER).glob(f"*.{kind}"):
            file.replace(folder / FOLDER / file.name)
    for suffix in ("", "-wal", "-shm"):  # of a store without a block
        (folder / f"{FILE_NAME}{suffix}").unlink(missing_ok=True)
    (stage / FILE_NAME).replace(folder / FILE_NAME)
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
