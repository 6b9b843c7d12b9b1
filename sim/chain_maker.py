"""
Blocks without a network: headers, finalizations by a quorum, execution, epoch after epoch.

Whoever holds all validators' keys can write a chain that `ledger verify` takes: the simulated month
(`sim.month`) and tests do so. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ledger import merkle, types
from ledger.execution import BlockResult, Ledger
from ledger.genesis import Genesis
from ledger.schedule import Epochs
from ledger.store import LedgerStore
from wire.keys import SigningKey
from wire.transactions import Transaction


class ChainMaker:
    """
    A ledger and everything needed to add blocks to it.

    Args:
        keys: of all validators that may speak, by id
    """

    def __init__(
        self, genesis: Genesis, store: LedgerStore, keys: Mapping[str, SigningKey]
    ) -> None:
        self.genesis, self.store, self._keys = genesis, store, keys
        self.chain_id = genesis.chain_id
        self.ledger = Ledger.open(genesis, store)
        self.epochs = Epochs(genesis, self.ledger, store)
        self.epoch = self.epochs.current()
        self.view = 0

    def block(self, time_ms: int, txs: Sequence[Transaction]) -> BlockResult:
        """
        Add a block; the first of a slot seals its epoch, and the next epoch begins.

        Args:
            time_ms: later than the last block's
        """
        header = self._header(time_ms, txs)
        certificate = self._finality(header)
        result = self.ledger.execute(header, txs, types.encode(certificate))
        if header.seal:
            self.epoch = self.epochs.after_seal(header, certificate)
            self.view = 0
        return result

    def _header(self, time_ms: int, txs: Sequence[Transaction]) -> types.Header:
        self.view += 1
        executed, epoch, grid = self.ledger.executed_height, self.epoch, self.genesis.grid
        seal = grid.slot_at(time_ms) > grid.slot_at(epoch.base_time_ms)
        return types.Header(
            chain_id=self.chain_id,
            epoch=epoch.epoch,
            view=self.view,
            height=executed + 1,
            parent_hash=self.ledger.tip_hash,
            justify_hash=bytes(32),
            tx_root=merkle.root([tx.txid for tx in txs]),
            n_tx=len(txs),
            exec_height=executed,
            state_root=self.ledger.state_root(executed),
            receipts_root=self.ledger.receipts_root(self.ledger.covered_height, executed),
            validators_hash=epoch.validators.hash,
            schedule_root=epoch.schedule_root,
            time_ms=time_ms,
            proposer=epoch.validators.ids[epoch.leader(self.view)],
            seal=seal,
            next_validators_hash=self.epochs.next_validators(epoch.epoch).hash if seal else b"",
        )

    def _finality(self, header: types.Header) -> types.Finality:
        validators = self.epoch.validators
        votes = [
            types.make_vote(
                self._keys[validators.ids[index]], self.chain_id, index, header.epoch, header.view,
                types.VoteKind.FINALIZE, types.header_hash(header),
            )
            for index in range(validators.quorum)
        ]  # fmt: skip
        return types.Finality(types.make_certificate(votes))
