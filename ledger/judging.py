"""
What goes into a block, and whether another's block may be voted for: the part that needs the state.

Form, links and signatures are the consensus core's; here are bodies, roots, time and the seal flag.
Pure: market time comes in, verdicts go out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from ledger.execution import Ledger
from ledger.mempool import Budget, Mempool
from ledger.merkle import EMPTY_ROOT, root
from ledger.protocol import Content, Epoch, RequestProposal, ValidateProposal
from ledger.types import Header, Proposal
from wire.errors import Refusal

BLOCK_BUDGET = Budget()
DRIFT_MS = 10_000
"""How far a proposal's time may lie ahead of ours [market ms]."""


class Verdict(Enum):
    """What can be said of a proposal now."""

    VALID = "valid"
    INVALID = "invalid"
    WAIT = "wait"
    """Bodies are missing, or blocks it builds on are not executed here yet."""


class Judgement(NamedTuple):
    """A verdict and its reason."""

    verdict: Verdict
    reason: str


def build_content(
    request: RequestProposal,
    ledger: Ledger,
    mempool: Mempool,
    epoch: Epoch,
    now_ms: int,
    unexecuted: Sequence[bytes] = (),
) -> Content | None:
    """
    The content of a block that answers `request`, or None when there is nothing to put into it.

    Args:
        unexecuted: txids of final blocks that are not executed here yet

    A block whose time lies in a later slot than its epoch's base seals the epoch. Its roots are
    those of the last executed block.
    """
    parent_ms = _time_of(request.parent, epoch)
    time_ms = max(now_ms, parent_ms + 1)
    txids: tuple[bytes, ...] = ()
    seal = False
    if not request.empty:
        before = (*unexecuted, *_txids(request.ancestors))
        txids = tuple(tx.txid for tx in mempool.take(time_ms, BLOCK_BUDGET, before))
        seal = _seals(ledger, epoch, time_ms)
        if not txids and not request.must and not work_is_due(ledger, now_ms):
            return None
    executed, state_root, receipts_root = _roots(request.parent, ledger, epoch)
    return Content(
        txids=txids,
        exec_height=executed,
        state_root=state_root,
        receipts_root=receipts_root,
        time_ms=time_ms,
        seal=seal,
        next_validators_hash=epoch.next_validators_hash if seal else b"",
    )


def judge(
    request: ValidateProposal,
    ledger: Ledger,
    mempool: Mempool,
    epoch: Epoch,
    now_ms: int,
    unexecuted: Sequence[bytes] = (),
) -> Judgement:
    """
    Whether a proposal's content is right, wrong, or not to be told yet; and why.

    A transaction is refused only when it was executed before, or is in a final block that waits
    for execution (`unexecuted`). One that has expired or has another's nonce is harmless: it gets
    a receipt and changes nothing. To refuse its block would let one sender stop the chain, because
    honest leaders know different parts of what was executed and sent.
    """
    header = request.proposal.header
    fault = _form_fault(request, ledger, epoch, now_ms)
    if fault:
        return Judgement(Verdict.INVALID, fault)
    if header.exec_height > ledger.executed_height:
        return Judgement(Verdict.WAIT, "not executed here yet")
    covered = _covered(request.parent, ledger, epoch)
    if (
        ledger.state_root(header.exec_height) != header.state_root
        or ledger.receipts_root(covered, header.exec_height) != header.receipts_root
    ):
        return Judgement(Verdict.INVALID, "roots are not ours")
    txids = request.proposal.txids
    if mempool.missing(txids):
        return Judgement(Verdict.WAIT, "bodies are missing")
    if not set(unexecuted).isdisjoint(txids):
        return Judgement(Verdict.INVALID, "a transaction is in a final block")
    left = BLOCK_BUDGET
    for txid in txids:
        tx = mempool.get(txid)
        assert tx is not None
        if ledger.check_admission(tx, header.time_ms) is Refusal.REPLAYED:
            return Judgement(Verdict.INVALID, "a transaction was executed before")
        left = left.less(tx)
    if left.exceeded:
        return Judgement(Verdict.INVALID, "too many operations or bytes")
    return Judgement(Verdict.VALID, "")


def work_is_due(ledger: Ledger, now_ms: int) -> bool:
    """True when begin-block work (a gate closure, a settlement) has come due."""
    due_ms = ledger.next_due_ms()
    return due_ms is not None and due_ms <= now_ms


def _form_fault(request: ValidateProposal, ledger: Ledger, epoch: Epoch, now_ms: int) -> str:
    """What is wrong with a header, without bodies or execution; empty: nothing."""
    header, txids = request.proposal.header, request.proposal.txids
    if not _time_of(request.parent, epoch) < header.time_ms <= now_ms + DRIFT_MS:
        return "time is not after the parent's and before ours"
    if (
        header.n_tx != len(txids)
        or header.tx_root != root(txids)
        or len(txids) > BLOCK_BUDGET.transactions
    ):
        return "transactions are not the header's"
    if not _covered(request.parent, ledger, epoch) <= header.exec_height < header.height:
        return "executed height out of range"
    seals = not request.empty and _seals(ledger, epoch, header.time_ms)
    if request.empty and txids:
        return "a seal's descendant is not empty"
    if header.seal != seals or header.next_validators_hash != (
        epoch.next_validators_hash if seals else b""
    ):
        return "seal flag is wrong"
    return ""


def _seals(ledger: Ledger, epoch: Epoch, time_ms: int) -> bool:
    grid = ledger.genesis.grid
    return grid.slot_at(time_ms) > grid.slot_at(epoch.base_time_ms)


def _roots(parent: Header | None, ledger: Ledger, epoch: Epoch) -> tuple[int, bytes, bytes]:
    """
    Executed height, state root and receipts root of a block on `parent`.

    A leader that has not executed as far as its parent's roots reach repeats the parent's state
    root, and adds no receipts: it need not lose its turn.
    """
    covered, executed = _covered(parent, ledger, epoch), ledger.executed_height
    if parent is not None and executed < covered:
        return covered, parent.state_root, EMPTY_ROOT
    return executed, ledger.state_root(executed), ledger.receipts_root(covered, executed)


def _covered(parent: Header | None, ledger: Ledger, epoch: Epoch) -> int:
    """Height up to which the parent's roots reach; an epoch's first parent is its base."""
    if parent is not None:
        return parent.exec_height
    base = ledger.store.get_block(epoch.base_height)
    return base.header.exec_height if base is not None else 0


def _time_of(parent: Header | None, epoch: Epoch) -> int:
    return parent.time_ms if parent is not None else epoch.base_time_ms


def _txids(proposals: Iterable[Proposal]) -> Iterable[bytes]:
    for proposal in proposals:
        yield from proposal.txids
