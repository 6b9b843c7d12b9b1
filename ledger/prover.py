"""
Making proofs (`ledger.proofs`) from a store and, for rows of the state, a ledger. Reads only.

A row after height e needs a final header with exec_height = e. Of several the one with the shortest
way to its finalization is taken, then the newest. The receipts of a block are under the root of one
header only, the first with exec_height ≥ e.

The store holds the state after its tip, and the newest header carries the root of one before. A
running ledger can still look back at that one (`ledger.state.State.past`); from a folder, the chain
is executed again in memory up to it (`replay`).

`answer_proof` and `answer_anchor` are what a node says to light clients (`ledger.light_sync`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ledger import merkle, proofs, types
from ledger.checkpoint import Checkpoint, checkpoint_at, genesis_checkpoint
from ledger.contracts.keys import validator_set as validator_set_key
from ledger.execution import Ledger, contract_of
from ledger.genesis import Genesis
from ledger.proofs import (
    AT,
    INCLUSION,
    NEXT,
    RECEIPT,
    Anchor,
    InclusionProof,
    Proof,
    ReceiptProof,
    StateProof,
    Step,
)
from ledger.store import LedgerStore, OldSeal, StoredBlock
from wire.canonical import encode
from wire.errors import HearthgridError, MalformedError
from wire.keys import KEY_BYTES, from_text
from wire.transactions import parse_transaction

MAX_ANSWER_BYTES = 64 * 1024
ANCHORS_TRIED = 8
"""Of the headers that carry a state, so many are looked at for the shortest proof."""


class NotProvableError(HearthgridError):
    """No final header covers what is wanted; the message says what to do."""


class Prover:
    """
    Proofs from a store of executed blocks.

    Args:
        store: may be open for reading only
    """

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    def anchor(self, height: int) -> Anchor:
        """
        The header of an executed block, and why it is final.

        Raises:
            NotProvableError: no such block, or nothing on disk finalises it.
        """
        if (seal := self._old_seal(height)) is not None:
            return Anchor(seal.header, seal.finality)
        block = self._block(height)
        path: list[types.Header] = []
        later: StoredBlock | None = block
        while later is not None and not later.certificate:
            later = self._store.get_block(later.height + 1)
            if later is not None:
                path.append(later.header)
        if later is None:
            raise NotProvableError(f"block {height}: no finalization of it is on disk")
        finality = types.decode(types.Finality, later.certificate)
        if len(path) + len(finality.path) > types.MAX_PATH:
            raise NotProvableError(f"block {height}: the next finalization is too far from it")
        whole = types.Finality(finality.certificate, (*path, *finality.path))
        return Anchor(block.header, whole)

    def covering(self, height: int) -> Anchor:
        """
        The final header whose roots are those after executing `height`.

        Raises:
            NotProvableError: there is none yet, or there will never be one.
        """
        found: list[Anchor] = []
        for one in reversed(list(self._headers_over(height))):  # the newest is nearest
            try:
                found.append(self.anchor(one))
            except NotProvableError:
                continue
            if not found[-1].finality.path or len(found) == ANCHORS_TRIED:
                break
        if not found:
            raise NotProvableError(self._why_uncovered(height))
        return min(found, key=lambda one: (len(one.finality.path), -one.header.height))

    def row(self, ledger: Ledger, key: str, height: int | None = None) -> StateProof:
        """
        Proof of a row of the state, or of its absence.

        Args:
            ledger: at the newest header's exec_height or not far above it
            height: after this block; by default the newest state that a header carries

        Raises:
            NotProvableError: no header carries that state, or the ledger has left it behind.
        """
        anchor = self.covering(self.newest_covered() if height is None else height)
        header = anchor.header
        state = ledger.state.past(header.state_root)
        if state is None:
            raise NotProvableError(
                f"the state after block {header.exec_height} is not in memory: a block must follow"
            )
        proof, value = state.prove(key), state.get(key)
        return StateProof(
            header=header,
            finality=anchor.finality,
            key=key,
            value=b"" if value is None else encode(value),
            siblings=b"".join(proof.siblings),
            other_path=proof.other_path,
            other_value_hash=proof.other_value_hash,
        )

    def newest_covered(self) -> int:
        """
        The highest height whose state a header carries.

        Raises:
            NotProvableError: the chain has no block.
        """
        return self._tip().header.exec_height

    def receipt(self, txid: bytes) -> ReceiptProof:
        """
        Proof of what became of a transaction.

        Raises:
            NotProvableError: not executed, or no header answers for its block yet.
        """
        height = self._height_of(txid)
        anchor, after = self._answering(height)
        blocks = range(after + 1, anchor.header.exec_height + 1)
        index = self._block(height).txids.index(txid)
        index += sum(len(self._block(number).txids) for number in blocks if number < height)
        leaves = [encode(one) for number in blocks for one in self._store.receipts(number)]
        siblings = merkle.inclusion_proof(leaves, index)
        return ReceiptProof(
            header=anchor.header,
            finality=anchor.finality,
            receipt=leaves[index],
            turns=_turns(index, len(leaves)),
            siblings=b"".join(siblings),
        )

    def inclusion(self, txid: bytes) -> InclusionProof:
        """
        Proof that a transaction is in its block.

        Raises:
            NotProvableError: in no executed block.
        """
        height = self._height_of(txid)
        anchor, txids = self.anchor(height), self._block(height).txids
        index = txids.index(txid)
        siblings = b"".join(merkle.inclusion_proof(txids, index))
        return InclusionProof(anchor.header, anchor.finality, txid, index, siblings)

    def step(self, height: int, validators_hash: bytes) -> Step:
        """
        What leads a light client on that trusts a header and a set of validators.

        Args:
            height: of the header; when it was dropped after a seal, the chain goes on below it
            validators_hash: of the set

        Returns:
            The seal that ends that set, if it has ended, else the newest final header. The seal
            lies above the height, or not far below when that set does not decide there.

        Raises:
            NotProvableError: the chain has no block, or that set never was in it.
        """
        if self._store.floor and height <= self._store.floor:
            change = self._store.old_change(height, validators_hash)
            if change is not None:
                return Step(Anchor(change.header, change.finality), change.keys)
        low, high = max(height, self._store.floor + 1, 1), self._tip().height
        low = min(low, high)
        if self._decides_after(high) == validators_hash:
            return Step(self.anchor(high))
        if self._decides_after(low) != validators_hash:
            step = self._step_below(low, validators_hash)
            if step is not None:
                return step
        # Somewhere between the set stops deciding: find one such place.
        while low < high:
            middle = (low + high) // 2
            if self._decides_after(middle) == validators_hash:
                low = middle + 1
            else:
                high = middle
        anchor, keys = self.anchor(high), keys_of(self._store, high)
        if keys:
            return Step(anchor, keys)
        raise NotProvableError(f"block {high} does not end the validators that were named")

    def _step_below(self, height: int, validators_hash: bytes) -> Step | None:
        """
        The newest seal at a height or up to `MAX_PATH` below it that ends a set of validators.

        What a quorum finalises after a seal is dropped, and is also the proof of the seal: it
        cannot lie further above it.
        """
        above, store = max(0, height - types.MAX_PATH - 1), self._store
        changes = store.event_heights(
            contract_of("validators"), max(above, store.floor), types.MAX_PATH + 1
        )
        for number in reversed(changes):
            if number <= height and self._block(number).header.validators_hash == validators_hash:
                keys = keys_of(store, number)
                if keys:
                    return Step(self.anchor(number), keys)
        found, seal = None, store.old_change(above + 1, validators_hash)
        while seal is not None and seal.header.height <= height:
            found, seal = seal, store.old_change(seal.header.height + 1, validators_hash)
        return None if found is None else Step(Anchor(found.header, found.finality), found.keys)

    def _decides_after(self, height: int) -> bytes:
        """Hash of the validators who decide on the block above a height."""
        header = self._block(height).header
        return header.next_validators_hash if header.seal else header.validators_hash

    def _tip(self) -> StoredBlock:
        tip = self._store.tip
        if tip is None:
            raise NotProvableError("the chain has no block yet")
        return tip

    def _answering(self, height: int) -> tuple[Anchor, int]:
        """The one header whose receipts are also those of a block, and its parent's exec_height."""
        after, later = 0, height + 1
        if (parent := self._store.get_block(height)) is not None:
            after = parent.header.exec_height
        while (block := self._store.get_block(later)) is not None:
            if block.header.exec_height >= height:
                return self.anchor(later), after
            after, later = block.header.exec_height, later + 1
        raise NotProvableError(self._why_uncovered(height))

    def _height_of(self, txid: bytes) -> int:
        height = self._store.executed_at(txid)
        if height is None:
            raise NotProvableError(f"transaction {txid.hex()} is in no executed block")
        return height

    def _old_seal(self, height: int) -> OldSeal | None:
        return self._store.old_seal(height) if height <= self._store.floor else None

    def _block(self, height: int) -> StoredBlock:
        block = self._store.get_block(height)
        if block is None:
            raise NotProvableError(f"block {height} is not here (tip {self._store.height})")
        return block

    def _headers_over(self, height: int) -> Iterator[int]:
        """Heights of headers with this exec_height; it never falls from one block to the next."""
        later = height + 1
        while (block := self._store.get_block(later)) is not None:
            executed = block.header.exec_height
            if executed > height:
                return
            if executed == height:
                yield later
            later += 1

    def _why_uncovered(self, height: int) -> str:
        covered = self.newest_covered()
        if covered < height:
            return (
                f"no header carries the roots after block {height} yet (they reach {covered}): "
                "a later block must become final first"
            )
        return (
            f"no header carries the state after block {height}: the leaders proposed faster than "
            "they executed; prove a later one"
        )


