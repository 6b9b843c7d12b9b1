"""
Epochs of the running chain: who validates, and in which order they lead.

The schedule of an epoch is a function of the state after its base, the seal block of the epoch
before. It is kept, because a node that restarts in the middle of an epoch has a later state;
keeping it also puts all blocks so far on the disk for good, after which the logs of ended epochs
may go. Its validators are rows of the state, made two seals ahead and never changed
(`ledger.contracts.validators`), so they need not be kept beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ledger.genesis import Genesis
from ledger.poe import build_schedule, schedule_seed
from ledger.protocol import Epoch
from ledger.types import (
    Certificate,
    Finality,
    Header,
    ValidatorSet,
    decode,
    genesis_hash,
    header_hash,
)
from wire.keys import KEY_BYTES, from_text

if TYPE_CHECKING:  # a light client has neither, and should not wait for them
    from ledger.execution import Ledger
    from ledger.store import LedgerStore

META_KEY = "epoch"


class _Saved(msgspec.Struct, array_like=True):
    """What is kept of the running epoch."""

    epoch: int
    schedule: tuple[int, ...]
    base_hash: bytes
    base_height: int
    base_time_ms: int
    base_certificate: Certificate | None


class Epochs:
    """Finds, makes and keeps the running epoch."""

    def __init__(self, genesis: Genesis, ledger: Ledger, store: LedgerStore) -> None:
        self._genesis = genesis
        self._ledger = ledger
        self._store = store

    @property
    def validators(self) -> ValidatorSet:
        """Of the running epoch: those who finalise the next block."""
        return self._set(self._ledger.epoch)

    def validators_of(self, epoch: int) -> ValidatorSet | None:
        """
        The validators of an epoch, to check votes and finality of it.

        None when the executed state does not know it: beyond the next epoch, or further back than
        `membership.evidenceEpochs`.
        """
        return self._ledger.validator_set(epoch)

    def next_validators(self, epoch: int) -> ValidatorSet:
        """Whom the seal of a running epoch names: the validators of the one after it."""
        return self._set(epoch + 1)

    def controllers(self, epoch: int) -> dict[str, str]:
        """Who runs each validator of an epoch."""
        return self._ledger.controllers(epoch)

    def current(self) -> Epoch:
        """The epoch a node is in when it starts."""
        raw = self._store.meta(META_KEY)
        if raw is not None:
            saved = msgspec.msgpack.decode(raw, type=_Saved)
            tip = self._store.tip
            if tip is None or not tip.header.seal or tip.hash == saved.base_hash:
                return self._epoch(saved)
            # stopped between executing a seal and keeping its epoch: the state is still the seal's
            return self.after_seal(tip.header, decode(Finality, tip.certificate))
        return self._keep(0, genesis_hash(self._genesis.chain_id), 0, self._genesis.start_ms, None)

    def after_seal(self, header: Header, finality: Finality) -> Epoch:
        """The epoch that begins at an executed seal block."""
        return self._keep(
            header.epoch + 1,
            header_hash(header),
            header.height,
            header.time_ms,
            finality.certificate,
        )

    def _keep(
        self,
        epoch: int,
        base_hash: bytes,
        base_height: int,
        base_time_ms: int,
        certificate: Certificate | None,
    ) -> Epoch:
        assert epoch == self._ledger.epoch, "an epoch is made from the state after its base"
        schedule = build_schedule(
            self._genesis.poe,
            self._ledger.candidates(),
            schedule_seed(self._ledger.seed(), base_height),
        )
        saved = _Saved(epoch, schedule, base_hash, base_height, base_time_ms, certificate)
        self._store.put_meta(META_KEY, msgspec.msgpack.encode(saved))
        return self._epoch(saved)

    def _epoch(self, saved: _Saved) -> Epoch:
        return Epoch(
            chain_id=self._genesis.chain_id,
            epoch=saved.epoch,
            validators=self._set(saved.epoch),
            schedule=saved.schedule,
            base_hash=saved.base_hash,
            base_height=saved.base_height,
            base_time_ms=saved.base_time_ms,
            base_certificate=saved.base_certificate,
            delta_s=self._genesis.delta0_ms / 1000,
            next_validators=self.next_validators(saved.epoch),
        )

    def _set(self, epoch: int) -> ValidatorSet:
        found = self._ledger.validator_set(epoch)
        assert found is not None, f"the validators of epoch {epoch} are not known yet"
        return found


@dataclass(frozen=True, slots=True)
class Running:
    """What is kept of the running epoch, for readers of a store."""

    epoch: int
    schedule: tuple[int, ...]
    """Indexes of the epoch's validators; view v is led by `schedule[(v − 1) % len]`."""
    base_height: int
    """The seal before it; 0 is the genesis."""
    base_time_ms: int


def running_epoch(store: LedgerStore) -> Running | None:
    """The epoch that a node works in with this store; None when none has begun."""
    raw = store.meta(META_KEY)
    if raw is None:
        return None
    saved = msgspec.msgpack.decode(raw, type=_Saved)
    return Running(saved.epoch, saved.schedule, saved.base_height, saved.base_time_ms)


def validator_set(genesis: Genesis) -> ValidatorSet:
    """The founders: the validators of epochs 0 and 1."""
    return ValidatorSet(
        tuple(v.id for v in genesis.validators),
        tuple(from_text(v.key, KEY_BYTES) for v in genesis.validators),
    )
