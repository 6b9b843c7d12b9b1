"""Proofs while finality lags: many headers carry one state, and few are final by themselves."""

import pytest
from msgspec.structs import replace
from support.chain_builder import START_MS, Chain, key, register

from ledger import merkle, types
from ledger.protocol import KEPT_PATH
from ledger.prover import Prover, answer_proof

ANN = key("ann")


def lagging_chain(blocks):
    """A registration, then so many blocks of which only the last is finalised; the registration."""
    chain = Chain()
    tx = chain.tx(ANN, register(ANN))
    chain.block(START_MS + 1, tx)
    ledger, parent, headers = chain.ledger, chain.ledger.tip_hash, []
    for number in range(blocks):
        header = chain.header(START_MS + 2 + number, [], height=2 + number, parent_hash=parent,
                              exec_height=1, state_root=ledger.state_root(1))  # fmt: skip
        over = ledger.receipts_root(0, 1) if number == 0 else merkle.EMPTY_ROOT
        headers.append(replace(header, receipts_root=over))
        parent = types.header_hash(headers[-1])
    certificate = types.decode(types.Finality, chain.finality(headers[-1])).certificate
    for number, header in enumerate(headers):
        path = tuple(headers[number + 1 :])
        proof = types.Finality(certificate, path) if len(path) <= KEPT_PATH else None
        ledger.execute(header, [], types.encode(proof) if proof else b"")
    return chain, tx


@pytest.mark.parametrize("blocks", [1, KEPT_PATH + 2, 300])
def test_a_balance_is_proven_by_the_nearest_header_and_a_receipt_as_far_as_the_proof_reaches(
    blocks, monkeypatch
):
    chain, tx = lagging_chain(blocks)
    decoded = []
    decode = types.decode
    monkeypatch.setattr(types, "decode", lambda *a: (decoded.append(a), decode(*a))[1])
    raw = answer_proof(chain.store, chain.ledger, f"account/{ANN.id}")
    assert len(raw) < 1500, "not the shortest proof"
    assert sum(kind is types.Finality for kind, _ in decoded) < 4, "it looks at every header"
    assert Prover(chain.store).receipt(tx.txid) is not None