def keys_of(store: LedgerStore, height: int) -> tuple[bytes, ...]:
    """Keys of the validators that a seal brings in, by index; empty when it changes none."""
    for event in store.events(height, contract_of("validators")):
        if event["event"] == "validators":
            return tuple(from_text(one["key"], KEY_BYTES) for one in event["validators"])
    return ()


def replay(genesis: Genesis, store: LedgerStore, height: int) -> Ledger:
    """
    The ledger as it was after `height`, by executing the chain again in memory.

    Signatures are not checked: what is proved is checked against headers by whoever reads the
    proof. It takes time in proportion to the chain.

    Raises:
        ChainError: the stored blocks do not execute.
        NotProvableError: a block is missing.
    """
    ledger = Ledger.open(genesis, LedgerStore(":memory:"))
    for number in range(1, height + 1):
        block = store.get_block(number)
        bodies = [store.get_body(txid) for txid in block.txids] if block is not None else []
        txs = [parse_transaction(raw) for raw in bodies if raw is not None]
        if block is None or len(txs) != len(bodies):
            raise NotProvableError(f"block {number} or its transactions are not here")
        ledger.execute(block.header, txs, block.certificate)
    return ledger


def prove_row(genesis: Genesis, store: LedgerStore, key: str, height: int | None) -> StateProof:
    """
    Proof of a row after `height`; by default the newest that a header carries.

    Raises:
        NotProvableError: no header carries the state after `height`.
        ChainError: the stored blocks do not execute.
    """
    prover = Prover(store)
    wanted = prover.newest_covered() if height is None else height
    prover.covering(wanted)
    ledger = replay(genesis, store, wanted)
    with contextlib.closing(ledger.store):
        return prover.row(ledger, key, wanted)


