"""
Pruning: a node that need not keep everything drops old blocks, little by little.

Dropped are blocks, bodies, receipts and events of epochs that ended more than `keep_epochs` ago,
but never anything since the older of the two snapshots that are kept: from there a joiner can catch
up, and `ledger verify` can execute again. Headers and finality of seals stay for light clients.

Every step is one small transaction between two turns of the node; the file shrinks as little by
little. What is not here any more is known (`LedgerStore.floor`), and questions about it are not
answered rather than answered wrongly.
"""

from __future__ import annotations

import structlog

from ledger.prover import keys_of
from ledger.schedule import running_epoch
from ledger.snapshots import KEPT, Snapshots
from ledger.statements import CONTRACTS
from ledger.store import LedgerStore
from runtime.ports import Clock

STEP_BLOCKS = 16
STEP_TXS = 256
BUDGET_S = 0.02
"""Real time that pruning may take of one housekeeping round (once a second)."""
STEP_PAGES = 64
MIN_KEEP_EPOCHS = 2

log = structlog.get_logger(component="ledger.pruning")


class Pruner:
    """
    Drops what is old from a node's store.

    Args:
        keep_epochs: how many ended epochs are kept, at least `MIN_KEEP_EPOCHS`
    """

    def __init__(self, store: LedgerStore, clock: Clock, keep_epochs: int) -> None:
        self._store = store
        self._clock = clock
        self._keep_epochs = max(keep_epochs, MIN_KEEP_EPOCHS)

    def tend(self, budget_s: float = BUDGET_S) -> int:
        """
        Drop what is old, for about as long as the budget; the rest next time.

        Returns:
            How many blocks were dropped.
        """
        until_s = self._clock.monotonic_s() + budget_s
        floor = self._store.floor
        limit, before = self._limit(), floor
        while floor < limit and self._clock.monotonic_s() < until_s:
            up_to = self._step_end(floor, limit)
            if up_to == floor:
                break
            self._store.drop_blocks(up_to, lambda height: keys_of(self._store, height), CONTRACTS)
            floor = up_to
        if self._clock.monotonic_s() < until_s:
            self._store.shrink(STEP_PAGES)
        return floor - before

    def _limit(self) -> int:
        """Blocks up to this height need not be kept for a snapshot's sake."""
        snapshots = Snapshots.beside(self._store)
        heights = snapshots.heights() if snapshots is not None else []
        return heights[-KEPT] - 1 if len(heights) >= KEPT else 0

    def _step_end(self, floor: int, limit: int) -> int:
        """The last block of the next step; the floor itself when the next block is not old."""
        running = running_epoch(self._store)
        newest_old = (running.epoch if running is not None else 0) - self._keep_epochs - 1
        end, txs = floor, 0
        while end < min(limit, floor + STEP_BLOCKS) and txs < STEP_TXS:
            block = self._store.get_block(end + 1)
            if block is None or block.header.epoch > newest_old:
                break
            end, txs = end + 1, txs + len(block.txids)
        return end
