"""A chain folder with a little of everything, and a node's view of it."""

from __future__ import annotations

from pathlib import Path

from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    bid,
    cpf,
    deposit,
    key,
    slot_ms,
)

from ledger import types
from ledger.api_models import NodeFacts
from ledger.genesis import write_genesis
from ledger.peers import Peer
from ledger.proofs import StateProof
from ledger.prover import Prover
from ledger.store import LedgerStore

ANN, BOB = key("home 0"), key("home 1")


def little_chain(folder: Path, **genesis: object) -> Chain:
    """Two homes settle in, bid twice, validators attest; ends in epoch 2; the store stays open."""
    from support.chain_builder import make_genesis  # noqa: PLC0415

    written = write_genesis(make_genesis(**genesis), folder / "genesis.json")
    chain = Chain(LedgerStore.in_folder(folder), written)
    chain.settle_in(ANN, BOB)
    chain.seal()
    slot = FIRST_SLOT + 1
    attested = [
        chain.tx(SUPERVISOR, cpf(one, slot - 1, 30_000 + 10_000 * number, chain.chain_id))
        for number, one in enumerate(VALIDATORS[:3])
    ]
    chain.block(chain.ledger.time_ms + 1, *attested)
    chain.seal()
    chain.block(
        chain.ledger.time_ms + 1,
        chain.tx(
            ANN,
            bid("buy", FIRST_SLOT + 4, 500, 200_000),
            bid("buy", FIRST_SLOT + 400, 500, 200_000),
        ),
        chain.tx(BOB, bid("sell", FIRST_SLOT + 4, 700, 100_000)),
    )
    first, second = (
        types.make_vote(
            VALIDATORS[2], chain.chain_id, 2, 1, 7, types.VoteKind.NOTARIZE, bytes([n]) * 32
        )
        for n in (1, 2)
    )
    chain.store.keep_evidence(first, second)
    for number in range(3):
        chain.block(chain.ledger.time_ms + 1 + number, chain.tx(SUPERVISOR, deposit(ANN, 5)))
    return chain


class LittleNode:
    """A `Live` without a bus."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.connected = True

    def facts(self) -> NodeFacts:
        return NodeFacts(
            id=VALIDATORS[0].id, role="validator", votes=True, connected=self.connected, mempool=2
        )

    def peers(self) -> list[Peer]:
        return [
            Peer(one.id, 0, 12, "finalize", 2, 5, 8 if number else None)
            for number, one in enumerate(VALIDATORS[:3])
        ]

    def prove_row(self, name: str) -> StateProof:
        return Prover(self.chain.store).row(self.chain.ledger, name)


__all__ = ["ANN", "BOB", "START_MS", "LittleNode", "little_chain", "slot_ms"]
