"""
What a light client pays: bytes and time of proofs, and bytes of a year of following.

    python -m bench.light [--json]

Proofs are made from a chain of real blocks with 4 and with 31 validators and 200 accounts. Time is
decoding and checking together, beside the Ed25519 verifications of one quorum alone, which are the
floor: both are measured in turns, so the ratio compares machines. A year of following is one
step for each change of the validators and one newest header; nothing else is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ledger import merkle, proofs, types
from ledger.checkpoint import Checkpoint, genesis_checkpoint
from ledger.execution import Ledger
from ledger.genesis import Genesis, GenesisValidator, Supervisor, seal_genesis
from ledger.prover import Prover
from ledger.schedule import Epochs
from ledger.store import LedgerStore
from wire.certificates import AddressGrant, dump, seal
from wire.envelope import new_req_id
from wire.keys import Domain, SigningKey, to_text, verify
from wire.transactions import Transaction, make_transaction

START_MS = 1_780_704_000_000
"""2026-06-06T00:00:00Z."""
ACCOUNTS = 200
DEPOSIT_UC = 100_000_000
REPEATS = 200
CHANGES_PER_YEAR = (12, 52, 365)


def key_of(name: str) -> SigningKey:
    """A key that depends on its name only."""
    return SigningKey(hashlib.sha256(f"hearthgrid bench {name}".encode()).digest())


class BenchChain:
    """A chain with n validators; ACCOUNTS homes register in its first block, and get money in its
    second."""

    def __init__(self, n: int) -> None:
        self.validators = [key_of(f"validator {number}") for number in range(n)]
        self.supervisor = key_of("supervisor")
        self.genesis = self._genesis()
        self.store = LedgerStore(":memory:")
        self.ledger = Ledger.open(self.genesis, self.store)
        self._epoch = Epochs(self.genesis, self.ledger, self.store).current()
        homes = [key_of(f"account {number}") for number in range(ACCOUNTS)]
        self.addresses = [home.id for home in homes]
        self.txs = [self._deposit(number) for number in range(0, ACCOUNTS, 4)]
        self._block([self._registration(home) for home in homes])
        self._block(self.txs)
        assert (self.ledger.query(f"account/{self.addresses[0]}") or {})["balanceUc"] == DEPOSIT_UC
        self._block([])
        self._block([])

    def _genesis(self) -> Genesis:
        public = self.supervisor.public
        return seal_genesis(
            Genesis(
                market="bench",
                start_ms=START_MS,
                issuing_key=to_text(key_of("issuer").public),
                supervisor=Supervisor(
                    address=self.supervisor.id, key=to_text(public), balance_uc=10**12
                ),
                validators=tuple(
                    GenesisValidator(id=one.id, key=to_text(one.public), controller=f"c{number}")
                    for number, one in enumerate(self.validators)
                ),
            )
        )

    def _registration(self, home: SigningKey) -> Transaction:
        slot = self.genesis.grid.slot_at(START_MS)
        grant = AddressGrant(
            address=home.id,
            key=to_text(home.public),
            meter_key=to_text(home.public),
            can_buy=True,
            can_sell=True,
            max_buy_wh=5_000,
            max_sell_wh=5_000,
            start_slot=slot,
            end_slot=slot + 400,
        )
        sealed = seal(grant, key_of("issuer"), self.genesis.market)
        return self._transaction(home, 0, [{"op": "register-address", "grant": dump(sealed)}])

    def _deposit(self, first: int) -> Transaction:
        """Money for four accounts."""
        operations = [
            {"op": "add-financial-balance", "address": address, "amountUc": DEPOSIT_UC}
            for address in self.addresses[first : first + 4]
        ]
        return self._transaction(self.supervisor, first // 4, operations)

    def _transaction(
        self, sender: SigningKey, nonce: int, operations: list[dict[str, Any]]
    ) -> Transaction:
        req_id = new_req_id(START_MS, hashlib.sha256(f"{sender.id}{nonce}".encode()).digest())
        return make_transaction(
            sender, self.genesis.chain_id, nonce, 10**9, operations, req_id, START_MS
        )

    def _block(self, txs: list[Transaction]) -> None:
        ledger, executed = self.ledger, self.ledger.executed_height
        view = executed + 1
        header = types.Header(
            chain_id=self.genesis.chain_id,
            epoch=0,
            view=view,
            height=view,
            parent_hash=ledger.tip_hash,
            justify_hash=bytes(32),
            tx_root=merkle.root([tx.txid for tx in txs]),
            n_tx=len(txs),
            exec_height=executed,
            state_root=ledger.state_root(executed),
            receipts_root=ledger.receipts_root(ledger.covered_height, executed),
            validators_hash=self._epoch.validators.hash,
            schedule_root=self._epoch.schedule_root,
            time_ms=START_MS + view,
            proposer=self._epoch.validators.ids[self._epoch.leader(view)],
        )
        block_hash = types.header_hash(header)
        votes = [
            types.make_vote(
                one, header.chain_id, number, 0, view, types.VoteKind.FINALIZE, block_hash
            )
            for number, one in enumerate(self.validators[: self._epoch.validators.quorum])
        ]
        finality = types.Finality(types.make_certificate(votes))
        ledger.execute(header, txs, types.encode(finality))


def medians_us(*works: Callable[[], object]) -> list[float]:
    """Median time of REPEATS runs of each, in turns [µs]."""
    times_us: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS):
        for work, taken_us in zip(works, times_us, strict=True):
            started_ns = time.perf_counter_ns()
            work()
            taken_us.append((time.perf_counter_ns() - started_ns) / 1000)
    return [round(statistics.median(taken_us), 1) for taken_us in times_us]


def check_signatures(anchor: proofs.Anchor, known: types.ValidatorSet) -> None:
    """The Ed25519 verifications of a proof, and nothing else."""
    certificate = anchor.finality.certificate
    message = types.vote_message(
        certificate.epoch, certificate.view, certificate.kind, certificate.block_hash
    )
    for index, signature in enumerate(certificate.signatures):
        assert verify(known.keys[index], Domain.VOTE, anchor.header.chain_id, message, signature)


def check_bytes(raw: bytes, trust: Checkpoint) -> None:
    """All that a client does with a proof."""
    proofs.verify(proofs.decode_proof(raw), trust)


def measure(n: int) -> list[dict[str, float | str]]:
    """Bytes and time of each kind of proof at n validators."""
    chain = BenchChain(n)
    prover, trust = Prover(chain.store), genesis_checkpoint(chain.genesis)
    txid = chain.txs[len(chain.txs) // 2].txid
    anchor = prover.covering(prover.newest_covered())
    rows: list[dict[str, float | str]] = []
    for name, proof in (
        ("balance", prover.row(chain.ledger, f"account/{chain.addresses[0]}")),
        ("absence", prover.row(chain.ledger, "account/nobody")),
        ("receipt", prover.receipt(txid)),
        ("inclusion", prover.inclusion(txid)),
    ):
        raw = proofs.encode(proof)
        check_us, floor_us = medians_us(
            partial(check_bytes, raw, trust), partial(check_signatures, anchor, trust.validators)
        )
        rows.append(
            {
                "validators": n,
                "proof": name,
                "bytes": len(raw),
                "check_us": check_us,
                "ed25519_us": floor_us,
                "ratio": round(check_us / floor_us, 2),
            }
        )
    return rows


def year_bytes(n: int) -> dict[str, int]:
    """Bytes to follow for a year, by changes of the validators in it, all of them replaced."""
    chain = BenchChain(n)
    anchor = Prover(chain.store).anchor(chain.store.height)
    known = genesis_checkpoint(chain.genesis).validators
    newest = len(proofs.encode(proofs.Step(anchor)))
    change = len(proofs.encode(proofs.Step(anchor, known.keys)))
    return {"validators": n, "header": newest, "change": change} | {
        f"year_{count}": count * change + newest for count in CHANGES_PER_YEAR
    }


def main() -> None:
    """Measure and print."""
    rows = [row for n in (4, 31) for row in measure(n)]
    years = [year_bytes(n) for n in (4, 31)]
    if "--json" in sys.argv[1:]:
        print(json.dumps({"proofs": rows, "following": years}))
        return
    for row in rows:
        print(
            f"n={row['validators']:<3} {row['proof']:<10} {row['bytes']:>5} B"
            f" {row['check_us']:>8} µs  (Ed25519 alone {row['ed25519_us']} µs, ×{row['ratio']})"
        )
    for year in years:
        print(f"n={year['validators']:<3} header {year['header']} B, change {year['change']} B")
        for count in CHANGES_PER_YEAR:
            print(f"      a year with {count:>3} changes: {year[f'year_{count}']:>9,} B")


if __name__ == "__main__":
    main()
