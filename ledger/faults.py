"""
What can be wrong with a proposal, judged from the proposal, its epoch and its ancestors alone.

Each function names the first fault it finds, or None. What needs state (roots, bodies, clocks,
executed transactions) is the shell's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger import merkle
from ledger.blocktree import Block
from ledger.protocol import Epoch
from ledger.types import ZERO_HASH, Justify, Proposal, VoteKind, justify_hash


def form_fault(proposal: Proposal, epoch: Epoch) -> str | None:
    """A header that does not fit its epoch, its transactions or its justify."""
    header = proposal.header
    sealed = bool(header.next_validators_hash)
    checks = {
        "chain": header.chain_id == epoch.chain_id,
        "validators": header.validators_hash == epoch.validators.hash,
        "schedule": header.schedule_root == epoch.schedule_root,
        "height": header.height > epoch.base_height,
        "executed height": header.exec_height < header.height,
        "number of transactions": header.n_tx == len(proposal.txids),
        "repeated transaction": len(set(proposal.txids)) == len(proposal.txids),
        "transaction root": header.tx_root == merkle.root(proposal.txids),
        "seal": header.seal == sealed and len(header.next_validators_hash) in (0, 32),
        "justify hash": header.justify_hash == justify_hash(proposal.justify),
    }
    return next((name for name, good in checks.items() if not good), None)


def justify_fault(
    header_view: int, parent_hash: bytes, justify: Justify, epoch: Epoch
) -> str | None:
    """
    A justify that is not about this parent and the views since (signatures unchecked).

    Nullifications that it leaves out, because there are too many, are the caller's to know.
    """
    notarization = justify.notarization
    if notarization is None:
        parent_view = 0
        if parent_hash != epoch.base_hash:
            return "unjustified parent"
    else:
        parent_view = notarization.view
        if notarization.kind == VoteKind.NULLIFY or notarization.block_hash != parent_hash:
            return "unjustified parent"
    first = max(parent_view + 1, header_view - epoch.validators.inline_views)
    skipped = [(one.kind, one.view, one.block_hash) for one in justify.nullifications]
    expected = [(VoteKind.NULLIFY, view, ZERO_HASH) for view in range(first, header_view)]
    return None if skipped == expected else "unjustified views"


def linkage_fault(
    block: Block, ancestors: Sequence[Block], final_height: int, final_time_ms: int
) -> str | None:
    """A block that does not fit the unfinalised ancestors it stands on (oldest first)."""
    header = block.header
    height = ancestors[-1].header.height if ancestors else final_height
    time_ms = ancestors[-1].header.time_ms if ancestors else final_time_ms
    if header.height != height + 1:
        return "height"
    if header.time_ms <= time_ms:
        return "time not after the parent's"
    if any(one.header.seal for one in ancestors) and (header.seal or header.n_tx):
        return "not empty after the seal"
    earlier: set[bytes] = set()
    earlier.update(*(one.proposal.txids for one in ancestors))
    return None if earlier.isdisjoint(block.proposal.txids) else "transaction of an ancestor"