def newest_checkpoint(genesis: Genesis, store: LedgerStore) -> Checkpoint:
    """
    A checkpoint at the newest seal; of the genesis before the first one.

    For whoever trusts this store, because it is theirs and `ledger verify` accepts it.
    """
    tip = store.tip
    low, high = 0, tip.height if tip is not None else 0
    epoch = tip.header.epoch if tip is not None else 0
    if tip is not None and tip.header.seal:
        low, epoch = high, epoch + 1
    # Epochs never fall with height: the first block of the newest epoch is on its seal.
    while low < high:
        middle = (low + high + 1) // 2
        block = store.get_block(middle)
        if block is None or block.header.epoch < epoch:
            low = middle
        else:
            high = middle - 1
    seal = store.get_block(low)
    if seal is None:
        return genesis_checkpoint(genesis)
    row = next(value for key, value in store.state_rows() if key == validator_set_key(epoch))
    keys = tuple(from_text(key, KEY_BYTES) for _, key, _ in row)
    return checkpoint_at(seal.header, types.ValidatorSet(tuple(name for name, _, _ in row), keys))


# --- Answers to light clients ---------------------------------------------------------------------


def answer_proof(store: LedgerStore, ledger: Ledger, key: str) -> bytes:
    """
    A node's answer to "proof".

    Args:
        key: of the state (`account/<address>`), or `receipt-of/` or `inclusion-of/` and a txid in
            hex

    Returns:
        An encoded proof; nothing when it cannot be given now, or is too long for a message.

    Raises:
        MalformedError: not a key.
    """
    prover = Prover(store)
    try:
        proof: Proof
        if key.startswith(RECEIPT):
            proof = prover.receipt(_hash(key.removeprefix(RECEIPT)))
        elif key.startswith(INCLUSION):
            proof = prover.inclusion(_hash(key.removeprefix(INCLUSION)))
        elif len(key) <= proofs.MAX_KEY_LENGTH:
            proof = prover.row(ledger, key)
        else:
            raise MalformedError("key too long", length=len(key))
    except NotProvableError:
        return b""
    return _bounded(proofs.encode(proof))


def answer_anchor(store: LedgerStore, key: str) -> bytes:
    """
    A node's answer to "anchor".

    Args:
        key: `next/<height>/<hash of the trusted validators, hex>` (see `Prover.step`) or
            `at/<height>`, to compare with what another node calls final

    Returns:
        An encoded `Step`; nothing when it cannot be given, or is too long for a message.

    Raises:
        MalformedError: not a key.
    """
    prover = Prover(store)
    try:
        if key.startswith(AT):
            return _bounded(proofs.encode(Step(prover.anchor(_height(key.removeprefix(AT))))))
        if key.startswith(NEXT):
            height, _, validators_hash = key.removeprefix(NEXT).partition("/")
            step = prover.step(_height(height), _hash(validators_hash))
            return _bounded(proofs.encode(step))
    except NotProvableError:
        return b""
    raise MalformedError("expected next/ or at/")


def _bounded(raw: bytes) -> bytes:
    return raw if len(raw) <= MAX_ANSWER_BYTES else b""


def _height(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 15:
        raise MalformedError("expected a height")
    return int(text)


def _hash(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise MalformedError("expected 64 hex digits") from None
    if len(value) != types.HASH_BYTES:
        raise MalformedError("expected 64 hex digits", length=len(text))
    return value


def _turns(index: int, size: int) -> int:
    """For `ReceiptProof.turns`: on which side each sibling of an RFC 6962 path stands."""
    turns, level, last = 0, 0, size - 1
    while last:
        if index & 1 or index != last:
            turns |= (index & 1) << level
            level += 1
        index, last = index >> 1, last >> 1
    return turns
