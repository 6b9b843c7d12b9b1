"""
What goes into a block, and whether another's block may be voted for: the part that needs the state.

Form, links and signatures are the consensus core's; here are bodies, roots, time and the seal flag.
Pure: market time comes in, verdicts go out.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from ledger.execution import Ledger
from ledger.mempool import Mempool
from ledger.merkle import root
from ledger.protocol import Content, Epoch, RequestProposal, ValidateProposal
from ledger.types import Header, Proposal

MAX_BLOCK_TXS = 512
DRIFT_MS = 10_000
"""How far a proposal's time may lie ahead of ours [market ms]."""


class Verdict(Enum):
    """What can be said of a proposal now."""

    VALID = "valid"
    INVALID = "invalid"
    WAIT = "wait"
    """Bodies are missing, or blocks it builds on are not executed here yet."""


def build_content(
    request: RequestProposal, ledger: Ledger, mempool: Mempool, epoch: Epoch, now_ms: int
) -> Content | None:
    """
    The content of a block that answers `request`, or None when there is nothing to put into it.

    A block whose time lies in a later slot than its epoch's base seals the epoch. Its roots are
    those of the last executed block.
    """
    parent_ms = _time_of(request.parent, epoch)
    time_ms = max(now_ms, parent_ms + 1)
    txids: tuple[bytes, ...] = ()
    seal = False
    if not request.empty:
        taken = set(_txids(request.ancestors))
        txids = tuple(tx.txid for tx in mempool.take(MAX_BLOCK_TXS, taken))
        seal = _seals(ledger, epoch, time_ms)
        if not txids and not request.must and not work_is_due(ledger, now_ms):
            return None
    executed = ledger.executed_height
    return Content(
        txids=txids,
        exec_height=executed,
        state_root=ledger.state_root(executed),
        receipts_root=ledger.receipts_root(executed),
        time_ms=time_ms,
        seal=seal,
        next_validators_hash=epoch.validators.hash if seal else b"",
    )


def judge(
    request: ValidateProposal, ledger: Ledger, mempool: Mempool, epoch: Epoch, now_ms: int
) -> Verdict:
    """Whether a proposal's content is right, wrong, or not to be told yet."""
    header = request.proposal.header
    if not _plausible(request, ledger, epoch, now_ms):
        return Verdict.INVALID
    if header.exec_height > ledger.executed_height:
        return Verdict.WAIT
    if (
        ledger.state_root(header.exec_height) != header.state_root
        or ledger.receipts_root(header.exec_height) != header.receipts_root
    ):
        return Verdict.INVALID
    txids = request.proposal.txids
    if mempool.missing(txids):
        return Verdict.WAIT
    for txid in txids:
        tx = mempool.get(txid)
        if tx is None or ledger.check_admission(tx, header.time_ms) is not None:
            return Verdict.INVALID
    return Verdict.VALID


def work_is_due(ledger: Ledger, now_ms: int) -> bool:
    """True when begin-block work (a gate closure, a settlement) has come due."""
    due_ms = ledger.next_due_ms()
    return due_ms is not None and due_ms <= now_ms


def _plausible(request: ValidateProposal, ledger: Ledger, epoch: Epoch, now_ms: int) -> bool:
    """What can be judged of a header without bodies or execution."""
    header, txids = request.proposal.header, request.proposal.txids
    parent_ms = _time_of(request.parent, epoch)
    if not parent_ms < header.time_ms <= now_ms + DRIFT_MS:
        return False
    if header.n_tx != len(txids) or header.tx_root != root(txids) or len(txids) > MAX_BLOCK_TXS:
        return False
    if (
        not (request.parent.exec_height if request.parent else 0)
        <= header.exec_height
        < header.height
    ):
        return False
    if request.empty:
        return not txids and not header.seal
    if header.seal != _seals(ledger, epoch, header.time_ms):
        return False
    return header.next_validators_hash == (epoch.validators.hash if header.seal else b"")


def _seals(ledger: Ledger, epoch: Epoch, time_ms: int) -> bool:
    grid = ledger.genesis.grid
    return grid.slot_at(time_ms) > grid.slot_at(epoch.base_time_ms)


def _time_of(parent: Header | None, epoch: Epoch) -> int:
    return parent.time_ms if parent is not None else epoch.base_time_ms


def _txids(proposals: Iterable[Proposal]) -> Iterable[bytes]:
    for proposal in proposals:
        yield from proposal.txids
